//! The bus: its connection to the guest, the channels it offers and the memory the guest shares.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::effect::{Demand, Done, Effect, MAX_CHANNELS, Offer, OfferError, Refused, Target};
use super::gpadl::Assembly;
use super::message::{self, FromGuest, Message, OfferFields, Version};
use memory::{Gpadl, GpadlState, begin_remove};

mod channels;
pub(super) mod memory;

/// Event connections are numbered from here on by channel.
const EVENT_CONNECTIONS: u32 = 0x1_0000;
/// The connection that guests of old versions signal all channels by.
const LEGACY_EVENT_CONNECTION: u32 = 2;
/// The connection that guests of version 5.0 and later are told to send messages to.
const MESSAGE_CONNECTION: u32 = 4;
/// The synthetic interrupt source that messages to the guest are posted to.
const MESSAGE_SINT: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum State {
    Closed,
    Opening { open_id: u32 },
    Open,
    Closing,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Channel {
    pub(super) offer: Offer,
    pub(super) state: State,
    /// The offer was taken back, and the guest has not let go yet.
    rescinded: bool,
    /// The guest has let go, and the channel only has to be closed.
    released: bool,
    /// The GPADL of its rings, once it was opened.
    pub(super) ring: u32,
    /// First page of the ring to the guest.
    downstream_page: u32,
    /// The virtual processor that is interrupted.
    target_vp: u32,
    /// The one that is to be, once the service has agreed.
    pub(super) moving: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Connection {
    pub(super) version: Version,
    target_vp: u32,
    interrupt_page: u64,
    /// The guest asked for offers, and is told of new ones.
    offered: bool,
}

impl Connection {
    /// Whether messages are to go where they do. From version 5.0 on the guest says so, in the place of the address that is
    /// no longer needed.
    fn has_our_sint(&self) -> bool {
        self.version < Version::V5_0 || self.interrupt_page as u8 == MESSAGE_SINT
    }
}

/// What is answered once everything is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Waiting {
    Unload { vp: u32 },
    Contact(Connection),
}

/// The bus of one guest.
#[derive(Default)]
pub struct Bus {
    pub(super) connection: Option<Connection>,
    pub(super) waiting: Option<Waiting>,
    pub(super) channels: BTreeMap<u16, Channel>,
    pub(super) gpadls: BTreeMap<u32, Gpadl>,
}

/// The connection that the guest signals channel `relid` by.
pub fn event_connection(relid: u16) -> u32 {
    EVENT_CONNECTIONS + u32::from(relid)
}

impl Bus {
    /// A bus without channels.
    pub fn new() -> Bus {
        Bus::default()
    }

    /// The version in use, while a guest is connected.
    pub fn version(&self) -> Option<Version> {
        self.connection.map(|connection| connection.version)
    }

    /// Offers a channel; gives its number.
    ///
    /// # Errors
    /// [`OfferError`].
    pub fn offer(&mut self, offer: Offer, effects: &mut Vec<Effect>) -> Result<u16, OfferError> {
        if let Some((primary, _)) = offer.sub_channel
            && !self.channels.contains_key(&primary)
        {
            return Err(OfferError::NoChannel(primary));
        }
        let relid = (1..=MAX_CHANNELS)
            .find(|relid| !self.channels.contains_key(relid))
            .ok_or(OfferError::Full)?;
        let channel = Channel {
            offer,
            state: State::Closed,
            rescinded: false,
            released: false,
            ring: 0,
            downstream_page: 0,
            target_vp: 0,
            moving: None,
        };
        if let Some(connection) = self.connection.filter(|connection| connection.offered) {
            post(
                effects,
                connection.target_vp,
                offer_message(relid, &channel),
            );
        }
        self.channels.insert(relid, channel);
        Ok(relid)
    }

    /// Takes an offer back. A guest that knows it is told, and the number stays taken until it has let go.
    ///
    /// # Errors
    /// [`OfferError::NoChannel`].
    pub fn rescind(&mut self, relid: u16, effects: &mut Vec<Effect>) -> Result<(), OfferError> {
        let channel = self
            .channels
            .get_mut(&relid)
            .ok_or(OfferError::NoChannel(relid))?;
        if std::mem::replace(&mut channel.rescinded, true) {
            return Ok(());
        }
        match self.connection.filter(|connection| connection.offered) {
            Some(connection) => post(effects, connection.target_vp, message::rescind(relid)),
            None => self.release(relid, effects),
        }
        Ok(())
    }

    /// Which channels a signal on a connection is for; `None` if there is no such connection.
    pub fn signal(&self, connection: u32) -> Option<Target> {
        if connection == LEGACY_EVENT_CONNECTION {
            return Some(Target::All);
        }
        let relid = u16::try_from(connection.checked_sub(EVENT_CONNECTIONS)?).ok()?;
        let channel = self.channels.get(&relid)?;
        matches!(channel.state, State::Open | State::Opening { .. })
            .then_some(Target::Channel(relid))
    }

    /// Whether messages can be posted to a connection.
    pub fn takes_messages(&self, connection: u32) -> bool {
        connection == 1 || connection == MESSAGE_CONNECTION
    }

    /// The machine was reset: everything is closed, and the guest is told nothing.
    pub fn reset(&mut self, effects: &mut Vec<Effect>) {
        self.connection = None;
        self.waiting = None;
        self.close_all(effects);
    }

    /// A message of the guest.
    ///
    /// # Errors
    /// [`Refused`]: nothing was changed.
    pub fn message(&mut self, bytes: &[u8], effects: &mut Vec<Effect>) -> Result<(), Refused> {
        let request = FromGuest::parse(bytes).map_err(Refused::Kind)?;
        if let FromGuest::InitiateContact {
            version,
            target_vp,
            interrupt_page,
        } = request
        {
            let connection = Connection {
                version,
                target_vp,
                interrupt_page,
                offered: false,
            };
            self.contact(connection, effects);
            return Ok(());
        }
        let Some(connection) = self.connection else {
            return refused("before a connection", 0);
        };
        match request {
            FromGuest::InitiateContact { .. } => Ok(()),
            FromGuest::Unload => {
                self.connection = None;
                self.waiting = Some(Waiting::Unload {
                    vp: connection.target_vp,
                });
                self.close_all(effects);
                Ok(())
            }
            FromGuest::RequestOffers => {
                self.request_offers(connection, effects);
                Ok(())
            }
            FromGuest::GpadlHeader {
                relid,
                gpadl,
                ranges_len,
                range_count,
                ranges,
            } => {
                let assembly = Assembly::new(range_count, ranges_len);
                self.gpadl_header(relid, gpadl, assembly, effects)?;
                self.gpadl_part(gpadl, ranges, effects)
            }
            FromGuest::GpadlBody { gpadl, ranges } => self.gpadl_part(gpadl, ranges, effects),
            FromGuest::GpadlTeardown { gpadl, .. } => {
                self.gpadl_teardown(connection, gpadl, effects)
            }
            FromGuest::OpenChannel { .. } => self.open(connection, request, effects),
            FromGuest::CloseChannel { relid } => self.close(relid, effects),
            FromGuest::RelidReleased { relid } => self.released(relid, effects),
            FromGuest::ModifyChannel { relid, target_vp } => {
                self.modify(connection, relid, target_vp, effects)
            }
        }
    }

    /// The service behind a channel has met a demand. Answers that fit nothing asked for are ignored.
    pub fn done(&mut self, relid: u16, done: Done, effects: &mut Vec<Effect>) {
        match done {
            Done::Added { gpadl, ok } => self.gpadl_added(relid, gpadl, ok, effects),
            Done::Removed { gpadl } => self.gpadl_removed(relid, gpadl, effects),
            Done::Opened { ok } => self.opened(relid, ok, effects),
            Done::Closed => self.closed(relid),
            Done::Retargeted { ok } => self.retargeted(relid, ok, effects),
        }
        self.answer_if_idle(effects);
    }

    fn contact(&mut self, connection: Connection, effects: &mut Vec<Effect>) {
        if !connection.version.is_known() || !connection.has_our_sint() {
            let message = message::version_response(None);
            post(effects, connection.target_vp, message);
            return;
        }
        // A guest that starts anew without a word (a crash kernel) has left everything open.
        self.connection = None;
        self.waiting = Some(Waiting::Contact(connection));
        self.close_all(effects);
    }

    /// Closes every channel, takes all memory back and forgets rescinded offers.
    fn close_all(&mut self, effects: &mut Vec<Effect>) {
        let relids: Vec<u16> = self.channels.keys().copied().collect();
        for relid in relids {
            self.begin_close(relid, effects);
        }
        self.gpadls
            .retain(|_, gpadl| !matches!(gpadl.state, GpadlState::Building(_)));
        for (&id, gpadl) in &mut self.gpadls {
            begin_remove(id, gpadl, effects);
        }
        self.channels
            .retain(|_, channel| !(channel.rescinded && channel.state == State::Closed));
        self.answer_if_idle(effects);
    }

    fn answer_if_idle(&mut self, effects: &mut Vec<Effect>) {
        let closed = |channel: &Channel| channel.state == State::Closed;
        if !self.gpadls.is_empty() || !self.channels.values().all(closed) {
            return;
        }
        match self.waiting.take() {
            Some(Waiting::Unload { vp }) => post(effects, vp, message::unload_response()),
            Some(Waiting::Contact(connection)) => {
                let accepted = match connection.version {
                    version if version >= Version::V5_0 => MESSAGE_CONNECTION,
                    Version(number) => number,
                };
                let response = message::version_response(Some(accepted));
                post(effects, connection.target_vp, response);
                self.connection = Some(connection);
            }
            None => {}
        }
    }

    fn request_offers(&mut self, mut connection: Connection, effects: &mut Vec<Effect>) {
        connection.offered = true;
        self.connection = Some(connection);
        for (&relid, channel) in &self.channels {
            if !channel.rescinded {
                post(effects, connection.target_vp, offer_message(relid, channel));
            }
        }
        post(
            effects,
            connection.target_vp,
            message::all_offers_delivered(),
        );
    }

    /// Posts to the connected guest; there is nobody else to tell.
    fn post(&self, effects: &mut Vec<Effect>, message: Message) {
        if let Some(connection) = self.connection {
            post(effects, connection.target_vp, message);
        }
    }
}

fn offer_message(relid: u16, channel: &Channel) -> Message {
    let offer = &channel.offer;
    message::offer(&OfferFields {
        interface: &offer.interface,
        instance: &offer.instance,
        user_defined: &offer.user_defined,
        pipe: offer.pipe,
        sub_channel: offer.sub_channel.map_or(0, |(_, index)| index),
        relid,
        connection: event_connection(relid),
    })
}

fn post(effects: &mut Vec<Effect>, vp: u32, message: Message) {
    effects.push(Effect::Post { vp, message });
}

pub(super) fn ask(effects: &mut Vec<Effect>, relid: u16, demand: Demand) {
    effects.push(Effect::Ask { relid, demand });
}

fn refused<T>(what: &'static str, id: u32) -> Result<T, Refused> {
    Err(Refused::State { what, id })
}
