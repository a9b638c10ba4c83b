//! Interrupts and doorbells that other processes share, with guests of a few instructions. Needs /dev/kvm.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
#![allow(missing_docs)]

mod kit;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hypervisor::boot::Boot;
use hypervisor::device::{Doorbell, Effect, Interrupt, Message, Region, Space};
use hypervisor::{Machine, Named, irq};
use iced_x86::code_asm::*;
use kit::{CONTROL, PATIENCE, PORT, Probe, config, firmware, firmware_with, machine, next};

const LINE: u32 = 11;

/// Sets up the PICs for line 11, level-triggered, and writes to the probe after each interrupt has ended.
fn handler() -> Boot {
    handler_of(0x08)
}

/// The same with these of lines 8 to 15 level-triggered: a bit for each.
fn handler_of(levels: u32) -> Boot {
    let main = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.xor(ax, ax).unwrap();
        a.mov(ss, ax).unwrap();
        a.mov(sp, 0x7000).unwrap();
        a.mov(ds, ax).unwrap();
        // To f800:0000 lead line 11's vector, and that of an interrupt whose line fell before it was taken.
        for vector in [0x73, 0x77] {
            a.mov(word_ptr(vector * 4), 0).unwrap();
            a.mov(word_ptr(vector * 4 + 2), 0xf800).unwrap();
        }
        for (port, value) in [
            (0x20, 0x11),
            (0x21, 0x08),
            (0x21, 0x04),
            (0x21, 0x01),
            (0xa0, 0x11),
            (0xa1, 0x70),
            (0xa1, 0x02),
            (0xa1, 0x01),
            (0x21, 0xfb), // all but the cascade masked
            (0xa1, 0xf7), // all but line 11 masked
        ] {
            a.mov(al, value).unwrap();
            a.out(port, al).unwrap();
        }
        a.mov(dx, 0x4d1).unwrap();
        a.mov(al, levels).unwrap();
        a.out(dx, al).unwrap();
        a.sti().unwrap();
        a.mov(dx, PORT + 2).unwrap();
        a.out(dx, al).unwrap();
        a.set_label(&mut again).unwrap();
        a.hlt().unwrap();
        a.jmp(again).unwrap();
    };
    let interrupt = |a: &mut CodeAssembler| {
        a.mov(al, 0x20).unwrap();
        a.out(0xa0, al).unwrap();
        a.out(0x20, al).unwrap();
        a.mov(dx, PORT).unwrap();
        a.in_(al, dx).unwrap();
        a.out(dx, al).unwrap();
        a.iret().unwrap();
    };
    firmware_with(main, interrupt)
}

fn event() -> Arc<OwnedFd> {
    Arc::new(irq::eventfd().unwrap())
}

