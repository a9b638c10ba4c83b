//! Offloads: what the guest asks for is done, whatever the driver leaves to hardware; each trap of NDIS by name.

use offload::{Features, Gso};
use vnic_synthetic::driver::{Carry, Frame, Setup};
use vswitch::drops::DropReason;
use vswitch::vlan::{VidSet, VlanMode};

use crate::rig::{GUEST, Make, PEER, Rig, frame, partial, tcp, udp};

/// Types of per-packet information.
const CHECKSUM: u32 = 0;
const LARGE_SEND: u32 = 2;
const VLAN: u32 = 6;

const V2: u32 = 1 << 30;
const V6: u32 = 1 << 31;

const CARRIES: [Carry; 3] = [Carry::SendBuffer, Carry::Pages, Carry::Mixed];

/// The checksum request of a driver for `frame`.
fn checksum(frame: &[u8], start: u16) -> u32 {
    let v6 = frame[12] == 0x86;
    let udp = frame[if v6 { 20 } else { 23 }] == 17;
    let version = if v6 { 2 } else { 1 };
    version | if udp { 8 } else { 4 } | u32::from(start) << 16
}

/// A large frame as a driver hands it over, `length` in the pseudo-header or not, and IPv4 length and header checksum
/// zero or right.
fn large(v6: bool, payload: usize, length: bool, zero: bool) -> Vec<u8> {
    let (mut frame, _) = partial(&tcp(v6, payload), length);
    if zero && !v6 {
        frame[16..18].fill(0);
        frame[24..26].fill(0);
    }
    if zero && v6 {
        frame[18..20].fill(0);
    }
    frame
}

/// What the station gets of `frame` cut by `mss`, joined again; every segment is held against the rules.
fn join(segments: &[Vec<u8>], mss: usize) -> Vec<u8> {
    let v6 = segments[0][12] == 0x86;
    let headers = if v6 { 74 } else { 54 };
    let mut joined = segments[0][..headers].to_vec();
    let mut sequence = 1;
    for segment in segments {
        let (right, at) = finished(segment);
        assert!(segment == &right, "checksums and lengths");
        let l4 = usize::from(at);
        assert_eq!(segment[l4 + 4..l4 + 8], u32::to_be_bytes(sequence));
        assert!(segment.len() - headers <= mss);
        sequence += (segment.len() - headers) as u32;
        joined.extend(&segment[headers..]);
    }
    joined
}

/// `frame` with IPv4 header checksum and transport checksum as they must be, and where the transport header is.
pub(crate) fn finished(frame: &[u8]) -> (Vec<u8>, u16) {
    let (mut right, at) = partial(frame, true);
    let mut sum = offload::Sum::new();
    sum.add_bytes(&right[usize::from(at.start)..]);
    let value = offload::finish_checksum(sum, at);
    right[at.field()..at.field() + 2].copy_from_slice(&value.to_be_bytes());
    if frame[12] == 0x86 {
        let len = frame.len() as u16 - 54;
        right[18..20].copy_from_slice(&len.to_be_bytes());
    } else {
        let len = frame.len() as u16 - 14;
        right[16..18].copy_from_slice(&len.to_be_bytes());
        right[24..26].fill(0);
        let mut sum = offload::Sum::new();
        sum.add_bytes(&right[14..34]);
        right[24..26].copy_from_slice(&sum.checksum().to_be_bytes());
    }
    (right, at.start)
}

#[test]
fn checksums_are_filled_in() {
    let mut rig = Rig::new(Setup::linux());
    for whole in [
        tcp(false, 500),
        tcp(true, 500),
        udp(false, 33),
        udp(true, 33),
    ] {
        let (left, at) = partial(&whole, true);
        assert_ne!(left, whole);
        for carry in CARRIES {
            // With the place of the header, and without.
            for start in [at.start, 0] {
                let frame = Frame::plain(&left).with(CHECKSUM, checksum(&left, start));
                rig.guest.send(carry, &[frame]).unwrap();
                assert_eq!(rig.at_station(), std::slice::from_ref(&whole), "{carry:?}");
            }
        }
    }
    rig.balanced();
}

#[test]
fn an_ip_header_checksum_is_filled_in() {
    let mut rig = Rig::new(Setup::linux());
    let whole = tcp(false, 100);
    let (mut left, at) = partial(&whole, true);
    left[24..26].fill(0xaa);
    let frame = Frame::plain(&left).with(CHECKSUM, checksum(&left, at.start) | 1 << 4);
    rig.guest.send(Carry::Pages, &[frame]).unwrap();
    assert_eq!(rig.at_station(), [whole]);
}

