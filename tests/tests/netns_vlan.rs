//! VLANs, and the other rules that are decided for each frame: guard, MTU, link-local addresses.

use anyhow::{Context, Result, ensure};
use vswitch_tests::{
    Capture, Lab, Station,
    lab::UPLINK,
    station::{Address, Transport::Tcp},
    stats::PortStats,
};

const fn at(host: u8) -> Address {
    Address { net: 64, host }
}

/// A lab with private network `lab`.
fn lab() -> Result<Lab> {
    let lab = Lab::start()?;
    lab.ctl("network create lab --type private")?;
    Ok(lab)
}

fn port(lab: &Lab, name: &str) -> Result<PortStats> {
    lab.daemon.stats()?.port("lab", name).cloned()
}

#[test]
fn access_ports_reach_their_own_vlan_only() -> Result<()> {
    let lab = lab()?;
    let mut red = lab.tap_station("lab", "red", None, at(1))?;
    let _red2 = lab.tap_station("lab", "red2", None, at(2))?;
    let blue = lab.tap_station("lab", "blue", None, at(3))?;
    let _plain = lab.tap_station("lab", "plain", None, at(4))?;
    for (port, vlan) in [("red", 10), ("red2", 10), ("blue", 20)] {
        lab.ctl(&format!("port set lab {port} --vlan access:{vlan}"))?;
    }
    let netns = blue.netns().context("blue is in a namespace")?;
    let capture = Capture::start(netns, "eth0", "in", "")?;
    ensure!(red.reaches(at(2)), "the same VLAN is not reached");
    ensure!(!red.reaches(at(3)), "another VLAN is reached");
    ensure!(!red.reaches(at(4)), "a port without VLAN is reached");
    let seen = capture.finish()?.lines("")?;
    ensure!(seen.is_empty(), "blue saw {seen:?}");
    // In and out of a VLAN at run time.
    lab.ctl("port set lab blue --vlan access:10")?;
    ensure!(
        red.reaches(at(3)),
        "a port that changed its VLAN is not reached"
    );
    lab.ctl("port set lab blue --vlan none")?;
    ensure!(!red.reaches(at(3)), "a port that left its VLAN is reached");
    Ok(())
}

#[test]
fn a_trunk_carries_its_allowed_list_tagged_and_its_native_vlan_untagged() -> Result<()> {
    let lab = lab()?;
    let trunk_netns = lab.tap_port("lab", "trunk")?;
    lab.ctl("port set lab trunk --vlan trunk:10,20-22,native=30")?;
    let mut stations = Vec::new();
    for (number, vlan) in [(1, 10), (2, 21), (3, 30), (4, 40)] {
        let name = format!("v{vlan}");
        stations.push(lab.tap_station("lab", &name, None, at(number))?);
        lab.ctl(&format!("port set lab {name} --vlan access:{vlan}"))?;
    }
    // One address range for all: only the tag says who is reached.
    let mut trunk = Station::inside("trunk", &trunk_netns, "eth0", Some(10), at(101))?;
    for (tag, number) in [(21, 2), (40, 4)] {
        trunk.run(&format!(
            "ip link add link eth0 name eth0.{tag} type vlan id {tag}"
        ))?;
        trunk.run(&format!("ip link set eth0.{tag} up"))?;
        trunk.run(&format!(
            "ip addr add {}/24 dev eth0.{tag}",
            at(100 + number).ip(false)
        ))?;
    }
    trunk.run(&format!("ip addr add {}/24 dev eth0", at(103).ip(false)))?;
    for (interface, number, must) in [
        ("eth0.10", 1, true),
        ("eth0.21", 2, true),
        ("eth0.40", 4, false),
        ("eth0", 3, true),
        ("eth0", 1, false),
        ("eth0.10", 2, false),
    ] {
        let to = at(number).ip(false);
        let reached = trunk
            .run(&format!("ping -c 1 -W 1 -I {interface} {to}"))
            .is_ok();
        ensure!(
            reached == must,
            "{to} by {interface}: reached is {reached}, must be {must}"
        );
    }
    let dropped = port(&lab, "trunk")?;
    ensure!(dropped.dropped > 0 && dropped.adds_up(), "{dropped:?}");
    Ok(())
}

