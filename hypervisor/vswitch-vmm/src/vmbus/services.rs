//! The integration services on the bus: they are met here, without vswitchd.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use hypervisor::device::{Effect, Effects};
use tracing::{info, warn};
use vnic_synthetic::integration::{self, Event, Kind, Now, Pool, Request, Shutdown, Status};
use vnic_synthetic::vmbus::{self, Demand, Done, Interrupts, Open};
use vswitch::api::Service;
use vswitch::attach::demand::FLAG_BYTES;
use vswitch::attach::message::{MAX_FACT, MAX_FACTS, MAX_NAME};

use super::{SINT, Vmbus};

/// How often a service is run by itself.
const PERIOD: Duration = Duration::from_secs(1);
/// The same after its channel was opened: its guest is to hear of that first.
const SOON: Duration = Duration::from_millis(10);
/// The only timer of the device.
const TIMER: u32 = 0;

/// A service that is offered.
pub(super) struct Offered {
    pub(super) relid: u16,
    pub(super) service: integration::Service,
    /// How its channel was opened.
    opened: Option<Open>,
}

fn kind(service: Service) -> Kind {
    match service {
        Service::Shutdown => Kind::Shutdown,
        Service::Heartbeat => Kind::Heartbeat,
        Service::TimeSync => Kind::TimeSync,
        Service::KeyValue => Kind::KeyValue,
    }
}

impl Vmbus {
    /// Offers a service to the guest.
    ///
    /// # Errors
    /// The bus is full.
    pub(crate) fn add_service(
        &mut self,
        service: Service,
        effects: &mut Effects,
    ) -> anyhow::Result<()> {
        let service = integration::Service::new(kind(service));
        let mut wanted = Vec::new();
        let relid = self.bus.offer(service.offer(), &mut wanted)?;
        self.services.push(Offered {
            relid,
            service,
            opened: None,
        });
        self.carry_out(wanted, effects);
        Ok(())
    }

    /// The services that the guest uses.
    pub(crate) fn services_in_use(&self) -> Vec<Service> {
        let ready = |of: &Service| {
            let mut services = self.services.iter();
            let offered = services.find(|offered| offered.service.kind() == kind(*of));
            offered.is_some_and(|offered| matches!(offered.service.status(), Status::Ready(_)))
        };
        Service::ALL.into_iter().filter(ready).collect()
    }

    /// What the guest says of itself. It is asked anew, for the next time.
    pub(crate) fn facts(&mut self, effects: &mut Effects) -> BTreeMap<String, String> {
        self.ask_service(Request::List(Pool::Auto), effects);
        self.facts.clone()
    }

    /// Asks the guest to switch itself off. False if it lacks the service.
    pub(crate) fn shut_down(&mut self, effects: &mut Effects) -> bool {
        self.ask_service(Request::Shutdown(Shutdown::default()), effects)
    }

    /// Lets the guest set its clock, after it stood still.
    pub(crate) fn set_time(&mut self, effects: &mut Effects) {
        self.ask_service(Request::SetTime, effects);
    }

    /// Asks the service that a request is for. False if the guest does not use it.
    fn ask_service(&mut self, request: Request, effects: &mut Effects) -> bool {
        let ready = |offered: &&mut Offered| matches!(offered.service.status(), Status::Ready(_));
        let mut services = self.services.iter_mut().filter(ready);
        let asked = services.find_map(|offered| {
            let asked = offered.service.ask(request.clone());
            asked.is_ok().then_some(offered.relid)
        });
        asked.is_some_and(|relid| self.run_service(relid, effects))
    }

