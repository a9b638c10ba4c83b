use super::*;

fn ethernet(ethertype: u16, rest: &[&[u8]]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(ethertype.to_be_bytes());
    frame.extend(rest.concat());
    frame
}

fn parsed(frame: &[u8]) -> (Network, Transport) {
    let headers = parse(frame, frame.len() as u32);
    (headers.network, headers.transport)
}

const V4_UDP: [u8; 20] = [
    0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
];
const UDP: [u8; 8] = [0, 53, 0, 54, 0, 8, 0, 0];
const TCP: [u8; 20] = [
    0, 80, 1, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x92, 1, 0, 0, 0, 0, 0,
];

/// Writes `bytes` over a copy of the IPv4 header at `at`.
fn v4(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut header = V4_UDP.to_vec();
    header[at..at + bytes.len()].copy_from_slice(bytes);
    header
}

fn v6(next: u8, payload_len: u16) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0];
    header.extend(payload_len.to_be_bytes());
    header.extend([next, 64]);
    header.extend([0x20; 32]);
    header
}

const fn network_v4(header_len: u16, fragment: Fragment, protocol: u8, total_len: u16) -> Network {
    Network::V4 {
        offset: 14,
        header_len,
        fragment,
        protocol,
        total_len,
    }
}

const fn network_v6(header_len: u16, next: u8, fragment: Fragment) -> Network {
    Network::V6 {
        offset: 14,
        header_len,
        next,
        fragment,
    }
}

#[test]
fn ipv4() {
    let udp = Transport::Udp { offset: 34 };
    let whole = network_v4(20, Fragment::Whole, 17, 28);
    let with_options = [v4(0, &[0x46, 0, 0, 32]), vec![1, 1, 1, 0]].concat();
    let icmp = Transport::Icmp {
        offset: 34,
        kind: 0,
        code: 53,
    };
    let table: [(&[u8], Network, Transport); 13] = [
        (&V4_UDP, whole, udp),
        (
            &with_options,
            network_v4(24, Fragment::Whole, 17, 32),
            Transport::Udp { offset: 38 },
        ),
        (&v4(6, &[0x40, 0]), whole, udp),
        (
            &v4(6, &[0x20, 0]),
            network_v4(20, Fragment::First, 17, 28),
            udp,
        ),
        (
            &v4(6, &[0x20, 1]),
            network_v4(20, Fragment::Later, 17, 28),
            Transport::None,
        ),
        (
            &v4(6, &[0x00, 1]),
            network_v4(20, Fragment::Later, 17, 28),
            Transport::None,
        ),
        (&v4(9, &[1]), network_v4(20, Fragment::Whole, 1, 28), icmp),
        (
            &v4(9, &[47]),
            network_v4(20, Fragment::Whole, 47, 28),
            Transport::None,
        ),
        // A length of zero leaves it to the frame; a short one ends the packet before the UDP header does.
        (&v4(2, &[0, 0]), network_v4(20, Fragment::Whole, 17, 0), udp),
        (
            &v4(2, &[0, 27]),
            network_v4(20, Fragment::Whole, 17, 27),
            Transport::None,
        ),
        (&v4(2, &[0, 19]), Network::None, Transport::None),
        (&v4(0, &[0x44]), Network::None, Transport::None),
        (&v4(0, &[0x65]), Network::None, Transport::None),
    ];
    for (header, network, transport) in table {
        let frame = ethernet(ETHERTYPE_IPV4, &[header, &UDP]);
        assert_eq!(parsed(&frame), (network, transport), "{header:x?}");
    }
}

#[test]
fn tcp() {
    let packet = |tcp: &[u8]| {
        parsed(&ethernet(
            ETHERTYPE_IPV4,
            &[&v4(2, &[0, 40, 0, 0, 0, 0, 0, 6]), tcp],
        ))
        .1
    };
    let expected = Transport::Tcp {
        offset: 34,
        header_len: 20,
        flags: 0x92,
    };
    assert_eq!(packet(&TCP), expected);
    for data_offset in [0x40, 0x60] {
        let mut header = TCP;
        header[12] = data_offset;
        assert_eq!(packet(&header), Transport::None, "{data_offset:x}");
    }
}

