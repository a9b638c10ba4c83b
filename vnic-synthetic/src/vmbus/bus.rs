//! The bus: its connection to the guest, the channels it offers and the memory the guest shares.

use std::collections::BTreeMap;

use super::effect::{
    Demand, Done, Effect, Interrupts, MAX_CHANNELS, Offer, OfferError, Open, Refused, Target,
};
use super::gpadl::Assembly;
use super::message::{self, FromGuest, Message, OfferFields, REFUSED, Version};
use memory::{Gpadl, GpadlState, begin_remove};

mod memory;

/// Event connections are numbered from here on by channel.
const EVENT_CONNECTIONS: u32 = 0x1_0000;
/// The connection that guests of old versions signal all channels by.
const LEGACY_EVENT_CONNECTION: u32 = 2;
/// The connection that guests of version 5.0 and later are told to send messages to.
const MESSAGE_CONNECTION: u32 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    Opening { open_id: u32 },
    Open,
    Closing,
}

struct Channel {
    offer: Offer,
    state: State,
    /// The offer was taken back, and the guest has not let go yet.
    rescinded: bool,
    /// The guest has let go, and the channel only has to be closed.
    released: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Connection {
    version: Version,
    target_vp: u32,
    interrupt_page: u64,
    /// The guest asked for offers, and is told of new ones.
    offered: bool,
}

/// What is answered once everything is closed.
#[derive(Clone, Copy)]
enum Waiting {
    Unload { vp: u32 },
    Contact(Connection),
}

/// The bus of one guest.
#[derive(Default)]
pub struct Bus {
    connection: Option<Connection>,
    waiting: Option<Waiting>,
    channels: BTreeMap<u16, Channel>,
    gpadls: BTreeMap<u32, Gpadl>,
}

/// The connection that the guest signals channel `relid` by.
fn event_connection(relid: u16) -> u32 {
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
                self.gpadl_header(relid, gpadl, assembly)?;
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
            Done::Retargeted { ok } => {
                if let Some(connection) = self.connection
                    && connection.version >= Version::V5_3
                {
                    let status = if ok { 0 } else { REFUSED };
                    let message = message::modify_response(relid.into(), status);
                    post(effects, connection.target_vp, message);
                }
            }
        }
        self.answer_if_idle(effects);
    }

    fn contact(&mut self, connection: Connection, effects: &mut Vec<Effect>) {
        if !connection.version.is_known() {
            let message = message::version_response(false, 0);
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
                let message_connection = if connection.version >= Version::V5_0 {
                    MESSAGE_CONNECTION
                } else {
                    0
                };
                let response = message::version_response(true, message_connection);
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

    fn open(
        &mut self,
        connection: Connection,
        request: FromGuest<'_>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refused> {
        let FromGuest::OpenChannel {
            relid,
            open_id,
            ring,
            target_vp,
            downstream_page,
        } = request
        else {
            return Ok(());
        };
        let gpadl = self.gpadls.get(&ring);
        let Some((id, channel)) = channel_mut(&mut self.channels, relid) else {
            return refused("OPEN_CHANNEL", relid);
        };
        let list = match gpadl {
            Some(Gpadl {
                relid,
                state: GpadlState::Ready(list),
                ..
            }) if *relid == id => list.clone(),
            _ => {
                post(
                    effects,
                    connection.target_vp,
                    message::open_result(relid, open_id, REFUSED),
                );
                return Ok(());
            }
        };
        if channel.state != State::Closed || channel.rescinded {
            post(
                effects,
                connection.target_vp,
                message::open_result(relid, open_id, REFUSED),
            );
            return Ok(());
        }
        channel.state = State::Opening { open_id };
        let interrupts = if connection.version < Version::WIN8 {
            Interrupts::Page(connection.interrupt_page)
        } else {
            Interrupts::Flag
        };
        let open = Open {
            ring: list,
            downstream_page,
            target_vp,
            interrupts,
        };
        ask(effects, id, Demand::Open(open));
        Ok(())
    }

    fn opened(&mut self, relid: u16, ok: bool, effects: &mut Vec<Effect>) {
        let Some(channel) = self.channels.get_mut(&relid) else {
            return;
        };
        let State::Opening { open_id } = channel.state else {
            return;
        };
        channel.state = if ok { State::Open } else { State::Closed };
        let status = if ok { 0 } else { REFUSED };
        self.post(effects, message::open_result(relid.into(), open_id, status));
    }

    fn close(&mut self, relid: u32, effects: &mut Vec<Effect>) -> Result<(), Refused> {
        let open = |channel: &Channel| matches!(channel.state, State::Open | State::Opening { .. });
        match channel_mut(&mut self.channels, relid) {
            Some((relid, channel)) if open(channel) => {
                self.begin_close(relid, effects);
                Ok(())
            }
            _ => refused("CLOSE_CHANNEL", relid),
        }
    }

    /// Asks for a channel that is open to be closed; its sub-channels go with it.
    fn begin_close(&mut self, relid: u16, effects: &mut Vec<Effect>) {
        let Some(channel) = self.channels.get_mut(&relid) else {
            return;
        };
        if matches!(channel.state, State::Closed | State::Closing) {
            return;
        }
        channel.state = State::Closing;
        ask(effects, relid, Demand::Close);
        let of_this = |channel: &Channel| matches!(channel.offer.sub_channel, Some((primary, _)) if primary == relid);
        let subs: Vec<u16> = self
            .channels
            .iter()
            .filter(|(_, channel)| of_this(channel))
            .map(|(relid, _)| *relid)
            .collect();
        for sub in subs {
            let _ = self.rescind(sub, effects);
        }
    }

    fn closed(&mut self, relid: u16) {
        let Some(channel) = self.channels.get_mut(&relid) else {
            return;
        };
        if channel.state == State::Closing {
            channel.state = State::Closed;
            // Without a connection there is nobody who would let go of it.
            if channel.released || (channel.rescinded && self.connection.is_none()) {
                self.channels.remove(&relid);
            }
        }
    }

    /// The guest has let go of a channel whose offer was taken back.
    fn released(&mut self, relid: u32, effects: &mut Vec<Effect>) -> Result<(), Refused> {
        match channel_mut(&mut self.channels, relid) {
            Some((relid, channel)) if channel.rescinded => {
                self.release(relid, effects);
                Ok(())
            }
            _ => refused("RELID_RELEASED", relid),
        }
    }

    /// Forgets a rescinded channel, once it is closed.
    fn release(&mut self, relid: u16, effects: &mut Vec<Effect>) {
        match self.channels.get_mut(&relid) {
            Some(channel) if channel.state != State::Closed => {
                channel.released = true;
                self.begin_close(relid, effects);
            }
            _ => {
                self.channels.remove(&relid);
            }
        }
    }

    fn modify(
        &mut self,
        connection: Connection,
        relid: u32,
        target_vp: u32,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refused> {
        match channel_mut(&mut self.channels, relid) {
            Some((relid, channel))
                if channel.state == State::Open && connection.version >= Version::WIN10_V4_1 =>
            {
                ask(effects, relid, Demand::Retarget { target_vp });
                Ok(())
            }
            _ => refused("MODIFY_CHANNEL", relid),
        }
    }

    /// Posts to the connected guest; there is nobody else to tell.
    fn post(&self, effects: &mut Vec<Effect>, message: Message) {
        if let Some(connection) = self.connection {
            post(effects, connection.target_vp, message);
        }
    }
}

/// The channel a guest names by 32 bits.
fn channel_mut(channels: &mut BTreeMap<u16, Channel>, relid: u32) -> Option<(u16, &mut Channel)> {
    let relid = u16::try_from(relid).ok()?;
    Some((relid, channels.get_mut(&relid)?))
}

fn offer_message(relid: u16, channel: &Channel) -> Message {
    let offer = &channel.offer;
    message::offer(&OfferFields {
        interface: &offer.interface,
        instance: &offer.instance,
        user_defined: &offer.user_defined,
        sub_channel: offer.sub_channel.map_or(0, |(_, index)| index),
        relid,
        connection: event_connection(relid),
    })
}

fn post(effects: &mut Vec<Effect>, vp: u32, message: Message) {
    effects.push(Effect::Post { vp, message });
}

fn ask(effects: &mut Vec<Effect>, relid: u16, demand: Demand) {
    effects.push(Effect::Ask { relid, demand });
}

fn refused<T>(what: &'static str, id: u32) -> Result<T, Refused> {
    Err(Refused::State { what, id })
}
