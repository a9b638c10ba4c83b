//! Packet sockets over veth pairs. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test support"
)]

mod common;

use std::io::ErrorKind;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use common::{Netns, wait_for};
use guestmem::Memory;
use hostif::iov::Iov;
use hostif::packet::{
    BATCH, BUFFER_LEN, PacketConfig, PacketError, PacketSocket, RxSlot, SEND_HEADER_LEN,
};
use rustix::io::Errno;

const A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
const B: [u8; 6] = [2, 0, 0, 0, 0, 0xb];

/// A packet socket with memory to receive into.
struct Port {
    socket: PacketSocket,
    memory: Memory,
    slots: [RxSlot; BATCH],
}

impl Port {
    fn open(netns: &Netns, name: &str, qdisc_bypass: bool) -> Self {
        let config = PacketConfig {
            name: name.parse().unwrap(),
            qdisc_bypass,
        };
        let socket = netns.enter(|| PacketSocket::open(&config).unwrap());
        let stride = BUFFER_LEN.next_multiple_of(4096);
        let memory = Memory::anonymous(stride as usize * BATCH).unwrap();
        let slot = |i| {
            RxSlot::new(
                memory
                    .span(i as u64 * u64::from(stride), BUFFER_LEN)
                    .unwrap(),
            )
        };
        let slots = std::array::from_fn(slot);
        Self {
            socket,
            memory,
            slots,
        }
    }

    /// What came in: virtio headers and frames.
    fn receive(&mut self) -> Vec<([u8; 12], Vec<u8>)> {
        let count = self.socket.receive(&self.memory, &mut self.slots).unwrap();
        let frame = |slot: &RxSlot| {
            let mut bytes = vec![0; slot.len as usize];
            self.memory.read(slot.frame().unwrap(), &mut bytes).unwrap();
            (slot.header, bytes)
        };
        self.slots[..count].iter().map(frame).collect()
    }

    fn send(&self, header: &[u8; 12], frame: &[u8]) {
        let pieces = [Iov::bytes(&header[..SEND_HEADER_LEN]), Iov::bytes(frame)];
        assert_eq!(self.socket.send(&[&pieces]), Ok(1));
    }
}

fn frame(payload: &[u8]) -> Vec<u8> {
    common::udp_frame(B, A, ([10, 9, 0, 1], [10, 9, 0, 2]), (1000, 2000), payload)
}

fn tagged(frame: &[u8], tag: [u8; 4]) -> Vec<u8> {
    [&frame[..12], &tag, &frame[12..]].concat()
}

#[test]
fn datagrams_cross_both_ways() {
    for qdisc_bypass in [false, true] {
        let (left, right) = Netns::pair(1, 9000);
        right.run("ip addr add 10.9.0.2/24 dev vb");
        right.run("ip neigh add 10.9.0.1 lladdr 02:00:00:00:00:0a dev vb");
        left.run("ip addr add 10.9.0.1/24 dev va");
        left.run("ip neigh add 10.9.0.2 lladdr 02:00:00:00:00:0b dev va");
        let host = left.enter(|| UdpSocket::bind("10.9.0.1:1000").unwrap());
        host.set_nonblocking(true).unwrap();
        let mut port = Port::open(&left, "va", qdisc_bypass);
        let socket = right.enter(|| UdpSocket::bind("10.9.0.2:2000").unwrap());
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        for size in [1, 1000, 8972] {
            let data = vec![size as u8; size];
            socket.send_to(&data, "10.9.0.1:1000").unwrap();
            let ours = |(_, f): &([u8; 12], Vec<u8>)| f[12..14] == [8, 0];
            let (header, got) = wait_for("frame", || port.receive().into_iter().find(ours));
            assert_eq!(
                header,
                [1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0],
                "the checksum is unfinished"
            );
            assert_eq!(&got[42..], data);
            let mut buffer = vec![0; 9000];
            let heard = host.recv(&mut buffer).unwrap_err();
            assert_eq!(heard.kind(), ErrorKind::WouldBlock, "the stack hears it");
            port.send(&[0; 12], &frame(&data));
            let n = socket.recv(&mut buffer).unwrap();
            assert_eq!(buffer[..n], data);
            host.send_to(b"out", "10.9.0.2:2000").unwrap();
            assert_eq!(socket.recv(&mut buffer).unwrap(), 3);
            assert!(
                port.receive().iter().all(|f| !ours(f)),
                "what the host sends does not come in"
            );
        }
    }
}

