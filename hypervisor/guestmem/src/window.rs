//! A piece of guest memory that is used often, such as a ring.
#![allow(unsafe_code, reason = "atomics and copies at checked offsets")]

use crate::{Fault, Memory, raw};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

/// A view of a ring part (descriptor table, available, used). It keeps the [`Memory`] alive, so that an access
/// checks its offset and nothing else. Offsets count bytes from the start of the view.
#[derive(Clone)]
pub struct Window {
    memory: Arc<Memory>,
    base: *mut u8,
    len: usize,
    guest_addr: u64,
}

// SAFETY: the pointer leads into a mapping that `memory` keeps alive, and is used by atomics and by `raw` only.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

macro_rules! atomics {
    ($($load:ident, $store:ident, $int:ty, $atomic:ty;)+) => {$(
        #[doc = concat!("Loads the native `", stringify!($int), "` at `off`. A release order loads with acquire.")]
        ///
        /// # Errors
        /// [`Fault::Range`], [`Fault::Misaligned`], [`Fault::Gone`].
        #[inline]
        pub fn $load(&self, off: usize, order: Ordering) -> Result<$int, Fault> {
            let order = match order {
                Ordering::Relaxed | Ordering::SeqCst => order,
                _ => Ordering::Acquire,
            };
            // SAFETY: mapped while `self` is, aligned, and only accessed by atomics and `raw`.
            let value = unsafe { <$atomic>::from_ptr(self.aligned(off, size_of::<$int>())?.cast()) }.load(order);
            self.memory.check()?;
            Ok(value)
        }

        #[doc = concat!("Stores the native `", stringify!($int), "` at `off`. An acquire order stores with release.")]
        ///
        /// # Errors
        /// [`Fault::Range`], [`Fault::Misaligned`], [`Fault::Gone`].
        #[inline]
        pub fn $store(&self, off: usize, value: $int, order: Ordering) -> Result<(), Fault> {
            let order = match order {
                Ordering::Relaxed | Ordering::SeqCst => order,
                _ => Ordering::Release,
            };
            // SAFETY: as for the load.
            unsafe { <$atomic>::from_ptr(self.aligned(off, size_of::<$int>())?.cast()) }.store(value, order);
            self.memory.wrote(self.guest_addr + off as u64, size_of::<$int>() as u64);
            self.memory.check()
        }
    )+};
}

macro_rules! read_modify_write {
    ($($name:ident, $op:ident, $what:literal;)+) => {$(
        #[doc = concat!($what, " the native `u32` at `off`, in one step, and gives what was there before. Sequentially consistent.")]
        ///
        /// # Errors
        /// [`Fault::Range`], [`Fault::Misaligned`], [`Fault::Gone`].
        #[inline]
        pub fn $name(&self, off: usize, value: u32) -> Result<u32, Fault> {
            // SAFETY: as for the load.
            let old = unsafe { AtomicU32::from_ptr(self.aligned(off, 4)?.cast()) }.$op(value, Ordering::SeqCst);
            self.memory.wrote(self.guest_addr + off as u64, 4);
            self.memory.check()?;
            Ok(old)
        }
    )+};
}

impl Window {
    /// `base..base + len` is a piece of `memory`, at `guest_addr`.
    pub(crate) fn new(memory: Arc<Memory>, base: *mut u8, len: usize, guest_addr: u64) -> Self {
        Self {
            memory,
            base,
            len,
            guest_addr,
        }
    }

    /// Length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if it has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The memory this is a piece of.
    #[inline]
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// The address of `size` bytes at `off`.
    #[inline]
    fn at(&self, off: usize, size: usize) -> Result<*mut u8, Fault> {
        if off > self.len || size > self.len - off {
            return Err(Fault::Range);
        }
        Ok(self.base.wrapping_add(off))
    }

    #[inline]
    fn aligned(&self, off: usize, size: usize) -> Result<*mut u8, Fault> {
        let address = self.at(off, size)?;
        if address.addr() % size == 0 {
            Ok(address)
        } else {
            Err(Fault::Misaligned)
        }
    }

    atomics! {
        load_u16, store_u16, u16, AtomicU16;
        load_u32, store_u32, u32, AtomicU32;
        load_u64, store_u64, u64, AtomicU64;
    }

    read_modify_write! {
        fetch_or_u32, fetch_or, "Sets the bits of `value` in";
        fetch_and_u32, fetch_and, "Keeps only the bits of `value` in";
        fetch_add_u32, fetch_add, "Adds `value`, wrapping, to";
        swap_u32, swap, "Puts `value` into";
    }

    /// Copies the bytes at `off` to private memory. No alignment needed; no order but that of x86-64.
    ///
    /// # Errors
    /// [`Fault::Range`], [`Fault::Gone`].
    #[inline]
    pub fn read(&self, off: usize, to: &mut [u8]) -> Result<(), Fault> {
        let from = self.at(off, to.len())?;
        // SAFETY: `from` is valid for the length of `to`.
        unsafe { raw::copy(to.as_mut_ptr(), from, to.len()) };
        self.memory.check()
    }

    /// Copies private bytes to `off`. No alignment needed.
    ///
    /// # Errors
    /// [`Fault::Range`], [`Fault::Gone`].
    #[inline]
    pub fn write(&self, off: usize, from: &[u8]) -> Result<(), Fault> {
        let to = self.at(off, from.len())?;
        // SAFETY: `to` is valid for the length of `from`.
        unsafe { raw::copy(to, from.as_ptr(), from.len()) };
        self.memory
            .wrote(self.guest_addr + off as u64, from.len() as u64);
        self.memory.check()
    }

    /// Asks the processor for the cache line at `off`, to be read soon.
    #[inline]
    pub fn prefetch(&self, off: usize) {
        if let Ok(address) = self.at(off, 1) {
            raw::prefetch(address);
        }
    }

    /// Asks the processor for the cache line at `off`, to be written soon.
    #[inline]
    pub fn prefetch_write(&self, off: usize) {
        if let Ok(address) = self.at(off, 1) {
            raw::prefetch_write(address);
        }
    }
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            guest_addr, len, ..
        } = self;
        f.debug_struct("Window")
            .field("guest_addr", guest_addr)
            .field("len", len)
            .finish_non_exhaustive()
    }
}
