//! Conformance of the registers, from the manual: one test for each CSR, as tables where that is possible.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use common::{Bench, OWN_MAC, RX, TX};
use vnic_legacy::csr::{mode, serial, status};
use vnic_legacy::descriptor::{OWN, tdes1};
use vnic_legacy::driver::Guest;
use vnic_legacy::pci;
use vnic_legacy::registers::mii::phy;
use vnic_legacy::registers::srom;
use vnic_legacy::registers::table::REGISTERS;
use vswitch::mac::Mac;

fn guest() -> Guest {
    Guest::new(Mac(OWN_MAC)).unwrap()
}

#[test]
fn every_register_has_its_reset_value() {
    let manual: [(u64, u32); 16] = [
        (0, 0xfe00_0000),
        (1, 0xffff_ffff),
        (2, 0xffff_ffff),
        (3, 0),
        (4, 0),
        (5, 0xfc00_0000),
        (6, 0x3200_0040),
        (7, 0xf3fe_0000),
        (8, 0xe000_0000),
        // 0xfff4_83ff, and MDI is pulled up.
        (9, 0xfffc_83ff),
        (10, 0),
        (11, 0xfffe_0000),
        // Pins are inputs, pulled up.
        (12, 0xffff_feff),
        (13, 0xffff_ffff),
        (14, 0xffff_ffff),
        (15, 0xffff_fec8),
    ];
    let mut guest = guest();
    for (csr, value) in manual {
        assert_eq!(guest.csr(csr), value, "CSR{csr}");
    }
}

#[test]
fn every_register_keeps_the_bits_it_has() {
    // CSR, written, read.
    let rows: [(u64, u32, u32); 14] = [
        (0, 0xffff_ff7e, 0xffbe_ff7e),
        (0, 0, 0xfe00_0000),
        (1, 0, 0xffff_ffff),
        (2, 0, 0xffff_ffff),
        (3, 0xffff_ffff, 0xffff_fffc),
        (4, 0x1234_5677, 0x1234_5674),
        // HP, HO and IF are the setup frame's.
        (6, 0xffff_dffd, 0xf3ee_dee8),
        (7, 0xffff_ffff, 0xf3ff_efef),
        (7, 0, 0xf3fe_0000),
        (8, 0xffff_ffff, 0xe000_0000),
        (10, 0xffff_ffff, 0x0003_ffff),
        (13, 0, 0xffff_ffff),
        (14, 0, 0xffff_ffff),
        (15, 0xffff_ffff, 0xffff_feff),
    ];
    let mut guest = guest();
    for (csr, written, read) in rows {
        guest.set_csr(csr, written);
        assert_eq!(guest.csr(csr), read, "CSR{csr} after {written:#x}");
    }
}

#[test]
fn csr0_software_reset_brings_every_register_back() {
    let mut bench = Bench::started(mode::PM);
    bench.guest.set_csr(11, 0x1_0100);
    bench.guest.set_csr(12, 0x1ff);
    bench.guest.set_csr(15, 1);
    bench.guest.set_csr(0, 0x01a0_8001);
    // The bit is set until the port has stopped.
    assert_eq!(bench.guest.csr(0) & 1, 1);
    bench.turn();
    assert_eq!(bench.guest.csr(0), 0xffa0_8000);
    for (csr, register) in REGISTERS.iter().enumerate().skip(1) {
        let pins = match csr {
            9 => serial::MDI,
            12 => 0xff,
            _ => 0,
        };
        let value = bench.guest.csr(csr as u64);
        assert_eq!(value, register.reset | pins, "{}", register.name);
    }
    assert_eq!(bench.guest.deadline, None);
    assert!(!bench.guest.line);
}

#[test]
fn csr0_reset_bit_clears_when_written_to_zero() {
    let mut bench = Bench::new();
    bench.guest.set_csr(0, 1);
    bench.guest.set_csr(0, 0x01a0_8000);
    assert_eq!(bench.guest.csr(0), 0xffa0_8000);
}

