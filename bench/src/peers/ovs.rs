//! Open vSwitch with its DPDK datapath, on directories of its own.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use vswitch::ports::vhost::driver::Guest as Front;
use vswitch_tests::{Background, Netns, cmd};

use super::pages::HugePages;
use super::{OVS, Poller, unpinned};
use crate::case::Case;
use crate::subject::{Attached, Contender, Served, accept, connect};

const VSWITCHD: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
const BOOT: Duration = Duration::from_secs(20);
const PORTS: usize = 3;

/// A running OVS, with one bridge and three vhost-user ports.
pub(crate) struct Ovs {
    core: usize,
    running: Option<Running>,
}

struct Running {
    // In this order: vswitchd, its database, what it had mounted, and only then the directory.
    vswitchd: Poller,
    _database: Background,
    _mount: Mount,
    dir: TempDir,
    _pages: HugePages,
    /// It makes devices of its own, whose names another OVS may have taken.
    netns: Netns,
    mode: Mode,
}

/// What its vhost-user ports are like, which it does not change while it has guests.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// For frames of up to 1518 bytes.
    Plain,
    /// For frames of up to 9018 bytes.
    Jumbo,
    /// With segmentation offloads. Only ports that connect to the guest have them.
    Offloads,
}

/// A mounted hugetlbfs.
struct Mount(PathBuf);

impl Mount {
    fn new(at: PathBuf) -> Result<Mount> {
        std::fs::create_dir(&at)?;
        cmd::run(&["mount", "-t", "hugetlbfs", "none", text(&at)?])?;
        Ok(Mount(at))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let path = self.0.display().to_string();
        // Pages of a process that was just killed are let go of a little later.
        let gone = cmd::wait_until("hugetlbfs to be free", Duration::from_secs(5), || {
            Ok(cmd::run(&["umount", &path]).is_ok())
        });
        if let Err(error) = gone {
            crate::say!("{path} stays mounted: {error:#}");
        }
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}

impl Ovs {
    /// Starts it with its polling thread on `core`.
    pub(crate) fn start(core: usize) -> Result<Ovs> {
        ensure!(Path::new(VSWITCHD).exists(), "there is no {VSWITCHD}");
        let mut running = Running::start(core, Mode::Plain)?;
        running.vswitchd.pause();
        Ok(Ovs {
            core,
            running: Some(running),
        })
    }
}

impl Ovs {
    /// Lets it run, started anew where its ports must be others.
    fn ready(&mut self, mode: Mode) -> Result<&mut Running> {
        // The old one gives its huge pages back before the new one takes its own.
        self.running = self.running.take().filter(|running| running.mode == mode);
        let running = match self.running.take() {
            Some(running) => running,
            None => Running::start(self.core, mode)?,
        };
        let running = self.running.insert(running);
        running.vswitchd.resume()?;
        Ok(running)
    }
}

/// OVS with two virtual cables on its bridge, by AF_XDP, and a namespace at the end of each.
pub(crate) struct OvsCables {
    // It lets go of the cables before their ends go.
    running: Running,
    ends: [Arc<Netns>; 2],
}

impl OvsCables {
    /// Starts an OVS of its own, with its polling thread on `core`. It is not running.
    pub(crate) fn start(core: usize) -> Result<OvsCables> {
        ensure!(Path::new(VSWITCHD).exists(), "there is no {VSWITCHD}");
        let mut running = Running::start(core, Mode::Plain)?;
        let ends = [Arc::new(Netns::new("end")?), Arc::new(Netns::new("end")?)];
        for (number, end) in ends.iter().enumerate() {
            let cable = format!("cable{number}");
            running.netns.cable(&cable, end, "eth0")?;
            running.vsctl(&format!(
                "add-port br0 {cable} -- set Interface {cable} type=afxdp"
            ))?;
        }
        running.vswitchd.pause();
        Ok(OvsCables { running, ends })
    }

    /// The namespaces at the ends of the cables.
    pub(crate) fn ends(&self) -> &[Arc<Netns>; 2] {
        &self.ends
    }

