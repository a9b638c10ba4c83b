//! AF_XDP over veth pairs. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test support"
)]

mod common;

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::process::{Command, Stdio};
use std::sync::Arc;

use common::{Netns, wait_for};
use guestmem::Memory;
use hostif::info::LinkInfo;
use hostif::iov::Iov;
use hostif::tap::{Tap, TapConfig};
use hostif::xdp::{
    AttachMode, Descriptor, FRAME_SIZE, Unclaimed, Xdp, XdpConfig, XdpError, XdpMode, XdpQueue,
    umem_len,
};

const FRAMES: u32 = 256;

/// An interface taken by AF_XDP, frame buffers 0 to 127 of each queue in its fill ring, the others for sending.
struct Uplink {
    xdp: Option<Xdp>,
    mode: XdpMode,
    queues: Vec<XdpQueue>,
    umem: Arc<Memory>,
    inbox: VecDeque<(u32, Vec<u8>)>,
}

fn config(name: &str) -> XdpConfig {
    XdpConfig {
        name: name.parse().unwrap(),
        frames_per_queue: FRAMES,
        ring_size: 256,
        unclaimed: Unclaimed::Drop,
        generic: false,
    }
}

impl Uplink {
    fn open(name: &str, queues: u32) -> Self {
        let umem = Arc::new(Memory::anonymous(umem_len(queues, FRAMES)).unwrap());
        let (xdp, mut queues) = Xdp::open(&config(name), &umem).unwrap();
        for queue in &mut queues {
            let base = umem_len(queue.index(), FRAMES) as u64;
            let addresses: Vec<u64> = (0..128).map(|i| base + i * u64::from(FRAME_SIZE)).collect();
            assert_eq!(queue.receiver.fill(&addresses), 128);
        }
        Self {
            mode: xdp.mode(),
            xdp: Some(xdp),
            queues,
            umem,
            inbox: VecDeque::new(),
        }
    }

    /// The next frame that came in, and the queue that it came by.
    fn receive(&mut self) -> Option<(u32, Vec<u8>)> {
        for queue in &mut self.queues {
            queue.receiver.wake().unwrap();
            let mut pieces = [Descriptor::default(); 32];
            let n = queue.receiver.receive(&mut pieces);
            let mut frame = Vec::new();
            for piece in &pieces[..n] {
                let mut bytes = vec![0; piece.len as usize];
                self.umem
                    .read(self.umem.span(piece.addr, piece.len).unwrap(), &mut bytes)
                    .unwrap();
                frame.extend(bytes);
                assert_eq!(queue.receiver.fill(&[piece.addr]), 1);
                if !piece.more() {
                    self.inbox
                        .push_back((queue.index(), std::mem::take(&mut frame)));
                }
            }
            assert!(frame.is_empty(), "frames come whole");
        }
        self.inbox.pop_front()
    }

    /// Sends a frame by `queue` and waits until the buffers come back.
    fn send(&mut self, queue: usize, frame: &[u8]) {
        let base = umem_len(queue as u32, FRAMES) as u64 + 128 * u64::from(FRAME_SIZE);
        let count = frame.chunks(FRAME_SIZE as usize).count();
        let mut pieces = Vec::new();
        for (i, bytes) in frame.chunks(FRAME_SIZE as usize).enumerate() {
            let address = base + i as u64 * u64::from(FRAME_SIZE);
            self.umem
                .write(self.umem.span(address, bytes.len() as u32).unwrap(), bytes)
                .unwrap();
            pieces.push(Descriptor::new(address, bytes.len() as u32, i + 1 < count));
        }
        let queue = &mut self.queues[queue];
        assert_eq!(queue.sender.transmit(&pieces), count);
        let mut back = Vec::new();
        wait_for("completion", || {
            queue.sender.wake().unwrap();
            let mut addresses = [0; 32];
            let n = queue.sender.complete(&mut addresses);
            back.extend_from_slice(&addresses[..n]);
            (back.len() == count).then_some(())
        });
        assert_eq!(back, pieces.iter().map(|p| p.addr).collect::<Vec<_>>());
        assert!(!queue.sender.needs_wakeup());
    }
}

fn payload(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 256 + seed) as u8).collect()
}

const A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
const B: [u8; 6] = [2, 0, 0, 0, 0, 0xb];

