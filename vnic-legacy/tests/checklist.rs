//! What is known to go wrong in other models of this adapter, one test each.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use common::{Bench, DATA, OTHER, OWN_MAC, ROOM, RX, TX, frame};
use vnic_legacy::csr::{mode, status};
use vnic_legacy::descriptor::{CHAINED, END_OF_RING, OWN, tdes1};
use vnic_legacy::driver::ring::{CSR6, RX_LIST, TX_LIST};
use vnic_legacy::registers::State;
use vswitch::drops::DropReason;

#[test]
fn adapters_share_no_state() {
    let (mut one, mut other) = (Bench::started(mode::PR), Bench::new());
    one.guest.mdio_write(1, 4, 0x61);
    one.guest.srom_select();
    one.guest.srom_shift(0b110, 3);
    one.guest.set_csr(11, 100);
    one.guest.set_csr(12, 0x1ff);
    one.receive_ring(4, 1540);
    one.deliver(&frame(OWN_MAC, OTHER, 60));
    assert_eq!(other.guest.srom_mac(), OWN_MAC);
    assert_eq!(other.guest.mdio_read(1, 4), 0x01e1);
    assert_eq!(other.guest.csr(5), 0xfc00_0000);
    assert_eq!(other.guest.csr(8), 0xe000_0000);
    assert_eq!(other.guest.csr(11), 0xfffe_0000);
    assert_eq!(other.guest.csr(12), 0xffff_feff);
    // And the first one goes on in the middle of its instruction.
    let word = one.guest.srom_shift(10, 6);
    let data = one.guest.srom_shift(0, 16) as u16;
    assert_eq!(word & 1, 0, "dummy bit");
    assert_eq!(data, u16::from_le_bytes([OWN_MAC[0], OWN_MAC[1]]));
}

#[test]
fn oversize_frames_are_dropped_and_not_tried_again() {
    let mut bench = Bench::started(mode::PR);
    bench.receive_ring(4, 2044);
    let long = frame(OWN_MAC, OTHER, 1515);
    let short = frame(OWN_MAC, OTHER, 1514);
    assert_eq!(bench.deliver(&long), Some(DropReason::Mtu));
    assert_eq!(
        bench.deliver(&frame(OWN_MAC, OTHER, 9014)),
        Some(DropReason::Mtu)
    );
    assert_eq!(bench.status(RX, 0), OWN, "nothing was touched");
    assert_eq!(bench.deliver(&short), None);
    let reasons = bench.deliver_all(&[&short, &long, &short]);
    assert_eq!(reasons, [None, None, Some(DropReason::Mtu)]);
}

#[test]
fn a_write_lands_in_its_own_register_only() {
    let mut bench = Bench::new();
    bench.guest.set_csr(0, 1);
    bench.turn();
    bench.guest.set_csr(0, 0);
    let reset: Vec<u32> = (0..16).map(|csr| bench.guest.csr(csr)).collect();
    for offset in 0..128u64 {
        for len in [1, 2, 4, 8] {
            // Ones, but no software reset, no start and no mask that hides a neighbour's change.
            bench.guest.write(offset, &vec![0x10; len]);
            let first = offset / 8;
            let last = (offset + len as u64 - 1) / 8;
            for csr in (0..16).filter(|csr| !(first..=last).contains(csr)) {
                let expected = match csr {
                    5 => continue,
                    csr => reset[csr as usize],
                };
                assert_eq!(
                    bench.guest.csr(csr),
                    expected,
                    "CSR{csr} after {len} bytes at {offset:#x}"
                );
            }
            // Back to reset.
            bench.guest.set_csr(0, 1);
            bench.turn();
            bench.guest.set_csr(0, 0);
            bench.turn();
        }
    }
}

