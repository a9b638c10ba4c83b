//! What can go wrong in making and running a machine.

use std::io;

use crate::device::RestoreError;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host has no usable KVM.
    #[error("this host cannot run virtual machines: {0}")]
    NoKvm(String),
    /// KVM refused a call.
    #[error("KVM refused {call}")]
    Kvm {
        /// The call, by the name in the KVM API documentation.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another system call failed.
    #[error("{call} failed")]
    System {
        /// The call.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Guest memory could not be made.
    #[error("guest memory could not be mapped")]
    Map(#[from] guestmem::MapError),
    /// An access to guest memory failed.
    #[error("{what} does not fit in the guest's memory")]
    Memory {
        /// What was to be read or written.
        what: &'static str,
        /// Why it failed.
        source: guestmem::Fault,
    },
    /// A value of the configuration that is not allowed.
    #[error("{what} {value} is not allowed: {allowed}")]
    Config {
        /// Name of the value.
        what: &'static str,
        /// What was given.
        value: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// A kernel, initrd or firmware image that cannot be used.
    #[error("{what} cannot be loaded: {why}")]
    Image {
        /// Which image.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The PCI functions do not fit their bus.
    #[error("the PCI bus cannot be made")]
    Pci(#[from] crate::pci::BusError),
    /// The firmware's configuration cannot be made.
    #[error("the firmware's configuration cannot be made")]
    Firmware(#[from] crate::boot::fw_cfg::FileError),
    /// A verb that the machine's state does not allow.
    #[error("a machine that is {state} cannot be told to {verb}")]
    Illegal {
        /// What was asked.
        verb: &'static str,
        /// The state the machine is in.
        state: &'static str,
    },
    /// A saved state that cannot be used.
    #[error("the saved state cannot be used: {0}")]
    Saved(String),
    /// A device refused its part of a saved state.
    #[error("device {device} refused its saved state")]
    Device {
        /// Name of the device.
        device: String,
        /// Why.
        source: RestoreError,
    },
    /// Reading or writing a saved state failed.
    #[error("{what} the saved state failed")]
    Io {
        /// "reading" or "writing".
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The sandbox could not be entered.
    #[error("the sandbox could not be entered: {0}")]
    Sandbox(String),
}

impl Error {
    /// For `map_err` on a KVM call.
    pub(crate) fn kvm(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| Self::Kvm {
            call,
            source: io::Error::from_raw_os_error(error.errno()),
        }
    }

    /// For `map_err` on a system call.
    pub(crate) fn system<E: Into<io::Error>>(call: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::System {
            call,
            source: error.into(),
        }
    }
}
