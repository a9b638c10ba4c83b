//! Conformance of the registers field by field, from the manual's tables: every bit of CSR0 to CSR15 has a row here. What
//! a field does beyond being kept is tested in the file that the row names, or below.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use common::{Bench, DATA, OTHER, OWN_MAC, RX, TX, data, frame, sent};
use vnic_legacy::csr::{mode, status};
use vnic_legacy::descriptor::{OWN, tdes1};
use vnic_legacy::driver::Guest;
use vswitch::drops::DropReason;
use vswitch::mac::Mac;

/// What a field does when it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    /// It keeps what is written.
    Keeps,
    /// It reads as zeros, or as ones.
    Zero,
    Ones,
    /// It has a test of its own.
    Own,
}
use Field::{Keeps, Ones, Own, Zero};

/// Bits `high` to `low`.
const fn bits(high: u32, low: u32) -> u32 {
    (u32::MAX >> (31 - high)) & (u32::MAX << low)
}

const FIELDS: &[(u64, &str, u32, Field)] = &[
    (0, "SWR, software reset: registers.rs", bits(0, 0), Own),
    (0, "BAR, bus arbitration", bits(1, 1), Keeps),
    (
        0,
        "DSL, descriptor skip length: lists.rs",
        bits(6, 2),
        Keeps,
    ),
    (
        0,
        "BLE, big-endian buffers, refused: registers.rs",
        bits(7, 7),
        Zero,
    ),
    (0, "PBL, programmable burst length", bits(13, 8), Keeps),
    (0, "CAL, cache alignment", bits(15, 14), Keeps),
    (0, "reserved", bits(16, 16), Zero),
    (
        0,
        "TAP, transmit automatic polling: lists.rs",
        bits(19, 17),
        Keeps,
    ),
    (
        0,
        "DBO, descriptor byte order: lists.rs",
        bits(20, 20),
        Keeps,
    ),
    (0, "RME, read multiple", bits(21, 21), Keeps),
    (0, "reserved", bits(22, 22), Zero),
    (0, "RLE, read line", bits(23, 23), Keeps),
    (0, "WIE, write and invalidate", bits(24, 24), Keeps),
    (0, "reserved", bits(31, 25), Ones),
    (
        1,
        "TPD, transmit poll demand: registers.rs",
        bits(31, 0),
        Ones,
    ),
    (
        2,
        "RPD, receive poll demand: registers.rs",
        bits(31, 0),
        Ones,
    ),
    (3, "must be zero", bits(1, 0), Zero),
    (3, "start of receive list: registers.rs", bits(31, 2), Keeps),
    (4, "must be zero", bits(1, 0), Zero),
    (
        4,
        "start of transmit list: registers.rs",
        bits(31, 2),
        Keeps,
    ),
    // Cleared by ones, so that after a reset nothing comes of any write: TI, TPS, TU, TJT, UNF, RI, RU, RPS, RWT, ETI,
    // GTE, FBE, ERI, and their summaries AIS and NIS.
    (
        5,
        "events: registers.rs, descriptors.rs, lists.rs",
        bits(16, 0),
        Zero,
    ),
    (
        5,
        "RS, receive process state: registers.rs",
        bits(19, 17),
        Zero,
    ),
    (
        5,
        "TS, transmission process state: registers.rs",
        bits(22, 20),
        Zero,
    ),
    (5, "EB, error bits: lists.rs", bits(25, 23), Zero),
    (5, "reserved", bits(31, 26), Ones),
    (6, "HP, hash or perfect: filter.rs", bits(0, 0), Zero),
    (6, "SR, start receive: registers.rs", bits(1, 1), Keeps),
    (6, "HO, hash only: filter.rs", bits(2, 2), Zero),
    (6, "PB, pass bad frames", bits(3, 3), Keeps),
    (6, "IF, inverse filtering: filter.rs", bits(4, 4), Zero),
    (
        6,
        "SB, start or stop the back-off counter",
        bits(5, 5),
        Keeps,
    ),
    (6, "PR, promiscuous: below", bits(6, 6), Keeps),
    (6, "PM, pass all multicast: below", bits(7, 7), Keeps),
    (6, "reserved", bits(8, 8), Zero),
    (6, "FD, full duplex", bits(9, 9), Keeps),
    (6, "OM, operating mode: lists.rs", bits(11, 10), Keeps),
    (6, "FC, force collision", bits(12, 12), Keeps),
    (
        6,
        "ST, start transmission: registers.rs",
        bits(13, 13),
        Keeps,
    ),
    (6, "TR, threshold", bits(15, 14), Keeps),
    (6, "reserved", bits(16, 16), Zero),
    (6, "CA, capture effect", bits(17, 17), Keeps),
    (
        6,
        "PS, port select: below, and CSR11 in registers.rs",
        bits(18, 18),
        Keeps,
    ),
    (6, "HBD, heartbeat disable", bits(19, 19), Keeps),
    (6, "reserved", bits(20, 20), Zero),
    (6, "SF, store and forward", bits(21, 21), Keeps),
    (
        6,
        "TTM, transmit threshold mode: CSR11 in registers.rs",
        bits(22, 22),
        Keeps,
    ),
    (6, "PCS, PCS function", bits(23, 23), Keeps),
    (6, "SCR, scrambler", bits(24, 24), Keeps),
    (6, "MBO, must be one", bits(25, 25), Ones),
    (6, "reserved", bits(27, 26), Zero),
    (6, "reserved", bits(29, 28), Ones),
    (6, "RA, receive all: below", bits(30, 30), Keeps),
    (6, "SC, special capture effect", bits(31, 31), Keeps),
    (7, "TIM, transmit interrupt", bits(0, 0), Keeps),
    (7, "TSM, transmission stopped", bits(1, 1), Keeps),
    (7, "TUM, transmit buffer unavailable", bits(2, 2), Keeps),
    (7, "TJM, transmit jabber time-out", bits(3, 3), Keeps),
    (7, "reserved", bits(4, 4), Zero),
    (7, "UNM, underflow", bits(5, 5), Keeps),
    (7, "RIM, receive interrupt", bits(6, 6), Keeps),
    (7, "RUM, receive buffer unavailable", bits(7, 7), Keeps),
    (7, "RSM, receive stopped", bits(8, 8), Keeps),
    (7, "RWM, receive watchdog time-out", bits(9, 9), Keeps),
    (7, "ETM, early transmit interrupt", bits(10, 10), Keeps),
    (7, "GPM, general-purpose timer", bits(11, 11), Keeps),
    (7, "reserved", bits(12, 12), Zero),
    (7, "FBM, fatal bus error", bits(13, 13), Keeps),
    (7, "ERM, early receive interrupt", bits(14, 14), Keeps),
    (7, "AIM, abnormal interrupt summary", bits(15, 15), Keeps),
    (7, "NIM, normal interrupt summary", bits(16, 16), Keeps),
    (7, "reserved", bits(25, 17), Ones),
    (7, "reserved", bits(27, 26), Zero),
    (7, "reserved", bits(31, 28), Ones),
    (
        8,
        "missed frames, and their overflow: registers.rs",
        bits(16, 0),
        Zero,
    ),
    (
        8,
        "FIFO overflows, of which there are none",
        bits(28, 17),
        Zero,
    ),
    (8, "reserved", bits(31, 29), Ones),
    (
        9,
        "CS, CLK, DI of the serial ROM: registers.rs",
        bits(2, 0),
        Keeps,
    ),
    (
        9,
        "DO, data from the serial ROM: registers.rs",
        bits(3, 3),
        Own,
    ),
    (9, "data of the boot ROM", bits(7, 4), Ones),
    (9, "reserved", bits(9, 8), Ones),
    (9, "REG, external register select", bits(10, 10), Keeps),
    (
        9,
        "SR, serial ROM select: registers.rs",
        bits(11, 11),
        Keeps,
    ),
    (9, "BR, boot ROM select: registers.rs", bits(12, 12), Own),
    (9, "WR, write", bits(13, 13), Keeps),
    (9, "RD, read", bits(14, 14), Keeps),
    (9, "reserved", bits(15, 15), Ones),
    (
        9,
        "MDC, MII management clock: registers.rs",
        bits(16, 16),
        Keeps,
    ),
    (
        9,
        "MDO, MII management write data: registers.rs",
        bits(17, 17),
        Keeps,
    ),
    (
        9,
        "MII, operating mode of the data line: registers.rs",
        bits(18, 18),
        Keeps,
    ),
    (
        9,
        "MDI, MII management data in: registers.rs",
        bits(19, 19),
        Own,
    ),
    (9, "reserved", bits(31, 20), Ones),
    (10, "boot ROM address", bits(17, 0), Keeps),
    (10, "reserved", bits(31, 18), Zero),
    (11, "timer value: registers.rs", bits(15, 0), Keeps),
    (
        11,
        "CON, continuous mode: registers.rs",
        bits(16, 16),
        Keeps,
    ),
    (11, "reserved", bits(31, 17), Ones),
    (12, "MD, pins: registers.rs", bits(7, 0), Own),
    (
        12,
        "GPC, which is written only: registers.rs",
        bits(8, 8),
        Zero,
    ),
    (12, "reserved", bits(31, 9), Ones),
    (13, "reserved", bits(31, 0), Ones),
    (14, "reserved", bits(31, 0), Ones),
    (15, "JBD, jabber disable: descriptors.rs", bits(0, 0), Keeps),
    (15, "HUJ, host unjab", bits(1, 1), Keeps),
    (15, "JCK, jabber clock: descriptors.rs", bits(2, 2), Keeps),
    (15, "reserved", bits(3, 3), Ones),
    (15, "RWD, receive watchdog disable", bits(4, 4), Keeps),
    (15, "RWR, receive watchdog release", bits(5, 5), Keeps),
    (15, "reserved", bits(7, 6), Ones),
    (15, "reserved", bits(8, 8), Zero),
    (15, "reserved", bits(31, 9), Ones),
];

