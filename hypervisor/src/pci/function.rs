//! A PCI function: a configuration space with a device behind it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use guestmem::Memory;

use super::INTX;
use super::config::{Bar, ConfigSpace};
use crate::device::{Device, Doorbell, Effect, Effects, Region, Rom, State};

/// The region number of the option ROM: no device has one of that number, since there are six base addresses.
pub const ROM_REGION: usize = 6;

/// The region number under which a device is told what its configuration space holds after each write: the offset, and the
/// bytes there now. It may disregard it.
pub const CONFIG_REGION: usize = 7;

/// The longest option ROM: what fits the space below 1 MiB twice over, as part of an image may stay in the ROM.
const MAX_ROM: usize = 4 << 20;
/// The least that a ROM takes of the address space, so that it can be mapped.
const PAGE: usize = 4096;

/// Why an image is no option ROM (PCI Firmware Specification 3.0, chapter 5).
#[derive(Debug, thiserror::Error)]
pub enum RomError {
    /// Too short or too long.
    #[error("an option ROM of {0} bytes; allowed: 512 to {MAX_ROM}")]
    Length(usize),
    /// The signature is missing.
    #[error("an option ROM starts with bytes 55 aa, this file with {0:02x} {1:02x}")]
    Signature(u8, u8),
    /// There is no memory for it.
    #[error("an option ROM cannot be kept in memory")]
    Map(#[from] guestmem::MapError),
}

/// A register of the function whose writes ring an eventfd.
#[derive(Debug)]
struct BarDoorbell {
    region: usize,
    offset: u64,
    len: u32,
    event: Arc<OwnedFd>,
}

/// A PCI function: a configuration space, the device behind its base addresses, and how they are connected.
///
/// The device's accesses come with the region numbers of its [`Bar`]s. It drives its interrupt pin by
/// [`Effect::Line`] with the line [`INTX`]. Its own [`Device::wiring`] is not asked: what would stand there is said
/// here, relative to base addresses.
pub struct Function {
    config: ConfigSpace,
    device: Option<Box<dyn Device>>,
    /// The image with ones up to the size of its base address.
    rom: Option<Arc<Memory>>,
    doorbells: Vec<BarDoorbell>,
    interrupt: Option<Arc<OwnedFd>>,
    fixed_line: Option<u8>,
    /// The device drives its interrupt pin.
    asserted: bool,
}

impl Function {
    /// A function of a configuration space alone, such as a bridge.
    pub fn bridge(config: ConfigSpace) -> Self {
        Self {
            config,
            device: None,
            rom: None,
            doorbells: Vec::new(),
            interrupt: None,
            fixed_line: None,
            asserted: false,
        }
    }

    /// A function with `device` behind its base addresses.
    pub fn new(config: ConfigSpace, device: Box<dyn Device>) -> Self {
        Self {
            device: Some(device),
            ..Self::bridge(config)
        }
    }

    /// Puts an option ROM behind the expansion ROM's base address.
    ///
    /// # Errors
    /// `image` is no option ROM.
    pub fn with_rom(mut self, image: &[u8]) -> Result<Self, RomError> {
        match image {
            [0x55, 0xaa, ..] if (512..=MAX_ROM).contains(&image.len()) => {}
            [0x55, 0xaa, ..] => return Err(RomError::Length(image.len())),
            [first, second, ..] => return Err(RomError::Signature(*first, *second)),
            _ => return Err(RomError::Length(image.len())),
        }
        let size = image.len().next_power_of_two().max(PAGE);
        let memory = Memory::anonymous(size)?;
        let mut padded = image.to_vec();
        padded.resize(size, 0xff);
        if let Some(span) = memory.span(0, size as u32) {
            // Nobody can take this memory away.
            let _written = memory.write(span, &padded);
        }
        self.config.add_bar(Bar::rom(ROM_REGION, size as u32));
        self.rom = Some(Arc::new(memory));
        Ok(self)
    }

