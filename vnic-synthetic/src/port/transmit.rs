//! The side that frames come from: packets of all channels become frames, and control messages are answered.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use arrayvec::ArrayVec;
use guestmem::Memory;
use vswitch::burst::Burst;
use vswitch::port::{PortFault, TxSide};
use vswitch::ports::vhost::notify;

use super::adapter::{Config, MAX_CHANNELS, Shared, lock};
use super::scatter::{Malformed, Scatter};
use crate::nvsp::{self, Channel, Message, Version};
use crate::rndis::control::{self, Reply};
use crate::vmbus::pages::Pages;
use crate::vmbus::ring::{Incoming, MAX_PACKET, Packet, kind};
use crate::wire::u32_at;

mod answer;
mod frames;
mod negotiate;
mod state;

use frames::Window;
pub use state::State;

/// Answers that wait to be written, at most.
const MAX_PENDING: usize = 64;
/// Packets looked at in one gathering, at most: some bear no frame and want no answer.
const MAX_LOOKS: usize = 256;
/// Data messages of one packet, at most, as the driver was told.
const MAX_MESSAGES: usize = control::MAX_PACKETS as usize;

/// The ring of a channel that the guest writes.
pub(super) struct TxChannel {
    ring: Incoming,
}

impl TxChannel {
    pub(super) fn new(ring: Incoming) -> TxChannel {
        TxChannel { ring }
    }
}

/// An answer to a packet.
struct Completion {
    channel: u8,
    /// Where the packet starts in the channel's ring.
    start: u32,
    transaction: u64,
    payload: Payload,
}

enum Payload {
    /// The data messages of a packet were dealt with.
    Packet(bool),
    Message(nvsp::Bytes),
}

struct SendBuffer {
    gpadl: u32,
    pages: Arc<Pages>,
}

/// What is needed to gather.
pub(super) struct TxState {
    pub(super) channels: [Option<TxChannel>; MAX_CHANNELS],
    /// Memory that the guest shares.
    pub(super) gpadls: BTreeMap<u32, Arc<Pages>>,
    pub(super) fault: Option<PortFault>,
    send_buffer: Option<SendBuffer>,
    version: Option<Version>,
    revision: u8,
    /// The driver knows of coalescing on receive.
    coalescing: bool,
    mtu: u16,
    adapter: control::Adapter,
    /// The link as the driver knows it.
    link_up: bool,
    scatter: Scatter,
    window: Window,
    pending: ArrayVec<Completion, MAX_PENDING>,
    /// Control messages to the driver that found no room yet.
    replies: ArrayVec<Reply, 2>,
    /// The driver is to be told to spread what it sends.
    pub(super) table_due: bool,
    /// Packets that the guest gave back and that are not yet booked.
    returned: ArrayVec<u64, MAX_PENDING>,
    /// Channel that is looked at first.
    start: usize,
    sent: u64,
    errors: u64,
}

impl TxState {
    pub(super) fn new(config: &Config) -> TxState {
        TxState {
            channels: Default::default(),
            gpadls: BTreeMap::new(),
            fault: None,
            send_buffer: None,
            version: None,
            revision: 1,
            coalescing: false,
            mtu: nvsp::DEFAULT_MTU,
            adapter: control::Adapter::new(config.mac),
            link_up: config.link_up,
            scatter: Scatter::default(),
            window: Window::default(),
            pending: ArrayVec::new(),
            replies: ArrayVec::new(),
            table_due: false,
            returned: ArrayVec::new(),
            start: 0,
            sent: 0,
            errors: 0,
        }
    }

    pub(super) fn forget_send_buffer(&mut self, gpadl: u32) {
        if self
            .send_buffer
            .as_ref()
            .is_some_and(|buffer| buffer.gpadl == gpadl)
        {
            self.send_buffer = None;
        }
    }

    /// Takes a channel away; what it was still to be answered is nobody's business any more.
    pub(super) fn close(&mut self, index: usize) {
        if let Some(channel) = self.channels.get_mut(index) {
            *channel = None;
        }
        let of_this = |channel: u8| usize::from(channel) == index;
        self.pending
            .retain(|completion| !of_this(completion.channel));
    }

    /// Whether the driver must first make room or give sections back.
    fn is_stuck(&self) -> bool {
        !self.replies.is_empty() || self.pending.len() + 2 > MAX_PENDING
    }

    fn gather(
        &mut self,
        shared: &Shared,
        buffer: &mut [u8; MAX_PACKET],
        burst: &mut Burst,
    ) -> Result<(), PortFault> {
        self.tell_link(shared);
        if self.is_stuck() {
            self.flush(shared)?;
        }
        let (mut looks, mut idle) = (0, 0);
        while !burst.is_full() && !self.is_stuck() && looks < MAX_LOOKS && idle < MAX_CHANNELS {
            let next = match self.channels.get_mut(self.start) {
                Some(Some(channel)) => channel.ring.next(buffer)?,
                _ => None,
            };
            match next {
                Some(packet) => {
                    (idle, looks) = (0, looks + 1);
                    if !self.take(shared, &packet, burst) {
                        // It is looked at again in the next turn: between turns no packet is half taken.
                        if let Some(Some(channel)) = self.channels.get_mut(self.start) {
                            channel.ring.put_back();
                        }
                        break;
                    }
                }
                None => {
                    idle += 1;
                    self.start = (self.start + 1) % MAX_CHANNELS;
                }
            }
        }
        self.book_returned(shared);
        Ok(())
    }

