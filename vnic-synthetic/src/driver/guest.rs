//! The driver: it connects, opens its channel, sets its adapter up, and sends and receives.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use guestmem::Memory;
use vswitch::mac::Mac;
use vswitch::port::Sides;

use super::frame::{Carry, Frame, Received};
use super::heap::{Area, Heap};
use super::host::{Host, poll};
use super::ring::GuestRing;
use super::rndis::{control, data_header, read_data, word, words};
use crate::port::Config;

pub(super) const SECTION: u32 = 6144;
pub(super) const RING: u32 = 0xe1e10;
/// Per-packet information on which part of a frame it is.
const PART: u32 = 1 << 31 | 1;
const RECEIVE: u32 = 0xe1e11;
const SEND: u32 = 0xe1e12;
/// The connection that signals channel 1.
pub(super) const CONNECTION: u32 = 0x1_0001;

/// A guest to make.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Version of VMBus.
    pub bus: u32,
    /// Version of NVSP.
    pub nvsp: u32,
    /// IP bytes that the driver sets, from version 2 on.
    pub mtu: u32,
    /// Pages of each ring, control page included.
    pub ring: usize,
    /// Pages of the receive buffer.
    pub receive: usize,
    /// Pages of the send buffer; 0 for none.
    pub send: usize,
    /// Pages are no neighbours.
    pub scattered: bool,
    /// The adapter.
    pub config: Config,
}

impl Setup {
    /// As Linux does it.
    pub fn linux() -> Setup {
        Setup {
            bus: 0x5_0003,
            nvsp: 0x6_0001,
            mtu: 1500,
            ring: 32,
            receive: 512,
            send: 256,
            scattered: true,
            config: Config {
                mac: Mac([2, 0, 0, 0, 0, 1]),
                mac_may_change: false,
                link_up: true,
                channels: 1,
            },
        }
    }

    /// Pages of memory that the guest needs. The first is its own for what the host signals by.
    pub fn pages(&self) -> usize {
        2 * self.ring + self.receive + self.send + 1024
    }

    /// As iPXE does it: the first versions of everything, and no send buffer.
    pub fn ipxe() -> Setup {
        Setup {
            bus: 0xd,
            nvsp: 2,
            ring: 2,
            receive: 16,
            send: 0,
            ..Setup::linux()
        }
    }
}

/// A guest.
pub struct Guest {
    pub(super) setup: Setup,
    /// The host that serves it.
    pub host: Host,
    pub(super) heap: Heap,
    /// The ring to the host.
    pub to_host: GuestRing,
    /// The ring from the host.
    pub from_host: GuestRing,
    /// Rings of the sub-channels, to and from the host.
    pub(super) subs: Vec<(GuestRing, GuestRing)>,
    /// Packets of frames received by each channel.
    pub by_channel: [usize; crate::port::MAX_CHANNELS],
    receive: Area,
    /// Bytes of a section of the receive buffer.
    section: u32,
    pub(super) send: Option<Area>,
    /// Free sections of the send buffer.
    pub(super) sections: Vec<u32>,
    /// What was sent and is not answered: the section it is in, if it is in one.
    pub(super) outstanding: BTreeMap<u64, Option<u32>>,
    pub(super) next: u64,
    /// Answers to packets: transaction, payload.
    pub answers: VecDeque<(u64, Vec<u8>)>,
    /// Messages that the host sent by itself.
    pub notices: VecDeque<Vec<u8>>,
    /// Control messages of the adapter.
    pub controls: VecDeque<Vec<u8>>,
    /// Frames received.
    pub received: VecDeque<Received>,
    /// Give packets back when they were received; else they are kept in `held`.
    pub returns: bool,
    /// Packets that were not given back.
    pub held: Vec<(usize, u64)>,
    /// Ranges of received packets are not looked at: the guest may have taken its memory back.
    pub lenient: bool,
    pub(super) scratch: Vec<u8>,
}