/// Sends datagrams of frames of 64 to `mtu + 14` bytes both ways between AF_XDP in one namespace and a socket in the other.
fn round_trip(mtu: u32, sizes: &[usize]) -> XdpMode {
    let (left, right) = Netns::pair(1, mtu);
    right.run("ip addr add 10.9.0.2/24 dev vb");
    right.run("ip neigh add 10.9.0.1 lladdr 02:00:00:00:00:0a dev vb");
    right.run("ethtool -K vb tx off");
    let mut uplink = left.enter(|| Uplink::open("va", 1));
    let socket = right.enter(|| UdpSocket::bind("10.9.0.2:2000").unwrap());
    socket
        .set_read_timeout(Some(std::time::Duration::from_secs(5)))
        .unwrap();
    for &size in sizes {
        let data = payload(size - 42, size);
        socket.send_to(&data, "10.9.0.1:1000").unwrap();
        let (_, frame) = wait_for("frame", || {
            uplink.receive().filter(|(_, f)| f[12..14] == [8, 0])
        });
        assert_eq!((&frame[..6], &frame[6..12]), (&A[..], &B[..]));
        assert_eq!(frame.len(), size);
        assert!(frame[42..] == data, "frame of {size} bytes");
        assert!(
            common::transport_checksum_ok(&frame),
            "frame of {size} bytes"
        );

        let reply = common::udp_frame(B, A, ([10, 9, 0, 1], [10, 9, 0, 2]), (1000, 2000), &data);
        uplink.send(0, &reply);
        let mut got = vec![0; 10_000];
        let n = socket.recv(&mut got).unwrap();
        assert!(got[..n] == data, "frame of {size} bytes");
    }
    uplink.mode
}

#[test]
fn frames_cross_with_mtu_1500() {
    let mode = round_trip(1500, &[64, 65, 1000, 1513, 1514]);
    eprintln!("{mode:?}");
    assert!(!mode.multi_buffer && !mode.zero_copy);
}

#[test]
fn frames_cross_with_mtu_9000() {
    let mode = round_trip(
        9000,
        &[64, 1518, 3839, 3840, 3841, 4096, 7680, 7681, 9000, 9014],
    );
    eprintln!("{mode:?}");
    assert!(mode.multi_buffer);
}

#[test]
fn all_queues_receive_and_send() {
    let (left, right) = Netns::pair(2, 1500);
    right.run("ip addr add 10.9.0.2/24 dev vb");
    right.run("ip neigh add 10.9.0.1 lladdr 02:00:00:00:00:0a dev vb");
    left.run("ethtool -L va rx 2 tx 2");
    right.run("ethtool -L vb rx 2 tx 2");
    let mut uplink = left.enter(|| Uplink::open("va", 2));
    assert_eq!((uplink.mode.queues, uplink.queues.len()), (2, 2));
    let mut seen = [0; 2];
    for port in 3000..3064 {
        let socket = right.enter(|| UdpSocket::bind(("10.9.0.2", port)).unwrap());
        socket
            .send_to(&port.to_be_bytes(), "10.9.0.1:1000")
            .unwrap();
        let is_ours =
            |(_, f): &(u32, Vec<u8>)| f[12..14] == [8, 0] && f[42..44] == port.to_be_bytes();
        let (queue, _) = wait_for("frame", || uplink.receive().filter(is_ours));
        seen[queue as usize] += 1;

        let data = payload(100, usize::from(port));
        let reply = common::udp_frame(B, A, ([10, 9, 0, 1], [10, 9, 0, 2]), (1000, port), &data);
        uplink.send(usize::from(port % 2), &reply);
        let mut got = [0; 200];
        socket
            .set_read_timeout(Some(std::time::Duration::from_secs(5)))
            .unwrap();
        let n = socket.recv(&mut got).unwrap();
        assert!(got[..n] == data);
    }
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
    for queue in &uplink.queues {
        let statistics = queue.statistics().unwrap();
        assert_eq!(
            (
                statistics.rx_dropped,
                statistics.rx_invalid_descs,
                statistics.tx_invalid_descs
            ),
            (0, 0, 0)
        );
    }
}

fn has_program(netns: &Netns) -> bool {
    netns.run("ip link show dev va").contains("xdp")
}

