//! TCP segmentation: the private headers of each segment of a large frame. Bodies are not touched.

use crate::checksum::{Sum, add16};
use crate::field::{array, be16, be32, put};
use crate::parse::{IPV6_LEN, tcp_flags};
use crate::request::{Checked, CsumAt, Gso};
use crate::{HEAD_MAX, parse};

// Offsets in the IPv4 header (RFC 791), the IPv6 header (RFC 8200) and the TCP header (RFC 9293).
const V4_TOTAL_LEN: usize = 2;
const V4_ID: usize = 4;
const V4_CHECKSUM: usize = 10;
const V6_PAYLOAD_LEN: usize = 4;
const TCP_SEQUENCE: usize = 4;
const TCP_FLAGS: usize = 13;
const TCP_CHECKSUM: usize = CsumAt::TCP_OFFSET as usize;

/// One segment: `head_len` bytes of new headers, then `body_len` bytes of the frame from `body_offset`.
///
/// Its checksum is partial. To complete it, sum the new head from `csum.start` to `head_len` and then the body, and
/// store [`finish_checksum`](crate::finish_checksum) of that at `csum.field()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Length of the headers written, Ethernet to TCP.
    pub head_len: u16,
    /// First byte of the body, from the start of the large frame. What of it the snapshot holds is taken from there.
    pub body_offset: u32,
    /// Length of the body, at least 1.
    pub body_len: u32,
    /// Where the partial checksum is, in the new head.
    pub csum: CsumAt,
}

/// Cuts a large frame, a segment each [`next`](Self::next).
#[derive(Clone, Copy, Debug)]
pub struct Segmenter<'a> {
    headers: &'a [u8],
    l3: usize,
    l4: usize,
    ip: Ip,
    mss: u32,
    /// Start of the next segment's payload, from the start of the frame.
    at: u32,
    /// End of the frame.
    end: u32,
    sequence: u32,
    flags: u8,
    /// The partial checksum without the length.
    pseudo: u16,
}

#[derive(Clone, Copy, Debug)]
enum Ip {
    /// Sum of the header without length, identification and checksum; identification of the next segment.
    V4 {
        sum: u16,
        id: u16,
    },
    V6,
}

impl<'a> Segmenter<'a> {
    /// For the frame with the snapshot `head` and the length `len` that `checked` was made for (or for both after a tag
    /// edit), cut by [`Action::Segment`](crate::Action::Segment)'s `mss`. A frame that is not large, or an `mss` of
    /// zero, has no segments.
    #[inline]
    #[must_use]
    pub fn new(head: &'a [u8], checked: &Checked, len: u32, mss: u16) -> Self {
        Self::try_new(head, checked, len, mss).unwrap_or(Self {
            headers: &[],
            l3: 0,
            l4: 0,
            ip: Ip::V6,
            mss: 0,
            at: 0,
            end: 0,
            sequence: 0,
            flags: 0,
            pseudo: 0,
        })
    }

    fn try_new(head: &'a [u8], checked: &Checked, len: u32, mss: u16) -> Option<Self> {
        if mss == 0 {
            return None;
        }
        let head = parse::clip(head, len);
        let l3 = usize::from(checked.l2_len());
        let l4 = usize::from(checked.l4());
        let headers = head.get(..usize::from(checked.header_len()))?;
        let ip = match checked.request().gso {
            Gso::None => return None,
            Gso::Tcp4 { .. } => v4(headers.get(l3..l4)?)?,
            Gso::Tcp6 { .. } => Ip::V6,
        };
        // The field holds the pseudo-header sum of the large frame; only the length in it differs for a segment.
        let tcp_len = len.checked_sub(checked.l4().into())?;
        let pseudo = add16(be16(headers, l4 + TCP_CHECKSUM)?, !(tcp_len as u16));
        Some(Self {
            headers,
            l3,
            l4,
            ip,
            mss: mss.into(),
            at: u32::from(checked.header_len()),
            end: len,
            sequence: be32(headers, l4 + TCP_SEQUENCE)?,
            flags: *headers.get(l4 + TCP_FLAGS)?,
            pseudo,
        })
    }

    /// How many segments are still to come.
    #[inline]
    #[must_use]
    pub fn remaining(&self) -> u32 {
        match self.mss {
            0 => 0,
            mss => self.end.saturating_sub(self.at).div_ceil(mss),
        }
    }

    /// Writes the headers of the next segment to the start of `out`; `None` after the last.
    ///
    /// MAC addresses, tags, IP and TCP options are repeated. The IP length is set, the IPv4 identification counts up
    /// and the IPv4 header checksum is right. The sequence number advances; FIN and PSH are in the last segment only,
    /// CWR in the first only. The TCP checksum field holds the pseudo-header sum.
    #[inline]
    pub fn next(&mut self, out: &mut [u8; HEAD_MAX]) -> Option<Segment> {
        let body_len = self.end.saturating_sub(self.at).min(self.mss);
        if body_len == 0 {
            return None;
        }
        let head_len = self.headers.len();
        let head = out.get_mut(..head_len)?;
        head.copy_from_slice(self.headers);
        let segment = Segment {
            head_len: head_len as u16,
            body_offset: self.at,
            body_len,
            csum: CsumAt {
                start: self.l4 as u16,
                offset: CsumAt::TCP_OFFSET,
            },
        };
        self.at += body_len;
        self.write_ip(head, (head_len - self.l3) as u16 + body_len as u16);
        self.write_tcp(head, (head_len - self.l4) as u16 + body_len as u16);
        self.sequence = self.sequence.wrapping_add(body_len);
        self.flags &= !tcp_flags::CWR;
        Some(segment)
    }

