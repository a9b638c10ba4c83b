//! Internal networks: the host takes part by its own NIC.

use anyhow::{Result, ensure};
use vswitch_tests::{
    Lab,
    station::{
        Address, Station,
        Transport::{Tcp, Udp},
    },
};

const fn at(host: u8) -> Address {
    Address { net: 62, host }
}

#[test]
fn the_host_and_a_port_exchange_bytes() -> Result<()> {
    let lab = Lab::start()?;
    lab.ctl("network create inner --type internal")?;
    let mut host = lab.host_station("inner", at(1))?;
    let mut dave = lab.tap_station("inner", "dave", None, at(2))?;
    for v6 in [false, true] {
        host.ping(at(2), v6, 1400)?;
        host.bytes(at(2), v6, Tcp, 1_000_000)?;
        dave.bytes(at(1), v6, Tcp, 1_000_000)?;
        dave.bytes(at(1), v6, Udp, 20_000)?;
    }
    let stats = lab.daemon.stats()?;
    ensure!(stats.wrong().is_empty(), "{:?}", stats.wrong());
    Ok(())
}

#[test]
fn the_host_nic_has_the_name_it_was_given_and_goes_with_its_network() -> Result<()> {
    let lab = Lab::start()?;
    lab.ctl("network create inner --type internal --host-nic front0")?;
    lab.host.ip("link show front0")?;
    let mut host = Station::inside("host", &lab.host, "front0", None, at(1))?;
    let _dave = lab.tap_station("inner", "dave", None, at(2))?;
    host.ping(at(2), false, 56)?;
    lab.ctl("port remove inner dave")?;
    lab.ctl("network delete inner")?;
    ensure!(
        lab.host.ip("link show front0").is_err(),
        "the host NIC outlives its network"
    );
    Ok(())
}

#[test]
fn the_host_nic_is_in_the_vlan_of_its_network() -> Result<()> {
    let lab = Lab::start()?;
    lab.ctl("network create inner --type internal --vlan 10")?;
    let mut host = lab.host_station("inner", at(1))?;
    let _inside = lab.tap_station("inner", "inside", None, at(2))?;
    let _outside = lab.tap_station("inner", "outside", None, at(3))?;
    let _trunk = lab.tap_station("inner", "trunk", Some(10), at(4))?;
    lab.ctl("port set inner inside --vlan access:10")?;
    lab.ctl("port set inner outside --vlan access:20")?;
    lab.ctl("port set inner trunk --vlan trunk:10")?;
    ensure!(host.reaches(at(2)), "the host does not reach its own VLAN");
    ensure!(!host.reaches(at(3)), "the host reaches another VLAN");
    ensure!(
        host.reaches(at(4)),
        "the host does not reach a trunk of its VLAN"
    );
    Ok(())
}
