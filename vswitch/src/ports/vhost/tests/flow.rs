//! Frames arrive whole, once and in order, however drivers lay them out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use offload::VirtioNetHdr;
use proptest::prelude::*;

use super::{BASE, frame, started, turn};
use crate::burst::Burst;
use crate::deliver::Report;
use crate::drops::DropReason;
use crate::ports::vhost::driver::{Guest, Layout, Setup};
use crate::ports::vhost::feature;

fn layout() -> impl Strategy<Value = Layout> {
    (prop::collection::vec(1u32..200, 0..6), any::<bool>())
        .prop_map(|(cuts, indirect)| Layout { cuts, indirect })
}

fn setup() -> impl Strategy<Value = Setup> {
    let bits = [
        feature::RING_PACKED,
        feature::EVENT_IDX,
        feature::IN_ORDER,
        feature::MRG_RXBUF,
    ];
    (
        prop::sample::subsequence(bits.to_vec(), 0..=bits.len()),
        3u32..7,
        any::<bool>(),
        1u64..4,
        any::<bool>(),
    )
        .prop_map(|(bits, size, shuffled, regions, legacy)| {
            let mut features = bits
                .into_iter()
                .fold(BASE | feature::INDIRECT_DESC, |all, bit| all | bit);
            if legacy && features & feature::RING_PACKED == 0 {
                features &= !feature::VERSION_1;
            }
            let size = 1u16 << size;
            let order = match shuffled && features & feature::IN_ORDER == 0 {
                // 5 has no common factor with a power of two.
                true => (0..size)
                    .map(|index| index.wrapping_mul(5) % size)
                    .collect(),
                false => Vec::new(),
            };
            Setup {
                features,
                queue_size: size,
                pairs: 1,
                buffer_len: 4096,
                order,
                regions,
            }
        })
}

