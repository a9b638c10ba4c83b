//! The four rings of an AF_XDP socket: memory shared with the kernel (linux/if_xdp.h, net/xdp/xsk_queue.h).
#![allow(
    unsafe_code,
    reason = "rings are mapped memory that the kernel changes"
)]

use std::os::fd::BorrowedFd;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::{Errno, Result};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::net::xdp::XdpRingOffset;

/// What a slot of a ring can hold.
///
/// # Safety
/// Every pattern of `size_of::<Self>()` bytes is a value, and there is no padding.
pub(crate) unsafe trait Slot: Copy + Send {}

// SAFETY: an integer.
unsafe impl Slot for u64 {}
// SAFETY: `repr(C)` of a u64 and two u32.
unsafe impl Slot for Descriptor {}

/// A piece of a frame in the UMEM (`struct xdp_desc`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Where it begins, in bytes from the start of the UMEM. On receive this is 256 or more behind the start of the
    /// frame buffer.
    pub addr: u64,
    /// Its length in bytes.
    pub len: u32,
    options: u32,
}

impl Descriptor {
    /// `XDP_PKT_CONTD`
    const CONTINUED: u32 = 1;

    /// A piece; `more` tells that the next descriptor goes on with the same frame.
    pub const fn new(addr: u64, len: u32, more: bool) -> Self {
        Self {
            addr,
            len,
            options: if more { Self::CONTINUED } else { 0 },
        }
    }

    /// Whether the next descriptor goes on with the same frame.
    pub const fn more(&self) -> bool {
        self.options & Self::CONTINUED != 0
    }
}

/// One mapped ring of a power of two of slots.
#[derive(Debug)]
struct Ring<T> {
    base: NonNull<u8>,
    length: usize,
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    slots: NonNull<T>,
    size: u32,
}

// SAFETY: a mapping belongs to the process and not to a thread; the pointers are used through `&mut self` or for atomic
// accesses only.
unsafe impl<T: Send> Send for Ring<T> {}

impl<T: Slot> Ring<T> {
    /// Maps the ring of `size` slots that is found at `page_offset` of `socket`.
    fn map(
        socket: BorrowedFd<'_>,
        offset: &XdpRingOffset,
        page_offset: u64,
        size: u32,
    ) -> Result<Self> {
        let at = |offset: u64| usize::try_from(offset).map_err(|_| Errno::OVERFLOW);
        let flags = at(offset.flags.ok_or(Errno::NOSYS)?)?;
        let (producer, consumer, slots) =
            (at(offset.producer)?, at(offset.consumer)?, at(offset.desc)?);
        let length = slots + size as usize * size_of::<T>();
        let aligned = producer % 4 == 0
            && consumer % 4 == 0
            && flags % 4 == 0
            && slots % align_of::<T>() == 0;
        if !size.is_power_of_two() || !aligned || producer.max(consumer).max(flags) + 4 > slots {
            return Err(Errno::INVAL);
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice touches no memory of ours.
        let base = unsafe {
            mmap(
                null_mut(),
                length,
                protection,
                MapFlags::SHARED | MapFlags::POPULATE,
                socket,
                page_offset,
            )
        }?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(Errno::NOMEM)?;
        // SAFETY: all four offsets were checked to lie, with what is there, within the `length` bytes of the mapping.
        let (producer, consumer, flags, slots) = unsafe {
            (
                base.add(producer),
                base.add(consumer),
                base.add(flags),
                base.add(slots),
            )
        };
        let (producer, consumer, flags, slots) =
            (producer.cast(), consumer.cast(), flags.cast(), slots.cast());
        Ok(Self {
            base,
            length,
            producer,
            consumer,
            flags,
            slots,
            size,
        })
    }

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: in the mapping, aligned (both checked by `map`), and accessed atomically by both sides.
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as in `producer`.
        unsafe { self.consumer.as_ref() }
    }

    fn needs_wakeup(&self) -> bool {
        const XDP_RING_NEED_WAKEUP: u32 = 1;
        // SAFETY: as in `producer`.
        unsafe { self.flags.as_ref() }.load(Ordering::Relaxed) & XDP_RING_NEED_WAKEUP != 0
    }

