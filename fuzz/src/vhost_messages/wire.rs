//! Messages as bytes and descriptors.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vswitch::ports::vhost::session::{FEATURES, PROTOCOL_FEATURES};
use vswitch::ports::vhost::{feature, message::MAX_TABLE};

use crate::input::Input;

/// Bytes of the file that guest memory lies in.
pub(super) const MEMORY: u64 = 0x2_0000;
/// Guest address and front-end address of its first byte.
pub(super) const GUEST: u64 = 0x10_0000;
pub(super) const USER: u64 = 0x7f00_0000_0000;
/// From the parts of one ring to those of the next; the parts are these far apart.
pub(super) const RING_STRIDE: u64 = 0x2000;
pub(super) const PART_STRIDE: u64 = 0x800;

/// What a front-end can pass.
pub(super) struct Files {
    pub(super) memory: OwnedFd,
    event: OwnedFd,
    pipe: OwnedFd,
}

/// A message on its way.
pub(super) struct Packet {
    pub(super) bytes: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
}

impl Files {
    pub(super) fn new() -> Files {
        let memory = memfd_create("guest", MemfdFlags::CLOEXEC).expect("memfd");
        ftruncate(&memory, MEMORY).expect("memfd");
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("eventfd");
        let (pipe, _) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("pipe");
        Files {
            memory,
            event,
            pipe,
        }
    }

    fn take(&self, which: u8) -> OwnedFd {
        let fd = match which & 7 {
            0..4 => &self.memory,
            4..7 => &self.event,
            _ => &self.pipe,
        };
        fd.try_clone().expect("descriptor")
    }
}

/// The body of a message while it is built.
struct Body(Vec<u8>);

