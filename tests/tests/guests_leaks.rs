//! Machines that are started and turned off again and again leave nothing behind.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, ensure};
use vswitch_tests::{
    Lab, cmd,
    vm::ours::{STATE_LIMIT, repeat},
};

/// Memory of the daemon may grow by this much, in KiB: its allocator keeps some.
const GROWTH: u64 = 2048;

/// What could be left behind.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    processes: usize,
    descriptors: usize,
    ports: usize,
    interfaces: usize,
    /// What is mapped of guests' memory.
    mappings: usize,
    /// Files in the run directory.
    files: usize,
}

fn left(lab: &Lab, daemon: u32) -> Result<Left> {
    let proc = |name: &str| format!("/proc/{daemon}/{name}");
    let count = |path: &str| -> Result<usize> {
        Ok(fs::read_dir(path).with_context(|| path.to_owned())?.count())
    };
    let pids = cmd::run(&["ip", "netns", "pids", lab.host.name()])?;
    let maps = fs::read_to_string(proc("maps"))?;
    Ok(Left {
        processes: pids.lines().count(),
        descriptors: count(&proc("fd"))?,
        ports: lab.daemon.stats()?.0.len(),
        interfaces: lab.host.ip("-br link show")?.lines().count(),
        mappings: maps.lines().filter(|line| line.contains("memfd:")).count(),
        files: files(&lab.daemon.run_dir())?,
    })
}

fn files(folder: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        count += if path.is_dir() { files(&path)? } else { 1 };
    }
    Ok(count)
}

/// Memory of the daemon that is not shared with guests, in KiB.
fn resident(daemon: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{daemon}/status"))?;
    let fields: BTreeMap<&str, &str> = status.lines().filter_map(|l| l.split_once(':')).collect();
    let field = fields.get("RssAnon").context("no RssAnon")?;
    let number = field.split_whitespace().next().unwrap_or_default();
    number.parse().with_context(|| format!("RssAnon {field}"))
}

#[test]
fn started_and_turned_off_again_and_again() -> Result<()> {
    let lab = Lab::start()?;
    lab.ctl("network create inner --type internal")?;
    let daemon = lab.daemon.pid();
    lab.create_vm("guest", &["net=inner", "net=inner"], "")?;
    let cycle = || -> Result<()> {
        lab.ctl("vm start guest")?;
        lab.wait_vm("guest", "running")?;
        lab.ctl("vm turn-off guest")?;
        lab.wait_vm("guest", "off")
    };
    // The first ones make what is kept for good: threads, arenas.
    for _ in 0..3 {
        cycle()?;
    }
    let (before, memory) = (left(&lab, daemon)?, resident(daemon)?);
    for _ in 0..repeat(50) {
        cycle()?;
    }
    // The last process may take a moment to be gone.
    let mut after = left(&lab, daemon)?;
    let settled = cmd::wait_until("what was left to go", STATE_LIMIT, || {
        after = left(&lab, daemon)?;
        Ok(after == before)
    });
    ensure!(settled.is_ok(), "before {before:?}\nafter  {after:?}");
    let grown = resident(daemon)?.saturating_sub(memory);
    ensure!(grown < GROWTH, "vswitchd grew by {grown} KiB");
    Ok(())
}
