//! Frames between a guest with a synthetic adapter and a station, through the switch.

use vnic_synthetic::driver::{Carry, Frame, Setup};
use vswitch::drops::DropReason;
use vswitch::port::PortControl;

use crate::rig::{GUEST, Make, PEER, Rig, frame, tcp};

const CARRIES: [Carry; 3] = [Carry::SendBuffer, Carry::Pages, Carry::Mixed];

fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().unwrap())
}

#[test]
fn every_version_carries_frames_both_ways() {
    for (bus, nvsp) in [
        (0xd, 0x2),
        (0x1_0001, 0x2),
        (0x2_0004, 0x3_0002),
        (0x3_0000, 0x4_0000),
        (0x4_0000, 0x5_0000),
        (0x5_0000, 0x6_0000),
        (0x5_0003, 0x6_0001),
    ] {
        let mut rig = Rig::new(Setup {
            bus,
            nvsp,
            ..Setup::linux()
        });
        for len in [14, 60, 100, 128, 129, 1514] {
            let (up, down) = (frame(PEER, GUEST, len), frame(GUEST, PEER, len));
            for carry in CARRIES {
                rig.guest.send(carry, &[Frame::plain(&up)]).unwrap();
                assert_eq!(
                    rig.at_station(),
                    std::slice::from_ref(&up),
                    "{nvsp:#x} {carry:?} {len}"
                );
            }
            assert!(rig.station.send(&down));
            let received = rig.at_guest();
            assert_eq!(received.len(), 1, "{nvsp:#x} {len}");
            assert_eq!(received[0].bytes, down);
            assert!(received[0].info.is_empty());
        }
        rig.balanced();
    }
}

#[test]
fn a_boot_loaders_driver_works() {
    let mut rig = Rig::new(Setup::ipxe());
    let (up, down) = (frame(PEER, GUEST, 342), frame(GUEST, PEER, 342));
    // iPXE's header is 4 bytes shorter than it should be.
    let mut message = vec![0u8; 40];
    for (at, word) in [(0, 1u32), (4, 40 + 342), (8, 32), (12, 342)] {
        message[at..at + 4].copy_from_slice(&word.to_le_bytes());
    }
    message.extend(&up);
    // More than its receive buffer holds at once.
    for _ in 0..100 {
        rig.guest.send(Carry::Pages, &[Frame::plain(&up)]).unwrap();
        rig.guest.send_raw(Carry::Pages, &message).unwrap();
        assert_eq!(rig.at_station(), [up.clone(), up.clone()]);
        rig.station.send(&down);
        assert_eq!(rig.at_guest().len(), 1);
    }
    rig.balanced();
}

#[test]
fn several_messages_in_one_packet_are_several_frames() {
    let mut rig = Rig::new(Setup::linux());
    let frames: Vec<Frame> = (0..8)
        .map(|n| Frame::plain(&frame(PEER, GUEST, 60 + 13 * n)))
        .collect();
    // More frames than a burst, so that packets are taken in parts.
    for _ in 0..9 {
        rig.guest.send(Carry::SendBuffer, &frames).unwrap();
    }
    let received = rig.at_station();
    assert_eq!(received.len(), 72);
    for (got, sent) in received.iter().zip(frames.iter().cycle()) {
        assert_eq!(*got, sent.bytes);
    }
    rig.balanced();
}

#[test]
fn a_packet_of_more_messages_than_the_driver_may_send_is_cut_off() {
    let mut rig = Rig::new(Setup::linux());
    let frames = vec![Frame::plain(&frame(PEER, GUEST, 60)); 9];
    rig.guest.send(Carry::SendBuffer, &frames).unwrap();
    assert_eq!(rig.at_station().len(), 8);
    assert_eq!(rig.dropped(DropReason::Malformed), 1);
    rig.balanced();
}

#[test]
fn a_bad_message_fails_alone() {
    let good = Frame::plain(&frame(PEER, GUEST, 100));
    // Offset of a field of the message, and what it says instead.
    let cases: [(&str, usize, u32, DropReason); 8] = [
        ("another type", 0, 2, DropReason::Malformed),
        ("shorter than a header", 4, 43, DropReason::Malformed),
        ("longer than the packet", 4, 4000, DropReason::Malformed),
        ("frame inside the header", 8, 0, DropReason::Malformed),
        (
            "frame beyond the message",
            8,
            0xffff_fff0,
            DropReason::Malformed,
        ),
        (
            "frame longer than the message",
            12,
            101,
            DropReason::Malformed,
        ),
        (
            "information beyond the message",
            32,
            200,
            DropReason::Malformed,
        ),
        ("no frame", 12, 13, DropReason::Runt),
    ];
    for (name, at, value, reason) in cases {
        for carry in CARRIES {
            let mut rig = Rig::new(Setup::linux());
            let mut message = vec![0u8; 144];
            for (at, word) in [(0, 1u32), (4, 144), (8, 36), (12, 100), (28, 36)] {
                message[at..at + 4].copy_from_slice(&word.to_le_bytes());
            }
            message[44..].copy_from_slice(&good.bytes);
            message[at..at + 4].copy_from_slice(&value.to_le_bytes());
            rig.guest.send(carry, std::slice::from_ref(&good)).unwrap();
            rig.guest.send_raw(carry, &message).unwrap();
            rig.guest.send(carry, std::slice::from_ref(&good)).unwrap();
            assert_eq!(rig.at_station().len(), 2, "{name}: its neighbours arrive");
            assert_eq!(rig.dropped(reason), 1, "{name}");
            rig.balanced();
        }
    }
}

