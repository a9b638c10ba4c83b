//! What a driver receives by its offloads: verdicts on checksums, large frames, and segments that became one.

use offload::{Gso, Request};
use proptest::prelude::*;
use vnic_synthetic::driver::{Received, Setup};
use vswitch::drops::DropReason;

use crate::offload::{finished, tagged, trunk};
use crate::rig::{GUEST, Make, PEER, Rig, frame, partial, tcp, udp};

const CHECKSUM: u32 = 0;
const VLAN: u32 = 6;
const PARAMETERS: u32 = 0xfc01_020c;
const TCP_RIGHT: u32 = 1 << 3;
const UDP_RIGHT: u32 = 1 << 4;
const IP_RIGHT: u32 = 1 << 5;

const SOUND: Request = Request {
    csum: None,
    gso: Gso::None,
    csum_valid: true,
};

/// Switches receive offloads: checksums of IPv4, TCP and UDP over IPv4, both over IPv6 (1 off, 3 on), then coalescing (1 off,
/// 2 on); 0 leaves them.
fn switch(rig: &mut Rig, checksums: [u8; 5], coalescing: u8) {
    let mut parameters = vec![0x80, 3, 28, 0];
    parameters.extend(checksums);
    parameters.resize(28, 0);
    parameters[22..24].fill(coalescing);
    assert_eq!(rig.set(PARAMETERS, &parameters), 0);
}

/// The frame as the station sends it to the guest.
fn down(mut frame: Vec<u8>) -> Vec<u8> {
    frame[..6].copy_from_slice(&GUEST.0);
    frame[6..12].copy_from_slice(&PEER.0);
    frame
}

/// What the guest receives of one frame.
fn receive(rig: &mut Rig, frame: &[u8], request: Request) -> Received {
    assert!(rig.station.send_with(frame, request));
    let mut received = rig.at_guest();
    assert_eq!(received.len(), 1);
    received.remove(0)
}

#[test]
fn verdicts_are_given_where_they_are_wanted_and_true() {
    let mut rig = Rig::new(Setup::linux());
    let frames = [
        tcp(false, 300),
        udp(false, 300),
        tcp(true, 300),
        udp(true, 300),
    ];
    // What is switched on, and what is said of TCP and UDP over IPv4 and IPv6.
    for (on, said) in [
        ([1, 1, 1, 1, 1], [0, 0, 0, 0]),
        ([0, 3, 0, 0, 0], [TCP_RIGHT, 0, 0, 0]),
        ([3, 1, 0, 0, 0], [IP_RIGHT, IP_RIGHT, 0, 0]),
        ([1, 1, 3, 3, 1], [0, UDP_RIGHT, TCP_RIGHT, 0]),
        ([1, 1, 1, 1, 3], [0, 0, 0, UDP_RIGHT]),
    ] {
        switch(&mut rig, on, 0);
        for (frame, said) in frames.iter().zip(said) {
            let whole = down(frame.clone());
            let item = |value| match value {
                0 => vec![],
                value => vec![(CHECKSUM, value)],
            };
            let vouched = receive(&mut rig, &whole, SOUND);
            assert_eq!((&vouched.bytes, vouched.info), (&whole, item(said)));
            // One that is left to the switch is right in the end, whoever forwards it.
            let (left, at) = partial(&whole, true);
            let request = Request {
                csum: Some(at),
                ..Request::default()
            };
            let filled = receive(&mut rig, &left, request);
            assert_eq!((&filled.bytes, filled.info), (&whole, item(said)));
            // Of one that nobody vouches for, nothing is said but of the header that was looked at.
            let plain = receive(&mut rig, &whole, Request::default());
            assert_eq!((&plain.bytes, plain.info), (&whole, item(said & IP_RIGHT)));
        }
    }
    let mut wrong = down(tcp(false, 100));
    wrong[24] ^= 1;
    switch(&mut rig, [3; 5], 0);
    assert_eq!(
        receive(&mut rig, &wrong, SOUND).info,
        [(CHECKSUM, TCP_RIGHT)]
    );
    let mut fragment = down(tcp(false, 100));
    fragment[20] = 0x20;
    let info = receive(&mut rig, &fragment, SOUND).info;
    assert_eq!(info, [], "its sum is of another packet");
    rig.balanced();
}

/// A large frame to the guest with a partial checksum, and how it is asked for.
fn large(v6: bool, payload: usize, mss: u16) -> (Vec<u8>, Request) {
    let (frame, at) = partial(&finished(&down(tcp(v6, payload))).0, true);
    let gso = match v6 {
        false => Gso::Tcp4 { mss, ecn: false },
        true => Gso::Tcp6 { mss, ecn: false },
    };
    let request = Request {
        csum: Some(at),
        gso,
        csum_valid: false,
    };
    (frame, request)
}

