//! Where an adapter of a VM and a port of the switch meet.
//!
//! The port is there while the adapter is in a network, the adapter's rings while its VM runs: either may come and go
//! first. Where both are there, and the VM is not paused, the rings are attached to the port.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use guestmem::Memory;
use tracing::error;
use vnic_legacy::page::SharedPage;
use vswitch::api::{AdapterName, Link, Mtu, PortState, VmName};
use vswitch::attach::demand::Demand;
use vswitch::attach::message::Command;
use vswitch::control::PortHandle;
use vswitch::port::{PortControl, Sides};

use super::live::Live;
use super::synthetic::Synthetic;
use crate::backend::{Backend, Fate, Open};

/// The seats of all adapters.
#[derive(Clone, Default)]
pub(crate) struct Seats(Arc<Mutex<ByAdapter>>);

type ByAdapter = BTreeMap<(VmName, AdapterName), Arc<Seat>>;

impl Seats {
    /// The seat of an adapter.
    pub(crate) fn seat(&self, vm: &VmName, adapter: AdapterName) -> Arc<Seat> {
        let mut seats = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seats.entry((vm.clone(), adapter)).or_default().clone()
    }

    /// Forgets the seat of an adapter that is no more.
    pub(crate) fn remove(&self, vm: &VmName, adapter: AdapterName) {
        let mut seats = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seats.remove(&(vm.clone(), adapter));
    }

    /// Puts a port on the seat of its adapter.
    pub(crate) fn open(
        &self,
        vm: &VmName,
        adapter: AdapterName,
        what: &Open<'_>,
    ) -> Box<dyn Backend> {
        let seat = self.seat(vm, adapter);
        seat.change(|state| {
            state.port = Some(what.port.clone());
            state.link = what.link;
        });
        Box::new(AdapterPort(seat))
    }
}

/// The rings of an adapter of a VM that runs.
pub(super) struct Rings {
    /// What is needed to serve them.
    pub(super) kind: Kind,
    /// The process whose they are.
    pub(super) live: Weak<Live>,
    /// The adapter's name in that process.
    pub(super) name: AdapterName,
}

/// Rings by the kind of the adapter.
pub(super) enum Kind {
    /// A legacy adapter: rings that its registers name.
    Legacy(Legacy),
    /// A synthetic adapter: rings that its guest opens and closes.
    Synthetic(Synthetic),
}

/// What the registers of a legacy adapter share.
pub(super) struct Legacy {
    /// The guest's RAM.
    pub(super) memory: Arc<Memory>,
    /// The page that the registers and the rings share.
    pub(super) page: OwnedFd,
    /// The event by which the guest kicks.
    pub(super) kick: OwnedFd,
    /// The event that interrupts the guest.
    pub(super) interrupt: OwnedFd,
}

/// Where one adapter and its port meet.
#[derive(Default)]
pub(crate) struct Seat(Mutex<State>);

#[derive(Default)]
struct State {
    port: Option<Arc<PortHandle>>,
    link: Link,
    rings: Option<Rings>,
    /// The VM's processors do not run, and its memory must not change.
    paused: bool,
    /// The port that the rings are attached to.
    attached: Option<Arc<PortHandle>>,
    /// Why they cannot be.
    refused: Option<String>,
}

impl Seat {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        let before = state.shown_link();
        change(&mut state);
        state.settle();
        if state.shown_link() != before {
            state.show_link();
        }
    }

    /// The VM runs: these are the adapter's rings.
    pub(super) fn bring(&self, rings: Rings, paused: bool) {
        let mut state = self.lock();
        state.detach();
        state.rings = Some(rings);
        state.paused = paused;
        state.settle();
        if state.attached.is_none() {
            // The process takes its rings for served until it hears otherwise.
            state.tell_served(false);
        }
        state.show_link();
    }

    /// The VM has ended, or its process lost its connection: nothing of its memory is touched any more.
    pub(super) fn take_away(&self) {
        let mut state = self.lock();
        state.detach();
        state.rings = None;
        state.refused = None;
        state.say_paused();
    }

    /// The processors of the VM are stopped, or go on. While they are stopped its memory does not change.
    pub(super) fn pause(&self, paused: bool) {
        self.change(|state| state.paused = paused);
        self.attend();
    }

    /// Carries out a demand for a synthetic adapter. False if it cannot be met.
    pub(super) fn meet(&self, demand: Demand, interrupt: Option<OwnedFd>) -> bool {
        let mut state = self.lock();
        // Without rings nobody uses its memory.
        let gone = matches!(demand, Demand::Remove { .. } | Demand::Close { .. });
        if Synthetic::is_end(&demand) {
            state.detach();
        }
        let Some(synthetic) = state.synthetic() else {
            return gone;
        };
        let restored = matches!(demand, Demand::Restore { .. });
        let met = synthetic.meet(demand, interrupt);
        state.refused = met.as_ref().err().map(|error| format!("{error:#}"));
        state.settle();
        drop(state);
        if restored {
            // What was kept of a machine that stood still is out of date once it runs.
            self.attend();
        }
        met.is_ok()
    }

    /// Tells the process of the VM what the driver of a synthetic adapter asked for, and what is to be kept.
    pub(super) fn attend(&self) {
        let mut state = self.lock();
        let Some(name) = state.rings.as_ref().map(|rings| rings.name) else {
            return;
        };
        let paused = state.paused;
        let news = state
            .synthetic()
            .map(|synthetic| synthetic.news(name, paused));
        for command in news.unwrap_or_default() {
            state.tell(|_| command);
        }
    }

    /// The guest was reset: rings that were at fault are taken anew.
    pub(super) fn renew(&self) {
        self.change(State::detach);
    }

    /// The link that the guest is shown.
    pub(crate) fn link(&self) -> Link {
        self.lock().shown_link()
    }
}

