//! Serial ROM and PHY, clocked through CSR9 as drivers do it.

use super::Guest;
use crate::csr::serial::{CLK, CS, DI, DO, MDC, MDI, MDO, MII_READ, RD, SR};

impl Guest {
    /// One clock of the serial ROM with `data` on its input. Its output after the rising edge.
    fn srom_clock(&mut self, data: bool) -> bool {
        let pins = RD | SR | CS | if data { DI } else { 0 };
        self.set_csr(9, pins);
        self.set_csr(9, pins | CLK);
        let out = self.csr(9) & DO != 0;
        self.set_csr(9, pins);
        out
    }

    /// Shifts `count` bits in, the highest first; gives what came out meanwhile.
    pub fn srom_shift(&mut self, bits: u32, count: u32) -> u32 {
        (0..count).rev().fold(0, |out, bit| {
            out << 1 | u32::from(self.srom_clock(bits >> bit & 1 != 0))
        })
    }

    /// Selects the serial ROM, anew.
    pub fn srom_select(&mut self) {
        self.set_csr(9, RD | SR);
        self.set_csr(9, RD | SR | CS);
    }

    /// Reads a word of the serial ROM with an instruction for chips of `address_bits`, two zeros before it, as Linux does.
    /// Everything that came out.
    pub fn srom_read_raw(&mut self, address: u32, address_bits: u32) -> u32 {
        self.srom_select();
        let command = self.srom_shift(address | 6 << address_bits, address_bits + 5);
        let data = self.srom_shift(0, 16);
        self.set_csr(9, RD | SR);
        command << 16 | data
    }

    /// Reads a word of the serial ROM.
    pub fn srom_read(&mut self, word: u32) -> u16 {
        self.srom_read_raw(word, 6) as u16
    }

    /// Writes the low `count` bits of `instruction` to the serial ROM, which carries it out as it is deselected.
    pub fn srom_command(&mut self, instruction: u32, count: u32) {
        self.srom_select();
        self.srom_shift(instruction, count);
        self.set_csr(9, RD | SR);
    }

    /// The station address of the serial ROM.
    pub fn srom_mac(&mut self) -> [u8; 6] {
        let [a, b] = self.srom_read(10).to_le_bytes();
        let [c, d] = self.srom_read(11).to_le_bytes();
        let [e, f] = self.srom_read(12).to_le_bytes();
        [a, b, c, d, e, f]
    }

    /// Sends `count` bits on the management bus, the highest first.
    fn mdio_send(&mut self, bits: u64, count: u32) {
        for bit in (0..count).rev() {
            let data = if bits >> bit & 1 != 0 { MDO } else { 0 };
            self.set_csr(9, data);
            self.set_csr(9, data | MDC);
        }
    }

    /// Reads a PHY register: all ones if there is no such PHY.
    pub fn mdio_read(&mut self, phy: u32, register: u32) -> u16 {
        self.mdio_send((1 << 33) - 1, 33);
        self.mdio_send((0x36 << 10 | phy << 5 | register).into(), 16);
        let mut value = 0u32;
        for _ in 0..19 {
            self.set_csr(9, MII_READ);
            value = value << 1 | u32::from(self.csr(9) & MDI != 0);
            self.set_csr(9, MII_READ | MDC);
        }
        (value >> 1) as u16
    }

    /// Writes a PHY register.
    pub fn mdio_write(&mut self, phy: u32, register: u32, value: u16) {
        self.mdio_send((1 << 33) - 1, 33);
        let frame = 0x5002 << 16 | phy << 23 | register << 18 | u32::from(value);
        self.mdio_send(frame.into(), 32);
        for _ in 0..2 {
            self.set_csr(9, MII_READ);
            self.set_csr(9, MII_READ | MDC);
        }
    }
}
