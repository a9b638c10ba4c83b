//! The place of a port that workers share: its receive side under a lease, its counters, its fault.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use rustix::event::{EventfdFlags, eventfd};

use crate::counters::{CounterBlock, PortCounters};
use crate::drops::DropReason;
use crate::port::{PortFault, RxSide};

/// Identifies a port for the life of the switch; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub u64);

/// What the lease protects.
#[derive(Default)]
pub(crate) struct RxState {
    /// The receive side; `None` while nobody is attached.
    pub(crate) side: Option<Box<dyn RxSide>>,
    /// Nobody is attached because the VM is paused.
    pub(crate) paused: bool,
}

impl RxState {
    /// What frames are dropped for while nobody is attached.
    pub(crate) fn absence(&self) -> DropReason {
        if self.paused {
            DropReason::Paused
        } else {
            DropReason::RxNotReady
        }
    }
}

/// A port as all workers see it. It outlives attachments.
pub struct PortSlot {
    id: PortId,
    rx: Mutex<RxState>,
    /// Added to by the owner worker only.
    pub(crate) tx_counts: CounterBlock,
    /// Added to by whoever holds the lease.
    pub(crate) rx_counts: CounterBlock,
    fault: Mutex<Option<PortFault>>,
    fault_event: OwnedFd,
}

/// Attempts at a lease before the core is offered to others: the holder copies one burst, some microseconds.
const SPINS: u32 = 1000;

impl PortSlot {
    /// An empty slot.
    ///
    /// # Errors
    /// The kernel refuses an event file descriptor.
    pub fn new(id: PortId) -> rustix::io::Result<PortSlot> {
        Ok(PortSlot {
            id,
            rx: Mutex::default(),
            tx_counts: CounterBlock::default(),
            rx_counts: CounterBlock::default(),
            fault: Mutex::new(None),
            fault_event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Which port.
    pub fn id(&self) -> PortId {
        self.id
    }

    /// The counters as they stand.
    pub fn counters(&self) -> PortCounters {
        PortCounters {
            tx: self.tx_counts.read(),
            rx: self.rx_counts.read(),
        }
    }

    /// Puts a receive side into service, or with `None` takes it out; gives the one that was there before.
    pub fn set_rx(&self, side: Option<Box<dyn RxSide>>) -> Option<Box<dyn RxSide>> {
        std::mem::replace(&mut self.lease().side, side)
    }

    /// Takes the receive lease. Held for one burst at a time, so it is waited for by spinning.
    pub(crate) fn lease(&self) -> MutexGuard<'_, RxState> {
        let mut spins = 0u32;
        loop {
            match self.rx.try_lock() {
                Ok(guard) => return guard,
                Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
                Err(TryLockError::WouldBlock) if spins < SPINS => std::hint::spin_loop(),
                // The holder may have lost its core: this happens where workers share cores with others.
                Err(TryLockError::WouldBlock) => std::thread::yield_now(),
            }
            spins = spins.wrapping_add(1);
        }
    }

    /// Notes a fault, the first one only, and wakes whoever watches [`PortSlot::fault_fd`].
    pub(crate) fn set_fault(&self, fault: PortFault) {
        let mut current = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        if current.is_none() {
            *current = Some(fault);
            let _ = rustix::io::write(&self.fault_event, &1u64.to_ne_bytes());
        }
    }

    /// Forgets the fault: a new pair of sides is attached.
    pub(crate) fn clear_fault(&self) {
        let mut current = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        *current = None;
        let _ = rustix::io::read(&self.fault_event, &mut [0u8; 8]);
    }

    /// Why the attached sides are out of service, if they are.
    pub fn fault(&self) -> Option<PortFault> {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Readable while there is a fault.
    pub fn fault_fd(&self) -> BorrowedFd<'_> {
        self.fault_event.as_fd()
    }
}
