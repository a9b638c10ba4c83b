//! Saving and restoring extended registers: `XSAVE`, `XRSTOR` and their kin.
//!
//! KVM gives the registers in the standard form of the XSAVE area (Intel SDM volume 1, chapter 13), which `XSAVE` and
//! `XSAVEOPT` write and `XRSTOR` reads; `XSAVEC`, `XSAVES` and `XRSTORS` pack the components that were asked for.

use iced_x86::{Code, Instruction};
use kvm_bindings::kvm_xsave;

use super::{Cpu, Linear, basic};
use crate::Error;
use crate::kvm::Vcpu;

/// The legacy area: x87 and SSE registers.
const LEGACY: usize = 512;
/// It and the header of 64 bytes.
const EXTENDED: usize = LEGACY + 64;
const XCOMP_COMPACT: u64 = 1 << 63;
const X87: u64 = 1 << 0;
const SSE: u64 = 1 << 1;

/// Where component `index` (2 and up) is in the standard form, and whether packing aligns it to 64 bytes.
#[derive(Clone, Copy)]
struct Component {
    offset: usize,
    size: usize,
    aligned: bool,
}

type Area = [u8; 4096];

/// Carries out `instruction`; false if it is none of these, or its operand cannot be reached.
pub(super) fn step(
    instruction: &Instruction,
    cpu: &Cpu,
    memory: &impl Linear,
    vcpu: &Vcpu,
) -> Result<bool, Error> {
    let (save, compact) = match instruction.code() {
        Code::Xsave_mem | Code::Xsave64_mem | Code::Xsaveopt_mem | Code::Xsaveopt64_mem => {
            (true, false)
        }
        Code::Xsavec_mem | Code::Xsavec64_mem | Code::Xsaves_mem | Code::Xsaves64_mem => {
            (true, true)
        }
        // The form restored is said in the area's header.
        Code::Xrstor_mem | Code::Xrstor64_mem | Code::Xrstors_mem | Code::Xrstors64_mem => {
            (false, false)
        }
        _ => return Ok(false),
    };
    let Some(address) = basic::address(instruction, cpu) else {
        return Ok(false);
    };
    let fd = vcpu.fd();
    let xcrs = fd.get_xcrs().map_err(Error::kvm("KVM_GET_XCRS"))?;
    let xcr0 = xcrs.xcrs.first().map_or(X87 | SSE, |xcr| xcr.value);
    let asked = (cpu.regs.rdx << 32 | cpu.regs.rax & 0xffff_ffff) & xcr0;
    let mut xsave = fd.get_xsave().map_err(Error::kvm("KVM_GET_XSAVE"))?;
    let mut area = to_bytes(&xsave);
    let components = components(vcpu)?;
    if save {
        return Ok(store(&area, &components, asked, compact, address, memory).is_some());
    }
    if load(&mut area, &components, asked, address, memory).is_none() {
        return Ok(false);
    }
    from_bytes(&area, &mut xsave);
    vcpu.set_xsave(&xsave)?;
    Ok(true)
}

/// The extended components that CPUID describes (leaf 0xd, sub-leaves 2 to 62).
fn components(vcpu: &Vcpu) -> Result<[Option<Component>; 64], Error> {
    let cpuid = vcpu
        .fd()
        .get_cpuid2(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(Error::kvm("KVM_GET_CPUID2"))?;
    let mut components = [None; 64];
    for entry in cpuid.as_slice() {
        let supervisor = entry.ecx & 1 != 0;
        if entry.function != 0xd || !(2..63).contains(&entry.index) || entry.eax == 0 || supervisor
        {
            continue;
        }
        if let Some(component) = components.get_mut(entry.index as usize) {
            *component = Some(Component {
                offset: entry.ebx as usize,
                size: entry.eax as usize,
                aligned: entry.ecx & 2 != 0,
            });
        }
    }
    Ok(components)
}

/// Where each extended component of `asked` is in memory: its place in the standard form, and its offset.
fn places(
    components: &[Option<Component>; 64],
    asked: u64,
    compact: bool,
) -> Vec<(usize, Component, usize)> {
    let mut end = EXTENDED;
    let mut places = Vec::new();
    for (index, component) in components.iter().enumerate() {
        let Some(component) = component else { continue };
        if asked >> index & 1 == 0 {
            continue;
        }
        let offset = if compact {
            if component.aligned {
                end = end.next_multiple_of(64);
            }
            end
        } else {
            component.offset
        };
        end = offset + component.size;
        places.push((index, *component, offset));
    }
    places
}

/// The parts of the legacy area that belong to x87 and SSE: MXCSR and its mask go with SSE.
const LEGACY_PARTS: [(u64, std::ops::Range<usize>); 4] =
    [(X87, 0..24), (SSE, 24..32), (X87, 32..160), (SSE, 160..416)];

fn in_use(area: &Area) -> u64 {
    word(area, LEGACY)
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes
        .get(at..at + 8)
        .and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u64::from_le_bytes)
}

