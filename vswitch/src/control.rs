//! The control side of the switch: makes networks and ports, and changes them under running workers.
//!
//! Every change is made between turns: it is sent to the workers' mailboxes and holds once all of them have answered.
//! What they used until then is dropped here, so that no worker frees memory or unmaps.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use crate::counters::PortCounters;
use crate::fdb::{Fdb, FdbError, PortIndex};
use crate::network::{NetworkId, NetworkView, PortPolicy, PortView};
use crate::slot::{PortId, PortSlot};
use crate::worker::{Command, Reply, WorkerTotals};

mod port;
mod stepped;
mod workers;

pub use port::PortHandle;
use port::PortState;
pub use stepped::SteppedWorker;
pub use workers::{StartError, allowed_cores};
use workers::{WorkerHandle, start_worker, stop_all};

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
    /// Then `settle` does what must be done before the next change. The lock on the networks is held throughout, so that
    /// views reach all workers in one order, and nobody is given a port index that is still being cleared.
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
