//! Recognising a checksum that its sender left to hardware, where nothing says so.

use crate::checksum::{pseudo_v4, pseudo_v6};
use crate::field::{array, be16};
use crate::parse::{Fragment, Network, PROTOCOL_TCP, PROTOCOL_UDP, Transport, parse};
use crate::request::CsumAt;

/// Where the TCP or UDP checksum of a whole packet is that looks unfinished: its field holds the sum of the pseudo
/// header and nothing else, as senders leave it for hardware to complete. To complete it gives a right checksum even if
/// it was right before.
#[must_use]
pub fn unfinished_checksum(head: &[u8], len: u32) -> Option<CsumAt> {
    let headers = parse(head, len);
    let (start, offset, protocol) = match headers.transport {
        Transport::Tcp { offset, .. } => (offset, CsumAt::TCP_OFFSET, PROTOCOL_TCP),
        Transport::Udp { offset } => (offset, CsumAt::UDP_OFFSET, PROTOCOL_UDP),
        _ => return None,
    };
    let pseudo = match headers.network {
        Network::V4 {
            offset,
            header_len,
            fragment: Fragment::Whole,
            ..
        } => {
            let l3 = usize::from(offset);
            let transport_len = be16(head, l3 + 2)?.checked_sub(header_len)?;
            pseudo_v4(
                array(head, l3 + 12)?,
                array(head, l3 + 16)?,
                protocol,
                transport_len,
            )
        }
        Network::V6 {
            offset,
            header_len,
            fragment: Fragment::Whole,
            ..
        } => {
            let l3 = usize::from(offset);
            let after_fixed = u32::from(be16(head, l3 + 4)?);
            let transport_len = (after_fixed + 40).checked_sub(u32::from(header_len))?;
            pseudo_v6(
                array(head, l3 + 8)?,
                array(head, l3 + 24)?,
                protocol,
                transport_len,
            )
        }
        _ => return None,
    };
    let at = CsumAt { start, offset };
    (be16(head, at.field())? == pseudo.fold()).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::{Sum, finish_checksum};

    /// Ethernet, IPv4, UDP with 4 bytes of payload; checksum field `csum`.
    fn udp(csum: u16) -> Vec<u8> {
        let mut frame = vec![0; 14 + 20 + 8 + 4];
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        frame[14..18].copy_from_slice(&[0x45, 0, 0, 32]);
        frame[23] = PROTOCOL_UDP;
        frame[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        frame[34..42].copy_from_slice(&[0x30, 0x39, 0, 53, 0, 12, 0, 0]);
        frame[42..46].copy_from_slice(b"data");
        frame[40..42].copy_from_slice(&csum.to_be_bytes());
        frame
    }

    #[test]
    fn tells_the_pseudo_header_sum_from_a_checksum() {
        let pseudo = pseudo_v4([10, 0, 0, 1], [10, 0, 0, 2], PROTOCOL_UDP, 12).fold();
        let frame = udp(pseudo);
        let at = unfinished_checksum(&frame, frame.len() as u32);
        assert_eq!(
            at,
            Some(CsumAt {
                start: 34,
                offset: 6
            })
        );
        let mut sum = Sum::new();
        sum.add_bytes(&frame[34..]);
        let finished = udp(finish_checksum(sum, at.unwrap()));
        assert_eq!(unfinished_checksum(&finished, finished.len() as u32), None);
        assert_eq!(unfinished_checksum(&udp(0), 46), None, "no checksum at all");
        assert_eq!(unfinished_checksum(&frame[..41], 46), None, "cut off");
    }

    #[test]
    fn fragments_are_left_alone() {
        let mut frame = udp(pseudo_v4([10, 0, 0, 1], [10, 0, 0, 2], PROTOCOL_UDP, 12).fold());
        frame[20] = 0x20;
        assert_eq!(unfinished_checksum(&frame, frame.len() as u32), None);
    }
}
