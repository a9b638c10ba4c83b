//! A worker: the thread, pinned to a core, that owns ports and turns over them.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::time::Instant;

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

use crate::network::NetworkView;
use crate::patience::Patience;
use crate::port::TxSide;
use crate::slot::{PortId, PortSlot};
use crate::turn::{Membership, Turn};
use crate::wakeup::{Bell, Event};

/// Longest sleep: state that nobody signals (the clock) is looked at this often.
const SLEEP: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};
/// Turns between two looks at the clock while there is traffic.
const TURNS_PER_CLOCK: u32 = 256;

/// A change to a worker, made between two turns. Each is answered once it holds.
pub enum Command {
    /// Own the port of this slot from now on.
    Add(Arc<PortSlot>, Sender<Reply>),
    /// Own it no longer.
    Remove(PortId, Sender<Reply>),
    /// Poll this side of the port.
    Attach(PortId, Box<dyn TxSide>, Sender<Reply>),
    /// Give the port's side back.
    Detach(PortId, Sender<Reply>),
    /// The port is now at this place of a network, or of none.
    Join(PortId, Option<Membership>, Sender<Reply>),
    /// The network is now like this.
    View(Arc<NetworkView>, Sender<Reply>),
    /// End the thread.
    Stop,
}

/// What a worker lets go of when a command is carried out; dropped on the control side.
#[derive(Default)]
pub struct Reply {
    /// The side that was polled until now.
    pub tx: Option<Box<dyn TxSide>>,
    /// Memberships that were in use until now.
    pub memberships: Vec<Membership>,
}

impl Event for OwnedFd {
    fn set(&self) {
        let _ = rustix::io::write(self, &1u64.to_ne_bytes());
    }

    fn clear(&self) {
        let _ = rustix::io::read(self, &mut [0u8; 8]);
    }
}

/// What a worker and its control side share.
pub struct WorkerShared {
    /// The core it is pinned to; `None` if it is not pinned.
    pub core: Option<usize>,
    bell: Bell<OwnedFd>,
    ports: AtomicU64,
    busy_cycles: AtomicU64,
    cycles: AtomicU64,
    frames: AtomicU64,
    parked: AtomicBool,
}

/// Running totals of a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerTotals {
    /// Ports it owns.
    pub ports: u64,
    /// Frames it took in.
    pub frames: u64,
    /// Cycles spent in turns that took frames in.
    pub busy_cycles: u64,
    /// Cycles since it started, asleep or not.
    pub cycles: u64,
    /// Whether it is asleep.
    pub parked: bool,
}

impl WorkerShared {
    /// For a worker on `core`.
    pub fn new(core: Option<usize>) -> rustix::io::Result<WorkerShared> {
        Ok(WorkerShared {
            core,
            bell: Bell::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?),
            ports: AtomicU64::new(0),
            busy_cycles: AtomicU64::new(0),
            cycles: AtomicU64::new(0),
            frames: AtomicU64::new(0),
            parked: AtomicBool::new(false),
        })
    }

    /// Tells the worker that a command is waiting.
    pub fn ring(&self) {
        self.bell.ring();
    }

    /// The totals as of the worker's last look at the clock.
    pub fn totals(&self) -> WorkerTotals {
        WorkerTotals {
            ports: self.ports.load(Ordering::Relaxed),
            frames: self.frames.load(Ordering::Relaxed),
            busy_cycles: self.busy_cycles.load(Ordering::Relaxed),
            cycles: self.cycles.load(Ordering::Relaxed),
            parked: self.parked.load(Ordering::Relaxed),
        }
    }
}

struct Owned {
    slot: Arc<PortSlot>,
    tx: Option<Box<dyn TxSide>>,
    membership: Option<Membership>,
    /// The side reported a fault: it is not polled any more.
    faulted: bool,
}

/// The state of a worker. [`Worker::run`] is the thread; simulations call [`Worker::poll`] themselves.
pub struct Worker {
    shared: Arc<WorkerShared>,
    commands: Receiver<Command>,
    ports: Vec<Owned>,
    turn: Turn,
    /// Epoll of everything that ends a sleep; made anew when sides change.
    sleepers: Option<OwnedFd>,
    started: Instant,
    now: u32,
    frames: u64,
    busy_cycles: u64,
    stop: bool,
}

impl Worker {
    /// A worker that takes its commands from `commands`. `started` is second 0 of the switch's clock.
    pub fn new(shared: Arc<WorkerShared>, commands: Receiver<Command>, started: Instant) -> Worker {
        Worker {
            shared,
            commands,
            ports: Vec::new(),
            turn: Turn::new(),
            sleepers: None,
            started,
            now: 0,
            frames: 0,
            busy_cycles: 0,
            stop: false,
        }
    }

    /// Polls until told to stop.
    pub fn run(mut self) {
        let born = guestmem::cycles();
        let mut last_frame = born;
        let mut turns = 0u32;
        let mut patience = Patience::new(born);
        self.tick(born);
        while !self.stop {
            if self.shared.bell.answer() {
                self.obey();
                last_frame = guestmem::cycles();
            }
            let before = guestmem::cycles();
            if self.poll(self.now) > 0 {
                last_frame = guestmem::cycles();
                self.busy_cycles += last_frame.wrapping_sub(before);
            } else if patience.is_over(last_frame, before) {
                self.sleep();
                self.tick(born);
                last_frame = guestmem::cycles();
                patience.slept(before, last_frame);
            } else {
                std::hint::spin_loop();
            }
            turns = turns.wrapping_add(1);
            if turns.is_multiple_of(TURNS_PER_CLOCK) {
                self.tick(born);
            }
        }
    }