/// All bits of a register whose fields are of `kind`.
fn of(csr: u64, kind: Field) -> u32 {
    { FIELDS.iter() }
        .filter(|field| (field.0, field.3) == (csr, kind))
        .fold(0, |mask, field| mask | field.2)
}

#[test]
fn every_bit_belongs_to_one_field() {
    for csr in 0..16 {
        let mut seen = 0_u32;
        for (_, name, mask, _) in FIELDS.iter().filter(|field| field.0 == csr) {
            assert_eq!(seen & mask, 0, "CSR{csr} {name}");
            seen |= mask;
        }
        assert_eq!(seen, u32::MAX, "CSR{csr}");
    }
}

#[test]
fn every_field_keeps_what_is_written_or_reads_as_it_must_and_touches_no_other() {
    for &(csr, name, mask, kind) in FIELDS.iter().filter(|field| field.3 != Own) {
        let mut guest = Guest::new(Mac(OWN_MAC)).unwrap();
        let kept = if kind == Keeps { mask } else { 0 };
        let seen = !of(csr, Own);
        guest.set_csr(csr, mask);
        let ones = of(csr, Ones);
        assert_eq!(guest.csr(csr) & seen, ones | kept, "CSR{csr} {name}");
        guest.set_csr(csr, 0);
        assert_eq!(guest.csr(csr) & seen, ones, "CSR{csr} {name}");
    }
}

