//! The directories, the lock that keeps a second vswitchd out, and the socket of the API.

use std::fs::{DirBuilder, File, Permissions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use nix::unistd::{Gid, Group};
use rustix::fs::Mode;
use rustix::process::umask;

/// Makes a directory that is not there, and those above it.
pub(crate) fn make_dir(path: &Path, mode: u32) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .with_context(|| format!("cannot make directory {}", path.display()))
}

/// Locks the state directory for as long as the file lives.
pub(crate) fn lock(state_dir: &Path) -> anyhow::Result<File> {
    let path = state_dir.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!(
                "another vswitchd is running: it holds {}; allowed: one for each state directory",
                path.display()
            )
        }
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// The id of a group.
pub(crate) fn group_id(name: &str) -> anyhow::Result<Gid> {
    let group = Group::from_name(name).with_context(|| format!("cannot look up group '{name}'"))?;
    Ok(group
        .with_context(|| format!("there is no group '{name}'; allowed: a group of this host"))?
        .gid)
}

/// The socket of the API; its file goes when this is dropped.
pub(crate) struct ApiSocket {
    path: PathBuf,
    /// The group whose members may use it.
    pub(crate) group: Gid,
}

impl ApiSocket {
    /// Makes the socket `path` with mode 0660, in place of one that nobody answers on.
    pub(crate) fn bind(
        path: PathBuf,
        group: Option<Gid>,
    ) -> anyhow::Result<(ApiSocket, UnixListener)> {
        let shown = path.display().to_string();
        ensure!(
            shown.len() <= 107,
            "socket path '{shown}' is too long; allowed: at most 107 bytes"
        );
        remove_stale(&path)?;
        // The mode must hold from the first moment on. No other thread makes files yet.
        let before = umask(Mode::from_raw_mode(0o117));
        let bound = UnixListener::bind(&path);
        umask(before);
        let listener = bound.with_context(|| format!("cannot make socket {shown}"))?;
        let own = Gid::from_raw(
            path.metadata()
                .with_context(|| format!("cannot stat {shown}"))?
                .gid(),
        );
        let socket = ApiSocket {
            path,
            group: group.unwrap_or(own),
        };
        if let Some(group) = group {
            std::os::unix::fs::chown(&socket.path, None, Some(group.as_raw()))
                .with_context(|| format!("cannot give {shown} to group {group}"))?;
        }
        std::fs::set_permissions(&socket.path, Permissions::from_mode(0o660))
            .with_context(|| format!("cannot set the mode of {shown}"))?;
        listener
            .set_nonblocking(true)
            .with_context(|| format!("cannot set up {shown}"))?;
        Ok((socket, listener))
    }
}

impl Drop for ApiSocket {
    fn drop(&mut self) {
        // Nothing to be done if it cannot be removed: the next start replaces it.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn remove_stale(path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    match path.symlink_metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot stat {shown}")),
        Ok(found) if !found.file_type().is_socket() => {
            bail!("{shown} is in the way: it is no socket; remove it")
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => bail!(
            "another vswitchd is running: it answers on {shown}; allowed: one for each run directory"
        ),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => std::fs::remove_file(path)
            .with_context(|| format!("cannot remove the old socket {shown}")),
        Err(error) => Err(error).with_context(|| format!("cannot tell who holds {shown}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_in_use_are_refused_and_stale_ones_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let (socket, listener) = ApiSocket::bind(path.clone(), None).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o660);
        let error = ApiSocket::bind(path.clone(), None)
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("another vswitchd is running"), "{error}");
        // As after SIGKILL: the file is there, and nobody listens.
        drop(listener);
        std::mem::forget(socket);
        let (socket, _listener) = ApiSocket::bind(path.clone(), None).unwrap();
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn other_files_are_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(ApiSocket::bind(path.clone(), None).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        let long = dir.path().join("x".repeat(100));
        let error = ApiSocket::bind(long, None).err().unwrap().to_string();
        assert!(error.contains("at most 107 bytes"), "{error}");
    }

    #[test]
    fn the_state_directory_is_locked() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        let error = lock(dir.path()).unwrap_err().to_string();
        assert!(error.contains("another vswitchd is running"), "{error}");
        drop(held);
        assert!(lock(dir.path()).is_ok());
    }

    #[test]
    fn unknown_groups_are_refused() {
        assert_eq!(group_id("root").unwrap().as_raw(), 0);
        assert!(
            group_id("no-such-group")
                .unwrap_err()
                .to_string()
                .contains("no-such-group")
        );
    }
}