#[test]
fn a_checksum_request_that_does_not_fit_its_frame_fails_alone() {
    let mut rig = Rig::new(Setup::linux());
    let arp = frame(PEER, GUEST, 60);
    let (left, at) = partial(&tcp(false, 100), true);
    for (bytes, request) in [
        (&arp, 1 | 4),
        (&arp, 1 | 1 << 4),
        (&left, 1 | 4 | 8),
        (&left, checksum(&left, at.start + 1)),
        (&left, checksum(&left, 1023)),
    ] {
        let frame = Frame::plain(bytes).with(CHECKSUM, request);
        rig.guest.send(Carry::SendBuffer, &[frame]).unwrap();
    }
    assert!(rig.at_station().is_empty());
    assert_eq!(rig.dropped(DropReason::BadOffload), 5);
    rig.balanced();
}

/// Trap: NDIS leaves IPv4 total length and header checksum 0, and the seed of the TCP checksum is without the length.
#[test]
fn ndis_lso_with_zero_lengths_and_any_seed_is_cut_right() {
    for v6 in [false, true] {
        for (length, zero) in [(false, true), (false, false), (true, true), (true, false)] {
            for (v1, mss) in [(false, 1400u32), (true, 536), (false, 100)] {
                if v1 && v6 {
                    continue;
                }
                let mut rig = Rig::new(Setup::linux());
                let sent = large(v6, 9000, length, zero);
                let mut request = mss | 54 << 20;
                if !v1 {
                    request |= V2 | if v6 { V6 } else { 0 };
                }
                let frame = Frame::plain(&sent).with(LARGE_SEND, request);
                rig.guest.send(Carry::Pages, &[frame]).unwrap();
                let mut segments = Vec::new();
                loop {
                    let more = rig.at_station();
                    if more.is_empty() {
                        break;
                    }
                    segments.extend(more);
                }
                assert_eq!(segments.len(), 9000usize.div_ceil(mss as usize));
                let joined = join(&segments, mss as usize);
                let headers = if v6 { 74 } else { 54 };
                assert_eq!(joined[headers..], tcp(v6, 9000)[headers..], "{v6} {mss}");
                rig.balanced();
            }
        }
    }
}

/// Trap: headers of a large frame lie across pages, and in the send buffer where the rest does not.
#[test]
fn headers_across_pages() {
    let mut rig = Rig::new(Setup::linux());
    for carry in [Carry::Pages, Carry::Mixed] {
        let frame = Frame::plain(&large(false, 60_000, false, true))
            .with(VLAN + 100, 1)
            .with(LARGE_SEND, 1460 | V2);
        rig.guest.send(carry, &[frame]).unwrap();
        let segments = rig.at_station();
        assert_eq!(segments.len(), 60_000usize.div_ceil(1460), "{carry:?}");
        assert_eq!(join(&segments, 1460)[54..], tcp(false, 60_000)[54..]);
    }
    rig.balanced();
}

#[test]
fn a_large_frame_stays_whole_for_who_takes_it() {
    let features = Features {
        csum: true,
        tso4: true,
        tso6: true,
        ecn: true,
    };
    let mut rig = Make {
        features,
        ..Make::default()
    }
    .rig();
    for v6 in [false, true] {
        let sent = large(v6, 30_000, false, true);
        let request = 1400 | V2 | if v6 { V6 } else { 0 };
        let frame = Frame::plain(&sent).with(LARGE_SEND, request);
        rig.guest.send(Carry::Pages, &[frame]).unwrap();
        rig.turn();
        let received = rig.station.receive().unwrap();
        let (expected, at) = partial(&finished(&sent).0, true);
        assert!(
            received.frame == expected,
            "lengths are there, the sum is canonical"
        );
        assert_eq!(received.meta.request.csum, Some(at));
        let gso = match v6 {
            false => Gso::Tcp4 {
                mss: 1400,
                ecn: false,
            },
            true => Gso::Tcp6 {
                mss: 1400,
                ecn: false,
            },
        };
        assert_eq!(received.meta.request.gso, gso);
    }
    rig.balanced();
}

#[test]
fn a_large_send_that_does_not_fit_its_frame_fails_alone() {
    let mut rig = Rig::new(Setup::linux());
    let v4 = large(false, 5000, false, true);
    let mut fragment = v4.clone();
    fragment[20] = 0x20;
    for (name, bytes, request) in [
        ("no TCP", frame(PEER, GUEST, 5000), 1400 | V2),
        ("UDP", udp(false, 1400), 1400 | V2),
        ("IPv4 said to be IPv6", v4.clone(), 1400 | V2 | V6),
        (
            "IPv6 said to be IPv4",
            large(true, 5000, false, true),
            1400 | V2,
        ),
        (
            "IPv6 in the first version",
            large(true, 5000, false, true),
            1400,
        ),
        ("a fragment", fragment, 1400 | V2),
        ("segment size 0", v4.clone(), V2),
        ("segment size beyond 16 bits", v4.clone(), 1 << 16 | V2),
        ("more segments than are made", v4.clone(), 1 | V2),
    ] {
        let before = rig.dropped(DropReason::BadOffload);
        let frame = Frame::plain(&bytes).with(LARGE_SEND, request);
        rig.guest.send(Carry::Pages, &[frame]).unwrap();
        assert!(rig.at_station().is_empty(), "{name}");
        assert_eq!(rig.dropped(DropReason::BadOffload), before + 1, "{name}");
    }
    rig.balanced();
}