#[test]
fn csr6_ps_outlives_a_software_reset_and_no_other() {
    let mut bench = Bench::new();
    bench.guest.set_csr(6, mode::PS | mode::TTM);
    bench.guest.set_csr(0, 1);
    bench.turn();
    bench.guest.set_csr(0, 0);
    assert_eq!(bench.guest.csr(6), 0x3200_0040 | mode::PS);
    // The timer counts by the port's clock.
    bench.guest.set_csr(11, 1);
    bench.guest.advance(81_920);
    assert_eq!(bench.guest.csr(5) & status::GTE, status::GTE);
    let mut effects = Default::default();
    bench.guest.registers.reset(&mut effects);
    assert_eq!(bench.guest.csr(6), 0x3200_0040);
}

/// CSR6, then whether frames to the own address, to another one, to a group and to all are taken, without a setup frame.
#[test]
fn csr6_pr_pm_and_ra_let_frames_past_the_filter() {
    let rows = [
        (0, [false, false, false, false]),
        (mode::PM, [false, false, true, true]),
        (mode::PR, [true, true, true, true]),
        (mode::RA, [true, true, true, true]),
    ];
    for (csr6, expected) in rows {
        let mut bench = Bench::started(csr6);
        bench.receive_ring(4, 1540);
        let to = [OWN_MAC, OTHER, [1, 0, 0x5e, 0, 0, 0xfb], [0xff; 6]];
        for (to, taken) in to.into_iter().zip(expected) {
            let filtered = (!taken).then_some(DropReason::RxFilter);
            let reason = bench.deliver(&frame(to, OTHER, 60));
            assert_eq!(reason, filtered, "{csr6:#x} {to:x?}");
        }
    }
}

