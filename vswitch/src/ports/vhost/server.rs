//! The thread of a vhost-user port: finds a peer, talks to it, and brings the port's sides into and out of service.
//!
//! In server mode it listens on the path, and has one peer at a time; further ones are turned away. In client mode it
//! connects to the path, again and again. A peer that dies or misbehaves is dropped, and the next one is waited for.
//!
//! vhost-user has no message by which a back-end sets the link. Link down therefore ends the connection and takes the
//! socket away: front-ends show their guest a link that is down while they have no back-end.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::connection::{Connection, ConnectionError, Next, Reply};
use super::message::{Header, Message};
use super::notify;
use super::session::{MAX_QUEUE_PAIRS, Offer, Session, SessionError};
use super::socket::{Listener, SocketError, check_path, dial};
use crate::port::{PortControl, PortFault};

/// Pause before the next peer, after one that got nowhere. It doubles up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(10);
/// Longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// Who listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The port does; the front-end connects.
    Server,
    /// The front-end does; the port connects.
    Client,
}

/// A vhost-user port as the operator asked for it.
#[derive(Clone, Debug)]
pub struct Config {
    /// Path of the socket, at most [`super::socket::MAX_PATH`] bytes.
    pub path: PathBuf,
    /// Who listens.
    pub mode: Mode,
    /// What peers are offered.
    pub offer: Offer,
}

/// Why a port did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Too few or too many queues.
    #[error("{0} queue pairs; 1 to {MAX_QUEUE_PAIRS} are allowed")]
    Queues(u16),
    /// The socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The kernel refused what a thread needs.
    #[error("cannot start the thread of the port")]
    Thread(#[source] std::io::Error),
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum PeerError {
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error("{code:?} was refused")]
    Session {
        code: super::message::Code,
        source: SessionError,
    },
}

/// What is known of a port's peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// A peer is connected, and its rings are in service.
    pub running: bool,
    /// A peer is connected.
    pub connected: bool,
    /// Connections so far.
    pub connections: u64,
    /// Feature bits that were negotiated.
    pub features: u64,
    /// Rings that are started and enabled: two for each active queue pair.
    pub rings: usize,
    /// MTU that the guest was told, in IP bytes.
    pub guest_mtu: Option<u16>,
    /// The fault that keeps the rings out of service.
    pub fault: Option<PortFault>,
    /// Why the last connection, or the last attempt at one, ended.
    pub last_error: Option<String>,
}

/// What the thread shares with the handle.
struct Shared {
    /// Wakes the thread after one of the flags has changed.
    wake: OwnedFd,
    stop: AtomicBool,
    link_down: AtomicBool,
    /// As in [`Offer`], for the next connection.
    mtu: AtomicU16,
    status: Mutex<Status>,
}

impl Shared {
    fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Whether no peer may be connected.
    fn closed(&self) -> bool {
        self.stopping() || self.link_down.load(Ordering::Acquire)
    }
}

/// A running vhost-user port. Dropping it stops the thread, takes the sides out of service and removes the socket.
pub struct VhostPort {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl VhostPort {
    /// Starts the thread of a port, which brings sides into service by `control`. In server mode the socket is bound
    /// when this returns.
    pub fn start(config: Config, control: Arc<dyn PortControl>) -> Result<VhostPort, StartError> {
        let pairs = config.offer.queue_pairs;
        if pairs == 0 || pairs > MAX_QUEUE_PAIRS {
            return Err(StartError::Queues(pairs));
        }
        check_path(&config.path)?;
        let listener = match config.mode {
            Mode::Server => Some(Listener::bind(&config.path)?),
            Mode::Client => None,
        };
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let shared = Arc::new(Shared {
            wake: wake.map_err(|errno| StartError::Thread(errno.into()))?,
            stop: AtomicBool::new(false),
            link_down: AtomicBool::new(false),
            mtu: AtomicU16::new(config.offer.mtu),
            status: Mutex::default(),
        });
        let server = Server {
            config,
            control,
            shared: Arc::clone(&shared),
            listener,
        };
        let thread = std::thread::Builder::new()
            .name("vhost-user".into())
            .spawn(move || server.run())
            .map_err(StartError::Thread)?;
        Ok(VhostPort {
            shared,
            thread: Some(thread),
        })
    }

