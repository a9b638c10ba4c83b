//! Writes the seeds: `cargo run --manifest-path fuzz/Cargo.toml --example seeds`.
//!
//! They are real frames and messages in the form of each target's input, which its module describes. Without them a
//! fuzzer needs long to find what a valid header looks like.

use std::path::Path;

use etherparse::{PacketBuilder, PacketBuilderStep};
use offload::VirtioNetHdr;
use vnic_synthetic::driver::{Guest, Setup};

const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];

/// A message of each kind: who speaks and how many files come along, the name, the packet.
const ATTACH: &[(u8, &str, &str)] = &[
    (
        0,
        "hello",
        r#"{"hello":{"version":2,"name":"web","running":false}}"#,
    ),
    (
        8,
        "ready",
        r#"{"ready":{"regions":[{"guest":0,"len":655360,"offset":0}],"adapters":["legacy0"],"state":"running"}}"#,
    ),
    (
        0,
        "reply",
        r#"{"reply":{"id":7,"error":null,"status":{"state":"paused","exits":{"pio":3},"drivers":["legacy0"],"services":["heartbeat"],"facts":{"OSName":"Linux"}}}}"#,
    ),
    (0, "was-reset", r#"{"was_reset":{}}"#),
    (
        0,
        "ended",
        r#"{"ended":{"failed":{"reason":"a triple fault"}}}"#,
    ),
    (
        5,
        "configure",
        r#"{"configure":{"memory":67108864,"cpus":1,"cmdline":"quiet","uuid":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15],"adapters":[{"name":"legacy0","mac":[2,0,0,0,0,1],"link":true,"instance":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15]}],"hyperv":true,"services":["time-sync"],"files":["kernel","com1"]}}"#,
    ),
    (1, "adopt", r#"{"adopt":{}}"#),
    (3, "save", r#"{"command":{"id":9,"command":"save"}}"#),
    (
        1,
        "link",
        r#"{"command":{"id":9,"command":{"link":{"adapter":"legacy0","up":false}}}}"#,
    ),
    (
        1,
        "keep",
        r#"{"command":{"id":0,"command":{"keep":{"adapter":"synthetic0","state":"[]"}}}}"#,
    ),
    (1, "done", r#"{"done":{"id":4,"ok":true}}"#),
    (
        0,
        "add",
        r#"{"demand":{"id":4,"adapter":"synthetic0","demand":{"add":{"gpadl":1,"range":{"offset":8,"len":8192,"pages":[7,9,8]}}}}}"#,
    ),
    (
        2,
        "open",
        r#"{"demand":{"id":5,"adapter":"synthetic7","demand":{"open":{"channel":1,"ring":{"offset":0,"len":8192,"pages":[1,2]},"downstream_page":1,"flags":[{"address":12800,"bit":3}],"resumed":false}}}}"#,
    ),
    (
        0,
        "restore",
        r#"{"demand":{"id":6,"adapter":"synthetic7","demand":{"restore":{"state":"{}"}}}}"#,
    ),
    (
        0,
        "crashed",
        r#"{"crashed":{"parameters":[80,1,2,3,4],"message":"a kernel panic"}}"#,
    ),
];

fn main() -> std::io::Result<()> {
    for (first, name, packet) in ATTACH {
        write(
            "attach_messages",
            name,
            &[&[*first], packet.as_bytes()].concat(),
        )?;
    }
    for (name, frame) in frames() {
        write("headers", name, &[&[0xf3, 0, 0], frame.as_slice()].concat())?;
    }
    for (name, csum_start, gso_type, frame) in [
        ("tso4", 34, VirtioNetHdr::GSO_TCPV4, tcp4(74)),
        ("tso6", 54, VirtioNetHdr::GSO_TCPV6, tcp6(54)),
        (
            "tso6-ecn",
            54,
            VirtioNetHdr::GSO_TCPV6 | VirtioNetHdr::GSO_ECN,
            tcp6(54),
        ),
        ("csum", 34, VirtioNetHdr::GSO_NONE, tcp4(20)),
    ] {
        for features in [0, 0xf] {
            let header = VirtioNetHdr {
                flags: VirtioNetHdr::NEEDS_CSUM,
                gso_type,
                hdr_len: csum_start + 20,
                gso_size: 1448,
                csum_start,
                csum_offset: 16,
                num_buffers: 0,
            };
            let large = if gso_type == VirtioNetHdr::GSO_NONE {
                0u16
            } else {
                9000
            };
            let front = [
                &[features, 2],
                &1500u16.to_le_bytes()[..],
                &large.to_le_bytes(),
                &header.to_bytes(),
            ]
            .concat();
            write(
                "offload_request",
                &format!("{name}-{features}"),
                &[front, frame.clone()].concat(),
            )?;
        }
    }
    for (name, vlans) in [
        ("plain", [0, 0, 0]),
        ("access", [0x01, 0x01, 0x05]),
        ("trunk", [0x01, 0x3a, 0x3e]),
    ] {
        write("turn", name, &turn(vlans))?;
    }
    for target in ["split_ring", "packed_ring"] {
        for (name, how) in [
            ("plain", 2),
            ("events", 0x12),
            ("indirect", 0x0a),
            ("in-order", 0x22),
            ("raw", 0x29),
        ] {
            write(target, name, &ring(how))?;
        }
    }
    for (target, name, actions) in legacy() {
        write(target, name, &actions)?;
    }
    for (name, socket, features) in [
        ("split", 0, 0),
        ("packed", 0, 1),
        ("socket", 1, 0x3f),
        ("log", 0, 0x40),
    ] {
        write("vhost_messages", name, &vhost(socket, features))?;
    }
    for (name, how, operations) in platform() {
        write("platform", name, &[vec![how], operations].concat())?;
    }
    for (name, kind) in [("shutdown", 0), ("heartbeat", 1), ("time", 2), ("pairs", 3)] {
        write("integration_services", name, &service(kind))?;
    }
    for (name, first, state) in saved_states()? {
        write(
            "saved_states",
            name,
            &[&[first], state.to_string().as_bytes()].concat(),
        )?;
    }
    write("vmbus_messages", "life", VMBUS_LIFE)?;
    for (name, bits) in [("linux", 2), ("boot-loader", 1)] {
        write("synthetic_port", name, &synthetic(bits))?;
    }
    for (number, name, body) in BODIES {
        write("api_bodies", name, &[&[number], body.as_bytes()].concat())?;
    }
    Ok(())
}

/// What drivers do to a legacy adapter.
fn legacy() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let csr = |n: u8, value: u32| [&[0x0a, 8 * n][..], &value.to_le_bytes()].concat();
    let clock = |pins: &[u32]| {
        pins.iter()
            .flat_map(|pin| csr(9, *pin))
            .collect::<Vec<u8>>()
    };
    let (low, high) = (0x4801u32, 0x4803);
    let (zero, one) = ([low, high, low], [low | 4, high | 4, low | 4]);
    // Read of the serial ROM's word 10: start, 10, 001010, then data.
    let bits = [1, 1, 0, 0, 0, 1, 0, 1, 0].map(|bit| if bit == 1 { one } else { zero });
    let rom = [
        clock(&[0x4800, low]),
        clock(&bits.concat()),
        clock(&zero.repeat(16)),
        vec![0xf0],
    ];
    // Read of the PHY's register 1.
    let mdio = |bit: u32| [bit << 17, bit << 17 | 1 << 16];
    let header = [1, 1, 0, 1, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1].map(mdio);
    let phy = [
        clock(&header.concat()),
        clock(&[0x4_0000, 0x5_0000].repeat(5)),
        vec![0xf0],
    ];
    let timer = [
        csr(6, 0x4_0000),
        csr(7, 0x1_0800),
        csr(11, 0x1_0002),
        vec![0xc0, 0, 0, 1, 0],
        csr(5, 0x800),
    ];
    // A frame to send, two receive descriptors, start, and a turn with deliveries between.
    let rings = [
        &[0, 32, 0xe0, 0x40, 0x00, 8][..],
        &[0, 0, 0xec, 0, 6, 9],
        &[0, 1, 0xec, 0, 6, 10],
        &[0x80, 0x40, 0, 0, 0, 1, 0x40, 0x60, 2, 60, 0, 0x40, 0xc0],
    ];
    vec![
        ("legacy_registers", "rom", rom.concat()),
        ("legacy_registers", "phy", phy.concat()),
        ("legacy_registers", "timer", timer.concat()),
        ("legacy_rings", "plain", rings.concat()),
    ]
}

/// A channel is offered, memory shared, the channel opened and closed, and the bus left: a line each.
#[rustfmt::skip]
const VMBUS_LIFE: &[u8] = &[
    0, 0,
    7, 7, 2, 8, 0, 0, 0, 0, 0, 0, 0, 0, 4,
    7, 0, 0, 0,
    7, 3, 1, 7, 1, 5, 0, 0, 0, 1, 0,
    3, 0, 1,
    7, 1, 0, 5, 1, 1, 5, 0, 1,
    3, 0, 1,
    7, 2, 0, 1, 1,
    3, 0, 1,
    7, 8, 0, 0,
];

/// A guest that sends frames and control messages, by its send buffer and by its pages.
fn synthetic(setup: u8) -> Vec<u8> {
    let mut seed = vec![setup];
    for carry in 0..3 {
        // A frame of 62 bytes with a checksum request; then one for the guest.
        seed.extend([carry, 8, 50, 8, 0, 0x45]);
        seed.extend([0; 47]);
        seed.extend([1, 0, 5, 0, 34, 0, 0, 100, 0]);
        // The packet filter, and a message of NVSP.
        seed.extend([carry, 4, 5, 1, 0, 4, 0x0d, 0, 0, 0, 1]);
        seed.extend([carry, 11, 0, 2]);
        seed.extend([1; 36]);
        seed.extend([0, 1, 1]);
    }
    // Lies: an index, and what lies in the ring.
    seed.extend([0, 0, 0, 1, 8, 0, 0, 1, 0, 1]);
    seed.extend([6; 65]);
    seed
}

/// Which request, and its body.
const BODIES: [(u8, &str, &str); 9] = [
    (
        0,
        "external",
        r#"{"name":"wan","type":"external","uplink":"eth0","host_nic":"vsw0","vlan":10,"mtu":9000}"#,
    ),
    (
        0,
        "internal",
        r#"{"name":"lab","type":"internal","no_host_nic":false}"#,
    ),
    (1, "patch-network", r#"{"mtu":1500,"vlan":null}"#),
    (
        2,
        "vhost-user",
        r#"{"name":"vm1","vhost_user":"/run/vm1.sock","mode":"client","queues":4,"vlan":"access:10"}"#,
    ),
    (
        2,
        "tap",
        r#"{"name":"t","tap":"tap0","vlan":"trunk:1-5,7,native=3","mac_guard":"02:00:00:00:00:01","link":"down"}"#,
    ),
    (
        3,
        "patch-port",
        r#"{"vlan":"none","mac_guard":"off","mtu":null,"link":"up","network":"lab"}"#,
    ),
    (
        3,
        "trunk",
        r#"{"vlan":"trunk:all,native=untagged","mtu":68}"#,
    ),
    (3, "disconnect", r#"{"network":null}"#),
    (
        4,
        "fdb",
        r#"{"mac":"02:00:5e:10:00:01","port":"vm1","vlan":10}"#,
    ),
];

fn write(target: &str, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("seeds")
        .join(target);
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join(name), bytes)
}

/// An access of a PC's guest to `port`, as `write` bytes or a read of as many.
fn port(port: u16, write: bool, bytes: &[u8]) -> Vec<u8> {
    let width = bytes.len().trailing_zeros() as u8;
    let mut operation = vec![u8::from(write) << 7, width];
    if write {
        operation.extend(bytes);
    }
    operation.extend(port.to_le_bytes());
    operation
}

fn out8(to: u16, value: u8) -> Vec<u8> {
    port(to, true, &[value])
}

fn in8(from: u16) -> Vec<u8> {
    port(from, false, &[0])
}

/// A register of configuration space, read and written.
fn config(slot: u32, register: u32, value: u32) -> Vec<u8> {
    let address = 1 << 31 | slot << 11 | register;
    [
        port(0xcf8, true, &address.to_le_bytes()),
        port(0xcfc, false, &[0; 4]),
        port(0xcfc, true, &value.to_le_bytes()),
    ]
    .concat()
}

/// What firmware and kernels do to the devices of a PC, a device or two each.
fn platform() -> Vec<(&'static str, u8, Vec<u8>)> {
    // Time that passes: 255 units of 16 ms.
    let pass = [0x0f, 0, 255].to_vec();
    let clock = [
        (0x05, 0xc0),
        (0x03, 0xff),
        (0x01, 0x30),
        (0x0a, 0x26),
        (0x0b, 0x72),
    ];
    let clock = clock.map(|(index, value)| [out8(0x70, index), out8(0x71, value)].concat());
    let clock = [clock.concat(), pass.repeat(9), out8(0x70, 0x0c), in8(0x71)].concat();
    let serial = [
        (3, 0x80),
        (0, 1),
        (3, 3),
        (2, 0xc7),
        (4, 0x0b),
        (1, 0x0f),
        (0, 0x41),
    ];
    let serial = |base: u16| serial.map(|(at, value)| out8(base + at, value)).concat();
    let heard = |base: u16| [2, 5, 0, 6].map(|at| in8(base + at)).concat();
    // Keys typed: 16 times four bytes.
    let typed = [0x8c, 2, 1, 2, 3, 4].to_vec();
    let serial = [
        serial(0x3f8),
        typed,
        heard(0x3f8),
        serial(0x2f8),
        heard(0x2f8),
    ]
    .concat();
    let keyboard = [0x20, 0xaa, 0x60].map(|command| [out8(0x64, command), in8(0x60)].concat());
    let keyboard = [
        keyboard.concat(),
        out8(0x60, 0x61),
        out8(0x92, 2),
        in8(0x61),
    ]
    .concat();
    // The directory of files byte by byte, and by DMA: select, read 64 bytes to 0x2000.
    let command = [0, 0x19, 0, 0x0a, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0x20, 0];
    let place = |at: u64, bytes: &[u8]| [&[0x87, 3], bytes, &[0], &at.to_le_bytes()[..]].concat();
    let firmware = [
        port(0x510, true, &[0x19, 0]),
        in8(0x511).repeat(8),
        place(0x1000, &command[..8]),
        place(0x1008, &command[8..]),
        port(0x514, true, &[0; 4]),
        port(0x518, true, &[0, 0, 0x10, 0]),
    ];
    let adapter = [
        config(2, 0x10, 0xffff_ffff),
        config(2, 0x10, 0xc001),
        config(2, 0x14, 0xfebf_f000),
        config(2, 0x30, 0xfebe_0001),
        config(2, 0x04, 7),
        port(0xc000, true, &[1, 0, 0, 0]),
        port(0xc008, true, &[0; 4]),
        config(0, 0x58, 0x3333_3333),
        config(1, 0x60, 0x0b0b_0a0a),
    ];
    let power = [
        port(0x602, true, &[0x20, 1]),
        // The power button.
        vec![0x0d, 0],
        port(0x600, false, &[0; 2]),
        port(0x608, false, &[0; 4]),
        port(0x604, true, &[1, 0x20]),
        out8(0xb2, 1),
    ];
    // Saved and restored; forged; reset, by a port and by the machine.
    let states = [
        clock.clone(),
        vec![0x0e, 0],
        vec![0x8e, 0, 0, 2, 2, 4, 0, 3],
        out8(0xcf9, 6),
        vec![0xff, 0, 0],
    ];
    vec![
        ("clock", 0, clock),
        ("serial", 1, serial),
        ("keyboard", 1, keyboard),
        ("firmware", 0, firmware.concat()),
        ("debug", 0x0e, out8(0x402, b'x')),
        ("adapter", 2, adapter.concat()),
        ("power", 1, power.concat()),
        ("states", 4, states.concat()),
        ("any", 1, noise(1000)),
    ]
}

/// Bytes of a small generator of numbers (xorshift).
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let next = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// A guest's side of an integration service: it answers, is asked for what it can be asked, and time passes.
fn service(kind: u8) -> Vec<u8> {
    let asked = kind.saturating_sub(1);
    let bytes = [
        3, 0, 2, 1, 0, 5, 4, 6, 0, 1, asked, 1, 2, 0, 0, 5, 80, 2, 0, 0,
    ];
    [&[kind], &bytes[..]].concat()
}

/// The state of a bus and its adapter after Linux's driver has started, and of one whose guest holds a frame.
fn saved_states() -> std::io::Result<[(&'static str, u8, serde_json::Value); 3]> {
    let (guest, _sides) = Guest::ready(Setup {
        ring: 4,
        receive: 32,
        send: 8,
        ..Setup::linux()
    });
    let (bus, adapter) = guest.host.save();
    let negotiated = serde_json::to_value(adapter)?;
    let mut holds = negotiated.clone();
    holds["held"] = serde_json::json!([[0, [0]]]);
    Ok([
        ("bus", b'0', serde_json::to_value(bus)?),
        ("negotiated", b'1', negotiated),
        ("adapter", b'1', holds),
    ])
}

fn ethernet() -> PacketBuilderStep<etherparse::Ethernet2Header> {
    PacketBuilder::ethernet2(MACS[0], MACS[1])
}

fn tcp4(payload: usize) -> Vec<u8> {
    let builder = ethernet()
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(40_000, 5201, 1, 65_535)
        .ack(1)
        .psh();
    built(|out| builder.write(out, &vec![7; payload]))
}

fn tcp6(payload: usize) -> Vec<u8> {
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

fn frames() -> Vec<(&'static str, Vec<u8>)> {
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

/// Three ports of these VLAN modes; TCP over both versions of IP, plain and large, learned and flooded.
fn turn(vlans: [u8; 3]) -> Vec<u8> {
    let mut bytes = vec![1];
    for (index, vlan) in vlans.into_iter().enumerate() {
        // Policy, VLAN, features, buffers of 68 KiB.
        bytes.extend([0, vlan, [0x0, 0xf, 0x1][index], 2]);
    }
    for (port, shape) in [
        (0x00, 0x08),
        (0x10, 0x0c),
        (0x20, 0x48),
        (0x00, 0x4c),
        (0x10, 0x0a),
        (0x20, 0x30),
    ] {
        bytes.extend([port, shape, 1 + (port >> 4), (port >> 4)]);
        if shape & 3 != 0 {
            bytes.extend([0, 1, 0, 0]);
        }
        if shape & 0x30 == 0x30 {
            bytes.extend([8, 0x88, 0xb5, 1, 2, 3, 4, 5, 6, 0]);
        } else {
            bytes.extend(if shape & 0x40 != 0 { 9000u16 } else { 100 }.to_le_bytes());
            // TCP flags; then a partial checksum and, for large frames, a segment size.
            bytes.push(0x18);
            bytes.push(if shape & 0x40 != 0 { 0x15 } else { 0x05 });
            if shape & 0x40 != 0 {
                bytes.extend(1448u16.to_le_bytes());
            }
        }
        bytes.extend([0x08 | port, 0x0c, 0x1c, 0x2c]);
    }
    bytes
}

/// Receive buffers, frames, a delivery; then a chain of three pieces, notifications, and room for one frame.
fn ring(how: u8) -> Vec<u8> {
    let indirect = if how & 8 != 0 { 8 } else { 0 };
    let base = 0u16.to_le_bytes();
    // Size 64; all offloads.
    let mut bytes = vec![how, 6, base[0], base[1]];
    if how & 1 == 0 {
        bytes.push(0xf);
    }
    let post = |bytes: &mut Vec<u8>, which: u8, pieces: &[u16], content: &[u8]| {
        let content_bit = if content.is_empty() { 0 } else { 0x40 };
        bytes.extend([0, which, content_bit | indirect | (pieces.len() as u8 - 1)]);
        pieces
            .iter()
            .for_each(|len| bytes.extend(len.to_le_bytes()));
        bytes.extend(content);
    };
    for _ in 0..4 {
        post(&mut bytes, 0x10, &[2000], &[]);
    }
    let mut content = vec![0; 12];
    content.extend(tcp4(14));
    content.truncate(80);
    post(&mut bytes, 0, &[1500], &content);
    post(&mut bytes, 0, &[92, 64, 1000], &content);
    // The action of the queues or of the raw ring, above the bit that says that it is one.
    let calls: &[u8] = if how & 1 != 0 {
        &[0, 0, 4, 4, 5, 6, 0, 3, 7]
    } else {
        &[0, 3, 2, 5, 6, 7]
    };
    for call in calls {
        bytes.push(call << 1 | 1);
        if *call == 3 && how & 1 == 0 {
            bytes.push(1);
        }
    }
    if how & 1 == 0 {
        bytes.extend([4 << 1 | 1, 100, 0, 0, 5 << 1 | 1]);
    }
    bytes
}

/// The messages of QEMU up to running rings, a frame and a buffer for it, a ring stopped, and memory replaced.
fn vhost(socket: u8, features: u8) -> Vec<u8> {
    let mut bytes = vec![socket];
    let message = |bytes: &mut Vec<u8>, number: u8, ring: u8, rest: &[u8]| {
        bytes.extend([number, ring]);
        bytes.extend(rest);
        // How a message is cut on a socket.
        bytes.extend((socket != 0).then_some(12));
    };
    for (number, rest) in [
        (1, &[][..]),
        (15, &[]),
        (16, &[0]),
        (3, &[]),
        (2, &[features]),
        (20, &[1]),
        (5, &[1, 2]),
        (6, &[0, 0, 0]),
    ] {
        message(&mut bytes, number, 8, rest);
    }
    // Once a ring runs, a byte says that a message comes next, not a turn.
    let next = (socket == 0).then_some(0);
    for ring in [0, 1] {
        for (number, rest) in [
            (8, &[6][..]),
            (10, &[1]),
            (9, &[0, 0, 0, 0, 0]),
            (13, &[0]),
            (12, &[0]),
            (18, &[1]),
        ] {
            bytes.extend(next.filter(|_| ring == 1));
            message(&mut bytes, number, ring, rest);
        }
    }
    if socket == 0 {
        // Descriptor 0 of each ring, available in both formats: 2000 bytes to write, 200 to read.
        let buffers = [(0, 0x80, 2000u16, 2), (1, 0x00, 200, 0)];
        for (ring, addr, len, flags) in buffers {
            let [low, high] = len.to_le_bytes();
            bytes.extend([1, 3, ring, 16]);
            bytes.extend([
                0,
                addr,
                0x11,
                0,
                0,
                0,
                0,
                0,
                low,
                high,
                0,
                0,
                flags,
                0,
                0x80 | flags,
                0,
            ]);
            // The available ring: index 1, head 0.
            bytes.extend([1, 3, ring | 8, 6, 0, 0, 1, 0, 0, 0]);
        }
        bytes.extend([1, 15, 1, 8, 1, 1, 15]);
    }
    bytes.extend(next);
    message(&mut bytes, 11, 1, &[0]);
    bytes.extend(next);
    message(&mut bytes, 5, 8, &[2, 0, 1]);
    bytes
}
