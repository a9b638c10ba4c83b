//! Finds the headers of a frame: Ethernet with tags, ARP, IPv4, IPv6 with extension headers, TCP, UDP, ICMP and
//! neighbour discovery.
//!
//! All offsets are bytes from the start of the frame, and what they name lies inside the head.

use crate::HEAD_MAX;
use crate::field::{array, be16};
use crate::tag::{Link, Tag};

/// Ethertype of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// Ethertype of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// Ethertype of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// IP protocol number of TCP.
pub const PROTOCOL_TCP: u8 = 6;
/// IP protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_ICMPV6: u8 = 58;

// IPv6 extension headers.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

/// Length of the fixed IPv6 header.
pub(crate) const IPV6_LEN: usize = 40;

/// TCP flag bits as in byte 13 of the header (RFC 9293 section 3.1).
pub mod tcp_flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Push function.
    pub const PSH: u8 = 0x08;
    /// The acknowledgment number counts.
    pub const ACK: u8 = 0x10;
    /// Congestion window reduced (RFC 3168).
    pub const CWR: u8 = 0x80;
}

/// What [`parse`](fn@parse) found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Length of the Ethernet header with all tags that were stepped over (at most two): 14, 18 or 22; 0 for a frame
    /// shorter than 14 bytes.
    pub l2_len: u16,
    /// The first tag if its TPID is 0x8100.
    pub tag: Option<Tag>,
    /// The type behind the tags (below 0x600 it is an 802.3 length). It is still a TPID if that tag is cut off, or if
    /// more than two tags are stacked.
    pub ethertype: u16,
    /// The network layer.
    pub network: Network,
    /// The transport layer.
    pub transport: Transport,
}

/// Where a packet stands in a fragmented IP datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// Not fragmented (an atomic fragment, RFC 6946, counts as whole).
    Whole,
    /// The first fragment: it has the transport header.
    First,
    /// Any other fragment: payload only.
    Later,
}

impl Fragment {
    const fn new(offset: u16, more: bool) -> Self {
        match (offset, more) {
            (0, false) => Self::Whole,
            (0, true) => Self::First,
            _ => Self::Later,
        }
    }
}

/// The network layer of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Another protocol, or cut off, or malformed.
    None,
    /// IPv4 (RFC 791).
    V4 {
        /// Start of the header.
        offset: u16,
        /// Length of the header with options, 20 to 60.
        header_len: u16,
        /// Place in a fragmented datagram.
        fragment: Fragment,
        /// Protocol of the payload.
        protocol: u8,
        /// The total length field as the sender wrote it; it is not held against the frame's length.
        total_len: u16,
    },
    /// IPv6 (RFC 8200).
    V6 {
        /// Start of the header.
        offset: u16,
        /// Length of the header with the extension headers that were stepped over, at least 40.
        header_len: u16,
        /// Type of the header behind them: a transport, or an extension header that is cut off or unknown.
        next: u8,
        /// Place in a fragmented datagram.
        fragment: Fragment,
    },
    /// ARP for IPv4 over Ethernet (RFC 826).
    Arp {
        /// Start of the packet.
        offset: u16,
        /// 1 request, 2 reply.
        operation: u16,
        /// Sender hardware address.
        sender_mac: [u8; 6],
        /// Sender protocol address.
        sender_ip: [u8; 4],
        /// Target protocol address.
        target_ip: [u8; 4],
    },
}

/// The transport layer of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Another protocol, a later fragment, or cut off, or malformed.
    None,
    /// TCP (RFC 9293).
    Tcp {
        /// Start of the header.
        offset: u16,
        /// Length of the header with options, 20 to 60.
        header_len: u16,
        /// The flags of byte 13; see [`tcp_flags`].
        flags: u8,
    },
    /// UDP (RFC 768).
    Udp {
        /// Start of the header.
        offset: u16,
    },
    /// ICMP over IPv4 (RFC 792), or ICMPv6 (RFC 4443) that is not neighbour discovery or is too short for it.
    Icmp {
        /// Start of the header.
        offset: u16,
        /// Type field.
        kind: u8,
        /// Code field.
        code: u8,
    },
    /// Neighbour discovery (RFC 4861).
    Nd {
        /// Start of the ICMPv6 header.
        offset: u16,
        /// Which message.
        message: NdMessage,
    },
}

