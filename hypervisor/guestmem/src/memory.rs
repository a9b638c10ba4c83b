//! A set of mapped regions, and the pieces of it that others name.
#![allow(unsafe_code, reason = "copies at translated addresses")]

use crate::{DirtyLog, Fault, MapError, Window, mapping::MAX_LEN, mapping::Mapping, raw};
use arc_swap::ArcSwapOption;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, compiler_fence};

/// Most regions a [`Memory`] can have.
pub const MAX_REGIONS: usize = 511;

/// Up to this many regions a linear scan beats a binary search.
const LINEAR: usize = 8;

/// One region as a peer announces it (vhost-user memory table) or as our own VMM makes it.
#[derive(Debug)]
pub struct RegionSpec {
    /// Guest physical address of the first byte.
    pub guest_addr: u64,
    /// Address of the first byte in the frontend's process, by which a vhost-user peer names its rings.
    pub user_addr: u64,
    /// Length in bytes, 1 to 2^46.
    pub len: u64,
    /// The memory-backed file (memfd, tmpfs or hugetlbfs). Closed once mapped.
    pub fd: OwnedFd,
    /// Offset of the first byte in the file.
    pub fd_offset: u64,
}

/// A translated piece of a [`Memory`], inside one region.
///
/// It carries no lifetime: every use checks it against the memory it is used with. One that outlived its memory, or
/// belongs to another, may fail with [`Fault::Range`] or name other bytes of that memory, and never anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    region: u16,
    len: u32,
    offset: u64,
}

impl Span {
    /// No bytes. Valid in every memory.
    pub const EMPTY: Self = Self {
        region: 0,
        len: 0,
        offset: 0,
    };

    /// Length in bytes.
    #[inline]
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// True if it has no bytes.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `len` bytes from offset `off`; `None` if they are not all inside.
    #[inline]
    pub fn sub(&self, off: u32, len: u32) -> Option<Self> {
        let inside = off.checked_add(len)? <= self.len;
        inside.then_some(Self {
            region: self.region,
            len,
            offset: self.offset + u64::from(off),
        })
    }

    /// The first `at` bytes and the rest; `None` if there are fewer.
    #[inline]
    pub fn split_at(&self, at: u32) -> Option<(Self, Self)> {
        let rest = self.len.checked_sub(at)?;
        Some((self.sub(0, at)?, self.sub(at, rest)?))
    }
}

/// What translation needs of a region; the rest is in its [`Mapping`].
#[derive(Debug)]
struct Region {
    guest: u64,
    len: u64,
    base: *mut u8,
    user: u64,
}

// SAFETY: the pointer leads into a mapping that the same `Memory` owns, and is used by `raw` only.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

/// An immutable set of mapped regions, unmapped on drop. Shared as `Arc<Memory>`.
#[derive(Debug)]
pub struct Memory {
    /// By guest address, without overlap.
    regions: Box<[Region]>,
    /// Set by the SIGBUS handler.
    gone: Arc<AtomicBool>,
    /// True while `log` holds a log, so that a write without one costs a load and a branch.
    logging: AtomicBool,
    log: ArcSwapOption<DirtyLog>,
    /// What `regions` points into.
    _mappings: Vec<Mapping>,
}

impl Memory {
    /// Maps all of `specs`, or nothing.
    ///
    /// # Errors
    /// Refused: no region or more than [`MAX_REGIONS`]; a length of zero or over 2^46; an address range that wraps;
    /// regions that overlap in guest addresses; a file that is not memory-backed, or shorter than the region; more
    /// mappings than the process can hold. User addresses may overlap; then the lowest guest address is meant.
    pub fn map(mut specs: Vec<RegionSpec>) -> Result<Self, MapError> {
        if specs.is_empty() || specs.len() > MAX_REGIONS {
            return Err(MapError::Count(specs.len()));
        }
        specs.sort_by_key(|spec| spec.guest_addr);
        for &RegionSpec {
            guest_addr,
            user_addr,
            len,
            ..
        } in &specs
        {
            if len == 0 || len > MAX_LEN {
                return Err(MapError::Length(len));
            }
            for (what, start) in [("guest address", guest_addr), ("user address", user_addr)] {
                start
                    .checked_add(len)
                    .ok_or(MapError::Overflow { what, start, len })?;
            }
        }
        for (low, high) in specs.iter().zip(specs.iter().skip(1)) {
            if high.guest_addr - low.guest_addr < low.len {
                return Err(MapError::Overlap {
                    first: low.guest_addr,
                    second: high.guest_addr,
                });
            }
        }
        let gone = Arc::new(AtomicBool::new(false));
        let mappings = specs
            .iter()
            .map(|spec| Mapping::new(spec.fd.as_fd(), spec.fd_offset, spec.len, Arc::clone(&gone)))
            .collect::<Result<Vec<_>, _>>()?;
        let region = |(spec, mapping): (&RegionSpec, &Mapping)| Region {
            guest: spec.guest_addr,
            len: spec.len,
            base: mapping.base(),
            user: spec.user_addr,
        };
        let regions = specs.iter().zip(&mappings).map(region).collect();
        let (logging, log) = (AtomicBool::new(false), ArcSwapOption::empty());
        Ok(Self {
            regions,
            gone,
            logging,
            log,
            _mappings: mappings,
        })
    }

