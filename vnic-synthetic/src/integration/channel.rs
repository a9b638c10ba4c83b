//! The conversation in a service's channel: one request at a time.

use std::collections::VecDeque;

use vswitch::port::PortFault;

use super::message::{Agreed, Response, Version, kind, negotiate};
use super::pairs::{NO_MORE, Pool, Question};
use super::service::{Event, Now, Request, Status};
use super::shutdown::shutdown;
use super::time::{Urgency, time};
use super::{Kind, beat};
use crate::vmbus::ring::{self, Incoming, Outgoing};

/// Between two heartbeats, in units of 100 ns.
const BEAT: u64 = 20_000_000;
/// Between two samples of the time.
const SAMPLE: u64 = 50_000_000;
/// How long a guest may be silent before it is missed.
const PATIENCE: u64 = 100_000_000;
/// How long it may take to answer what somebody waits for.
const TIMEOUT: u64 = 300_000_000;
/// Packets looked at in one run, at most.
const MAX_PACKETS: usize = 64;
/// Items of a pool, at most.
const MAX_ITEMS: usize = 256;
/// The number of what was not sent yet.
const UNSENT: u8 = 0;
/// The status of an answer that makes no sense (`E_INVALIDARG`).
const MALFORMED: u32 = 0x8007_0057;

/// What the guest has not answered yet.
#[derive(Clone, Debug)]
enum Asked {
    Versions,
    Shutdown,
    Beat,
    Time,
    Question(Question),
    /// Items so far, and the one asked for.
    List {
        pool: Pool,
        items: Vec<(String, String)>,
    },
}

struct Outstanding {
    what: Asked,
    id: u8,
    since: u64,
}

/// An open channel.
pub(super) struct Channel {
    pub(super) incoming: Incoming,
    pub(super) outgoing: Outgoing,
    agreed: Option<Agreed>,
    pub(super) status: Status,
    /// Makes transactions of this opening differ from those of others.
    epoch: u64,
    outstanding: Option<Outstanding>,
    pub(super) waiting: VecDeque<Request>,
    /// When the next beat or sample is due.
    due: u64,
    /// When the guest was last heard of.
    heard: u64,
    alive: Option<bool>,
    number: u8,
    beats: u64,
}

/// The question that a request begins with.
pub(super) fn question(request: &Request) -> Option<Question> {
    Some(match request.clone() {
        Request::Shutdown(_) | Request::SetTime => return None,
        Request::List(pool) => Question::Item { pool, index: 0 },
        Request::Get { pool, key } => Question::Get { pool, key },
        Request::Set { pool, key, value } => Question::Set { pool, key, value },
        Request::Remove { pool, key } => Question::Remove { pool, key },
    })
}

impl Channel {
    pub(super) fn new(incoming: Incoming, outgoing: Outgoing) -> Channel {
        Channel {
            incoming,
            outgoing,
            agreed: None,
            status: Status::Negotiating,
            epoch: 0,
            outstanding: None,
            waiting: VecDeque::new(),
            due: 0,
            heard: 0,
            alive: None,
            number: 0,
            beats: 0,
        }
    }

    pub(super) fn receive(
        &mut self,
        service: Kind,
        buffer: &mut [u8],
        now: &Now,
        events: &mut Vec<Event>,
    ) -> Result<(), PortFault> {
        for _ in 0..MAX_PACKETS {
            let Some(packet) = self.incoming.next(buffer)? else {
                break;
            };
            let Some(response) = Response::parse(packet.payload) else {
                continue;
            };
            let fits = |outstanding: &mut Outstanding| {
                outstanding.id == response.id
                    && packet.transaction == self.epoch.wrapping_add(response.id.into())
                    && outstanding.what.kind() == response.kind
            };
            if let Some(outstanding) = self.outstanding.take_if(fits) {
                self.heard = now.reference_100ns;
                self.answered(service, outstanding.what, &response, events);
            }
        }
        Ok(())
    }

    fn answered(
        &mut self,
        service: Kind,
        what: Asked,
        response: &Response<'_>,
        events: &mut Vec<Event>,
    ) {
        let result = match response.status {
            0 => Ok(()),
            status => Err(status),
        };
        match what {
            Asked::Versions => {
                self.agreed = response.agreed(service.versions());
                self.status = match self.agreed {
                    Some(agreed) => Status::Ready(agreed.service),
                    None => Status::NoCommonVersion,
                };
                events.push(Event::Status);
            }
            Asked::Beat => {
                if self.alive.replace(true) != Some(true) {
                    events.push(Event::Alive);
                }
            }
            Asked::Time => {}
            Asked::Shutdown => events.push(Event::Shutdown(result)),
            Asked::Question(question) => {
                let value = result.and_then(|()| question.answer(response.body).ok_or(MALFORMED));
                events.push(Event::Value(value.map(|(_, value)| value)));
            }
            Asked::List { pool, mut items } => {
                let question = Question::Item { pool, index: 0 };
                let item = result.and_then(|()| question.answer(response.body).ok_or(MALFORMED));
                let more = item.is_ok();
                match item {
                    Ok(item) => items.push(item),
                    // The end.
                    Err(NO_MORE) => {}
                    Err(status) if items.is_empty() => {
                        events.push(Event::Value(Err(status)));
                        return;
                    }
                    Err(_) => {}
                }
                if more && items.len() < MAX_ITEMS {
                    self.outstanding = Some(Outstanding {
                        what: Asked::List { pool, items },
                        id: UNSENT,
                        since: self.heard,
                    });
                } else {
                    events.push(Event::Items { pool, items });
                }
            }
        }
    }

