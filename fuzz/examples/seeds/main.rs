//! Writes the seeds: `cargo run --manifest-path fuzz/Cargo.toml --example seeds`.
//!
//! They are real frames and messages in the form of each target's input, which its module describes. Without them a
//! fuzzer needs long to find what a valid header looks like.

mod frames;
mod platform;
mod rings;

use std::path::Path;

use offload::VirtioNetHdr;
use vnic_synthetic::driver::{Guest, Setup};

use frames::{frames, tcp4, tcp6};
use platform::platform;
use rings::{ring, turn, vhost};

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
