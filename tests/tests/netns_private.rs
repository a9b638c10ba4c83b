//! Private networks: ports reach each other and nobody else does.

use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use serde_json::Value;
use vswitch_tests::{
    Capture, Lab, Station, cmd,
    lab::UPLINK,
    station::{
        Address,
        Transport::{Tcp, Udp},
    },
};

const fn at(host: u8) -> Address {
    Address { net: 61, host }
}

#[test]
fn hosts_exchange_bytes_and_the_counters_add_up() -> Result<()> {
    let lab = Lab::start()?;
    lab.ctl("network create lab --type private")?;
    let mut alice = lab.tap_station("lab", "alice", None, at(1))?;
    let _bob = lab.tap_station("lab", "bob", None, at(2))?;
    alice.ping(at(2), false, 56)?;
    let before = lab.daemon.stats()?;
    for v6 in [false, true] {
        alice.ping(at(2), v6, 56)?;
        alice.bytes(at(2), v6, Tcp, 1_000_000)?;
        alice.bytes(at(2), v6, Udp, 20_000)?;
    }
    let stats = lab.daemon.stats()?;
    ensure!(stats.wrong().is_empty(), "{:?}", stats.wrong());
    let (alice, bob) = (stats.port("lab", "alice")?, stats.port("lab", "bob")?);
    ensure!(alice.taken > 20 && bob.taken > 20, "{alice:?} {bob:?}");
    // What alice said before bob was there had nobody to go to; nothing is lost from then on.
    for (now, then) in [
        (alice, before.port("lab", "alice")?),
        (bob, before.port("lab", "bob")?),
    ] {
        ensure!(now.drops == then.drops, "{now:?}, before {then:?}");
    }
    Ok(())
}

#[test]
fn exactly_the_frames_that_were_sent_are_counted() -> Result<()> {
    let lab = Lab::start()?;
    lab.ctl("network create lab --type private")?;
    let mut alice = lab.tap_station("lab", "alice", None, at(1))?;
    let _bob = lab.tap_station("lab", "bob", None, at(2))?;
    alice.ping(at(2), false, 56)?;
    let before = lab.daemon.stats()?;
    alice.run("ping -c 50 -i 0.002 -W 2 10.61.0.2")?;
    let after = lab.daemon.stats()?;
    for port in ["alice", "bob"] {
        let (old, new) = (before.port("lab", port)?, after.port("lab", port)?);
        let (tx, rx) = (new.tx_frames - old.tx_frames, new.rx_frames - old.rx_frames);
        // Neighbours may be asked again, and IPv6 may announce itself; nothing else is on this network.
        ensure!(
            (50..=60).contains(&tx) && (50..=60).contains(&rx),
            "{port}: tx {tx}, rx {rx}"
        );
    }
    Ok(())
}

#[test]
fn a_third_port_sees_no_frame_between_two_others() -> Result<()> {
    let lab = Lab::start()?;
    lab.ctl("network create lab --type private")?;
    let mut alice = lab.tap_station("lab", "alice", None, at(1))?;
    let mut bob = lab.tap_station("lab", "bob", None, at(2))?;
    let eve = lab.tap_port("lab", "eve")?;
    alice.ping(at(2), false, 56)?;
    bob.ping(at(1), true, 56)?;
    let capture = Capture::start(&eve, "eth0", "in", "not ether multicast")?;
    alice.bytes(at(2), false, Tcp, 300_000)?;
    alice.bytes(at(2), true, Udp, 9000)?;
    let seen = capture.finish()?.lines("")?;
    ensure!(seen.is_empty(), "{seen:?}");
    Ok(())
}

/// The names of the host's interfaces.
fn interfaces(lab: &Lab) -> Result<Vec<String>> {
    let list = lab.host.ip("-br link show")?;
    let names = list.lines().filter_map(|l| l.split_whitespace().next());
    Ok(names.map(str::to_owned).collect())
}

