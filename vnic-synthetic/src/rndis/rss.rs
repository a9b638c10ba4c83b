//! Receive-side scaling: which channel a received frame goes to.

use arrayvec::ArrayVec;
use offload::parse::{Fragment, Network, Transport, parse};

use crate::wire::{put, put32, u16_at, u32_at};

/// Bytes of a frame that are hashed, at most: two IPv6 addresses and two ports.
const MAX_INPUT: usize = 36;

/// Entries of an indirection table, at most.
pub const MAX_TABLE: usize = 128;
/// Bytes of a hash key.
pub const KEY: usize = 40;
/// Bytes of the capabilities.
pub const CAPABILITIES: usize = 20;

const OBJECT_CAPABILITIES: u8 = 0x88;
const OBJECT_PARAMETERS: u8 = 0x89;
/// The Toeplitz function, over IPv4 and IPv6 and the ports of TCP.
const CAPABILITY_FLAGS: u32 = 0x0000_0001 | 0x0000_0100 | 0x0000_0200;
/// The hash information of the parameters holds functions in its low byte; 0 turns scaling off.
const FUNCTION_MASK: u32 = 0xff;
/// The Toeplitz function, the only one that is offered.
const TOEPLITZ: u32 = 1;

/// What a frame's hash covers: the bits of the hash information above the function.
mod types {
    pub(super) const IPV4: u32 = 0x100;
    pub(super) const TCP_IPV4: u32 = 0x200;
    pub(super) const IPV6: u32 = 0x400;
    pub(super) const TCP_IPV6: u32 = 0x1000;
}

/// Flags of the parameters: what they leave as it was, and off.
mod flag {
    pub(super) const HASH_UNCHANGED: u16 = 0x2;
    pub(super) const TABLE_UNCHANGED: u16 = 0x4;
    pub(super) const KEY_UNCHANGED: u16 = 0x8;
    pub(super) const DISABLE: u16 = 0x10;
}

/// What the adapter offers (`NDIS_RECEIVE_SCALE_CAPABILITIES`) with so many channels.
pub fn capabilities(channels: u32) -> [u8; CAPABILITIES] {
    let mut bytes = [0; CAPABILITIES];
    put(&mut bytes, 0, [OBJECT_CAPABILITIES, 2]);
    put(&mut bytes, 2, (CAPABILITIES as u16).to_le_bytes());
    put32(&mut bytes, 4, CAPABILITY_FLAGS);
    put32(&mut bytes, 8, channels);
    put32(&mut bytes, 12, channels);
    put(&mut bytes, 16, (MAX_TABLE as u16).to_le_bytes());
    bytes
}

/// What a driver set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scaling {
    /// For each value of the hash, modulo its length, the channel.
    pub table: ArrayVec<u8, MAX_TABLE>,
    /// Key of the hash.
    pub key: [u8; KEY],
    /// Which packets are hashed, and whether with their ports (`NDIS_HASH_*`).
    pub hash: u32,
}

impl Scaling {
    /// Reads parameters (`NDIS_RECEIVE_SCALE_PARAMETERS`) for an adapter of `channels` channels, of which some may be to
    /// stay as they are in `now`: `Some(None)` turns scaling off, `None` are no valid parameters.
    pub fn parse(bytes: &[u8], channels: u32, now: Option<&Scaling>) -> Option<Option<Scaling>> {
        if bytes.first() != Some(&OBJECT_PARAMETERS) {
            return None;
        }
        let (flags, hash) = (u16_at(bytes, 4)?, u32_at(bytes, 8)?);
        let unchanged = |flag| flags & flag != 0;
        let hash = match unchanged(flag::HASH_UNCHANGED) {
            false => hash,
            true => now.map_or(0, |now| now.hash),
        };
        match hash & FUNCTION_MASK {
            _ if unchanged(flag::DISABLE) => return Some(None),
            0 => return Some(None),
            TOEPLITZ => {}
            _ => return None,
        }
        let part = |len: usize, at: usize| {
            let len = usize::from(u16_at(bytes, len)?);
            let at = u32_at(bytes, at)? as usize;
            bytes.get(at..at.checked_add(len)?)
        };
        let mut table = ArrayVec::new();
        if unchanged(flag::TABLE_UNCHANGED) {
            table.clone_from(&now?.table);
        } else {
            for entry in part(12, 16)?.chunks_exact(4) {
                let channel = u32_at(entry, 0).filter(|channel| *channel < channels)?;
                table.try_push(channel as u8).ok()?;
            }
        }
        let key = match unchanged(flag::KEY_UNCHANGED) {
            false => *part(20, 24)?.first_chunk()?,
            true => now?.key,
        };
        let whole = table.len().is_power_of_two();
        whole.then_some(Some(Scaling { table, key, hash }))
    }

