//! The driver's half of a virtqueue, for both formats (virtio 1.2 sections 2.7 and 2.8).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use guestmem::{Fault, Memory, Window};

use crate::ports::vhost::packed::{
    AVAIL, EVENT_DESC, EVENT_DISABLE, EVENT_ENABLE, EVENT_LEN, Place, USED,
};
use crate::ports::vhost::ring::{DESC_LEN, INDIRECT, NEXT, Piece, WRITE, need_event};
use crate::ports::vhost::split::{avail_len, table_len, used_len};

/// How a driver uses a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingSetup {
    /// Packed, not split.
    pub packed: bool,
    /// `VIRTIO_F_EVENT_IDX`.
    pub event_idx: bool,
    /// `VIRTIO_F_IN_ORDER`.
    pub in_order: bool,
    /// Descriptors.
    pub size: u16,
}

/// Guest addresses of the three parts of a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingAddr {
    /// Descriptors.
    pub table: u64,
    /// Available ring, or the driver's event suppression.
    pub avail: u64,
    /// Used ring, or the device's event suppression.
    pub used: u64,
}

impl RingSetup {
    /// Bytes of the three parts.
    pub fn part_lens(&self) -> [usize; 3] {
        if self.packed {
            [table_len(self.size), EVENT_LEN, EVENT_LEN]
        } else {
            [
                table_len(self.size),
                avail_len(self.size),
                used_len(self.size),
            ]
        }
    }
}

/// A driver's virtqueue.
pub struct DriverRing {
    setup: RingSetup,
    table: Window,
    avail: Window,
    used: Window,
    /// Split: descriptors. Packed: buffer ids.
    free: VecDeque<u16>,
    /// By head or id: descriptors that the chain takes up.
    slots: Vec<u16>,
    /// Split, by descriptor: the next one of the chain.
    links: Vec<u16>,
    /// Heads or ids, oldest first.
    outstanding: VecDeque<u16>,
    /// In order: the last buffer of the batch that is being taken, and its length.
    batch: Option<(u16, u32)>,
    /// Packed: descriptors in the ring that are free.
    room: u16,
    next_avail: Place,
    /// Split only: index of the available ring.
    avail_idx: u16,
    published: u16,
    next_used: Place,
    used_idx: u16,
    /// Packed: the flags that make the batch available, and where they go.
    first: Option<(u16, u16)>,
    old_avail: Place,
}

impl DriverRing {
    /// An empty ring at `addr`, which is zeroed. Descriptors are taken in the order of `order`, which names each of
    /// them once.
    pub fn new(
        memory: &Arc<Memory>,
        setup: RingSetup,
        addr: RingAddr,
        order: Vec<u16>,
    ) -> Option<DriverRing> {
        let [table, avail, used] = setup.part_lens();
        let start = Place {
            index: 0,
            wrap: true,
        };
        Some(DriverRing {
            setup,
            table: memory.window(addr.table, table)?,
            avail: memory.window(addr.avail, avail)?,
            used: memory.window(addr.used, used)?,
            free: order.into(),
            slots: vec![0; setup.size.into()],
            links: vec![0; setup.size.into()],
            outstanding: VecDeque::with_capacity(setup.size.into()),
            batch: None,
            room: setup.size,
            next_avail: start,
            avail_idx: 0,
            published: 0,
            next_used: start,
            used_idx: 0,
            first: None,
            old_avail: start,
        })
    }

    /// Chains made available and not taken back.
    pub fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// Adds a chain of `pieces`; with `indirect` by one descriptor of a table at that address, which has room for all.
    /// Its head or id; `None` if the ring has no room. Not visible before [`DriverRing::publish`].
    ///
    /// # Errors
    /// The ring is not in guest memory.
    pub fn add(&mut self, pieces: &[Piece], indirect: Option<u64>) -> Result<Option<u16>, Fault> {
        let slots = if indirect.is_some() { 1 } else { pieces.len() };
        if slots == 0 || self.free.len() < slots || usize::from(self.room) < slots {
            return Ok(None);
        }
        if let Some(table) = indirect {
            self.write_table(pieces, table)?;
            let piece = Piece {
                addr: table,
                len: (pieces.len() * DESC_LEN) as u32,
                writable: false,
            };
            self.add_chain(&[piece], INDIRECT)
        } else {
            self.add_chain(pieces, 0)
        }
    }

