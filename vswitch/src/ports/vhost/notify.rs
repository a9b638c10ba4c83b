//! Eventfds that come from a peer: signalled and drained without ever waiting for it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::ReadWriteFlags;

/// A descriptor that is no eventfd, or that cannot be made not to block.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// Pipes, files and sockets can block, or end the process by a signal.
    #[error("descriptor passed as an eventfd is '{0}'")]
    Kind(String),
    /// A system call was refused.
    #[error("cannot prepare the passed eventfd")]
    System(#[from] std::io::Error),
}

/// Takes an eventfd of a peer into use: refuses other kinds of descriptors, and makes it not block.
///
/// The peer shares the blocking mode, and could put it back; it could then also make the counter overflow, so that a
/// write waits. Only the peer's process (the VMM) can do that, not its guest.
pub fn adopt(fd: OwnedFd) -> Result<OwnedFd, NotifyError> {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let target = std::fs::read_link(link)?;
    if target.as_os_str() != "anon_inode:[eventfd]" {
        return Err(NotifyError::Kind(target.to_string_lossy().into_owned()));
    }
    let flags = rustix::fs::fcntl_getfl(&fd).map_err(std::io::Error::from)?;
    rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK).map_err(std::io::Error::from)?;
    Ok(fd)
}

/// Adds one to the counter. A counter that is full needs no more.
pub fn signal(fd: impl AsFd) {
    let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
}

/// Sets the counter to zero.
pub fn drain(fd: BorrowedFd<'_>) {
    let mut counter = [0; 8];
    let mut buffers = [std::io::IoSliceMut::new(&mut counter)];
    // Not waiting does not depend on the shared mode here. The offset -1 means that there is none.
    let _ = rustix::io::preadv2(fd, &mut buffers, u64::MAX, ReadWriteFlags::NOWAIT);
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

    fn readable(fd: &OwnedFd) -> bool {
        let zero = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&zero)).unwrap() == 1
    }

    #[test]
    fn signals_and_drains_without_waiting() {
        // A blocking eventfd: both calls must come back.
        let fd = adopt(eventfd(0, EventfdFlags::CLOEXEC).unwrap()).unwrap();
        rustix::fs::fcntl_setfl(&fd, OFlags::empty()).unwrap();
        drain(fd.as_fd());
        signal(&fd);
        assert!(readable(&fd));
        drain(fd.as_fd());
        assert!(!readable(&fd));
    }

    #[test]
    fn refuses_what_is_no_eventfd() {
        let (read, _write) = rustix::pipe::pipe().unwrap();
        assert!(matches!(adopt(read), Err(NotifyError::Kind(kind)) if kind.starts_with("pipe:")));
    }
}
