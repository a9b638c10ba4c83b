//! Hyper-V's registers and calls on real processors, with guests of a few instructions. Needs /dev/kvm.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
#![allow(missing_docs)]

mod kit;

use std::sync::Arc;
use std::sync::mpsc::Receiver;

use guestmem::Memory;
use hypervisor::boot::Boot;
use hypervisor::device::{Device, Effects, RestoreError, State, Wiring};
use hypervisor::hyperv::hypercall::{Call, Input, Status};
use hypervisor::hyperv::{Clocks, Hyperv};
use hypervisor::{Machine, Named};
use iced_x86::code_asm::*;
use kit::{PORT, Probe, config, firmware, firmware_with, next};

/// Microsoft's interface, and what the guest called.
struct Interface {
    hyperv: Hyperv,
    calls: Vec<Call>,
}

impl Interface {
    fn new(memory: Arc<Memory>, processors: u32) -> Interface {
        let clocks = Clocks {
            tsc_hz: 2_500_000_000,
            apic_hz: 1_000_000_000,
        };
        Interface {
            hyperv: Hyperv::new(memory, clocks, processors),
            calls: Vec::new(),
        }
    }
}

impl Device for Interface {
    fn read(&mut self, _: usize, _: u64, _: &mut [u8], _: &mut Effects) {}
    fn write(&mut self, _: usize, _: u64, _: &[u8], _: &mut Effects) {}
    fn read_msr(&mut self, vp: u32, register: u32) -> Option<u64> {
        self.hyperv.read_msr(vp, register)
    }
    fn write_msr(&mut self, vp: u32, register: u32, value: u64, _: &mut Effects) -> bool {
        self.hyperv.write_msr(vp, register, value, &mut Vec::new())
    }
    fn hypercall(&mut self, call: Input, _: &mut Effects) -> Option<Status> {
        let call = self.hyperv.call(call);
        self.calls.push(call.clone());
        Some(match call {
            Call::Fails(status) => status,
            Call::SignalEvent { .. } => Status::InvalidConnection,
            Call::PostMessage { .. } => Status::Success,
        })
    }
    fn reset(&mut self, _: &mut Effects) {
        self.hyperv.reset();
    }
    fn save(&self) -> State {
        self.hyperv.save()
    }
    fn restore(&mut self, state: &State, _: &mut Effects) -> Result<(), RestoreError> {
        Ok(self.hyperv.restore(state)?)
    }
    fn wiring(&self) -> Wiring {
        Wiring::default()
    }
}

fn machine(vcpus: u8, boot: Boot) -> (Machine, Receiver<(u64, u64)>) {
    let (probe, seen) = Probe::new();
    let mut config = config(vcpus, boot);
    config.hyperv = true;
    let interface = Interface::new(config.memory.memory().clone(), vcpus.into());
    let devices = vec![Named::new("probe", probe), Named::new("hyperv", interface)];
    let machine = Machine::new(config, devices).unwrap();
    (machine, seen)
}

/// Tells the test EAX.
fn say(a: &mut CodeAssembler) {
    a.mov(dx, PORT).unwrap();
    a.out(dx, eax).unwrap();
}

fn read_msr(a: &mut CodeAssembler, register: u32) {
    a.mov(ecx, register).unwrap();
    a.rdmsr().unwrap();
    say(a);
}

fn write_msr(a: &mut CodeAssembler, register: u32, value: u32) {
    a.mov(ecx, register).unwrap();
    a.mov(eax, value).unwrap();
    a.xor(edx, edx).unwrap();
    a.wrmsr().unwrap();
}

/// Goes on at f800:0000 after #GP.
fn catch_faults(a: &mut CodeAssembler) {
    a.xor(ax, ax).unwrap();
    a.mov(ds, ax).unwrap();
    a.mov(ss, ax).unwrap();
    a.mov(sp, 0x7000).unwrap();
    a.mov(word_ptr(13 * 4), 0).unwrap();
    a.mov(word_ptr(13 * 4 + 2), 0xf800).unwrap();
}

fn says(seen: &Receiver<(u64, u64)>, values: &[u64]) {
    for value in values {
        assert_eq!(next(seen), (0, *value));
    }
}

