//! The address filter: setup frames and what they let in (manual, section 4.2.3).

use vswitch::mac::Mac;

use crate::csr::mode;
use crate::descriptor::tdes1;

/// Bytes of a setup frame.
pub const SETUP_LEN: usize = 192;
/// Addresses of a perfect filter.
const PERFECT: usize = 16;
/// The longword of a hash setup frame in which its one perfect address begins.
const HASH_ADDRESS: usize = 39;

/// How a setup frame is to be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FilterKind {
    /// There was no setup frame since the reset: no address is taken.
    #[default]
    None,
    /// FT 00: the 16 addresses.
    Perfect,
    /// FT 01: group addresses by a hash table of 512 bits, and one station address.
    Hash,
    /// FT 10: every address but the 16.
    Inverse,
    /// FT 11: all addresses by the hash table.
    HashOnly,
}

impl FilterKind {
    const ALL: [FilterKind; 5] = [
        FilterKind::None,
        FilterKind::Perfect,
        FilterKind::Hash,
        FilterKind::Inverse,
        FilterKind::HashOnly,
    ];

    /// Of a setup frame's TDES1.
    pub(crate) fn of_control(control: u32) -> FilterKind {
        match (control & tdes1::FT1 != 0, control & tdes1::FT0 != 0) {
            (false, false) => FilterKind::Perfect,
            (false, true) => FilterKind::Hash,
            (true, false) => FilterKind::Inverse,
            (true, true) => FilterKind::HashOnly,
        }
    }

    /// As a number, for the shared page and saved state: 0 to 4.
    pub(crate) fn to_word(self) -> u32 {
        self as u32
    }

    /// Of a number; one that has no meaning is no filter.
    pub(crate) fn from_word(word: u32) -> FilterKind {
        FilterKind::ALL
            .get(word as usize)
            .copied()
            .unwrap_or_default()
    }

    /// HP, HO and IF of CSR6.
    pub(crate) fn mode_bits(self) -> u32 {
        match self {
            FilterKind::None | FilterKind::Perfect => 0,
            FilterKind::Hash => mode::HP,
            FilterKind::Inverse => mode::IF,
            FilterKind::HashOnly => mode::HP | mode::HO,
        }
    }
}

/// The filter as the last setup frame made it.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    kind: FilterKind,
    /// Of the perfect filters; of the hash filter the first one.
    addresses: [Mac; PERFECT],
    /// Bit n is bit n % 16 of word n / 16.
    hash: [u16; 32],
}

impl Filter {
    /// Reads a setup frame: longwords of which the low halves count.
    pub(crate) fn new(kind: FilterKind, frame: &[u8; SETUP_LEN]) -> Filter {
        let mut words = [0u16; SETUP_LEN / 4];
        for (word, longword) in words.iter_mut().zip(frame.chunks_exact(4)) {
            if let [low, high, ..] = *longword {
                *word = u16::from_le_bytes([low, high]);
            }
        }
        let mut addresses = [Mac::default(); PERFECT];
        let first = match kind {
            FilterKind::Hash | FilterKind::HashOnly => HASH_ADDRESS,
            _ => 0,
        };
        for (address, words) in addresses
            .iter_mut()
            .zip(words.get(first..).unwrap_or(&[]).chunks_exact(3))
        {
            for (bytes, word) in address.0.chunks_exact_mut(2).zip(words) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
        }
        let mut hash = [0; 32];
        for (to, from) in hash.iter_mut().zip(words) {
            *to = from;
        }
        Filter {
            kind,
            addresses,
            hash,
        }
    }

    /// Whether the filter itself takes frames to `to`.
    pub(crate) fn takes(&self, to: Mac) -> bool {
        match self.kind {
            FilterKind::None => false,
            FilterKind::Perfect => self.addresses.contains(&to),
            FilterKind::Inverse => !self.addresses.contains(&to),
            FilterKind::Hash if !to.is_group() => self.addresses.first() == Some(&to),
            FilterKind::Hash | FilterKind::HashOnly => self.hashed(to),
        }
    }

    /// The hash is the low nine bits of the address's CRC-32, which the wire would carry uninverted.
    fn hashed(&self, to: Mac) -> bool {
        let bit = !crc32fast::hash(&to.0) & 0x1ff;
        self.hash
            .get(bit as usize / 16)
            .is_some_and(|word| word >> (bit % 16) & 1 != 0)
    }

    /// Whether a frame to `to` is received in the mode `csr6` (manual, table 3-40): promiscuous and receive-all take
    /// everything, pass-all-multicast every group address, the filter the rest.
    #[inline]
    pub(crate) fn receives(&self, to: Mac, csr6: u32) -> bool {
        csr6 & (mode::PR | mode::RA) != 0 || csr6 & mode::PM != 0 && to.is_group() || self.takes(to)
    }