impl State {
    fn shown_link(&self) -> Link {
        match self.port {
            Some(_) => self.link,
            None => Link::Down,
        }
    }

    fn show_link(&self) {
        let up = self.shown_link() == Link::Up;
        match self.rings.as_ref().map(|rings| &rings.kind) {
            Some(Kind::Legacy(_)) => self.tell(|adapter| Command::Link { adapter, up }),
            Some(Kind::Synthetic(synthetic)) => synthetic.set_link(up),
            None => {}
        }
    }

    fn synthetic(&mut self) -> Option<&mut Synthetic> {
        match &mut self.rings.as_mut()?.kind {
            Kind::Synthetic(synthetic) => Some(synthetic),
            Kind::Legacy(_) => None,
        }
    }

    fn tell(&self, command: impl FnOnce(AdapterName) -> Command) {
        if let Some(rings) = &self.rings
            && let Some(live) = rings.live.upgrade()
        {
            live.post(command(rings.name));
        }
    }

    /// Tells the registers of a legacy adapter whether somebody serves its rings.
    fn tell_served(&self, served: bool) {
        if matches!(&self.rings, Some(rings) if matches!(rings.kind, Kind::Legacy(_))) {
            self.tell(|adapter| Command::Served { adapter, served });
        }
    }

    /// Attaches or detaches, as the port and the rings are there.
    fn settle(&mut self) {
        self.say_paused();
        let wanted = self.port.as_ref().filter(|_| !self.paused);
        let (Some(port), Some(rings)) = (wanted.cloned(), &self.rings) else {
            return self.detach();
        };
        if let Some(attached) = &self.attached {
            if Arc::ptr_eq(attached, &port) {
                return;
            }
            self.detach();
            return self.settle();
        }
        match rings.open() {
            Ok(None) => {}
            Ok(Some(sides)) => {
                self.tell_served(true);
                drop(port.attach(sides));
                self.attached = Some(port);
                self.refused = None;
            }
            Err(reason) => {
                error!("the rings of an adapter cannot be served: {reason:#}");
                self.refused = Some(format!("{reason:#}"));
            }
        }
    }

    fn say_paused(&self) {
        if let Some(port) = &self.port {
            port.set_paused(self.paused && self.rings.is_some());
        }
    }

    fn detach(&mut self) {
        if let Some(port) = self.attached.take() {
            drop(port.detach());
            self.tell_served(false);
        }
    }
}

impl Rings {
    /// The sides of the port; `None` while there are no rings.
    fn open(&self) -> anyhow::Result<Option<Sides>> {
        match &self.kind {
            Kind::Legacy(legacy) => legacy.open().map(Some),
            Kind::Synthetic(synthetic) => Ok(synthetic.sides()),
        }
    }
}

impl Legacy {
    fn open(&self) -> anyhow::Result<Sides> {
        let page = SharedPage::map(self.page.try_clone()?)?;
        let (kick, interrupt) = (self.kick.try_clone()?, self.interrupt.try_clone()?);
        Ok(vnic_legacy::port::open(
            self.memory.clone(),
            page,
            kick,
            interrupt,
        )?)
    }
}

/// The port of an adapter, as the manager holds it.
struct AdapterPort(Arc<Seat>);

impl Backend for AdapterPort {
    fn close(self: Box<Self>, _: Fate) {
        self.0.change(|state| state.port = None);
    }

    fn status(&self) -> (PortState, Option<String>) {
        let state = self.0.lock();
        let waiting = |why: &str| (PortState::Waiting, Some(why.to_owned()));
        match (&state.attached, &state.refused, &state.rings) {
            (Some(_), ..) => (PortState::Up, None),
            (None, Some(reason), _) => (PortState::Fault, Some(reason.clone())),
            (None, None, Some(_)) if state.paused => waiting("the VM is paused"),
            (None, None, Some(_)) => waiting("no driver of the guest has opened the adapter"),
            (None, None, None) => waiting("the VM does not run"),
        }
    }

    /// A legacy adapter's MTU is 1500, and the driver of a synthetic one says its own; the switch drops by name what is
    /// too long.
    fn set_mtu(&mut self, _: Mtu) -> anyhow::Result<()> {
        Ok(())
    }

    fn set_link(&mut self, link: Link) -> anyhow::Result<()> {
        self.0.change(|state| state.link = link);
        Ok(())
    }
}
