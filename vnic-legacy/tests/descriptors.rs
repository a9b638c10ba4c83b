//! Conformance of the descriptors, from the manual: one test for each bit, and for what happens when a list ends or
//! breaks off. The bits of setup frames are in `filter.rs`.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use common::{Bench, DATA, OTHER, OWN_MAC, ROOM, RX, TX, WHOLE, data, frame, length, sent};
use vnic_legacy::csr::{mode, status};
use vnic_legacy::descriptor::{CHAINED, END_OF_RING, ES, OWN, rdes0, tdes0, tdes1};
use vswitch::drops::DropReason;

const FS: u32 = tdes1::FS;
const LS: u32 = tdes1::LS;

// Transmit.

#[test]
fn tdes0_own_is_the_adapters_turn() {
    let mut bench = Bench::started(0);
    let bytes = frame(OTHER, OWN_MAC, 100);
    data(&bench, 0, &bytes);
    bench.describe(TX, 0, [0, FS | LS | END_OF_RING | 100, DATA, 0]);
    assert!(sent(&mut bench).is_empty());
    bench.guest.set_word(TX, OWN).unwrap();
    assert_eq!(sent(&mut bench), [bytes]);
    assert_eq!(bench.status(TX, 0), 0, "given back without an error");
}

#[test]
fn tdes1_ic_asks_for_an_interrupt() {
    let mut bench = Bench::started(0);
    bench.acknowledge();
    data(&bench, 0, &frame(OTHER, OWN_MAC, 60));
    bench.describe(TX, 0, [OWN, FS | LS | 60, DATA, 0]);
    bench.turn();
    assert_eq!(bench.events(), status::ETI | status::AIS, "no IC");
    // TI clears ETI, as it comes after it.
    bench.describe(TX, 1, [OWN, tdes1::IC | FS | LS | 60, DATA, 0]);
    bench.turn();
    assert_eq!(bench.events(), status::TI | status::NIS);
    bench.acknowledge();
    bench.describe(TX, 2, [OWN, tdes1::IC | FS | LS | 60, DATA, 0]);
    bench.turn();
    assert_eq!(bench.events(), status::TI | status::NIS);
    assert_eq!(bench.guest.interrupts(), 1);
}

#[test]
fn tdes1_ic_counts_in_the_last_descriptor_only() {
    let mut bench = Bench::started(0);
    bench.acknowledge();
    data(&bench, 0, &frame(OTHER, OWN_MAC, 60));
    bench.describe(TX, 0, [OWN, tdes1::IC | FS | 30, DATA, 0]);
    bench.describe(TX, 1, [OWN, LS | 30, DATA + 30, 0]);
    bench.turn();
    assert_eq!(bench.events(), status::ETI | status::AIS);
}

#[test]
fn tdes1_fs_and_ls_make_a_frame_of_many_descriptors() {
    let mut bench = Bench::started(0);
    let bytes = frame(OTHER, OWN_MAC, 300);
    data(&bench, 0, &bytes);
    bench.describe(TX, 0, [OWN, FS | 100, DATA, 0]);
    bench.describe(TX, 1, [OWN, 50, DATA + 100, 0]);
    bench.describe(TX, 2, [OWN, LS | tdes1::IC | 150, DATA + 150, 0]);
    assert_eq!(sent(&mut bench), [bytes]);
    for index in 0..3 {
        assert_eq!(bench.status(TX, index), 0);
    }
}

#[test]
fn tdes1_both_buffers_and_empty_ones() {
    let mut bench = Bench::started(0);
    let bytes = frame(OTHER, OWN_MAC, 200);
    data(&bench, 0, &bytes);
    bench.describe(TX, 0, [OWN, FS | 80 << 11 | 20, DATA, DATA + 20]);
    bench.describe(TX, 1, [OWN, 60 << 11, 0, DATA + 100]);
    bench.describe(TX, 2, [OWN, LS | END_OF_RING | 40, DATA + 160, 0]);
    assert_eq!(sent(&mut bench), [bytes]);
}

#[test]
fn tdes1_ter_ends_the_ring() {
    let mut bench = Bench::started(0);
    for index in 0..3 {
        data(
            &bench,
            index * 100,
            &frame(OTHER, OWN_MAC, 60 + index as usize),
        );
        let end = if index == 2 { END_OF_RING } else { 0 };
        bench.describe(
            TX,
            index,
            [OWN, FS | LS | end | (60 + index), DATA + index * 100, 0],
        );
    }
    assert_eq!(sent(&mut bench).len(), 3);
    bench.guest.set_word(TX, OWN).unwrap();
    assert_eq!(sent(&mut bench)[0].len(), 60, "the first one again");
}

