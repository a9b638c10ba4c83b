//! The adapters on the bus, and their channels.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::{Context, ensure};
use hypervisor::device::Effects;
use hypervisor::irq;
use vnic_synthetic::vmbus::{Interrupts, Offer, PageList};
use vswitch::api::AdapterName;
use vswitch::attach::demand::MAX_CHANNELS;

use super::Vmbus;

/// A synthetic adapter.
pub(super) struct Adapter {
    pub(super) name: AdapterName,
    pub(super) instance: [u8; 16],
    /// Wakes the worker that serves it.
    pub(super) kick: Arc<OwnedFd>,
    /// Those that are offered, or that the guest has not let go of yet.
    pub(super) channels: Vec<Channel>,
    /// Memory that the guest shares with it.
    pub(super) gpadls: BTreeMap<u32, Arc<PageList>>,
    /// What vswitchd wants to be kept.
    pub(super) kept: String,
    /// It is unplugged, and gone once the guest has let go of it.
    pub(super) leaving: bool,
}

/// A channel that is offered.
pub(super) struct Channel {
    pub(super) relid: u16,
    /// 0 for the primary channel, else that of the sub-channel.
    pub(super) index: u8,
    /// Raises its interrupt.
    pub(super) interrupt: Arc<OwnedFd>,
    pub(super) opened: Option<Opened>,
}

/// How a channel was opened.
pub(super) struct Opened {
    pub(super) ring: Arc<PageList>,
    pub(super) downstream_page: u32,
    pub(super) target_vp: u32,
    pub(super) interrupts: Interrupts,
}

impl Adapter {
    pub(super) fn primary(&self) -> Option<&Channel> {
        self.channels.iter().find(|channel| channel.index == 0)
    }

    fn is_open(&self) -> bool {
        self.primary()
            .is_some_and(|channel| channel.opened.is_some())
    }
}

impl Vmbus {
    /// Offers an adapter to the guest. Gives the event by which its guest wakes the worker.
    ///
    /// # Errors
    /// There is one of this name, or the bus is full.
    pub(crate) fn add_adapter(
        &mut self,
        name: AdapterName,
        instance: [u8; 16],
        effects: &mut Effects,
    ) -> anyhow::Result<Arc<OwnedFd>> {
        let known = self.adapters.iter().find(|adapter| adapter.name == name);
        ensure!(known.is_none(), "the guest still has an adapter {name}");
        let kick = Arc::new(irq::eventfd()?);
        self.adapters.push(Adapter {
            name,
            instance,
            kick: kick.clone(),
            channels: Vec::new(),
            gpadls: BTreeMap::new(),
            kept: String::new(),
            leaving: false,
        });
        let offered = self.offer(name, Offer::network(instance), 0, effects);
        if offered.is_err() {
            self.adapters.pop();
        }
        offered.map(|()| kick)
    }

    /// Takes an adapter back; the guest lets go of it when it likes.
    ///
    /// # Errors
    /// There is none of this name.
    pub(crate) fn remove_adapter(
        &mut self,
        name: AdapterName,
        effects: &mut Effects,
    ) -> anyhow::Result<()> {
        let adapter = self.adapter(name)?;
        adapter.leaving = true;
        let relids: Vec<_> = adapter
            .channels
            .iter()
            .map(|channel| channel.relid)
            .collect();
        let mut wanted = Vec::new();
        for relid in relids {
            // One that is gone already is what is wanted.
            let _ = self.bus.rescind(relid, &mut wanted);
        }
        self.carry_out(wanted, effects);
        Ok(())
    }

    /// Offers sub-channels until there are `count`.
    ///
    /// # Errors
    /// There is no such adapter, or the bus is full.
    pub(crate) fn offer_sub_channels(
        &mut self,
        name: AdapterName,
        count: u8,
        effects: &mut Effects,
    ) -> anyhow::Result<()> {
        for index in 1..=count.min(MAX_CHANNELS - 1) {
            let adapter = self.adapter(name)?;
            let Some(primary) = adapter.primary().filter(|channel| channel.opened.is_some()) else {
                // Its driver has gone meanwhile.
                return Ok(());
            };
            if adapter
                .channels
                .iter()
                .any(|channel| channel.index == index)
            {
                continue;
            }
            let offer = Offer::network(adapter.instance).sub_channel(primary.relid, index.into());
            self.offer(name, offer, index, effects)?;
        }
        Ok(())
    }

