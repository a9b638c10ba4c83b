//! What a sender asks the switch to do for a frame, and whether the frame bears it.

use crate::SNAPSHOT;
use crate::parse::{self, Fragment, Headers, Network, PROTOCOL_TCP, Transport, tcp_flags};
use crate::tag::{Link, TagEdit};

/// Most segments that one frame may stand for. It bounds the work that a frame can cause: a payload of 64 KiB needs a
/// segment size of at least 64 bytes; the smallest segment size otherwise is 1.
pub const MAX_SEGMENTS: u32 = 1024;

/// Offload request of a frame, in normal form, whatever kind of port it came from.
///
/// With `csum` the checksum field holds the sum (not complemented) of the pseudo-header, its length field included.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Request {
    /// The checksum is partial: it must be completed before the frame reaches somebody who expects a full one.
    pub csum: Option<CsumAt>,
    /// The frame stands for several segments.
    pub gso: Gso,
    /// The sender vouches for the checksums of the frame. A port whose peer is not trusted with that clears it.
    pub csum_valid: bool,
}

/// Where a partial checksum is: it covers the bytes from `start` to the end of the frame.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct CsumAt {
    /// First byte summed, from the start of the frame.
    pub start: u16,
    /// The checksum field, from `start`.
    pub offset: u16,
}

impl Request {
    /// Whether the switch has nothing to do: neither a checksum to complete nor a large frame to cut.
    #[inline]
    #[must_use]
    pub const fn asks_nothing(&self) -> bool {
        matches!((self.csum, self.gso), (None, Gso::None))
    }
}

impl CsumAt {
    /// The checksum field in a TCP header.
    pub const TCP_OFFSET: u16 = 16;
    /// The checksum field in a UDP header.
    pub const UDP_OFFSET: u16 = 6;
    /// The checksum field in an ICMP header.
    const ICMP_OFFSET: u16 = 2;

    /// The checksum field, from the start of the frame.
    #[inline]
    #[must_use]
    pub const fn field(self) -> usize {
        self.start as usize + self.offset as usize
    }

    /// The same place in a frame whose tag was edited.
    #[inline]
    #[must_use]
    pub const fn moved(self, edit: TagEdit) -> Self {
        Self {
            start: self.start.saturating_add_signed(edit.delta() as i16),
            offset: self.offset,
        }
    }
}

/// Generic segmentation: how a large frame is cut. UDP is not offered.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub enum Gso {
    /// Not a large frame.
    #[default]
    None,
    /// TCP over IPv4.
    Tcp4 {
        /// Most TCP payload bytes in a segment.
        mss: u16,
        /// The frame has CWR set: the first segment keeps it, the others do not (RFC 3168 section 6.1.2).
        ecn: bool,
    },
    /// TCP over IPv6.
    Tcp6 {
        /// Most TCP payload bytes in a segment.
        mss: u16,
        /// As in `Tcp4`.
        ecn: bool,
    },
}

impl Gso {
    pub(crate) const fn with_mss(self, mss: u16) -> Self {
        match self {
            Self::None => Self::None,
            Self::Tcp4 { ecn, .. } => Self::Tcp4 { mss, ecn },
            Self::Tcp6 { ecn, .. } => Self::Tcp6 { mss, ecn },
        }
    }
}

/// Why a request is refused. The frame is dropped for [`name`](Self::name).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum RequestError {
    /// Shorter than an Ethernet header.
    #[error("frame is shorter than an Ethernet header of 14 bytes")]
    Runt,
    /// Unknown or not offered: UDP segmentation, ECN without TCP segmentation.
    #[error("segmentation type is not one of none, TCPv4, TCPv6, or the latter two with ECN")]
    GsoType,
    /// Segmentation without a partial checksum.
    #[error("segmentation is requested without a partial checksum")]
    GsoWithoutCsum,
    /// Not a whole TCP packet of the version that the type says, with all headers in the snapshot.
    #[error(
        "segmentation is requested for headers that are not those of its type, or beyond the snapshot"
    )]
    GsoHeaders,
    /// Segment size zero.
    #[error("segment size is 0")]
    GsoSize,
    /// More than [`MAX_SEGMENTS`].
    #[error("frame stands for more than {MAX_SEGMENTS} segments")]
    GsoSegments,
    /// A large frame that does not fit the 16-bit length of its IP header.
    #[error("large frame is longer than its IP header can say")]
    GsoTooLong,
    /// Start or field of the partial checksum beyond the snapshot or the frame.
    #[error("partial checksum lies beyond the snapshot or the frame")]
    CsumRange,
    /// Filling it in would overwrite a header field that is not a checksum, or it is not the one that GSO needs.
    #[error("partial checksum is not at a transport checksum field or in the payload")]
    CsumPlace,
}