/// A neighbour discovery message (RFC 4861 section 4). Only type and length were looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NdMessage {
    /// Type 133.
    RouterSolicitation,
    /// Type 134.
    RouterAdvertisement,
    /// Type 135, with its target address.
    NeighborSolicitation([u8; 16]),
    /// Type 136, with its target address.
    NeighborAdvertisement([u8; 16]),
    /// Type 137, with its target address.
    Redirect([u8; 16]),
}

/// Parses the snapshot `head` of a frame of `len` bytes. A layer that is cut off or malformed is `None`, and so are
/// the layers above it.
#[inline]
#[must_use]
pub fn parse(head: &[u8], len: u32) -> Headers {
    let head = clip(head, len);
    let Some(link) = Link::parse(head) else {
        return Headers {
            l2_len: 0,
            tag: None,
            ethertype: 0,
            network: Network::None,
            transport: Transport::None,
        };
    };
    let (network, transport) = match link.ethertype {
        ETHERTYPE_IPV4 => ipv4(head, link.len),
        ETHERTYPE_IPV6 => ipv6(head, link.len),
        ETHERTYPE_ARP => arp(head, link.len).map(|network| (network, Transport::None)),
        _ => None,
    }
    .unwrap_or((Network::None, Transport::None));
    Headers {
        l2_len: link.len,
        tag: link.tag,
        ethertype: link.ethertype,
        network,
        transport,
    }
}

/// Behind this ethertype the parser looks for a network header.
#[inline]
pub(crate) const fn is_network(ethertype: u16) -> bool {
    matches!(ethertype, ETHERTYPE_IPV4 | ETHERTYPE_IPV6 | ETHERTYPE_ARP)
}

/// Behind an IPv4 header with this protocol the parser looks for a transport header.
#[inline]
pub(crate) const fn is_transport_v4(protocol: u8) -> bool {
    matches!(protocol, PROTOCOL_TCP | PROTOCOL_UDP | PROTOCOL_ICMP)
}

/// Behind an IPv6 header with this next header the parser looks for a transport or an extension header.
#[inline]
pub(crate) const fn is_transport_v6(next: u8) -> bool {
    matches!(next, PROTOCOL_TCP | PROTOCOL_UDP | PROTOCOL_ICMPV6)
        || matches!(
            next,
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION
        )
}

/// `head` without what lies behind the end of the frame, and never longer than a head can be: so offsets stay small.
#[inline]
pub(crate) fn clip(head: &[u8], len: u32) -> &[u8] {
    head.get(..HEAD_MAX.min(len as usize)).unwrap_or(head)
}

/// `head` without what lies behind the end of the IP packet. A length of zero is not one: a sender that leaves cutting
/// to others may leave the length to them too.
#[inline]
fn packet(head: &[u8], offset: u16, packet_len: usize) -> &[u8] {
    if packet_len == 0 {
        return head;
    }
    head.get(..usize::from(offset) + packet_len).unwrap_or(head)
}

#[inline]
fn ipv4(head: &[u8], offset: u16) -> Option<(Network, Transport)> {
    let header: [u8; 20] = array(head, usize::from(offset))?;
    let [
        version_ihl,
        _,
        len_high,
        len_low,
        _,
        _,
        frag_high,
        frag_low,
        _,
        protocol,
        ..,
    ] = header;
    let header_len = u16::from(version_ihl & 0x0f) * 4;
    let end = offset + header_len;
    if version_ihl >> 4 != 4 || header_len < 20 || usize::from(end) > head.len() {
        return None;
    }
    let total_len = u16::from_be_bytes([len_high, len_low]);
    if total_len != 0 && total_len < header_len {
        return None;
    }
    let frag = u16::from_be_bytes([frag_high, frag_low]);
    let fragment = Fragment::new(frag & 0x1fff, frag & 0x2000 != 0);
    let payload = packet(head, offset, usize::from(total_len));
    let transport = match (fragment, protocol) {
        (Fragment::Later, _) => None,
        (_, PROTOCOL_TCP) => tcp(payload, end),
        (_, PROTOCOL_UDP) => udp(payload, end),
        (_, PROTOCOL_ICMP) => icmp(payload, end),
        _ => None,
    }
    .unwrap_or(Transport::None);
    let network = Network::V4 {
        offset,
        header_len,
        fragment,
        protocol,
        total_len,
    };
    Some((network, transport))
}

