//! The state of a bus, saved and restored.
//!
//! A saved state is checked as hostile input: what a bus could never have been in is refused, and nothing is made of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::bus::memory::{Gpadl, GpadlState, MAX_GPADLS, MAX_PAGES};
use super::bus::{Bus, Channel, Connection, State, Waiting, ask};
use super::effect::{Demand, Effect, MAX_CHANNELS, Offer};
use super::gpadl::{Assembly, PageList};

/// Version of the form of a saved bus.
const FORM: u32 = 1;

/// Why a saved state is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {value} in the saved state; allowed: {allowed}")]
pub struct StateError {
    /// Name of the value.
    pub what: &'static str,
    /// What the state says.
    pub value: String,
    /// What it may be.
    pub allowed: &'static str,
}

impl StateError {
    /// `Err` unless `ok`.
    pub(crate) fn unless(
        ok: bool,
        what: &'static str,
        value: impl ToString,
        allowed: &'static str,
    ) -> Result<(), StateError> {
        if ok {
            return Ok(());
        }
        Err(StateError {
            what,
            value: value.to_string(),
            allowed,
        })
    }
}

/// A saved bus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BusState {
    form: u32,
    connection: Option<Connection>,
    waiting: Option<Waiting>,
    channels: Vec<SavedChannel>,
    gpadls: Vec<SavedGpadl>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedChannel {
    relid: u16,
    channel: Channel,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedGpadl {
    gpadl: u32,
    relid: u16,
    state: SavedMemory,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum SavedMemory {
    Building(Assembly),
    Adding(PageList),
    Ready(PageList),
    Removing { pages: usize },
}

impl Bus {
    /// The state, to be kept while the guest stands still.
    pub fn save(&self) -> BusState {
        let channels = self.channels.iter().map(|(&relid, channel)| SavedChannel {
            relid,
            channel: channel.clone(),
        });
        let gpadls = self.gpadls.iter().map(|(&id, gpadl)| SavedGpadl {
            gpadl: id,
            relid: gpadl.relid,
            state: match &gpadl.state {
                GpadlState::Building(assembly) => SavedMemory::Building(assembly.clone()),
                GpadlState::Adding(list) => SavedMemory::Adding((**list).clone()),
                GpadlState::Ready(list) => SavedMemory::Ready((**list).clone()),
                GpadlState::Removing => SavedMemory::Removing { pages: gpadl.pages },
            },
        });
        BusState {
            form: FORM,
            connection: self.connection,
            waiting: self.waiting,
            channels: channels.collect(),
            gpadls: gpadls.collect(),
        }
    }

    /// A bus in the state that was saved; its channels have their numbers. `effects` are the demands by which services that
    /// know nothing yet come to where they were: memory first, then primary channels, then sub-channels. They are
    /// answered by [`Bus::done`] like others; the guest hears only what it has not heard before.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn restore(state: &BusState, effects: &mut Vec<Effect>) -> Result<Bus, StateError> {
        StateError::unless(state.form == FORM, "form of a bus", state.form, "1")?;
        let contact = match state.waiting {
            Some(Waiting::Contact(connection)) => Some(connection),
            _ => None,
        };
        for connection in state.connection.iter().chain(&contact) {
            let version = connection.version;
            StateError::unless(
                version.is_known(),
                "version of a bus",
                version.0,
                "one that the host speaks",
            )?;
        }
        let mut bus = Bus {
            connection: state.connection,
            waiting: state.waiting,
            channels: channels(&state.channels)?,
            gpadls: gpadls(&state.gpadls)?,
        };
        bus.check_open()?;
        bus.demand_everything(effects);
        Ok(bus)
    }

    /// The channels that are offered, by number.
    pub fn channels(&self) -> impl Iterator<Item = (u16, &Offer)> {
        self.channels
            .iter()
            .map(|(&relid, channel)| (relid, &channel.offer))
    }

    /// An open channel needs a guest that is connected, and rings.
    fn check_open(&self) -> Result<(), StateError> {
        for (&relid, channel) in &self.channels {
            if matches!(channel.state, State::Open | State::Opening { .. }) {
                let ring = self.gpadls.get(&channel.ring);
                let ready = ring.is_some_and(|ring| {
                    ring.relid == relid && matches!(ring.state, GpadlState::Ready(_))
                });
                StateError::unless(
                    ready && self.connection.is_some(),
                    "open channel of a bus",
                    relid,
                    "one with a connected guest and rings",
                )?;
            }
        }
        Ok(())
    }

    fn demand_everything(&mut self, effects: &mut Vec<Effect>) {
        for (&gpadl, memory) in &self.gpadls {
            match &memory.state {
                GpadlState::Building(_) => {}
                GpadlState::Adding(list) | GpadlState::Ready(list) => {
                    let list = list.clone();
                    ask(effects, memory.relid, Demand::Add { gpadl, list });
                }
                GpadlState::Removing => ask(effects, memory.relid, Demand::Remove { gpadl }),
            }
        }
        let (subs, primaries): (Vec<u16>, Vec<u16>) = self
            .channels
            .iter()
            .map(|(&relid, channel)| (relid, channel.offer.sub_channel.is_some()))
            .fold(
                Default::default(),
                |(mut subs, mut primaries), (relid, sub)| {
                    if sub { &mut subs } else { &mut primaries }.push(relid);
                    (subs, primaries)
                },
            );
        for relid in primaries.into_iter().chain(subs) {
            let Some(channel) = self.channels.get(&relid) else {
                continue;
            };
            match channel.state {
                State::Closed => {}
                State::Closing => ask(effects, relid, Demand::Close),
                State::Open | State::Opening { .. } => {
                    if let Some(open) = self.open_demand(channel) {
                        ask(effects, relid, Demand::Open(open));
                    }
                    if let Some(target_vp) = channel.moving {
                        ask(effects, relid, Demand::Retarget { target_vp });
                    }
                }
            }
        }
    }
}

fn channels(saved: &[SavedChannel]) -> Result<BTreeMap<u16, Channel>, StateError> {
    let mut channels = BTreeMap::new();
    for SavedChannel { relid, channel } in saved {
        let fresh = channels.insert(*relid, channel.clone()).is_none();
        StateError::unless(
            fresh && (1..=MAX_CHANNELS).contains(relid),
            "number of a channel",
            relid,
            "1 to 2047, each once",
        )?;
    }
    for channel in channels.values() {
        if let Some((primary, _)) = channel.offer.sub_channel {
            // A primary channel may go before its sub-channels have been let go of.
            let nested = channels
                .get(&primary)
                .is_some_and(|primary: &Channel| primary.offer.sub_channel.is_some());
            StateError::unless(
                !nested,
                "primary channel of a sub-channel",
                primary,
                "one that is no sub-channel",
            )?;
        }
    }
    Ok(channels)
}

fn gpadls(saved: &[SavedGpadl]) -> Result<BTreeMap<u32, Gpadl>, StateError> {
    let (mut gpadls, mut pages) = (BTreeMap::new(), 0);
    for SavedGpadl {
        gpadl,
        relid,
        state,
    } in saved
    {
        let (state, count) = match state {
            SavedMemory::Building(assembly) => {
                let complete = !assembly.is_building();
                StateError::unless(!complete, "GPADL", gpadl, "one that is not complete")?;
                (GpadlState::Building(assembly.clone()), 0)
            }
            SavedMemory::Adding(list) => (
                GpadlState::Adding(checked(*gpadl, list)?),
                list.page_count(),
            ),
            SavedMemory::Ready(list) => {
                (GpadlState::Ready(checked(*gpadl, list)?), list.page_count())
            }
            SavedMemory::Removing { pages } => (GpadlState::Removing, *pages),
        };
        pages = usize::saturating_add(pages, count);
        let memory = Gpadl {
            relid: *relid,
            pages: count,
            state,
        };
        let fresh = gpadls.insert(*gpadl, memory).is_none();
        StateError::unless(fresh, "GPADL", gpadl, "each once")?;
    }
    StateError::unless(
        gpadls.len() <= MAX_GPADLS,
        "number of GPADLs",
        gpadls.len(),
        "512 at most",
    )?;
    StateError::unless(
        pages <= MAX_PAGES,
        "pages of all GPADLs",
        pages,
        "1048576 at most",
    )?;
    Ok(gpadls)
}

fn checked(gpadl: u32, list: &PageList) -> Result<Arc<PageList>, StateError> {
    StateError::unless(
        list.is_valid(),
        "GPADL",
        gpadl,
        "ranges with all their pages",
    )?;
    Ok(Arc::new(list.clone()))
}

/// 120 bytes, as serde has arrays of 32 elements at most.
pub(super) mod user_defined {
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::{Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8; 120], to: S) -> Result<S::Ok, S::Error> {
        bytes.as_slice().serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[u8; 120], D::Error> {
        let bytes = Vec::<u8>::deserialize(from)?;
        bytes
            .try_into()
            .map_err(|bytes: Vec<u8>| D::Error::invalid_length(bytes.len(), &"120 bytes"))
    }
}