#[test]
fn a_tag_that_the_kernel_took_out_is_put_back() {
    let (left, right) = Netns::pair(1, 1500);
    let (sender, mut receiver) = (
        Port::open(&left, "va", false),
        Port::open(&right, "vb", false),
    );
    let plain = frame(b"hello");
    // The header counts from the start of the frame: an unfinished checksum at 34 + 6, behind a tag at 38 + 6.
    let (here, behind) = (
        [1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 38, 0, 6, 0, 0, 0],
    );
    for (tag, header) in [
        (None, here),
        (Some([0x81, 0, 0, 10]), behind),
        (Some([0x81, 0, 0xef, 0xfe]), behind),
        (Some([0x81, 0, 0xe0, 0]), behind),
        (Some([0x88, 0xa8, 0, 20]), behind),
    ] {
        let sent = tag.map_or(plain.clone(), |tag| tagged(&plain, tag));
        sender.send(&header, &sent);
        let got = wait_for("frame", || receiver.receive().pop());
        assert_eq!(got, (header, sent.clone()), "tag {tag:?}");
        sender.send(&[0; 12], &sent);
        let got = wait_for("frame", || receiver.receive().pop());
        assert_eq!(got.1, sent, "tag {tag:?}");
    }
    let two = tagged(&tagged(&plain, [0x81, 0, 0, 10]), [0x88, 0xa8, 0, 20]);
    sender.send(&[0; 12], &two);
    assert_eq!(wait_for("frame", || receiver.receive().pop()).1, two);
}

#[test]
fn a_tagged_superframe_crosses_whole() {
    let (left, right) = Netns::pair(1, 1500);
    let (sender, mut receiver) = (
        Port::open(&left, "va", false),
        Port::open(&right, "vb", false),
    );
    let mut superframe = frame(&vec![7; 60_000]);
    superframe[23] = 6;
    superframe[46] = 0x50;
    let superframe = tagged(&superframe, [0x81, 0, 0, 10]);
    // NEEDS_CSUM, TCPV4, headers of 58 bytes, segments of 1000, checksum at 38 + 16
    let header = [1, 1, 58, 0, 0xe8, 3, 38, 0, 16, 0, 0, 0];
    sender.send(&header, &superframe);
    let (got_header, got) = wait_for("frame", || receiver.receive().pop());
    assert_eq!(got_header[0..2], header[0..2]);
    assert_eq!(got_header[4..], header[4..]);
    assert!(got == superframe);
}

