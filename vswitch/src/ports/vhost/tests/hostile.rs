//! Drivers that lie: each lie is named, ends the queue, and harms nothing else.

use std::sync::atomic::Ordering;

use guestmem::Window;
use offload::VirtioNetHdr;

use super::{BASE, frame, started, turn};
use crate::burst::Burst;
use crate::deliver::Report;
use crate::drops::DropReason;
use crate::port::PortFault;
use crate::ports::vhost::driver::{Guest, Layout, Setup};
use crate::ports::vhost::feature;
use crate::ports::vhost::ring::{INDIRECT, NEXT, WRITE};

const SIZE: u16 = 8;

/// The parts of ring `index`, for writing anything at all.
struct Parts {
    table: Window,
    avail: Window,
}

fn parts(guest: &Guest, index: usize) -> Parts {
    let addr = guest.rings[index].addr();
    let window = |at, len| guest.memory().window(at, len).unwrap();
    Parts {
        table: window(addr.table, 128),
        avail: window(addr.avail, 4),
    }
}

impl Parts {
    fn desc(&self, index: usize, addr: u64, len: u32, high: [u16; 2]) {
        self.table
            .store_u64(16 * index, addr, Ordering::Relaxed)
            .unwrap();
        let word = u64::from(len) | u64::from(high[0]) << 32 | u64::from(high[1]) << 48;
        self.table
            .store_u64(16 * index + 8, word, Ordering::Release)
            .unwrap();
    }
}

/// What a transmit queue says after `lie` has written to its ring, which holds one good frame.
fn tx_fault(features: u64, lie: impl Fn(&Guest, &Parts)) -> Option<PortFault> {
    let setup = Setup {
        features: BASE | features,
        queue_size: SIZE,
        ..Setup::default()
    };
    let (mut guest, _session, mut sides) = started(setup);
    guest
        .send(
            0,
            &VirtioNetHdr::default(),
            &frame(0, 60),
            &Layout::default(),
        )
        .unwrap();
    guest.publish(1).unwrap();
    lie(&guest, &parts(&guest, 1));
    let mut burst = Burst::new();
    sides.tx.gather(&mut burst);
    sides.tx.complete();
    // A fault stays, and the queue does nothing more.
    let fault = sides.tx.fault();
    sides.tx.arm();
    sides.tx.disarm();
    burst.clear();
    sides.tx.gather(&mut burst);
    assert!(fault.is_none() || burst.is_empty());
    assert_eq!(sides.tx.fault(), fault);
    fault
}

fn fault(what: &'static str, value: u64) -> Option<PortFault> {
    Some(PortFault { what, value })
}

#[test]
fn split_transmit() {
    let avail = |guest: &Guest, index: u16, first: u16| {
        let avail = guest
            .memory()
            .window(guest.rings[1].addr().avail, 6)
            .unwrap();
        avail.store_u16(4, first, Ordering::Relaxed).unwrap();
        avail.store_u16(2, index, Ordering::Release).unwrap();
    };
    let buffer = 0x10_0000;
    let indirect = feature::INDIRECT_DESC;
    assert_eq!(tx_fault(0, |_, _| {}), None);
    assert_eq!(
        tx_fault(0, |guest, _| avail(guest, 9, 0)),
        fault("available index", 9)
    );
    assert_eq!(
        tx_fault(0, |guest, _| avail(guest, 0xffff, 0)),
        fault("available index", 0xffff)
    );
    assert_eq!(
        tx_fault(0, |guest, _| avail(guest, 1, 8)),
        fault("descriptor index", 8)
    );
    let next = |next| move |_: &Guest, parts: &Parts| parts.desc(0, buffer, 80, [NEXT, next]);
    assert_eq!(tx_fault(0, next(8)), fault("descriptor index", 8));
    assert_eq!(
        tx_fault(0, next(0)),
        fault("length of a descriptor chain", 8)
    );
    let desc =
        |addr, len, flags| move |_: &Guest, parts: &Parts| parts.desc(0, addr, len, [flags, 0]);
    assert_eq!(
        tx_fault(0, desc(0x10, 80, 0)),
        fault("address of a buffer", 0x10)
    );
    assert_eq!(
        tx_fault(0, desc(u64::MAX, 80, 0)),
        fault("address of a buffer", u64::MAX)
    );
    assert_eq!(
        tx_fault(0, desc(buffer, u32::MAX, 0)),
        fault("address of a buffer", buffer)
    );
    assert_eq!(
        tx_fault(0, desc(buffer, 80, WRITE)),
        fault("writable buffer on a transmit queue", buffer)
    );
    assert_eq!(
        tx_fault(0, desc(buffer, 16, INDIRECT)),
        fault("flags of an indirect descriptor", 4)
    );
    assert_eq!(
        tx_fault(indirect, desc(buffer, 16, INDIRECT | NEXT)),
        fault("flags of an indirect descriptor", 5)
    );
    for len in [0, 15, 17, 16 * 1025] {
        let expected = fault("length of an indirect descriptor table", len.into());
        assert_eq!(tx_fault(indirect, desc(buffer, len, INDIRECT)), expected);
    }
    assert_eq!(
        tx_fault(indirect, desc(8, 16, INDIRECT)),
        fault("address of an indirect descriptor table", 8)
    );
}

