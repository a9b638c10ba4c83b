//! The split virtqueue, device side (virtio 1.2 section 2.7).
//!
//! Available ring: flags u16, idx u16, ring\[size\] u16, used_event u16. Used ring: flags u16, idx u16,
//! ring\[size\] {id u32, len u32}, avail_event u16. All little-endian, which on x86-64 is native also for legacy guests.

use std::sync::atomic::Ordering;

use guestmem::{Window, store_load_fence};

use super::ring::{
    Buffer, DESC_LEN, Desc, INDIRECT, MAX_CHAIN, Mark, NEXT, Negotiated, Piece, Ring, Table, Wide,
    fault, lost, need_event,
};
use super::run::{Plain, RUN, Run};
use crate::port::PortFault;

/// The driver needs no notification (`VIRTQ_AVAIL_F_NO_INTERRUPT`).
const NO_INTERRUPT: u16 = 1;
/// The device needs no notification (`VIRTQ_USED_F_NO_NOTIFY`).
const NO_NOTIFY: u16 = 1;
/// Entries of the used ring that are written at once.
const GIVEN: usize = 32;
/// Entries of the used ring in a cache line.
const ENTRIES_PER_LINE: usize = 8;

/// Bytes of the descriptor table of a ring of `size`.
pub const fn table_len(size: u16) -> usize {
    size as usize * DESC_LEN
}

/// Bytes of the available ring, used_event included.
pub const fn avail_len(size: u16) -> usize {
    6 + 2 * size as usize
}

/// Bytes of the used ring, avail_event included.
pub const fn used_len(size: u16) -> usize {
    6 + 8 * size as usize
}

/// The parts of a split ring in guest memory.
pub struct SplitParts {
    /// Descriptor table of [`table_len`] bytes.
    pub table: Window,
    /// Available ring of [`avail_len`] bytes.
    pub avail: Window,
    /// Used ring of [`used_len`] bytes.
    pub used: Window,
}

/// A split virtqueue.
pub struct SplitRing {
    parts: SplitParts,
    size: u16,
    negotiated: Negotiated,
    /// The driver's index as last loaded.
    avail_idx: u16,
    next_avail: Wide,
    next_used: Wide,
    /// The used index as the driver knows it.
    published: u16,
    /// With `batch_used`: the last buffer given back and not yet written.
    batch_last: Option<u16>,
    /// Entries of the used ring up to `next_used` that are not yet written.
    given: [[u8; 8]; GIVEN],
    given_count: usize,
    /// Entries of the available ring from `heads_first` on. Read before their descriptors, so that those of a burst are
    /// on their way while the one before is dealt with.
    heads: [[u8; 2]; RUN],
    heads_first: u16,
    heads_count: u16,
    /// From `next_avail` on.
    run: Run,
}

impl SplitRing {
    /// A ring of `size` descriptors, a power of two up to 32768, for which notifications are off.
    ///
    /// It goes on at the index of the used ring, whatever base the front-end named: what was not given back, by a
    /// process that was killed for instance, is taken again. Front-ends that reconnect name a base of 0 (DPDK) or that
    /// index (QEMU).
    pub fn new(
        parts: SplitParts,
        size: u16,
        negotiated: Negotiated,
    ) -> Result<SplitRing, PortFault> {
        if !size.is_power_of_two() || size > 32_768 {
            return fault("size of a split virtqueue", size);
        }
        let base = parts.used.load_u16(2, Ordering::Acquire).map_err(lost)?;
        let mut ring = SplitRing {
            parts,
            size,
            negotiated,
            avail_idx: base,
            next_avail: Wide::new(base),
            next_used: Wide::new(base),
            published: base,
            batch_last: None,
            given: [[0; 8]; GIVEN],
            given_count: 0,
            heads: [[0; 2]; RUN],
            heads_first: base,
            heads_count: 0,
            run: Run::new(negotiated.writable),
        };
        ring.disarm()?;
        Ok(ring)
    }

    #[inline]
    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    /// The entry of the available ring at `index`, if it was read.
    #[inline]
    fn head(&self, index: u16) -> Option<u16> {
        let at = index.wrapping_sub(self.heads_first);
        let head = self.heads.get(usize::from(at))?;
        (at < self.heads_count).then_some(u16::from_le_bytes(*head))
    }

    /// Loads the driver's index.
    fn load_avail_idx(&mut self) -> Result<(), PortFault> {
        let index = self
            .parts
            .avail
            .load_u16(2, Ordering::Acquire)
            .map_err(lost)?;
        if index.wrapping_sub(self.next_used.get()) > self.size {
            return fault("available index", index);
        }
        // An index that went back below what was already taken is as bad as one that ran ahead.
        if index.wrapping_sub(self.next_avail.get()) > self.size {
            return fault("available index", index);
        }
        self.avail_idx = index;
        Ok(())
    }