#[test]
fn a_burst_is_sent_in_order_and_a_bad_frame_is_told() {
    let (left, right) = Netns::pair(1, 1500);
    let (sender, mut receiver) = (
        Port::open(&left, "va", false),
        Port::open(&right, "vb", false),
    );
    let frames: Vec<_> = (0..40_u8).map(|i| frame(&[i; 20])).collect();
    let header = [0; SEND_HEADER_LEN];
    let pieces: Vec<_> = frames
        .iter()
        .map(|f| {
            [
                Iov::bytes(&header),
                Iov::bytes(&f[..14]),
                Iov::bytes(&f[14..]),
            ]
        })
        .collect();
    let messages: Vec<&[Iov<'_>]> = pieces.iter().map(|p| &p[..]).collect();
    assert_eq!(sender.socket.send(&messages), Ok(BATCH));
    let mut got = Vec::new();
    wait_for("burst", || {
        got.extend(receiver.receive().into_iter().map(|(_, f)| f));
        (got.len() == BATCH).then_some(())
    });
    assert_eq!(got, frames[..BATCH]);

    let (good, long) = (frame(b"x"), frame(&[0; 1600]));
    let (good, long) = (
        [Iov::bytes(&header), Iov::bytes(&good)],
        [Iov::bytes(&header), Iov::bytes(&long)],
    );
    assert_eq!(sender.socket.send(&[&good, &long, &good]), Ok(1));
    assert_eq!(sender.socket.send(&[&long, &good]), Err(Errno::MSGSIZE));
    assert_eq!(sender.socket.send(&[&good]), Ok(1));
    assert_eq!(receiver.socket.take_drops(), Ok(0));
}

#[test]
fn a_frame_longer_than_its_buffer_is_lost_and_not_cut() {
    let (left, right) = Netns::pair(1, 1500);
    let (sender, mut receiver) = (
        Port::open(&left, "va", false),
        Port::open(&right, "vb", false),
    );
    let memory = &receiver.memory;
    let mut slots = [RxSlot::new(memory.span(0, 100).unwrap())];
    sender.send(&[0; 12], &frame(&[1; 100]));
    wait_for("frame", || {
        (receiver.socket.receive(memory, &mut slots) == Ok(1)).then_some(())
    });
    assert_eq!((slots[0].len, slots[0].frame()), (0, None));
    let mut short = [RxSlot::new(memory.span(0, 63).unwrap())];
    assert_eq!(
        receiver.socket.receive(memory, &mut short),
        Err(Errno::FAULT)
    );
    sender.send(&[0; 12], &frame(b"next"));
    assert_eq!(
        wait_for("frame", || receiver.receive().pop()).1,
        frame(b"next")
    );
}

/// Carries frames from one port to the other; counts those that are TCP superframes.
fn relay(mut from: Port, to: &PacketSocket, stop: &AtomicBool, large: &AtomicUsize) {
    while !stop.load(Ordering::Relaxed) {
        let count = from.socket.receive(&from.memory, &mut from.slots).unwrap();
        for slot in &from.slots[..count] {
            large.fetch_add(
                usize::from(slot.len > 9014 && slot.header[1] & 0x7f == 1),
                Ordering::Relaxed,
            );
            let frame = Iov::span(&from.memory, slot.frame().unwrap()).unwrap();
            while to
                .send(&[&[Iov::bytes(&slot.header[..SEND_HEADER_LEN]), frame]])
                .unwrap()
                == 0
            {
                std::thread::yield_now();
            }
        }
        if count == 0 {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

#[test]
fn tcp_superframes_cross_whole() {
    const TOTAL: usize = 20 << 20;
    let data: Vec<u8> = (0..TOTAL).map(|i| (i * 7 + i / 251) as u8).collect();
    let ((left, left_host), (right, right_host)) = (Netns::pair(1, 1500), Netns::pair(1, 1500));
    right_host.run("ip link set vb address 02:00:00:00:00:0c");
    left_host.run("ip addr add 10.9.0.1/24 dev vb");
    right_host.run("ip addr add 10.9.0.2/24 dev vb");
    let (a, b) = (
        Port::open(&left, "va", false),
        Port::open(&right, "va", false),
    );
    let (to_a, to_b) = (
        Port::open(&left, "va", false).socket,
        Port::open(&right, "va", false).socket,
    );
    let (stop, large, back) = (
        AtomicBool::new(false),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    std::thread::scope(|scope| {
        scope.spawn(|| relay(a, &to_b, &stop, &large));
        scope.spawn(|| relay(b, &to_a, &stop, &back));
        let listener = right_host.enter(|| TcpListener::bind("10.9.0.2:5000").unwrap());
        let sender = scope.spawn(|| {
            left_host.here(|| {
                TcpStream::connect("10.9.0.2:5000")
                    .unwrap()
                    .write_all(&data)
                    .unwrap()
            });
        });
        let mut got = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut got).unwrap();
        assert!(got == data);
        sender.join().unwrap();
        stop.store(true, Ordering::Relaxed);
    });
    assert!(
        large.load(Ordering::Relaxed) > 100,
        "{large:?} superframes for 20 MiB"
    );
}

#[test]
fn a_sender_carries_superframes_and_hears_nothing() {
    let (left, right) = Netns::pair(1, 1500);
    left.run("ip addr add 10.9.0.1/24 dev va");
    left.run("ip neigh add 10.9.0.2 lladdr 02:00:00:00:00:0b dev va");
    right.run("ip addr add 10.9.0.2/24 dev vb");
    right.run("ip neigh add 10.9.0.1 lladdr 02:00:00:00:00:0a dev vb");
    let sender = left.enter(|| PacketSocket::open_sender(&"va".parse().unwrap()).unwrap());
    assert!(!sender.is_exclusive());
    let mut far = Port::open(&right, "vb", false);

    let host = left.enter(|| UdpSocket::bind("10.9.0.1:1000").unwrap());
    host.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    far.send(
        &[0; 12],
        &common::udp_frame(
            A,
            B,
            ([10, 9, 0, 2], [10, 9, 0, 1]),
            (2000, 1000),
            b"for the host",
        ),
    );
    let mut buffer = [0; 64];
    let (got, _) = host.recv_from(&mut buffer).unwrap();
    assert_eq!(
        &buffer[..got],
        b"for the host",
        "the host's stack still hears"
    );
    let memory = Memory::anonymous(1 << 17).unwrap();
    let mut slots = [RxSlot::new(memory.span(0, BUFFER_LEN).unwrap())];
    assert_eq!(sender.receive(&memory, &mut slots), Ok(0));

    // NEEDS_CSUM, TCPv4, headers of 54 bytes, segments of 1000 bytes, checksum from byte 34, its field at 16.
    let header = [1, 1, 54, 0, 0xe8, 3, 34, 0, 16, 0];
    let mut frame = [&B[..], &A, &[8, 0]].concat();
    frame.extend([
        0x45, 0, 0x13, 0xb0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2,
    ]);
    frame.extend([
        0, 80, 1, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 0, 0, 0, 0, 0,
    ]);
    frame.resize(54 + 5000, 7);
    assert_eq!(
        sender.send(&[&[Iov::bytes(&header), Iov::bytes(&frame)]]),
        Ok(1)
    );
    let large = |(_, f): &([u8; 12], Vec<u8>)| f.len() == frame.len();
    let (header, got) = wait_for("frame", || far.receive().into_iter().find(large));
    assert_eq!(
        (header[1], &header[4..6], &got[54..]),
        (1, &[0xe8, 3][..], &frame[54..])
    );
}

#[test]
fn what_can_not_be_opened_is_refused_with_the_reason() {
    let ns = Netns::new();
    ns.enter(|| {
        ns.run("ip tuntap add dev tun0 mode tun");
        let open = |name: &str| {
            let config = PacketConfig {
                name: name.parse().unwrap(),
                qdisc_bypass: false,
            };
            PacketSocket::open(&config).map(drop).unwrap_err()
        };
        assert!(matches!(open("nope"), PacketError::NotFound(_)));
        assert!(matches!(open("tun0"), PacketError::NotEthernet(_)));
    });
}
