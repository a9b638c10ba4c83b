//! The configuration space of a PCI function (PCI Local Bus Specification 2.1, chapter 6).

use crate::device::{Region, Space};

/// Bytes of a configuration space.
pub const SIZE: usize = 256;

/// Offset of the command register.
pub const COMMAND: u8 = 0x04;
/// Command bit: the function answers its I/O base addresses.
pub const COMMAND_IO: u8 = 1 << 0;
/// Command bit: the function answers its memory base addresses.
pub const COMMAND_MEMORY: u8 = 1 << 1;
/// Offset of the first base address register; there are six.
pub const BAR0: u8 = 0x10;
/// Offset of the expansion ROM base address register.
pub const ROM_BAR: u8 = 0x30;
/// Offset of the interrupt line register: scratch space of firmware and operating system.
pub const INTERRUPT_LINE: u8 = 0x3c;
/// Offset of the interrupt pin register.
pub const INTERRUPT_PIN: u8 = 0x3d;

/// Offset of the header type register.
const HEADER_TYPE: u8 = 0x0e;
/// Header type bit: the device has functions other than 0.
const MULTI_FUNCTION: u8 = 0x80;

/// What a function says it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Vendor of the chip.
    pub vendor: u16,
    /// The vendor's number for the chip.
    pub device: u16,
    /// Revision of the chip.
    pub revision: u8,
    /// Class, subclass and programming interface: 0x020000 is an Ethernet controller.
    pub class: u32,
    /// Vendor of the board.
    pub subsystem_vendor: u16,
    /// The vendor's number for the board.
    pub subsystem: u16,
}

/// A base address register: where the guest puts a region of the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// The device's number for the region.
    pub region: usize,
    /// Offset of the 32-bit register.
    pub register: u8,
    /// The address space.
    pub space: Space,
    /// Size of the region in bytes: a power of two, at least 4 (ports) or 16 (memory), at most 2 GiB.
    pub size: u32,
    /// The register bits, each as (offset, mask), that must all be set for the region to be there.
    pub enable: [Option<(u8, u8)>; 2],
}

impl Bar {
    /// The base address register `number` (0 to 5) of a type 0 header, whose region has the same number.
    pub fn standard(number: u8, space: Space, size: u32) -> Self {
        let enable = match space {
            Space::Port => COMMAND_IO,
            Space::Memory => COMMAND_MEMORY,
        };
        Self {
            region: usize::from(number),
            register: BAR0 + 4 * (number % 6),
            space,
            size,
            enable: [Some((COMMAND, enable)), None],
        }
    }

    /// The expansion ROM's base address register, for an image of `size` bytes, as region `region`.
    pub fn rom(region: usize, size: u32) -> Self {
        Self {
            region,
            register: ROM_BAR,
            space: Space::Memory,
            size,
            enable: [Some((COMMAND, COMMAND_MEMORY)), Some((ROM_BAR, 1))],
        }
    }

    /// The bits of the register that hold the address.
    fn mask(&self) -> u32 {
        !(self.size - 1)
    }
}

/// A configuration space: its bytes, and which of their bits the guest can change.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    /// What [`reset`](Self::reset) brings back.
    initial: [u8; SIZE],
    /// Bits that take what is written.
    writable: [u8; SIZE],
    bars: Vec<Bar>,
}

impl ConfigSpace {
    /// A type 0 header with the usual writable bits: of the command register I/O, memory, bus master, parity and SERR;
    /// the cache line size, the latency timer and the interrupt line.
    pub fn new(identity: &Identity) -> Self {
        let mut config = Self {
            bytes: [0; SIZE],
            initial: [0; SIZE],
            writable: [0; SIZE],
            bars: Vec::new(),
        };
        config.set(0x00, &identity.vendor.to_le_bytes());
        config.set(0x02, &identity.device.to_le_bytes());
        config.set(0x08, &(identity.class << 8).to_le_bytes());
        config.set(0x08, &[identity.revision]);
        config.set(0x2c, &identity.subsystem_vendor.to_le_bytes());
        config.set(0x2e, &identity.subsystem.to_le_bytes());
        config.allow(COMMAND, &0x0147_u16.to_le_bytes());
        config.allow(0x0c, &[0xff, 0xff]);
        config.allow(INTERRUPT_LINE, &[0xff]);
        config
    }

