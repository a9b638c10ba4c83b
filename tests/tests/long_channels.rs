//! Several processors, and a channel of the synthetic adapter for each of them, with Linux's `hv_netvsc`.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use vswitch_tests::{
    Lab, cmd,
    station::Address,
    vm::{Console, ours::BOOT_LIMIT, scene::Scene},
};

/// How long the driver may take to open its sub-channels.
const OPEN_LIMIT: Duration = Duration::from_secs(30);
/// Connections that are made together, and so many times at most. Linux spreads what it sends by chance: by then each channel
/// has its share.
const TOGETHER: u16 = 4;
const TIMES: u16 = 16;
/// Bytes that each sends and gets back: three segments.
const BYTES: usize = 4_000;
/// The port of the next connection. The hash that spreads what comes back has a constant key.
static PORT: AtomicU16 = AtomicU16::new(5000);

/// A channel of the guest's adapter, as its driver shows it.
#[derive(Debug)]
struct Channel {
    /// The processor that it interrupts.
    cpu: u32,
    /// How often it did.
    interrupts: u64,
}

fn channels(console: &mut Console) -> Result<Vec<Channel>> {
    let said = console.run(
        "for c in /sys/class/net/eth0/device/channels/*; do echo $(cat $c/cpu $c/interrupts); done",
    )?;
    let channel = |line: &str| {
        let (cpu, interrupts) = line.split_once(' ')?;
        Some(Channel {
            cpu: cpu.parse().ok()?,
            interrupts: interrupts.parse().ok()?,
        })
    };
    said.lines()
        .map(|line| channel(line).with_context(|| format!("a channel {line:?}")))
        .collect()
}

/// Waits until the driver has a channel for each processor, and checks where they lead.
fn wait_open(console: &mut Console, cpus: u32) -> Result<()> {
    let mut open = Vec::new();
    let waited = cmd::wait_until("a channel for each processor", OPEN_LIMIT, || {
        open = channels(console)?;
        Ok(open.len() == cpus as usize)
    });
    waited.with_context(|| format!("{open:?}"))?;
    let used: BTreeSet<u32> = open.iter().map(|channel| channel.cpu).collect();
    ensure!(used == (0..cpus).collect(), "{open:?}");
    let queues = console.run("ls /sys/class/net/eth0/queues")?;
    for queue in 0..cpus {
        for way in ["rx", "tx"] {
            let name = format!("{way}-{queue}");
            ensure!(
                queues.split_whitespace().any(|queue| queue == name),
                "{queues}"
            );
        }
    }
    Ok(())
}

/// What the driver counted of each channel since it came up: packets sent, packets received, interrupts.
fn carried(console: &mut Console, cpus: u32) -> Result<Vec<[u64; 3]>> {
    let said = console.run("ethtool -S eth0")?;
    let counter = |name: &str| {
        let line = said
            .lines()
            .find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'));
        let value = line.with_context(|| format!("no {name} in {said}"))?;
        value.trim().parse().context("a counter")
    };
    let open = channels(console)?;
    ensure!(open.len() == cpus as usize, "{open:?}");
    (0..)
        .zip(open)
        .map(|(queue, channel)| {
            let sent = counter(&format!("tx_queue_{queue}_packets"))?;
            let received = counter(&format!("rx_queue_{queue}_packets"))?;
            Ok([sent, received, channel.interrupts])
        })
        .collect()
}

/// Connections from many ports to the host, which sends everything back, until each channel has carried some of what is
/// sent and some of what is received, and has interrupted.
fn all_channels_carry(console: &mut Console, host: Address, cpus: u32) -> Result<()> {
    console.run(&format!("head -c {BYTES} /dev/urandom >/tmp/some"))?;
    let hash = console.run("sha256sum </tmp/some")?;
    let before = carried(console, cpus)?;
    let mut after = Vec::new();
    for _ in 0..TIMES {
        let first = PORT.fetch_add(TOGETHER, Ordering::Relaxed);
        let ports: Vec<String> = (first..first + TOGETHER).map(|p| p.to_string()).collect();
        let echo = format!(
            "for port in {}; do nc -p $port {} 7000 </tmp/some | sha256sum; done",
            ports.join(" "),
            host.ip(false)
        );
        let said = console.run(&echo)?;
        ensure!(said == hash.repeat(TOGETHER.into()), "`{echo}` gave {said}");
        after = carried(console, cpus)?;
        let grew = |(before, after): (&[u64; 3], &[u64; 3])| {
            before
                .iter()
                .zip(after)
                .all(|(before, after)| before < after)
        };
        if before.iter().zip(&after).all(grew) {
            return Ok(());
        }
    }
    bail!("sent, received, interrupts of each channel: {before:?}, then {after:?}")
}

/// Where the host's KVM emulates the kernel and has fewer processors than the guest, the kernel warns on the console of
/// processors that stand still for long.
const NO_WARNINGS: &str = "rcupdate.rcu_cpu_stall_suppress=1";

/// A guest with so many processors; the host answers it.
fn scene(cpus: u32) -> Result<Scene> {
    Scene::with(move |lab: &Lab, name, adapters, parameters| {
        lab.create_equipped_vm(name, adapters, &format!("{parameters} {NO_WARNINGS}"))?;
        lab.ctl(&format!("vm set {name} --cpus {cpus}")).map(drop)
    })
}

#[test]
fn two_processors_have_a_channel_each_and_keep_them_when_saved() -> Result<()> {
    let mut scene = scene(2)?;
    wait_open(&mut scene.console, 2)?;
    all_channels_carry(&mut scene.console, scene.host.address, 2)?;
    scene.transfer(Scene::save_and_start)?;
    wait_open(&mut scene.console, 2)?;
    all_channels_carry(&mut scene.console, scene.host.address, 2)?;

    // The driver starts anew, and asks for them again.
    scene.console.run("ifconfig eth0 mtu 1400")?;
    wait_open(&mut scene.console, 2)?;
    all_channels_carry(&mut scene.console, scene.host.address, 2)?;

    // Its user sends the interrupts of one elsewhere.
    scene
        .console
        .run("for c in /sys/class/net/eth0/device/channels/*; do echo 1 >$c/cpu; done")?;
    let open = channels(&mut scene.console)?;
    ensure!(open.iter().all(|channel| channel.cpu == 1), "{open:?}");
    all_channels_carry(&mut scene.console, scene.host.address, 2)?;
    scene.lab.counters_add_up()
}

#[test]
fn four_processors_have_a_channel_each() -> Result<()> {
    let mut scene = scene(4)?;
    let count = scene.console.run("grep -c ^processor /proc/cpuinfo")?;
    ensure!(count.trim() == "4", "{count} processors");
    wait_open(&mut scene.console, 4)?;
    all_channels_carry(&mut scene.console, scene.host.address, 4)?;
    scene.console.begin("reboot -f")?;
    scene.console.wait_ready(BOOT_LIMIT)?;
    wait_open(&mut scene.console, 4)?;
    scene.lab.counters_add_up()?;
    scene.lab.ctl("vm turn-off guest")?;
    scene.lab.wait_vm("guest", "off")
}