#[test]
fn tdes1_tch_chains_and_has_no_second_buffer() {
    let mut bench = Bench::started(0);
    let bytes = frame(OTHER, OWN_MAC, 200);
    data(&bench, 0, &bytes);
    let second = TX + 0x400;
    // The size of a second buffer means nothing.
    bench.describe(TX, 0, [OWN, FS | CHAINED | 2047 << 11 | 100, DATA, second]);
    bench
        .guest
        .describe(second, [OWN, LS | CHAINED | 100, DATA + 100, TX])
        .unwrap();
    assert_eq!(sent(&mut bench), [bytes]);
    assert_eq!(bench.guest.word(second).unwrap(), 0);
    bench.describe(
        TX,
        0,
        [OWN, FS | LS | END_OF_RING | CHAINED | 60, DATA, second],
    );
    assert_eq!(sent(&mut bench).len(), 1);
    // End of ring goes before chained: the next one is the first of the list.
    bench
        .guest
        .describe(second, [OWN, FS | LS | 61, DATA, 0])
        .unwrap();
    bench.describe(
        TX,
        0,
        [OWN, FS | LS | END_OF_RING | CHAINED | 62, DATA, second],
    );
    assert_eq!(sent(&mut bench)[0].len(), 62);
}

#[test]
fn tdes1_ac_frames_bring_their_crc() {
    let mut bench = Bench::started(0);
    let bytes = frame(OTHER, OWN_MAC, 104);
    data(&bench, 0, &bytes);
    bench.describe(
        TX,
        0,
        [OWN, FS | LS | tdes1::AC | 54 << 11 | 50, DATA, DATA + 50],
    );
    assert_eq!(sent(&mut bench), [&bytes[..100]]);
}

#[test]
fn tdes1_dpd_or_not_a_short_frame_is_padded_by_who_receives_it() {
    for dpd in [0, tdes1::DPD] {
        let mut bench = Bench::started(0);
        let bytes = frame(OTHER, OWN_MAC, 20);
        data(&bench, 0, &bytes);
        bench.describe(TX, 0, [OWN, FS | LS | dpd | 20, DATA, 0]);
        assert_eq!(sent(&mut bench), [bytes]);
    }
}

#[test]
fn a_descriptor_without_first_segment_is_skipped() {
    // Linux puts such dummies in front of setup frames.
    let mut bench = Bench::started(0);
    data(&bench, 0, &frame(OTHER, OWN_MAC, 60));
    bench.describe(TX, 0, [OWN, 0, 0, 0]);
    bench.describe(TX, 1, [OWN, FS | LS | 60, DATA, 0]);
    assert_eq!(sent(&mut bench).len(), 1);
    assert_eq!((bench.status(TX, 0), bench.status(TX, 1)), (0, 0));
}

#[test]
fn a_frame_whose_end_is_not_there_waits() {
    let mut bench = Bench::started(0);
    let bytes = frame(OTHER, OWN_MAC, 100);
    data(&bench, 0, &bytes);
    bench.describe(TX, 1, [0, LS | 50, DATA + 50, 0]);
    bench.describe(TX, 0, [OWN, FS | 50, DATA, 0]);
    bench.settle();
    assert!(bench.sent.is_empty() && bench.status(TX, 0) == OWN);
    assert!(
        bench.sleep(),
        "there is nothing to do until the next poll demand"
    );
    bench.guest.set_word(TX + 16, OWN).unwrap();
    assert_eq!(sent(&mut bench), [bytes]);
}

#[test]
fn a_frame_given_up_in_the_middle_is_not_sent() {
    let mut bench = Bench::started(0);
    data(&bench, 0, &frame(OTHER, OWN_MAC, 60));
    bench.describe(TX, 0, [OWN, FS | 30, DATA, 0]);
    bench.describe(TX, 1, [OWN, FS | LS | 60, DATA, 0]);
    bench.turn();
    bench.turn();
    assert_eq!(bench.sent.len(), 1);
    assert_eq!((bench.status(TX, 0), bench.status(TX, 1)), (0, 0));
}

