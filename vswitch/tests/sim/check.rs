//! What a poll must have done, from what was gathered in it; and what a guest must receive.

use etherparse::checksum::Sum16BitWords;
use offload::Features;
use offload::request::validate;
use vswitch::counters::Counts;
use vswitch::drops::DropReason;

use super::World;
use super::guest::{Gathered, Received, Record};
use super::shape::{self, Judged, Out};

/// Drops that depend on the destination's ring, or on memory that is gone.
const BY_RING: [DropReason; 4] = [
    DropReason::RxFull,
    DropReason::RxTooSmall,
    DropReason::RxFault,
    DropReason::SourceFault,
];

fn by_ring(counts: &Counts) -> u64 {
    BY_RING.iter().map(|reason| counts.drops.get(*reason)).sum()
}

impl World {
    /// Holds the counters against the model after a poll at second `now`. Frames taken.
    pub fn check_poll(&mut self, now: i64) -> u64 {
        let gathered = std::mem::take(&mut *self.log.lock().unwrap());
        let mut frames = 0;
        // Copies to wild ports: delivered or dropped, by port they came from.
        let mut loose = vec![0; self.ports.len()];
        for burst in &gathered {
            frames += burst.frames.len() as u64;
            self.ports[burst.port].wild |= burst.gone;
            let mut copies: Vec<Vec<(usize, Vec<Out>)>> = Vec::new();
            for record in &burst.frames {
                copies.push(self.judge(burst, record, now));
            }
            for (to, outs) in copies.into_iter().flatten() {
                self.expect(burst, to, outs, &mut loose);
            }
        }
        self.compare(&loose);
        frames
    }

    /// What becomes of one frame before any ring is looked at.
    fn judge(&mut self, burst: &Gathered, record: &Record, now: i64) -> Vec<(usize, Vec<Out>)> {
        let from = burst.port;
        let mut drop = |reason| {
            self.ports[from].tx.drops.add(reason, 1);
            Vec::new()
        };
        if self.configs[from].network.is_none() {
            return drop(DropReason::Disconnected);
        }
        if let Some(reason) = record.refused {
            return drop(reason);
        }
        assert!(
            (14..=65_557).contains(&record.len),
            "length {} was taken",
            record.len
        );
        if let Err(reason) = self.model.admit(&self.configs[from], &record.head) {
            return drop(reason);
        }
        let Ok(checked) = validate(&record.request, &record.head, record.len) else {
            return drop(DropReason::BadOffload);
        };
        let route = match self
            .model
            .route(&self.configs, from, &record.head, (now, self.ageing))
        {
            Ok(route) => route,
            Err(reason) => return drop(reason),
        };
        let bytes = [record.head.as_slice(), &record.body].concat();
        let frame = Judged {
            bytes,
            head: record.head.len(),
            checked,
        };
        self.ports[from].tx.extra_copies += route.to.len() as u64 - 1;
        let mut copies = Vec::new();
        for to in route.to {
            let config = &self.configs[to];
            let egress = config.vlans.egress(route.vid).unwrap();
            let mtu = usize::from(config.policy.mtu);
            let outs = if config.attached {
                shape::leave(
                    &frame,
                    (egress, route.vid),
                    self.ports[to].guest.features,
                    mtu,
                )
            } else if config.paused {
                Err(DropReason::Paused)
            } else {
                Err(DropReason::RxNotReady)
            };
            match outs {
                Ok(outs) => copies.push((to, outs)),
                Err(reason) => {
                    self.ports[from].tx.drops.add(reason, 1);
                    self.ports[to].rx.drops.add(reason, 1);
                }
            }
        }
        copies
    }

    /// The copies of one frame reach the ring of `to`: what does not fit is dropped, and what of the frame follows it.
    fn expect(&mut self, burst: &Gathered, to: usize, outs: Vec<Out>, loose: &mut [u64]) {
        let from = burst.port;
        let copies = outs.len() as u64;
        self.ports[from].tx.extra_copies += copies - 1;
        self.tally.cut += u64::from(copies > 1);
        if self.ports[to].wild {
            loose[from] += copies;
            return;
        }
        for (index, mut out) in outs.into_iter().enumerate() {
            let len = out.bytes.len();
            let mut room = self.ports[to].guest.room.clone();
            let fits = room.take(len);
            if !fits || (out.needs_body && burst.gone) {
                let reason = if fits {
                    DropReason::SourceFault
                } else {
                    DropReason::RxFull
                };
                let left = copies - index as u64;
                self.ports[from].tx.drops.add(reason, left);
                self.ports[to].rx.drops.add(reason, left);
                return;
            }
            // A checksum comes out right if the driver prepared it rightly.
            out.completed &= burst.honest;
            self.tally.completed += u64::from(out.completed);
            let port = &mut self.ports[to];
            port.guest.room = room;
            port.rx.frames += 1;
            port.rx.bytes += len as u64;
            port.expected.push_back(out);
            self.ports[from].tx.delivered += 1;
        }
    }

