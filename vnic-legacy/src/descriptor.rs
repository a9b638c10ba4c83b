//! Descriptors: sixteen bytes in guest memory, the adapter's or the host's by their OWN bit (manual, chapter 4.2).
//!
//! Both kinds have a status (DES0), control bits and sizes (DES1), and the addresses of two buffers (DES2, DES3).
//! The status is read first and written last: whoever sees OWN change sees all that was written before.

use guestmem::{Fault, Memory, Span};

use crate::csr::bus_mode;

/// Bytes of a descriptor.
pub const LEN: u32 = 16;
/// DES0: the descriptor is the adapter's.
pub const OWN: u32 = 1 << 31;
/// DES0, both kinds: summary of errors.
pub const ES: u32 = 1 << 15;

/// RDES0, status of a received frame. In the last descriptor, but for `FS`.
pub mod rdes0 {
    /// FF: the filter does not take the address; the frame is here because of CSR6 RA.
    pub const FF: u32 = 1 << 30;
    /// FL: length of the frame with its CRC; bits 29:16.
    pub const FL_SHIFT: u32 = 16;
    /// DE: the frame did not fit the buffers there were, and is cut off.
    pub const DE: u32 = 1 << 14;
    /// DT: the frame came by internal loopback; bits 13:12.
    pub const DT_INTERNAL: u32 = 1 << 12;
    /// DT: the frame came by external loopback; bits 13:12.
    pub const DT_EXTERNAL: u32 = 2 << 12;
    /// MF: to a group address.
    pub const MF: u32 = 1 << 10;
    /// FS: first descriptor of the frame.
    pub const FS: u32 = 1 << 9;
    /// LS: last descriptor of the frame.
    pub const LS: u32 = 1 << 8;
    /// FT: the length field is an Ethernet type.
    pub const FT: u32 = 1 << 5;
}

/// TDES0, status of a transmitted frame.
pub mod tdes0 {
    /// TO: cut off by the jabber timer.
    pub const TO: u32 = 1 << 14;
    /// What a setup frame's descriptor is closed with: all ones but OWN.
    pub const SETUP_DONE: u32 = 0x7fff_ffff;
}

/// TDES1, control of a frame to be transmitted.
pub mod tdes1 {
    /// IC: interrupt on completion. Valid in the last descriptor and in setup frames.
    pub const IC: u32 = 1 << 31;
    /// LS: last segment of the frame.
    pub const LS: u32 = 1 << 30;
    /// FS: first segment of the frame.
    pub const FS: u32 = 1 << 29;
    /// FT1: setup frame, inverse filtering or hash only.
    pub const FT1: u32 = 1 << 28;
    /// SET: a setup frame.
    pub const SET: u32 = 1 << 27;
    /// AC: the frame comes with its CRC.
    pub const AC: u32 = 1 << 26;
    /// DPD: no padding of short frames. There is no wire that wants them padded.
    pub const DPD: u32 = 1 << 23;
    /// FT0: setup frame, hash filtering.
    pub const FT0: u32 = 1 << 22;
}

/// DES1, both kinds: the descriptor after this one is the first of the list. Goes before `CHAINED`.
pub const END_OF_RING: u32 = 1 << 25;
/// DES1, both kinds: DES3 is the address of the next descriptor, and there is no second buffer.
pub const CHAINED: u32 = 1 << 24;

/// The adapter got no answer from an address: it lies outside guest memory, or the memory went away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BusError;

impl From<Fault> for BusError {
    fn from(_: Fault) -> Self {
        BusError
    }
}

/// How descriptors lie in memory, from CSR0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Format {
    /// Big-endian byte order (DBO).
    big_endian: bool,
    /// From one descriptor to the next in a ring, in bytes.
    stride: u32,
}

impl Format {
    pub(crate) fn new(csr0: u32) -> Format {
        Format {
            big_endian: csr0 & bus_mode::DBO != 0,
            // Bits 6:2 count longwords, so in place they are bytes.
            stride: LEN + (csr0 & bus_mode::DSL),
        }
    }

    #[inline]
    fn order(self, word: u32) -> u32 {
        if self.big_endian {
            word.swap_bytes()
        } else {
            word
        }
    }

    /// Writes the status of the descriptor whose DES0 lies at `at`.
    #[inline]
    pub(crate) fn close(self, memory: &Memory, at: Span, status: u32) -> Result<(), Fault> {
        memory.store_u32(at, self.order(status))
    }
}

/// A descriptor that is the adapter's, read into private memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    /// Where its status is.
    pub(crate) status: Span,
    /// DES1.
    pub(crate) control: u32,
    addresses: [u32; 2],
}

impl Descriptor {
    /// The buffers: address and length in bytes. Empty ones included.
    #[inline]
    pub(crate) fn buffers(&self) -> [(u32, u32); 2] {
        let [first, second] = self.addresses;
        let second_len = match self.control & CHAINED {
            0 => self.control >> 11 & 0x7ff,
            _ => 0,
        };
        [(first, self.control & 0x7ff), (second, second_len)]
    }
}

/// A place in a list of descriptors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// Address of the first descriptor (CSR3 or CSR4).
    pub(crate) base: u32,
    /// Address of the current one.
    pub(crate) at: u32,
}

impl Place {
    /// The current descriptor; `None` if it is the host's.
    #[inline]
    pub(crate) fn fetch(
        &self,
        memory: &Memory,
        format: Format,
    ) -> Result<Option<Descriptor>, BusError> {
        let span = memory.span(u64::from(self.at), LEN).ok_or(BusError)?;
        let (status, rest) = span.split_at(4).ok_or(BusError)?;
        if format.order(memory.load_u32(status)?) & OWN == 0 {
            return Ok(None);
        }
        let mut words = [0; 12];
        memory.read(rest, &mut words)?;
        let [c0, c1, c2, c3, a0, a1, a2, a3, b0, b1, b2, b3] = words;
        let word = |bytes| format.order(u32::from_le_bytes(bytes));
        Ok(Some(Descriptor {
            status,
            control: word([c0, c1, c2, c3]),
            addresses: [word([a0, a1, a2, a3]), word([b0, b1, b2, b3])],
        }))
    }

    /// The place after `descriptor`, which is the current one.
    #[inline]
    pub(crate) fn after(self, descriptor: &Descriptor, format: Format) -> Place {
        let at = if descriptor.control & END_OF_RING != 0 {
            self.base
        } else if descriptor.control & CHAINED != 0 {
            let [_, next] = descriptor.addresses;
            next & !3
        } else {
            self.at.wrapping_add(format.stride)
        };
        Place { at, ..self }
    }
}
