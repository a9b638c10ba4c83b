//! A synthetic adapter whose guest says anything in its rings, beside a port that behaves.
//!
//! Input: how the guest starts, then actions until it ends: packets of any kind, data and control messages with any bytes,
//! lies in the control pages and data, memory taken back. What must hold: every call comes back after bounded work, the
//! other port sees no fault, every frame is accounted for, and while the guest does not lie about indices, it is
//! answered once for everything that wants an answer.

use vnic_synthetic::driver::{Carry, Frame, Guest, Setup};
use vswitch::control::{NetworkSpec, Switch};
use vswitch::network::PortPolicy;
use vswitch::port::PortControl;
use vswitch::ports::memory::MemoryPort;

use crate::input::Input;

fn setup(bits: u8) -> Setup {
    let setup = if bits & 1 != 0 {
        Setup::ipxe()
    } else {
        Setup::linux()
    };
    Setup {
        ring: 4,
        receive: 32,
        send: if bits & 1 != 0 { 0 } else { 8 },
        scattered: bits & 2 != 0,
        ..setup
    }
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let bits = input.u8();
    let (mut guest, sides) = Guest::ready(setup(bits));
    guest.lenient = true;
    let (switch, workers) = Switch::stepped(1).expect("a switch");
    let network = switch
        .create_network(&NetworkSpec::default())
        .expect("a network");
    let (others, station) = MemoryPort {
        buffer: 2048,
        depth: 64,
        ..MemoryPort::default()
    }
    .open()
    .expect("a port");
    let ports = [sides, others].map(|sides| {
        let port = switch
            .add_port(PortPolicy::default(), None)
            .expect("a port");
        port.attach(sides);
        port.connect(network).expect("a network");
        port
    });
    let poll = || {
        workers[0].lock().expect("a worker").poll(0);
    };
    let (mut lied, mut budget) = (false, 200);
    while !input.is_empty() && budget > 0 {
        budget -= 1;
        lied |= act(&mut input, &mut guest);
        if input.u8() & 3 == 0 {
            let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
            frame.resize(usize::from(input.u16() % 1514).max(14), 0);
            station.send(&frame);
        }
        poll();
        while station.discard() {}
        if !lied {
            guest.poll();
        }
    }
    for _ in 0..8 {
        poll();
        if !lied {
            guest.poll();
        }
    }
    assert_eq!(ports[1].fault(), None, "the other port does not notice");
    for port in &ports {
        let tx = port.counters().tx;
        assert_eq!(
            tx.frames + tx.extra_copies,
            tx.delivered + tx.consumed + tx.dropped(),
            "{tx:?}"
        );
    }
    if !lied {
        assert_eq!(
            ports[0].fault(),
            None,
            "a guest that does not lie is not faulted"
        );
        assert_eq!(guest.outstanding(), 0, "unanswered packets");
    }
}

/// One action of the guest. True if it may have lied about its rings.
fn act(input: &mut Input<'_>, guest: &mut Guest) -> bool {
    let carry = input.choose(&[Carry::SendBuffer, Carry::Pages, Carry::Mixed]);
    match input.u8() % 12 {
        0 => {
            let at = usize::from(input.u8() % 5) * 4;
            let value = if input.u8() & 1 != 0 {
                input.u32()
            } else {
                u32::from(input.u16()) & !7
            };
            let ring = match input.u8() & 1 {
                0 => &guest.to_host,
                _ => &guest.from_host,
            };
            ring.control.write(at, &value.to_le_bytes()).expect("own");
            return true;
        }
        1 => {
            let bytes = input.bytes(64);
            guest.to_host.overwrite(u32::from(input.u8()) * 8, bytes);
            return true;
        }
        2 => {
            let gpadl = 0xe1e11 + u32::from(input.u8() & 1);
            guest.host.adapter.remove(gpadl);
        }
        3 => {
            let len = usize::from(input.u8());
            let bytes = input.bytes(len).to_vec();
            guest.send_control(&bytes);
        }
        4 => {
            let mut words = [input.u8().into(), 0, input.u8().into(), input.choose(OIDS)];
            words[0] %= 9;
            let len = usize::from(input.u8());
            let value = input.bytes(len);
            let body = [value.len() as u32, 20, 0];
            words[1] = 28 + value.len() as u32;
            let mut bytes: Vec<u8> = words
                .iter()
                .chain(&body)
                .flat_map(|word| word.to_le_bytes())
                .collect();
            bytes.extend(value);
            guest.send_control(&bytes);
        }
        5..8 => {
            let len = usize::from(input.u8());
            let bytes = input.bytes(len).to_vec();
            guest.send_raw(carry, &bytes);
        }
        8 | 9 => {
            let mut frame = Frame::plain(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
            let len = usize::from(input.u8());
            frame.bytes.extend(input.bytes(len));
            for _ in 0..input.u8() % 3 {
                frame = frame.with(u32::from(input.u8() % 8), input.u32());
            }
            guest.send(carry, &[frame]);
        }
        _ => {
            let kind = input.choose(&[6, 7, 9, 11, 0, 300]);
            let mut payload = vec![0; 40];
            let message = input.choose(&[1u8, 100, 101, 103, 104, 106, 107, 108, 125, 133, 9]);
            payload[0] = message;
            for byte in payload.iter_mut().skip(4) {
                *byte = input.u8() & 0x3;
            }
            let len = usize::from(input.u8() & 0x38);
            let mut header = vec![0; len];
            for byte in &mut header {
                *byte = input.u8();
            }
            guest.packet(
                kind,
                kind != 11 && input.u8() & 1 != 0,
                &header,
                &payload,
                None,
            );
        }
    }
    false
}

const OIDS: &[u32] = &[
    0x0001_010e,
    0x0101_0103,
    0xfc01_020c,
    0xfc01_020d,
    0x0001_0204,
    0x0001_0203,
    0x0001_021b,
    0x0001_0101,
];
