//! The guests of the kit itself, without a switch: on a TAP device, and by vhost-user against DPDK's own back end.

use std::{sync::Arc, time::Duration};

use vswitch_tests::{
    Capture, Dpdk, Netns, QemuGuest, Station, cmd,
    dpdk::{vhost_backend, virtio_user},
    guest::{Attachment, GuestConfig},
    station::{Address, Transport},
};

fn config(attachment: Attachment) -> GuestConfig {
    GuestConfig {
        attachment,
        mac: "02:00:00:00:00:99".into(),
        addresses: vec!["10.9.0.2/24".into(), "fd09::2/64".into()],
        device: Vec::new(),
    }
}

#[test]
fn a_guest_boots_takes_commands_and_moves_bytes_over_a_tap_device() {
    let netns = Netns::new("tap").unwrap();
    netns.ip("tuntap add tap0 mode tap").unwrap();
    netns.ip("addr add 10.9.0.1/24 dev tap0").unwrap();
    netns.ip("addr add fd09::1/64 dev tap0").unwrap();
    netns.ip("link set tap0 up").unwrap();
    let mut guest = QemuGuest::boot(&netns, &config(Attachment::Tap("tap0".into()))).unwrap();
    assert_eq!(guest.run("echo out; echo err >&2").unwrap(), "out\nerr\n");
    assert_eq!(guest.output("exit 3").unwrap().0, 3);
    guest.run("ping -c 1 -W 2 10.9.0.1").unwrap();
    guest
        .run("ethtool -k eth0 | grep -q tcp-segmentation-offload")
        .unwrap();

    let server = vswitch_tests::paths::program("vswitch-traffic").unwrap();
    let _server = netns
        .spawn(&[&server.display().to_string(), "serve", "7000"])
        .unwrap();
    for address in ["10.9.0.1", "fd09::1"] {
        for check in ["tcp", "udp"] {
            guest
                .run(&format!("vswitch-traffic {check} {address} 7000 20000"))
                .unwrap();
        }
    }
}

#[test]
fn a_guest_answers_by_vhost_user() {
    let netns = Netns::new("vhost").unwrap();
    let dir = tempfile::TempDir::new().unwrap();
    let socket = dir.path().join("vhost.sock").display().to_string();
    let _backend = Dpdk::start(&vhost_backend(&socket), "icmpecho").unwrap();
    let mut guest = QemuGuest::boot(&netns, &config(Attachment::VhostUserClient(socket))).unwrap();
    guest.run("ping -c 2 -W 5 10.9.0.1").unwrap();
}

#[test]
fn a_dpdk_peer_sends_by_vhost_user() {
    let dir = tempfile::TempDir::new().unwrap();
    let socket = dir.path().join("vhost.sock").display().to_string();
    let mut backend = Dpdk::start(&vhost_backend(&socket), "rxonly").unwrap();
    let mut peer = Dpdk::start(&virtio_user(&socket, "02:00:00:00:00:88", &[]), "txonly").unwrap();
    cmd::wait_until("1000 frames", Duration::from_secs(10), || {
        Ok(backend.frames()?.0 > 1000)
    })
    .unwrap();
    assert!(peer.frames().unwrap().1 > 1000);
}

#[test]
fn stations_tag_whatever_the_kernel_of_the_host_knows() {
    let (left, right) = (
        Arc::new(Netns::new("left").unwrap()),
        Arc::new(Netns::new("right").unwrap()),
    );
    left.cable("eth0", &right, "eth0").unwrap();
    let at = |host| Address { net: 69, host };
    let mut alice = Station::inside("alice", &left, "eth0", Some(10), at(1)).unwrap();
    let mut bob = Station::inside("bob", &right, "eth0", Some(10), at(2)).unwrap();
    let capture = Capture::start(&right, "eth0", "in", "").unwrap();
    for mtu in [1500, 9000] {
        alice.set_mtu(mtu).unwrap();
        bob.set_mtu(mtu).unwrap();
        alice.ping(at(2), true, mtu - 48).unwrap();
        alice.bytes(at(2), false, Transport::Tcp, 100_000).unwrap();
    }
    let frames = capture.finish().unwrap();
    assert!(frames.count("vlan.id==10 && tcp").unwrap() > 50);
    assert_eq!(frames.count("tcp && !vlan").unwrap(), 0);
    assert_eq!(frames.bad_checksums().unwrap(), Vec::<String>::new());
}
