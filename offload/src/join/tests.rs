use std::vec::Vec;

use super::*;
use crate::request::validate;
use crate::{HEAD_MAX, SNAPSHOT, Segmenter, finish_checksum};

const V4: &[u8] = &[
    0x45, 0, 0, 0, 0xff, 0xfe, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
];
/// With a timestamp of 12 bytes.
const TCP: &[u8] = &[
    0, 80, 1, 0, 0xff, 0xff, 0xff, 0, 0, 0, 0, 2, 0x80, 0x10, 1, 0, 0, 0, 0, 0, 1, 1, 8, 10, 0, 0,
    0, 1, 0, 0, 0, 2,
];

/// A large frame with `payload` bytes, its headers as a sender of such frames writes them, and its request.
fn large(v4: bool, mss: u16, payload: usize, flags: u8) -> (Vec<u8>, Request) {
    let mut frame = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2].to_vec();
    if v4 {
        frame.extend([8, 0]);
        frame.extend(V4);
    } else {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 6, 64]);
        frame.extend([0x20; 32]);
    }
    frame.extend(TCP);
    let header_len = frame.len();
    let l4 = header_len - TCP.len();
    frame[l4 + TCP_FLAGS] = flags;
    frame.extend((0..payload).map(|i| (i * 7) as u8));
    let joined = Joined {
        v4,
        l3: 14,
        l4,
        header_len,
        mss,
        payload: payload as u32,
        segments: 1,
        flags,
    };
    let request = joined.finish(&mut frame);
    (frame, request)
}

/// The frames that `frame` is cut into, their checksums complete.
fn cut(frame: &[u8], request: &Request) -> Vec<Vec<u8>> {
    let len = frame.len() as u32;
    let head = &frame[..frame.len().min(SNAPSHOT)];
    let checked = validate(request, head, len).unwrap();
    let mss = match request.gso {
        Gso::Tcp4 { mss, .. } | Gso::Tcp6 { mss, .. } => mss,
        Gso::None => 0,
    };
    let mut segmenter = Segmenter::new(head, &checked, len, mss);
    let mut frames = Vec::new();
    let mut out = [0; HEAD_MAX];
    while let Some(segment) = segmenter.next(&mut out) {
        let mut frame_cut = out[..segment.head_len.into()].to_vec();
        let from = segment.body_offset as usize;
        frame_cut.extend(&frame[from..from + segment.body_len as usize]);
        let mut sum = Sum::new();
        sum.add_bytes(&frame_cut[segment.csum.start.into()..]);
        let checksum = finish_checksum(sum, segment.csum);
        put(&mut frame_cut, segment.csum.field(), checksum.to_be_bytes());
        frames.push(frame_cut);
    }
    frames
}

fn head(frame: &[u8]) -> &[u8] {
    &frame[..frame.len().min(SNAPSHOT)]
}

/// What `sum` of `is_sound` is to give.
fn rest(frame: &[u8]) -> Option<u64> {
    let rest = &frame[frame.len().min(SNAPSHOT)..];
    let words = rest.chunks(2);
    Some(
        words
            .map(|word| u64::from(u16::from_ne_bytes([word[0], *word.get(1).unwrap_or(&0)])))
            .sum(),
    )
}

/// Joins as many of `frames` as go together, and gives them with their number.
fn join(frames: &[Vec<u8>]) -> (Vec<u8>, Request, u16) {
    let first = &frames[0];
    let mut joined = Joined::first(head(first), first.len() as u32).unwrap();
    let mut whole = first.clone();
    for frame in &frames[1..] {
        if !joined.join(head(first), head(frame), frame.len() as u32) {
            break;
        }
        assert!(joined.is_sound(head(frame), frame.len() as u32, false, || rest(frame)));
        whole.extend(&frame[joined.header_len()..]);
    }
    let request = joined.finish(&mut whole);
    (whole, request, joined.segments())
}

#[test]
fn what_was_cut_is_joined_to_what_it_was() {
    for v4 in [true, false] {
        for (mss, payload, flags) in [
            (1448, 14480, 0x10),
            (1448, 14000, 0x18),
            (9, 100, 0x10),
            (1, 2, 0x18),
        ] {
            let (frame, request) = large(v4, mss, payload, flags);
            let frames = cut(&frame, &request);
            assert_eq!(join(&frames), (frame, request, frames.len() as u16));
        }
    }
}

