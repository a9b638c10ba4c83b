//! The part of Hyper-V's interface that network drivers need, in user space, on any KVM.
//!
//! * [`cpuid`]: how a guest finds it.
//! * [`msr`]: the synthetic machine-specific registers; KVM passes accesses to them on (`KVM_X86_SET_MSR_FILTER`).
//! * [`synic`]: messages and event flags in pages of guest memory, and the interrupts that go with them.
//! * [`hypercall`]: a page of code that makes a call an `OUT`, and what the two calls of VMBus mean.
//!
//! It is a function of accesses and calls: interrupts and crashes are asked for by [`Effect`]s, and what VMBus is told is
//! handed to the caller. Nothing is offered that is not here. Reference: Microsoft, Hypervisor Top-Level Functional
//! Specification (TLFS).

pub mod cpuid;
pub mod hypercall;
pub mod msr;
mod page;
pub mod synic;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use guestmem::Memory;
use serde::{Deserialize, Serialize};

pub use hypercall::Call;
use synic::Synic;

/// What the process around has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Inject an interrupt, fixed and edge-triggered.
    Interrupt {
        /// Virtual processor.
        vp: u32,
        /// Its vector.
        vector: u8,
    },
    /// Where a processor is interrupted, or its event flags are, has changed: see [`Hyperv::event_route`].
    Rerouted {
        /// Virtual processor.
        vp: u32,
    },
    /// The guest says that it crashed, with five numbers of its own.
    Crashed([u64; 5]),
}

/// Clocks that a guest is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clocks {
    /// Ticks of the time-stamp counter in a second.
    pub tsc_hz: u64,
    /// Ticks of the local APIC's timer in a second.
    pub apic_hz: u64,
}

/// The interface of one machine.
pub struct Hyperv {
    memory: Arc<Memory>,
    clocks: Clocks,
    state: State,
}

/// What is saved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    guest_os_id: u64,
    hypercall: u64,
    reference_tsc: u64,
    tsc_invariant: u64,
    crash: [u64; 5],
    processors: Vec<Processor>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Processor {
    assist_page: u64,
    synic: Synic,
}

impl State {
    fn new(count: u32) -> State {
        State {
            processors: vec![Processor::default(); count as usize],
            ..State::default()
        }
    }
}

impl Hyperv {
    /// As after power-on, for a machine of `count` processors with `memory`.
    pub fn new(memory: Arc<Memory>, clocks: Clocks, count: u32) -> Hyperv {
        Hyperv {
            memory,
            clocks,
            state: State::new(count),
        }
    }

    /// The clocks are these, from the next reset of the guest on.
    pub fn set_clocks(&mut self, clocks: Clocks) {
        self.clocks = clocks;
    }

    /// As after power-on.
    pub fn reset(&mut self) {
        self.state = State::new(self.state.processors.len() as u32);
    }

    /// The state, as [`Hyperv::restore`] takes it. What is in guest memory is saved with that.
    pub fn save(&self) -> serde_json::Value {
        // Numbers and lists of numbers always have a form in JSON.
        serde_json::to_value(&self.state).unwrap_or_default()
    }

    /// Takes over a saved state.
    ///
    /// # Errors
    /// Another form, or another number of processors: nothing is changed.
    pub fn restore(&mut self, state: &serde_json::Value) -> Result<(), serde_json::Error> {
        let state: State = serde::Deserialize::deserialize(state)?;
        let (have, wanted) = (state.processors.len(), self.state.processors.len());
        if have != wanted {
            let text = format!("{have} processors in the saved state; the machine has {wanted}");
            return Err(serde::de::Error::custom(text));
        }
        self.state = state;
        Ok(())
    }
}