    /// Sets bytes from `offset` on as they are after reset. What does not fit is left out.
    pub fn set(&mut self, offset: u8, bytes: &[u8]) {
        for (at, &byte) in (usize::from(offset)..SIZE).zip(bytes) {
            put(&mut self.bytes, at, byte);
            put(&mut self.initial, at, byte);
        }
    }

    /// Makes the bits of `mask`, from `offset` on, writable by the guest.
    pub fn allow(&mut self, offset: u8, mask: &[u8]) {
        for (at, &byte) in (usize::from(offset)..SIZE).zip(mask) {
            put(&mut self.writable, at, byte);
        }
    }

    /// Adds a base address. Its size is rounded up to a power of two within the limits of [`Bar::size`].
    pub fn add_bar(&mut self, mut bar: Bar) {
        let (least, kind) = match bar.space {
            Space::Port => (4, 1),
            Space::Memory => (16, 0),
        };
        bar.size = bar.size.clamp(least, 1 << 31).next_power_of_two();
        let enable = u32::from(bar.register == ROM_BAR);
        self.set(bar.register, &u32::to_le_bytes(kind));
        self.allow(bar.register, &(bar.mask() | enable).to_le_bytes());
        self.bars.push(bar);
    }

    /// Connects the function to interrupt pin `pin`: 1 is INTA#, 4 is INTD#, 0 none.
    pub fn set_pin(&mut self, pin: u8) {
        self.set(INTERRUPT_PIN, &[pin]);
    }

    /// Says in the header that the device has further functions.
    pub fn set_multi_function(&mut self) {
        self.set(HEADER_TYPE, &[MULTI_FUNCTION]);
    }

    /// The byte at `offset`.
    pub fn byte(&self, offset: u8) -> u8 {
        get(&self.bytes, usize::from(offset))
    }

    /// The guest reads from `offset` on; what lies behind the end is left as it is.
    pub fn read(&self, offset: u8, data: &mut [u8]) {
        for (at, byte) in (usize::from(offset)..SIZE).zip(data) {
            *byte = get(&self.bytes, at);
        }
    }

    /// The guest writes from `offset` on.
    pub fn write(&mut self, offset: u8, data: &[u8]) {
        for (at, &byte) in (usize::from(offset)..SIZE).zip(data) {
            let mask = get(&self.writable, at);
            let old = get(&self.bytes, at);
            put(&mut self.bytes, at, (old & !mask) | (byte & mask));
        }
    }

    /// As after power-on.
    pub fn reset(&mut self) {
        self.bytes = self.initial;
    }

    /// All bytes, for a saved state.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes over those bits of saved bytes that a guest can write; so a forged state can do what a guest can.
    pub fn restore(&mut self, bytes: &[u8]) {
        self.reset();
        self.write(0, bytes);
    }

    /// Whether saved bytes have what a guest cannot write as it is here.
    pub(super) fn is_same_function(&self, saved: &[u8]) -> bool {
        let here = self.initial.iter().zip(&self.writable);
        let same =
            |(&saved, (&here, &writable)): (&u8, (&u8, &u8))| (saved ^ here) & !writable == 0;
        saved.len() == SIZE && saved.iter().zip(here).all(same)
    }

    /// The base addresses.
    pub fn bars(&self) -> &[Bar] {
        &self.bars
    }

    /// Where `bar` puts its region at present, if it is enabled.
    pub fn region(&self, bar: &Bar) -> Option<Region> {
        let enabled = bar.enable.iter().flatten();
        let enabled = { enabled }.all(|&(offset, mask)| self.byte(offset) & mask == mask);
        let mut register = [0; 4];
        self.read(bar.register, &mut register);
        let start = u64::from(u32::from_le_bytes(register) & bar.mask());
        // 0 is no address: it is what the register holds before firmware has been there.
        (enabled && start != 0).then_some(Region {
            number: bar.region,
            space: bar.space,
            start,
            len: u64::from(bar.size),
        })
    }
}

fn get(bytes: &[u8; SIZE], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0xff)
}

