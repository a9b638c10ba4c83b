//! Guests on the real switch, whose worker is polled by hand: drivers as Linux and iPXE have them, VLANs, large frames.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::sync::Arc;

use offload::{CsumAt, Gso, Request};
use vnic_legacy::csr::{mode, status};
use vnic_legacy::driver::Guest;
use vnic_legacy::driver::ring::{CSR6, Rings};
use vswitch::control::{NetworkSpec, PortHandle, SteppedWorker, Switch};
use vswitch::drops::DropReason;
use vswitch::mac::Mac;
use vswitch::network::{NetworkId, PortPolicy};
use vswitch::port::PortControl;
use vswitch::ports::memory::{MemoryPort, Station};
use vswitch::vlan::VlanMode;

const A: [u8; 6] = [0, 0x15, 0x5d, 0, 0, 1];
const B: [u8; 6] = [0, 0x15, 0x5d, 0, 0, 2];
const C: [u8; 6] = [2, 0, 0, 0, 0, 3];

fn frame(to: [u8; 6], from: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame = [&to[..], &from, &[0x88, 0xb5]].concat();
    frame.resize(len, 0x5a);
    frame
}

struct Lab {
    switch: Switch,
    worker: SteppedWorker,
    network: NetworkId,
}

impl Lab {
    fn new() -> Lab {
        let (switch, workers) = Switch::stepped(1).unwrap();
        let network = switch.create_network(&NetworkSpec::default()).unwrap();
        Lab {
            switch,
            worker: workers[0].clone(),
            network,
        }
    }

    fn port(&self, vlan: VlanMode) -> Arc<PortHandle> {
        let policy = PortPolicy {
            vlan,
            ..PortPolicy::default()
        };
        let port = self.switch.add_port(policy, None).unwrap();
        port.connect(self.network).unwrap();
        port
    }

    fn guest(&self, mac: [u8; 6], vlan: VlanMode) -> (Guest, Arc<PortHandle>) {
        let mut guest = Guest::new(Mac(mac)).unwrap();
        let port = self.port(vlan);
        port.attach(guest.open_port().unwrap());
        (guest, port)
    }

    /// A guest whose driver is up, and has told the switch where it is.
    fn linux(&self, mac: [u8; 6]) -> (Guest, Rings, Arc<PortHandle>) {
        let (mut guest, port) = self.guest(mac, VlanMode::None);
        let mut rings = guest.up(mac).unwrap();
        assert!(rings.send(&mut guest, &frame([0xff; 6], mac, 60)).unwrap());
        self.turn();
        (guest, rings, port)
    }

    fn station(&self) -> (Station, Arc<PortHandle>) {
        let port = self.port(VlanMode::None);
        let (sides, station) = MemoryPort::default().open().unwrap();
        port.attach(sides);
        (station, port)
    }

