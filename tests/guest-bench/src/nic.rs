//! A synthetic adapter: NVSP and RNDIS on a channel of VMBus.

use core::array;

use crate::bus::{Bus, Offer};
use crate::memory::{self, PAGE};
use crate::ring::{Incoming, Outgoing, Packet, kind};

/// Pages of each ring, of the buffer for received frames and of that for small sent ones.
const RING: usize = 129;
const RECEIVE: usize = 4096;
const SEND: usize = 256;
/// Bytes of a section of the send buffer, as every host has it.
pub const SECTION: usize = 6144;
const SECTIONS: usize = SEND * PAGE / SECTION;
/// Buffers for large frames, and pages of each.
const LARGE: usize = 32;
const LARGE_PAGES: usize = 17;
/// Transactions: sections from 0 on, large buffers from here on.
const FIRST_LARGE: u64 = 1 << 16;
/// What is asked and waited for.
const REQUEST: u64 = 1 << 32;

/// Bytes of an RNDIS data message in front of its information and its frame.
const HEADER: usize = 44;
/// The same with one item of information.
pub const FRONT: usize = HEADER + 16;
const NVSP: u32 = 0x6_0001;
const RNDIS_PACKET: u32 = 107;
const NO_SECTION: u32 = u32::MAX;

/// Information about a frame: type and value.
pub type Information = Option<(u32, u32)>;
/// Types of information.
pub mod information {
    /// Checksums to fill in.
    pub const CHECKSUM: u32 = 0;
    /// Segments to cut a large frame into.
    pub const LARGE_SEND: u32 = 2;
    /// Which part of a coalesced frame it is.
    pub const PART: u32 = 1 << 31 | 1;
}

/// An adapter that is ready.
pub struct Nic {
    /// Its address.
    pub mac: [u8; 6],
    offer: Offer,
    to_host: Outgoing,
    from_host: Incoming,
    receive: *const u8,
    send: *mut u8,
    large: *mut u8,
    free: Stack<SECTIONS>,
    free_large: Stack<LARGE>,
    /// Where parts of a frame are joined.
    joined: *mut u8,
    /// The packet that frames are taken from, its next range and how many it has.
    open: Option<(Packet, u32, u32)>,
    handled: u64,
}

/// Free numbers; the last one given back is used next.
struct Stack<const N: usize> {
    numbers: [u16; N],
    len: usize,
}

impl<const N: usize> Stack<N> {
    fn full() -> Self {
        Self {
            numbers: array::from_fn(|number| number as u16),
            len: N,
        }
    }

    fn pop(&mut self) -> Option<u16> {
        self.len = self.len.checked_sub(1)?;
        Some(self.numbers[self.len])
    }

    fn push(&mut self, number: u16) {
        self.numbers[self.len] = number;
        self.len += 1;
    }
}

/// Part of a received frame, or all of it.
pub struct Received<'a> {
    /// The bytes.
    pub bytes: &'a [u8],
    /// More of the frame follows.
    pub more: bool,
}

/// A place for a frame to send.
pub struct Room {
    at: *mut u8,
    transaction: u64,
}

impl Room {
    /// Where the RNDIS message begins; the frame goes [`FRONT`] bytes behind it.
    ///
    /// # Safety
    /// `len` is no more than the place has.
    pub unsafe fn bytes(&mut self, len: usize) -> &mut [u8] {
        // SAFETY: nobody else has it until it is sent and answered.
        unsafe { core::slice::from_raw_parts_mut(self.at, len) }
    }
}

impl Nic {
    /// Opens the channel of an adapter and sets it up: everything that it offers is used.
    pub fn new(bus: &mut Bus, offer: Offer) -> Nic {
        let rings = memory::take(2 * RING);
        let second = rings.wrapping_add(RING * PAGE);
        let (to_host, from_host) = (Outgoing::new(rings, RING), Incoming::new(second, RING));
        let gpadl = bus.share(offer.relid, rings, 2 * RING);
        bus.open(offer.relid, gpadl, RING);
        let mut nic = Nic {
            mac: [0; 6],
            offer,
            to_host,
            from_host,
            receive: memory::take(RECEIVE),
            send: memory::take(SEND),
            large: memory::take(LARGE * LARGE_PAGES),
            free: Stack::full(),
            free_large: Stack::full(),
            joined: memory::take(LARGE_PAGES),
            open: None,
            handled: 0,
        };
        nic.from_host.mask(true);
        nic.set_up(bus);
        nic
    }

