//! Hyper-V's interface of the machine, and the bus with its synthetic adapters, as one device.
//!
//! What a guest's processors ask for is answered here, on their threads. What the bus asks of vswitchd, whose workers serve
//! the rings of the adapters, is left in a queue for the thread that talks to it ([`Vmbus::take_demands`]); its answers
//! come back by [`Vmbus::done`].

mod adapters;
mod demands;
mod services;

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use guestmem::Memory;
use hypervisor::device::{
    Device, Doorbell, Effect, Effects, Message, Region, RestoreError, Space, State, Wiring,
};
use hypervisor::hyperv::hypercall::{Call, Input, SIGNAL_PORT, Status};
use hypervisor::hyperv::{self, Clocks, Hyperv};
use hypervisor::irq;
use serde::{Deserialize, Serialize};
use tracing::warn;
use vnic_synthetic::vmbus::{self, Bus, BusState, Target, event_connection};
use vswitch::api::AdapterName;

use adapters::{Adapter, Channel};
pub(crate) use demands::Demanded;
use demands::Kind;
use services::Offered;

/// The device's name in the machine.
pub(crate) const VMBUS: &str = "vmbus";

/// The interrupt source of the bus.
const SINT: u8 = 2;
/// Type of its messages.
const CHANNEL_MESSAGE: u32 = 1;
/// Address of a local APIC in a message-signalled interrupt; the APIC's number is in bits 12 to 19.
const MSI_ADDRESS: u64 = 0xfee0_0000;
/// Ticks of KVM's local APIC in a second.
const APIC_HZ: u64 = 1_000_000_000;
/// Demands that wait for vswitchd before the guest has to wait.
const MAX_DEMANDS: usize = 256;

/// What is saved.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    interface: State,
    bus: BusState,
    kept: BTreeMap<AdapterName, String>,
}

/// The interface and its bus.
pub(crate) struct Vmbus {
    memory: Arc<Memory>,
    hyperv: Hyperv,
    processors: u32,
    bus: Bus,
    adapters: Vec<Adapter>,
    services: Vec<Offered>,
    /// What the guest says of itself.
    facts: BTreeMap<String, String>,
    /// vswitchd is there to be asked.
    served: bool,
    queue: VecDeque<Demanded>,
    /// Asked and not yet answered, by number.
    asked: BTreeMap<u64, (u16, Kind)>,
    next: u64,
    /// Signalled when there is something to be taken.
    wake: Arc<OwnedFd>,
    /// What the guest said when it crashed, until it is taken.
    crash: Option<[u64; 5]>,
    /// A message that made no sense has been logged.
    warned: bool,
}

impl Vmbus {
    /// The interface of a machine of `processors` with `memory`. The clocks are set once they are known.
    pub(crate) fn new(memory: Arc<Memory>, processors: u32) -> anyhow::Result<Vmbus> {
        Ok(Vmbus {
            hyperv: Hyperv::new(memory.clone(), clocks(0), processors),
            memory,
            processors,
            bus: Bus::new(),
            adapters: Vec::new(),
            services: Vec::new(),
            facts: BTreeMap::new(),
            served: false,
            queue: VecDeque::new(),
            asked: BTreeMap::new(),
            next: 0,
            wake: Arc::new(irq::eventfd()?),
            crash: None,
            warned: false,
        })
    }

    /// The processors' time-stamp counters have `tsc_hz` ticks in a second.
    pub(crate) fn set_clock(&mut self, tsc_hz: u64) {
        self.hyperv.set_clocks(clocks(tsc_hz));
    }

    /// Readable when there is something to be taken.
    pub(crate) fn wake(&self) -> Arc<OwnedFd> {
        self.wake.clone()
    }

    /// What the guest said when it crashed.
    pub(crate) fn take_crash(&mut self) -> Option<[u64; 5]> {
        self.crash.take()
    }