    fn compare(&mut self, loose: &[u64]) {
        for (index, port) in self.ports.iter_mut().enumerate() {
            let real = port.handle.counters();
            assert_eq!(
                real.tx.extra_copies, port.tx.extra_copies,
                "extra copies of port {index}"
            );
            for (side, real, want) in [("tx", &real.tx, &port.tx), ("rx", &real.rx, &port.rx)] {
                for &reason in DropReason::ALL
                    .iter()
                    .filter(|reason| !BY_RING.contains(reason))
                {
                    let (real, want) = (real.drops.get(reason), want.drops.get(reason));
                    assert_eq!(real, want, "{side} {} of port {index}", reason.name());
                }
            }
            if loose[index] == 0 {
                assert_eq!(
                    real.tx.delivered, port.tx.delivered,
                    "delivered from port {index}"
                );
            }
            let ends = |counts: &Counts| counts.delivered + by_ring(counts);
            assert_eq!(
                ends(&real.tx),
                ends(&port.tx) + loose[index],
                "copies from port {index}"
            );
            if !port.wild {
                assert_eq!(
                    real.rx.frames, port.rx.frames,
                    "frames to port {index}: {:?}\n{:?}\n{:?}",
                    real.rx, port.rx, port.guest.room
                );
                assert_eq!(real.rx.bytes, port.rx.bytes, "bytes to port {index}");
                assert_eq!(
                    real.rx.copied_bytes, real.rx.bytes,
                    "one copy to port {index}"
                );
                assert_eq!(
                    by_ring(&real.rx),
                    by_ring(&port.rx),
                    "no room at port {index}"
                );
            }
            (port.tx, port.rx) = (real.tx, real.rx);
        }
    }
}

/// Rules 1, 7 and 10: the very bytes, in order, in a shape that the guest agreed to.
pub fn received(
    (frame, request, header_len): &Received,
    expected: &Out,
    features: &Features,
    vhost: bool,
) {
    assert!(
        *frame == expected.bytes,
        "bytes differ: {:?}\n{:02x?}\n{:02x?}",
        expected.request,
        clip(frame),
        clip(&expected.bytes)
    );
    let want = if vhost {
        // As the virtio header can say it.
        offload::Request::from_virtio(&expected.request.to_virtio(0)).unwrap()
    } else {
        expected.request
    };
    assert_eq!(*request, want);
    if expected.header_len > 0 {
        assert_eq!(*header_len, expected.header_len);
    }
    let agreed = match request.gso {
        offload::Gso::None => request.csum.is_none() || features.csum,
        offload::Gso::Tcp4 { ecn, .. } => features.tso4 && features.csum && (!ecn || features.ecn),
        offload::Gso::Tcp6 { ecn, .. } => features.tso6 && features.csum && (!ecn || features.ecn),
    };
    assert!(agreed, "{request:?} was not agreed to: {features:?}");
    if expected.completed {
        checksum_is_right(frame);
    }
}

fn clip(bytes: &[u8]) -> &[u8] {
    bytes.get(..160).unwrap_or(bytes)
}

/// Of TCP and UDP, by an independent reader. Others are compared by bytes only.
fn checksum_is_right(frame: &[u8]) {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    let Ok(packet) = SlicedPacket::from_ethernet(frame) else {
        return;
    };
    let (Some(net), Some(transport)) = (&packet.net, &packet.transport) else {
        return;
    };
    let (protocol, segment) = match transport {
        TransportSlice::Tcp(tcp) => (6, tcp.slice()),
        TransportSlice::Udp(udp) => (17, udp.slice()),
        _ => return,
    };
    let sum = match net {
        NetSlice::Ipv4(ip) => Sum16BitWords::new()
            .add_4bytes(ip.header().source())
            .add_4bytes(ip.header().destination()),
        NetSlice::Ipv6(ip) => Sum16BitWords::new()
            .add_16bytes(ip.header().source())
            .add_16bytes(ip.header().destination()),
        NetSlice::Arp(_) => return,
    };
    let sum = sum
        .add_2bytes([0, protocol])
        .add_2bytes((segment.len() as u16).to_be_bytes())
        .add_slice(segment);
    assert_eq!(sum.ones_complement(), 0, "checksum of {:02x?}", clip(frame));
}
