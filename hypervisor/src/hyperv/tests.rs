//! The interface as Linux, iPXE and careless guests use it.

use std::sync::Arc;

use guestmem::{Memory, Window};

use super::hypercall::{Call, Input, Status};
use super::synic::{EventRoute, MAX_PAYLOAD, MAX_WAITING, PostError};
use super::{Clocks, Effect, Hyperv, cpuid};

const MESSAGES: u64 = 0x3000;
const FLAGS: u64 = 0x4000;
const SINT2: u32 = 0x4000_0092;

fn hyperv() -> (Hyperv, Window) {
    let memory = Arc::new(Memory::anonymous(0x10000).unwrap());
    let window = memory.window(0, 0x10000).unwrap();
    let clocks = Clocks {
        tsc_hz: 2_500_000_000,
        apic_hz: 1_000_000_000,
    };
    (Hyperv::new(memory, clocks, 2), window)
}

fn write(hyperv: &mut Hyperv, vp: u32, register: u32, value: u64) -> Vec<Effect> {
    let mut effects = Vec::new();
    assert!(
        hyperv.write_msr(vp, register, value, &mut effects),
        "{register:#x}"
    );
    effects
}

/// A processor's controller as Linux sets it up, with `sint` in the register of source 2.
fn started(sint: u64) -> (Hyperv, Window) {
    let (mut hyperv, window) = hyperv();
    write(&mut hyperv, 1, 0x4000_0083, MESSAGES | 1);
    write(&mut hyperv, 1, 0x4000_0082, FLAGS | 1);
    write(&mut hyperv, 1, SINT2, sint);
    let effects = write(&mut hyperv, 1, 0x4000_0080, 1);
    assert_eq!(effects, [Effect::Rerouted { vp: 1 }]);
    (hyperv, window)
}

fn read<const N: usize>(window: &Window, at: u64) -> [u8; N] {
    let mut bytes = [0; N];
    window.read(at as usize, &mut bytes).unwrap();
    bytes
}

#[test]
fn drivers_find_the_interface_and_no_hint_too_many() {
    let leaves = cpuid::leaves(4);
    let [first, interface, .., limits, _] = leaves.map(|leaf| leaf.registers);
    let name = first[1..]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect::<Vec<u8>>();
    assert_eq!(name, b"Microsoft Hv");
    assert_eq!(first[0], 0x4000_0006);
    assert_eq!(interface[0].to_le_bytes(), *b"Hv#1");
    assert_eq!(leaves[3].registers, [0x8a64, 0x30, 0, 0x500]);
    assert_eq!(leaves[4].registers[0], 0x220);
    assert_eq!(limits[0], 4);
}

#[test]
fn a_hypercall_page_holds_code_for_who_names_itself() {
    let (mut hyperv, window) = hyperv();
    write(&mut hyperv, 0, 0x4000_0001, 0x2001);
    assert_eq!(hyperv.read_msr(0, 0x4000_0001), Some(0x2000), "not enabled");
    write(&mut hyperv, 0, 0x4000_0000, 0x8100_0006_01c0_0000);
    write(&mut hyperv, 0, 0x4000_0001, 0x2001);
    let code: [u8; 22] = read(&window, 0x2000);
    assert_eq!(code[..4], [0xf3, 0x0f, 0x1e, 0xfa]);
    assert_eq!(code[19..], [0xe7, 0xe4, 0xc3]);
    assert!(
        !hyperv.write_msr(0, 0x4000_0001, 0x10001, &mut Vec::new()),
        "no memory"
    );
    write(&mut hyperv, 0, 0x4000_0000, 0);
    assert_eq!(hyperv.read_msr(0, 0x4000_0001), Some(0x2000));
}