    /// A guest that posts is to wait.
    fn is_busy(&self) -> bool {
        let full = |vp| !self.hyperv.has_room(vp);
        self.queue.len() + self.asked.len() >= MAX_DEMANDS || (0..self.processors).any(full)
    }

    fn post_message(&mut self, connection: u32, payload: &[u8], effects: &mut Effects) -> Status {
        if !self.bus.takes_messages(connection) {
            return Status::InvalidConnection;
        }
        if self.is_busy() {
            return Status::InsufficientBuffers;
        }
        let mut wanted = Vec::new();
        if let Err(refused) = self.bus.message(payload, &mut wanted)
            && !std::mem::replace(&mut self.warned, true)
        {
            warn!("the guest says to its bus what makes no sense: {refused}");
        }
        self.carry_out(wanted, effects);
        Status::Success
    }

    fn signal_event(&mut self, connection: u32, effects: &mut Effects) -> Status {
        match self.bus.signal(connection) {
            Some(Target::Channel(relid)) if self.run_service(relid, effects) => {}
            Some(Target::Channel(relid)) => {
                let adapter = self.find(relid).and_then(|(at, _)| self.adapters.get(at));
                if let Some(adapter) = adapter {
                    irq::signal(&adapter.kick);
                }
            }
            Some(Target::All) => {
                for adapter in &self.adapters {
                    irq::signal(&adapter.kick);
                }
                self.run_services(effects);
            }
            None => return Status::InvalidConnection,
        }
        Status::Success
    }

    /// Carries out what the bus asks for.
    fn carry_out(&mut self, wanted: Vec<vmbus::Effect>, effects: &mut Effects) {
        let mut interrupts = Vec::new();
        let mut wanted = VecDeque::from(wanted);
        while let Some(effect) = wanted.pop_front() {
            match effect {
                vmbus::Effect::Post { vp, message } => {
                    // The guest chose the processor, and reads its messages or not: the loss is its own.
                    let to = (vp, SINT);
                    let _ = self
                        .hyperv
                        .post(to, CHANNEL_MESSAGE, &message, &mut interrupts);
                }
                vmbus::Effect::Ask { relid, demand } => {
                    let done = match self.serve(relid, &demand, effects) {
                        None => self.ask(relid, demand, effects),
                        done => done,
                    };
                    if let Some(done) = done {
                        let mut more = Vec::new();
                        self.bus.done(relid, done, &mut more);
                        wanted.extend(more);
                    }
                }
            }
        }
        self.forget();
        self.pass_on(interrupts, effects);
    }

    /// Carries out what the interrupt controller asks for.
    fn pass_on(&mut self, wanted: Vec<hyperv::Effect>, effects: &mut Effects) {
        for effect in wanted {
            match effect {
                hyperv::Effect::Interrupt { vp, vector } => effects.push(Effect::Message {
                    address: apic(vp),
                    data: vector.into(),
                }),
                hyperv::Effect::Rerouted { vp } => self.rerouted(vp, effects),
                hyperv::Effect::Crashed(parameters) => {
                    self.crash = Some(parameters);
                    irq::signal(&self.wake);
                }
            }
        }
    }

    /// The interrupt that goes with a channel, if it is open and the guest does not poll.
    fn interrupt(&self, channel: &Channel) -> Option<Message> {
        let vp = channel.opened.as_ref()?.target_vp;
        let vector = self.hyperv.event_route(vp, SINT)?.vector?;
        Some(Message {
            address: apic(vp),
            data: vector.into(),
            event: channel.interrupt.clone(),
        })
    }
}

/// By these the guest wakes the worker of an adapter without us.
fn doorbells(adapter: &Adapter) -> impl Iterator<Item = Doorbell> {
    let open = |channel: &&Channel| channel.opened.is_some();
    adapter
        .channels
        .iter()
        .filter(open)
        .map(|channel| Doorbell {
            space: Space::Port,
            address: SIGNAL_PORT.into(),
            len: 4,
            value: Some(event_connection(channel.relid).into()),
            event: adapter.kick.clone(),
        })
}