    /// Lets it run while `work` is done.
    pub(crate) fn running<T>(&mut self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.running.vswitchd.resume()?;
        let done = work();
        self.running.vswitchd.pause();
        done
    }
}

impl Running {
    fn start(core: usize, mode: Mode) -> Result<Running> {
        let dir = TempDir::new()?;
        let path = |name: &str| dir.path().join(name);
        let (pages, netns) = (HugePages::reserve(600)?, Netns::new("ovs")?);
        let mount = Mount::new(path("huge"))?;
        let database = database(&dir)?;
        let mut running = Running {
            vswitchd: Poller {
                process: vswitchd(&dir, &netns, (core, mode))?,
            },
            _database: database,
            _mount: mount,
            dir,
            _pages: pages,
            netns,
            mode,
        };
        let made = running.make_bridge();
        made.with_context(|| {
            let log = std::fs::read_to_string(running.dir.path().join("log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(5).collect();
            format!(
                "the last lines of its log, latest first: {}",
                tail.join(" | ")
            )
        })?;
        Ok(running)
    }

    fn make_bridge(&mut self) -> Result<()> {
        self.vsctl(
            "add-br br0 -- set bridge br0 datapath_type=netdev other_config:mac-table-size=1000000",
        )?;
        for (port, socket) in self.sockets().iter().enumerate() {
            let kind = match self.mode {
                Mode::Plain => "type=dpdkvhostuser".to_owned(),
                Mode::Jumbo => "type=dpdkvhostuser mtu_request=9000".to_owned(),
                Mode::Offloads => format!(
                    "type=dpdkvhostuserclient options:vhost-server-path={}",
                    socket.display()
                ),
            };
            self.vsctl(&format!(
                "add-port br0 vhost{port} -- set Interface vhost{port} {kind}"
            ))?;
        }
        let sockets = self.sockets();
        cmd::wait_until("OVS to make its sockets", BOOT, || {
            self.vswitchd.process.must_run()?;
            let made = sockets.iter().all(|socket| socket.exists());
            Ok(made || self.mode == Mode::Offloads)
        })?;
        self.allow_flows()
    }

    /// Lets it cache as many flows as it ever would. It begins with 10,000 and allows itself 1,000 more in half a second:
    /// for minutes, it would ask its slow path about most frames to or from 50,000 addresses.
    fn allow_flows(&self) -> Result<()> {
        let control = self.dir.path().join("ctl");
        let most = "200000";
        cmd::run(&[
            "ovs-appctl",
            "-t",
            text(&control)?,
            "upcall/set-flow-limit",
            most,
        ])
        .map(drop)
    }

    fn sockets(&self) -> Vec<PathBuf> {
        let socket = |port| self.dir.path().join(format!("vhost{port}"));
        (0..PORTS).map(socket).collect()
    }

    /// Runs `ovs-vsctl` and waits until vswitchd has done it.
    fn vsctl(&self, args: &str) -> Result<()> {
        vsctl(self.dir.path(), &["--timeout=20"], args)
    }
}

fn vsctl(dir: &Path, options: &[&str], args: &str) -> Result<()> {
    let db = format!("--db=unix:{}", dir.join("db.sock").display());
    let mut argv = vec!["ovs-vsctl", &db];
    argv.extend(options);
    argv.extend(args.split_whitespace());
    cmd::run(&argv).map(drop)
}

fn database(dir: &TempDir) -> Result<Background> {
    let path = |name: &str| dir.path().join(name).display().to_string();
    cmd::run(&["ovsdb-tool", "create", &path("conf.db"), SCHEMA])?;
    let remote = format!("--remote=punix:{}", path("db.sock"));
    let control = format!("--unixctl={}", path("db.ctl"));
    let mut command = unpinned("ovsdb-server");
    command.args([&remote, &control, &path("conf.db")]);
    let database = Background::spawn(command.stdout(Stdio::null()).stderr(Stdio::null()))?;
    cmd::wait_until("ovsdb-server", BOOT, || {
        Ok(dir.path().join("db.sock").exists())
    })?;
    vsctl(dir.path(), &["--no-wait"], "init")?;
    Ok(database)
}

fn vswitchd(dir: &TempDir, netns: &Netns, (core, mode): (usize, Mode)) -> Result<Background> {
    let path = |name: &str| dir.path().join(name).display().to_string();
    let mask = 1u64 << core;
    let settings = [
        "dpdk-init=true".to_owned(),
        format!("dpdk-hugepage-dir={}", path("huge")),
        "dpdk-socket-mem=1024".to_owned(),
        format!("dpdk-lcore-mask={mask:#x}"),
        format!("pmd-cpu-mask={mask:#x}"),
        format!("userspace-tso-enable={}", mode == Mode::Offloads),
        "dpdk-extra=--no-pci".to_owned(),
        // Else it forgets flows of few frames each whenever it has learnt an address.
        "min-revalidate-pps=0".to_owned(),
    ];
    for setting in settings {
        let line = format!("set Open_vSwitch . other_config:{setting}");
        vsctl(dir.path(), &["--no-wait"], &line)?;
    }
    let mut command = unpinned("ip");
    command
        .args(["netns", "exec", netns.name(), VSWITCHD])
        .arg(format!("unix:{}", path("db.sock")))
        .arg(format!("--unixctl={}", path("ctl")))
        .arg(format!("--log-file={}", path("log")))
        .env("OVS_RUNDIR", dir.path())
        .env("XDG_RUNTIME_DIR", dir.path());
    Background::spawn(command.stdout(Stdio::null()).stderr(Stdio::null()))
}

impl Contender for Ovs {
    fn name(&self) -> &'static str {
        OVS
    }

    fn can(&self, case: &Case, guests: usize) -> bool {
        // It does not offer packed rings.
        !case.packed && guests <= PORTS
    }

    fn serve(&mut self) -> Result<Served<'_>> {
        let running = self.ready(Mode::Plain)?;
        Ok(Served::new(running.sockets(), || running.vswitchd.pause()))
    }

    fn attach<'a>(&'a mut self, case: &Case, fronts: &[&Front]) -> Result<Attached<'a>> {
        let mode = match case.frame {
            _ if case.is_large() => Mode::Offloads,
            ..=1518 => Mode::Plain,
            _ => Mode::Jumbo,
        };
        let running = self.ready(mode)?;
        let connected = match mode {
            Mode::Offloads => accept(&running.sockets(), fronts),
            Mode::Plain | Mode::Jumbo => connect(&running.sockets(), fronts),
        };
        match connected {
            Ok(frontends) => Ok(Attached::Remote {
                frontends,
                pause: Box::new(|| running.vswitchd.pause()),
            }),
            Err(error) => {
                running.vswitchd.pause();
                Err(error)
            }
        }
    }
}
