//! Stops the processors of a machine together, and lets them go on.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
struct State {
    open: bool,
    ended: bool,
    /// How many threads wait at the gate, or have ended.
    parked: usize,
}

/// Processors pass while it is open, and wait in front of it otherwise.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called by a processor's thread before it runs the guest: waits until the gate is open. False: end the thread,
    /// which counts as parked from then on.
    pub(crate) fn pass(&self) -> bool {
        let mut state = self.lock();
        if state.open && !state.ended {
            return true;
        }
        state.parked += 1;
        self.changed.notify_all();
        let mut state = self
            .changed
            .wait_while(state, |state| !state.open && !state.ended)
            .unwrap_or_else(PoisonError::into_inner);
        if state.ended {
            return false;
        }
        state.parked -= 1;
        true
    }

    /// True if processors may run.
    pub(crate) fn is_open(&self) -> bool {
        let state = self.lock();
        state.open && !state.ended
    }

    /// A processor's thread ends without having asked.
    pub(crate) fn leave(&self) {
        self.lock().parked += 1;
        self.changed.notify_all();
    }

    /// Lets the processors through.
    pub(crate) fn open(&self) {
        self.lock().open = true;
        self.changed.notify_all();
    }

    /// Nobody passes any more. Who is past it must be kicked.
    pub(crate) fn close(&self) {
        self.lock().open = false;
    }

    /// Ends the threads that come to the gate.
    pub(crate) fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// Waits until `count` threads are parked.
    pub(crate) fn wait_parked(&self, count: usize) {
        let state = self.lock();
        drop(self.changed.wait_while(state, |state| state.parked < count));
    }
}