#[test]
fn csr0_refuses_big_endian_buffers() {
    let mut guest = guest();
    guest.set_csr(0, 0x80);
    assert_eq!(guest.csr(0), 0xfe00_0000);
    assert!(guest.refused.unwrap().contains("big-endian"));
}

#[test]
fn csr1_is_a_kick() {
    let mut bench = Bench::started(0);
    bench.wake();
    assert!(!bench.guest.is_kicked());
    bench.guest.set_csr(1, 0);
    assert!(bench.guest.is_kicked());
}

#[test]
fn csr2_makes_a_suspended_receiver_look_again() {
    let mut bench = Bench::started(mode::PR);
    bench.receive_ring(1, 1540);
    let bytes = common::frame(OWN_MAC, common::OTHER, 64);
    assert!(bench.deliver(&bytes).is_none());
    assert!(bench.deliver(&bytes).is_some());
    assert_eq!(bench.rs(), status::RS_SUSPENDED);
    bench.acknowledge();
    // Nothing there: it says so once more.
    bench.guest.set_csr(2, 0);
    bench.turn();
    assert_eq!(bench.events(), status::RU | status::AIS);
    assert_eq!(bench.rs(), status::RS_SUSPENDED);
    bench.receive_ring(1, 1540);
    bench.guest.set_csr(2, 0);
    bench.turn();
    assert_eq!(bench.rs(), status::RS_WAITING);
}

#[test]
fn csr3_and_csr4_are_the_lists() {
    let mut bench = Bench::started(mode::PR);
    assert_eq!((bench.guest.csr(3), bench.guest.csr(4)), (RX, TX));
    // The same address again starts the list again.
    bench.receive_ring(2, 1540);
    let bytes = common::frame(OWN_MAC, common::OTHER, 64);
    bench.deliver(&bytes);
    bench.guest.set_csr(3, RX);
    bench.turn();
    assert!(
        bench.deliver(&bytes).is_some(),
        "descriptor 0 is the host's"
    );
    bench.receive_ring(1, 1540);
    assert!(bench.deliver(&bytes).is_none());
    // So does CSR4, though the descriptor behind the last one sent is the adapter's too.
    common::data(&bench, 0, &bytes);
    let whole = tdes1::FS | tdes1::LS;
    bench.describe(TX, 0, [OWN, whole | 64, common::DATA, 0]);
    assert_eq!(common::sent(&mut bench).len(), 1);
    bench.describe(TX, 0, [OWN, whole | 64, common::DATA, 0]);
    bench.describe(TX, 1, [OWN, whole | 60, common::DATA, 0]);
    bench.guest.set_csr(4, TX);
    let lengths = common::sent(&mut bench)
        .iter()
        .map(Vec::len)
        .collect::<Vec<_>>();
    assert_eq!(lengths, [64, 60]);
}

#[test]
fn csr5_bits_are_cleared_by_ones() {
    let mut bench = Bench::new();
    bench.guest.set_csr(6, mode::ST | mode::SR);
    bench.turn();
    bench.guest.set_csr(6, 0);
    bench.turn();
    assert_eq!(bench.events(), status::TPS | status::RPS);
    bench.guest.set_csr(5, status::TPS);
    assert_eq!(bench.events(), status::RPS);
    bench.guest.set_csr(5, 0);
    assert_eq!(bench.events(), status::RPS);
    bench.guest.set_csr(5, status::RPS);
    assert_eq!(bench.events(), 0);
}

#[test]
fn csr5_summaries_count_enabled_bits_only() {
    let all = status::NORMAL | status::ABNORMAL;
    for bit in (0..15).map(|bit| 1 << bit) {
        let normal = [status::TI, status::TU, status::RI, status::GTE, status::ERI].contains(&bit);
        let known = all & bit != 0;
        let summary = match (known, normal) {
            (false, _) => 0,
            (true, true) => status::NIS,
            (true, false) => status::AIS,
        };
        assert_eq!(status::summary(bit, u32::MAX), summary, "{bit:#x}");
        assert_eq!(status::summary(bit, !bit), 0, "{bit:#x}");
        // The line needs the bit and its summary enabled.
        assert_eq!(status::interrupts(bit, bit | summary), known, "{bit:#x}");
        assert!(!status::interrupts(bit, bit), "{bit:#x}");
        assert!(!status::interrupts(bit, summary), "{bit:#x}");
    }
}

