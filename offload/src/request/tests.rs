use super::*;
use crate::Tag;

const V4: &[u8] = &[
    0x45, 0, 0, 0, 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
];
const TCP: &[u8] = &[
    0, 80, 1, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 0, 0, 0, 0, 0,
];

fn ethernet(ethertype: u16, rest: &[&[u8]]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(ethertype.to_be_bytes());
    frame.extend(rest.concat());
    frame.resize(SNAPSHOT, 0);
    frame
}

/// IPv4 and TCP: the headers are 54 bytes.
fn tcp4() -> Vec<u8> {
    ethernet(0x800, &[V4, TCP])
}

/// IPv6 and TCP: the headers are 74 bytes.
fn tcp6() -> Vec<u8> {
    let mut ip = vec![0x60, 0, 0, 0, 0, 0, 6, 64];
    ip.resize(40, 0x20);
    ethernet(0x86dd, &[&ip, TCP])
}

/// `frame` with one byte changed.
fn with(mut frame: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
    frame[at] = byte;
    frame
}

fn request(start: u16, offset: u16, gso: Gso) -> Request {
    Request {
        csum: Some(CsumAt { start, offset }),
        gso,
        csum_valid: false,
    }
}

const fn gso4(mss: u16) -> Gso {
    Gso::Tcp4 { mss, ecn: false }
}

const fn gso6(mss: u16) -> Gso {
    Gso::Tcp6 { mss, ecn: false }
}

#[test]
fn requests_are_small() {
    assert!(size_of::<Request>() <= 16, "{}", size_of::<Request>());
    assert!(size_of::<Checked>() <= 20, "{}", size_of::<Checked>());
}

#[test]
fn frame_without_request() {
    let checked = validate(&Request::default(), &tcp4(), 1514).unwrap();
    assert_eq!(
        (checked.l2_len(), checked.l4(), checked.header_len()),
        (14, 0, 0)
    );
    assert_eq!(checked.request(), Request::default());
    assert_eq!(
        validate(&Request::default(), &tcp4(), 13),
        Err(RequestError::Runt)
    );
    assert_eq!(
        validate(&Request::default(), &tcp4()[..13], 64),
        Err(RequestError::Runt)
    );
}

#[test]
fn places_of_a_partial_checksum() {
    let udp4 = || with(tcp4(), 23, 17);
    let icmp4 = || with(tcp4(), 23, 1);
    let gre4 = || with(tcp4(), 23, 47);
    let arp = ethernet(0x806, &[&[0, 1, 8, 0, 6, 4]]);
    let other = ethernet(0x9000, &[]);
    let table = [
        (tcp4(), 34, 16, None),
        (udp4(), 34, 6, None),
        (icmp4(), 34, 2, None),
        // In the payload: a tunnel.
        (udp4(), 84, 16, None),
        (udp4(), 34, 8, None),
        (tcp4(), 54, 0, None),
        (gre4(), 34, 0, None),
        (other.clone(), 14, 0, None),
        // Over addresses, the IP header, ports, sequence number, the ICMP message.
        (tcp4(), 0, 0, Some(RequestError::CsumPlace)),
        (tcp4(), 14, 10, Some(RequestError::CsumPlace)),
        (tcp4(), 14, 36, Some(RequestError::CsumPlace)),
        (tcp4(), 34, 2, Some(RequestError::CsumPlace)),
        (tcp4(), 36, 14, Some(RequestError::CsumPlace)),
        (udp4(), 34, 7, Some(RequestError::CsumPlace)),
        (icmp4(), 34, 8, Some(RequestError::CsumPlace)),
        (gre4(), 33, 0, Some(RequestError::CsumPlace)),
        (other, 13, 1, Some(RequestError::CsumPlace)),
        (arp, 60, 0, Some(RequestError::CsumPlace)),
        // Where it could make a valid header of a malformed one.
        (
            with(tcp4(), 46, 0x40),
            34,
            16,
            Some(RequestError::CsumPlace),
        ),
        (with(tcp4(), 14, 0x44), 60, 0, Some(RequestError::CsumPlace)),
        (with(tcp6(), 20, 60), 100, 0, Some(RequestError::CsumPlace)),
        // Beyond the snapshot.
        (udp4(), 110, 16, None),
        (udp4(), 110, 17, Some(RequestError::CsumRange)),
        (udp4(), 128, 0, Some(RequestError::CsumRange)),
        (udp4(), 0xffff, 0xffff, Some(RequestError::CsumRange)),
    ];
    for (head, start, offset, error) in table {
        let request = request(start, offset, Gso::None);
        let checked = validate(&request, &head, 1514);
        assert_eq!(checked.err(), error, "{start} {offset} {head:x?}");
        assert!(checked.is_err() || checked.unwrap().request() == request);
    }
    let at_end = request(34, 16, Gso::None);
    assert!(validate(&at_end, &tcp4(), 54).is_ok());
    assert_eq!(validate(&at_end, &tcp4(), 51), Err(RequestError::CsumRange));
}

