//! A connected socket: messages and their descriptors in, replies out. Every wait can be interrupted.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::message::{Code, HEADER_LEN, Header, MAX_BODY, MAX_TABLE, Message, MessageError, flags};

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The peer closed it between two messages.
    #[error("the peer closed the connection")]
    Closed,
    /// The peer closed it within a message.
    #[error("the peer closed the connection within a message")]
    Cut,
    /// We were asked to stop waiting.
    #[error("interrupted")]
    Interrupted,
    /// The peer sent more descriptors than any message has.
    #[error("more than {MAX_TABLE} file descriptors came with one message")]
    TooManyFds,
    /// The peer sent something invalid.
    #[error("invalid message")]
    Message(#[from] MessageError),
    /// The socket failed.
    #[error("the socket failed")]
    Socket(#[source] std::io::Error),
}

impl From<Errno> for ConnectionError {
    fn from(errno: Errno) -> Self {
        ConnectionError::Socket(errno.into())
    }
}

/// What a message is answered with.
#[derive(Debug, Default)]
pub struct Reply {
    /// The body.
    pub body: Vec<u8>,
    /// A descriptor that goes with it.
    pub fd: Option<OwnedFd>,
}

/// Descriptors that are watched while waiting for the peer, each under a name.
pub type Watched<'a, T> = Vec<(T, BorrowedFd<'a>)>;

/// What is done about a watched descriptor that became readable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The waiting goes on.
    Wait,
    /// The waiting goes on without this descriptor.
    Forget,
    /// The waiting ends.
    Stop,
}

/// A socket that a front-end is connected to.
pub struct Connection {
    stream: UnixStream,
}

impl Connection {
    /// Takes a connected socket, and makes it not block.
    pub fn new(stream: UnixStream) -> Result<Connection, ConnectionError> {
        stream
            .set_nonblocking(true)
            .map_err(ConnectionError::Socket)?;
        Ok(Connection { stream })
    }

    /// Waits for `flags` on the socket. `ready` is called for each of `watched` that is readable.
    fn wait<T: Copy>(
        &self,
        flags: PollFlags,
        watched: &mut Watched<'_, T>,
        ready: &mut impl FnMut(T) -> Next,
    ) -> Result<(), ConnectionError> {
        loop {
            let mut fds = vec![PollFd::new(&self.stream, flags)];
            fds.extend(watched.iter().map(|(_, fd)| PollFd::new(fd, PollFlags::IN)));
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            let mut fired = fds
                .iter()
                .map(|fd| !fd.revents().is_empty())
                .collect::<Vec<_>>()
                .into_iter();
            let socket = fired.next().unwrap_or(false);
            let mut stop = false;
            watched.retain(|(name, _)| {
                let next = if fired.next().unwrap_or(false) {
                    ready(*name)
                } else {
                    Next::Wait
                };
                stop |= next == Next::Stop;
                next != Next::Forget
            });
            if stop {
                return Err(ConnectionError::Interrupted);
            }
            if socket {
                return Ok(());
            }
        }
    }

    /// Receives the next message. While it waits, `ready` is called for each of `watched` that is readable.
    pub fn receive<T: Copy>(
        &self,
        mut watched: Watched<'_, T>,
        mut ready: impl FnMut(T) -> Next,
    ) -> Result<(Header, Message), ConnectionError> {
        let mut fds = Vec::new();
        let mut header = [0; HEADER_LEN];
        let mut body = [0; MAX_BODY];
        let mut read = |to: &mut [u8], at_start: bool| {
            let mut done = 0;
            while let Some(rest) = to.get_mut(done..).filter(|rest| !rest.is_empty()) {
                self.wait(PollFlags::IN, &mut watched, &mut ready)?;
                match self.read_some(rest, &mut fds)? {
                    None => {}
                    Some(0) if at_start && done == 0 => return Err(ConnectionError::Closed),
                    Some(0) => return Err(ConnectionError::Cut),
                    Some(bytes) => done += bytes,
                }
            }
            Ok(())
        };
        read(&mut header, true)?;
        let header = Header::parse(&header)?;
        let body = body.get_mut(..header.size).unwrap_or(&mut []);
        read(body, false)?;
        Ok((header, Message::parse(&header, body, fds)?))
    }

    /// Reads what is there, and adds the descriptors to `fds`. `None` if nothing is there, 0 at the end.
    fn read_some(
        &self,
        to: &mut [u8],
        fds: &mut Vec<OwnedFd>,
    ) -> Result<Option<usize>, ConnectionError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_TABLE))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let result = match recvmsg(
            &self.stream,
            &mut [IoSliceMut::new(to)],
            &mut ancillary,
            flags,
        ) {
            Ok(result) => result,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(Errno::CONNRESET) => return Ok(Some(0)),
            Err(errno) => return Err(errno.into()),
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        // Descriptors that found no room were closed by the kernel.
        if fds.len() > MAX_TABLE || result.flags.contains(rustix::net::ReturnFlags::CTRUNC) {
            return Err(ConnectionError::TooManyFds);
        }
        Ok(Some(result.bytes))
    }

    /// Sends the reply to request `code`. Waits as [`Connection::receive`] does.
    pub fn reply<T: Copy>(
        &self,
        code: Code,
        reply: &Reply,
        mut watched: Watched<'_, T>,
        mut ready: impl FnMut(T) -> Next,
    ) -> Result<(), ConnectionError> {
        let mut bytes = Vec::with_capacity(HEADER_LEN + reply.body.len());
        for field in [
            code as u32,
            flags::VERSION | flags::REPLY,
            reply.body.len() as u32,
        ] {
            bytes.extend(field.to_ne_bytes());
        }
        bytes.extend(&reply.body);
        let mut fd = reply.fd.as_ref().map(|fd| [fd.as_fd()]);
        let mut left = bytes.as_slice();
        while !left.is_empty() {
            self.wait(PollFlags::OUT, &mut watched, &mut ready)?;
            match send_some(
                &self.stream,
                left,
                fd.as_ref().map_or(&[], |fd| fd.as_slice()),
            ) {
                Ok(sent) => {
                    left = left.get(sent..).unwrap_or(&[]);
                    // It goes with the first byte.
                    fd = None;
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

/// Sends what the socket takes of `bytes`, and `fds` with the first of them.
pub(super) fn send_some(
    stream: &UnixStream,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_TABLE))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::INVAL);
    }
    sendmsg(
        stream,
        &[std::io::IoSlice::new(bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )
}
