//! Machines that are reset while traffic runs: their guests come back, others do not notice, and consoles stay connected.

#[path = "guests_reset/terminal.rs"]
mod terminal;

use std::time::Duration;

use anyhow::Result;
use vswitch_tests::{
    cmd,
    station::Address,
    vm::ours::{BOOT_LIMIT, STATE_LIMIT, guest_on_internal_network, repeat},
};

const fn at(host: u8) -> Address {
    Address { net: 74, host }
}
const HOST: Address = at(1);
const GUEST: Address = at(2);
const BYSTANDER: Address = at(3);

#[test]
fn a_reset_in_the_middle_of_traffic() -> Result<()> {
    let (lab, mut host, mut console) = guest_on_internal_network(HOST, GUEST)?;
    let mut bystander = lab.tap_station("inner", "bystander", None, BYSTANDER)?;
    for round in 0..repeat(2) {
        // Broadcasts and what the guest is asked come at full speed until the guest of after the reset has begun: more
        // than a guest whose ring 0 is emulated can take for long.
        let guest = GUEST.ip(false);
        let flood = lab
            .host
            .spawn(&["ping", "-f", "-q", "-s", "1000", &guest])?;
        let broadcasts = [
            "ping",
            "-b",
            "-q",
            "-i",
            "0.002",
            "-s",
            "1400",
            "10.74.0.255",
        ];
        let broadcasts = lab.host.spawn(&broadcasts)?;
        console.begin(&format!("ping -A -s 1000 {}", HOST.ip(false)))?;
        std::thread::sleep(Duration::from_secs(1));
        lab.ctl("vm reset guest")?;
        std::thread::sleep(Duration::from_secs(1));
        drop((flood, broadcasts));
        console.wait_ready(BOOT_LIMIT)?;
        let what = format!("the guest to answer after reset {round}");
        cmd::wait_until(&what, STATE_LIMIT, || Ok(host.reaches(GUEST)))?;
        bystander.ping(HOST, false, 56)?;
        console.ping(HOST)?;
    }
    terminal::is_the_guests(&lab)?;
    // Whoever else listens and types is not disturbed.
    console.run("true")?;
    lab.counters_add_up()
}
