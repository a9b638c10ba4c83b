//! The 82441FX host bridge: configuration mechanism 1, PCI bus 0, and the registers that put memory over the firmware.

use serde::{Deserialize, Serialize};

use super::piix3;
use super::piix4::{self, PowerManagement};
use crate::device::{Device, Effect, Effects, Region, RestoreError, Shadow, Space, State, Wiring};
use crate::pci::bus::Routes;
use crate::pci::{Address, Bus, BusError, ConfigSpace, Function, Identity};

/// Where the host bridge is on its bus.
pub const ADDRESS: Address = Address {
    slot: 0,
    function: 0,
};

/// The number of the region with the configuration ports; those of the bus are above.
const PORTS: usize = 0;
/// First region number of the bus.
const BUS: usize = 1;

/// The first configuration port: CONFIG_ADDRESS at 0xcf8, the reset control register at 0xcf9, CONFIG_DATA at 0xcfc.
const CONFIG_ADDRESS: u16 = 0xcf8;
/// CONFIG_ADDRESS bit: accesses to CONFIG_DATA go to configuration space.
const ENABLE: u32 = 1 << 31;
/// CONFIG_ADDRESS bits that can be written: enable, bus, slot, function, register.
const ADDRESS_MASK: u32 = 0x80ff_fffc;

/// The programmable attribute map: a nibble for each of 13 segments.
const PAM: u8 = 0x59;
/// A segment's nibble: reads come from memory.
const PAM_READ: u8 = 1;
/// A segment's nibble: writes go to memory.
const PAM_WRITE: u8 = 2;
const SEGMENTS: usize = 13;

/// A saved bridge.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    address: u32,
    reset_control: u8,
    bus: State,
}

/// The host bridge, with all PCI functions, as a device of the machine. The south bridge is on the bus from the start.
pub struct HostBridge {
    bus: Bus,
    /// CONFIG_ADDRESS.
    address: u32,
    reset_control: u8,
    /// The interrupt lines that the bus drives, as last told.
    lines: u16,
    /// How the segments answer, as last told.
    shadows: [Shadow; SEGMENTS],
    firmware: bool,
}

