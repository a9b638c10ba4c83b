//! The daemon ends and starts again, in order and by SIGKILL: everything comes back by itself.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vswitch_tests::{
    Lab, Netns, Station, cmd,
    lab::UPLINK,
    station::{Address, Transport::Tcp},
};

const fn at(host: u8) -> Address {
    Address { net: 65, host }
}

/// External network `office`, with a VLAN port and a MAC guard to remember, and internal network `inner`.
fn set_up(lab: &Lab) -> Result<(Station, Station)> {
    let lan = lab.lan()?;
    for address in at(1).both() {
        lab.host.ip(&format!("addr add {address} dev {UPLINK}"))?;
    }
    lab.ctl(&format!(
        "network create office --type external --uplink {UPLINK}"
    ))?;
    lab.ctl("network create inner --type internal --mtu 9000")?;
    lab.ctl("port add office carol --tap t-carol")?;
    lab.ctl("port set office carol --mac-guard 02:00:00:00:00:77")?;
    lab.ctl("port add inner dave --tap t-dave")?;
    lab.ctl("port set inner dave --vlan access:20")?;
    let mut host = lab.host_station("office", at(1))?;
    let lan = Station::inside("lan", &lan, "eth0", None, at(3))?;
    host.ping(at(3), false, 56)?;
    Ok((host, lan))
}

/// The ports without what is not configured: whether somebody is attached, and what the port says of it.
fn ports(list: &Value) -> String {
    let mut list = list.clone();
    for port in list
        .get_mut("ports")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if let Some(port) = port.as_object_mut() {
            port.retain(|key, _| key != "state" && key != "detail");
        }
    }
    list.to_string()
}

/// A line of `ip -br addr` without the operational state, which is "unknown" until somebody has set it.
fn addresses(line: &str) -> String {
    let words = line.split_whitespace().enumerate();
    let words: Vec<&str> = words
        .filter(|(i, _)| *i != 1)
        .map(|(_, word)| word)
        .collect();
    words.join(" ")
}

/// What the user has configured, as the command line shows it.
fn configuration(lab: &Lab) -> Result<[String; 5]> {
    let file = tempfile::NamedTempFile::new()?;
    let file = file.path().display();
    lab.ctl(&format!("config export {file}"))?;
    lab.ctl(&format!("config check {file}"))?;
    Ok([
        std::fs::read_to_string(file.to_string())?,
        lab.ctl("network show office")?.to_string(),
        lab.ctl("network show inner")?.to_string(),
        ports(&lab.ctl("port list")?),
        addresses(&lab.host.ip("-br addr show dev vsw-office")?),
    ])
}

fn all_is_back(
    lab: &Lab,
    before: &[String; 5],
    host: &mut Station,
    lan: &mut Station,
) -> Result<()> {
    let after = configuration(lab)?;
    ensure!(*before == after, "before {before:?}\nafter {after:?}");
    for v6 in [false, true] {
        host.ping(at(3), v6, 56)?;
        lan.bytes(at(1), v6, Tcp, 300_000)?;
    }
    // The TAP device of a port is made anew; whoever used it takes it again.
    let carol = Netns::new("carol")?;
    cmd::wait_until(
        "the TAP device of port carol",
        Duration::from_secs(2),
        || Ok(lab.host.ip("link show t-carol").is_ok()),
    )?;
    lab.host.hand_over("t-carol", &carol)?;
    carol.ip("addr add 10.65.0.2/24 dev t-carol")?;
    ensure!(
        carol
            .run(&["ping", "-c", "1", "-W", "1", "10.65.0.3"])
            .is_err(),
        "the guard of carol was forgotten"
    );
    carol.ip("link set t-carol address 02:00:00:00:00:77")?;
    carol
        .run(&["ping", "-c", "1", "-W", "2", "10.65.0.3"])
        .map(drop)
}