#[test]
fn internal_and_private_networks_are_not_on_the_cable_nor_private_ones_at_the_host() -> Result<()> {
    let lab = Lab::start()?;
    let lan = lab.lan()?;
    lab.ctl(&format!(
        "network create office --type external --uplink {UPLINK}"
    ))?;
    lab.ctl("network create inner --type internal")?;
    let before = interfaces(&lab)?;
    lab.ctl("network create lab --type private")?;
    let mut alice = lab.tap_station("lab", "alice", None, at(1))?;
    let mut bob = lab.tap_station("lab", "bob", None, at(2))?;
    let after = interfaces(&lab)?;
    ensure!(before == after, "before {before:?}, after {after:?}");
    let inside = |host| Address { net: 62, host };
    let mut host = lab.host_station("inner", inside(1))?;
    let mut dave = lab.tap_station("inner", "dave", None, inside(2))?;
    let of = |macs: [String; 2]| macs.map(|mac| format!("ether host {mac}")).join(" or ");
    let private = of([alice.mac()?, bob.mac()?]);
    let internal = of([host.mac()?, dave.mac()?]);
    let nowhere = format!("{private} or {internal}");
    let captures = [
        Capture::start(&lan, "eth0", "in", &nowhere)?,
        Capture::start(&lab.host, UPLINK, "inout", &nowhere)?,
        Capture::start(&lab.host, "vsw-office", "inout", &nowhere)?,
        Capture::start(&lab.host, "vsw-inner", "inout", &private)?,
    ];
    for v6 in [false, true] {
        alice.bytes(at(2), v6, Tcp, 100_000)?;
        host.bytes(inside(2), v6, Tcp, 100_000)?;
    }
    // What is flooded is not seen either.
    ensure!(!bob.reaches(at(99)) && !host.reaches(inside(99)) && !dave.reaches(inside(99)));
    for capture in captures {
        let seen = capture.finish()?.lines("")?;
        ensure!(seen.is_empty(), "{seen:?}");
    }
    Ok(())
}

#[test]
fn networks_are_apart_even_with_the_same_addresses() -> Result<()> {
    let lab = Lab::start()?;
    for network in ["one", "two"] {
        lab.ctl(&format!("network create {network} --type private"))?;
    }
    let mut alice = lab.tap_station("one", "alice", None, at(1))?;
    let _bob = lab.tap_station("one", "bob", None, at(2))?;
    let mut mallory = lab.tap_station("two", "mallory", None, at(3))?;
    let elsewhere = lab.tap_port("two", "elsewhere")?;
    let capture = Capture::start(&elsewhere, "eth0", "in", "host 10.61.0.1 or host 10.61.0.2")?;
    ensure!(alice.reaches(at(2)), "alice does not reach bob");
    ensure!(!mallory.reaches(at(2)), "mallory reaches another network");
    let seen = capture.finish()?.lines("!arp.src.proto_ipv4==10.61.0.3")?;
    ensure!(seen.is_empty(), "{seen:?}");
    Ok(())
}

#[test]
fn a_port_can_leave_under_traffic_and_others_go_on() -> Result<()> {
    let lab = Lab::start()?;
    lab.ctl("network create lab --type private")?;
    let mut alice = lab.tap_station("lab", "alice", None, at(1))?;
    let _bob = lab.tap_station("lab", "bob", None, at(2))?;
    let carol = lab.tap_port("lab", "carol")?;
    let _flood = carol.spawn(&[
        "ping",
        "-f",
        "-b",
        "-w",
        "5",
        "-I",
        "eth0",
        "255.255.255.255",
    ])?;
    lab.ctl("port remove lab carol")?;
    alice.ping(at(2), false, 56)?;
    ensure!(
        lab.daemon.stats()?.port("lab", "carol").is_err(),
        "a removed port is still counted"
    );
    lab.ctl("port remove lab bob")?;
    ensure!(!alice.reaches(at(2)), "a removed port answers");
    lab.ctl("network delete lab").map(drop).or_else(|_| {
        // A network with ports may be refused; without them it goes.
        lab.ctl("port remove lab alice")?;
        lab.ctl("network delete lab").map(drop)
    })
}

/// The addresses that network `lab` has learned behind `port`.
fn learned(lab: &Lab, port: &str) -> Result<usize> {
    let fdb = lab.ctl("fdb show lab")?;
    let entries = fdb.get("entries").and_then(Value::as_array);
    let ports = entries
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.get("port"));
    Ok(ports.filter(|name| *name == port).count())
}

