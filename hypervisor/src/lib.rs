//! A small virtual machine monitor on KVM, made for networking: it knows no network itself.
//!
//! * [`device`] is what a device of the platform is: a function of register accesses, without thread, clock or system
//!   call. What must happen is said in [`device::Effects`].
//! * [`bus`] finds the device behind a port or a memory address.
//! * [`chipset`] holds the devices of a PC with an i440FX and PIIX chipset, [`pci`] its bus, its functions and their
//!   configuration spaces.

pub mod bus;
pub mod chipset;
pub mod device;
pub mod pci;
