//! What both formats of a virtqueue have in common: a device takes chains of descriptors and gives them back used.
//!
//! The driver can write to its ring at any time. A descriptor is loaded once, into a [`Desc`], and only that copy is
//! judged and used; indices are checked before they are followed; a chain ends after a bounded number of descriptors.

use std::sync::atomic::Ordering;

use guestmem::{Fault, Memory, Window};

use super::run::Plain;
use crate::port::PortFault;

/// Size of a descriptor in bytes, in both formats.
pub const DESC_LEN: usize = 16;

/// Most descriptors of one chain, indirect ones included. Linux makes none longer (`UIO_MAXIOV`).
pub const MAX_CHAIN: u32 = 1024;

/// The chain goes on (`VIRTQ_DESC_F_NEXT`).
pub const NEXT: u16 = 1;
/// The device writes to the buffer (`VIRTQ_DESC_F_WRITE`).
pub const WRITE: u16 = 2;
/// The buffer holds descriptors (`VIRTQ_DESC_F_INDIRECT`).
pub const INDIRECT: u16 = 4;

/// A private copy of a descriptor, kept as the two words it was read by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Desc {
    /// Guest physical address of the buffer.
    addr: u64,
    /// Length in the low half; above it flags and next (split), or buffer id and flags (packed).
    word: u64,
}

impl Desc {
    /// Loads descriptor `index` of `table`, its second half first and with acquire: in a packed ring the flags, which
    /// make the rest valid, are there.
    #[inline]
    pub(super) fn load(table: &Window, index: u16) -> Result<Desc, PortFault> {
        let at = usize::from(index) * DESC_LEN;
        let word = table.load_u64(at + 8, Ordering::Acquire).map_err(lost)?;
        let addr = table.load_u64(at, Ordering::Relaxed).map_err(lost)?;
        Ok(Desc { addr, word })
    }

    /// Copies descriptor `index` of a table that an index vouches for, in one piece.
    #[inline]
    pub(super) fn copy(table: &Window, index: u16) -> Result<Desc, PortFault> {
        let words = table
            .load_u128(usize::from(index) * DESC_LEN)
            .map_err(lost)?;
        Ok(Desc {
            addr: words as u64,
            word: (words >> 64) as u64,
        })
    }

    /// Guest physical address of the buffer.
    #[inline]
    pub(super) fn addr(&self) -> u64 {
        self.addr
    }

    /// Length of the buffer in bytes.
    #[inline]
    pub(super) fn len(&self) -> u32 {
        self.word as u32
    }

    /// The flags of a descriptor of a split ring.
    #[inline]
    pub(super) fn split_flags(&self) -> u16 {
        (self.word >> 32) as u16
    }

    /// The next descriptor of a split ring.
    #[inline]
    pub(super) fn split_next(&self) -> u16 {
        (self.word >> 48) as u16
    }

    /// The flags of a descriptor of a packed ring.
    #[inline]
    pub(super) fn packed_flags(&self) -> u16 {
        (self.word >> 48) as u16
    }

    /// The buffer id of a descriptor of a packed ring.
    #[inline]
    pub(super) fn packed_id(&self) -> u16 {
        (self.word >> 32) as u16
    }
}

/// A piece of a chain, as its user sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Guest physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// Whether it is for the device to write.
    pub writable: bool,
}

impl Piece {
    #[inline]
    pub(super) fn new(desc: &Desc, flags: u16) -> Piece {
        Piece {
            addr: desc.addr(),
            len: desc.len(),
            writable: flags & WRITE != 0,
        }
    }
}

/// A chain that was taken, as it is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Split: index of the head. Packed: buffer id.
    pub id: u16,
    /// Descriptors of the ring that it takes up. Split: always 1, the entry of the available ring.
    pub slots: u16,
}

/// How a driver and a device use a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Negotiated {
    /// `VIRTIO_F_INDIRECT_DESC`.
    pub indirect: bool,
    /// `VIRTIO_F_EVENT_IDX`.
    pub event_idx: bool,
    /// The device writes to the buffers: it is a receive queue.
    pub writable: bool,
    /// One used entry for a batch of buffers, which must all be read-only (`VIRTIO_F_IN_ORDER`).
    pub batch_used: bool,
}

/// A place in a ring: where the next chain is taken. Split: index in the available ring. Packed: bit 15 is the wrap
/// counter, the rest the descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(pub u16);

/// A place of 16 bits that moves with every chain, kept in 32.
///
/// Compilers widen a load of 16 bits to 32; one that is wider than the store just before it cannot be served from the
/// store buffer, and waits until the cache has been written: some 15 cycles for each chain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wide(u32);

impl Wide {
    pub(super) fn new(value: u16) -> Wide {
        Wide(value.into())
    }

    #[inline]
    pub(super) fn get(self) -> u16 {
        self.0 as u16
    }

    #[inline]
    pub(super) fn set(&mut self, value: u16) {
        self.0 = value.into();
    }
}

/// The device's half of a virtqueue.
///
/// Buffers are given back in the order they were taken: so all that is not given back lies between the used and the
/// available index, and can be taken again from there.
pub trait Ring: Send {
    /// Takes the next chain and shows its pieces to `each`. `None` if there is none.
    ///
    /// # Errors
    /// The ring lies, or what `each` said. The chain then counts as not taken.
    fn take(
        &mut self,
        each: impl FnMut(Piece) -> Result<(), PortFault>,
    ) -> Result<Option<Buffer>, PortFault>;

