//! Linux's own driver for the DEC 21140, `tulip`: what it does not do yet on our adapters. Multicast does not reach the guest
//! after promiscuous mode; of four adapters the second does not answer.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use vswitch_tests::{
    Lab, Netns, Station,
    station::Address,
    vm::{
        Console, Netboot, image,
        ours::{BOOT_LIMIT, ip_parameter},
    },
};

const fn at(host: u8) -> Address {
    Address { net: 71, host }
}
const HOST: Address = at(1);
const GUEST: Address = at(2);

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
