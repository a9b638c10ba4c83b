//! Plan, segmentation, checksum and tag: what a destination gets.

use crate::frame::{Frame, Kind, any_frame, frame, naive_sum};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use offload::plan::plan;
use offload::request::{Checked, MAX_SEGMENTS, validate};
use offload::{
    Action, Features, Gso, HEAD_MAX, Request, Segmenter, Sum, Tag, TagEdit, finish_checksum,
};
use proptest::collection::vec;
use proptest::prelude::*;

fn any_features() -> impl Strategy<Value = Features> {
    any::<[bool; 4]>().prop_map(|[csum, tso4, tso6, ecn]| Features {
        csum,
        tso4,
        tso6,
        ecn,
    })
}

fn any_edit(frame: &Frame) -> impl Strategy<Value = TagEdit> + use<> {
    let tagged = frame.bytes[12..14] == [0x81, 0];
    (any::<u16>(), 0..3).prop_map(move |(tci, choice)| match choice {
        0 => TagEdit::Keep,
        1 if tagged => TagEdit::Strip,
        2 if tagged => TagEdit::Replace(Tag { tci }),
        _ => TagEdit::Insert(Tag { tci }),
    })
}

/// A TCP frame, a segment size, and an edit of its tag.
fn large() -> impl Strategy<Value = (Frame, u16, TagEdit)> {
    let payload = prop_oneof![3 => vec(any::<u8>(), 2..600), 1 => vec(any::<u8>(), 2000..6000)];
    frame(Kind::Tcp, payload).prop_flat_map(|frame| {
        let most = frame.payload().len() as u16 - 1;
        let least = u32::from(most + 1).div_ceil(MAX_SEGMENTS) as u16;
        let edit = any_edit(&frame);
        (Just(frame), least..=most, edit)
    })
}

/// All segments with their checksums completed, as the switch would deliver them.
fn cut(head: &[u8], checked: &Checked, frame: &[u8], mss: u16) -> Vec<Vec<u8>> {
    let mut segmenter = Segmenter::new(head, checked, frame.len() as u32, mss);
    let count = segmenter.remaining();
    let mut segments = vec![];
    let mut out = [0; HEAD_MAX];
    while let Some(segment) = segmenter.next(&mut out) {
        let body = &frame[segment.body_offset as usize..][..segment.body_len as usize];
        let mut sum = Sum::new();
        sum.add_bytes(&out[segment.csum.start.into()..segment.head_len.into()]);
        sum.add_bytes(body);
        let mut bytes = out[..segment.head_len.into()].to_vec();
        bytes[segment.csum.field()..][..2]
            .copy_from_slice(&finish_checksum(sum, segment.csum).to_be_bytes());
        bytes.extend(body);
        segments.push(bytes);
    }
    assert_eq!(segments.len(), count as usize);
    segments
}

/// `etherparse` accepts the segment and finds both checksums right.
fn verify(frame: &Frame, segment: &[u8]) -> Result<(), TestCaseError> {
    let packet = SlicedPacket::from_ethernet(segment).unwrap();
    if let Some(NetSlice::Ipv4(ip)) = &packet.net {
        let header = ip.header();
        prop_assert_eq!(
            header.header_checksum(),
            header.to_header().calc_header_checksum()
        );
    }
    let Some(TransportSlice::Tcp(tcp)) = &packet.transport else {
        return Err(TestCaseError::fail("no TCP"));
    };
    let checksum = match packet.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => tcp
            .calc_checksum_ipv4(ip.header().source(), ip.header().destination())
            .unwrap(),
        NetSlice::Ipv6(ip) => tcp
            .calc_checksum_ipv6(ip.header().source(), ip.header().destination())
            .unwrap(),
        NetSlice::Arp(_) => return Err(TestCaseError::fail("ARP")),
    };
    prop_assert_eq!(tcp.checksum(), checksum);
    prop_assert_eq!(tcp.payload(), &segment[frame.header_len..]);
    Ok(())
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Undoes what cutting did to the headers of segment `index`, whose payload starts at `payload_at`.
fn original_header(frame: &Frame, segment: &[u8], index: u16, payload_at: u32) -> Vec<u8> {
    let mut header = segment[..frame.header_len].to_vec();
    let (l3, l4) = (frame.l3, frame.l4);
    let mut restore =
        |at: usize, len: usize| header[at..at + len].copy_from_slice(&frame.bytes[at..at + len]);
    restore(l4 + 16, 2);
    if frame.v6 {
        restore(l3 + 4, 2);
    } else {
        restore(l3 + 2, 2);
        restore(l3 + 10, 2);
        let id = be16(segment, l3 + 4).wrapping_sub(index);
        header[l3 + 4..l3 + 6].copy_from_slice(&id.to_be_bytes());
    }
    let sequence =
        u32::from_be_bytes(segment[l4 + 4..l4 + 8].try_into().unwrap()).wrapping_sub(payload_at);
    header[l4 + 4..l4 + 8].copy_from_slice(&sequence.to_be_bytes());
    header
}