#[test]
fn the_program_goes_when_it_is_dropped_and_the_interface_is_taken_once() {
    let (left, _right) = Netns::pair(1, 1500);
    let mut uplink = left.enter(|| Uplink::open("va", 1));
    assert!(has_program(&left));
    let again = left.enter(|| {
        Xdp::open(&config("va"), &uplink.umem)
            .map(drop)
            .unwrap_err()
    });
    assert!(matches!(again, XdpError::Occupied(_)), "{again}");
    uplink.xdp = None;
    wait_for("detach", || (!has_program(&left)).then_some(()));
    let busy = left.enter(|| {
        Xdp::open(&config("va"), &uplink.umem)
            .map(drop)
            .unwrap_err()
    });
    assert!(
        matches!(busy, XdpError::QueueBusy { queue: 0, .. }),
        "{busy}"
    );
    wait_for("detach", || (!has_program(&left)).then_some(()));
    drop(uplink);
    left.enter(|| Uplink::open("va", 1));
}

#[test]
fn the_program_goes_when_the_process_is_killed() {
    const CHILD: &str = "HOSTIF_TEST_CHILD_IN";
    if let Ok(name) = std::env::var(CHILD) {
        let netns = std::mem::ManuallyDrop::new(Netns { name });
        let _uplink = netns.enter(|| Uplink::open("va", 1));
        println!("taken");
        std::thread::sleep(std::time::Duration::from_secs(60));
        panic!("nobody killed me");
    }
    let (left, right) = Netns::pair(1, 1500);
    left.run("ip addr add 10.9.0.1/24 dev va");
    right.run("ip addr add 10.9.0.2/24 dev vb");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "the_program_goes_when_the_process_is_killed",
            "--nocapture",
        ])
        .env(CHILD, &left.name)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let taken = lines
        .map_while(Result::ok)
        .any(|line| line.ends_with("taken"));
    assert!(taken && has_program(&left));
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for("detach", || (!has_program(&left)).then_some(()));

    let (a, b) = (
        left.enter(|| UdpSocket::bind("10.9.0.1:1").unwrap()),
        right.enter(|| UdpSocket::bind("10.9.0.2:1").unwrap()),
    );
    b.send_to(b"hello", "10.9.0.1:1").unwrap();
    a.set_read_timeout(Some(std::time::Duration::from_secs(5)))
        .unwrap();
    assert_eq!(
        a.recv(&mut [0; 8]).unwrap(),
        5,
        "the interface belongs to the host again"
    );
}

#[test]
fn what_can_not_be_is_refused_with_the_reason() {
    let (left, _right) = Netns::pair(1, 1500);
    left.enter(|| {
        let umem = Arc::new(Memory::anonymous(umem_len(1, FRAMES)).unwrap());
        let refused = |config: &XdpConfig| Xdp::open(config, &umem).map(drop).unwrap_err();
        assert!(matches!(refused(&config("nope")), XdpError::NotFound(_)));
        let frames = XdpConfig {
            frames_per_queue: 63,
            ..config("va")
        };
        assert!(matches!(
            refused(&frames),
            XdpError::Config { value: 63, .. }
        ));
        let slots = XdpConfig {
            ring_size: 100,
            ..config("va")
        };
        assert!(matches!(
            refused(&slots),
            XdpError::Config { value: 100, .. }
        ));
        let large = XdpConfig {
            frames_per_queue: FRAMES + 1,
            ..config("va")
        };
        assert!(matches!(refused(&large), XdpError::Umem { queues: 1, .. }));
        assert!(!has_program(&left));
    });
}

#[test]
fn a_frame_is_never_sent_in_part() {
    let (left, _right) = Netns::pair(1, 9000);
    let mut uplink = left.enter(|| Uplink::open("va", 1));
    let queue = &mut uplink.queues[0];
    let half = Descriptor::new(128 * u64::from(FRAME_SIZE), 1000, true);
    let whole = Descriptor::new(129 * u64::from(FRAME_SIZE), 60, false);
    assert_eq!(
        queue.sender.transmit(&[half, half]),
        0,
        "the end is missing"
    );
    assert_eq!(queue.sender.transmit(&[whole, half]), 1);
    let room = queue.sender.transmit_room();
    assert_eq!(room, 255);
    let mut frames = vec![whole; room - 1];
    frames.extend([half, whole]);
    assert_eq!(
        queue.sender.transmit(&frames),
        room - 1,
        "no room for both pieces"
    );
}