fn clocks(tsc_hz: u64) -> Clocks {
    Clocks {
        tsc_hz,
        apic_hz: APIC_HZ,
    }
}

/// Address of messages to a processor's local APIC, whose number is the processor's.
fn apic(vp: u32) -> u64 {
    MSI_ADDRESS | u64::from(vp & 0xff) << 12
}

impl Device for Vmbus {
    fn read(&mut self, _region: usize, _offset: u64, _data: &mut [u8], _effects: &mut Effects) {}

    /// The guest signals a connection that has no doorbell.
    fn write(&mut self, _region: usize, _offset: u64, data: &[u8], effects: &mut Effects) {
        if let Ok(connection) = data.try_into() {
            self.signal_event(u32::from_le_bytes(connection), effects);
        }
    }

    fn read_msr(&mut self, vp: u32, register: u32) -> Option<u64> {
        self.hyperv.read_msr(vp, register)
    }

    fn write_msr(&mut self, vp: u32, register: u32, value: u64, effects: &mut Effects) -> bool {
        let mut wanted = Vec::new();
        let taken = self.hyperv.write_msr(vp, register, value, &mut wanted);
        self.pass_on(wanted, effects);
        taken
    }

    fn hypercall(&mut self, call: Input, effects: &mut Effects) -> Option<Status> {
        Some(match self.hyperv.call(call) {
            Call::PostMessage {
                connection,
                payload,
            } => self.post_message(connection, &payload, effects),
            Call::SignalEvent { connection } => self.signal_event(connection, effects),
            Call::Fails(status) => status,
        })
    }

    fn timer(&mut self, _id: u32, effects: &mut Effects) {
        self.run_services(effects);
    }

    fn reset(&mut self, effects: &mut Effects) {
        self.hyperv.reset();
        let mut wanted = Vec::new();
        self.bus.reset(&mut wanted);
        self.carry_out(wanted, effects);
        self.warned = false;
        self.facts.clear();
    }

    fn is_settled(&self) -> bool {
        self.asked.is_empty()
    }

    fn save(&self) -> State {
        let kept = |adapter: &Adapter| (adapter.name, adapter.kept.clone());
        let saved = Saved {
            interface: self.hyperv.save(),
            bus: self.bus.save(),
            kept: self.adapters.iter().map(kept).collect(),
        };
        // Numbers, texts and lists of them always have a form in JSON.
        serde_json::to_value(saved).unwrap_or_default()
    }

    fn restore(&mut self, state: &State, effects: &mut Effects) -> Result<(), RestoreError> {
        let mut saved: Saved = serde_json::from_value(state.clone())?;
        let refused = |why: &dyn std::fmt::Display| RestoreError::Value {
            what: "the virtual machine bus",
            value: why.to_string(),
            allowed: "what a bus can be",
        };
        let mut wanted = Vec::new();
        let bus = Bus::restore(&saved.bus, &mut wanted).map_err(|error| refused(&error))?;
        self.hyperv.restore(&saved.interface)?;
        self.bus = bus;
        self.adopt(effects).map_err(|error| refused(&error))?;
        self.carry_out(wanted, effects);
        for adapter in &mut self.adapters {
            adapter.kept = saved.kept.remove(&adapter.name).unwrap_or_default();
        }
        Ok(())
    }

    fn wiring(&self) -> Wiring {
        let channels = self.adapters.iter().flat_map(|adapter| &adapter.channels);
        Wiring {
            regions: vec![Region {
                number: 0,
                space: Space::Port,
                start: SIGNAL_PORT.into(),
                len: 4,
            }],
            doorbells: self.adapters.iter().flat_map(doorbells).collect(),
            messages: channels
                .filter_map(|channel| self.interrupt(channel))
                .collect(),
            ..Wiring::default()
        }
    }
}
