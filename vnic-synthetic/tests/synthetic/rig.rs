//! A guest with a synthetic adapter and a station in memory on one network, and a worker that is polled by hand.

use std::sync::Arc;

use offload::checksum::{Sum, pseudo_v4, pseudo_v6};
use offload::{CsumAt, Features};
use vnic_synthetic::driver::host::Host;
use vnic_synthetic::driver::{Guest, Received, Setup};
use vswitch::control::{NetworkSpec, PortHandle, SteppedWorker, Switch};
use vswitch::drops::DropReason;
use vswitch::mac::Mac;
use vswitch::network::PortPolicy;
use vswitch::port::PortControl;
use vswitch::ports::memory::{MemoryPort, Station};
use vswitch::vlan::VlanMode;

pub(crate) const GUEST: Mac = Mac([2, 0, 0, 0, 0, 1]);
pub(crate) const PEER: Mac = Mac([2, 0, 0, 0, 0, 2]);

pub(crate) struct Rig {
    pub(crate) guest: Guest,
    pub(crate) port: Arc<PortHandle>,
    pub(crate) peer: Arc<PortHandle>,
    pub(crate) station: Station,
    /// Holds the ports.
    _switch: Switch,
    worker: SteppedWorker,
}

/// The rig to make.
pub(crate) struct Make {
    pub(crate) setup: Setup,
    pub(crate) vlan: VlanMode,
    pub(crate) mtu: u16,
    /// Of the station.
    pub(crate) features: Features,
}

impl Default for Make {
    fn default() -> Make {
        Make {
            setup: Setup::linux(),
            vlan: VlanMode::None,
            mtu: 1500,
            features: Features::default(),
        }
    }
}

impl Make {
    pub(crate) fn rig(self) -> Rig {
        let (switch, workers) = Switch::stepped(1).unwrap();
        let network = switch.create_network(&NetworkSpec::default()).unwrap();
        let (guest, sides) = Guest::ready(self.setup);
        let (others, station) = MemoryPort {
            features: self.features,
            ..MemoryPort::default()
        }
        .open()
        .unwrap();
        let attach = |sides, vlan| {
            let policy = PortPolicy {
                vlan,
                mtu: self.mtu,
                ..PortPolicy::default()
            };
            let port = switch.add_port(policy, None).unwrap();
            assert!(port.attach(sides).is_none());
            port.connect(network).unwrap();
            port
        };
        let port = attach(sides, self.vlan.clone());
        let peer = attach(others, self.vlan);
        Rig {
            guest,
            port,
            peer,
            station,
            _switch: switch,
            worker: workers[0].clone(),
        }
    }
}

impl Rig {
    pub(crate) fn new(setup: Setup) -> Rig {
        Make {
            setup,
            ..Make::default()
        }
        .rig()
    }

    /// Saves bus and adapter as text, and goes on with new ones that read it.
    pub(crate) fn save_and_restore(&mut self) {
        drop(self.port.detach());
        let text = serde_json::to_string(&self.guest.host.save()).unwrap();
        let state = serde_json::from_str(&text).unwrap();
        let memory = self.guest.memory().clone();
        self.guest.host = Host::restore(memory, self.guest.config(), &state);
        assert_eq!(self.guest.host.save(), state);
        self.port.attach(self.guest.host.adapter.sides());
    }

    /// The switch's process ends without a word, and another goes on with what the driver is known to have negotiated.
    pub(crate) fn kill_and_restore(&mut self) {
        drop(self.port.detach());
        let host = &self.guest.host;
        let state = (host.bus.save(), host.adapter.negotiated());
        let memory = self.guest.memory().clone();
        self.guest.host = Host::restore(memory, self.guest.config(), &state);
        self.port.attach(self.guest.host.adapter.sides());
    }

    /// Some turns of the worker and of the driver.
    pub(crate) fn turn(&mut self) {
        for _ in 0..4 {
            self.worker.lock().unwrap().poll(0);
            self.guest.poll();
        }
    }

    pub(crate) fn worker_turn(&self) {
        self.worker.lock().unwrap().poll(0);
    }

    /// Sets an object while the port runs.
    pub(crate) fn set(&mut self, oid: u32, value: &[u8]) -> u32 {
        let worker = self.worker.clone();
        let mut step = || {
            worker.lock().unwrap().poll(0);
        };
        self.guest.set(&mut step, oid, value)
    }

    pub(crate) fn open_sub_channels(&mut self, count: u32) -> usize {
        let worker = self.worker.clone();
        let mut step = || {
            worker.lock().unwrap().poll(0);
        };
        self.guest.open_sub_channels(&mut step, count)
    }

    pub(crate) fn query(&mut self, oid: u32, asked: &[u8]) -> (u32, Vec<u8>) {
        let worker = self.worker.clone();
        let mut step = || {
            worker.lock().unwrap().poll(0);
        };
        self.guest.query(&mut step, oid, asked)
    }

