//! A machine boots from the network by its legacy adapter: firmware, iPXE, DHCP, TFTP, HTTP, and a Linux kernel that goes
//! on with its own driver.

use std::time::Instant;

use anyhow::{Result, ensure};
use vswitch_tests::{
    Lab, Station,
    station::Address,
    vm::{Netboot, image, netboot::noise, ours::NETWORK_BOOT_LIMIT},
};

const fn at(host: u8) -> Address {
    Address { net: 74, host }
}
const LAN: Address = at(1);
const HOST: Address = at(2);
/// Fewer than the ROM has pages.
const MANY_READS: u64 = 250;

#[test]
fn a_machine_boots_from_the_network() -> Result<()> {
    let lab = Lab::start()?;
    let cable = lab.lan()?;
    lab.ctl("network create office --type external --uplink eth1")?;
    let mut lan = Station::inside("lan", &cable, "eth0", None, LAN)?;
    let _host = lab.host_station("office", HOST)?;
    let servers = Netboot::start(&cable, "eth0", LAN)?;
    let hash = servers.offer_guest(image::shared()?, &noise(1 << 20))?;
    lab.create_network_vm("guest", &["net=office,mac=02:00:00:00:74:64"])?;
    let start = Instant::now();
    let mut console = lab.start_vm("guest")?;
    console.wait_for("iPXE initialising", NETWORK_BOOT_LIMIT)?;
    let (exits, _) = lab.vm_exits("guest")?;
    println!(
        "iPXE {:?} after the start, exits {exits:?}",
        start.elapsed()
    );
    // Half a million words of the ROM have been read by now.
    let reads = exits.iter().find(|(kind, _)| kind == "mmio");
    ensure!(
        reads.is_some_and(|(_, count)| *count < MANY_READS),
        "reading the ROM leaves guest code: {exits:?}"
    );
    for milestone in ["/linux...", "/initrd..."] {
        console.wait_for(milestone, NETWORK_BOOT_LIMIT)?;
        println!("{milestone} {:?} after the start", start.elapsed());
    }
    let ready = console.wait_ready(NETWORK_BOOT_LIMIT);
    let seconds = ready.map_err(|e| e.context(format!("dnsmasq said: {}", servers.log())))?;
    println!(
        "ready {:?} after the start, {seconds} s of the kernel's time",
        start.elapsed()
    );
    for word in ["DHCPACK", "boot.ipxe", "02:00:00:00:74:64"] {
        ensure!(
            servers.log().contains(word),
            "no {word} in {}",
            servers.log()
        );
    }
    let driver = console.run("basename $(readlink /sys/class/net/eth0/device/driver)")?;
    ensure!(driver.trim() == "tulip", "its driver is {driver}");
    for station in [HOST, LAN] {
        let said = console.run(&format!("ping -c 2 -W 5 {}", station.ip(false)))?;
        ensure!(said.contains(" 0% packet loss"), "{said}");
    }
    let said = console.run(&format!("wget -q -O - {} | sha256sum", servers.url("file")))?;
    ensure!(
        said.starts_with(&hash),
        "the file's hash is {said}, not {hash}"
    );
    let address = console.run("ifconfig eth0")?;
    let ip = address
        .split("inet addr:")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next());
    let ip = ip.unwrap_or_default().to_owned();
    lan.run(&format!("ping -c 2 -W 5 {ip}"))?;
    let stats = lab.daemon.stats()?;
    ensure!(stats.wrong().is_empty(), "{:?}", stats.wrong());
    Ok(())
}
