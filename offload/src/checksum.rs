//! Internet checksums: one's-complement sums of 16-bit words (RFC 1071), over any alignment and split into pieces.

use crate::request::CsumAt;

/// A running one's-complement sum over a run of bytes that arrives in pieces of any length, odd ones included.
///
/// [`fold`](Self::fold) and [`checksum`](Self::checksum) give the value as a number in network order: the bytes
/// `[0x12, 0x34]` sum to `0x1234`, and a checksum goes into its field with [`u16::to_be_bytes`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    /// Folded pieces, each at most 0xffff, in native byte order.
    words: u64,
    /// The bytes so far are odd in number, so the next piece starts in the low half of a word.
    odd: bool,
}

impl Sum {
    /// The sum of no bytes.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            words: 0,
            odd: false,
        }
    }

    /// Appends `bytes`.
    #[inline]
    pub fn add_bytes(&mut self, bytes: &[u8]) {
        self.add_partial(native_sum(bytes), bytes.len());
    }

    /// Appends a piece of `len` bytes that was summed elsewhere, for instance while it was copied.
    ///
    /// `sum` is the sum of the piece's 16-bit words read in **native** byte order, the first word at the first byte of
    /// the piece; an odd last byte is the first byte of a word whose second byte is zero. It may be unfolded (any
    /// `u64` that is congruent modulo 0xffff, zero only if all words are zero).
    #[inline]
    pub fn add_partial(&mut self, sum: u64, len: usize) {
        let mut piece = fold_native(sum);
        if self.odd {
            piece = piece.swap_bytes();
        }
        self.words = self.words.wrapping_add(u64::from(piece));
        self.odd ^= len & 1 == 1;
    }

    /// The one's-complement sum, folded to 16 bits and not complemented, as a number in network order.
    #[inline]
    #[must_use]
    pub fn fold(self) -> u16 {
        u16::from_be(fold_native(self.words))
    }

    /// The complement of [`fold`](Self::fold): what belongs into a checksum field that was zero while summing.
    #[inline]
    #[must_use]
    pub fn checksum(self) -> u16 {
        !self.fold()
    }
}

/// The sum of `bytes` in native byte order, as [`Sum::add_partial`] takes it.
#[inline]
fn native_sum(bytes: &[u8]) -> u64 {
    let mut total = 0u64;
    // A lane grows by less than 2^32 a step: folding once a run keeps it from overflowing, however long the slice is.
    for run in bytes.chunks(1 << 16) {
        let mut lanes = [0u64; 4];
        let (blocks, rest) = run.as_chunks::<16>();
        for block in blocks {
            let (words, _) = block.as_chunks::<4>();
            for (lane, word) in lanes.iter_mut().zip(words) {
                *lane = lane.wrapping_add(u64::from(u32::from_ne_bytes(*word)));
            }
        }
        let mut sum: u64 = lanes.iter().sum();
        let (words, last) = rest.as_chunks::<2>();
        for word in words {
            sum += u64::from(u16::from_ne_bytes(*word));
        }
        if let [byte] = last {
            sum += u64::from(u16::from_ne_bytes([*byte, 0]));
        }
        total += u64::from(fold_native(sum));
    }
    total
}

