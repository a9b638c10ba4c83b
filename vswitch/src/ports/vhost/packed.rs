//! The packed virtqueue, device side (virtio 1.2 section 2.8).
//!
//! One ring of descriptors {addr u64, len u32, id u16, flags u16}, in which the driver makes buffers available and the
//! device marks them used, and an event suppression structure {desc u16: offset, wrap counter in bit 15; flags u16} for
//! each direction.

use std::sync::atomic::Ordering;

use guestmem::{Window, store_load_fence};

use super::inflight::PackedPlace;
use super::ring::{
    Buffer, DESC_LEN, Desc, INDIRECT, MAX_CHAIN, Mark, NEXT, Negotiated, Piece, Ring, Table, Wide,
    fault, lost, need_event,
};
use super::run::{Plain, Run};
use crate::burst::BURST;
use crate::port::PortFault;

/// The descriptor was made available in a lap with this wrap counter (`VIRTQ_DESC_F_AVAIL`).
pub const AVAIL: u16 = 1 << 7;
/// The descriptor was used in a lap with this wrap counter (`VIRTQ_DESC_F_USED`).
pub const USED: u16 = 1 << 15;
/// Bytes of an event suppression structure.
pub const EVENT_LEN: usize = 4;
/// Notifications on (`RING_EVENT_FLAGS_ENABLE`).
pub const EVENT_ENABLE: u16 = 0;
/// Notifications off (`RING_EVENT_FLAGS_DISABLE`).
pub const EVENT_DISABLE: u16 = 1;
/// A notification for one descriptor (`RING_EVENT_FLAGS_DESC`).
pub const EVENT_DESC: u16 = 2;

/// The parts of a packed ring in guest memory.
pub struct PackedParts {
    /// The descriptors, 16 bytes each.
    pub table: Window,
    /// The driver's event suppression, [`EVENT_LEN`] bytes.
    pub driver_event: Window,
    /// The device's event suppression, [`EVENT_LEN`] bytes.
    pub device_event: Window,
}

/// A descriptor and the wrap counter of the lap, as in `VHOST_USER_SET_VRING_BASE`: bit 15 is the counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Descriptor.
    pub index: u16,
    /// Wrap counter.
    pub wrap: bool,
}

impl Place {
    /// From the form with the wrap counter in bit 15.
    pub const fn from_bits(bits: u16) -> Place {
        Place {
            index: bits & 0x7fff,
            wrap: bits >> 15 != 0,
        }
    }

    /// The form with the wrap counter in bit 15.
    pub const fn to_bits(self) -> u16 {
        self.index | (self.wrap as u16) << 15
    }

    /// `slots` descriptors on, at most a lap.
    #[inline]
    pub const fn advance(self, slots: u16, size: u16) -> Place {
        let index = self.index as u32 + slots as u32;
        if index >= size as u32 {
            Place {
                index: (index - size as u32) as u16,
                wrap: !self.wrap,
            }
        } else {
            Place {
                index: index as u16,
                wrap: self.wrap,
            }
        }
    }

    /// The flags that mark a descriptor as used here.
    #[inline]
    const fn used_flags(self) -> u16 {
        if self.wrap { AVAIL | USED } else { 0 }
    }

    /// Whether `flags` mark a descriptor as available here.
    #[inline]
    const fn available(self, flags: u16) -> bool {
        (flags & AVAIL != 0) == self.wrap && (flags & USED != 0) != self.wrap
    }
}

/// A packed virtqueue.
pub struct PackedRing {
    parts: PackedParts,
    size: u16,
    negotiated: Negotiated,
    /// As [`Place::to_bits`], like the next.
    next_avail: Wide,
    next_used: Wide,
    /// Where the driver looks for the next used descriptor.
    published: Place,
    /// What goes to `published` last, so that the driver sees all or nothing: length, id and flags.
    first: Option<u64>,
    /// From `next_avail` on.
    run: Run,
    /// Where the place survives this process, if the front-end wants that.
    inflight: Option<PackedPlace>,
}