/// An index that counts buffers as free which the device still has.
#[test]
fn split_index_over_taken_buffers() {
    let setup = Setup {
        features: BASE,
        queue_size: SIZE,
        ..Setup::default()
    };
    let (mut guest, _session, mut sides) = started(setup);
    guest
        .send(
            0,
            &VirtioNetHdr::default(),
            &frame(0, 60),
            &Layout::default(),
        )
        .unwrap();
    guest.publish(1).unwrap();
    let mut burst = Burst::new();
    sides.tx.gather(&mut burst);
    assert_eq!(burst.len(), 1);
    parts(&guest, 1)
        .avail
        .store_u16(2, 9, Ordering::Release)
        .unwrap();
    sides.tx.gather(&mut burst);
    assert_eq!(sides.tx.fault(), fault("available index", 9));
}

#[test]
fn split_indirect_table() {
    let buffer = 0x10_0000;
    let indirect = feature::INDIRECT_DESC;
    // A table in the unused end of the descriptor table itself: descriptors 4 and 5.
    let table = |addr, len, flags, next| {
        move |guest: &Guest, parts: &Parts| {
            let start = guest.rings[1].addr().table;
            parts.desc(0, start + 64, 32, [INDIRECT, 0]);
            parts.desc(4, addr, len, [flags, next]);
        }
    };
    assert_eq!(
        tx_fault(indirect, table(0, 16, INDIRECT, 0)),
        fault("flags of a descriptor in an indirect table", 4)
    );
    assert_eq!(
        tx_fault(indirect, table(buffer, 16, NEXT, 2)),
        fault("index in an indirect descriptor table", 2)
    );
    assert_eq!(
        tx_fault(indirect, table(buffer, 16, NEXT, 0)),
        fault("length of an indirect descriptor chain", 2)
    );
}

#[test]
fn packed_transmit() {
    const AVAIL: u16 = 1 << 7;
    let packed = feature::RING_PACKED;
    let indirect = packed | feature::INDIRECT_DESC;
    let buffer = 0x10_0000;
    let desc = |addr, len, flags| {
        move |_: &Guest, parts: &Parts| parts.desc(0, addr, len, [0, flags | AVAIL])
    };
    assert_eq!(tx_fault(packed, |_, _| {}), None);
    assert_eq!(
        tx_fault(packed, desc(0x10, 80, 0)),
        fault("address of a buffer", 0x10)
    );
    assert_eq!(
        tx_fault(packed, desc(buffer, 80, WRITE)),
        fault("writable buffer on a transmit queue", buffer)
    );
    assert_eq!(
        tx_fault(packed, desc(buffer, 16, INDIRECT)),
        fault("flags of an indirect descriptor", 0x84)
    );
    assert_eq!(
        tx_fault(indirect, desc(buffer, 15, INDIRECT)),
        fault("length of an indirect descriptor table", 15)
    );
    assert_eq!(
        tx_fault(indirect, desc(8, 16, INDIRECT)),
        fault("address of an indirect descriptor table", 8)
    );
    let endless = |_: &Guest, parts: &Parts| {
        (0..8).for_each(|index| parts.desc(index, buffer, 80, [0, NEXT | AVAIL]))
    };
    assert_eq!(
        tx_fault(packed, endless),
        fault("length of a descriptor chain", 8)
    );
    // The second lap over buffers that were never given back.
    let twice = |_: &Guest, parts: &Parts| {
        (0..7).for_each(|index| parts.desc(index, buffer, 10, [0, NEXT | AVAIL]));
        parts.desc(7, buffer, 10, [0, AVAIL]);
        parts.desc(0, buffer, 10, [0, 1 << 15]);
    };
    let setup = Setup {
        features: BASE | packed,
        queue_size: SIZE,
        ..Setup::default()
    };
    let (guest, _session, mut sides) = started(setup);
    twice(&guest, &parts(&guest, 1));
    parts(&guest, 1).desc(0, buffer, 10, [0, NEXT | AVAIL]);
    let mut burst = Burst::new();
    sides.tx.gather(&mut burst);
    assert_eq!((burst.len(), sides.tx.fault()), (1, None));
    twice(&guest, &parts(&guest, 1));
    sides.tx.gather(&mut burst);
    assert_eq!(
        sides.tx.fault(),
        fault("number of descriptors made available", 9)
    );
}