#[test]
fn information_comes_in_any_order_and_across_pages() {
    let mut rig = Rig::new(Setup::linux());
    // A driver's own bookkeeping, a cancel id and an internal item around what means nothing here.
    let bytes = frame(PEER, GUEST, 200);
    let items = [(8, 7), (1 << 31 | 6, 0xffff), (10, 1), (11, 2), (12, 3)];
    for rotation in 0..items.len() {
        let mut info = items.to_vec();
        info.rotate_left(rotation);
        let frame = Frame {
            bytes: bytes.clone(),
            info,
        };
        for carry in CARRIES {
            rig.guest.send(carry, std::slice::from_ref(&frame)).unwrap();
            assert_eq!(rig.at_station(), std::slice::from_ref(&bytes), "{carry:?}");
        }
    }
    rig.balanced();
}

#[test]
fn malformed_information_fails_alone() {
    let bytes = frame(PEER, GUEST, 60);
    // Size, type, offset of the value, value.
    for (name, item) in [
        ("size 0", [0u32, 0, 12, 0]),
        ("size of less than a header", [8, 0, 12, 0]),
        ("size beyond the room", [20, 0, 12, 0]),
        ("value beyond the item", [16, 0, 16, 0]),
        (
            "value at the end of the address space",
            [16, 0, u32::MAX, 0],
        ),
    ] {
        let mut rig = Rig::new(Setup::linux());
        let mut message: Vec<u8> = [1u32, 120, 52, 60, 0, 0, 0, 36, 16, 0, 0]
            .iter()
            .chain(&item)
            .flat_map(|word| word.to_le_bytes())
            .collect();
        message.extend(&bytes);
        rig.guest.send_raw(Carry::Pages, &message).unwrap();
        assert!(rig.at_station().is_empty(), "{name}");
        assert_eq!(rig.dropped(DropReason::Malformed), 1, "{name}");
        rig.balanced();
    }
}

#[test]
fn packets_about_memory_that_is_not_there_are_refused() {
    let mut rig = Rig::new(Setup::linux());
    let rndis = |section: u32, len: u32| {
        let mut payload: Vec<u8> = [107u32, 0, section, len]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        payload.resize(40, 0);
        payload
    };
    let range = |words: &[u32]| {
        words
            .iter()
            .flat_map(|w| w.to_le_bytes())
            .collect::<Vec<u8>>()
    };
    let cases: [(&str, u16, Vec<u8>, Vec<u8>); 7] = [
        ("section beyond the buffer", 6, vec![], rndis(1 << 20, 100)),
        ("section that wraps", 6, vec![], rndis(u32::MAX - 1, 100)),
        ("more than a section", 6, vec![], rndis(0, 6145)),
        (
            "page beyond memory",
            9,
            range(&[0, 1, 100, 0, u32::MAX, 7]),
            rndis(u32::MAX, 0),
        ),
        (
            "page that wraps",
            9,
            range(&[0, 1, 100, 0, u32::MAX, u32::MAX]),
            rndis(u32::MAX, 0),
        ),
        (
            "offset beyond the page",
            9,
            range(&[0, 1, 100, 4096, 1, 0]),
            rndis(u32::MAX, 0),
        ),
        (
            "fewer ranges than it says",
            9,
            range(&[0, 900, 1, 0, 1, 0]),
            rndis(u32::MAX, 0),
        ),
    ];
    for (name, kind, header, payload) in cases {
        let id = rig
            .guest
            .packet(kind, true, &header, &payload, None)
            .unwrap();
        rig.turn();
        let (answered, answer) = rig.guest.answers.pop_back().unwrap();
        assert_eq!(answered, id, "{name}");
        assert_eq!(word(&answer[4..8]), 2, "{name}: failed");
    }
    assert_eq!(rig.port.counters().tx.frames, 0);
    rig.balanced();
}