#[test]
fn ipv6_extension_headers() {
    let frag = |field: u8| [17, 0, 0, field, 0, 0, 0, 1];
    let udp = |offset| Transport::Udp { offset };
    // Hop-by-hop, routing and destination, AH of 12 and of 16 bytes.
    let chain = [
        &[43, 0, 1, 4, 0, 0, 0, 0][..],
        &[60, 0, 4, 0, 0, 0, 0, 0],
        &[51, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[51, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2],
        &[17, 2, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3],
    ]
    .concat();
    let table: [(u8, &[u8], Network, Transport); 10] = [
        (17, &[], network_v6(40, 17, Fragment::Whole), udp(54)),
        (0, &chain, network_v6(100, 17, Fragment::Whole), udp(114)),
        (44, &frag(0), network_v6(48, 17, Fragment::Whole), udp(62)),
        (44, &frag(1), network_v6(48, 17, Fragment::First), udp(62)),
        (
            44,
            &frag(8),
            network_v6(48, 17, Fragment::Later),
            Transport::None,
        ),
        // What follows the header of a later fragment is payload, whatever its type is.
        (
            44,
            &[60, 0, 0, 8, 0, 0, 0, 1, 17, 0, 0, 0, 0, 0, 0, 0],
            network_v6(48, 60, Fragment::Later),
            Transport::None,
        ),
        // Cut off, too short for what it is, unknown.
        (
            60,
            &[17, 9, 0, 0, 0, 0, 0, 0],
            network_v6(40, 60, Fragment::Whole),
            Transport::None,
        ),
        (
            51,
            &[17, 0, 0, 0, 0, 0, 0, 0],
            network_v6(40, 51, Fragment::Whole),
            Transport::None,
        ),
        (
            50,
            &[17, 0, 0, 0, 0, 0, 0, 0],
            network_v6(40, 50, Fragment::Whole),
            Transport::None,
        ),
        (
            59,
            &[],
            network_v6(40, 59, Fragment::Whole),
            Transport::None,
        ),
    ];
    for (next, extensions, network, transport) in table {
        let header = v6(next, (extensions.len() + UDP.len()) as u16);
        let frame = ethernet(ETHERTYPE_IPV6, &[&header, extensions, &UDP]);
        assert_eq!(
            parsed(&frame),
            (network, transport),
            "{next} {extensions:x?}"
        );
    }
}

#[test]
fn ipv6_packet_ends_where_its_length_says() {
    for (payload_len, transport) in [(8, Transport::Udp { offset: 54 }), (7, Transport::None)] {
        let frame = ethernet(ETHERTYPE_IPV6, &[&v6(17, payload_len), &UDP]);
        assert_eq!(parsed(&frame).1, transport);
    }
}

#[test]
fn arp() {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 2, 2, 0, 0, 0, 0, 9, 10, 0, 0, 1];
    packet.extend([2, 0, 0, 0, 0, 8, 10, 0, 0, 2]);
    let expected = Network::Arp {
        offset: 14,
        operation: 2,
        sender_mac: [2, 0, 0, 0, 0, 9],
        sender_ip: [10, 0, 0, 1],
        target_ip: [10, 0, 0, 2],
    };
    assert_eq!(parsed(&ethernet(ETHERTYPE_ARP, &[&packet])).0, expected);
    assert_eq!(
        parsed(&ethernet(ETHERTYPE_ARP, &[&packet[..27]])).0,
        Network::None
    );
    packet[1] = 6;
    assert_eq!(
        parsed(&ethernet(ETHERTYPE_ARP, &[&packet])).0,
        Network::None
    );
}

#[test]
fn neighbour_discovery() {
    let target = [0xfe; 16];
    let message = |kind: u8, len: usize| {
        let mut bytes = vec![0xfe; len];
        bytes[0..2].copy_from_slice(&[kind, 0]);
        parsed(&ethernet(ETHERTYPE_IPV6, &[&v6(58, len as u16), &bytes])).1
    };
    let table = [
        (133, 8, NdMessage::RouterSolicitation),
        (134, 16, NdMessage::RouterAdvertisement),
        (135, 24, NdMessage::NeighborSolicitation(target)),
        (136, 24, NdMessage::NeighborAdvertisement(target)),
        (137, 40, NdMessage::Redirect(target)),
    ];
    for (kind, len, expected) in table {
        let icmp = Transport::Icmp {
            offset: 54,
            kind,
            code: 0,
        };
        assert_eq!(
            message(kind, len),
            Transport::Nd {
                offset: 54,
                message: expected
            }
        );
        assert_eq!(message(kind, len - 1), icmp);
    }
    assert_eq!(
        message(128, 8),
        Transport::Icmp {
            offset: 54,
            kind: 128,
            code: 0
        }
    );
    assert_eq!(message(128, 3), Transport::None);
}

#[test]
fn tags_are_stepped_over() {
    let tags = [0, 100, 0x81, 0, 0, 200, 8, 0];
    let headers = parse(&ethernet(0x8100, &[&tags, &V4_UDP, &UDP]), 50);
    assert_eq!((headers.l2_len, headers.ethertype), (22, ETHERTYPE_IPV4));
    assert_eq!(headers.tag, Some(Tag { tci: 100 }));
    assert_eq!(headers.transport, Transport::Udp { offset: 42 });
}

#[test]
fn the_frame_ends_the_head() {
    let frame = ethernet(ETHERTYPE_IPV4, &[&V4_UDP, &UDP]);
    assert_eq!(parse(&frame, 42).transport, Transport::Udp { offset: 34 });
    assert_eq!(parse(&frame, 41).transport, Transport::None);
    assert_eq!(parse(&frame, 33).network, Network::None);
    assert_eq!(parse(&frame, 13).l2_len, 0);
}

/// A slice longer than a head is cut to one: here two extension headers of 2048 bytes.
#[test]
fn nothing_is_found_behind_a_head() {
    let mut extension = vec![0; 2048];
    extension[..2].copy_from_slice(&[60, 255]);
    let frame = ethernet(
        ETHERTYPE_IPV6,
        &[&v6(60, 4104), &extension, &extension, &UDP],
    );
    assert_eq!(
        parsed(&frame),
        (network_v6(40, 60, Fragment::Whole), Transport::None)
    );
}
