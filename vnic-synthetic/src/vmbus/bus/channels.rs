//! Channels: opened, closed, let go of, moved.

use std::collections::BTreeMap;

use super::memory::{Gpadl, GpadlState};
use super::{Bus, Channel, Connection, State, ask, post, refused};
use crate::vmbus::effect::{Demand, Effect, Interrupts, Open, Refused};
use crate::vmbus::message::{self, FromGuest, REFUSED, Version};

impl Bus {
    pub(super) fn open(
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
        // Drivers wait for the result, whatever it is.
        let failed = message::open_result(relid, open_id, REFUSED);
        let Some((id, channel)) = channel_mut(&mut self.channels, relid)
            .filter(|(_, channel)| channel.state == State::Closed && !channel.rescinded)
        else {
            post(effects, connection.target_vp, failed);
            return refused("OPEN_CHANNEL", relid);
        };
        match gpadl {
            Some(Gpadl {
                relid,
                state: GpadlState::Ready(_),
                ..
            }) if *relid == id => {}
            _ => {
                post(effects, connection.target_vp, failed);
                return refused("OPEN_CHANNEL", relid);
            }
        }
        channel.state = State::Opening { open_id };
        (channel.ring, channel.downstream_page) = (ring, downstream_page);
        (channel.target_vp, channel.moving) = (target_vp, None);
        if let Some(open) = self
            .channels
            .get(&id)
            .and_then(|channel| self.open_demand(channel))
        {
            ask(effects, id, Demand::Open(open));
        }
        Ok(())
    }

    /// How `channel`, whose rings are there, is to be opened.
    pub(in crate::vmbus) fn open_demand(&self, channel: &Channel) -> Option<Open> {
        let GpadlState::Ready(list) = &self.gpadls.get(&channel.ring)?.state else {
            return None;
        };
        let connection = self.connection?;
        let interrupts = if connection.version < Version::WIN8 {
            Interrupts::Page(connection.interrupt_page)
        } else {
            Interrupts::Flag
        };
        Some(Open {
            ring: list.clone(),
            downstream_page: channel.downstream_page,
            target_vp: channel.target_vp,
            interrupts,
        })
    }

    pub(super) fn opened(&mut self, relid: u16, ok: bool, effects: &mut Vec<Effect>) {
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

    pub(super) fn close(&mut self, relid: u32, effects: &mut Vec<Effect>) -> Result<(), Refused> {
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
    pub(super) fn begin_close(&mut self, relid: u16, effects: &mut Vec<Effect>) {
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

    /// Closes the channels whose rings lie in a GPADL that the guest takes back.
    pub(super) fn close_rings(&mut self, gpadl: u32, effects: &mut Vec<Effect>) {
        let lost = |channel: &Channel| channel.ring == gpadl && channel.state != State::Closed;
        let relids: Vec<u16> = self
            .channels
            .iter()
            .filter(|(_, channel)| lost(channel))
            .map(|(relid, _)| *relid)
            .collect();
        for relid in relids {
            self.begin_close(relid, effects);
        }
    }

    pub(super) fn closed(&mut self, relid: u16) {
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
    pub(super) fn released(
        &mut self,
        relid: u32,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refused> {
        match channel_mut(&mut self.channels, relid) {
            Some((relid, channel)) if channel.rescinded => {
                self.release(relid, effects);
                Ok(())
            }
            _ => refused("RELID_RELEASED", relid),
        }
    }

    /// Forgets a rescinded channel, once it is closed.
    pub(super) fn release(&mut self, relid: u16, effects: &mut Vec<Effect>) {
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

    pub(super) fn modify(
        &mut self,
        connection: Connection,
        relid: u32,
        target_vp: u32,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refused> {
        match channel_mut(&mut self.channels, relid) {
            Some((relid, channel))
                if channel.state == State::Open
                    && channel.moving.is_none()
                    && connection.version >= Version::WIN10_V4_1 =>
            {
                channel.moving = Some(target_vp);
                ask(effects, relid, Demand::Retarget { target_vp });
                Ok(())
            }
            _ => {
                if connection.version >= Version::V5_3 {
                    let failed = message::modify_response(relid, REFUSED);
                    post(effects, connection.target_vp, failed);
                }
                refused("MODIFY_CHANNEL", relid)
            }
        }
    }

    pub(super) fn retargeted(&mut self, relid: u16, ok: bool, effects: &mut Vec<Effect>) {
        let Some(channel) = self.channels.get_mut(&relid) else {
            return;
        };
        let Some(target_vp) = channel.moving.take() else {
            return;
        };
        if ok {
            channel.target_vp = target_vp;
        }
        if let Some(connection) = self.connection
            && connection.version >= Version::V5_3
        {
            let status = if ok { 0 } else { REFUSED };
            let message = message::modify_response(relid.into(), status);
            post(effects, connection.target_vp, message);
        }
    }
}

/// The channel a guest names by 32 bits.
fn channel_mut(channels: &mut BTreeMap<u16, Channel>, relid: u32) -> Option<(u16, &mut Channel)> {
    let relid = u16::try_from(relid).ok()?;
    Some((relid, channels.get_mut(&relid)?))
}
