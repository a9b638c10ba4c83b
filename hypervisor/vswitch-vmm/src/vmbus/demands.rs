//! What the bus demands of vswitchd, and what becomes of it while there is none.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use hypervisor::device::{Effect, Effects};
use hypervisor::irq;
use tracing::error;
use vnic_synthetic::vmbus::{self, Done, Interrupts, PageList};
use vswitch::api::AdapterName;
use vswitch::attach::demand::{Demand, FLAG_BYTES, Flag, MAX_RING_PAGES, PageRange};

use super::adapters::{Channel, Opened};
use super::{SINT, Vmbus};

/// Page numbers are below: guest-physical addresses have 52 bits.
const PAGE_NUMBERS: u64 = 1 << 40;

/// What vswitchd is asked for. It answers with the number.
pub(crate) struct Demanded {
    /// Number.
    pub(crate) id: u64,
    /// Whose it is.
    pub(crate) adapter: AdapterName,
    /// What is wanted.
    pub(crate) demand: Demand,
    /// The event that goes with it.
    pub(crate) interrupt: Option<Arc<OwnedFd>>,
}

/// Which answer the bus waits for.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Add(u32),
    Remove(u32),
    Open,
    Close,
    Retarget,
    /// None: the guest did not ask.
    Nothing,
}

