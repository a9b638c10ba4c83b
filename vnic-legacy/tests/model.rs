//! The descriptor lists against naive models: frames cut into any descriptors are sent whole, and frames received lie in
//! the buffers as if they had been written one byte after the other.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use common::{Bench, DATA, OTHER, OWN_MAC, ROOM, RX, TX, frame};
use proptest::prelude::*;
use vnic_legacy::csr::mode;
use vnic_legacy::descriptor::{CHAINED, END_OF_RING, ES, OWN, rdes0, tdes1};

/// A list in memory: where each descriptor is, and its control bits for what comes after it.
fn lay_out(list: u32, count: usize, chained: bool, skip: u32) -> Vec<(u32, u32, u32)> {
    (0..count as u32)
        .map(|index| {
            let last = index as usize + 1 == count;
            if chained {
                // Backwards, so that order comes from the chain alone.
                let at = |index: u32| {
                    if index == 0 {
                        list
                    } else {
                        list + 16 * (count as u32 - index)
                    }
                };
                (at(index), CHAINED, at(if last { 0 } else { index + 1 }))
            } else {
                let end = if last { END_OF_RING } else { 0 };
                (list + index * (16 + 4 * skip), end, 0)
            }
        })
        .collect()
}

/// Address and length.
type Buffer = (u32, u32);
/// Buffers of one descriptor: the second is empty in a chain.
type Sizes = (u32, u32);

fn sizes(most: u32) -> impl Strategy<Value = Sizes> {
    (0..most, prop_oneof![Just(0), 0..most])
}

/// What lies in the buffers and status words after `frames` were received: of each descriptor, its bytes and status.
fn receive_model(buffers: &[Sizes], frames: &[Vec<u8>]) -> (Vec<(Vec<u8>, u32)>, usize) {
    let mut result: Vec<(Vec<u8>, u32)> = vec![(Vec::new(), OWN); buffers.len()];
    let (mut at, mut delivered) = (0, 0);
    for bytes in frames {
        let mut wire = bytes.clone();
        wire.resize(wire.len().max(60), 0);
        let crc = crc32fast::hash(&wire);
        wire.extend(crc.to_le_bytes());
        let total = wire.len() as u32;
        let first = at;
        let mut left = wire.as_slice();
        while !left.is_empty() && at < buffers.len() {
            let room = ((buffers[at].0 + buffers[at].1) as usize).min(left.len());
            result[at] = (left[..room].to_vec(), 0);
            left = &left[room..];
            at += 1;
        }
        if !left.is_empty() {
            // Cut off at the end of the list; the bytes are not written, as nobody may look at them.
            result[first..at].fill((Vec::new(), 0));
            if first < at {
                result[first].1 |= rdes0::FS;
                result[at - 1].1 |= rdes0::LS | rdes0::DE | ES;
            }
            break;
        }
        result[first].1 |= rdes0::FS;
        result[at - 1].1 |= rdes0::LS | rdes0::FT | total << 16;
        delivered += 1;
    }
    (result, delivered)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn frames_in_any_descriptors_are_sent_whole(
        frames in prop::collection::vec((14usize..1600, prop::collection::vec(0u32..400, 0..12)), 1..8),
        chained: bool,
        skip in 0u32..4,
    ) {
        let mut bench = Bench::started(0);
        bench.guest.set_csr(0, skip << 2);
        // Each frame as pieces: cuts at random lengths, the rest in pieces of up to 2047.
        let mut pieces = Vec::new();
        let mut expected = Vec::new();
        let mut data = DATA;
        for (len, cuts) in &frames {
            let bytes = frame(OTHER, OWN_MAC, *len);
            let (mut left, mut first) = (*len as u32, tdes1::FS);
            let mut cuts = cuts.iter();
            let mut at = 0;
            while left > 0 {
                let now = cuts.next().copied().unwrap_or(2047).min(left);
                left -= now;
                // Not adjoining.
                bench.guest.put(data, &bytes[at..at + now as usize]).unwrap();
                let last = if left == 0 { tdes1::LS } else { 0 };
                pieces.push((first | last, data, now));
                data += now + 3;
                at += now as usize;
                first = 0;
            }
            expected.push(Ok(bytes));
        }
        // Two pieces a descriptor, where they belong to one frame and there is room for a second.
        let mut descriptors: Vec<(u32, Buffer, Buffer)> = Vec::new();
        for (flags, at, len) in pieces {
            match descriptors.last_mut() {
                Some((bits, _, second))
                    if !chained && flags & tdes1::FS == 0 && second.1 == 0 && len > 0 =>
                {
                    *second = (at, len);
                    *bits |= flags;
                }
                _ => descriptors.push((flags, (at, len), (0, 0))),
            }
        }
        let places = lay_out(TX, descriptors.len(), chained, skip);
        for ((bits, first, second), (at, control, next)) in descriptors.iter().zip(&places) {
            let control = bits | control | first.1 | second.1 << 11;
            let second = if chained { *next } else { second.0 };
            bench.guest.describe(*at, [OWN, control, first.0, second]).unwrap();
        }
        bench.turn();
        prop_assert_eq!(&bench.sent, &expected);
        for (at, _, _) in places {
            prop_assert_eq!(bench.guest.word(at).unwrap(), 0);
        }
    }

    #[test]
    fn received_frames_lie_as_if_written_byte_by_byte(
        mut buffers in prop::collection::vec(sizes(300), 1..40),
        lengths in prop::collection::vec(14usize..700, 1..8),
        chained: bool,
        skip in 0u32..4,
    ) {
        if chained {
            buffers.iter_mut().for_each(|sizes| sizes.1 = 0);
        }
        // The host's descriptor ends the list.
        let count = buffers.len() + 1;
        let mut bench = Bench::started(mode::PR);
        bench.guest.set_csr(0, skip << 2);
        bench.turn();
        let places = lay_out(RX, count, chained, skip);
        for (index, (at, control, next)) in places.iter().enumerate() {
            let (first, second) = buffers.get(index).copied().unwrap_or((100, 0));
            let room = ROOM + 700 * index as u32;
            let own = if index + 1 == count { 0 } else { OWN };
            let second_at = if chained { *next } else { room + first };
            bench
                .guest
                .describe(*at, [own, control | first | second << 11, room, second_at])
                .unwrap();
        }
        let frames: Vec<_> = lengths.iter().map(|len| frame(OWN_MAC, OTHER, *len)).collect();
        let slices: Vec<_> = frames.iter().map(Vec::as_slice).collect();
        let mut delivered = 0;
        for slice in slices {
            if bench.deliver(slice).is_some() {
                break;
            }
            delivered += 1;
        }
        let (model, expected) = receive_model(&buffers, &frames);
        prop_assert_eq!(delivered, expected);
        for (index, (bytes, word)) in model.iter().enumerate() {
            prop_assert_eq!(bench.guest.word(places[index].0).unwrap(), *word, "descriptor {}", index);
            let got = bench.guest.get(ROOM + 700 * index as u32, bytes.len()).unwrap();
            prop_assert_eq!(&got, bytes, "buffers of descriptor {}", index);
        }
    }
}
