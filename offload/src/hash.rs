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
