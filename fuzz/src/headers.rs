//! Any bytes as the head of a frame: parser, admission, flow hash, and the search for unfinished checksums.
//!
//! Input: a byte of VLAN mode, two bytes of length (0: the frame ends with the input), the frame.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use offload::parse::parse;
use offload::request::validate;
use offload::{Headers, Network, Request, SNAPSHOT, Transport, flow_hash, unfinished_checksum};
use vswitch::classify::admit;
use vswitch::network::PortPolicy;

use crate::input::Input;

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let vlan = input.vlan();
    let said = input.u16();
    let bytes = input.rest();
    let head = &bytes[..bytes.len().min(SNAPSHOT)];
    let len = if said == 0 {
        bytes.len() as u32
    } else {
        u32::from(said)
    };
    let headers = parse(head, len);
    assert!(
        end_of(&headers) <= head.len().min(len as usize),
        "{headers:?}"
    );

    let policy = PortPolicy {
        vlan,
        ..PortPolicy::default()
    };
    if let Ok(found) = admit(&policy, head) {
        assert_eq!(found.addresses.destination.mac().0, head[..6]);
        assert!(
            policy.vlan.egress(found.addresses.vid()).is_some(),
            "what may come in may go out"
        );
        if len as usize >= head.len() {
            assert_eq!(found.tag, headers.tag.map(|tag| tag.tci));
        }
    }
    assert_eq!(
        flow_hash(head, len),
        flow_hash(&turned(head, &headers), len),
        "both directions are one flow"
    );
    if let Some(at) = unfinished_checksum(head, len) {
        let request = Request {
            csum: Some(at),
            ..Request::default()
        };
        assert!(validate(&request, head, len).is_ok(), "{at:?} {headers:?}");
    }
    if said == 0 && bytes.len() <= SNAPSHOT {
        agrees(bytes, &headers);
    }
}

/// Where the last header ends that was found.
fn end_of(headers: &Headers) -> usize {
    let end = match (headers.transport, headers.network) {
        (
            Transport::Tcp {
                offset, header_len, ..
            },
            _,
        ) => offset + header_len,
        (Transport::Udp { offset } | Transport::Nd { offset, .. }, _) => offset + 8,
        (Transport::Icmp { offset, .. }, _) => offset + 4,
        (
            _,
            Network::V4 {
                offset, header_len, ..
            }
            | Network::V6 {
                offset, header_len, ..
            },
        ) => offset + header_len,
        (_, Network::Arp { offset, .. }) => offset + 28,
        (_, Network::None) => headers.l2_len,
    };
    end.into()
}

/// The frame with source and destination exchanged.
fn turned(head: &[u8], headers: &Headers) -> Vec<u8> {
    let mut out = head.to_vec();
    let mut swap = |at: usize, len: usize| {
        if let Some(pair) = out.get_mut(at..at + 2 * len) {
            pair.rotate_left(len);
        }
    };
    match headers.network {
        Network::V4 { offset, .. } => swap(usize::from(offset) + 12, 4),
        Network::V6 { offset, .. } => swap(usize::from(offset) + 8, 16),
        Network::None | Network::Arp { .. } if headers.l2_len > 0 => swap(0, 6),
        _ => {}
    }
    if let Transport::Tcp { offset, .. } | Transport::Udp { offset } = headers.transport {
        swap(offset.into(), 2);
    }
    out
}

/// What an independent parser makes of a whole IPv4 frame is what ours makes of it.
fn agrees(bytes: &[u8], headers: &Headers) {
    let Ok(theirs) = SlicedPacket::from_ethernet(bytes) else {
        return;
    };
    let (Some(NetSlice::Ipv4(ip)), 0x0800) = (&theirs.net, headers.ethertype) else {
        return;
    };
    let Network::V4 {
        offset,
        header_len,
        protocol,
        total_len,
        ..
    } = headers.network
    else {
        panic!("no IPv4 found: {headers:?}");
    };
    assert_eq!(protocol, ip.header().protocol().0);
    assert_eq!(total_len, ip.header().total_len());
    assert_eq!(usize::from(header_len), ip.header().slice().len());
    assert_eq!(
        &bytes[offset.into()..][..header_len.into()],
        ip.header().slice()
    );
    match (&theirs.transport, protocol) {
        (Some(TransportSlice::Tcp(tcp)), 6) => assert!(
            matches!(headers.transport, Transport::Tcp { header_len, .. } if usize::from(header_len) == tcp.header_slice().len()),
            "{headers:?}"
        ),
        (Some(TransportSlice::Udp(_)), 17) => {
            assert_eq!(
                headers.transport,
                Transport::Udp {
                    offset: offset + header_len
                }
            );
        }
        _ => {}
    }
}
