//! How long a guest takes from its start to the first answer to a ping, against QEMU with the same kernel on the same KVM.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use vswitch_tests::{
    Lab, Netns,
    station::Address,
    vm::{
        QemuTulip,
        ours::{BOOT_LIMIT, ip_parameter},
        qemu::first_ping,
    },
};

const fn at(host: u8) -> Address {
    Address { net: 75, host }
}
/// What ours may take at most, of what QEMU takes.
const RATIO: f64 = 1.1;
const LIMIT: Duration = BOOT_LIMIT;
/// Measurements, of which the median counts.
const PAIRS: usize = 3;

/// Seconds, and what left guest code meanwhile.
fn ours() -> Result<(f64, String)> {
    let lab = Lab::start()?;
    lab.ctl("network create inner --type internal")?;
    let _host = lab.host_station("inner", at(1))?;
    lab.create_vm(
        "guest",
        &["net=inner"],
        &ip_parameter(&at(2).ip(false), "eth0"),
    )?;
    let start = Instant::now();
    let mut console = lab.start_vm("guest")?;
    let ping = first_ping(&lab.host, &at(2).ip(false), start, LIMIT)?;
    let (exits, _) = lab.vm_exits("guest")?;
    console.wait_ready(LIMIT)?;
    Ok((ping, format!("{exits:?}")))
}

fn qemu() -> Result<f64> {
    let netns = Netns::new("qemu")?;
    netns.ip("tuntap add dev tap0 mode tap")?;
    netns.ip(&format!("addr add {}/24 dev tap0", at(1).ip(false)))?;
    netns.ip("link set tap0 up")?;
    let ip = ip_parameter(&at(2).ip(false), "eth0");
    let mut guest = QemuTulip::start(&netns, "tap0", &at(2).mac(), &ip)?;
    let ping = first_ping(&netns, &at(2).ip(false), guest.started, LIMIT)?;
    guest.console.wait_ready(LIMIT)?;
    Ok(ping)
}

/// Both at the same time, so that what else the machine does slows both down.
fn pair() -> Result<(f64, f64, String)> {
    thread::scope(|scope| {
        let qemu = scope.spawn(qemu);
        let ours = ours();
        let qemu = qemu.join().map_err(|_| anyhow!("QEMU's thread panicked"))?;
        let (ours, exits) = ours?;
        Ok((ours, qemu.context("under QEMU")?, exits))
    })
}

#[test]
fn the_first_ping_is_not_later_than_under_qemu() -> Result<()> {
    let mut ratios = Vec::new();
    for _ in 0..PAIRS {
        let (ours, qemu, exits) = pair()?;
        println!("first ping after {ours:.1} s and exits {exits}, under QEMU after {qemu:.1} s");
        ratios.push(ours / qemu);
    }
    ratios.sort_by(f64::total_cmp);
    let median = ratios.get(PAIRS / 2).context("no measurement")?;
    ensure!(
        *median <= RATIO,
        "the first ping came after {median:.2} times QEMU's time: {ratios:?}"
    );
    Ok(())
}
