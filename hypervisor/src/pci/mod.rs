//! PCI: configuration spaces, base addresses, functions and the bus they are on.
//!
//! * [`config`] is the configuration space of one function: what the guest can write there, and where its base addresses
//!   put the function's regions.
//! * [`function`] is a function: a configuration space with a [`Device`](crate::device::Device) behind it, an option
//!   ROM, doorbells and an interrupt pin.
//! * [`bus`] is bus 0 with its functions. The chipset's [host bridge](crate::chipset::i440fx) puts it into the
//!   processor's address spaces.
//!
//! There is one bus, no bridge to another, and no capability list: what guests of this machine's age use.

pub mod bus;
pub mod config;
pub mod function;

pub use bus::{Address, Bus, BusError};
pub use config::{Bar, ConfigSpace, Identity};
pub use function::{Function, RomError};

/// The line that a PCI device drives in [`Effect::Line`](crate::device::Effect::Line): its own interrupt pin. The bus
/// puts the interrupt line in its place to which the chipset routes the pin.
pub const INTX: u32 = u32::MAX;
