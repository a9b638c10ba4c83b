//! A process of a VM that only speaks the protocol.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vswitch::api::{AdapterKind, AdapterName, Service};
use vswitch::attach::demand::{Demand, Flag, PageRange};
use vswitch::attach::message::{Command, CrashReport, Ended, FileRole, Region, RunState, Status};
use vswitch::attach::{AttachError, Connection, FromVmm, ToVmm, VERSION};

/// Other tests start this one in a process of its own, with a name: a VM that does nothing but answer.
#[test]
fn fake_vmm() {
    let Ok(name) = std::env::var("FAKE_VMM") else {
        return;
    };
    let socket = std::env::var("FAKE_VMM_SOCKET").unwrap();
    let mut fake = Fake::default();
    // Nobody is left behind by a test that fails.
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    let first = Connection::dial(Path::new(&socket)).unwrap();
    fake.serve(&first, &name);
    while std::time::Instant::now() < deadline {
        if let Some(connection) = Connection::accept(fake.door.as_ref().unwrap()).unwrap() {
            fake.serve(&connection, &name);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[derive(Default)]
struct Fake {
    /// Where the next vswitchd comes in.
    door: Option<OwnedFd>,
    state: Option<RunState>,
    cmdline: String,
    services: Vec<Service>,
    links: BTreeMap<AdapterName, bool>,
    /// What was kept for synthetic adapters, which a driver opens when the VM starts.
    kept: BTreeMap<AdapterName, String>,
    /// Demands that were met, and that were not.
    done: [u64; 2],
}

const LIMIT: Timespec = Timespec {
    tv_sec: 60,
    tv_nsec: 0,
};

impl Fake {
    /// Until the connection ends.
    fn serve(&mut self, connection: &Connection, name: &str) {
        let hello = FromVmm::Hello {
            version: VERSION,
            name: name.to_owned(),
            running: self.state.is_some(),
        };
        let _ = connection.send(&hello, &[], LIMIT);
        loop {
            match connection.receive::<ToVmm>(LIMIT) {
                Ok((message, fds)) => self.take(connection, message, fds),
                Err(AttachError::Closed) => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn take(&mut self, connection: &Connection, message: ToVmm, mut fds: Vec<OwnedFd>) {
        match message {
            ToVmm::Configure(configure) => {
                let at = configure.files.iter().position(|r| *r == FileRole::Attach);
                self.door = Some(fds.remove(at.unwrap()));
                self.state = Some(RunState::Ready);
                self.services = configure.services;
                assert!(configure.hyperv || self.services.is_empty());
                self.links = configure
                    .adapters
                    .iter()
                    .map(|a| (a.name, a.link))
                    .collect();
                self.cmdline = configure.cmdline;
                if self.cmdline.contains("die") {
                    panic!("as the command line says");
                }
                if let Some(at) = configure.files.iter().position(|r| *r == FileRole::Saved) {
                    let saved = std::io::read_to_string(std::fs::File::from(fds.remove(at)));
                    assert_eq!(saved.unwrap(), "all of it");
                }
                self.ready(connection);
            }
            ToVmm::Adopt {} => {
                self.ready(connection);
                for (name, state) in self.kept.clone() {
                    open(connection, name, true);
                    demand(connection, name, Demand::Restore { state });
                }
            }
            ToVmm::Command { id, command } => {
                let asks = command == Command::Status;
                let pressed = command == Command::PowerButton;
                let error = self.obey(connection, command, fds).err();
                let reply = FromVmm::Reply {
                    id,
                    error,
                    status: asks.then(|| self.status()),
                };
                connection.send(&reply, &[], LIMIT).unwrap();
                if pressed && self.cmdline.contains("obeys") {
                    let ended = FromVmm::Ended(Ended::PoweredOff {});
                    connection.send(&ended, &[], LIMIT).unwrap();
                    std::process::exit(0);
                }
            }
            ToVmm::Leave {} => std::process::exit(0),
            ToVmm::Done { ok, .. } => self.done[usize::from(!ok)] += 1,
        }
    }

    fn obey(
        &mut self,
        connection: &Connection,
        command: Command,
        mut fds: Vec<OwnedFd>,
    ) -> Result<(), String> {
        match command {
            Command::Start => {
                self.state = Some(RunState::Running);
                let names: Vec<_> = self.links.keys().copied().collect();
                names.iter().for_each(|name| self.driver(connection, *name));
            }
            Command::Resume => self.state = Some(RunState::Running),
            Command::Pause => self.state = Some(RunState::Paused),
            Command::Save => {
                let mut file = std::fs::File::from(fds.remove(0));
                if self.cmdline.contains("full") {
                    std::io::Write::write_all(&mut file, b"half").unwrap();
                    return Err("no space left on device".to_owned());
                }
                if self.cmdline.contains("vanish") {
                    std::process::exit(3);
                }
                std::io::Write::write_all(&mut file, b"all of it").unwrap();
            }
            Command::Link { adapter, up } => {
                self.links.insert(adapter, up).unwrap();
            }
            Command::Keep { adapter, state } => {
                self.kept.insert(adapter, state).unwrap();
            }
            Command::AddAdapter { .. } if self.cmdline.contains("fixed") => {
                return Err("the adapters are fixed".to_owned());
            }
            Command::AddAdapter { adapter } => {
                self.links.insert(adapter.name, adapter.link);
                let kick = event();
                let added = FromVmm::Added {
                    adapter: adapter.name,
                };
                connection.send(&added, &[kick.as_fd()], LIMIT).unwrap();
                self.driver(connection, adapter.name);
            }
            Command::RemoveAdapter { adapter } => {
                self.links.remove(&adapter).unwrap();
                self.kept.remove(&adapter);
                demand(connection, adapter, Demand::Close { channel: 0 });
                demand(connection, adapter, Demand::Remove { gpadl: 1 });
            }
            Command::PowerButton if self.cmdline.contains("deaf") => {
                return Err("there is no button".to_owned());
            }
            Command::Reset => {
                let crash = FromVmm::Crashed(CrashReport {
                    parameters: [0xd1, 1, 2, 3, 4],
                    message: Some("as the reset button says".to_owned()),
                });
                connection.send(&crash, &[], LIMIT).unwrap();
            }
            Command::Status | Command::PowerButton | Command::Served { .. } => {}
            Command::SubChannels { .. } => panic!("no driver asked for them"),
        }
        Ok(())
    }

    /// The guest's driver opens a synthetic adapter.
    fn driver(&mut self, connection: &Connection, name: AdapterName) {
        if name.kind() == AdapterKind::Synthetic {
            if self.cmdline.contains("wild") {
                wild(connection, name);
            }
            open(connection, name, false);
            self.kept.insert(name, String::new());
        }
    }

    fn status(&self) -> Status {
        let links = self.links.values().enumerate();
        let links = links.map(|(i, up)| (format!("link{i}"), u64::from(*up)));
        let [met, unmet] = self.done;
        Status {
            state: self.state.unwrap(),
            exits: links
                .chain([("met".to_owned(), met), ("unmet".to_owned(), unmet)])
                .collect(),
            drivers: self.links.keys().copied().collect(),
            services: self.services.iter().copied().take(1).collect(),
            facts: [("OSName".to_owned(), "Fake".to_owned())].into(),
        }
    }

    fn ready(&self, connection: &Connection) {
        let ram = memfd_create("ram", MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&ram, 1 << 20).unwrap();
        fcntl_add_seals(&ram, SealFlags::SHRINK | SealFlags::GROW).unwrap();
        let mut files = vec![ram];
        for name in self.links.keys() {
            if name.kind() == AdapterKind::Legacy {
                let (_, page) = vnic_legacy::page::SharedPage::create().unwrap();
                files.extend([page, event()]);
            }
            files.push(event());
        }
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        let ready = FromVmm::Ready {
            regions: vec![Region {
                guest: 0,
                len: 1 << 20,
                offset: 0,
            }],
            adapters: self.links.keys().copied().collect(),
            state: self.state.unwrap(),
        };
        connection.send(&ready, &fds, LIMIT).unwrap();
    }
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::NONBLOCK).unwrap()
}

fn range(first: u64, count: u64) -> PageRange {
    PageRange {
        offset: 0,
        len: count as u32 * 4096,
        pages: (first..first + count).collect(),
    }
}

/// Some memory and an open channel, two pages for each ring.
fn open(connection: &Connection, adapter: AdapterName, resumed: bool) {
    let first = 16 + 16 * u64::from(adapter.index());
    let add = Demand::Add {
        gpadl: 1,
        range: range(first, 4),
    };
    demand(connection, adapter, add);
    let demand = Demand::Open {
        channel: 0,
        ring: range(first + 8, 4),
        downstream_page: 2,
        flags: vec![Flag {
            address: 0x1200,
            bit: 1,
        }],
        resumed,
    };
    let message = FromVmm::Demand {
        id: 0,
        adapter,
        demand,
    };
    connection
        .send(&message, &[event().as_fd()], LIMIT)
        .unwrap();
}

/// What no guest means well by, and nothing of which can be met.
fn wild(connection: &Connection, adapter: AdapterName) {
    let outside = || range(1 << 30, 4);
    let open = |channel, ring, address, resumed| Demand::Open {
        channel,
        ring,
        downstream_page: 2,
        flags: vec![Flag { address, bit: 2047 }],
        resumed,
    };
    let state = || "{}".to_owned();
    for (demand, files) in [
        (
            Demand::Add {
                gpadl: 2,
                range: outside(),
            },
            0,
        ),
        // Rings that are not there, too few pages, flags that are not there, a sub-channel of nothing.
        (open(0, outside(), 0, false), 1),
        (open(0, range(16, 2), 0, false), 1),
        (open(0, range(16, 4), 1 << 20, false), 1),
        (open(1, range(16, 4), 0, false), 1),
        (Demand::Restore { state: state() }, 0),
        (open(0, range(16, 4), 0, true), 1),
        (Demand::Restore { state: state() }, 0),
    ] {
        let message = FromVmm::Demand {
            id: 0,
            adapter,
            demand,
        };
        let files: Vec<OwnedFd> = (0..files).map(|_| event()).collect();
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        connection.send(&message, &fds, LIMIT).unwrap();
    }
    demand(connection, adapter, Demand::Close { channel: 0 });
}

fn demand(connection: &Connection, adapter: AdapterName, demand: Demand) {
    let message = FromVmm::Demand {
        id: 0,
        adapter,
        demand,
    };
    connection.send(&message, &[], LIMIT).unwrap();
}
