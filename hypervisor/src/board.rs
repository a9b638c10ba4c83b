//! The devices of a machine, and what they are wired to: carries out what they ask for.

use std::any::Any;
use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use crate::Error;
use crate::bus::{Bus, Target};
use crate::clock::Clock;
use crate::device::{Device, Doorbell, Effect, Effects, Interrupt, Message, Space, State};
use crate::hyperv::hypercall::{Input, Status};
use crate::irq;
use crate::kvm::Vm;
use crate::slots::Slots;

/// GSIs end here: KVM has room for more routes.
const MAX_GSI: u32 = 1024;

/// A device and its name.
pub struct Named {
    /// By which [`Machine::with`](crate::Machine::with) and saved states know it. No two devices have one name.
    pub name: String,
    /// The device.
    pub device: Box<dyn Device>,
}

impl Named {
    /// Gives a device its name.
    pub fn new(name: impl Into<String>, device: impl Device) -> Self {
        Self {
            name: name.into(),
            device: Box::new(device),
        }
    }
}

/// Takes what the guest writes to its consoles: number and bytes. Called by the guest's processors: it must not block.
pub type Output = Box<dyn FnMut(u32, &[u8]) + Send>;

/// What a device, or a processor, wants of the machine as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Reset,
    PowerOff,
    Crash(String),
}