    fn set_up(&mut self, bus: &mut Bus) {
        assert_eq!(
            self.ask(bus, &[1, NVSP, NVSP])[..2],
            [2, NVSP],
            "version of NVSP"
        );
        // Tags beside the frame, and coalesced segments.
        self.tell(bus, &[125, 1514, 0, 1 << 3 | 1 << 7]);
        self.tell(bus, &[100, 6, 0x1e]);
        let gpadl = bus.share(self.offer.relid, self.receive.cast_mut(), RECEIVE);
        assert_eq!(
            self.ask(bus, &[101, gpadl, 0xcafe])[..2],
            [102, 1],
            "receive buffer"
        );
        let gpadl = bus.share(self.offer.relid, self.send, SEND);
        let answer = self.ask(bus, &[104, gpadl, 0]);
        assert_eq!(answer[..3], [105, 1, SECTION as u32], "send buffer");

        self.control(bus, 2, &[1, 1, 0, 0x4000], &[]);
        let mac = self.control(bus, 4, &[1, 0x0101_0101, 0, 20, 0], &[]);
        self.mac = mac[24..30].try_into().unwrap();
        // Checksums both ways, large frames, coalescing.
        let mut offloads = [0; 28];
        offloads[..4].copy_from_slice(&[0x80, 3, 28, 0]);
        offloads[4..9].fill(4);
        (offloads[11], offloads[12], offloads[22], offloads[23]) = (2, 2, 2, 2);
        for (object, value) in [
            (0xfc01_020c, &offloads[..]),
            (0x0001_010e, &[0x0d, 0, 0, 0]),
        ] {
            let answer = self.control(bus, 5, &[1, object, value.len() as u32, 20, 0], value);
            assert_eq!(answer[12..16], [0; 4], "status of setting {object:#x}");
        }
    }

    /// Sends a message of NVSP.
    fn tell(&mut self, bus: &Bus, words: &[u32]) {
        self.push_message(0, 0, words);
        self.show(bus);
    }