#[test]
fn transmitting_does_not_stop_after_some_descriptors() {
    // 1514 descriptors of one byte each make one frame, ...
    let mut bench = Bench::new();
    let list = RX;
    let bytes = frame(OTHER, OWN_MAC, 1514);
    bench.guest.put(DATA, &bytes).unwrap();
    for index in 0..1514 {
        let first = if index == 0 { tdes1::FS } else { 0 };
        let last = if index == 1513 {
            tdes1::LS | END_OF_RING
        } else {
            0
        };
        bench.describe(list, index, [OWN, first | last | 1, DATA + index, 0]);
    }
    bench.guest.set_csr(4, list);
    bench.guest.set_csr(6, mode::ST);
    bench.turn();
    assert_eq!(bench.sent, [Ok(bytes)]);
    assert!((0..1514).all(|index| bench.status(list, index) == 0));
    // ... and thousands that hold no frame are passed over within some turns, each of bounded work.
    for index in 0..1500 {
        bench.describe(list, index, [OWN, 0, 0, 0]);
    }
    bench.describe(
        list,
        1500,
        [OWN, tdes1::FS | tdes1::LS | END_OF_RING | 60, DATA, 0],
    );
    bench.turn();
    assert_eq!(bench.sent.len(), 2);
}

#[test]
fn a_frame_in_more_pieces_than_the_switch_takes_is_dropped_by_name() {
    let mut bench = Bench::started(0);
    for index in 0..400 {
        let first = if index == 0 { tdes1::FS } else { 0 };
        let last = if index == 399 { tdes1::LS } else { 0 };
        // Every second byte: nothing to be joined.
        bench.describe(TX, index, [OWN, first | last | 1, DATA + 2 * index, 0]);
    }
    bench.describe(
        TX,
        400,
        [OWN, tdes1::FS | tdes1::LS | END_OF_RING | 60, DATA, 0],
    );
    bench.turn();
    assert_eq!(bench.sent[0], Err(DropReason::TooManySegments));
    assert!(bench.sent[1].is_ok(), "the next one is sent");
    assert!((0..401).all(|index| bench.status(TX, index) == 0));
}

#[test]
fn loops_of_descriptors_are_bounded_work() {
    // A frame that never ends, around one descriptor: 32,500 bytes and the jabber timer strikes.
    let mut bench = Bench::started(0);
    bench.describe(TX, 0, [OWN, tdes1::FS | CHAINED | 100, DATA, TX + 16]);
    bench.describe(TX, 1, [OWN, CHAINED | 100, DATA, TX + 16]);
    bench.turn();
    assert_eq!(bench.events() & status::TJT, status::TJT);
    assert!(bench.sent.is_empty());
    // One without bytes: so many descriptors.
    let mut bench = Bench::started(0);
    bench.describe(TX, 0, [OWN, tdes1::FS | CHAINED, DATA, TX + 16]);
    bench.describe(TX, 1, [OWN, CHAINED, DATA, TX + 16]);
    bench.guest.set_csr(15, 1);
    bench.turn();
    assert_eq!(bench.ts(), 0);
    // Dummies that chain to themselves from the second one on: they are given back, and the loop ends.
    let mut bench = Bench::started(0);
    bench.describe(TX, 0, [OWN, CHAINED, 0, TX + 16]);
    bench.describe(TX, 1, [OWN, CHAINED, 0, TX + 16]);
    bench.settle();
    assert_eq!(bench.status(TX, 1), 0);
    // Receive buffers without a byte.
    let mut bench = Bench::started(mode::PR);
    bench.describe(RX, 0, [OWN, CHAINED, ROOM, RX + 16]);
    bench.describe(RX, 1, [OWN, CHAINED, ROOM, RX + 16]);
    assert_eq!(
        bench.deliver(&frame(OWN_MAC, OTHER, 60)),
        Some(DropReason::RxTooSmall)
    );
}

#[test]
fn one_descriptor_is_sent_once() {
    // iPXE's list has one descriptor, which is its own successor.
    let mut bench = Bench::started(0);
    bench.guest.put(DATA, &frame(OTHER, OWN_MAC, 60)).unwrap();
    bench.describe(
        TX,
        0,
        [OWN, tdes1::FS | tdes1::LS | END_OF_RING | 60, DATA, 0],
    );
    bench.turn();
    bench.turn();
    assert_eq!(bench.sent.len(), 1);
}

