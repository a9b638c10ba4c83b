//! The state of an adapter, saved and restored.
//!
//! Where the rings stand is in the guest's memory. A saved state is checked as hostile input before anything of it is used.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrayvec::ArrayVec;
use serde::{Deserialize, Serialize};
use vswitch::mac::Mac;

use super::{Completion, MAX_PENDING, Payload, SendBuffer, TxState};
use crate::nvsp::{self, Version};
use crate::port::adapter::{Shared, lock};
use crate::port::receive::{Buffer, RANGES_AT, RxChannel};
use crate::port::sections::{Held, MAX_SECTIONS, Sections};
use crate::rndis::control::{self, MAX_REPLY, Reply};
use crate::rndis::filter::{Filter, MAX_MULTICAST, bit};
use crate::rndis::offload::Receive;
use crate::rndis::rss::{MAX_TABLE, Scaling};
use crate::vmbus::StateError;
use crate::vmbus::pages::Pages;
use crate::vmbus::ring::{MAX_PACKET, kind};
use crate::wire::u32_at;

/// Version of the form of a saved adapter.
const FORM: u32 = 1;

/// A saved adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    form: u32,
    /// Version of NVSP.
    version: Option<u32>,
    /// Revision of NDIS structures.
    revision: u8,
    /// The driver knows of coalescing on receive.
    coalescing: bool,
    mtu: u16,
    receive_buffer: Option<ReceiveBuffer>,
    /// GPADL of the send buffer.
    send_buffer: Option<u32>,
    /// Epoch of packets to the guest.
    epoch: u16,
    /// Packets that the guest holds, by their epochs and sections; `None`: it has to be found out.
    held: Option<Vec<Held>>,
    driver: Driver,
    /// The link as the driver knows it.
    link_up: bool,
    sub_channels: u32,
    table_due: bool,
    /// Answers that found no room: channel, transaction and payload.
    completions: Vec<(u8, u64, Vec<u8>)>,
    /// Control messages that found no room.
    replies: Vec<Vec<u8>>,
    /// Frames sent, send errors, frames received, frames without a buffer.
    counters: [u64; 4],
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReceiveBuffer {
    gpadl: u32,
    id: u16,
    section: u32,
}

/// What the driver set by RNDIS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Driver {
    filter: u32,
    mac: [u8; 6],
    multicast: Vec<[u8; 6]>,
    receive: Receive,
    scaling: Option<SavedScaling>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedScaling {
    table: Vec<u8>,
    key: Vec<u8>,
    hash: u32,
}

impl Driver {
    fn save(adapter: &control::Adapter) -> Driver {
        let filter = &adapter.filter;
        Driver {
            filter: filter.bits,
            mac: filter.mac.0,
            multicast: filter.multicast.iter().map(|mac| mac.0).collect(),
            receive: adapter.receive,
            scaling: adapter.scaling.as_ref().map(|scaling| SavedScaling {
                table: scaling.table.to_vec(),
                key: scaling.key.to_vec(),
                hash: scaling.hash,
            }),
        }
    }

    fn restore(&self, channels: u32) -> Result<control::Adapter, StateError> {
        let fits = self.multicast.len() <= MAX_MULTICAST;
        StateError::unless(fits, "multicast list", self.multicast.len(), "64 at most")?;
        StateError::unless(
            self.filter & !bit::ALL == 0,
            "packet filter",
            self.filter,
            "bits that are offered",
        )?;
        let scaling = match &self.scaling {
            None => None,
            Some(saved) => Some(saved.restore(channels)?),
        };
        Ok(control::Adapter {
            filter: Filter {
                bits: self.filter,
                mac: Mac(self.mac),
                multicast: self.multicast.iter().copied().map(Mac).collect(),
            },
            receive: self.receive,
            scaling,
        })
    }
}

impl SavedScaling {
    fn restore(&self, channels: u32) -> Result<Scaling, StateError> {
        let known = |channel: &u8| u32::from(*channel) < channels;
        let size = self.table.len();
        StateError::unless(
            size <= MAX_TABLE && size.is_power_of_two() && self.table.iter().all(known),
            "table of receive-side scaling",
            size,
            "1 to 128 channels that are there, a power of 2",
        )?;
        let key = self.key.as_slice().try_into().map_err(|_| StateError {
            what: "key of receive-side scaling",
            value: self.key.len().to_string(),
            allowed: "40 bytes",
        })?;
        Ok(Scaling {
            table: self.table.iter().copied().collect(),
            key,
            hash: self.hash,
        })
    }
}

