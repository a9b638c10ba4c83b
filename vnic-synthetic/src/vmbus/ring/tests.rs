//! Rings against a guest that was written independently, and against a guest that lies.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use guestmem::Memory;
use proptest::prelude::*;

use super::*;
use crate::driver::ring::GuestRing;
use crate::vmbus::gpadl::PageRange;

/// Both ends of a channel, each ring with `data` pages of data; `pages` are the guest pages, in GPADL order.
struct Rig {
    to_host: GuestRing,
    from_host: GuestRing,
    incoming: Incoming,
    outgoing: Outgoing,
}

fn range(pages: &[u64]) -> PageRange {
    PageRange {
        offset: 0,
        len: pages.len() as u32 * PAGE,
        pages: pages.into(),
    }
}

fn rig(pages: &[u64]) -> Rig {
    let memory = Arc::new(Memory::anonymous(64 * 4096).unwrap());
    let half = pages.len() / 2;
    let guest = |pages: &[u64]| {
        let data = Pages::new(&memory, &range(&pages[1..])).unwrap();
        GuestRing::new(&memory, pages[0] * 4096, data)
    };
    let (to_host, from_host) = (guest(&pages[..half]), guest(&pages[half..]));
    let range = range(pages);
    let all = Pages::new(&memory, &range).unwrap();
    let (incoming, outgoing) = open(all, &range, half as u32).unwrap();
    Rig {
        to_host,
        from_host,
        incoming,
        outgoing,
    }
}

fn next(incoming: &mut Incoming) -> Option<(u16, u64, Vec<u8>, Vec<u8>)> {
    let mut buffer = [0; MAX_PACKET];
    let packet = incoming.next(&mut buffer).unwrap()?;
    Some((
        packet.kind,
        packet.transaction,
        packet.header.to_vec(),
        packet.payload.to_vec(),
    ))
}

#[test]
fn shapes_that_are_no_rings_are_refused() {
    let memory = Arc::new(Memory::anonymous(16 * 4096).unwrap());
    let whole = range(&[0, 1, 2, 3]);
    let pages = Pages::new(&memory, &whole).unwrap();
    for downstream in [0, 1, 3, 4, u32::MAX] {
        let error = open(pages.clone(), &whole, downstream).err().unwrap();
        assert!(matches!(error, RingError::Split { .. }), "{downstream}");
    }
    for (offset, len) in [(8, 4 * PAGE), (0, 4 * PAGE - 8)] {
        let range = PageRange {
            offset,
            len,
            pages: [0, 1, 2, 3, 4].into(),
        };
        let error = open(Pages::new(&memory, &range).unwrap(), &range, 2).err();
        assert!(matches!(error, Some(RingError::Shape { .. })));
    }
    let outside = Pages::new(&memory, &range(&[3, 16])).err();
    assert_eq!(outside, Some(PageError(16)));
    assert_eq!(
        Pages::new(&memory, &range(&[u64::MAX])).err(),
        Some(PageError(u64::MAX))
    );
}

#[test]
fn a_signal_is_wanted_by_who_waits_and_has_read_everything() {
    let mut rig = rig(&[9, 3, 4, 20]);
    let push = |outgoing: &mut Outgoing| {
        assert!(outgoing.push(kind::COMPLETION, 1, &[], &[0; 8]).unwrap());
        outgoing.publish().unwrap()
    };
    assert!(push(&mut rig.outgoing), "empty ring, unmasked");
    assert!(!push(&mut rig.outgoing), "the guest was told already");
    while rig.from_host.receive().is_some() {}
    rig.from_host.mask(true);
    assert!(!push(&mut rig.outgoing), "masked");
    rig.from_host.mask(false);
    while rig.from_host.receive().is_some() {}
    assert!(push(&mut rig.outgoing));
    assert!(!rig.outgoing.publish().unwrap(), "nothing new");
}

#[test]
fn a_polling_host_masks_signals_and_wakes_without_losing_one() {
    let mut rig = rig(&[9, 3, 4, 20]);
    rig.incoming.disarm().unwrap();
    assert_eq!(rig.to_host.send(kind::IN_BAND, 0, 1, &[], &[]), Some(false));
    assert!(rig.incoming.arm().unwrap(), "came before the host slept");
    assert!(next(&mut rig.incoming).is_some());
    rig.incoming.publish().unwrap();
    assert!(!rig.incoming.arm().unwrap());
    assert_eq!(rig.to_host.send(kind::IN_BAND, 0, 2, &[], &[]), Some(true));
}

#[test]
fn a_guest_that_waits_for_room_is_signalled_once_there_is_enough() {
    let mut rig = rig(&[0, 1, 2, 3]);
    while rig
        .to_host
        .send(kind::IN_BAND, 0, 1, &[], &[0; 1000])
        .is_some()
    {}
    rig.to_host.wait_for_room(2500);
    assert!(next(&mut rig.incoming).is_some());
    assert!(!rig.incoming.publish().unwrap(), "not enough room yet");
    assert!(next(&mut rig.incoming).is_some());
    assert!(rig.incoming.publish().unwrap(), "enough now");
    assert!(next(&mut rig.incoming).is_some());
    assert!(!rig.incoming.publish().unwrap(), "it was told");
}