#[test]
fn a_small_receive_ring_is_not_overrun_by_a_burst() {
    let mut bench = Bench::started(mode::PR);
    bench.receive_ring(4, 1540);
    let frames: Vec<_> = (0..8)
        .map(|index| frame(OWN_MAC, OTHER, 60 + index))
        .collect();
    let slices: Vec<_> = frames.iter().map(Vec::as_slice).collect();
    let reasons = bench.deliver_all(&slices);
    assert_eq!(reasons.iter().filter(|reason| reason.is_none()).count(), 4);
    for (index, sent) in frames.iter().take(4).enumerate() {
        assert_eq!(
            bench
                .guest
                .get(ROOM + 2048 * index as u32, sent.len())
                .unwrap(),
            *sent
        );
    }
}

#[test]
fn no_wake_up_is_lost() {
    let mut bench = Bench::started(0);
    bench.guest.put(DATA, &frame(OTHER, OWN_MAC, 60)).unwrap();
    bench.settle();
    bench.wake();
    // Owned before the worker sleeps: it does not.
    bench.describe(TX, 0, [OWN, tdes1::FS | tdes1::LS | 60, DATA, 0]);
    assert!(!bench.sleep());
    bench.turn();
    // Kicked between looking and sleeping: the kick is there.
    assert!(bench.sleep());
    bench.describe(TX, 1, [OWN, tdes1::FS | tdes1::LS | 60, DATA, 0]);
    bench.guest.set_csr(1, 0);
    assert!(bench.guest.is_kicked());
    bench.wake();
    assert!(!bench.guest.is_kicked());
    bench.turn();
    assert_eq!(bench.sent.len(), 2);
    // So is every change of the registers.
    bench.settle();
    assert!(bench.sleep());
    bench.guest.set_csr(6, 0);
    assert!(bench.guest.is_kicked());
    assert!(!bench.sleep(), "not seen yet");
}

#[test]
fn interrupts_come_once_until_acknowledged_and_only_if_enabled() {
    let mut bench = Bench::started(mode::PR);
    bench.receive_ring(16, 1540);
    bench.acknowledge();
    let bytes = frame(OWN_MAC, OTHER, 60);
    bench.deliver_all(&[&bytes[..]; 3]);
    bench.deliver(&bytes);
    assert_eq!(bench.guest.interrupts(), 1);
    bench.guest.set_csr(5, status::RI | status::NIS);
    bench.deliver(&bytes);
    assert_eq!(bench.guest.interrupts(), 1);
    for csr7 in [0, status::RI, status::NIS, !status::RI] {
        bench.acknowledge();
        bench.guest.set_csr(7, csr7);
        bench.deliver(&bytes);
        assert_eq!(bench.guest.interrupts(), 0, "{csr7:#x}");
        assert_eq!(bench.guest.csr(5) & status::RI, status::RI);
    }
    // Enabling it later raises the line.
    bench.guest.set_csr(7, status::RI | status::NIS);
    assert!(bench.guest.line);
}

#[test]
fn nothing_is_written_once_a_driver_saw_it_stop() {
    let mut bench = Bench::new();
    let mut rings = bench.guest.up(OWN_MAC).unwrap();
    bench.turn();
    bench.deliver(&frame(OWN_MAC, OTHER, 60));
    assert!(rings.receive(&bench.guest).unwrap().is_some());
    bench.guest.set_csr(6, CSR6);
    bench.turn();
    assert_eq!((bench.rs(), bench.ts()), (0, 0));
    let before = bench.guest.get(RX_LIST, 0x2000).unwrap();
    assert_eq!(
        bench.deliver(&frame(OWN_MAC, OTHER, 60)),
        Some(DropReason::RxNotReady)
    );
    bench.guest.set_word(TX_LIST + 32, OWN).unwrap();
    bench.settle();
    bench.guest.set_word(TX_LIST + 32, 0).unwrap();
    assert_eq!(bench.guest.get(RX_LIST, 0x2000).unwrap(), before);
}