    /// Frames the station received since it was last asked.
    pub(crate) fn at_station(&mut self) -> Vec<Vec<u8>> {
        self.turn();
        self.received()
    }

    /// The same without a turn.
    pub(crate) fn received(&mut self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.station.receive())
            .map(|received| received.frame)
            .collect()
    }

    /// Frames the guest received since it was last asked.
    pub(crate) fn at_guest(&mut self) -> Vec<Received> {
        self.turn();
        self.guest.received.drain(..).collect()
    }

    /// Every frame is accounted for, nothing is faulted, and the guest was answered everything.
    pub(crate) fn balanced(&mut self) {
        self.turn();
        for port in [&self.port, &self.peer] {
            let tx = port.counters().tx;
            assert_eq!(
                tx.frames + tx.extra_copies,
                tx.delivered + tx.consumed + tx.dropped(),
                "{tx:?}"
            );
            assert_eq!(port.fault(), None);
        }
        assert_eq!(self.guest.outstanding(), 0, "unanswered packets");
    }

    /// Copies from the guest that were dropped for `reason`.
    pub(crate) fn dropped(&self, reason: DropReason) -> u64 {
        self.port.counters().tx.drops.get(reason)
    }
}

/// TCP of `payload` bytes from the guest to its peer, with right checksums.
pub(crate) fn tcp(v6: bool, payload: usize) -> Vec<u8> {
    transport(v6, 6, payload)
}

pub(crate) fn udp(v6: bool, payload: usize) -> Vec<u8> {
    transport(v6, 17, payload)
}

fn transport(v6: bool, protocol: u8, payload: usize) -> Vec<u8> {
    let data = (0..payload).map(|i| (i * 7 + i / 251) as u8);
    let mut segment = vec![0x30, 0x39, 0, 80];
    match protocol {
        6 => segment.extend([0, 0, 0, 1, 0, 0, 0, 9, 0x50, 0x18, 1, 0, 0, 0, 0, 0]),
        _ => segment.extend([&(8 + payload as u16).to_be_bytes()[..], &[0, 0]].concat()),
    }
    segment.extend(data);
    let len = segment.len();
    let (mut header, mut sum) = if v6 {
        let (from, to) = ([0xfd; 16], [0xfe; 16]);
        let mut header = vec![0x60, 0, 0, 0];
        header.extend((len as u16).to_be_bytes());
        header.extend([protocol, 64]);
        header.extend(from.iter().chain(&to));
        (header, pseudo_v6(from, to, protocol, len as u32))
    } else {
        let (from, to) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        let mut header = vec![0x45, 0];
        header.extend((20 + len as u16).to_be_bytes());
        header.extend([0, 1, 0, 0, 64, protocol, 0, 0]);
        header.extend(from.iter().chain(&to));
        (header, pseudo_v4(from, to, protocol, len as u16))
    };
    if !v6 {
        let mut of_header = Sum::new();
        of_header.add_bytes(&header);
        header[10..12].copy_from_slice(&of_header.checksum().to_be_bytes());
    }
    sum.add_bytes(&segment);
    let at = if protocol == 6 { 16 } else { 6 };
    segment[at..at + 2].copy_from_slice(&sum.checksum().to_be_bytes());
    let ethertype: [u8; 2] = if v6 { [0x86, 0xdd] } else { [8, 0] };
    [&PEER.0[..], &GUEST.0, &ethertype, &header, &segment].concat()
}

/// The same with the sum of the pseudo-header in place of the checksum, as drivers leave it to hardware; with
/// `length` it includes the length.
pub(crate) fn partial(frame: &[u8], length: bool) -> (Vec<u8>, CsumAt) {
    let mut frame = frame.to_vec();
    let v6 = frame[12] == 0x86;
    let (protocol, start) = if v6 { (frame[20], 54) } else { (frame[23], 34) };
    let offset = if protocol == 6 { 16 } else { 6 };
    let len = if length { frame.len() - start } else { 0 };
    let address = |at: usize| frame[at..at + 16].try_into().unwrap();
    let short = |at: usize| frame[at..at + 4].try_into().unwrap();
    let pseudo = match v6 {
        true => pseudo_v6(address(22), address(38), protocol, len as u32),
        false => pseudo_v4(short(26), short(30), protocol, len as u16),
    };
    let at = start + offset;
    frame[at..at + 2].copy_from_slice(&pseudo.fold().to_be_bytes());
    let at = CsumAt {
        start: start as u16,
        offset: offset as u16,
    };
    (frame, at)
}

/// A frame of `len` bytes of no known protocol.
pub(crate) fn frame(to: Mac, from: Mac, len: usize) -> Vec<u8> {
    let mut frame = [&to.0[..], &from.0, &[0x88, 0xb5]].concat();
    frame.extend((frame.len()..len).map(|i| i as u8));
    frame
}