impl TxState {
    pub(in crate::port) fn save(&mut self, shared: &Shared) -> State {
        // Packets whose answers are in the state must not be taken again. A ring that lies is found to lie again.
        for channel in self.channels.iter_mut().flatten() {
            let _ = channel.ring.publish();
        }
        for completion in &mut self.pending {
            if let Some(Some(channel)) = self.channels.get(usize::from(completion.channel)) {
                completion.start = channel.ring.position();
            }
        }
        let negotiated = self.negotiated(shared);
        let rx = lock(&shared.rx);
        State {
            held: Some(rx.sections.held()),
            completions: self.pending.iter().map(saved_completion).collect(),
            replies: self.replies.iter().map(|reply| reply.to_vec()).collect(),
            counters: [self.sent, self.errors, rx.received, rx.no_buffer],
            ..negotiated
        }
    }

    pub(in crate::port) fn negotiated(&self, shared: &Shared) -> State {
        let rx = lock(&shared.rx);
        State {
            form: FORM,
            version: self.version.map(|version| version.0),
            revision: self.revision,
            coalescing: self.coalescing,
            mtu: self.mtu,
            receive_buffer: rx.buffer.as_ref().map(|buffer| ReceiveBuffer {
                gpadl: buffer.gpadl,
                id: buffer.id,
                section: buffer.section,
            }),
            send_buffer: self.send_buffer.as_ref().map(|buffer| buffer.gpadl),
            epoch: rx.sections.epoch(),
            held: None,
            driver: Driver::save(&self.adapter),
            link_up: self.link_up,
            sub_channels: shared.sub_channels.load(Ordering::Relaxed),
            table_due: self.table_due,
            completions: Vec::new(),
            replies: Vec::new(),
            counters: [0; 4],
        }
    }

    pub(in crate::port) fn restore(
        &mut self,
        shared: &Shared,
        state: &State,
    ) -> Result<(), StateError> {
        StateError::unless(state.form == FORM, "form of an adapter", state.form, "1")?;
        let version = state.version()?;
        let mtu = nvsp::MIN_MTU..=nvsp::MAX_MTU;
        StateError::unless(mtu.contains(&state.mtu), "MTU", state.mtu, "68 to 9000")?;
        let revision = state.revision;
        StateError::unless(
            (1..=3).contains(&revision),
            "NDIS revision",
            revision,
            "1 to 3",
        )?;
        let granted = state.sub_channels < shared.config.channels;
        StateError::unless(
            granted,
            "number of sub-channels",
            state.sub_channels,
            "fewer than the adapter has channels",
        )?;
        let adapter = state.driver.restore(shared.config.channels)?;
        let send_buffer = match state.send_buffer {
            None => None,
            Some(gpadl) => Some(SendBuffer {
                gpadl,
                pages: self.shared_memory(gpadl)?,
            }),
        };
        let (pending, replies) = self.on_their_way(state)?;

        let mut rx = lock(&shared.rx);
        let (buffer, sections) = self.restore_sections(state, &rx.channels)?;
        rx.filter.clone_from(&adapter.filter);
        rx.scaling.clone_from(&adapter.scaling);
        rx.receive = adapter.receive;
        self.coalescing = state.coalescing;
        (rx.buffer, rx.sections) = (buffer, sections);
        [self.sent, self.errors, rx.received, rx.no_buffer] = state.counters;
        (self.version, self.revision, self.mtu) = (version, revision, state.mtu);
        (self.send_buffer, self.adapter) = (send_buffer, adapter);
        (self.link_up, self.table_due) = (state.link_up, state.table_due);
        (self.pending, self.replies) = (pending, replies);
        shared
            .sub_channels
            .store(state.sub_channels, Ordering::Relaxed);
        Ok(())
    }

    fn shared_memory(&self, gpadl: u32) -> Result<Arc<Pages>, StateError> {
        self.gpadls.get(&gpadl).cloned().ok_or_else(|| StateError {
            what: "GPADL of a buffer",
            value: gpadl.to_string(),
            allowed: "one that the guest shares",
        })
    }

    fn restore_sections(
        &self,
        state: &State,
        channels: &[Option<RxChannel>],
    ) -> Result<(Option<Buffer>, Sections), StateError> {
        let mut sections = Sections::new();
        let held = state.held.as_deref();
        let Some(saved) = &state.receive_buffer else {
            let held = held.map_or(0, <[Held]>::len);
            StateError::unless(held == 0, "packets of no receive buffer", held, "none")?;
            sections.restart(0, state.epoch);
            return Ok((None, sections));
        };
        let pages = self.shared_memory(saved.gpadl)?;
        let section = saved.section;
        let count = match pages.len().checked_div(section) {
            Some(count) if section >= nvsp::receive_section(nvsp::MIN_MTU) => count,
            _ => 0,
        };
        StateError::unless(
            count > 0,
            "size of a receive section",
            section,
            "what the buffer holds",
        )?;
        let count = count.min(MAX_SECTIONS);
        match held {
            Some(held) => {
                sections.restart(count, state.epoch);
                hold(&mut sections, held)?;
            }
            None => {
                sections.restart(count, state.epoch.wrapping_add(1));
                for channel in channels.iter().flatten() {
                    hold_unread(&mut sections, channel, section);
                }
            }
        }
        let buffer = Buffer {
            gpadl: saved.gpadl,
            id: saved.id,
            pages,
            section,
        };
        Ok((Some(buffer), sections))
    }
}

