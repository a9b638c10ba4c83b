//! Instructions that KVM's emulator does not know.
//!
//! Ordinary hosts never come here. On a host whose KVM has no help from the processor (KVM inside a virtual machine
//! without nested virtualisation), all kernel code of a guest goes through KVM's emulator, which lacks a few instructions
//! that kernels use. They come out as emulation failures, and are carried out here: those that kernels and boot loaders
//! were seen to need, and no more. Anything else ends the machine with a report.

mod basic;
mod iret;
mod xsave;

use guestmem::Memory;
use iced_x86::{Code, Decoder, DecoderOptions, Instruction};
use kvm_bindings::{kvm_regs, kvm_sregs};

use crate::Error;
use crate::board::describe;
use crate::kvm::{Failure, Vcpu};
use crate::memory::GuestMemory;

/// Longest instruction in bytes (Intel SDM volume 2, 2.3.11).
const MAX_LEN: usize = 15;

/// The registers that the instructions work on.
struct Cpu {
    regs: kvm_regs,
    sregs: kvm_sregs,
}

/// Memory at linear addresses, as the guest's page tables map them.
trait Linear {
    /// Reads all of `to`; `None` if a byte is not mapped.
    fn read(&self, address: u64, to: &mut [u8]) -> Option<()>;
    /// Writes all of `from`; `None` if a byte is not mapped or read-only.
    fn write(&self, address: u64, from: &[u8]) -> Option<()>;
    /// Exchanges 16 bytes for `new` if they are `old`, at once for all who look; gives what they were.
    fn compare_exchange(&self, address: u64, old: u128, new: u128) -> Option<u128>;
}

/// What is left to do once the registers are set.
#[derive(Debug, PartialEq, Eq)]
enum Then {
    Nothing,
    /// Segments have changed too.
    SetSegments,
    /// Deliver an exception without an error code.
    Raise(u8),
    /// `FNCLEX`: clear the pending exceptions of the x87 unit.
    ClearExceptions,
    /// `EMMS`: mark the x87 registers empty.
    EmptyStack,
}

/// Carries out the instruction that `vcpu` is at.
///
/// # Errors
/// A report with the bytes and registers, if it is none of those known.
pub(crate) fn instruction(
    vcpu: &Vcpu,
    memory: &GuestMemory,
    failure: &Failure,
) -> Result<(), String> {
    let kernel = |error: Error| describe(&error);
    let mut cpu = Cpu {
        regs: vcpu
            .fd()
            .get_regs()
            .map_err(Error::kvm("KVM_GET_REGS"))
            .map_err(kernel)?,
        sregs: vcpu
            .fd()
            .get_sregs()
            .map_err(Error::kvm("KVM_GET_SREGS"))
            .map_err(kernel)?,
    };
    let linear = Paged {
        vcpu,
        memory: memory.memory(),
    };
    let bytes = bytes(&cpu, &linear, failure);
    let decoded = decode(&cpu, &bytes);
    let report = report(&cpu, &bytes, decoded.code());
    let Some(after) = basic::step(&decoded, &mut cpu, &linear) else {
        let done = xsave::step(&decoded, &cpu, &linear, vcpu);
        return match done.map_err(kernel)? {
            true => advance(vcpu, &mut cpu, &decoded).map_err(kernel),
            false => Err(report),
        };
    };
    finish(vcpu, &cpu, after).map_err(kernel)
}

fn advance(vcpu: &Vcpu, cpu: &mut Cpu, decoded: &Instruction) -> Result<(), Error> {
    cpu.regs.rip = decoded.next_ip();
    finish(vcpu, cpu, Then::Nothing)
}

fn finish(vcpu: &Vcpu, cpu: &Cpu, then: Then) -> Result<(), Error> {
    let fd = vcpu.fd();
    if then == Then::SetSegments {
        fd.set_sregs(&cpu.sregs)
            .map_err(Error::kvm("KVM_SET_SREGS"))?;
    }
    fd.set_regs(&cpu.regs).map_err(Error::kvm("KVM_SET_REGS"))?;
    match then {
        Then::Nothing | Then::SetSegments => Ok(()),
        Then::Raise(vector) => {
            let mut events = fd
                .get_vcpu_events()
                .map_err(Error::kvm("KVM_GET_VCPU_EVENTS"))?;
            events.exception.injected = 1;
            events.exception.nr = vector;
            // What an earlier exception had.
            events.exception.has_error_code = 0;
            events.exception.error_code = 0;
            fd.set_vcpu_events(&events)
                .map_err(Error::kvm("KVM_SET_VCPU_EVENTS"))
        }
        Then::ClearExceptions | Then::EmptyStack => {
            let mut fpu = fd.get_fpu().map_err(Error::kvm("KVM_GET_FPU"))?;
            if then == Then::EmptyStack {
                fpu.ftwx = 0;
            } else {
                fpu.fsw &= 0x7f00; // all but the exception flags, their summary and "busy"
            }
            fd.set_fpu(&fpu).map_err(Error::kvm("KVM_SET_FPU"))
        }
    }
}