/// True if the eventfd was signalled, within a while.
fn signalled(event: &OwnedFd) -> bool {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if rustix::io::read(event, &mut [0; 8]).is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

/// A machine whose probe has an interrupt from another process on [`LINE`].
fn shared_interrupt() -> (Machine, std::sync::mpsc::Receiver<(u64, u64)>, Arc<OwnedFd>) {
    let (mut probe, seen) = Probe::new();
    let event = event();
    probe.wiring.interrupts.push(Interrupt {
        id: 3,
        gsi: LINE,
        event: Arc::clone(&event),
    });
    let machine = Machine::new(config(1, handler()), vec![Named::new("probe", probe)]).unwrap();
    machine.start().unwrap();
    assert_eq!(next(&seen).0, 2, "the guest is ready");
    (machine, seen, event)
}

#[test]
fn another_process_raises_an_interrupt_once() {
    let (_machine, seen, event) = shared_interrupt();
    for _ in 0..10 {
        irq::signal(&event);
        assert_eq!(next(&seen), (0, 0x5a));
    }
    let more = seen.recv_timeout(Duration::from_millis(200));
    assert!(more.is_err(), "an interrupt came that nobody raised");
}

#[test]
fn an_interrupt_that_is_still_wanted_at_its_end_comes_again() {
    let (machine, seen, event) = shared_interrupt();
    machine.with("probe", |probe: &mut Probe, _| probe.wanted = 4);
    irq::signal(&event);
    // At least one for each time it is wanted; the signal's own may come on top.
    for _ in 0..4 {
        assert_eq!(next(&seen), (0, 0x5a));
    }
    let wanted = || machine.with("probe", |probe: &mut Probe, _| probe.wanted);
    let end = Instant::now() + PATIENCE;
    while wanted() != Some(0) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(wanted(), Some(0));
}

#[test]
fn a_restored_machine_loses_no_edge_of_a_line_that_was_high() {
    let raise = |machine: &Machine| {
        let high = true;
        machine.with("probe", |_: &mut Probe, effects| {
            effects.push(Effect::Line { gsi: LINE, high });
        });
    };
    let (first, seen) = machine(1, handler_of(0));
    first.start().unwrap();
    assert_eq!(next(&seen).0, 2, "the guest is ready");
    raise(&first);
    assert_eq!(next(&seen), (0, 0x5a));
    first.pause().unwrap();
    let mut saved = Vec::new();
    first.save(&mut saved).unwrap();

    // The probe knows nothing of its line, which is low until it is raised again.
    let (second, seen) = machine(1, handler_of(0));
    second.restore(saved.as_slice()).unwrap();
    second.resume().unwrap();
    raise(&second);
    assert_eq!(next(&seen), (0, 0x5a));
}

#[test]
fn an_interrupt_follows_its_line() {
    let (machine, seen, event) = shared_interrupt();
    let set_gsi = |gsi| {
        machine.with("probe", |probe: &mut Probe, effects| {
            probe.wiring.interrupts[0].gsi = gsi;
            effects.push(Effect::Rewire);
        })
    };
    // To a line that the guest has masked, and back.
    set_gsi(5);
    irq::signal(&event);
    assert!(seen.recv_timeout(Duration::from_millis(200)).is_err());
    set_gsi(LINE);
    irq::signal(&event);
    assert_eq!(next(&seen), (0, 0x5a));
}

#[test]
fn a_device_drives_a_line_and_two_devices_share_it() {
    let ((first, seen), (mut second, _other)) = (Probe::new(), Probe::new());
    second.wiring.regions.clear();
    let devices = vec![Named::new("probe", first), Named::new("second", second)];
    let machine = Machine::new(config(1, handler()), devices).unwrap();
    machine.start().unwrap();
    assert_eq!(next(&seen).0, 2);
    let drive = |name, high| {
        machine.with(name, |_: &mut Probe, effects| {
            effects.push(Effect::Line { gsi: LINE, high });
        })
    };
    drive("probe", true);
    drive("second", true);
    drive("probe", false);
    // The line is still up: interrupts keep coming.
    for _ in 0..5 {
        assert_eq!(next(&seen), (0, 0x5a));
    }
    drive("second", false);
    while seen.recv_timeout(Duration::from_millis(200)).is_ok() {}
    // Lines that do not exist are nobody's.
    drive("probe", true);
    assert_eq!(next(&seen), (0, 0x5a));
    machine
        .with("probe", |_: &mut Probe, effects| {
            effects.push(Effect::Line {
                gsi: 4000,
                high: true,
            });
            effects.push(Effect::Line {
                gsi: LINE,
                high: false,
            });
        })
        .unwrap();
}

/// Rings the doorbell (4 bytes at port 0x504) and then tells the probe, for ever.
fn ringer() -> Boot {
    firmware(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.mov(dx, PORT + 4).unwrap();
        a.out(dx, eax).unwrap();
        a.mov(dx, PORT).unwrap();
        a.out(dx, al).unwrap();
        a.jmp(again).unwrap();
    })
}

