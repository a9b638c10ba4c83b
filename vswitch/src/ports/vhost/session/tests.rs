use super::*;
use crate::burst::Burst;
use crate::ports::vhost::driver::{Guest, Layout, Setup};
use crate::ports::vhost::message::{InflightDesc, VringAddr, VringState};
use crate::ports::vhost::tests::{BASE, frame, offer, started};
use offload::VirtioNetHdr;

fn value(reply: Option<Reply>) -> u64 {
    u64::from_ne_bytes(reply.unwrap().body.try_into().unwrap())
}

#[test]
fn offers() {
    let mut session = Session::new(offer(4));
    assert_eq!(
        value(session.handle(Message::GetFeatures).unwrap()),
        FEATURES
    );
    assert_eq!(
        value(session.handle(Message::GetProtocolFeatures).unwrap()),
        PROTOCOL_FEATURES
    );
    assert_eq!(value(session.handle(Message::GetQueueNum).unwrap()), 4);
    assert_eq!(value(session.handle(Message::GetMaxMemSlots).unwrap()), 509);
    session.handle(Message::SetStatus(15)).unwrap();
    assert_eq!(value(session.handle(Message::GetStatus).unwrap()), 15);
}

#[test]
fn refusals_name_the_value() {
    let bad: Vec<(Message, &str)> = vec![
        (
            Message::SetFeatures(1 << 63),
            "features 0x8000000000000000 were not offered",
        ),
        (
            Message::SetProtocolFeatures(1 << 9),
            "protocol features 0x200 were not offered",
        ),
        (
            Message::SetVringNum(VringState { index: 2, num: 8 }),
            "ring 2: the port has 2",
        ),
        (
            Message::SetVringNum(VringState {
                index: 0,
                num: 32_769,
            }),
            "ring size 0x8001",
        ),
        (
            Message::SetVringNum(VringState { index: 0, num: 0 }),
            "ring size 0x0",
        ),
        (Message::NetSetMtu(67), "MTU 0x43"),
        (Message::NetSetMtu(9001), "MTU 0x2329"),
        (Message::SendRarp(Mac::BROADCAST), "announced address"),
        (Message::SetStatus(256), "device status 0x100"),
        (
            Message::RemMemReg(RegionKey {
                guest_addr: 1,
                user_addr: 2,
                len: 3,
            }),
            "guest address 0x1 of 0x3 bytes",
        ),
    ];
    for (message, text) in bad {
        let error = Session::new(offer(1))
            .handle(message)
            .unwrap_err()
            .to_string();
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn a_ring_outside_memory_does_not_start() {
    let guest = Guest::new(Setup::default()).unwrap();
    let mut session = Session::new(offer(1));
    for message in guest.messages().unwrap() {
        session.handle(message).unwrap();
    }
    let addr = VringAddr {
        index: 1,
        table: 0x1234_0000,
        used: 0,
        avail: 0,
    };
    session.handle(Message::SetVringAddr(addr)).unwrap();
    let Err(SessionError::Ring { index: 1, source }) = session.start() else {
        panic!("started")
    };
    assert_eq!(
        source,
        PortFault {
            what: "address of the descriptor table",
            value: 0x1234_0000
        }
    );
}

#[test]
fn rings_run_only_when_everything_was_said() {
    let guest = Guest::new(Setup::default()).unwrap();
    let messages = guest.messages().unwrap().len();
    // The last message enables the last ring; without any one of its six, it does not run.
    for left_out in messages - 6..messages {
        let mut session = Session::new(offer(1));
        for (index, message) in guest.messages().unwrap().into_iter().enumerate() {
            let optional = matches!(message, Message::SetVringBase(_) | Message::SetVringCall(_));
            if index != left_out || optional {
                session.handle(message).unwrap();
            }
        }
        let optional = left_out == messages - 5 || left_out == messages - 2;
        assert_eq!(session.ready_rings(), if optional { 2 } else { 1 });
    }
}

/// Sends `count` frames that tell their number from `first` on.
fn send(guest: &mut Guest, first: u32, count: u32) {
    for seed in first..first + count {
        assert!(
            guest
                .send(
                    0,
                    &VirtioNetHdr::default(),
                    &frame(seed, 64),
                    &Layout::default()
                )
                .unwrap()
        );
    }
    guest.publish(1).unwrap();
}

fn gathered(sides: &mut Sides) -> Vec<Vec<u8>> {
    let mut burst = Burst::new();
    sides.tx.gather(&mut burst);
    burst
        .frames()
        .iter()
        .map(|frame| frame.head().to_vec())
        .collect()
}

fn frames(first: u32, count: u32) -> Vec<Vec<u8>> {
    (first..first + count).map(|seed| frame(seed, 64)).collect()
}

#[test]
fn a_stopped_ring_goes_on_where_it_stood() {
    for packed in [0, feature::RING_PACKED] {
        let (mut guest, mut session, mut sides) = started(Setup {
            features: BASE | packed,
            ..Setup::default()
        });
        send(&mut guest, 0, 5);
        assert_eq!(gathered(&mut sides), frames(0, 5));
        sides.tx.complete();
        // Taken and not given back: it is taken again.
        send(&mut guest, 5, 3);
        assert_eq!(gathered(&mut sides), frames(5, 3));
        session.take_back(sides);
        let reply = session
            .handle(Message::GetVringBase(VringState { index: 1, num: 0 }))
            .unwrap()
            .unwrap();
        let base = u32::from_ne_bytes(reply.body[4..].try_into().unwrap());
        assert_eq!(base, if packed == 0 { 5 } else { 0x8005_8005 });
        assert_eq!(session.ready_rings(), 1);
        for message in guest.ring_messages(1).unwrap() {
            let message = match message {
                Message::SetVringBase(state) => {
                    Message::SetVringBase(VringState { num: base, ..state })
                }
                message => message,
            };
            session.handle(message).unwrap();
        }
        let mut sides = session.start().unwrap().unwrap();
        assert_eq!(gathered(&mut sides), frames(5, 3));
    }
}

#[test]
fn where_a_ring_stood_is_known_after_a_reset() {
    for packed in [0, feature::RING_PACKED] {
        let (mut guest, mut session, mut sides) = started(Setup {
            features: BASE | packed,
            ..Setup::default()
        });
        send(&mut guest, 0, 5);
        assert_eq!(gathered(&mut sides), frames(0, 5));
        sides.tx.complete();
        assert!(session.disturbs(&Message::SetStatus(0)));
        session.take_back(sides);
        session.handle(Message::SetStatus(0)).unwrap();
        assert_eq!(session.ready_rings(), 0);
        let stop = Message::GetVringBase(VringState { index: 1, num: 0 });
        let reply = session.handle(stop).unwrap().unwrap();
        let base = u32::from_ne_bytes(reply.body[4..].try_into().unwrap());
        assert_eq!(base, if packed == 0 { 5 } else { 0x8005_8005 });
    }
}

#[test]
fn a_killed_back_end_is_resumed_from_the_in_flight_region() {
    for packed in [0, feature::RING_PACKED] {
        let setup = Setup {
            features: BASE | packed,
            queue_size: 8,
            ..Setup::default()
        };
        let mut guest = Guest::new(setup).unwrap();
        let asked = InflightDesc {
            mmap_size: 0,
            mmap_offset: 0,
            num_queues: 2,
            queue_size: 8,
        };
        let mut first = Session::new(offer(1));
        first.handle(Message::SetFeatures(BASE | packed)).unwrap();
        let reply = first
            .handle(Message::GetInflightFd(asked))
            .unwrap()
            .unwrap();
        let region = reply.fd.unwrap();
        assert_eq!(reply.body.len(), 24);
        let given = InflightDesc {
            mmap_size: u64::from_ne_bytes(reply.body[..8].try_into().unwrap()),
            ..asked
        };
        let pass = || Message::SetInflightFd(given, region.try_clone().unwrap());
        first.handle(pass()).unwrap();
        let mut sides = guest.start_in(&mut first).unwrap();
        // More than a lap, so that the wrap counter counts.
        for round in 0..3 {
            send(&mut guest, 5 * round, 5);
            assert_eq!(gathered(&mut sides), frames(5 * round, 5));
            sides.tx.complete();
        }
        send(&mut guest, 100, 6);
        assert_eq!(gathered(&mut sides), frames(100, 6));
        // Killed: nothing is stopped in order, and the front-end only knows that the rings started at 0.
        drop((sides, first));
        let mut second = Session::new(offer(1));
        second.handle(Message::SetFeatures(BASE | packed)).unwrap();
        second.handle(pass()).unwrap();
        let mut sides = guest.start_in(&mut second).unwrap();
        assert_eq!(gathered(&mut sides), frames(100, 6));
        sides.tx.complete();
        send(&mut guest, 200, 1);
        assert_eq!(gathered(&mut sides), frames(200, 1));
    }
}

#[test]
fn a_torn_packed_batch_is_resumed_before_or_behind() {
    use crate::ports::vhost::packed::Place;
    let desc = InflightDesc {
        mmap_size: 4096,
        mmap_offset: 0,
        num_queues: 1,
        queue_size: 8,
    };
    for published in [false, true] {
        let (given, fd) = Inflight::create(&desc, true, 1).unwrap();
        let inflight = Inflight::map(&given, fd, true, 1).unwrap();
        let place = |bits| Place::from_bits(bits);
        let old = place(0x8006);
        let new = place(0x0001);
        let record = inflight.place(0, 8).unwrap();
        assert_eq!(
            record
                .resume(old, 8, |_| panic!("nothing to decide"))
                .unwrap(),
            old
        );
        record.begin(new, old).unwrap();
        let resumed = record.resume(place(0), 8, |index| {
            assert_eq!(index, 6);
            Ok(published)
        });
        assert_eq!(resumed.unwrap(), if published { new } else { old });
        record.forget().unwrap();
        assert_eq!(
            record
                .resume(place(3), 8, |_| panic!("nothing to decide"))
                .unwrap(),
            place(3)
        );
    }
}

#[test]
fn written_pages_are_logged_while_migrating() {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use std::os::unix::fs::FileExt as _;
    for packed in [0, feature::RING_PACKED] {
        let (mut guest, mut session, mut sides) = started(Setup {
            features: BASE | packed,
            ..Setup::default()
        });
        guest.receive_burst(0, 0).unwrap();
        let fd = memfd_create("log", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, 4096).unwrap();
        let log = std::fs::File::from(fd.try_clone().unwrap());
        let bits = || {
            let mut bytes = [0; 4096];
            log.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        session.take_back(sides);
        session
            .handle(Message::SetFeatures(BASE | packed | feature::LOG_ALL))
            .unwrap();
        session
            .handle(Message::SetLogBase {
                size: 4096,
                offset: 0,
                fd,
            })
            .unwrap();
        sides = session.start().unwrap().unwrap();
        let before = bits();
        send(&mut guest, 0, 1);
        let (mut burst, mut report) = (Burst::new(), crate::deliver::Report::default());
        crate::ports::vhost::tests::pass(&mut *sides.tx, &mut *sides.rx, &mut burst, &mut report);
        assert_eq!(report.source.delivered, 1);
        let after = bits();
        let dirty = |addr: u64| {
            let page = addr / 4096;
            after[page as usize / 8] >> (page % 8) & 1 != 0
        };
        assert_ne!(before, after);
        let addr = guest.rings[0].addr();
        assert!(
            dirty(if packed == 0 { addr.used } else { addr.table }),
            "ring"
        );
        let id = guest.rings[0].ring.take_used().unwrap().unwrap().0;
        assert!(dirty(guest.buffer_addr(0, id)), "buffer");
    }
}

#[test]
fn an_announcement_is_sent_once() {
    let (_guest, mut session, sides) = started(Setup::default());
    session.take_back(sides);
    let mac = Mac([2, 0, 0, 0, 0, 9]);
    session.handle(Message::SendRarp(mac)).unwrap();
    let mut sides = session.start().unwrap().unwrap();
    assert!(sides.tx.arm(), "an announcement waits");
    let frames = gathered(&mut sides);
    let frame = &frames[0];
    assert_eq!((frames.len(), frame.len()), (1, 60));
    assert_eq!(
        (&frame[..6], &frame[6..12], &frame[12..14]),
        (&[0xff; 6][..], &mac.0[..], &[0x80, 0x35][..])
    );
    assert_eq!((&frame[22..28], &frame[32..38]), (&mac.0[..], &mac.0[..]));
    session.take_back(sides);
    assert_eq!(gathered(&mut session.start().unwrap().unwrap()).len(), 0);
}

#[test]
fn a_fault_keeps_the_port_out_until_the_ring_is_stopped() {
    let (guest, mut session, mut sides) = started(Setup::default());
    guest
        .memory()
        .window(guest.rings[1].addr().avail, 4)
        .unwrap()
        .store_u16(2, 999, std::sync::atomic::Ordering::Release)
        .unwrap();
    assert_eq!(gathered(&mut sides).len(), 0);
    session.take_back(sides);
    assert_eq!(
        session.fault(),
        Some(PortFault {
            what: "available index",
            value: 999
        })
    );
    assert!(session.start().unwrap().is_none());
    session
        .handle(Message::GetVringBase(VringState { index: 1, num: 0 }))
        .unwrap();
    assert_eq!(session.fault(), None);
    assert!(session.start().unwrap().is_some());
}
