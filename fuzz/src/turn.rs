//! Whole turns of a worker over memory ports: any frames from several stations, whatever their VLANs, MTUs and features.
//!
//! Input: how many ports, a description of each, then actions until it ends. What must hold afterwards: every frame is
//! accounted for, and nobody received anything in a shape that it did not agree to.

use std::sync::Arc;

use offload::parse::parse;
use offload::{CsumAt, Features, Gso, Network, Request, Transport};
use vswitch::fdb::{Fdb, PortIndex};
use vswitch::network::{MAX_MTU, MIN_MTU, NetworkId, NetworkView, PortPolicy, PortView};
use vswitch::port::TxSide;
use vswitch::ports::memory::{MemoryPort, Received, Station};
use vswitch::slot::{PortId, PortSlot};
use vswitch::turn::{Membership, Turn};
use vswitch::vlan::{Egress, VlanMode};

use crate::input::Input;

struct Port {
    slot: Arc<PortSlot>,
    tx: Box<dyn TxSide>,
    station: Station,
    features: Features,
    received: u64,
}

struct Lab {
    ports: Vec<Port>,
    view: Arc<NetworkView>,
    turn: Turn,
    now: u32,
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut lab = Lab::new(&mut input);
    while !input.is_empty() {
        lab.act(&mut input);
    }
    (0..lab.ports.len()).for_each(|port| lab.turn(port));
    (0..lab.ports.len()).for_each(|port| lab.receive(port));
    lab.check();
}

fn policy(input: &mut Input<'_>) -> PortPolicy {
    let bits = input.u8();
    PortPolicy {
        vlan: input.vlan(),
        mac_guard: (bits & 3 == 3).then(|| vec![input.mac(), input.mac()]),
        mtu: match bits >> 2 & 3 {
            0 => 1500,
            1 => MIN_MTU,
            2 => MAX_MTU,
            _ => input.u16().clamp(MIN_MTU, MAX_MTU),
        },
        link_up: bits & 0x30 != 0x30,
        mac_quota: if bits & 0x40 != 0 { 1 } else { 100 },
    }
}

impl Lab {
    fn new(input: &mut Input<'_>) -> Lab {
        let count = 2 + u64::from(input.u8() % 4);
        let mut ports = Vec::new();
        let mut views = Vec::new();
        for index in 0..count {
            let policy = policy(input);
            let features = input.features();
            let open = MemoryPort {
                depth: 4,
                buffer: input.choose(&[2048, 16 * 1024, 68 * 1024]),
                features,
            };
            let (sides, station) = open.open().expect("memory");
            let slot = Arc::new(PortSlot::new(PortId(index)).expect("eventfd"));
            slot.set_rx(Some(sides.rx));
            views.push(Some(Arc::new(PortView {
                slot: slot.clone(),
                policy,
            })));
            ports.push(Port {
                slot,
                tx: sides.tx,
                station,
                features,
                received: 0,
            });
        }
        let fdb = Arc::new(Fdb::new(1024, 300, 1).expect("memory"));
        for (index, view) in views.iter().flatten().enumerate() {
            fdb.set_quota(index as PortIndex, view.policy.mac_quota);
        }
        let mut turn = Turn::new();
        turn.make_room(views.len());
        Lab {
            ports,
            view: Arc::new(NetworkView {
                id: NetworkId(1),
                fdb,
                ports: views,
            }),
            turn,
            now: 0,
        }
    }

    fn act(&mut self, input: &mut Input<'_>) {
        let action = input.u8();
        let port = usize::from(action >> 4) % self.ports.len();
        match action & 15 {
            0..8 => {
                let (frame, request) = frame(input);
                self.ports[port].station.send_with(&frame, request);
            }
            8..12 => self.turn(port),
            12..14 => self.receive(port),
            14 => self.now += u32::from(input.u8()) * 4,
            _ => self.view.fdb.flush_port(port as PortIndex),
        }
    }

    fn turn(&mut self, index: usize) {
        let membership = Membership {
            view: self.view.clone(),
            index: index as PortIndex,
        };
        let Port { slot, tx, .. } = &mut self.ports[index];
        self.turn.run(&mut **tx, slot, Some(&membership), self.now);
    }

    fn receive(&mut self, index: usize) {
        let policy = &self
            .view
            .port(index as PortIndex)
            .expect("it is there")
            .policy;
        let port = &mut self.ports[index];
        while let Some(received) = port.station.receive() {
            port.received += 1;
            agreed(&received, policy, &port.features);
        }
    }

    /// Conservation, per port and between them.
    fn check(&self) {
        let (mut sent, mut got) = (0, 0);
        for port in &self.ports {
            let counters = port.slot.counters();
            let tx = &counters.tx;
            assert_eq!(
                tx.frames + tx.extra_copies,
                tx.delivered + tx.consumed + tx.dropped(),
                "{tx:?}"
            );
            assert_eq!(counters.rx.frames, port.received);
            assert_eq!(port.slot.fault(), None);
            sent += tx.delivered;
            got += counters.rx.frames;
        }
        assert_eq!(sent, got);
    }
}