    /// Reads the entries from `next_avail` on, and fetches their descriptors. False if there are none.
    fn read_heads(&mut self) -> Result<bool, PortFault> {
        if self.avail_idx == self.next_avail.get() {
            self.load_avail_idx()?;
        }
        let waiting = self.avail_idx.wrapping_sub(self.next_avail.get());
        if waiting == 0 {
            return Ok(false);
        }
        let count = usize::from(waiting).min(RUN);
        let slot = self.slot(self.next_avail.get());
        let first = count.min(usize::from(self.size) - slot);
        let heads = self.heads.get_mut(..count).unwrap_or(&mut []);
        let (now, wrapped) = heads.split_at_mut(first);
        let avail = &self.parts.avail;
        avail
            .read(4 + 2 * slot, now.as_flattened_mut())
            .map_err(lost)?;
        if !wrapped.is_empty() {
            avail.read(4, wrapped.as_flattened_mut()).map_err(lost)?;
        }
        avail.prefetch(4 + 2 * ((slot + count) & (usize::from(self.size) - 1)));
        self.heads_first = self.next_avail.get();
        self.heads_count = count as u16;
        let mut line = usize::MAX;
        for head in heads {
            let at = usize::from(u16::from_le_bytes(*head)) * DESC_LEN;
            if at & !63 != line {
                line = at & !63;
                self.parts.table.prefetch(at);
            }
        }
        Ok(true)
    }

    /// Reads the descriptors of the entries from `next_avail` on, and the entries first if need be. False if there are
    /// none.
    #[inline(never)]
    fn read_run(&mut self) -> Result<bool, PortFault> {
        if self.head(self.next_avail.get()).is_none() && !self.read_heads()? {
            return Ok(false);
        }
        let first = self.next_avail.get().wrapping_sub(self.heads_first);
        let heads = self
            .heads
            .get(usize::from(first)..usize::from(self.heads_count))
            .unwrap_or(&[]);
        let (table, size) = (&self.parts.table, self.size);
        let mut heads = heads.iter();
        self.run.fill(table.memory(), || {
            let head = u16::from_le_bytes(*heads.next()?);
            // A lie is found out when it is taken.
            if head >= size {
                return Some(None);
            }
            let desc = Desc::copy(table, head).ok()?;
            Some(Some((desc, desc.split_flags(), head)))
        });
        Ok(true)
    }

    fn desc(&self, index: u16) -> Result<Desc, PortFault> {
        if index >= self.size {
            return fault("descriptor index", index);
        }
        Desc::load(&self.parts.table, index)
    }

    /// The rest of a chain whose first descriptor is more than a plain buffer.
    fn walk(
        &self,
        first: Desc,
        each: &mut impl FnMut(Piece) -> Result<(), PortFault>,
    ) -> Result<(), PortFault> {
        let (mut desc, mut left) = (first, MAX_CHAIN.min(self.size.into()));
        loop {
            let flags = desc.split_flags();
            if flags & INDIRECT != 0 {
                if !self.negotiated.indirect || flags & NEXT != 0 {
                    return fault("flags of an indirect descriptor", flags);
                }
                return walk_table(&Table::open(self.parts.table.memory(), &desc)?, each);
            }
            each(Piece::new(&desc, flags))?;
            if flags & NEXT == 0 {
                return Ok(());
            }
            left -= 1;
            if left == 0 {
                return fault("length of a descriptor chain", self.size);
            }
            desc = self.desc(desc.split_next())?;
        }
    }

    /// Writes the entries given back since the last time into the used ring.
    fn write_given(&mut self) -> Result<(), PortFault> {
        let count = std::mem::take(&mut self.given_count);
        let given = self.given.get(..count).unwrap_or(&[]);
        let slot = self.slot(self.next_used.get().wrapping_sub(count as u16));
        let first = given.len().min(usize::from(self.size) - slot);
        let (now, wrapped) = given.split_at(first);
        let used = &self.parts.used;
        used.write(4 + 8 * slot, now.as_flattened()).map_err(lost)?;
        used.write(4, wrapped.as_flattened()).map_err(lost)
    }
}

fn walk_table(
    table: &Table<'_>,
    each: &mut impl FnMut(Piece) -> Result<(), PortFault>,
) -> Result<(), PortFault> {
    let mut index = 0;
    for _ in 0..MAX_CHAIN.min(table.len.into()) {
        if index >= table.len {
            return fault("index in an indirect descriptor table", index);
        }
        let desc = table.get(index)?;
        let flags = desc.split_flags();
        if flags & INDIRECT != 0 {
            return fault("flags of a descriptor in an indirect table", flags);
        }
        each(Piece::new(&desc, flags))?;
        if flags & NEXT == 0 {
            return Ok(());
        }
        index = desc.split_next();
    }
    fault("length of an indirect descriptor chain", table.len)
}

