//! TCP segments of one flow that become one large frame for a driver that agreed to that.
//!
//! The rules are those by which the large frame can be cut again into just these segments: the next sequence number, the
//! same acknowledgement, window, options, type of service and lifetime, identification one higher, the size of the first,
//! and nothing behind a shorter one or one that is pushed.

use offload::Sum;
use offload::checksum::{pseudo_v4, pseudo_v6};
use offload::parse::PROTOCOL_TCP;

use super::verdict::is_sound;
use crate::wire::{array, put};

/// Bytes of the Ethernet header; with a tag, a frame is left alone.
const IP: usize = 14;
/// Bytes of headers, at most: Ethernet, IPv6, TCP with all options.
const MAX_HEADERS: usize = 114;
/// The longest IP packet.
const MAX_PACKET: usize = 65_535;

/// Where the checksum is in the TCP header.
const CHECKSUM: usize = 16;

const ACK: u8 = 0x10;
const PSH: u8 = 0x08;

/// A TCP segment that could be part of a large frame.
#[derive(Clone, Copy)]
pub(super) struct Segment<'a> {
    headers: &'a [u8],
    /// Where TCP starts.
    tcp: usize,
    sequence: u32,
    /// Bytes of payload.
    payload: usize,
}

impl<'a> Segment<'a> {
    /// The segment in the frame of `len` bytes that starts with `head`; `None` for anything but plain data.
    #[inline]
    pub(super) fn parse(head: &'a [u8], len: u32) -> Option<Segment<'a>> {
        let frame = len as usize;
        let number = |at| array(head, at).map(u16::from_be_bytes);
        let byte = |at: usize| head.get(at).copied();
        let tcp = match number(12)? {
            0x0800 if byte(IP)? == 0x45 => {
                let plain = number(IP + 6)? & 0x3fff == 0 && byte(IP + 9)? == PROTOCOL_TCP;
                let whole = usize::from(number(IP + 2)?) == frame - IP;
                let header = head.get(IP..IP + 20)?;
                (plain && whole && is_sound(header)).then_some(IP + 20)?
            }
            0x86dd if byte(IP)? >> 4 == 6 && byte(IP + 6)? == PROTOCOL_TCP => {
                let whole = usize::from(number(IP + 4)?) == frame.checked_sub(IP + 40)?;
                whole.then_some(IP + 40)?
            }
            _ => return None,
        };
        let [offset, flags] = array(head, tcp + 12)?;
        let end = tcp + usize::from(offset >> 4) * 4;
        let plain = offset & 0xf == 0 && flags & !PSH == ACK && end >= tcp + 20;
        let payload = frame.checked_sub(end).filter(|payload| *payload > 0)?;
        Some(Segment {
            headers: head.get(..end).filter(|_| plain)?,
            tcp,
            sequence: u32::from_be_bytes(array(head, tcp + 4)?),
            payload,
        })
    }

    /// Bytes of headers.
    pub(super) fn header_len(&self) -> usize {
        self.headers.len()
    }

    pub(super) fn is_v4(&self) -> bool {
        self.tcp == IP + 20
    }

    /// What pseudo-header and TCP header sum to: together with the payload it is 0 if the TCP checksum is right.
    pub(super) fn sum(&self) -> Sum {
        sum(self.headers, self.tcp, self.payload)
    }

    fn identification(&self) -> u16 {
        array(self.headers, IP + 4).map_or(0, u16::from_be_bytes)
    }

    fn flags(&self) -> u8 {
        self.headers.get(self.tcp + 13).copied().unwrap_or(0)
    }
}

/// Segments that follow each other.
pub(super) struct Flow {
    headers: [u8; MAX_HEADERS],
    header_len: usize,
    tcp: usize,
    /// Sequence number of the next.
    next: u32,
    /// Bytes of payload of the first.
    size: usize,
    /// Bytes of all payload.
    total: usize,
    /// The sum of all payload, by the segments' checksums.
    payload: Sum,
    segments: u16,
    /// Nothing comes behind the last.
    closed: bool,
}

impl Flow {
    /// One segment, the headers of which sum to `sum`.
    pub(super) fn new(first: &Segment<'_>, sum: Sum) -> Flow {
        let mut headers = [0; MAX_HEADERS];
        put_all(&mut headers, first.headers);
        Flow {
            headers,
            header_len: first.headers.len(),
            tcp: first.tcp,
            next: first.sequence.wrapping_add(first.payload as u32),
            size: first.payload,
            total: first.payload,
            payload: payload_sum(Sum::new(), first, sum),
            segments: 1,
            closed: first.flags() & PSH != 0,
        }
    }

