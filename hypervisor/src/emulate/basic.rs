//! Instructions on general registers and flags.

use iced_x86::{Code, Instruction, OpKind, Register};

use super::{Cpu, Linear, Then, iret};

const BREAKPOINT: u8 = 3;
const UNDEFINED: u8 = 6;

const CF: u64 = 1 << 0;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const OF: u64 = 1 << 11;
const ALIGNMENT_CHECK: u64 = 1 << 18;

/// Carries out `instruction`; `None` if it is none of these, or its operands cannot be reached. Nothing has changed then.
pub(super) fn step(instruction: &Instruction, cpu: &mut Cpu, memory: &impl Linear) -> Option<Then> {
    let next = instruction.next_ip();
    let then = match instruction.code() {
        // A trap: the guest finds the instruction pointer behind it.
        Code::Int3 => Then::Raise(BREAKPOINT),
        // A fault, by which kernels stop themselves or warn.
        Code::Ud2 | Code::Ud1_r32_rm32 | Code::Ud1_r64_rm64 => {
            return Some(Then::Raise(UNDEFINED));
        }
        // Nothing is pending: KVM reports errors of the x87 unit when they happen.
        Code::Wait => Then::Nothing,
        // Marks where indirect calls may land, such as the hypercall page; does nothing.
        Code::Endbr32 | Code::Endbr64 => Then::Nothing,
        Code::Fnclex => Then::ClearExceptions,
        Code::Emms => Then::EmptyStack,
        Code::Clac => {
            cpu.regs.rflags &= !ALIGNMENT_CHECK;
            Then::Nothing
        }
        Code::Stac => {
            cpu.regs.rflags |= ALIGNMENT_CHECK;
            Then::Nothing
        }
        Code::Rdrand_r16
        | Code::Rdrand_r32
        | Code::Rdrand_r64
        | Code::Rdseed_r16
        | Code::Rdseed_r32
        | Code::Rdseed_r64 => random(instruction, cpu)?,
        Code::Popcnt_r16_rm16 | Code::Popcnt_r32_rm32 | Code::Popcnt_r64_rm64 => {
            count_ones(instruction, cpu, memory)?
        }
        Code::Cmpxchg16b_m128 => compare_exchange(instruction, cpu, memory)?,
        Code::Iretd => return iret::step(cpu, memory),
        _ => return None,
    };
    cpu.regs.rip = next;
    Some(then)
}

fn random(instruction: &Instruction, cpu: &mut Cpu) -> Option<Then> {
    let mut bytes = [0; 8];
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).ok()?;
    if got != bytes.len() {
        return None;
    }
    set(cpu, instruction.op0_register(), u64::from_le_bytes(bytes))?;
    cpu.regs.rflags = cpu.regs.rflags & !(PF | AF | ZF | SF | OF) | CF;
    Some(Then::Nothing)
}

fn count_ones(instruction: &Instruction, cpu: &mut Cpu, memory: &impl Linear) -> Option<Then> {
    let to = instruction.op0_register();
    let value = match instruction.op1_kind() {
        OpKind::Register => get(cpu, instruction.op1_register())?,
        _ => {
            let mut bytes = [0; 8];
            memory.read(address(instruction, cpu)?, bytes.get_mut(..to.size())?)?;
            u64::from_le_bytes(bytes)
        }
    };
    set(cpu, to, value.count_ones().into())?;
    let zero = if value == 0 { ZF } else { 0 };
    cpu.regs.rflags = cpu.regs.rflags & !(CF | PF | AF | ZF | SF | OF) | zero;
    Some(Then::Nothing)
}

fn compare_exchange(
    instruction: &Instruction,
    cpu: &mut Cpu,
    memory: &impl Linear,
) -> Option<Then> {
    let pair = |high: u64, low: u64| u128::from(high) << 64 | u128::from(low);
    let regs = &mut cpu.regs;
    let (old, new) = (pair(regs.rdx, regs.rax), pair(regs.rcx, regs.rbx));
    let at = address(instruction, cpu)?;
    // An address that is not aligned raises #GP in hardware; no kernel does it.
    if !at.is_multiple_of(16) {
        return None;
    }
    let found = memory.compare_exchange(at, old, new)?;
    let regs = &mut cpu.regs;
    if found == old {
        regs.rflags |= ZF;
    } else {
        regs.rflags &= !ZF;
        (regs.rdx, regs.rax) = ((found >> 64) as u64, found as u64);
    }
    Some(Then::Nothing)
}

/// The linear address of the memory operand.
pub(super) fn address(instruction: &Instruction, cpu: &Cpu) -> Option<u64> {
    let index =
        (0..instruction.op_count()).find(|&index| instruction.op_kind(index) == OpKind::Memory)?;
    instruction.virtual_address(index, 0, |register, _, _| value(cpu, register))
}

/// The value of a register as part of an address: of a segment register, its base.
fn value(cpu: &Cpu, register: Register) -> Option<u64> {
    // In 64-bit mode all segments but two begin at 0.
    let base = |base: u64| if cpu.sregs.cs.l == 1 { 0 } else { base };
    Some(match register {
        Register::ES => base(cpu.sregs.es.base),
        Register::CS => base(cpu.sregs.cs.base),
        Register::SS => base(cpu.sregs.ss.base),
        Register::DS => base(cpu.sregs.ds.base),
        Register::FS => cpu.sregs.fs.base,
        Register::GS => cpu.sregs.gs.base,
        _ => get(cpu, register)?,
    })
}

/// A general register, by its full name.
fn slot(cpu: &mut Cpu, register: Register) -> Option<&mut u64> {
    let regs = &mut cpu.regs;
    Some(match register.full_register() {
        Register::RAX => &mut regs.rax,
        Register::RBX => &mut regs.rbx,
        Register::RCX => &mut regs.rcx,
        Register::RDX => &mut regs.rdx,
        Register::RSI => &mut regs.rsi,
        Register::RDI => &mut regs.rdi,
        Register::RSP => &mut regs.rsp,
        Register::RBP => &mut regs.rbp,
        Register::R8 => &mut regs.r8,
        Register::R9 => &mut regs.r9,
        Register::R10 => &mut regs.r10,
        Register::R11 => &mut regs.r11,
        Register::R12 => &mut regs.r12,
        Register::R13 => &mut regs.r13,
        Register::R14 => &mut regs.r14,
        Register::R15 => &mut regs.r15,
        _ => return None,
    })
}

fn get(cpu: &Cpu, register: Register) -> Option<u64> {
    let mut copy = Cpu {
        regs: cpu.regs,
        sregs: cpu.sregs,
    };
    let value = *slot(&mut copy, register)?;
    match register.size() {
        8 => Some(value),
        4 => Some(value & 0xffff_ffff),
        2 => Some(value & 0xffff),
        _ => None,
    }
}

/// Writes a register: 32 bits clear the upper half, 16 bits leave the rest.
fn set(cpu: &mut Cpu, register: Register, value: u64) -> Option<()> {
    let slot = slot(cpu, register)?;
    *slot = match register.size() {
        8 => value,
        4 => value & 0xffff_ffff,
        2 => *slot & !0xffff | value & 0xffff,
        _ => return None,
    };
    Some(())
}
