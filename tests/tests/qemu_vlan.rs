//! Service tags (802.1ad) from a vhost-user guest to the LAN.

use std::sync::Arc;

use anyhow::{Result, ensure};
use vswitch_tests::{
    Capture, Lab, Netns, Station,
    lab::UPLINK,
    station::{
        Address,
        Transport::{Tcp, Udp},
    },
};

const LAN: Address = Address { net: 69, host: 1 };
const GUEST: Address = Address { net: 69, host: 2 };

/// Moves a guest's addresses below two tags, the outer one a service tag.
fn tag_twice(station: &mut Station) -> Result<()> {
    for address in station.address.both() {
        station.run(&format!("ip addr del {address} dev eth0.9"))?;
    }
    station.run("ip link del eth0.9")?;
    station.run("ip link add link eth0 name outer type vlan protocol 802.1ad id 300")?;
    station.run("ip link add link outer name inner type vlan id 5")?;
    // A packet socket has room for one tag beyond the interface's MTU.
    station.run("ip link set outer up; ip link set inner mtu 1492 up")?;
    for address in station.address.both() {
        station.run(&format!("ip addr add {address} dev inner"))?;
    }
    Ok(())
}

#[test]
fn service_tags_pass_between_a_guest_and_the_lan_by_a_packet_socket() -> Result<()> {
    let lab = Lab::start()?;
    let lan = lab.lan_without_xdp()?;
    service_tags_pass(&lab, &lan)
}

#[test]
fn service_tags_pass_between_a_guest_and_the_lan_by_af_xdp() -> Result<()> {
    let lab = Lab::start()?;
    let lan = lab.lan()?;
    service_tags_pass(&lab, &lan)?;
    ensure!(
        lab.host.ip(&format!("link show {UPLINK}"))?.contains("xdp"),
        "this was not AF_XDP"
    );
    Ok(())
}

fn service_tags_pass(lab: &Lab, lan_netns: &Arc<Netns>) -> Result<()> {
    lab.ctl(&format!(
        "network create office --type external --uplink {UPLINK}"
    ))?;
    let mut lan = Station::inside("lan", lan_netns, "eth0", Some(9), LAN)?;
    let mut guest = lab.guest_station("office", "guest", Some(9), GUEST)?;
    tag_twice(&mut lan)?;
    tag_twice(&mut guest)?;
    let cable = Capture::start(lan_netns, "eth0", "in", "")?;
    for v6 in [false, true] {
        guest.ping(LAN, v6, 1400)?;
        guest.bytes(LAN, v6, Tcp, 200_000)?;
        lan.bytes(GUEST, v6, Udp, 8000)?;
    }
    let cable = cable.finish()?;
    ensure!(
        cable.count("ieee8021ad.id==300 && vlan.id==5 && tcp")? > 0,
        "not both tags on the cable: {:?}",
        cable.lines("")?.iter().take(5).collect::<Vec<_>>()
    );
    ensure!(
        cable.bad_checksums()?.is_empty(),
        "{:?}",
        cable.bad_checksums()?
    );
    lab.counters_add_up()
}
