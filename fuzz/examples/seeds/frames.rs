//! Frames, as a library builds them.

use etherparse::{PacketBuilder, PacketBuilderStep};

use crate::MACS;

fn ethernet() -> PacketBuilderStep<etherparse::Ethernet2Header> {
    PacketBuilder::ethernet2(MACS[0], MACS[1])
}

pub(crate) fn tcp4(payload: usize) -> Vec<u8> {
    let builder = ethernet()
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(40_000, 5201, 1, 65_535)
        .ack(1)
        .psh();
    built(|out| builder.write(out, &vec![7; payload]))
}

pub(crate) fn tcp6(payload: usize) -> Vec<u8> {
    let builder = ethernet()
        .ipv6([0xfe; 16], [0xfd; 16], 64)
        .tcp(40_000, 5201, 1, 65_535)
        .ack(1);
    built(|out| builder.write(out, &vec![7; payload]))
}

fn built<E: std::fmt::Debug>(write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Vec<u8> {
    let mut frame = Vec::new();
    write(&mut frame).expect("a vector takes all");
    frame
}

pub(crate) fn frames() -> Vec<(&'static str, Vec<u8>)> {
    let payload = b"payload";
    let udp = ethernet()
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .udp(53, 4000);
    let udp = built(|out| udp.write(out, payload));
    let tagged = ethernet().single_vlan(etherparse::VlanId::try_new(10).expect("below 4096"));
    let tagged = tagged.ipv6([0xfe; 16], [0xfd; 16], 64).udp(53, 4000);
    let double = ethernet().double_vlan(
        etherparse::VlanId::try_new(10).expect("below 4096"),
        etherparse::VlanId::try_new(20).expect("below 4096"),
    );
    let double = double
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(1, 2, 3, 4);
    let arp = etherparse::ArpPacket::new(
        etherparse::ArpHardwareId::ETHERNET,
        etherparse::EtherType::IPV4,
        etherparse::ArpOperation::REQUEST,
        &MACS[0],
        &[10, 0, 0, 1],
        &[0; 6],
        &[10, 0, 0, 2],
    );
    let ping = ethernet()
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .icmpv4_echo_request(1, 2);
    vec![
        ("tcp4", tcp4(20)),
        ("tcp6", tcp6(20)),
        ("udp4-unfinished", unfinished(udp.clone())),
        ("udp4", udp),
        ("tagged", built(|out| tagged.write(out, payload))),
        ("double", built(|out| double.write(out, payload))),
        (
            "arp",
            built(|out| {
                ethernet()
                    .arp(arp.expect("lengths of Ethernet and IPv4"))
                    .write(out)
            }),
        ),
        ("ping", built(|out| ping.write(out, payload))),
        ("extensions", extensions(0, 0)),
        ("fragment", extensions(0, 1)),
        ("solicitation", extensions(58, 0)),
    ]
}

/// The UDP checksum as senders leave it to hardware: the sum of the pseudo header.
fn unfinished(mut frame: Vec<u8>) -> Vec<u8> {
    let mut pseudo = frame[26..34].to_vec();
    pseudo.extend([0, 17]);
    pseudo.extend(((frame.len() - 34) as u16).to_be_bytes());
    let mut sum = offload::Sum::new();
    sum.add_bytes(&pseudo);
    frame[40..42].copy_from_slice(&sum.fold().to_be_bytes());
    frame
}

/// IPv6 with hop-by-hop, destination and fragment headers, then UDP or a neighbour solicitation.
fn extensions(next: u8, fragment: u8) -> Vec<u8> {
    let last = if next == 0 { 17 } else { next };
    let mut frame = [&MACS[0][..], &MACS[1], &[0x86, 0xdd]].concat();
    frame.extend([0x60, 0, 0, 0, 0, 48, 0, 255]);
    frame.extend([0xfe; 32]);
    frame.extend([60, 0, 1, 4, 0, 0, 0, 0]);
    frame.extend([44, 0, 1, 4, 0, 0, 0, 0]);
    frame.extend([last, 0, 0, fragment, 0, 0, 0, 1]);
    frame.extend(if last == 58 {
        [135, 0, 0, 0, 0, 0, 0, 0]
    } else {
        [0, 53, 1, 0, 0, 24, 0, 0]
    });
    frame.extend([0xfe; 16]);
    frame
}
