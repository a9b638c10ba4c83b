//! What goes back to the guest for its packets: answers, room in the rings, signals.

use std::sync::atomic::Ordering;

use vswitch::port::PortFault;

use super::{Completion, Payload, TxState};
use crate::nvsp;
use crate::port::adapter::{Shared, lock};
use crate::port::receive::RxState;
use crate::vmbus::ring::kind;

impl TxState {
    /// Writes answers, in order and as far as there is room, and gives back the room of the packets that were answered.
    /// True if a guest was told. A control message counts as answered only when what it asked for is on its way: until
    /// then it stays in the ring, for who may have to take the ring up.
    pub(super) fn flush(&mut self, shared: &Shared) -> Result<bool, PortFault> {
        let mut rx = lock(&shared.rx);
        while let Some(reply) = self.replies.first() {
            if !rx.send_control(reply)? {
                return self.publish(&mut rx);
            }
            self.replies.remove(0);
        }
        let mut written = 0;
        for completion in &self.pending {
            let Some(Some(channel)) = rx.channels.get_mut(usize::from(completion.channel)) else {
                written += 1;
                continue;
            };
            let mut answer = |bytes: &[u8]| {
                let ring = &mut channel.ring;
                ring.push(kind::COMPLETION, completion.transaction, &[], bytes)
            };
            let fits = match &completion.payload {
                Payload::Packet(ok) => answer(&nvsp::packet_complete(*ok)),
                Payload::Message(bytes) => answer(bytes),
            }?;
            if !fits {
                break;
            }
            written += 1;
        }
        self.pending.drain(..written);
        if self.table_due
            && let Some(Some(channel)) = rx.channels.first_mut()
        {
            let table = nvsp::send_table(self.open_channels());
            self.table_due = !channel.ring.push(kind::IN_BAND, 0, &[], &table)?;
        }
        self.publish(&mut rx)
    }

    fn open_channels(&self) -> u32 {
        self.channels.iter().flatten().count() as u32
    }

    fn publish(&mut self, rx: &mut RxState) -> Result<bool, PortFault> {
        let mut told = false;
        let rings = self.channels.iter_mut().zip(&mut rx.channels);
        for (index, (incoming, outgoing)) in rings.enumerate() {
            let (Some(incoming), Some(outgoing)) = (incoming, outgoing) else {
                continue;
            };
            let of_this = |completion: &&Completion| usize::from(completion.channel) == index;
            let wanted = outgoing.ring.publish()?
                | match self.pending.iter().find(of_this) {
                    None => incoming.ring.publish()?,
                    Some(unanswered) => incoming.ring.publish_to(unanswered.start)?,
                };
            told |= wanted && outgoing.signal.raise();
        }
        Ok(told)
    }

    pub(super) fn arm(&mut self, shared: &Shared) -> Result<bool, PortFault> {
        let mut waiting = shared.link_up.load(Ordering::Relaxed) != self.link_up;
        for channel in self.channels.iter_mut().flatten() {
            waiting |= channel.ring.arm()?;
        }
        if self.replies.is_empty() && self.pending.is_empty() {
            return Ok(waiting);
        }
        // The guest makes room and signals, or has just made some.
        let mut rx = lock(&shared.rx);
        for channel in rx.channels.iter_mut().flatten() {
            channel.ring.want_room(true)?;
        }
        drop(rx);
        self.flush(shared)?;
        Ok(self.replies.is_empty() && self.pending.is_empty() || (waiting && !self.is_stuck()))
    }

    pub(super) fn disarm(&mut self, shared: &Shared) -> Result<(), PortFault> {
        for channel in self.channels.iter_mut().flatten() {
            channel.ring.disarm()?;
        }
        for channel in lock(&shared.rx).channels.iter_mut().flatten() {
            channel.ring.want_room(false)?;
        }
        Ok(())
    }
}
