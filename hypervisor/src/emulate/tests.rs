use std::cell::RefCell;

use kvm_bindings::kvm_segment;

use super::*;

const CF: u64 = 1;
const ZF: u64 = 1 << 6;
const AC: u64 = 1 << 18;

/// Memory whose linear addresses begin at 0.
struct Ram(RefCell<Vec<u8>>);

impl Ram {
    fn new() -> Self {
        Self(RefCell::new(vec![0; 0x3000]))
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        self.write(address, bytes).unwrap();
    }

    fn get<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.read(address, &mut bytes).unwrap();
        bytes
    }
}

impl Linear for Ram {
    fn read(&self, address: u64, to: &mut [u8]) -> Option<()> {
        let start = usize::try_from(address).ok()?;
        to.copy_from_slice(self.0.borrow().get(start..start.checked_add(to.len())?)?);
        Some(())
    }

    fn write(&self, address: u64, from: &[u8]) -> Option<()> {
        let start = usize::try_from(address).ok()?;
        let mut ram = self.0.borrow_mut();
        ram.get_mut(start..start.checked_add(from.len())?)?
            .copy_from_slice(from);
        Some(())
    }

    fn compare_exchange(&self, address: u64, old: u128, new: u128) -> Option<u128> {
        let found = u128::from_le_bytes(self.get(address));
        if found == old {
            self.write(address, &new.to_le_bytes())?;
        }
        Some(found)
    }
}

fn cpu64() -> Cpu {
    let mut cpu = Cpu {
        regs: kvm_regs::default(),
        sregs: kvm_sregs::default(),
    };
    cpu.sregs.cs.l = 1;
    cpu.regs.rip = 0x100;
    cpu.regs.rflags = 2;
    cpu
}

/// A processor in 32-bit protected mode with a table of descriptors at 0x800: 8 is code, 0x10 data, 0x18 code at base
/// 0x1234_5000 with a limit in bytes.
fn cpu32(ram: &Ram) -> Cpu {
    let mut cpu = cpu64();
    cpu.sregs.cs = kvm_segment {
        db: 1,
        selector: 8,
        ..Default::default()
    };
    cpu.sregs.cr0 = 1;
    cpu.sregs.gdt.base = 0x800;
    cpu.sregs.gdt.limit = 31;
    for (index, descriptor) in [
        0,
        0x00cf_9a00_0000_ffff_u64,
        0x00cf_9200_0000_ffff,
        0x1240_9a34_5000_8fff,
    ]
    .into_iter()
    .enumerate()
    {
        ram.put(0x800 + 8 * index as u64, &descriptor.to_le_bytes());
    }
    cpu
}

fn step(cpu: &mut Cpu, ram: &Ram, bytes: &[u8]) -> Option<Then> {
    let decoded = decode(cpu, bytes);
    assert!(!decoded.is_invalid(), "{bytes:02x?}");
    basic::step(&decoded, cpu, ram)
}

#[test]
fn exceptions_are_handed_to_the_guest() {
    let ram = Ram::new();
    let mut cpu = cpu64();
    assert_eq!(step(&mut cpu, &ram, &[0xcc]), Some(Then::Raise(3)));
    assert_eq!(cpu.regs.rip, 0x101, "a trap points behind the instruction");
    assert_eq!(step(&mut cpu, &ram, &[0x0f, 0x0b]), Some(Then::Raise(6)));
    assert_eq!(cpu.regs.rip, 0x101, "a fault points at the instruction");
}

#[test]
fn a_mark_for_indirect_calls_does_nothing() {
    let ram = Ram::new();
    let mut cpu = cpu64();
    let endbr64 = [0xf3, 0x0f, 0x1e, 0xfa];
    assert_eq!(step(&mut cpu, &ram, &endbr64), Some(Then::Nothing));
    assert_eq!(cpu.regs.rip, 0x104);
}

#[test]
fn instructions_on_the_x87_unit_and_the_alignment_flag() {
    let ram = Ram::new();
    let mut cpu = cpu64();
    assert_eq!(step(&mut cpu, &ram, &[0x9b]), Some(Then::Nothing));
    assert_eq!(
        step(&mut cpu, &ram, &[0xdb, 0xe2]),
        Some(Then::ClearExceptions)
    );
    assert_eq!(step(&mut cpu, &ram, &[0x0f, 0x77]), Some(Then::EmptyStack));
    assert_eq!(cpu.regs.rip, 0x105);
    assert_eq!(
        step(&mut cpu, &ram, &[0x0f, 0x01, 0xcb]),
        Some(Then::Nothing)
    );
    assert_eq!(cpu.regs.rflags, AC | 2);
    assert_eq!(
        step(&mut cpu, &ram, &[0x0f, 0x01, 0xca]),
        Some(Then::Nothing)
    );
    assert_eq!(cpu.regs.rflags, 2);
}