#[test]
fn jabber_stops_the_transmit_process() {
    // CSR15, bytes of the frame, whether it is too long.
    let rows = [
        (0, 20_000, false),
        (4, 2048, false),
        (4, 2049, true),
        (0, 33_000, true),
        (1, 33_000, false),
    ];
    for (csr15, bytes, cut) in rows {
        let mut bench = Bench::started(0);
        bench.guest.set_csr(15, csr15);
        bench.acknowledge();
        let (mut left, mut index) = (bytes, 0);
        while left > 0 {
            let size = left.min(1000);
            left -= size;
            let first = if index == 0 { FS } else { 0 };
            let last = if left == 0 { LS } else { 0 };
            bench.describe(TX, index, [OWN, first | last | size, DATA, 0]);
            index += 1;
        }
        bench.turn();
        assert_eq!(bench.sent.len(), usize::from(!cut), "{csr15} {bytes}");
        assert_eq!(bench.events() & status::TJT != 0, cut, "{csr15} {bytes}");
        assert_eq!(bench.ts() == 0, cut, "{csr15} {bytes}");
        let errors =
            (0..index).any(|index| bench.status(TX, index) & (ES | tdes0::TO) == ES | tdes0::TO);
        assert_eq!(errors, cut);
    }
}

#[test]
fn an_empty_list_suspends_the_transmit_process_once() {
    let mut bench = Bench::started(0);
    bench.settle();
    assert_eq!(bench.events(), status::TU | status::NIS);
    assert_eq!(bench.guest.interrupts(), 1);
    bench.acknowledge();
    bench.settle();
    assert_eq!(bench.events(), 0);
    // Before the worker sleeps it says so at once.
    data(&bench, 0, &frame(OTHER, OWN_MAC, 60));
    bench.describe(TX, 0, [OWN, FS | LS | 60, DATA, 0]);
    bench.turn();
    assert_eq!(bench.ts(), status::TS_RUNNING);
    bench.acknowledge();
    assert!(bench.sleep());
    assert_eq!(bench.events(), status::TU | status::NIS);
    assert_eq!(bench.ts(), status::TS_SUSPENDED);
}

#[test]
fn an_empty_list_is_told_with_the_next_received_frame() {
    let mut bench = Bench::started(mode::PR);
    bench.receive_ring(4, 1540);
    let bytes = frame(OWN_MAC, OTHER, 60);
    let suspended = |bench: &mut Bench| {
        bench.settle();
        bench.acknowledge();
        data(bench, 0, &frame(OTHER, OWN_MAC, 60));
        bench.describe(TX, 0, [OWN, END_OF_RING | FS | LS | 60, DATA, 0]);
        for _ in 0..100 {
            bench.turn();
        }
        assert_eq!(bench.ts(), status::TS_SUSPENDED);
        assert_eq!(bench.events(), status::ETI | status::AIS);
        bench.acknowledge();
    };
    suspended(&mut bench);
    bench.deliver(&bytes);
    assert_eq!(bench.events(), status::RI | status::TU | status::NIS);
    assert_eq!(bench.guest.interrupts(), 1, "one for both");
    bench.acknowledge();
    bench.settle();
    assert_eq!(bench.events(), 0, "it was told");
    // Where nothing is received, it is told later.
    suspended(&mut bench);
    bench.settle();
    assert_eq!(bench.events(), status::TU | status::NIS);
    assert_eq!(bench.guest.interrupts(), 1);
    // A process that was stopped meanwhile has no list any more.
    suspended(&mut bench);
    bench.guest.set_csr(6, mode::PR | mode::SR);
    bench.turn();
    bench.acknowledge();
    bench.deliver(&bytes);
    assert_eq!(bench.events(), status::RI | status::NIS);
}

// Receive.