impl Guest {
    /// Makes a guest, connects it to its bus and opens the channel of its adapter.
    pub fn new(setup: Setup) -> Guest {
        let memory = Memory::anonymous(setup.pages() * 4096).expect("memory of a test guest");
        let memory = Arc::new(memory);
        let host = Host::new(memory.clone(), setup.config);
        Guest::over(setup, memory, host)
    }

    /// The same in the memory `memory`, of [`Setup::pages`] at address 0, with the bus of `host`.
    pub fn over(setup: Setup, memory: Arc<Memory>, mut host: Host) -> Guest {
        let mut heap = Heap::over(memory, setup.scattered);
        let rings = heap.take(2 * setup.ring);
        let receive = heap.take(setup.receive);
        let send = (setup.send > 0).then(|| heap.take(setup.send));
        let sections = (0..setup.send as u32 * 4096 / SECTION).collect();
        // From version 5.0 on, the SINT for messages instead of an interrupt page.
        let page = if setup.bus < 0x5_0000 { 0x2000 } else { 2 };
        host.message(&message(14, &[setup.bus, 0, page, 0, 0, 0, 0, 0]));
        host.message(&message(3, &[]));
        share(&mut host, 1, RING, &rings);
        let (to_host, from_host) = guest_rings(&heap.memory, &rings, setup.ring);
        host.message(&message(5, &[1, 1, RING, 0, setup.ring as u32]));
        let opened = host.messages.last().expect("an answer");
        assert_eq!(word(opened, 0), 6, "result of opening");
        assert_eq!(word(opened, 16), 0, "the channel opens");
        Guest {
            setup,
            host,
            heap,
            to_host,
            from_host,
            subs: Vec::new(),
            by_channel: [0; crate::port::MAX_CHANNELS],
            receive,
            section: 0,
            send,
            sections,
            outstanding: BTreeMap::new(),
            next: 1,
            answers: VecDeque::new(),
            notices: VecDeque::new(),
            controls: VecDeque::new(),
            received: VecDeque::new(),
            returns: true,
            held: Vec::new(),
            lenient: false,
            scratch: Vec::new(),
        }
    }

    /// A guest whose driver is ready, and the sides of its port.
    pub fn ready(setup: Setup) -> (Guest, Sides) {
        let mut guest = Guest::new(setup);
        let mut sides = guest.host.adapter.sides();
        let tx = &mut *sides.tx;
        guest.bring_up(&mut || {
            poll(tx);
        });
        (guest, sides)
    }

    /// Its adapter, as it was made.
    pub fn config(&self) -> Config {
        self.setup.config
    }

