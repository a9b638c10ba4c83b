//! A small virtual machine monitor on KVM, made for networking: it knows no network itself.
//!
//! * [`Machine`] is the whole: made from a [`Config`] and devices, started, paused, reset, saved.
//! * [`device`] is what a device of the platform is: a function of register accesses, without thread, clock or system
//!   call. What must happen is said in [`device::Effects`].
//! * [`bus`] finds the device behind a port or a memory address.
//! * [`pc`] puts together what a machine is made of.
//! * [`chipset`] holds the devices of a PC with an i440FX and PIIX chipset, [`pci`] its bus, its functions and their
//!   configuration spaces.
//! * [`memory`] is the guest's memory, a sealed memfd; [`kvm`] is the safe face of KVM.
//! * [`boot`] is what runs first; [`hyperv`] is the part of Hyper-V's interface that its network drivers need.
//! * [`sandbox`] is what its threads may ask of the kernel.

mod board;
pub mod boot;
pub mod bus;
pub mod chipset;
mod clock;
pub mod cpuid;
pub mod device;
mod emulate;
mod error;
mod exits;
mod gate;
pub mod hyperv;
pub mod irq;
pub mod kvm;
mod machine;
pub mod memory;
pub mod pc;
pub mod pci;
mod phase;
pub mod sandbox;
mod service;
mod shared;
mod slots;
mod state;
mod vcpu;

pub use board::{Named, Output};
pub use error::Error;
pub use exits::Exits;
pub use machine::{Config, Machine};
pub use phase::{Event, Phase};
