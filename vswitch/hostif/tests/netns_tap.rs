//! TAP devices against the kernel's own network stack. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test support"
)]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use common::{Netns, wait_for};
use hostif::IfName;
use hostif::info::LinkInfo;
use hostif::iov::{Iov, IovMut};
use hostif::tap::{MAX_READ, Tap, TapConfig, TapError, TapQueue, VNET_HEADER_LEN};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xaa];

fn config(name: &str, queues: u16, persist: bool) -> TapConfig {
    TapConfig {
        name: name.parse().unwrap(),
        queues,
        persist,
        mac: Some(MAC),
    }
}

fn info(name: &str) -> Option<LinkInfo> {
    LinkInfo::read(&name.parse::<IfName>().unwrap()).unwrap()
}

/// Waits until there is no such interface: a process that another test starts holds all files for a moment.
fn wait_for_none(name: &str) {
    wait_for("end of the device", || info(name).is_none().then_some(()));
}

fn read(queue: &TapQueue) -> Option<Vec<u8>> {
    let mut header = [0; VNET_HEADER_LEN];
    let mut frame = vec![0; MAX_READ];
    let n = queue
        .read_vectored(&mut [IovMut::bytes(&mut header), IovMut::bytes(&mut frame)])
        .unwrap()?;
    frame.truncate(n - VNET_HEADER_LEN);
    Some([&header[..], &frame].concat())
}

#[test]
fn a_datagram_goes_out_unfinished_and_one_comes_in() {
    let ns = Netns::new();
    ns.enter(|| {
        let (tap, queues) = Tap::open(&config("t0", 1, false)).unwrap();
        tap.set_mtu(9000).unwrap();
        tap.set_up(true).unwrap();
        let link = info("t0").unwrap();
        assert_eq!(
            (link.mac, link.mtu, link.up, link.kind.as_deref()),
            (Some(MAC), 9000, true, Some("tun"))
        );
        ns.run("ip addr add 10.9.0.1/24 dev t0");
        ns.run("ip neigh add 10.9.0.2 lladdr 02:00:00:00:00:bb dev t0");

        let socket = UdpSocket::bind("10.9.0.1:1000").unwrap();
        socket.send_to(b"ping", "10.9.0.2:2000").unwrap();
        let out = wait_for("frame", || {
            read(&queues[0]).filter(|f| f[12 + 12..12 + 14] == [8, 0])
        });
        let (header, frame) = out.split_at(VNET_HEADER_LEN);
        // VIRTIO_NET_HDR_F_NEEDS_CSUM, no GSO; the sum of the UDP datagram is to be put at 34 + 6.
        assert_eq!(header, [1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0]);
        assert_eq!(&frame[42..], b"ping");
        assert!(!common::transport_checksum_ok(frame));

        let reply = common::udp_frame(
            MAC,
            [2, 0, 0, 0, 0, 0xbb],
            ([10, 9, 0, 2], [10, 9, 0, 1]),
            (2000, 1000),
            b"pong",
        );
        let written = queues[0]
            .write_vectored(&[Iov::bytes(&[0; 12]), Iov::bytes(&reply)])
            .unwrap();
        assert_eq!(written, Some(12 + reply.len()));
        let mut buffer = [0; 16];
        socket
            .set_read_timeout(Some(std::time::Duration::from_secs(5)))
            .unwrap();
        assert_eq!(socket.recv(&mut buffer).unwrap(), 4);
        assert_eq!(&buffer[..4], b"pong");
        drop((tap, queues));
        // A device that is not persistent goes with its last file.
        wait_for_none("t0");
    });
}

#[test]
fn carrier_is_what_the_host_sees() {
    Netns::new().enter(|| {
        let (tap, _queues) = Tap::open(&config("t0", 1, false)).unwrap();
        tap.set_up(true).unwrap();
        assert!(info("t0").unwrap().carrier);
        tap.set_carrier(false).unwrap();
        assert!(!info("t0").unwrap().carrier);
        tap.set_carrier(true).unwrap();
        assert!(info("t0").unwrap().carrier);
        tap.set_up(false).unwrap();
        assert!(!info("t0").unwrap().up);
    });
}

