//! Any virtio header before any frame: request, validation, plan, tag edit, segmentation.
//!
//! Input: features, tag edit, two bytes of MTU, two bytes of length behind the snapshot, 12 bytes of virtio header, the
//! head of the frame.

use offload::parse::parse;
use offload::plan::plan;
use offload::request::{Checked, MAX_SEGMENTS, validate};
use offload::{
    Action, Features, Gso, HEAD_MAX, Request, SNAPSHOT, Segmenter, Sum, Tag, TagEdit, VirtioNetHdr,
    flow_hash,
};

use crate::input::Input;

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let features = input.features();
    let edit = match input.u8() & 3 {
        0 => TagEdit::Keep,
        1 => TagEdit::Strip,
        2 => TagEdit::Insert(Tag { tci: 0x600a }),
        _ => TagEdit::Replace(Tag { tci: 0x600a }),
    };
    let mtu = input.u16();
    let behind = input.u16();
    let mut header = [0; VirtioNetHdr::LEN];
    let given = input.bytes(VirtioNetHdr::LEN);
    header[..given.len()].copy_from_slice(given);
    let bytes = input.rest();
    let head = &bytes[..bytes.len().min(SNAPSHOT)];
    // Only a frame that fills the snapshot goes on behind it.
    let len = head.len() as u32
        + if head.len() == SNAPSHOT {
            u32::from(behind)
        } else {
            0
        };

    let header = VirtioNetHdr::from_bytes(&header);
    let Ok(request) = Request::from_virtio(&header) else {
        return;
    };
    let again = Request::from_virtio(&request.to_virtio(header.hdr_len))
        .expect("what was written is understood");
    assert_eq!((again.csum, again.gso), (request.csum, request.gso));
    let Ok(checked) = validate(&request, head, len) else {
        return;
    };
    harmless(&checked, head, len);

    let mut room = [0; HEAD_MAX];
    let Some(head_len) = edit.apply(head, &mut room) else {
        return;
    };
    let head = &room[..head_len];
    let len = len
        .checked_add_signed(edit.delta().into())
        .expect("a tag is a part of the frame");
    let checked = checked.retagged(edit);
    planned(&checked, head, len, &features, mtu);
}

/// Filling in a checksum that was granted changes nothing that the switch judged.
fn harmless(checked: &Checked, head: &[u8], len: u32) {
    let Some(at) = checked.request().csum else {
        return;
    };
    assert!(at.field() + 2 <= head.len().min(len as usize), "{at:?}");
    let mut filled = head.to_vec();
    for value in [[0, 0], [0xff, 0xff], [0x81, 0x00]] {
        filled[at.field()..at.field() + 2].copy_from_slice(&value);
        assert_eq!(parse(&filled, len), parse(head, len), "{at:?}");
        assert_eq!(flow_hash(&filled, len), flow_hash(head, len), "{at:?}");
        assert_eq!(filled[..14], head[..14]);
    }
}

fn planned(checked: &Checked, head: &[u8], len: u32, features: &Features, mtu: u16) {
    let action = plan(checked, len, features, u32::from(mtu) + 14);
    let request = action.outgoing(checked, features);
    assert!(
        features.csum || request.csum.is_none() && !request.csum_valid,
        "{action:?}"
    );
    match action {
        Action::TooLong => {}
        Action::AsIs | Action::FillChecksum => {
            assert_eq!(request.gso, Gso::None);
            assert!(
                len - u32::from(checked.l2_len()) <= mtu.into(),
                "longer than the MTU"
            );
        }
        Action::FillLarge => {
            assert!(!features.csum && large(checked.request().gso, features));
            assert_eq!(request, Request::default());
        }
        Action::KeepLarge { mss } => {
            assert!(features.csum && large(request.gso, features));
            assert!(mss > 0 && checked.header_len() - checked.l2_len() + mss <= mtu);
        }
        Action::Segment { mss } => cut(checked, head, len, mss, mtu),
    }
}

/// Whether a destination takes such frames whole.
fn large(gso: Gso, features: &Features) -> bool {
    match gso {
        Gso::None => false,
        Gso::Tcp4 { ecn, .. } => features.tso4 && (features.ecn || !ecn),
        Gso::Tcp6 { ecn, .. } => features.tso6 && (features.ecn || !ecn),
    }
}

/// Cuts to the end: nothing is lost or doubled, no segment is too long, IPv4 headers are right.
fn cut(checked: &Checked, head: &[u8], len: u32, mss: u16, mtu: u16) {
    let mut segmenter = Segmenter::new(head, checked, len, mss);
    let count = segmenter.remaining();
    assert!((1..=MAX_SEGMENTS).contains(&count), "{count} segments");
    let l3 = usize::from(checked.l2_len());
    let mut out = [0; HEAD_MAX];
    let (mut at, mut cuts) = (u32::from(checked.header_len()), 0);
    while let Some(segment) = segmenter.next(&mut out) {
        assert_eq!(segment.body_offset, at);
        assert_eq!(segment.head_len, checked.header_len());
        assert!(segment.csum.field() + 2 <= segment.head_len.into());
        at += segment.body_len;
        cuts += 1;
        let packet = u32::from(segment.head_len) - l3 as u32 + segment.body_len;
        assert!(
            packet <= mtu.into(),
            "segment of {packet} bytes for an MTU of {mtu}"
        );
        assert_eq!(out[..l3], head[..l3], "Ethernet header");
        if let Gso::Tcp4 { .. } = checked.request().gso {
            let mut sum = Sum::new();
            sum.add_bytes(&out[l3..usize::from(checked.l4())]);
            assert_eq!(sum.fold(), 0xffff, "IPv4 checksum");
            assert_eq!(
                u32::from(u16::from_be_bytes([out[l3 + 2], out[l3 + 3]])),
                packet
            );
        } else {
            assert_eq!(
                u32::from(u16::from_be_bytes([out[l3 + 4], out[l3 + 5]])) + 40,
                packet
            );
        }
    }
    assert_eq!((at, cuts), (len, count), "payload");
}
