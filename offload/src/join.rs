//! Joining TCP segments that follow one another into one large frame: what [`Segmenter`](crate::Segmenter) cuts, put
//! together again.
//!
//! Joined is only what would be cut into the same frames, bit by bit. So nothing is lost where a destination takes no
//! large frames, and who takes them has one frame to work on instead of dozens.

use crate::checksum::{Sum, pseudo_v4, pseudo_v6};
use crate::field::{array, be16, be32, put};
use crate::parse::{Fragment, IPV6_LEN, Network, PROTOCOL_TCP, Transport, parse, tcp_flags};
use crate::request::{CsumAt, Gso, Request};
use crate::unfinished_checksum;

// Offsets in the IPv4 header (RFC 791), the IPv6 header (RFC 8200) and the TCP header (RFC 9293).
const V4_TOTAL_LEN: usize = 2;
const V4_ID: usize = 4;
const V4_FRAGMENT: usize = 6;
const V4_CHECKSUM: usize = 10;
const V4_SOURCE: usize = 12;
const V4_LEN: usize = 20;
const V6_PAYLOAD_LEN: usize = 4;
const V6_NEXT: usize = 6;
const V6_SOURCE: usize = 8;
const TCP_SEQUENCE: usize = 4;
const TCP_ACKNOWLEDGMENT: usize = 8;
const TCP_FLAGS: usize = 13;
const TCP_WINDOW: usize = 14;
const TCP_CHECKSUM: usize = CsumAt::TCP_OFFSET as usize;
const TCP_URGENT: usize = 18;

/// TCP segments of one connection in the order of their bytes, as many as were joined so far.
///
/// The caller keeps the head of the first, and the payloads one behind the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joined {
    v4: bool,
    l3: usize,
    l4: usize,
    header_len: usize,
    /// Payload of the first segment, and of all others but the last.
    mss: u16,
    /// Payload of all.
    payload: u32,
    segments: u16,
    /// Of the last segment.
    flags: u8,
}

impl Joined {
    /// The frame of `len` bytes with the snapshot `head`, if others can be joined to it: a whole TCP segment with payload
    /// and no flag but ACK, without IPv4 options or IPv6 extension headers, and nothing behind the IP packet. Its
    /// checksums are not looked at.
    #[must_use]
    pub fn first(head: &[u8], len: u32) -> Option<Self> {
        let headers = parse(head, len);
        let (v4, l3) = match headers.network {
            Network::V4 {
                offset,
                fragment: Fragment::Whole,
                protocol: PROTOCOL_TCP,
                ..
            } => (true, usize::from(offset)),
            Network::V6 {
                offset,
                fragment: Fragment::Whole,
                next: PROTOCOL_TCP,
                ..
            } => (false, usize::from(offset)),
            _ => return None,
        };
        let Transport::Tcp {
            offset,
            header_len,
            flags: tcp_flags::ACK,
        } = headers.transport
        else {
            return None;
        };
        let l4 = usize::from(offset);
        if l4 - l3 != if v4 { V4_LEN } else { IPV6_LEN } {
            return None;
        }
        let header_len = l4 + usize::from(header_len);
        let payload = len.checked_sub(header_len as u32)?;
        let this = Self {
            v4,
            l3,
            l4,
            header_len,
            mss: u16::try_from(payload).ok().filter(|mss| *mss > 0)?,
            payload,
            segments: 1,
            flags: tcp_flags::ACK,
        };
        (this.packet_len(head)? == payload).then_some(this)
    }

    /// Segments that were joined.
    #[must_use]
    pub const fn segments(&self) -> u16 {
        self.segments
    }

    /// Bytes of headers: where the payload begins in each of the frames.
    #[must_use]
    pub const fn header_len(&self) -> usize {
        self.header_len
    }

    /// Payload that the length field of the IP header in `head` stands for.
    fn packet_len(&self, head: &[u8]) -> Option<u32> {
        let end = if self.v4 {
            self.l3 + usize::from(be16(head, self.l3 + V4_TOTAL_LEN)?)
        } else {
            self.l4 + usize::from(be16(head, self.l3 + V6_PAYLOAD_LEN)?)
        };
        Some(end.checked_sub(self.header_len)? as u32)
    }

    /// Joins the frame of `len` bytes with the snapshot `head` to those that begin with the snapshot `first`, if it is
    /// the next one: false if not, and nothing is changed. Its checksums are not looked at.
    pub fn join(&mut self, first: &[u8], head: &[u8], len: u32) -> bool {
        self.next(first, head, len)
            .map(|next| *self = next)
            .is_some()
    }

