//! Linux's own driver for the DEC 21140, `tulip`, on legacy adapters.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use vswitch_tests::{
    Lab, Netns, Station, cmd,
    station::Address,
    vm::{
        Console, Netboot, image,
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
fn the_filter_of_the_adapter_is_the_one_the_driver_sets() -> Result<()> {
    let (lab, host, mut console) = guest_on_internal_network()?;
    let netns = Arc::clone(
        host.netns()
            .context("the host's station has no namespace")?,
    );
    let web = Netboot::start(&netns, "vsw-inner", HOST)?;
    web.offer_file("vswitch-guest", &image::guest_program()?)?;
    let url = web.url("vswitch-guest");
    console.run(&format!(
        "cd /tmp && wget -q {url} && chmod +x vswitch-guest"
    ))?;
    let stranger = at(77);
    let (ip, mac) = (stranger.ip(false), stranger.mac());
    netns.ip(&format!("neigh add {ip} lladdr {mac} dev vsw-inner"))?;

    // The switch floods frames for an address it has not learned; the adapter filters them.
    ensure!(seen(&mut console, &netns, &ip, &mac)? == 0);
    let filtered = filtered(&lab)?;
    ensure!(
        filtered >= PINGS,
        "{filtered} frames were dropped as rx_filter"
    );
    console.run("ifconfig eth0 promisc")?;
    ensure!(seen(&mut console, &netns, &ip, &mac)? == PINGS);
    console.run("ifconfig eth0 -promisc")?;
    ensure!(seen(&mut console, &netns, &ip, &mac)? == 0);

    // Every IPv4 host is in the first group. Nobody is in the second until somebody joins it.
    let (every, group) = ("224.0.0.1", "239.1.2.3");
    let got = seen(&mut console, &netns, every, "01:00:5e:00:00:01")?;
    let groups = console.run("cat /proc/net/dev_mcast")?;
    ensure!(
        got == PINGS,
        "{got} of {PINGS} frames came; the guest's groups are {groups}"
    );
    let group_mac = "01:00:5e:01:02:03";
    ensure!(seen(&mut console, &netns, group, group_mac)? == 0);
    console.run(&format!(
        "./vswitch-guest join {group} 1000 >joined & joiner=$!"
    ))?;
    console.run("until grep -q joined joined; do sleep 0.1; done")?;
    ensure!(seen(&mut console, &netns, group, group_mac)? == PINGS);
    console.run("kill $joiner; wait $joiner; true")?;
    ensure!(seen(&mut console, &netns, group, group_mac)? == 0);
    console.run("ifconfig eth0 allmulti")?;
    ensure!(seen(&mut console, &netns, group, group_mac)? == PINGS);
    counters_add_up(&lab)
}

const PINGS: u64 = 5;

/// How many frames for `mac` the guest's packet socket sees while the host sends [`PINGS`] pings to `ip`.
fn seen(console: &mut Console, netns: &Netns, ip: &str, mac: &str) -> Result<u64> {
    let sniffer = console.begin("./vswitch-guest sniff 1000 4")?;
    std::thread::sleep(Duration::from_secs(1));
    let count = PINGS.to_string();
    // Nobody answers, so its exit status is 1.
    let _ = netns.run(&[
        "ping",
        "-n",
        "-q",
        "-c",
        &count,
        "-i",
        "0.05",
        "-W",
        "0.1",
        "-I",
        "vsw-inner",
        ip,
    ]);
    let (status, said) = console.end(sniffer)?;
    ensure!(status == 0, "{said}");
    Ok(said.lines().filter(|line| line.starts_with(mac)).count() as u64)
}

/// Frames that adapters' filters dropped.
fn filtered(lab: &Lab) -> Result<u64> {
    let stats = lab.daemon.stats()?;
    let drops = stats.0.iter().flat_map(|port| port.drops.iter());
    let filtered = drops.filter(|(reason, _)| reason == "rx_filter");
    Ok(filtered.map(|(_, count)| count).sum())
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

#[test]
fn four_adapters_serve_four_networks() -> Result<()> {
    let lab = Lab::start()?;
    let here = |net: u8, host: u8| Address {
        net: 80 + net,
        host,
    };
    let mut stations = Vec::new();
    for net in 0..4 {
        lab.ctl(&format!("network create n{net} --type private"))?;
        stations.push(lab.tap_station(
            &format!("n{net}"),
            &format!("peer{net}"),
            None,
            here(net, 1),
        )?);
    }
    lab.create_vm("guest", &["net=n0", "net=n1", "net=n2", "net=n3"], "")?;
    let mut console = lab.start_vm("guest")?;
    console.wait_ready(BOOT_LIMIT)?;
    for net in 0..4 {
        console.run(&format!("ifconfig eth{net} {} up", here(net, 2).ip(false)))?;
    }
    for (net, station) in (0..4).zip(&mut stations) {
        pings(&mut console, here(net, 1))?;
        station.ping(here(net, 2), false, 1400)?;
        let mac = console.run(&format!("cat /sys/class/net/eth{net}/address"))?;
        let learned = lab.ctl(&format!("fdb show n{net}"))?.to_string();
        ensure!(
            learned.contains(mac.trim()),
            "{mac} is not in n{net}: {learned}"
        );
    }
    let macs = console.run("cat /sys/class/net/eth?/address | sort | uniq -d")?;
    ensure!(macs.is_empty(), "given twice: {macs}");
    counters_add_up(&lab)
}
