//! Everything around the switch that tests and the demonstration need: network namespaces, the daemon on
//! temporary directories, QEMU guests, DPDK peers, traffic and captures.
//!
//! Whatever a value of this crate creates is taken away again when the value is dropped. What cannot be had
//! (root, a package, a built daemon) is an error that names it; nothing is skipped.

pub mod capture;
pub mod cmd;
pub mod daemon;
mod deb;
pub mod dpdk;
pub mod guest;
pub mod lab;
pub mod matrix;
pub mod netns;
pub mod paths;
pub mod station;
pub mod stats;
pub mod vm;

pub use capture::{Capture, Frames};
pub use cmd::Background;
pub use daemon::Daemon;
pub use dpdk::Dpdk;
pub use guest::QemuGuest;
pub use lab::Lab;
pub use netns::Netns;
pub use station::Station;
