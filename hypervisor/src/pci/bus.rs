//! PCI bus 0 and its functions.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::config::{
    COMMAND, COMMAND_IO, COMMAND_MEMORY, ConfigSpace, INTERRUPT_LINE, INTERRUPT_PIN,
};
use super::function::Function;
use crate::device::{Device, Effects, Interrupt, Region, RestoreError, Space, State, Wiring};

/// Interrupt lines that the chipset routes pins INTA# to INTD# of slot 1 to, and so on in turn: `None` where a route is
/// switched off.
pub type Routes = [Option<u8>; 4];

/// Ports below are the chipset's. Base addresses are answered there as far as the chipset leaves room, but by exits:
/// a doorbell would come before the chipset's registers.
const FIRST_DOORBELL_PORT: u64 = 0x1000;
/// Memory from here on is that of interrupt controllers and firmware; no doorbells either, nor mapped ROMs.
const LAST_DOORBELL_MEMORY: u64 = 0xfec0_0000;

/// The registers of the six base addresses.
const BARS: std::ops::Range<u8> = 0x10..0x28;

/// Where a function is on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Address {
    /// Slot (device number), 0 to 31.
    pub slot: u8,
    /// Function, 0 to 7.
    pub function: u8,
}

impl Address {
    /// Which of the four interrupt requests of the chipset pin `pin` (1 is INTA#) is wired to: slots are wired in
    /// turn, so that their INTA# spread.
    pub fn request(self, pin: u8) -> Option<usize> {
        let pin = usize::from(pin.checked_sub(1)?);
        (pin < 4).then(|| (pin + usize::from(self.slot) + 3) % 4)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00:{:02x}.{}", self.slot, self.function)
    }
}

/// Why a function cannot be put on the bus.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// There is no such place.
    #[error("PCI address {0:?}; allowed: slots 0 to 31, functions 0 to 7")]
    Address(Address),
    /// Another function is there.
    #[error("PCI address {0} is taken")]
    Taken(Address),
}

/// A saved function.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedFunction {
    address: Address,
    /// Bytes of its option ROM.
    rom: Option<u32>,
    config: Vec<u8>,
    device: State,
}

/// PCI bus 0. Functions are numbered in the order they were added; that number times 8, plus the number of a function's
/// region, is the bus's number of the region.
#[derive(Default)]
pub struct Bus {
    functions: Vec<(Address, Function)>,
}

impl Bus {
    /// Puts `function` at `address`. A further function of a slot needs function 0 there to be found.
    ///
    /// # Errors
    /// There is no such place, or it is taken.
    pub fn add(&mut self, address: Address, function: Function) -> Result<(), BusError> {
        if address.slot > 31 || address.function > 7 {
            return Err(BusError::Address(address));
        }
        if self.functions.iter().any(|&(taken, _)| taken == address) {
            return Err(BusError::Taken(address));
        }
        self.functions.push((address, function));
        let several = |other: &Address| other.slot == address.slot && other.function > 0;
        if self.functions.iter().any(|(other, _)| several(other)) {
            let first = Address {
                function: 0,
                ..address
            };
            if let Some(config) = self.config_mut(first) {
                config.set_multi_function();
            }
        }
        Ok(())
    }

    /// The functions and their places, in the order they were added.
    pub fn functions(&self) -> impl Iterator<Item = (Address, &Function)> {
        self.functions
            .iter()
            .map(|(address, function)| (*address, function))
    }

    /// The configuration space at `address`.
    pub fn config(&self, address: Address) -> Option<&ConfigSpace> {
        let mut functions = self.functions.iter();
        functions
            .find(|&&(at, _)| at == address)
            .map(|(_, function)| function.config())
    }

    fn config_mut(&mut self, address: Address) -> Option<&mut ConfigSpace> {
        let mut functions = self.functions.iter_mut();
        functions
            .find(|&&mut (at, _)| at == address)
            .map(|(_, function)| function.config_mut())
    }

    /// The guest reads configuration space; ones where there is no function.
    pub fn config_read(&self, address: Address, offset: u8, data: &mut [u8]) {
        if let Some(config) = self.config(address) {
            config.read(offset, data);
        }
    }

    /// The guest writes configuration space. True if regions of the function moved by it.
    pub fn config_write(
        &mut self,
        address: Address,
        offset: u8,
        data: &[u8],
        effects: &mut Effects,
    ) -> bool {
        let index = self.functions.iter().position(|&(at, _)| at == address);
        let write = |index| {
            self.call(index, effects, |function, effects| {
                function.config_write(offset, data, effects)
            })
        };
        index.and_then(write).unwrap_or(false)
    }