#[test]
fn registers_answer_or_there_are_none() {
    let (mut hyperv, window) = hyperv();
    for (register, value) in [
        (0x4000_0002, Some(1)),
        (0x4000_0022, Some(2_500_000_000)),
        (0x4000_0023, Some(1_000_000_000)),
        (SINT2, Some(0x10000)),
        (0x4000_0081, Some(1)),
        (0x4000_0020, None),
        (0x4000_00b0, None),
        (0x4000_0003, None),
    ] {
        assert_eq!(hyperv.read_msr(1, register), value, "{register:#x}");
    }
    assert_eq!(hyperv.read_msr(2, 0x4000_0002), None, "no such processor");
    for register in [0x4000_0002, 0x4000_0022, 0x4000_0020, 0x4000_00b0] {
        assert!(
            !hyperv.write_msr(0, register, 1, &mut Vec::new()),
            "{register:#x}"
        );
    }
    write(&mut hyperv, 0, 0x4000_0073, 0x7001);
    write(&mut hyperv, 0, 0x4000_0118, 1);
    write(&mut hyperv, 0, 0x4000_0021, 0x6001);
    let scale = u64::from_le_bytes(read(&window, 0x6008));
    let second = (u128::from(scale) * 2_500_000_000) >> 64;
    assert!(
        (9_999_999..=10_000_000).contains(&second),
        "{second} units of 100 ns"
    );
    assert_ne!(read(&window, 0x6000), [0; 4], "valid");
}

#[test]
fn a_crash_is_told_with_its_numbers() {
    let (mut hyperv, _) = hyperv();
    for number in 0..5 {
        write(&mut hyperv, 0, 0x4000_0100 + number, 10 + u64::from(number));
    }
    assert_eq!(hyperv.read_msr(0, 0x4000_0105), Some(1 << 63));
    let effects = write(&mut hyperv, 0, 0x4000_0105, 1 << 63);
    assert_eq!(effects, [Effect::Crashed([10, 11, 12, 13, 14])]);
}

#[test]
fn messages_go_through_the_slot_one_by_one() {
    let (mut hyperv, window) = started(0xf3);
    let mut effects = Vec::new();
    hyperv.post((1, 2), 1, b"first", &mut effects).unwrap();
    assert_eq!(
        effects,
        [Effect::Interrupt {
            vp: 1,
            vector: 0xf3
        }]
    );
    let slot = MESSAGES + 512;
    assert_eq!(read(&window, slot), [1, 0, 0, 0, 5, 0]);
    assert_eq!(read(&window, slot + 16), *b"first");
    effects.clear();
    hyperv.post((1, 2), 1, b"second!", &mut effects).unwrap();
    assert!(effects.is_empty());
    assert_eq!(
        read(&window, slot + 5),
        [1],
        "the guest is to say when the slot is free"
    );
    assert_eq!(read(&window, slot + 16), *b"first");
    window.write(slot as usize, &[0; 4]).unwrap();
    let effects = write(&mut hyperv, 1, 0x4000_0084, 0);
    assert_eq!(
        effects,
        [Effect::Interrupt {
            vp: 1,
            vector: 0xf3
        }]
    );
    assert_eq!(read(&window, slot), [1, 0, 0, 0, 7, 0]);
    assert_eq!(read(&window, slot + 16), *b"second!");
}

#[test]
fn a_guest_that_polls_is_not_interrupted() {
    // Masked; ended by nobody (iPXE); polled.
    for sint in [0x1_00f3, 0x2_0075, 0x4_00f3] {
        let (mut hyperv, window) = started(sint);
        let mut effects = Vec::new();
        hyperv.post((1, 2), 1, b"x", &mut effects).unwrap();
        hyperv.signal((1, 2), 7, &mut effects);
        assert!(effects.is_empty(), "{sint:#x}");
        assert_eq!(read(&window, MESSAGES + 512), [1]);
        assert_eq!(read(&window, FLAGS + 512), [0x80]);
    }
}

#[test]
fn a_flag_interrupts_once_until_it_is_cleared() {
    let (hyperv, window) = started(0xf3);
    let mut effects = Vec::new();
    for _ in 0..3 {
        hyperv.signal((1, 2), 2047, &mut effects);
    }
    assert_eq!(
        effects,
        [Effect::Interrupt {
            vp: 1,
            vector: 0xf3
        }]
    );
    assert_eq!(read(&window, FLAGS + 512 + 255), [0x80]);
    window.write(FLAGS as usize + 512 + 255, &[0]).unwrap();
    hyperv.signal((1, 2), 2047, &mut effects);
    assert_eq!(effects.len(), 2);
    let route = EventRoute {
        flags: FLAGS + 512,
        vector: Some(0xf3),
    };
    assert_eq!(hyperv.event_route(1, 2), Some(route));
    assert_eq!(hyperv.event_route(0, 2), None, "that processor has none");
    assert_eq!(hyperv.event_route(1, 16), None);
}