#[test]
fn a_guest_finds_the_interface_and_its_registers() {
    let boot = firmware(|a| {
        for (leaf, register) in [(0x4000_0000_u32, ebx), (0x4000_0001, eax)] {
            a.mov(eax, leaf).unwrap();
            a.xor(ecx, ecx).unwrap();
            a.cpuid().unwrap();
            a.mov(eax, register).unwrap();
            say(a);
        }
        read_msr(a, 0x4000_0002);
        write_msr(a, 0x4000_0000, 0x1234);
        read_msr(a, 0x4000_0000);
        read_msr(a, 0x4000_0022);
        a.hlt().unwrap();
    });
    let (machine, seen) = machine(1, boot);
    machine.start().unwrap();
    let name = |name: &[u8; 4]| u32::from_le_bytes(*name).into();
    says(&seen, &[name(b"Micr"), name(b"Hv#1")]);
    says(&seen, &[0, 0x1234, 2_500_000_000]);
    assert_eq!(machine.exits().msrs, 4);
}

#[test]
fn a_register_that_is_not_there_is_a_fault() {
    for write in [false, true] {
        let boot = firmware_with(
            |a| {
                catch_faults(a);
                match write {
                    true => write_msr(a, 0x4000_0150, 1),
                    false => read_msr(a, 0x4000_0150),
                }
                a.mov(eax, 1).unwrap();
                say(a);
            },
            |a| {
                a.mov(eax, 0xdead).unwrap();
                say(a);
                a.hlt().unwrap();
            },
        );
        let (machine, seen) = machine(1, boot);
        machine.start().unwrap();
        says(&seen, &[0xdead]);
    }
}

#[test]
fn a_call_has_its_input_in_the_registers_and_its_result_too() {
    let boot = firmware(|a| {
        a.xor(ax, ax).unwrap();
        a.mov(ds, ax).unwrap();
        write_msr(a, 0x4000_0000, 1);
        write_msr(a, 0x4000_0001, 0x8000 | 1);
        // Message "hi!!" to connection 7.
        for (address, value) in [(0x9000, 7), (0x9004, 0), (0x9008, 1), (0x900c, 4)] {
            a.mov(dword_ptr(address), value).unwrap();
        }
        a.mov(dword_ptr(0x9010), u32::from_le_bytes(*b"hi!!"))
            .unwrap();
        for (code, input) in [(0x5c, 0x9000), (0x1_005d, 7), (0x77, 0)] {
            a.xor(edx, edx).unwrap();
            a.mov(eax, code).unwrap();
            a.xor(ebx, ebx).unwrap();
            a.mov(ecx, input).unwrap();
            a.out(0xe4, eax).unwrap();
            say(a);
        }
        a.hlt().unwrap();
    });
    let (machine, seen) = machine(1, boot);
    machine.start().unwrap();
    says(&seen, &[0, 0x12, 2]);
    let called = machine.with("hyperv", |interface: &mut Interface, _| {
        interface.calls.clone()
    });
    let expected = [
        Call::PostMessage {
            connection: 7,
            payload: b"hi!!".to_vec(),
        },
        Call::SignalEvent { connection: 7 },
        Call::Fails(Status::InvalidCode),
    ];
    assert_eq!(called.unwrap(), expected);
    assert_eq!(machine.exits().hypercalls, 3);
}

/// Goes on in 32-bit mode with all of memory at f800:0000.
fn protected_mode(a: &mut CodeAssembler) {
    a.xor(ax, ax).unwrap();
    a.mov(ds, ax).unwrap();
    let code = 0x00cf_9a00_0000_ffff_u64;
    let data = 0x00cf_9200_0000_ffff_u64;
    for (at, word) in [(0x508, code), (0x510, data)] {
        a.mov(dword_ptr(at), word as u32).unwrap();
        a.mov(dword_ptr(at + 4), (word >> 32) as u32).unwrap();
    }
    a.mov(word_ptr(0x600), 0x17).unwrap();
    a.mov(dword_ptr(0x602), 0x500).unwrap();
    a.lgdt(ptr(0x600)).unwrap();
    a.mov(eax, cr0).unwrap();
    a.or(eax, 1).unwrap();
    a.mov(cr0, eax).unwrap();
    // jmp 8:000f8000
    a.db(&[0x66, 0xea, 0x00, 0x80, 0x0f, 0x00, 0x08, 0x00])
        .unwrap();
}