#[test]
fn csr6_starts_and_stops_when_the_port_has_seen_it() {
    let mut bench = Bench::new();
    assert_eq!((bench.rs(), bench.ts()), (0, 0));
    bench.guest.set_csr(6, mode::SR | mode::ST);
    assert_eq!((bench.rs(), bench.ts()), (0, 0));
    bench.turn();
    assert_eq!(bench.rs(), status::RS_WAITING);
    assert_eq!(bench.ts(), status::TS_RUNNING);
    bench.settle();
    assert_eq!(bench.ts(), status::TS_SUSPENDED);
    bench.guest.set_csr(6, mode::ST);
    assert_eq!(
        bench.rs(),
        status::RS_WAITING,
        "not before the port has stopped"
    );
    bench.turn();
    assert_eq!(bench.rs(), 0);
    assert_ne!(bench.ts(), 0);
    bench.guest.set_csr(6, 0);
    bench.turn();
    assert_eq!(bench.ts(), 0);
}

#[test]
fn csr6_without_a_port_does_not_keep_a_driver_waiting() {
    let mut guest = guest();
    guest.set_csr(6, mode::SR | mode::ST);
    assert_eq!(
        guest.csr(5) & (status::RS | status::TS),
        status::RS_WAITING | status::TS_SUSPENDED
    );
    assert!(guest.down(|| {}));
    assert_eq!(guest.csr(5) & 0x1_ffff, status::RPS | status::TPS);
    assert!(guest.registers.settled());
    // A port that goes away in the middle does not either.
    let mut bench = Bench::started(0);
    bench.guest.set_csr(6, 0);
    assert_ne!(bench.rs(), 0);
    bench.lose_port();
    assert_eq!((bench.rs(), bench.ts()), (0, 0));
}

#[test]
fn csr7_raises_and_lowers_the_line() {
    let mut bench = Bench::new();
    bench.guest.set_csr(6, mode::ST);
    bench.turn();
    bench.guest.set_csr(6, 0);
    bench.turn();
    assert!(!bench.guest.line && bench.guest.interrupts() == 0);
    for (csr7, line) in [
        (status::TPS, false),
        (status::AIS, false),
        (status::TPS | status::NIS, false),
        (status::TPS | status::AIS, true),
        (0, false),
        (u32::MAX, true),
    ] {
        bench.guest.set_csr(7, csr7);
        assert_eq!(bench.guest.line, line, "{csr7:#x}");
        assert_eq!(bench.guest.registers.line(), line, "{csr7:#x}");
    }
    bench.guest.set_csr(5, status::TPS);
    assert!(!bench.guest.line);
}

#[test]
fn csr8_counts_missed_frames_and_clears_on_read() {
    let mut bench = Bench::started(mode::PR);
    let bytes = common::frame(OWN_MAC, common::OTHER, 64);
    for _ in 0..3 {
        bench.deliver(&bytes);
    }
    assert_eq!(bench.guest.csr(8), 0xe000_0003);
    assert_eq!(bench.guest.csr(8), 0xe000_0000);
    for _ in 0..2049 {
        bench.deliver_all(&[&bytes[..]; 32]);
    }
    // 65,568 frames: the counter went over, and says so.
    assert_eq!(bench.guest.csr(8), 0xe001_0020);
    assert_eq!(bench.guest.csr(8), 0xe000_0000);
}

#[test]
fn csr9_reads_the_serial_rom() {
    let mut guest = guest();
    let image = srom::image(Mac(OWN_MAC));
    for (word, value) in image.iter().enumerate() {
        assert_eq!(guest.srom_read(word as u32), *value, "word {word}");
    }
    assert_eq!(guest.srom_mac(), OWN_MAC);
}