fn cut_then_join(frame: &Frame, mss: u16) -> Result<(), TestCaseError> {
    const ONCE: u8 = 0x80 | 0x08 | 0x01;
    let checked = validate(&frame.tso(mss), frame.head(), frame.len()).unwrap();
    let segments = cut(frame.head(), &checked, &frame.bytes, mss);
    let flags = frame.bytes[frame.l4 + 13];
    let last = segments.len() - 1;
    let mut payload = vec![];
    for (index, segment) in segments.iter().enumerate() {
        verify(frame, segment)?;
        prop_assert!(index == last || segment.len() - frame.header_len == usize::from(mss));
        let mut header = original_header(frame, segment, index as u16, payload.len() as u32);
        let first_only = if index == 0 { 0x80 } else { 0 };
        let last_only = if index == last { 0x09 } else { 0 };
        prop_assert_eq!(
            header[frame.l4 + 13],
            flags & (!ONCE | first_only | last_only)
        );
        header[frame.l4 + 13] = flags;
        prop_assert_eq!(&header[..], &frame.bytes[..frame.header_len]);
        payload.extend_from_slice(&segment[frame.header_len..]);
    }
    prop_assert_eq!(&payload[..], frame.payload());
    Ok(())
}

/// Bytes of a frame behind its Ethernet header and tags, held against an MTU.
fn fits(len: usize, frame: &Frame, mtu: u32) -> bool {
    len - frame.l3 <= mtu as usize
}

fn agreed_shape(
    frame: &Frame,
    asked: &Request,
    dest: &Features,
    mtu: u32,
) -> Result<(), TestCaseError> {
    let checked = validate(asked, frame.head(), frame.len()).unwrap();
    let action = plan(&checked, frame.len(), dest, mtu + 14);
    let outgoing = action.outgoing(&checked, dest);
    prop_assert!(outgoing.csum.is_none() || dest.csum);
    prop_assert!(!outgoing.csum_valid || dest.csum);
    let agreed = match outgoing.gso {
        Gso::None => true,
        Gso::Tcp4 { ecn, .. } => dest.csum && dest.tso4 && (dest.ecn || !ecn),
        Gso::Tcp6 { ecn, .. } => dest.csum && dest.tso6 && (dest.ecn || !ecn),
    };
    prop_assert!(agreed);
    match action {
        Action::AsIs | Action::FillChecksum => {
            prop_assert!(fits(frame.bytes.len(), frame, mtu));
            prop_assert_eq!(
                action == Action::FillChecksum,
                asked.csum.is_some() && outgoing.csum.is_none()
            );
        }
        Action::Segment { mss } => {
            for segment in cut(frame.head(), &checked, &frame.bytes, mss) {
                prop_assert!(fits(segment.len(), frame, mtu));
            }
        }
        Action::KeepLarge { mss } => {
            prop_assert!(fits(frame.header_len + usize::from(mss), frame, mtu));
            let lowered = matches!(outgoing.gso, Gso::Tcp4 { mss: m, .. } | Gso::Tcp6 { mss: m, .. } if m == mss);
            prop_assert!(lowered);
        }
        Action::FillLarge => {
            prop_assert_eq!(outgoing, Request::default());
            let agreed = match asked.gso {
                Gso::None => false,
                Gso::Tcp4 { ecn, .. } => dest.tso4 && (dest.ecn || !ecn),
                Gso::Tcp6 { ecn, .. } => dest.tso6 && (dest.ecn || !ecn),
            };
            prop_assert!(agreed && !dest.csum);
        }
        // A large frame can be too long only where its headers leave (nearly) no room.
        Action::TooLong => {
            prop_assert!(!fits(frame.bytes.len(), frame, mtu));
            prop_assert!(
                checked.request().gso == Gso::None || !fits(frame.header_len + 6, frame, mtu)
            );
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(crate::config())]

    #[test]
    fn cut_then_joined_is_the_original((frame, mss, _) in large()) {
        cut_then_join(&frame, mss)?;
    }

    #[test]
    fn tag_edit_before_or_after_the_cut((frame, mss, edit) in large()) {
        let mut out = [0; HEAD_MAX];
        let checked = validate(&frame.tso(mss), frame.head(), frame.len()).unwrap();
        let after: Vec<_> = cut(frame.head(), &checked, &frame.bytes, mss)
            .into_iter()
            .map(|segment| {
                let len = edit.apply(&segment[..frame.header_len], &mut out).unwrap();
                [&out[..len], &segment[frame.header_len..]].concat()
            })
            .collect();
        let head_len = edit.apply(frame.head(), &mut out).unwrap();
        let edited = [&out[..head_len], &frame.bytes[frame.head().len()..]].concat();
        let before = cut(&edited[..head_len], &checked.retagged(edit), &edited, mss);
        prop_assert_eq!(before, after);
    }

    #[test]
    fn no_shape_that_was_not_agreed(
        (frame, mss, _) in large(), dest in any_features(), mtu in prop_oneof![0u32..200, 200u32..9000], large: bool
    ) {
        let mut asked = frame.tso(mss);
        if !large {
            asked.gso = Gso::None;
        }
        agreed_shape(&frame, &asked, &dest, mtu)?;
    }

    #[test]
    fn plain_frames_too((_, frame) in any_frame(), dest in any_features(), mtu in 0u32..400, csum_valid: bool) {
        let asked = Request { csum_valid, ..Request::default() };
        agreed_shape(&frame, &asked, &dest, mtu)?;
    }

    /// The checksum of a plain frame is completed as RFC 1071 says.
    #[test]
    fn filled_checksum((frame, _, _) in large()) {
        let at = Request { gso: Gso::None, ..frame.tso(1) }.csum.unwrap();
        let mut sum = Sum::new();
        sum.add_bytes(&frame.bytes[at.start.into()..]);
        let mut segment = frame.bytes.clone();
        segment[at.field()..][..2].copy_from_slice(&finish_checksum(sum, at).to_be_bytes());
        verify(&frame, &segment)?;
        prop_assert_eq!(sum.fold(), naive_sum(&frame.bytes[frame.l4..]));
    }
}
