//! VMs: each runs in a process of its own, `vswitch-vmm`, which this module starts, watches and speaks to.
//!
//! * [`launch`]: where the program is, and how it is started.
//! * [`door`]: the attach socket, on which processes come in.
//! * [`live`]: a process and the connection to it; [`supervise`] is the thread that watches it.
//! * [`seat`]: where an adapter of a VM and a port of the switch meet; [`synthetic`] are the rings of one kind of them.
//! * [`plug`]: synthetic adapters plugged in and unplugged while their VM runs.
//! * [`files`]: the files of a VM: what it boots, its consoles, its saved state.
//! * [`verbs`]: start, save and the others, which wait for a process and must not hold up the manager meanwhile.
//!
//! Locks: whoever holds a lock of this module takes no lock of the manager.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::manager::Manager;

mod door;
mod files;
mod launch;
mod live;
pub(crate) mod plug;
mod seat;
mod supervise;
mod synthetic;
pub(crate) mod verbs;

pub(crate) use door::Door;
pub(crate) use files::Files;
pub(crate) use launch::{Launcher, VmmProgram};
pub(crate) use live::{Birth, Live, Place, Places};
pub(crate) use seat::Seats;

fn lock(manager: &Mutex<Manager>) -> MutexGuard<'_, Manager> {
    manager.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long a process may take for what is done at once.
const PROMPT: std::time::Duration = std::time::Duration::from_secs(5);
