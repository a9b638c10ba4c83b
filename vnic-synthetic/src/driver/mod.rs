//! A guest for tests and benchmarks: a network driver over memory of its own, and the bus and adapter that serve it.
//!
//! The driver behaves as those of Linux (send buffer, batches, pages, both at once) and of iPXE (version 1, no send
//! buffer) do, and is written from the descriptions of the protocols, not with the host's code.

pub mod frame;
mod guest;
mod heap;
pub mod host;
mod load;
pub mod ring;
mod rndis;
mod service;
mod sub_channel;

pub use frame::{Carry, Frame, Received};
pub use guest::{Guest, Setup};
pub use host::poll;
pub use service::{GuestService, Versions};