#[test]
fn a_driver_that_keeps_its_buffers_loses_frames_and_nothing_else() {
    let mut rig = Rig::new(Setup::linux());
    rig.guest.returns = false;
    let down = frame(GUEST, PEER, 1000);
    let sections = 512 * 4096 / 1728;
    for _ in 0..sections + 50 {
        rig.station.send(&down);
        rig.turn();
    }
    let rx = rig.port.counters().rx;
    assert_eq!(
        rx.frames,
        sections as u64 - 8,
        "all but those kept for answers"
    );
    assert_eq!(rx.drops.get(DropReason::RxFull), 58);
    assert_eq!(
        rig.query(0x0001_0114, &[]).0,
        0,
        "the adapter still answers"
    );
    rig.guest.give_back();
    rig.guest.returns = true;
    rig.turn();
    rig.guest.received.clear();
    rig.station.send(&down);
    assert_eq!(rig.at_guest().len(), 1);
    rig.balanced();
}

#[test]
fn a_ring_that_is_not_read_loses_frames_but_no_answer() {
    let mut rig = Rig::new(Setup {
        ring: 2,
        ..Setup::linux()
    });
    let (up, down) = (frame(PEER, GUEST, 60), frame(GUEST, PEER, 60));
    for _ in 0..200 {
        rig.station.send(&down);
        rig.worker_turn();
    }
    assert!(rig.port.counters().rx.drops.get(DropReason::RxFull) > 0);
    let mut sent = 0;
    while sent < 40
        && rig
            .guest
            .send(Carry::SendBuffer, &[Frame::plain(&up)])
            .is_some()
    {
        sent += 1;
        rig.worker_turn();
    }
    rig.balanced();
    assert_eq!(rig.at_station().len(), sent);
}

#[test]
fn one_packet_and_one_interrupt_for_a_burst() {
    let mut rig = Rig::new(Setup::linux());
    rig.turn();
    rig.guest.host.interrupts();
    rig.guest.returns = false;
    for _ in 0..32 {
        rig.station.send(&frame(GUEST, PEER, 60));
    }
    rig.worker_turn();
    rig.guest.poll();
    assert_eq!(rig.guest.received.len(), 32);
    assert_eq!(rig.guest.held.len(), 1, "one packet names all");
    assert_eq!(rig.guest.host.interrupts(), 1);
    assert_eq!(rig.port.counters().rx.notifications, 1);
}

#[test]
fn a_driver_that_polls_is_not_interrupted() {
    let mut rig = Rig::new(Setup::linux());
    rig.turn();
    rig.guest.host.interrupts();
    rig.guest.from_host.mask(true);
    for _ in 0..10 {
        rig.station.send(&frame(GUEST, PEER, 60));
        rig.guest
            .send(Carry::SendBuffer, &[Frame::plain(&frame(PEER, GUEST, 60))]);
        rig.turn();
    }
    assert_eq!(rig.guest.host.interrupts(), 0);
    assert_eq!(rig.guest.received.len(), 10);
}

#[test]
fn nothing_is_received_once_the_filter_is_zero() {
    let mut rig = Rig::new(Setup::linux());
    rig.station.send(&frame(GUEST, PEER, 60));
    assert_eq!(rig.at_guest().len(), 1);
    assert_eq!(rig.set(0x0001_010e, &[0; 4]), 0);
    for _ in 0..10 {
        rig.station.send(&frame(GUEST, PEER, 60));
    }
    assert!(rig.at_guest().is_empty());
    assert_eq!(rig.peer.counters().tx.drops.get(DropReason::RxFilter), 10);
    rig.guest.shut_down();
    rig.station.send(&frame(GUEST, PEER, 60));
    rig.worker_turn();
}

#[test]
fn multicast_groups_pass_by_the_list() {
    let mut rig = Rig::new(Setup::linux());
    let groups = [1u8, 2].map(|n| vswitch::mac::Mac([0x33, 0x33, 0, 0, 0, n]));
    assert_eq!(rig.set(0x0001_010e, &0x0bu32.to_le_bytes()), 0);
    assert_eq!(rig.set(0x0101_0103, &groups[0].0), 0);
    for group in groups {
        rig.station.send(&frame(group, PEER, 60));
    }
    let received = rig.at_guest();
    assert_eq!(received.len(), 1);
    assert_eq!(received[0].bytes[..6], groups[0].0);
    assert_eq!(
        rig.set(0x0101_0103, &[0; 7]),
        0xc001_0014,
        "half an address"
    );
    assert_eq!(rig.set(0x0101_0103, &[0; 6 * 65]), 0xc001_0009, "too many");
}