#[inline]
const fn fold_native(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// One's-complement addition of two folded sums.
#[inline]
pub(crate) const fn add16(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum.wrapping_add(carry as u16)
}

/// The pseudo-header of TCP, UDP over IPv4 (RFC 9293 section 3.1): `len` is the transport header and payload in bytes.
#[inline]
#[must_use]
pub fn pseudo_v4(source: [u8; 4], destination: [u8; 4], protocol: u8, len: u16) -> Sum {
    let mut sum = Sum::new();
    sum.add_bytes(&source);
    sum.add_bytes(&destination);
    sum.add_bytes(&[0, protocol]);
    sum.add_bytes(&len.to_be_bytes());
    sum
}

/// The pseudo-header over IPv6 (RFC 8200 section 8.1): `destination` is the final one, `len` the upper-layer packet.
#[inline]
#[must_use]
pub fn pseudo_v6(source: [u8; 16], destination: [u8; 16], next: u8, len: u32) -> Sum {
    let mut sum = Sum::new();
    sum.add_bytes(&source);
    sum.add_bytes(&destination);
    sum.add_bytes(&len.to_be_bytes());
    sum.add_bytes(&[0, next]);
    sum
}

/// The checksum after one 16-bit word that it covers changed from `old` to `new` (RFC 1624, equation 3). All three
/// are numbers in network order.
#[inline]
#[must_use]
pub const fn update(checksum: u16, old: u16, new: u16) -> u16 {
    !add16(add16(!checksum, !old), new)
}

/// The value to store (big-endian) in the checksum field of a partial-checksum request.
///
/// `sum` is over all bytes from `at.start` to the end of the frame, with the field as the sender left it: holding the
/// pseudo-header sum. A UDP checksum of zero would mean "none", so it becomes 0xffff (RFC 768); other protocols keep
/// zero.
#[inline]
#[must_use]
pub fn finish_checksum(sum: Sum, at: CsumAt) -> u16 {
    match sum.checksum() {
        0 if at.offset == CsumAt::UDP_OFFSET => 0xffff,
        checksum => checksum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Word by word, as RFC 1071 section 1 has it.
    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn rfc_1071_example() {
        let mut sum = Sum::new();
        sum.add_bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.fold(), 0xddf2);
        assert_eq!(sum.checksum(), 0x220d);
        assert_eq!(Sum::new().fold(), 0);
    }

    #[test]
    fn rfc_1624_example() {
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn pseudo_headers() {
        let v4 = pseudo_v4([192, 0, 2, 1], [198, 51, 100, 2], 6, 0x1234);
        let bytes = [192, 0, 2, 1, 198, 51, 100, 2, 0, 6, 0x12, 0x34];
        assert_eq!(v4.fold(), naive(&bytes));
        let (source, destination) = ([0x20; 16], [0xfe; 16]);
        let v6 = pseudo_v6(source, destination, 17, 0x1_2345);
        let mut bytes = [source, destination].concat();
        bytes.extend([0, 1, 0x23, 0x45, 0, 0, 0, 17]);
        assert_eq!(v6.fold(), naive(&bytes));
    }

    #[test]
    fn zero_is_kept_except_for_udp() {
        let mut sum = Sum::new();
        sum.add_bytes(&[0xff, 0xff]);
        let at = |offset| CsumAt { start: 34, offset };
        assert_eq!(finish_checksum(sum, at(6)), 0xffff);
        assert_eq!(finish_checksum(sum, at(16)), 0);
        sum.add_bytes(&[0x12, 0x34]);
        assert_eq!(finish_checksum(sum, at(6)), !0x1234);
    }

    #[test]
    fn no_carry_is_lost_in_a_long_run() {
        let bytes = vec![0xff; 300_001];
        let mut sum = Sum::new();
        sum.add_bytes(&bytes);
        assert_eq!(sum.fold(), naive(&bytes));
    }

    proptest! {
        #[test]
        fn pieces_sum_to_the_whole(bytes in prop::collection::vec(any::<u8>(), 0..400), cuts in prop::collection::vec(0usize..400, 0..6)) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let (mut sum, mut partial) = (Sum::new(), Sum::new());
            for pair in cuts.windows(2) {
                let piece = &bytes[pair[0]..pair[1]];
                sum.add_bytes(piece);
                let words = piece.chunks(2).map(|w| u16::from_ne_bytes([w[0], *w.get(1).unwrap_or(&0)]));
                partial.add_partial(words.map(u64::from).sum(), piece.len());
            }
            prop_assert_eq!(sum.fold(), naive(&bytes));
            prop_assert_eq!(partial.fold(), naive(&bytes));
        }

        #[test]
        fn update_is_as_summing_again(mut bytes in prop::collection::vec(any::<u8>(), 2..64), at in 0usize..31, new: u16) {
            let at = (at * 2).min((bytes.len() - 2) & !1);
            let old = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
            let before = !naive(&bytes);
            bytes[at..at + 2].copy_from_slice(&new.to_be_bytes());
            // Zero has two forms, and an update cannot know that all words became zero.
            prop_assert_eq!(update(before, old, new) % 0xffff, !naive(&bytes) % 0xffff);
        }
    }
}