#[test]
fn a_large_frame_arrives_whole_at_a_driver_that_agreed_to_it() {
    for v6 in [false, true] {
        let mut rig = Rig::new(Setup {
            receive: 1024,
            ..Setup::linux()
        });
        switch(&mut rig, [1, 3, 1, 3, 1], 2);
        for payload in [1461, 3000, 20_000, 65_000] {
            let (frame, request) = large(v6, payload, 1400);
            let received = receive(&mut rig, &frame, request);
            // With a checksum that is right: a driver may look at it whatever it was told, and Linux does after `rx off`.
            assert!(received.bytes == finished(&frame).0, "{v6} {payload}");
            assert_eq!(received.info, [(CHECKSUM, TCP_RIGHT)]);
            assert_eq!(received.parts, frame.len().div_ceil(1640), "{payload}");
        }
        // Switched off, the next one is cut.
        switch(&mut rig, [0; 5], 1);
        let (frame, request) = large(v6, 14_000, 1400);
        assert!(rig.station.send_with(&frame, request));
        let segments = rig.at_guest();
        assert_eq!(segments.len(), 10);
        for segment in segments {
            assert_eq!(segment.bytes, finished(&segment.bytes).0);
            assert_eq!(segment.info, [(CHECKSUM, TCP_RIGHT)]);
        }
        // Without verdicts, too: its checksum would have to be right.
        switch(&mut rig, [1; 5], 2);
        assert!(rig.station.send_with(&frame, request));
        assert_eq!(rig.at_guest().len(), 10);
        rig.balanced();
    }
}

#[test]
fn large_frames_and_tags_and_small_ones_between() {
    let mut rig = Make {
        setup: Setup {
            receive: 1024,
            ..Setup::linux()
        },
        vlan: trunk(),
        ..Make::default()
    }
    .rig();
    switch(&mut rig, [1, 3, 1, 3, 1], 2);
    let (bare, request) = large(false, 30_000, 1400);
    let moved = request.csum.map(|at| offload::CsumAt {
        start: at.start + 4,
        ..at
    });
    let (arp, whole) = (frame(GUEST, PEER, 60), finished(&bare).0);
    for _ in 0..3 {
        rig.station.send(&arp);
        let request = Request {
            csum: moved,
            ..request
        };
        rig.station.send_with(&tagged(&bare, 5), request);
        rig.station.send_with(
            &bare,
            Request {
                csum: request.csum.map(|at| offload::CsumAt {
                    start: at.start - 4,
                    ..at
                }),
                ..request
            },
        );
    }
    let received = rig.at_guest();
    assert_eq!(received.len(), 9);
    for three in received.chunks(3) {
        assert_eq!(three[0].bytes, arp);
        assert!(three[1].bytes == whole && three[2].bytes == whole);
        assert_eq!(three[1].info[1], (VLAN, 5 << 4));
        assert_eq!(three[2].info.len(), 1);
    }
    rig.balanced();
}

#[test]
fn a_large_frame_that_finds_no_room_leaves_none_taken() {
    // 23 sections, of which 8 are for answers.
    let mut rig = Rig::new(Setup {
        receive: 10,
        ..Setup::linux()
    });
    switch(&mut rig, [1, 3, 1, 3, 1], 2);
    let (frame, request) = large(false, 30_000, 1400);
    for _ in 0..5 {
        assert!(rig.station.send_with(&frame, request));
        assert!(rig.at_guest().is_empty());
    }
    assert_eq!(rig.port.counters().rx.drops.get(DropReason::RxFull), 5);
    let (frame, request) = large(false, 20_000, 1400);
    assert!(receive(&mut rig, &frame, request).bytes == finished(&frame).0);
    rig.balanced();
}

#[test]
fn large_frames_are_cut_where_sections_are_small() {
    let mut rig = Rig::new(Setup {
        mtu: 900,
        ..Setup::linux()
    });
    switch(&mut rig, [1, 3, 1, 3, 1], 2);
    let (frame, request) = large(false, 8_000, 800);
    assert!(rig.station.send_with(&frame, request));
    assert_eq!(rig.at_guest().len(), 10);
}

/// A segment of a flow: number, sequence, payload and flags.
fn segment(v6: bool, id: u16, sequence: u32, payload: &[u8], flags: u8) -> Vec<u8> {
    let mut frame = down(tcp(v6, payload.len()));
    let at = if v6 { 54 } else { 34 };
    if !v6 {
        frame[18..20].copy_from_slice(&id.to_be_bytes());
    }
    frame[at + 4..at + 8].copy_from_slice(&sequence.to_be_bytes());
    frame[at + 13] = flags;
    frame[at + 20..].copy_from_slice(payload);
    finished(&frame).0
}

