//! The states of a machine, with guests of a few instructions. Needs /dev/kvm.
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
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use hypervisor::boot::Boot;
use hypervisor::memory::GuestMemory;
use hypervisor::{Event, Machine, Named, Phase};
use iced_x86::code_asm::*;
use kit::{CONTROL, PORT, Probe, config, firmware, firmware_with, machine, next};

/// Counts in memory, from what it finds there, and writes the count to the probe.
fn counter() -> Boot {
    firmware(|a| {
        let mut again = a.create_label();
        a.mov(dx, PORT).unwrap();
        a.set_label(&mut again).unwrap();
        a.add(dword_ptr(0x1000), 1).unwrap();
        a.mov(eax, dword_ptr(0x1000)).unwrap();
        a.out(dx, eax).unwrap();
        a.jmp(again).unwrap();
    })
}

/// Everything the guest has written so far; it stands still.
fn drain(seen: &Receiver<(u64, u64)>) -> Vec<u64> {
    seen.try_iter().map(|(_, value)| value).collect()
}

fn wait_event(machine: &Machine) -> Vec<Event> {
    for _ in 0..1000 {
        let events = machine.events();
        if !events.is_empty() {
            return events;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("no event came");
}

#[test]
fn a_machine_stands_still_while_paused_and_goes_on() {
    let (machine, seen) = machine(1, counter());
    assert_eq!(machine.phase(), Phase::Created);
    machine.start().unwrap();
    assert_eq!(next(&seen), (0, 1));
    assert_eq!(next(&seen), (0, 2));
    machine.pause().unwrap();
    let last = drain(&seen).last().copied().unwrap_or(2);
    std::thread::sleep(Duration::from_millis(100));
    assert!(drain(&seen).is_empty());
    machine.resume().unwrap();
    assert_eq!(next(&seen), (0, last + 1));
    assert!(machine.exits().port_writes > 2);
}

#[test]
fn verbs_that_a_state_does_not_allow_are_refused_by_name() {
    let (machine, _seen) = machine(1, counter());
    let refused = |result: Result<(), hypervisor::Error>, verb: &str, state: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(verb) && error.contains(state), "{error}");
    };
    refused(machine.pause(), "pause", "created");
    refused(machine.resume(), "resume", "created");
    refused(machine.reset(), "reset", "created");
    refused(machine.save(&mut Vec::new()), "save", "created");
    machine.start().unwrap();
    refused(machine.start(), "start", "running");
    refused(machine.resume(), "resume", "running");
    refused(machine.save(&mut Vec::new()), "save", "running");
    refused(machine.restore(&[][..]), "saved state", "running");
    machine.pause().unwrap();
    refused(machine.start(), "start", "paused");
    refused(machine.pause(), "pause", "paused");
}

/// Writes 0xabcd once.
fn writes_once() -> Boot {
    firmware(|a| {
        let mut again = a.create_label();
        a.mov(dx, PORT).unwrap();
        a.mov(eax, 0xabcd_u32).unwrap();
        a.out(dx, eax).unwrap();
        a.set_label(&mut again).unwrap();
        a.jmp(again).unwrap();
    })
}

#[test]
fn reset_starts_the_firmware_again() {
    let (machine, seen) = machine(2, writes_once());
    machine.start().unwrap();
    assert_eq!(next(&seen), (0, 0xabcd));
    machine.reset().unwrap();
    assert_eq!(next(&seen), (0, 0xabcd));
    machine.pause().unwrap();
    machine.reset().unwrap();
    assert_eq!(machine.phase(), Phase::Paused);
    assert!(drain(&seen).is_empty());
    machine.resume().unwrap();
    assert_eq!(next(&seen), (0, 0xabcd));
}