fn hold(sections: &mut Sections, held: &[Held]) -> Result<(), StateError> {
    for packet in held {
        let empty = packet.1.is_empty();
        StateError::unless(!empty, "packet of the guest", "empty", "sections of it")?;
        sections.hold(packet).map_err(|section| StateError {
            what: "receive section of the guest",
            value: section.to_string(),
            allowed: "one of the buffer, once",
        })?;
    }
    Ok(())
}

/// Holds the sections of packets that the guest has not read yet: the others it has copied, and its answers to them come too
/// late to mean anything. A guest that rewrites its own ring only loses its own frames.
fn hold_unread(sections: &mut Sections, channel: &RxChannel, section: u32) {
    let mut buffer = [0; MAX_PACKET];
    let Ok(mut unread) = channel.ring.unread() else {
        return;
    };
    while let Ok(Some(packet)) = unread.next(&mut buffer) {
        if packet.kind != kind::TRANSFER_PAGES {
            continue;
        }
        let ranges = packet
            .header
            .get(RANGES_AT..)
            .unwrap_or(&[])
            .chunks_exact(8);
        let numbers =
            ranges.map(|range| u16::try_from(u32_at(range, 4)?.checked_div(section)?).ok());
        let (first, epoch) = (packet.transaction as u16, (packet.transaction >> 16) as u16);
        if let Some(chain) = numbers.collect::<Option<Vec<u16>>>()
            && chain.first() == Some(&first)
        {
            let _ = sections.hold(&(epoch, chain));
        }
    }
}

/// Answers and control messages that are still to be written.
type OnTheirWay = (ArrayVec<Completion, MAX_PENDING>, ArrayVec<Reply, 2>);

impl TxState {
    fn on_their_way(&self, state: &State) -> Result<OnTheirWay, StateError> {
        let (count, replies) = (state.completions.len(), state.replies.len());
        StateError::unless(
            count <= MAX_PENDING,
            "number of answers",
            count,
            "64 at most",
        )?;
        StateError::unless(
            replies <= 2,
            "number of control messages",
            replies,
            "2 at most",
        )?;
        let longest = state.replies.iter().map(Vec::len).max().unwrap_or(0);
        StateError::unless(
            longest <= MAX_REPLY,
            "length of a control message",
            longest,
            "408 at most",
        )?;
        let completions = state
            .completions
            .iter()
            .map(|saved| self.restored_completion(saved));
        let completions = completions
            .collect::<Option<_>>()
            .ok_or_else(|| StateError {
                what: "answer to a packet",
                value: "malformed".to_owned(),
                allowed: "a status or a message of NVSP, for an open channel",
            })?;
        let replies = state.replies.iter();
        Ok((
            completions,
            replies
                .map(|reply| reply.iter().copied().collect())
                .collect(),
        ))
    }

    fn restored_completion(&self, saved: &(u8, u64, Vec<u8>)) -> Option<Completion> {
        let (channel, transaction, payload) = saved;
        let ring = &self.channels.get(usize::from(*channel))?.as_ref()?.ring;
        Some(Completion {
            channel: *channel,
            // Its packet has left the ring.
            start: ring.position(),
            transaction: *transaction,
            payload: restored_payload(payload)?,
        })
    }
}

impl State {
    fn version(&self) -> Result<Option<Version>, StateError> {
        let version = self.version.map(Version);
        let known =
            version.is_none_or(|version| Version::negotiate(version.0, version.0) == Some(version));
        let value = self.version.unwrap_or(0);
        StateError::unless(known, "version of NVSP", value, "one that the host speaks")?;
        Ok(version)
    }
}

/// A packet's answer is one byte, 1 if it was dealt with; others are messages of NVSP.
fn saved_completion(completion: &Completion) -> (u8, u64, Vec<u8>) {
    let payload = match &completion.payload {
        Payload::Packet(ok) => vec![u8::from(*ok)],
        Payload::Message(bytes) => bytes.to_vec(),
    };
    (completion.channel, completion.transaction, payload)
}

fn restored_payload(bytes: &[u8]) -> Option<Payload> {
    match bytes {
        [ok @ 0..=1] => Some(Payload::Packet(*ok == 1)),
        _ => bytes.try_into().ok().map(Payload::Message),
    }
}