    /// One turn of every port at second `now`. Returns the frames taken in.
    pub fn poll(&mut self, now: u32) -> u32 {
        let mut frames = 0;
        for port in &mut self.ports {
            let Some(tx) = port.tx.as_mut().filter(|_| !port.faulted) else {
                continue;
            };
            frames += self
                .turn
                .run(&mut **tx, &port.slot, port.membership.as_ref(), now)
                .frames;
            if let Some(fault) = tx.fault() {
                port.faulted = true;
                port.slot.set_fault(fault);
            }
        }
        self.frames += u64::from(frames);
        frames
    }

    /// Carries out every command that is waiting.
    pub fn obey(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            let (reply, to) = match command {
                Command::Add(slot, to) => {
                    self.ports.push(Owned {
                        slot,
                        tx: None,
                        membership: None,
                        faulted: false,
                    });
                    (Reply::default(), to)
                }
                Command::Remove(id, to) => {
                    self.ports.retain(|port| port.slot.id() != id);
                    (Reply::default(), to)
                }
                Command::Attach(id, tx, to) => (self.attach(id, tx), to),
                Command::Detach(id, to) => (self.detach(id), to),
                Command::Join(id, membership, to) => (self.join(id, membership), to),
                Command::View(view, to) => (self.update(&view), to),
                Command::Stop => {
                    self.stop = true;
                    return;
                }
            };
            self.shared
                .ports
                .store(self.ports.len() as u64, Ordering::Relaxed);
            // Whoever asked may have gone: then nobody minds that the reply is dropped here.
            let _ = to.send(reply);
        }
    }

    fn port(&mut self, id: PortId) -> Option<&mut Owned> {
        self.ports.iter_mut().find(|port| port.slot.id() == id)
    }

    fn attach(&mut self, id: PortId, mut tx: Box<dyn TxSide>) -> Reply {
        self.sleepers = None;
        tx.disarm();
        match self.port(id) {
            Some(port) => {
                port.faulted = false;
                Reply {
                    tx: port.tx.replace(tx),
                    memberships: Vec::new(),
                }
            }
            None => Reply {
                tx: Some(tx),
                memberships: Vec::new(),
            },
        }
    }

    fn detach(&mut self, id: PortId) -> Reply {
        self.sleepers = None;
        Reply {
            tx: self.port(id).and_then(|port| port.tx.take()),
            memberships: Vec::new(),
        }
    }

    fn join(&mut self, id: PortId, membership: Option<Membership>) -> Reply {
        if let Some(membership) = &membership {
            self.turn.make_room(membership.view.ports.len());
        }
        let old = self
            .port(id)
            .and_then(|port| std::mem::replace(&mut port.membership, membership));
        Reply {
            tx: None,
            memberships: old.into_iter().collect(),
        }
    }

    fn update(&mut self, view: &Arc<NetworkView>) -> Reply {
        self.turn.make_room(view.ports.len());
        let mut reply = Reply::default();
        for membership in self
            .ports
            .iter_mut()
            .filter_map(|port| port.membership.as_mut())
        {
            if membership.view.id == view.id {
                let new = Membership {
                    view: view.clone(),
                    index: membership.index,
                };
                reply.memberships.push(std::mem::replace(membership, new));
            }
        }
        reply
    }

    /// Reads the clock and shows the totals.
    fn tick(&mut self, born: u64) {
        self.now = self.started.elapsed().as_secs() as u32;
        self.shared.frames.store(self.frames, Ordering::Relaxed);
        self.shared
            .busy_cycles
            .store(self.busy_cycles, Ordering::Relaxed);
        self.shared
            .cycles
            .store(guestmem::cycles().wrapping_sub(born), Ordering::Relaxed);
    }

    /// Sleeps until a port or the control side has something.
    fn sleep(&mut self) {
        if self.doze() {
            self.shared.parked.store(true, Ordering::Relaxed);
            // Without an epoll to be had: look again in a millisecond.
            if self.wait(&SLEEP).is_none() {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            self.shared.parked.store(false, Ordering::Relaxed);
        }
        self.rouse();
    }

    /// Tells every port to wake the worker. True if nothing came in meanwhile, so that it may sleep.
    pub fn doze(&mut self) -> bool {
        if self.sleepers.is_none() {
            self.sleepers = self.watch().ok();
        }
        let mut may_sleep = true;
        for tx in self.polled() {
            may_sleep &= !tx.arm();
        }
        may_sleep && !self.shared.bell.rings()
    }

    /// Waits for a wake-up for up to `time`; whether there was one. `None` if there is no way to wait.
    pub fn wait(&self, time: &Timespec) -> Option<bool> {
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }];
        let woken = epoll::wait(self.sleepers.as_ref()?, &mut events[..], Some(time));
        Some(woken.is_ok_and(|events| events > 0))
    }

    /// Tells every port that the worker polls again.
    pub fn rouse(&mut self) {
        self.shared.bell.hush();
        for tx in self.polled() {
            tx.disarm();
        }
    }

    fn polled(&mut self) -> impl Iterator<Item = &mut Box<dyn TxSide>> {
        self.ports
            .iter_mut()
            .filter(|port| !port.faulted)
            .filter_map(|port| port.tx.as_mut())
    }

    fn watch(&mut self) -> rustix::io::Result<OwnedFd> {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let readable = epoll::EventFlags::IN;
        epoll::add(
            &set,
            self.shared.bell.event().as_fd(),
            epoll::EventData::new_u64(0),
            readable,
        )?;
        let mut result = Ok(());
        for tx in self.polled() {
            tx.wake_fds(&mut |fd| {
                if let Err(error) = epoll::add(&set, fd, epoll::EventData::new_u64(0), readable) {
                    result = Err(error);
                }
            });
        }
        result.map(|()| set)
    }
}