    /// Its memory.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.heap.memory
    }

    /// Negotiates versions and buffers, and sets the adapter up to receive.
    pub fn bring_up(&mut self, step: &mut dyn FnMut()) {
        let nvsp = self.setup.nvsp;
        let init = self.ask(step, &[1, nvsp, nvsp]).expect("an answer");
        assert_eq!(
            (word(&init, 0), word(&init, 8 + 4)),
            (2, 1),
            "version {nvsp:#x}"
        );
        if nvsp > 2 {
            let config = [125, self.setup.mtu + 14, 0, 1 << 3 | 1 << 7, 0];
            assert_eq!(self.tell(step, &config, false), None);
        }
        let minor = if nvsp < 0x5_0000 { 1 } else { 0x1e };
        self.tell(step, &[100, 6, minor], nvsp == 2);
        share(&mut self.host, 1, RECEIVE, &self.receive);
        let answer = self.ask(step, &[101, RECEIVE, 0xcafe]).expect("an answer");
        assert_eq!(&answer[..8], words(&[102, 1]), "receive buffer");
        let (size, count) = (word(&answer, 16), word(&answer, 20));
        assert!(size > self.setup.mtu + 14 && size * count <= self.setup.receive as u32 * 4096);
        self.section = size;
        if let Some(send) = self.send.clone() {
            share(&mut self.host, 1, SEND, &send);
            let answer = self.ask(step, &[104, SEND, 0]).expect("an answer");
            assert_eq!(&answer[..12], words(&[105, 1, SECTION]), "send buffer");
        }
        let initialized = self.request(step, &control(2, &[1, 1, 0, 0x4000], &[]));
        assert_eq!(word(&initialized, 0), 0x8000_0002);
        assert_eq!(
            self.set(step, 0x0001_010e, &words(&[0x0d])),
            0,
            "packet filter"
        );
    }

    /// Sends a message of NVSP and gives the answer.
    pub fn ask(&mut self, step: &mut dyn FnMut(), message: &[u32]) -> Option<Vec<u8>> {
        self.tell(step, message, true)
    }

    fn tell(&mut self, step: &mut dyn FnMut(), message: &[u32], answered: bool) -> Option<Vec<u8>> {
        let mut payload = words(message);
        payload.resize(40, 0);
        let transaction = self.packet(6, answered, &[], &payload, None)?;
        step();
        self.poll();
        let index = self.answers.iter().position(|(id, _)| *id == transaction)?;
        self.answers.remove(index).map(|(_, answer)| answer)
    }

    /// Sends a control message by its pages, and gives the adapter's answer.
    pub fn request(&mut self, step: &mut dyn FnMut(), request: &[u8]) -> Vec<u8> {
        self.send_control(request);
        step();
        self.poll();
        self.controls.pop_front().expect("an answer")
    }

    /// Sends a control message, whatever it is.
    pub fn send_control(&mut self, request: &[u8]) -> u64 {
        self.try_send_control(request).expect("room in the ring")
    }

    /// Sends a control message, if there is room.
    pub fn try_send_control(&mut self, request: &[u8]) -> Option<u64> {
        let area = self.heap_page(request);
        let header = gpa_header(&area.pieces(0, request.len() as u32));
        let payload = rndis_packet(1, u32::MAX, 0);
        self.packet(9, true, &header, &payload, None)
    }

    /// Asks for the value of an object: status and value.
    pub fn query(&mut self, step: &mut dyn FnMut(), oid: u32, asked: &[u8]) -> (u32, Vec<u8>) {
        let body = [77, oid, asked.len() as u32, 20, 0];
        let answer = self.request(step, &control(4, &body, asked));
        assert_eq!((word(&answer, 0), word(&answer, 8)), (0x8000_0004, 77));
        assert_eq!(word(&answer, 4) as usize, answer.len());
        let (len, at) = (word(&answer, 16) as usize, word(&answer, 20) as usize + 8);
        (word(&answer, 12), answer[at..at + len].to_vec())
    }

    /// Sets the value of an object: status.
    pub fn set(&mut self, step: &mut dyn FnMut(), oid: u32, value: &[u8]) -> u32 {
        let body = [78, oid, value.len() as u32, 20, 0];
        let answer = self.request(step, &control(5, &body, value));
        assert_eq!((word(&answer, 0), word(&answer, 8)), (0x8000_0005, 78));
        word(&answer, 12)
    }

    /// Sends frames in one packet, as `carry` says; more than one only in the send buffer. Its transaction, if there was
    /// room.
    pub fn send(&mut self, carry: Carry, frames: &[Frame]) -> Option<u64> {
        let align = if frames.len() > 1 { 8 } else { 1 };
        let mut bytes = Vec::new();
        for frame in frames {
            let header = data_header(frame, align);
            let len = word(&header, 4) as usize;
            let end = bytes.len() + len;
            bytes.extend(header);
            bytes.extend(&frame.bytes);
            bytes.resize(end, 0);
        }
        self.send_raw(carry, &bytes)
    }

    /// Sends any bytes as data messages.
    pub fn send_raw(&mut self, carry: Carry, bytes: &[u8]) -> Option<u64> {
        // Of a mixed packet, the first header is in the section.
        let in_section = match carry {
            Carry::SendBuffer => bytes.len(),
            Carry::Pages => 0,
            Carry::Mixed => bytes.len().min(44),
        };
        let (front, rest) = bytes.split_at(in_section);
        let section = match front.is_empty() {
            true => None,
            false => Some(self.sections.pop()?),
        };
        if let (Some(section), Some(send)) = (section, &self.send) {
            send.pages
                .write(section * SECTION, front)
                .expect("a section");
        }
        let payload = rndis_packet(0, section.unwrap_or(u32::MAX), front.len() as u32);
        if rest.is_empty() {
            return self.packet(6, true, &[], &payload, section);
        }
        // At an odd place, so that headers cross pages.
        let area = self.heap.take((rest.len() + 4040).div_ceil(4096));
        area.pages.write(4040, rest).expect("own memory");
        let header = gpa_header(&area.pieces(4040, rest.len() as u32));
        self.packet(9, true, &header, &payload, section)
    }

    /// A page that starts with `bytes`.
    fn heap_page(&mut self, bytes: &[u8]) -> Area {
        let area = self.heap.take(bytes.len().div_ceil(4096).max(1));
        area.pages.write(0, bytes).expect("own memory");
        area
    }

    /// Writes a packet, and signals the host if it wants that.
    pub fn packet(
        &mut self,
        kind: u16,
        answered: bool,
        header: &[u8],
        payload: &[u8],
        section: Option<u32>,
    ) -> Option<u64> {
        let transaction = self.next;
        let flags = u16::from(answered);
        let signal = self
            .to_host
            .send(kind, flags, transaction, header, payload)?;
        self.next += 1;
        if answered {
            self.outstanding.insert(transaction, section);
        }
        if signal {
            self.host.signal(CONNECTION);
        }
        Some(transaction)
    }

    /// Takes everything the host sent. Received packets are given back, if `returns` says so.
    pub fn poll(&mut self) {
        let mut bytes = std::mem::take(&mut self.scratch);
        for channel in 0..=self.subs.len() {
            loop {
                let ring = match channel.checked_sub(1) {
                    None => &mut self.from_host,
                    Some(sub) => &mut self.subs[sub].1,
                };
                let Some((kind, flags, transaction, header)) = ring.receive_into(&mut bytes) else {
                    break;
                };
                assert_eq!(
                    flags,
                    u16::from(kind == 7),
                    "only received packets want an answer"
                );
                self.take_packet(channel, (kind, transaction), bytes.split_at(header));
            }
        }
        self.scratch = bytes;
        if self.returns {
            self.give_back();
        }
    }

    fn take_packet(
        &mut self,
        channel: usize,
        (kind, transaction): (u16, u64),
        (header, payload): (&[u8], &[u8]),
    ) {
        match kind {
            11 => {
                let section = self.outstanding.remove(&transaction);
                let section = section.expect("the answer to what was sent");
                self.sections.extend(section);
                self.answers.push_back((transaction, payload.to_vec()));
            }
            6 => self.notices.push_back(payload.to_vec()),
            7 => {
                assert_eq!(word(payload, 0), 107);
                let control = word(payload, 4) == 1;
                self.by_channel[channel] += usize::from(!control);
                self.take_ranges(&header[16..], control);
                self.held.push((channel, transaction));
            }
            _ => panic!("packet of type {kind}"),
        }
    }

    /// Gives back the packets that were held.
    pub fn give_back(&mut self) {
        // iPXE answers with nothing, Linux with a message.
        let payload = match self.setup.nvsp {
            2 => vec![],
            _ => words(&[108, 1]),
        };
        for (channel, transaction) in std::mem::take(&mut self.held) {
            let ring = match channel.checked_sub(1) {
                None => &mut self.to_host,
                Some(sub) => &mut self.subs[sub].0,
            };
            match ring.send(11, 0, transaction, &[], &payload) {
                Some(true) => self.host.signal(CONNECTION + channel as u32),
                Some(false) => {}
                None => self.held.push((channel, transaction)),
            }
        }
    }

    fn take_ranges(&mut self, header: &[u8], control: bool) {
        if self.lenient {
            return;
        }
        assert_eq!(header[..2], 0xcafe_u16.to_le_bytes(), "the receive buffer");
        let mut open: Option<Received> = None;
        for index in 0..word(header, 4) as usize {
            let (len, at) = (word(header, 8 + 8 * index), word(header, 12 + 8 * index));
            assert!(len <= self.section, "longer than a section");
            let mut message = vec![0; len as usize];
            self.receive
                .pages
                .read(at, &mut message)
                .expect("a section");
            match control {
                true => self.controls.push_back(message),
                false => self.received.extend(join(&mut open, read_data(&message))),
            }
        }
        assert_eq!(open, None, "a frame ends with its packet");
    }

    /// Packets that were sent and are not answered.
    pub fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// Closes the channel and takes all memory back, as a driver that is unloaded does.
    pub fn shut_down(&mut self) {
        self.host.message(&message(7, &[1]));
        for gpadl in [RING, RECEIVE, SEND] {
            self.host.message(&message(11, &[1, gpadl]));
            let answer = self.host.messages.last().expect("an answer");
            assert_eq!((word(answer, 0), word(answer, 8)), (12, gpadl));
        }
        self.host.message(&message(16, &[]));
        assert_eq!(word(self.host.messages.last().expect("an answer"), 0), 17);
    }
}

