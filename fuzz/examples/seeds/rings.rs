//! What ports of the switch and vhost-user guests do.

use crate::frames::tcp4;

/// Three ports of these VLAN modes; TCP over both versions of IP, plain and large, learned and flooded.
pub(crate) fn turn(vlans: [u8; 3]) -> Vec<u8> {
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
pub(crate) fn ring(how: u8) -> Vec<u8> {
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
pub(crate) fn vhost(socket: u8, features: u8) -> Vec<u8> {
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