#[test]
fn a_peer_sends_no_superframes_but_leaves_checksums_unfinished() {
    let (left, right) = Netns::pair(1, 1500);
    right.run("ip addr add 10.9.0.2/24 dev vb");
    right.run("ip neigh add 10.9.0.1 lladdr 02:00:00:00:00:0a dev vb");
    assert!(
        right
            .run("ethtool -k vb")
            .contains("tcp-segmentation-offload: on")
    );
    let mut uplink = left.enter(|| Uplink::open("va", 1));
    assert!(
        right
            .run("ethtool -k vb")
            .contains("tcp-segmentation-offload: off")
    );
    assert!(uplink.mode.unfinished_checksums);
    let socket = right.enter(|| UdpSocket::bind("10.9.0.2:2000").unwrap());
    socket.send_to(b"hello", "10.9.0.1:1000").unwrap();
    let (_, frame) = wait_for("frame", || {
        uplink.receive().filter(|(_, f)| f[12..14] == [8, 0])
    });
    // The field holds the sum of the pseudo header, not complemented: addresses, protocol, length.
    let pseudo = [&frame[26..34], &[0, 17], &frame[38..40]].concat();
    assert_eq!(frame[40..42], (!common::checksum(&pseudo)).to_be_bytes());
}

#[test]
fn frames_are_as_on_the_wire_until_it_is_dropped() {
    let (left, _right) = Netns::pair(1, 1500);
    left.run("ethtool -K va gro on rxvlan on");
    let state = || {
        let features = left.run("ethtool -k va");
        let on = |feature: &str| features.contains(&format!("{feature}: on"));
        let link = left.enter(|| LinkInfo::read(&"va".parse().unwrap()).unwrap().unwrap());
        (
            on("generic-receive-offload"),
            on("rx-vlan-offload"),
            link.promiscuity,
        )
    };
    assert_eq!(state(), (true, true, 0));
    let mut uplink = left.enter(|| Uplink::open("va", 1));
    assert_eq!(state(), (false, false, 1));
    left.enter(|| uplink.xdp = None);
    wait_for("end of promiscuity", || {
        (state() == (true, true, 0)).then_some(())
    });
}

#[test]
fn generic_mode_is_taken_only_when_it_is_allowed() {
    let (left, right) = Netns::pair(1, 1500);
    left.run("ip link add name sw0 type bridge");
    left.run("ip link set va master sw0");
    left.run("ip link set sw0 up");
    right.run("ip addr add 10.9.0.2/24 dev vb");
    let umem = Arc::new(Memory::anonymous(umem_len(1, FRAMES)).unwrap());
    left.enter(|| {
        let error = Xdp::open(&config("sw0"), &umem).map(drop).unwrap_err();
        assert!(matches!(error, XdpError::NoDriverSupport { .. }), "{error}");
        let (xdp, _queues) = Xdp::open(
            &XdpConfig {
                generic: true,
                ..config("sw0")
            },
            &umem,
        )
        .unwrap();
        assert_eq!(xdp.mode().attach, AttachMode::Generic);
        assert!(xdp.mode().unfinished_checksums && !xdp.mode().zero_copy);
    });
}

#[test]
fn frames_that_no_socket_takes_pass_or_drop() {
    for (unclaimed, passes) in [(Unclaimed::Pass, true), (Unclaimed::Drop, false)] {
        let (left, right) = Netns::pair(1, 1500);
        left.run("ip addr add 10.9.0.1/24 dev va");
        right.run("ip addr add 10.9.0.2/24 dev vb");
        right.run("ip neigh add 10.9.0.1 lladdr 02:00:00:00:00:0a dev vb");
        let umem = Arc::new(Memory::anonymous(umem_len(1, FRAMES)).unwrap());
        let config = XdpConfig {
            unclaimed,
            ..config("va")
        };
        let (_xdp, queues) = left.enter(|| Xdp::open(&config, &umem).unwrap());
        drop(queues);
        let a = left.enter(|| UdpSocket::bind("10.9.0.1:1").unwrap());
        let b = right.enter(|| UdpSocket::bind("10.9.0.2:1").unwrap());
        b.send_to(b"hello", "10.9.0.1:1").unwrap();
        a.set_read_timeout(Some(std::time::Duration::from_millis(500)))
            .unwrap();
        assert_eq!(a.recv(&mut [0; 8]).is_ok(), passes, "{unclaimed:?}");
    }
}

