//! The state of a processor: for saving, and as it was at power-on for reset.

use kvm_bindings::{
    Msrs, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd};

use crate::Error;
use crate::hyperv::msr;
use crate::kvm::Vcpu;

/// The time at which the local APIC's timer fires, in ticks of the TSC: taken only once both are set.
const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// The time-stamp counter.
const MSR_TSC: u32 = 0x10;

/// All that KVM keeps for a processor, but CPUID.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VcpuState {
    /// General registers.
    regs: kvm_regs,
    /// Segments, control registers, descriptor tables.
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
    mp_state: kvm_mp_state,
}

/// The numbers of the MSRs that KVM keeps and that `vcpu` can read, the deadline last.
///
/// # Errors
/// What KVM refuses.
pub(crate) fn readable_msrs(kvm: &Kvm, vcpu: &Vcpu) -> Result<Vec<u32>, Error> {
    let list = kvm
        .get_msr_index_list()
        .map_err(Error::kvm("KVM_GET_MSR_INDEX_LIST"))?;
    let mut readable = Vec::new();
    // Hyper-V's are not KVM's, even where it could offer them.
    let own = list.as_slice().iter();
    for &index in own.filter(|index| !(msr::FIRST..msr::FIRST + msr::COUNT).contains(index)) {
        // One at a time, as a call ends at the first that cannot be read.
        if read_msrs(vcpu.fd(), &[index])?.len() == 1 {
            readable.push(index);
        }
    }
    readable.sort_by_key(|&index| index == MSR_TSC_DEADLINE);
    Ok(readable)
}

/// The time-stamp counter of a processor that does not run.
///
/// # Errors
/// What KVM refuses.
pub(crate) fn time_stamp(vcpu: &Vcpu) -> Result<u64, Error> {
    let read = read_msrs(vcpu.fd(), &[MSR_TSC])?;
    Ok(read.first().map(|entry| entry.data).unwrap_or_default())
}

/// Refuses to let a guest's time go back. Where KVM runs without the processor's help it takes a value for the time-stamp
/// counter and does not set it: the guest reads the host's own, which is less than what it knows already once the host
/// has started anew. Values less than a second apart are the same to KVM.
///
/// # Errors
/// The counter is at `now`, more than a second before what it was when the machine was saved.
pub(crate) fn check_time(tsc_khz: u32, saved: u64, now: u64) -> Result<(), Error> {
    if now.saturating_add(u64::from(tsc_khz) * 1000) >= saved {
        return Ok(());
    }
    Err(Error::Saved(format!(
        "its time-stamp counter would go back from {saved} to {now}: KVM does not set it on this host, which has \
         started anew since"
    )))
}

fn read_msrs(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, Error> {
    let entries: Vec<_> = indices
        .iter()
        .map(|&index| kvm_msr_entry {
            index,
            ..Default::default()
        })
        .collect();
    let mut msrs = msrs(&entries)?;
    let read = fd.get_msrs(&mut msrs).map_err(Error::kvm("KVM_GET_MSRS"))?;
    Ok(msrs.as_slice().iter().take(read).copied().collect())
}

fn msrs(entries: &[kvm_msr_entry]) -> Result<Msrs, Error> {
    Msrs::from_entries(entries)
        .map_err(|_| Error::Saved(format!("{} MSRs are more than KVM takes", entries.len())))
}

impl VcpuState {
    /// Its time-stamp counter.
    pub(crate) fn time_stamp(&self) -> u64 {
        let counter = self.msrs.iter().find(|entry| entry.index == MSR_TSC);
        counter.map(|entry| entry.data).unwrap_or_default()
    }

    /// Reads the state of a processor that does not run, with the MSRs named by [`readable_msrs`].
    ///
    /// # Errors
    /// What KVM refuses.
    pub(crate) fn read(vcpu: &Vcpu, indices: &[u32]) -> Result<Self, Error> {
        let fd = vcpu.fd();
        Ok(Self {
            // First: KVM settles pending INIT and start-up requests here.
            mp_state: fd.get_mp_state().map_err(Error::kvm("KVM_GET_MP_STATE"))?,
            regs: fd.get_regs().map_err(Error::kvm("KVM_GET_REGS"))?,
            sregs: fd.get_sregs().map_err(Error::kvm("KVM_GET_SREGS"))?,
            xsave: fd.get_xsave().map_err(Error::kvm("KVM_GET_XSAVE"))?,
            xcrs: fd.get_xcrs().map_err(Error::kvm("KVM_GET_XCRS"))?,
            debug: fd
                .get_debug_regs()
                .map_err(Error::kvm("KVM_GET_DEBUGREGS"))?,
            lapic: fd.get_lapic().map_err(Error::kvm("KVM_GET_LAPIC"))?,
            msrs: read_msrs(fd, indices)?,
            events: fd
                .get_vcpu_events()
                .map_err(Error::kvm("KVM_GET_VCPU_EVENTS"))?,
        })
    }

    /// Gives the state to a processor that does not run.
    ///
    /// # Errors
    /// What KVM refuses.
    pub(crate) fn write(&self, vcpu: &Vcpu) -> Result<(), Error> {
        let fd = vcpu.fd();
        fd.set_mp_state(self.mp_state)
            .map_err(Error::kvm("KVM_SET_MP_STATE"))?;
        fd.set_regs(&self.regs)
            .map_err(Error::kvm("KVM_SET_REGS"))?;
        fd.set_sregs(&self.sregs)
            .map_err(Error::kvm("KVM_SET_SREGS"))?;
        vcpu.set_xsave(&self.xsave)?;
        fd.set_xcrs(&self.xcrs)
            .map_err(Error::kvm("KVM_SET_XCRS"))?;
        fd.set_debug_regs(&self.debug)
            .map_err(Error::kvm("KVM_SET_DEBUGREGS"))?;
        fd.set_lapic(&self.lapic)
            .map_err(Error::kvm("KVM_SET_LAPIC"))?;
        let written = fd
            .set_msrs(&msrs(&self.msrs)?)
            .map_err(Error::kvm("KVM_SET_MSRS"))?;
        if let Some(refused) = self.msrs.get(written) {
            return Err(Error::Saved(format!(
                "KVM refuses {:#x} for MSR {:#x}",
                refused.data, refused.index
            )));
        }
        fd.set_vcpu_events(&self.events)
            .map_err(Error::kvm("KVM_SET_VCPU_EVENTS"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_does_not_go_back_by_more_than_what_is_the_same_to_kvm() {
        // A second has two million ticks.
        for (saved, now) in [(0, 0), (5, 9_000_000), (2_000_005, 5), (u64::MAX, u64::MAX)] {
            assert!(check_time(2000, saved, now).is_ok(), "{saved} {now}");
        }
        for (saved, now) in [(2_000_006, 5), (u64::MAX, 0)] {
            let error = check_time(2000, saved, now).unwrap_err().to_string();
            assert!(error.contains(&saved.to_string()), "{error}");
        }
    }
}
