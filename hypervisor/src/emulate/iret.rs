//! `IRETD` in 32-bit protected mode, to the same privilege level.
//!
//! KVM's emulator pushes the frame of an interrupt at the linear address ESP, whatever the base of the stack segment is.
//! So the frame is looked for there first, and where the segment says second.

use kvm_bindings::kvm_segment;

use super::{Cpu, Linear, Then};

/// Flags that an `IRETD` at level 0 loads: CF PF AF ZF SF TF IF DF OF IOPL NT RF AC VIF VIP ID.
const FLAGS: u32 = 0x003d_7fd5;
/// Bits of EFLAGS that are always 0, and the one that is always 1.
const ZERO: u32 = 0xffc0_8028;
const ONE: u32 = 1 << 1;
const VIRTUAL_8086: u32 = 1 << 17;

struct Frame {
    eip: u32,
    cs: u16,
    flags: u32,
}

/// Carries it out; `None` if there is no frame for level 0, or its code segment cannot be loaded.
pub(super) fn step(cpu: &mut Cpu, memory: &impl Linear) -> Option<Then> {
    let protected = cpu.sregs.cr0 & 1 != 0 && cpu.sregs.cs.l == 0;
    if !protected || cpu.regs.rflags as u32 & VIRTUAL_8086 != 0 {
        return None;
    }
    let esp = cpu.regs.rsp & 0xffff_ffff;
    let by_segment = cpu.sregs.ss.base.wrapping_add(esp) & 0xffff_ffff;
    let frame = frame(memory, esp).or_else(|| frame(memory, by_segment))?;
    let segment = code_segment(cpu, memory, frame.cs)?;
    cpu.sregs.cs = segment;
    cpu.regs.rip = frame.eip.into();
    let kept = cpu.regs.rflags as u32 & !FLAGS;
    cpu.regs.rflags = u64::from(kept | frame.flags & FLAGS | ONE);
    cpu.regs.rsp = esp.wrapping_add(12) & 0xffff_ffff;
    Some(Then::SetSegments)
}

/// The frame at a linear address, if what is there can be one.
fn frame(memory: &impl Linear, address: u64) -> Option<Frame> {
    let mut bytes = [0; 12];
    memory.read(address, &mut bytes)?;
    let [eip, cs, flags] = words(bytes);
    let plausible =
        cs < 0x1_0000 && cs & 3 == 0 && flags & ONE != 0 && flags & (ZERO | VIRTUAL_8086) == 0;
    plausible.then_some(Frame {
        eip,
        cs: cs as u16,
        flags,
    })
}

fn words(bytes: [u8; 12]) -> [u32; 3] {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
    [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_le_bytes)
}

/// The segment of a selector in the global descriptor table: present code of level 0 (Intel SDM volume 3, 3.4.5).
fn code_segment(cpu: &Cpu, memory: &impl Linear, selector: u16) -> Option<kvm_segment> {
    let offset = u64::from(selector & !7);
    let local = selector & 4 != 0;
    if offset == 0 || local || offset + 7 > u64::from(cpu.sregs.gdt.limit) {
        return None;
    }
    let mut bytes = [0; 8];
    memory.read(cpu.sregs.gdt.base.wrapping_add(offset), &mut bytes)?;
    let descriptor = u64::from_le_bytes(bytes);
    let bits = |at: u32, count: u32| (descriptor >> at & ((1 << count) - 1)) as u32;
    let (kind, present, level, granular) = (bits(40, 4), bits(47, 1), bits(45, 2), bits(55, 1));
    let code = bits(44, 1) == 1 && kind & 8 != 0;
    if !code || present == 0 || level != 0 {
        return None;
    }
    let limit = bits(0, 16) | bits(48, 4) << 16;
    Some(kvm_segment {
        base: u64::from(bits(16, 24) | bits(56, 8) << 24),
        limit: if granular == 1 {
            limit << 12 | 0xfff
        } else {
            limit
        },
        selector,
        type_: kind as u8 | 1, // accessed
        present: 1,
        dpl: 0,
        db: bits(54, 1) as u8,
        s: 1,
        l: 0,
        g: granular as u8,
        avl: bits(52, 1) as u8,
        ..Default::default()
    })
}