#[test]
fn stopping_and_starting_goes_on_at_the_same_descriptor() {
    let mut bench = Bench::started(mode::PR);
    bench.receive_ring(4, 1540);
    let bytes = frame(OWN_MAC, OTHER, 60);
    bench.deliver(&bytes);
    bench.guest.set_csr(6, 0);
    bench.turn();
    bench.guest.set_csr(6, mode::PR | mode::SR | mode::ST);
    bench.turn();
    bench.deliver(&bytes);
    assert_eq!(bench.status(RX, 1) & OWN, 0);
    assert_eq!(bench.status(RX, 2) & OWN, OWN);
}

#[test]
fn a_new_port_goes_on_where_the_last_one_stopped() {
    let mut bench = Bench::new();
    let mut rings = bench.guest.up(OWN_MAC).unwrap();
    bench.turn();
    let bytes = frame(OWN_MAC, OTHER, 80);
    for round in 0..200 {
        assert_eq!(bench.deliver(&bytes), None, "round {round}");
        assert_eq!(rings.receive(&bench.guest).unwrap().as_ref(), Some(&bytes));
        assert!(
            rings
                .send(&mut bench.guest, &frame(OTHER, OWN_MAC, 70))
                .unwrap()
        );
        bench.turn();
        assert_eq!(bench.sent.len(), round + 1);
        if round % 3 == 0 {
            bench.lose_port();
            bench.new_port();
            bench.turn();
        }
    }
    // The filter came along, and no stop was reported.
    assert_eq!(
        bench.deliver(&frame(OTHER, OWN_MAC, 60)),
        Some(DropReason::RxFilter)
    );
    assert_eq!(bench.guest.csr(5) & (status::TPS | status::RPS), 0);
}

#[test]
fn a_port_that_comes_after_a_reset_starts_anew() {
    let mut bench = Bench::new();
    let _rings = bench.guest.up(OWN_MAC).unwrap();
    bench.turn();
    bench.lose_port();
    bench.guest.set_csr(0, 1);
    assert_eq!(bench.guest.csr(0) & 1, 0, "done at once");
    bench.guest.set_csr(6, mode::SR);
    bench.new_port();
    bench.turn();
    assert_eq!(
        bench.deliver(&frame(OWN_MAC, OTHER, 60)),
        Some(DropReason::RxFilter)
    );
}

#[test]
fn state_is_saved_and_restored_whole() {
    let mut bench = Bench::new();
    let mut rings = bench.guest.up(OWN_MAC).unwrap();
    bench.turn();
    for _ in 0..5 {
        bench.deliver(&frame(OWN_MAC, OTHER, 80));
        rings.receive(&bench.guest).unwrap();
        rings
            .send(&mut bench.guest, &frame(OTHER, OWN_MAC, 70))
            .unwrap();
        bench.turn();
    }
    // Into the middle of everything.
    bench.guest.set_csr(11, 1000);
    bench.guest.advance(81_920 * 300);
    bench.guest.set_csr(12, 0x10f);
    bench.guest.mdio_write(1, 4, 0x61);
    bench
        .guest
        .registers
        .set_power(0x4200, &mut Default::default());
    bench.guest.srom_select();
    bench.guest.srom_shift(0b110, 3);
    bench.guest.srom_shift(10, 6);
    bench.lose_port();
    let text = serde_json::to_string(&bench.guest.registers.save(bench.guest.now)).unwrap();
    let state: State = serde_json::from_str(&text).unwrap();

    let mut after = Bench::new();
    after.lose_port();
    after.guest.memory = std::sync::Arc::clone(&bench.guest.memory);
    let mut effects = Default::default();
    after.guest.now = 5_000_000_000;
    after
        .guest
        .registers
        .restore(&state, after.guest.now, &mut effects)
        .unwrap();
    after.guest.carry_out(&effects);
    assert_eq!(after.guest.registers.save(after.guest.now), state);
    for csr in [0, 3, 4, 5, 6, 7, 10, 11, 12, 15] {
        assert_eq!(after.guest.csr(csr), bench.guest.csr(csr), "CSR{csr}");
    }
    assert_eq!(after.guest.registers.power(), 0x4200);
    let mac = after.guest.srom_shift(0, 16) as u16;
    assert_eq!(mac, u16::from_le_bytes([OWN_MAC[0], OWN_MAC[1]]));
    assert_eq!(after.guest.mdio_read(1, 4), 0x61);
    // 700 counts are left of the timer.
    after.guest.set_csr(5, u32::MAX);
    after.guest.advance(81_920 * 700 - 1);
    assert_eq!(after.guest.csr(5) & status::GTE, 0);
    after.guest.advance(1);
    assert_eq!(after.guest.csr(5) & status::GTE, status::GTE);
    // And traffic goes on.
    after.new_port();
    after.turn();
    for _ in 0..40 {
        let bytes = frame(OWN_MAC, OTHER, 90);
        assert_eq!(after.deliver(&bytes), None);
        assert_eq!(rings.receive(&after.guest).unwrap(), Some(bytes));
        assert!(
            rings
                .send(&mut after.guest, &frame(OTHER, OWN_MAC, 70))
                .unwrap()
        );
        after.turn();
    }
    assert_eq!(after.sent.len(), 40);
    assert_eq!(
        after.deliver(&frame(OTHER, OWN_MAC, 60)),
        Some(DropReason::RxFilter)
    );
}

