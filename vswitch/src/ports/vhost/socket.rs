//! The socket of a port: bound or connected to without waiting, and removed again by who bound it.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// Longest path of a socket in bytes (`sun_path` of unix(7), less the final zero).
pub const MAX_PATH: usize = 107;

/// Why a socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The path does not fit an address.
    #[error("socket path '{}' has {} bytes; 1 to {MAX_PATH} are allowed", .0.display(), .0.as_os_str().len())]
    Path(PathBuf),
    /// Somebody listens there.
    #[error(
        "socket '{}' is in use by another process; allowed: a path that nobody listens on, or mode client to connect there",
        .0.display()
    )]
    InUse(PathBuf),
    /// There is a file that is no socket.
    #[error("'{}' exists and is no socket; allowed: another path, or remove it", .0.display())]
    NoSocket(PathBuf),
    /// The kernel refused.
    #[error("cannot {call} socket '{}'", .path.display())]
    System {
        /// What was tried.
        call: &'static str,
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Checks the length of a path.
pub fn check_path(path: &Path) -> Result<(), SocketError> {
    let len = path.as_os_str().len();
    if (1..=MAX_PATH).contains(&len) {
        Ok(())
    } else {
        Err(SocketError::Path(path.to_owned()))
    }
}

/// Connects without waiting.
pub fn dial(path: &Path) -> Result<UnixStream, SocketError> {
    dial_raw(path).map_err(|errno| system("connect to", path, errno.into()))
}

fn dial_raw(path: &Path) -> Result<UnixStream, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}

fn system(call: &'static str, path: &Path, source: io::Error) -> SocketError {
    SocketError::System {
        call,
        path: path.to_owned(),
        source,
    }
}

/// A bound socket. Its file goes when it is dropped.
pub struct Listener {
    /// The socket; it does not block.
    pub socket: UnixListener,
    path: PathBuf,
    /// Device and inode, so that nobody else's file is removed.
    id: (u64, u64),
}

impl Listener {
    /// Binds `path`. The file of a socket that nobody listens on is replaced.
    pub fn bind(path: &Path) -> Result<Listener, SocketError> {
        check_path(path)?;
        let socket = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(path)?;
                UnixListener::bind(path)
            }
            result => result,
        };
        let socket = socket.map_err(|source| system("bind", path, source))?;
        socket
            .set_nonblocking(true)
            .map_err(|source| system("prepare", path, source))?;
        let file =
            std::fs::symlink_metadata(path).map_err(|source| system("find", path, source))?;
        Ok(Listener {
            socket,
            path: path.to_owned(),
            id: (file.dev(), file.ino()),
        })
    }
}

fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let file = std::fs::symlink_metadata(path).map_err(|source| system("find", path, source))?;
    if !file.file_type().is_socket() {
        return Err(SocketError::NoSocket(path.to_owned()));
    }
    match dial_raw(path) {
        Err(Errno::CONNREFUSED) => {
            std::fs::remove_file(path).map_err(|source| system("remove stale", path, source))
        }
        // A full backlog says AGAIN: somebody is there.
        Ok(_) | Err(Errno::AGAIN) => Err(SocketError::InUse(path.to_owned())),
        Err(errno) => Err(system("connect to", path, errno.into())),
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path)
            .is_ok_and(|file| (file.dev(), file.ino()) == self.id)
        {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_length_is_checked() {
        assert!(check_path(Path::new(&"x".repeat(107))).is_ok());
        for bad in ["", &"x".repeat(108)] {
            assert!(
                matches!(Listener::bind(Path::new(bad)), Err(SocketError::Path(_))),
                "{bad}"
            );
        }
    }

    #[test]
    fn stale_is_replaced_live_and_foreign_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("port.sock");
        // A socket whose process died leaves its file.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listener = Listener::bind(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(SocketError::InUse(_))));
        assert!(dial(&path).is_ok());
        drop(listener);
        assert!(!path.exists());
        std::fs::write(&path, "x").unwrap();
        assert!(matches!(
            Listener::bind(&path),
            Err(SocketError::NoSocket(_))
        ));
        assert!(path.exists());
    }

    #[test]
    fn a_file_that_took_the_place_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("port.sock");
        let listener = Listener::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "x").unwrap();
        drop(listener);
        assert!(path.exists());
    }
}