    /// What is known of the peer.
    pub fn status(&self) -> Status {
        self.shared
            .status
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Link down ends the connection, and no peer is let in until the link is up again.
    pub fn set_link(&self, up: bool) {
        self.shared.link_down.store(!up, Ordering::Release);
        notify::signal(&self.shared.wake);
    }

    /// Changes the most that the guest of the next connection may be told to have as its MTU, in IP bytes.
    pub fn set_mtu(&self, mtu: u16) {
        self.shared.mtu.store(mtu, Ordering::Relaxed);
    }

    /// Stops the port and waits for its thread, which ends at once.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for VhostPort {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        notify::signal(&self.shared.wake);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What happens while a peer is connected, besides its messages.
#[derive(Clone, Copy)]
enum Event {
    /// The handle has changed a flag.
    Wake,
    /// Another peer connects.
    Stranger,
    /// A fault took the sides out of service.
    Fault,
}

/// What the thread owns.
struct Server {
    config: Config,
    control: Arc<dyn PortControl>,
    shared: Arc<Shared>,
    listener: Option<Listener>,
}

impl Server {
    fn run(mut self) {
        let mut pause = MIN_PAUSE;
        while !self.shared.stopping() {
            if self.shared.closed() {
                self.listener = None;
                self.wait(None);
                continue;
            }
            let worked = match self.next_peer() {
                Ok(Some(stream)) => self.serve(stream),
                Ok(None) => continue,
                Err(error) => {
                    self.shared
                        .update(|status| status.last_error = Some(describe(&error)));
                    false
                }
            };
            pause = if worked {
                MIN_PAUSE
            } else {
                (pause * 2).min(MAX_PAUSE)
            };
            self.wait(Some(pause));
        }
    }

    /// Waits until the handle wakes the thread, or `timeout` is over.
    fn wait(&self, timeout: Option<Duration>) {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let _ = poll(
            &mut [PollFd::new(&self.shared.wake, PollFlags::IN)],
            timeout.as_ref(),
        );
        notify::drain(self.shared.wake.as_fd());
    }

    /// A connected peer. `None` if the thread was woken meanwhile.
    fn next_peer(&mut self) -> Result<Option<UnixStream>, SocketError> {
        if self.config.mode == Mode::Client {
            return dial(&self.config.path).map(Some);
        }
        if self.listener.is_none() {
            self.listener = Some(Listener::bind(&self.config.path)?);
        }
        let Some(Listener { socket, .. }) = &self.listener else {
            return Ok(None);
        };
        let mut fds = [
            PollFd::new(&self.shared.wake, PollFlags::IN),
            PollFd::new(socket, PollFlags::IN),
        ];
        let _ = poll(&mut fds, None);
        notify::drain(self.shared.wake.as_fd());
        // Not there any more, or not there yet: look again.
        Ok(socket.accept().ok().map(|(stream, _)| stream))
    }

    /// Talks to a peer until the connection ends. True if its rings came into service.
    fn serve(&self, stream: UnixStream) -> bool {
        self.shared.update(|status| {
            *status = Status {
                connected: true,
                connections: status.connections + 1,
                ..Status::default()
            };
        });
        let mut peer = Peer {
            session: Session::new(Offer {
                mtu: self.shared.mtu.load(Ordering::Relaxed),
                ..self.config.offer
            }),
            control: &*self.control,
            shared: &self.shared,
            attached: false,
            worked: false,
            told: None,
        };
        let path = self.config.path.display();
        tracing::info!(%path, "vhost-user peer connected");
        let error = self.converse(&mut peer, stream);
        peer.detach();
        let reason = describe(&error);
        tracing::info!(%path, reason, "vhost-user peer gone");
        self.shared.update(|status| {
            *status = Status {
                connections: status.connections,
                last_error: Some(reason),
                ..Status::default()
            };
        });
        peer.worked
    }

    fn converse(&self, peer: &mut Peer<'_>, stream: UnixStream) -> PeerError {
        let connection = match Connection::new(stream) {
            Ok(connection) => connection,
            Err(error) => return error.into(),
        };
        let listener = self.listener.as_ref().map(|listener| &listener.socket);
        let wake = (Event::Wake, self.shared.wake.as_fd());
        loop {
            let mut watched = vec![wake];
            watched.extend(listener.map(|socket| (Event::Stranger, socket.as_fd())));
            if peer.attached {
                watched.push((Event::Fault, self.control.fault_fd()));
            }
            let received = connection.receive(watched, |event| match event {
                Event::Wake => self.stay(),
                Event::Stranger => {
                    // Turned away: it is closed at once.
                    drop(listener.map(|socket| socket.accept()));
                    Next::Wait
                }
                Event::Fault => {
                    peer.detach();
                    Next::Forget
                }
            });
            let (header, message) = match received {
                Ok(received) => received,
                Err(error) => return error.into(),
            };
            let (reply, result) = peer.handle(&header, message);
            if let Some(reply) = reply
                && let Err(error) =
                    connection.reply(header.code, &reply, vec![wake], |_| self.stay())
            {
                return error.into();
            }
            if let Err(source) = result {
                return PeerError::Session {
                    code: header.code,
                    source,
                };
            }
        }
    }

    /// The thread was woken: whether it goes on with its peer.
    fn stay(&self) -> Next {
        notify::drain(self.shared.wake.as_fd());
        if self.shared.closed() {
            Next::Stop
        } else {
            Next::Wait
        }
    }
}

/// A connected peer.
struct Peer<'a> {
    session: Session,
    control: &'a dyn PortControl,
    shared: &'a Shared,
    attached: bool,
    /// The rings were in service once.
    worked: bool,
    /// The fault that was logged.
    told: Option<PortFault>,
}

impl Peer<'_> {
    /// Handles a message; gives the reply, if one is due, and how it went.
    fn handle(
        &mut self,
        header: &Header,
        message: Message,
    ) -> (Option<Reply>, Result<(), SessionError>) {
        if self.attached && self.session.disturbs(&message) {
            self.detach();
        }
        let result = self
            .session
            .handle(message)
            .and_then(|reply| self.attach().map(|()| reply));
        self.shared.update(|status| {
            status.running = self.attached;
            status.features = self.session.features();
            status.rings = self.session.ready_rings();
            status.guest_mtu = self.session.guest_mtu();
            status.fault = self.session.fault();
        });
        let acknowledge = header.need_reply && self.session.acknowledges();
        match result {
            Ok(Some(reply)) => (Some(reply), Ok(())),
            Ok(None) => (acknowledge.then(|| acknowledgement(0)), Ok(())),
            Err(error) => (acknowledge.then(|| acknowledgement(1)), Err(error)),
        }
    }

    /// Brings the rings that are ready into service.
    fn attach(&mut self) -> Result<(), SessionError> {
        if !self.attached
            && let Some(sides) = self.session.start()?
        {
            drop(self.control.attach(sides));
            if !self.worked {
                let (features, rings) = (self.session.features(), self.session.ready_rings());
                tracing::info!(features, rings, "vhost-user port in service");
            }
            (self.attached, self.worked) = (true, true);
        }
        Ok(())
    }

    /// Takes the rings out of service, and tells once if a fault ended them.
    fn detach(&mut self) {
        if let Some(sides) = self.control.detach() {
            self.session.take_back(sides);
        }
        self.attached = false;
        let fault = self.session.fault();
        if let Some(fault) = fault.filter(|fault| self.told != Some(*fault)) {
            tracing::warn!(
                what = fault.what,
                value = fault.value,
                "vhost-user port is out of service"
            );
        }
        self.told = fault;
        self.shared.update(|status| {
            status.running = false;
            status.fault = fault;
        });
    }
}

fn acknowledgement(value: u64) -> Reply {
    Reply {
        body: value.to_ne_bytes().to_vec(),
        fd: None,
    }
}

/// An error and its sources, in one line.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