#[inline]
fn ipv6(head: &[u8], offset: u16) -> Option<(Network, Transport)> {
    let start = usize::from(offset);
    let [version, _, _, _, len_high, len_low, next, _] = array(head, start)?;
    if version >> 4 != 6 || head.len() < start + IPV6_LEN {
        return None;
    }
    let payload_len = usize::from(u16::from_be_bytes([len_high, len_low]));
    let payload = match payload_len {
        0 => head,
        _ => packet(head, offset, IPV6_LEN + payload_len),
    };
    let chain = extension_headers(payload, start + IPV6_LEN, next);
    let end = chain.end as u16;
    let transport = match (chain.fragment, chain.next) {
        (Fragment::Later, _) => None,
        (_, PROTOCOL_TCP) => tcp(payload, end),
        (_, PROTOCOL_UDP) => udp(payload, end),
        (_, PROTOCOL_ICMPV6) => icmpv6(payload, end),
        _ => None,
    }
    .unwrap_or(Transport::None);
    let network = Network::V6 {
        offset,
        header_len: end - offset,
        next: chain.next,
        fragment: chain.fragment,
    };
    Some((network, transport))
}

struct Chain {
    end: usize,
    next: u8,
    fragment: Fragment,
}

/// Steps over the extension headers (RFC 8200 section 4, RFC 4302) that start at `end` and lie wholly in `head`.
#[inline]
fn extension_headers(head: &[u8], end: usize, next: u8) -> Chain {
    let mut chain = Chain {
        end,
        next,
        fragment: Fragment::Whole,
    };
    // Every step moves `end` by at least 8 inside the head, so this ends. What follows the header of a later fragment
    // is payload.
    while chain.fragment != Fragment::Later {
        let Some([next, len, high, low]) = array(head, chain.end) else {
            break;
        };
        let (header_len, fragment) = match chain.next {
            HOP_BY_HOP | ROUTING | DESTINATION => (usize::from(len) * 8 + 8, chain.fragment),
            // Its length counts 4-byte words less two, and it is never shorter than its fixed part of 12 bytes.
            AUTHENTICATION if len >= 1 => (usize::from(len) * 4 + 8, chain.fragment),
            FRAGMENT => {
                let field = u16::from_be_bytes([high, low]);
                (8, Fragment::new(field >> 3, field & 1 != 0))
            }
            _ => break,
        };
        if head.len() < chain.end + header_len {
            break;
        }
        chain = Chain {
            end: chain.end + header_len,
            next,
            fragment,
        };
    }
    chain
}

#[inline]
fn arp(head: &[u8], offset: u16) -> Option<Network> {
    let at = usize::from(offset);
    // Hardware type Ethernet, protocol type IPv4, address lengths 6 and 4.
    if array(head, at)? != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    Some(Network::Arp {
        offset,
        operation: be16(head, at + 6)?,
        sender_mac: array(head, at + 8)?,
        sender_ip: array(head, at + 14)?,
        target_ip: array(head, at + 24)?,
    })
}

#[inline]
fn tcp(head: &[u8], offset: u16) -> Option<Transport> {
    let header: [u8; 20] = array(head, usize::from(offset))?;
    let [_, _, _, _, _, _, _, _, _, _, _, _, data_offset, flags, ..] = header;
    let header_len = u16::from(data_offset >> 4) * 4;
    if header_len < 20 || usize::from(offset + header_len) > head.len() {
        return None;
    }
    Some(Transport::Tcp {
        offset,
        header_len,
        flags,
    })
}

#[inline]
fn udp(head: &[u8], offset: u16) -> Option<Transport> {
    let _: [u8; 8] = array(head, usize::from(offset))?;
    Some(Transport::Udp { offset })
}

#[inline]
fn icmp(head: &[u8], offset: u16) -> Option<Transport> {
    let [kind, code, _, _] = array(head, usize::from(offset))?;
    Some(Transport::Icmp { offset, kind, code })
}

#[inline]
fn icmpv6(head: &[u8], offset: u16) -> Option<Transport> {
    let at = usize::from(offset);
    let [kind, code, _, _] = array(head, at)?;
    let holds = |len: usize| head.len() >= at + len;
    let target = array(head, at + 8);
    let message = match (kind, target) {
        (133, _) if holds(8) => NdMessage::RouterSolicitation,
        (134, _) if holds(16) => NdMessage::RouterAdvertisement,
        (135, Some(target)) => NdMessage::NeighborSolicitation(target),
        (136, Some(target)) => NdMessage::NeighborAdvertisement(target),
        (137, Some(target)) if holds(40) => NdMessage::Redirect(target),
        _ => return Some(Transport::Icmp { offset, kind, code }),
    };
    Some(Transport::Nd { offset, message })
}

#[cfg(test)]
mod tests;