impl HostBridge {
    /// A host bridge with the south bridge's functions. Without `firmware`, each reset leaves everything as firmware
    /// would: memory at 0xc0000 to 0xfffff, functions placed and enabled, interrupt lines routed.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn new(firmware: bool) -> Result<Self, BusError> {
        let mut bus = Bus::default();
        bus.add(ADDRESS, Function::bridge(host_config()))?;
        bus.add(piix3::ADDRESS, Function::bridge(piix3::config()))?;
        bus.add(piix4::ADDRESS, piix4::function())?;
        let mut bridge = Self {
            bus,
            address: 0,
            reset_control: 0,
            lines: 0,
            shadows: [Shadow::Rom; SEGMENTS],
            firmware,
        };
        bridge.reset(&mut Effects::default());
        Ok(bridge)
    }

    /// Puts a function on the bus, before the machine starts. Slots 0 and 1 are the chipset's.
    ///
    /// # Errors
    /// There is no such place, or it is taken.
    pub fn add(&mut self, address: Address, function: Function) -> Result<(), BusError> {
        self.bus.add(address, function)?;
        self.reset(&mut Effects::default());
        Ok(())
    }

    /// The bus, to look at.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Calls `access` with the device at `address`; `None` if there is none, or it is not a `T`.
    pub fn with_device<T: Device, R>(
        &mut self,
        address: Address,
        effects: &mut Effects,
        access: impl FnOnce(&mut T, &mut Effects) -> R,
    ) -> Option<R> {
        let result = self.bus.with_device(address, effects, access);
        self.drive_lines(effects);
        result
    }

    /// The power button is pressed. The operating system is asked to shut down, if it listens.
    pub fn press_power_button(&mut self, effects: &mut Effects) {
        self.with_device(piix4::ADDRESS, effects, PowerManagement::press_power_button);
    }

    /// The interrupt lines that the south bridge routes PCI pins to.
    pub fn routes(&self) -> Routes {
        self.bus
            .config(piix3::ADDRESS)
            .map(piix3::routes)
            .unwrap_or_default()
    }

    /// The place in configuration space that CONFIG_DATA is a window on.
    fn selected(&self) -> Option<(Address, u8)> {
        let bus = (self.address >> 16) as u8;
        let address = Address {
            slot: (self.address >> 11) as u8 & 31,
            function: (self.address >> 8) as u8 & 7,
        };
        (self.address & ENABLE != 0 && bus == 0).then_some((address, self.address as u8 & 0xfc))
    }

    fn read_ports(&self, offset: u64, data: &mut [u8]) {
        match (offset, data) {
            (0, [a, b, c, d]) => [*a, *b, *c, *d] = self.address.to_le_bytes(),
            (1, [byte]) => *byte = self.reset_control,
            (4..8, data) => {
                if let Some((address, register)) = self.selected() {
                    self.bus
                        .config_read(address, register + (offset as u8 - 4), data);
                }
            }
            _ => {}
        }
    }

    fn write_ports(&mut self, offset: u64, data: &[u8], effects: &mut Effects) {
        match (offset, data) {
            (0, &[a, b, c, d]) => self.address = u32::from_le_bytes([a, b, c, d]) & ADDRESS_MASK,
            (1, &[byte]) => {
                self.reset_control = byte & piix3::RESET_CONTROL_MASK;
                if byte & piix3::RESET_CPU != 0 {
                    effects.push(Effect::Reset);
                }
            }
            (4..8, data) => {
                if let Some((address, register)) = self.selected() {
                    self.config_write(address, register + (offset as u8 - 4), data, effects);
                }
            }
            _ => {}
        }
    }

    fn config_write(&mut self, address: Address, offset: u8, data: &[u8], effects: &mut Effects) {
        let routes = self.routes();
        let moved = self.bus.config_write(address, offset, data, effects);
        if moved || routes != self.routes() {
            effects.push(Effect::Rewire);
        }
        if address == ADDRESS {
            self.shadow(effects);
        }
        self.drive_lines(effects);
    }

    /// Leaves everything as firmware would.
    fn stand_in_for_firmware(&mut self, effects: &mut Effects) {
        let bus = &mut self.bus;
        bus.config_write(ADDRESS, PAM, &[0x30, 0x33, 0x33, 0x33], effects);
        bus.config_write(ADDRESS, PAM + 4, &[0x33; 3], effects);
        bus.config_write(
            piix3::ADDRESS,
            piix3::PIRQ_ROUTES,
            &piix3::FIRMWARE_ROUTES,
            effects,
        );
        piix4::enable(bus, effects);
        let routes = self.routes();
        self.bus.assign(&routes, effects);
    }

    /// Tells which interrupt lines have changed.
    fn drive_lines(&mut self, effects: &mut Effects) {
        let lines = self.bus.lines(&self.routes());
        let changed = lines ^ self.lines;
        self.lines = lines;
        for gsi in (0..16).filter(|gsi| changed & (1 << gsi) != 0) {
            effects.push(Effect::Line {
                gsi,
                high: lines & (1 << gsi) != 0,
            });
        }
    }

    /// Tells which segments answer otherwise than before, neighbours in one effect.
    fn shadow(&mut self, effects: &mut Effects) {
        let mut run: Option<(u32, u32, Shadow)> = None;
        for (index, old) in self.shadows.iter_mut().enumerate() {
            let new = segment(self.bus.config(ADDRESS), index);
            let (start, len) = extent(index);
            let changed = std::mem::replace(old, new) != new;
            match &mut run {
                Some((_, length, shadow)) if changed && *shadow == new => *length += len,
                _ => {
                    run.take()
                        .into_iter()
                        .for_each(|run| push_shadow(run, effects));
                    run = changed.then_some((start, len, new));
                }
            }
        }
        run.into_iter().for_each(|run| push_shadow(run, effects));
    }

    /// Tells how all segments answer and which lines are high, whatever was told before.
    fn tell_all(&mut self, effects: &mut Effects) {
        self.lines = 0;
        self.drive_lines(effects);
        for index in 0..SEGMENTS {
            let shadow = segment(self.bus.config(ADDRESS), index);
            if let Some(told) = self.shadows.get_mut(index) {
                // Anything else than what it is.
                *told = match shadow {
                    Shadow::Rom => Shadow::Ram,
                    Shadow::ReadOnly | Shadow::Ram => Shadow::Rom,
                };
            }
        }
        self.shadow(effects);
    }
}

impl Device for HostBridge {
    fn read(&mut self, region: usize, offset: u64, data: &mut [u8], effects: &mut Effects) {
        match region {
            PORTS => self.read_ports(offset, data),
            _ => {
                self.bus.read(region - BUS, offset, data, effects);
                self.drive_lines(effects);
            }
        }
    }