#[test]
fn csr9_shows_the_width_of_the_serial_rom_to_drivers_that_probe_it() {
    // Linux and iPXE read with an instruction for eight address bits: a six-bit chip shows its dummy zero at bit 18.
    let mut guest = guest();
    assert_eq!(guest.srom_read_raw(0xff, 8) & 1 << 18, 0);
    // Before it, the line is high.
    assert_eq!(guest.srom_read_raw(0, 6) >> 16, 0x7fe);
}

#[test]
fn csr9_reads_words_in_sequence() {
    let mut guest = guest();
    let image = srom::image(Mac(OWN_MAC));
    guest.srom_select();
    guest.srom_shift(0b110 << 6 | 62, 9);
    for word in [62, 63, 0, 1] {
        assert_eq!(
            guest.srom_shift(0, 16),
            u32::from(image[word]),
            "word {word}"
        );
    }
}

#[test]
fn csr9_writes_the_serial_rom_when_enabled() {
    let image = srom::image(Mac(OWN_MAC));
    let write = |guest: &mut Guest, word: u32, value: u32| {
        guest.srom_command((0b101 << 6 | word) << 16 | value, 25);
    };
    let mut guest = guest();
    write(&mut guest, 5, 0x1234);
    assert_eq!(guest.srom_read(5), image[5], "not enabled");
    guest.srom_command(0b1_0011_0000, 9);
    write(&mut guest, 5, 0x1234);
    assert_eq!(guest.srom_read(5), 0x1234);
    assert_eq!(guest.srom_read(6), image[6]);
    // Erase one.
    guest.srom_command(0b111 << 6 | 6, 9);
    assert_eq!(guest.srom_read(6), 0xffff);
    // A write that is broken off does nothing.
    guest.srom_command((0b101 << 6 | 7) << 15, 24);
    assert_eq!(guest.srom_read(7), image[7]);
    // Write all, erase all.
    guest.srom_command(0b1_0001_0000 << 16 | 0xabcd, 25);
    assert_eq!((guest.srom_read(0), guest.srom_read(63)), (0xabcd, 0xabcd));
    guest.srom_command(0b1_0010_0000, 9);
    assert_eq!((guest.srom_read(0), guest.srom_read(63)), (0xffff, 0xffff));
    guest.srom_command(0b1_0000_0000, 9);
    write(&mut guest, 5, 1);
    assert_eq!(guest.srom_read(5), 0xffff, "disabled");
}

#[test]
fn csr9_without_sr_does_not_select_the_serial_rom() {
    let mut guest = guest();
    // Chip select and the start of a read, shifted in without SR: the data line stays pulled up.
    for clock in [0, serial::CLK, 0, serial::CLK] {
        guest.set_csr(9, serial::RD | serial::CS | serial::DI | clock);
        assert_eq!(guest.csr(9) & serial::DO, serial::DO);
    }
    assert_eq!(guest.srom_mac(), OWN_MAC, "nor is it confused");
}

#[test]
fn csr9_has_no_boot_rom() {
    let mut guest = guest();
    guest.set_csr(10, 0x100);
    guest.set_csr(9, serial::BR | serial::RD);
    assert_eq!(guest.csr(9) & 0xff, 0xff);
}

#[test]
fn serial_rom_has_the_format_of_drivers() {
    let bytes: Vec<u8> = srom::image(Mac(OWN_MAC))
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    assert_eq!(bytes[20..26], OWN_MAC);
    // Not the older format.
    assert_ne!(bytes[0..8], bytes[16..24]);
    assert_eq!((bytes[18], bytes[19]), (4, 1));
    // The checksum: low half of the CRC-32 of what is before it, bit by bit.
    let crc = bytes[..126].iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            crc >> 1 ^ if crc & 1 != 0 { 0xedb8_8320 } else { 0 }
        })
    });
    assert_eq!(bytes[126..], (!crc as u16).to_le_bytes());
    // The leaf: autosense, pins as inputs, one block, which is MII on PHY 1 and ends where it says.
    let leaf = &bytes[usize::from(bytes[27])..];
    assert_eq!(leaf[..4], [0x00, 0x08, 0, 1]);
    assert_eq!(leaf[4..7], [0x80 | 13, 1, 1]);
    assert_eq!(leaf[7..9], [0, 0], "no sequences");
    assert_eq!(
        leaf[9..17],
        [0x00, 0x78, 0xe0, 0x01, 0x00, 0x50, 0x00, 0x18]
    );
}