#[test]
fn random_numbers_fill_the_register_of_their_size() {
    let ram = Ram::new();
    let mut cpu = cpu64();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..8 {
        step(&mut cpu, &ram, &[0x48, 0x0f, 0xc7, 0xf0]).unwrap();
        assert_eq!(cpu.regs.rflags & CF, CF);
        seen.insert(cpu.regs.rax);
    }
    assert_eq!(seen.len(), 8);
    cpu.regs.rax = u64::MAX;
    step(&mut cpu, &ram, &[0x0f, 0xc7, 0xf0]).unwrap();
    assert_eq!(cpu.regs.rax >> 32, 0);
    cpu.regs.rcx = 0xaaaa_bbbb_cccc_dddd;
    step(&mut cpu, &ram, &[0x66, 0x0f, 0xc7, 0xf9]).unwrap();
    assert_eq!(cpu.regs.rcx >> 16, 0xaaaa_bbbb_cccc);
}

#[test]
fn ones_are_counted_in_registers_and_in_memory() {
    let ram = Ram::new();
    let mut cpu = cpu64();
    cpu.regs.rcx = 0xf00f_0000_0000_0001;
    step(&mut cpu, &ram, &[0xf3, 0x48, 0x0f, 0xb8, 0xc1]).unwrap();
    assert_eq!((cpu.regs.rax, cpu.regs.rflags & ZF), (9, 0));
    assert_eq!(cpu.regs.rip, 0x105);
    // popcnt eax, [rsi + 8]; bytes beyond the operand do not count.
    ram.put(0x1008, &[0xff, 0, 0, 1, 0xff]);
    cpu.regs.rsi = 0x1000;
    step(&mut cpu, &ram, &[0xf3, 0x0f, 0xb8, 0x46, 0x08]).unwrap();
    assert_eq!(cpu.regs.rax, 9);
    // popcnt eax, fs:[rsi]
    cpu.sregs.fs.base = 0x8;
    step(&mut cpu, &ram, &[0x64, 0xf3, 0x0f, 0xb8, 0x06]).unwrap();
    assert_eq!(cpu.regs.rax, 9);
    cpu.regs.rcx = 0;
    step(&mut cpu, &ram, &[0xf3, 0x48, 0x0f, 0xb8, 0xc1]).unwrap();
    assert_eq!((cpu.regs.rax, cpu.regs.rflags & ZF), (0, ZF));
    // Not mapped: nothing has changed.
    cpu.regs.rsi = 0xffff_0000;
    let rip = cpu.regs.rip;
    assert_eq!(step(&mut cpu, &ram, &[0xf3, 0x0f, 0xb8, 0x06]), None);
    assert_eq!(cpu.regs.rip, rip);
}

#[test]
fn sixteen_bytes_are_compared_and_exchanged() {
    const CODE: [u8; 4] = [0x48, 0x0f, 0xc7, 0x0e]; // cmpxchg16b [rsi]
    let ram = Ram::new();
    let mut cpu = cpu64();
    ram.put(0x1000, &0x22_u128.to_le_bytes());
    cpu.regs.rsi = 0x1000;
    (cpu.regs.rdx, cpu.regs.rax) = (0, 0x11);
    (cpu.regs.rcx, cpu.regs.rbx) = (7, 8);
    step(&mut cpu, &ram, &CODE).unwrap();
    assert_eq!(cpu.regs.rflags & ZF, 0);
    assert_eq!((cpu.regs.rdx, cpu.regs.rax), (0, 0x22));
    step(&mut cpu, &ram, &CODE).unwrap();
    assert_eq!(cpu.regs.rflags & ZF, ZF);
    assert_eq!(u128::from_le_bytes(ram.get(0x1000)), 7 << 64 | 8);
    cpu.regs.rsi = 0x1008;
    assert_eq!(step(&mut cpu, &ram, &CODE), None);
}

fn frame(ram: &Ram, address: u64, eip: u32, cs: u32, flags: u32) {
    for (index, value) in (0u64..).zip([eip, cs, flags]) {
        ram.put(address + 4 * index, &value.to_le_bytes());
    }
}

