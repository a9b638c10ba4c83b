//! Synthetic adapters through the real daemon, without a virtual machine: a process speaks the protocol of the daemon's
//! virtual machines, runs the bus, and in place of a guest a network driver that answers ARP and ping.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guestmem::{Memory, RegionSpec};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vnic_synthetic::driver::host::{Elsewhere, Host};
use vnic_synthetic::driver::{Carry, Frame, Guest, Setup};
use vnic_synthetic::vmbus;
use vswitch::api::AdapterName;
use vswitch::attach::demand::{Demand, Flag, PageRange};
use vswitch::attach::message::{Command, FileRole, Region, RunState, Status};
use vswitch::attach::{AttachError, Connection, FromVmm, ToVmm, VERSION};
use vswitch_tests::{Lab, cmd, station::Address};

const LIMIT: Timespec = Timespec {
    tv_sec: 60,
    tv_nsec: 0,
};
/// How long the driver waits for each answer of the host while it sets its adapter up.
const ANSWER: Duration = Duration::from_millis(300);
/// How long the process goes on without a daemon.
const PATIENCE: Duration = Duration::from_secs(20);
/// Where the host signals channel 1 from: page 0 is the driver's own for that.
const FLAGS: u64 = 0x200;

const fn at(host: u8) -> Address {
    Address { net: 66, host }
}

/// A script that the daemon starts as its program of virtual machines: this test program again, as [`process`].
fn program(dir: &Path) -> Result<PathBuf> {
    let script = dir.join("vmm");
    let own = std::env::current_exe()?;
    let text = format!(
        "#!/bin/sh\n[ \"$1\" = --check ] && exit 0\n\
         VMM_SOCKET=\"$2\" VMM_NAME=\"$4\" exec {} --exact process --nocapture \"$2\"\n",
        own.display()
    );
    std::fs::write(&script, text)?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    Ok(script)
}

fn until_up(lab: &Lab, port: &str) -> Result<()> {
    cmd::wait_until("the port to be up", Duration::from_secs(60), || {
        Ok(lab.ctl(&format!("port show {port}"))?["state"] == "up")
    })
    .with_context(|| lab.daemon.log())
}

/// Waits until the driver of the guest has set its adapter up.
fn until_bound(lab: &Lab) -> Result<()> {
    cmd::wait_until("the driver", Duration::from_secs(60), || {
        Ok(lab.ctl("vm show web")?["adapters"][0]["driver"] == "bound")
    })
    .with_context(|| lab.daemon.log())
}

#[test]
fn a_driver_answers_and_is_served_again_after_sigkill() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let vmm = program(dir.path())?;
    let mut lab = Lab::start_with_vmm(&vmm)?;
    lab.ctl("network create lab --type internal")?;
    lab.ctl("network create other --type private")?;
    // A host NIC outlives the daemon.
    let mut alice = lab.host_station("lab", at(1))?;
    let mut bob = lab.tap_station("other", "bob", None, at(1))?;
    let (kernel, mac) = (vmm.display(), at(2).mac());
    lab.ctl(&format!(
        "vm create web --memory 16M --boot kernel:{kernel} --synthetic net=lab,mac={mac}"
    ))?;
    lab.ctl("vm start web")?;
    until_up(&lab, "lab web.synthetic0")?;
    until_bound(&lab)?;
    alice.ping(at(2), false, 56)?;
    alice.ping(at(2), false, 1400)?;
    let exits = lab.ctl("vm show web")?["exits"].clone();
    ensure!(exits["interrupts"].as_u64() > Some(0), "{exits}");
    ensure!(exits["flagged"].as_u64() > Some(0), "{exits}");
    let stats = lab.daemon.stats()?;
    ensure!(stats.wrong().is_empty(), "{:?}", stats.wrong());
    let web = stats.port("lab", "web.synthetic0")?;
    ensure!(web.tx_frames >= 3 && web.rx_frames >= 3, "{web:?}");

    // Moved, and back.
    lab.ctl("adapter set web synthetic0 --connect other")?;
    bob.ping(at(2), false, 56)?;
    ensure!(!alice.reaches(at(2)), "it is in the other network");
    lab.ctl("adapter set web synthetic0 --connect lab")?;
    alice.ping(at(2), false, 56)?;
    // The guard holds for what the guest sends.
    lab.ctl("port set lab web.synthetic0 --mac-guard 02:00:00:00:00:99")?;
    ensure!(!alice.reaches(at(2)), "its address is not allowed");
    let drops = lab
        .daemon
        .stats()?
        .port("lab", "web.synthetic0")?
        .drops
        .clone();
    ensure!(
        drops.iter().any(|(reason, _)| reason == "mac_guard"),
        "{drops:?}"
    );
    lab.ctl("port set lab web.synthetic0 --mac-guard off")?;

    // A driver is not told that the daemon has gone and come back.
    lab.daemon.kill()?;
    lab.daemon.start_again()?;
    until_up(&lab, "lab web.synthetic0")?;
    alice.ping(at(2), false, 1400)?;
    lab.ctl("vm pause web")?;
    ensure!(!alice.reaches(at(2)), "the VM is paused");
    lab.ctl("vm resume web")?;
    alice.ping(at(2), false, 56)?;

    lab.ctl("adapter remove web synthetic0")?;
    ensure!(!alice.reaches(at(2)), "it was removed");
    let view = lab.ctl("vm show web")?;
    ensure!(view["exits"]["unmet"] == 0, "{view}");
    lab.ctl("vm turn-off web").map(drop)
}

