//! The host's side of VMBus: which channels a guest is offered, which memory it shares, and which channels are open.
//!
//! [`Bus`] is a function of the guest's messages ([`message`]) that answers with [`Effect`]s. What serves a channel (a
//! network port, an integration service) is asked by a [`Demand`] and answers by [`Bus::done`]; the guest is
//! answered only then, so that it never frees memory that somebody still writes to.
//!
//! Source: Linux 6.1 `include/linux/hyperv.h` for the layout of messages; Microsoft's Hypervisor Top-Level Functional
//! Specification for how they are carried.

mod bus;
mod effect;
mod gpadl;
pub mod message;
pub mod pages;
pub mod ring;
mod state;
#[cfg(test)]
mod tests;

pub use bus::{Bus, event_connection};
pub use effect::{
    Demand, Done, Effect, Interrupts, MAX_CHANNELS, NETWORK, Offer, OfferError, Open, Refused,
    Target,
};
pub use gpadl::{GpadlError, MAX_GPADL_PAGES, PageList, PageRange};
pub use state::{BusState, StateError};
