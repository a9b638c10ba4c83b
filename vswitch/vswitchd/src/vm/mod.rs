//! VMs: each runs in a process of its own, `vswitch-vmm`, which this module starts, watches and speaks to.
//!
//! * [`launch`]: where the program is, and how it is started.
//! * [`door`]: the attach socket, on which processes come in.
//! * [`live`]: a process and the connection to it; [`supervise`] is the thread that watches it.
//! * [`seat`]: where an adapter of a VM and a port of the switch meet.
//! * [`files`]: the files of a VM: what it boots, its consoles, its saved state.
//! * [`verbs`]: start, save and the others, which wait for a process and must not hold up the manager meanwhile.
//!
//! Locks: whoever holds a lock of this module takes no lock of the manager.

mod door;
mod files;
mod launch;
mod live;
mod seat;
mod supervise;
pub(crate) mod verbs;

pub(crate) use door::Door;
pub(crate) use files::Files;
pub(crate) use launch::{Launcher, VmmProgram};
pub(crate) use live::{Birth, BySeat, Live};
pub(crate) use seat::Seats;

/// How long a process may take for what is done at once.
const PROMPT: std::time::Duration = std::time::Duration::from_secs(5);
