//! The poll-mode layer-2 switch: frames, ports, MAC table, the turn, and the control side that changes them.
//!
//! A [`worker`] turns over its ports: it gathers a [`burst`] from one, [`classify`]s each frame from a private
//! snapshot, plans who gets it, and [`deliver`]s with one copy. The [`control`] side changes all of this between turns.

#![forbid(unsafe_code)]

#[cfg(feature = "api")]
pub mod api;
#[cfg(feature = "attach")]
pub mod attach;
pub mod burst;
pub mod classify;
pub mod control;
pub mod counters;
pub mod deliver;
pub mod drops;
pub mod fdb;
pub mod mac;
pub mod network;
pub mod patience;
pub mod port;
pub mod ports;
pub mod slot;
pub mod turn;
pub mod vlan;
mod wakeup;
pub mod worker;

mod atomic {
    pub(crate) use std::sync::atomic::{AtomicBool, Ordering, fence};
}