impl Ring for SplitRing {
    #[inline]
    fn take(
        &mut self,
        mut each: impl FnMut(Piece) -> Result<(), PortFault>,
    ) -> Result<Option<Buffer>, PortFault> {
        if self.run.is_empty() && !self.read_run()? {
            return Ok(None);
        }
        let head = self.head(self.next_avail.get()).unwrap_or(u16::MAX);
        let desc = self.desc(head)?;
        let flags = desc.split_flags();
        if flags & (NEXT | INDIRECT) == 0 {
            each(Piece::new(&desc, flags))?;
        } else {
            self.walk(desc, &mut each)?;
        }
        self.take_plain();
        Ok(Some(Buffer { id: head, slots: 1 }))
    }

    #[inline]
    fn plain(&mut self) -> Option<&Plain> {
        if self.run.is_empty() && !self.read_run().ok()? {
            return None;
        }
        self.run.first()
    }

    #[inline]
    fn take_plain(&mut self) {
        self.next_avail.set(self.next_avail.get().wrapping_add(1));
        self.run.advance();
    }

    fn mark(&self) -> Mark {
        Mark(self.next_avail.get())
    }

    fn rewind(&mut self, mark: Mark) {
        self.next_avail.set(mark.0);
        self.run.clear();
    }

    fn fetch(&mut self) {
        // A ring that lies is found out when it is taken from.
        if self.head(self.next_avail.get()).is_none() {
            let _ = self.read_heads();
        }
        // Where the next burst is given back. The driver has read those lines a lap ago, so they are not ours to write
        // before it has let go of them.
        let mut slot = self.slot(self.next_used.get());
        for _ in 0..GIVEN.div_ceil(ENTRIES_PER_LINE) {
            self.parts.used.prefetch_write(4 + 8 * slot);
            slot = (slot + ENTRIES_PER_LINE) & (usize::from(self.size) - 1);
        }
    }

    #[inline]
    fn ahead(&self, distance: usize) -> Option<&Plain> {
        self.run.ahead(distance)
    }

    #[inline]
    fn give(&mut self, buffer: Buffer, written: u32) -> Result<(), PortFault> {
        if self.negotiated.batch_used {
            self.batch_last = Some(buffer.id);
            self.next_used.set(self.next_used.get().wrapping_add(1));
            return Ok(());
        }
        if self.given_count == GIVEN {
            self.write_given()?;
        }
        let entry = u64::from(buffer.id) | u64::from(written) << 32;
        if let Some(given) = self.given.get_mut(self.given_count) {
            *given = entry.to_le_bytes();
        }
        self.given_count += 1;
        self.next_used.set(self.next_used.get().wrapping_add(1));
        Ok(())
    }

    fn publish(&mut self) -> Result<bool, PortFault> {
        let (old, new) = (self.published, self.next_used.get());
        if old == new {
            return Ok(false);
        }
        if let Some(last) = self.batch_last.take() {
            let entry = u64::from(last).to_le_bytes();
            let at = 4 + 8 * self.slot(old);
            self.parts.used.write(at, &entry).map_err(lost)?;
        } else {
            self.write_given()?;
        }
        self.parts
            .used
            .store_u16(2, new, Ordering::Release)
            .map_err(lost)?;
        self.published = new;
        // The index must be visible before the driver's wish is read: it writes its wish, then looks at the index.
        store_load_fence();
        if self.negotiated.event_idx {
            let event = self
                .parts
                .avail
                .load_u16(avail_len(self.size) - 2, Ordering::Relaxed)
                .map_err(lost)?;
            Ok(need_event(event, new, old))
        } else {
            let flags = self
                .parts
                .avail
                .load_u16(0, Ordering::Relaxed)
                .map_err(lost)?;
            Ok(flags & NO_INTERRUPT == 0)
        }
    }

    fn arm(&mut self) -> Result<bool, PortFault> {
        if self.negotiated.event_idx {
            let at = used_len(self.size) - 2;
            self.parts
                .used
                .store_u16(at, self.next_avail.get(), Ordering::Relaxed)
                .map_err(lost)?;
        } else {
            self.parts
                .used
                .store_u16(0, 0, Ordering::Relaxed)
                .map_err(lost)?;
        }
        // The wish must be visible before the index is read: the driver writes the index, then looks at the wish.
        store_load_fence();
        self.load_avail_idx()?;
        Ok(self.avail_idx != self.next_avail.get())
    }

    fn disarm(&mut self) -> Result<(), PortFault> {
        // With event index, the driver notifies once when it passes the index that was asked for: nothing to undo.
        if self.negotiated.event_idx {
            return Ok(());
        }
        self.parts
            .used
            .store_u16(0, NO_NOTIFY, Ordering::Relaxed)
            .map_err(lost)
    }

    fn size(&self) -> u16 {
        self.size
    }

    fn base(&self) -> u32 {
        self.published.into()
    }
}