#[test]
fn a_persistent_device_is_taken_up_again_with_its_address() {
    let ns = Netns::new();
    ns.enter(|| {
        let (tap, queues) = Tap::open(&config("t0", 2, true)).unwrap();
        tap.set_up(true).unwrap();
        ns.run("ip addr add 10.9.0.1/24 dev t0");
        let before = info("t0").unwrap();
        assert_eq!(before.tun.unwrap().queues, 2);
        drop((tap, queues));
        let free = || info("t0").unwrap().tun.unwrap().queues == 0;
        wait_for("release", || free().then_some(()));

        let (tap, queues) = Tap::open(&TapConfig {
            mac: None,
            ..config("t0", 4, true)
        })
        .unwrap();
        let after = info("t0").unwrap();
        assert_eq!(
            (after.index, after.mac, after.tun.unwrap().queues),
            (before.index, before.mac, 4)
        );
        assert!(ns.run("ip addr show dev t0").contains("10.9.0.1/24"));
        tap.set_persist(false).unwrap();
        drop((tap, queues));
        wait_for_none("t0");
    });
}

#[test]
fn what_can_not_be_opened_is_refused_with_the_reason() {
    let ns = Netns::new();
    ns.enter(|| {
        ns.run("ip link add v0 type veth peer name v1");
        ns.run("ip tuntap add dev single mode tap");
        ns.run("ip tuntap add dev tun0 mode tun multi_queue");
        let open = |name| Tap::open(&config(name, 1, false)).map(drop).unwrap_err();
        assert!(matches!(open("v0"), TapError::NotTap { kind, .. } if kind == "veth"));
        assert!(matches!(open("lo"), TapError::NotTap { .. }));
        assert!(matches!(open("tun0"), TapError::NotTap { kind, .. } if kind == "tun"));
        assert!(matches!(open("single"), TapError::SingleQueue(_)));
        let held = Tap::open(&config("t0", 3, false)).unwrap();
        assert!(matches!(open("t0"), TapError::Busy { queues: 3, .. }));
        drop(held);
        for queues in [0, 257] {
            let error = Tap::open(&config("t1", queues, true))
                .map(drop)
                .unwrap_err();
            assert!(matches!(error, TapError::Queues(n) if n == queues));
        }
        let bad_mac = TapConfig {
            mac: Some([1, 0, 0, 0, 0, 1]),
            ..config("t1", 1, true)
        };
        let error = Tap::open(&bad_mac).map(drop).unwrap_err();
        assert!(matches!(
            error,
            TapError::Call {
                call: "SIOCSIFHWADDR",
                ..
            }
        ));
        // Nothing is left of what failed.
        wait_for_none("t1");
    });
}

/// Carries frames from each queue of `from` to the first of `to`; counts those that are TCP superframes.
fn relay(from: &[TapQueue], to: &[TapQueue], stop: &AtomicBool, large: &AtomicUsize) {
    while !stop.load(Ordering::Relaxed) {
        let mut idle = true;
        for queue in from {
            let Some(frame) = read(queue) else { continue };
            idle = false;
            large.fetch_add(
                usize::from(frame.len() > 12 + 9014 && frame[1] & 0x7f == 1),
                Ordering::Relaxed,
            );
            to[0].write_vectored(&[Iov::bytes(&frame)]).unwrap();
        }
        if idle {
            std::thread::sleep(std::time::Duration::from_micros(100));
        }
    }
}

#[test]
fn tcp_superframes_cross_two_devices_whole() {
    const TOTAL: usize = 20 << 20;
    let (left, right) = (Netns::new(), Netns::new());
    let (_tap_a, a) = left.enter(|| {
        Tap::open(&TapConfig {
            mac: None,
            ..config("t0", 2, false)
        })
        .unwrap()
    });
    let (_tap_b, b) = right.enter(|| {
        Tap::open(&TapConfig {
            mac: None,
            ..config("t0", 2, false)
        })
        .unwrap()
    });
    left.run("ip addr add 10.9.0.1/24 dev t0");
    right.run("ip addr add 10.9.0.2/24 dev t0");
    left.run("ip link set t0 up");
    right.run("ip link set t0 up");
    let (stop, large, back) = (
        AtomicBool::new(false),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    std::thread::scope(|scope| {
        scope.spawn(|| relay(&a, &b, &stop, &large));
        scope.spawn(|| relay(&b, &a, &stop, &back));
        let listener = right.enter(|| TcpListener::bind("10.9.0.2:5000").unwrap());
        let sender = scope.spawn(|| {
            left.here(|| {
                TcpStream::connect("10.9.0.2:5000")
                    .unwrap()
                    .write_all(&pattern(TOTAL))
                    .unwrap()
            });
        });
        let mut got = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut got).unwrap();
        assert!(got == pattern(TOTAL));
        sender.join().unwrap();
        stop.store(true, Ordering::Relaxed);
    });
    assert!(
        large.load(Ordering::Relaxed) > 100,
        "{large:?} superframes for 20 MiB"
    );
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}