    /// Sends a message of NVSP and waits for the answer.
    fn ask(&mut self, bus: &Bus, words: &[u32]) -> [u32; 10] {
        self.push_message(1, REQUEST, words);
        self.show(bus);
        let mut answer = [0; 10];
        self.wait(bus, |nic, packet| {
            if packet.kind != kind::COMPLETION {
                return false;
            }
            for (index, words) in answer.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                let word = nic.from_host.word(packet, packet.header + 8 * index as u32);
                *words = [word as u32, (word >> 32) as u32];
            }
            true
        });
        answer
    }

    /// Sends a control message of RNDIS and waits for the answer.
    fn control(&mut self, bus: &Bus, message: u32, body: &[u32], value: &[u8]) -> [u8; 64] {
        let section = self.free.pop().expect("a section");
        let len = 8 + 4 * body.len() + value.len();
        let mut room = Room {
            at: self.send.wrapping_add(SECTION * usize::from(section)),
            transaction: section.into(),
        };
        // SAFETY: a request is shorter than a section.
        let bytes = unsafe { room.bytes(len) };
        put(bytes, 0, &[message, len as u32]);
        put(bytes, 8, body);
        bytes[len - value.len()..].copy_from_slice(value);
        self.push_message(
            1,
            section.into(),
            &[RNDIS_PACKET, 1, section.into(), len as u32],
        );
        self.show(bus);
        let mut answer = [0; 64];
        self.wait(bus, |nic, packet| {
            let payload = nic.from_host.word(packet, packet.header);
            if packet.kind != kind::RANGES || payload >> 32 != 1 {
                return false;
            }
            let range = nic.from_host.word(packet, 24);
            let message = nic.range(range);
            let len = message.len().min(64);
            answer[..len].copy_from_slice(&message[..len]);
            true
        });
        answer
    }

    /// Takes packets until `wanted` is among them.
    fn wait(&mut self, bus: &Bus, mut wanted: impl FnMut(&Nic, Packet) -> bool) {
        loop {
            let Some(packet) = self.from_host.take() else {
                core::hint::spin_loop();
                continue;
            };
            let found = wanted(self, packet);
            self.done(packet);
            self.show(bus);
            if found {
                return;
            }
        }
    }

    /// Takes everything the host sent, and hands on received frames. Whether there was anything.
    #[inline]
    pub fn poll(&mut self, bus: &Bus, mut received: impl FnMut(Received<'_>)) -> bool {
        let mut any = false;
        while let Some(packet) = self.from_host.take() {
            any = true;
            for index in 0..self.data_ranges(packet) {
                let range = self.from_host.word(packet, 24 + 8 * index);
                received(parse(self.range(range)));
            }
            self.done(packet);
        }
        if any {
            self.show(bus);
        }
        any
    }

    /// The next frame, to read and write.
    ///
    /// # Safety
    /// It is not used any more when this, or [`finish_frame`](Self::finish_frame), is called again.
    pub unsafe fn next_frame(&mut self) -> Option<&'static mut [u8]> {
        let mut len = 0;
        loop {
            let range = self.next_range()?;
            let Received { bytes, more } = parse(self.range(range));
            let (from, part) = (bytes.as_ptr(), bytes.len());
            if !more && len == 0 {
                // SAFETY: a section that is ours until its packet is answered, upon a later call.
                return Some(unsafe { core::slice::from_raw_parts_mut(from.cast_mut(), part) });
            }
            assert!(len + part <= LARGE_PAGES * PAGE);
            // SAFETY: room of our own, which was just looked at.
            unsafe { from.copy_to_nonoverlapping(self.joined.add(len), part) };
            len += part;
            if !more {
                // SAFETY: as above.
                return Some(unsafe { core::slice::from_raw_parts_mut(self.joined, len) });
            }
        }
    }

    /// The next range with data.
    fn next_range(&mut self) -> Option<u64> {
        loop {
            if let Some((packet, next, count)) = self.open
                && next < count
            {
                self.open = Some((packet, next + 1, count));
                return Some(self.from_host.word(packet, 24 + 8 * next));
            }
            self.finish_frame();
            let packet = self.from_host.take()?;
            self.handled += 1;
            match self.data_ranges(packet) {
                0 => self.done(packet),
                count => self.open = Some((packet, 0, count)),
            }
        }
    }

    /// The last frame of [`next_frame`](Self::next_frame) is done with: its packet is answered if it was the last one there.
    pub fn finish_frame(&mut self) {
        if let Some((packet, next, count)) = self.open
            && next == count
        {
            self.open = None;
            self.done(packet);
        }
    }

    /// How many ranges with data a packet has.
    #[inline]
    fn data_ranges(&self, packet: Packet) -> u32 {
        let data =
            packet.kind == kind::RANGES && self.from_host.word(packet, packet.header) >> 32 == 0;
        if data {
            (self.from_host.word(packet, 16) >> 32) as u32
        } else {
            0
        }
    }

    /// Packets taken so far.
    pub fn handled(&self) -> u64 {
        self.handled
    }

    /// Sleep is possible: the host is to signal. Whether there is something already.
    pub fn before_sleep(&self) -> bool {
        self.from_host.mask(false);
        !self.from_host.is_empty()
    }

    /// The host needs to signal no more.
    pub fn after_sleep(&self) {
        self.from_host.mask(true);
    }

    /// Answers a packet, or frees what it answers.
    #[inline]
    fn done(&mut self, packet: Packet) {
        match (packet.kind, packet.transaction) {
            (kind::RANGES, transaction) => {
                let done = [108 | 1 << 32];
                // What is sent without an answer being waited for takes less than half the ring.
                assert!(
                    self.to_host
                        .push(kind::COMPLETION, 0, transaction, &[], &done)
                );
            }
            (kind::COMPLETION, REQUEST..) => {}
            (kind::COMPLETION, large @ FIRST_LARGE..) => {
                self.free_large.push((large - FIRST_LARGE) as u16);
            }
            (kind::COMPLETION, section) => self.free.push(section as u16),
            _ => {}
        }
    }

    /// The bytes of a range of the receive buffer: u32 length, u32 offset.
    #[inline]
    fn range(&self, range: u64) -> &[u8] {
        let (len, offset) = (range as u32 as usize, (range >> 32) as usize);
        assert!(offset + len <= RECEIVE * PAGE);
        // SAFETY: inside the buffer, and the host leaves it alone until it is given back.
        unsafe { core::slice::from_raw_parts(self.receive.add(offset), len) }
    }

    /// Shows the host what was sent, and that its packets were taken.
    #[inline]
    pub fn show(&mut self, bus: &Bus) {
        let given = self.open.is_none() && self.from_host.give_back();
        if self.to_host.show() | given {
            bus.signal(self.offer.connection);
        }
    }

    /// A place for a frame of `len` bytes, if there is one.
    pub fn room(&mut self, len: usize) -> Option<Room> {
        if FRONT + len <= SECTION {
            let section = self.free.pop()?;
            return Some(Room {
                at: self.send.wrapping_add(SECTION * usize::from(section)),
                transaction: section.into(),
            });
        }
        assert!(FRONT + len <= LARGE_PAGES * PAGE);
        let buffer = self.free_large.pop()?;
        Some(Room {
            at: self
                .large
                .wrapping_add(LARGE_PAGES * PAGE * usize::from(buffer)),
            transaction: FIRST_LARGE + u64::from(buffer),
        })
    }

    /// There is a place for a frame of any length.
    pub fn has_room(&self) -> bool {
        self.free.len > 0 && self.free_large.len > 0
    }

    /// All that was sent is answered.
    pub fn is_idle(&self) -> bool {
        self.free.len == SECTIONS && self.free_large.len == LARGE
    }

    /// Sends a frame of `len` bytes that is in its place.
    pub fn send(&mut self, mut room: Room, len: usize, about: Information) {
        // SAFETY: the caller asked for a place for as many.
        let bytes = unsafe { room.bytes(FRONT) };
        data_header(bytes, len, FRONT + len, about);
        self.send_messages(room, FRONT + len);
    }

    /// Sends `len` bytes of data messages that are in their place.
    #[inline]
    pub fn send_messages(&mut self, room: Room, len: usize) {
        let sent = match room.transaction {
            section @ ..FIRST_LARGE => {
                self.push_message(1, section, &[RNDIS_PACKET, 0, section as u32, len as u32])
            }
            large => {
                let (mut header, mut at) = ([0; 1 + 2 * LARGE_PAGES], 1);
                let pages = len.div_ceil(PAGE);
                header[0] = (pages as u64) << 32;
                for page in 0..pages {
                    let part = PAGE.min(len - page * PAGE);
                    header[at] = part as u64;
                    header[at + 1] = memory::page_number(room.at) + page as u64;
                    at += 2;
                }
                let payload = [RNDIS_PACKET.into(), NO_SECTION.into(), 0, 0, 0];
                self.to_host
                    .push(kind::PAGES, 1, large, &header[..at], &payload)
            }
        };
        // There are fewer places than packets in a ring.
        assert!(sent, "no room in the ring");
    }

    /// The places of all small frames, to be written before anything is sent.
    pub fn sections(&self) -> impl Iterator<Item = Room> {
        let send = self.send;
        (0..SECTIONS).map(move |index| Room {
            at: send.wrapping_add(SECTION * index),
            transaction: index as u64,
        })
    }

    /// The same for large frames.
    pub fn large(&self) -> impl Iterator<Item = Room> {
        let large = self.large;
        (0..LARGE).map(move |index| Room {
            at: large.wrapping_add(LARGE_PAGES * PAGE * index),
            transaction: FIRST_LARGE + index as u64,
        })
    }

    #[inline]
    fn push_message(&mut self, flags: u16, transaction: u64, words: &[u32]) -> bool {
        let mut payload = [0; 5];
        for (index, word) in words.iter().enumerate() {
            payload[index / 2] |= u64::from(*word) << (32 * (index % 2));
        }
        self.to_host
            .push(kind::IN_BAND, flags, transaction, &[], &payload)
    }
}