#[test]
fn csr9_reaches_the_phy() {
    let mut guest = guest();
    let rows: [(u8, u16); 8] = [
        (phy::BMCR, 0x3100),
        (phy::BMSR, 0x782d),
        (phy::ID1, 0x2000),
        (phy::ID2, 0x5c01),
        (phy::ANAR, 0x01e1),
        (phy::ANLPAR, 0x45e1),
        (phy::ANER, 1),
        (31, 0),
    ];
    for (register, value) in rows {
        assert_eq!(
            guest.mdio_read(1, register.into()),
            value,
            "register {register}"
        );
    }
    for other in (0..32).filter(|&address| address != 1) {
        assert_eq!(guest.mdio_read(other, 1), 0xffff, "PHY {other}");
    }
}

#[test]
fn phy_registers_are_written() {
    let mut guest = guest();
    // Of the control register, reset and restart are over at once.
    guest.mdio_write(1, 0, 0x3300);
    assert_eq!(guest.mdio_read(1, 0), 0x3100);
    guest.mdio_write(1, 4, 0x0061);
    assert_eq!(guest.mdio_read(1, 4), 0x0061);
    guest.mdio_write(1, 2, 0);
    assert_eq!(guest.mdio_read(1, 2), 0x2000);
    guest.mdio_write(2, 4, 0);
    assert_eq!(guest.mdio_read(1, 4), 0x0061, "another PHY");
    guest.mdio_write(1, 0, 0x0800);
    assert_eq!(guest.mdio_read(1, 1) & phy::LINK, 0, "powered down");
    guest.mdio_write(1, 0, 0x8000);
    assert_eq!(
        (guest.mdio_read(1, 0), guest.mdio_read(1, 4)),
        (0x3100, 0x01e1)
    );
}

#[test]
fn link_changes_are_seen_in_the_phy() {
    let mut guest = guest();
    assert_eq!(guest.mdio_read(1, 1), 0x782d);
    guest.registers.set_link(false);
    assert_eq!(guest.mdio_read(1, 1), 0x7809);
    assert_eq!((guest.mdio_read(1, 5), guest.mdio_read(1, 6)), (0, 0));
    guest.registers.set_link(true);
    assert_eq!(guest.mdio_read(1, 1), 0x782d);
    // A loss that is over reads as a loss once (IEEE 802.3, 22.2.4.2.13).
    guest.registers.set_link(false);
    guest.registers.set_link(true);
    assert_eq!(guest.mdio_read(1, 1) & phy::LINK, 0);
    assert_eq!(guest.mdio_read(1, 1) & phy::LINK, phy::LINK);
}

#[test]
fn csr11_timer_runs_out_once_or_again_and_again() {
    // CSR6, length of a count in nanoseconds.
    let rows = [
        (mode::PS, 81_920),
        (mode::PS | mode::TTM, 819_200),
        (0, 204_800),
    ];
    for (csr6, unit) in rows {
        let mut guest = guest();
        guest.set_csr(6, csr6);
        guest.set_csr(7, status::GTE | status::NIS);
        guest.set_csr(11, 10);
        assert_eq!(guest.csr(11), 0xfffe_000a);
        guest.advance(3 * unit);
        assert_eq!(guest.csr(11), 0xfffe_0007);
        guest.advance(7 * unit - 1);
        assert_eq!(guest.csr(5) & status::GTE, 0);
        guest.advance(1);
        assert_eq!(guest.csr(5) & 0x1_ffff, status::GTE | status::NIS);
        assert!(guest.line);
        guest.set_csr(5, status::GTE);
        guest.advance(100 * unit);
        assert_eq!(guest.csr(5) & 0x1_ffff, 0, "once");

        guest.set_csr(11, 0x1_0002);
        for _ in 0..3 {
            guest.advance(2 * unit);
            assert_eq!(guest.csr(5) & status::GTE, status::GTE);
            guest.set_csr(5, status::GTE);
        }
        assert_eq!(guest.csr(11), 0xffff_0002);
        guest.set_csr(11, 0);
        assert_eq!(guest.deadline, None);
    }
}

