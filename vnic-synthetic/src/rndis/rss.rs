//! Receive-side scaling: which channel a received frame goes to.

use arrayvec::ArrayVec;

use crate::wire::{put, put32, u16_at, u32_at};

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
}

impl Scaling {
    /// Reads parameters (`NDIS_RECEIVE_SCALE_PARAMETERS`) for an adapter of `channels` channels: `Some(None)` turns
    /// scaling off, `None` are no valid parameters.
    pub fn parse(bytes: &[u8], channels: u32) -> Option<Option<Scaling>> {
        if bytes.first() != Some(&OBJECT_PARAMETERS) {
            return None;
        }
        if u32_at(bytes, 8)? & FUNCTION_MASK == 0 {
            return Some(None);
        }
        let part = |len: usize, at: usize| {
            let len = usize::from(u16_at(bytes, len)?);
            let at = u32_at(bytes, at)? as usize;
            bytes.get(at..at.checked_add(len)?)
        };
        let mut table = ArrayVec::new();
        for entry in part(12, 16)?.chunks_exact(4) {
            let channel = u32_at(entry, 0).filter(|channel| *channel < channels)?;
            table.try_push(channel as u8).ok()?;
        }
        let key = *part(20, 24)?.first_chunk()?;
        let whole = table.len().is_power_of_two();
        whole.then_some(Some(Scaling { table, key }))
    }
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

    #[test]
    fn parameters_are_held_against_the_adapter() {
        let good = parameters(&[0, 1, 2, 3], 40);
        let scaling = Scaling::parse(&good, 4).unwrap().unwrap();
        assert_eq!(scaling.table[..], [0, 1, 2, 3]);
        assert_eq!(scaling.key, [9; 40]);
        let mut off = good.clone();
        put32(&mut off, 8, 0);
        assert_eq!(Scaling::parse(&off, 4), Some(None));
        for (name, bytes, channels) in [
            ("a channel that is not there", good.clone(), 3),
            ("three entries", parameters(&[0, 0, 0], 40), 4),
            ("no entry", parameters(&[], 40), 4),
            ("too many entries", parameters(&[0; 256], 40), 4),
            ("short key", parameters(&[0, 0], 39), 4),
            ("cut off", good[..good.len() - 1].to_vec(), 4),
        ] {
            assert_eq!(Scaling::parse(&bytes, channels), None, "{name}");
        }
    }
}
