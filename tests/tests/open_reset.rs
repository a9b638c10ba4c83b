//! Machines that are reset or die while traffic runs: their guests come back, and others do not notice.

use std::time::Duration;

use anyhow::{Result, ensure};
use vswitch_tests::{
    Lab, cmd,
    station::Address,
    vm::ours::{BOOT_LIMIT, ip_parameter, repeat},
};

const fn at(host: u8) -> Address {
    Address { net: 73, host }
}

#[test]
fn a_reset_in_the_middle_of_traffic() -> Result<()> {
    let lab = Lab::start()?;
    lab.ctl("network create inner --type internal")?;
    let mut host = lab.host_station("inner", at(1))?;
    let mut bystander = lab.tap_station("inner", "bystander", None, at(3))?;
    let ip = ip_parameter(&at(2).ip(false), "eth0");
    lab.create_vm("guest", &["net=inner"], &ip)?;
    let mut console = lab.start_vm("guest")?;
    console.wait_ready(BOOT_LIMIT)?;
    // Broadcasts and what the guest is asked come at full speed, the whole time.
    let peer = at(2).ip(false);
    let _flood = lab.host.spawn(&["ping", "-f", "-q", "-s", "1000", &peer])?;
    let _broadcasts = lab.host.spawn(&[
        "ping",
        "-b",
        "-q",
        "-i",
        "0.002",
        "-s",
        "1400",
        "10.73.0.255",
    ])?;
    for round in 0..repeat(2) {
        console.begin(&format!("ping -A -s 1000 {}", at(1).ip(false)))?;
        std::thread::sleep(Duration::from_secs(1));
        lab.ctl("vm reset guest")?;
        console.wait_ready(BOOT_LIMIT)?;
        let what = format!("the guest to answer after reset {round}");
        cmd::wait_until(&what, Duration::from_secs(10), || Ok(host.reaches(at(2))))?;
        bystander.ping(at(1), false, 56)?;
        let said = console.run(&format!("ping -c 2 -W 5 {}", at(1).ip(false)))?;
        ensure!(said.contains(" 0% packet loss"), "{said}");
    }
    let stats = lab.daemon.stats()?;
    ensure!(stats.wrong().is_empty(), "{:?}", stats.wrong());
    Ok(())
}
