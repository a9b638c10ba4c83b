//! Conformance of the descriptor lists as a whole, from the manual: how CSR0 lays them out, loopback from one to the other,
//! and lists that lead astray.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use common::{Bench, DATA, OTHER, OWN_MAC, ROOM, RX, TX, WHOLE, data, frame, length, sent};
use vnic_legacy::csr::{bus_mode, mode, status};
use vnic_legacy::descriptor::{END_OF_RING, OWN, rdes0, tdes1};
use vnic_legacy::driver::BASE;
use vswitch::drops::DropReason;

const FS: u32 = tdes1::FS;
const LS: u32 = tdes1::LS;

#[test]
fn csr0_dsl_skips_longwords_between_descriptors() {
    for skip in [0, 1, 4, 31] {
        let mut bench = Bench::started(mode::PR);
        bench.guest.set_csr(0, skip << 2);
        let stride = 16 + 4 * skip;
        data(&bench, 0, &frame(OTHER, OWN_MAC, 60));
        for index in 0..2 {
            bench
                .guest
                .describe(TX + index * stride, [OWN, FS | LS | 60, DATA, 0])
                .unwrap();
            bench
                .guest
                .describe(RX + index * stride, [OWN, 1540, ROOM, 0])
                .unwrap();
            assert_eq!(sent(&mut bench).len(), 1, "{skip}");
            assert_eq!(bench.deliver(&frame(OWN_MAC, OTHER, 60)), None, "{skip}");
        }
    }
}

#[test]
fn csr0_dbo_turns_the_bytes_of_descriptors() {
    let mut bench = Bench::started(mode::PR);
    bench.guest.set_csr(0, bus_mode::DBO);
    let bytes = frame(OTHER, OWN_MAC, 60);
    data(&bench, 0, &bytes);
    bench.describe(
        TX,
        0,
        [OWN, FS | LS | END_OF_RING | 60, DATA, 0].map(u32::swap_bytes),
    );
    bench.describe(
        RX,
        0,
        [OWN, END_OF_RING | 1540, ROOM, 0].map(u32::swap_bytes),
    );
    assert_eq!(sent(&mut bench), [bytes]);
    assert_eq!(bench.deliver(&frame(OWN_MAC, OTHER, 60)), None);
    assert_eq!(
        bench.status(RX, 0).swap_bytes(),
        length(64) | WHOLE | rdes0::FT
    );
    // Data is not turned.
    assert_eq!(bench.guest.get(ROOM, 6).unwrap(), OWN_MAC);
}

#[test]
fn csr0_tap_keeps_the_worker_awake() {
    let mut bench = Bench::started(0);
    bench.settle();
    assert!(bench.sleep());
    bench.guest.set_csr(0, 1 << 17);
    bench.turn();
    assert!(!bench.sleep(), "this driver gives no poll demands");
}

#[test]
fn csr6_om_loops_back() {
    for (om, told) in [
        (mode::OM_INTERNAL, rdes0::DT_INTERNAL),
        (mode::OM_EXTERNAL, rdes0::DT_EXTERNAL),
    ] {
        let mut bench = Bench::started(om | mode::PR);
        bench.receive_ring(2, 1540);
        bench.acknowledge();
        let bytes = frame(OTHER, OWN_MAC, 100);
        data(&bench, 0, &bytes);
        bench.describe(TX, 0, [OWN, FS | LS | tdes1::IC | 100, DATA, 0]);
        assert!(sent(&mut bench).is_empty(), "not to the network");
        assert_eq!(bench.status(TX, 0), 0);
        assert_eq!(bench.status(RX, 0), length(104) | WHOLE | rdes0::FT | told);
        assert_eq!(bench.guest.get(ROOM, 100).unwrap(), bytes);
        let both = status::TI | status::RI | status::NIS;
        assert_eq!(bench.events() & both, both);
        // Nor from it.
        assert_eq!(bench.deliver(&bytes), Some(DropReason::RxNotReady));
    }
}

#[test]
fn phy_loopback_is_a_loopback() {
    let mut bench = Bench::started(mode::PR);
    bench.receive_ring(2, 1540);
    bench.guest.mdio_write(1, 0, 0x4100);
    data(&bench, 0, &frame(OTHER, OWN_MAC, 100));
    bench.describe(TX, 0, [OWN, FS | LS | 100, DATA, 0]);
    assert!(sent(&mut bench).is_empty());
    assert_eq!(bench.status(RX, 0) & OWN, 0);
}

#[test]
fn csr5_fbe_when_a_list_leads_outside_memory() {
    let outside = BASE - 16;
    let edge = BASE + vnic_legacy::driver::MEMORY - 8;
    let stopped = |bench: &mut Bench| {
        let csr5 = bench.guest.csr(5);
        assert_eq!(csr5 & status::FBE, status::FBE);
        assert_eq!(csr5 & status::EB, status::EB_MASTER_ABORT);
        assert_eq!(csr5 & status::AIS, status::AIS);
        bench.turn();
        assert_eq!((bench.rs(), bench.ts()), (0, 0), "both stop");
        assert_eq!(
            bench.deliver(&frame(OWN_MAC, OTHER, 60)),
            Some(DropReason::RxNotReady)
        );
        // Starting again does not help; a reset does.
        bench.guest.set_csr(6, 0);
        bench.guest.set_csr(6, mode::PR | mode::SR | mode::ST);
        bench.turn();
        assert_eq!((bench.rs(), bench.ts()), (0, 0));
        bench.guest.set_csr(0, 1);
        bench.turn();
        assert_eq!(bench.guest.csr(5), 0xfc00_0000);
        bench.guest.set_csr(3, RX);
        bench.receive_ring(1, 1540);
        bench.guest.set_csr(6, mode::PR | mode::SR);
        bench.turn();
        assert_eq!(bench.deliver(&frame(OWN_MAC, OTHER, 60)), None);
    };
    for at in [outside, edge, 0, 0xffff_fff8] {
        let mut bench = Bench::started(mode::PR);
        bench.guest.set_csr(4, at);
        bench.turn();
        stopped(&mut bench);
        let mut bench = Bench::started(mode::PR);
        bench.guest.set_csr(3, at);
        bench.turn();
        assert_eq!(
            bench.deliver(&frame(OWN_MAC, OTHER, 60)),
            Some(DropReason::RxFault)
        );
        stopped(&mut bench);
    }
    // Buffers, and the setup frame.
    for control in [FS | LS | 60, tdes1::SET | 192, FS | LS | 60 << 11] {
        let mut bench = Bench::started(mode::PR);
        bench.describe(TX, 0, [OWN, control, edge, edge]);
        bench.turn();
        assert!(bench.sent.is_empty());
        stopped(&mut bench);
    }
    let mut bench = Bench::started(mode::PR);
    bench.describe(RX, 0, [OWN, 1540, edge, 0]);
    bench.deliver(&frame(OWN_MAC, OTHER, 60));
    stopped(&mut bench);
    assert!(
        bench.sides.as_ref().unwrap().tx.fault().is_none(),
        "the port lives"
    );
}

#[test]
fn frames_before_a_bus_error_are_sent() {
    let mut bench = Bench::started(0);
    data(&bench, 0, &frame(OTHER, OWN_MAC, 60));
    bench.describe(TX, 0, [OWN, FS | LS | 60, DATA, 0]);
    bench.describe(TX, 1, [OWN, FS | LS | 60, 0, 0]);
    bench.turn();
    assert_eq!(bench.sent.len(), 1);
    assert_eq!(bench.status(TX, 0), 0);
    assert_eq!(bench.events() & status::FBE, status::FBE);
}