    /// Whether a received frame is marked as one that the filter would not have taken: in receive-all mode only.
    pub(crate) fn fails(&self, to: Mac, csr6: u32) -> bool {
        csr6 & mode::RA != 0 && !self.receives(to, csr6 & !mode::RA)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing, reason = "tests")]

    use super::*;

    const OWN: Mac = Mac([0, 0x15, 0x5d, 1, 2, 3]);
    const GROUP: Mac = Mac([1, 0, 0x5e, 0, 0, 0xfb]);

    fn put(frame: &mut [u8; SETUP_LEN], longword: usize, mac: Mac) {
        for (index, pair) in mac.0.chunks(2).enumerate() {
            let at = 4 * (longword + index);
            frame[at..at + 2].copy_from_slice(pair);
            // The high halves mean nothing.
            frame[at + 2..at + 4].copy_from_slice(&[0x5a, 0xa5]);
        }
    }

    /// The bit of an address as drivers compute it: CRC of the bits as sent, one after the other.
    fn driver_bit(mac: Mac) -> usize {
        let mut crc = u32::MAX;
        for byte in mac.0 {
            for bit in 0..8 {
                let top = (crc ^ u32::from(byte >> bit)) & 1;
                crc = crc >> 1 ^ if top != 0 { 0xedb8_8320 } else { 0 };
            }
        }
        crc as usize & 0x1ff
    }

    fn set_bit(frame: &mut [u8; SETUP_LEN], bit: usize) {
        frame[4 * (bit / 16) + bit % 16 / 8] |= 1 << (bit % 8);
    }

    #[test]
    fn nothing_before_the_first_setup_frame() {
        let filter = Filter::new(FilterKind::None, &[0; SETUP_LEN]);
        for mac in [OWN, GROUP, Mac::BROADCAST, Mac::default()] {
            assert!(!filter.receives(mac, 0), "{mac}");
        }
    }

    #[test]
    fn perfect_takes_any_of_sixteen_and_inverse_the_others() {
        for place in 0..16 {
            let mut frame = [0xff; SETUP_LEN];
            put(&mut frame, 3 * place, OWN);
            let perfect = Filter::new(FilterKind::Perfect, &frame);
            assert!(perfect.takes(OWN) && perfect.takes(Mac::BROADCAST) && !perfect.takes(GROUP));
            let inverse = Filter::new(FilterKind::Inverse, &frame);
            assert!(!inverse.takes(OWN) && !inverse.takes(Mac::BROADCAST) && inverse.takes(GROUP));
        }
        let mut frame = [0; SETUP_LEN];
        put(&mut frame, 0, OWN);
        // Broadcast is an address like any other.
        assert!(!Filter::new(FilterKind::Perfect, &frame).takes(Mac::BROADCAST));
    }

    #[test]
    fn hash_takes_groups_by_bit_and_one_station() {
        let mut frame = [0; SETUP_LEN];
        set_bit(&mut frame, driver_bit(GROUP));
        put(&mut frame, HASH_ADDRESS, OWN);
        let hash = Filter::new(FilterKind::Hash, &frame);
        assert!(hash.takes(OWN) && hash.takes(GROUP));
        assert!(!hash.takes(Mac::BROADCAST) && !hash.takes(Mac([2, 0, 0, 0, 0, 1])));
        set_bit(&mut frame, 255);
        assert!(Filter::new(FilterKind::Hash, &frame).takes(Mac::BROADCAST));
    }

    #[test]
    fn hash_only_takes_stations_by_bit_too() {
        let mut frame = [0; SETUP_LEN];
        set_bit(&mut frame, driver_bit(OWN));
        put(&mut frame, HASH_ADDRESS, Mac([2, 0, 0, 0, 0, 1]));
        let hash = Filter::new(FilterKind::HashOnly, &frame);
        assert!(hash.takes(OWN) && !hash.takes(Mac([2, 0, 0, 0, 0, 1])) && !hash.takes(GROUP));
    }

    #[test]
    fn modes_widen_the_filter() {
        let filter = Filter::new(FilterKind::Perfect, &[0; SETUP_LEN]);
        let rows = [
            (0, false, false, false),
            (mode::PM, false, true, false),
            (mode::PR, true, true, false),
            (mode::RA, true, true, true),
            (mode::RA | mode::PR, true, true, false),
        ];
        for (csr6, station, group, fails) in rows {
            assert_eq!(filter.receives(OWN, csr6), station, "{csr6:#x}");
            assert_eq!(filter.receives(GROUP, csr6), group, "{csr6:#x}");
            assert_eq!(filter.fails(OWN, csr6), fails, "{csr6:#x}");
        }
        assert!(!filter.fails(GROUP, mode::RA | mode::PM));
    }
}