/// Writes the components of `asked` to memory at `address`.
fn store(
    area: &Area,
    components: &[Option<Component>; 64],
    asked: u64,
    compact: bool,
    address: u64,
    memory: &impl Linear,
) -> Option<()> {
    let used = in_use(area) & asked;
    let at = |offset: usize| address.wrapping_add(offset as u64);
    for (bit, range) in LEGACY_PARTS {
        if asked & bit != 0 {
            memory.write(at(range.start), area.get(range)?)?;
        }
    }
    for (index, component, offset) in places(components, asked, compact) {
        // A packed component that is in its initial state is not written.
        if !compact || used >> index & 1 != 0 {
            let from = component.offset..component.offset + component.size;
            memory.write(at(offset), area.get(from)?)?;
        }
    }
    if compact {
        let mut header = [0; 64];
        header.get_mut(..8)?.copy_from_slice(&used.to_le_bytes());
        let form = asked | XCOMP_COMPACT;
        header.get_mut(8..16)?.copy_from_slice(&form.to_le_bytes());
        return memory.write(at(LEGACY), &header);
    }
    // Bits that were not asked for stay as they are in memory.
    let mut old = [0; 8];
    memory.read(at(LEGACY), &mut old)?;
    let bits = u64::from_le_bytes(old) & !asked | used;
    memory.write(at(LEGACY), &bits.to_le_bytes())
}

/// Reads the components of `asked` from memory at `address` into `area`, in the form that the header there says.
fn load(
    area: &mut Area,
    components: &[Option<Component>; 64],
    asked: u64,
    address: u64,
    memory: &impl Linear,
) -> Option<()> {
    let at = |offset: usize| address.wrapping_add(offset as u64);
    let mut header = [0; 64];
    memory.read(at(LEGACY), &mut header)?;
    let (used, form) = (word(&header, 0), word(&header, 8));
    let compact = form & XCOMP_COMPACT != 0;
    let present = if compact {
        form & !XCOMP_COMPACT
    } else {
        u64::MAX
    };
    for (bit, range) in LEGACY_PARTS {
        if asked & used & bit != 0 {
            memory.read(at(range.start), area.get_mut(range)?)?;
        }
    }
    for (index, component, offset) in places(components, present, compact) {
        if asked & used & 1 << index != 0 {
            let to = component.offset..component.offset + component.size;
            memory.read(at(offset), area.get_mut(to)?)?;
        }
    }
    // What was asked for and is not in the area goes to its initial state, by its bit.
    let now = in_use(area) & !asked | used & asked;
    area.get_mut(LEGACY..LEGACY + 8)?
        .copy_from_slice(&now.to_le_bytes());
    Some(())
}

fn to_bytes(xsave: &kvm_xsave) -> Area {
    let mut area = [0; 4096];
    for (bytes, word) in area.chunks_exact_mut(4).zip(xsave.region) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    area
}

fn from_bytes(area: &Area, xsave: &mut kvm_xsave) {
    for (word, bytes) in xsave.region.iter_mut().zip(area.chunks_exact(4)) {
        *word = bytes.try_into().map_or(0, u32::from_le_bytes);
    }
}