/// Fields of CSR6 that concern a wire: with each of them frames go both ways as without, and no status tells an error
/// that only a wire has. Those are, of RDES0, ES, RF, TL, CS, RW, RE, DB, CE and ZER; of TDES0 all.
#[test]
fn csr6_fields_of_a_wire_change_nothing_and_no_error_of_a_wire_is_told() {
    const RDES0_WIRE: u32 = 1 << 15 | 1 << 11 | 1 << 7 | 1 << 6 | bits(4, 0);
    const PB: u32 = 1 << 3;
    let wire = [
        0,
        PB,
        1 << 5,
        1 << 9,
        1 << 12,
        3 << 14,
        1 << 17,
        mode::PS,
        1 << 19,
        1 << 21,
        mode::TTM,
        1 << 23,
        1 << 24,
        1 << 31,
        bits(31, 31) | bits(24, 17) | bits(15, 14) | bits(9, 9),
    ];
    for csr6 in wire {
        let mut bench = Bench::started(mode::PR | csr6 & !mode::OM);
        bench.receive_ring(3, 1540);
        for (index, len) in (0..).zip([14, 60, 1514]) {
            assert_eq!(bench.deliver(&frame(OWN_MAC, OTHER, len)), None);
            assert_eq!(bench.status(RX, index) & (RDES0_WIRE | OWN), 0, "{csr6:#x}");
        }
        let whole = tdes1::FS | tdes1::LS;
        for (index, len) in (0..).zip([14, 60, 1514]) {
            let bytes = frame(OTHER, OWN_MAC, len as usize);
            data(&bench, 0, &bytes);
            bench.describe(TX, index, [OWN, whole | len, DATA, 0]);
            assert_eq!(sent(&mut bench), [bytes], "{csr6:#x}");
            assert_eq!(bench.status(TX, index), 0, "{csr6:#x}");
        }
        let wire = status::UNF | status::TJT | status::RWT | status::FBE;
        assert_eq!(bench.events() & wire, 0, "{csr6:#x}");
    }
}

/// Bits of RDES1 that have no meaning, and statuses that a driver leaves in DES0, change nothing.
#[test]
fn reserved_bits_of_descriptors_change_nothing() {
    let mut bench = Bench::started(mode::PR);
    let bytes = frame(OTHER, OWN_MAC, 100);
    data(&bench, 0, &bytes);
    let whole = tdes1::FS | tdes1::LS;
    bench.describe(TX, 0, [u32::MAX, whole | 100, DATA, 0]);
    assert_eq!(sent(&mut bench), std::slice::from_ref(&bytes));
    assert_eq!(bench.status(TX, 0), 0);
    let reserved = bits(31, 26) | bits(23, 22);
    bench.describe(RX, 0, [u32::MAX, reserved | 1540, common::ROOM, 0]);
    assert_eq!(bench.deliver(&bytes), None);
    let told = common::length(104) | common::WHOLE | vnic_legacy::descriptor::rdes0::FT;
    assert_eq!(bench.status(RX, 0), told);
    assert_eq!(bench.guest.get(common::ROOM, 100).unwrap(), bytes);
}