/// Adds a part to the frame that is open; gives the frame once it is whole.
fn join(open: &mut Option<Received>, mut part: Received) -> Option<Received> {
    let flags = part.info.iter().find(|(kind, _)| *kind == PART);
    let Some((_, flags)) = flags.copied() else {
        assert_eq!(*open, None, "a whole frame between parts");
        return Some(part);
    };
    part.info.retain(|(kind, _)| *kind != PART);
    assert_eq!(flags & 0x1ff, 1 << 8 | 1, "version 1, a part");
    match open {
        None => {
            assert_ne!(flags & 0x200, 0, "the first");
            *open = Some(part);
        }
        Some(frame) => {
            assert_eq!((flags & 0x200, part.info.len()), (0, 0), "not the first");
            frame.bytes.extend(part.bytes);
            frame.parts += 1;
        }
    }
    open.take_if(|_| flags & 0x400 != 0)
}

/// A message of VMBus.
pub(super) fn message(kind: u32, body: &[u32]) -> Vec<u8> {
    words(&[&[kind, 0], body].concat())
}

/// The message that announces RNDIS messages.
pub(super) fn rndis_packet(channel: u32, section: u32, len: u32) -> Vec<u8> {
    let mut payload = words(&[107, channel, section, len]);
    payload.resize(40, 0);
    payload
}

