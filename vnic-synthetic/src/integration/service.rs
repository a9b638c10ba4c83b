//! A service, and what is said to it and by it.

use std::sync::Arc;

use guestmem::Memory;
use vswitch::port::PortFault;

use super::Kind;
use super::channel::{Channel, question};
use super::message::Version;
use super::pairs::Pool;
use super::shutdown::Shutdown;
use crate::vmbus::pages::{PageError, Pages};
use crate::vmbus::ring::{self, RingError};
use crate::vmbus::{Offer, Open};

/// Longest packet of a guest that is looked into.
const MAX_PACKET: usize = 8192;
/// Requests that wait, at most.
const MAX_WAITING: usize = 16;

/// The time, as the process of the VM knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// The guest's reference time (TLFS, partition reference counter), in units of 100 ns. It stands still with the guest.
    pub reference_100ns: u64,
    /// Nanoseconds since 1970, UTC.
    pub unix_ns: u64,
}

/// How a service stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The guest has not opened the channel: it lacks the service, or has not started yet.
    Absent,
    /// The guest has been asked for its versions.
    Negotiating,
    /// Both sides agreed on this version.
    Ready(Version),
    /// The guest speaks no version that the host speaks.
    NoCommonVersion,
    /// The guest's rings lie; the service is gone until the guest opens it anew.
    Faulted(PortFault),
}

/// What a service is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Of [`Kind::Shutdown`]: the guest is to end.
    Shutdown(Shutdown),
    /// Of [`Kind::TimeSync`]: the guest is to set its clock, as after it stood still.
    SetTime,
    /// Of [`Kind::KeyValue`]: all items of a pool.
    List(Pool),
    /// Of [`Kind::KeyValue`]: one value.
    Get {
        /// Where.
        pool: Pool,
        /// Its name.
        key: String,
    },
    /// Of [`Kind::KeyValue`]: change a value.
    Set {
        /// Where.
        pool: Pool,
        /// Its name, not empty, at most [`super::MAX_KEY`] bytes in UTF-16 with its end.
        key: String,
        /// The value, at most [`super::MAX_VALUE`] bytes in UTF-16 with its end.
        value: String,
    },
    /// Of [`Kind::KeyValue`]: remove a value.
    Remove {
        /// Where.
        pool: Pool,
        /// Its name.
        key: String,
    },
}

/// Why a request is not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The guest lacks the service, or does not speak a version of it.
    #[error("the guest lacks this integration service: {0}")]
    Absent(&'static str),
    /// Another service does that.
    #[error("this integration service does something else")]
    Kind,
    /// Name or value are too long, or there is no name.
    #[error("names have 1 to 255 UTF-16 units, values 1023 at most")]
    Length,
    /// Too many wait already.
    #[error("{MAX_WAITING} requests wait for the guest already")]
    Busy,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The service is ready, or cannot be: [`Service::status`].
    Status,
    /// The guest is alive.
    Alive,
    /// It has not answered for 10 s.
    Silent,
    /// It will end as asked; or it will not, for this status.
    Shutdown(Result<(), u32>),
    /// Items of a pool: names and values.
    Items {
        /// The pool.
        pool: Pool,
        /// Its items.
        items: Vec<(String, String)>,
    },
    /// A value that was asked for, or set, or removed (then it is empty); or the guest's status why not.
    Value(Result<String, u32>),
    /// A request was not answered in 30 s.
    Unanswered,
}

/// What a run asks for, and what it found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// The guest must be told that there is something in the channel's ring.
    pub signal: bool,
    /// What happened.
    pub events: Vec<Event>,
}

/// A service, as the host has it.
pub struct Service {
    kind: Kind,
    channel: Option<Channel>,
    buffer: Box<[u8]>,
}

/// Why a channel is not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// A GPADL of several ranges.
    #[error("{0} ranges in the GPADL of an integration service, which uses one")]
    Ranges(usize),
    /// Pages that are no memory.
    #[error(transparent)]
    Page(#[from] PageError),
    /// Rings that are none.
    #[error(transparent)]
    Ring(#[from] RingError),
}

impl Service {
    /// A service whose channel is not open.
    pub fn new(kind: Kind) -> Service {
        Service {
            kind,
            channel: None,
            buffer: vec![0; MAX_PACKET].into(),
        }
    }

    /// Which it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The channel to offer.
    pub fn offer(&self) -> Offer {
        self.kind.offer()
    }

    /// The guest opens the channel; versions are agreed on anew. After it, [`Service::run`] is due.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub fn open(&mut self, memory: &Arc<Memory>, open: &Open) -> Result<(), ServiceError> {
        let range = open.ring.single();
        let range = range.ok_or(ServiceError::Ranges(open.ring.ranges.len()))?;
        let pages = Pages::new(memory, range)?;
        let (incoming, outgoing) = ring::open(pages, range, open.downstream_page)?;
        self.channel = Some(Channel::new(incoming, outgoing));
        Ok(())
    }

    /// The guest closes the channel: once this returns, nobody uses its rings.
    pub fn close(&mut self) {
        self.channel = None;
    }

    /// How it stands.
    pub fn status(&self) -> Status {
        self.channel
            .as_ref()
            .map_or(Status::Absent, |channel| channel.status)
    }

    /// Asks the guest for something; what comes of it is an [`Event`].
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn ask(&mut self, request: Request) -> Result<(), RequestError> {
        let what = match request {
            Request::Shutdown(_) => Kind::Shutdown,
            Request::SetTime => Kind::TimeSync,
            _ => Kind::KeyValue,
        };
        if what != self.kind {
            return Err(RequestError::Kind);
        }
        if question(&request).is_some_and(|question| !question.fits()) {
            return Err(RequestError::Length);
        }
        let absent = match self.status() {
            Status::Absent => Some("it has not opened the channel"),
            Status::NoCommonVersion => Some("it speaks no version of it that the host speaks"),
            Status::Faulted(_) => Some("its rings are invalid"),
            Status::Negotiating | Status::Ready(_) => None,
        };
        let (None, Some(channel)) = (absent, &mut self.channel) else {
            return Err(RequestError::Absent(absent.unwrap_or_default()));
        };
        if channel.waiting.len() >= MAX_WAITING {
            return Err(RequestError::Busy);
        }
        channel.waiting.push_back(request);
        Ok(())
    }

    /// Reads what the guest sent and sends what is due. To be called when the guest signals the channel, when it was opened,
    /// after [`Service::ask`], and once a second.
    pub fn run(&mut self, now: &Now) -> Turn {
        let mut turn = Turn::default();
        let Some(channel) = &mut self.channel else {
            return turn;
        };
        if matches!(channel.status, Status::Faulted(_)) {
            return turn;
        }
        let ran = channel
            .receive(self.kind, &mut self.buffer, now, &mut turn.events)
            .and_then(|()| channel.send(self.kind, now, &mut turn.events))
            .and_then(|()| Ok(channel.outgoing.publish()? | channel.incoming.publish()?));
        match ran {
            Ok(signal) => turn.signal = signal,
            Err(fault) => {
                channel.status = Status::Faulted(fault);
                turn.events.push(Event::Status);
            }
        }
        turn
    }
}