    fn headers(&self) -> &[u8] {
        self.headers.get(..self.header_len).unwrap_or(&[])
    }

    /// Segments so far.
    pub(super) fn segments(&self) -> u16 {
        self.segments
    }

    /// Whether `segment` is the next.
    #[inline]
    pub(super) fn takes(&self, segment: &Segment<'_>) -> bool {
        let (mine, its) = (self.headers(), segment.headers);
        let length = mine.len() - IP + self.total + segment.payload;
        let same = |from: usize, to: usize| mine.get(from..to) == its.get(from..to);
        let ip = match segment.is_v4() {
            // All but length, identification and checksum.
            true => {
                let first = array(mine, IP + 4).map_or(0, u16::from_be_bytes);
                same(0, IP + 2)
                    && same(IP + 6, IP + 10)
                    && same(IP + 12, self.tcp)
                    && segment.identification() == first.wrapping_add(self.segments)
            }
            // All but length.
            false => same(0, IP + 4) && same(IP + 6, self.tcp),
        };
        let tcp = self.tcp;
        // All but sequence number, PSH and checksum.
        let transport = same(tcp, tcp + 4)
            && same(tcp + 8, tcp + 13)
            && same(tcp + 14, tcp + 16)
            && same(tcp + 18, mine.len());
        !self.closed
            && tcp == segment.tcp
            && mine.len() == its.len()
            && segment.sequence == self.next
            && segment.payload <= self.size
            && length <= MAX_PACKET
            && ip
            && transport
    }

    /// Takes `segment`, which is the next and the headers of which sum to `sum`.
    pub(super) fn add(&mut self, segment: &Segment<'_>, sum: Sum) {
        self.next = self.next.wrapping_add(segment.payload as u32);
        self.total += segment.payload;
        self.payload = payload_sum(self.payload, segment, sum);
        self.segments += 1;
        self.closed = segment.payload < self.size || segment.flags() & PSH != 0;
        let flags = segment.flags() & PSH | self.headers.get(self.tcp + 13).copied().unwrap_or(0);
        put(&mut self.headers, self.tcp + 13, [flags]);
    }

    /// The headers of the large frame, from its start. Its checksums are right if those of all segments were.
    pub(super) fn finish(&mut self) -> &[u8] {
        let length = self.header_len - IP + self.total;
        if self.tcp == IP + 20 {
            put(&mut self.headers, IP + 2, (length as u16).to_be_bytes());
            put(&mut self.headers, IP + 10, [0; 2]);
            let mut sum = Sum::new();
            sum.add_bytes(self.headers.get(IP..self.tcp).unwrap_or(&[]));
            put(&mut self.headers, IP + 10, sum.checksum().to_be_bytes());
        } else {
            let payload = (length - 40) as u16;
            put(&mut self.headers, IP + 4, payload.to_be_bytes());
        }
        put(&mut self.headers, self.tcp + CHECKSUM, [0; 2]);
        let headers = self.headers.get(..self.header_len).unwrap_or(&[]);
        let mut sum = sum(headers, self.tcp, self.total);
        sum.add_partial(self.payload.fold().to_be().into(), self.total);
        put(
            &mut self.headers,
            self.tcp + CHECKSUM,
            sum.checksum().to_be_bytes(),
        );
        self.headers()
    }
}

/// What the pseudo-header of a segment with so many bytes of payload, and its TCP header at `tcp`, sum to.
fn sum(headers: &[u8], tcp: usize, payload: usize) -> Sum {
    let len = headers.len() - tcp + payload;
    let mut sum = match tcp == IP + 20 {
        true => {
            let address = |at| array(headers, at).unwrap_or_default();
            pseudo_v4(address(IP + 12), address(IP + 16), PROTOCOL_TCP, len as u16)
        }
        false => {
            let address = |at| array(headers, at).unwrap_or_default();
            pseudo_v6(address(IP + 8), address(IP + 24), PROTOCOL_TCP, len as u32)
        }
    };
    sum.add_bytes(headers.get(tcp..).unwrap_or(&[]));
    sum
}

/// Adds a segment's payload to the sum of what is in front of it: what its headers' sum lacks to 0.
fn payload_sum(mut before: Sum, segment: &Segment<'_>, headers: Sum) -> Sum {
    before.add_partial(headers.checksum().to_be().into(), segment.payload);
    before
}

fn put_all(to: &mut [u8], from: &[u8]) {
    if let Some(to) = to.get_mut(..from.len()) {
        to.copy_from_slice(from);
    }
}
