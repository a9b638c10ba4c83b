//! The control side of the switch: makes networks and ports, and changes them under running workers.
//!
//! Every change is made between turns: it is sent to the workers' mailboxes and holds once all of them have answered.
//! What they used until then is dropped here, so that no worker frees memory or unmaps.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

pub use crate::counters::PortCounters;
use crate::fdb::{Fdb, FdbError, PortIndex};
use crate::network::{NetworkId, NetworkView, PortPolicy, PortView};
use crate::port::{PortControl, PortFault, Sides};
use crate::slot::{PortId, PortSlot};
use crate::turn::Membership;
use crate::worker::{Command, Reply, Worker, WorkerShared, WorkerTotals};

mod stepped;

pub use stepped::SteppedWorker;

/// Ports a network holds at most: indices are 16 bits.
pub const MAX_PORTS: usize = 1 << 16;

/// What a network is made with.
#[derive(Clone, Debug)]
pub struct NetworkSpec {
    /// How long a silent station is remembered, in whole seconds; zero is for ever.
    pub ageing: Duration,
    /// Stations the MAC table holds.
    pub fdb_capacity: usize,
}

impl Default for NetworkSpec {
    fn default() -> Self {
        NetworkSpec {
            ageing: Duration::from_secs(crate::fdb::DEFAULT_AGEING.into()),
            fdb_capacity: crate::fdb::DEFAULT_CAPACITY,
        }
    }
}