    /// Calls `access` with function `index`, and carries its effects over.
    fn call<R>(
        &mut self,
        index: usize,
        effects: &mut Effects,
        access: impl FnOnce(&mut Function, &mut Effects) -> R,
    ) -> Option<R> {
        let (_, function) = self.functions.get_mut(index)?;
        let mut inner = Effects::new(effects.now);
        let result = access(function, &mut inner);
        function.absorb((index as u32) << 16, &mut inner, effects);
        Some(result)
    }

    /// The guest reads region `number` of the bus.
    pub fn read(&mut self, number: usize, offset: u64, data: &mut [u8], effects: &mut Effects) {
        self.call(number / 8, effects, |function, effects| {
            function.read(number % 8, offset, data, effects);
        });
    }

    /// The guest writes region `number` of the bus.
    pub fn write(&mut self, number: usize, offset: u64, data: &[u8], effects: &mut Effects) {
        self.call(number / 8, effects, |function, effects| {
            function.write(number % 8, offset, data, effects);
        });
    }

    /// A timer of one of the functions has run out.
    pub fn timer(&mut self, id: u32, effects: &mut Effects) {
        self.call((id >> 16) as usize, effects, |function, effects| {
            function.timer(id & 0xffff, effects);
        });
    }

    /// True if the function that raised interrupt `id` still wants it.
    pub fn wants_interrupt(&mut self, id: u32) -> bool {
        let function = self.functions.get_mut(id as usize);
        function.is_some_and(|(_, function)| function.wants_interrupt())
    }

    /// Whether the devices of all functions are settled, as [`Device::is_settled`] says.
    pub fn is_settled(&self) -> bool {
        self.functions
            .iter()
            .all(|(_, function)| function.is_settled())
    }

    /// Calls `access` with the device at `address`; `None` if there is none, or it is not a `T`.
    pub fn with_device<T: Device, R>(
        &mut self,
        address: Address,
        effects: &mut Effects,
        access: impl FnOnce(&mut T, &mut Effects) -> R,
    ) -> Option<R> {
        let index = self.functions.iter().position(|&(at, _)| at == address)?;
        self.call(index, effects, |function, effects| {
            function
                .device_mut::<T>()
                .map(|device| access(device, effects))
        })?
    }

    /// The interrupt lines that functions drive, one bit for each of 0 to 15.
    pub fn lines(&self, routes: &Routes) -> u16 {
        let asserted = self
            .functions
            .iter()
            .filter(|(_, function)| function.asserted());
        asserted
            .filter_map(|(address, function)| line(*address, function, routes))
            .fold(0, |lines, line| {
                lines | 1_u16.checked_shl(line.into()).unwrap_or(0)
            })
    }

    /// Where the functions are to be reached.
    pub fn wiring(&self, routes: &Routes) -> Wiring {
        let mut wiring = Wiring::default();
        for (index, (address, function)) in self.functions.iter().enumerate() {
            for region in function.regions() {
                for bell in function.doorbells(&region) {
                    let at = (bell.space, bell.address, u64::from(bell.len));
                    if is_free(at, &wiring.regions) {
                        wiring.doorbells.push(bell);
                    }
                }
                let free = is_free((region.space, region.start, region.len), &wiring.regions);
                wiring.roms.extend(function.rom(&region).filter(|_| free));
                wiring.regions.push(Region {
                    number: index * 8 + region.number,
                    ..region
                });
            }
            let line = line(*address, function, routes);
            if let (Some(event), Some(line)) = (function.interrupt(), line) {
                wiring.interrupts.push(Interrupt {
                    id: index as u32,
                    gsi: line.into(),
                    event: Arc::clone(event),
                });
            }
        }
        wiring
    }

    /// As after power-on.
    pub fn reset(&mut self, effects: &mut Effects) {
        for index in 0..self.functions.len() {
            self.call(index, effects, Function::reset);
        }
    }