impl RequestError {
    /// Stable name, for counters.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Runt => "runt",
            Self::GsoType => "gso_type",
            Self::GsoWithoutCsum => "gso_without_csum",
            Self::GsoHeaders => "gso_headers",
            Self::GsoSize => "gso_size",
            Self::GsoSegments => "gso_segments",
            Self::GsoTooLong => "gso_too_long",
            Self::CsumRange => "csum_range",
            Self::CsumPlace => "csum_place",
        }
    }
}

/// A request that holds for its frame, and where the headers are that it needs. Only [`validate`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    request: Request,
    l2_len: u8,
    l4: u8,
    header_len: u8,
}

impl Checked {
    /// What [`validate`] says of a frame whose sender asks for nothing, and whose Ethernet header has no tag of any kind.
    #[inline]
    #[must_use]
    pub const fn untagged(csum_valid: bool) -> Self {
        Self {
            request: Request {
                csum: None,
                gso: Gso::None,
                csum_valid,
            },
            l2_len: crate::ETHER_LEN as u8,
            l4: 0,
            header_len: 0,
        }
    }

    /// The request in force. It differs from what the sender asked for in two ways: a large frame that needs no cutting
    /// is a plain one, and `ecn` says whether CWR is set.
    #[inline]
    #[must_use]
    pub const fn request(&self) -> Request {
        self.request
    }

    /// Length of the Ethernet header with its tags.
    #[inline]
    #[must_use]
    pub const fn l2_len(&self) -> u16 {
        self.l2_len as u16
    }

    /// Start of the TCP header of a large frame; 0 for any other frame.
    #[inline]
    #[must_use]
    pub const fn l4(&self) -> u16 {
        self.l4 as u16
    }

    /// Length of all headers of a large frame, Ethernet to TCP; 0 for any other frame.
    #[inline]
    #[must_use]
    pub const fn header_len(&self) -> u16 {
        self.header_len as u16
    }

    /// The same for the frame after `edit` changed its tag.
    #[inline]
    #[must_use]
    pub fn retagged(mut self, edit: TagEdit) -> Self {
        let delta = edit.delta();
        self.l2_len = self.l2_len.saturating_add_signed(delta);
        if self.header_len != 0 {
            self.l4 = self.l4.saturating_add_signed(delta);
            self.header_len = self.header_len.saturating_add_signed(delta);
        }
        self.request.csum = self.request.csum.map(|at| at.moved(edit));
        self
    }
}

/// Holds `request` against the snapshot `head` of a frame of `len` bytes.
///
/// A partial checksum must lie in the snapshot, and filling it in must not change what the switch judges a frame by: it
/// is at the checksum field of the transport header, or behind the headers (tunnels), and where headers are malformed or
/// cut off there is none. Segmentation is granted to whole
/// TCP packets with all headers in the snapshot, their checksum partial, at most [`MAX_SEGMENTS`] segments, and a length
/// that the IP header can say. A large frame that fits one segment becomes a plain one with a partial checksum.
///
/// # Errors
/// See [`RequestError`].
#[inline]
pub fn validate(request: &Request, head: &[u8], len: u32) -> Result<Checked, RequestError> {
    let head = head.get(..SNAPSHOT.min(len as usize)).unwrap_or(head);
    let link = Link::parse(head).ok_or(RequestError::Runt)?;
    let plain = Checked {
        request: *request,
        l2_len: link.len as u8,
        l4: 0,
        header_len: 0,
    };
    let Some(at) = request.csum else {
        return match request.gso {
            Gso::None => Ok(plain),
            _ => Err(RequestError::GsoWithoutCsum),
        };
    };
    if at.field() + 2 > head.len() {
        return Err(RequestError::CsumRange);
    }
    let headers = parse::parse(head, len);
    match request.gso {
        Gso::None if is_harmless(at, &headers) => Ok(plain),
        Gso::None => Err(RequestError::CsumPlace),
        Gso::Tcp4 { mss, .. } | Gso::Tcp6 { mss, .. } => large(plain, mss, &headers, len),
    }
}