#[test]
fn the_mtu_grows_and_shrinks_with_the_driver() {
    for mtu in [68, 576, 1500, 9000] {
        let mut rig = Make {
            mtu: 9000,
            setup: Setup {
                mtu,
                ..Setup::linux()
            },
            ..Make::default()
        }
        .rig();
        let longest = frame(GUEST, PEER, mtu as usize + 14);
        rig.station.send(&longest);
        let received = rig.at_guest();
        assert_eq!(received[0].bytes, longest);
        let value = rig.query(0x0001_0106, &[]).1;
        assert_eq!(word(&value), mtu);
        let up = frame(PEER, GUEST, mtu as usize + 14);
        rig.guest.send(Carry::Pages, &[Frame::plain(&up)]).unwrap();
        assert_eq!(rig.at_station(), [up]);
        rig.balanced();
    }
}

#[test]
fn the_link_goes_down_and_up() {
    let mut rig = Rig::new(Setup::linux());
    let state = |rig: &mut Rig| word(&rig.query(0x0001_0114, &[]).1);
    assert_eq!(state(&mut rig), 0);
    for (up, status) in [(false, 0x4001_000c), (true, 0x4001_000b)] {
        rig.guest.host.adapter.set_link(up);
        rig.turn();
        let told = rig.guest.controls.pop_front().unwrap();
        assert_eq!((word(&told[..4]), word(&told[8..12])), (7, status));
        assert_eq!(state(&mut rig), u32::from(!up));
    }
}

#[test]
fn a_channel_closes_and_opens_a_hundred_times() {
    for _ in 0..100 {
        let mut rig = Rig::new(Setup {
            receive: 64,
            ..Setup::linux()
        });
        rig.guest
            .send(Carry::Pages, &[Frame::plain(&frame(PEER, GUEST, 60))]);
        rig.station.send(&frame(GUEST, PEER, 60));
        assert_eq!(rig.at_guest().len(), 1);
        rig.guest.shut_down();
        let memory = rig.guest.memory().clone();
        drop(rig.port.detach());
        drop(rig);
        assert_eq!(
            std::sync::Arc::strong_count(&memory),
            1,
            "nothing holds its memory"
        );
    }
}

#[test]
fn a_ring_that_lies_faults_its_port() {
    let rig = Rig::new(Setup::linux());
    rig.guest.to_host.control.write(0, &[4, 0, 0, 0]).unwrap();
    rig.worker_turn();
    let fault = rig.port.fault().unwrap();
    assert_eq!(fault.what, "write index of a VMBus ring");
    // The other port does not notice.
    rig.station.send(&frame(GUEST, PEER, 60));
    rig.worker_turn();
    assert_eq!(rig.peer.fault(), None);
}

#[test]
fn sub_channels_share_the_load_as_the_driver_says() {
    let linux = Setup::linux();
    let mut rig = Rig::new(Setup {
        ring: 4,
        config: vnic_synthetic::port::Config {
            channels: 4,
            ..linux.config
        },
        ..linux
    });
    assert_eq!(rig.open_sub_channels(9), 3, "as many as there are");
    rig.turn();
    let table = rig.guest.notices.pop_front().unwrap();
    let words: Vec<u32> = table.chunks_exact(4).map(word).collect();
    assert_eq!(words[..3], [134, 16, 40], "behind the message");
    let spread: Vec<u32> = (0..16).map(|entry| entry % 4).collect();
    assert_eq!(words[10..], spread);
    assert!(rig.guest.notices.is_empty(), "once");
    // All to channel 2.
    let mut parameters = vec![0u8; 44];
    parameters[0] = 0x89;
    for (at, value) in [(8, 0x301u32), (12, 4), (16, 44), (20, 40), (24, 48)] {
        parameters[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    parameters.extend(2u32.to_le_bytes());
    parameters.extend([7; 40]);
    assert_eq!(rig.set(0x0001_0204, &parameters), 0);
    let mut down = tcp(false, 100);
    down[..6].copy_from_slice(&GUEST.0);
    down[6..12].copy_from_slice(&PEER.0);
    // Trap: the filter holds for sub-channels as well.
    assert_eq!(rig.set(0x0001_010e, &[0; 4]), 0);
    rig.station.send(&down);
    assert!(rig.at_guest().is_empty());
    assert_eq!(rig.set(0x0001_010e, &[0x0d, 0, 0, 0]), 0);
    rig.station.send(&down);
    assert_eq!(rig.at_guest()[0].bytes, down);
    assert_eq!(rig.guest.by_channel[..4], [0, 0, 1, 0]);
    let arp = frame(GUEST, PEER, 60);
    rig.station.send(&arp);
    assert_eq!(rig.at_guest()[0].bytes, arp);
    assert_eq!(
        rig.guest.by_channel[..4],
        [1, 0, 1, 0],
        "no IP: the primary channel"
    );
    for index in 1..=3 {
        let up = frame(PEER, GUEST, 60 + index);
        assert!(rig.guest.send_by(index, &Frame::plain(&up)));
        assert_eq!(rig.at_station(), [up]);
    }
    rig.balanced();
    rig.guest.shut_down();
}