/// Receives everything there is.
fn drain(guest: &mut Guest, into: &mut Vec<Vec<u8>>) {
    while let Some(received) = guest.receive(0).unwrap() {
        into.push(received.frame);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn frames_arrive_whole_once_and_in_order(
        setups in (setup(), setup()),
        frames in prop::collection::vec((14usize..3000, layout()), 1..80),
        buffers in prop::collection::vec((1600u32..4096, layout()), 1..20),
    ) {
        let mergeable = setups.1.features & feature::MRG_RXBUF != 0;
        let (mut from, _session, mut from_sides) = started(setups.0);
        let (mut to, _other, mut to_sides) = started(setups.1);
        let (mut burst, mut report) = (Burst::new(), Report::default());
        let (mut sent, mut received) = (Vec::new(), Vec::new());
        let mut buffers = buffers.iter().cycle();
        for (seed, (len, layout)) in frames.iter().enumerate() {
            // Without merging, a frame must fit one buffer.
            let len = if mergeable { *len } else { (*len).min(1500) };
            let frame = frame(seed as u32, len);
            while !from.send(0, &VirtioNetHdr::default(), &frame, layout).unwrap() {
                // The ring is full: the switch must make room.
                from.publish(1).unwrap();
                loop {
                    let (len, layout) = buffers.next().unwrap();
                    if !to.post_receive(0, *len, layout).unwrap() {
                        break;
                    }
                }
                to.publish(0).unwrap();
                turn(&mut from_sides, &mut to_sides, &mut burst, &mut report);
                drain(&mut to, &mut received);
            }
            sent.push(frame);
        }
        from.publish(1).unwrap();
        for _ in 0..200 {
            loop {
                let (len, layout) = buffers.next().unwrap();
                if !to.post_receive(0, *len, layout).unwrap() {
                    break;
                }
            }
            to.publish(0).unwrap();
            if turn(&mut from_sides, &mut to_sides, &mut burst, &mut report) == 0 {
                break;
            }
            drain(&mut to, &mut received);
        }
        drain(&mut to, &mut received);
        prop_assert_eq!(from_sides.tx.fault(), None);
        prop_assert_eq!(to_sides.rx.fault(), None);
        // A burst can be more than the small rings take: those are dropped by name, and nothing else is.
        let full = report.source.drops.get(DropReason::RxFull) as usize;
        prop_assert_eq!(report.source.drops.total() as usize, full);
        prop_assert_eq!(received.len() + full, sent.len());
        let mut rest = sent.iter();
        for frame in &received {
            prop_assert!(rest.any(|sent| sent == frame), "a frame that was not sent, or is out of order");
        }
    }
}

fn pair_of(features: u64, size: u16) -> Setup {
    Setup {
        features: BASE | features,
        queue_size: size,
        ..Setup::default()
    }
}

#[test]
fn indices_wrap_and_nothing_is_lost() {
    for features in [
        0,
        feature::EVENT_IDX,
        feature::RING_PACKED,
        feature::IN_ORDER,
        feature::RING_PACKED | feature::IN_ORDER,
    ] {
        let setup = pair_of(features, 128);
        let (mut from, _session, mut from_sides) = started(setup.clone());
        let (mut to, _other, mut to_sides) = started(setup);
        let (mut burst, mut report) = (Burst::new(), Report::default());
        to.receive_burst(0, 0).unwrap();
        from.prepare_sending(0, &[frame(1, 60)]).unwrap();
        let mut received = 0;
        for _ in 0..3200 {
            let sent = from.send_burst(0, 60, 48).unwrap();
            for _ in 0..3 {
                turn(&mut from_sides, &mut to_sides, &mut burst, &mut report);
            }
            assert_eq!(to.receive_burst(0, 64).unwrap(), sent);
            received += sent;
        }
        assert!(received > 150_000, "{features:#x}: {received}");
        assert_eq!(report.source.delivered as usize, received);
        assert_eq!(report.source.drops.total(), 0);
    }
}

/// A burst that fills the ring waits for a driver that is at work, on another thread.
#[test]
fn a_full_ring_is_waited_for_a_moment() {
    const BUFFERS: u16 = 8;
    for features in [0, feature::RING_PACKED] {
        let (mut from, _session, mut from_sides) = started(pair_of(features, 128));
        let (mut to, _other, mut to_sides) = started(pair_of(features, BUFFERS));
        let (mut burst, mut report) = (Burst::new(), Report::default());
        from.prepare_sending(0, &[frame(1, 60)]).unwrap();
        to.receive_burst(0, 0).unwrap();
        // Nobody makes room.
        from.send_burst(0, 60, 3 * usize::from(BUFFERS)).unwrap();
        turn(&mut from_sides, &mut to_sides, &mut burst, &mut report);
        assert_eq!(report.source.delivered, u64::from(BUFFERS));
        let at_work = AtomicBool::new(true);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while at_work.load(Ordering::Relaxed) {
                    to.receive_burst(0, 64).unwrap();
                }
            });
            let start = Instant::now();
            // The other thread may not have a processor at the moment.
            let whole = (0..).any(|_| {
                from.send_burst(0, 60, 3 * usize::from(BUFFERS)).unwrap();
                let before = report.source.delivered;
                turn(&mut from_sides, &mut to_sides, &mut burst, &mut report);
                let delivered = report.source.delivered - before;
                delivered == 3 * u64::from(BUFFERS) || start.elapsed() > Duration::from_secs(20)
            });
            at_work.store(false, Ordering::Relaxed);
            assert!(
                whole && start.elapsed() < Duration::from_secs(20),
                "{features:#x}"
            );
        });
    }
}

#[test]
fn without_merging_a_short_buffer_drops_by_name_and_stays() {
    for packed in [0, feature::RING_PACKED] {
        let (mut from, _session, mut from_sides) = started(pair_of(packed, 8));
        let (mut to, _other, mut to_sides) = started(pair_of(packed, 8));
        let (mut burst, mut report) = (Burst::new(), Report::default());
        to.post_receive(0, 500, &Layout::default()).unwrap();
        to.publish(0).unwrap();
        for len in [1000, 400, 400] {
            from.send(
                0,
                &VirtioNetHdr::default(),
                &frame(len, len as usize),
                &Layout::default(),
            )
            .unwrap();
        }
        from.publish(1).unwrap();
        turn(&mut from_sides, &mut to_sides, &mut burst, &mut report);
        assert_eq!(report.source.drops.get(DropReason::RxTooSmall), 1);
        assert_eq!(report.source.drops.get(DropReason::RxFull), 1);
        let got = to.receive(0).unwrap().unwrap();
        assert_eq!(got.frame, frame(400, 400));
        assert_eq!(got.header.num_buffers, 1);
    }
}

