//! Many translations, most of them in one region.

use crate::{Memory, Span, raw};

/// Translates many addresses, most of which lie in one region: from [`Memory::translator`].
#[derive(Debug)]
pub struct Translator<'m> {
    memory: &'m Memory,
    /// The region that the last address was in.
    index: u16,
    guest: u64,
    len: u64,
    base: *mut u8,
}

impl<'m> Translator<'m> {
    #[inline]
    pub(crate) fn new(memory: &'m Memory) -> Self {
        Self {
            memory,
            index: 0,
            guest: 0,
            len: 0,
            base: std::ptr::null_mut(),
        }
    }

    /// As [`Memory::span`]; with `fetch`, the processor is asked for the first 128 bytes from the start of the span on,
    /// to be read soon, however short it is.
    #[inline]
    pub fn span(&mut self, guest_addr: u64, len: u32, fetch: bool) -> Option<Span> {
        let mut offset = guest_addr.wrapping_sub(self.guest);
        if offset >= self.len {
            offset = self.enter(guest_addr)?;
        }
        if u64::from(len) > self.len - offset {
            return None;
        }
        if fetch {
            let address = self.base.wrapping_add(offset as usize);
            raw::prefetch(address);
            raw::prefetch(address.wrapping_add(64));
        }
        Some(Span::new(self.index, len, offset))
    }

    /// Goes to the region of `guest_addr`; its offset there.
    #[cold]
    fn enter(&mut self, guest_addr: u64) -> Option<u64> {
        let (index, guest, len, base) = self.memory.region_of(guest_addr)?;
        (self.index, self.guest, self.len, self.base) = (index, guest, len, base);
        Some(guest_addr - guest)
    }
}
