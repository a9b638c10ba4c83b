//! The adapters on the bus: their channels, and what of them vswitchd is asked for.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use hypervisor::device::{Effect, Effects};
use hypervisor::irq;
use vnic_synthetic::vmbus::{Demand, Done, Interrupts, Offer, PageList};

use super::Vmbus;

/// Class of network adapters: f8615163-df3e-46c5-913f-f2d2f965ed0e, as on the wire.
const NETWORK: [u8; 16] = [
    0x63, 0x51, 0x61, 0xf8, 0x3e, 0xdf, 0xc5, 0x46, 0x91, 0x3f, 0xf2, 0xd2, 0xf9, 0x65, 0xed, 0x0e,
];

/// A synthetic adapter.
pub(super) struct Adapter {
    pub(super) name: String,
    pub(super) instance: [u8; 16],
    /// Wakes the worker that serves it.
    pub(super) kick: Arc<OwnedFd>,
    /// The primary channel, and its sub-channels in their order.
    pub(super) channels: Vec<Channel>,
    /// Memory that the guest shares with it.
    gpadls: BTreeMap<u32, Arc<PageList>>,
}

/// A channel that is offered.
pub(super) struct Channel {
    relid: u16,
    /// Raises its interrupt.
    pub(super) interrupt: Arc<OwnedFd>,
    pub(super) opened: Option<Opened>,
}

/// How a channel was opened.
#[derive(Clone)]
pub(super) struct Opened {
    ring: Arc<PageList>,
    downstream_page: u32,
    pub(super) target_vp: u32,
    pub(super) interrupts: Interrupts,
}

/// What vswitchd is asked for. It answers with the number.
pub(crate) struct Demanded {
    /// Number.
    pub(crate) id: u64,
    /// Name of the adapter.
    pub(crate) adapter: String,
    /// What is wanted.
    pub(crate) what: Wanted,
}

/// What is wanted of an adapter; a channel is named by its index.
pub(crate) enum Wanted {
    Add {
        gpadl: u32,
        list: Arc<PageList>,
    },
    Remove {
        gpadl: u32,
    },
    Open {
        channel: u32,
        ring: Arc<PageList>,
        downstream_page: u32,
        flags: Vec<(u64, u32)>,
        interrupt: Arc<OwnedFd>,
    },
    Close {
        channel: u32,
    },
    Retarget {
        channel: u32,
        flags: Vec<(u64, u32)>,
    },
}

/// Which answer the bus waits for.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Add(u32),
    Remove(u32),
    Open,
    Close,
    Retarget,
    /// None: it was asked on behalf of nobody.
    Nothing,
}

impl Kind {
    fn of(demand: &Demand) -> Kind {
        match demand {
            Demand::Add { gpadl, .. } => Kind::Add(*gpadl),
            Demand::Remove { gpadl } => Kind::Remove(*gpadl),
            Demand::Open(_) => Kind::Open,
            Demand::Close => Kind::Close,
            Demand::Retarget { .. } => Kind::Retarget,
        }
    }

    fn done(self, ok: bool) -> Option<Done> {
        Some(match self {
            Kind::Add(gpadl) => Done::Added { gpadl, ok },
            Kind::Remove(gpadl) => Done::Removed { gpadl },
            Kind::Open => Done::Opened { ok },
            Kind::Close => Done::Closed,
            Kind::Retarget => Done::Retargeted { ok },
            Kind::Nothing => return None,
        })
    }
}

impl Vmbus {
    /// Offers an adapter to the guest. Gives the event by which its guest wakes the worker.
    pub(crate) fn add_adapter(
        &mut self,
        name: &str,
        instance: [u8; 16],
        effects: &mut Effects,
    ) -> anyhow::Result<Arc<OwnedFd>> {
        let kick = Arc::new(irq::eventfd()?);
        self.adapters.push(Adapter {
            name: name.to_owned(),
            instance,
            kick: kick.clone(),
            channels: Vec::new(),
            gpadls: BTreeMap::new(),
        });
        let index = self.adapters.len() - 1;
        self.offer(index, None, effects)?;
        Ok(kick)
    }

