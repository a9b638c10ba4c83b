//! A port as its owner on the control side holds it.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::{ControlError, Core, MAX_PORTS};
use crate::counters::PortCounters;
use crate::fdb::{Fdb, PortIndex};
use crate::network::{NetworkId, PortPolicy, PortView};
use crate::port::{PortControl, PortFault, Sides};
use crate::slot::{PortId, PortSlot};
use crate::turn::Membership;
use crate::worker::Command;

pub(super) struct PortState {
    pub(super) policy: PortPolicy,
    pub(super) place: Option<(NetworkId, PortIndex)>,
    pub(super) removed: bool,
}

/// A port of the switch. Sides are attached to it, and it is connected to a network or to none.
pub struct PortHandle {
    pub(super) core: Weak<Core>,
    pub(super) slot: Arc<PortSlot>,
    pub(super) owner: usize,
    pub(super) state: Mutex<PortState>,
}

impl PortHandle {
    /// Which port.
    pub fn id(&self) -> PortId {
        self.slot.id()
    }

    /// Connects the port to a network, leaving the one it was connected to.
    ///
    /// # Errors
    /// No such network, or it is full: the port then stays where it was. The port was removed.
    pub fn connect(&self, network: NetworkId) -> Result<(), ControlError> {
        let core = self.core.upgrade().ok_or(ControlError::NoPort)?;
        let mut state = self.state();
        if state.removed {
            return Err(ControlError::NoPort);
        }
        if state.place.is_some_and(|(current, _)| current == network) {
            return Ok(());
        }
        let port = Arc::new(PortView {
            slot: self.slot.clone(),
            policy: state.policy.clone(),
        });
        let quota = state.policy.mac_quota;
        let enter = |fdb: &Fdb, ports: &mut Vec<Option<Arc<PortView>>>| {
            let free = ports.iter().position(Option::is_none);
            let index = free.unwrap_or(ports.len());
            if index >= MAX_PORTS {
                return Err(ControlError::TooManyPorts);
            }
            match ports.get_mut(index) {
                Some(place) => *place = Some(port),
                None => ports.push(Some(port)),
            }
            fdb.set_quota(index as PortIndex, quota);
            Ok(index as PortIndex)
        };
        let index = core.change(network, enter, |view, &index| {
            let view = view.clone();
            let membership = Some(Membership { view, index });
            core.call(self.owner, |to| Command::Join(self.id(), membership, to));
        })?;
        if let Some((before, index)) = state.place.replace((network, index)) {
            core.vacate(before, index);
        }
        Ok(())
    }

    /// Disconnects the port: its frames are dropped, and none are delivered to it.
    pub fn disconnect(&self) {
        if let Some(core) = self.core.upgrade() {
            self.leave(&core, &mut self.state());
        }
    }

    fn leave(&self, core: &Core, state: &mut PortState) {
        let Some((network, index)) = state.place.take() else {
            return;
        };
        core.call(self.owner, |to| Command::Join(self.id(), None, to));
        core.vacate(network, index);
    }

    /// The network and index the port is connected at.
    pub fn place(&self) -> Option<(NetworkId, PortIndex)> {
        self.state().place
    }

    /// What was decided about the port.
    pub fn policy(&self) -> PortPolicy {
        self.state().policy.clone()
    }

    /// Changes what was decided about the port; holds for all frames taken in after the return.
    pub fn set_policy(&self, policy: PortPolicy) {
        let mut state = self.state();
        let learned_elsewhere =
            state.policy.vlan != policy.vlan || state.policy.mac_guard != policy.mac_guard;
        state.policy = policy.clone();
        let (Some((network, index)), Some(core)) = (state.place, self.core.upgrade()) else {
            return;
        };
        let quota = policy.mac_quota;
        let port = Arc::new(PortView {
            slot: self.slot.clone(),
            policy,
        });
        let replace = |fdb: &Fdb, ports: &mut Vec<Option<Arc<PortView>>>| {
            if let Some(place) = ports.get_mut(usize::from(index)) {
                *place = Some(port);
            }
            fdb.set_quota(index, quota);
            Ok(())
        };
        // The network cannot be gone: it is not deleted while it has ports.
        let _ = core.change(network, replace, |view, ()| {
            if learned_elsewhere {
                view.fdb.flush_port(index);
            }
        });
    }

    /// Whether nobody is attached because the VM is paused: frames to it are dropped for that reason then.
    pub fn set_paused(&self, paused: bool) {
        self.slot.lease().paused = paused;
    }

    /// The counters as they stand.
    pub fn counters(&self) -> PortCounters {
        self.slot.counters()
    }

    /// Takes the port out of the switch. Its sides are returned.
    pub fn remove(&self) -> Option<Sides> {
        self.disconnect();
        let sides = self.detach();
        self.state().removed = true;
        if let Some(core) = self.core.upgrade() {
            core.call(self.owner, |to| Command::Remove(self.id(), to));
        }
        sides
    }

    fn state(&self) -> MutexGuard<'_, PortState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PortControl for PortHandle {
    fn attach(&self, sides: Sides) -> Option<Sides> {
        let before = self.detach();
        let core = self.core.upgrade()?;
        self.slot.clear_fault();
        self.slot.set_rx(Some(sides.rx));
        core.call(self.owner, |to| Command::Attach(self.id(), sides.tx, to));
        before
    }

    fn detach(&self) -> Option<Sides> {
        let core = self.core.upgrade()?;
        let tx = core
            .call(self.owner, |to| Command::Detach(self.id(), to))
            .tx;
        let rx = self.slot.set_rx(None);
        Some(Sides { tx: tx?, rx: rx? })
    }

    fn fault(&self) -> Option<PortFault> {
        self.slot.fault()
    }

    fn fault_fd(&self) -> BorrowedFd<'_> {
        self.slot.fault_fd()
    }
}
