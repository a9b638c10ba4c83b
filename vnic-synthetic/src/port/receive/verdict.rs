//! What a driver is told about a frame's checksums.

use offload::parse::{Fragment, Network, Transport, parse};

use crate::rndis::offload::Receive;
use crate::rndis::packet::verdict;

/// Verdicts on the frame of `len` bytes that starts with `head`, as far as the driver wants them. `sound`: its transport
/// checksum is right, whoever found that out.
#[inline]
pub(super) fn verdicts(receive: &Receive, head: &[u8], len: u32, sound: bool) -> u32 {
    if !receive.any_checksum() {
        return 0;
    }
    let headers = parse(head, len);
    let (v4, whole, ip) = match headers.network {
        Network::V4 {
            offset,
            header_len,
            fragment,
            ..
        } => {
            let (start, end) = (usize::from(offset), usize::from(offset + header_len));
            let right = receive.ip4 && head.get(start..end).is_some_and(is_sound);
            let ip = if right { verdict::IP4 } else { 0 };
            (true, fragment == Fragment::Whole, ip)
        }
        Network::V6 { fragment, .. } => (false, fragment == Fragment::Whole, 0),
        _ => return 0,
    };
    let transport = match headers.transport {
        Transport::Tcp { .. } if v4 && receive.tcp4 || !v4 && receive.tcp6 => verdict::TCP,
        Transport::Udp { .. } if v4 && receive.udp4 || !v4 && receive.udp6 => verdict::UDP,
        _ => 0,
    };
    ip | if sound && whole { transport } else { 0 }
}

/// Whether an IPv4 header's checksum is right.
#[inline]
pub(super) fn is_sound(header: &[u8]) -> bool {
    let mut sum = offload::Sum::new();
    sum.add_bytes(header);
    sum.checksum() == 0
}