/// Why a change to the switch was refused.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The network is gone.
    #[error("there is no such network")]
    NoNetwork,
    /// The network still has ports.
    #[error("the network still has {0} ports")]
    HasPorts(usize),
    /// The network has as many ports as it can.
    #[error("the network has {MAX_PORTS} ports already")]
    TooManyPorts,
    /// The port was removed.
    #[error("the port was removed")]
    NoPort,
    /// The MAC table cannot be made.
    #[error(transparent)]
    Fdb(#[from] FdbError),
    /// The kernel refused an event file descriptor.
    #[error("cannot make an event file descriptor")]
    Event(#[source] rustix::io::Errno),
}

/// Why the switch does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No core was given.
    #[error("no core was given for the workers; at least one is needed")]
    NoCores,
    /// A core does not exist, or this process may not run on it.
    #[error("cannot pin a worker to core {core}; allowed for this process: {}", listed(&allowed_cores()))]
    Pin {
        /// The core asked for.
        core: usize,
        /// What the kernel said.
        #[source]
        source: rustix::io::Errno,
    },
    /// The thread cannot be made.
    #[error("cannot start the worker thread of core {core}")]
    Thread {
        /// The core asked for.
        core: usize,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

struct WorkerHandle {
    shared: Arc<WorkerShared>,
    commands: Mutex<Sender<Command>>,
    /// The worker itself, if it has no thread.
    by_hand: Option<SteppedWorker>,
}

impl WorkerHandle {
    /// Sends a command and waits until it holds.
    fn call(&self, command: impl FnOnce(Sender<Reply>) -> Command) -> Reply {
        let (to, reply) = channel();
        let sent = self
            .commands
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .send(command(to));
        if sent.is_err() {
            return Reply::default();
        }
        match &self.by_hand {
            Some(worker) => worker.lock().unwrap_or_else(PoisonError::into_inner).obey(),
            None => self.shared.ring(),
        }
        // A worker that has ended has let go of everything.
        reply.recv().unwrap_or_default()
    }
}

struct Network {
    view: Arc<NetworkView>,
}

/// What handles and the switch share.
struct Core {
    workers: Vec<WorkerHandle>,
    networks: Mutex<BTreeMap<NetworkId, Network>>,
    next_id: AtomicU64,
    started: Instant,
}

/// What `status` shows of a worker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WorkerStatus {
    /// The core it runs on.
    pub core: usize,
    /// Totals since the start.
    pub totals: WorkerTotals,
}

/// The running switch. Dropping it stops the workers.
pub struct Switch {
    core: Arc<Core>,
    threads: Vec<JoinHandle<()>>,
}

impl Switch {
    /// Starts one worker on each of `cores`.
    ///
    /// # Errors
    /// [`StartError`]: no cores, a core that does not exist, a thread that cannot be made. Nothing is left running.
    pub fn start(cores: &[usize]) -> Result<Switch, StartError> {
        if cores.is_empty() {
            return Err(StartError::NoCores);
        }
        let started = Instant::now();
        let mut switch = Switch {
            core: Arc::new(Core {
                workers: Vec::new(),
                networks: Mutex::default(),
                next_id: AtomicU64::new(1),
                started,
            }),
            threads: Vec::new(),
        };
        let mut workers = Vec::new();
        for &core in cores {
            match start_worker(core, started) {
                Ok((worker, thread)) => {
                    workers.push(worker);
                    switch.threads.push(thread);
                }
                Err(error) => {
                    stop_all(&workers);
                    return Err(error);
                }
            }
        }
        if let Some(inner) = Arc::get_mut(&mut switch.core) {
            inner.workers = workers;
        }
        Ok(switch)
    }

    /// Makes an empty network.
    ///
    /// # Errors
    /// There is no memory for its MAC table.
    pub fn create_network(&self, spec: &NetworkSpec) -> Result<NetworkId, ControlError> {
        let id = NetworkId(self.core.next_id.fetch_add(1, Ordering::Relaxed));
        let seed = RandomState::new().hash_one(id.0);
        let ageing = spec.ageing.as_secs().min(u64::from(u32::MAX)) as u32;
        let fdb = Arc::new(Fdb::new(spec.fdb_capacity, ageing, seed)?);
        let view = Arc::new(NetworkView {
            id,
            fdb,
            ports: Vec::new(),
        });
        self.core.networks().insert(id, Network { view });
        Ok(id)
    }

    /// Removes a network.
    ///
    /// # Errors
    /// It does not exist, or ports are connected to it.
    pub fn delete_network(&self, id: NetworkId) -> Result<(), ControlError> {
        let mut networks = self.core.networks();
        let network = networks.get(&id).ok_or(ControlError::NoNetwork)?;
        match network.view.iter().count() {
            0 => {
                networks.remove(&id);
                Ok(())
            }
            ports => Err(ControlError::HasPorts(ports)),
        }
    }

    /// Makes a port that is connected to no network, owned by `worker` or by the one with the fewest ports.
    ///
    /// # Errors
    /// The kernel refuses an event file descriptor.
    pub fn add_port(
        &self,
        policy: PortPolicy,
        worker: Option<usize>,
    ) -> Result<Arc<PortHandle>, ControlError> {
        let id = PortId(self.core.next_id.fetch_add(1, Ordering::Relaxed));
        let slot = Arc::new(PortSlot::new(id).map_err(ControlError::Event)?);
        let fewest = || {
            self.core
                .workers
                .iter()
                .enumerate()
                .min_by_key(|(_, worker)| worker.shared.totals().ports)
        };
        let owner = worker.filter(|&worker| worker < self.core.workers.len());
        let owner = owner
            .or_else(|| fewest().map(|(index, _)| index))
            .unwrap_or(0);
        let handle = PortHandle {
            core: Arc::downgrade(&self.core),
            slot: slot.clone(),
            owner,
            state: Mutex::new(PortState {
                policy,
                place: None,
                removed: false,
            }),
        };
        self.core.call(owner, |to| Command::Add(slot, to));
        Ok(Arc::new(handle))
    }

    /// The MAC table of a network.
    pub fn fdb(&self, id: NetworkId) -> Option<Arc<Fdb>> {
        self.core
            .networks()
            .get(&id)
            .map(|network| network.view.fdb.clone())
    }

    /// A network as the workers see it now.
    pub fn view(&self, id: NetworkId) -> Option<Arc<NetworkView>> {
        self.core
            .networks()
            .get(&id)
            .map(|network| network.view.clone())
    }

    /// Seconds on the clock that MAC tables age by.
    pub fn now(&self) -> u32 {
        self.core.started.elapsed().as_secs() as u32
    }

    /// Gives the places of aged entries back in all MAC tables; to be called every few seconds.
    pub fn sweep(&self) {
        let tables: Vec<_> = self
            .core
            .networks()
            .values()
            .map(|network| network.view.fdb.clone())
            .collect();
        for fdb in tables {
            fdb.sweep(self.now());
        }
    }

    /// Every worker with its totals.
    pub fn workers(&self) -> Vec<WorkerStatus> {
        let status = |worker: &WorkerHandle| WorkerStatus {
            core: worker.shared.core.unwrap_or(0),
            totals: worker.shared.totals(),
        };
        self.core.workers.iter().map(status).collect()
    }

    /// Stops the workers and waits for them.
    pub fn stop(mut self) {
        self.shut_down();
    }

    fn shut_down(&mut self) {
        stop_all(&self.core.workers);
        for thread in self.threads.drain(..) {
            // A worker that panicked has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.shut_down();
    }
}

fn stop_all(workers: &[WorkerHandle]) {
    for worker in workers {
        let _ = worker
            .commands
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .send(Command::Stop);
        worker.shared.ring();
    }
}

fn start_worker(
    core: usize,
    started: Instant,
) -> Result<(WorkerHandle, JoinHandle<()>), StartError> {
    let shared =
        WorkerShared::new(Some(core)).map_err(|source| StartError::Pin { core, source })?;
    let shared = Arc::new(shared);
    let (commands, mailbox) = channel();
    let (pinned, is_pinned) = channel();
    let worker_shared = shared.clone();
    let thread = std::thread::Builder::new()
        .name(format!("worker-{core}"))
        .spawn(move || {
            let result = pin(core);
            let ok = result.is_ok();
            let _ = pinned.send(result);
            if ok {
                Worker::new(worker_shared, mailbox, started).run();
            }
        })
        .map_err(|source| StartError::Thread { core, source })?;
    match is_pinned.recv() {
        Ok(Err(source)) => Err(StartError::Pin { core, source }),
        _ => Ok((
            WorkerHandle {
                shared,
                commands: Mutex::new(commands),
                by_hand: None,
            },
            thread,
        )),
    }
}

/// The cores that this process may run on, in order; none where the kernel does not tell.
pub fn allowed_cores() -> Vec<usize> {
    let set = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
    (0..CpuSet::MAX_CPU)
        .filter(|&core| set.is_set(core))
        .collect()
}

/// Cores as users write them: `0,2-5`.
fn listed(cores: &[usize]) -> String {
    let ranges = cores.chunk_by(|before, after| before + 1 == *after);
    let range = |range: &[usize]| match range {
        [first, .., last] => format!("{first}-{last}"),
        range => range.iter().map(usize::to_string).collect(),
    };
    ranges.map(range).collect::<Vec<_>>().join(",")
}

fn pin(core: usize) -> rustix::io::Result<()> {
    if core >= CpuSet::MAX_CPU {
        return Err(rustix::io::Errno::INVAL);
    }
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(None, &cores)
}

impl Core {
    fn networks(&self) -> MutexGuard<'_, BTreeMap<NetworkId, Network>> {
        self.networks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self, worker: usize, command: impl FnOnce(Sender<Reply>) -> Command) -> Reply {
        self.workers
            .get(worker)
            .map(|worker| worker.call(command))
            .unwrap_or_default()
    }

    /// Replaces the ports of a network by what `change` makes of them, and waits until every worker has the new view.
    /// Then `settle` does what must be done before the next change. The lock on the networks is held throughout, so that views reach all workers in one
    /// order, and nobody is given a port index that is still being cleared.
    fn change<T>(
        &self,
        id: NetworkId,
        change: impl FnOnce(&Fdb, &mut Vec<Option<Arc<PortView>>>) -> Result<T, ControlError>,
        settle: impl FnOnce(&Arc<NetworkView>, &T),
    ) -> Result<T, ControlError> {
        let mut networks = self.networks();
        let network = networks.get_mut(&id).ok_or(ControlError::NoNetwork)?;
        let mut ports = network.view.ports.clone();
        let result = change(&network.view.fdb, &mut ports)?;
        network.view = Arc::new(NetworkView {
            id,
            fdb: network.view.fdb.clone(),
            ports,
        });
        let view = network.view.clone();
        for worker in &self.workers {
            worker.call(|to| Command::View(view.clone(), to));
        }
        settle(&view, &result);
        Ok(result)
    }

    /// Takes the port at `index` out of a network, and forgets what was learned behind it.
    fn vacate(&self, network: NetworkId, index: PortIndex) {
        let remove = |_: &Fdb, ports: &mut Vec<Option<Arc<PortView>>>| {
            if let Some(place) = ports.get_mut(usize::from(index)) {
                *place = None;
            }
            while ports.pop_if(|last| last.is_none()).is_some() {}
            Ok(())
        };
        // The network cannot be gone: it is not deleted while it has ports.
        let _ = self.change(network, remove, |view, ()| view.fdb.forget_port(index));
    }
}

struct PortState {
    policy: PortPolicy,
    place: Option<(NetworkId, PortIndex)>,
    removed: bool,
}

/// A port of the switch. Sides are attached to it, and it is connected to a network or to none.
pub struct PortHandle {
    core: Weak<Core>,
    slot: Arc<PortSlot>,
    owner: usize,
    state: Mutex<PortState>,
}

impl PortHandle {
    /// Which port.
    pub fn id(&self) -> PortId {
        self.slot.id()
    }

    /// Connects the port to a network, leaving the one it was connected to.
    ///
    /// # Errors
    /// No such network, or it is full: the port then stays where it was. The port was removed.
    pub fn connect(&self, network: NetworkId) -> Result<(), ControlError> {
        let core = self.core.upgrade().ok_or(ControlError::NoPort)?;
        let mut state = self.state();
        if state.removed {
            return Err(ControlError::NoPort);
        }
        if state.place.is_some_and(|(current, _)| current == network) {
            return Ok(());
        }
        let port = Arc::new(PortView {
            slot: self.slot.clone(),
            policy: state.policy.clone(),
        });
        let quota = state.policy.mac_quota;
        let enter = |fdb: &Fdb, ports: &mut Vec<Option<Arc<PortView>>>| {
            let free = ports.iter().position(Option::is_none);
            let index = free.unwrap_or(ports.len());
            if index >= MAX_PORTS {
                return Err(ControlError::TooManyPorts);
            }
            match ports.get_mut(index) {
                Some(place) => *place = Some(port),
                None => ports.push(Some(port)),
            }
            fdb.set_quota(index as PortIndex, quota);
            Ok(index as PortIndex)
        };
        let index = core.change(network, enter, |view, &index| {
            let view = view.clone();
            let membership = Some(Membership { view, index });
            core.call(self.owner, |to| Command::Join(self.id(), membership, to));
        })?;
        if let Some((before, index)) = state.place.replace((network, index)) {
            core.vacate(before, index);
        }
        Ok(())
    }

    /// Disconnects the port: its frames are dropped, and none are delivered to it.
    pub fn disconnect(&self) {
        if let Some(core) = self.core.upgrade() {
            self.leave(&core, &mut self.state());
        }
    }

    fn leave(&self, core: &Core, state: &mut PortState) {
        let Some((network, index)) = state.place.take() else {
            return;
        };
        core.call(self.owner, |to| Command::Join(self.id(), None, to));
        core.vacate(network, index);
    }

    /// The network and index the port is connected at.
    pub fn place(&self) -> Option<(NetworkId, PortIndex)> {
        self.state().place
    }

    /// What was decided about the port.
    pub fn policy(&self) -> PortPolicy {
        self.state().policy.clone()
    }

    /// Changes what was decided about the port; holds for all frames taken in after the return.
    pub fn set_policy(&self, policy: PortPolicy) {
        let mut state = self.state();
        let learned_elsewhere =
            state.policy.vlan != policy.vlan || state.policy.mac_guard != policy.mac_guard;
        state.policy = policy.clone();
        let (Some((network, index)), Some(core)) = (state.place, self.core.upgrade()) else {
            return;
        };
        let quota = policy.mac_quota;
        let port = Arc::new(PortView {
            slot: self.slot.clone(),
            policy,
        });
        let replace = |fdb: &Fdb, ports: &mut Vec<Option<Arc<PortView>>>| {
            if let Some(place) = ports.get_mut(usize::from(index)) {
                *place = Some(port);
            }
            fdb.set_quota(index, quota);
            Ok(())
        };
        // The network cannot be gone: it is not deleted while it has ports.
        let _ = core.change(network, replace, |view, ()| {
            if learned_elsewhere {
                view.fdb.flush_port(index);
            }
        });
    }

    /// The counters as they stand.
    pub fn counters(&self) -> PortCounters {
        self.slot.counters()
    }

    /// Takes the port out of the switch. Its sides are returned.
    pub fn remove(&self) -> Option<Sides> {
        self.disconnect();
        let sides = self.detach();
        self.state().removed = true;
        if let Some(core) = self.core.upgrade() {
            core.call(self.owner, |to| Command::Remove(self.id(), to));
        }
        sides
    }

    fn state(&self) -> MutexGuard<'_, PortState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PortControl for PortHandle {
    fn attach(&self, sides: Sides) -> Option<Sides> {
        let before = self.detach();
        let core = self.core.upgrade()?;
        self.slot.clear_fault();
        self.slot.set_rx(Some(sides.rx));
        core.call(self.owner, |to| Command::Attach(self.id(), sides.tx, to));
        before
    }

    fn detach(&self) -> Option<Sides> {
        let core = self.core.upgrade()?;
        let tx = core
            .call(self.owner, |to| Command::Detach(self.id(), to))
            .tx;
        let rx = self.slot.set_rx(None);
        Some(Sides { tx: tx?, rx: rx? })
    }

    fn fault(&self) -> Option<PortFault> {
        self.slot.fault()
    }

    fn fault_fd(&self) -> BorrowedFd<'_> {
        self.slot.fault_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_listed_as_users_write_them() {
        for (cores, text) in [
            (&[][..], ""),
            (&[3], "3"),
            (&[0, 1], "0-1"),
            (&[0, 2, 3, 4, 9], "0,2-4,9"),
        ] {
            assert_eq!(listed(cores), text);
        }
    }
}
