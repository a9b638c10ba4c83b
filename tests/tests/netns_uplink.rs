//! The uplink of an external network: changed for another under traffic, and kept from the host's own stack.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vswitch_tests::{
    Capture, Lab, Netns, Station,
    lab::UPLINK,
    station::{Address, Transport::Tcp},
};

/// The other interface that is an uplink for a while.
const OTHER: &str = "eth2";

const HOST: Address = at(1);
const CAROL: Address = at(2);
/// Stations of the LAN behind [`UPLINK`], and of the one behind [`OTHER`].
const NEAR: Address = at(3);
const FAR: Address = at(4);

const fn at(host: u8) -> Address {
    Address { net: 67, host }
}

/// An address and a route that [`OTHER`] has.
const OWN: &str = "10.68.0.1/24";
const ROUTE: &str = "10.97.0.0/16 via 10.68.0.9";

/// What the host's stack has on an interface that is not bound, or on a host NIC.
#[derive(Debug, PartialEq, Eq)]
struct Stack {
    addresses: Vec<String>,
    routes: Vec<String>,
    mtu: String,
    settings: String,
}

fn stack(lab: &Lab, ifname: &str) -> Result<Stack> {
    let shown = lab
        .host
        .ip(&format!("-o addr show dev {ifname} scope global"))?;
    let address = |line: &str| line.split_whitespace().nth(3).map(str::to_owned);
    let mut addresses: Vec<String> = shown.lines().filter_map(address).collect();
    addresses.sort();
    let routes = lab
        .host
        .ip(&format!("route show dev {ifname} proto boot"))?;
    let files = ["ipv4", "ipv4", "ipv6"]
        .into_iter()
        .zip(["rp_filter", "arp_ignore", "disable_ipv6"])
        .map(|(family, key)| format!("/proc/sys/net/{family}/conf/{ifname}/{key}"));
    let files: Vec<String> = ["cat".to_owned()].into_iter().chain(files).collect();
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let mtu = lab
        .host
        .run(&["cat", &format!("/sys/class/net/{ifname}/mtu")])?;
    Ok(Stack {
        addresses,
        routes: routes.lines().map(|line| line.trim().to_owned()).collect(),
        mtu,
        settings: lab.host.run(&files)?,
    })
}

/// Two LANs, with a station each; the host has addresses on both of its interfaces, and settings on the second.
fn two_lans(lab: &Lab) -> Result<[(Arc<Netns>, Station); 2]> {
    let (near, far) = (lab.lan()?, lab.lan_at(OTHER)?);
    for address in HOST.both() {
        lab.host.ip(&format!("addr add {address} dev {UPLINK}"))?;
    }
    lab.host.ip(&format!("addr add {OWN} dev {OTHER}"))?;
    lab.host.ip(&format!("route add {ROUTE} dev {OTHER}"))?;
    lab.host
        .sysctl(&format!("ipv4/conf/{OTHER}/rp_filter"), "2")?;
    let stations = [
        Station::inside("near", &near, "eth0", None, NEAR)?,
        Station::inside("far", &far, "eth0", None, FAR)?,
    ];
    let [one, other] = stations;
    Ok([(near, one), (far, other)])
}

fn create(lab: &Lab) -> Result<()> {
    let create = format!("network create office --type external --uplink {UPLINK}");
    lab.ctl(&create).map(drop)
}

fn change(lab: &Lab, uplink: &str) -> Result<()> {
    lab.ctl(&format!("network set office --uplink {uplink}"))
        .map(drop)
}

/// Changes the uplink to `to` while carol talks to both LANs; from then on no frame of the network reaches `old`.
fn change_quietly(lab: &Lab, to: &str, old: &Netns, new: &Netns) -> Result<()> {
    change(lab, to)?;
    let from = if to == OTHER { UPLINK } else { OTHER };
    let mac = lab
        .host
        .run(&["cat", &format!("/sys/class/net/{from}/address")])?;
    // The old uplink is the host's again, which makes itself known there by IPv6.
    let filter = format!("ip or arp or not ether src {}", mac.trim());
    let silent = Capture::start(old, "eth0", "in", &filter)?;
    let busy = Capture::start(new, "eth0", "in", &filter)?;
    thread::sleep(Duration::from_millis(400));
    let (silent, busy) = (silent.finish()?, busy.finish()?);
    ensure!(busy.count("")? > 20, "nothing goes to the new LAN");
    let seen = silent.lines("")?;
    ensure!(seen.is_empty(), "the old LAN saw: {seen:?}");
    Ok(())
}

