//! The ring from host to guest, written.

use std::sync::atomic::{Ordering, fence};

use vswitch::port::PortFault;

use super::{
    COMPLETION_REQUESTED, DESCRIPTOR, FEATURE_PENDING_SEND, FEATURES, INTERRUPT_MASK, Incoming,
    PENDING_SEND, READ_INDEX, Ring, TRAILER, WRITE_INDEX, kind,
};
use crate::wire::put;

/// Bytes of an answer to a packet.
const SHORT: usize = 32;
/// Longest packet of the data path: 64 ranges and a message.
const MAX_PACKET: usize = 16 + 8 + 64 * 8 + 40 + 8;

/// The writer's end of the ring that the guest reads.
pub struct Outgoing {
    ring: Ring,
    write: u32,
    /// The guest's index as last loaded.
    read: u32,
    /// The write index that the guest knows.
    published: u32,
}

/// Bytes that a packet takes of a ring.
#[inline]
fn room_of(header: usize, payload: usize) -> u32 {
    (DESCRIPTOR + header + payload).next_multiple_of(8) as u32 + TRAILER
}

impl Outgoing {
    /// Takes the ring up where it stands.
    pub(super) fn new(ring: Ring) -> Result<Outgoing, PortFault> {
        let write = ring.index(WRITE_INDEX, "write index of a VMBus ring")?;
        let read = ring.index(READ_INDEX, "read index of a VMBus ring")?;
        let features = ring.load(FEATURES)? | FEATURE_PENDING_SEND;
        ring.store(FEATURES, features)?;
        Ok(Outgoing {
            ring,
            write,
            read,
            published: write,
        })
    }

    /// Whether a packet with so many bytes of header (behind its descriptor) and payload fits now. Full is one byte short
    /// of the size: equal indices mean empty.
    ///
    /// # Errors
    /// The ring lies.
    #[inline]
    pub fn fits(&mut self, header: usize, payload: usize) -> Result<bool, PortFault> {
        let room = room_of(header, payload);
        if room < self.ring.size - self.ring.used(self.read, self.write) {
            return Ok(true);
        }
        self.read = self.ring.index(READ_INDEX, "read index of a VMBus ring")?;
        Ok(room < self.ring.size - self.ring.used(self.read, self.write))
    }

    /// Writes a packet; the guest sees it with [`Outgoing::publish`]. False if it does not fit now.
    ///
    /// # Errors
    /// The ring lies.
    pub fn push(
        &mut self,
        kind: u16,
        transaction: u64,
        header: &[u8],
        payload: &[u8],
    ) -> Result<bool, PortFault> {
        let room = room_of(header.len(), payload.len()) as usize;
        if !self.fits(header.len(), payload.len())? {
            return Ok(false);
        }
        // Most packets are answers of 32 bytes, which need no more to be cleared.
        let (mut answer, mut long) = ([0; SHORT], Vec::new());
        let mut ranges;
        let bytes = if let Some(bytes) = answer.get_mut(..room) {
            bytes
        } else if room <= MAX_PACKET {
            ranges = [0; MAX_PACKET];
            ranges.get_mut(..room).unwrap_or(&mut [])
        } else {
            long.resize(room, 0);
            long.as_mut_slice()
        };
        self.write(bytes, (kind, transaction), header, payload)?;
        Ok(true)
    }

    /// Writes a packet that takes as much room as `bytes`, which are zero.
    #[inline]
    fn write(
        &mut self,
        bytes: &mut [u8],
        (kind, transaction): (u16, u64),
        header: &[u8],
        payload: &[u8],
    ) -> Result<(), PortFault> {
        let room = bytes.len() as u32;
        let header_len = DESCRIPTOR + header.len();
        let flags = match kind {
            kind::TRANSFER_PAGES => COMPLETION_REQUESTED,
            _ => 0,
        };
        put(bytes, 0, kind.to_le_bytes());
        put(bytes, 2, (header_len as u16 / 8).to_le_bytes());
        put(bytes, 4, ((room - TRAILER) as u16 / 8).to_le_bytes());
        put(bytes, 6, flags.to_le_bytes());
        put(bytes, 8, transaction.to_le_bytes());
        for (at, from) in [(DESCRIPTOR, header), (header_len, payload)] {
            if let Some(to) = bytes.get_mut(at..at + from.len()) {
                to.copy_from_slice(from);
            }
        }
        let trailer = u64::from(self.write) << 32;
        put(bytes, (room - TRAILER) as usize, trailer.to_le_bytes());
        self.ring.write(self.write, bytes)?;
        self.write = self.ring.advance(self.write, room);
        Ok(())
    }

    /// Shows the guest everything written. True if it must be signalled: it waits, and had read all there was before.
    ///
    /// # Errors
    /// The ring lies.
    pub fn publish(&mut self) -> Result<bool, PortFault> {
        if self.published == self.write {
            return Ok(false);
        }
        let before = std::mem::replace(&mut self.published, self.write);
        self.ring.store(WRITE_INDEX, self.write)?;
        // The guest stores its mask or read index and then looks at the write index.
        fence(Ordering::SeqCst);
        if self.ring.load(INTERRUPT_MASK)? != 0 {
            return Ok(false);
        }
        self.read = self.ring.index(READ_INDEX, "read index of a VMBus ring")?;
        Ok(self.read == before)
    }

    /// A reader of what the guest has been shown and has not read yet, for who knows no longer; it takes nothing away as long
    /// as it is not published.
    ///
    /// # Errors
    /// The ring lies.
    pub fn unread(&self) -> Result<Incoming, PortFault> {
        Incoming::new(self.ring.clone())
    }

    /// Asks the guest for a signal once a packet of the longest kind fits; with `false`, for none.
    ///
    /// # Errors
    /// The ring lies.
    pub fn want_room(&mut self, wanted: bool) -> Result<(), PortFault> {
        let bytes = if wanted { MAX_PACKET as u32 } else { 0 };
        self.ring.store(PENDING_SEND, bytes)?;
        fence(Ordering::SeqCst);
        Ok(())
    }
}
