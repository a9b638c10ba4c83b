//! Frames in a row with the same Ethernet header are judged once. What is not in that header must still be seen of each:
//! requests, tags, lengths. The bursts go between vhost-user guests, so through the short way and beside it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use offload::VirtioNetHdr;
use vswitch::control::{NetworkSpec, Switch};
use vswitch::drops::DropReason;
use vswitch::network::{NetworkId, PortPolicy};
use vswitch::port::PortControl;
use vswitch::ports::vhost::driver::{Guest, Layout, Received, Setup};
use vswitch::ports::vhost::feature;
use vswitch::ports::vhost::session::{Offer, Session};

const TO: [u8; 6] = [2, 0, 0, 0, 0, 2];
const FROM: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A UDP datagram of `len` bytes whose checksum is right.
fn datagram(len: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(FROM, TO)
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .udp(1, 2)
        .write(&mut frame, &vec![0x5a; len])
        .unwrap();
    frame
}

/// The same with the checksum left to others: the field holds the sum of the pseudo-header.
fn unfinished(len: usize) -> (VirtioNetHdr, Vec<u8>) {
    let mut frame = datagram(len);
    let udp_len = (len + 8) as u32;
    let words = [0x0a00, 0x0001, 0x0a00, 0x0002, 17, udp_len];
    let sum: u32 = words.iter().sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    frame[40..42].copy_from_slice(&(sum as u16).to_be_bytes());
    let header = VirtioNetHdr {
        flags: VirtioNetHdr::NEEDS_CSUM,
        csum_start: 34,
        csum_offset: 6,
        ..VirtioNetHdr::default()
    };
    (header, frame)
}

fn checksum_is_right(received: &Received) -> bool {
    let packet = SlicedPacket::from_ethernet(&received.frame).unwrap();
    let Some(TransportSlice::Udp(udp)) = packet.transport else {
        return false;
    };
    let (source, destination) = ([10, 0, 0, 1], [10, 0, 0, 2]);
    udp.to_header()
        .calc_checksum_ipv4_raw(source, destination, udp.payload())
        .is_ok_and(|sum| sum == udp.checksum())
}

struct Plant {
    switch: Switch,
    network: NetworkId,
    kept: Vec<(std::sync::Arc<vswitch::control::PortHandle>, Session)>,
}

impl Plant {
    fn guest(&mut self, features: u64) -> Guest {
        let mut guest = Guest::new(Setup {
            features: feature::VERSION_1 | feature::PROTOCOL_FEATURES | features,
            ..Setup::default()
        })
        .unwrap();
        for ring in &mut guest.rings {
            ring.ring.disarm().unwrap();
        }
        let port = self.switch.add_port(PortPolicy::default(), None).unwrap();
        port.connect(self.network).unwrap();
        let mut session = Session::new(Offer {
            queue_pairs: 1,
            mtu: 9000,
        });
        port.attach(guest.start_in(&mut session).unwrap());
        self.kept.push((port, session));
        while guest.post_receive(0, 2048, &Layout::default()).unwrap() {}
        guest.publish(0).unwrap();
        guest
    }
}

/// Sends `frames` in one burst; what came out, and the counters' drops by MTU.
fn through(ring: u64, frames: &[(VirtioNetHdr, Vec<u8>)]) -> (Vec<Received>, u64) {
    let (switch, workers) = Switch::stepped(1).unwrap();
    let network = switch.create_network(&NetworkSpec::default()).unwrap();
    let mut plant = Plant {
        switch,
        network,
        kept: Vec::new(),
    };
    let mut sender = plant.guest(ring | feature::MRG_RXBUF | feature::CSUM);
    let mut receiver = plant.guest(ring | feature::MRG_RXBUF);
    for (header, frame) in frames {
        assert!(sender.send(0, header, frame, &Layout::default()).unwrap());
    }
    sender.publish(1).unwrap();
    let mut worker = workers[0].lock().unwrap();
    assert_eq!(worker.poll(1) as usize, frames.len());
    let mut received = Vec::new();
    while let Some(frame) = receiver.receive(0).unwrap() {
        received.push(frame);
    }
    let drops = plant.kept[0].0.counters().tx.drops;
    let too_long = drops
        .iter()
        .find(|(reason, _)| *reason == DropReason::Mtu)
        .map_or(0, |(_, count)| count);
    (received, too_long)
}

#[test]
fn a_request_in_the_middle_of_a_train_is_carried_out() {
    for ring in [0, feature::RING_PACKED] {
        let plain = (VirtioNetHdr::default(), datagram(100));
        let burst = [
            plain.clone(),
            unfinished(100),
            plain.clone(),
            unfinished(1200),
            plain,
        ];
        let (received, _) = through(ring, &burst);
        assert_eq!(received.len(), burst.len());
        for (index, frame) in received.iter().enumerate() {
            assert!(checksum_is_right(frame), "frame {index}");
            assert_eq!(frame.header.flags, 0, "frame {index}");
            assert_eq!(frame.header.num_buffers, 1, "frame {index}");
            assert_eq!(frame.frame.len(), burst[index].1.len(), "frame {index}");
        }
    }
}

#[test]
fn a_frame_too_long_in_the_middle_of_a_train_is_dropped_alone() {
    for ring in [0, feature::RING_PACKED] {
        let frame = |len| (VirtioNetHdr::default(), datagram(len));
        let burst = [frame(10), frame(1472), frame(1473), frame(1472), frame(10)];
        let (received, too_long) = through(ring, &burst);
        let lens: Vec<_> = received.iter().map(|frame| frame.frame.len()).collect();
        assert_eq!(lens, [52, 1514, 1514, 52]);
        assert_eq!(too_long, 1);
    }
}