#[test]
fn nothing_runs_after_a_reset_before_its_devices_are_settled() {
    let (probe, seen) = Probe::new();
    let settled = Arc::clone(&probe.settled);
    let machine = Machine::new(config(1, writes_once()), vec![Named::new("probe", probe)]);
    let machine = machine.unwrap();
    machine.start().unwrap();
    assert_eq!(next(&seen), (0, 0xabcd));
    settled.store(false, Ordering::Relaxed);
    std::thread::scope(|scope| {
        let reset = scope.spawn(|| machine.reset());
        let early = seen.recv_timeout(Duration::from_millis(300));
        assert!(early.is_err() && !reset.is_finished());
        settled.store(true, Ordering::Relaxed);
        assert_eq!(next(&seen), (0, 0xabcd));
        reset.join().unwrap().unwrap();
    });
}

#[test]
fn the_guest_resets_the_machine_and_turns_it_off() {
    // Resets at the first start, turns off at the second: memory outlasts a reset.
    let boot = firmware(|a| {
        a.mov(dx, CONTROL).unwrap();
        a.mov(al, byte_ptr(0x1000)).unwrap();
        a.inc(byte_ptr(0x1000)).unwrap();
        a.out(dx, al).unwrap();
        a.hlt().unwrap();
    });
    let (machine, _seen) = machine(1, boot);
    machine.start().unwrap();
    let mut events = wait_event(&machine);
    if events.len() < 2 {
        events.extend(wait_event(&machine));
    }
    assert_eq!(events, [Event::Reset, Event::PoweredOff]);
    assert_eq!(machine.phase(), Phase::Off);
    assert!(machine.resume().is_err() && machine.start().is_err());
}

#[test]
fn a_triple_fault_resets_the_machine() {
    let boot = firmware(|a| {
        let mut second = a.create_label();
        a.cmp(byte_ptr(0x1000), 0).unwrap();
        a.jne(second).unwrap();
        a.inc(byte_ptr(0x1000)).unwrap();
        // Protected mode with an interrupt table of no bytes, and a fault.
        a.lidt(fword_ptr(0x2000)).unwrap();
        a.mov(eax, cr0).unwrap();
        a.or(al, 1).unwrap();
        a.mov(cr0, eax).unwrap();
        a.ud2().unwrap();
        a.set_label(&mut second).unwrap();
        a.mov(dx, PORT).unwrap();
        a.out(dx, al).unwrap();
        a.hlt().unwrap();
    });
    let (machine, seen) = machine(1, boot);
    machine.start().unwrap();
    assert_eq!(wait_event(&machine), [Event::Reset]);
    next(&seen);
}

#[test]
fn all_processors_run_stop_and_go_on() {
    const COUNT: u8 = 8;
    let first = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        // Switches on the x2APIC, and sends INIT and start-up to all others.
        a.mov(ecx, 0x1b).unwrap();
        a.rdmsr().unwrap();
        a.or(eax, 0xc00).unwrap();
        a.wrmsr().unwrap();
        a.mov(ecx, 0x830).unwrap();
        a.xor(edx, edx).unwrap();
        a.mov(eax, 0x000c_4500).unwrap();
        a.wrmsr().unwrap();
        a.mov(eax, 0x000c_46f8).unwrap();
        a.wrmsr().unwrap();
        a.set_label(&mut again).unwrap();
        a.hlt().unwrap();
        a.jmp(again).unwrap();
    };
    let others = |a: &mut CodeAssembler| {
        let mut more = a.create_label();
        // Each takes a number, and writes it for ever.
        a.xor(ax, ax).unwrap();
        a.mov(ds, ax).unwrap();
        a.mov(ax, 1).unwrap();
        a.lock().xadd(word_ptr(0x1000), ax).unwrap();
        a.mov(dx, PORT).unwrap();
        a.set_label(&mut more).unwrap();
        a.out(dx, ax).unwrap();
        a.jmp(more).unwrap();
    };
    let boot = firmware_with(first, others);
    let (machine, seen) = machine(COUNT, boot);
    let all = |seen: &Receiver<(u64, u64)>| {
        let mut numbers = std::collections::BTreeSet::new();
        while numbers.len() < usize::from(COUNT) - 1 {
            numbers.insert(next(seen).1);
        }
    };
    machine.start().unwrap();
    all(&seen);
    for _ in 0..20 {
        machine.pause().unwrap();
        drain(&seen);
        std::thread::sleep(Duration::from_millis(5));
        assert!(drain(&seen).is_empty());
        machine.resume().unwrap();
        all(&seen);
    }
    // After a reset only the first processor runs, and starts the others again.
    machine.reset().unwrap();
    drain(&seen);
    all(&seen);
}

