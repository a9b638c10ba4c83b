//! Instructions.

use core::arch::{asm, x86_64::_rdtsc};

/// Reads a machine-specific register; the handler of the fault does it.
pub fn read_msr(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading a register changes nothing else.
    unsafe { asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high) };
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a machine-specific register; the handler of the fault does it.
pub fn write_msr(register: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: only registers of Hyper-V's interface are written, with pages that are set aside for them.
    unsafe { asm!("wrmsr", in("ecx") register, in("eax") low, in("edx") high) };
}

/// Sleeps until there is an interrupt; one that came since interrupts were last taken counts.
pub fn halt() {
    // SAFETY: the handler of the fault halts with interrupts on and comes back.
    unsafe { asm!("hlt") };
}

/// The time-stamp counter.
#[inline]
pub fn time() -> u64 {
    // SAFETY: the processor has one, and ring 3 may read it.
    unsafe { _rdtsc() }
}

/// Writes a byte to a port.
pub fn write_port(port: u16, value: u8) {
    // SAFETY: a port of the serial line, which touches no memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value) };
}

// The compiler calls these, and there is no C library.

/// Copies what does not overlap.
///
/// # Safety
/// As C's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller's.
    unsafe {
        asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _)
    };
    to
}

/// Copies.
///
/// # Safety
/// As C's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= len {
        // SAFETY: nothing is overwritten before it is read.
        return unsafe { memcpy(to, from, len) };
    }
    // SAFETY: as above, from the end on.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") len => _,
            inout("rdi") to.add(len).sub(1) => _, inout("rsi") from.add(len).sub(1) => _)
    };
    to
}

/// Fills.
///
/// # Safety
/// As C's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
    // SAFETY: the caller's.
    unsafe { asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _, in("al") byte as u8) };
    to
}

/// Compares.
///
/// # Safety
/// As C's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    for at in 0..len {
        // SAFETY: the caller's.
        let (a, b) = unsafe { (a.add(at).read_volatile(), b.add(at).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

/// Compares for equality.
///
/// # Safety
/// As C's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    // SAFETY: the caller's.
    unsafe { memcmp(a, b, len) }
}
