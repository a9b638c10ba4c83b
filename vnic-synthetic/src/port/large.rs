//! What a driver asks to be done to a frame, in the switch's form.
//!
//! NDIS leaves fields of a large frame to the adapter that the switch needs: the IPv4 total length and header checksum
//! may be zero, and the TCP checksum field holds the sum of a pseudo-header with the length or without it. They are
//! all written anew in the private head, so that they no longer depend on the driver.

use offload::checksum::{Sum, pseudo_v4, pseudo_v6};
use offload::parse::{Fragment, Headers, Network, PROTOCOL_TCP, Transport, parse};
use offload::{CsumAt, Gso, Request};
use vswitch::drops::DropReason;

use crate::rndis::packet::Sent;
use crate::wire::{array, put};

/// Bits of the checksum request (`NDIS_TCP_IP_CHECKSUM_NET_BUFFER_LIST_INFO`).
mod bit {
    pub(super) const TCP: u32 = 1 << 2;
    pub(super) const UDP: u32 = 1 << 3;
    pub(super) const IP_HEADER: u32 = 1 << 4;
}
/// Where the transport header starts, in bits 25:16 of the checksum request.
const HEADER_SHIFT: u32 = 16;
const HEADER_MASK: u32 = 0x3ff;
/// Segment size, in the low bits of a large send request.
const MSS_MASK: u32 = 0xf_ffff;
/// The request is of the second version, which says the version of IP.
const LARGE_V2: u32 = 1 << 30;
/// The frame is IPv6.
const LARGE_IPV6: u32 = 1 << 31;

const IPV4_TOTAL_LENGTH: usize = 2;
const IPV4_CHECKSUM: usize = 10;
const IPV6_PAYLOAD_LENGTH: usize = 4;
const IPV6_HEADER: u32 = 40;

/// The request for a frame of `len` bytes that starts with `head`; `head` is completed as the switch wants it. `shift` is by
/// how much offsets the driver knows have moved.
///
/// # Errors
/// `BadOffload`: the frame is not what the request says.
#[inline]
pub(super) fn request(
    head: &mut [u8],
    len: u32,
    sent: &Sent,
    shift: u16,
) -> Result<Request, DropReason> {
    match (sent.large_send, sent.checksum) {
        (None, None) => Ok(Request::default()),
        (None, Some(bits)) => checksum(head, len, bits, shift),
        (Some(value), _) => large(head, len, value).ok_or(DropReason::BadOffload),
    }
}

fn checksum(head: &mut [u8], len: u32, bits: u32, shift: u16) -> Result<Request, DropReason> {
    if bits & bit::IP_HEADER != 0 {
        let Network::V4 {
            offset, header_len, ..
        } = parse(head, len).network
        else {
            return Err(DropReason::BadOffload);
        };
        finish_ipv4_header(head, offset.into(), header_len.into());
    }
    let field = match bits & (bit::TCP | bit::UDP) {
        0 => return Ok(Request::default()),
        bit::TCP => CsumAt::TCP_OFFSET,
        bit::UDP => CsumAt::UDP_OFFSET,
        _ => return Err(DropReason::BadOffload),
    };
    let start = match (bits >> HEADER_SHIFT & HEADER_MASK) as u16 {
        // Not every driver says it.
        0 => match parse(head, len).transport {
            Transport::Tcp { offset, .. } | Transport::Udp { offset } => offset,
            _ => return Err(DropReason::BadOffload),
        },
        start => start + shift,
    };
    let csum = Some(CsumAt {
        start,
        offset: field,
    });
    Ok(Request {
        csum,
        ..Request::default()
    })
}

fn large(head: &mut [u8], len: u32, value: u32) -> Option<Request> {
    let mss = u16::try_from(value & MSS_MASK).ok()?;
    let v6 = value & LARGE_V2 != 0 && value & LARGE_IPV6 != 0;
    // The parser holds no length field against the frame, so it does not mind that one is 0.
    let headers = parse(head, len);
    let Transport::Tcp { offset: start, .. } = headers.transport else {
        return None;
    };
    let tcp_len = len.checked_sub(start.into())?;
    let pseudo = match (v6, &headers) {
        (false, headers) => complete_v4(head, len, headers, tcp_len)?,
        (true, headers) => complete_v6(head, len, headers, tcp_len)?,
    };
    let csum = CsumAt {
        start,
        offset: CsumAt::TCP_OFFSET,
    };
    put(head, csum.field(), pseudo.fold().to_be_bytes());
    // What is longer than its IP header can say is found out when the request is validated, as is a segment size of 0.
    let gso = match v6 {
        false => Gso::Tcp4 { mss, ecn: false },
        true => Gso::Tcp6 { mss, ecn: false },
    };
    Some(Request {
        csum: Some(csum),
        gso,
        csum_valid: false,
    })
}

/// Writes total length and header checksum; gives the sum of the pseudo-header.
fn complete_v4(head: &mut [u8], len: u32, headers: &Headers, tcp_len: u32) -> Option<Sum> {
    let Network::V4 {
        offset,
        header_len,
        fragment: Fragment::Whole,
        ..
    } = headers.network
    else {
        return None;
    };
    let at = usize::from(offset);
    let total = len.checked_sub(offset.into())? as u16;
    put(head, at + IPV4_TOTAL_LENGTH, total.to_be_bytes());
    finish_ipv4_header(head, at, header_len.into());
    let (source, destination) = (array(head, at + 12)?, array(head, at + 16)?);
    Some(pseudo_v4(source, destination, PROTOCOL_TCP, tcp_len as u16))
}

/// Writes the payload length; gives the sum of the pseudo-header.
fn complete_v6(head: &mut [u8], len: u32, headers: &Headers, tcp_len: u32) -> Option<Sum> {
    let Network::V6 {
        offset,
        fragment: Fragment::Whole,
        ..
    } = headers.network
    else {
        return None;
    };
    let at = usize::from(offset);
    let payload = len.checked_sub(u32::from(offset) + IPV6_HEADER)? as u16;
    put(head, at + IPV6_PAYLOAD_LENGTH, payload.to_be_bytes());
    let (source, destination) = (array(head, at + 8)?, array(head, at + 24)?);
    Some(pseudo_v6(source, destination, PROTOCOL_TCP, tcp_len))
}

fn finish_ipv4_header(head: &mut [u8], at: usize, len: usize) {
    put(head, at + IPV4_CHECKSUM, [0; 2]);
    let mut sum = Sum::new();
    sum.add_bytes(head.get(at..at + len).unwrap_or(&[]));
    put(head, at + IPV4_CHECKSUM, sum.checksum().to_be_bytes());
}
