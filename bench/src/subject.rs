//! What is measured: the switch of this process, another one behind vhost-user sockets, or a mere copy.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use vswitch::control::{NetworkSpec, PortHandle, SteppedWorker, Switch};
use vswitch::network::{NetworkId, PortPolicy};
use vswitch::port::{PortControl, Sides};
use vswitch::ports::vhost::driver::{Frontend, Guest as Front};
use vswitch::ports::vhost::server::{Config, Mode, VhostPort};
use vswitch::ports::vhost::session::{Offer, Session};

use crate::case::Case;
use crate::wire::Wire;

/// What guests of our own switch are offered.
const OFFER: Offer = Offer {
    queue_pairs: 1,
    mtu: 9000,
};
/// How long a switch may take until it has the guests' rings.
const CONNECT: Duration = Duration::from_secs(5);

/// What the switch counted so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) busy_cycles: u64,
    pub(crate) taken: u64,
    pub(crate) delivered: u64,
    pub(crate) delivered_bytes: u64,
    /// Copies that were dropped, for whatever reason.
    pub(crate) dropped: u64,
    pub(crate) copied_bytes: u64,
    pub(crate) notifications: u64,
}

impl Counts {
    /// Share of the frames taken that were dropped.
    pub(crate) fn lost(&self) -> f64 {
        self.dropped as f64 / self.taken.max(1) as f64
    }

    /// What was counted after `before`.
    pub(crate) fn since(&self, before: &Counts) -> Counts {
        Counts {
            busy_cycles: self.busy_cycles - before.busy_cycles,
            taken: self.taken - before.taken,
            delivered: self.delivered - before.delivered,
            delivered_bytes: self.delivered_bytes - before.delivered_bytes,
            dropped: self.dropped - before.dropped,
            copied_bytes: self.copied_bytes - before.copied_bytes,
            notifications: self.notifications - before.notifications,
        }
    }
}

/// The switch of this process, with one network.
pub(crate) struct Local {
    switch: Switch,
    network: NetworkId,
    ports: Vec<Arc<PortHandle>>,
    sessions: Vec<Session>,
}

impl Local {
    /// Starts it with one worker on each of `cores`.
    pub(crate) fn start(cores: &[usize]) -> Result<Local> {
        Local::of(Switch::start(cores)?)
    }

    /// The same with `count` workers whose turns the caller takes.
    pub(crate) fn stepped(count: usize) -> Result<(Local, Vec<SteppedWorker>)> {
        let (switch, workers) = Switch::stepped(count)?;
        Ok((Local::of(switch)?, workers))
    }

    fn of(switch: Switch) -> Result<Local> {
        let network = switch.create_network(&NetworkSpec::default())?;
        Ok(Local {
            switch,
            network,
            ports: Vec::new(),
            sessions: Vec::new(),
        })
    }

    /// Adds a port for jumbo frames that may learn as many addresses as the table holds, to a worker or to the one with the
    /// fewest.
    fn add_port(&mut self, worker: Option<usize>) -> Result<Arc<PortHandle>> {
        let policy = PortPolicy {
            mtu: 9000,
            mac_quota: 1 << 20,
            ..PortPolicy::default()
        };
        let port = self.switch.add_port(policy, worker)?;
        port.connect(self.network)?;
        self.ports.push(Arc::clone(&port));
        Ok(port)
    }

    /// Adds a port with its sides.
    pub(crate) fn add(&mut self, sides: Sides) -> Result<()> {
        self.add_port(None)?.attach(sides);
        Ok(())
    }

    /// Adds a port for a guest, to a worker or to the one with the fewest.
    pub(crate) fn add_guest(&mut self, front: &Front, worker: Option<usize>) -> Result<()> {
        let mut session = Session::new(OFFER);
        let sides = front.start_in(&mut session)?;
        self.sessions.push(session);
        self.add_port(worker)?.attach(sides);
        Ok(())
    }

    /// What all workers and ports counted.
    pub(crate) fn counts(&self) -> Counts {
        let busy = self.switch.workers();
        let mut counts = Counts {
            busy_cycles: busy.iter().map(|worker| worker.totals.busy_cycles).sum(),
            ..Counts::default()
        };
        for port in &self.ports {
            let now = port.counters();
            counts.taken += now.tx.frames;
            counts.delivered += now.rx.frames;
            counts.delivered_bytes += now.rx.bytes;
            counts.dropped += now.tx.dropped();
            counts.copied_bytes += now.rx.copied_bytes;
            counts.notifications += now.tx.notifications + now.rx.notifications;
        }
        counts
    }
}