impl PackedRing {
    /// A ring of `size` descriptors, 1 to 32768, for which notifications are off, that goes on at `base` as the
    /// front-end named it: bits 15:0 are where chains are taken. Bits 31:16 are where they are given back, which is
    /// the same place, as nothing is left taken; DPDK leaves them zero.
    ///
    /// With `inflight`, the place that a killed process left there counts instead.
    pub fn new(
        parts: PackedParts,
        size: u16,
        base: u32,
        negotiated: Negotiated,
        inflight: Option<PackedPlace>,
    ) -> Result<PackedRing, PortFault> {
        if size == 0 || size > 32_768 {
            return fault("size of a packed virtqueue", size);
        }
        let mut place = Place::from_bits(base as u16);
        if place.index >= size {
            return fault("base of a packed virtqueue", base);
        }
        if let Some(inflight) = &inflight {
            place = inflight.resume(place, size, |index| {
                let flags = parts
                    .table
                    .load_u16(usize::from(index) * DESC_LEN + 14, Ordering::Acquire)
                    .map_err(lost)?;
                Ok(flags & USED != 0)
            })?;
        }
        let mut ring = PackedRing {
            parts,
            size,
            negotiated,
            next_avail: Wide::new(place.to_bits()),
            next_used: Wide::new(place.to_bits()),
            published: place,
            first: None,
            run: Run::new(negotiated.writable),
            inflight,
        };
        ring.disarm()?;
        Ok(ring)
    }

    #[inline]
    fn next_avail(&self) -> Place {
        Place::from_bits(self.next_avail.get())
    }

    #[inline]
    fn next_used(&self) -> Place {
        Place::from_bits(self.next_used.get())
    }

    /// Reads the ordinary buffers from `next_avail` on.
    #[inline(never)]
    fn read_run(&mut self) {
        let (mut place, size) = (self.next_avail(), self.size);
        // A descriptor that the driver cannot have made available again is left to `take`, which faults the ring.
        let mut left = u32::from(size).saturating_sub(self.taken());
        let table = &self.parts.table;
        self.run.fill(table.memory(), || {
            left = left.checked_sub(1)?;
            let desc = Desc::load(table, place.index).ok()?;
            let flags = desc.packed_flags();
            if !place.available(flags) || flags & (NEXT | INDIRECT) != 0 {
                return None;
            }
            place = place.advance(1, size);
            Some(Some((desc, flags, desc.packed_id())))
        });
    }

    fn store_event(&self, place: Place, flags: u16) -> Result<(), PortFault> {
        let value = u32::from(place.to_bits()) | u32::from(flags) << 16;
        self.parts
            .device_event
            .store_u32(0, value, Ordering::Relaxed)
            .map_err(lost)
    }

    /// The rest of a chain whose first descriptor is more than a plain buffer.
    fn walk(
        &self,
        first: Desc,
        each: &mut impl FnMut(Piece) -> Result<(), PortFault>,
    ) -> Result<Buffer, PortFault> {
        let (mut desc, mut place, mut slots) = (first, self.next_avail(), 1);
        loop {
            let flags = desc.packed_flags();
            if flags & INDIRECT != 0 {
                if !self.negotiated.indirect || flags & NEXT != 0 {
                    return fault("flags of an indirect descriptor", flags);
                }
                let table = Table::open(self.parts.table.memory(), &desc)?;
                for index in 0..table.len {
                    let desc = table.get(index)?;
                    let flags = desc.packed_flags();
                    if flags & INDIRECT != 0 {
                        return fault("flags of a descriptor in an indirect table", flags);
                    }
                    each(Piece::new(&desc, flags))?;
                }
            } else {
                each(Piece::new(&desc, flags))?;
            }
            // The id of a chain is in its last descriptor.
            if flags & NEXT == 0 {
                return Ok(Buffer {
                    id: desc.packed_id(),
                    slots,
                });
            }
            slots += 1;
            if u32::from(slots) > MAX_CHAIN.min(self.size.into()) {
                return fault("length of a descriptor chain", self.size);
            }
            // The first descriptor was made available last, so the others are valid, whatever their flags say.
            place = place.advance(1, self.size);
            desc = Desc::load(&self.parts.table, place.index)?;
        }
    }

    /// Descriptors that the driver cannot know to be free.
    #[inline]
    fn taken(&self) -> u32 {
        let lap = if self.next_avail().wrap == self.published.wrap {
            0
        } else {
            u32::from(self.size)
        };
        (lap + u32::from(self.next_avail().index)).saturating_sub(self.published.index.into())
    }

    /// The used index seen from the start of the lap that `place` is in, for comparing two of them.
    fn event_index(&self, place: Place) -> u16 {
        if place.wrap == self.next_used().wrap {
            place.index
        } else {
            place.index.wrapping_sub(self.size)
        }
    }
}

