//! A synthetic adapter that Linux's `hv_netvsc` gives up and takes again, again and again: nothing may be left behind.
//! In a slow guest each round takes ten seconds or so.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use vswitch_tests::{
    Lab, cmd,
    vm::{
        ours::repeat,
        scene::{GUEST, Scene},
    },
};

/// How long vswitchd and the process of the guest may take to let go.
const SOON: Duration = Duration::from_secs(20);
/// Memory of a process may grow by this much, in KiB: its allocator keeps some.
const GROWTH: u64 = 2048;

/// What could be left behind, in vswitchd and in the process of the guest.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    descriptors: [usize; 2],
    mappings: [usize; 2],
}

#[test]
fn nothing_is_left_of_an_adapter_that_is_given_up() -> Result<()> {
    let mut guest = Scene::new()?;
    let processes = [guest.lab.daemon.pid(), process_of_guest(&guest.lab)?];
    for command in [
        "device=$(basename $(readlink /sys/class/net/eth0/device))",
        "driver=/sys/bus/vmbus/drivers/hv_netvsc",
        "echo $device >$driver/unbind",
    ] {
        guest.console.run(command)?;
    }
    ensure!(guest.lab.adapter_driver("guest")? == "none");
    ensure!(
        !guest.host.reaches(GUEST),
        "a guest without a driver answers"
    );
    guest.console.run("echo $device >$driver/bind")?;
    // The first ones make what is kept for good.
    anew(&mut guest)?;
    ensure!(guest.lab.adapter_driver("guest")? == "bound");
    let (before, memory) = (left(processes)?, memory(processes)?);
    for round in 0..repeat(4) {
        anew(&mut guest).with_context(|| format!("after {round} rounds"))?;
    }
    let mut after = left(processes)?;
    let settled = cmd::wait_until("what was left to go", SOON, || {
        after = left(processes)?;
        Ok(after == before)
    });
    ensure!(settled.is_ok(), "before {before:?}\nafter  {after:?}");
    let grown = self::memory(processes)?;
    for (now, before) in grown.into_iter().zip(memory) {
        ensure!(
            now < before + GROWTH,
            "vswitchd and the process of the VM grew from {memory:?} to {grown:?} KiB"
        );
    }
    guest.transfer(|_| Ok(()))?;
    guest.lab.counters_add_up()
}

/// The interface goes down and up, and its driver lets go of the adapter and takes it again.
fn anew(guest: &mut Scene) -> Result<()> {
    let ip = GUEST.ip(false);
    // In one line, for each takes a slow guest a while.
    guest.console.run(&format!(
        "ifconfig eth0 down && ifconfig eth0 up && echo $device >$driver/unbind && echo $device >$driver/bind && \
         ifconfig eth0 {ip} up"
    ))?;
    guest.host.ping(GUEST, false, 1000)
}

fn process_of_guest(lab: &Lab) -> Result<u32> {
    let pids = cmd::run(&["ip", "netns", "pids", lab.host.name()])?;
    let is_vmm = |pid: &&str| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm"));
        name.is_ok_and(|name| name.starts_with("vswitch-vmm"))
    };
    let pid = pids.lines().find(is_vmm).context("no process of a VM")?;
    pid.parse().context("a process number")
}

fn left(processes: [u32; 2]) -> Result<Left> {
    let mut left = Left {
        descriptors: [0; 2],
        mappings: [0; 2],
    };
    let counts = left.descriptors.iter_mut().zip(&mut left.mappings);
    for (process, (descriptors, mappings)) in processes.into_iter().zip(counts) {
        *descriptors = fs::read_dir(format!("/proc/{process}/fd"))?.count();
        let maps = fs::read_to_string(format!("/proc/{process}/maps"))?;
        *mappings = maps.lines().filter(|line| line.contains("memfd:")).count();
    }
    Ok(left)
}

/// Memory of each that is not the guest's, in KiB.
fn memory(processes: [u32; 2]) -> Result<[u64; 2]> {
    let mut memory = [0; 2];
    for (process, memory) in processes.into_iter().zip(&mut memory) {
        let status = fs::read_to_string(format!("/proc/{process}/status"))?;
        let anonymous = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"))
            .context("no RssAnon")?;
        *memory = anonymous
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .context("RssAnon")?;
    }
    Ok(memory)
}