    fn write_table(&self, pieces: &[Piece], table: u64) -> Result<(), Fault> {
        let window = self
            .table
            .memory()
            .window(table, pieces.len() * DESC_LEN)
            .ok_or(Fault::Range)?;
        for (index, piece) in pieces.iter().enumerate() {
            let last = index + 1 == pieces.len();
            let next = if last || self.setup.packed { 0 } else { NEXT };
            let flags = next | if piece.writable { WRITE } else { 0 };
            let high = if self.setup.packed {
                word(piece.len, 0, flags)
            } else {
                word(piece.len, flags, if last { 0 } else { index as u16 + 1 })
            };
            window.write(index * DESC_LEN, &piece.addr.to_le_bytes())?;
            window.write(index * DESC_LEN + 8, &high.to_le_bytes())?;
        }
        Ok(())
    }

    #[inline]
    fn add_chain(&mut self, pieces: &[Piece], extra: u16) -> Result<Option<u16>, Fault> {
        let Some(&head) = self.free.front() else {
            return Ok(None);
        };
        if self.setup.packed {
            self.add_packed(pieces, extra)?
        } else {
            self.add_split(pieces, extra)?
        }
        if let Some(slots) = self.slots.get_mut(usize::from(head)) {
            *slots = pieces.len() as u16;
        }
        self.room -= pieces.len() as u16;
        self.outstanding.push_back(head);
        Ok(Some(head))
    }

    #[inline]
    fn add_split(&mut self, pieces: &[Piece], extra: u16) -> Result<(), Fault> {
        let mut head = None;
        for (index, piece) in pieces.iter().enumerate() {
            let desc = self.free.pop_front().unwrap_or(0);
            head = head.or(Some(desc));
            let next = (index + 1 < pieces.len()).then(|| self.free.front().copied().unwrap_or(0));
            let flags = extra
                | if next.is_some() { NEXT } else { 0 }
                | if piece.writable { WRITE } else { 0 };
            let at = usize::from(desc) * DESC_LEN;
            self.table.store_u64(at, piece.addr, Ordering::Relaxed)?;
            self.table.store_u64(
                at + 8,
                word(piece.len, flags, next.unwrap_or(0)),
                Ordering::Relaxed,
            )?;
            if let Some(link) = self.links.get_mut(usize::from(desc)) {
                *link = next.unwrap_or(0);
            }
        }
        let slot = usize::from(self.avail_idx & (self.setup.size - 1));
        self.avail
            .store_u16(4 + 2 * slot, head.unwrap_or(0), Ordering::Relaxed)?;
        self.avail_idx = self.avail_idx.wrapping_add(1);
        Ok(())
    }

    #[inline]
    fn add_packed(&mut self, pieces: &[Piece], extra: u16) -> Result<(), Fault> {
        let id = self.free.pop_front().unwrap_or(0);
        for (index, piece) in pieces.iter().enumerate() {
            let place = self.next_avail;
            let next = if index + 1 < pieces.len() { NEXT } else { 0 };
            let lap = if place.wrap { AVAIL } else { USED };
            let flags = extra | lap | next | if piece.writable { WRITE } else { 0 };
            let at = usize::from(place.index) * DESC_LEN;
            self.table.store_u64(at, piece.addr, Ordering::Relaxed)?;
            if self.first.is_none() {
                self.table.store_u32(at + 8, piece.len, Ordering::Relaxed)?;
                self.table.store_u16(at + 12, id, Ordering::Relaxed)?;
                self.first = Some((place.index, flags));
            } else {
                self.table
                    .store_u64(at + 8, word(piece.len, id, flags), Ordering::Release)?;
            }
            self.next_avail = place.advance(1, self.setup.size);
        }
        Ok(())
    }

    /// Makes everything added visible. True if the device wants to be notified.
    ///
    /// # Errors
    /// The ring is not in guest memory.
    pub fn publish(&mut self) -> Result<bool, Fault> {
        if self.setup.packed {
            return self.publish_packed();
        }
        let (old, new) = (self.published, self.avail_idx);
        if old == new {
            return Ok(false);
        }
        self.avail.store_u16(2, new, Ordering::Release)?;
        self.published = new;
        fence(Ordering::SeqCst);
        if self.setup.event_idx {
            let event = self
                .used
                .load_u16(used_len(self.setup.size) - 2, Ordering::Relaxed)?;
            Ok(need_event(event, new, old))
        } else {
            Ok(self.used.load_u16(0, Ordering::Relaxed)? == 0)
        }
    }

    fn publish_packed(&mut self) -> Result<bool, Fault> {
        let Some((index, flags)) = self.first.take() else {
            return Ok(false);
        };
        self.table
            .store_u16(usize::from(index) * DESC_LEN + 14, flags, Ordering::Release)?;
        let (old, new) = (self.old_avail, self.next_avail);
        self.old_avail = new;
        fence(Ordering::SeqCst);
        let event = self.used.load_u32(0, Ordering::Relaxed)?;
        let place = Place::from_bits(event as u16);
        Ok(match (event >> 16) as u16 {
            EVENT_ENABLE => true,
            EVENT_DESC => {
                let size = self.setup.size;
                let seen = |at: Place| {
                    if at.wrap == new.wrap {
                        at.index
                    } else {
                        at.index.wrapping_sub(size)
                    }
                };
                need_event(seen(place), seen(new), seen(old))
            }
            _ => false,
        })
    }

