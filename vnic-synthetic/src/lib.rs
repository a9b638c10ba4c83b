//! The synthetic adapter: the host's half of NetVSP over VMBus, for guests with Hyper-V's own network driver.
//!
//! Nothing here knows KVM, a socket, a thread or a clock. There are two halves, in two processes:
//!
//! * [`vmbus`] lives in the process of the VM, beside the interrupt controller that carries its messages: a
//!   function of messages that answers with effects.
//! * [`port`] lives in the switch and owns the rings of opened channels: with them it finds frames, and the messages of
//!   [`nvsp`] and [`rndis`] by which a driver sets its adapter up.
//!
//! Besides, [`integration`] has the services by which guests shut down, show that they live, and are told the time.
//!
//! Everything a guest says is read once into private memory, validated and then used.

#![forbid(unsafe_code)]

pub mod integration;
pub mod nvsp;
pub mod port;
pub mod rndis;
pub mod vmbus;
mod wire;

#[cfg(any(test, feature = "test-support"))]
#[allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test support"
)]
pub mod driver;