    /// Lets writes of `len` bytes (1, 2, 4 or 8) at `offset` of the region `region` ring `event` instead of reaching
    /// the device.
    #[must_use]
    pub fn with_doorbell(
        mut self,
        region: usize,
        offset: u64,
        len: u32,
        event: Arc<OwnedFd>,
    ) -> Self {
        self.doorbells.push(BarDoorbell {
            region,
            offset,
            len,
            event,
        });
        self
    }

    /// Lets another process raise the interrupt pin by `event`. It stays up until the guest has ended the interrupt
    /// and [`Device::wants_interrupt`] (asked with id 0) says no.
    #[must_use]
    pub fn with_interrupt(mut self, event: Arc<OwnedFd>) -> Self {
        self.interrupt = Some(event);
        self
    }

    /// Wires the function to interrupt line `line`, past the chipset's routing of pins.
    #[must_use]
    pub fn with_fixed_line(mut self, line: u8) -> Self {
        self.fixed_line = Some(line);
        self
    }

    /// The configuration space.
    pub fn config(&self) -> &ConfigSpace {
        &self.config
    }

    /// Bytes that its option ROM takes, a power of two.
    pub(super) fn rom_size(&self) -> Option<u32> {
        let mut bars = self.config.bars().iter();
        bars.find(|bar| bar.region == ROM_REGION)
            .map(|bar| bar.size)
    }

    pub(super) fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    /// The device, if it is a `T`.
    pub fn device_mut<T: Device>(&mut self) -> Option<&mut T> {
        let device: &mut dyn std::any::Any = self.device.as_deref_mut()?;
        device.downcast_mut()
    }

    pub(super) fn fixed_line(&self) -> Option<u8> {
        self.fixed_line
    }

    pub(super) fn interrupt(&self) -> Option<&Arc<OwnedFd>> {
        self.interrupt.as_ref()
    }

    pub(super) fn asserted(&self) -> bool {
        self.asserted
    }

    /// Where its enabled regions are.
    pub(super) fn regions(&self) -> impl Iterator<Item = Region> {
        let bars = self.config.bars().iter();
        bars.filter_map(|bar| self.config.region(bar))
    }

    /// Its option ROM, if that is what `region` is.
    pub(super) fn rom(&self, region: &Region) -> Option<Rom> {
        let image = self.rom.as_ref().filter(|_| region.number == ROM_REGION)?;
        Some(Rom {
            start: region.start,
            image: Arc::clone(image),
            len: region.len,
        })
    }

    /// Its doorbells in `region`.
    pub(super) fn doorbells(&self, region: &Region) -> impl Iterator<Item = Doorbell> {
        let Region {
            number,
            space,
            start,
            len,
        } = *region;
        let here = move |bell: &&BarDoorbell| {
            let end = bell.offset.checked_add(u64::from(bell.len));
            bell.region == number && end.is_some_and(|end| end <= len)
        };
        self.doorbells
            .iter()
            .filter(here)
            .map(move |bell| Doorbell {
                space,
                address: start + bell.offset,
                len: bell.len,
                value: None,
                event: Arc::clone(&bell.event),
            })
    }

    pub(super) fn read(
        &mut self,
        region: usize,
        offset: u64,
        data: &mut [u8],
        effects: &mut Effects,
    ) {
        if region == ROM_REGION {
            // Where it is not mapped, for something else is in its way.
            let rom = self.rom.as_deref();
            if let Some((rom, span)) =
                rom.and_then(|rom| Some((rom, rom.span(offset, data.len() as u32)?)))
            {
                let _read = rom.read(span, data);
            }
        } else if let Some(device) = &mut self.device {
            device.read(region, offset, data, effects);
        }
    }

    pub(super) fn write(&mut self, region: usize, offset: u64, data: &[u8], effects: &mut Effects) {
        if let Some(device) = self.device.as_mut().filter(|_| region != ROM_REGION) {
            device.write(region, offset, data, effects);
        }
    }