    /// New zeroed memory to be shared with another process: one region at guest address 0, and its file. The file is
    /// sealed: nobody can change its size.
    ///
    /// # Errors
    /// As [`anonymous`](Self::anonymous).
    pub fn shared(len: usize) -> Result<(Self, OwnedFd), MapError> {
        let len = len as u64;
        if len == 0 || len > MAX_LEN {
            return Err(MapError::Length(len));
        }
        let system = |call, source: std::io::Error| MapError::System {
            call,
            offset: 0,
            len,
            source,
        };
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = memfd_create("guestmem", flags).map_err(|e| system("memfd_create", e.into()))?;
        ftruncate(&fd, len).map_err(|e| system("ftruncate", e.into()))?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&fd, seals).map_err(|e| system("F_ADD_SEALS", e.into()))?;
        let own = fd.try_clone().map_err(|e| system("F_DUPFD_CLOEXEC", e))?;
        let memory = Self::map(vec![RegionSpec {
            guest_addr: 0,
            user_addr: 0,
            len,
            fd: own,
            fd_offset: 0,
        }])?;
        Ok((memory, fd))
    }

    /// New zeroed memory of our own: one region at guest address 0, on 2 MiB pages where the kernel has them.
    ///
    /// # Errors
    /// A length of zero or over 2^46, or what the kernel refuses.
    pub fn anonymous(len: usize) -> Result<Self, MapError> {
        Self::shared(len).map(|(memory, _)| memory)
    }

    /// The region that contains `guest_addr`: its index, the region, and the offset in it.
    #[inline]
    fn find(&self, guest_addr: u64) -> Option<(usize, &Region, u64)> {
        let contains = |region: &Region| guest_addr.wrapping_sub(region.guest) < region.len;
        let index = if self.regions.len() <= LINEAR {
            self.regions.iter().position(contains)?
        } else {
            self.regions
                .partition_point(|region| region.guest <= guest_addr)
                .checked_sub(1)?
        };
        let region = self.regions.get(index).filter(|region| contains(region))?;
        Some((index, region, guest_addr - region.guest))
    }

    /// Translates `len` bytes at `guest_addr`; `None` unless one region holds them all. Of a length of zero, the
    /// address must be in a region too.
    #[inline]
    pub fn span(&self, guest_addr: u64, len: u32) -> Option<Span> {
        let (index, region, offset) = self.find(guest_addr)?;
        (u64::from(len) <= region.len - offset).then_some(Span {
            region: index as u16,
            len,
            offset,
        })
    }

    /// Translates `len` bytes at `guest_addr` that may cross into adjacent regions, and gives the pieces in order to
    /// `each`. True if all were given; false if a byte has no region, or `each` said false: it has then seen the
    /// pieces before. A length of zero has no pieces.
    #[inline]
    pub fn spans(&self, guest_addr: u64, len: u32, mut each: impl FnMut(Span) -> bool) -> bool {
        let (mut at, mut left) = (guest_addr, len);
        while left > 0 {
            let Some((index, region, offset)) = self.find(at) else {
                return false;
            };
            let len = u64::from(left).min(region.len - offset) as u32;
            if !each(Span {
                region: index as u16,
                len,
                offset,
            }) {
                return false;
            }
            // Cannot wrap: no region reaches the end of the address space.
            at += u64::from(len);
            left -= len;
        }
        true
    }

    /// The guest address of `len` bytes at the frontend's address `user_addr`; `None` unless one region holds them all.
    pub fn user_to_guest(&self, user_addr: u64, len: u64) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let offset = user_addr.checked_sub(region.user)?;
            let left = region.len.checked_sub(offset)?;
            (left > 0 && len <= left).then_some(region.guest + offset)
        })
    }

    /// A view of `len` bytes at `guest_addr`, for what is used often; `None` unless one region holds them all.
    pub fn window(self: &Arc<Self>, guest_addr: u64, len: usize) -> Option<Window> {
        let (_, region, offset) = self.find(guest_addr)?;
        let inside = len as u64 <= region.len - offset;
        inside.then(|| {
            Window::new(
                Arc::clone(self),
                region.base.wrapping_add(offset as usize),
                len,
                guest_addr,
            )
        })
    }

    /// The checked address of a span: valid for `span.len` bytes while `self` is.
    #[inline]
    fn resolve(&self, span: Span) -> Result<*mut u8, Fault> {
        let region = self
            .regions
            .get(usize::from(span.region))
            .ok_or(Fault::Range)?;
        if span.offset > region.len || u64::from(span.len) > region.len - span.offset {
            return Err(Fault::Range);
        }
        Ok(region.base.wrapping_add(span.offset as usize))
    }

    /// Whether the accesses before this call touched real memory.
    #[inline]
    pub(crate) fn check(&self) -> Result<(), Fault> {
        // The handler ran, if it did, in this thread: only the compiler could move the load before the access.
        compiler_fence(Ordering::SeqCst);
        if self.gone.load(Ordering::Relaxed) {
            Err(Fault::Gone)
        } else {
            Ok(())
        }
    }

    /// Logs `len` bytes just written at `guest_addr`.
    #[inline]
    pub(crate) fn wrote(&self, guest_addr: u64, len: u64) {
        if self.logging.load(Ordering::Relaxed) {
            self.mark(guest_addr, len);
        }
    }

    #[cold]
    fn mark(&self, guest_addr: u64, len: u64) {
        if let Some(log) = &*self.log.load() {
            log.mark(guest_addr, len);
        }
    }

    #[inline]
    fn wrote_span(&self, span: Span) -> Result<(), Fault> {
        if self.logging.load(Ordering::Relaxed)
            && let Some(region) = self.regions.get(usize::from(span.region))
        {
            self.mark(region.guest + span.offset, u64::from(span.len));
        }
        self.check()
    }

    /// Copies guest bytes to private memory.
    ///
    /// # Errors
    /// [`Fault::Length`] unless both sides are equally long, [`Fault::Range`], [`Fault::Gone`] (`to` holds zeros or
    /// a mix).
    #[inline]
    pub fn read(&self, from: Span, to: &mut [u8]) -> Result<(), Fault> {
        if to.len() != from.len as usize {
            return Err(Fault::Length);
        }
        let from = self.resolve(from)?;
        // SAFETY: `from` is valid for its length, which is that of `to`.
        unsafe { raw::copy(to.as_mut_ptr(), from, to.len()) };
        self.check()
    }

    /// Copies private bytes to guest memory.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    #[inline]
    pub fn write(&self, to: Span, from: &[u8]) -> Result<(), Fault> {
        if from.len() != to.len as usize {
            return Err(Fault::Length);
        }
        let dst = self.resolve(to)?;
        // SAFETY: `dst` is valid for the length of `to`, which is that of `from`.
        unsafe { raw::copy(dst, from.as_ptr(), from.len()) };
        self.wrote_span(to)
    }

    /// Copies `from` of this memory to `to` of `to_mem`, without a bounce. If they overlap, `to` holds some mix.
    ///
    /// # Errors
    /// As [`read`](Self::read); [`Fault::Gone`] if either memory is.
    #[inline]
    pub fn copy(&self, from: Span, to_mem: &Self, to: Span) -> Result<(), Fault> {
        if from.len != to.len {
            return Err(Fault::Length);
        }
        let (src, dst) = (self.resolve(from)?, to_mem.resolve(to)?);
        // SAFETY: both are valid for the common length.
        unsafe { raw::copy(dst, src, from.len as usize) };
        to_mem.wrote_span(to)?;
        self.check()
    }

    /// As [`copy`](Self::copy), and sums exactly the bytes written: each is loaded once, summed and stored.
    ///
    /// The sum is the one's complement sum of little-endian 16-bit words counted from the start of the span (an odd
    /// last byte is the low half of a word), carries kept: at most 2^33, so that 2^30 of them can be added up before
    /// folding to 16 bits. The folded sum, stored as a native `u16`, is in wire order (RFC 1071, section 2 (B)). A span
    /// at an odd offset of its packet contributes its folded sum with the two bytes swapped.
    ///
    /// # Errors
    /// As [`copy`](Self::copy).
    #[inline]
    pub fn copy_sum(&self, from: Span, to_mem: &Self, to: Span) -> Result<u64, Fault> {
        if from.len != to.len {
            return Err(Fault::Length);
        }
        let (src, dst) = (self.resolve(from)?, to_mem.resolve(to)?);
        // SAFETY: both are valid for the common length.
        let sum = unsafe { raw::copy_sum(dst, src, from.len as usize) };
        to_mem.wrote_span(to)?;
        self.check()?;
        Ok(sum)
    }

    /// The sum that [`copy_sum`](Self::copy_sum) would give now.
    ///
    /// # Errors
    /// [`Fault::Range`], [`Fault::Gone`].
    pub fn sum(&self, from: Span) -> Result<u64, Fault> {
        let src = self.resolve(from)?;
        // SAFETY: `src` is valid for the length of `from`.
        let sum = unsafe { raw::sum(src, from.len as usize) };
        self.check()?;
        Ok(sum)
    }

    /// The address of a `u32` that an atomic may be made of.
    #[inline]
    fn resolve_u32(&self, at: Span) -> Result<*mut u32, Fault> {
        if at.len != 4 {
            return Err(Fault::Length);
        }
        let address = self.resolve(at)?.cast::<u32>();
        if address.is_aligned() {
            Ok(address)
        } else {
            Err(Fault::Misaligned)
        }
    }

    /// Loads the native `u32` at `at`, with acquire: what is read after it is at least as new. For descriptors that
    /// are found at any address; see [`Window`] for rings that stay where they are.
    ///
    /// # Errors
    /// [`Fault::Length`] unless the span has 4 bytes, [`Fault::Misaligned`], [`Fault::Range`], [`Fault::Gone`].
    #[inline]
    pub fn load_u32(&self, at: Span) -> Result<u32, Fault> {
        let address = self.resolve_u32(at)?;
        // SAFETY: mapped while `self` is, aligned, and only accessed by atomics and `raw`.
        let value = unsafe { AtomicU32::from_ptr(address) }.load(Ordering::Acquire);
        self.check()?;
        Ok(value)
    }

    /// Stores the native `u32` at `at`, with release: what was written before it is seen by who sees it.
    ///
    /// # Errors
    /// As [`load_u32`](Self::load_u32).
    #[inline]
    pub fn store_u32(&self, at: Span, value: u32) -> Result<(), Fault> {
        let address = self.resolve_u32(at)?;
        // SAFETY: as for the load.
        unsafe { AtomicU32::from_ptr(address) }.store(value, Ordering::Release);
        self.wrote_span(at)
    }

    /// Exchanges the 16 bytes at `at` (little-endian) for `new` if they are `old`, at once for all who look; gives what
    /// they were.
    ///
    /// # Errors
    /// [`Fault::Length`] unless the span has 16 bytes, [`Fault::Misaligned`] unless they lie on a multiple of 16, and on
    /// processors that cannot do it; [`Fault::Range`], [`Fault::Gone`].
    pub fn compare_exchange(&self, at: Span, old: u128, new: u128) -> Result<u128, Fault> {
        if at.len != 16 {
            return Err(Fault::Length);
        }
        let address = self.resolve(at)?;
        if !address.addr().is_multiple_of(16) || !is_x86_feature_detected!("cmpxchg16b") {
            return Err(Fault::Misaligned);
        }
        // SAFETY: valid for 16 bytes, aligned, and the processor has the instruction.
        let found = unsafe { raw::compare_exchange_16(address, old, new) };
        self.wrote_span(at)?;
        Ok(found)
    }

    /// Asks the processor for the first cache line of `at`, to be read soon.
    #[inline]
    pub fn prefetch(&self, at: Span) {
        if let Ok(address) = self.resolve(at) {
            raw::prefetch(address);
        }
    }

    /// Asks the processor for the first cache line of `at`, to be written soon.
    #[inline]
    pub fn prefetch_write(&self, at: Span) {
        if let Ok(address) = self.resolve(at) {
            raw::prefetch_write(address);
        }
    }

    /// True once a region, or the dirty log, was taken away by its owner. Contents are lost, and every access fails
    /// with [`Fault::Gone`] (a lost log alone fails none): the owner must fault its port.
    #[inline]
    pub fn is_faulted(&self) -> bool {
        self.check().is_err()
            || (self.logging.load(Ordering::Relaxed)
                && self.log.load().as_ref().is_some_and(|log| log.is_faulted()))
    }

    /// The address of a span in this process, to hand to the kernel (AF_XDP UMEM). Valid while the memory is.
    pub fn host_addr(&self, span: Span) -> Option<usize> {
        self.resolve(span)
            .ok()
            .map(|address| address.expose_provenance())
    }

    /// Starts logging writes to `log`, or stops. A write under way on another thread may miss the change: who answers
    /// the peer first waits until every user of the memory has ended its turn.
    ///
    /// # Errors
    /// [`MapError::LogSize`] if the log is too short for the highest guest address; nothing is changed.
    pub fn set_dirty_log(&self, log: Option<Arc<DirtyLog>>) -> Result<(), MapError> {
        if let (Some(log), Some(last)) = (&log, self.regions.last()) {
            log.covers(last.guest + (last.len - 1))?;
        }
        let logging = log.is_some();
        self.log.store(log);
        self.logging.store(logging, Ordering::Release);
        Ok(())
    }
}
