//! A world of workers, ports and guests in one thread, with a clock of its own, and the rules that hold in it.

pub mod check;
pub mod frames;
pub mod guest;
pub mod model;
pub mod rng;
pub mod shape;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::Timespec;
use vswitch::control::{NetworkSpec, PortHandle, SteppedWorker, Switch};
use vswitch::counters::Counts;
use vswitch::drops::DropCounts;
use vswitch::network::{NetworkId, PortPolicy};
use vswitch::port::PortControl;

use guest::{Guest, Log};
use model::{Config, Model, Vlans};
use rng::Rng;
use shape::Out;

/// One port: the real one, its guest, and what is expected of them.
pub struct Port {
    pub handle: Arc<PortHandle>,
    worker: usize,
    pub guest: Guest,
    /// Delivered and not yet received.
    pub expected: VecDeque<Out>,
    pub tx: Counts,
    pub rx: Counts,
    /// The guest broke a rule: what it receives is its own affair.
    pub wild: bool,
    /// It is sure to be found out at its next gathering.
    caught: bool,
    /// A notification was lost since the worker last looked.
    kick_lost: bool,
}

struct Core {
    worker: SteppedWorker,
    /// Its clock lags behind by so many seconds.
    lag: i64,
    asleep: bool,
    /// A notification is on its way.
    owed: bool,
}

/// What happened in all of a simulation.
#[derive(Default)]
pub struct Tally {
    pub tx: Counts,
    pub completed: u64,
    pub cut: u64,
    pub faults: u64,
}

pub struct World {
    pub rng: Rng,
    switch: Switch,
    cores: Vec<Core>,
    networks: Vec<NetworkId>,
    pub ports: Vec<Port>,
    pub configs: Vec<Config>,
    pub model: Model,
    pub log: Log,
    now: i64,
    pub ageing: i64,
    pub tally: Tally,
}

fn random_vlans(rng: &mut Rng) -> Vlans {
    let vid = rng.pick(&frames::VIDS);
    match rng.below(5) {
        0..2 => Vlans::none(),
        2 => Vlans::access(vid),
        _ => {
            let allowed: Vec<u16> = frames::VIDS
                .into_iter()
                .filter(|_| rng.chance(60))
                .collect();
            Vlans::trunk(&allowed, rng.pick(&[None, Some(0), Some(vid)]))
        }
    }
}

fn random_policy(rng: &mut Rng, home: usize, vlans: &Vlans) -> PortPolicy {
    let guard = vec![frames::station(home as u64), frames::station(1)];
    PortPolicy {
        vlan: vlans.mode(),
        mac_guard: rng.chance(15).then_some(guard),
        mtu: rng.pick(&[68, 576, 1500, 1500, 1500, 9000, 9000]),
        link_up: !rng.chance(5),
        ..PortPolicy::default()
    }
}

impl World {
    pub fn new(seed: u64) -> World {
        let mut rng = Rng::new(seed);
        let (switch, workers) = Switch::stepped(rng.range(1, 3) as usize).unwrap();
        let ageing = rng.pick(&[5, 60, 300]);
        let spec = NetworkSpec {
            ageing: Duration::from_secs(ageing),
            fdb_capacity: 1024,
        };
        let networks = (0..rng.range(1, 2))
            .map(|_| switch.create_network(&spec).unwrap())
            .collect();
        let core = |(index, worker)| Core {
            worker,
            lag: i64::from(index == 1),
            asleep: false,
            owed: false,
        };
        let mut world = World {
            cores: workers.into_iter().enumerate().map(core).collect(),
            switch,
            networks,
            ports: Vec::new(),
            configs: Vec::new(),
            model: Model::default(),
            log: Log::default(),
            now: 10,
            ageing: ageing as i64,
            tally: Tally::default(),
            rng,
        };
        for index in 0..world.rng.range(2, 8) as usize {
            world.add_port(index);
        }
        world
    }

