//! Other switches, run beside ours in the same measurement.

mod ovs;
mod pages;
mod testpmd;

use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use rustix::process::{Pid, Signal, kill_process};
use vswitch_tests::Background;

use self::ovs::Ovs;
pub(crate) use self::ovs::OvsCables;
use self::testpmd::Testpmd;
use crate::subject::Contender;

/// What OVS-DPDK is called in results.
pub(crate) const OVS: &str = "OVS-DPDK";
/// What the kernel's own switch is called in results.
pub(crate) const BRIDGE: &str = "Linux bridge";
/// What testpmd's own forwarding is called in results.
pub(crate) const TESTPMD: &str = "testpmd io";

/// How long a peer goes on after its guests have left, so that it notices.
const NOTICE: Duration = Duration::from_millis(30);

/// A program that polls even when there is nothing to do, and is therefore stopped between its runs.
struct Poller {
    process: Background,
}

impl Poller {
    fn signal(&mut self, signal: Signal) {
        // Only a process that has ended cannot be signalled, and that shows as a failed run.
        let _ = kill_process(Pid::from_child(self.process.child()), signal);
    }

    fn resume(&mut self) -> Result<()> {
        self.process.must_run()?;
        self.signal(Signal::CONT);
        Ok(())
    }

    fn pause(&mut self) {
        sleep(NOTICE);
        self.signal(Signal::STOP);
    }
}

/// A command that may run on every core, whatever the caller is pinned to.
fn unpinned(program: &str) -> Command {
    let last = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let mut command = Command::new("taskset");
    command.args(["-c", last.trim(), program]);
    command
}

/// The peers that forward between vhost-user guests and can be started; the others, each with what is missing.
pub(crate) fn start(core: usize) -> (Vec<Box<dyn Contender>>, Vec<String>) {
    let (mut peers, mut missing) = (Vec::<Box<dyn Contender>>::new(), Vec::new());
    match Ovs::start(core) {
        Ok(ovs) => peers.push(Box::new(ovs)),
        Err(error) => missing.push(format!(
            "{OVS} (packages openvswitch-switch-dpdk, dpdk): {error:#}"
        )),
    }
    match Testpmd::start(core) {
        Ok(testpmd) => peers.push(Box::new(testpmd)),
        Err(error) => missing.push(format!("{TESTPMD} (package dpdk-dev): {error:#}")),
    }
    (peers, missing)
}