    /// The guest writes configuration space. True if regions moved by it.
    pub(super) fn config_write(&mut self, offset: u8, data: &[u8], effects: &mut Effects) -> bool {
        let before: Vec<Region> = self.regions().collect();
        self.config.write(offset, data);
        if let Some(device) = &mut self.device {
            let mut now = [0; 8];
            let now = now.get_mut(..data.len()).unwrap_or_default();
            self.config.read(offset, now);
            device.write(CONFIG_REGION, offset.into(), now, effects);
        }
        !self.regions().eq(before)
    }

    pub(super) fn timer(&mut self, id: u32, effects: &mut Effects) {
        if let Some(device) = &mut self.device {
            device.timer(id, effects);
        }
    }

    pub(super) fn wants_interrupt(&mut self) -> bool {
        self.device
            .as_mut()
            .is_some_and(|device| device.wants_interrupt(0))
    }

    pub(super) fn is_settled(&self) -> bool {
        self.device
            .as_ref()
            .is_none_or(|device| device.is_settled())
    }

    pub(super) fn reset(&mut self, effects: &mut Effects) {
        self.config.reset();
        self.asserted = false;
        if let Some(device) = &mut self.device {
            device.reset(effects);
        }
    }

    pub(super) fn save_device(&self) -> State {
        self.device
            .as_ref()
            .map_or(State::Null, |device| device.save())
    }

    pub(super) fn restore_device(
        &mut self,
        state: &State,
        effects: &mut Effects,
    ) -> Result<(), crate::device::RestoreError> {
        self.asserted = false;
        match &mut self.device {
            Some(device) => device.restore(state, effects),
            None => Ok(()),
        }
    }

    /// Takes what concerns the pin out of the device's effects; gives the others back with their timers renumbered
    /// from `first_timer` on.
    pub(super) fn absorb(&mut self, first_timer: u32, from: &mut Effects, to: &mut Effects) {
        for effect in from.take() {
            let effect = match effect {
                Effect::Line { gsi: INTX, high } => {
                    self.asserted = high;
                    continue;
                }
                Effect::Timer { id, after } => Effect::Timer {
                    id: first_timer | (id & 0xffff),
                    after,
                },
                Effect::CancelTimer { id } => Effect::CancelTimer {
                    id: first_timer | (id & 0xffff),
                },
                other => other,
            };
            to.push(effect);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::Identity;

    fn function() -> Function {
        Function::bridge(ConfigSpace::new(&Identity::default()))
    }

    #[test]
    fn what_is_no_option_rom_is_refused() {
        let refused = |image: &[u8]| function().with_rom(image).err().unwrap().to_string();
        assert!(refused(&[]).contains("0 bytes"));
        assert!(refused(&[0x55, 0xaa]).contains("2 bytes"));
        assert!(refused(&[0x7f; 4096]).contains("7f 7f"));
        let mut large = vec![0; MAX_ROM + 1];
        large[..2].copy_from_slice(&[0x55, 0xaa]);
        assert!(refused(&large).contains("4194305 bytes"));
    }

    #[test]
    fn the_rom_is_read_at_every_width_and_ends_in_ones() {
        let mut image = vec![0x11; 600];
        image[..2].copy_from_slice(&[0x55, 0xaa]);
        let mut function = function().with_rom(&image).unwrap();
        let mut effects = Effects::default();
        let mut data = [0xff; 8];
        function.read(ROM_REGION, 0, &mut data, &mut effects);
        assert_eq!(data, [0x55, 0xaa, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11]);
        data = [0xff; 8];
        function.read(ROM_REGION, 596, &mut data, &mut effects);
        assert_eq!(data, [0x11, 0x11, 0x11, 0x11, 0xff, 0xff, 0xff, 0xff]);
        function.read(ROM_REGION, u64::MAX, &mut data, &mut effects);
        assert_eq!(function.config().bars()[0].size, 4096);
        data = [0; 8];
        function.read(ROM_REGION, 4088, &mut data, &mut effects);
        assert_eq!(data, [0xff; 8]);
    }
}
