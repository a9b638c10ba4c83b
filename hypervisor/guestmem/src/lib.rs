//! Guest memory: mapped once, translated at use, copied safely.
//!
//! This crate is the one place that touches memory which a guest, a vhost-user peer or the kernel changes at any
//! time. Everything above it works on private copies and on [`Span`]s, and forbids `unsafe`.
//!
//! * [`Memory`] is an immutable set of mapped regions, shared as `Arc<Memory>` and unmapped when the last user drops it.
//! * [`Span`] is a translated piece of guest memory. It is checked again at every use.
//! * [`Window`] is a piece that is used often (a ring): found once, then read and written by offset.
//! * [`DirtyLog`] is the bitmap of written pages that live migration wants.
//!
//! # Why this is sound
//! *No reference to shared memory is ever made.* Bytes move by single `mov` instructions in inline assembly (module `raw`),
//! ring indices by atomics on raw pointers. The compiler may therefore never assume that two loads of a byte agree, nor
//! load a byte a second time, nor keep one back: another process that writes at the same moment changes which bytes
//! are copied, and nothing else.
//!
//! *Memory that goes away is an error.* A peer can truncate the file behind a mapping, and the next access raises
//! SIGBUS. The handler of this crate (module `sigbus`) puts zero pages in place of the whole mapping and marks the
//! [`Memory`]; the interrupted access goes on with zeros and its function returns [`Fault::Gone`]. Two duties follow for the process:
//! no thread that uses a [`Memory`] may block SIGBUS, and a seccomp filter must allow `mmap` and `rt_sigreturn`.
//!
//! *A peer cannot make us wait.* Only memory-backed files are mapped (memfd, tmpfs, hugetlbfs), since reading a page
//! of a file served by another process (FUSE, NFS) would wait for that process.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("guestmem supports x86-64 Linux only");

mod cursor;
mod dirty;
mod error;
mod mapping;
mod memory;
mod raw;
mod sigbus;
mod translator;
mod window;

pub use cursor::{Drainer, Filler};
pub use dirty::DirtyLog;
pub use error::{Fault, MapError};
pub use memory::{MAX_REGIONS, Memory, RegionSpec, Span};
pub use translator::Translator;
pub use window::Window;

/// Asks the processor for the cache line of `at`, to be read soon. For private data, of those who forbid `unsafe`.
#[inline]
pub fn prefetch<T>(at: &T) {
    raw::prefetch(std::ptr::from_ref(at).cast());
}

/// Asks the kernel to put each 2 MiB of `memory` into one huge page, at once (madvise(2), MADV_COLLAPSE, Linux 6.1). For
/// private data, of those who forbid `unsafe`; a refusal costs speed only.
pub fn collapse<T>(memory: &[T]) {
    mapping::collapse(
        std::ptr::from_ref(memory).cast_mut().cast(),
        size_of_val(memory),
    );
}

/// Orders what was stored before it ahead of what is loaded after it, as a sequentially consistent fence does: whoever
/// writes an index and then reads what the other side wishes needs it.
#[inline]
pub fn store_load_fence() {
    raw::store_load_fence();
}

/// The processor's time-stamp counter: ticks at a constant rate on every processor this runs on, the same on all cores
/// (Intel SDM volume 3, 18.17.1 "invariant TSC").
#[inline]
pub fn cycles() -> u64 {
    raw::cycles()
}

#[cfg(test)]
mod tests;
