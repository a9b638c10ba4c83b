//! External networks: an uplink to the physical LAN, and the host's addresses on the host NIC.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use vswitch_tests::{
    Capture, Lab, Netns, Station,
    lab::UPLINK,
    station::{
        Address,
        Transport::{Tcp, Udp},
    },
};

const fn at(host: u8) -> Address {
    Address { net: 63, host }
}

fn everybody_reaches_everybody(lab: &Lab, lan_netns: &Arc<Netns>) -> Result<()> {
    let mut lan = Station::inside("lan", lan_netns, "eth0", None, at(3))?;
    lab.ctl(&format!(
        "network create office --type external --uplink {UPLINK}"
    ))?;
    let mut host = lab.host_station("office", at(1))?;
    let mut carol = lab.tap_station("office", "carol", None, at(2))?;
    for station in [&mut lan, &mut host, &mut carol] {
        station.set_mtu(1500)?;
    }
    let capture = Capture::start(lan_netns, "eth0", "in", "")?;
    for v6 in [false, true] {
        for to in [at(2), at(3)] {
            host.bytes(to, v6, Tcp, 500_000)?;
            host.bytes(to, v6, Udp, 20_000)?;
        }
        carol.bytes(at(3), v6, Tcp, 500_000)?;
        lan.bytes(at(2), v6, Tcp, 500_000)?;
        lan.ping(at(1), v6, 1400)?;
    }
    let caught = capture.finish()?;
    ensure!(caught.count("tcp")? > 100, "the capture is empty");
    ensure!(
        caught.bad_checksums()?.is_empty(),
        "{:?}",
        caught.bad_checksums()?
    );
    let long = caught.lines("frame.len > 1514")?;
    ensure!(long.is_empty(), "uncut frames on the wire: {long:?}");
    let stats = lab.daemon.stats()?;
    ensure!(stats.wrong().is_empty(), "{:?}", stats.wrong());
    Ok(())
}

#[test]
fn the_lan_the_host_and_a_port_reach_each_other_by_af_xdp() -> Result<()> {
    let lab = Lab::start()?;
    let lan = lab.lan()?;
    everybody_reaches_everybody(&lab, &lan)?;
    ensure!(
        lab.host.ip(&format!("link show {UPLINK}"))?.contains("xdp"),
        "no XDP program on the uplink"
    );
    lab.ctl("port remove office carol")?;
    lab.ctl("network delete office")?;
    ensure!(
        !lab.host.ip(&format!("link show {UPLINK}"))?.contains("xdp"),
        "the XDP program was left"
    );
    Ok(())
}

#[test]
fn without_a_driver_that_can_xdp_a_packet_socket_does_it() -> Result<()> {
    let lab = Lab::start()?;
    let lan = lab.lan_without_xdp()?;
    everybody_reaches_everybody(&lab, &lan)?;
    the_log_says_packet_socket(&lab)
}

/// Without the right to load programs the host's stack cannot be kept out, which the log says, too.
#[test]
fn without_the_right_to_xdp_a_packet_socket_does_it() -> Result<()> {
    let lab = Lab::start_without_xdp()?;
    let lan_netns = lab.lan()?;
    let mut lan = Station::inside("lan", &lan_netns, "eth0", None, at(3))?;
    lab.ctl(&format!(
        "network create office --type external --uplink {UPLINK}"
    ))?;
    let mut host = lab.host_station("office", at(1))?;
    host.bytes(at(3), false, Tcp, 500_000)?;
    lan.ping(at(1), true, 56)?;
    ensure!(
        lab.daemon.log().contains("network stack sees"),
        "{}",
        lab.daemon.log()
    );
    the_log_says_packet_socket(&lab)
}

fn the_log_says_packet_socket(lab: &Lab) -> Result<()> {
    ensure!(
        !lab.host.ip(&format!("link show {UPLINK}"))?.contains("xdp"),
        "an XDP program after all"
    );
    let log = lab.daemon.log();
    ensure!(
        log.contains("packet socket, as AF_XDP can't be had"),
        "the log does not say that a packet socket is used: {log}"
    );
    Ok(())
}