#[test]
fn after_sigkill_everything_comes_back() -> Result<()> {
    let mut lab = Lab::start()?;
    let (mut host, mut lan) = set_up(&lab)?;
    let before = configuration(&lab)?;
    // Kill it while it works.
    let netns = lan.netns().map(std::sync::Arc::clone);
    let _traffic = netns
        .map(|netns| netns.spawn(&["ping", "-i", "0.002", "-q", "10.65.0.1"]))
        .transpose()?;
    lab.daemon.kill()?;
    cmd::wait_until("the XDP program to go", Duration::from_secs(3), || {
        Ok(!lab.host.ip(&format!("link show {UPLINK}"))?.contains("xdp"))
    })?;
    ensure!(
        lab.host
            .ip("addr show dev vsw-office")?
            .contains("10.65.0.1/24"),
        "the host NIC lost its address"
    );
    lab.daemon.start_again()?;
    all_is_back(&lab, &before, &mut host, &mut lan)
}

#[test]
fn after_sigterm_everything_comes_back() -> Result<()> {
    let mut lab = Lab::start()?;
    let (mut host, mut lan) = set_up(&lab)?;
    let before = configuration(&lab)?;
    lab.daemon.terminate()?;
    ensure!(
        !lab.host.ip(&format!("link show {UPLINK}"))?.contains("xdp"),
        "the XDP program was left"
    );
    lab.daemon.start_again()?;
    all_is_back(&lab, &before, &mut host, &mut lan)
}

#[test]
fn a_network_deleted_after_a_crash_gives_the_addresses_back() -> Result<()> {
    let mut lab = Lab::start()?;
    let (host, _lan) = set_up(&lab)?;
    drop(host);
    lab.daemon.kill()?;
    lab.daemon.start_again()?;
    lab.ctl("port remove office carol")?;
    lab.ctl("network delete office")?;
    ensure!(
        lab.host.ip("link show vsw-office").is_err(),
        "the host NIC outlives its network"
    );
    ensure!(
        lab.host
            .ip(&format!("addr show dev {UPLINK}"))?
            .contains("10.65.0.1/24"),
        "the uplink did not get its address back"
    );
    lab.host
        .run(&["ping", "-c", "1", "-W", "2", "10.65.0.3"])
        .map(drop)
}

/// The MAC addresses of both host NICs.
fn addresses_of_host_nics(lab: &Lab) -> Result<[String; 2]> {
    let of = |nic: &str| -> Result<String> {
        let line = lab.host.ip(&format!("-o link show dev {nic}"))?;
        let (_, rest) = line.split_once("link/ether ").context("no address")?;
        Ok(rest.chars().take_while(|c| !c.is_whitespace()).collect())
    };
    Ok([of("vsw-office")?, of("vsw-inner")?])
}

#[test]
fn a_host_nic_that_is_made_anew_has_the_address_it_had() -> Result<()> {
    let mut lab = Lab::start()?;
    let (host, _lan) = set_up(&lab)?;
    drop(host);
    let before = addresses_of_host_nics(&lab)?;
    for operator in [false, true] {
        if operator {
            // Holds as long as the device: over a restart, and not over a reboot.
            lab.host
                .ip("link set vsw-inner address 02:00:00:00:00:99")?;
            lab.daemon.terminate()?;
            lab.daemon.start_again()?;
            let [_, inner] = addresses_of_host_nics(&lab)?;
            ensure!(inner == "02:00:00:00:00:99", "{inner}");
        }
        lab.daemon.terminate()?;
        for nic in ["vsw-office", "vsw-inner"] {
            lab.host.ip(&format!("link delete {nic}"))?;
        }
        lab.daemon.start_again()?;
        let after = addresses_of_host_nics(&lab)?;
        ensure!(before == after, "before {before:?}, after {after:?}");
    }
    Ok(())
}

#[test]
fn ten_crashes_in_a_row() -> Result<()> {
    let mut lab = Lab::start()?;
    let (mut host, _lan) = set_up(&lab)?;
    let before = configuration(&lab)?;
    for _ in 0..10 {
        lab.daemon.kill()?;
        lab.daemon.start_again()?;
    }
    ensure!(before == configuration(&lab)?, "something was forgotten");
    host.ping(at(3), false, 56)
}
