//! The socket that carries the messages: one packet each, with the file descriptors that belong to it.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    accept_with, bind, connect, listen, recvmsg, sendmsg, socket_with,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::message::{Checked, InvalidMessage};
use super::{MAX_FDS, MAX_MESSAGE};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// Why a message was not sent or received.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The peer closed the connection.
    #[error("the connection was closed")]
    Closed,
    /// Nothing came in time, or the peer took nothing in time.
    #[error("the peer did not answer in time")]
    Late,
    /// A packet is longer than any message.
    #[error(
        "a message of more than {MAX_MESSAGE} bytes, or with more than {MAX_FDS} file descriptors"
    )]
    TooLong,
    /// A packet is no message.
    #[error("not a message")]
    Json(#[from] serde_json::Error),
    /// A message has a field that is not allowed.
    #[error("a message that is not allowed")]
    Invalid(#[from] InvalidMessage),
    /// The kernel refused.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

fn system(what: &'static str) -> impl Fn(Errno) -> AttachError {
    move |errno| AttachError::System {
        what,
        source: errno.into(),
    }
}

/// One end of a connection. It does not block; waits have a limit.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Connection {
    /// Connects to the socket `path`, without waiting.
    ///
    /// # Errors
    /// The path is too long, nobody listens, or the kernel refuses.
    pub fn dial(path: &Path) -> Result<Connection, AttachError> {
        let what = system("connect to the attach socket");
        let socket = new_socket().map_err(&what)?;
        connect(&socket, &SocketAddrUnix::new(path).map_err(&what)?).map_err(&what)?;
        Ok(Connection { socket })
    }

    /// Accepts a connection on `listener`; `None` if nobody waits.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn accept(listener: impl AsFd) -> Result<Option<Connection>, AttachError> {
        match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(socket) => Ok(Some(Connection { socket })),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            Err(errno) => Err(system("accept a connection")(errno)),
        }
    }

    /// Two ends of a connection.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn pair() -> Result<(Connection, Connection), AttachError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let (a, b) = pair.map_err(system("make a pair of sockets"))?;
        Ok((Connection { socket: a }, Connection { socket: b }))
    }

    /// The process at the other end, as it was when it connected.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn peer_pid(&self) -> Result<i32, AttachError> {
        let peer = socket_peercred(&self.socket).map_err(system("ask who is at the other end"))?;
        Ok(peer.pid.as_raw_nonzero().get())
    }

    /// Sends a message. Waits at most `limit` for a peer that does not read.
    ///
    /// # Errors
    /// The message is not allowed, the peer has gone or does not read, or the kernel refuses.
    pub fn send<M: Serialize + Checked>(
        &self,
        message: &M,
        fds: &[BorrowedFd<'_>],
        limit: Timespec,
    ) -> Result<(), AttachError> {
        message.check(fds.len())?;
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > MAX_MESSAGE || fds.len() > MAX_FDS {
            return Err(AttachError::TooLong);
        }
        loop {
            match send_packet(&self.socket, &bytes, fds) {
                Ok(_) => return Ok(()),
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, limit)?,
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(AttachError::Closed),
                Err(errno) => return Err(system("send a message")(errno)),
            }
        }
    }

    /// Receives the next message. Waits at most `limit`.
    ///
    /// # Errors
    /// Nothing came in time, the peer has gone, or what came is no message that is allowed.
    pub fn receive<M: DeserializeOwned + Checked>(
        &self,
        limit: Timespec,
    ) -> Result<(M, Vec<OwnedFd>), AttachError> {
        loop {
            self.wait(PollFlags::IN, limit)?;
            if let Some(received) = self.try_receive()? {
                return Ok(received);
            }
        }
    }

    /// Receives a message that is there; `None` if there is none.
    ///
    /// # Errors
    /// The peer has gone, or what came is no message that is allowed.
    pub fn try_receive<M: DeserializeOwned + Checked>(
        &self,
    ) -> Result<Option<(M, Vec<OwnedFd>)>, AttachError> {
        let mut bytes = vec![0; MAX_MESSAGE];
        let Some((length, fds)) = receive_packet(&self.socket, &mut bytes)? else {
            return Ok(None);
        };
        if length == 0 {
            return Err(AttachError::Closed);
        }
        let message: M = serde_json::from_slice(bytes.get(..length).unwrap_or_default())?;
        message.check(fds.len())?;
        Ok(Some((message, fds)))
    }

    fn wait(&self, flags: PollFlags, limit: Timespec) -> Result<(), AttachError> {
        match poll(&mut [PollFd::new(&self.socket, flags)], Some(&limit)) {
            Ok(0) => Err(AttachError::Late),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(system("wait for the peer")(errno)),
        }
    }
}

fn new_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

fn send_packet(socket: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::INVAL);
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags)
}

/// A packet's length and file descriptors; `None` if nothing is there.
fn receive_packet(
    socket: &OwnedFd,
    bytes: &mut [u8],
) -> Result<Option<(usize, Vec<OwnedFd>)>, AttachError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let result = match recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut ancillary, flags) {
        Ok(result) => result,
        Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
        Err(Errno::CONNRESET) => return Err(AttachError::Closed),
        Err(errno) => return Err(system("receive a message")(errno)),
    };
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    // File descriptors that found no room were closed by the kernel.
    if result
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(AttachError::TooLong);
    }
    Ok(Some((result.bytes, fds)))
}

/// Listens on `path`, which nobody but the owner may connect to. A file that is there is replaced: the folder is the
/// caller's own.
///
/// # Errors
/// The path is too long, or the kernel refuses.
pub fn listen_on(path: &Path) -> Result<OwnedFd, AttachError> {
    let what = system("listen on the attach socket");
    let socket = new_socket().map_err(&what)?;
    match rustix::fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(what(errno)),
    }
    // The mode of a socket's file is that of the socket, less the umask (unix(7)).
    rustix::fs::fchmod(&socket, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).map_err(&what)?;
    bind(&socket, &SocketAddrUnix::new(path).map_err(&what)?).map_err(&what)?;
    listen(&socket, BACKLOG).map_err(&what)?;
    Ok(socket)
}

/// The socket that processes of VMs connect to. Its file goes when this is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    path: PathBuf,
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Listener {
    /// Listens on `path` as [`listen_on`] does. A file that a killed vswitchd left there is replaced: whoever calls this
    /// holds the lock of the state directory, and the run directory is its own.
    ///
    /// # Errors
    /// As [`listen_on`].
    pub fn bind(path: &Path) -> Result<Listener, AttachError> {
        Ok(Listener {
            socket: listen_on(path)?,
            path: path.to_owned(),
        })
    }

    /// Accepts a connection; `None` if nobody waits.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn accept(&self) -> Result<Option<Connection>, AttachError> {
        Connection::accept(&self.socket)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Nothing to be done if it cannot be removed: the next start replaces it.
        let _ = rustix::fs::unlink(&self.path);
    }
}