#[test]
fn a_return_from_an_interrupt_takes_the_frame_at_linear_esp() {
    let ram = Ram::new();
    let mut cpu = cpu32(&ram);
    cpu.sregs.ss.base = 0x1000;
    cpu.regs.rsp = 0x400;
    frame(&ram, 0x400, 0xabcd, 0x18, 0x246);
    assert_eq!(step(&mut cpu, &ram, &[0xcf]), Some(Then::SetSegments));
    assert_eq!((cpu.regs.rip, cpu.regs.rsp), (0xabcd, 0x40c));
    assert_eq!(cpu.regs.rflags, 0x246);
    let cs = cpu.sregs.cs;
    assert_eq!(
        (cs.selector, cs.base, cs.limit),
        (0x18, 0x1234_5000, 0x8fff)
    );
    assert_eq!((cs.db, cs.g, cs.present, cs.type_ & 8), (1, 0, 1, 8));
}

#[test]
fn a_return_from_an_interrupt_falls_back_to_the_stack_segment() {
    let ram = Ram::new();
    let mut cpu = cpu32(&ram);
    cpu.sregs.ss.base = 0x1000;
    cpu.regs.rsp = 0x400;
    // What is at linear ESP is no frame: EFLAGS without its fixed bit.
    frame(&ram, 0x400, 1, 8, 0);
    frame(&ram, 0x1400, 0x77, 8, 0x202);
    assert_eq!(step(&mut cpu, &ram, &[0xcf]), Some(Then::SetSegments));
    assert_eq!((cpu.regs.rip, cpu.regs.rsp), (0x77, 0x40c));
    assert_eq!(cpu.sregs.cs.limit, 0xffff_ffff);
}

#[test]
fn a_return_that_is_no_ordinary_one_is_left_alone() {
    let refused = |cs: u32, flags: u32, what: &str| {
        let ram = Ram::new();
        let mut cpu = cpu32(&ram);
        cpu.regs.rsp = 0x400;
        frame(&ram, 0x400, 0x77, cs, flags);
        assert_eq!(step(&mut cpu, &ram, &[0xcf]), None, "{what}");
        assert_eq!((cpu.regs.rip, cpu.regs.rsp), (0x100, 0x400), "{what}");
    };
    refused(0x0b, 0x202, "to level 3");
    refused(0x1_0008, 0x202, "no selector");
    refused(0x10, 0x202, "to data");
    refused(0x00, 0x202, "to nothing");
    refused(0x20, 0x202, "beyond the table");
    refused(0x0c, 0x202, "the local table");
    refused(0x08, 0x2_0202, "to virtual-8086 mode");
    refused(0x08, 0x200, "without the fixed flag");
    refused(0x08, 0x8202, "with a reserved flag");
    // Of 16 bits, and in 16-bit or 64-bit mode.
    let ram = Ram::new();
    let mut cpu = cpu32(&ram);
    frame(&ram, 0, 0x77, 8, 0x202);
    assert_eq!(step(&mut cpu, &ram, &[0x66, 0xcf]), None);
    cpu.sregs.cr0 = 0;
    assert_eq!(step(&mut cpu, &ram, &[0xcf]), None);
    assert_eq!(step(&mut cpu64(), &ram, &[0x48, 0xcf]), None);
}

#[test]
fn anything_else_is_reported_with_bytes_and_registers() {
    let ram = Ram::new();
    let mut cpu = cpu64();
    cpu.regs.r12 = 0xdead_beef;
    let code = [0x0f, 0x58, 0xc1]; // addps
    assert_eq!(step(&mut cpu, &ram, &code), None);
    let text = report(&cpu, &code, decode(&cpu, &code).code());
    for part in ["0f 58 c1", "Addps", "r12 deadbeef", ":100"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn bytes_come_from_kvm_or_else_from_memory() {
    let ram = Ram::new();
    let cpu = cpu64();
    ram.put(0x100, &[0x90; 20]);
    let mut failure = Failure {
        len: 2,
        ..Default::default()
    };
    failure.bytes[..2].copy_from_slice(&[0x0f, 0x0b]);
    assert_eq!(bytes(&cpu, &ram, &failure), [0x0f, 0x0b]);
    failure.len = 1;
    assert_eq!(bytes(&cpu, &ram, &failure), [0x90; 15]);
    // At the end of what is mapped.
    let mut last = cpu64();
    last.regs.rip = 0x2ffe;
    ram.put(0x2ffe, &[0x9b, 0x9b]);
    assert_eq!(bytes(&last, &ram, &Failure::default()), [0x9b; 2]);
}