    fn offer(
        &mut self,
        adapter: usize,
        sub_channel: Option<(u16, u16)>,
        effects: &mut Effects,
    ) -> anyhow::Result<()> {
        let interrupt = Arc::new(irq::eventfd()?);
        let Some(adapter) = self.adapters.get_mut(adapter) else {
            return Ok(());
        };
        let offer = Offer {
            interface: NETWORK,
            instance: adapter.instance,
            user_defined: [0; 120],
            sub_channel,
        };
        let mut wanted = Vec::new();
        let relid = self.bus.offer(offer, &mut wanted)?;
        adapter.channels.push(Channel {
            relid,
            interrupt,
            opened: None,
        });
        self.carry_out(wanted, effects);
        Ok(())
    }

    /// Whether a driver has opened an adapter.
    pub(crate) fn has_driver(&self, name: &str) -> bool {
        let adapter = self.adapters.iter().find(|adapter| adapter.name == name);
        let primary = adapter.and_then(|adapter| adapter.channels.first());
        primary.is_some_and(|channel| channel.opened.is_some())
    }

    /// The adapter of a channel, and the channel's index there.
    pub(super) fn find(&self, relid: u16) -> Option<(&Adapter, usize)> {
        self.adapters.iter().find_map(|adapter| {
            let mut channels = adapter.channels.iter();
            let index = channels.position(|channel| channel.relid == relid)?;
            Some((adapter, index))
        })
    }

    /// Asks vswitchd to meet a demand of the bus. The answer, where it is known at once: nobody uses what belongs to no
    /// adapter, or to one that nobody serves.
    pub(super) fn ask(
        &mut self,
        relid: u16,
        demand: Demand,
        effects: &mut Effects,
    ) -> Option<Done> {
        let kind = Kind::of(&demand);
        let Some(adapter) = self.adapters.iter().position(|adapter| {
            adapter
                .channels
                .iter()
                .any(|channel| channel.relid == relid)
        }) else {
            let gives_back = matches!(kind, Kind::Remove(_) | Kind::Close);
            return kind.done(gives_back);
        };
        let what = match self.note(adapter, relid, demand, effects) {
            Ok(what) => what,
            Err(()) => return kind.done(false),
        };
        if !self.served {
            return kind.done(true);
        }
        self.demand(adapter, relid, what, kind);
        None
    }

    fn demand(&mut self, adapter: usize, relid: u16, what: Wanted, kind: Kind) {
        let Some(adapter) = self.adapters.get(adapter) else {
            return;
        };
        let id = self.next;
        self.next += 1;
        self.asked.insert(id, (relid, kind));
        self.queue.push_back(Demanded {
            id,
            adapter: adapter.name.clone(),
            what,
        });
        irq::signal(&self.wake);
    }

    /// Notes what a demand makes of an adapter, and puts it in vswitchd's words. An error: it cannot be met.
    fn note(
        &mut self,
        adapter: usize,
        relid: u16,
        demand: Demand,
        effects: &mut Effects,
    ) -> Result<Wanted, ()> {
        let owner = self.adapters.get_mut(adapter).ok_or(())?;
        let mut channels = owner.channels.iter_mut().enumerate();
        let (index, channel) = channels
            .find(|(_, channel)| channel.relid == relid)
            .ok_or(())?;
        let index = index as u32;
        match demand {
            Demand::Add { gpadl, list } => {
                owner.gpadls.insert(gpadl, list.clone());
                return Ok(Wanted::Add { gpadl, list });
            }
            Demand::Remove { gpadl } => {
                owner.gpadls.remove(&gpadl);
                return Ok(Wanted::Remove { gpadl });
            }
            Demand::Open(open) => {
                if open.target_vp >= self.processors {
                    return Err(());
                }
                channel.opened = Some(Opened {
                    ring: open.ring,
                    downstream_page: open.downstream_page,
                    target_vp: open.target_vp,
                    interrupts: open.interrupts,
                });
            }
            Demand::Close => {
                channel.opened = None;
                effects.push(Effect::Rewire);
                return Ok(Wanted::Close { channel: index });
            }
            Demand::Retarget { target_vp } => {
                let opened = channel.opened.as_mut();
                let opened = opened.filter(|_| target_vp < self.processors).ok_or(())?;
                opened.target_vp = target_vp;
                effects.push(Effect::Rewire);
                return self.retarget(adapter, index).ok_or(());
            }
        }
        effects.push(Effect::Rewire);
        self.open(adapter, index).ok_or(())
    }