/// Head, start of the TCP header, what is asked for, length of the frame, why it is refused.
type Large = (Vec<u8>, u16, Gso, u32, Option<RequestError>);

/// Validates each row, and holds what is granted against the head.
fn check_large(table: &[Large]) {
    for &(ref head, start, gso, len, error) in table {
        let checked = validate(&request(start, 16, gso), head, len);
        assert_eq!(checked.err(), error, "{gso:?} {len} {head:x?}");
        if let Ok(checked) = checked {
            assert_eq!(checked.request().gso, gso);
            assert_eq!(checked.l4(), start);
            assert_eq!(
                checked.header_len(),
                start + u16::from(head[usize::from(start) + 12] >> 4) * 4
            );
        }
    }
}

#[test]
fn sizes_of_large_frames() {
    let long = 14 + 65535;
    check_large(&[
        (tcp4(), 34, gso4(1460), 54 + 1461, None),
        (tcp4(), 34, gso4(1460), long, None),
        (
            tcp4(),
            34,
            gso4(1460),
            long + 1,
            Some(RequestError::GsoTooLong),
        ),
        (tcp6(), 54, gso6(1440), 74 + 1441, None),
        (tcp6(), 54, gso6(1440), long + 40, None),
        (
            tcp6(),
            54,
            gso6(1440),
            long + 41,
            Some(RequestError::GsoTooLong),
        ),
        (
            tcp6(),
            54,
            gso6(1440),
            u32::MAX,
            Some(RequestError::GsoTooLong),
        ),
        (tcp4(), 34, gso4(0), 9000, Some(RequestError::GsoSize)),
        (tcp4(), 34, gso4(1), 54 + MAX_SEGMENTS, None),
        (
            tcp4(),
            34,
            gso4(1),
            54 + MAX_SEGMENTS + 1,
            Some(RequestError::GsoSegments),
        ),
    ]);
}

#[test]
fn headers_of_large_frames() {
    let options = || with(tcp4(), 46, 0xf0);
    check_large(&[
        // The wrong version, protocol, fragments, checksum place.
        (tcp4(), 34, gso6(1460), 9000, Some(RequestError::GsoHeaders)),
        (tcp6(), 54, gso4(1460), 9000, Some(RequestError::GsoHeaders)),
        (
            with(tcp4(), 23, 132),
            34,
            gso4(1460),
            9000,
            Some(RequestError::GsoHeaders),
        ),
        (
            with(tcp4(), 20, 0x20),
            34,
            gso4(1460),
            9000,
            Some(RequestError::GsoHeaders),
        ),
        (
            with(tcp4(), 21, 0x01),
            34,
            gso4(1460),
            9000,
            Some(RequestError::GsoHeaders),
        ),
        (
            with(tcp4(), 46, 0x40),
            34,
            gso4(1460),
            9000,
            Some(RequestError::GsoHeaders),
        ),
        (tcp4(), 60, gso4(1460), 9000, Some(RequestError::CsumPlace)),
        // The TCP header ends with the snapshot, and behind it.
        (options(), 34, gso4(1460), 9000, None),
        (options()[..94].to_vec(), 34, gso4(1460), 9000, None),
        (
            options()[..93].to_vec(),
            34,
            gso4(1460),
            9000,
            Some(RequestError::GsoHeaders),
        ),
    ]);
    let uncovered = Request {
        gso: gso4(1460),
        ..Request::default()
    };
    assert_eq!(
        validate(&uncovered, &tcp4(), 9000),
        Err(RequestError::GsoWithoutCsum)
    );
}

#[test]
fn large_frame_of_one_segment_is_plain() {
    for len in [54, 54 + 1460] {
        let checked = validate(&request(34, 16, gso4(1460)), &tcp4(), len).unwrap();
        assert_eq!(checked.request(), request(34, 16, Gso::None));
        assert_eq!(checked.header_len(), 0);
    }
}

#[test]
fn ecn_says_whether_cwr_is_set() {
    for (flags, expected) in [(0x10, false), (0x90, true)] {
        for ecn in [false, true] {
            let asked = request(34, 16, Gso::Tcp4 { mss: 1000, ecn });
            let checked = validate(&asked, &with(tcp4(), 47, flags), 9000).unwrap();
            assert_eq!(
                checked.request().gso,
                Gso::Tcp4 {
                    mss: 1000,
                    ecn: expected
                }
            );
        }
    }
}

#[test]
fn offsets_move_with_the_tag() {
    let checked = validate(&request(34, 16, gso4(1000)), &tcp4(), 9000).unwrap();
    let tagged = checked.retagged(TagEdit::Insert(Tag { tci: 5 }));
    assert_eq!(
        (tagged.l2_len(), tagged.l4(), tagged.header_len()),
        (18, 38, 58)
    );
    assert_eq!(tagged.request(), request(38, 16, gso4(1000)));
    assert_eq!(tagged.retagged(TagEdit::Replace(Tag { tci: 5 })), tagged);
    assert_eq!(tagged.retagged(TagEdit::Strip), checked);
}
