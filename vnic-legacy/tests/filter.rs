//! Conformance of the address filter, from the manual: setup frames, and which frames they let in.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use common::{Bench, DATA, OTHER, OWN_MAC, RX, TX, data, frame, sent};
use vnic_legacy::csr::{mode, status};
use vnic_legacy::descriptor::{OWN, tdes0, tdes1};
use vswitch::drops::DropReason;

#[test]
fn tdes1_set_is_no_frame_and_its_types_show_in_csr6() {
    // FT bits, CSR6.
    let rows = [
        (0, 0),
        (tdes1::FT0, mode::HP),
        (tdes1::FT1, mode::IF),
        (tdes1::FT0 | tdes1::FT1, mode::HP | mode::HO),
    ];
    for (types, bits) in rows {
        let mut bench = Bench::started(0);
        data(&bench, 0, &[0xff; 192]);
        bench.describe(TX, 0, [OWN, tdes1::SET | tdes1::IC | types | 192, DATA, 0]);
        assert!(sent(&mut bench).is_empty());
        assert_eq!(bench.status(TX, 0), tdes0::SETUP_DONE);
        assert_eq!(bench.events() & status::TI, status::TI);
        assert_eq!(bench.guest.csr(6) & (mode::HP | mode::HO | mode::IF), bits);
    }
}

#[test]
fn every_kind_of_setup_frame_filters() {
    let group = [1, 0, 0x5e, 0, 0, 0xfb];
    // FT bits, setup frame, then: own address, group, broadcast.
    let perfect = vnic_legacy::driver::ring::perfect(&[OWN_MAC]);
    let mut hash = [0u8; 192];
    hash[156..158].copy_from_slice(&OWN_MAC[..2]);
    hash[160..162].copy_from_slice(&OWN_MAC[2..4]);
    hash[164..166].copy_from_slice(&OWN_MAC[4..]);
    let mut hash_with_broadcast = hash;
    // Bit 255 is broadcast's.
    hash_with_broadcast[4 * 15 + 1] |= 0x80;
    let rows = [
        (0, perfect, [true, false, true]),
        (tdes1::FT1, perfect, [false, true, false]),
        (tdes1::FT0, hash, [true, false, false]),
        (tdes1::FT0, hash_with_broadcast, [true, false, true]),
        (
            tdes1::FT0 | tdes1::FT1,
            hash_with_broadcast,
            [false, false, true],
        ),
    ];
    for (types, setup, expected) in rows {
        let mut bench = Bench::started(0);
        data(&bench, 0, &setup);
        bench.describe(TX, 0, [OWN, tdes1::SET | types | 192, DATA, 0]);
        bench.turn();
        for (to, taken) in [OWN_MAC, group, [0xff; 6]].into_iter().zip(expected) {
            bench.receive_ring(1, 1540);
            bench.guest.set_csr(3, RX);
            bench.turn();
            let reason = bench.deliver(&frame(to, OTHER, 60));
            let filtered = (!taken).then_some(DropReason::RxFilter);
            assert_eq!(reason, filtered, "{types:#x} {to:x?}");
        }
    }
}

#[test]
fn before_the_first_setup_frame_nothing_is_taken() {
    let mut bench = Bench::started(0);
    bench.receive_ring(1, 1540);
    for to in [OWN_MAC, [0xff; 6], [0; 6]] {
        assert_eq!(
            bench.deliver(&frame(to, OTHER, 60)),
            Some(DropReason::RxFilter)
        );
    }
    // A setup frame of another length changes nothing.
    bench.describe(TX, 0, [OWN, tdes1::SET | tdes1::FT1 | 191, DATA, 0]);
    bench.turn();
    assert_eq!(bench.status(TX, 0), tdes0::SETUP_DONE);
    assert_eq!(
        bench.deliver(&frame(OWN_MAC, OTHER, 60)),
        Some(DropReason::RxFilter)
    );
}