/// `count` segments of `size` bytes each.
fn train(v6: bool, count: usize, size: usize) -> Vec<Vec<u8>> {
    let data: Vec<u8> = (0..count * size)
        .map(|i| (i * 31 + i / 257) as u8)
        .collect();
    let segment = |(index, payload): (usize, &[u8])| {
        let sequence = 0xffff_f000_u32.wrapping_add((index * size) as u32);
        segment(
            v6,
            0xfffe_u16.wrapping_add(index as u16),
            sequence,
            payload,
            0x10,
        )
    };
    data.chunks(size).enumerate().map(segment).collect()
}

/// Cuts a frame that the guest received as its sender had cut it: payloads of `size` bytes.
fn cut(received: &Received, size: usize) -> Vec<Vec<u8>> {
    let frame = &received.bytes;
    let v6 = frame[12] == 0x86;
    let at = if v6 { 54 } else { 34 };
    let headers = at + usize::from(frame[at + 12] >> 4) * 4;
    let id = u16::from_be_bytes([frame[18], frame[19]]);
    let sequence = u32::from_be_bytes(frame[at + 4..at + 8].try_into().unwrap());
    let count = (frame.len() - headers).div_ceil(size);
    let payloads = frame[headers..].chunks(size).enumerate();
    payloads
        .map(|(index, payload)| {
            let mut segment = [&frame[..headers], payload].concat();
            if !v6 {
                segment[18..20].copy_from_slice(&id.wrapping_add(index as u16).to_be_bytes());
            }
            let sequence = sequence.wrapping_add((index * size) as u32);
            segment[at + 4..at + 8].copy_from_slice(&sequence.to_be_bytes());
            if index + 1 < count {
                segment[at + 13] &= !8;
            }
            finished(&segment).0
        })
        .collect()
}

/// Lengths and checksums of `frame` are as they must be; a sum of 0 has two forms.
fn right(frame: &[u8]) -> bool {
    let (mut same, start) = finished(frame);
    let field = usize::from(start) + 16;
    let value = |frame: &[u8]| u16::from_be_bytes([frame[field], frame[field + 1]]) % 0xffff;
    let right = value(frame) == value(&same);
    same[field..field + 2].copy_from_slice(&frame[field..field + 2]);
    right && same == frame
}

#[test]
fn segments_of_one_turn_become_one_frame_and_can_be_cut_again() {
    for v6 in [false, true] {
        for request in [SOUND, Request::default()] {
            let mut rig = Rig::new(Setup::linux());
            switch(&mut rig, [1, 3, 1, 3, 1], 2);
            for (count, size) in [(2, 1), (5, 333), (10, 1000), (30, 1440)] {
                let train = train(v6, count, size);
                for segment in &train {
                    assert!(rig.station.send_with(segment, request));
                }
                let received = rig.at_guest();
                assert_eq!(received.len(), 1, "{v6} {count} {size}");
                assert_eq!(received[0].parts, count, "a section each");
                assert_eq!(received[0].info, [(CHECKSUM, TCP_RIGHT)]);
                assert!(right(&received[0].bytes), "{v6} {count} {size}");
                assert!(cut(&received[0], size) == train, "{v6} {count} {size}");
            }
            let rx = rig.port.counters().rx;
            assert_eq!(rx.frames, 47, "counted as they came");
            rig.balanced();
        }
    }
}

#[test]
fn segments_are_left_alone_unless_the_driver_agreed() {
    let mut rig = Rig::new(Setup::linux());
    for (checksums, coalescing) in [([1, 3, 1, 3, 1], 1), ([1; 5], 2), ([0; 5], 1)] {
        switch(&mut rig, checksums, coalescing);
        let train = train(false, 5, 100);
        train
            .iter()
            .for_each(|segment| assert!(rig.station.send_with(segment, SOUND)));
        let received = rig.at_guest();
        let bytes: Vec<Vec<u8>> = received
            .into_iter()
            .map(|received| received.bytes)
            .collect();
        assert_eq!(bytes, train);
    }
}

