//! What a guest's processors say of themselves.
//!
//! References: Intel SDM volume 2, "CPUID"; AMD APM volume 3, appendix E; KVM's leaves: Documentation/virt/kvm/x86/cpuid.rst.

use std::ops::Range;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

use crate::{Error, hyperv};

/// Most processors a machine can have.
pub const MAX_VCPUS: u8 = 64;

/// Leaf 1, ECX: TSC deadline timer (KVM has it with its local APIC, but does not list it).
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: a hypervisor is present.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: more than one logical processor in the package.
const HTT: u32 = 1 << 28;
/// Leaf 0x80000001, ECX: the legacy way to say that logical processors are cores.
const CMP_LEGACY: u32 = 1 << 1;

/// Where a hypervisor has its leaves.
const HYPERVISOR_LEAVES: Range<u32> = 0x4000_0000..0x4001_0000;

/// Leaf 0x40000001, EAX: the paravirtual features that need no hypercall: clock (both numberings of its MSRs), no
/// delays for port I/O, and a clock that is the same on all processors. A hypercall instruction would stop a processor
/// for good on hosts whose KVM runs without the processor's help.
const KVM_FEATURES: u32 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 24;

/// What CPUID answers on processor `id` of `count`, all cores of one package. With `hyperv`, the hypervisor is Hyper-V.
///
/// # Errors
/// What KVM refuses.
pub fn cpuid(kvm: &Kvm, id: u8, count: u8, hyperv: bool) -> Result<CpuId, Error> {
    let mut cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(Error::kvm("KVM_GET_SUPPORTED_CPUID"))?;
    for entry in cpuid.as_mut_slice() {
        adjust(entry, u32::from(id), u32::from(count.max(1)));
    }
    if !hyperv {
        return Ok(cpuid);
    }
    let mut entries = cpuid.as_slice().to_vec();
    offer_hyperv(&mut entries, count);
    CpuId::from_entries(&entries).map_err(|_| Error::Config {
        what: "number of CPUID leaves",
        value: entries.len().to_string(),
        allowed: "what KVM_SET_CPUID2 takes",
    })
}

/// Puts Hyper-V's leaves in the place of KVM's. These could be had beside them, further up; but Linux takes the hypervisor
/// of the highest leaves, and no other.
fn offer_hyperv(entries: &mut Vec<kvm_cpuid_entry2>, count: u8) {
    entries.retain(|entry| !HYPERVISOR_LEAVES.contains(&entry.function));
    let leaf = |leaf: hyperv::cpuid::Leaf| {
        let [eax, ebx, ecx, edx] = leaf.registers;
        kvm_cpuid_entry2 {
            function: leaf.function,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    };
    entries.extend(hyperv::cpuid::leaves(count.into()).map(leaf));
}

/// Puts topology and the hypervisor's presence into one entry.
fn adjust(entry: &mut kvm_cpuid_entry2, id: u32, count: u32) {
    let ids = count.next_power_of_two();
    match entry.function {
        0x1 => {
            entry.ebx = entry.ebx & 0x0000_ffff | id << 24 | ids << 16;
            entry.ecx |= TSC_DEADLINE | HYPERVISOR;
            entry.edx = entry.edx & !HTT | if count > 1 { HTT } else { 0 };
        }
        // Caches: levels 1 and 2 belong to a core, level 3 to the package.
        0x4 if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 { ids - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14 | (ids - 1) << 26;
        }
        // Topology: one thread a core, `ids` cores a package.
        0xb | 0x1f => {
            (entry.eax, entry.ebx, entry.ecx) = match entry.index {
                0 => (0, 1, 1 << 8),
                1 => (ids.trailing_zeros(), count, 2 << 8 | 1),
                index => (0, 0, index & 0xff),
            };
            entry.edx = id;
        }
        0x4000_0001 => {
            entry.eax &= KVM_FEATURES;
            entry.edx = 0;
        }
        0x8000_0001 => {
            entry.ecx = entry.ecx & !CMP_LEGACY | if count > 1 { CMP_LEGACY } else { 0 };
        }
        0x8000_0008 => {
            entry.ecx = entry.ecx & !0xf0ff | ids.trailing_zeros() << 12 | (count - 1);
        }
        0x8000_001e => {
            (entry.eax, entry.ebx, entry.ecx) = (id, id & 0xff, 0);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adjusted(function: u32, index: u32, id: u32, count: u32) -> kvm_cpuid_entry2 {
        let mut entry = kvm_cpuid_entry2 {
            function,
            index,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        };
        adjust(&mut entry, id, count);
        entry
    }

    #[test]
    fn a_processor_knows_its_number_and_how_many_there_are() {
        let leaf = adjusted(1, 0, 5, 6);
        assert_eq!((leaf.ebx >> 24, leaf.ebx >> 16 & 0xff), (5, 8));
        assert_ne!(leaf.ecx & HYPERVISOR, 0);
        assert_ne!(leaf.edx & HTT, 0);
        assert_eq!(adjusted(1, 0, 0, 1).edx & HTT, 0);
        let core = adjusted(0xb, 1, 5, 6);
        assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (3, 6, 0x201, 5));
        let end = adjusted(0xb, 2, 5, 6);
        assert_eq!((end.eax, end.ebx, end.ecx), (0, 0, 2));
        assert_eq!(adjusted(0x8000_0008, 0, 0, 64).ecx & 0xf0ff, 6 << 12 | 63);
        assert_eq!(adjusted(4, 0, 0, 4).eax >> 26, 3);
    }

    #[test]
    fn the_only_hypervisor_is_hyper_v() {
        let mut entries = [0x1, 0x4000_0000, 0x4000_0001, 0x8000_0000]
            .map(|function| adjusted(function, 0, 0, 2))
            .to_vec();
        offer_hyperv(&mut entries, 2);
        let found = entries.iter().filter(|entry| entry.function == 0x4000_0000);
        assert_eq!(
            found
                .map(|entry| (entry.eax, entry.ebx))
                .collect::<Vec<_>>(),
            [(0x4000_0006, u32::from_le_bytes(*b"Micr"))]
        );
        assert_eq!(entries.len(), 2 + 7);
    }

    #[test]
    fn no_paravirtual_feature_that_needs_a_hypercall_is_offered() {
        assert_eq!(adjusted(0x4000_0001, 0, 0, 1).eax, 0x0100_000b);
    }
}
