//! The state of an adapter, saved and restored.
//!
//! Where the rings stand is in the guest's memory. A saved state is checked as hostile input before anything of it is used.

use std::sync::atomic::Ordering;

use arrayvec::ArrayVec;
use serde::{Deserialize, Serialize};
use vswitch::mac::Mac;

use super::{Completion, MAX_PENDING, Payload, SendBuffer, TxState};
use crate::nvsp::{self, Version};
use crate::port::adapter::{Shared, lock};
use crate::port::receive::Buffer;
use crate::port::sections::{MAX_SECTIONS, Sections};
use crate::rndis::control::{self, MAX_REPLY, Reply};
use crate::rndis::filter::{Filter, MAX_MULTICAST, bit};
use crate::rndis::offload::Receive;
use crate::rndis::rss::{MAX_TABLE, Scaling};
use crate::vmbus::StateError;

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
    mtu: u16,
    receive_buffer: Option<ReceiveBuffer>,
    /// GPADL of the send buffer.
    send_buffer: Option<u32>,
    /// Packets that the guest holds, by their sections.
    held: Vec<Vec<u16>>,
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
    pub(in crate::port) fn save(&self, shared: &Shared) -> State {
        let rx = lock(&shared.rx);
        State {
            form: FORM,
            version: self.version.map(|version| version.0),
            revision: self.revision,
            mtu: self.mtu,
            receive_buffer: rx.buffer.as_ref().map(|buffer| ReceiveBuffer {
                gpadl: buffer.gpadl,
                id: buffer.id,
                section: buffer.section,
            }),
            send_buffer: self.send_buffer.as_ref().map(|buffer| buffer.gpadl),
            held: rx.sections.held(),
            driver: Driver::save(&self.adapter),
            link_up: self.link_up,
            sub_channels: shared.sub_channels.load(Ordering::Relaxed),
            table_due: self.table_due,
            completions: self.pending.iter().map(saved_completion).collect(),
            replies: self.replies.iter().map(|reply| reply.to_vec()).collect(),
            counters: [self.sent, self.errors, rx.received, rx.no_buffer],
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
        let (buffer, sections) = self.restore_sections(state)?;
        let (pending, replies) = state.on_their_way()?;

        let mut rx = lock(&shared.rx);
        rx.filter.clone_from(&adapter.filter);
        rx.scaling.clone_from(&adapter.scaling);
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

    fn shared_memory(
        &self,
        gpadl: u32,
    ) -> Result<std::sync::Arc<crate::vmbus::pages::Pages>, StateError> {
        self.gpadls.get(&gpadl).cloned().ok_or_else(|| StateError {
            what: "GPADL of a buffer",
            value: gpadl.to_string(),
            allowed: "one that the guest shares",
        })
    }

    fn restore_sections(&self, state: &State) -> Result<(Option<Buffer>, Sections), StateError> {
        let mut sections = Sections::new();
        let Some(saved) = &state.receive_buffer else {
            let held = state.held.len();
            StateError::unless(held == 0, "packets of no receive buffer", held, "none")?;
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
        let empty = state.held.iter().any(Vec::is_empty);
        StateError::unless(!empty, "packet of the guest", "empty", "sections of it")?;
        sections
            .restore(count.min(MAX_SECTIONS), &state.held)
            .map_err(|section| StateError {
                what: "receive section of the guest",
                value: section.to_string(),
                allowed: "one of the buffer, once",
            })?;
        let buffer = Buffer {
            gpadl: saved.gpadl,
            id: saved.id,
            pages,
            section,
        };
        Ok((Some(buffer), sections))
    }
}

/// Answers and control messages that are still to be written.
type OnTheirWay = (ArrayVec<Completion, MAX_PENDING>, ArrayVec<Reply, 2>);

impl State {
    fn version(&self) -> Result<Option<Version>, StateError> {
        let version = self.version.map(Version);
        let known =
            version.is_none_or(|version| Version::negotiate(version.0, version.0) == Some(version));
        let value = self.version.unwrap_or(0);
        StateError::unless(known, "version of NVSP", value, "one that the host speaks")?;
        Ok(version)
    }

    fn on_their_way(&self) -> Result<OnTheirWay, StateError> {
        let (count, replies) = (self.completions.len(), self.replies.len());
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
        let longest = self.replies.iter().map(Vec::len).max().unwrap_or(0);
        StateError::unless(
            longest <= MAX_REPLY,
            "length of a control message",
            longest,
            "408",
        )?;
        let completions = self
            .completions
            .iter()
            .map(|(channel, transaction, payload)| {
                Some(Completion {
                    channel: *channel,
                    transaction: *transaction,
                    payload: restored_payload(payload)?,
                })
            });
        let completions = completions
            .collect::<Option<_>>()
            .ok_or_else(|| StateError {
                what: "answer to a packet",
                value: "of another length".to_owned(),
                allowed: "one status or a message of NVSP",
            })?;
        let replies = self.replies.iter();
        Ok((
            completions,
            replies
                .map(|reply| reply.iter().copied().collect())
                .collect(),
        ))
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