#[test]
fn a_machine_has_up_to_64_processors() {
    let (machine, seen) = machine(64, counter());
    machine.start().unwrap();
    next(&seen);
    machine.pause().unwrap();
    machine.save(&mut Vec::new()).unwrap();
}

#[test]
fn a_saved_machine_goes_on_in_another() {
    let (first, seen) = machine(2, counter());
    first
        .with("probe", |probe: &mut Probe, _| probe.answer = 7)
        .unwrap();
    first.start().unwrap();
    while next(&seen).1 < 100 {}
    first.pause().unwrap();
    let last = drain(&seen).last().copied().unwrap_or(100);
    let mut saved = Vec::new();
    first.save(&mut saved).unwrap();
    drop(first);

    let (second, seen) = machine(2, counter());
    second.restore(saved.as_slice()).unwrap();
    assert_eq!(second.phase(), Phase::Paused);
    assert_eq!(
        second.with("probe", |probe: &mut Probe, _| probe.answer),
        Some(7)
    );
    second.resume().unwrap();
    assert_eq!(next(&seen), (0, last + 1));
    assert_eq!(next(&seen), (0, last + 2));
}

#[test]
fn a_state_of_another_machine_is_refused() {
    let (first, _) = machine(2, counter());
    first.start().unwrap();
    first.pause().unwrap();
    let mut saved = Vec::new();
    first.save(&mut saved).unwrap();

    let refused = |machine: &Machine, why: &str| {
        let error = machine.restore(saved.as_slice()).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        assert!(
            machine.start().is_err(),
            "it can be started with half a state"
        );
    };
    refused(&machine(1, counter()).0, "2 processors");
    let other = Named::new("other", Probe::new().0);
    let other = Machine::new(config(2, counter()), vec![other]).unwrap();
    refused(&other, "no device probe");
    let mut small = config(2, counter());
    small.memory = GuestMemory::new(8 << 20).unwrap();
    let small = Machine::new(small, vec![Named::new("probe", Probe::new().0)]).unwrap();
    refused(&small, "bytes of memory");
}

#[test]
fn what_runs_for_the_guest_is_confined() {
    let (machine, seen) = machine(
        1,
        firmware(|a| {
            a.mov(dx, PORT + 12).unwrap();
            a.out(dx, al).unwrap();
            a.hlt().unwrap();
        }),
    );
    machine.start().unwrap();
    next(&seen);
    let opened = machine.with("probe", |probe: &mut Probe, _| probe.opened);
    assert_eq!(opened, Some(Some(std::io::ErrorKind::PermissionDenied)));
    // The thread that made the machine is not.
    assert!(std::fs::File::open("/etc/hostname").is_ok());
}

#[test]
fn configurations_that_are_not_allowed_are_named() {
    for vcpus in [0, 65] {
        let result = Machine::new(config(vcpus, counter()), Vec::new());
        let error = result.err().unwrap().to_string();
        assert!(error.contains(&vcpus.to_string()), "{error}");
    }
    let twice = vec![
        Named::new("a", Probe::new().0),
        Named::new("a", Probe::new().0),
    ];
    assert!(Machine::new(config(1, counter()), twice).is_err());
    assert!(Machine::new(config(1, Boot::Firmware(vec![0; 5])), Vec::new()).is_err());
}
