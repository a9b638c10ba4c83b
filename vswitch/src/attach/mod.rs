//! The attach protocol: how vswitchd and the process of a VM (`vswitch-vmm`) speak.
//!
//! The process connects to `attach.sock`, a sequenced-packet Unix socket (unix(7), `SOCK_SEQPACKET`). A message is one
//! packet: a JSON value of at most [`MAX_MESSAGE`] bytes, and at most [`MAX_FDS`] file descriptors with it
//! (`SCM_RIGHTS`). Both ends take the other as hostile: what is not exactly a message ends the connection.
//!
//! ```text
//! process                                       vswitchd
//! Hello { running: false }                 ──►
//!                                          ◄──  Configure + kernel, console sockets, …   (open files)
//!   makes the machine, gives up its rights
//! Ready + guest RAM, pages, event fds      ──►  attaches the adapters to their ports
//!                                          ◄──  Command { id, … }
//! Reply { id, … }, Event                   ──►
//! ```
//! When vswitchd goes away the process keeps the VM running and connects again; it then says `Hello { running: true }`,
//! is answered `Adopt`, and sends `Ready` as above.
//!
//! * [`message`] has the messages and what is checked about them.
//! * [`socket`] carries them.

pub mod message;
pub mod socket;

pub use message::{FromVmm, ToVmm};
pub use socket::{AttachError, Connection, Listener};

/// The version of the protocol. Both ends come from one build: any other is refused.
pub const VERSION: u32 = 1;
/// Bytes of a message, at most. The longest is a configuration with a kernel command line of 2 KiB.
pub const MAX_MESSAGE: usize = 16 * 1024;
/// File descriptors with a message, at most: guest RAM, and three for each of 12 adapters.
pub const MAX_FDS: usize = 40;

#[cfg(test)]
mod tests;
