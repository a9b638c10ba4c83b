//! What stands around the bus and the adapter: it carries out what they ask for, as a process would.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use guestmem::Memory;
use rustix::event::{EventfdFlags, eventfd};
use vswitch::burst::Burst;
use vswitch::port::TxSide;

use crate::port::{Adapter, Config, Signal, State};
use crate::vmbus::{Bus, BusState, Demand, Done, Effect, Offer, Target};

/// An adapter that is served elsewhere: meets a demand for the channel of an index, if it can be met.
pub type Elsewhere = Box<dyn FnMut(usize, &Demand) -> bool>;

/// A bus with one adapter.
pub struct Host {
    /// The bus.
    pub bus: Bus,
    /// The adapter.
    pub adapter: Adapter,
    /// Readable when the guest signalled, or something changed.
    pub kick: Arc<OwnedFd>,
    /// Counts the interrupts of the guest.
    pub interrupt: Arc<OwnedFd>,
    /// Messages to the guest.
    pub messages: Vec<Vec<u8>>,
    /// Channels of the adapter by number: their index.
    channels: Vec<(u16, usize)>,
    elsewhere: Option<Elsewhere>,
}

fn event() -> Arc<OwnedFd> {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    Arc::new(eventfd(0, flags).expect("an event of a test host"))
}

impl Host {
    /// Offers an adapter to the guest with the memory `memory`.
    pub fn new(memory: Arc<Memory>, config: Config) -> Host {
        let (kick, attention) = (event(), event());
        let adapter = Adapter::new(memory, config, kick.clone(), attention);
        let mut host = Host {
            bus: Bus::new(),
            adapter,
            kick,
            interrupt: event(),
            messages: Vec::new(),
            channels: Vec::new(),
            elsewhere: None,
        };
        host.offer(None);
        host
    }

    /// The same, but the adapter is served elsewhere, and `kick` is what the guest signals.
    pub fn elsewhere(
        memory: Arc<Memory>,
        config: Config,
        kick: Arc<OwnedFd>,
        elsewhere: Elsewhere,
    ) -> Host {
        Host {
            kick,
            elsewhere: Some(elsewhere),
            ..Host::new(memory, config)
        }
    }

    /// The state of the bus and of the adapter, whose sides are detached.
    pub fn save(&self) -> (BusState, State) {
        (self.bus.save(), self.adapter.save())
    }

    /// A host that goes on where another was saved.
    ///
    /// # Panics
    /// The state is refused.
    pub fn restore(memory: Arc<Memory>, config: Config, state: &(BusState, State)) -> Host {
        let (kick, attention) = (event(), event());
        let adapter = Adapter::new(memory, config, kick.clone(), attention);
        let mut effects = Vec::new();
        let bus = Bus::restore(&state.0, &mut effects).expect("the state of a bus");
        let index = |offer: &Offer| offer.sub_channel.map_or(0, |(_, index)| index.into());
        let channels = bus.channels().map(|(relid, offer)| (relid, index(offer)));
        let mut host = Host {
            channels: channels.collect(),
            bus,
            adapter,
            kick,
            interrupt: event(),
            messages: Vec::new(),
            elsewhere: None,
        };
        host.serve(effects);
        assert!(host.messages.is_empty(), "the guest is not told");
        host.adapter
            .restore(&state.1)
            .expect("the state of an adapter");
        host
    }

    fn offer(&mut self, sub_channel: Option<(u16, u16)>) {
        let offer = Offer {
            sub_channel,
            ..Offer::network([7; 16])
        };
        let mut effects = Vec::new();
        let relid = self.bus.offer(offer, &mut effects).expect("an offer");
        let index = sub_channel.map_or(0, |(_, index)| index.into());
        self.channels.push((relid, index));
        self.serve(effects);
    }

    /// Offers the sub-channels that the driver asked for.
    pub fn offer_sub_channels(&mut self) {
        let have = self.channels.len() as u32 - 1;
        for index in have..self.adapter.sub_channels() {
            self.offer(Some((self.channels[0].0, index as u16 + 1)));
        }
    }

    /// The guest posts a message.
    pub fn message(&mut self, bytes: &[u8]) {
        let mut effects = Vec::new();
        let _ = self.bus.message(bytes, &mut effects);
        self.serve(effects);
    }

    /// The guest signals a connection.
    pub fn signal(&self, connection: u32) {
        match self.bus.signal(connection) {
            Some(Target::Channel(_) | Target::All) => {
                vswitch::ports::vhost::notify::signal(&*self.kick);
            }
            None => panic!("signal on connection {connection:#x}"),
        }
    }

    /// How often the guest was interrupted since it was last asked.
    pub fn interrupts(&self) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(&*self.interrupt, &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    }

    fn serve(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Post { message, .. } => self.messages.push(message),
                Effect::Ask { relid, demand } => {
                    let done = self.meet(relid, demand);
                    let mut more = Vec::new();
                    self.bus.done(relid, done, &mut more);
                    self.serve(more);
                }
            }
        }
    }

    fn meet(&mut self, relid: u16, demand: Demand) -> Done {
        let index = self.channels.iter().find(|(known, _)| *known == relid);
        let index = index.map_or(usize::MAX, |(_, index)| *index);
        if let Some(elsewhere) = &mut self.elsewhere {
            let ok = elsewhere(index, &demand);
            return demand.answer(ok);
        }
        let ok = match &demand {
            Demand::Add { gpadl, list } => self.adapter.add(*gpadl, list).is_ok(),
            Demand::Remove { gpadl } => {
                self.adapter.remove(*gpadl);
                true
            }
            Demand::Open(open) => {
                let signal = Signal {
                    flags: Vec::new(),
                    interrupt: Some(self.interrupt.clone()),
                };
                let opened = self
                    .adapter
                    .open(index, &open.ring, open.downstream_page, signal);
                opened.is_ok()
            }
            Demand::Close => {
                self.adapter.close(index);
                true
            }
            Demand::Retarget { .. } => true,
        };
        demand.answer(ok)
    }
}

/// Lets the worker look at the port once, as it would with frames for nobody; gives how many there were.
pub fn poll(tx: &mut dyn TxSide) -> usize {
    let mut burst = Burst::new();
    tx.gather(&mut burst);
    if !burst.is_empty() {
        tx.complete();
    }
    burst.len()
}