    /// Deals with a packet of channel `start`. False if it has more frames than the burst has room for: nothing is done.
    fn take(&mut self, shared: &Shared, packet: &Packet<'_>, burst: &mut Burst) -> bool {
        match packet.kind {
            kind::IN_BAND | kind::GPA_DIRECT => return self.take_message(shared, packet, burst),
            // Anything else than the answer to a packet that the guest holds means nothing.
            kind::COMPLETION => {
                if self.returned.is_full() {
                    self.book_returned(shared);
                }
                self.returned.push(packet.transaction);
            }
            _ => self.refuse(packet),
        }
        true
    }

    fn take_message(&mut self, shared: &Shared, packet: &Packet<'_>, burst: &mut Burst) -> bool {
        let Some(message) = Message::parse(packet.payload) else {
            self.refuse(packet);
            return true;
        };
        let Message::RndisPacket {
            channel,
            section,
            len,
        } = message
        else {
            let answer = self.negotiate(shared, message);
            self.answer(
                packet,
                answer.map_or(Payload::Packet(true), Payload::Message),
            );
            return true;
        };
        if self
            .find_bytes(&shared.memory, packet, section, len)
            .is_err()
        {
            self.errors += 1;
            self.refuse(packet);
            return true;
        }
        let ok = match channel {
            Channel::Control => self.control(shared),
            Channel::Data => {
                if burst.room() < MAX_MESSAGES && !self.is_single(&shared.memory) {
                    return false;
                }
                self.take_frames(&shared.memory, burst)
            }
        };
        self.answer(packet, Payload::Packet(ok));
        true
    }

    /// Whether the packet seems to be one message.
    fn is_single(&self, memory: &Memory) -> bool {
        let mut front = [0; 8];
        let read = self.scatter.read(memory, 0, &mut front);
        read == Ok(front.len()) && u32_at(&front, 4) == Some(self.scatter.len())
    }

    /// Finds the bytes that a packet is about: `len` bytes of a section of the send buffer, then the pages it names.
    fn find_bytes(
        &mut self,
        memory: &Memory,
        packet: &Packet<'_>,
        section: u32,
        len: u32,
    ) -> Result<(), Malformed> {
        self.scatter.clear();
        if section != nvsp::NO_SECTION {
            let buffer = self.send_buffer.as_ref().ok_or(Malformed)?;
            let at = section
                .checked_mul(nvsp::SEND_SECTION)
                .filter(|_| len <= nvsp::SEND_SECTION)
                .ok_or(Malformed)?;
            self.scatter.add_pages(&buffer.pages, at, len)?;
        }
        if packet.kind == kind::GPA_DIRECT {
            self.scatter.add_ranges(memory, packet.header)?;
        }
        Ok(())
    }

    /// Answers a packet that makes no sense.
    fn refuse(&mut self, packet: &Packet<'_>) {
        self.answer(packet, Payload::Packet(false));
    }

    fn answer(&mut self, packet: &Packet<'_>, payload: Payload) {
        if packet.wants_completion {
            let channel = self.channels.get(self.start).and_then(Option::as_ref);
            self.pending.push(Completion {
                channel: self.start as u8,
                start: channel.map_or(0, |channel| channel.ring.last()),
                transaction: packet.transaction,
                payload,
            });
        }
    }

    /// Books the packets that the guest gave back.
    fn book_returned(&mut self, shared: &Shared) {
        if self.returned.is_empty() {
            return;
        }
        let mut rx = lock(&shared.rx);
        for transaction in self.returned.drain(..) {
            rx.sections.answered(transaction);
        }
    }
}

/// The side that frames come from.
pub(super) struct SyntheticTx {
    pub(super) shared: Arc<Shared>,
    pub(super) packet: Box<[u8; MAX_PACKET]>,
    pub(super) fault: Option<PortFault>,
}

impl SyntheticTx {
    pub(super) fn new(shared: Arc<Shared>) -> SyntheticTx {
        SyntheticTx {
            shared,
            packet: Box::new([0; MAX_PACKET]),
            fault: None,
        }
    }

    /// Does `what` to the state, unless it is faulted; what it answers to a fault is `T`'s default.
    fn with<T: Default>(
        &mut self,
        what: impl FnOnce(&mut TxState, &Shared, &mut [u8; MAX_PACKET]) -> Result<T, PortFault>,
    ) -> T {
        let mut tx = lock(&self.shared.tx);
        if tx.fault.is_none() {
            match what(&mut tx, &self.shared, &mut self.packet) {
                Ok(value) => return value,
                Err(fault) => tx.fault = Some(fault),
            }
        }
        self.fault = tx.fault;
        T::default()
    }
}

impl TxSide for SyntheticTx {
    fn memory(&self) -> &Memory {
        &self.shared.memory
    }

    fn gather(&mut self, burst: &mut Burst) {
        self.with(|tx, shared, buffer| {
            tx.gather(shared, buffer, burst)?;
            // Without a frame there is no completion of the turn.
            if burst.is_empty() {
                tx.flush(shared)?;
            }
            Ok(())
        });
    }

    fn complete(&mut self) -> bool {
        self.with(|tx, shared, _| tx.flush(shared))
    }

    fn arm(&mut self) -> bool {
        self.with(|tx, shared, _| tx.arm(shared))
    }

    fn disarm(&mut self) {
        notify::drain(self.shared.kick.as_fd());
        self.with(|tx, shared, _| tx.disarm(shared));
    }

    fn wake_fds(&self, each: &mut dyn FnMut(BorrowedFd<'_>)) {
        each(self.shared.kick.as_fd());
    }

    fn fault(&self) -> Option<PortFault> {
        self.fault
    }
}
