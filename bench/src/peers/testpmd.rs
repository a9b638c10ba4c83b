//! DPDK's own test program, which forwards between two vhost-user ports and looks at nothing.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Result;
use tempfile::TempDir;
use vswitch::ports::vhost::driver::Guest as Front;
use vswitch_tests::{Background, cmd};

use super::pages::HugePages;
use super::{Poller, TESTPMD, unpinned};
use crate::case::Case;
use crate::subject::{Attached, Contender, Served, connect};

const BOOT: Duration = Duration::from_secs(20);

/// A running testpmd.
pub(crate) struct Testpmd {
    process: Poller,
    dir: TempDir,
    _pages: HugePages,
}

impl Testpmd {
    /// Starts it on `core`.
    pub(crate) fn start(core: usize) -> Result<Testpmd> {
        let (dir, pages) = (TempDir::new()?, HugePages::reserve(200)?);
        let sockets = sockets(&dir);
        let mut command = unpinned("dpdk-testpmd");
        command
            .arg("--lcores")
            .arg(format!("0@{core},1@{core}"))
            .args(["--no-pci", "--in-memory", "--no-telemetry", "-m", "256"]);
        for (port, socket) in sockets.iter().enumerate() {
            let device = format!("net_vhost{port},iface={},queues=1,tso=1", socket.display());
            command.args(["--vdev", &device]);
        }
        command
            .args([
                "--",
                "--forward-mode=io",
                "--auto-start",
                "--total-num-mbufs=16384",
            ])
            .args(["--max-pkt-len=9018", "--port-topology=paired"])
            // It ends when its standard input does.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut process = Background::spawn(&mut command)?;
        cmd::wait_until("testpmd to make its sockets", BOOT, || {
            process.must_run()?;
            Ok(sockets.iter().all(|socket| socket.exists()))
        })?;
        let mut testpmd = Testpmd {
            process: Poller { process },
            dir,
            _pages: pages,
        };
        // From the sockets to forwarding it is a moment.
        std::thread::sleep(Duration::from_millis(500));
        testpmd.process.pause();
        Ok(testpmd)
    }
}

fn sockets(dir: &TempDir) -> Vec<PathBuf> {
    ["a", "b"].map(|name| dir.path().join(name)).into()
}

impl Contender for Testpmd {
    fn name(&self) -> &'static str {
        TESTPMD
    }

    fn can(&self, _: &Case, guests: usize) -> bool {
        // None means that stock guests connect by themselves.
        guests == 2 || guests == 0
    }

    fn serve(&mut self) -> Result<Served<'_>> {
        self.process.resume()?;
        Ok(Served::new(sockets(&self.dir), || self.process.pause()))
    }

    fn attach<'a>(&'a mut self, _: &Case, fronts: &[&Front]) -> Result<Attached<'a>> {
        self.process.resume()?;
        match connect(&sockets(&self.dir), fronts) {
            Ok(frontends) => Ok(Attached::Remote {
                frontends,
                pause: Box::new(|| self.process.pause()),
            }),
            Err(error) => {
                self.process.pause();
                Err(error)
            }
        }
    }
}
