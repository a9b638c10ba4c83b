//! Virtqueues in memory that the guest fills with anything, at any time between two calls.
//!
//! Input: how the ring is used, then actions until it ends. Some write to guest memory, raw or as a driver would; the
//! others are calls to the queues. What must hold: every call comes back after bounded work, a ring that lies faults
//! once and is left alone from then on, every frame taken is given back, and no copy gets lost in a delivery.

mod guest;
mod queues;
mod raw;

use vswitch::ports::vhost::packed::PackedRing;
use vswitch::ports::vhost::ring::Negotiated;
use vswitch::ports::vhost::split::SplitRing;

use crate::input::Input;
use guest::{Guest, Which};

/// Runs one input over split rings.
pub fn split(data: &[u8]) {
    let mut input = Input::new(data);
    let (setup, mut guest) = start(&mut input, false);
    let build = |guest: &Guest, which, negotiated| {
        SplitRing::new(guest.split_parts(which), setup.size, negotiated)
    };
    run(&mut input, &setup, &mut guest, build);
}

/// Runs one input over packed rings.
pub fn packed(data: &[u8]) {
    let mut input = Input::new(data);
    let (setup, mut guest) = start(&mut input, true);
    let build = |guest: &Guest, which, negotiated| {
        PackedRing::new(
            guest.packed_parts(which),
            setup.size,
            setup.base,
            negotiated,
            None,
        )
    };
    run(&mut input, &setup, &mut guest, build);
}

/// How the rings are used.
struct Setup {
    size: u16,
    base: u32,
    raw: bool,
    mergeable: bool,
    header_len: u8,
    negotiated: Negotiated,
}

fn start(input: &mut Input<'_>, packed: bool) -> (Setup, Guest) {
    let bits = input.u8();
    let setup = Setup {
        size: match input.u8() {
            byte @ 0xf0.. => byte.into(),
            byte => 1 << (byte % 9),
        },
        base: if packed {
            0x8000 ^ u32::from(input.u16())
        } else {
            input.u16().into()
        },
        raw: bits & 1 != 0,
        mergeable: bits & 2 != 0,
        header_len: if bits & 4 != 0 { 10 } else { 12 },
        negotiated: Negotiated {
            indirect: bits & 8 != 0,
            event_idx: bits & 16 != 0,
            writable: false,
            batch_used: bits & 32 != 0,
        },
    };
    let guest = Guest::new(packed, setup.size, setup.base as u16);
    (setup, guest)
}

fn run<R: vswitch::ports::vhost::ring::Ring>(
    input: &mut Input<'_>,
    setup: &Setup,
    guest: &mut Guest,
    build: impl Fn(&Guest, Which, Negotiated) -> Result<R, vswitch::port::PortFault>,
) {
    if setup.raw {
        if let Ok(ring) = build(guest, Which::Tx, setup.negotiated) {
            raw::run(input, guest, ring, setup.size);
        }
        return;
    }
    let receive = Negotiated {
        batch_used: false,
        writable: true,
        ..setup.negotiated
    };
    if let (Ok(tx), Ok(rx)) = (
        build(guest, Which::Tx, setup.negotiated),
        build(guest, Which::Rx, receive),
    ) {
        queues::run(input, guest, setup, tx, rx);
    }
}