/// On a cable that is left as it is, TCP comes in frames far above its MTU, whose checksums nobody has filled in.
#[test]
fn large_frames_and_open_checksums_of_a_cable_arrive() -> Result<()> {
    for xdp in [true, false] {
        let lab = Lab::start()?;
        let lan_netns = lab.plain_lan()?;
        if !xdp {
            lab.take_xdp()?;
        }
        lab.ctl(&format!(
            "network create office --type external --uplink {UPLINK}"
        ))?;
        let mut lan = Station::inside("lan", &lan_netns, "eth0", None, at(3))?;
        let mut carol = lab.tap_station("office", "carol", None, at(2))?;
        lan.set_mtu(1500)?;
        let carol_netns = carol.netns().context("carol is in a namespace")?;
        let large = "tcp and greater 1515";
        let captures = [
            Capture::start(&lan_netns, "eth0", "in", large)?,
            Capture::start(carol_netns, "eth0", "in", large)?,
        ];
        for v6 in [false, true] {
            carol.bytes(at(3), v6, Tcp, 2_000_000)?;
            lan.bytes(at(2), v6, Tcp, 2_000_000)?;
            lan.bytes(at(2), v6, Udp, 20_000)?;
        }
        for capture in captures {
            ensure!(
                capture.finish()?.count("")? > 0,
                "everything was cut (AF_XDP: {xdp})"
            );
        }
        lab.counters_add_up()?;
    }
    Ok(())
}

#[test]
fn addresses_and_routes_move_to_the_host_nic_and_back() -> Result<()> {
    let lab = Lab::start()?;
    let lan_netns = lab.lan()?;
    let _lan = Station::inside("lan", &lan_netns, "eth0", None, at(3))?;
    for address in at(1).both() {
        lab.host.ip(&format!("addr add {address} dev {UPLINK}"))?;
    }
    lab.host
        .ip(&format!("route add default via 10.63.0.3 dev {UPLINK}"))?;
    lab.host.ip(&format!(
        "route add 10.99.0.0/16 via 10.63.0.3 dev {UPLINK} metric 77"
    ))?;
    let holds = |ifname: &str| -> Result<bool> {
        let addresses = lab.host.ip(&format!("addr show dev {ifname}"))?;
        let routes = lab.host.ip(&format!("route show dev {ifname}"))?;
        let all = at(1)
            .both()
            .iter()
            .all(|address| addresses.contains(address.as_str()));
        Ok(all
            && routes.contains("default via 10.63.0.3")
            && routes.contains("10.99.0.0/16 via 10.63.0.3")
            && routes.contains("metric 77"))
    };
    ensure!(holds(UPLINK)?, "the test is wrong");
    lab.ctl(&format!(
        "network create office --type external --uplink {UPLINK}"
    ))?;
    ensure!(
        holds("vsw-office")?,
        "not all moved: {}",
        lab.host.ip("addr")?
    );
    ensure!(
        !lab.host
            .ip(&format!("addr show dev {UPLINK}"))?
            .contains("10.63.0.1"),
        "the uplink kept the address"
    );
    lab.host.run(&["ping", "-c", "1", "-W", "2", "10.63.0.3"])?;
    lab.ctl("network delete office")?;
    ensure!(
        holds(UPLINK)?,
        "not all came back: {}",
        lab.host.ip("addr")?
    );
    lab.host
        .run(&["ping", "-c", "1", "-W", "2", "10.63.0.3"])
        .map(drop)
}