    /// Keeps something of an adapter that a driver uses.
    ///
    /// # Errors
    /// There is no such adapter.
    pub(crate) fn keep(&mut self, name: AdapterName, state: String) -> anyhow::Result<()> {
        let adapter = self.adapter(name)?;
        if adapter.is_open() {
            adapter.kept = state;
        }
        Ok(())
    }

    fn offer(
        &mut self,
        name: AdapterName,
        offer: Offer,
        index: u8,
        effects: &mut Effects,
    ) -> anyhow::Result<()> {
        let interrupt = Arc::new(irq::eventfd()?);
        let mut wanted = Vec::new();
        let relid = self.bus.offer(offer, &mut wanted)?;
        self.adapter(name)?.channels.push(Channel {
            relid,
            index,
            interrupt,
            opened: None,
        });
        self.carry_out(wanted, effects);
        Ok(())
    }

    fn adapter(&mut self, name: AdapterName) -> anyhow::Result<&mut Adapter> {
        let mut adapters = self.adapters.iter_mut();
        let adapter = adapters.find(|adapter| adapter.name == name && !adapter.leaving);
        adapter.with_context(|| format!("no adapter {name}"))
    }

    /// Each adapter and the event by which its guest wakes the worker.
    pub(crate) fn adapters(&self) -> Vec<(AdapterName, Arc<OwnedFd>)> {
        let adapters = self.adapters.iter().filter(|adapter| !adapter.leaving);
        adapters
            .map(|adapter| (adapter.name, adapter.kick.clone()))
            .collect()
    }

    /// The adapters that a driver has opened.
    pub(crate) fn drivers(&self) -> Vec<AdapterName> {
        let open = self.adapters.iter().filter(|adapter| adapter.is_open());
        open.map(|adapter| adapter.name).collect()
    }

    /// The places of a channel: its adapter's, and its own there.
    pub(super) fn find(&self, relid: u16) -> Option<(usize, usize)> {
        let adapters = self.adapters.iter().enumerate();
        adapters.into_iter().find_map(|(at, adapter)| {
            let mut channels = adapter.channels.iter();
            Some((at, channels.position(|channel| channel.relid == relid)?))
        })
    }

    /// Forgets what the guest has let go of.
    pub(super) fn forget(&mut self) {
        let offered: Vec<u16> = self.bus.channels().map(|(relid, _)| relid).collect();
        for adapter in &mut self.adapters {
            adapter
                .channels
                .retain(|channel| offered.contains(&channel.relid));
        }
        self.adapters
            .retain(|adapter| !(adapter.leaving && adapter.channels.is_empty()));
    }

    /// Finds the channels of adapters and services on a bus that was restored. Adapters that were plugged in meanwhile are
    /// offered, and what is not there any more is taken back.
    pub(super) fn adopt(&mut self, effects: &mut Effects) -> anyhow::Result<()> {
        for adapter in &mut self.adapters {
            adapter.channels.clear();
        }
        let channels: Vec<_> = self
            .bus
            .channels()
            .map(|(relid, offer)| (relid, offer.clone()))
            .collect();
        let mut wanted = Vec::new();
        for (relid, offer) in channels {
            if self.adopt_service(relid, &offer).is_some() {
                continue;
            }
            let mut adapters = self.adapters.iter_mut();
            match adapters.find(|adapter| adapter.instance == offer.instance) {
                Some(adapter) => adapter.channels.push(Channel {
                    relid,
                    index: offer.sub_channel.map_or(0, |(_, index)| index as u8),
                    interrupt: Arc::new(irq::eventfd()?),
                    opened: None,
                }),
                None => self.bus.rescind(relid, &mut wanted)?,
            }
        }
        self.carry_out(wanted, effects);
        let new = self
            .adapters
            .iter()
            .filter(|adapter| adapter.channels.is_empty());
        let new: Vec<_> = new
            .map(|adapter| (adapter.name, adapter.instance))
            .collect();
        for (name, instance) in new {
            self.offer(name, Offer::network(instance), 0, effects)?;
        }
        Ok(())
    }
}