/// Other tests start this one in a process of its own.
#[test]
fn process() {
    let (Ok(socket), Ok(name)) = (std::env::var("VMM_SOCKET"), std::env::var("VMM_NAME")) else {
        return;
    };
    let mut vm = Vm::default();
    let mut seen = Instant::now();
    while seen.elapsed() < PATIENCE {
        let connected = match &vm.door {
            None => Connection::dial(Path::new(&socket)).ok(),
            Some(door) => Connection::accept(door).unwrap(),
        };
        if let Some(connection) = connected {
            let hello = FromVmm::Hello {
                version: VERSION,
                name: name.clone(),
                running: vm.machine.is_some(),
            };
            let _ = connection.send(&hello, &[], LIMIT);
            vm.link.borrow_mut().connection = Some(connection);
            while vm.turn().is_some() {}
            seen = Instant::now();
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The connection to the daemon, and what is served there.
#[derive(Default)]
struct Link {
    connection: Option<Connection>,
    /// What came while an answer was waited for.
    later: VecDeque<(ToVmm, Vec<OwnedFd>)>,
    /// The GPADLs and channels that are there, to be demanded again.
    shared: BTreeMap<u32, Demand>,
    open: BTreeMap<u8, Demand>,
    kept: String,
    interrupt: Option<OwnedFd>,
    adapter: Option<AdapterName>,
    demands: u64,
    unmet: u64,
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

impl Link {
    fn send(&self, message: &FromVmm, fds: &[&OwnedFd]) {
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        if let Some(connection) = &self.connection {
            let _ = connection.send(message, &fds, LIMIT);
        }
    }

    /// Sends a demand and waits for its answer. Without a daemon nobody uses the memory.
    fn demand(&mut self, demand: Demand) -> bool {
        let gone = matches!(demand, Demand::Remove { .. } | Demand::Close { .. });
        let opens = matches!(demand, Demand::Open { .. });
        self.demands += 1;
        let message = FromVmm::Demand {
            id: self.demands,
            adapter: self.adapter.unwrap(),
            demand,
        };
        let fds: Vec<&OwnedFd> = self.interrupt.iter().filter(|_| opens).collect();
        self.send(&message, &fds);
        while let Some(connection) = &self.connection {
            match connection.receive(LIMIT) {
                Ok((ToVmm::Done { id, ok }, _)) if id == self.demands => {
                    self.unmet += u64::from(!ok);
                    return ok;
                }
                Ok(other) => self.later.push_back(other),
                Err(_) => self.connection = None,
            }
        }
        gone
    }

    /// Meets a demand of the bus.
    fn meet(&mut self, channel: usize, demand: &vmbus::Demand) -> bool {
        let channel = channel as u8;
        match demand {
            vmbus::Demand::Add { gpadl, list } => {
                let demand = Demand::Add {
                    gpadl: *gpadl,
                    range: range(list),
                };
                self.shared.insert(*gpadl, demand.clone());
                self.demand(demand)
            }
            vmbus::Demand::Remove { gpadl } => {
                self.shared.remove(gpadl);
                self.demand(Demand::Remove { gpadl: *gpadl })
            }
            vmbus::Demand::Open(open) => {
                let demand = |resumed| Demand::Open {
                    channel,
                    ring: range(&open.ring),
                    downstream_page: open.downstream_page,
                    flags: vec![Flag {
                        address: FLAGS,
                        bit: 1,
                    }],
                    resumed,
                };
                self.open.insert(channel, demand(true));
                self.demand(demand(false))
            }
            vmbus::Demand::Close => {
                self.open.remove(&channel);
                self.kept.clear();
                self.demand(Demand::Close { channel })
            }
            vmbus::Demand::Retarget { .. } => panic!("no driver asked for it"),
        }
    }

    /// Demands everything again that is there.
    fn replay(&mut self) {
        let all = self.shared.values().chain(self.open.values());
        for demand in all.cloned().collect::<Vec<_>>() {
            self.demand(demand);
        }
        if !self.open.is_empty() {
            let state = self.kept.clone();
            self.demand(Demand::Restore { state });
        }
    }
}

fn range(list: &vmbus::PageList) -> PageRange {
    let range = list.single().unwrap();
    PageRange {
        offset: range.offset,
        len: range.len,
        pages: range.pages.to_vec(),
    }
}

/// What is made from a configuration.
struct Machine {
    ram: OwnedFd,
    len: u64,
    memory: Arc<Memory>,
    kick: Arc<OwnedFd>,
    state: RunState,
    guest: Option<Guest>,
    interrupts: u64,
    flagged: u64,
}

#[derive(Default)]
struct Vm {
    link: Rc<RefCell<Link>>,
    machine: Option<Machine>,
    /// Where the next daemon comes in.
    door: Option<OwnedFd>,
}

impl Vm {
    /// Does what there is to do; `None` once there is no daemon.
    fn turn(&mut self) -> Option<()> {
        let next = {
            let mut link = self.link.borrow_mut();
            match link.later.pop_front() {
                Some(message) => Some(message),
                None => match link.connection.as_ref()?.try_receive() {
                    Ok(message) => message,
                    Err(AttachError::Closed) => {
                        link.connection = None;
                        return None;
                    }
                    Err(error) => panic!("{error}"),
                },
            }
        };
        if let Some((message, files)) = next {
            self.take(message, files);
        }
        match &mut self.machine {
            Some(machine) if machine.state == RunState::Running => {
                let mut raised = [0; 8];
                let interrupt = self
                    .link
                    .borrow()
                    .interrupt
                    .as_ref()
                    .map(OwnedFd::try_clone);
                let interrupt = interrupt.unwrap().unwrap();
                if rustix::io::read(&interrupt, &mut raised).is_ok() {
                    machine.interrupts += u64::from_ne_bytes(raised);
                }
                machine.turn();
            }
            _ => {}
        }
        std::thread::sleep(Duration::from_micros(200));
        Some(())
    }

    fn take(&mut self, message: ToVmm, mut files: Vec<OwnedFd>) {
        match message {
            ToVmm::Configure(configure) => {
                let at = configure.files.iter().position(|r| *r == FileRole::Attach);
                self.door = Some(files.remove(at.unwrap()));
                self.link.borrow_mut().adapter = configure.adapters.first().map(|a| a.name);
                self.link.borrow_mut().interrupt = Some(event());
                self.machine = Some(Machine::new(configure.memory));
                self.ready();
            }
            ToVmm::Adopt {} => {
                self.ready();
                self.link.borrow_mut().replay();
            }
            ToVmm::Command { id, command } => {
                let status = (command == Command::Status).then(|| self.status());
                self.obey(command);
                let reply = FromVmm::Reply {
                    id,
                    error: None,
                    status,
                };
                self.link.borrow().send(&reply, &[]);
            }
            ToVmm::Leave {} => std::process::exit(0),
            ToVmm::Done { .. } => panic!("an answer to nothing"),
        }
    }

    fn ready(&self) {
        let (link, machine) = (self.link.borrow(), self.machine.as_ref().unwrap());
        let ready = FromVmm::Ready {
            regions: vec![Region {
                guest: 0,
                len: machine.len,
                offset: 0,
            }],
            adapters: link.adapter.into_iter().collect(),
            state: machine.state,
        };
        link.send(&ready, &[&machine.ram, &machine.kick]);
    }

    fn status(&self) -> Status {
        let (link, machine) = (self.link.borrow(), self.machine.as_ref().unwrap());
        let exits = [
            ("interrupts", machine.interrupts),
            ("flagged", machine.flagged),
            ("unmet", link.unmet),
        ];
        Status {
            state: machine.state,
            exits: exits.map(|(kind, n)| (kind.to_owned(), n)).into(),
            drivers: link
                .adapter
                .filter(|_| machine.guest.is_some())
                .into_iter()
                .collect(),
            services: Vec::new(),
            facts: BTreeMap::new(),
        }
    }

    fn obey(&mut self, command: Command) {
        let machine = self.machine.as_mut().unwrap();
        match command {
            Command::Start => {
                machine.state = RunState::Running;
                let link = self.link.clone();
                let elsewhere = Box::new(move |channel: usize, demand: &vmbus::Demand| {
                    link.borrow_mut().meet(channel, demand)
                });
                machine.guest = Some(machine.boot(elsewhere));
            }
            Command::Pause => machine.state = RunState::Paused,
            Command::Resume => machine.state = RunState::Running,
            Command::Keep { state, .. } => self.link.borrow_mut().kept = state,
            Command::RemoveAdapter { .. } => {
                if let Some(mut guest) = machine.guest.take() {
                    guest.shut_down();
                }
            }
            Command::Status => {}
            other => panic!("{other:?}"),
        }
    }
}

impl Machine {
    fn new(len: u64) -> Machine {
        let ram = memfd_create("ram", MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&ram, len).unwrap();
        fcntl_add_seals(&ram, SealFlags::SHRINK | SealFlags::GROW).unwrap();
        let region = RegionSpec {
            guest_addr: 0,
            user_addr: 0,
            len,
            fd: ram.try_clone().unwrap(),
            fd_offset: 0,
        };
        Machine {
            ram,
            len,
            memory: Arc::new(Memory::map(vec![region]).unwrap()),
            kick: Arc::new(event()),
            state: RunState::Ready,
            guest: None,
            interrupts: 0,
            flagged: 0,
        }
    }

    /// The driver sets its adapter up.
    fn boot(&self, elsewhere: Elsewhere) -> Guest {
        let setup = Setup::linux();
        assert!(self.memory.window(0, setup.pages() * 4096).is_some());
        let kick = self.kick.clone();
        let host = Host::elsewhere(self.memory.clone(), setup.config, kick, elsewhere);
        let mut guest = Guest::over(setup, self.memory.clone(), host);
        guest.bring_up(&mut || std::thread::sleep(ANSWER));
        guest
    }

    /// The driver answers what it received.
    fn turn(&mut self) {
        let Some(guest) = &mut self.guest else {
            return;
        };
        let flags = self.memory.window(FLAGS, 256).unwrap();
        self.flagged += u64::from(flags.fetch_and_u32(0, !(1 << 1)).unwrap() & 1 << 1 != 0);
        guest.poll();
        guest.controls.clear();
        while let Some(frame) = guest.received.pop_front() {
            if let Some(answer) = answer(frame.bytes) {
                guest.send(Carry::SendBuffer, &[Frame::plain(&answer)]);
            }
        }
        guest.answers.clear();
    }
}

/// The answer of 10.66.0.2 to a frame.
fn answer(mut frame: Vec<u8>) -> Option<Vec<u8>> {
    const IP: [u8; 4] = [10, 66, 0, 2];
    const MAC: [u8; 6] = [2, 0, 0, 0, 66, 2];
    let (front, body) = frame.split_at_mut(14);
    match (&front[12..14], &body[..]) {
        // ARP (RFC 826), a request for our address.
        ([8, 6], arp) if arp.len() >= 28 && arp[7] == 1 && arp[24..28] == IP => {
            body[7] = 2;
            body.copy_within(8..18, 18);
            body[8..14].copy_from_slice(&MAC);
            body[14..18].copy_from_slice(&IP);
        }
        // ICMP (RFC 792), an echo request in an IPv4 packet without options.
        ([8, 0], ip) if ip.len() >= 28 && ip[9] == 1 && ip[16..20] == IP && ip[20] == 8 => {
            let (from, to) = body[12..20].split_at_mut(4);
            from.swap_with_slice(to);
            body[20] = 0;
            // The sum of a packet whose first word is 0x0800 less (RFC 1624).
            let sum = u32::from(u16::from_be_bytes([body[22], body[23]])) + 0x0800;
            let sum = (sum & 0xffff) + (sum >> 16);
            body[22..24].copy_from_slice(&(sum as u16).to_be_bytes());
        }
        _ => return None,
    }
    front.copy_within(6..12, 0);
    front[6..12].copy_from_slice(&MAC);
    Some(frame)
}