#[test]
fn csr12_pins() {
    let mut guest = guest();
    // Direction: the low four are outputs.
    guest.set_csr(12, 0x10f);
    guest.set_csr(12, 0x005);
    assert_eq!(guest.csr(12), 0xffff_fef5);
    guest.set_csr(12, 0x100);
    assert_eq!(guest.csr(12), 0xffff_feff);
}

#[test]
fn accesses_of_any_size_stay_in_their_register() {
    let mut guest = guest();
    guest.set_csr(3, 0x1234_5678);
    guest.set_csr(4, 0x9abc_def0);
    let mut read = |offset: u64, len: usize| {
        let mut bytes = vec![0; len];
        guest
            .registers
            .read(offset, &mut bytes, 0, &mut Default::default());
        bytes
    };
    assert_eq!(read(0x18, 1), [0x78]);
    assert_eq!(read(0x1a, 2), [0x34, 0x12]);
    assert_eq!(
        read(0x18, 8),
        [0x78, 0x56, 0x34, 0x12, 0xff, 0xff, 0xff, 0xff]
    );
    assert_eq!(read(0x1e, 4), [0xff, 0xff, 0xf0, 0xde]);
    assert_eq!(read(0x80, 4), [0xff; 4]);
    assert_eq!(read(u64::MAX - 1, 4)[..2], [0xff; 2]);
    guest.write(0x1b, &[0x55]);
    assert_eq!((guest.csr(3), guest.csr(4)), (0x5534_5678, 0x9abc_def0));
    guest.write(0x1c, &[0; 4]);
    assert_eq!((guest.csr(3), guest.csr(4)), (0x5534_5678, 0x9abc_def0));
    guest.write(0x18, &[0; 8]);
    assert_eq!((guest.csr(3), guest.csr(4)), (0, 0x9abc_def0));
    guest.write(0x80, &[0; 8]);
    guest.write(u64::MAX, &[0; 8]);
}

#[test]
fn power_and_bus_master() {
    let mut bench = Bench::started(mode::PR);
    bench.receive_ring(1, 1540);
    let bytes = common::frame(OWN_MAC, common::OTHER, 64);
    let mut effects = Default::default();
    assert!(bench.guest.registers.is_started());
    bench.guest.registers.set_power(u32::MAX, &mut effects);
    assert!(!bench.guest.registers.is_started());
    assert!(effects.kick);
    assert_eq!(bench.guest.registers.power(), pci::CFDD_WRITABLE);
    bench.guest.set_csr(6, 0);
    assert_eq!(bench.guest.csr(6), u32::MAX, "registers sleep");
    bench.turn();
    assert!(bench.deliver(&bytes).is_some());
    bench
        .guest
        .registers
        .set_power(pci::CFDD_SNOOZE, &mut effects);
    assert!(bench.guest.registers.is_started());
    bench.turn();
    assert!(bench.deliver(&bytes).is_none());
    bench.receive_ring(1, 1540);
    bench.guest.registers.set_bus_master(false, &mut effects);
    bench.turn();
    assert!(bench.deliver(&bytes).is_some(), "no bus master");
    assert_ne!(bench.rs(), 0);
    bench.guest.registers.set_bus_master(true, &mut effects);
    bench.turn();
    assert!(bench.deliver(&bytes).is_none());
}