    /// Does what firmware does before it boots: places all regions, switches them on, and writes the interrupt
    /// lines of `routes` into the functions. For guests that are started without firmware. Ports are given out from
    /// 0xc000 on, memory downwards from 0xfec00000; option ROMs get none.
    pub fn assign(&mut self, routes: &Routes, effects: &mut Effects) {
        let mut port = 0xc000_u32;
        let mut memory = LAST_DOORBELL_MEMORY as u32;
        for index in 0..self.functions.len() {
            self.call(index, effects, |function, effects| {
                let mut enable = function.config().byte(COMMAND);
                let bars = function.config().bars().to_vec();
                for bar in bars.iter().filter(|bar| BARS.contains(&bar.register)) {
                    let base = match bar.space {
                        Space::Port => {
                            enable |= COMMAND_IO;
                            let base = (port + bar.size - 1) & !(bar.size - 1);
                            port = base + bar.size;
                            base
                        }
                        Space::Memory => {
                            enable |= COMMAND_MEMORY;
                            memory = memory.saturating_sub(bar.size) & !(bar.size - 1);
                            memory
                        }
                    };
                    function.config_write(bar.register, &base.to_le_bytes(), effects);
                }
                function.config_write(COMMAND, &[enable], effects);
            });
            if let Some((address, function)) = self.functions.get_mut(index)
                && let Some(line) = line(*address, function, routes)
            {
                function.config_mut().write(INTERRUPT_LINE, &[line]);
            }
        }
    }

    /// The state of all functions.
    pub fn save(&self) -> State {
        let functions = self.functions.iter();
        let saved = functions.map(|(address, function)| SavedFunction {
            address: *address,
            rom: function.rom_size(),
            config: function.config().bytes().to_vec(),
            device: function.save_device(),
        });
        let saved: Vec<SavedFunction> = saved.collect();
        serde_json::to_value(saved).unwrap_or_default()
    }

    /// Takes over a saved state of the same functions, with option ROMs of the same sizes, by which the guest has placed
    /// them. Their contents may be newer, as after an update of the host: a guest runs them from its own memory, and only
    /// while it boots.
    ///
    /// # Errors
    /// The state is not one of these functions, which is found before any has changed, or one function refuses its own.
    /// Those before it have then taken theirs over.
    pub fn restore(&mut self, state: &State, effects: &mut Effects) -> Result<(), RestoreError> {
        let saved: Vec<SavedFunction> = Vec::deserialize(state)?;
        self.check(&saved)?;
        for (index, saved) in saved.iter().enumerate() {
            self.call(index, effects, |function, effects| {
                function.config_mut().restore(&saved.config);
                function.restore_device(&saved.device, effects)
            })
            .unwrap_or(Ok(()))?;
        }
        Ok(())
    }

    /// Whether functions were saved that are those here.
    fn check(&self, saved: &[SavedFunction]) -> Result<(), RestoreError> {
        let here: Vec<Address> = self.functions.iter().map(|&(address, _)| address).collect();
        let there: Vec<Address> = saved.iter().map(|saved| saved.address).collect();
        if there != here {
            return Err(RestoreError::Other {
                what: "PCI functions".to_owned(),
                saved: list(&there),
                here: list(&here),
            });
        }
        for ((address, function), saved) in self.functions.iter().zip(saved) {
            if saved.rom != function.rom_size() {
                let size = |bytes: Option<u32>| match bytes {
                    Some(bytes) => format!("{bytes} bytes"),
                    None => "none".to_owned(),
                };
                return Err(RestoreError::Other {
                    what: format!("option ROM of PCI function {address}"),
                    saved: size(saved.rom),
                    here: size(function.rom_size()),
                });
            }
            if !function.config().is_same_function(&saved.config) {
                return Err(RestoreError::Other {
                    what: format!("PCI function {address}"),
                    saved: "another kind of function".to_owned(),
                    here: "its own".to_owned(),
                });
            }
        }
        Ok(())
    }
}

fn list(addresses: &[Address]) -> String {
    let texts: Vec<String> = addresses.iter().map(Address::to_string).collect();
    texts.join(", ")
}

/// The interrupt line of the function's pin.
fn line(address: Address, function: &Function, routes: &Routes) -> Option<u8> {
    let routed = || {
        let request = address.request(function.config().byte(INTERRUPT_PIN))?;
        routes.get(request).copied().flatten()
    };
    function.fixed_line().or_else(routed)
}

/// True if a doorbell or a ROM there is in nobody's way: the chipset's, nor that of the regions before.
fn is_free((space, start, len): (Space, u64, u64), before: &[Region]) -> bool {
    let end = start.saturating_add(len);
    let allowed = match space {
        Space::Port => start >= FIRST_DOORBELL_PORT && end <= 0x1_0000,
        Space::Memory => end <= LAST_DOORBELL_MEMORY,
    };
    let clear = |region: &Region| {
        region.space != space || end <= region.start || region.start + region.len <= start
    };
    allowed && before.iter().all(clear)
}

#[cfg(test)]
mod tests;
