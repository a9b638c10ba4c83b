//! Network namespaces.

use std::{
    fs::File,
    os::fd::AsFd,
    process::{self, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use rustix::{
    process::{Pid, Signal, geteuid, kill_process, test_kill_process},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::cmd::{self, Background};

/// Names of namespaces made here are `vt-PID-NUMBER-LABEL`, so that [`sweep`] can tell whose they are.
const PREFIX: &str = "vt-";
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A network namespace of our own, deleted with its processes when dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes a namespace with the loopback up and without the waiting that IPv6 duplicate detection brings.
    ///
    /// # Errors
    /// Without root, or where `ip` is missing.
    pub fn new(label: &str) -> Result<Self> {
        if !geteuid().is_root() {
            bail!("making network namespaces needs root");
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}-{label}", process::id());
        cmd::run(&["ip", "netns", "add", &name])
            .context("network namespaces are needed (package iproute2)")?;
        let netns = Self { name };
        netns.ip("link set lo up")?;
        // Optimistic or not, an address in its duplicate detection answers nobody for a second or two.
        for (key, value) in [
            ("ipv6/conf/all/accept_dad", "0"),
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv6/conf/default/router_solicitations", "0"),
            ("ipv4/ping_group_range", "0 0"),
        ] {
            netns.sysctl(key, value)?;
        }
        Ok(netns)
    }

    /// Its name, as `ip netns` knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Gives a setting of its network, such as `ipv4/ip_forward`, a value.
    ///
    /// # Errors
    /// Naming the setting, where the kernel refuses it.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{key}");
        self.inside(|| std::fs::write(&path, value))?
            .with_context(|| format!("writing {value} to {path}"))
    }

    /// Runs `ip -n NAME ARGS`, with `args` split at white space.
    ///
    /// # Errors
    /// As [`cmd::run`].
    pub fn ip(&self, args: &str) -> Result<String> {
        let argv: Vec<&str> = ["ip", "-n", &self.name]
            .into_iter()
            .chain(args.split_whitespace())
            .collect();
        cmd::run(&argv)
    }

    /// A command that will run `program` inside.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        // `ip netns exec` replaces itself, so that the child's process id is the program's.
        command
            .args(["netns", "exec", &self.name, program])
            .stdin(Stdio::null());
        command
    }

    /// Runs a program inside and returns its standard output.
    ///
    /// # Errors
    /// As [`cmd::run`].
    pub fn run(&self, argv: &[&str]) -> Result<String> {
        self.run_within(argv, cmd::LIMIT)
    }

    /// As [`Netns::run`], with a limit of its own.
    ///
    /// # Errors
    /// As [`cmd::run`].
    pub fn run_within(&self, argv: &[&str], limit: Duration) -> Result<String> {
        let argv: Vec<&str> = ["ip", "netns", "exec", &self.name]
            .into_iter()
            .chain(argv.iter().copied())
            .collect();
        cmd::run_within(&argv, limit)
    }

    /// Starts a silent program inside that runs beside the test.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, argv: &[&str]) -> Result<Background> {
        let (program, args) = argv.split_first().context("an empty command line")?;
        Background::spawn(
            self.command(program)
                .args(args)
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        )
    }

    /// Runs `work` on a thread of its own that is inside.
    ///
    /// # Errors
    /// When the thread cannot enter. A panic of `work` is an error too.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let path = format!("/run/netns/{}", self.name);
        let file = File::open(&path).with_context(|| format!("opening {path}"))?;
        thread::scope(|scope| {
            let worker = scope.spawn(|| -> Result<T> {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(work())
            });
            worker
                .join()
                .map_err(|_| anyhow!("the work inside {} panicked", self.name))?
        })
    }

    /// Connects this namespace with `other` by a virtual cable: `here` and `there` are the ends' names. Both are up.
    ///
    /// # Errors
    /// As [`cmd::run`].
    pub fn cable(&self, here: &str, other: &Netns, there: &str) -> Result<()> {
        cmd::run(&[
            "ip",
            "link",
            "add",
            "name",
            here,
            "netns",
            &self.name,
            "type",
            "veth",
            "peer",
            "name",
            there,
            "netns",
            &other.name,
        ])?;
        self.ip(&format!("link set {here} up"))?;
        other.ip(&format!("link set {there} up"))?;
        Ok(())
    }

    /// Moves interface `ifname` from here to `other` and brings it up there.
    ///
    /// # Errors
    /// As [`cmd::run`].
    pub fn hand_over(&self, ifname: &str, other: &Netns) -> Result<()> {
        self.ip(&format!("link set {ifname} netns {}", other.name))?;
        other.ip(&format!("link set {ifname} up"))?;
        Ok(())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        delete(&self.name);
    }
}

/// Deletes a namespace and ends what still runs in it. What cannot be ended is left: there is nobody to tell.
fn delete(name: &str) {
    if let Ok(pids) = cmd::run(&["ip", "netns", "pids", name]) {
        for pid in pids
            .split_whitespace()
            .filter_map(|p| p.parse().ok())
            .filter_map(Pid::from_raw)
        {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    let _ = cmd::run(&["ip", "netns", "del", name]);
}

/// Deletes what test programs left that were killed before they could clean up, and returns the names.
///
/// # Errors
/// When `ip` is missing.
pub fn sweep() -> Result<Vec<String>> {
    let mut swept = Vec::new();
    for name in cmd::run(&["ip", "netns", "list"])?
        .lines()
        .filter_map(|l| l.split_whitespace().next())
    {
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next()?.parse().ok());
        let Some(owner) = owner.and_then(Pid::from_raw) else {
            continue;
        };
        if test_kill_process(owner).is_err() {
            delete(name);
            swept.push(name.to_owned());
        }
    }
    Ok(swept)
}