impl Ring for PackedRing {
    #[inline]
    fn take(
        &mut self,
        mut each: impl FnMut(Piece) -> Result<(), PortFault>,
    ) -> Result<Option<Buffer>, PortFault> {
        let desc = Desc::load(&self.parts.table, self.next_avail().index)?;
        let flags = desc.packed_flags();
        if !self.next_avail().available(flags) {
            return Ok(None);
        }
        let buffer = if flags & (NEXT | INDIRECT) == 0 {
            each(Piece::new(&desc, flags))?;
            Buffer {
                id: desc.packed_id(),
                slots: 1,
            }
        } else {
            self.walk(desc, &mut each)?
        };
        if self.taken() + u32::from(buffer.slots) > self.size.into() {
            return fault(
                "number of descriptors made available",
                self.taken() + u32::from(buffer.slots),
            );
        }
        let next = self.next_avail().advance(buffer.slots, self.size);
        self.next_avail.set(next.to_bits());
        self.run.clear();
        Ok(Some(buffer))
    }

    #[inline]
    fn plain(&mut self) -> Option<&Plain> {
        if self.run.is_empty() {
            self.read_run();
        }
        self.run.first()
    }

    #[inline]
    fn take_plain(&mut self) {
        let next = self.next_avail().advance(1, self.size);
        self.next_avail.set(next.to_bits());
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
        // Four descriptors a cache line.
        for line in 0..BURST as u16 / 4 {
            let index = self
                .next_avail()
                .advance((4 * line).min(self.size), self.size)
                .index;
            self.parts.table.prefetch(usize::from(index) * DESC_LEN);
        }
    }

    #[inline]
    fn ahead(&self, distance: usize) -> Option<&Plain> {
        self.run.ahead(distance)
    }

    #[inline]
    fn give(&mut self, buffer: Buffer, written: u32) -> Result<(), PortFault> {
        let place = self.next_used();
        let flags = place.used_flags() | if written > 0 { super::ring::WRITE } else { 0 };
        let word = u64::from(written) | u64::from(buffer.id) << 32 | u64::from(flags) << 48;
        if place == self.published {
            self.first = Some(word);
        } else if self.negotiated.batch_used {
            // The one descriptor of the batch stays at its first place, and names its last buffer.
            let first = u64::from(self.published.used_flags());
            self.first = Some(u64::from(buffer.id) << 32 | first << 48);
        } else {
            let at = usize::from(place.index) * DESC_LEN + 8;
            self.parts
                .table
                .store_u64(at, word, Ordering::Release)
                .map_err(lost)?;
        }
        self.next_used
            .set(place.advance(buffer.slots, self.size).to_bits());
        Ok(())
    }

    fn publish(&mut self) -> Result<bool, PortFault> {
        let Some(word) = self.first.take() else {
            return Ok(false);
        };
        let (old, new) = (self.published, self.next_used());
        if let Some(inflight) = &self.inflight {
            inflight.begin(new, old)?;
        }
        let at = usize::from(old.index) * DESC_LEN + 8;
        self.parts
            .table
            .store_u64(at, word, Ordering::Release)
            .map_err(lost)?;
        self.published = new;
        if let Some(inflight) = &self.inflight {
            inflight.end(new)?;
        }
        // The descriptor must be visible before the driver's wish is read: it writes its wish, then looks at the ring.
        store_load_fence();
        let event = self
            .parts
            .driver_event
            .load_u32(0, Ordering::Relaxed)
            .map_err(lost)?;
        Ok(match (event >> 16) as u16 & 3 {
            EVENT_ENABLE => true,
            EVENT_DESC if self.negotiated.event_idx => {
                let event = self.event_index(Place::from_bits(event as u16));
                need_event(event, self.event_index(new), self.event_index(old))
            }
            _ => false,
        })
    }

    fn arm(&mut self) -> Result<bool, PortFault> {
        let flags = if self.negotiated.event_idx {
            EVENT_DESC
        } else {
            EVENT_ENABLE
        };
        self.store_event(self.next_avail(), flags)?;
        // The wish must be visible before the ring is read: the driver writes the descriptor, then looks at the wish.
        store_load_fence();
        let desc = Desc::load(&self.parts.table, self.next_avail().index)?;
        Ok(self.next_avail().available(desc.packed_flags()))
    }

    fn disarm(&mut self) -> Result<(), PortFault> {
        self.store_event(self.next_avail(), EVENT_DISABLE)
    }

    fn size(&self) -> u16 {
        self.size
    }

    fn base(&self) -> u32 {
        u32::from(self.published.to_bits()) * 0x1_0001
    }
}