#[test]
fn a_small_large_send_is_a_plain_frame() {
    let mut rig = Rig::new(Setup::linux());
    let frame = Frame::plain(&large(false, 200, false, true)).with(LARGE_SEND, 1460 | V2);
    rig.guest.send(Carry::SendBuffer, &[frame]).unwrap();
    assert_eq!(rig.at_station(), [tcp(false, 200)]);
}

/// A frame with an 802.1Q tag.
pub(crate) fn tagged(frame: &[u8], tci: u16) -> Vec<u8> {
    [&frame[..12], &[0x81, 0], &tci.to_be_bytes(), &frame[12..]].concat()
}

pub(crate) fn trunk() -> VlanMode {
    let mut allowed = VidSet::empty();
    (1..4095).for_each(|vid| allowed.insert(vid));
    VlanMode::Trunk {
        allowed,
        native: Some(0),
    }
}

#[test]
fn tags_are_per_packet_information_both_ways() {
    let mut rig = Make {
        vlan: trunk(),
        ..Make::default()
    }
    .rig();
    // Priority 5, drop eligible, VLAN 0x123: NDIS has the bits the other way round.
    let (tci, info) = (0xb123, 0x1235 | 8);
    for len in [14, 60, 124, 125, 128, 1514] {
        let (up, down) = (frame(PEER, GUEST, len), frame(GUEST, PEER, len));
        for carry in CARRIES {
            rig.guest
                .send(carry, &[Frame::plain(&up).with(VLAN, info)])
                .unwrap();
            assert_eq!(rig.at_station(), [tagged(&up, tci)], "{len} {carry:?}");
        }
        rig.station.send(&tagged(&down, tci));
        let received = rig.at_guest();
        assert_eq!(received[0].bytes, down);
        assert_eq!(received[0].info, [(VLAN, info)]);
        rig.station.send(&down);
        assert!(rig.at_guest()[0].info.is_empty());
    }
    rig.balanced();
}

#[test]
fn a_tag_under_a_tag_stays_in_the_frame() {
    let mut rig = Make {
        vlan: trunk(),
        ..Make::default()
    }
    .rig();
    let inner = tagged(&frame(GUEST, PEER, 60), 7);
    rig.station.send(&tagged(&inner, 9));
    let received = rig.at_guest();
    assert_eq!(received[0].bytes, inner);
    assert_eq!(received[0].info, [(VLAN, 9 << 4)]);
}

#[test]
fn offloads_and_tags_go_together() {
    let mut rig = Make {
        vlan: trunk(),
        ..Make::default()
    }
    .rig();
    for v6 in [false, true] {
        let whole = tcp(v6, 300);
        let (left, at) = partial(&whole, true);
        let frame = Frame::plain(&left)
            .with(VLAN, 5 << 4)
            .with(CHECKSUM, checksum(&left, at.start));
        rig.guest.send(Carry::Mixed, &[frame]).unwrap();
        assert_eq!(rig.at_station(), [tagged(&whole, 5)]);

        let request = 1000 | V2 | if v6 { V6 } else { 0 };
        let frame = Frame::plain(&large(v6, 4000, false, true))
            .with(LARGE_SEND, request)
            .with(VLAN, 5 << 4);
        rig.guest.send(Carry::Pages, &[frame]).unwrap();
        let segments = rig.at_station();
        assert_eq!(segments.len(), 4);
        let untagged: Vec<Vec<u8>> = segments
            .iter()
            .map(|segment| {
                assert_eq!(segment[12..16], [0x81, 0, 0, 5]);
                [&segment[..12], &segment[16..]].concat()
            })
            .collect();
        let headers = if v6 { 74 } else { 54 };
        assert_eq!(join(&untagged, 1000)[headers..], tcp(v6, 4000)[headers..]);
    }
    rig.balanced();
}

#[test]
fn a_partial_checksum_of_another_port_is_completed() {
    let mut rig = Rig::new(Setup::linux());
    for v6 in [false, true] {
        let mut whole = tcp(v6, 700);
        whole[..6].copy_from_slice(&GUEST.0);
        whole[6..12].copy_from_slice(&PEER.0);
        let (left, at) = partial(&whole, true);
        let request = offload::Request {
            csum: Some(at),
            ..offload::Request::default()
        };
        rig.station.send_with(&left, request);
        assert_eq!(rig.at_guest()[0].bytes, whole);
    }
}