#[test]
fn a_full_ring_takes_nothing_and_asks_for_room() {
    let mut rig = rig(&[0, 1, 2, 3]);
    let mut count = 0;
    while rig
        .outgoing
        .push(kind::COMPLETION, count, &[], &[7; 40])
        .unwrap()
    {
        count += 1;
    }
    assert_eq!(count, 63, "64 bytes each, and never quite full");
    rig.outgoing.publish().unwrap();
    rig.outgoing.want_room(true).unwrap();
    assert_ne!(rig.from_host.control.load_u32(12, Ordering::Relaxed), Ok(0));
    for transaction in 0..count {
        let packet = rig.from_host.receive().unwrap();
        assert_eq!((packet.transaction, packet.flags), (transaction, 0));
    }
    assert!(
        rig.outgoing
            .push(kind::COMPLETION, 1, &[], &[7; 40])
            .unwrap()
    );
}

#[test]
fn a_packet_longer_than_any_message_fails_alone() {
    let mut rig = rig(&[0, 1, 2, 3, 4, 5]);
    assert!(rig.to_host.send(9, 1, 5, &[1; 8], &[0; 3000]).is_some());
    assert!(rig.to_host.send(6, 1, 6, &[], &[2; 8]).is_some());
    assert_eq!(next(&mut rig.incoming), Some((9, 5, vec![], vec![])));
    assert_eq!(next(&mut rig.incoming), Some((6, 6, vec![], vec![2; 8])));
}

#[test]
fn a_ring_that_lies_is_a_fault() {
    // Field of the control page, value, or first word of a packet.
    let cases: [(&str, usize, u32); 3] = [
        ("index beyond the ring", 0, 4096),
        ("index out of line", 0, 4),
        ("length of nothing", 0, 8),
    ];
    for (name, at, value) in cases {
        let mut rig = rig(&[0, 1, 2, 3]);
        rig.to_host
            .control
            .store_u32(at, value, Ordering::Relaxed)
            .unwrap();
        assert!(rig.incoming.next(&mut [0; MAX_PACKET]).is_err(), "{name}");
    }
    // Header length and length of the packet, in units of 8 bytes.
    for (name, header, len) in [
        ("header shorter than a descriptor", 1, 4),
        ("packet shorter than its header", 4, 3),
        ("packet beyond the write index", 2, 600),
    ] {
        let mut rig = rig(&[0, 1, 2, 3]);
        rig.to_host.send(6, 0, 0, &[], &[0; 32]);
        let descriptor = [6u16, header, len, 0].map(u16::to_le_bytes).concat();
        rig.to_host.overwrite(0, &descriptor);
        assert!(rig.incoming.next(&mut [0; MAX_PACKET]).is_err(), "{name}");
    }
    let mut rig = rig(&[0, 1, 2, 3]);
    rig.outgoing.push(kind::COMPLETION, 1, &[], &[]).unwrap();
    rig.from_host
        .control
        .store_u32(4, 0xffff_fff8, Ordering::Relaxed)
        .unwrap();
    assert!(
        rig.outgoing.publish().is_err(),
        "read index beyond the ring"
    );
}

#[test]
fn rings_go_on_where_they_stood() {
    let pages = range(&[0, 1, 2, 3]);
    let memory = Arc::new(Memory::anonymous(16 * 4096).unwrap());
    let data = Pages::new(&memory, &range(&[1])).unwrap();
    let mut to_host = GuestRing::new(&memory, 0, data);
    let open = || open(Pages::new(&memory, &pages).unwrap(), &pages, 2).unwrap();
    to_host.send(6, 0, 1, &[], &[]);
    to_host.send(6, 0, 2, &[], &[]);
    let (mut incoming, _) = open();
    assert_eq!(next(&mut incoming).unwrap().1, 1);
    incoming.publish().unwrap();
    assert_eq!(next(&mut incoming).unwrap().1, 2);
    // Not given back: taken again.
    let (mut incoming, _) = open();
    assert_eq!(next(&mut incoming).unwrap().1, 2);
}

proptest! {
    /// Packets of any length come out as they went in, in both directions, whatever order the pages lie in.
    #[test]
    fn packets_come_out_as_they_went_in(
        order in Just((0..10u64).collect::<Vec<_>>()).prop_shuffle(),
        steps in prop::collection::vec((any::<bool>(), 0usize..30, 0usize..300, any::<u64>()), 1..200),
    ) {
        let mut rig = rig(&order);
        let (mut up, mut down) = (VecDeque::new(), VecDeque::new());
        for (write, header, payload, transaction) in steps {
            let header: Vec<u8> = (0..header as u8 * 8).collect();
            let payload: Vec<u8> = (0..payload.next_multiple_of(8)).map(|i| i as u8).collect();
            if write {
                if rig.to_host.send(9, 1, transaction, &header, &payload).is_some() {
                    up.push_back((9, transaction, header.clone(), payload.clone()));
                }
                if rig.outgoing.push(7, transaction, &header, &payload).unwrap() {
                    down.push_back((7, transaction, header, payload));
                    rig.outgoing.publish().unwrap();
                }
            } else {
                prop_assert_eq!(next(&mut rig.incoming), up.pop_front());
                rig.incoming.publish().unwrap();
                let received = rig.from_host.receive();
                let received = received.map(|p| (p.kind, p.transaction, p.header, p.payload));
                prop_assert_eq!(received, down.pop_front());
            }
        }
    }

    /// A ring full of anything ends in bounded work: a fault, or no more packets.
    #[test]
    fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 4096), write in 0u32..512) {
        let mut rig = rig(&[0, 1, 2, 3]);
        rig.to_host.overwrite(0, &bytes);
        rig.to_host.control.store_u32(0, write * 8, Ordering::Relaxed).unwrap();
        let mut buffer = [0; MAX_PACKET];
        for _ in 0..=4096 / 24 {
            match rig.incoming.next(&mut buffer) {
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return Ok(()),
            }
        }
        prop_assert!(false, "more packets than bytes");
    }
}