#[test]
fn a_doorbell_rings_without_the_device_and_can_be_taken_away() {
    let (mut probe, seen) = Probe::new();
    let bell = event();
    probe.wiring.doorbells.push(Doorbell {
        space: Space::Port,
        address: u64::from(PORT) + 4,
        len: 4,
        value: None,
        event: Arc::clone(&bell),
    });
    let machine = Machine::new(config(1, ringer()), vec![Named::new("probe", probe)]).unwrap();
    machine.start().unwrap();
    for _ in 0..20 {
        assert_eq!(next(&seen).0, 0, "the device saw the doorbell");
    }
    assert!(signalled(&bell));
    machine.pause().unwrap();
    machine.with("probe", |probe: &mut Probe, effects| {
        probe.wiring.doorbells[0].address += 0x100;
        effects.push(Effect::Rewire);
    });
    while seen.try_recv().is_ok() {}
    let _ = rustix::io::read(&bell, &mut [0; 8]);
    machine.resume().unwrap();
    let (a, b) = (next(&seen).0, next(&seen).0);
    assert_eq!(a + b, 4, "the device sees both registers now");
    assert!(rustix::io::read(&bell, &mut [0; 8]).is_err());
}

#[test]
fn a_doorbell_in_memory_rings_too() {
    let boot = firmware(|a| {
        let mut again = a.create_label();
        // Memory nobody has between 640 KiB and 768 KiB.
        a.mov(ax, 0xa000).unwrap();
        a.mov(ds, ax).unwrap();
        a.set_label(&mut again).unwrap();
        a.mov(dword_ptr(8), 1).unwrap();
        a.mov(dword_ptr(12), 1).unwrap();
        a.jmp(again).unwrap();
    });
    let (mut probe, seen) = Probe::new();
    let bell = event();
    probe.wiring.regions.push(Region {
        number: 1,
        space: Space::Memory,
        start: 0xa_0000,
        len: 16,
    });
    probe.wiring.doorbells.push(Doorbell {
        space: Space::Memory,
        address: 0xa_0008,
        len: 4,
        value: None,
        event: Arc::clone(&bell),
    });
    let machine = Machine::new(config(1, boot), vec![Named::new("probe", probe)]).unwrap();
    machine.start().unwrap();
    for _ in 0..20 {
        assert_eq!(next(&seen), (0x100c, 1));
    }
    assert!(signalled(&bell));
}

#[test]
fn two_doorbells_at_one_address_do_no_harm() {
    let (mut probe, seen) = Probe::new();
    let bells = [event(), event()];
    for bell in &bells {
        probe.wiring.doorbells.push(Doorbell {
            space: Space::Port,
            address: u64::from(PORT) + 4,
            len: 4,
            value: None,
            event: Arc::clone(bell),
        });
    }
    let machine = Machine::new(config(1, ringer()), vec![Named::new("probe", probe)]).unwrap();
    machine.start().unwrap();
    next(&seen);
    assert!(signalled(&bells[0]));
    machine.with("probe", |probe: &mut Probe, effects| {
        probe.wiring.doorbells.clear();
        effects.push(Effect::Rewire);
    });
    for _ in 0..5 {
        next(&seen);
    }
}

#[test]
fn a_timer_calls_its_device_and_stands_still_in_pause() {
    let (machine, _seen) = machine(1, firmware(|a| a.hlt().unwrap()));
    let start = |milliseconds| {
        machine.with("probe", |_: &mut Probe, effects| {
            effects.push(Effect::Timer {
                id: 1,
                after: Duration::from_millis(milliseconds),
            });
        })
    };
    let count = || {
        machine
            .with("probe", |probe: &mut Probe, _| probe.timers)
            .unwrap()
    };
    machine.start().unwrap();
    start(20);
    let end = Instant::now() + PATIENCE;
    while count() == 0 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(count(), 1);
    start(100);
    machine.pause().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(count(), 1);
    machine.resume().unwrap();
    while count() == 1 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(count(), 2);
    // A reset cancels timers.
    start(50);
    machine.reset().unwrap();
    std::thread::sleep(Duration::from_millis(150));
    assert_eq!(count(), 2);
}