    fn add_port(&mut self, index: usize) {
        let rng = &mut self.rng;
        let vlans = random_vlans(rng);
        let policy = random_policy(rng, index, &vlans);
        let worker = rng.below(self.cores.len() as u64) as usize;
        let handle = self.switch.add_port(policy.clone(), Some(worker)).unwrap();
        let network = rng.below(self.networks.len() as u64) as usize;
        handle.connect(self.networks[network]).unwrap();
        let mut guest = Guest::new(rng, index, &self.log);
        assert!(handle.attach(guest.sides(rng)).is_none());
        guest.post(rng, 200);
        self.ports.push(Port {
            handle,
            worker,
            guest,
            expected: VecDeque::new(),
            tx: Counts::default(),
            rx: Counts::default(),
            wild: false,
            caught: false,
            kick_lost: false,
        });
        self.configs.push(Config {
            vlans,
            policy,
            network: Some(network),
            attached: true,
            paused: false,
        });
    }

    /// One random event, after which all rules hold.
    pub fn step(&mut self) {
        let port = self.rng.below(self.ports.len() as u64) as usize;
        match self.rng.below(1000) {
            0..350 => self.send(port),
            350..700 => self.turn(),
            700..860 => self.receive(port),
            860..920 => {
                let count = self.rng.range(1, 128);
                if !self.ports[port].wild {
                    self.ports[port].guest.post(&mut self.rng, count);
                }
            }
            920..935 => self.now += self.rng.below(self.ageing as u64 / 2 + 2) as i64,
            935..945 => self.reconfigure(port),
            945..955 => self.reconnect(port),
            955..965 => self.reattach(port),
            965..970 => self.ports[port].guest.kick(),
            970..985 => self.ports[port].guest.plot.lock().unwrap().scribble ^= true,
            985..988 => self.attack(port),
            988..990 => self.ports[port].guest.plot.lock().unwrap().truncate = true,
            990..996 => self.replace(port),
            _ => self.housekeeping(),
        }
        self.conserve();
    }

    fn send(&mut self, index: usize) {
        let stations = self.ports.len() as u64;
        let rng = &mut self.rng;
        let kick = !rng.chance(5);
        let port = &mut self.ports[index];
        // Its driver would set the ring right again, or lose its way in it.
        if port.wild {
            return;
        }
        let mut sent = false;
        for _ in 0..rng.pick(&[1, 1, 3, 40]) {
            let frame = frames::random(rng, index as u64, stations);
            sent |= port.guest.send(rng, &frame);
        }
        port.guest.publish(kick);
        port.kick_lost |= !kick;
        let core = &mut self.cores[port.worker];
        core.owed |= sent && !port.kick_lost && !port.wild && self.configs[index].attached;
    }