/// The bytes at the instruction pointer: those that KVM fetched, or else from memory.
fn bytes(cpu: &Cpu, linear: &impl Linear, failure: &Failure) -> Vec<u8> {
    let known = failure.bytes.get(..failure.len.into()).unwrap_or_default();
    if !decode(cpu, known).is_invalid() {
        return known.to_vec();
    }
    let at = cpu.sregs.cs.base.wrapping_add(cpu.regs.rip);
    // As many as are mapped: the next page may not be.
    for len in (known.len() + 1..=MAX_LEN).rev() {
        let mut bytes = vec![0; len];
        if linear.read(at, &mut bytes).is_some() {
            return bytes;
        }
    }
    known.to_vec()
}

fn decode(cpu: &Cpu, bytes: &[u8]) -> Instruction {
    let bits = match (cpu.sregs.cs.l, cpu.sregs.cs.db) {
        (1, _) => 64,
        (_, 1) => 32,
        _ => 16,
    };
    Decoder::with_ip(bits, bytes, cpu.regs.rip, DecoderOptions::NONE).decode()
}

fn report(cpu: &Cpu, bytes: &[u8], code: Code) -> String {
    use std::fmt::Write as _;
    let Cpu { regs, sregs } = cpu;
    let mut text = String::from("KVM cannot emulate the instruction");
    for byte in bytes {
        let _ = write!(text, " {byte:02x}");
    }
    let _ = write!(
        text,
        " ({code:?}) at {:x}:{:x}; rax {:x} rbx {:x} rcx {:x} rdx {:x} rsi {:x} rdi {:x} rsp {:x} rbp {:x} \
         r8 {:x} r9 {:x} r10 {:x} r11 {:x} r12 {:x} r13 {:x} r14 {:x} r15 {:x} rflags {:x} \
         cr0 {:x} cr2 {:x} cr3 {:x} cr4 {:x} efer {:x}",
        sregs.cs.selector,
        regs.rip,
        regs.rax,
        regs.rbx,
        regs.rcx,
        regs.rdx,
        regs.rsi,
        regs.rdi,
        regs.rsp,
        regs.rbp,
        regs.r8,
        regs.r9,
        regs.r10,
        regs.r11,
        regs.r12,
        regs.r13,
        regs.r14,
        regs.r15,
        regs.rflags,
        sregs.cr0,
        sregs.cr2,
        sregs.cr3,
        sregs.cr4,
        sregs.efer
    );
    text
}

/// The guest's memory through its page tables.
struct Paged<'a> {
    vcpu: &'a Vcpu,
    memory: &'a Memory,
}

impl Paged<'_> {
    /// Gives the pieces of `len` bytes at `address`, each inside a page: its span, and where it begins.
    fn pieces(
        &self,
        address: u64,
        len: usize,
        mut each: impl FnMut(guestmem::Span, std::ops::Range<usize>) -> Option<()>,
    ) -> Option<()> {
        const PAGE: u64 = 4096;
        let mut done = 0;
        while done < len {
            let at = address.wrapping_add(done as u64);
            let piece = (len - done).min((PAGE - at % PAGE) as usize);
            let translated = self.vcpu.fd().translate_gva(at).ok()?;
            if translated.valid == 0 {
                return None;
            }
            let span = self
                .memory
                .span(translated.physical_address, piece as u32)?;
            each(span, done..done + piece)?;
            done += piece;
        }
        Some(())
    }
}

impl Linear for Paged<'_> {
    fn read(&self, address: u64, to: &mut [u8]) -> Option<()> {
        self.pieces(address, to.len(), |span, range| {
            self.memory.read(span, to.get_mut(range)?).ok()
        })
    }

    fn write(&self, address: u64, from: &[u8]) -> Option<()> {
        self.pieces(address, from.len(), |span, range| {
            self.memory.write(span, from.get(range)?).ok()
        })
    }

    fn compare_exchange(&self, address: u64, old: u128, new: u128) -> Option<u128> {
        let mut found = None;
        self.pieces(address, 16, |span, _| {
            found = Some(self.memory.compare_exchange(span, old, new).ok()?);
            Some(())
        })?;
        found
    }
}

#[cfg(test)]
mod tests;