    /// The slot of a free-running index.
    fn slot(&self, index: u32) -> NonNull<T> {
        // SAFETY: the mask keeps the slot within the `size` slots of the mapping, whatever the index is.
        unsafe { self.slots.add((index & (self.size - 1)) as usize) }
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this length, and nothing borrows from it.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.length) };
    }
}

/// A ring that we fill and the kernel empties: fill and tx.
#[derive(Debug)]
pub(crate) struct Producer<T> {
    ring: Ring<T>,
    next: u32,
    seen_consumer: u32,
}

impl<T: Slot> Producer<T> {
    /// Maps the ring; see [`Ring::map`].
    pub(crate) fn map(
        socket: BorrowedFd<'_>,
        offset: &XdpRingOffset,
        page_offset: u64,
        size: u32,
    ) -> Result<Self> {
        let ring = Ring::map(socket, offset, page_offset, size)?;
        let next = ring.producer().load(Ordering::Relaxed);
        let seen_consumer = ring.consumer().load(Ordering::Acquire);
        Ok(Self {
            ring,
            next,
            seen_consumer,
        })
    }

    /// Slots that are free, at least `wanted` of them if there are so many.
    pub(crate) fn free(&mut self, wanted: usize) -> usize {
        if self.known_free() < wanted {
            self.seen_consumer = self.ring.consumer().load(Ordering::Acquire);
        }
        self.known_free()
    }

    fn known_free(&self) -> usize {
        self.ring
            .size
            .saturating_sub(self.next.wrapping_sub(self.seen_consumer)) as usize
    }

    /// Whether the kernel has not taken everything yet.
    pub(crate) fn pending(&self) -> bool {
        self.ring.consumer().load(Ordering::Relaxed) != self.next
    }

    /// Puts in what there is room for, from the first on, and tells how many that were.
    pub(crate) fn push(&mut self, items: impl ExactSizeIterator<Item = T>) -> usize {
        let count = items.len().min(self.free(items.len()));
        for item in items.take(count) {
            // SAFETY: the slot is in the mapping and aligned; the kernel does not read it before `producer` passes it.
            unsafe { self.ring.slot(self.next).write_volatile(item) };
            self.next = self.next.wrapping_add(1);
        }
        self.ring.producer().store(self.next, Ordering::Release);
        count
    }

    /// Whether the kernel waits for a call to look at the ring.
    pub(crate) fn needs_wakeup(&self) -> bool {
        self.ring.needs_wakeup()
    }
}

/// A ring that the kernel fills and we empty: rx and completion.
#[derive(Debug)]
pub(crate) struct Consumer<T> {
    ring: Ring<T>,
    next: u32,
    seen_producer: u32,
}

impl<T: Slot> Consumer<T> {
    /// Maps the ring; see [`Ring::map`].
    pub(crate) fn map(
        socket: BorrowedFd<'_>,
        offset: &XdpRingOffset,
        page_offset: u64,
        size: u32,
    ) -> Result<Self> {
        let ring = Ring::map(socket, offset, page_offset, size)?;
        let next = ring.consumer().load(Ordering::Relaxed);
        Ok(Self {
            ring,
            next,
            seen_producer: next,
        })
    }

    /// Copies what is there to the front of `out`, without taking it; tells how many that were.
    pub(crate) fn peek(&mut self, out: &mut [T]) -> usize {
        if (self.seen_producer.wrapping_sub(self.next) as usize) < out.len() {
            self.seen_producer = self.ring.producer().load(Ordering::Acquire);
        }
        let ready = self
            .seen_producer
            .wrapping_sub(self.next)
            .min(self.ring.size);
        let mut count = 0;
        for (out, step) in out.iter_mut().zip(0..ready) {
            // SAFETY: the slot is in the mapping and aligned; the kernel wrote it before it moved `producer`, and leaves it
            // alone until `consumer` passes it; every bit pattern is a `T`.
            *out = unsafe { self.ring.slot(self.next.wrapping_add(step)).read_volatile() };
            count += 1;
        }
        count
    }

    /// Takes the first `count` of those that [`peek`](Self::peek) gave.
    pub(crate) fn release(&mut self, count: usize) {
        self.next = self.next.wrapping_add(count as u32);
        self.ring.consumer().store(self.next, Ordering::Release);
    }
}
