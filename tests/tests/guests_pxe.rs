//! Machines boot from the network: firmware, iPXE, DHCP, TFTP, HTTP, and a Linux kernel that goes on with its own driver.
//! One does by the boot ROM of its legacy adapter, another one, that has no other than a synthetic adapter, by an iPXE that
//! it is given as a kernel.

#![allow(
    clippy::print_stdout,
    reason = "the times of a boot belong to the test's output"
)]

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use vswitch_tests::{
    Lab, Station,
    station::Address,
    vm::{Console, Netboot, image, netboot::noise, ours::NETWORK_BOOT_LIMIT},
};

const fn at(host: u8) -> Address {
    Address { net: 74, host }
}
const LAN: Address = at(1);
const HOST: Address = at(2);
const MAC: &str = "02:00:00:00:74:64";
/// Fewer than the ROM has pages.
const MANY_READS: u64 = 250;

/// A network with a LAN behind it that machines boot from.
struct Office {
    servers: Netboot,
    /// Of what is offered as `/file`.
    hash: String,
    lan: Station,
    _host: Station,
    lab: Lab,
}

impl Office {
    fn open() -> Result<Self> {
        let lab = Lab::start()?;
        let cable = lab.lan()?;
        lab.ctl("network create office --type external --uplink eth1")?;
        let lan = Station::inside("lan", &cable, "eth0", None, LAN)?;
        let host = lab.host_station("office", HOST)?;
        let servers = Netboot::start(&cable, "eth0", LAN)?;
        let hash = servers.offer_guest(image::shared()?, &noise(1 << 20))?;
        Ok(Self {
            servers,
            hash,
            lan,
            _host: host,
            lab,
        })
    }

    /// From the time that iPXE fetches a kernel until that one reaches everybody, by `driver`.
    fn goes_on(&mut self, console: &mut Console, driver: &str, start: Instant) -> Result<()> {
        for milestone in ["/linux...", "/initrd..."] {
            console.wait_for(milestone, NETWORK_BOOT_LIMIT)?;
            println!("{milestone} {:?} after the start", start.elapsed());
        }
        let ready = console.wait_ready(NETWORK_BOOT_LIMIT);
        let log = || self.servers.log();
        let seconds = ready.with_context(|| format!("dnsmasq said: {}", log()))?;
        println!(
            "ready {:?} after the start, {seconds} s of the kernel's time",
            start.elapsed()
        );
        for word in ["DHCPACK", "boot.ipxe", MAC] {
            ensure!(log().contains(word), "no {word} in {}", log());
        }
        let bound = console.run("basename $(readlink /sys/class/net/eth0/device/driver)")?;
        ensure!(bound.trim() == driver, "its driver is {bound}");
        console.ping(HOST)?;
        console.ping(LAN)?;
        let url = self.servers.url("file");
        let said = console.run(&format!("wget -q -O - {url} | sha256sum"))?;
        ensure!(
            said.starts_with(&self.hash),
            "the file's hash is {said}, not {}",
            self.hash
        );
        let address = console.run("ifconfig eth0")?;
        let ip = address
            .split("inet addr:")
            .nth(1)
            .and_then(|rest| rest.split_whitespace().next());
        let ip = ip.context("eth0 has no address")?;
        self.lan.run(&format!("ping -c 2 -W 5 {ip}"))?;
        self.lab.counters_add_up()
    }
}

#[test]
fn a_machine_boots_from_the_network() -> Result<()> {
    let mut office = Office::open()?;
    let adapter = format!("net=office,mac={MAC}");
    office.lab.create_network_vm("guest", &[&adapter])?;
    let start = Instant::now();
    let mut console = office.lab.start_vm("guest")?;
    console.wait_for("iPXE initialising", NETWORK_BOOT_LIMIT)?;
    let (exits, _) = office.lab.vm_exits("guest")?;
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
    office.goes_on(&mut console, "tulip", start)
}

#[test]
fn ipxe_drives_a_synthetic_adapter() -> Result<()> {
    let mut office = Office::open()?;
    let adapter = format!("net=office,mac={MAC}");
    office.lab.create_ipxe_vm("guest", &[&adapter])?;
    let start = Instant::now();
    let mut console = office.lab.start_vm("guest")?;
    let used = console.wait_for("using netvsc", NETWORK_BOOT_LIMIT)?;
    println!("net0 open {:?} after the start", start.elapsed());
    ensure!(
        used.contains(&format!("net0: {MAC} using netvsc")),
        "iPXE uses another adapter: {used}"
    );
    // Between the drivers of iPXE and of Linux nobody has it.
    office.goes_on(&mut console, "hv_netvsc", start)
}