fn learned(lab: &Lab, station: &mut Station) -> Result<bool> {
    let table = lab.ctl("fdb show office")?.to_string();
    Ok(table.contains(station.mac()?.trim()))
}

#[test]
fn an_uplink_is_changed_under_traffic_and_back() -> Result<()> {
    let lab = Lab::start()?;
    let [(near, mut near_station), (far, mut far_station)] = two_lans(&lab)?;
    let before = [stack(&lab, UPLINK)?, stack(&lab, OTHER)?];
    create(&lab)?;
    let mut host = lab.host_station("office", HOST)?;
    let mut carol = lab.tap_station("office", "carol", None, CAROL)?;
    let addresses = stack(&lab, "vsw-office")?.addresses;
    carol.ping(NEAR, false, 56)?;
    ensure!(!carol.reaches(FAR), "the other LAN is there already");
    ensure!(learned(&lab, &mut near_station)?, "the test is wrong");

    let carol_netns = carol.netns().context("carol is in a namespace")?.clone();
    let busy = |to: Address| carol_netns.spawn(&["ping", "-q", "-i", "0.01", &to.ip(false)]);
    let (_to_near, _to_far) = (busy(NEAR)?, busy(FAR)?);
    change_quietly(&lab, OTHER, &near, &far)?;
    ensure!(
        !learned(&lab, &mut near_station)?,
        "an address of the old LAN is known"
    );
    for v6 in [false, true] {
        carol.bytes(FAR, v6, Tcp, 500_000)?;
        host.bytes(FAR, v6, Tcp, 500_000)?;
        far_station.ping(HOST, v6, 1400)?;
    }
    let now = stack(&lab, "vsw-office")?;
    ensure!(now.routes.iter().any(|route| route == ROUTE), "{now:?}");
    ensure!(now.addresses.contains(&OWN.to_owned()), "{now:?}");
    ensure!(addresses.iter().all(|one| now.addresses.contains(one)));
    let released = stack(&lab, UPLINK)?;
    ensure!(released.addresses.is_empty() && released.routes.is_empty());
    ensure!(
        (&released.mtu, &released.settings) == (&before[0].mtu, &before[0].settings),
        "{released:?}"
    );
    ensure!(
        !lab.host.ip(&format!("link show {UPLINK}"))?.contains("xdp"),
        "the XDP program was left"
    );

    change_quietly(&lab, UPLINK, &far, &near)?;
    ensure!(
        !learned(&lab, &mut far_station)?,
        "an address of the other LAN is known"
    );
    carol.ping(NEAR, true, 56)?;
    ensure!(
        stack(&lab, OTHER)?.settings == before[1].settings,
        "{:?}",
        stack(&lab, OTHER)?
    );
    lab.counters_add_up()?;
    lab.ctl("port remove office carol")?;
    lab.ctl("network delete office")?;
    let after = stack(&lab, UPLINK)?;
    ensure!(
        after.addresses == now.addresses && after.routes == now.routes,
        "{after:?}"
    );
    Ok(())
}

#[test]
fn a_refused_uplink_leaves_the_old_one_working() -> Result<()> {
    let lab = Lab::start()?;
    let lans = two_lans(&lab)?;
    create(&lab)?;
    let mut host = lab.host_station("office", HOST)?;
    lab.host.ip("link add br0 type bridge")?;
    lab.host.ip(&format!("link set {OTHER} master br0"))?;
    let before = stack(&lab, OTHER)?;
    let mut refused = |uplink: &str, words: &[&str]| -> Result<()> {
        let args = ["network", "set", "office", "--uplink", uplink];
        lab.refused(&args, words)?;
        host.bytes(NEAR, false, Tcp, 100_000)
            .with_context(|| format!("after '{uplink}' was refused"))
            .map(drop)
    };
    refused("nosuch", &["nosuch", "there is no interface"])?;
    refused("lo", &["lo", "Ethernet"])?;
    refused("vsw-office", &["vsw-office", "in use by port 'host'"])?;
    refused(OTHER, &[OTHER, "br0"])?;
    lab.host.ip(&format!("link set {OTHER} nomaster"))?;
    // It cannot have the network's MTU.
    lab.ctl("network set office --mtu 9000")?;
    lab.host
        .ip("link add short type veth peer name tail")
        .and_then(|_| lab.host.ip("link add link short name stack type macvlan"))?;
    refused("stack", &["stack", "MTU"])?;
    ensure!(stack(&lab, OTHER)? == before, "{:?}", stack(&lab, OTHER)?);
    change(&lab, OTHER)?;
    let args = ["network", "create", "two", "--type", "external", "--uplink"];
    lab.refused(&[&args[..], &[OTHER]].concat(), &[OTHER, "office"])?;
    drop(lans);
    Ok(())
}

