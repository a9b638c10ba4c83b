//! Linux's own drivers for Hyper-V, `hv_vmbus` and `hv_netvsc`, on synthetic adapters.

use std::time::Duration;

use anyhow::{Result, ensure};
use vswitch_tests::{
    Lab, Station, cmd,
    station::Address,
    vm::{
        Console, Netboot,
        netboot::noise,
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

/// An internal network for large frames with the host's station, and a guest that is ready.
fn guest_on_internal_network() -> Result<(Lab, Station, Console)> {
    let lab = Lab::start()?;
    lab.ctl("network create inner --type internal --mtu 9000")?;
    let (host, console) = lab.ready_guest(Lab::create_synthetic_vm, HOST, GUEST)?;
    Ok((lab, host, console))
}

/// A file from a web server to the guest, and back and forth through an echo server, unharmed.
fn traffic(lab: &Lab, console: &mut Console) -> Result<()> {
    let web = Netboot::start(&lab.host, "vsw-inner", HOST)?;
    let hash = web.offer("file", &noise(400_000))?;
    let get = format!(
        "wget -q -O /tmp/file {}; sha256sum /tmp/file",
        web.url("file")
    );
    let echo = format!("nc {} 7000 </tmp/file | sha256sum", HOST.ip(false));
    for command in [get, echo] {
        let said = console.run(&command)?;
        ensure!(
            said.starts_with(&hash),
            "`{command}` gave {said}, not {hash}"
        );
    }
    Ok(())
}

#[test]
fn traffic_goes_both_ways_and_the_driver_starts_again_and_again() -> Result<()> {
    let (lab, mut host, mut console) = guest_on_internal_network()?;
    let bound = console.run("basename $(readlink /sys/class/net/eth0/device/driver)")?;
    ensure!(bound.trim() == "hv_netvsc", "eth0 is driven by {bound}");
    ensure!(lab.adapter_driver("guest")? == "bound");
    console.ping(HOST)?;
    for payload in [1, 56, 1472] {
        host.ping(GUEST, false, payload)?;
    }
    let before = lab.vm_exits_at("guest", "hypercall")?;
    ensure!(before > 0, "hypercalls are not counted");
    traffic(&lab, &mut console)?;
    let calls = lab.vm_exits_at("guest", "hypercall")? - before;
    // Some hundred frames each way, and the guest does not leave its code for any of them.
    ensure!(calls < 10, "{calls} hypercalls while frames were sent");

    for round in 0..repeat(3) {
        console.run("ifconfig eth0 down && ifconfig eth0 up")?;
        console
            .ping(HOST)
            .map_err(|e| e.context(format!("after {round} times down")))?;
    }
    // The driver lets go of everything, and sets up larger buffers.
    for (mtu, payload) in [(9000, 8972), (1500, 1472)] {
        console.run(&format!("ifconfig eth0 mtu {mtu}"))?;
        console.ping(HOST)?;
        host.ping(GUEST, false, payload)?;
    }
    let device = "basename $(readlink /sys/class/net/eth0/device)";
    let device = console.run(device)?.trim().to_owned();
    for _ in 0..repeat(2) {
        let file = "/sys/bus/vmbus/drivers/hv_netvsc";
        console.run(&format!("echo {device} >{file}/unbind"))?;
        ensure!(lab.adapter_driver("guest")? == "none");
        ensure!(!host.reaches(GUEST), "a guest without a driver answers");
        console.run(&format!("echo {device} >{file}/bind"))?;
        console.run(&format!("ifconfig eth0 {} up", GUEST.ip(false)))?;
        console.ping(HOST)?;
    }
    traffic(&lab, &mut console)?;
    lab.counters_add_up()
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
