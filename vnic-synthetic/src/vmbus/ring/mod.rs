//! Ring buffers of a channel in guest memory.
//!
//! A channel has two, one each way, over the pages of one GPADL: each is a control page and a data area. Packets lie in
//! the data area one behind the other and wrap at its end; indices are byte offsets in it.
//!
//! | control page | |
//! |---|---|
//! | 0 | u32 index that the writer writes at |
//! | 4 | u32 index that the reader reads at |
//! | 8 | u32 not 0: the reader needs no signal |
//! | 12 | u32 free bytes that the writer waits for; 0: it does not wait |
//!
//! A packet is a descriptor of 16 bytes (u16 type, u16 length of the header and u16 of all in units of 8 bytes, u16
//! flags, u64 transaction), the rest of its header, its payload, padding to 8 bytes, and 8 bytes of trailer that no length
//! counts.
//!
//! The guest can write anything anywhere at any time. Own indices are kept in private, the other side's are validated
//! when loaded, and a packet is copied to private memory before it is looked at. A ring that lies ends with a [`PortFault`].

mod incoming;
mod outgoing;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use guestmem::{Fault, Window};
use vswitch::port::PortFault;

pub use incoming::{Incoming, MAX_PACKET, Packet};
pub use outgoing::Outgoing;

use super::gpadl::{PAGE, PageRange};
use super::pages::{PageError, Pages};

const WRITE_INDEX: usize = 0;
const READ_INDEX: usize = 4;
const INTERRUPT_MASK: usize = 8;
const PENDING_SEND: usize = 12;
const FEATURES: usize = 64;
/// The free bytes that the writer waits for are looked at by the reader.
const FEATURE_PENDING_SEND: u32 = 1;

/// Bytes of a descriptor.
pub const DESCRIPTOR: usize = 16;
/// Bytes behind a packet.
const TRAILER: u32 = 8;

/// Types of packets.
pub mod kind {
    /// All of it is in the ring.
    pub const IN_BAND: u16 = 6;
    /// The payload is about ranges of a buffer that both sides know.
    pub const TRANSFER_PAGES: u16 = 7;
    /// The header names guest pages.
    pub const GPA_DIRECT: u16 = 9;
    /// The answer to a packet.
    pub const COMPLETION: u16 = 11;
}

/// An answer is wanted.
pub const COMPLETION_REQUESTED: u16 = 1;

/// Why rings cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The GPADL is not made of whole pages.
    #[error("rings of {len} bytes at offset {offset} of a page; whole pages are needed")]
    Shape {
        /// Offset in the first page.
        offset: u32,
        /// Length in bytes.
        len: u32,
    },
    /// Not both rings have a control page and data.
    #[error(
        "ring from host to guest starts at page {downstream} of {pages}; both need two pages at least"
    )]
    Split {
        /// First page of the ring to the guest.
        downstream: u32,
        /// Pages of both rings.
        pages: usize,
    },
    /// The pages are no memory.
    #[error(transparent)]
    Page(#[from] PageError),
    /// What is in the control pages cannot be.
    #[error(transparent)]
    Index(#[from] PortFault),
}

/// One ring: its control page, and its data area by offset.
#[derive(Clone)]
struct Ring {
    control: Window,
    pages: Arc<Pages>,
    /// Where the data area starts in `pages`.
    start: u32,
    /// Bytes of the data area, a multiple of 4096.
    size: u32,
}

/// Opens both rings of a channel over the pages of `range`; the one to the guest starts at page `downstream`. They go on
/// where their control pages say they stand.
///
/// # Errors
/// [`RingError`].
pub fn open(
    pages: Pages,
    range: &PageRange,
    downstream: u32,
) -> Result<(Incoming, Outgoing), RingError> {
    let count = range.pages.len();
    let (offset, len) = (range.offset, range.len);
    if offset != 0 || !len.is_multiple_of(PAGE) {
        return Err(RingError::Shape { offset, len });
    }
    let split = RingError::Split {
        downstream,
        pages: count,
    };
    let upstream_size = downstream.checked_sub(1).filter(|&size| size > 0);
    let downstream_size = (count as u32)
        .checked_sub(downstream)
        .and_then(|pages| pages.checked_sub(1))
        .filter(|&size| size > 0);
    let (Some(upstream_size), Some(downstream_size)) = (upstream_size, downstream_size) else {
        return Err(split);
    };
    let pages = Arc::new(pages);
    let ring = |first: u32, size: u32| {
        pages.page(range, first).map(|control| Ring {
            control,
            pages: pages.clone(),
            start: (first + 1) * PAGE,
            size: size * PAGE,
        })
    };
    let incoming = ring(0, upstream_size).ok_or(split)?;
    let outgoing = ring(downstream, downstream_size).ok_or(split)?;
    Ok((Incoming::new(incoming)?, Outgoing::new(outgoing)?))
}

impl Ring {
    /// Loads an index, with acquire.
    #[inline]
    fn index(&self, at: usize, what: &'static str) -> Result<u32, PortFault> {
        let index = self.control.load_u32(at, Ordering::Acquire).map_err(lost)?;
        if index < self.size && index.is_multiple_of(8) {
            Ok(index)
        } else {
            fault(what, index)
        }
    }

    #[inline]
    fn store(&self, at: usize, value: u32) -> Result<(), PortFault> {
        self.control
            .store_u32(at, value, Ordering::Release)
            .map_err(lost)
    }

    #[inline]
    fn load(&self, at: usize) -> Result<u32, PortFault> {
        self.control.load_u32(at, Ordering::Relaxed).map_err(lost)
    }

    /// `index` and `by` bytes more, `by` at most the size.
    #[inline]
    fn advance(&self, index: u32, by: u32) -> u32 {
        let index = index + by;
        if index >= self.size {
            index - self.size
        } else {
            index
        }
    }

    /// Bytes from `read` to `write`.
    #[inline]
    fn used(&self, read: u32, write: u32) -> u32 {
        if write >= read {
            write - read
        } else {
            self.size - read + write
        }
    }

    #[inline]
    fn read(&self, at: u32, to: &mut [u8]) -> Result<(), PortFault> {
        let until_end = (self.size - at) as usize;
        let result = match to.split_at_mut_checked(until_end) {
            None => self.pages.read(self.start + at, to),
            Some((end, front)) => self
                .pages
                .read(self.start + at, end)
                .and_then(|()| self.pages.read(self.start, front)),
        };
        result.map_err(lost)
    }

    #[inline]
    fn write(&self, at: u32, from: &[u8]) -> Result<(), PortFault> {
        let until_end = (self.size - at) as usize;
        let result = match from.split_at_checked(until_end) {
            None => self.pages.write(self.start + at, from),
            Some((end, front)) => self
                .pages
                .write(self.start + at, end)
                .and_then(|()| self.pages.write(self.start, front)),
        };
        result.map_err(lost)
    }
}

#[cold]
fn fault<T>(what: &'static str, value: u32) -> Result<T, PortFault> {
    Err(PortFault {
        what,
        value: value.into(),
    })
}

#[cold]
fn lost(fault: Fault) -> PortFault {
    let what = match fault {
        Fault::Gone => "guest memory (taken away by its owner)",
        _ => "access to a VMBus ring",
    };
    PortFault { what, value: 0 }
}