#[test]
fn messages_wait_until_the_page_is_there_and_not_without_bound() {
    let (mut hyperv, window) = hyperv();
    let mut effects = Vec::new();
    for _ in 0..MAX_WAITING {
        hyperv.post((0, 2), 1, b"x", &mut effects).unwrap();
    }
    assert!(!hyperv.has_room(0) && hyperv.has_room(1));
    let post = |hyperv: &mut Hyperv, at, len| hyperv.post(at, 1, &vec![0; len], &mut Vec::new());
    assert_eq!(post(&mut hyperv, (0, 2), 1), Err(PostError::Full(0)));
    assert_eq!(post(&mut hyperv, (2, 2), 1), Err(PostError::NoProcessor(2)));
    assert_eq!(post(&mut hyperv, (1, 16), 1), Err(PostError::NoSource(16)));
    let long = MAX_PAYLOAD + 1;
    assert_eq!(
        post(&mut hyperv, (1, 2), long),
        Err(PostError::TooLong(long))
    );
    write(&mut hyperv, 0, 0x4000_0083, MESSAGES | 1);
    write(&mut hyperv, 0, 0x4000_0080, 1);
    assert_eq!(read(&window, MESSAGES + 512), [1]);
    // A page that is no memory takes them all, and nothing happens.
    write(&mut hyperv, 0, 0x4000_0083, 0xffff_f001);
    assert!(hyperv.has_room(0));
}

/// Input of a call at an address, in memory.
fn call(hyperv: &Hyperv, window: &Window, control: u64, at: u64, input: &[u8]) -> Call {
    window.write(at as usize, input).unwrap();
    hyperv.call(Input { control, input: at })
}

#[test]
fn calls_are_found_in_registers_and_memory() {
    let (mut hyperv, window) = hyperv();
    let signal = Input {
        control: 0x1_005d,
        input: 0x1_0003,
    };
    assert_eq!(
        hyperv.call(signal),
        Call::Fails(Status::InvalidCode),
        "no page yet"
    );
    write(&mut hyperv, 0, 0x4000_0000, 1 << 63);
    write(&mut hyperv, 0, 0x4000_0001, 0x2001);
    assert_eq!(
        hyperv.call(signal),
        Call::SignalEvent {
            connection: 0x1_0003
        }
    );
    let slow = call(&hyperv, &window, 0x5d, 0x5000, &[2, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(slow, Call::SignalEvent { connection: 2 });
    let mut message = vec![4, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0];
    message.extend(b"abc");
    let posted = call(&hyperv, &window, 0x5c, 0x5000, &message);
    let payload = b"abc".to_vec();
    assert_eq!(
        posted,
        Call::PostMessage {
            connection: 4,
            payload
        }
    );
    message[12] = 241;
    for (name, control, at, status) in [
        ("too long", 0x5c, 0x5000, Status::InvalidParameter),
        ("crossing a page", 0x5c, 0x5ff8, Status::InvalidAlignment),
        ("odd address", 0x5c, 0x5004, Status::InvalidAlignment),
        ("in registers", 0x1_005c, 0x5000, Status::InvalidInput),
        ("unknown", 0x46, 0x5000, Status::InvalidCode),
    ] {
        let failed = call(&hyperv, &window, control, at, &message);
        assert_eq!(failed, Call::Fails(status), "{name}");
    }
    let nowhere = Input {
        control: 0x5c,
        input: 0xffff_ffff_ffff_f000,
    };
    assert_eq!(hyperv.call(nowhere), Call::Fails(Status::InvalidParameter));
}

#[test]
fn a_saved_state_goes_on() {
    let (mut hyperv, window) = started(0xf3);
    let mut effects = Vec::new();
    hyperv.post((1, 2), 1, b"first", &mut effects).unwrap();
    hyperv.post((1, 2), 1, b"second", &mut effects).unwrap();
    let saved = hyperv.save();
    let clocks = hyperv.clocks;
    let mut other = Hyperv::new(hyperv.memory.clone(), clocks, 2);
    other.restore(&saved).unwrap();
    window.write(MESSAGES as usize + 512, &[0; 4]).unwrap();
    write(&mut other, 1, 0x4000_0084, 0);
    assert_eq!(read(&window, MESSAGES + 512 + 16), *b"second");
    assert!(
        Hyperv::new(hyperv.memory.clone(), clocks, 1)
            .restore(&saved)
            .is_err()
    );
    assert!(other.restore(&serde_json::json!({"x": 1})).is_err());
    other.reset();
    assert_eq!(other.read_msr(1, SINT2), Some(0x10000));
}