#[test]
fn a_segment_that_differs_is_not_joined() {
    let (frame, request) = large(true, 1448, 4344, 0x10);
    let frames = cut(&frame, &request);
    // Address, type of service, identification, more fragments, time to live, ports, sequence and acknowledgment
    // numbers, reserved bits, window, urgent pointer, timestamp.
    for at in [0, 15, 19, 20, 22, 35, 41, 44, 46, 48, 53, 60] {
        let mut changed = frames.clone();
        changed[1][at] ^= 0x20;
        assert_eq!(join(&changed).2, 1, "byte {at}");
    }
    // FIN, SYN, RST, URG, ECE, CWR.
    for flag in [1, 2, 4, 0x20, 0x40, 0x80] {
        let mut changed = frames.clone();
        changed[1][47] |= flag;
        assert_eq!(join(&changed).2, 1, "flag {flag:#x}");
        assert_eq!(
            Joined::first(head(&changed[1]), 1514),
            None,
            "flag {flag:#x}"
        );
    }
    let short = [frames[0].clone(), frames[1][..1000].to_vec()];
    assert_eq!(join(&short).2, 1, "cut off behind what the header says");
}

#[test]
fn a_short_or_pushed_segment_is_the_last() {
    let (frame, request) = large(true, 1448, 4344, 0x10);
    let mut frames = cut(&frame, &request);
    frames[1][47] |= 8;
    let mut sum = Sum::new();
    frames[1][50..52].copy_from_slice(&[0, 0]);
    sum.add_bytes(&frames[1][34..]);
    let tcp_len = frames[1].len() as u16 - 34;
    sum.add_partial(rest(&[0; 128]).unwrap(), 0);
    let mut pseudo = pseudo_v4([10, 0, 0, 1], [10, 0, 0, 2], PROTOCOL_TCP, tcp_len);
    pseudo.add_partial(u64::from(sum.fold().swap_bytes()), 2);
    frames[1][50..52].copy_from_slice(&pseudo.checksum().to_be_bytes());
    assert_eq!(join(&frames).2, 2);

    let (frame, request) = large(true, 1448, 2000, 0x10);
    let mut frames = cut(&frame, &request);
    let (next, request) = large(true, 1448, 2896, 0x10);
    frames.extend(cut(&next, &request));
    assert_eq!(join(&frames).2, 2);
}

#[test]
fn no_more_than_an_ip_packet_holds() {
    let (frame, request) = large(true, 1448, 1448 * 44, 0x10);
    let mut frames = cut(&frame, &request);
    let last = frames.last().unwrap().clone();
    for _ in 0..10 {
        let mut next = frames.last().unwrap().clone();
        let sequence = be32(&next, 38).unwrap().wrapping_add(1448);
        let id = be16(&next, 18).unwrap().wrapping_add(1);
        put(&mut next, 38, sequence.to_be_bytes());
        put(&mut next, 18, id.to_be_bytes());
        frames.push(next);
    }
    let mut joined = Joined::first(head(&frames[0]), last.len() as u32).unwrap();
    let taken = frames[1..]
        .iter()
        .take_while(|next| joined.join(head(&frames[0]), head(next), 1514));
    assert_eq!(taken.count(), 44, "45 segments are 65160 bytes");
}

#[test]
fn only_sound_checksums_count() {
    let (frame, request) = large(true, 1448, 2896, 0x10);
    let frame = cut(&frame, &request).remove(0);
    let joined = Joined::first(head(&frame), 1514).unwrap();
    let sound =
        |frame: &[u8], unfinished| joined.is_sound(head(frame), 1514, unfinished, || rest(frame));
    assert!(sound(&frame, false));
    for at in [24, 50, 90, 1000] {
        let mut broken = frame.clone();
        broken[at] ^= 1;
        assert!(!sound(&broken, true), "byte {at}");
    }
    let mut partial = frame.clone();
    let pseudo = pseudo_v4([10, 0, 0, 1], [10, 0, 0, 2], PROTOCOL_TCP, 1480);
    partial[50..52].copy_from_slice(&pseudo.fold().to_be_bytes());
    assert!(sound(&partial, true));
    assert!(!sound(&partial, false));
}