    /// `len` is that of the IP header and all that follows it.
    #[inline]
    fn write_ip(&mut self, head: &mut [u8], len: u16) {
        let l3 = self.l3;
        match &mut self.ip {
            Ip::V4 { sum, id } => {
                let checksum = !add16(add16(*sum, len), *id);
                put(head, l3 + V4_TOTAL_LEN, len.to_be_bytes());
                put(head, l3 + V4_ID, id.to_be_bytes());
                put(head, l3 + V4_CHECKSUM, checksum.to_be_bytes());
                *id = id.wrapping_add(1);
            }
            Ip::V6 => put(
                head,
                l3 + V6_PAYLOAD_LEN,
                len.wrapping_sub(IPV6_LEN as u16).to_be_bytes(),
            ),
        }
    }

    /// `len` is that of the TCP header and the payload.
    #[inline]
    fn write_tcp(&self, head: &mut [u8], len: u16) {
        let last = self.at == self.end;
        let flags = if last {
            self.flags
        } else {
            self.flags & !(tcp_flags::FIN | tcp_flags::PSH)
        };
        put(head, self.l4 + TCP_SEQUENCE, self.sequence.to_be_bytes());
        put(head, self.l4 + TCP_FLAGS, [flags]);
        let pseudo = add16(self.pseudo, len);
        put(head, self.l4 + TCP_CHECKSUM, pseudo.to_be_bytes());
    }
}

fn v4(header: &[u8]) -> Option<Ip> {
    let mut fixed: [u8; 20] = array(header, 0)?;
    put(&mut fixed, V4_TOTAL_LEN, [0; 4]);
    put(&mut fixed, V4_CHECKSUM, [0; 2]);
    let mut sum = Sum::new();
    sum.add_bytes(&fixed);
    sum.add_bytes(header.get(fixed.len()..)?);
    Some(Ip::V4 {
        sum: sum.fold(),
        id: be16(header, V4_ID)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Request;
    use crate::request::validate;

    /// An untagged IPv4 frame of 54 bytes of headers and 5 of payload, cut into two segments.
    #[test]
    fn two_segments() {
        let frame = [
            &[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0][..],
            &[
                0x45, 0, 0, 45, 0xff, 0xff, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
            ],
            // CWR, ACK, PSH, FIN; the pseudo-header sum of 25 bytes of TCP.
            &[
                0, 80, 1, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 2, 0x50, 0x99, 1, 0, 0x14, 0x22, 0, 0,
            ],
            b"hello",
        ]
        .concat();
        let csum = CsumAt {
            start: 34,
            offset: 16,
        };
        let request = Request {
            csum: Some(csum),
            gso: Gso::Tcp4 { mss: 3, ecn: true },
            csum_valid: false,
        };
        let checked = validate(&request, &frame, 59).unwrap();
        let mut segments = Segmenter::new(&frame, &checked, 59, 3);
        let mut out = [0; HEAD_MAX];
        // Body, IPv4 total length, identification and checksum, sequence number, flags, pseudo-header sum.
        let expected = [
            (
                (54, 3),
                43u16,
                0xffffu16,
                0x26cbu16,
                0xffff_ffffu32,
                0x90,
                0x1420u16,
            ),
            ((57, 2), 42, 0x0000, 0x26cc, 2, 0x19, 0x141f),
        ];
        for (index, row) in expected.into_iter().enumerate() {
            let ((body_offset, body_len), total_len, id, checksum, sequence, flags, pseudo) = row;
            assert_eq!(segments.remaining(), 2 - index as u32);
            let segment = segments.next(&mut out).unwrap();
            assert_eq!(
                segment,
                Segment {
                    head_len: 54,
                    body_offset,
                    body_len,
                    csum
                }
            );
            let mut header = frame[..54].to_vec();
            header[16..18].copy_from_slice(&total_len.to_be_bytes());
            header[18..20].copy_from_slice(&id.to_be_bytes());
            header[24..26].copy_from_slice(&checksum.to_be_bytes());
            header[38..42].copy_from_slice(&sequence.to_be_bytes());
            header[47] = flags;
            header[50..52].copy_from_slice(&pseudo.to_be_bytes());
            assert_eq!(out[..54], header);
        }
        assert_eq!(segments.next(&mut out), None);
    }

    #[test]
    fn nothing_to_cut() {
        let frame = [0; 64];
        let plain = validate(&Request::default(), &frame, 64).unwrap();
        let mut segments = Segmenter::new(&frame, &plain, 64, 3);
        assert_eq!(segments.remaining(), 0);
        assert_eq!(segments.next(&mut [0; HEAD_MAX]), None);
    }
}
