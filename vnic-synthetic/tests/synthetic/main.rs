//! The synthetic adapter as a port of the switch.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod integration;
mod offload;
mod port;
mod receive;
mod rig;
mod saved;
mod traps;
