//! What the guest of a PC does.

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
pub(crate) fn platform() -> Vec<(&'static str, u8, Vec<u8>)> {
    // Time that passes: 255 units of 1 ms.
    let pass = [0x0f, 0, 255].to_vec();
    let clock = [
        (0x05, 0xc0),
        (0x03, 0xff),
        (0x01, 0x30),
        (0x0a, 0x26),
        (0x0b, 0x72),
    ];
    let clock = clock.map(|(index, value)| [out8(0x70, index), out8(0x71, value)].concat());
    let clock = [
        clock.concat(),
        pass.repeat(144),
        out8(0x70, 0x0c),
        in8(0x71),
    ]
    .concat();
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
    // The 21140 as its driver starts it: lists, descriptors to receive and to send, the timer; frames both ways, an
    // interrupt, a new port, a saved state, a reset.
    let driver = |what: &[u8]| [&[0x01, 0], what].concat();
    let list = |send: u8, index: u8, size: u16| {
        let [low, high] = size.to_le_bytes();
        driver(&[0, index, 0x40 | send, low, high, 1 + index])
    };
    let tulip = [
        driver(&[9, 0, 0]),
        driver(&[10, 11, 2, 0, 1, 0]),
        (0..8).flat_map(|index| list(0, index, 1540)).collect(),
        (0..4).flat_map(|index| list(1, index, 60)).collect(),
        driver(&[12, 0]),
        driver(&[4]),
        driver(&[7, 3, 100, 0]),
        driver(&[11, 5]),
        driver(&[10, 5, 0xff, 0xff, 0xff, 0xff]),
        vec![0x0f, 0, 10],
        driver(&[14]),
        vec![0x0e, 0],
        // The new port looks at the registers first.
        driver(&[4]),
        driver(&[7, 1, 60, 0]),
        driver(&[13, 0]),
        driver(&[10, 0, 1, 0, 0, 0]),
        driver(&[4]),
        vec![0xff, 0, 0],
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
        ("tulip", 2, tulip.concat()),
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
