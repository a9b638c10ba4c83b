//! The guest's ends of a channel's rings.
//!
//! A control page (u32 write index at 0, read index at 4, interrupt mask at 8, size waited for at 12, features at 64),
//! then the data: packets of a descriptor (u16 type, u16 header / 8, u16 length / 8, u16 flags, u64 transaction), header
//! and payload, and 8 bytes that repeat where the packet began.

use core::sync::atomic::{AtomicU32, Ordering, fence};

use crate::memory::PAGE;

/// Packet types.
pub mod kind {
    /// The payload is all there is.
    pub const IN_BAND: u16 = 6;
    /// With ranges of a shared buffer.
    pub const RANGES: u16 = 7;
    /// With ranges of any pages.
    pub const PAGES: u16 = 9;
    /// Answer.
    pub const COMPLETION: u16 = 11;
}

/// Offsets in the control page.
const WRITE: usize = 0;
const READ: usize = 4;
const MASK: usize = 8;
const WAITED_FOR: usize = 12;
const FEATURES: usize = 64;

/// A ring's memory.
struct Shared {
    control: *mut u8,
    size: u32,
}

impl Shared {
    /// The ring at `start`, of so many pages.
    fn new(start: *mut u8, pages: usize) -> Shared {
        let shared = Shared {
            control: start,
            size: ((pages - 1) * PAGE) as u32,
        };
        // The sizes that a writer waits for count.
        shared.field(FEATURES).store(1, Ordering::Relaxed);
        shared
    }

    #[inline]
    fn field(&self, at: usize) -> &AtomicU32 {
        // SAFETY: the control page lives for ever; both sides access it atomically.
        unsafe { AtomicU32::from_ptr(self.control.add(at).cast()) }
    }

    /// `at` bytes behind index `from`.
    #[inline]
    fn after(&self, from: u32, at: u32) -> u32 {
        let index = from + at;
        if index >= self.size {
            index - self.size
        } else {
            index
        }
    }

    /// Where index `index` is.
    #[inline]
    fn data(&self, index: u32) -> *mut u64 {
        self.control.wrapping_add(PAGE + index as usize).cast()
    }
}

/// The ring to the host.
pub struct Outgoing {
    shared: Shared,
    /// Behind the last packet, and as the host knows it.
    write: u32,
    shown: u32,
    /// The read index when last looked at.
    read: u32,
}

impl Outgoing {
    /// The ring at `start`, of so many pages.
    pub fn new(start: *mut u8, pages: usize) -> Outgoing {
        Outgoing {
            shared: Shared::new(start, pages),
            write: 0,
            shown: 0,
            read: 0,
        }
    }

    /// Writes a packet; false if there is no room. Nobody sees it before [`show`](Self::show).
    #[inline]
    pub fn push(
        &mut self,
        kind: u16,
        flags: u16,
        transaction: u64,
        header: &[u64],
        payload: &[u64],
    ) -> bool {
        let header_len = 2 + header.len() as u64;
        let len = header_len + payload.len() as u64;
        let bytes = (len as u32 + 1) * 8;
        if self.room() <= bytes {
            self.read = self.shared.field(READ).load(Ordering::Acquire);
            if self.room() <= bytes {
                return false;
            }
        }
        let front = u64::from(kind) | header_len << 16 | len << 32 | u64::from(flags) << 48;
        let start = self.write;
        let words = [front, transaction];
        let trailer = [u64::from(start) << 32];
        for word in words.iter().chain(header).chain(payload).chain(&trailer) {
            // SAFETY: room in the data, of which the host reads only what it was shown.
            unsafe { self.shared.data(self.write).write(*word) };
            self.write = self.shared.after(self.write, 8);
        }
        true
    }

    fn room(&self) -> u32 {
        let used = self.write
            + if self.write < self.read {
                self.shared.size
            } else {
                0
            }
            - self.read;
        self.shared.size - used
    }

    /// Shows the host all packets. Whether it wants a signal.
    #[inline]
    pub fn show(&mut self) -> bool {
        if self.shown == self.write {
            return false;
        }
        let before = self.shown;
        self.shown = self.write;
        self.shared
            .field(WRITE)
            .store(self.write, Ordering::Release);
        fence(Ordering::SeqCst);
        self.shared.field(MASK).load(Ordering::Relaxed) == 0
            && self.shared.field(READ).load(Ordering::Relaxed) == before
    }
}

/// The ring from the host.
pub struct Incoming {
    shared: Shared,
    /// Behind the last packet taken, and as the host knows it.
    read: u32,
    shown: u32,
    /// The write index when last looked at.
    write: u32,
}

/// A packet in its ring.
#[derive(Clone, Copy)]
pub struct Packet {
    /// Its type.
    pub kind: u16,
    /// What its answer names it by.
    pub transaction: u64,
    /// Bytes from its start to its payload.
    pub header: u32,
    at: u32,
}

impl Incoming {
    /// The ring at `start`, of so many pages.
    pub fn new(start: *mut u8, pages: usize) -> Incoming {
        Incoming {
            shared: Shared::new(start, pages),
            read: 0,
            shown: 0,
            write: 0,
        }
    }

    /// Whether there is nothing more.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.read == self.write && self.read == self.shared.field(WRITE).load(Ordering::Acquire)
    }

    /// The next packet. It stays in the ring until [`give_back`](Self::give_back).
    #[inline]
    pub fn take(&mut self) -> Option<Packet> {
        if self.read == self.write {
            self.write = self.shared.field(WRITE).load(Ordering::Acquire);
            if self.read == self.write {
                return None;
            }
        }
        let at = self.read;
        let front = self.word_at(at, 0);
        let packet = Packet {
            kind: front as u16,
            transaction: self.word_at(at, 8),
            header: (front >> 16) as u32 % 0x1_0000 * 8,
            at,
        };
        self.read = self
            .shared
            .after(at, (front >> 32) as u32 % 0x1_0000 * 8 + 8);
        Some(packet)
    }

    /// Eight bytes of a packet, at a multiple of eight.
    #[inline]
    pub fn word(&self, packet: Packet, at: u32) -> u64 {
        self.word_at(packet.at, at)
    }

    #[inline]
    fn word_at(&self, start: u32, at: u32) -> u64 {
        // SAFETY: inside the data, which the host does not change before it is given back.
        unsafe { self.shared.data(self.shared.after(start, at)).read() }
    }

    /// Gives back the room of all packets that were taken. Whether the host waits for it and wants a signal.
    #[inline]
    pub fn give_back(&mut self) -> bool {
        if self.shown == self.read {
            return false;
        }
        let room = |read: u32| {
            let used = self.write
                + if self.write < read {
                    self.shared.size
                } else {
                    0
                }
                - read;
            self.shared.size - used
        };
        let before = room(self.shown);
        self.shown = self.read;
        self.shared.field(READ).store(self.read, Ordering::Release);
        fence(Ordering::SeqCst);
        let waited_for = self.shared.field(WAITED_FOR).load(Ordering::Relaxed);
        waited_for != 0 && before <= waited_for && room(self.read) > waited_for
    }

    /// Tells the host whether to leave out signals.
    pub fn mask(&self, masked: bool) {
        self.shared
            .field(MASK)
            .store(masked.into(), Ordering::SeqCst);
    }
}