/// The header of a packet about pages, a range each, as Linux writes it.
fn gpa_header(pieces: &[(u64, u32, u32)]) -> Vec<u8> {
    let mut header = words(&[0, pieces.len() as u32]);
    for (page, offset, len) in pieces {
        header.extend(words(&[*len, *offset]));
        header.extend(page.to_le_bytes());
    }
    header
}

/// Shares the pages of `area`.
pub(super) fn share(host: &mut Host, relid: u32, gpadl: u32, area: &Area) {
    let mut ranges = words(&[area.range.len, area.range.offset]);
    ranges.extend(area.range.pages.iter().flat_map(|page| page.to_le_bytes()));
    let (first, mut rest) = ranges.split_at(ranges.len().min(216));
    let mut header = message(8, &[relid, gpadl, ranges.len() as u32 | 1 << 16]);
    header.extend(first);
    host.message(&header);
    while !rest.is_empty() {
        let (part, later) = rest.split_at(rest.len().min(224));
        let mut body = message(9, &[0, gpadl]);
        body.extend(part);
        host.message(&body);
        rest = later;
    }
    let answer = host.messages.last().expect("an answer");
    assert_eq!(
        (word(answer, 0), word(answer, 12), word(answer, 16)),
        (10, gpadl, 0)
    );
}

/// The guest's ends of both rings, `count` pages each.
pub(super) fn guest_rings(
    memory: &Arc<Memory>,
    area: &Area,
    count: usize,
) -> (GuestRing, GuestRing) {
    let ring = |first: usize| {
        let pages = &area.range.pages[first + 1..first + count];
        let range = crate::vmbus::PageRange {
            offset: 0,
            len: pages.len() as u32 * 4096,
            pages: pages.into(),
        };
        let data = crate::vmbus::pages::Pages::new(memory, &range).expect("own pages");
        GuestRing::new(memory, area.range.pages[first] * 4096, data)
    };
    (ring(0), ring(count))
}
