//! The safe face of KVM, and the only place of this crate with unsafe code.
//!
//! * [`Vm`] is a virtual machine: its memory, interrupt controllers, timer and eventfds.
//! * [`Vcpu`] is a processor: it runs until the monitor is needed, and can be kicked out by other threads.
//!
//! Reference: the kernel's "The Definitive KVM API Documentation" (Documentation/virt/kvm/api.rst).

mod vcpu;
mod vm;

pub use vcpu::{Exit, Failure, Kick, Vcpu};
pub use vm::{Chips, Vm};

use kvm_ioctls::{Cap, Kvm};

use crate::Error;

/// What this crate needs of KVM, by the names of the documentation.
const NEEDED: [(Cap, &str); 10] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ReadonlyMem, "KVM_CAP_READONLY_MEM"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::PitState2, "KVM_CAP_PIT_STATE2"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
];

/// Opens KVM and checks that it has all that a machine needs.
///
/// # Errors
/// [`Error::NoKvm`] says in words what is wrong: no device, no right to it, another version, a capability it lacks.
pub fn open() -> Result<Kvm, Error> {
    let kvm = Kvm::new().map_err(|error| {
        let why = match error.errno() {
            libc::ENOENT => {
                "there is no /dev/kvm: load the module kvm_intel or kvm_amd, or switch on virtualisation in the firmware"
            }
            libc::EACCES | libc::EPERM => {
                "/dev/kvm may not be opened: run as root or as a member of the group kvm"
            }
            libc::ENODEV | libc::ENXIO => "/dev/kvm has no driver behind it",
            _ => return Error::NoKvm(format!("/dev/kvm cannot be opened ({error})")),
        };
        Error::NoKvm(why.to_owned())
    })?;
    let version = kvm.get_api_version();
    if version < 0 {
        return Err(Error::NoKvm("/dev/kvm is not KVM's device".to_owned()));
    }
    if version != kvm_bindings::KVM_API_VERSION as i32 {
        return Err(Error::NoKvm(format!(
            "/dev/kvm speaks version {version} of its interface, not 12"
        )));
    }
    for (capability, name) in NEEDED {
        if !kvm.check_extension(capability) {
            return Err(Error::NoKvm(format!("its KVM lacks {name}")));
        }
    }
    Ok(kvm)
}

/// Checks that machines can be made here, by making one of nothing.
///
/// # Errors
/// Those of [`open`], and what KVM refuses only then, as where another hypervisor has the processor.
pub fn check() -> Result<(), Error> {
    Vm::new(&open()?).map(drop)
}