#[test]
fn a_32_bit_guest_calls_the_page() {
    let mut code = CodeAssembler::new(32).unwrap();
    code.mov(eax, 0x10).unwrap();
    code.mov(ds, eax).unwrap();
    code.mov(ss, eax).unwrap();
    code.mov(esp, 0x7000).unwrap();
    write_msr(&mut code, 0x4000_0000, 1);
    write_msr(&mut code, 0x4000_0001, 0x8000 | 1);
    code.mov(dword_ptr(0x9000), 7).unwrap();
    // By registers and by memory, and what looks like a signal of 64-bit mode.
    for (control, input) in [(0x1_005d, 7), (0x5d, 0x9000), (0x77, 0x1_005d)] {
        code.mov(eax, control).unwrap();
        code.xor(edx, edx).unwrap();
        code.xor(ebx, ebx).unwrap();
        code.mov(ecx, input).unwrap();
        code.mov(edi, 0x8000).unwrap();
        code.call(edi).unwrap();
        say(&mut code);
    }
    code.hlt().unwrap();
    let code = code.assemble(0).unwrap();
    let boot = firmware_with(protected_mode, |a| a.db(&code).unwrap());
    let (machine, seen) = machine(1, boot);
    machine.start().unwrap();
    says(&seen, &[0x12, 0x12, 0]);
    assert_eq!(machine.exits().hypercalls, 2);
}

#[test]
fn without_the_interface_its_registers_and_calls_are_not_there() {
    let boot = firmware_with(
        |a| {
            catch_faults(a);
            a.mov(eax, 5).unwrap();
            a.out(0xe4, eax).unwrap();
            say(a);
            read_msr(a, 0x4000_0002);
        },
        |a| {
            a.mov(eax, 0xdead).unwrap();
            say(a);
            a.hlt().unwrap();
        },
    );
    let (machine, seen) = kit::machine(1, boot);
    machine.start().unwrap();
    says(&seen, &[5, 0xdead]);
    assert_eq!((machine.exits().hypercalls, machine.exits().msrs), (0, 0));
}

#[test]
fn a_second_processor_has_its_own_number() {
    let second = |a: &mut CodeAssembler| {
        read_msr(a, 0x4000_0002);
        a.hlt().unwrap();
    };
    let boot = firmware_with(
        |a| {
            a.xor(ax, ax).unwrap();
            a.mov(ds, ax).unwrap();
            // The local APICs through their registers of x2APIC mode.
            a.mov(ecx, 0x1b_u32).unwrap();
            a.rdmsr().unwrap();
            a.or(eax, 0xc00).unwrap();
            a.wrmsr().unwrap();
            for request in [0x4500_u32, 0x46f8] {
                a.mov(ecx, 0x830_u32).unwrap();
                a.mov(eax, request).unwrap();
                a.mov(edx, 1_u32).unwrap();
                a.wrmsr().unwrap();
            }
            a.hlt().unwrap();
        },
        second,
    );
    let (machine, seen) = machine(2, boot);
    machine.start().unwrap();
    says(&seen, &[1]);
}

#[test]
fn a_saved_machine_goes_on_with_its_registers() {
    let boot = || {
        firmware(|a| {
            write_msr(a, 0x4000_0000, 0x77);
            write_msr(a, 0x4000_0092, 0x1_00f3);
            a.xor(eax, eax).unwrap();
            say(a);
            let mut wait = a.create_label();
            a.set_label(&mut wait).unwrap();
            a.mov(dx, PORT + 1).unwrap();
            a.in_(al, dx).unwrap();
            a.cmp(al, 0x5a).unwrap();
            a.je(wait).unwrap();
            read_msr(a, 0x4000_0000);
            read_msr(a, 0x4000_0092);
            a.hlt().unwrap();
        })
    };
    let (first, seen) = machine(1, boot());
    first.start().unwrap();
    says(&seen, &[0]);
    first.pause().unwrap();
    let mut saved = Vec::new();
    first.save(&mut saved).unwrap();
    drop(first);
    let (second, seen) = machine(1, boot());
    second.restore(&saved[..]).unwrap();
    second.with("probe", |probe: &mut Probe, _| probe.answer = 1);
    second.resume().unwrap();
    says(&seen, &[0x77, 0x1_00f3]);
}