    /// Takes the next used chain: its head or id, and the bytes written.
    ///
    /// # Errors
    /// The ring is not in guest memory.
    #[inline]
    pub fn take_used(&mut self) -> Result<Option<(u16, u32)>, Fault> {
        if self.batch.is_none() {
            self.batch = if self.setup.packed {
                self.used_packed()?
            } else {
                self.used_split()?
            };
        }
        let Some((id, len)) = self.batch else {
            return Ok(None);
        };
        let oldest = self.outstanding.front().copied();
        let taken = if self.setup.in_order && oldest != Some(id) {
            oldest.unwrap_or(id)
        } else {
            id
        };
        if taken == id {
            self.batch = None;
        }
        self.release(taken);
        Ok(Some((taken, if taken == id { len } else { 0 })))
    }

    fn used_split(&self) -> Result<Option<(u16, u32)>, Fault> {
        if self.used.load_u16(2, Ordering::Acquire)? == self.used_idx {
            return Ok(None);
        }
        let at = 4 + 8 * usize::from(self.used_idx & (self.setup.size - 1));
        let id = self.used.load_u32(at, Ordering::Relaxed)?;
        Ok(Some((
            id as u16,
            self.used.load_u32(at + 4, Ordering::Relaxed)?,
        )))
    }

    fn used_packed(&self) -> Result<Option<(u16, u32)>, Fault> {
        let Place { index, wrap } = self.next_used;
        let word = self
            .table
            .load_u64(usize::from(index) * DESC_LEN + 8, Ordering::Acquire)?;
        let flags = (word >> 48) as u16;
        if (flags & AVAIL != 0) != wrap || (flags & USED != 0) != wrap {
            return Ok(None);
        }
        Ok(Some(((word >> 32) as u16, word as u32)))
    }

    fn release(&mut self, id: u16) {
        if self.outstanding.front() == Some(&id) {
            self.outstanding.pop_front();
        } else {
            self.outstanding.retain(|&other| other != id);
        }
        let slots = self.slots.get(usize::from(id)).copied().unwrap_or(0);
        self.room += slots;
        if self.setup.packed {
            self.free.push_back(id);
            self.next_used = self.next_used.advance(slots, self.setup.size);
            return;
        }
        self.used_idx = self.used_idx.wrapping_add(1);
        let mut desc = id;
        for _ in 0..slots {
            self.free.push_back(desc);
            desc = self.links.get(usize::from(desc)).copied().unwrap_or(0);
        }
    }

    /// Asks for a notification on the next used chain. True if there is one already.
    ///
    /// # Errors
    /// The ring is not in guest memory.
    pub fn arm(&mut self) -> Result<bool, Fault> {
        if self.setup.packed {
            let flags = if self.setup.event_idx {
                EVENT_DESC
            } else {
                EVENT_ENABLE
            };
            let event = u32::from(self.next_used.to_bits()) | u32::from(flags) << 16;
            self.avail.store_u32(0, event, Ordering::Relaxed)?;
        } else if self.setup.event_idx {
            self.avail.store_u16(
                avail_len(self.setup.size) - 2,
                self.used_idx,
                Ordering::Relaxed,
            )?;
        } else {
            self.avail.store_u16(0, 0, Ordering::Relaxed)?;
        }
        fence(Ordering::SeqCst);
        let used = if self.setup.packed {
            self.used_packed()?
        } else {
            self.used_split()?
        };
        Ok(used.is_some())
    }

    /// Tells the device that notifications are not needed.
    ///
    /// # Errors
    /// The ring is not in guest memory.
    pub fn disarm(&mut self) -> Result<(), Fault> {
        if self.setup.packed {
            self.avail
                .store_u32(0, u32::from(EVENT_DISABLE) << 16, Ordering::Relaxed)
        } else if self.setup.event_idx {
            // One that lies behind is not reached for a whole round of the index.
            let behind = self.used_idx.wrapping_sub(1);
            self.avail
                .store_u16(avail_len(self.setup.size) - 2, behind, Ordering::Relaxed)
        } else {
            self.avail.store_u16(0, 1, Ordering::Relaxed)
        }
    }
}

/// The second half of a descriptor.
fn word(len: u32, third: u16, fourth: u16) -> u64 {
    u64::from(len) | u64::from(third) << 32 | u64::from(fourth) << 48
}