    fn open(&self, adapter: usize, index: u32) -> Option<Wanted> {
        let channel = self.adapters.get(adapter)?.channels.get(index as usize)?;
        let opened = channel.opened.as_ref()?;
        Some(Wanted::Open {
            channel: index,
            ring: opened.ring.clone(),
            downstream_page: opened.downstream_page,
            flags: self.flags(channel.relid, opened),
            interrupt: channel.interrupt.clone(),
        })
    }

    fn retarget(&self, adapter: usize, index: u32) -> Option<Wanted> {
        let channel = self.adapters.get(adapter)?.channels.get(index as usize)?;
        Some(Wanted::Retarget {
            channel: index,
            flags: self.flags(channel.relid, channel.opened.as_ref()?),
        })
    }

    /// Where processor `vp` is interrupted, or its flags are, has changed.
    pub(super) fn rerouted(&mut self, vp: u32, effects: &mut Effects) {
        let mut moved = Vec::new();
        for (adapter, owner) in self.adapters.iter().enumerate() {
            for (index, channel) in owner.channels.iter().enumerate() {
                if channel
                    .opened
                    .as_ref()
                    .is_some_and(|opened| opened.target_vp == vp)
                {
                    moved.push((adapter, index as u32, channel.relid));
                }
            }
        }
        for (adapter, index, relid) in moved {
            effects.push(Effect::Rewire);
            let wanted = self.retarget(adapter, index).filter(|_| self.served);
            if let Some(what) = wanted {
                self.demand(adapter, relid, what, Kind::Nothing);
            }
        }
    }

    /// What vswitchd is to be asked for.
    pub(crate) fn take_demands(&mut self) -> Vec<Demanded> {
        self.queue.drain(..).collect()
    }

    /// vswitchd has met a demand, or could not.
    pub(crate) fn done(&mut self, id: u64, ok: bool, effects: &mut Effects) {
        let Some((relid, kind)) = self.asked.remove(&id) else {
            return;
        };
        if !ok {
            self.undo(relid, kind, effects);
        }
        if let Some(done) = kind.done(ok) {
            let mut wanted = Vec::new();
            self.bus.done(relid, done, &mut wanted);
            self.carry_out(wanted, effects);
        }
    }

    /// What was noted of a demand did not come about.
    fn undo(&mut self, relid: u16, kind: Kind, effects: &mut Effects) {
        for adapter in &mut self.adapters {
            let mut channels = adapter.channels.iter_mut();
            let Some(channel) = channels.find(|channel| channel.relid == relid) else {
                continue;
            };
            match kind {
                Kind::Add(gpadl) => {
                    adapter.gpadls.remove(&gpadl);
                }
                Kind::Open => {
                    channel.opened = None;
                    effects.push(Effect::Rewire);
                }
                Kind::Remove(_) | Kind::Close | Kind::Retarget | Kind::Nothing => {}
            }
        }
    }

    /// vswitchd is there, or has gone. One that comes is asked for everything that the guest has set up; what one that
    /// goes has not answered, nobody uses any more.
    pub(crate) fn set_served(&mut self, served: bool, effects: &mut Effects) {
        self.served = served;
        self.queue.clear();
        for (relid, kind) in std::mem::take(&mut self.asked).into_values() {
            if let Some(done) = kind.done(true) {
                let mut wanted = Vec::new();
                self.bus.done(relid, done, &mut wanted);
                self.carry_out(wanted, effects);
            }
        }
        if !served {
            return;
        }
        for adapter in 0..self.adapters.len() {
            for (relid, what) in self.all_of(adapter) {
                self.demand(adapter, relid, what, Kind::Nothing);
            }
        }
    }

    /// Everything that the guest has set up of an adapter.
    fn all_of(&self, adapter: usize) -> Vec<(u16, Wanted)> {
        let Some(owner) = self.adapters.get(adapter) else {
            return Vec::new();
        };
        let Some(primary) = owner.channels.first() else {
            return Vec::new();
        };
        let memory = owner.gpadls.iter().map(|(&gpadl, list)| {
            let list = list.clone();
            (primary.relid, Wanted::Add { gpadl, list })
        });
        let channels = owner.channels.iter().enumerate();
        let open = channels.filter_map(|(index, channel)| {
            Some((channel.relid, self.open(adapter, index as u32)?))
        });
        memory.chain(open).collect()
    }
}
