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
//! When vswitchd goes away the process keeps the VM running. It has given up the right to connect to anything: the next
//! vswitchd connects to it, on a listening socket of its own that came with `Configure`. The process then says
//! `Hello { running: true }`, is answered `Adopt`, and sends `Ready` as above. A vswitchd that has no use for it says
//! `Leave` instead, and it ends.
//!
//! The channels of a synthetic adapter are opened and closed by its guest, over the bus that the process has. What the
//! bus demands for them goes to vswitchd as it comes, and the guest is answered once vswitchd has done it:
//! ```text
//! Demand { id, adapter, Add }              ──►
//! Demand { id, adapter, Open } + interrupt ──►  opens the rings, attaches the adapter to its port
//!                                          ◄──  Done { id, ok }, for each
//!                                          ◄──  Command SubChannels, Keep
//! ```
//! After `Ready` the process demands again what was shared and open already, and then `Restore` with what was kept. While there is
//! no vswitchd it answers its guest itself, and nobody uses the memory.
//!
//! * [`message`] has the messages and what is checked about them; [`demand`] those about channels.
//! * [`socket`] carries them.

pub mod demand;
pub mod message;
pub mod socket;

pub use message::{FromVmm, ToVmm};
pub use socket::{AttachError, Connection, Listener};

/// The version of the protocol. Both ends come from one build: any other is refused.
pub const VERSION: u32 = 3;
/// Bytes of a message, at most. The longest is a demand with 8190 page numbers of 13 digits.
pub const MAX_MESSAGE: usize = 128 * 1024;
/// File descriptors with a message, at most: guest RAM, three for each of 4 legacy adapters, one for each of 8 synthetic
/// ones, with room to spare.
pub const MAX_FDS: usize = 40;

#[cfg(test)]
mod tests;