    fn next(&self, first: &[u8], head: &[u8], len: u32) -> Option<Self> {
        let payload = len.checked_sub(self.header_len as u32)?;
        let whole = self.payload + payload;
        let follows = (1..=u32::from(self.mss)).contains(&payload)
            // The one before was a full one, and not the last of what its sender wrote.
            && self.payload == u32::from(self.mss) * u32::from(self.segments)
            && self.flags == tcp_flags::ACK
            && (self.header_len - self.l3) as u32 + whole <= u32::from(u16::MAX)
            && self.packet_len(head)? == payload
            && be32(head, self.l4 + TCP_SEQUENCE)?
                == be32(first, self.l4 + TCP_SEQUENCE)?.wrapping_add(self.payload)
            && self.is_alike(first, head)?;
        let flags = *head.get(self.l4 + TCP_FLAGS)?;
        (follows && flags & !tcp_flags::PSH == tcp_flags::ACK).then_some(Self {
            payload: whole,
            segments: self.segments + 1,
            flags,
            ..*self
        })
    }

    /// Whether the headers differ only in what differs between the segments of a large frame.
    fn is_alike(&self, first: &[u8], head: &[u8]) -> Option<bool> {
        let (l3, l4) = (self.l3, self.l4);
        let same = |from: usize, to: usize| Some(head.get(from..to)? == first.get(from..to)?);
        let network = if self.v4 {
            let id = be16(first, l3 + V4_ID)?.wrapping_add(self.segments);
            be16(head, l3 + V4_ID)? == id
                && same(0, l3 + V4_TOTAL_LEN)?
                && same(l3 + V4_FRAGMENT, l3 + V4_CHECKSUM)?
                && same(l3 + V4_SOURCE, l4 + TCP_SEQUENCE)?
        } else {
            same(0, l3 + V6_PAYLOAD_LEN)? && same(l3 + V6_NEXT, l4 + TCP_SEQUENCE)?
        };
        Some(
            network
                && same(l4 + TCP_ACKNOWLEDGMENT, l4 + TCP_FLAGS)?
                && same(l4 + TCP_WINDOW, l4 + TCP_CHECKSUM)?
                && same(l4 + TCP_URGENT, self.header_len)?,
        )
    }

    /// Whether the checksums of one of the frames are right: that of its IPv4 header, and that of TCP or, if
    /// `unfinished` ones are known to come, where it was left to others. `sum` is that of what follows `head`, as
    /// [`Sum::add_partial`] takes it, and is asked for only where it counts.
    pub fn is_sound(
        &self,
        head: &[u8],
        len: u32,
        unfinished: bool,
        sum: impl FnOnce() -> Option<u64>,
    ) -> bool {
        let sound = || {
            if self.v4 {
                let mut header = Sum::new();
                header.add_bytes(head.get(self.l3..self.l4)?);
                if header.checksum() != 0 {
                    return Some(false);
                }
            }
            if unfinished && unfinished_checksum(head, len).is_some() {
                return Some(true);
            }
            let mut packet = self.pseudo(head, len.checked_sub(self.l4 as u32)?)?;
            packet.add_bytes(head.get(self.l4..)?);
            packet.add_partial(sum()?, (len as usize).checked_sub(head.len())?);
            Some(packet.checksum() == 0)
        };
        sound().unwrap_or(false)
    }

    /// The pseudo header of `len` bytes of TCP.
    fn pseudo(&self, head: &[u8], len: u32) -> Option<Sum> {
        let l3 = self.l3;
        Some(if self.v4 {
            let source = array(head, l3 + V4_SOURCE)?;
            let destination = array(head, l3 + V4_SOURCE + 4)?;
            pseudo_v4(source, destination, PROTOCOL_TCP, u16::try_from(len).ok()?)
        } else {
            let source = array(head, l3 + V6_SOURCE)?;
            let destination = array(head, l3 + V6_SOURCE + 16)?;
            pseudo_v6(source, destination, PROTOCOL_TCP, len)
        })
    }

    /// Makes the head of the first segment that of the large frame; gives the request that goes with it.
    pub fn finish(&self, first: &mut [u8]) -> Request {
        let (l3, l4) = (self.l3, self.l4);
        let tcp_len = (self.header_len - l4) as u32 + self.payload;
        if self.v4 {
            put(
                first,
                l3 + V4_TOTAL_LEN,
                (V4_LEN as u16 + tcp_len as u16).to_be_bytes(),
            );
            put(first, l3 + V4_CHECKSUM, [0; 2]);
            let mut header = Sum::new();
            header.add_bytes(first.get(l3..l4).unwrap_or(&[]));
            put(first, l3 + V4_CHECKSUM, header.checksum().to_be_bytes());
        } else {
            put(first, l3 + V6_PAYLOAD_LEN, (tcp_len as u16).to_be_bytes());
        }
        put(first, l4 + TCP_FLAGS, [self.flags]);
        let pseudo = self.pseudo(first, tcp_len).unwrap_or_default();
        put(first, l4 + TCP_CHECKSUM, pseudo.fold().to_be_bytes());
        let (mss, ecn) = (self.mss, false);
        Request {
            csum: Some(CsumAt {
                start: l4 as u16,
                offset: CsumAt::TCP_OFFSET,
            }),
            gso: if self.v4 {
                Gso::Tcp4 { mss, ecn }
            } else {
                Gso::Tcp6 { mss, ecn }
            },
            csum_valid: false,
        }
    }
}

#[cfg(test)]
mod tests;