    /// A worker polls, sleeps, or wakes up.
    fn turn(&mut self) {
        let index = self.rng.below(self.cores.len() as u64) as usize;
        let core = &mut self.cores[index];
        let mut worker = core.worker.lock().unwrap();
        if core.asleep {
            let woken = worker.wait(&Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            }) != Some(false);
            assert!(woken || !core.owed, "a worker sleeps through a frame");
            // Nobody wakes it, but in a second it looks by itself.
            if !woken && self.rng.chance(70) {
                return;
            }
            worker.rouse();
            (core.asleep, core.owed) = (false, false);
            for port in self.ports.iter_mut().filter(|port| port.worker == index) {
                port.kick_lost = false;
            }
        }
        let now = self.now - core.lag;
        let frames = worker.poll(now as u32);
        if frames == 0 && self.rng.chance(50) {
            core.owed = false;
            core.asleep = worker.doze();
            if !core.asleep {
                worker.rouse();
            }
        }
        drop(worker);
        let (mut taken, mut full) = (0, vec![false; self.ports.len()]);
        for gathered in self.log.lock().unwrap().iter() {
            taken += gathered.frames.len();
            full[gathered.port] |= gathered.full;
        }
        assert_eq!(frames as usize, taken, "frames of a poll");
        let seen = self.check_poll(now);
        for (port, full) in self.ports.iter().zip(full) {
            // A full burst may have ended before the lie.
            if port.worker == index && port.caught && !full {
                assert!(
                    port.handle.fault().is_some(),
                    "a ring that lies is not noticed"
                );
            }
        }
        self.tally.tx.frames += seen;
    }

    fn receive(&mut self, index: usize) {
        let port = &mut self.ports[index];
        if port.wild {
            return;
        }
        for _ in 0..self.rng.pick(&[1, 5, 1000]) {
            let Some(received) = port.guest.receive() else {
                assert!(
                    port.expected.is_empty(),
                    "{} frames are missing",
                    port.expected.len()
                );
                return;
            };
            let expected = port
                .expected
                .pop_front()
                .expect("a frame that was not sent here");
            check::received(
                &received,
                &expected,
                &port.guest.features,
                port.guest.is_vhost(),
            );
        }
    }

    fn reconfigure(&mut self, index: usize) {
        let (port, config) = (&self.ports[index], &mut self.configs[index]);
        if self.rng.chance(60) {
            config.vlans = random_vlans(&mut self.rng);
        }
        let policy = random_policy(&mut self.rng, index, &config.vlans);
        if policy.vlan != config.policy.vlan || policy.mac_guard != config.policy.mac_guard {
            self.model.forget(index);
        }
        port.handle.set_policy(policy.clone());
        config.policy = policy;
    }

    fn reconnect(&mut self, index: usize) {
        let to = self.rng.below(self.networks.len() as u64 + 1) as usize;
        let (port, config) = (&self.ports[index], &mut self.configs[index]);
        let network = self.networks.get(to).map(|_| to);
        match network {
            Some(to) => port.handle.connect(self.networks[to]).unwrap(),
            None => port.handle.disconnect(),
        }
        if config.network != network {
            self.model.forget(index);
        }
        config.network = network;
    }

    /// Detaches the port, or attaches it again.
    fn reattach(&mut self, index: usize) {
        let (port, config) = (&mut self.ports[index], &mut self.configs[index]);
        if port.wild {
            return;
        }
        if config.attached {
            let sides = port.handle.detach().expect("sides that were attached");
            let change = self.rng.chance(50);
            port.guest.take_back(sides, change);
            config.paused = self.rng.chance(50);
            port.handle.set_paused(config.paused);
        } else {
            assert!(
                port.handle
                    .attach(port.guest.sides(&mut self.rng))
                    .is_none()
            );
        }
        config.attached = !config.attached;
    }

    fn attack(&mut self, index: usize) {
        let port = &mut self.ports[index];
        if self.configs[index].attached && port.guest.is_vhost() && !port.caught {
            port.wild = true;
            port.caught |= port.guest.lie(&mut self.rng);
        }
    }

    /// The guest is replaced by another, as when its VM was started again.
    fn replace(&mut self, index: usize) {
        let port = &mut self.ports[index];
        if self.configs[index].attached {
            self.tally.faults += u64::from(port.handle.fault().is_some());
            drop(port.handle.detach());
        }
        port.guest = Guest::new(&mut self.rng, index, &self.log);
        assert!(
            port.handle
                .attach(port.guest.sides(&mut self.rng))
                .is_none()
        );
        port.expected.clear();
        (port.wild, port.caught) = (false, false);
        self.configs[index].attached = true;
    }

    fn housekeeping(&mut self) {
        let network = self.rng.below(self.networks.len() as u64) as usize;
        let table = self.switch.fdb(self.networks[network]).unwrap();
        if self.rng.chance(50) {
            // By the slowest clock, so that no worker misses an entry early.
            table.sweep(self.now as u32 - 1);
        } else {
            table.flush();
            self.model.stations.retain(|(at, _, _), _| *at != network);
        }
    }

    /// Rules 3 and 6: at any moment, of each port.
    fn conserve(&mut self) {
        let mut sum = (0, 0, DropCounts::default());
        for (index, port) in self.ports.iter_mut().enumerate() {
            let counters = port.handle.counters();
            let tx = &counters.tx;
            let out = tx.delivered + tx.consumed + tx.dropped();
            assert_eq!(
                tx.frames + tx.extra_copies,
                out,
                "conservation at port {index}: {tx:?}"
            );
            sum.0 += tx.delivered;
            sum.1 += counters.rx.frames;
            if !port.wild {
                assert_eq!(port.handle.fault(), None, "port {index} did nothing wrong");
            }
        }
        assert_eq!(sum.0, sum.1, "delivered by senders, and to receivers");
    }

    /// Everything that is under way arrives.
    pub fn finish(&mut self) {
        for _ in 0..200 {
            self.turn();
        }
        for index in 0..self.ports.len() {
            while !self.ports[index].expected.is_empty() && !self.ports[index].wild {
                self.receive(index);
            }
        }
        self.conserve();
        for port in &self.ports {
            self.tally.tx.merge(&port.handle.counters().tx);
        }
    }
}