/// Another switch: the sockets on which its ports listen.
pub(crate) fn connect(sockets: &[PathBuf], fronts: &[&Front]) -> Result<Vec<Frontend>> {
    let start = Instant::now();
    let connect = |(path, front): (&PathBuf, &&Front)| loop {
        // A switch that has just seen the last guest go may need a moment.
        let attempt = Frontend::connect(path).and_then(|frontend| {
            frontend.handshake(front)?;
            Ok(frontend)
        });
        match attempt {
            Ok(frontend) => return Ok(frontend),
            Err(error) if start.elapsed() > CONNECT => {
                return Err(error).with_context(|| format!("connecting to {}", path.display()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    sockets.iter().zip(fronts).map(connect).collect()
}

/// Another switch, whose ports connect to sockets.
pub(crate) fn accept(sockets: &[PathBuf], fronts: &[&Front]) -> Result<Vec<Frontend>> {
    let mut listeners = Vec::new();
    for path in sockets.iter().take(fronts.len()) {
        // One that an earlier run left behind; there may be none.
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        listeners.push(listener);
    }
    let start = Instant::now();
    let accept = |(listener, front): (&UnixListener, &&Front)| loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                let frontend = Frontend::new(stream);
                frontend.handshake(front)?;
                return Ok(frontend);
            }
            Err(error) if start.elapsed() > CONNECT => {
                return Err(error).context("the switch did not connect to its guest");
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    listeners.iter().zip(fronts).map(accept).collect()
}

/// A switch with the guests of one run attached. They are detached when it is dropped.
pub(crate) enum Attached<'a> {
    /// The switch of this process.
    Local(Box<Local>),
    /// A copy between two guests.
    Wire {
        /// Held for its thread.
        _wire: Wire,
    },
    /// Another switch.
    Remote {
        /// Held for their connections.
        frontends: Vec<Frontend>,
        /// Stops it from polling when the run is over.
        pause: Box<dyn FnMut() + 'a>,
    },
}

impl Attached<'_> {
    /// What the switch counted, if it is ours.
    pub(crate) fn counts(&self) -> Option<Counts> {
        match self {
            Attached::Local(local) => Some(local.counts()),
            Attached::Wire { .. } | Attached::Remote { .. } => None,
        }
    }

    /// Has done what `vswitchd` does every second or two, as no run here is so long.
    pub(crate) fn tick(&self) {
        if let Attached::Local(local) = self {
            local.switch.sweep();
        }
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        if let Attached::Remote { frontends, pause } = self {
            frontends.clear();
            pause();
        }
    }
}

/// A switch that waits for stock guests on its sockets.
pub(crate) struct Served<'a> {
    pub(crate) sockets: Vec<PathBuf>,
    /// Ends it.
    end: Option<Box<dyn FnOnce() + 'a>>,
}

impl<'a> Served<'a> {
    /// On these sockets, until `end` is called.
    pub(crate) fn new(sockets: Vec<PathBuf>, end: impl FnOnce() + 'a) -> Served<'a> {
        Served {
            sockets,
            end: Some(Box::new(end)),
        }
    }
}

impl Drop for Served<'_> {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            end();
        }
    }
}

/// Somebody who takes part in a comparison.
pub(crate) trait Contender: Send {
    /// What it is called in tables.
    fn name(&self) -> &'static str;
    /// Whether it can do this at all.
    fn can(&self, case: &Case, guests: usize) -> bool;
    /// Lets stock guests connect.
    fn serve(&mut self) -> Result<Served<'_>>;
    /// Attaches guests, which are not yet running.
    fn attach<'a>(&'a mut self, case: &Case, fronts: &[&Front]) -> Result<Attached<'a>>;
}

/// The switch of this process, started anew for every run.
pub(crate) struct Ours {
    /// Cores of the workers.
    pub(crate) cores: Vec<usize>,
}

/// What our own switch is called in results.
pub(crate) const OURS: &str = "vswitch";
/// What the copy without a switch is called in results.
pub(crate) const COPY: &str = "copy only";

impl Contender for Ours {
    fn name(&self) -> &'static str {
        OURS
    }

    fn can(&self, _: &Case, _: usize) -> bool {
        true
    }

    fn serve(&mut self) -> Result<Served<'_>> {
        let mut local = Local::start(&self.cores)?;
        let dir = tempfile::tempdir()?;
        let sockets: Vec<PathBuf> = ["a", "b"].map(|name| dir.path().join(name)).into();
        let mut ports = Vec::new();
        for path in &sockets {
            let config = Config {
                path: path.clone(),
                mode: Mode::Server,
                offer: OFFER,
            };
            ports.push(VhostPort::start(config, local.add_port(None)?)?);
        }
        // Ports end before the switch they belong to.
        Ok(Served::new(sockets, move || {
            drop(ports);
            drop(local);
            drop(dir);
        }))
    }

    fn attach<'a>(&'a mut self, _: &Case, fronts: &[&Front]) -> Result<Attached<'a>> {
        let mut local = Local::start(&self.cores)?;
        for front in fronts {
            local.add_guest(front, None)?;
        }
        Ok(Attached::Local(Box::new(local)))
    }
}

/// The copy without a switch.
pub(crate) struct CopyOnly {
    /// The core it runs on.
    pub(crate) core: usize,
}

impl Contender for CopyOnly {
    fn name(&self) -> &'static str {
        COPY
    }

    fn can(&self, case: &Case, guests: usize) -> bool {
        !case.packed && guests == 2
    }

    fn serve(&mut self) -> Result<Served<'_>> {
        anyhow::bail!("a copy takes no stock guests")
    }

    fn attach<'a>(&'a mut self, _: &Case, fronts: &[&Front]) -> Result<Attached<'a>> {
        let [a, b] = fronts else {
            anyhow::bail!("a copy is between two guests, not {}", fronts.len());
        };
        let wire = Wire::start(self.core, [a, b])?;
        Ok(Attached::Wire { _wire: wire })
    }
}