#[test]
fn receive() {
    for packed in [0, feature::RING_PACKED] {
        let setup = Setup {
            features: BASE | packed | feature::MRG_RXBUF,
            queue_size: SIZE,
            ..Setup::default()
        };
        // A chain is read-only, or lies outside, or is too short for a header.
        let cases: [(u64, u32, u16, Option<PortFault>); 4] = [
            (
                0x10_0000,
                100,
                0,
                fault("read-only buffer on a receive queue", 0x10_0000),
            ),
            (0x20, 100, WRITE, fault("address of a buffer", 0x20)),
            (
                0x10_0000,
                11,
                WRITE,
                fault("length of a mergeable receive buffer", 11),
            ),
            (
                0x10_0000,
                0,
                WRITE,
                fault("length of a mergeable receive buffer", 0),
            ),
        ];
        for (addr, len, flags, expected) in cases {
            let (mut from, _session, mut from_sides) = started(setup.clone());
            let (mut to, _other, mut to_sides) = started(setup.clone());
            to.post_receive(0, 2048, &Layout::default()).unwrap();
            let high = if packed == 0 {
                [flags, 0]
            } else {
                [0, flags | 1 << 7]
            };
            parts(&to, 0).desc(0, addr, len, high);
            if packed == 0 {
                parts(&to, 0)
                    .avail
                    .store_u16(2, 1, Ordering::Release)
                    .unwrap();
            }
            from.send(
                0,
                &VirtioNetHdr::default(),
                &frame(0, 60),
                &Layout::default(),
            )
            .unwrap();
            from.publish(1).unwrap();
            let mut report = Report::default();
            turn(
                &mut from_sides,
                &mut to_sides,
                &mut Burst::new(),
                &mut report,
            );
            assert_eq!(to_sides.rx.fault(), expected);
            assert_eq!(report.source.drops.get(DropReason::RxFault), 1);
            assert_eq!(from_sides.tx.fault(), None);
        }
    }
}

#[test]
fn bad_frames_are_refused_and_the_queue_goes_on() {
    for packed in [0, feature::RING_PACKED] {
        let features = BASE | packed | feature::INDIRECT_DESC;
        let setup = Setup {
            features,
            queue_size: 128,
            buffer_len: 70_000,
            ..Setup::default()
        };
        let (mut guest, _session, mut sides) = started(setup);
        let plain = VirtioNetHdr::default();
        let bad = VirtioNetHdr {
            gso_type: 3,
            ..plain
        };
        let pieces = |count: usize| Layout {
            cuts: vec![20; count],
            indirect: true,
        };
        let cases: [(&VirtioNetHdr, usize, Layout, Option<DropReason>); 7] = [
            (&plain, 60, Layout::default(), None),
            (&bad, 60, Layout::default(), Some(DropReason::BadOffload)),
            (&plain, 13, Layout::default(), Some(DropReason::Runt)),
            (&plain, 0, Layout::default(), Some(DropReason::Runt)),
            (
                &plain,
                65_558,
                Layout::default(),
                Some(DropReason::Oversize),
            ),
            (&plain, 3000, pieces(100), Some(DropReason::TooManySegments)),
            (&plain, 1400, pieces(60), None),
        ];
        for (seed, (header, len, layout, _)) in cases.iter().enumerate() {
            assert!(
                guest
                    .send(0, header, &frame(seed as u32, *len), layout)
                    .unwrap()
            );
        }
        guest.publish(1).unwrap();
        let mut burst = Burst::new();
        sides.tx.gather(&mut burst);
        let refused: Vec<_> = burst.frames().iter().map(|frame| frame.refused).collect();
        let expected: Vec<_> = cases.iter().map(|case| case.3).collect();
        assert_eq!(refused, expected);
        sides.tx.complete();
        assert_eq!(sides.tx.fault(), None);
        assert_eq!(guest.ring(1).unwrap().reclaim().unwrap(), cases.len());
    }
}

#[test]
fn memory_that_is_taken_away_ends_the_port_only() {
    for packed in [0, feature::RING_PACKED] {
        let setup = Setup {
            features: BASE | packed,
            ..Setup::default()
        };
        let (mut guest, _session, mut sides) = started(setup);
        guest
            .send(
                0,
                &VirtioNetHdr::default(),
                &frame(0, 60),
                &Layout::default(),
            )
            .unwrap();
        guest.publish(1).unwrap();
        rustix::fs::ftruncate(guest.memory_fd(), 0).unwrap();
        sides.tx.gather(&mut Burst::new());
        assert_eq!(
            sides.tx.fault(),
            fault("guest memory (taken away by its owner)", 0)
        );
    }
}
