//! Generator and sink of frames.

use crate::bus::Bus;
use crate::nic::{FRONT, Nic, SECTION, data_header, information};
use crate::options::Options;
use crate::serial::say;

/// An EtherType for experiments (IEEE Std 802).
const EXPERIMENT: [u8; 2] = [0x88, 0xb5];
/// Frames of one packet, at most: what hosts allow.
const BATCH: usize = 8;
/// The longest frame that is not cut.
const PLAIN: usize = 1514;
/// Packets that are sent in one go.
const BURST: u64 = 32;
/// Seconds that nobody waits for.
const FOREVER: u64 = 1 << 30;

/// Sends frames of one size, as fast as it can.
pub struct Generator {
    /// Bytes of the messages of a packet, and its frames.
    message: usize,
    frame: usize,
    batch: u64,
    start: Option<u64>,
    ticks: u64,
    /// Packets to send and packets sent.
    limit: u64,
    packets: u64,
    end: u64,
}

impl Generator {
    /// `to=MAC size=BYTES batch=FRAMES`, until `seconds=SECONDS` have passed or `frames=FRAMES` are sent. A frame that is too long for the link is one of TCP that is to be cut.
    pub fn new(bus: &Bus, nic: &mut Nic, options: Options<'_>) -> Generator {
        let size = options.number("size", 64) as usize;
        let plain = size <= PLAIN;
        let about = (!plain).then_some((information::LARGE_SEND, 1460 | 34 << 20 | 1 << 30));
        let message = (FRONT + size).next_multiple_of(8);
        let batch = match plain {
            true => options
                .number("batch", BATCH as u64)
                .clamp(1, (SECTION / message).min(BATCH) as u64),
            false => 1,
        };
        let to: [u8; 6] = options.address("to", ':', 16);
        let mut frame = [7; 64];
        frame[..6].copy_from_slice(&to);
        frame[6..12].copy_from_slice(&nic.mac);
        frame[12..14].copy_from_slice(&EXPERIMENT);
        if !plain {
            frame[12..54].copy_from_slice(&tcp_headers(size));
        }
        let fill = |bytes: &mut [u8]| {
            for bytes in bytes.chunks_exact_mut(message) {
                bytes[FRONT..].fill(7);
                data_header(bytes, size, message, about);
                let head = size.min(64);
                bytes[FRONT..FRONT + head].copy_from_slice(&frame[..head]);
            }
        };
        if plain {
            for mut room in nic.sections() {
                // SAFETY: they fit a section.
                fill(unsafe { room.bytes(message * batch as usize) });
            }
        } else {
            for mut room in nic.large() {
                // SAFETY: the size was looked at when the places were asked for.
                fill(unsafe { room.bytes(message) });
            }
        }
        Generator {
            message: message * batch as usize,
            frame: size,
            batch,
            start: None,
            ticks: options.number("seconds", FOREVER) * bus.tsc_hz,
            limit: options.number("frames", u64::MAX).div_ceil(batch),
            packets: 0,
            end: 0,
        }
    }

    /// Sends some. Whether it sent any; `None` once it has ended.
    #[inline]
    pub fn step(&mut self, bus: &Bus, nic: &mut Nic, now: u64) -> Option<bool> {
        let any = nic.poll(bus, |_| {});
        let start = *self.start.get_or_insert(now);
        if now - start > self.ticks || self.packets >= self.limit {
            if self.end == 0 {
                self.end = now;
            }
            return (!nic.is_idle()).then_some(any);
        }
        let mut sent = 0;
        let most = BURST.min(self.limit - self.packets);
        while sent < most
            && let Some(room) = nic.room(self.message - FRONT)
        {
            nic.send_messages(room, self.message);
            sent += 1;
        }
        self.packets += sent;
        nic.show(bus);
        Some(any || sent > 0)
    }

    /// What it did.
    pub fn report(&self, bus: &Bus, index: usize) {
        let frames = self.packets * self.batch;
        say!(
            "{{\"adapter\":{index},\"role\":\"generate\",\"frames\":{frames},\"bytes\":{},\"seconds\":{}}}",
            frames * self.frame as u64,
            Seconds::between(bus, self.start.unwrap_or_default(), self.end)
        );
    }
}

/// Ethernet from the EtherType on, IPv4 and TCP of a large frame; its adapter completes them.
fn tcp_headers(size: usize) -> [u8; 42] {
    let mut headers = [0; 42];
    headers[..4].copy_from_slice(&[8, 0, 0x45, 0]);
    headers[4..6].copy_from_slice(&((size - 14) as u16).to_be_bytes());
    headers[10..12].copy_from_slice(&[64, 6]);
    headers[14..26].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2, 0x13, 0x88, 0x13, 0x89]);
    headers[33..38].copy_from_slice(&[1, 0x50, 0x10, 0xff, 0xff]);
    headers
}

/// Counts frames until there are no more.
pub struct Sink {
    frames: u64,
    bytes: u64,
    parts: u64,
    first: u64,
    last: u64,
    pause: u64,
    announced: bool,
}

impl Sink {
    /// `pause=MILLISECONDS`: without a frame for so long, after the first, it ends.
    pub fn new(bus: &Bus, options: Options<'_>) -> Sink {
        Sink {
            frames: 0,
            bytes: 0,
            parts: 0,
            first: 0,
            last: 0,
            pause: options.number("pause", 500) * bus.tsc_hz / 1000,
            announced: false,
        }
    }

    /// Takes what there is. Whether there was any; `None` once it has ended.
    #[inline]
    pub fn step(&mut self, bus: &Bus, nic: &mut Nic, now: u64) -> Option<bool> {
        if !self.announced {
            self.announce(nic);
            nic.show(bus);
        }
        let before = self.frames;
        let any = nic.poll(bus, |received| {
            self.parts += 1;
            self.bytes += received.bytes.len() as u64;
            self.frames += u64::from(!received.more);
        });
        if self.frames > before {
            self.last = now;
            if before == 0 {
                self.first = now;
            }
        }
        let ended = self.frames > 0 && now - self.last > self.pause;
        (!ended).then_some(any)
    }

    /// Sends one frame, so that the switch learns where this address is.
    fn announce(&mut self, nic: &mut Nic) {
        let Some(mut room) = nic.room(60) else {
            return;
        };
        let mac = nic.mac;
        // SAFETY: as many as were asked for.
        let frame = &mut unsafe { room.bytes(FRONT + 60) }[FRONT..];
        frame.fill(0);
        frame[..6].fill(0xff);
        frame[6..12].copy_from_slice(&mac);
        frame[12..14].copy_from_slice(&EXPERIMENT);
        nic.send(room, 60, None);
        self.announced = true;
    }

    /// What it did.
    pub fn report(&self, bus: &Bus, index: usize) {
        say!(
            "{{\"adapter\":{index},\"role\":\"sink\",\"frames\":{},\"bytes\":{},\"parts\":{},\"seconds\":{}}}",
            self.frames,
            self.bytes,
            self.parts,
            Seconds::between(bus, self.first, self.last)
        );
    }
}

/// A time in seconds, printed with six places.
pub struct Seconds(u64);

impl Seconds {
    /// Between two ticks.
    pub fn between(bus: &Bus, start: u64, end: u64) -> Seconds {
        Seconds((u128::from(end.saturating_sub(start)) * 1_000_000 / u128::from(bus.tsc_hz)) as u64)
    }
}

impl core::fmt::Display for Seconds {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}
