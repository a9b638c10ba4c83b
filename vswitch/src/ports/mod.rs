//! The kinds of ports.

pub mod memory;
pub mod tap;
pub mod xdp;
