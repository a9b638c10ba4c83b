//! Linux's own drivers for Hyper-V, `hv_vmbus` and `hv_netvsc`, on synthetic adapters.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vswitch_tests::{
    Lab, Station, cmd,
    station::Address,
    vm::{
        Console,
        ours::{BOOT_LIMIT, repeat},
    },
};

const fn at(host: u8) -> Address {
    Address { net: 73, host }
}
const HOST: Address = at(1);
const GUEST: Address = at(2);
/// The driver waits up to 2 s between two looks at what it was told of its link.
const LINK_LIMIT: Duration = Duration::from_secs(20);

/// Legacy and synthetic adapters that a machine can have.
const LEGACY: u8 = 4;
const SYNTHETIC: u8 = 8;

/// An internal network with the host's station, and a guest that is ready.
fn guest_on_internal_network() -> Result<(Lab, Station, Console)> {
    let lab = Lab::start()?;
    lab.ctl("network create inner --type internal")?;
    let (host, console) = lab.ready_guest(Lab::create_synthetic_vm, HOST, GUEST)?;
    Ok((lab, host, console))
}

#[test]
fn an_adapter_is_told_of_its_link_and_comes_and_goes() -> Result<()> {
    let (lab, _host, mut console) = guest_on_internal_network()?;
    let shows = |console: &mut Console, file: &str, wanted: &str| -> Result<()> {
        cmd::wait_until(&format!("{file} to be {wanted}"), LINK_LIMIT, || {
            Ok(console.output(&format!("cat {file}"))?.1.trim() == wanted)
        })
    };
    let carrier = "/sys/class/net/eth0/carrier";
    shows(&mut console, carrier, "1")?;
    for _ in 0..repeat(2) {
        lab.ctl("adapter set guest synthetic0 --disconnect")?;
        shows(&mut console, carrier, "0")?;
        lab.ctl("adapter set guest synthetic0 --connect inner")?;
        shows(&mut console, carrier, "1")?;
    }
    console.ping(HOST)?;
    // Moved to another network, it reaches nobody; moved back, it goes on.
    lab.ctl("network create other --type private")?;
    lab.ctl("adapter set guest synthetic0 --connect other")?;
    ensure!(
        console.ping(HOST).is_err(),
        "a guest in another network reached the host"
    );
    lab.ctl("adapter set guest synthetic0 --connect inner")?;
    cmd::wait_until("the guest to reach the host again", LINK_LIMIT, || {
        Ok(console.ping(HOST).is_ok())
    })?;

    // A second one is plugged into the running guest, and unplugged.
    for _ in 0..repeat(2) {
        // Refused as long as the guest has not let go of the last one.
        cmd::wait_until("room for a second adapter", LINK_LIMIT, || {
            let added = lab.ctl("adapter add guest --kind synthetic --net inner");
            Ok(added.is_ok())
        })?;
        cmd::wait_until("eth1 in the guest", LINK_LIMIT, || {
            Ok(console.output("ifconfig eth1 10.1.73.2 up")?.0 == 0)
        })?;
        shows(&mut console, "/sys/class/net/eth1/carrier", "1")?;
        lab.ctl("adapter remove guest synthetic1")?;
        cmd::wait_until("no eth1 in the guest", LINK_LIMIT, || {
            Ok(console.output("test -e /sys/class/net/eth1")?.0 != 0)
        })?;
    }
    console.ping(HOST)?;
    lab.counters_add_up()
}

/// Each in a network of its own: what `host` there is.
const fn on(adapter: u8, host: u8) -> Address {
    Address {
        net: 100 + adapter,
        host,
    }
}

#[test]
fn eight_synthetic_and_four_legacy_adapters_serve_twelve_networks() -> Result<()> {
    let lab = Lab::start()?;
    let mut stations = Vec::new();
    for adapter in 0..SYNTHETIC + LEGACY {
        let network = format!("n{adapter}");
        lab.ctl(&format!("network create {network} --type internal"))?;
        stations.push(lab.host_station(&network, on(adapter, 1))?);
    }
    let adapters = |range: std::ops::Range<u8>| -> Vec<String> {
        range
            .map(|adapter| format!("net=n{adapter},mac={}", on(adapter, 2).mac()))
            .collect()
    };
    let synthetic = adapters(0..SYNTHETIC);
    let synthetic: Vec<&str> = synthetic.iter().map(String::as_str).collect();
    lab.create_synthetic_vm("guest", &synthetic, "")?;
    for adapter in SYNTHETIC..SYNTHETIC + LEGACY {
        let mac = on(adapter, 2).mac();
        lab.ctl(&format!(
            "adapter add guest --kind legacy --net n{adapter} --mac {mac}"
        ))?;
    }
    for one_more in ["legacy", "synthetic"] {
        lab.refused(
            &["adapter", "add", "guest", "--kind", one_more],
            &[one_more],
        )?;
    }
    // Each synthetic adapter's driver takes 17 MiB for its buffers.
    lab.ctl("vm set guest --memory 256M")?;
    let mut console = lab.start_vm("guest")?;
    console.wait_ready(BOOT_LIMIT)?;
    for adapter in 0..SYNTHETIC + LEGACY {
        let (ip, mac) = (on(adapter, 2).ip(false), on(adapter, 2).mac());
        console.run(&format!(
            "ifname=$(basename $(dirname $(grep -l {mac} /sys/class/net/*/address)))"
        ))?;
        console.run(&format!("ifconfig $ifname {ip} netmask 255.255.255.0 up"))?;
    }
    for (adapter, station) in (0..).zip(&mut stations) {
        station.ping(on(adapter, 2), false, 1472)?;
        console.ping(on(adapter, 1))?;
        let learned = lab.ctl(&format!("fdb show n{adapter}"))?.to_string();
        let mac = on(adapter, 2).mac();
        ensure!(learned.contains(&mac), "{mac} is not in {learned}");
    }
    let shown = lab.vm("guest")?;
    let bound = |adapter: &serde_json::Value| adapter["driver"] == "bound";
    let adapters = shown["adapters"].as_array().context("no adapters")?;
    ensure!(
        adapters.len() == 12 && adapters.iter().all(bound),
        "{shown}"
    );
    lab.counters_add_up()
}

#[test]
fn a_guest_without_hyper_v_finds_none() -> Result<()> {
    let lab = Lab::start()?;
    lab.ctl("network create inner --type internal")?;
    lab.create_vm("guest", &["net=inner"], "")?;
    lab.ctl("vm set guest --no-hyperv")?;
    lab.refused(
        &["adapter", "add", "guest", "--kind", "synthetic"],
        &["Hyper-V"],
    )?;
    let mut console = lab.start_vm("guest")?;
    console.wait_ready(BOOT_LIMIT)?;
    let found = console.output("ls /sys/bus/vmbus/devices")?;
    ensure!(found.0 != 0, "there is a virtual machine bus: {}", found.1);
    let (exits, _) = lab.vm_exits("guest")?;
    let none = |kind: &str| {
        exits
            .iter()
            .any(|(name, count)| name == kind && *count == 0)
    };
    ensure!(none("msr") && none("hypercall"), "{exits:?}");
    Ok(())
}