    fn write(&mut self, region: usize, offset: u64, data: &[u8], effects: &mut Effects) {
        match region {
            PORTS => self.write_ports(offset, data, effects),
            _ => {
                self.bus.write(region - BUS, offset, data, effects);
                self.drive_lines(effects);
            }
        }
    }

    fn timer(&mut self, id: u32, effects: &mut Effects) {
        self.bus.timer(id, effects);
        self.drive_lines(effects);
    }

    fn wants_interrupt(&mut self, id: u32) -> bool {
        self.bus.wants_interrupt(id)
    }

    fn reset(&mut self, effects: &mut Effects) {
        self.address = 0;
        self.reset_control = 0;
        self.bus.reset(effects);
        if !self.firmware {
            self.stand_in_for_firmware(effects);
        }
        self.tell_all(effects);
    }

    fn is_settled(&self) -> bool {
        self.bus.is_settled()
    }

    fn save(&self) -> State {
        let saved = Saved {
            address: self.address,
            reset_control: self.reset_control,
            bus: self.bus.save(),
        };
        serde_json::to_value(saved).unwrap_or_default()
    }

    fn restore(&mut self, state: &State, effects: &mut Effects) -> Result<(), RestoreError> {
        let saved = Saved::deserialize(state)?;
        let before = self.bus.save();
        let mut inner = Effects::new(effects.now);
        if let Err(error) = self.bus.restore(&saved.bus, &mut inner) {
            // What was saved from here a moment ago is taken.
            let _same = self.bus.restore(&before, &mut Effects::new(effects.now));
            return Err(error);
        }
        inner
            .take()
            .into_iter()
            .for_each(|effect| effects.push(effect));
        self.address = saved.address & ADDRESS_MASK;
        self.reset_control = saved.reset_control & piix3::RESET_CONTROL_MASK;
        self.tell_all(effects);
        Ok(())
    }

    fn wiring(&self) -> Wiring {
        let mut wiring = self.bus.wiring(&self.routes());
        for region in &mut wiring.regions {
            region.number += BUS;
        }
        let ports = Region {
            number: PORTS,
            space: Space::Port,
            start: CONFIG_ADDRESS.into(),
            len: 8,
        };
        wiring.regions.insert(0, ports);
        wiring
    }
}

/// The bridge's own configuration space. Its subsystem is the one by which SeaBIOS knows that it runs in a virtual
/// machine and may use [`fw_cfg`](crate::boot::fw_cfg).
fn host_config() -> ConfigSpace {
    let mut config = ConfigSpace::new(&Identity {
        vendor: 0x8086,
        device: 0x1237,
        revision: 2,
        class: 0x06_00_00,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
    });
    // Memory access is always on, and it is a bus master always.
    config.set(0x04, &[0x06]);
    config.allow(0x04, &[0x40, 0x01]);
    config.allow(PAM, &[0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33]);
    // System management RAM control: firmware writes it. The memory is never there, since the south bridge says
    // that firmware has set system management mode up already.
    config.set(0x72, &[0x02]);
    config.allow(0x72, &[0x78]);
    config
}

/// First address and length of segment `index`: twelve of 16 KiB from 0xc0000 on, then 64 KiB.
fn extent(index: usize) -> (u32, u32) {
    let len = if index == SEGMENTS - 1 {
        0x1_0000
    } else {
        0x4000
    };
    (0xc_0000 + index as u32 * 0x4000, len)
}

/// How segment `index` answers.
fn segment(config: Option<&ConfigSpace>, index: usize) -> Shadow {
    let nibbles = match index {
        12 => PAM,
        _ => PAM + 1 + index as u8 / 2,
    };
    let byte = config.map_or(0, |config| config.byte(nibbles));
    let nibble = if index.is_multiple_of(2) && index != 12 {
        byte
    } else {
        byte >> 4
    };
    match nibble & (PAM_READ | PAM_WRITE) {
        PAM_READ => Shadow::ReadOnly,
        0b11 => Shadow::Ram,
        // Writes that go below what is read serve to copy a ROM over itself; SeaBIOS copies from below 4 GiB.
        _ => Shadow::Rom,
    }
}

fn push_shadow((start, len, shadow): (u32, u32, Shadow), effects: &mut Effects) {
    effects.push(Effect::Shadow { start, len, shadow });
}

#[cfg(test)]
mod tests;