    /// Shows the next chain, without taking it, if it is the ordinary one: a single buffer in one region, for the direction
    /// of the queue. `None` says nothing about what is there: [`Ring::take`] finds out.
    fn plain(&mut self) -> Option<&Plain>;

    /// Takes the chain that [`Ring::plain`] just showed.
    fn take_plain(&mut self);

    /// Where the next chain is taken.
    fn mark(&self) -> Mark;

    /// Puts back everything taken since `mark`.
    fn rewind(&mut self, mark: Mark);

    /// Fetches the descriptors of the chains that will be taken next towards the core.
    fn fetch(&mut self);

    /// The buffer `distance` chains after the next one, if it is known already and an ordinary one.
    fn ahead(&self, distance: usize) -> Option<&Plain>;

    /// Gives the oldest chain back, `written` bytes of it written. Not visible before [`Ring::publish`].
    fn give(&mut self, buffer: Buffer, written: u32) -> Result<(), PortFault>;

    /// Makes what was given back visible. True if the driver asked for a notification about that.
    fn publish(&mut self) -> Result<bool, PortFault>;

    /// Asks the driver for a notification on the next chain. True if there is one already.
    fn arm(&mut self) -> Result<bool, PortFault>;

    /// Tells the driver that notifications are not needed.
    fn disarm(&mut self) -> Result<(), PortFault>;

    /// Number of descriptors.
    fn size(&self) -> u16;

    /// The base that the front-end is told when the ring stops (`VHOST_USER_GET_VRING_BASE`).
    fn base(&self) -> u32;
}

/// The fault for an access to a ring that guest memory refused.
#[cold]
pub(super) fn lost(fault: Fault) -> PortFault {
    let what = match fault {
        Fault::Gone => "guest memory (taken away by its owner)",
        _ => "access to the ring",
    };
    PortFault { what, value: 0 }
}

#[cold]
pub(super) fn fault<T>(what: &'static str, value: impl Into<u64>) -> Result<T, PortFault> {
    Err(PortFault {
        what,
        value: value.into(),
    })
}

/// The table that an indirect descriptor points to. It may lie at any address, and cross from one region into the next.
pub(super) struct Table<'a> {
    memory: &'a Memory,
    addr: u64,
    /// Number of descriptors in it.
    pub(super) len: u16,
}

impl<'a> Table<'a> {
    /// The table of `desc`.
    pub(super) fn open(memory: &'a Memory, desc: &Desc) -> Result<Table<'a>, PortFault> {
        let len = desc.len() / DESC_LEN as u32;
        if !desc.len().is_multiple_of(DESC_LEN as u32) || len == 0 || len > MAX_CHAIN {
            return fault("length of an indirect descriptor table", desc.len());
        }
        // So that every address in it can be computed.
        if !memory.spans(desc.addr(), desc.len(), |_| true) {
            return fault("address of an indirect descriptor table", desc.addr());
        }
        Ok(Table {
            memory,
            addr: desc.addr(),
            len: len as u16,
        })
    }

    /// Its descriptor `index`.
    pub(super) fn get(&self, index: u16) -> Result<Desc, PortFault> {
        let mut bytes = [0; DESC_LEN];
        let mut left = bytes.as_mut_slice();
        let mut result = Ok(());
        let addr = self.addr + u64::from(index) * DESC_LEN as u64;
        let known = self.memory.spans(addr, DESC_LEN as u32, |span| {
            let (now, rest) = std::mem::take(&mut left).split_at_mut(span.len() as usize);
            left = rest;
            result = self.memory.read(span, now);
            result.is_ok()
        });
        result.map_err(lost)?;
        if !known {
            return fault("index in an indirect descriptor table", index);
        }
        let words = u128::from_le_bytes(bytes);
        Ok(Desc {
            addr: words as u64,
            word: (words >> 64) as u64,
        })
    }
}

/// Whether the driver that set `event` wants to be told that an index went from `old` to `new`
/// (`vring_need_event`, virtio 1.2 section 2.7.10.1).
pub fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use guestmem::RegionSpec;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    #[test]
    fn a_table_may_cross_from_one_region_into_the_next() {
        let fd = memfd_create("ring", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, 0x2000).unwrap();
        let half = |index: u64| RegionSpec {
            guest_addr: 0x1_0000 + index * 0x1000,
            user_addr: index * 0x1000,
            len: 0x1000,
            fd: fd.try_clone().unwrap(),
            fd_offset: index * 0x1000,
        };
        let memory = Memory::map(vec![half(0), half(1)]).unwrap();
        // The second descriptor lies half in the one region, half in the other.
        let start = 0x1_1000 - 24;
        let mut at = start;
        for word in [1u64, 2, 3, 4, 5, 6] {
            let span = memory.span(at, 8).unwrap();
            memory.write(span, &word.to_le_bytes()).unwrap();
            at += 8;
        }
        let desc = |addr: u64, len: u64| Desc { addr, word: len };
        let table = Table::open(&memory, &desc(start, 48)).unwrap();
        assert_eq!(table.len, 3);
        for (index, addr, word) in [(0, 1, 2), (1, 3, 4), (2, 5, 6)] {
            assert_eq!(table.get(index), Ok(Desc { addr, word }));
        }
        assert!(Table::open(&memory, &desc(0x1_1fe0, 32)).is_ok());
        assert!(Table::open(&memory, &desc(0x1_1fe0, 48)).is_err());
        assert!(Table::open(&memory, &desc(u64::MAX - 15, 32)).is_err());
    }
}
