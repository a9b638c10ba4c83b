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
