//! A synthetic adapter of a VM that runs: what the bus in its process demands is carried out on the adapter's rings.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::{Context, ensure};
use guestmem::Memory;
use vnic_synthetic::port::{Adapter, Config, EventFlag, Signal, State};
use vnic_synthetic::vmbus::{self, PageList};
use vswitch::api::AdapterName;
use vswitch::attach::demand::{Demand, FLAG_BYTES, Flag, MAX_STATE, PageRange};
use vswitch::attach::message::Command;
use vswitch::port::Sides;

/// The adapter, and how far its guest has come with it.
pub(super) struct Synthetic {
    adapter: Adapter,
    memory: Arc<Memory>,
    phase: Phase,
    /// What interrupts the guest, by channel.
    interrupts: BTreeMap<u8, Arc<OwnedFd>>,
    /// Sub-channels that its process was told to offer.
    sub_channels: u8,
    /// What its process was told to keep.
    kept: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No driver has opened it.
    Closed,
    /// It was open before, and is being opened again.
    Resuming,
    /// A driver has.
    Open,
}

impl Synthetic {
    /// The adapter of a guest with the RAM `memory`. `kick` becomes readable when the guest signals; `attention` is
    /// written to when there is [news](Self::news).
    pub(super) fn new(
        memory: Arc<Memory>,
        config: Config,
        kick: OwnedFd,
        attention: Arc<OwnedFd>,
    ) -> Synthetic {
        Synthetic {
            adapter: Adapter::new(memory.clone(), config, Arc::new(kick), attention),
            memory,
            phase: Phase::Closed,
            interrupts: BTreeMap::new(),
            sub_channels: 0,
            kept: String::new(),
        }
    }

    /// Its sides, if a driver has opened it.
    pub(super) fn sides(&self) -> Option<Sides> {
        (self.phase == Phase::Open).then(|| self.adapter.sides())
    }

    /// Whether this demand ends what a driver set up: the sides have to be detached before.
    pub(super) fn is_end(demand: &Demand) -> bool {
        matches!(demand, Demand::Close { channel: 0 })
    }

    /// Shows the driver the link.
    pub(super) fn set_link(&self, up: bool) {
        self.adapter.set_link(up);
    }

    /// Carries out a demand. `interrupt` goes with [`Demand::Open`].
    pub(super) fn meet(
        &mut self,
        demand: Demand,
        interrupt: Option<OwnedFd>,
    ) -> anyhow::Result<()> {
        match demand {
            Demand::Add { gpadl, range } => self.adapter.add(gpadl, &list(range))?,
            Demand::Remove { gpadl } => self.adapter.remove(gpadl),
            Demand::Open {
                channel,
                ring,
                downstream_page,
                flags,
                resumed,
            } => {
                let interrupt = Arc::new(interrupt.context("no interrupt of a channel")?);
                let signal = Signal {
                    flags: self.flags(&flags)?,
                    interrupt: Some(interrupt.clone()),
                };
                self.adapter
                    .open(channel.into(), &list(ring), downstream_page, signal)?;
                self.interrupts.insert(channel, interrupt);
                if channel == 0 {
                    self.phase = if resumed {
                        Phase::Resuming
                    } else {
                        Phase::Open
                    };
                }
            }
            Demand::Restore { state } => self.restore(state)?,
            Demand::Close { channel } => {
                self.adapter.close(channel.into());
                self.interrupts.remove(&channel);
                if channel == 0 {
                    self.phase = Phase::Closed;
                    self.sub_channels = 0;
                    self.kept.clear();
                }
            }
            Demand::Retarget { channel, flags } => {
                let flags = self.flags(&flags);
                let signal = match &flags {
                    Ok(flags) => Signal {
                        flags: flags.clone(),
                        interrupt: self.interrupts.get(&channel).cloned(),
                    },
                    // Where the flags were may be anything now.
                    Err(_) => Signal::default(),
                };
                self.adapter.set_signal(channel.into(), signal);
                flags?;
            }
        }
        Ok(())
    }

    fn restore(&mut self, state: String) -> anyhow::Result<()> {
        ensure!(
            self.phase == Phase::Resuming,
            "the state of an adapter that is not opened again"
        );
        if !state.is_empty() {
            let kept = serde_json::from_str(&state).context("the state of an adapter")?;
            self.adapter.restore(&kept)?;
        }
        self.phase = Phase::Open;
        self.kept = state;
        self.sub_channels = self.wanted();
        Ok(())
    }

    fn flags(&self, flags: &[Flag]) -> anyhow::Result<Vec<EventFlag>> {
        let flag = |flag: &Flag| {
            let window = self.memory.window(flag.address, FLAG_BYTES as usize);
            Ok(EventFlag {
                flags: window.with_context(|| {
                    format!("event flags at {:#x}, where there is no RAM", flag.address)
                })?,
                bit: flag.bit,
            })
        };
        flags.iter().map(flag).collect()
    }

    fn wanted(&self) -> u8 {
        self.adapter.sub_channels().try_into().unwrap_or(u8::MAX)
    }

    /// What its process has not been told yet. While its sides are `detached` what is kept is exact, so that it can be saved
    /// with the machine.
    pub(super) fn news(&mut self, adapter: AdapterName, detached: bool) -> Vec<Command> {
        let mut news = Vec::new();
        if self.phase != Phase::Open {
            return news;
        }
        let count = self.wanted();
        if count > self.sub_channels {
            self.sub_channels = count;
            news.push(Command::SubChannels { adapter, count });
        }
        let exact = detached
            .then(|| text(&self.adapter.save()))
            .filter(|state| state.len() <= MAX_STATE);
        let state = exact.unwrap_or_else(|| text(&self.adapter.negotiated()));
        if state != self.kept {
            self.kept.clone_from(&state);
            news.push(Command::Keep { adapter, state });
        }
        news
    }
}

/// A state as text; it is plain data.
fn text(state: &State) -> String {
    serde_json::to_string(state).unwrap_or_default()
}

fn list(range: PageRange) -> PageList {
    PageList {
        ranges: [vmbus::PageRange {
            offset: range.offset,
            len: range.len,
            pages: range.pages.into(),
        }]
        .into(),
    }
}