impl Body {
    fn u32(&mut self, value: u32) {
        self.0.extend(value.to_ne_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend(value.to_ne_bytes());
    }

    /// Guest address, length, front-end address, offset in the file.
    fn region(&mut self, input: &mut Input<'_>) {
        let bits = input.u8();
        let half = MEMORY / 2;
        let at = half * u64::from(bits & 1);
        let len = if bits & 2 != 0 { MEMORY } else { half };
        let [mut guest, mut len, mut user, mut offset] = [GUEST + at, len, USER + at, at];
        match bits >> 4 {
            12 => guest = input.u64(),
            13 => len = input.u64(),
            14 => user = input.u64(),
            15 => offset = input.u64(),
            _ => {}
        }
        [guest, len, user, offset]
            .into_iter()
            .for_each(|field| self.u64(field));
    }
}

/// The next message of the input.
pub(super) fn message(input: &mut Input<'_>, files: &Files) -> Packet {
    let number = input.u8();
    let bits = input.u8();
    if bits & 0xf0 == 0xf0 {
        // Anything, after a header that may be right.
        let (len, fds) = (input.u8() & 0x7f, input.u8() & 15);
        let body = input.bytes(len.into()).to_vec();
        let flags = if bits & 1 != 0 { 1 } else { input.u32() };
        let size = if bits & 2 != 0 {
            body.len() as u32
        } else {
            input.u32()
        };
        let fds = (0..fds).map(|which| files.take(which)).collect();
        return packet(number.into(), flags, size, &body, fds);
    }
    let number = u32::from(number) % 42;
    let flags = if bits & 8 != 0 { 9 } else { 1 };
    let mut body = Body(Vec::new());
    let mut fds = Vec::new();
    let ring = match bits & 7 {
        index @ 0..4 => index.into(),
        _ => u32::from(input.u8()),
    };
    fill(number, ring, input, files, &mut body, &mut fds);
    let size = body.0.len() as u32;
    packet(number, flags, size, &body.0, fds)
}

fn fill(
    number: u32,
    ring: u32,
    input: &mut Input<'_>,
    files: &Files,
    body: &mut Body,
    fds: &mut Vec<OwnedFd>,
) {
    match number {
        2 => body.u64(match input.u8() {
            0xff => input.u64(),
            bits => features(bits),
        }),
        16 => body.u64(match input.u8() {
            0xff => input.u64(),
            _ => PROTOCOL_FEATURES,
        }),
        5 => {
            let count = u32::from(input.u8()) % (MAX_TABLE as u32 + 2);
            body.u64(count.into());
            (0..count).for_each(|_| body.region(input));
            fds.extend((0..count).map(|_| files.take(0)));
        }
        6 => {
            body.u64([4096, 64, MEMORY][usize::from(input.u8()) % 3]);
            body.u64(if input.u8() & 7 == 7 { input.u64() } else { 0 });
            fds.push(files.take(input.u8()));
        }
        // Ring sizes, bases, enabling.
        8 | 10 | 11 | 18 => {
            body.u32(ring);
            let byte = input.u8();
            body.u32(match (byte, number) {
                (0xf0.., _) => input.u32(),
                (_, 8) => 1 << (byte % 8),
                (_, 18) => u32::from(byte & 7 != 0),
                _ => u32::from(byte & 1) << 15 | u32::from(byte >> 4),
            });
        }
        9 => {
            body.u32(ring);
            body.u32(u32::from(input.u8() == 0xff));
            let start = USER + u64::from(ring & 7) * RING_STRIDE;
            for part in [0, 2, 1, 3] {
                let byte = input.u8();
                body.u64(if byte >= 0xf0 {
                    input.u64()
                } else {
                    start + part * PART_STRIDE + u64::from(byte >> 7)
                });
            }
        }
        12..=14 => {
            let which = input.u8();
            let none = which & 0xc0 == 0xc0;
            body.u64(u64::from(ring & 0xff) | u64::from(none) << 8);
            if !none {
                fds.push(files.take(if which & 0x38 == 0x38 { which } else { 4 }));
            }
        }
        19 => body.0.extend([2, 0, 0, 0, 0, input.u8(), 0, 0]),
        20 => body.u64(if input.u8() & 3 == 0 {
            input.u64()
        } else {
            1500
        }),
        31 | 32 => {
            body.u64(MEMORY);
            body.u64(if input.u8() & 7 == 7 { input.u64() } else { 0 });
            body.u32(4 | u32::from(input.u8()) << 16);
            body.u32(0);
            fds.extend((number == 32).then(|| files.take(input.u8() & 7)));
        }
        37 | 38 => {
            body.u64(0);
            body.region(input);
            fds.extend((number == 37).then(|| files.take(0)));
        }
        39 => body.u64(input.u8().into()),
        _ => {}
    }
}

/// Features that a driver may take, a bit each for those that change how rings are read.
fn features(bits: u8) -> u64 {
    let mut features = FEATURES & !(feature::LOG_ALL | feature::RING_PACKED);
    let optional = [
        feature::RING_PACKED,
        feature::EVENT_IDX,
        feature::INDIRECT_DESC,
        feature::IN_ORDER,
        feature::MRG_RXBUF,
        feature::GUEST_CSUM,
        feature::LOG_ALL,
        feature::PROTOCOL_FEATURES,
    ];
    for (bit, feature) in optional.into_iter().enumerate() {
        if bits >> bit & 1 != 0 {
            features ^= feature;
        }
    }
    features
}

fn packet(number: u32, flags: u32, size: u32, body: &[u8], fds: Vec<OwnedFd>) -> Packet {
    let mut bytes = [number, flags, size].map(u32::to_ne_bytes).concat();
    bytes.extend(body);
    Packet { bytes, fds }
}

/// Writes a message in two pieces, cut at `cut`. False if the socket takes no more.
pub(super) fn send(socket: &UnixStream, packet: &Packet, cut: u8) -> bool {
    let (first, second) = packet
        .bytes
        .split_at(usize::from(cut).clamp(1, packet.bytes.len()));
    let fds: Vec<_> = packet.fds.iter().map(|fd| fd.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(
            ancillary.push(SendAncillaryMessage::ScmRights(&fds)),
            "room for 16 descriptors"
        );
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let sent = sendmsg(socket, &[IoSlice::new(first)], &mut ancillary, flags);
    let nothing = &mut SendAncillaryBuffer::default();
    sent == Ok(first.len())
        && (second.is_empty() || sendmsg(socket, &[IoSlice::new(second)], nothing, flags).is_ok())
}