    /// The channel for the frame of `len` bytes that starts with `head`: the primary one for what is not IP.
    #[inline]
    pub fn channel(&self, head: &[u8], len: u32) -> usize {
        let Some(input) = input(head, len, self.hash) else {
            return 0;
        };
        let last = self.table.len().wrapping_sub(1);
        let entry = self.table.get(self.hash(&input) as usize & last);
        entry.map_or(0, |channel| usize::from(*channel))
    }

    /// The Toeplitz hash: for each bit of the input that is set, the 32 bits of the key that start with that bit's place.
    fn hash(&self, input: &[u8]) -> u32 {
        let (first, rest) = self.key.split_first_chunk().unwrap_or((&[0; 8], &[]));
        let mut window = u64::from_be_bytes(*first);
        let mut rest = rest.iter();
        let mut hash = 0;
        for byte in input {
            for bit in (0..8).rev() {
                if byte >> bit & 1 != 0 {
                    hash ^= (window >> 32) as u32;
                }
                window <<= 1;
            }
            window |= u64::from(rest.next().copied().unwrap_or(0));
        }
        hash
    }
}

/// What `hash` covers of a frame: addresses, and the ports of a TCP segment that is not a fragment. `None` for what is not
/// IP, and what is not to be hashed.
#[inline]
fn input(head: &[u8], len: u32, hash: u32) -> Option<ArrayVec<u8, MAX_INPUT>> {
    let headers = parse(head, len);
    let (at, size, whole, ip, tcp) = match headers.network {
        Network::V4 {
            offset, fragment, ..
        } => {
            let whole = fragment == Fragment::Whole;
            (offset + 12, 8, whole, types::IPV4, types::TCP_IPV4)
        }
        Network::V6 {
            offset, fragment, ..
        } => {
            let whole = fragment == Fragment::Whole;
            (offset + 8, 32, whole, types::IPV6, types::TCP_IPV6)
        }
        _ => return None,
    };
    let bytes = |at: u16, size: usize| head.get(at.into()..usize::from(at) + size);
    let mut input = ArrayVec::new();
    input.try_extend_from_slice(bytes(at, size)?).ok()?;
    if let (true, Transport::Tcp { offset, .. }) = (whole && hash & tcp != 0, headers.transport) {
        input.try_extend_from_slice(bytes(offset, 4)?).ok()?;
    } else if hash & ip == 0 {
        return None;
    }
    Some(input)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(table: &[u32], key: usize) -> Vec<u8> {
        let mut bytes = vec![0; 44];
        bytes[0] = OBJECT_PARAMETERS;
        put32(&mut bytes, 8, 0x0000_0301);
        put(&mut bytes, 12, (table.len() as u16 * 4).to_le_bytes());
        put32(&mut bytes, 16, 44);
        put(&mut bytes, 20, (key as u16).to_le_bytes());
        put32(&mut bytes, 24, 44 + table.len() as u32 * 4);
        bytes.extend(table.iter().flat_map(|entry| entry.to_le_bytes()));
        bytes.extend(vec![9; key]);
        bytes
    }

    /// The examples of Microsoft's "Verifying the RSS hash calculation".
    #[test]
    fn hashes_are_those_of_the_specification() {
        let key = [
            0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3,
            0x8f, 0xb0, 0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3,
            0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
        ];
        let scaling = Scaling {
            table: (0..128).collect(),
            key,
            hash: TOEPLITZ | types::IPV4 | types::TCP_IPV4,
        };
        let addresses = [66, 9, 149, 187, 161, 142, 100, 80];
        let ports = [2794u16.to_be_bytes(), 1766u16.to_be_bytes()].concat();
        assert_eq!(scaling.hash(&addresses), 0x323e_8fc2);
        let all = [&addresses[..], &ports].concat();
        assert_eq!(scaling.hash(&all), 0x51cc_c178);

        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0]);
        frame.extend(addresses);
        frame.extend(ports);
        frame.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(scaling.channel(&frame, 54), 0x78);
        frame[20] = 0x20;
        assert_eq!(
            scaling.channel(&frame, 54),
            0x42,
            "a fragment: addresses only"
        );
        frame[20] = 0;
        let by = |hash| Scaling {
            hash,
            ..scaling.clone()
        };
        let addresses_only = by(TOEPLITZ | types::IPV4);
        assert_eq!(addresses_only.channel(&frame, 54), 0x42);
        assert_eq!(by(TOEPLITZ | types::IPV6).channel(&frame, 54), 0);
        frame[12] = 9;
        assert_eq!(scaling.channel(&frame, 54), 0, "not IP");
    }

    #[test]
    fn what_is_to_stay_stays() {
        let first = Scaling::parse(&parameters(&[0, 1], 40), 4, None).unwrap();
        let with = |flags: u16| {
            let mut bytes = parameters(&[3, 2], 40);
            bytes.iter_mut().skip(52).for_each(|byte| *byte = 5);
            put32(&mut bytes, 8, 0x101);
            put(&mut bytes, 4, flags.to_le_bytes());
            Scaling::parse(&bytes, 4, first.as_ref())
        };
        let of = |flags| with(flags).unwrap().unwrap();
        let old = first.clone().unwrap();
        assert_eq!(of(0).table[..], [3, 2]);
        assert_eq!((of(0).key, of(0).hash), ([5; 40], 0x101));
        assert_eq!(of(2).hash, old.hash);
        assert_eq!(of(4).table, old.table);
        assert_eq!(of(8).key, old.key);
        assert_eq!(with(0x10), Some(None), "off");
        let mut bytes = parameters(&[0], 40);
        put(&mut bytes, 4, 4u16.to_le_bytes());
        assert_eq!(Scaling::parse(&bytes, 4, None), None, "there is none");
    }

    #[test]
    fn parameters_are_held_against_the_adapter() {
        let good = parameters(&[0, 1, 2, 3], 40);
        let scaling = Scaling::parse(&good, 4, None).unwrap().unwrap();
        assert_eq!(scaling.table[..], [0, 1, 2, 3]);
        assert_eq!(scaling.key, [9; 40]);
        let mut off = good.clone();
        put32(&mut off, 8, 0);
        assert_eq!(Scaling::parse(&off, 4, None), Some(None));
        let mut other = good.clone();
        put32(&mut other, 8, 0x0000_0302);
        assert_eq!(Scaling::parse(&other, 4, None), None, "another function");
        for (name, bytes, channels) in [
            ("a channel that is not there", good.clone(), 3),
            ("three entries", parameters(&[0, 0, 0], 40), 4),
            ("no entry", parameters(&[], 40), 4),
            ("too many entries", parameters(&[0; 256], 40), 4),
            ("short key", parameters(&[0, 0], 39), 4),
            ("cut off", good[..good.len() - 1].to_vec(), 4),
        ] {
            assert_eq!(Scaling::parse(&bytes, channels, None), None, "{name}");
        }
    }
}
