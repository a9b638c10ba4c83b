//! One mapped piece of a memory-backed file.
#![allow(unsafe_code, reason = "mmap and munmap")]

use crate::{MapError, sigbus};
use rustix::fs::{FileType, fstat, fstatfs};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
use std::os::fd::BorrowedFd;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Largest mapping in bytes: half of a process's 47-bit address space.
pub(crate) const MAX_LEN: u64 = 1 << 46;

const PAGE: u64 = 4096;
const TMPFS_MAGIC: u64 = 0x0102_1994; // linux/magic.h; memfd too
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6; // linux/magic.h

/// A registered shared mapping, unmapped on drop.
#[derive(Debug)]
pub(crate) struct Mapping {
    /// First byte asked for; the mapping begins at or before it, on a page boundary.
    base: *mut u8,
    start: *mut libc::c_void,
    size: usize,
    gone: Arc<AtomicBool>,
    registration: Option<sigbus::Registration>,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is only reached through `base`, whose users
// (see `raw`) make no assumption on who else reads or writes.
unsafe impl Send for Mapping {}
// SAFETY: as above; `&Mapping` gives out the address only.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes from `offset`, readable and writable. `gone` is set if they are lost later.
    pub(crate) fn new(
        fd: BorrowedFd<'_>,
        offset: u64,
        len: u64,
        gone: Arc<AtomicBool>,
    ) -> Result<Self, MapError> {
        let system = |call, source: rustix::io::Errno| MapError::System {
            call,
            offset,
            len,
            source: source.into(),
        };
        if len == 0 || len > MAX_LEN {
            return Err(MapError::Length(len));
        }
        let end = offset
            .checked_add(len)
            .filter(|&end| i64::try_from(end).is_ok())
            .ok_or(MapError::Overflow {
                what: "file offset",
                start: offset,
                len,
            })?;
        let stat = fstat(fd).map_err(|e| system("fstat", e))?;
        let fs = fstatfs(fd).map_err(|e| system("fstatfs", e))?;
        let fs_type = fs.f_type as u64;
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        let page = match fs_type {
            TMPFS_MAGIC if regular => PAGE,
            // A huge page can only be mapped and unmapped whole; f_bsize is its size.
            HUGETLBFS_MAGIC if regular => (fs.f_bsize as u64).max(PAGE),
            _ => return Err(MapError::Backing(fs_type)),
        };
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if size < end {
            return Err(MapError::Short { size, offset, len });
        }
        // The region may begin inside a page: QEMU splits guest memory at 640 KiB, also on 2 MiB pages.
        let skip = offset % page;
        let size = (skip + len).next_multiple_of(page) as usize;
        sigbus::install().map_err(|source| MapError::System {
            call: "sigaction",
            offset,
            len,
            source,
        })?;
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let start = unsafe {
            mmap(
                ptr::null_mut(),
                size,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                fd,
                offset - skip,
            )
        }
        .map_err(|e| system("mmap", e))?;
        let base = start.cast::<u8>().wrapping_add(skip as usize);
        // From here on a failure unmaps by `drop`.
        let mut mapping = Self {
            base,
            start,
            size,
            gone,
            registration: None,
        };
        // SAFETY: the mapping is ours and new, `mapping` keeps the flag, and drops the registration before both.
        let registration =
            unsafe { sigbus::Registration::new(start as usize, size, Arc::as_ptr(&mapping.gone)) };
        mapping.registration = Some(registration.ok_or(MapError::TableFull)?);
        for advice in [Advice::LinuxHugepage, Advice::LinuxDontDump] {
            // SAFETY: the range is our mapping; both advices leave its contents alone. A refusal costs speed only.
            let _ = unsafe { madvise(start, size, advice) };
        }
        Ok(mapping)
    }

    /// Address of the first byte asked for.
    pub(crate) fn base(&self) -> *mut u8 {
        self.base
    }
}

/// Puts each huge page's worth of the `len` bytes from `start` on into one huge page, where the kernel can.
pub(crate) fn collapse(start: *mut libc::c_void, len: usize) {
    // The kernel wants whole pages, and takes those huge pages that lie within.
    let skip = start.cast::<u8>().align_offset(PAGE as usize);
    if let Some(len) = len.checked_sub(skip) {
        let start = start.wrapping_byte_add(skip);
        // SAFETY: this advice leaves contents and protection of any memory alone.
        let _ = unsafe { libc::madvise(start, len, libc::MADV_COLLAPSE) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // Before munmap: a later mapping at this address must not be found under the old entry.
        self.registration = None;
        // SAFETY: exactly what `new` mapped; nobody holds a pointer into it, as users borrow or share the owner.
        let _ = unsafe { munmap(self.start, self.size) };
    }
}