impl Kind {
    fn of(demand: &vmbus::Demand) -> Kind {
        match demand {
            vmbus::Demand::Add { gpadl, .. } => Kind::Add(*gpadl),
            vmbus::Demand::Remove { gpadl } => Kind::Remove(*gpadl),
            vmbus::Demand::Open(_) => Kind::Open,
            vmbus::Demand::Close => Kind::Close,
            vmbus::Demand::Retarget { .. } => Kind::Retarget,
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
    /// Asks vswitchd to meet a demand of the bus. The answer, where it is known at once: nobody uses what belongs to no
    /// adapter, or to one that nobody serves.
    pub(super) fn ask(
        &mut self,
        relid: u16,
        demand: vmbus::Demand,
        effects: &mut Effects,
    ) -> Option<Done> {
        let kind = Kind::of(&demand);
        match self.note(relid, demand, effects) {
            Some((demand, interrupt)) if self.served => {
                self.demand(relid, demand, interrupt, kind);
                None
            }
            noted => kind.done(noted.is_some()),
        }
    }

    /// Notes what a demand makes of an adapter, and puts it in the words of the protocol, with the event that goes with
    /// it. `None`: it cannot be met.
    fn note(
        &mut self,
        relid: u16,
        demand: vmbus::Demand,
        effects: &mut Effects,
    ) -> Option<(Demand, Option<Arc<OwnedFd>>)> {
        let (at, place) = self.find(relid)?;
        let adapter = self.adapters.get_mut(at)?;
        let channel = adapter.channels.get_mut(place)?;
        let index = channel.index;
        let demand = match demand {
            vmbus::Demand::Add { gpadl, list } => {
                let range = page_range(&list)?;
                adapter.gpadls.insert(gpadl, list);
                return Some((Demand::Add { gpadl, range }, None));
            }
            vmbus::Demand::Remove { gpadl } => {
                adapter.gpadls.remove(&gpadl);
                return Some((Demand::Remove { gpadl }, None));
            }
            vmbus::Demand::Open(open) => {
                let len = page_range(&open.ring)?.pages.len();
                if open.target_vp >= self.processors || len > MAX_RING_PAGES {
                    return None;
                }
                channel.opened = Some(Opened {
                    ring: open.ring,
                    downstream_page: open.downstream_page,
                    target_vp: open.target_vp,
                    interrupts: open.interrupts,
                });
                let interrupt = channel.interrupt.clone();
                if index == 0 {
                    adapter.kept.clear();
                }
                effects.push(Effect::Rewire);
                return Some((self.open(at, place, false)?, Some(interrupt)));
            }
            vmbus::Demand::Close => {
                channel.opened = None;
                if index == 0 {
                    adapter.kept.clear();
                }
                Demand::Close { channel: index }
            }
            vmbus::Demand::Retarget { target_vp } => {
                let opened = channel.opened.as_mut();
                opened.filter(|_| target_vp < self.processors)?.target_vp = target_vp;
                self.retarget(at, place)?
            }
        };
        effects.push(Effect::Rewire);
        Some((demand, None))
    }

    fn demand(&mut self, relid: u16, demand: Demand, interrupt: Option<Arc<OwnedFd>>, kind: Kind) {
        let adapter = self.find(relid).and_then(|(at, _)| self.adapters.get(at));
        let Some(adapter) = adapter.map(|adapter| adapter.name) else {
            return;
        };
        let id = self.next;
        self.next += 1;
        self.asked.insert(id, (relid, kind));
        self.queue.push_back(Demanded {
            id,
            adapter,
            demand,
            interrupt,
        });
        irq::signal(&self.wake);
    }

    fn open(&self, at: usize, place: usize, resumed: bool) -> Option<Demand> {
        let channel = self.adapters.get(at)?.channels.get(place)?;
        let opened = channel.opened.as_ref()?;
        Some(Demand::Open {
            channel: channel.index,
            ring: page_range(&opened.ring)?,
            downstream_page: opened.downstream_page,
            flags: self.flags(channel, opened),
            resumed,
        })
    }

    fn retarget(&self, at: usize, place: usize) -> Option<Demand> {
        let channel = self.adapters.get(at)?.channels.get(place)?;
        Some(Demand::Retarget {
            channel: channel.index,
            flags: self.flags(channel, channel.opened.as_ref()?),
        })
    }

    /// The flags that tell the guest of a channel. A page that an old guest put where none can be tells it nothing.
    fn flags(&self, channel: &Channel, opened: &Opened) -> Vec<Flag> {
        let Some(route) = self.hyperv.event_route(opened.target_vp, SINT) else {
            return Vec::new();
        };
        let flag = |address, bit| Flag { address, bit };
        let own = channel.relid.into();
        let flags = match opened.interrupts {
            Interrupts::Flag => vec![flag(route.flags, own)],
            Interrupts::Page(page) => vec![flag(page, own), flag(route.flags, 0)],
        };
        let aligned = |flag: &Flag| flag.address.is_multiple_of(FLAG_BYTES.into());
        flags.into_iter().filter(aligned).collect()
    }

    /// Where processor `vp` is interrupted, or its flags are, has changed.
    pub(super) fn rerouted(&mut self, vp: u32, effects: &mut Effects) {
        let channels = self.adapters.iter().flat_map(|adapter| &adapter.channels);
        let here = |channel: &&Channel| {
            let opened = channel.opened.as_ref();
            opened.is_some_and(|opened| opened.target_vp == vp)
        };
        let relids: Vec<_> = channels.filter(here).map(|channel| channel.relid).collect();
        for relid in relids {
            effects.push(Effect::Rewire);
            let found = self.find(relid).filter(|_| self.served);
            if let Some(demand) = found.and_then(|(at, place)| self.retarget(at, place)) {
                self.demand(relid, demand, None, Kind::Nothing);
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
        self.answer(relid, kind, ok, effects);
    }

    fn answer(&mut self, relid: u16, kind: Kind, ok: bool, effects: &mut Effects) {
        if let Some(done) = kind.done(ok) {
            let mut wanted = Vec::new();
            self.bus.done(relid, done, &mut wanted);
            self.carry_out(wanted, effects);
        }
    }

    /// What was noted of a demand did not come about.
    fn undo(&mut self, relid: u16, kind: Kind, effects: &mut Effects) {
        let Some((at, place)) = self.find(relid) else {
            return;
        };
        let Some(adapter) = self.adapters.get_mut(at) else {
            return;
        };
        match kind {
            Kind::Add(gpadl) => {
                adapter.gpadls.remove(&gpadl);
            }
            Kind::Open => {
                if let Some(channel) = adapter.channels.get_mut(place) {
                    channel.opened = None;
                }
                effects.push(Effect::Rewire);
            }
            Kind::Nothing => error!(
                adapter = %adapter.name,
                "vswitchd cannot go on with what the guest has set up"
            ),
            Kind::Remove(_) | Kind::Close | Kind::Retarget => {}
        }
    }

    /// vswitchd is there, or has gone. One that comes is asked for everything that the guest has set up; what one that
    /// goes has not answered, nobody uses any more.
    pub(crate) fn set_served(&mut self, served: bool, effects: &mut Effects) {
        self.served = false;
        self.queue.clear();
        for (relid, kind) in std::mem::take(&mut self.asked).into_values() {
            self.answer(relid, kind, true, effects);
        }
        self.served = served;
        if served {
            for at in 0..self.adapters.len() {
                self.demand_again(at);
            }
        }
    }

    /// Demands everything that the guest has set up of an adapter.
    fn demand_again(&mut self, at: usize) {
        let Some(adapter) = self.adapters.get(at) else {
            return;
        };
        let Some(primary) = adapter.primary() else {
            return;
        };
        let (relid, open) = (primary.relid, primary.opened.is_some());
        let mut demands = Vec::new();
        for (&gpadl, list) in &adapter.gpadls {
            if let Some(range) = page_range(list) {
                demands.push((Demand::Add { gpadl, range }, None));
            }
        }
        let mut places: Vec<_> = (0..adapter.channels.len()).collect();
        places.sort_by_key(|&place| adapter.channels.get(place).map(|channel| channel.index));
        for place in places {
            let interrupt = adapter.channels.get(place);
            let interrupt = interrupt.map(|channel| channel.interrupt.clone());
            if let Some(demand) = self.open(at, place, true) {
                demands.push((demand, interrupt));
            }
        }
        if open {
            let state = adapter.kept.clone();
            demands.push((Demand::Restore { state }, None));
        }
        for (demand, interrupt) in demands {
            self.demand(relid, demand, interrupt, Kind::Nothing);
        }
    }
}

/// A list of one range in the words of the protocol, which knows no other, if its pages can be.
fn page_range(list: &PageList) -> Option<PageRange> {
    let range = list.single()?;
    let can_be = range.pages.iter().all(|&page| page < PAGE_NUMBERS);
    can_be.then(|| PageRange {
        offset: range.offset,
        len: range.len,
        pages: range.pages.to_vec(),
    })
}
