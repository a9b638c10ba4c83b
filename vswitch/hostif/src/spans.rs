//! Scattered reads and gathered writes that reach into [`Memory`]: a frame goes between a file descriptor and guest
//! memory with the kernel's copy and no other.
#![allow(unsafe_code, reason = "the kernel is handed addresses in guest memory")]

use std::os::fd::{AsFd, AsRawFd};

use guestmem::{Memory, Span};
use libc::iovec;
use rustix::io::Errno;

/// Pieces of one transfer, at most (`UIO_MAXIOV` is 1024).
pub const MAX_PIECES: usize = 72;

/// Private buffers and spans of one transfer, in order.
pub(crate) struct Pieces {
    vectors: [iovec; MAX_PIECES],
    count: usize,
}

impl Pieces {
    pub(crate) fn new() -> Self {
        let none = iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        Self {
            vectors: [none; MAX_PIECES],
            count: 0,
        }
    }

    /// Adds `len` bytes at `address`. `EMSGSIZE` if there are too many pieces.
    pub(crate) fn push(&mut self, address: usize, len: usize) -> Result<(), Errno> {
        let place = self.vectors.get_mut(self.count).ok_or(Errno::MSGSIZE)?;
        *place = iovec {
            iov_base: std::ptr::with_exposed_provenance_mut(address),
            iov_len: len,
        };
        self.count += 1;
        Ok(())
    }

    /// Adds spans of `memory`. `EFAULT` if one is not in it.
    pub(crate) fn push_spans(&mut self, memory: &Memory, spans: &[Span]) -> Result<(), Errno> {
        for span in spans {
            let address = memory.host_addr(*span).ok_or(Errno::FAULT)?;
            self.push(address, span.len() as usize)?;
        }
        Ok(())
    }

    pub(crate) fn as_ptr(&self) -> *const iovec {
        self.vectors.as_ptr()
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }
}

/// Reads one record into `heads` and then `spans`; `None` if there is none. Tells its length.
///
/// # Errors
/// What `readv(2)` says; `EFAULT` for a span that is not in `memory` or whose memory is gone, `EMSGSIZE` for more than
/// [`MAX_PIECES`] pieces.
pub fn read(
    fd: impl AsFd,
    heads: &mut [&mut [u8]],
    memory: &Memory,
    spans: &[Span],
) -> Result<Option<usize>, Errno> {
    let mut pieces = Pieces::new();
    for head in heads.iter_mut() {
        pieces.push(head.as_mut_ptr().expose_provenance(), head.len())?;
    }
    pieces.push_spans(memory, spans)?;
    // SAFETY: every vector is an exclusively borrowed buffer, or lies in `memory`, which is mapped while borrowed and
    // which nobody holds references into. The kernel answers EFAULT where pages are gone.
    let result = unsafe {
        libc::readv(
            fd.as_fd().as_raw_fd(),
            pieces.as_ptr(),
            pieces.len() as libc::c_int,
        )
    };
    finish(result)
}

/// Writes one record from `heads` and then `spans`; `None` if there is no room for it now. Tells its length.
///
/// # Errors
/// What `writev(2)` says; otherwise as [`read`].
pub fn write(
    fd: impl AsFd,
    heads: &[&[u8]],
    memory: &Memory,
    spans: &[Span],
) -> Result<Option<usize>, Errno> {
    let mut pieces = Pieces::new();
    for head in heads {
        pieces.push(head.as_ptr().expose_provenance(), head.len())?;
    }
    pieces.push_spans(memory, spans)?;
    // SAFETY: the kernel only reads the vectors: borrowed buffers, and `memory`, which is mapped while borrowed.
    let result = unsafe {
        libc::writev(
            fd.as_fd().as_raw_fd(),
            pieces.as_ptr(),
            pieces.len() as libc::c_int,
        )
    };
    finish(result)
}

fn finish(result: isize) -> Result<Option<usize>, Errno> {
    if result >= 0 {
        return Ok(Some(result.unsigned_abs()));
    }
    let error = std::io::Error::last_os_error();
    match Errno::from_io_error(&error).unwrap_or(Errno::IO) {
        Errno::AGAIN | Errno::INTR => Ok(None),
        errno => Err(errno),
    }
}
