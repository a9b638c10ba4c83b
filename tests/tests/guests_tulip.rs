//! Linux's own driver for the DEC 21140, `tulip`, on legacy adapters.

use std::time::Duration;

use anyhow::{Result, ensure};
use vswitch_tests::{
    Lab, Station, cmd,
    station::Address,
    vm::{
        Console, Netboot,
        netboot::noise,
        ours::{BOOT_LIMIT, ip_parameter, repeat},
    },
};

const fn at(host: u8) -> Address {
    Address { net: 71, host }
}
const HOST: Address = at(1);
const GUEST: Address = at(2);
/// The driver looks at its link every 3 s while it is down.
const LINK_LIMIT: Duration = Duration::from_secs(15);

/// An internal network with the host's station and a guest that is ready.
fn guest_on_internal_network() -> Result<(Lab, Station, Console)> {
    let lab = Lab::start()?;
    lab.ctl("network create inner --type internal")?;
    let host = lab.host_station("inner", HOST)?;
    let ip = ip_parameter(&GUEST.ip(false), "eth0");
    lab.create_vm("guest", &["net=inner"], &ip)?;
    let mut console = lab.start_vm("guest")?;
    console.wait_ready(BOOT_LIMIT)?;
    Ok((lab, host, console))
}

fn pings(console: &mut Console, to: Address) -> Result<()> {
    let said = console.run(&format!("ping -c 2 -W 5 {}", to.ip(false)))?;
    ensure!(said.contains(" 0% packet loss"), "{said}");
    Ok(())
}

fn counters_add_up(lab: &Lab) -> Result<()> {
    let stats = lab.daemon.stats()?;
    ensure!(stats.wrong().is_empty(), "{:?}", stats.wrong());
    Ok(())
}

#[test]
fn traffic_goes_both_ways_and_the_driver_starts_again_and_again() -> Result<()> {
    let (lab, mut host, mut console) = guest_on_internal_network()?;
    pings(&mut console, HOST)?;
    for payload in [1, 56, 1472] {
        host.ping(GUEST, false, payload)?;
    }
    traffic(&lab, &mut console)?;

    for round in 0..repeat(5) {
        console.run("ifconfig eth0 down && ifconfig eth0 up")?;
        pings(&mut console, HOST).map_err(|e| e.context(format!("after {round} times down")))?;
    }
    // What module unload and load are for a driver that is built in.
    let address = console.run("basename $(readlink /sys/class/net/eth0/device)")?;
    for _ in 0..repeat(2) {
        for verb in ["unbind", "bind"] {
            let file = format!("/sys/bus/pci/drivers/tulip/{verb}");
            console.run(&format!("echo {} >{file}", address.trim()))?;
        }
        console.run(&format!("ifconfig eth0 {} up", GUEST.ip(false)))?;
        pings(&mut console, HOST)?;
    }
    traffic(&lab, &mut console)?;
    counters_add_up(&lab)
}

/// A file from a web server to the guest, and back and forth through an echo server, unharmed.
fn traffic(lab: &Lab, console: &mut Console) -> Result<()> {
    let web = Netboot::start(&lab.host, "vsw-inner", HOST)?;
    let hash = web.offer("file", &noise(400_000))?;
    let echo = format!("nc {} 7000 </tmp/file | sha256sum", HOST.ip(false));
    for command in [
        format!(
            "wget -q -O /tmp/file {}; sha256sum /tmp/file",
            web.url("file")
        ),
        echo,
    ] {
        let said = console.run(&command)?;
        ensure!(
            said.starts_with(&hash),
            "`{command}` gave {said}, not {hash}"
        );
    }
    Ok(())
}

#[test]
fn the_guest_sees_its_link_change() -> Result<()> {
    let (lab, _host, mut console) = guest_on_internal_network()?;
    let carrier = |console: &mut Console, wanted: &str| -> Result<()> {
        cmd::wait_until(
            &format!("carrier {wanted} in the guest"),
            LINK_LIMIT,
            || Ok(console.run("cat /sys/class/net/eth0/carrier")?.trim() == wanted),
        )
    };
    carrier(&mut console, "1")?;
    lab.ctl("adapter set guest legacy0 --disconnect")?;
    // With its link up the driver looks at it once a minute only, but 3 s after it was started.
    console.run("ifconfig eth0 down && ifconfig eth0 up")?;
    carrier(&mut console, "0")?;
    lab.ctl("adapter set guest legacy0 --connect inner")?;
    carrier(&mut console, "1")?;
    pings(&mut console, HOST)?;
    for _ in 0..repeat(100) {
        lab.ctl("adapter set guest legacy0 --disconnect")?;
        lab.ctl("adapter set guest legacy0 --connect inner")?;
    }
    cmd::wait_until("the guest to reach the host again", LINK_LIMIT, || {
        Ok(pings(&mut console, HOST).is_ok())
    })?;
    // Moved to another network, it reaches nobody; moved back, it goes on.
    lab.ctl("network create other --type private")?;
    lab.ctl("adapter set guest legacy0 --connect other")?;
    ensure!(
        pings(&mut console, HOST).is_err(),
        "a guest in another network reached the host"
    );
    lab.ctl("adapter set guest legacy0 --connect inner")?;
    cmd::wait_until("the guest to reach the host again", LINK_LIMIT, || {
        Ok(pings(&mut console, HOST).is_ok())
    })?;
    counters_add_up(&lab)
}
