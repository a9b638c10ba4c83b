//! Pieces of memory for the kernel to read or write in one call.
#![allow(unsafe_code, reason = "system calls take addresses")]

use std::fmt;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd};

use guestmem::{Memory, Span};
use rustix::io::{Errno, Result};

/// A piece of memory that the kernel may read: private bytes, or shared memory where it is.
///
/// Shared memory that was truncated meanwhile makes the call fail with `EFAULT`.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Iov<'a> {
    raw: libc::iovec,
    memory: PhantomData<&'a [u8]>,
}

/// A piece of memory that the kernel may write: private bytes, or shared memory where it is.
#[repr(transparent)]
pub struct IovMut<'a> {
    raw: libc::iovec,
    memory: PhantomData<&'a mut [u8]>,
}

impl<'a> Iov<'a> {
    /// Private bytes.
    pub const fn bytes(bytes: &'a [u8]) -> Self {
        let raw = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        Self {
            raw,
            memory: PhantomData,
        }
    }

    /// Shared memory; `None` if the span is not of this memory.
    pub fn span(memory: &'a Memory, span: Span) -> Option<Self> {
        Some(Self {
            raw: span_iovec(memory, span)?,
            memory: PhantomData,
        })
    }
}

impl<'a> IovMut<'a> {
    /// No bytes.
    pub const EMPTY: Self = Self {
        raw: libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        },
        memory: PhantomData,
    };

    /// Private bytes.
    pub const fn bytes(bytes: &'a mut [u8]) -> Self {
        let raw = libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        Self {
            raw,
            memory: PhantomData,
        }
    }

    /// Shared memory; `None` if the span is not of this memory. The write is not entered in a dirty log.
    pub fn span(memory: &'a Memory, span: Span) -> Option<Self> {
        Some(Self {
            raw: span_iovec(memory, span)?,
            memory: PhantomData,
        })
    }
}

fn span_iovec(memory: &Memory, span: Span) -> Option<libc::iovec> {
    let address = memory.host_addr(span)?;
    Some(libc::iovec {
        iov_base: std::ptr::with_exposed_provenance_mut(address),
        iov_len: span.len() as usize,
    })
}

impl fmt::Debug for Iov<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Iov({} bytes)", self.raw.iov_len)
    }
}

impl fmt::Debug for IovMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IovMut({} bytes)", self.raw.iov_len)
    }
}

/// `readv(2)`
pub(crate) fn readv(fd: impl AsFd, pieces: &mut [IovMut<'_>]) -> Result<usize> {
    let (pointer, count) = (
        pieces.as_mut_ptr().cast::<libc::iovec>(),
        pieces.len() as libc::c_int,
    );
    // SAFETY: an `IovMut` is an iovec whose bytes are exclusively ours or shared memory, valid while it lives.
    result(unsafe { libc::readv(fd.as_fd().as_raw_fd(), pointer, count) })
}

/// `writev(2)`
pub(crate) fn writev(fd: impl AsFd, pieces: &[Iov<'_>]) -> Result<usize> {
    let (pointer, count) = (
        pieces.as_ptr().cast::<libc::iovec>(),
        pieces.len() as libc::c_int,
    );
    // SAFETY: an `Iov` is an iovec whose bytes are valid to read while it lives.
    result(unsafe { libc::writev(fd.as_fd().as_raw_fd(), pointer, count) })
}

/// What a call of libc returned, or the error it left.
pub(crate) fn result(returned: isize) -> Result<usize> {
    usize::try_from(returned).map_err(|_| {
        let error = std::io::Error::last_os_error();
        Errno::from_io_error(&error).unwrap_or(Errno::IO)
    })
}
