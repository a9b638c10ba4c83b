//! How long a guest takes from its start to the first answer to a ping, against QEMU with the same kernel on the same KVM.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
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

fn ours() -> Result<(f64, f64)> {
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
    let ready = console.wait_ready(LIMIT)?;
    Ok((ping, ready))
}

fn qemu() -> Result<(f64, f64)> {
    let netns = Netns::new("qemu")?;
    netns.ip("tuntap add dev tap0 mode tap")?;
    netns.ip(&format!("addr add {}/24 dev tap0", at(1).ip(false)))?;
    netns.ip("link set tap0 up")?;
    let ip = ip_parameter(&at(2).ip(false), "eth0");
    let mut guest = QemuTulip::start(&netns, "tap0", &at(2).mac(), &ip)?;
    let ping = first_ping(&netns, &at(2).ip(false), guest.started, LIMIT)?;
    let ready = guest.console.wait_ready(LIMIT)?;
    Ok((ping, ready))
}

#[test]
fn the_first_ping_is_not_later_than_under_qemu() -> Result<()> {
    let (qemu_ping, qemu_ready) = qemu()?;
    let (our_ping, our_ready) = ours()?;
    println!("first ping after {our_ping:.1} s, under QEMU after {qemu_ping:.1} s");
    println!(
        "init after {our_ready:.1} s of the kernel's time, under QEMU after {qemu_ready:.1} s"
    );
    ensure!(
        our_ping <= qemu_ping * RATIO,
        "the first ping came after {our_ping:.1} s, under QEMU after {qemu_ping:.1} s"
    );
    Ok(())
}