/// Killed at any moment of the change, vswitchd comes up with one uplink or the other, and the one that it is not has all
/// that it had before.
#[test]
fn sigkill_during_a_change_leaves_one_uplink_or_the_other() -> Result<()> {
    let mut lab = Lab::start()?;
    let [(_near, _s), (_far, _t)] = two_lans(&lab)?;
    let before = [stack(&lab, UPLINK)?, stack(&lab, OTHER)?];
    create(&lab)?;
    let addresses = stack(&lab, "vsw-office")?.addresses;
    let mut finished = 0;
    for delay in [4, 12, 25, 40, 60, 400] {
        thread::scope(|scope| -> Result<()> {
            let daemon = &lab.daemon;
            let changing = scope.spawn(|| {
                // That it ends badly is the test.
                let args = ["network", "set", "office", "--uplink", OTHER];
                daemon.ctl_output(&args).map(drop)
            });
            thread::sleep(Duration::from_millis(delay));
            let pid = daemon.pid().to_string();
            lab.host.run(&["kill", "-KILL", &pid])?;
            changing.join().ok().context("vswitchctl panicked")?
        })?;
        lab.daemon.kill()?;
        lab.daemon.start_again()?;
        let uplink = lab.ctl("network show office")?["uplink"].to_string();
        let now = stack(&lab, "vsw-office")?.addresses;
        ensure!(addresses.iter().all(|one| now.contains(one)), "{now:?}");
        let mut host = lab.host_station("office", HOST)?;
        if uplink.contains(OTHER) {
            finished += 1;
            ensure!(now.contains(&OWN.to_owned()), "{now:?}");
            host.ping(FAR, false, 56)?;
            let free = stack(&lab, UPLINK)?;
            ensure!(
                (&free.mtu, &free.settings) == (&before[0].mtu, &before[0].settings),
                "after {delay} ms: {free:?}"
            );
            break;
        }
        ensure!(!now.contains(&OWN.to_owned()), "{now:?}");
        host.ping(NEAR, false, 56)?;
        let free = stack(&lab, OTHER)?;
        ensure!(free == before[1], "after {delay} ms: {free:?}");
    }
    ensure!(finished == 1, "no change was ever finished");
    Ok(())
}

/// The host takes no part in such a network, so its stack takes nothing from the uplink either: neither what it gets
/// addresses of afterwards, nor what it would make itself an address of.
#[test]
fn an_uplink_without_a_host_nic_is_kept_from_the_hosts_stack() -> Result<()> {
    for xdp in [true, false] {
        let mut lab = Lab::start()?;
        let lan = lab.lan()?;
        if !xdp {
            lab.take_xdp()?;
        }
        let mut lan = Station::inside("lan", &lan, "eth0", None, NEAR)?;
        let before = stack(&lab, UPLINK)?;
        lab.ctl(&format!(
            "network create office --type external --uplink {UPLINK} --no-host-nic"
        ))?;
        let mut carol = lab.tap_station("office", "carol", None, CAROL)?;
        for round in 0..2 {
            let shown = lab.host.ip(&format!("-6 addr show dev {UPLINK}"))?;
            ensure!(shown.trim().is_empty(), "round {round}: {shown}");
            let [v4, _] = HOST.both();
            lab.host.ip(&format!("addr replace {v4} dev {UPLINK}"))?;
            ensure!(!lan.reaches(HOST), "the host answers (AF_XDP: {xdp})");
            if round == 0 {
                carol.ping(NEAR, true, 56)?;
                lab.daemon.kill()?;
                lab.daemon.start_again()?;
            }
        }
        lab.host.ip(&format!("addr flush dev {UPLINK}"))?;
        lab.ctl("port remove office carol")?;
        lab.ctl("network delete office")?;
        ensure!(stack(&lab, UPLINK)? == before, "{:?}", stack(&lab, UPLINK)?);
    }
    Ok(())
}
