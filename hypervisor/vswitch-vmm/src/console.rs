//! The serial ports of a VM: what the guest says goes to a log and to all who listen; what they type goes to the guest.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use rustix::event::{EventfdFlags, PollFlags, eventfd};
use rustix::net::{SocketFlags, accept_with};
use tracing::warn;

/// Listeners of a port at a time; those beyond are turned away.
const MAX_LISTENERS: usize = 8;
/// Bytes kept for a listener that does not read; the oldest go first.
const BACKLOG: usize = 256 << 10;
/// Bytes typed and not yet taken by the guest; more is not read before they are.
const MAX_TYPED: usize = 4096;
/// Bytes of the log: beyond, the first half goes.
const MAX_LOG: u64 = 1 << 20;
/// Serial ports.
pub(crate) const PORTS: usize = 2;

/// What the guest has said, on its way from the processors, which must not wait.
pub(crate) struct Outbox {
    said: Mutex<[VecDeque<u8>; PORTS]>,
    event: OwnedFd,
}

impl Outbox {
    pub(crate) fn new() -> anyhow::Result<Arc<Outbox>> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Arc::new(Outbox {
            said: Mutex::default(),
            event: eventfd(0, flags).context("cannot make an event file descriptor")?,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, [VecDeque<u8>; PORTS]> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest says something on `port`.
    pub(crate) fn say(&self, port: u32, bytes: &[u8]) {
        let mut said = self.lock();
        let waiting = said.iter().any(|bytes| !bytes.is_empty());
        if let Some(place) = said.get_mut(port as usize) {
            keep(place, bytes);
            if !waiting {
                let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
            }
        }
    }

    fn take(&self) -> [Vec<u8>; PORTS] {
        let _ = rustix::io::read(&self.event, &mut [0u8; 8]);
        std::mem::take(&mut *self.lock()).map(Vec::from)
    }
}

/// Adds bytes, and forgets the oldest of too many.
fn keep(place: &mut VecDeque<u8>, bytes: &[u8]) {
    place.extend(bytes);
    let excess = place.len().saturating_sub(BACKLOG);
    place.drain(..excess);
}

/// Somebody who listens on a port, and types.
struct Listener {
    stream: UnixStream,
    unread: VecDeque<u8>,
}

impl Listener {
    /// Sends what is unread, as far as it goes. False if there is nobody any more.
    fn send(&mut self) -> bool {
        while !self.unread.is_empty() {
            let (first, _) = self.unread.as_slices();
            match self.stream.write(first) {
                Ok(0) => return false,
                Ok(count) => drop(self.unread.drain(..count)),
                Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
            }
        }
        true
    }
}

/// One serial port.
struct Port {
    socket: Option<UnixListener>,
    listeners: Vec<Listener>,
    typed: VecDeque<u8>,
}

/// The serial ports, and the log of the first.
pub(crate) struct Consoles {
    outbox: Arc<Outbox>,
    ports: [Port; PORTS],
    log: Option<File>,
    logged: u64,
}

/// What of the consoles is waited for, in the order of [`Consoles::each_fd`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    Outbox,
    Socket(usize),
    Listener(usize, usize),
}

impl Consoles {
    pub(crate) fn new(
        outbox: Arc<Outbox>,
        sockets: [Option<OwnedFd>; PORTS],
        log: Option<OwnedFd>,
    ) -> Consoles {
        let log = log.map(File::from);
        let length = log.as_ref().and_then(|log| log.metadata().ok());
        Consoles {
            outbox,
            ports: sockets.map(|socket| Port {
                socket: socket.map(UnixListener::from),
                listeners: Vec::new(),
                typed: VecDeque::new(),
            }),
            log,
            logged: length.map_or(0, |metadata| metadata.len()),
        }
    }

    /// Calls `each` for everything to wait for.
    pub(crate) fn each_fd<'a>(&'a self, mut each: impl FnMut(Which, BorrowedFd<'a>, PollFlags)) {
        each(Which::Outbox, self.outbox.event.as_fd(), PollFlags::IN);
        for (number, port) in self.ports.iter().enumerate() {
            if let Some(socket) = &port.socket {
                each(Which::Socket(number), socket.as_fd(), PollFlags::IN);
            }
            for (index, listener) in port.listeners.iter().enumerate() {
                let mut flags = PollFlags::empty();
                flags.set(PollFlags::IN, port.typed.len() < MAX_TYPED);
                flags.set(PollFlags::OUT, !listener.unread.is_empty());
                each(
                    Which::Listener(number, index),
                    listener.stream.as_fd(),
                    flags,
                );
            }
        }
    }

    /// Does what there is to do about what has become ready.
    pub(crate) fn ready(&mut self, which: &[Which]) {
        // From the last to the first, so that indices hold while listeners go.
        for which in which.iter().rev() {
            match *which {
                Which::Outbox => self.spread(),
                Which::Socket(port) => self.welcome(port),
                Which::Listener(port, index) => self.serve(port, index),
            }
        }
    }

    /// Everything that the guest has said goes where it belongs.
    pub(crate) fn spread(&mut self) {
        let said = self.outbox.take();
        let [first, _] = &said;
        self.write_log(first);
        for (port, bytes) in self.ports.iter_mut().zip(&said) {
            for listener in &mut port.listeners {
                keep(&mut listener.unread, bytes);
            }
            port.listeners.retain_mut(Listener::send);
        }
    }