    pub(super) fn send(
        &mut self,
        service: Kind,
        now: &Now,
        events: &mut Vec<Event>,
    ) -> Result<(), PortFault> {
        if self.epoch == 0 {
            // Never the same again, and never 0.
            self.epoch = now.unix_ns << 8 | 1 << 63;
            self.heard = now.reference_100ns;
            return self.post(Asked::Versions, now, |id, _| {
                negotiate(id, service.versions())
            });
        }
        self.look_at_clock(now, events);
        if let Some(Outstanding {
            what: Asked::List { pool, items },
            id: UNSENT,
            ..
        }) = &self.outstanding
        {
            let (pool, items) = (*pool, items.clone());
            let item = Question::Item {
                pool,
                index: items.len() as u32,
            };
            return self.post(Asked::List { pool, items }, now, |id, agreed| {
                item.message(agreed, id)
            });
        }
        if self.outstanding.is_some() || self.agreed.is_none() {
            return Ok(());
        }
        if let Some(request) = self.waiting.front().cloned() {
            return self.begin(request, now);
        }
        if now.reference_100ns < self.due {
            return Ok(());
        }
        match service {
            Kind::Heartbeat => {
                let number = self.beats;
                self.beats = number.wrapping_add(1);
                self.due = now.reference_100ns.saturating_add(BEAT);
                self.post(Asked::Beat, now, |id, agreed| {
                    beat::beat(agreed, id, number)
                })
            }
            Kind::TimeSync => {
                // The first of an opening: the guest has just started.
                let urgency = if self.due == 0 {
                    Urgency::Set
                } else {
                    Urgency::Sample
                };
                self.tell_time(now, urgency)
            }
            Kind::Shutdown | Kind::KeyValue => Ok(()),
        }
    }

    /// What has not been answered for too long is given up; a guest that is silent is missed.
    fn look_at_clock(&mut self, now: &Now, events: &mut Vec<Event>) {
        let Some(outstanding) = &self.outstanding else {
            return;
        };
        let silent = now.reference_100ns.saturating_sub(outstanding.since);
        match outstanding.what {
            // It is answered once the guest's program runs, or never.
            Asked::Versions => {}
            Asked::Beat if silent >= PATIENCE && self.alive != Some(false) => {
                self.alive = Some(false);
                events.push(Event::Silent);
            }
            Asked::Beat | Asked::Time => {}
            _ if silent >= TIMEOUT => {
                self.outstanding = None;
                events.push(Event::Unanswered);
            }
            _ => {}
        }
    }

    fn begin(&mut self, request: Request, now: &Now) -> Result<(), PortFault> {
        match request.clone() {
            Request::Shutdown(how) => {
                self.post(Asked::Shutdown, now, |id, agreed| shutdown(agreed, id, how))?
            }
            Request::SetTime => self.tell_time(now, Urgency::Set)?,
            Request::List(pool) => {
                let items = Vec::new();
                let first = Question::Item { pool, index: 0 };
                self.post(Asked::List { pool, items }, now, |id, agreed| {
                    first.message(agreed, id)
                })?;
            }
            request => {
                if let Some(question) = question(&request) {
                    let what = Asked::Question(question.clone());
                    self.post(what, now, |id, agreed| question.message(agreed, id))?;
                }
            }
        }
        if self.outstanding.is_some() {
            self.waiting.pop_front();
        }
        Ok(())
    }

    fn tell_time(&mut self, now: &Now, urgency: Urgency) -> Result<(), PortFault> {
        self.due = now.reference_100ns.saturating_add(SAMPLE);
        self.post(Asked::Time, now, |id, agreed| {
            time(agreed, id, now, urgency)
        })
    }

    /// Sends a message, of which `what` is outstanding then; where there is no room it is tried again in a later run.
    fn post(
        &mut self,
        what: Asked,
        now: &Now,
        message: impl FnOnce(u8, Agreed) -> Vec<u8>,
    ) -> Result<(), PortFault> {
        // Number 0 is that of what was not sent.
        let id = self.number.checked_add(1).unwrap_or(1);
        let transaction = self.epoch.wrapping_add(id.into());
        let agreed = self.agreed.unwrap_or(Agreed {
            framework: Version(1, 0),
            service: Version(1, 0),
        });
        let bytes = message(id, agreed);
        let kind = ring::kind::IN_BAND;
        if self.outgoing.push(kind, transaction, &[], &bytes)? {
            self.number = id;
            let since = now.reference_100ns;
            self.outstanding = Some(Outstanding { what, id, since });
        } else if matches!(what, Asked::Versions) {
            self.epoch = 0;
        }
        Ok(())
    }
}

impl Asked {
    /// Type of the message.
    fn kind(&self) -> u16 {
        match self {
            Self::Versions => kind::NEGOTIATE,
            Self::Shutdown => kind::SHUTDOWN,
            Self::Beat => kind::HEARTBEAT,
            Self::Time => kind::TIME_SYNC,
            Self::Question(_) | Self::List { .. } => kind::KEY_VALUE,
        }
    }
}
