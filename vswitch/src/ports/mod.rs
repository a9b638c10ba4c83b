//! The kinds of ports.

mod backoff;
mod join;
pub mod memory;
pub mod packet;
pub mod tap;
pub mod uplink;
pub mod vhost;
pub mod xdp;