/// A frame is in a shape that its port agreed to.
fn agreed(received: &Received, policy: &PortPolicy, features: &Features) {
    let (frame, request) = (&received.frame, received.meta.request);
    assert!(policy.link_up);
    let headers = parse(frame, frame.len() as u32);
    let vid = headers.tag.map_or(0, |tag| tag.vid());
    match &policy.vlan {
        VlanMode::None | VlanMode::Access(_) => {
            assert_eq!(headers.tag, None, "tag on {:?}", policy.vlan)
        }
        trunk if headers.tag.is_some() => {
            assert_eq!(trunk.egress(vid), Some(Egress::Tagged), "VLAN {vid}")
        }
        VlanMode::Trunk { native, .. } => assert!(
            native.is_some(),
            "untagged on a trunk without a native VLAN"
        ),
    }
    let packet = frame.len() - usize::from(headers.l2_len);
    if let Some(at) = request.csum {
        assert!(features.csum, "partial checksum");
        assert!(at.field() + 2 <= frame.len());
    }
    assert!(features.csum || !request.csum_valid);
    let (mss, ecn) = match request.gso {
        Gso::None => {
            // A large one whose checksum was completed shows it no more.
            let filled = !features.csum
                && matches!(headers.transport, Transport::Tcp { .. })
                && match headers.network {
                    Network::V4 { .. } => features.tso4,
                    _ => features.tso6,
                };
            assert!(
                packet <= policy.mtu.into() || filled,
                "{packet} bytes for an MTU of {}",
                policy.mtu
            );
            return;
        }
        Gso::Tcp4 { mss, ecn } => {
            assert!(features.tso4 && matches!(headers.network, Network::V4 { .. }));
            (mss, ecn)
        }
        Gso::Tcp6 { mss, ecn } => {
            assert!(features.tso6 && matches!(headers.network, Network::V6 { .. }));
            (mss, ecn)
        }
    };
    assert!(features.ecn || !ecn);
    let Transport::Tcp {
        offset, header_len, ..
    } = headers.transport
    else {
        panic!("large and not TCP")
    };
    assert_eq!(
        request.csum,
        Some(CsumAt {
            start: offset,
            offset: CsumAt::TCP_OFFSET
        })
    );
    assert_eq!(received.meta.header_len, offset + header_len);
    assert!(offset + header_len - headers.l2_len + mss <= policy.mtu);
}

/// A frame and what its sender asks for: addresses, tags, then TCP, UDP or anything.
fn frame(input: &mut Input<'_>) -> (Vec<u8>, Request) {
    let shape = input.u8();
    let mut frame = [input.mac().0, input.mac().0].concat();
    for _ in 0..shape & 3 {
        let tpid = input.choose(&[0x8100u16, 0x8100, 0x8100, 0x88a8]);
        let tci = u16::from(input.u8());
        frame.extend(tpid.to_be_bytes());
        frame.extend(
            ((tci & 0xe0) << 8 | [0, 10, 11, 12, 13, 1, 4094, 4095][usize::from(tci & 7)])
                .to_be_bytes(),
        );
    }
    let (v6, tcp) = (shape & 4 != 0, shape & 8 != 0);
    if shape & 0x30 == 0x30 {
        let len = input.u8();
        frame.extend(input.bytes(len.into()));
        return (frame, request(input, 34, v6));
    }
    let len = usize::from(input.u16());
    let len = if shape & 0x40 != 0 { len } else { len % 2048 };
    let l4_len = len + if tcp { 20 } else { 8 };
    frame.extend(if v6 { [0x86, 0xdd] } else { [8, 0] });
    let protocol = if tcp { 6 } else { 17 };
    if v6 {
        frame.extend([0x60, 0, 0, 0]);
        frame.extend((l4_len as u16).to_be_bytes());
        frame.extend([protocol, 64]);
        frame.extend([0x11; 32]);
    } else {
        frame.extend([0x45, 0]);
        frame.extend((l4_len as u16).wrapping_add(20).to_be_bytes());
        frame.extend([0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    }
    let l4 = frame.len() as u16;
    frame.extend([0x30, 0x39, 0, 80]);
    if tcp {
        frame.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, input.u8(), 1, 0, 0, 0, 0, 0]);
    } else {
        frame.extend((l4_len as u16).to_be_bytes());
        frame.extend([0, 0]);
    }
    frame.extend((0..len).map(|at| at as u8));
    if shape & 0x80 != 0 {
        let at = usize::from(input.u8()) % frame.len();
        frame[at] = input.u8();
    }
    (frame, request(input, l4, v6))
}

fn request(input: &mut Input<'_>, l4: u16, v6: bool) -> Request {
    let bits = input.u8();
    let at = CsumAt {
        start: l4,
        offset: if bits & 4 != 0 { 16 } else { 6 },
    };
    let csum = match bits & 3 {
        0 => None,
        3 => Some(CsumAt {
            start: input.u16(),
            offset: input.u8().into(),
        }),
        _ => Some(at),
    };
    let (mss, ecn) = (
        if bits & 0x38 != 0 { input.u16() } else { 0 },
        bits & 8 != 0,
    );
    let gso = match bits >> 4 & 3 {
        0 => Gso::None,
        1 if v6 => Gso::Tcp6 { mss, ecn },
        1 => Gso::Tcp4 { mss, ecn },
        2 => Gso::Tcp4 { mss, ecn },
        _ => Gso::Tcp6 { mss, ecn },
    };
    Request {
        csum,
        gso,
        csum_valid: bits & 0x40 != 0,
    }
}
