//! The transmit and the receive process as a port of the switch: descriptor lists in guest memory.
//!
//! The worker that owns the port drives the transmit side, which also takes over what the registers tell (see [`crate::page`]);
//! any worker delivers to the receive side. A list that leads outside guest memory is a bus error: CSR5 says so, both processes
//! stop until the guest resets the adapter, and nobody else notices.
//!
//! The worker polls the transmit list, so a frame is taken without a poll demand. Only before the worker sleeps, or when
//! the list has been empty for a while, the transmit process is suspended and waits for one, as on the real adapter. An
//! interrupt costs a guest several exits, so that the transmit buffer is unavailable (TU) is told with the next interrupt
//! for a received frame; alone it is told before the worker sleeps, or after a while longer.

pub mod filter;
mod pieces;
mod rx;
mod tx;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use guestmem::Memory;
use vswitch::deliver::{Job, Report};
use vswitch::drops::DropReason;
use vswitch::port::{PortFault, RxSide, Sides};
use vswitch::ports::vhost::notify;

use crate::csr::status;
use crate::page::SharedPage;
use rx::RxProcess;
use tx::TxProcess;

/// Why a port was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The descriptor that carries poll demands to the port.
    #[error("kick descriptor of a legacy adapter")]
    Kick(#[source] notify::NotifyError),
    /// The descriptor that carries interrupts to the guest.
    #[error("interrupt descriptor of a legacy adapter")]
    Interrupt(#[source] notify::NotifyError),
}

/// The two sides of the port of an adapter, whose registers share `page`, in a guest with `memory`. `kick` is an eventfd
/// that the registers' process signals when there is something new, `interrupt` one that raises the adapter's interrupt.
///
/// The port goes on where the page says that the last one stopped. Its policy must limit packets to 1500 bytes; longer
/// frames are dropped as [`DropReason::Mtu`] whatever the policy says.
///
/// # Errors
/// A descriptor that is no eventfd.
pub fn open(
    memory: Arc<Memory>,
    page: SharedPage,
    kick: OwnedFd,
    interrupt: OwnedFd,
) -> Result<Sides, OpenError> {
    let kick = notify::adopt(kick).map_err(OpenError::Kick)?;
    let interrupt = notify::adopt(interrupt).map_err(OpenError::Interrupt)?;
    let shared = Arc::new(Shared {
        fatal: AtomicBool::new(page.has_bus_error()),
        untold: AtomicBool::new(false),
        rx: Mutex::new(RxProcess::new(Arc::clone(&memory), &page)),
        memory,
        page,
        kick,
        interrupt,
    });
    Ok(Sides {
        tx: Box::new(TxProcess::new(Arc::clone(&shared))),
        rx: Box::new(LegacyRx(shared)),
    })
}

/// State of a process (manual, tables 4-11 and 4-12).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Process {
    #[default]
    Stopped,
    Running,
    /// Running, but the last descriptor looked at was the host's.
    Suspended,
}

/// What both sides need.
struct Shared {
    memory: Arc<Memory>,
    page: SharedPage,
    kick: OwnedFd,
    interrupt: OwnedFd,
    /// There was a bus error: nothing moves until a reset.
    fatal: AtomicBool,
    /// The transmit process is suspended, and the driver has not been told.
    untold: AtomicBool,
    /// Held for one burst, or while a change of the registers is taken over.
    rx: Mutex<RxProcess>,
}

/// Attempts at the receive process before the core is offered to others.
const SPINS: u32 = 1000;

impl Shared {
    /// The receive process; `None` while another worker has it.
    fn try_rx(&self) -> Option<MutexGuard<'_, RxProcess>> {
        match self.rx.try_lock() {
            Ok(rx) => Some(rx),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The receive process. It is waited for by spinning, as nobody has it for longer than a burst.
    fn rx(&self) -> MutexGuard<'_, RxProcess> {
        for _ in 0..SPINS {
            if let Some(rx) = self.try_rx() {
                return rx;
            }
            std::hint::spin_loop();
        }
        self.rx.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The status bit for what the driver has not been told yet, which it will be now.
    fn untold(&self) -> u32 {
        let untold =
            self.untold.load(Ordering::Relaxed) && self.untold.swap(false, Ordering::Relaxed);
        if untold { status::TU } else { 0 }
    }

    /// Sets status bits and interrupts the guest if one of them is new and enabled: true if it did.
    fn raise(&self, mut bits: u32) -> bool {
        if bits & status::TI != 0 {
            bits &= !status::ETI;
            if self.page.status() & status::ETI != 0 {
                self.page.clear_status(status::ETI);
            }
        }
        if bits == 0 {
            return false;
        }
        let new = self.page.set_status(bits);
        let wanted = status::interrupts(new, self.page.csr7());
        if wanted {
            notify::signal(&self.interrupt);
        }
        wanted
    }

    /// Nobody answered at an address of a list. The status bit to raise.
    fn bus_error(&self) -> u32 {
        self.fatal.store(true, Ordering::Relaxed);
        self.page.set_bus_error(Some(status::EB_MASTER_ABORT));
        status::FBE
    }

    fn is_fatal(&self) -> bool {
        self.fatal.load(Ordering::Relaxed)
    }

    fn kick_fd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd as _;
        self.kick.as_fd()
    }

    fn fault(&self) -> Option<PortFault> {
        let fault = |what| Some(PortFault { what, value: 0 });
        if self.memory.is_faulted() {
            fault("memory of the guest, taken away by its owner,")
        } else if self.page.is_lost() {
            fault("page shared with the registers, taken away by its owner,")
        } else {
            None
        }
    }
}

/// The receive side.
struct LegacyRx(Arc<Shared>);

impl RxSide for LegacyRx {
    fn deliver(&mut self, job: &Job<'_>, report: &mut Report) {
        let mut rx = self.0.rx();
        if !rx.is_listening() || self.0.is_fatal() {
            report.dropped(DropReason::RxNotReady, job.frames.count_ones());
            return;
        }
        rx.deliver(job, report);
        let mut bits = rx.finish(&self.0);
        drop(rx);
        if bits != 0 {
            bits |= self.0.untold();
        }
        report.destination.notifications += u64::from(self.0.raise(bits));
    }

    fn fault(&self) -> Option<PortFault> {
        self.0.fault()
    }
}