#[test]
fn states_that_cannot_be_are_refused_and_change_nothing() {
    let mut bench = Bench::new();
    bench.lose_port();
    let good = serde_json::to_value(bench.guest.registers.save(0)).unwrap();
    let rows = [
        ("/csr/3", "1", "CSR3, receive list base address"),
        ("/csr/5", "1", "CSR5, status"),
        ("/status", "65536", "status"),
        ("/rx_at", "3", "position in the receive list"),
        ("/filter_kind", "5", "kind of filter"),
        ("/filter", "[1, 2]", "setup frame"),
        ("/power", "1", "power register"),
        ("/srom/words", "[1]", "serial ROM"),
        (
            "/srom/phase",
            r#"{"reading":{"address":64,"left":1}}"#,
            "serial ROM",
        ),
        (
            "/mii/phase",
            r#"{"header":{"bits":0,"count":12}}"#,
            "MII management",
        ),
        ("/timer", r#"{"value":0,"unit":0,"deadline":7}"#, "timer"),
    ];
    for (place, value, named) in rows {
        let mut bad = good.clone();
        *bad.pointer_mut(place).unwrap() = serde_json::from_str(value).unwrap();
        let state: State = serde_json::from_value(bad).unwrap();
        let error = bench
            .guest
            .registers
            .restore(&state, 0, &mut Default::default());
        assert!(error.unwrap_err().to_string().contains(named), "{place}");
        assert_eq!(
            serde_json::to_value(bench.guest.registers.save(0)).unwrap(),
            good
        );
    }
}

#[test]
fn rings_moved_under_traffic_harm_nobody() {
    let mut bench = Bench::new();
    let mut rings = bench.guest.up(OWN_MAC).unwrap();
    bench.turn();
    for at in (0..2000u32).map(|step| step.wrapping_mul(2_654_435_761)) {
        bench
            .guest
            .set_csr(3 + u64::from(at & 1), 0x10_0000 + at % 0x10_0000);
        bench.deliver(&frame(OWN_MAC, OTHER, 60));
        bench.turn();
    }
    assert!(bench.sides.as_ref().unwrap().tx.fault().is_none());
    // A reset, and all is well.
    rings = {
        drop(rings);
        bench.guest.up(OWN_MAC).unwrap()
    };
    bench.turn();
    bench.sent.clear();
    assert_eq!(bench.deliver(&frame(OWN_MAC, OTHER, 60)), None);
    assert!(rings.receive(&bench.guest).unwrap().is_some());
    assert!(
        rings
            .send(&mut bench.guest, &frame(OTHER, OWN_MAC, 70))
            .unwrap()
    );
    bench.turn();
    assert_eq!(bench.sent.len(), 1);
}