#[test]
fn what_the_host_nic_has_at_the_end_comes_back_and_so_do_the_settings() -> Result<()> {
    let mut lab = Lab::start()?;
    let _lan = lab.lan()?;
    let [v4, v6] = at(1).both();
    for address in [v4.as_str(), v6.as_str(), "10.63.9.1/24"] {
        lab.host.ip(&format!("addr add {address} dev {UPLINK}"))?;
    }
    let settings = |lab: &Lab| {
        let of = |key: &str| {
            let file = format!("/proc/sys/net/{key}");
            lab.host.run(&["cat", &file.replace("IF", UPLINK)])
        };
        Ok::<_, anyhow::Error>([
            of("ipv4/conf/IF/rp_filter")?,
            of("ipv4/conf/IF/arp_ignore")?,
        ])
    };
    for (key, value) in [("rp_filter", "2"), ("arp_ignore", "1")] {
        lab.host
            .sysctl(&format!("ipv4/conf/{UPLINK}/{key}"), value)?;
    }
    let before = settings(&lab)?;
    lab.ctl(&format!(
        "network create office --type external --uplink {UPLINK}"
    ))?;
    ensure!(settings(&lab)? != before, "the uplink was not quietened");
    // What the uplink gains while nobody takes care of it goes the same way.
    lab.daemon.kill()?;
    lab.host
        .ip(&format!("addr add 10.63.7.1/24 dev {UPLINK}"))?;
    lab.daemon.start_again()?;
    let has = |ifname: &str, address: &str| -> Result<bool> {
        let shown = lab.host.ip(&format!("addr show dev {ifname}"))?;
        Ok(shown.contains(address))
    };
    ensure!(
        has("vsw-office", "10.63.7.1/24")?,
        "the new address did not move"
    );
    // The host lives on with its NIC: addresses come and go.
    lab.host.ip("addr del 10.63.9.1/24 dev vsw-office")?;
    lab.host.ip("addr add 10.63.8.1/24 dev vsw-office")?;
    lab.host
        .ip("route add 10.98.0.0/16 via 10.63.0.3 dev vsw-office")?;
    lab.ctl("network delete office")?;
    for address in [v4.as_str(), v6.as_str(), "10.63.7.1/24", "10.63.8.1/24"] {
        ensure!(has(UPLINK, address)?, "{address}: {}", lab.host.ip("addr")?);
    }
    ensure!(
        !has(UPLINK, "10.63.9.1/24")?,
        "an address that was removed is back"
    );
    let routes = lab.host.ip(&format!("route show dev {UPLINK}"))?;
    ensure!(routes.contains("10.98.0.0/16 via 10.63.0.3"), "{routes}");
    ensure!(settings(&lab)? == before, "{:?}", settings(&lab)?);
    Ok(())
}

#[test]
fn an_external_network_without_a_host_nic_carries_its_ports() -> Result<()> {
    let lab = Lab::start()?;
    let lan_netns = lab.lan()?;
    let _lan = Station::inside("lan", &lan_netns, "eth0", None, at(3))?;
    let create = format!("network create office --type external --uplink {UPLINK} --no-host-nic");
    // With addresses on it, the host would lose them without a word.
    let [v4, v6] = at(1).both();
    for address in [&v4, &v6] {
        lab.host.ip(&format!("addr add {address} dev {UPLINK}"))?;
    }
    let words: Vec<&str> = create.split_whitespace().collect();
    lab.refused(&words, &[UPLINK, &v4, &v6, "host NIC"])?;
    lab.host
        .ip(&format!("addr flush dev {UPLINK} scope global"))?;
    lab.ctl(&create)?;
    let mut carol = lab.tap_station("office", "carol", None, at(2))?;
    carol.ping(at(3), false, 56)?;
    ensure!(
        lab.host.ip("link show vsw-office").is_err(),
        "a host NIC that nobody asked for"
    );
    Ok(())
}

#[test]
fn an_uplink_that_is_bound_or_has_a_master_is_refused() -> Result<()> {
    let lab = Lab::start()?;
    let _lan = lab.lan()?;
    lab.host.ip("link add br0 type bridge")?;
    lab.host.ip(&format!("link set {UPLINK} master br0"))?;
    let create = [
        "network", "create", "office", "--type", "external", "--uplink", UPLINK,
    ];
    lab.refused(&create, &[UPLINK, "br0"])?;
    lab.host.ip(&format!("link set {UPLINK} nomaster"))?;
    lab.ctl(&create.join(" "))?;
    lab.refused(
        &[
            "network", "create", "other", "--type", "external", "--uplink", UPLINK,
        ],
        &[UPLINK, "office"],
    )
    .map(drop)
}
