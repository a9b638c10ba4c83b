//! The safe face of those Linux network system calls that have none elsewhere.
//!
//! - [`spans`]: reads and writes that reach into guest memory
//! - [`tap`]: TAP devices with virtio header and several queues
//! - [`xdp`]: AF_XDP sockets on all receive queues of an interface
//!
//! Nothing here knows of switch ports. What a worker thread calls for each burst (read, write, receive, transmit)
//! neither allocates, nor blocks, nor logs; what opens, changes and closes is for the control side.
//!
//! x86-64 Linux 6.1 or later. Interfaces are looked up in the network namespace of the calling thread.

pub mod info;
pub mod name;
pub mod spans;
pub mod tap;
pub mod xdp;

mod sys;

pub use name::{BadName, IfName};