/// Writes words from `at` on.
fn put(bytes: &mut [u8], at: usize, words: &[u32]) {
    for (to, word) in bytes[at..].as_chunks_mut::<4>().0.iter_mut().zip(words) {
        *to = word.to_le_bytes();
    }
}

/// Writes the header of a data message of `message` bytes with a frame of `len` [`FRONT`] bytes behind its start.
pub fn data_header(bytes: &mut [u8], len: usize, message: usize, about: Information) {
    let at = FRONT as u32 - 8;
    let info_len = if about.is_some() { 16 } else { 0 };
    let info_at = if about.is_some() { 36 } else { 0 };
    put(
        bytes,
        0,
        &[
            1,
            message as u32,
            at,
            len as u32,
            0,
            0,
            0,
            info_at,
            info_len,
            0,
            0,
        ],
    );
    let (kind, value) = about.unwrap_or_default();
    put(bytes, HEADER, &[16, kind, 12, value]);
}

/// The frame in a data message.
#[inline]
fn parse(message: &[u8]) -> Received<'_> {
    let word = |at: usize| u32::from_le_bytes(message[at..at + 4].try_into().unwrap()) as usize;
    let (at, len) = (word(8) + 8, word(12));
    let (mut item, end) = (word(28) + 8, word(28) + 8 + word(32));
    let mut more = false;
    while item < end {
        if word(item + 4) == information::PART as usize {
            // Bit 10 of the part's value: the last.
            more = word(item + word(item + 8)) & 0x400 == 0;
        }
        item += word(item).max(4);
    }
    Received {
        bytes: &message[at..at + len],
        more,
    }
}
