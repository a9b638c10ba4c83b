//! What a machine runs first.

mod linux;

pub use linux::Linux;

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
