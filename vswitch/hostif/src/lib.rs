//! The safe face of those Linux network system calls that have none elsewhere.
//!
//! - [`tap`]: TAP devices with virtio header and several queues
//! - [`xdp`]: AF_XDP sockets on all receive queues of an interface
//! - [`packet`]: packet sockets with virtio header
//! - [`iov`]: pieces of memory to read and write, shared memory among them
//! - [`links`]: interfaces set up and down, watched, and their addresses and routes moved
//! - [`info`]: what an interface is like
//!
//! Nothing here knows of switch ports. What a worker thread calls for each burst (read, write, receive, transmit)
//! neither allocates, nor blocks, nor logs; what opens, changes and closes is for the control side.
//!
//! x86-64 Linux 6.1 or later. Interfaces are looked up in the network namespace of the calling thread.

pub mod info;
pub mod iov;
pub mod links;
pub mod name;
pub mod packet;
pub mod tap;
pub mod xdp;

mod sys;

pub use name::{BadName, IfName};

/// "Try again" is no error for what never blocks.
fn would_block<T>(result: rustix::io::Result<T>) -> rustix::io::Result<Option<T>> {
    use rustix::io::Errno;
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(errno) => Err(errno),
    }
}