fn put(bytes: &mut [u8; SIZE], at: usize, value: u8) {
    if let Some(byte) = bytes.get_mut(at) {
        *byte = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic() -> ConfigSpace {
        let mut config = ConfigSpace::new(&Identity {
            vendor: 0x1011,
            device: 0x0009,
            revision: 0x20,
            class: 0x02_00_00,
            subsystem_vendor: 0x0a00,
            subsystem: 0x2114,
        });
        config.add_bar(Bar::standard(0, Space::Port, 128));
        config.add_bar(Bar::standard(1, Space::Memory, 128));
        config.add_bar(Bar::rom(6, 0x10000));
        config.set_pin(1);
        config
    }

    fn read32(config: &ConfigSpace, offset: u8) -> u32 {
        let mut data = [0; 4];
        config.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write32(config: &mut ConfigSpace, offset: u8, value: u32) {
        config.write(offset, &value.to_le_bytes());
    }

    #[test]
    fn the_header_has_the_specified_layout() {
        let config = nic();
        assert_eq!(read32(&config, 0x00), 0x0009_1011);
        assert_eq!(read32(&config, 0x08), 0x0200_0020);
        assert_eq!(read32(&config, 0x2c), 0x2114_0a00);
        assert_eq!(config.byte(INTERRUPT_PIN), 1);
    }

    #[test]
    fn identity_and_pin_cannot_be_written() {
        let mut config = nic();
        for offset in 0..=255 {
            config.write(offset, &[0xff]);
        }
        assert_eq!(read32(&config, 0x00), 0x0009_1011);
        assert_eq!(read32(&config, 0x08), 0x0200_0020);
        assert_eq!(config.byte(INTERRUPT_PIN), 1);
        assert_eq!(config.byte(INTERRUPT_LINE), 0xff);
        assert_eq!(read32(&config, 0x04), 0x0147);
        assert_eq!(read32(&config, 0x34), 0, "no capabilities");
    }

    #[test]
    fn a_base_address_tells_its_size_when_ones_are_written() {
        let mut config = nic();
        for (register, size, kind) in [(0x10, 128, 1), (0x14, 128, 0), (0x30, 0x10000, 0)] {
            write32(&mut config, register, 0xffff_fffe);
            let value = read32(&config, register);
            assert_eq!(value & 1, kind, "{register:#x}");
            assert_eq!(!(value & !1) + 1, size, "{register:#x}");
        }
        write32(&mut config, 0x18, u32::MAX);
        assert_eq!(read32(&config, 0x18), 0, "a base address that is not there");
    }

    #[test]
    fn regions_follow_base_addresses_and_enable_bits() {
        let mut config = nic();
        let regions = |config: &ConfigSpace| -> Vec<(usize, u64)> {
            let bars = config.bars().iter();
            { bars }
                .filter_map(|bar| config.region(bar))
                .map(|region| (region.number, region.start))
                .collect()
        };
        write32(&mut config, 0x10, 0xc001);
        write32(&mut config, 0x14, 0xfebf_0000);
        write32(&mut config, 0x30, 0xfeb0_0001);
        assert_eq!(regions(&config), []);
        config.write(COMMAND, &[COMMAND_IO]);
        assert_eq!(regions(&config), [(0, 0xc000)]);
        config.write(COMMAND, &[COMMAND_IO | COMMAND_MEMORY]);
        assert_eq!(
            regions(&config),
            [(0, 0xc000), (1, 0xfebf_0000), (6, 0xfeb0_0000)]
        );
        config.write(ROM_BAR, &[0]);
        assert_eq!(regions(&config), [(0, 0xc000), (1, 0xfebf_0000)]);
        config.reset();
        assert_eq!(regions(&config), []);
    }

    #[test]
    fn sizes_are_powers_of_two_and_never_nothing() {
        for (size, expected) in [(0, 16), (17, 32), (128, 128), (u32::MAX, 1 << 31)] {
            let mut config = ConfigSpace::new(&Identity::default());
            config.add_bar(Bar::standard(5, Space::Memory, size));
            assert_eq!(config.bars()[0].size, expected);
            write32(&mut config, 0x24, u32::MAX);
            assert_eq!(read32(&config, 0x24), !(expected - 1));
        }
    }

    #[test]
    fn a_saved_state_changes_no_more_than_a_guest_can() {
        let mut config = nic();
        write32(&mut config, 0x10, 0xd000);
        let saved = config.bytes().to_vec();
        config.restore(&[0xff; SIZE]);
        assert_eq!(read32(&config, 0), 0x0009_1011);
        config.restore(&saved);
        assert_eq!(config.bytes(), saved);
        config.restore(&[]);
        assert_eq!(read32(&config, 0x10), 1);
    }
}