#[test]
fn a_string_of_port_writes_arrives_value_by_value() {
    let boot = firmware(|a| {
        a.mov(ax, 0xf000).unwrap();
        a.mov(ds, ax).unwrap();
        a.mov(si, 0x8000).unwrap();
        a.mov(dx, PORT).unwrap();
        a.mov(cx, 4).unwrap();
        a.cld().unwrap();
        a.rep().outsw().unwrap();
        a.mov(dx, CONTROL).unwrap();
        a.mov(al, 1).unwrap();
        a.out(dx, al).unwrap();
    });
    let Boot::Firmware(mut image) = boot else {
        unreachable!();
    };
    image[0x8000..0x8008].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
    let (machine, seen) = machine(1, Boot::Firmware(image));
    machine.start().unwrap();
    for expected in [0x0201, 0x0403, 0x0605, 0x0807] {
        assert_eq!(next(&seen), (0, expected));
    }
}

#[test]
fn messages_come_from_the_device_and_from_another_process() {
    const VECTOR: u32 = 0x40;
    let main = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.xor(ax, ax).unwrap();
        a.mov(ss, ax).unwrap();
        a.mov(sp, 0x7000).unwrap();
        a.mov(ds, ax).unwrap();
        a.mov(word_ptr(VECTOR * 4), 0).unwrap();
        a.mov(word_ptr(VECTOR * 4 + 2), 0xf800).unwrap();
        // The x2APIC, and the local APIC's software switch.
        a.mov(ecx, 0x1b).unwrap();
        a.rdmsr().unwrap();
        a.or(eax, 0xc00).unwrap();
        a.wrmsr().unwrap();
        a.mov(ecx, 0x80f).unwrap();
        a.xor(edx, edx).unwrap();
        a.mov(eax, 0x1ff).unwrap();
        a.wrmsr().unwrap();
        a.sti().unwrap();
        a.mov(dx, PORT + 2).unwrap();
        a.out(dx, al).unwrap();
        a.set_label(&mut again).unwrap();
        a.hlt().unwrap();
        a.jmp(again).unwrap();
    };
    let interrupt = |a: &mut CodeAssembler| {
        a.mov(ecx, 0x80b).unwrap();
        a.xor(edx, edx).unwrap();
        a.xor(eax, eax).unwrap();
        a.wrmsr().unwrap();
        a.mov(dx, PORT).unwrap();
        a.out(dx, al).unwrap();
        a.iret().unwrap();
    };
    let (mut probe, seen) = Probe::new();
    let event = event();
    let message = |data| Message {
        address: 0xfee0_0000,
        data,
        event: Arc::clone(&event),
    };
    probe.wiring.messages.push(message(VECTOR));
    let boot = firmware_with(main, interrupt);
    let machine = Machine::new(config(1, boot), vec![Named::new("probe", probe)]).unwrap();
    machine.start().unwrap();
    assert_eq!(next(&seen).0, 2, "the guest is ready");
    irq::signal(&event);
    assert_eq!(next(&seen), (0, 0));
    machine.with("probe", |_: &mut Probe, effects| {
        effects.push(Effect::Message {
            address: 0xfee0_0000,
            data: VECTOR,
        });
    });
    assert_eq!(next(&seen), (0, 0));
    // To no processor, and back.
    let set = |wanted: Vec<Message>| {
        machine.with("probe", |probe: &mut Probe, effects| {
            probe.wiring.messages = wanted;
            effects.push(Effect::Rewire);
        })
    };
    set(Vec::new());
    irq::signal(&event);
    assert!(seen.recv_timeout(Duration::from_millis(200)).is_err());
    rustix::io::read(&event, &mut [0; 8]).unwrap();
    set(vec![message(VECTOR)]);
    irq::signal(&event);
    assert_eq!(next(&seen), (0, 0));
}
