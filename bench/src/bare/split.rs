//! The driver's half of a split virtqueue (virtio 1.2 section 2.7), as short as it can be.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use guestmem::{Fault, Memory, Window};
use vswitch::ports::vhost::driver::RingAddr;
use vswitch::ports::vhost::ring::{DESC_LEN, WRITE};
use vswitch::ports::vhost::split::{avail_len, table_len, used_len};

use super::Ring;

/// Used entries of a cache line.
const PER_LINE: usize = 8;

/// A split virtqueue whose buffers take one descriptor each.
pub(crate) struct Split {
    table: Window,
    avail: Window,
    used: Window,
    mask: u16,
    avail_idx: u16,
    used_idx: u16,
    /// The device's index when it was last read.
    device_idx: u16,
}

impl Ring for Split {
    fn new(memory: &Arc<Memory>, size: u16, addr: RingAddr) -> Option<Self> {
        Some(Split {
            table: memory.window(addr.table, table_len(size))?,
            avail: memory.window(addr.avail, avail_len(size))?,
            used: memory.window(addr.used, used_len(size))?,
            mask: size - 1,
            avail_idx: 0,
            used_idx: 0,
            device_idx: 0,
        })
    }

    #[inline(always)]
    fn take(&mut self) -> Result<Option<(u16, u32)>, Fault> {
        if self.device_idx == self.used_idx {
            self.device_idx = self.used.load_u16(2, Ordering::Acquire)?;
            if self.device_idx == self.used_idx {
                return Ok(None);
            }
            // What is there is read soon; a line that is not yet written is left to the device.
            let new = self.device_idx.wrapping_sub(self.used_idx);
            for ahead in (0..new).step_by(PER_LINE) {
                let slot = self.used_idx.wrapping_add(ahead) & self.mask;
                self.used.prefetch(4 + 8 * usize::from(slot));
            }
            self.avail
                .prefetch_write(4 + 2 * usize::from(self.avail_idx & self.mask));
        }
        let at = 4 + 8 * usize::from(self.used_idx & self.mask);
        self.used_idx = self.used_idx.wrapping_add(1);
        let id = self.used.load_u32(at, Ordering::Relaxed)?;
        let len = self.used.load_u32(at + 4, Ordering::Relaxed)?;
        Ok(Some((id as u16, len)))
    }

    #[inline(always)]
    fn fetch(&self, id: u16) {
        self.table
            .prefetch_write(DESC_LEN * usize::from(id & self.mask));
    }

    #[inline(always)]
    fn give(&mut self, id: u16, addr: u64, len: u32, writable: bool) -> Result<(), Fault> {
        let at = DESC_LEN * usize::from(id & self.mask);
        let flags = if writable { WRITE } else { 0 };
        self.table.store_u64(at, addr, Ordering::Relaxed)?;
        let rest = u64::from(len) | u64::from(flags) << 32;
        self.table.store_u64(at + 8, rest, Ordering::Relaxed)?;
        let slot = 4 + 2 * usize::from(self.avail_idx & self.mask);
        self.avail.store_u16(slot, id, Ordering::Relaxed)?;
        self.avail_idx = self.avail_idx.wrapping_add(1);
        Ok(())
    }

    fn publish(&mut self) -> Result<(), Fault> {
        self.avail.store_u16(2, self.avail_idx, Ordering::Release)
    }

    fn wants_kick(&self) -> Result<bool, Fault> {
        fence(Ordering::SeqCst);
        Ok(self.used.load_u16(0, Ordering::Relaxed)? == 0)
    }
}
