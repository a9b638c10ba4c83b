//! Instructions that KVM's emulator does not know.
use crate::kvm::{Failure, Vcpu};
use crate::memory::GuestMemory;

/// Carries the instruction out.
pub(crate) fn instruction(
    vcpu: &Vcpu,
    _memory: &GuestMemory,
    failure: &Failure,
) -> Result<(), String> {
    let regs = vcpu.fd().get_regs();
    Err(format!("KVM cannot emulate {failure:x?} {regs:x?}"))
}