#[test]
fn rdes0_own_and_rdes1_sizes_rule_what_is_written() {
    let mut bench = Bench::started(mode::PR);
    let bytes = frame(OWN_MAC, OTHER, 100);
    // Both buffers, an odd number of bytes each, and not one more.
    bench.describe(
        RX,
        0,
        [OWN, END_OF_RING | 61 << 11 | 43, ROOM, ROOM + 0x800],
    );
    assert_eq!(bench.deliver(&bytes), None);
    assert_eq!(bench.status(RX, 0), length(104) | WHOLE | rdes0::FT);
    assert_eq!(bench.guest.get(ROOM, 43).unwrap(), bytes[..43]);
    assert_eq!(bench.guest.get(ROOM + 43, 8).unwrap(), [0; 8]);
    assert_eq!(bench.guest.get(ROOM + 0x800, 57).unwrap(), bytes[43..]);
    assert_eq!(bench.guest.get(ROOM + 0x800 + 61, 8).unwrap(), [0; 8]);
    // RER: the next one is the same, which is the host's now.
    assert_eq!(bench.deliver(&bytes), Some(DropReason::RxFull));
    assert_eq!(bench.status(RX, 0), length(104) | WHOLE | rdes0::FT);
}

#[test]
fn rdes1_rch_chains_and_rer_goes_before_it() {
    let mut bench = Bench::started(mode::PR);
    let bytes = frame(OWN_MAC, OTHER, 60);
    let second = RX + 0x400;
    bench.describe(RX, 0, [OWN, CHAINED | 2047 << 11 | 1540, ROOM, second]);
    let chained = [OWN, END_OF_RING | CHAINED | 1540, ROOM + 0x800, second];
    bench.guest.describe(second, chained).unwrap();
    assert_eq!(bench.deliver(&bytes), None);
    assert_eq!(bench.deliver(&bytes), None);
    assert_eq!(bench.guest.word(second).unwrap() & OWN, 0);
    bench.describe(RX, 0, [OWN, CHAINED | 1540, ROOM, second]);
    assert_eq!(bench.deliver(&bytes), None, "the first of the list again");
    assert_eq!(bench.status(RX, 0) & OWN, 0);
}

/// Delivers a frame of `len` bytes to a list with the descriptors `list`; gives the status of each.
fn receive(csr6: u32, list: &[[u32; 3]], to: [u8; 6], len: usize) -> (Bench, Vec<u32>) {
    let mut bench = Bench::started(csr6);
    for (index, [control, first, second]) in list.iter().enumerate() {
        bench.describe(RX, index as u32, [OWN, *control, *first, *second]);
    }
    bench.deliver(&frame(to, OTHER, len));
    let words = (0..list.len() as u32)
        .map(|index| bench.status(RX, index))
        .collect();
    (bench, words)
}

#[test]
fn rdes0_length_counts_the_crc_and_padding() {
    for (len, told) in [(14, 64), (60, 64), (61, 65), (1514, 1518)] {
        let (bench, words) = receive(mode::PR, &[[1540, ROOM, 0]], OWN_MAC, len);
        assert_eq!(words, [length(told) | WHOLE | rdes0::FT], "{len}");
        let bytes = frame(OWN_MAC, OTHER, len);
        let got = bench.guest.get(ROOM, told as usize).unwrap();
        assert_eq!(got[..len], bytes);
        assert!(
            got[len..told as usize - 4].iter().all(|byte| *byte == 0),
            "padding"
        );
        // The CRC of all that comes before it, bit by bit.
        let crc = got[..told as usize - 4].iter().fold(u32::MAX, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                crc >> 1 ^ if crc & 1 != 0 { 0xedb8_8320 } else { 0 }
            })
        });
        assert_eq!(got[told as usize - 4..], (!crc).to_le_bytes());
        // Nothing behind it.
        assert_eq!(bench.guest.get(ROOM + told, 8).unwrap(), [0; 8]);
    }
}

