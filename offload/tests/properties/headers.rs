//! Parsing and validation.

use crate::frame::{Frame, Kind, any_frame, hostile_bytes};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use offload::parse::parse;
use offload::request::validate;
use offload::{
    CsumAt, Fragment, Gso, HEAD_MAX, Headers, Network, Request, SNAPSHOT, Segmenter, Tag, TagEdit,
    Transport, flow_hash,
};
use proptest::prelude::*;

/// Where the last header ends that was found.
fn end_of(headers: &Headers) -> u16 {
    match headers.transport {
        Transport::Tcp {
            offset, header_len, ..
        } => return offset + header_len,
        Transport::Udp { offset } => return offset + 8,
        Transport::Icmp { offset, .. } => return offset + 4,
        Transport::Nd { offset, .. } => return offset + 8,
        Transport::None => {}
    }
    match headers.network {
        Network::None => headers.l2_len,
        Network::V4 {
            offset, header_len, ..
        }
        | Network::V6 {
            offset, header_len, ..
        } => offset + header_len,
        Network::Arp { offset, .. } => offset + 28,
    }
}

fn any_gso() -> impl Strategy<Value = Gso> {
    (0..3, prop_oneof![0..3u16, any::<u16>()], any::<bool>()).prop_map(
        |(kind, mss, ecn)| match kind {
            0 => Gso::None,
            1 => Gso::Tcp4 { mss, ecn },
            _ => Gso::Tcp6 { mss, ecn },
        },
    )
}

/// Any request, with a preference for places that make sense in a frame.
fn any_request() -> impl Strategy<Value = Request> {
    let start = prop_oneof![4 => 0u16..140, 1 => any::<u16>()];
    let offset = prop_oneof![4 => Just(16u16), 2 => 0u16..20, 1 => any::<u16>()];
    let csum = prop::option::weighted(
        0.9,
        (start, offset).prop_map(|(start, offset)| CsumAt { start, offset }),
    );
    (csum, any_gso(), any::<bool>()).prop_map(|(csum, gso, csum_valid)| Request {
        csum,
        gso,
        csum_valid,
    })
}

fn agrees(kind: Kind, frame: &Frame) -> Result<(), TestCaseError> {
    let ours = parse(frame.head(), frame.len());
    let theirs = SlicedPacket::from_ethernet(&frame.bytes).unwrap();
    prop_assert_eq!(usize::from(ours.l2_len), frame.l3);
    let first_tpid = u16::from_be_bytes([frame.bytes[12], frame.bytes[13]]);
    let tag = theirs
        .vlan_ids()
        .first()
        .map(|id| id.value())
        .filter(|_| first_tpid == 0x8100);
    prop_assert_eq!(ours.tag.map(Tag::vid), tag);
    let (offset, header_len, protocol) = match (ours.network, theirs.net.as_ref().unwrap()) {
        (
            Network::V4 {
                offset,
                header_len,
                fragment,
                protocol,
                total_len,
            },
            NetSlice::Ipv4(ip),
        ) => {
            prop_assert_eq!(fragment, Fragment::Whole);
            prop_assert_eq!(total_len, ip.header().total_len());
            prop_assert_eq!(protocol, ip.header().protocol().0);
            (offset, header_len, ip.payload().ip_number.0)
        }
        (
            Network::V6 {
                offset,
                header_len,
                next,
                fragment,
            },
            NetSlice::Ipv6(ip),
        ) => {
            prop_assert_eq!(fragment, Fragment::Whole);
            (
                offset,
                header_len,
                if ip.is_payload_fragmented() {
                    next
                } else {
                    ip.payload().ip_number.0
                },
            )
        }
        other => return Err(TestCaseError::fail(format!("{other:?}"))),
    };
    prop_assert_eq!(usize::from(offset), frame.l3);
    prop_assert_eq!(usize::from(offset + header_len), frame.l4);
    prop_assert!(kind != Kind::Tcp || protocol == 6);
    same_transport(kind, frame.l4, &ours.transport, theirs.transport.as_ref())
}

fn same_transport(
    kind: Kind,
    l4: usize,
    ours: &Transport,
    theirs: Option<&TransportSlice<'_>>,
) -> Result<(), TestCaseError> {
    match (kind, ours, theirs) {
        (
            Kind::Tcp,
            Transport::Tcp {
                offset, header_len, ..
            },
            Some(TransportSlice::Tcp(tcp)),
        ) => {
            prop_assert_eq!(usize::from(*offset), l4);
            prop_assert_eq!(usize::from(*header_len), usize::from(tcp.data_offset()) * 4);
        }
        (Kind::Udp, Transport::Udp { offset }, Some(TransportSlice::Udp(_)))
        | (
            Kind::Icmp,
            Transport::Icmp { offset, .. },
            Some(TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_)),
        ) => {
            prop_assert_eq!(usize::from(*offset), l4);
        }
        other => return Err(TestCaseError::fail(format!("{other:?}"))),
    }
    Ok(())
}

proptest! {
    #![proptest_config(crate::config())]

    #[test]
    fn parse_agrees_with_etherparse((kind, frame) in any_frame()) {
        agrees(kind, &frame)?;
    }

    /// Nothing panics, and what is found lies in the head.
    #[test]
    fn any_bytes_are_safe(bytes in hostile_bytes(), len in prop_oneof![0u32..300, any::<u32>()], request in any_request(), mss: u16) {
        let headers = parse(&bytes, len);
        prop_assert!(usize::from(end_of(&headers)) <= HEAD_MAX.min(bytes.len()).min(len as usize));
        let _ = flow_hash(&bytes, len);
        let mut out = [0; HEAD_MAX];
        for edit in [TagEdit::Keep, TagEdit::Strip, TagEdit::Insert(Tag { tci: 1 }), TagEdit::Replace(Tag { tci: 2 })] {
            edit.apply(&bytes, &mut out);
        }
        if let Ok(checked) = validate(&request, &bytes, len) {
            for head in [&bytes[..], &bytes[..bytes.len() / 2], &[]] {
                let mut segments = Segmenter::new(head, &checked, len, mss);
                for _ in 0..3 {
                    segments.next(&mut out);
                }
            }
        }
    }

    /// A request that is granted lies in the snapshot, and filling it in changes nothing that the switch judged.
    #[test]
    fn granted_checksum_is_in_range(bytes in hostile_bytes(), cut in 0u32..300, request in any_request(), value: [u8; 2]) {
        let len = if cut > 200 { bytes.len() as u32 + cut } else { bytes.len() as u32 };
        let Ok(checked) = validate(&request, &bytes, len) else {
            return Ok(());
        };
        let Some(at) = checked.request().csum else {
            return Ok(());
        };
        prop_assert_eq!(Some(at), request.csum);
        let field = usize::from(at.start) + usize::from(at.offset);
        prop_assert!(field + 2 <= SNAPSHOT.min(bytes.len()).min(len as usize));
        prop_assert!(usize::from(checked.header_len()) <= SNAPSHOT.min(bytes.len()));
        let snapshot = &bytes[..SNAPSHOT.min(bytes.len())];
        let mut filled = snapshot.to_vec();
        filled[field..field + 2].copy_from_slice(&value);
        prop_assert_eq!(parse(&filled, len), parse(snapshot, len));
        prop_assert_eq!(flow_hash(&filled, len), flow_hash(snapshot, len));
        prop_assert_eq!(&filled[..14], &snapshot[..14]);
    }
}
