//! The kit itself, with the kernel's bridge in the place of the switch.

use std::net::{TcpListener, TcpStream};

use anyhow::Result;
use vswitch_tests::{Capture, Netns, cmd, paths};

/// Two hosts on a bridge in a namespace of its own; the hosts' interface is eth0, the bridge has end1 and end2.
fn bridged() -> Result<(Netns, Netns, Netns)> {
    let (bridge, alice, bob) = (
        Netns::new("bridge")?,
        Netns::new("alice")?,
        Netns::new("bob")?,
    );
    bridge.ip("link add br0 type bridge")?;
    bridge.ip("link set br0 up")?;
    for (host, end, number) in [(&alice, "end1", 1), (&bob, "end2", 2)] {
        bridge.cable(end, host, "eth0")?;
        bridge.ip(&format!("link set {end} master br0"))?;
        host.ip(&format!("addr add 10.9.0.{number}/24 dev eth0"))?;
        host.ip(&format!("addr add fd09::{number}/64 dev eth0"))?;
    }
    Ok((bridge, alice, bob))
}

#[test]
fn hosts_reach_each_other_and_the_capture_counts_the_frames() {
    let (_bridge, alice, bob) = bridged().unwrap();
    alice
        .run(&["ping", "-c", "1", "-W", "2", "10.9.0.2"])
        .unwrap();
    let capture = Capture::start(&bob, "eth0", "in", "icmp").unwrap();
    alice
        .run(&["ping", "-c", "3", "-i", "0.05", "-W", "2", "10.9.0.2"])
        .unwrap();
    let frames = capture.finish().unwrap();
    assert_eq!(frames.count("").unwrap(), 3);
    assert_eq!(frames.count("icmp.type==8").unwrap(), 3);
    assert_eq!(frames.bad_checksums().unwrap(), Vec::<String>::new());
}

#[test]
fn a_checksum_that_was_left_to_the_hardware_is_found() {
    let (_bridge, alice, bob) = bridged().unwrap();
    // A virtual cable carries frames whose sum the sender left open, which is wrong on a real wire.
    bob.ip("neigh add 10.9.0.77 lladdr 02:00:00:00:00:77 dev eth0")
        .unwrap();
    let capture = Capture::start(&alice, "eth0", "in", "udp").unwrap();
    bob.run(&[
        "sh",
        "-c",
        "echo hello | timeout 0.2 bash -c 'cat >/dev/udp/10.9.0.77/7'",
    ])
    .unwrap();
    assert_eq!(capture.finish().unwrap().bad_checksums().unwrap().len(), 1);
}

#[test]
fn work_inside_a_namespace_uses_its_network() {
    let (bridge, alice, bob) = bridged().unwrap();
    let listener = bob
        .inside(|| TcpListener::bind("10.9.0.2:7000").unwrap())
        .unwrap();
    bridge
        .inside(|| TcpStream::connect("10.9.0.2:7000").unwrap_err())
        .unwrap();
    let accepted =
        std::thread::spawn(move || listener.accept().map(|(_, peer)| peer.ip().to_string()));
    let _stream = alice
        .inside(|| TcpStream::connect("10.9.0.2:7000").unwrap())
        .unwrap();
    assert_eq!(accepted.join().unwrap().unwrap(), "10.9.0.1");
}

#[test]
fn a_dropped_namespace_is_gone_with_its_processes() {
    let netns = Netns::new("gone").unwrap();
    let name = netns.name().to_owned();
    let mut sleeper = netns.spawn(&["sleep", "60"]).unwrap();
    drop(netns);
    assert!(!cmd::run(&["ip", "netns", "list"]).unwrap().contains(&name));
    cmd::wait_until("the end of sleep", cmd::LIMIT, || {
        Ok(sleeper.must_run().is_err())
    })
    .unwrap();
}

#[test]
fn systemd_knows_all_that_the_unit_says() {
    // The program need not be installed to be checked.
    let unit = paths::workspace().join("packaging/vswitchd.service");
    let unit = std::fs::read_to_string(unit).unwrap();
    let dir = tempfile::TempDir::new().unwrap();
    let copy = dir.path().join("vswitchd.service");
    std::fs::write(&copy, unit.replace("/usr/local/bin/vswitchd", "/bin/true")).unwrap();
    let out = cmd::output(&[
        "systemd-analyze",
        "verify",
        "--man=no",
        &copy.display().to_string(),
    ])
    .unwrap();
    // What it does not know it tells, and ends with status 0.
    let said = String::from_utf8_lossy(&out.stderr);
    let of_ours: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("vswitchd.service"))
        .collect();
    assert!(out.status.success() && of_ours.is_empty(), "{said}");
}