    fn turn(&self) {
        self.worker.lock().unwrap().poll(0);
    }
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
fn linux_to_linux() {
    let lab = Lab::new();
    let (mut a, mut rings_a, port_a) = lab.linux(A);
    let (mut b, mut rings_b, port_b) = lab.linux(B);
    lab.turn();
    while rings_a.receive(&a).unwrap().is_some() {}
    for round in 0..1000usize {
        let len = 60 + round * 7 % 1455;
        let (there, back) = (frame(B, A, len), frame(A, B, 1514 - round % 1400));
        assert!(rings_a.send(&mut a, &there).unwrap());
        assert!(rings_b.send(&mut b, &back).unwrap());
        lab.turn();
        assert_eq!(rings_b.receive(&b).unwrap(), Some(there), "round {round}");
        assert_eq!(rings_a.receive(&a).unwrap(), Some(back), "round {round}");
    }
    assert_eq!(rings_a.errors + rings_b.errors, 0);
    balanced(&[&port_a, &port_b]);
    // Interrupts came, and are gone once acknowledged.
    assert!(a.interrupts() > 0);
    let csr5 = a.csr(5);
    assert_eq!(
        csr5 & (status::RI | status::TI | status::NIS),
        status::RI | status::TI | status::NIS
    );
    a.set_csr(5, csr5 & 0x1_ffff);
    assert!(!a.line);
}

#[test]
fn a_driver_goes_down_and_up_in_mid_traffic() {
    let lab = Lab::new();
    let (mut a, mut rings, port) = lab.linux(A);
    let (station, from) = lab.station();
    for round in 0..50 {
        for _ in 0..300 {
            station.send(&frame(A, C, 200));
        }
        for _ in 0..5 {
            rings.send(&mut a, &frame(C, A, 100)).unwrap();
            lab.turn();
        }
        assert!(a.down(|| lab.turn()), "round {round}");
        for _ in 0..20 {
            lab.turn();
        }
        rings = a.up(A).unwrap();
        lab.turn();
        assert_eq!(rings.receive(&a).unwrap(), None, "nothing of before");
        while station.discard() {}
        for _ in 0..20 {
            lab.turn();
            while rings.receive(&a).unwrap().is_some() {}
        }
        station.send(&frame(A, C, 99));
        lab.turn();
        assert_eq!(
            rings.receive(&a).unwrap(),
            Some(frame(A, C, 99)),
            "round {round}"
        );
    }
    assert!(port.counters().rx.drops.get(DropReason::RxNotReady) > 0);
    balanced(&[&port, &from]);
}

#[test]
fn ipxe_boots_through_it() {
    let lab = Lab::new();
    let (mut guest, _port) = lab.guest(A, VlanMode::None);
    let (station, _) = lab.station();
    assert_eq!(guest.srom_mac(), A);
    assert_eq!(guest.mdio_read(1, 1) & 4, 4, "link");
    // Polled: no interrupt is enabled. Four receive descriptors, one to transmit.
    guest.set_csr(0, 1);
    guest.set_csr(0, 0);
    let rx = vnic_legacy::driver::BASE + 0x9000;
    let buffers = vnic_legacy::driver::BASE + 0x4_0000;
    for index in 0..4u32 {
        let end = if index == 3 { 1 << 25 } else { 0 };
        guest
            .describe(
                rx + 16 * index,
                [1 << 31, 1536 | end, buffers + 1536 * index, 0],
            )
            .unwrap();
    }
    guest.set_csr(3, rx);
    guest.set_csr(6, CSR6 | mode::PM);
    let setup = vnic_legacy::driver::ring::perfect(&[A]);
    let list = vnic_legacy::driver::BASE + 0xa000;
    guest.put(list + 0x100, &setup).unwrap();
    guest
        .describe(list, [1 << 31, 0x0a00_00c0, list + 0x100, 0])
        .unwrap();
    guest.set_csr(4, list);
    guest.set_csr(6, CSR6 | mode::PM | mode::ST);
    guest.set_csr(1, 0);
    for _ in 0..10 {
        lab.turn();
    }
    assert_eq!(guest.word(list).unwrap(), 0x7fff_ffff);
    guest.set_csr(6, CSR6 | mode::PM | mode::SR);
    for round in 0..200usize {
        let request = frame([0xff; 6], A, 60 + round);
        assert!(
            guest.send_and_wait(&request, || lab.turn()).unwrap(),
            "round {round}"
        );
        assert_eq!(station.receive().unwrap().frame, request);
        let answer = frame(A, C, 1514 - round);
        assert!(station.send(&answer));
        lab.turn();
        let index = round as u32 % 4;
        let word = guest.word(rx + 16 * index).unwrap();
        assert_eq!(word & 0x8000_8300, 0x300, "round {round}");
        assert_eq!((word >> 16 & 0x3fff) as usize, answer.len() + 4);
        let bytes = guest.get(buffers + 1536 * index, answer.len()).unwrap();
        assert_eq!(bytes, answer);
        guest.set_word(rx + 16 * index, 1 << 31).unwrap();
    }
    assert_eq!(guest.interrupts(), 0);
}

/// The one's complement sum of 16-bit words.
fn sum(bytes: &[u8]) -> u32 {
    let sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum();
    (sum & 0xffff) + (sum >> 16)
}

#[test]
fn large_frames_are_cut_and_checksums_filled_in_before_it() {
    let lab = Lab::new();
    let (a, mut rings, _port) = lab.linux(A);
    let (station, from) = lab.station();
    let payload: Vec<u8> = (0..10_000u32).map(|at| (at * 31) as u8).collect();
    let mut large = [&A[..], &C, &[8, 0, 0x45, 0]].concat();
    large.extend((40 + payload.len() as u16).to_be_bytes());
    large.extend([0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    large.extend([
        0, 80, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0,
    ]);
    // The header's own checksum, and of TCP's the part of the pseudo header.
    let header = !(sum(&large[14..34]) as u16);
    large[24..26].copy_from_slice(&header.to_be_bytes());
    let pseudo = sum(&large[26..34]) + 6 + 20 + payload.len() as u32;
    let pseudo = ((pseudo & 0xffff) + (pseudo >> 16)) as u16;
    large[50..52].copy_from_slice(&pseudo.to_be_bytes());
    large.extend(&payload);
    let request = Request {
        csum: Some(CsumAt {
            start: 34,
            offset: 16,
        }),
        gso: Gso::Tcp4 {
            mss: 1460,
            ecn: false,
        },
        ..Request::default()
    };
    assert!(station.send_with(&large, request));
    lab.turn();
    let mut received: Vec<u8> = Vec::new();
    while let Some(segment) = rings.receive(&a).unwrap() {
        assert!(segment.len() <= 1514);
        // The IPv4 header sums up; so does TCP with its pseudo header.
        assert_eq!(sum(&segment[14..34]) % 0xffff, 0);
        let tcp_len = segment.len() as u32 - 34;
        assert_eq!((sum(&segment[26..]) + 6 + tcp_len) % 0xffff, 0);
        received.extend(&segment[54..]);
    }
    assert_eq!(received, payload);
    // One that cannot be cut is dropped by name.
    assert!(station.send(&frame(A, C, 3000)));
    lab.turn();
    assert_eq!(from.counters().tx.drops.get(DropReason::Mtu), 1);
    assert_eq!(rings.receive(&a).unwrap(), None);
}

#[test]
fn a_vlan_is_on_the_port_and_not_in_the_guest() {
    let lab = Lab::new();
    let mut guests = Vec::new();
    for (mac, vlan) in [(A, 10), (B, 10), (C, 20)] {
        let (mut guest, _) = lab.guest(mac, VlanMode::Access(vlan));
        let rings = guest.up(mac).unwrap();
        lab.turn();
        guests.push((guest, rings));
    }
    let sent = frame([0xff; 6], A, 100);
    let (guest, rings) = &mut guests[0];
    assert!(rings.send(guest, &sent).unwrap());
    lab.turn();
    let (b, rings_b) = &mut guests[1];
    assert_eq!(rings_b.receive(b).unwrap(), Some(sent));
    let (c, rings_c) = &mut guests[2];
    assert_eq!(rings_c.receive(c).unwrap(), None);
}