/// Filling in the checksum changes a transport checksum or payload, nothing else. Where a header that the parser knows
/// is malformed or cut off, it could make a valid one of it, so there it is refused.
#[inline]
fn is_harmless(at: CsumAt, headers: &Headers) -> bool {
    let (l4, field, end) = match headers.transport {
        Transport::None => return behind_network(headers).is_some_and(|end| at.start >= end),
        Transport::Tcp {
            offset, header_len, ..
        } => (offset, CsumAt::TCP_OFFSET, offset + header_len),
        Transport::Udp { offset } => (offset, CsumAt::UDP_OFFSET, offset + 8),
        // Its message is judged as a whole.
        Transport::Icmp { offset, .. } | Transport::Nd { offset, .. } => {
            (offset, CsumAt::ICMP_OFFSET, u16::MAX)
        }
    };
    (at.start == l4 && at.offset == field) || (at.start >= l4 && at.field() >= usize::from(end))
}

/// Where the headers end of a frame without transport header, if what follows is nothing that the parser knows.
#[inline]
fn behind_network(headers: &Headers) -> Option<u16> {
    let (end, known) = match headers.network {
        Network::None => (headers.l2_len, parse::is_network(headers.ethertype)),
        Network::Arp { offset, .. } => (offset, true),
        Network::V4 {
            offset,
            header_len,
            fragment,
            protocol,
            ..
        } => (
            offset + header_len,
            fragment != Fragment::Later && parse::is_transport_v4(protocol),
        ),
        Network::V6 {
            offset,
            header_len,
            fragment,
            next,
        } => (
            offset + header_len,
            fragment != Fragment::Later && parse::is_transport_v6(next),
        ),
    };
    (!known).then_some(end)
}

#[inline]
fn large(
    mut checked: Checked,
    mss: u16,
    headers: &Headers,
    len: u32,
) -> Result<Checked, RequestError> {
    // Bytes in front of what the IP length field counts.
    let uncounted = match (checked.request.gso, headers.network) {
        (
            Gso::Tcp4 { .. },
            Network::V4 {
                offset,
                fragment: Fragment::Whole,
                protocol: PROTOCOL_TCP,
                ..
            },
        ) => offset,
        (
            Gso::Tcp6 { .. },
            Network::V6 {
                offset,
                fragment: Fragment::Whole,
                next: PROTOCOL_TCP,
                ..
            },
        ) => offset + parse::IPV6_LEN as u16,
        _ => return Err(RequestError::GsoHeaders),
    };
    let Transport::Tcp {
        offset,
        header_len,
        flags,
    } = headers.transport
    else {
        return Err(RequestError::GsoHeaders);
    };
    let at = CsumAt {
        start: offset,
        offset: CsumAt::TCP_OFFSET,
    };
    if checked.request.csum != Some(at) {
        return Err(RequestError::CsumPlace);
    }
    if mss == 0 {
        return Err(RequestError::GsoSize);
    }
    if len.saturating_sub(u32::from(uncounted)) > u32::from(u16::MAX) {
        return Err(RequestError::GsoTooLong);
    }
    let headers_end = offset + header_len;
    let payload = len.saturating_sub(u32::from(headers_end));
    if payload <= u32::from(mss) {
        checked.request.gso = Gso::None;
        return Ok(checked);
    }
    if payload.div_ceil(u32::from(mss)) > MAX_SEGMENTS {
        return Err(RequestError::GsoSegments);
    }
    // A sender may repeat a large frame with its ECN mark but without CWR, so the header is what counts.
    let ecn = flags & tcp_flags::CWR != 0;
    checked.request.gso = match checked.request.gso {
        Gso::None => Gso::None,
        Gso::Tcp4 { .. } => Gso::Tcp4 { mss, ecn },
        Gso::Tcp6 { .. } => Gso::Tcp6 { mss, ecn },
    };
    checked.l4 = offset as u8;
    checked.header_len = headers_end as u8;
    Ok(checked)
}

#[cfg(test)]
mod tests;