    /// Meets a demand for a service's channel; `None`: it is no service's.
    pub(super) fn serve(
        &mut self,
        relid: u16,
        demand: &Demand,
        effects: &mut Effects,
    ) -> Option<Done> {
        let mut services = self.services.iter_mut();
        let offered = services.find(|offered| offered.relid == relid)?;
        Some(match demand {
            Demand::Add { gpadl, .. } => Done::Added {
                gpadl: *gpadl,
                ok: true,
            },
            Demand::Remove { gpadl } => Done::Removed { gpadl: *gpadl },
            Demand::Open(open) => {
                let ok = offered.service.open(&self.memory, open).is_ok();
                offered.opened = ok.then(|| open.clone());
                let after = SOON;
                effects.push(Effect::Timer { id: TIMER, after });
                Done::Opened { ok }
            }
            Demand::Close => {
                offered.service.close();
                offered.opened = None;
                Done::Closed
            }
            Demand::Retarget { target_vp } => {
                let opened = offered.opened.as_mut();
                let opened = opened.filter(|_| *target_vp < self.processors);
                let ok = opened.map(|opened| opened.target_vp = *target_vp).is_some();
                Done::Retargeted { ok }
            }
        })
    }

    /// Runs all services, and again after a while if the guest uses any.
    pub(super) fn run_services(&mut self, effects: &mut Effects) {
        let open = self
            .services
            .iter()
            .filter(|offered| offered.opened.is_some());
        let relids: Vec<_> = open.map(|offered| offered.relid).collect();
        for &relid in &relids {
            self.run_service(relid, effects);
        }
        if !relids.is_empty() {
            let after = PERIOD;
            effects.push(Effect::Timer { id: TIMER, after });
        }
    }

    /// Lets a service do what is due. False: the channel is no service's.
    pub(super) fn run_service(&mut self, relid: u16, effects: &mut Effects) -> bool {
        let mut services = self.services.iter_mut();
        let Some(offered) = services.find(|offered| offered.relid == relid) else {
            return false;
        };
        let wall = UNIX_EPOCH.elapsed().unwrap_or_default();
        let turn = offered.service.run(&Now {
            reference_100ns: effects.reference,
            unix_ns: wall.as_nanos() as u64,
        });
        let (of, opened) = (offered.service.kind(), offered.opened.clone());
        if let Some(opened) = opened.filter(|_| turn.signal) {
            self.interrupt_for(relid, &opened, effects);
        }
        for event in turn.events {
            self.note_event(of, event);
        }
        true
    }

    /// Tells the guest that there is something in a channel.
    fn interrupt_for(&mut self, relid: u16, opened: &Open, effects: &mut Effects) {
        let to = (opened.target_vp, SINT);
        let mut wanted = Vec::new();
        match opened.interrupts {
            Interrupts::Flag => self.hyperv.signal(to, relid, &mut wanted),
            Interrupts::Page(page) => {
                let bits = self.memory.window(page, FLAG_BYTES as usize);
                // A page that is none is the guest's own loss.
                let word = usize::from(relid / 32) * 4;
                let _ = bits.map(|bits| bits.fetch_or_u32(word, 1 << (relid % 32)));
                self.hyperv.signal(to, 0, &mut wanted);
            }
        }
        self.pass_on(wanted, effects);
    }

    fn note_event(&mut self, of: Kind, event: Event) {
        match event {
            Event::Silent => warn!("the guest's heartbeat has stopped"),
            Event::Shutdown(Ok(())) => info!("the guest switches itself off"),
            Event::Shutdown(Err(status)) => {
                warn!("the guest does not switch itself off: status {status:#x}");
            }
            Event::Items { items, .. } => {
                let fits = |(key, value): &(String, String)| {
                    key.chars().count() <= MAX_NAME && value.chars().count() <= MAX_FACT
                };
                self.facts = items.into_iter().filter(fits).take(MAX_FACTS).collect();
            }
            Event::Status => info!("integration service {of:?}: the guest's driver is there"),
            Event::Alive | Event::Value(_) | Event::Unanswered => {}
        }
    }

    /// The services' channels of a bus that was restored: `None` is a channel of something else.
    pub(super) fn adopt_service(&mut self, relid: u16, offer: &vmbus::Offer) -> Option<()> {
        let mut services = self.services.iter_mut();
        let offered =
            services.find(|offered| offered.service.offer().instance == offer.instance)?;
        offered.relid = relid;
        Some(())
    }
}
