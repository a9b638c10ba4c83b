//! Flow hash: which frames must keep their order.

use crate::field::array;
use crate::parse::{Fragment, Network, Transport, parse};

/// Hash of a frame's flow, for choosing a queue. Both directions of a flow have the same hash.
///
/// A flow is the addresses and ports of TCP or UDP; the addresses alone for other IP packets and for all fragments,
/// which do not all have ports; the MAC addresses for anything else. It is not keyed: who picks addresses can pick
/// collisions, which slows that sender's own flows only.
#[inline]
#[must_use]
pub fn flow_hash(head: &[u8], len: u32) -> u32 {
    let headers = parse(head, len);
    let (fragment, pair) = match headers.network {
        Network::V4 {
            offset, fragment, ..
        } => (fragment, pair_v4(head, offset)),
        Network::V6 {
            offset, fragment, ..
        } => (fragment, pair_v6(head, offset)),
        Network::None | Network::Arp { .. } => (Fragment::Whole, pair_mac(head)),
    };
    let (source, destination) = pair.unwrap_or_default();
    let ports = match (fragment, headers.transport) {
        (Fragment::Whole, Transport::Tcp { offset, .. } | Transport::Udp { offset }) => {
            array(head, offset.into())
        }
        _ => None,
    };
    let [s0, s1, d0, d1] = ports.unwrap_or_default();
    let source = mix(source ^ u64::from(u16::from_be_bytes([s0, s1])));
    let destination = mix(destination ^ u64::from(u16::from_be_bytes([d0, d1])));
    // Addition forgets which end is which.
    (mix(source.wrapping_add(destination)) >> 32) as u32
}

/// One address at each end, as numbers whose low 16 bits are free for a port.
type Pair = (u64, u64);

fn pair_v4(head: &[u8], offset: u16) -> Option<Pair> {
    let addresses: [u8; 8] = array(head, usize::from(offset) + 12)?;
    let both = u64::from_be_bytes(addresses);
    Some(((both >> 32) << 16, (both & 0xffff_ffff) << 16))
}

fn pair_v6(head: &[u8], offset: u16) -> Option<Pair> {
    let word = |at: usize| array(head, usize::from(offset) + at).map(u64::from_be_bytes);
    Some((
        mix(word(8)?).wrapping_add(word(16)?),
        mix(word(24)?).wrapping_add(word(32)?),
    ))
}

fn pair_mac(head: &[u8]) -> Option<Pair> {
    let mac = |[a, b, c, d, e, f]: [u8; 6]| u64::from_be_bytes([a, b, c, d, e, f, 0, 0]);
    Some((mac(array(head, 6)?), mac(array(head, 0)?)))
}

/// Spreads every input bit over the word (the finalizer of `MurmurHash3`, one round).
#[inline]
const fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let word = (word ^ (word >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    word ^ (word >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn frame(ethertype: [u8; 2], rest: &[&[u8]]) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        frame.extend(ethertype);
        frame.extend(rest.concat());
        frame
    }

    fn hash(frame: &[u8]) -> u32 {
        flow_hash(frame, frame.len() as u32)
    }

    fn v4(fragment: u8, source: (u8, u16), destination: (u8, u16)) -> u32 {
        let ip = [
            0x45,
            0,
            0,
            28,
            0,
            1,
            fragment,
            0,
            64,
            17,
            0,
            0,
            10,
            0,
            0,
            source.0,
            10,
            0,
            0,
            destination.0,
        ];
        let ports = [source.1.to_be_bytes(), destination.1.to_be_bytes()].concat();
        hash(&frame([8, 0], &[&ip, &ports, &[0, 8, 0, 0]]))
    }

    fn v6(source: (u8, u16), destination: (u8, u16)) -> u32 {
        let addresses = [[source.0; 16], [destination.0; 16]].concat();
        let ports = [source.1.to_be_bytes(), destination.1.to_be_bytes()].concat();
        hash(&frame(
            [0x86, 0xdd],
            &[
                &[0x60, 0, 0, 0, 0, 8, 17, 64],
                &addresses,
                &ports,
                &[0, 8, 0, 0],
            ],
        ))
    }

    #[test]
    fn both_directions_are_one_flow() {
        assert_eq!(v4(0, (1, 1000), (2, 53)), v4(0, (2, 53), (1, 1000)));
        assert_eq!(v6((1, 1000), (2, 53)), v6((2, 53), (1, 1000)));
    }

    #[test]
    fn ports_count_unless_fragmented() {
        assert_ne!(v4(0, (1, 1000), (2, 53)), v4(0, (1, 1001), (2, 53)));
        assert_ne!(v6((1, 1000), (2, 53)), v6((1, 1001), (2, 53)));
        assert_eq!(v4(0x20, (1, 1000), (2, 53)), v4(0x20, (1, 1001), (2, 53)));
        assert_eq!(v4(0x20, (1, 1000), (2, 53)), v4(0x01, (1, 1001), (2, 53)));
        assert_ne!(v4(0x20, (1, 0), (2, 0)), v4(0x20, (1, 0), (3, 0)));
    }

    #[test]
    fn other_frames_by_mac() {
        let mut one = frame([0x90, 0], &[&[1]]);
        let hash_one = hash(&one);
        one[14] = 2;
        assert_eq!(hash(&one), hash_one);
        one[11] = 3;
        assert_ne!(hash(&one), hash_one);
    }

    /// Neighbouring ports, as clients use them, fill all of 8 queues: 4096 flows give each some 512.
    #[test]
    fn flows_spread_over_queues() {
        let mut queues = [0u32; 8];
        let mut hashes = HashSet::new();
        for port in 0..4096 {
            let hash = v4(0, (1, 32768 + port), (2, 80));
            hashes.insert(hash);
            queues[(hash % 8) as usize] += 1;
        }
        assert!(
            queues.iter().all(|queue| (400..=620).contains(queue)),
            "{queues:?}"
        );
        assert!(hashes.len() > 4090, "{}", hashes.len());
    }
}