#[test]
fn what_does_not_go_together_stays_apart() {
    type Change = fn(&mut Vec<Vec<u8>>);
    // What is done to four segments, and how many frames there are then.
    let cases: [(&str, Change, usize); 17] = [
        ("nothing", |_| {}, 1),
        ("out of order", |train| train.swap(1, 2), 4),
        ("one is missing", |train| drop(train.remove(1)), 2),
        (
            "one comes twice",
            |train| train.insert(1, train[0].clone()),
            2,
        ),
        ("pushed in the middle", |train| train[1][47] |= 8, 2),
        ("pushed in the end", |train| train[3][47] |= 8, 1),
        ("the end of the stream", |train| train[2][47] |= 1, 3),
        ("urgent", |train| train[2][47] |= 0x20, 3),
        ("congestion", |train| train[2][47] |= 0x40, 3),
        ("another acknowledgement", |train| train[2][42] ^= 1, 3),
        ("another window", |train| train[2][48] ^= 1, 3),
        ("another type of service", |train| train[2][15] ^= 4, 3),
        ("another lifetime", |train| train[2][22] ^= 1, 3),
        ("another port", |train| train[2][35] ^= 1, 3),
        ("another address", |train| train[2][29] ^= 1, 3),
        ("a fragment", |train| train[2][20] = 0x20, 3),
        ("identification", |train| train[2][18] ^= 1, 3),
    ];
    for (name, change, expected) in cases {
        let mut rig = Rig::new(Setup::linux());
        switch(&mut rig, [1, 3, 1, 3, 1], 2);
        let mut train = train(false, 4, 500);
        change(&mut train);
        for segment in &mut train {
            *segment = finished(segment).0;
            assert!(rig.station.send(segment));
        }
        let received = rig.at_guest();
        assert_eq!(received.len(), expected, "{name}");
        let again: Vec<Vec<u8>> = received
            .iter()
            .flat_map(|received| cut(received, 500))
            .collect();
        assert_eq!(again, train, "{name}");
        rig.balanced();
    }
    // A wrong checksum goes to the guest as it is, and nothing is said of it.
    let mut rig = Rig::new(Setup::linux());
    switch(&mut rig, [1, 3, 1, 3, 1], 2);
    let mut train = train(false, 4, 500);
    train[1][300] ^= 1;
    train
        .iter()
        .for_each(|segment| assert!(rig.station.send(segment)));
    let received = rig.at_guest();
    assert_eq!(received.len(), 3);
    assert_eq!(
        (&received[1].bytes, &received[1].info[..]),
        (&train[1], &[][..])
    );
}

#[test]
fn options_must_be_the_same() {
    let with_options = |stamp: u8, frame: &[u8]| {
        let mut frame = [
            &frame[..54],
            &[1, 1, 8, 10, 0, 0, 0, stamp, 0, 0, 0, 1],
            &frame[54..],
        ]
        .concat();
        frame[46] = 0x80;
        finished(&frame).0
    };
    for (stamps, expected) in [([7, 7, 7], 1), ([7, 7, 8], 2)] {
        let mut rig = Rig::new(Setup::linux());
        switch(&mut rig, [1, 3, 1, 3, 1], 2);
        let train: Vec<Vec<u8>> = train(false, 3, 200)
            .iter()
            .zip(stamps)
            .map(|(segment, stamp)| with_options(stamp, segment))
            .collect();
        train
            .iter()
            .for_each(|segment| assert!(rig.station.send(segment)));
        let received = rig.at_guest();
        assert_eq!(received.len(), expected);
        let again: Vec<Vec<u8>> = received
            .iter()
            .flat_map(|received| cut(received, 200))
            .collect();
        assert_eq!(again, train);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any segments of two flows and other frames between them arrive in order, and whole.
    #[test]
    fn any_train_arrives(
        cars in prop::collection::vec((0u8..8, 0usize..3, any::<bool>()), 1..90),
        scattered in any::<bool>(),
    ) {
        let mut rig = Rig::new(Setup { scattered, ..Setup::linux() });
        switch(&mut rig, [3; 5], 2);
        let (mut next, mut id, mut sent) = ([1u32, 9], [5u16, 5], Vec::new());
        for (kind, size, sound) in cars {
            let flow = usize::from(kind & 1);
            let size = [700, 1400, 40][size];
            let bytes = vec![size as u8; size];
            let flags = if kind == 6 { 0x18 } else { 0x10 };
            let car = match kind {
                7 => frame(GUEST, PEER, 100),
                _ => segment(flow == 1, id[flow], next[flow], &bytes, flags),
            };
            if kind != 7 {
                next[flow] = next[flow].wrapping_add(size as u32);
                id[flow] = id[flow].wrapping_add(1);
            }
            let request = if sound { SOUND } else { Request::default() };
            prop_assert!(rig.station.send_with(&car, request));
            sent.push(car);
        }
        let received = rig.at_guest();
        let mut left = &sent[..];
        for received in &received {
            let (first, _) = left.split_first().unwrap();
            let again = match first[12] {
                0x88 => vec![received.bytes.clone()],
                _ => {
                    let headers = if first[12] == 0x86 { 74 } else { 54 };
                    cut(received, first.len() - headers)
                }
            };
            let (now, later) = left.split_at(again.len());
            prop_assert_eq!(&again[..], now);
            prop_assert!(received.parts == again.len());
            prop_assert!(first[12] == 0x88 || right(&received.bytes));
            left = later;
        }
        prop_assert!(left.is_empty());
        rig.balanced();
    }
}