    fn write_log(&mut self, bytes: &[u8]) {
        let Some(log) = &mut self.log else { return };
        let written = log.write_all(bytes).and_then(|()| {
            self.logged += bytes.len() as u64;
            if self.logged <= MAX_LOG {
                return Ok(());
            }
            let mut tail = vec![0; (MAX_LOG / 2) as usize];
            log.read_exact_at(&mut tail, self.logged - MAX_LOG / 2)?;
            log.set_len(0)?;
            log.write_all(&tail)?;
            self.logged = MAX_LOG / 2;
            Ok(())
        });
        if let Err(error) = written {
            warn!("the log of the console ends here: {error}");
            self.log = None;
        }
    }

    fn welcome(&mut self, number: usize) {
        let Some(port) = self.ports.get_mut(number) else {
            return;
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accepted = port
            .socket
            .as_ref()
            .map(|socket| accept_with(socket, flags));
        if let Some(Ok(stream)) = accepted
            && port.listeners.len() < MAX_LISTENERS
        {
            port.listeners.push(Listener {
                stream: stream.into(),
                unread: VecDeque::new(),
            });
        }
    }

    fn serve(&mut self, number: usize, index: usize) {
        let Some(port) = self.ports.get_mut(number) else {
            return;
        };
        let Some(listener) = port.listeners.get_mut(index) else {
            return;
        };
        let mut alive = listener.send();
        let mut bytes = [0; 1024];
        if alive && port.typed.len() < MAX_TYPED {
            match listener.stream.read(&mut bytes) {
                Ok(0) => alive = false,
                Ok(count) => port.typed.extend(bytes.get(..count).unwrap_or_default()),
                Err(error) => alive = error.kind() == std::io::ErrorKind::WouldBlock,
            }
        }
        if !alive {
            port.listeners.remove(index);
        }
    }

    /// Offers what was typed to the guest; `offer` says how many bytes it took. True if some are left.
    pub(crate) fn type_in(&mut self, mut offer: impl FnMut(usize, &[u8]) -> usize) -> bool {
        let mut left = false;
        for (number, port) in self.ports.iter_mut().enumerate() {
            if !port.typed.is_empty() {
                let taken = offer(number, port.typed.make_contiguous());
                port.typed.drain(..taken.min(port.typed.len()));
                left |= !port.typed.is_empty();
            }
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn consoles() -> (Consoles, Arc<Outbox>, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let socket = UnixListener::bind(dir.path().join("com1")).unwrap();
        socket.set_nonblocking(true).unwrap();
        let log = File::options()
            .read(true)
            .append(true)
            .create(true)
            .open(dir.path().join("log"))
            .unwrap();
        let outbox = Outbox::new().unwrap();
        let consoles = Consoles::new(
            outbox.clone(),
            [Some(socket.into()), None],
            Some(log.into()),
        );
        (consoles, outbox, dir)
    }

    #[test]
    fn what_is_said_is_logged_and_heard_and_what_is_typed_is_taken_as_the_guest_can() {
        let (mut consoles, outbox, dir) = consoles();
        outbox.say(0, b"before ");
        consoles.ready(&[Which::Outbox]);
        let mut ear = UnixStream::connect(dir.path().join("com1")).unwrap();
        consoles.ready(&[Which::Socket(0)]);
        outbox.say(0, b"after");
        outbox.say(1, b"elsewhere");
        outbox.say(7, b"nowhere");
        consoles.ready(&[Which::Outbox]);
        let mut heard = [0; 5];
        ear.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"after");
        let log = std::fs::read(dir.path().join("log")).unwrap();
        assert_eq!(log, b"before after");
        ear.write_all(b"typed").unwrap();
        consoles.ready(&[Which::Listener(0, 0)]);
        assert!(consoles.type_in(|port, bytes| {
            assert_eq!((port, bytes), (0, &b"typed"[..]));
            3
        }));
        assert!(!consoles.type_in(|_, bytes| bytes.len()));
        drop(ear);
        consoles.ready(&[Which::Listener(0, 0)]);
        let mut count = 0;
        consoles.each_fd(|_, _, _| count += 1);
        assert_eq!(count, 2);
    }

    #[test]
    fn a_guest_that_talks_much_fills_neither_log_nor_memory() {
        let (mut consoles, outbox, dir) = consoles();
        let _deaf = UnixStream::connect(dir.path().join("com1")).unwrap();
        consoles.ready(&[Which::Socket(0)]);
        for round in 0..60 {
            outbox.say(0, format!("{round:<60000}").as_bytes());
            consoles.ready(&[Which::Outbox]);
        }
        let log = std::fs::read(dir.path().join("log")).unwrap();
        assert!(
            (MAX_LOG / 2..=MAX_LOG).contains(&(log.len() as u64)),
            "{}",
            log.len()
        );
        assert_eq!(&log[log.len() - 60_000..log.len() - 59_998], b"59");
        assert!(consoles.ports[0].listeners[0].unread.len() <= BACKLOG);
    }
}
