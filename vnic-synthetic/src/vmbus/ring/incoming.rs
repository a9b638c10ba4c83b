//! The ring from guest to host, read.

use std::sync::atomic::{Ordering, fence};

use vswitch::port::PortFault;

use super::{
    COMPLETION_REQUESTED, DESCRIPTOR, INTERRUPT_MASK, PENDING_SEND, READ_INDEX, Ring, TRAILER,
    WRITE_INDEX, fault,
};
use crate::wire::{u16_at, u64_at};

/// Longest packet of a network driver that is looked into: a frame scattered over 100 pages, with its message.
pub const MAX_PACKET: usize = 2048;
/// Bytes read at first, at most: all of a packet that names a section of the send buffer, and of most completions.
const FIRST: usize = 56;

/// A packet, in private memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Its type, one of [`super::kind`] or unknown.
    pub kind: u16,
    /// Whether an answer is wanted.
    pub wants_completion: bool,
    /// What the answer names it by.
    pub transaction: u64,
    /// The header behind the descriptor. Empty, as the payload, where the packet is longer than the room there was.
    pub header: &'a [u8],
    /// What follows the header, padding included.
    pub payload: &'a [u8],
}

/// The reader's end of the ring that the guest writes.
pub struct Incoming {
    ring: Ring,
    read: u32,
    /// Where the packet taken last starts.
    last: u32,
    /// The guest's index as last loaded.
    write: u32,
    /// The read index that the guest knows.
    published: u32,
}

impl Incoming {
    /// Takes the ring up where it stands.
    pub(super) fn new(ring: Ring) -> Result<Incoming, PortFault> {
        let read = ring.index(READ_INDEX, "read index of a VMBus ring")?;
        let write = ring.index(WRITE_INDEX, "write index of a VMBus ring")?;
        Ok(Incoming {
            ring,
            read,
            last: read,
            write,
            published: read,
        })
    }

    /// Takes the next packet into `to`; `None` if there is none. The guest gets the room back
    /// with [`Incoming::publish`].
    ///
    /// # Errors
    /// The ring lies.
    pub fn next<'a>(&mut self, to: &'a mut [u8]) -> Result<Option<Packet<'a>>, PortFault> {
        if self.read == self.write {
            self.write = self
                .ring
                .index(WRITE_INDEX, "write index of a VMBus ring")?;
            if self.read == self.write {
                return Ok(None);
            }
        }
        let available = self.ring.used(self.read, self.write);
        let first = (available as usize).min(FIRST).min(to.len());
        let room = to.len();
        let (front, rest) = to.split_at_mut(first);
        self.ring.read(self.read, front)?;
        let word = |at| u16_at(front, at).unwrap_or(0);
        let [kind, header_len, len, flags] = [word(0), word(2), word(4), word(6)];
        let transaction = u64_at(front, 8).unwrap_or(0);
        let (header_len, len) = (usize::from(header_len) * 8, usize::from(len) * 8);
        if header_len < DESCRIPTOR || len < header_len || len as u32 + TRAILER > available {
            return fault("length of a packet in a VMBus ring", len as u32);
        }
        let start = self.read;
        self.last = start;
        self.read = self.ring.advance(start, len as u32 + TRAILER);
        let mut packet = Packet {
            kind,
            wants_completion: flags & COMPLETION_REQUESTED != 0,
            transaction,
            header: &[],
            payload: &[],
        };
        if len > room {
            return Ok(Some(packet));
        }
        if len > first
            && let Some(rest) = rest.get_mut(..len - first)
        {
            self.ring
                .read(self.ring.advance(start, first as u32), rest)?;
        }
        packet.header = to.get(DESCRIPTOR..header_len).unwrap_or(&[]);
        packet.payload = to.get(header_len..len).unwrap_or(&[]);
        Ok(Some(packet))
    }

    /// The packet taken last stays in the ring, as if it had not been taken.
    pub fn put_back(&mut self) {
        self.read = self.last;
    }

    /// Where the packet taken last starts.
    pub fn last(&self) -> u32 {
        self.last
    }

    /// Where the next packet starts.
    pub fn position(&self) -> u32 {
        self.read
    }

    /// Whether nothing was taken since the room was last given back.
    pub fn is_published(&self) -> bool {
        self.read == self.published
    }

    /// Gives the room of all packets taken back to the guest. True if the guest waits for that and must be signalled.
    ///
    /// # Errors
    /// The ring lies.
    pub fn publish(&mut self) -> Result<bool, PortFault> {
        self.publish_to(self.read)
    }

    /// The same for the packets taken before the one that starts at `index`.
    ///
    /// # Errors
    /// The ring lies.
    pub fn publish_to(&mut self, index: u32) -> Result<bool, PortFault> {
        if index == self.published {
            return Ok(false);
        }
        let given = self.ring.used(self.published, index);
        self.ring.store(READ_INDEX, index)?;
        self.published = index;
        // The guest stores what it waits for and then looks at the read index.
        fence(Ordering::SeqCst);
        let wanted = self.ring.load(PENDING_SEND)?;
        if wanted == 0 {
            return Ok(false);
        }
        let write = self
            .ring
            .index(WRITE_INDEX, "write index of a VMBus ring")?;
        let free = self.ring.size - self.ring.used(index, write);
        // If there was enough before, the guest has been told or has seen it. Drivers differ in whether just as much is enough.
        Ok(free >= wanted && free - given.min(free) <= wanted)
    }

    /// Asks for a signal on the next packet. True if there is one already.
    ///
    /// # Errors
    /// The ring lies.
    pub fn arm(&mut self) -> Result<bool, PortFault> {
        self.ring.store(INTERRUPT_MASK, 0)?;
        fence(Ordering::SeqCst);
        let write = self
            .ring
            .index(WRITE_INDEX, "write index of a VMBus ring")?;
        Ok(write != self.read)
    }

    /// Tells the guest that signals are not needed.
    ///
    /// # Errors
    /// The ring lies.
    pub fn disarm(&mut self) -> Result<(), PortFault> {
        self.ring.store(INTERRUPT_MASK, 1)
    }
}
