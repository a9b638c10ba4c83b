//! The driver's half of a packed virtqueue (virtio 1.2 section 2.8), as short as it can be.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use guestmem::{Fault, Memory, Window};
use vswitch::ports::vhost::driver::RingAddr;
use vswitch::ports::vhost::packed::{AVAIL, EVENT_DISABLE, EVENT_LEN, Place, USED};
use vswitch::ports::vhost::ring::{DESC_LEN, WRITE};
use vswitch::ports::vhost::split::table_len;

use super::Ring;

/// A packed virtqueue whose buffers take one descriptor each.
pub(crate) struct Packed {
    table: Window,
    device_event: Window,
    size: u16,
    next_avail: Place,
    next_used: Place,
}

impl Ring for Packed {
    fn new(memory: &Arc<Memory>, size: u16, addr: RingAddr) -> Option<Self> {
        let start = Place {
            index: 0,
            wrap: true,
        };
        Some(Packed {
            table: memory.window(addr.table, table_len(size))?,
            device_event: memory.window(addr.used, EVENT_LEN)?,
            size,
            next_avail: start,
            next_used: start,
        })
    }

    #[inline]
    fn take(&mut self) -> Result<Option<(u16, u32)>, Fault> {
        let at = DESC_LEN * usize::from(self.next_used.index);
        let word = self.table.load_u64(at + 8, Ordering::Acquire)?;
        let (flags, wrap) = ((word >> 48) as u16, self.next_used.wrap);
        if (flags & AVAIL != 0) != wrap || (flags & USED != 0) != wrap {
            return Ok(None);
        }
        // In a ring that was full, the place of a used descriptor is the next to be written.
        self.table.prefetch_write(at);
        self.next_used = self.next_used.advance(1, self.size);
        Ok(Some(((word >> 32) as u16, word as u32)))
    }

    fn fetch(&self, _: u16) {
        // Which descriptor is written next does not depend on the buffer.
    }

    #[inline]
    fn give(&mut self, id: u16, addr: u64, len: u32, writable: bool) -> Result<(), Fault> {
        let at = DESC_LEN * usize::from(self.next_avail.index);
        let lap = if self.next_avail.wrap { AVAIL } else { USED };
        let flags = lap | if writable { WRITE } else { 0 };
        self.table.store_u64(at, addr, Ordering::Relaxed)?;
        let rest = u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48;
        // Each descriptor is a buffer of its own, and may be seen at once.
        self.table.store_u64(at + 8, rest, Ordering::Release)?;
        self.next_avail = self.next_avail.advance(1, self.size);
        Ok(())
    }

    fn publish(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    fn wants_kick(&self) -> Result<bool, Fault> {
        fence(Ordering::SeqCst);
        let event = self.device_event.load_u32(0, Ordering::Relaxed)?;
        Ok((event >> 16) as u16 != EVENT_DISABLE)
    }
}