/// An access of the guest.
pub(crate) enum Access<'a> {
    Read(&'a mut [u8]),
    Write(&'a [u8]),
}

struct Slot {
    name: String,
    device: Box<dyn Device>,
    /// Those that KVM has taken.
    doorbells: Vec<Doorbell>,
    interrupts: Vec<Interrupt>,
    /// With the GSI of each.
    messages: Vec<(u32, Message)>,
}

/// The devices and their wiring.
pub(crate) struct Board {
    vm: Arc<Vm>,
    slots: Slots,
    devices: Vec<Slot>,
    bus: Bus,
    pub(crate) clock: Clock,
    /// When each timer runs out, by device and id.
    timers: BTreeMap<(usize, u32), u64>,
    /// Which devices drive each line high.
    lines: [u64; irq::LINES as usize],
    output: Output,
    /// Signalled by KVM when the guest has ended an interrupt of some device's [`Interrupt`].
    resample: OwnedFd,
    /// The first that was asked for, until it is taken.
    request: Option<Request>,
}

impl Board {
    pub(crate) fn new(
        vm: Arc<Vm>,
        slots: Slots,
        devices: Vec<Named>,
        output: Output,
    ) -> Result<Self, Error> {
        // A line's drivers are bits of a word.
        if devices.len() > 64 {
            return Err(Error::Config {
                what: "number of devices",
                value: devices.len().to_string(),
                allowed: "up to 64",
            });
        }
        let mut board = Self {
            vm,
            slots,
            devices: Vec::new(),
            bus: Bus::default(),
            clock: Clock::default(),
            timers: BTreeMap::new(),
            lines: [0; irq::LINES as usize],
            output,
            resample: irq::eventfd()?,
            request: None,
        };
        for Named { name, device } in devices {
            if board.devices.iter().any(|slot| slot.name == name) {
                return Err(Error::Config {
                    what: "device name",
                    value: name,
                    allowed: "one that no other device has",
                });
            }
            board.devices.push(Slot {
                name,
                device,
                doorbells: Vec::new(),
                interrupts: Vec::new(),
                messages: Vec::new(),
            });
        }
        Ok(board)
    }

    /// The event that [`ended_interrupts`](Self::ended_interrupts) is due.
    pub(crate) fn resample(&self) -> &OwnedFd {
        &self.resample
    }

    /// What was asked of the machine, once.
    pub(crate) fn take_request(&mut self) -> Option<Request> {
        self.request.take()
    }

    /// An access of the guest. Where nobody answers, ones are read and writes are lost.
    pub(crate) fn access(&mut self, space: Space, address: u64, mut access: Access<'_>) {
        let len = match &access {
            Access::Read(data) => data.len(),
            Access::Write(data) => data.len(),
        };
        if let Access::Read(data) = &mut access {
            data.fill(0xff);
        }
        if let Some(target) = self.bus.find(space, address, len) {
            return self.access_device(target, access);
        }
        if len == 1 {
            return;
        }
        // The buses of a PC cut what does not fit one device into bytes.
        for index in 0..len {
            let address = address.wrapping_add(index as u64);
            let Some(target) = self.bus.find(space, address, 1) else {
                continue;
            };
            let byte = match &mut access {
                Access::Read(data) => data.get_mut(index..=index).map(Access::Read),
                Access::Write(data) => data.get(index..=index).map(Access::Write),
            };
            if let Some(byte) = byte {
                self.access_device(target, byte);
            }
        }
    }

    fn access_device(&mut self, target: Target, access: Access<'_>) {
        let Target {
            device,
            region,
            offset,
        } = target;
        self.call(device, |device, effects| match access {
            Access::Read(data) => device.read(region, offset, data, effects),
            Access::Write(data) => device.write(region, offset, data, effects),
        });
    }

    /// Processor `vp` reads a synthetic MSR.
    pub(crate) fn read_msr(&mut self, vp: u32, register: u32) -> Option<u64> {
        let mut devices = self.devices.iter_mut();
        devices.find_map(|slot| slot.device.read_msr(vp, register))
    }

    /// Processor `vp` writes a synthetic MSR. False if nobody takes it.
    pub(crate) fn write_msr(&mut self, vp: u32, register: u32, value: u64) -> bool {
        (0..self.devices.len()).any(|index| {
            self.call(index, |device, effects| {
                device.write_msr(vp, register, value, effects)
            })
            .unwrap_or_default()
        })
    }

    /// A call of Hyper-V's interface. `None` if nobody takes it.
    pub(crate) fn hypercall(&mut self, call: Input) -> Option<Status> {
        (0..self.devices.len()).find_map(|index| {
            self.call(index, |device, effects| device.hypercall(call, effects))?
        })
    }

    /// Calls device number `index` and carries out what it asks for.
    fn call<R>(
        &mut self,
        index: usize,
        call: impl FnOnce(&mut dyn Device, &mut Effects) -> R,
    ) -> Option<R> {
        let mut effects = Effects::new(self.clock.now());
        effects.reference = self.clock.reference();
        let result = call(self.devices.get_mut(index)?.device.as_mut(), &mut effects);
        for effect in effects.take() {
            if let Err(error) = self.carry_out(index, effect) {
                self.ask(Request::Crash(describe(&error)));
            }
        }
        Some(result)
    }

    /// Calls the device of this name, if it exists and is a `T`.
    pub(crate) fn with<T: Device, R>(
        &mut self,
        name: &str,
        call: impl FnOnce(&mut T, &mut Effects) -> R,
    ) -> Option<R> {
        let index = self.devices.iter().position(|slot| slot.name == name)?;
        self.call(index, |device, effects| {
            let device = (device as &mut dyn Any).downcast_mut::<T>()?;
            Some(call(device, effects))
        })?
    }

    fn ask(&mut self, request: Request) {
        self.request.get_or_insert(request);
    }

    fn carry_out(&mut self, device: usize, effect: Effect) -> Result<(), Error> {
        match effect {
            Effect::Line { gsi, high } => return self.set_line(device, gsi, high),
            Effect::Message { address, data } => {
                // A message that nobody takes is lost, as on hardware.
                let _ = self.vm.signal_msi(address, data);
            }
            Effect::Reset => self.ask(Request::Reset),
            Effect::PowerOff => self.ask(Request::PowerOff),
            Effect::Timer { id, after } => {
                let after = u64::try_from(after.as_nanos()).unwrap_or(u64::MAX);
                let time = self.clock.now().saturating_add(after);
                self.timers.insert((device, id), time);
            }
            Effect::CancelTimer { id } => {
                self.timers.remove(&(device, id));
            }
            Effect::Rewire => self.rewire(device),
            Effect::Shadow { start, len, shadow } => {
                return self.slots.set(start.into(), len.into(), shadow);
            }
            Effect::Output { console, bytes } => (self.output)(console, &bytes),
        }
        Ok(())
    }

    fn set_line(&mut self, device: usize, gsi: u32, high: bool) -> Result<(), Error> {
        let Some(drivers) = self.lines.get_mut(gsi as usize) else {
            return Ok(());
        };
        let was = *drivers != 0;
        let bit = 1 << device;
        *drivers = if high {
            *drivers | bit
        } else {
            *drivers & !bit
        };
        let is = *drivers != 0;
        if was == is {
            return Ok(());
        }
        self.vm.set_line(gsi, is)
    }

    /// Reads a device's wiring anew. What KVM does not take (the guest may put two doorbells at one address) is left
    /// out: such writes reach the device.
    fn rewire(&mut self, index: usize) {
        let Some(slot) = self.devices.get_mut(index) else {
            return;
        };
        let wiring = slot.device.wiring();
        self.bus.set(index, &wiring.regions);
        let same = |a: &Doorbell, b: &Doorbell| {
            (a.space, a.address, a.len, a.value) == (b.space, b.address, b.len, b.value)
                && Arc::ptr_eq(&a.event, &b.event)
        };
        slot.doorbells.retain(|old| {
            let stays = wiring.doorbells.iter().any(|new| same(old, new));
            stays || self.vm.ioeventfd(old, false).is_err()
        });
        for new in wiring.doorbells {
            if !slot.doorbells.iter().any(|old| same(old, &new))
                && self.vm.ioeventfd(&new, true).is_ok()
            {
                slot.doorbells.push(new);
            }
        }
        let same = |a: &Interrupt, b: &Interrupt| {
            (a.id, a.gsi) == (b.id, b.gsi) && Arc::ptr_eq(&a.event, &b.event)
        };
        slot.interrupts.retain(|old| {
            let stays = wiring.interrupts.iter().any(|new| same(old, new));
            stays
                || self
                    .vm
                    .irqfd(old.event.as_fd(), old.gsi, None, false)
                    .is_err()
        });
        for new in wiring.interrupts {
            let resample = Some(self.resample.as_fd());
            if !slot.interrupts.iter().any(|old| same(old, &new))
                && new.gsi < irq::LINES
                && self
                    .vm
                    .irqfd(new.event.as_fd(), new.gsi, resample, true)
                    .is_ok()
            {
                slot.interrupts.push(new);
            }
        }
        self.slots.set_roms(index, &wiring.roms);
        self.rewire_messages(index, wiring.messages);
    }

    /// Brings a device's messages up to date: one that KVM does not take is left out.
    fn rewire_messages(&mut self, index: usize, wanted: Vec<Message>) {
        let same = |a: &Message, b: &Message| {
            (a.address, a.data) == (b.address, b.data) && Arc::ptr_eq(&a.event, &b.event)
        };
        let Some(slot) = self.devices.get_mut(index) else {
            return;
        };
        let before = slot.messages.len();
        slot.messages.retain(|(gsi, old)| {
            let stays = wanted.iter().any(|new| same(old, new));
            stays || self.vm.irqfd(old.event.as_fd(), *gsi, None, false).is_err()
        });
        let known = |new: &Message| slot.messages.iter().any(|(_, old)| same(old, new));
        let new: Vec<_> = wanted.into_iter().filter(|new| !known(new)).collect();
        if slot.messages.len() == before && new.is_empty() {
            return;
        }
        let mut first_new = slot.messages.len();
        for message in new {
            let used = || self.devices.iter().flat_map(|slot| &slot.messages);
            let free = |gsi: &u32| used().all(|(other, _)| other != gsi);
            let Some(gsi) = (irq::LINES..MAX_GSI).find(free) else {
                break;
            };
            if let Some(slot) = self.devices.get_mut(index) {
                slot.messages.push((gsi, message));
            }
        }
        let all = self.devices.iter().flat_map(|slot| &slot.messages);
        let routes: Vec<_> = all
            .map(|(gsi, message)| irq::MessageRoute {
                gsi: *gsi,
                address: message.address,
                data: message.data,
            })
            .collect();
        let routed = irq::wire(&self.vm, &routes).is_ok();
        if let Some(slot) = self.devices.get_mut(index) {
            while let Some((gsi, message)) = slot.messages.get(first_new) {
                let event = message.event.as_fd();
                if routed && self.vm.irqfd(event, *gsi, None, true).is_ok() {
                    first_new += 1;
                } else {
                    slot.messages.remove(first_new);
                }
            }
        }
    }

    /// Wires up all devices.
    pub(crate) fn wire(&mut self) {
        for index in 0..self.devices.len() {
            self.rewire(index);
        }
    }

    /// The guest has ended interrupts of other processes: raises those again that are still wanted.
    pub(crate) fn ended_interrupts(&mut self) {
        for slot in &mut self.devices {
            for interrupt in &slot.interrupts {
                if slot.device.wants_interrupt(interrupt.id) {
                    irq::signal(&interrupt.event);
                }
            }
        }
    }

    /// When the next timer runs out, on the machine's clock.
    pub(crate) fn next_timer(&self) -> Option<u64> {
        self.timers.values().min().copied()
    }

    /// How long until then; `None` if none runs, or time stands still.
    pub(crate) fn until_timer(&self) -> Option<Duration> {
        self.clock.until(self.next_timer()?)
    }

    /// Calls the devices whose timers have run out.
    pub(crate) fn run_timers(&mut self) {
        let now = self.clock.now();
        let due: Vec<_> = self
            .timers
            .iter()
            .filter(|&(_, &time)| time <= now)
            .map(|(&key, _)| key)
            .collect();
        for (device, id) in due {
            // The device called before may have cancelled it or set it anew.
            if self
                .timers
                .get(&(device, id))
                .is_some_and(|&time| time <= now)
            {
                self.timers.remove(&(device, id));
                self.call(device, |device, effects| device.timer(id, effects));
            }
        }
    }

    /// As after power-on. No processor runs.
    pub(crate) fn reset(&mut self) -> Result<(), Error> {
        self.timers.clear();
        self.lower_lines()?;
        self.slots.reset()?;
        for index in 0..self.devices.len() {
            self.call(index, |device, effects| device.reset(effects));
        }
        self.wire();
        Ok(())
    }

    /// Whether nobody outside acts for a device as it stood before a reset.
    pub(crate) fn is_settled(&self) -> bool {
        self.devices.iter().all(|slot| slot.device.is_settled())
    }

    fn lower_lines(&mut self) -> Result<(), Error> {
        for (gsi, drivers) in self.lines.iter_mut().enumerate() {
            if std::mem::take(drivers) != 0 {
                self.vm.set_line(gsi as u32, false)?;
            }
        }
        Ok(())
    }

    /// Lowers every line, since the interrupt controllers know some as high from where they were saved: devices raise
    /// theirs anew when they are restored. A line that only the controllers took for high would lose its next edge.
    fn lower_all_lines(&mut self) -> Result<(), Error> {
        self.lines.fill(0);
        // The cascade of the PICs is no line of its own.
        for gsi in (0..irq::LINES).filter(|&gsi| gsi != irq::CASCADE) {
            self.vm.set_line(gsi, false)?;
        }
        Ok(())
    }

    /// The states of all devices, by name. No processor runs.
    pub(crate) fn save(&self) -> BTreeMap<String, State> {
        let state = |slot: &Slot| (slot.name.clone(), slot.device.save());
        self.devices.iter().map(state).collect()
    }

    /// Gives the devices their states: those of all devices, and of no others.
    pub(crate) fn restore(&mut self, states: &BTreeMap<String, State>) -> Result<(), Error> {
        let mine: Vec<_> = self.devices.iter().map(|slot| slot.name.clone()).collect();
        if let Some(other) = states.keys().find(|name| !mine.contains(name)) {
            return Err(Error::Saved(format!("this machine has no device {other}")));
        }
        self.timers.clear();
        self.lower_all_lines()?;
        self.slots.reset()?;
        for (index, name) in mine.into_iter().enumerate() {
            let state = states.get(&name);
            let state = state.ok_or_else(|| Error::Saved(format!("it has no device {name}")))?;
            let result = self.call(index, |device, effects| device.restore(state, effects));
            if let Some(Err(source)) = result {
                return Err(Error::Device {
                    device: name,
                    source,
                });
            }
        }
        self.wire();
        Ok(())
    }
}

/// An error and its causes in one line.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
