//! A legacy adapter as a device on the PCI bus: what [`vnic_legacy`] asks for, in the machine's words.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hypervisor::device::{Device, Effect, Effects, RestoreError, Space, State, Wiring};
use hypervisor::pci::config::COMMAND;
use hypervisor::pci::function::CONFIG_REGION;
use hypervisor::pci::{Bar, ConfigSpace, Function, INTX, Identity};
use rustix::event::{EventfdFlags, eventfd};
use tracing::warn;
use vnic_legacy::page::SharedPage;
use vnic_legacy::pci;
use vnic_legacy::registers::{self, Registers, Timer};
use vswitch::api::AdapterName;
use vswitch::mac::Mac;

/// Command register: the function may use the bus.
const COMMAND_MASTER: u8 = 1 << 2;
/// Bytes from one register to the next.
const REGISTER: u64 = 8;

/// What of an adapter vswitchd is given.
pub(crate) struct Shared {
    /// Its name.
    pub(crate) name: AdapterName,
    /// The page that registers and rings share.
    pub(crate) page: OwnedFd,
    /// The guest kicks.
    pub(crate) kick: Arc<OwnedFd>,
    /// Interrupts the guest.
    pub(crate) interrupt: Arc<OwnedFd>,
}

/// Exits of a guest at the registers of an adapter.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Accesses {
    /// At each of CSR0 to CSR15.
    pub(crate) registers: [u64; 16],
    /// Of these, by the ports.
    pub(crate) by_port: u64,
    /// Of these, by the memory region.
    pub(crate) by_memory: u64,
}

impl Accesses {
    fn count(&mut self, region: usize, offset: u64) {
        let register = usize::try_from(offset / REGISTER).ok();
        let Some(counter) = register.and_then(|index| self.registers.get_mut(index)) else {
            return;
        };
        *counter += 1;
        match region {
            pci::BAR_IO => self.by_port += 1,
            _ => self.by_memory += 1,
        }
    }
}

/// The registers of an adapter.
pub(crate) struct Nic {
    name: AdapterName,
    registers: Registers,
    accesses: Accesses,
    kick: Arc<OwnedFd>,
    /// Machine time at the last access, for saved timers.
    now: u64,
    /// What was refused has been logged once.
    warned: bool,
}

/// An adapter with its cable plugged in or not, as a PCI function, and what vswitchd is given of it. `rom` is what a
/// machine boots from it with.
pub(crate) fn adapter(
    name: AdapterName,
    mac: Mac,
    link: bool,
    rom: Option<&[u8]>,
) -> anyhow::Result<(Function, Shared)> {
    let (page, file) = SharedPage::create().context("cannot make the page of an adapter")?;
    let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(Arc::new);
    let kick = event().context("cannot make an event file descriptor")?;
    let interrupt = event().context("cannot make an event file descriptor")?;
    let mut nic = Nic {
        name,
        registers: Registers::new(mac, page),
        accesses: Accesses::default(),
        kick: kick.clone(),
        now: 0,
        warned: false,
    };
    nic.registers.set_link(link);
    let function = Function::new(config_space(), Box::new(nic))
        .with_doorbell(pci::BAR_IO, pci::POLL_DEMAND, 4, kick.clone())
        .with_doorbell(pci::BAR_MEMORY, pci::POLL_DEMAND, 4, kick.clone())
        .with_interrupt(interrupt.clone());
    let function = match rom {
        Some(image) => function.with_rom(image)?,
        None => function,
    };
    let shared = Shared {
        name,
        page: file,
        kick,
        interrupt,
    };
    Ok((function, shared))
}

fn config_space() -> ConfigSpace {
    let mut config = ConfigSpace::new(&Identity {
        vendor: pci::VENDOR,
        device: pci::DEVICE,
        revision: pci::REVISION,
        class: pci::CLASS,
        subsystem_vendor: pci::SUBSYSTEM_VENDOR,
        subsystem: pci::SUBSYSTEM,
    });
    config.add_bar(Bar::standard(0, Space::Port, pci::BAR_LEN as u32));
    config.add_bar(Bar::standard(1, Space::Memory, pci::BAR_LEN as u32));
    config.set_pin(1);
    config.set(0x3e, &[pci::MIN_GNT, pci::MAX_LAT]);
    config.allow(pci::CFDD as u8, &pci::CFDD_WRITABLE.to_le_bytes());
    config
}

