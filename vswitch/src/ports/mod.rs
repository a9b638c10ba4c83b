//! The kinds of ports.

pub mod memory;
pub mod vhost;
