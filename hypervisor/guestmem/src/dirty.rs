//! The dirty log of live migration: one bit for each 4 KiB page of guest memory.
//! Layout: vhost-user specification, "Migration" (`VHOST_F_LOG_ALL`, `VHOST_USER_SET_LOG_BASE`).
#![allow(unsafe_code, reason = "atomic OR on shared memory")]

use crate::{MapError, mapping::Mapping};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// Bytes of guest memory a bit stands for (`VHOST_LOG_PAGE`).
const PAGE: u64 = 4096;

/// A bitmap shared with the peer: page n is bit n % 8 of byte n / 8. The peer reads and clears it at any time.
#[derive(Debug)]
pub struct DirtyLog {
    mapping: Mapping,
    size: u64,
    gone: Arc<AtomicBool>,
}

impl DirtyLog {
    /// Maps `size` bytes at `offset` of `fd`.
    ///
    /// # Errors
    /// As [`Memory::map`](crate::Memory::map) for one region.
    pub fn map(fd: OwnedFd, offset: u64, size: u64) -> Result<Self, MapError> {
        use std::os::fd::AsFd as _;
        let gone = Arc::new(AtomicBool::new(false));
        let mapping = Mapping::new(fd.as_fd(), offset, size, Arc::clone(&gone))?;
        Ok(Self {
            mapping,
            size,
            gone,
        })
    }

    /// True once the peer has taken the log away.
    pub fn is_faulted(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Refuses a log that has no bit for guest address `last`.
    pub(crate) fn covers(&self, last: u64) -> Result<(), MapError> {
        let needed = last / PAGE / 8 + 1;
        if self.size < needed {
            Err(MapError::LogSize {
                size: self.size,
                last,
                needed,
            })
        } else {
            Ok(())
        }
    }

    /// Sets the bits of the pages that `len` bytes at `guest_addr` touch. Called after the bytes are written: a peer
    /// that clears a bit and then reads the page has either seen the bytes or finds the bit again.
    pub(crate) fn mark(&self, guest_addr: u64, len: u64) {
        let Some(last) = len
            .checked_sub(1)
            .and_then(|more| guest_addr.checked_add(more))
        else {
            return;
        };
        for page in guest_addr / PAGE..=last / PAGE {
            if page / 8 < self.size {
                let byte = self.mapping.base().wrapping_add((page / 8) as usize);
                // SAFETY: inside the mapping, which lives as long as `self`; a byte is always aligned. Always a locked
                // operation, even if the bit looks set: it orders the data before the bit.
                unsafe { AtomicU8::from_ptr(byte) }.fetch_or(1 << (page % 8), Ordering::SeqCst);
            }
        }
    }
}