impl Nic {
    /// Calls the registers, and passes on what they ask for.
    fn call<T>(
        &mut self,
        effects: &mut Effects,
        call: impl FnOnce(&mut Registers, u64, &mut registers::Effects) -> T,
    ) -> T {
        let mut wanted = registers::Effects::default();
        self.now = effects.now;
        let result = call(&mut self.registers, effects.now, &mut wanted);
        if wanted.kick {
            // A full counter says the same.
            let _ = rustix::io::write(&*self.kick, &1u64.to_ne_bytes());
        }
        if let Some(high) = wanted.line {
            effects.push(Effect::Line { gsi: INTX, high });
        }
        match wanted.timer {
            Some(Timer::Start { after }) => effects.push(Effect::Timer {
                id: 0,
                after: Duration::from_nanos(after),
            }),
            Some(Timer::Stop) => effects.push(Effect::CancelTimer { id: 0 }),
            None => {}
        }
        if let Some(what) = wanted.refused.filter(|_| !self.warned) {
            self.warned = true;
            warn!(
                adapter = %self.name,
                "the guest asks for what is not implemented: {what}"
            );
        }
        result
    }

    /// Plugs the cable in, or pulls it out.
    pub(crate) fn set_link(&mut self, up: bool) {
        self.registers.set_link(up);
    }

    /// Somebody serves the rings, or nobody does any more.
    pub(crate) fn set_served(&mut self, served: bool, effects: &mut Effects) {
        self.call(effects, |registers, _, wanted| match served {
            true => registers.attach(wanted),
            false => registers.detach(wanted),
        });
    }

    /// Whether a driver has started to send or to receive.
    pub(crate) fn has_driver(&self) -> bool {
        self.registers.is_started()
    }

    /// Exits at the registers since the adapter was made.
    pub(crate) fn accesses(&self) -> Accesses {
        self.accesses
    }

    /// The guest has changed the configuration space.
    fn configured(&mut self, offset: u64, data: &[u8], effects: &mut Effects) {
        let byte = |at: u64| {
            let index = at.checked_sub(offset).and_then(|i| usize::try_from(i).ok());
            index.and_then(|index| data.get(index)).copied()
        };
        if let Some(command) = byte(COMMAND.into()) {
            let on = command & COMMAND_MASTER != 0;
            self.call(effects, |registers, _, wanted| {
                registers.set_bus_master(on, wanted);
            });
        }
        let mut power = self.registers.power().to_le_bytes();
        let mut changed = false;
        for (at, place) in (u64::from(pci::CFDD)..).zip(&mut power) {
            if let Some(byte) = byte(at) {
                *place = byte;
                changed = true;
            }
        }
        if changed {
            let power = u32::from_le_bytes(power);
            self.call(effects, |registers, _, wanted| {
                registers.set_power(power, wanted);
            });
        }
    }
}

impl Device for Nic {
    fn read(&mut self, region: usize, offset: u64, data: &mut [u8], effects: &mut Effects) {
        self.accesses.count(region, offset);
        self.call(effects, |registers, now, wanted| {
            registers.read(offset, data, now, wanted);
        });
    }

    fn write(&mut self, region: usize, offset: u64, data: &[u8], effects: &mut Effects) {
        if region == CONFIG_REGION {
            return self.configured(offset, data, effects);
        }
        self.accesses.count(region, offset);
        self.call(effects, |registers, now, wanted| {
            registers.write(offset, data, now, wanted);
        });
    }

    fn timer(&mut self, _id: u32, effects: &mut Effects) {
        self.call(effects, Registers::timer);
    }

    fn wants_interrupt(&mut self, _id: u32) -> bool {
        self.registers.line()
    }

    fn reset(&mut self, effects: &mut Effects) {
        self.call(effects, |registers, _, wanted| registers.reset(wanted));
    }

    fn is_settled(&self) -> bool {
        self.registers.settled()
    }

    fn save(&self) -> State {
        serde_json::to_value(self.registers.save(self.now)).unwrap_or_default()
    }

    fn restore(&mut self, state: &State, effects: &mut Effects) -> Result<(), RestoreError> {
        let state: registers::State = serde_json::from_value(state.clone())?;
        self.call(effects, |registers, now, wanted| {
            registers.restore(&state, now, wanted)
        })
        .map_err(|error| RestoreError::Value {
            what: "an adapter",
            value: error.to_string(),
            allowed: "what an adapter can be",
        })
    }

    fn wiring(&self) -> Wiring {
        Wiring::default()
    }
}
