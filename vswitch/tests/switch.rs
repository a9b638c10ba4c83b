//! The whole switch with threads: networks and ports changed under traffic, seen from stations in memory.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use vswitch::control::{NetworkSpec, PortHandle, Switch};
use vswitch::drops::DropReason;
use vswitch::mac::Mac;
use vswitch::network::{NetworkId, PortPolicy};
use vswitch::port::PortControl;
use vswitch::ports::memory::{MemoryPort, Station};
use vswitch::vlan::VlanMode;

fn mac(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, n])
}

fn frame(to: Mac, from: Mac, payload: &[u8]) -> Vec<u8> {
    [&to.0[..], &from.0, &[0x88, 0xb5], payload].concat()
}

fn port(switch: &Switch, network: NetworkId, vlan: VlanMode) -> (Arc<PortHandle>, Station) {
    let port = switch
        .add_port(
            PortPolicy {
                vlan,
                ..PortPolicy::default()
            },
            None,
        )
        .unwrap();
    let (sides, station) = MemoryPort {
        depth: 64,
        buffer: 2048,
        ..MemoryPort::default()
    }
    .open()
    .unwrap();
    assert!(port.attach(sides).is_none());
    port.connect(network).unwrap();
    (port, station)
}

fn expect(station: &Station) -> Vec<u8> {
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        if let Some(received) = station.receive() {
            return received.frame;
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    panic!("no frame came within 5 s");
}

fn balanced(ports: &[&PortHandle]) {
    for port in ports {
        let tx = port.counters().tx;
        assert_eq!(
            tx.frames + tx.extra_copies,
            tx.delivered + tx.consumed + tx.dropped(),
            "{tx:?}"
        );
    }
}

#[test]
fn learns_floods_and_keeps_networks_apart() {
    let switch = Switch::start(&[0]).unwrap();
    let network = switch.create_network(&NetworkSpec::default()).unwrap();
    let other = switch.create_network(&NetworkSpec::default()).unwrap();
    let (a, at_a) = port(&switch, network, VlanMode::None);
    let (b, at_b) = port(&switch, network, VlanMode::None);
    let (c, at_c) = port(&switch, network, VlanMode::None);
    let (_x, at_x) = port(&switch, other, VlanMode::None);

    let first = frame(mac(2), mac(1), b"unknown destination: flooded");
    at_a.send(&first);
    assert_eq!(expect(&at_b), first);
    assert_eq!(expect(&at_c), first);
    let answer = frame(mac(1), mac(2), b"learned: to one port");
    at_b.send(&answer);
    assert_eq!(expect(&at_a), answer);
    at_c.send(&frame(
        mac(9),
        mac(3),
        b"nobody knows the destination: flooded",
    ));
    expect(&at_a);
    expect(&at_b);

    assert!(at_c.receive().is_none());
    assert!(at_x.receive().is_none(), "another network");
    assert_eq!(a.counters().tx.extra_copies, 1);
    assert_eq!(b.counters().tx.delivered, 1);
    balanced(&[&a, &b, &c]);
}

#[test]
fn what_is_for_a_paused_vm_is_dropped_by_that_name() {
    let switch = Switch::start(&[0]).unwrap();
    let network = switch.create_network(&NetworkSpec::default()).unwrap();
    let (a, at_a) = port(&switch, network, VlanMode::None);
    let (b, _at_b) = port(&switch, network, VlanMode::None);
    drop(b.detach());
    for (paused, reason) in [(true, DropReason::Paused), (false, DropReason::RxNotReady)] {
        b.set_paused(paused);
        at_a.send(&frame(Mac::BROADCAST, mac(1), b"is anybody there?"));
        let deadline = Instant::now() + Duration::from_secs(5);
        while b.counters().rx.drops.get(reason) == 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(b.counters().rx.drops.get(reason), 1, "{reason:?}");
        assert_eq!(a.counters().tx.drops.get(reason), 1, "{reason:?}");
    }
    balanced(&[&a, &b]);
}

#[test]
fn vlans_tag_and_separate() {
    let switch = Switch::start(&[0]).unwrap();
    let network = switch.create_network(&NetworkSpec::default()).unwrap();
    let (ten, at_ten) = port(&switch, network, VlanMode::Access(10));
    let (_twenty, at_twenty) = port(&switch, network, VlanMode::Access(20));
    let mut allowed = vswitch::vlan::VidSet::empty();
    allowed.insert(10);
    let (trunk, at_trunk) = port(
        &switch,
        network,
        VlanMode::Trunk {
            allowed,
            native: None,
        },
    );

    at_ten.send(&frame(Mac::BROADCAST, mac(1), b"hello"));
    let tagged = expect(&at_trunk);
    assert_eq!(tagged[12..18], [0x81, 0x00, 0, 10, 0x88, 0xb5]);
    assert!(at_twenty.receive().is_none());

    let mut back = tagged.clone();
    back[..6].copy_from_slice(&mac(1).0);
    back[6..12].copy_from_slice(&mac(9).0);
    back[14] = 0x60;
    at_trunk.send(&back);
    assert_eq!(expect(&at_ten), frame(mac(1), mac(9), b"hello"));
    at_trunk.send(&frame(
        mac(1),
        mac(9),
        b"untagged on a trunk without a native VLAN",
    ));
    back[15] = 20;
    at_trunk.send(&back);
    let deadline = Instant::now() + Duration::from_secs(5);
    while trunk.counters().tx.dropped() < 2 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    let drops = trunk.counters().tx.drops;
    assert_eq!(
        (
            drops.get(DropReason::VlanUntagged),
            drops.get(DropReason::VlanNotAllowed)
        ),
        (1, 1)
    );
    balanced(&[&ten, &trunk]);
}

/// An untagged port of a VLAN must not reach another VLAN behind a trunk by a second tag under one that is stripped.
#[test]
fn a_second_tag_does_not_hop_into_another_vlan() {
    let switch = Switch::start(&[0]).unwrap();
    let network = switch.create_network(&NetworkSpec::default()).unwrap();
    let (access, at_access) = port(&switch, network, VlanMode::Access(10));
    let mut allowed = vswitch::vlan::VidSet::empty();
    allowed.insert(20);
    let (_trunk, at_trunk) = port(
        &switch,
        network,
        VlanMode::Trunk {
            allowed,
            native: Some(10),
        },
    );
    // A priority tag, which a port without VLANs takes, and VLAN 20 under it.
    let tags = [0x81, 0, 0, 0, 0x81, 0, 0, 20, 0x88, 0xb5];
    at_access.send(&[&Mac::BROADCAST.0[..], &mac(1).0, &tags, b"hop"].concat());
    let plain = frame(Mac::BROADCAST, mac(1), b"stay");
    at_access.send(&plain);
    assert_eq!(expect(&at_trunk), plain);
    let drops = access.counters().tx.drops;
    assert_eq!(drops.get(DropReason::VlanTagged), 1);
    balanced(&[&access]);
}

/// Ports come, go and move under traffic from another core; every frame is accounted for.
#[test]
fn changes_under_traffic_lose_no_account() {
    let switch = Switch::start(&[0, 1]).unwrap();
    let networks = [(); 2].map(|()| switch.create_network(&NetworkSpec::default()).unwrap());
    let ports: Vec<_> = (0..4)
        .map(|_| port(&switch, networks[0], VlanMode::None))
        .collect();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0u8;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                for (i, (_, station)) in ports.iter().enumerate() {
                    n = n.wrapping_add(1);
                    station.send(&frame(mac(n % 5 + 1), mac(i as u8 + 1), &[n; 100]));
                    while station.receive().is_some() {}
                }
                std::thread::yield_now();
            }
        });
        for round in 0..200 {
            let (handle, _) = &ports[round % 4];
            match round % 5 {
                0 => handle.connect(networks[round % 2]).unwrap(),
                1 => handle.disconnect(),
                2 => {
                    let sides = handle.detach().unwrap();
                    assert!(handle.attach(sides).is_none());
                }
                3 => handle.set_policy(PortPolicy {
                    mtu: 68,
                    ..PortPolicy::default()
                }),
                _ => handle.connect(networks[0]).unwrap(),
            }
            let (extra, _station) = port(&switch, networks[round % 2], VlanMode::None);
            assert!(extra.remove().is_some());
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    for (handle, _) in &ports {
        balanced(&[handle]);
        handle.remove();
    }
    for network in networks {
        switch.delete_network(network).unwrap();
    }
}