/// A guest that is bridged with the host NIC, as the host's own machines may be, and tags by itself.
#[test]
fn the_host_nic_as_a_trunk_carries_tags_both_ways() -> Result<()> {
    let lab = Lab::start()?;
    let lan = lab.lan()?;
    for network in [
        "inner --type internal",
        &format!("office --type external --uplink {UPLINK}"),
    ] {
        lab.ctl(&format!("network create {network} --mtu 9000"))?;
    }
    let mut trunk = Station::inside("host", &lab.host, "vsw-inner", Some(10), at(1))?;
    trunk.run("ip link add link eth0 name eth0.20 type vlan id 20")?;
    trunk.run("ip link set eth0.20 up; ip addr add 10.64.0.21/24 dev eth0.20")?;
    trunk.run("ip addr add 10.64.0.31/24 dev eth0")?;
    let from = trunk.mac()?;
    for network in ["inner", "office"] {
        lab.host
            .ip(&format!("link set vsw-{network} mtu 9000 master br0 up"))?;
        lab.ctl(&format!(
            "port set {network} host --vlan trunk:10,native=30"
        ))?;
        let mut stations = Vec::new();
        for (number, vlan) in [(2, 10), (3, 20), (4, 30)] {
            let name = format!("{network}{vlan}");
            stations.push(lab.tap_station(network, &name, None, at(number))?);
            lab.ctl(&format!("port set {network} {name} --vlan access:{vlan}"))?;
        }
        // Those of the other network had the same addresses.
        trunk.run("ip neigh flush all")?;
        let cable = Capture::start(&lan, "eth0", "in", "")?;
        for (interface, number, must) in [
            ("eth0.10", 2, true),
            ("eth0.10", 4, false),
            ("eth0.20", 3, false),
            ("eth0", 4, true),
            ("eth0", 2, false),
        ] {
            let to = at(number).ip(false);
            let reached = trunk.run(&format!("ping -c 1 -W 1 -I {interface} {to}"));
            ensure!(
                reached.is_ok() == must,
                "{network}: {to} by {interface}: reached is {}, must be {must}",
                reached.is_ok()
            );
        }
        let ten = stations.first_mut().context("three stations")?;
        for v6 in [false, true] {
            trunk.bytes(at(2), v6, Tcp, 200_000)?;
            ten.bytes(at(1), v6, Tcp, 200_000)?;
        }
        let cable = cable.finish()?;
        // The uplink is a trunk of all VLANs: what the stations say to all of their own is there too.
        let on_cable = |vlan| cable.count(&format!("vlan.id=={vlan} && eth.src=={from}"));
        let external = network == "office";
        ensure!(
            (on_cable(10)? > 0) == external && (on_cable(30)? > 0) == external,
            "{network}: VLAN 10 or 30 on the cable, or not"
        );
        ensure!(on_cable(20)? == 0, "{network}: VLAN 20 on the cable");
        lab.counters_add_up()?;
        lab.host.ip(&format!("link set vsw-{network} nomaster"))?;
    }
    Ok(())
}

#[test]
fn a_priority_tag_is_no_vlan() -> Result<()> {
    let lab = lab()?;
    let mut alice = lab.tap_station("lab", "alice", Some(0), at(1))?;
    let _bob = lab.tap_station("lab", "bob", None, at(2))?;
    for port in ["alice", "bob"] {
        lab.ctl(&format!("port set lab {port} --vlan access:10"))?;
    }
    // Answers come untagged: alice takes them on the interface below.
    alice.run("ip addr flush dev eth0.0 && ip addr add 10.64.0.1/24 dev eth0 && ip route add 10.64.0.2 dev eth0.0")?;
    let bob = _bob.netns().context("bob is in a namespace")?;
    let capture = Capture::start(bob, "eth0", "in", "")?;
    alice.run("ping -c 1 -W 1 10.64.0.2 || true")?;
    ensure!(
        capture.finish()?.count("arp || icmp")? > 0,
        "a priority-tagged frame did not reach its access VLAN"
    );
    Ok(())
}