#[test]
fn offload_requests_travel() {
    let offloads = feature::GUEST_CSUM | feature::GUEST_TSO4 | feature::MRG_RXBUF;
    let setup = Setup {
        buffer_len: 4096,
        ..pair_of(offloads, 64)
    };
    let (mut from, _session, mut from_sides) = started(Setup {
        buffer_len: 70_000,
        ..setup.clone()
    });
    let (mut to, _other, mut to_sides) = started(setup);
    let (mut burst, mut report) = (Burst::new(), Report::default());
    // IPv4 and TCP headers in front of 60000 bytes.
    let mut bytes = frame(3, 54 + 60_000);
    bytes[12..14].copy_from_slice(&[8, 0]);
    bytes[14..24].copy_from_slice(&[0x45, 0, 0xea, 0x88, 0, 0, 0x40, 0, 64, 6]);
    bytes[46] = 0x50;
    bytes[47] = 0x10;
    let header = VirtioNetHdr {
        flags: VirtioNetHdr::NEEDS_CSUM,
        gso_type: VirtioNetHdr::GSO_TCPV4,
        hdr_len: 54,
        gso_size: 1448,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };
    while to.post_receive(0, 4096, &Layout::default()).unwrap() {}
    to.publish(0).unwrap();
    from.send(
        0,
        &header,
        &bytes,
        &Layout {
            cuts: vec![12, 54, 3000],
            indirect: false,
        },
    )
    .unwrap();
    from.publish(1).unwrap();
    turn(&mut from_sides, &mut to_sides, &mut burst, &mut report);
    assert_eq!(
        report.source.delivered,
        1,
        "{:?}",
        report.source.drops.iter().collect::<Vec<_>>()
    );
    let got = to.receive(0).unwrap().unwrap();
    assert_eq!(
        got.header,
        VirtioNetHdr {
            num_buffers: 15,
            ..header
        }
    );
    assert!(got.frame == bytes);
}

#[test]
fn flows_spread_over_queues_and_keep_to_theirs() {
    let setup = Setup {
        pairs: 4,
        ..pair_of(feature::MQ, 64)
    };
    let (mut from, _session, mut from_sides) = started(setup.clone());
    let (mut to, _other, mut to_sides) = started(setup);
    let (mut burst, mut report) = (Burst::new(), Report::default());
    for pair in 0..4 {
        to.receive_burst(pair, 0).unwrap();
    }
    let mut queue_of = [None; 32];
    for round in 0..2 {
        for flow in 0..32u8 {
            let mut bytes = frame(flow.into(), 100);
            bytes[5] = flow;
            from.send(
                usize::from(flow) % 4,
                &VirtioNetHdr::default(),
                &bytes,
                &Layout::default(),
            )
            .unwrap();
        }
        for pair in 0..4 {
            from.publish(2 * pair + 1).unwrap();
        }
        while turn(&mut from_sides, &mut to_sides, &mut burst, &mut report) > 0 {}
        assert_eq!(report.source.delivered, 32 * (round + 1));
        for pair in 0..4 {
            // `receive_burst` posted plain buffers; the frames in them are looked at by address.
            while let Some((id, len)) = to.rings[2 * pair].ring.take_used().unwrap() {
                assert_eq!(len, 112);
                let flow = to.first_bytes(2 * pair, id)[12 + 5];
                let queue = queue_of[usize::from(flow)].get_or_insert(pair);
                assert_eq!(*queue, pair, "flow {flow} changed its queue");
            }
        }
    }
    let used: std::collections::HashSet<_> = queue_of.iter().flatten().collect();
    assert!(used.len() >= 3, "32 flows on {} of 4 queues", used.len());
}