#[test]
fn the_mac_table_forgets_and_is_limited_as_it_is_told() -> Result<()> {
    let lab = Lab::start()?;
    lab.ctl("network create lab --type private")?;
    let mut alice = lab.tap_station("lab", "alice", None, at(1))?;
    let _bob = lab.tap_station("lab", "bob", None, at(2))?;
    alice.ping(at(2), false, 56)?;
    ensure!(learned(&lab, "alice")? == 1, "{}", lab.ctl("fdb show lab")?);
    lab.ctl("network set lab --ageing 1")?;
    ensure!(lab.ctl("network show lab")?["ageing"] == 1);
    // Bob says nothing by himself once IPv6 is settled.
    cmd::wait_until("bob to be forgotten", Duration::from_secs(20), || {
        Ok(learned(&lab, "bob")? == 0)
    })?;
    lab.ctl("network set lab --ageing 0")?;
    lab.ctl("port set lab alice --mac-quota 1")?;
    ensure!(lab.ctl("port show lab alice")?["mac_quota"] == 1);
    alice.ping(at(2), false, 56)?;
    // A further address is not learned, and that is counted.
    alice.run("ip link set eth0 address 02:00:00:00:00:71")?;
    alice.reaches(at(2));
    ensure!(learned(&lab, "alice")? == 1, "{}", lab.ctl("fdb show lab")?);
    let stats = lab.ctl("stats lab alice")?;
    let refused = stats["ports"][0]["learn_refused"].as_u64();
    ensure!(refused.is_some_and(|count| count > 0), "{stats}");
    Ok(())
}

#[test]
fn an_address_that_two_ports_have_is_counted_and_warned_of() -> Result<()> {
    let lab = Lab::start()?;
    lab.ctl("network create lab --type private")?;
    let mut alice = lab.tap_station("lab", "alice", None, at(1))?;
    let mut bob = lab.tap_station("lab", "bob", None, at(2))?;
    let eve = lab.tap_port("lab", "eve")?;
    let mac = at(2).mac();
    bob.run(&format!("ip link set eth0 address {mac}"))?;
    eve.ip(&format!("link set eth0 address {mac}"))?;
    eve.ip(&format!("addr add {} dev eth0", at(3).both()[0]))?;
    alice.ping(at(2), false, 56)?;
    let warned = || {
        let log = lab.daemon.log();
        let lines = log.lines().filter(|line| line.contains("both send from"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    ensure!(warned().is_empty(), "{:?}", warned());
    // Broadcasts, so that nobody's answers are waited for.
    let shout = [
        "ping",
        "-q",
        "-i",
        "0.01",
        "-b",
        "-I",
        "eth0",
        "255.255.255.255",
    ];
    let _eve = eve.spawn(&shout)?;
    let _bob = bob.netns().map(|netns| netns.spawn(&shout)).transpose()?;
    cmd::wait_until("a warning", Duration::from_secs(10), || {
        Ok(!warned().is_empty())
    })?;
    std::thread::sleep(Duration::from_secs(3));
    let [line] = warned().try_into().map_err(|lines| anyhow!("{lines:?}"))?;
    for word in [mac.as_str(), "network=lab", "'bob'", "'eve'"] {
        ensure!(line.contains(word), "{word}: {line}");
    }
    for port in ["bob", "eve"] {
        let stats = lab.ctl(&format!("stats lab {port}"))?;
        let moves = stats["ports"][0]["mac_moves"].as_u64();
        ensure!(moves.is_some_and(|moves| moves > 10), "{stats}");
    }
    let stats = lab.ctl("stats lab alice")?;
    ensure!(stats["ports"][0]["mac_moves"] == 0, "{stats}");
    Ok(())
}

/// Whether the device at the other end of a TAP port is told that the cable is plugged.
fn has_carrier(station: &mut Station) -> Result<bool> {
    Ok(station.run("cat /sys/class/net/eth0/carrier")?.trim() == "1")
}

#[test]
fn the_link_of_a_port_can_be_taken_down_and_up() -> Result<()> {
    let lab = Lab::start()?;
    lab.ctl("network create lab --type private")?;
    let mut alice = lab.tap_station("lab", "alice", None, at(1))?;
    let mut bob = lab.tap_station("lab", "bob", None, at(2))?;
    alice.ping(at(2), false, 56)?;
    for (down, up) in [
        ("--link down", "--link up"),
        ("--disconnect", "--connect lab"),
    ] {
        ensure!(has_carrier(&mut bob)?, "no carrier before {down}");
        lab.ctl(&format!("port set lab bob {down}"))?;
        ensure!(!alice.reaches(at(2)), "a port answers after {down}");
        ensure!(!has_carrier(&mut bob)?, "carrier after {down}");
        lab.ctl(&format!("port set lab bob {up}"))?;
        alice.ping(at(2), false, 56)?;
    }
    ensure!(has_carrier(&mut bob)?, "no carrier at the end");
    // A cable that was pulled before a restart is not plugged by it, and the operator's setting is not forgotten.
    lab.ctl("port set lab bob --disconnect")?;
    let port = lab.ctl("port show lab bob")?;
    ensure!(port["link"] == "up" && port["connected"] == false, "{port}");
    Ok(())
}
