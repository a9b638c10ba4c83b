//! The kinds of ports.

pub mod memory;
pub mod vhost;
pub mod packet;
pub mod tap;
pub mod uplink;
pub mod xdp;