#[test]
fn rdes0_mf_marks_group_addresses() {
    for to in [[0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
        let (_, words) = receive(mode::PR, &[[1540, ROOM, 0]], to, 60);
        assert_eq!(words[0] & rdes0::MF, rdes0::MF);
    }
}

#[test]
fn rdes0_ft_tells_types_from_lengths() {
    for (field, told) in [
        ([0x88, 0xb5], rdes0::FT),
        ([0x05, 0xdd], rdes0::FT),
        ([0x05, 0xdc], 0),
        ([0, 46], 0),
    ] {
        let mut bench = Bench::started(mode::PR);
        bench.receive_ring(1, 1540);
        let mut bytes = frame(OWN_MAC, OTHER, 60);
        bytes[12..14].copy_from_slice(&field);
        bench.deliver(&bytes);
        assert_eq!(bench.status(RX, 0) & rdes0::FT, told, "{field:?}");
    }
}

#[test]
fn rdes0_ff_marks_what_only_receive_all_takes() {
    let (_, words) = receive(mode::RA, &[[1540, ROOM, 0]], OWN_MAC, 60);
    assert_eq!(words[0] & rdes0::FF, rdes0::FF);
    let (_, words) = receive(mode::RA | mode::PM, &[[1540, ROOM, 0]], [0xff; 6], 60);
    assert_eq!(words[0] & rdes0::FF, 0);
    let (_, words) = receive(mode::PR, &[[1540, ROOM, 0]], OWN_MAC, 60);
    assert_eq!(words[0] & rdes0::FF, 0);
}

#[test]
fn rdes0_fs_and_ls_over_many_descriptors_and_both_buffers() {
    let list = [
        [100 | 60 << 11, ROOM, ROOM + 100],
        [CHAINED | 20, ROOM + 160, RX + 32],
        [END_OF_RING | 1000, ROOM + 180, 0],
    ];
    let (bench, words) = receive(mode::PR, &list, OWN_MAC, 300);
    assert_eq!(words, [rdes0::FS, 0, length(304) | rdes0::LS | rdes0::FT]);
    assert_eq!(
        bench.guest.get(ROOM, 300).unwrap(),
        frame(OWN_MAC, OTHER, 300)
    );
}

#[test]
fn the_crc_may_lie_in_a_descriptor_of_its_own() {
    let list = [[60, ROOM, 0], [END_OF_RING | 60, ROOM + 0x800, 0]];
    let (bench, words) = receive(mode::PR, &list, OWN_MAC, 60);
    assert_eq!(words, [rdes0::FS, length(64) | rdes0::LS | rdes0::FT]);
    assert_ne!(bench.guest.get(ROOM + 0x800, 4).unwrap(), [0; 4]);
    assert_eq!(bench.guest.get(ROOM + 60, 4).unwrap(), [0; 4]);
}

#[test]
fn rdes0_de_marks_frames_cut_off() {
    // The second descriptor is the host's.
    let mut bench = Bench::started(mode::PR);
    bench.acknowledge();
    bench.describe(RX, 0, [OWN, 100, ROOM, 0]);
    bench.describe(RX, 1, [0, 100, ROOM + 100, 0]);
    assert_eq!(
        bench.deliver(&frame(OWN_MAC, OTHER, 150)),
        Some(DropReason::RxFull)
    );
    assert_eq!(bench.status(RX, 0), WHOLE | rdes0::DE | ES);
    let abnormal = status::RU | status::AIS;
    assert_eq!(bench.events(), status::RI | status::NIS | abnormal);
    // The whole ring cannot hold it: that is no reason to stand still.
    let mut bench = Bench::started(mode::PR);
    bench.receive_ring(2, 100);
    assert_eq!(
        bench.deliver(&frame(OWN_MAC, OTHER, 300)),
        Some(DropReason::RxTooSmall)
    );
    assert_eq!(
        (bench.status(RX, 0), bench.status(RX, 1)),
        (rdes0::FS, rdes0::LS | rdes0::DE | ES)
    );
    bench.receive_ring(2, 100);
    assert_eq!(bench.deliver(&frame(OWN_MAC, OTHER, 60)), None);
}

#[test]
fn an_empty_list_suspends_the_receive_process_and_counts() {
    let mut bench = Bench::started(mode::PR);
    bench.receive_ring(2, 1540);
    bench.acknowledge();
    let bytes = frame(OWN_MAC, OTHER, 60);
    let reasons = bench.deliver_all(&[&bytes[..]; 5]);
    assert_eq!(
        reasons,
        [
            None,
            None,
            Some(DropReason::RxFull),
            Some(DropReason::RxFull),
            Some(DropReason::RxFull)
        ]
    );
    assert_eq!(
        bench.events(),
        status::RI | status::NIS | status::RU | status::AIS
    );
    assert_eq!(bench.guest.interrupts(), 1, "one for the burst");
    assert_eq!(bench.rs(), status::RS_SUSPENDED);
    assert_eq!(bench.guest.csr(8) & 0xffff, 3);
    // It said so: no more until a descriptor was the adapter's again.
    bench.acknowledge();
    bench.deliver(&bytes);
    assert_eq!((bench.events(), bench.guest.interrupts()), (0, 0));
    bench.receive_ring(2, 1540);
    assert_eq!(bench.deliver(&bytes), None);
    assert_eq!(bench.rs(), status::RS_WAITING);
}
