//! What a machine runs first, and what that finds: tables that describe the machine, and the firmware's configuration.
//!
//! * [`Boot`] is firmware or a Linux kernel.
//! * [`acpi`], [`smbios`] and [`mptable`] make the tables. They say the same whether SeaBIOS places them or we do.
//! * [`tables`] places them in the memory of a guest that is started without firmware.
//! * A kernel without an entry point for 64-bit mode is started by firmware, by an option ROM of ours.
//! * [`fw_cfg`] is the device by which firmware reads its configuration, and [`firmware`] what it reads there.

pub mod acpi;
pub mod firmware;
pub mod fw_cfg;
mod linux;
pub mod mptable;
pub(crate) mod real_mode;
pub mod smbios;
pub mod tables;

pub use linux::{Linux, MAX_COMMAND_LINE};

use crate::Error;
use crate::kvm::Vcpu;
use crate::memory::GuestMemory;

/// What a machine runs first, after power-on and after every reset.
pub enum Boot {
    /// Firmware: an image that ends at 4 GiB, of which the last 128 KiB are seen below 1 MiB too. The processor starts in
    /// it, as the hardware does.
    Firmware(Vec<u8>),
    /// A Linux kernel, started without firmware.
    Linux(Linux),
}

impl Boot {
    /// The firmware's image.
    pub(crate) fn firmware(&self) -> Option<&[u8]> {
        match self {
            Self::Firmware(image) => Some(image),
            Self::Linux(_) => None,
        }
    }

    /// Puts everything in place. `first` is the first processor, as after power-on.
    pub(crate) fn load(&mut self, memory: &GuestMemory, first: &Vcpu) -> Result<(), Error> {
        match self {
            Self::Firmware(_) => Ok(()),
            Self::Linux(linux) => linux.load(memory, first),
        }
    }
}

/// Sets the byte at `at` so that all add up to 0.
fn complement(bytes: &mut [u8], at: usize) {
    let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(byte) = bytes.get_mut(at) {
        *byte = byte.wrapping_sub(sum);
    }
}