#[test]
fn service_tags_pass_through_a_port_without_vlan() -> Result<()> {
    let lab = lab()?;
    let mut ends = Vec::new();
    for (name, number) in [("alice", 1), ("bob", 2)] {
        let mut end = lab.tap_station("lab", name, Some(9), at(number))?;
        end.run("ip link del eth0.9; ip link add link eth0 name outer type vlan protocol 802.1ad id 300")?;
        end.run("ip link add link outer name inner type vlan id 5; ip link set outer up; ip link set inner up")?;
        end.run(&format!(
            "ip addr add {}/24 dev inner",
            at(number).ip(false)
        ))?;
        ends.push(end);
    }
    ends.first_mut()
        .context("two ends")?
        .ping(at(2), false, 1400)
}

#[test]
fn a_vlan_on_a_private_network_is_refused_with_the_reason() -> Result<()> {
    let lab = Lab::start()?;
    lab.refused(
        &[
            "network", "create", "lab", "--type", "private", "--vlan", "10",
        ],
        &["private"],
    )
    .map(drop)
}

#[test]
fn the_guard_stops_a_foreign_source_address() -> Result<()> {
    let lab = lab()?;
    let mut alice = lab.tap_station("lab", "alice", None, at(1))?;
    let _bob = lab.tap_station("lab", "bob", None, at(2))?;
    let mac = alice
        .run("cat /sys/class/net/eth0/address")?
        .trim()
        .to_owned();
    lab.ctl(&format!("port set lab alice --mac-guard {mac}"))?;
    ensure!(alice.reaches(at(2)), "the guard stops the allowed address");
    alice.run("ip link set eth0 address 02:00:00:66:66:66")?;
    ensure!(
        !alice.reaches(at(2)),
        "the guard lets a foreign address through"
    );
    let stats = port(&lab, "alice")?;
    ensure!(
        stats
            .drops
            .iter()
            .any(|(why, n)| why.contains("guard") && *n > 0),
        "{stats:?}"
    );
    lab.ctl("port set lab alice --mac-guard off")?;
    ensure!(alice.reaches(at(2)), "the guard goes on when it is off");
    Ok(())
}

#[test]
fn a_frame_too_long_for_its_destination_is_dropped_by_name() -> Result<()> {
    let lab = Lab::start()?;
    lab.ctl("network create lab --type private --mtu 9000")?;
    let mut alice = lab.tap_station("lab", "alice", None, at(1))?;
    let mut bob = lab.tap_station("lab", "bob", None, at(2))?;
    alice.set_mtu(9000)?;
    bob.set_mtu(9000)?;
    alice.ping(at(2), false, 8972)?;
    lab.ctl("port set lab bob --mtu 1500")?;
    ensure!(
        alice.run("ping -c 1 -W 1 -M do -s 8972 10.64.0.2").is_err(),
        "a long frame came through"
    );
    alice.ping(at(2), false, 1472)?;
    let stats = port(&lab, "alice")?;
    ensure!(
        stats
            .drops
            .iter()
            .any(|(why, n)| why.contains("mtu") && *n > 0),
        "{stats:?}"
    );
    ensure!(stats.adds_up(), "{stats:?}");
    Ok(())
}

#[test]
fn link_local_addresses_are_not_forwarded() -> Result<()> {
    let lab = lab()?;
    let mut alice = lab.tap_station("lab", "alice", None, at(1))?;
    let bob = lab.tap_port("lab", "bob")?;
    let capture = Capture::start(
        &bob,
        "eth0",
        "in",
        "ether dst 01:80:c2:00:00:0e or ether dst 01:80:c2:00:00:10",
    )?;
    for (number, last) in [(98, "0e"), (99, "10")] {
        alice.run(&format!(
            "ip neigh replace 10.64.0.{number} lladdr 01:80:c2:00:00:{last} dev eth0"
        ))?;
        ensure!(!alice.reaches(at(number)), "nobody answers there");
    }
    let caught = capture.finish()?;
    ensure!(
        caught.count("eth.dst==01:80:c2:00:00:0e")? == 0,
        "a link-local frame was forwarded"
    );
    // Beyond 01:80:c2:00:00:0f it is a multicast address as any other.
    ensure!(
        caught.count("eth.dst==01:80:c2:00:00:10")? > 0,
        "an ordinary multicast frame was not forwarded"
    );
    Ok(())
}