#[test]
fn frames_in_pieces_are_received_whole() {
    let (left, right) = Netns::pair(1, 9000);
    right.run("ip addr add 10.9.0.2/24 dev vb");
    right.run("ip neigh add 10.9.0.1 lladdr 02:00:00:00:00:0a dev vb");
    let mut uplink = left.enter(|| Uplink::open("va", 1));
    let socket = right.enter(|| UdpSocket::bind("10.9.0.2:2000").unwrap());
    for _ in 0..3 {
        socket.send_to(&payload(8972, 1), "10.9.0.1:1000").unwrap();
    }
    let queue = &mut uplink.queues[0];
    let more = |pieces: &[Descriptor]| pieces.iter().map(Descriptor::more).collect::<Vec<_>>();
    let mut pieces = [Descriptor::default(); 5];
    wait_for("frame", || {
        (queue.receiver.receive(&mut pieces) == 3).then_some(())
    });
    assert_eq!(
        more(&pieces[..3]),
        [true, true, false],
        "the pieces of the second frame are left"
    );
    assert_eq!(pieces[..3].iter().map(|p| p.len).sum::<u32>(), 9014);
    let mut few = [Descriptor::default(); 2];
    wait_for("frame", || {
        (queue.receiver.receive(&mut few) == 2).then_some(())
    });
    assert_eq!(more(&few), [true, true]);
    assert_eq!(
        queue.receiver.receive(&mut few),
        1,
        "the end of the second frame, nothing of the third"
    );
    assert_eq!(more(&few[..1]), [false]);
    wait_for("frame", || {
        (queue.receiver.receive(&mut pieces) == 3).then_some(())
    });
    assert_eq!(queue.receiver.receive(&mut pieces), 0);
}

/// A frame with a tag that enters by a TAP device and leaves by a bridge has its tag beside it on the veth pair.
#[test]
fn a_tag_beside_a_frame_is_put_back() {
    for mtu in [1500, 9000] {
        let (left, right) = Netns::pair(1, mtu);
        let (_tap, queues) = right.enter(|| {
            let config = TapConfig {
                name: "t0".parse().unwrap(),
                queues: 1,
                persist: false,
                mac: None,
            };
            let (tap, queues) = Tap::open(&config).unwrap();
            tap.set_mtu(mtu).unwrap();
            tap.set_up(true).unwrap();
            (tap, queues)
        });
        right.run("ip link add name sw0 type bridge");
        right.run("ip link set t0 master sw0");
        right.run("ip link set vb master sw0");
        right.run("ip link set sw0 up");
        let mut uplink = left.enter(|| Uplink::open("va", 1));
        assert!(uplink.mode.vlan_tags, "needs Linux 6.8");
        for tag in [
            None,
            Some([0x81, 0, 0, 7]),
            Some([0x81, 0, 0xef, 0xfe]),
            Some([0x88, 0xa8, 0x20, 0x64]),
        ] {
            let data = payload(mtu as usize - 28, 5);
            let frame = common::udp_frame(A, B, ([10, 9, 0, 2], [10, 9, 0, 1]), (1, 2), &data);
            let frame = [
                &frame[..12],
                tag.as_ref().map_or(&[][..], |t| &t[..]),
                &frame[12..],
            ]
            .concat();
            // The bridge forwards only after it has learned that its port is up.
            let got = wait_for("frame", || {
                queues[0]
                    .write_vectored(&[Iov::bytes(&[0; 12]), Iov::bytes(&frame)])
                    .unwrap();
                std::thread::sleep(std::time::Duration::from_millis(10));
                std::iter::from_fn(|| uplink.receive())
                    .map(|(_, f)| f)
                    .find(|f| f.len() > 1000)
            });
            assert!(got == frame, "mtu {mtu} tag {tag:?}: {:x?}", &got[..20]);
            while uplink.receive().is_some() {}
        }
    }
}
