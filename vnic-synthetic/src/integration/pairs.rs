//! Key/value exchange: texts under names, in pools.
//!
//! A body is u8 operation, u8 pool, u16 nothing, and then for an enumeration the u32 index; then, except for a removal,
//! u32 type of the value, u32 bytes of the name, u32 bytes of the value, 512 bytes of name and 2048 of value, both UTF-16
//! with a zero at the end that counts. A removal has u32 bytes of the name and the name.

use super::message::{Agreed, HEADER, kind, request};
use crate::wire::{put, put32, u32_at};

/// Bytes of a name in UTF-16, its end included.
pub const MAX_KEY: usize = 512;
/// Bytes of a value in UTF-16, its end included.
pub const MAX_VALUE: usize = 2048;

/// The longest body; each has this length.
const BODY: usize = 4 + 4 + 12 + MAX_KEY + MAX_VALUE;
const TEXT: u32 = 1;

const GET: u8 = 0;
const SET: u8 = 1;
const REMOVE: u8 = 2;
const ENUMERATE: u8 = 3;

/// The guest has no such item: the end of an enumeration.
pub(super) const NO_MORE: u32 = 0x8007_0103;

/// Where items are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Pool {
    /// What the host tells the guest.
    External = 0,
    /// What programs in the guest tell the host.
    Guest = 1,
    /// What the guest's driver knows: name, addresses, system.
    Auto = 2,
}

/// A question to the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Question {
    Get {
        pool: Pool,
        key: String,
    },
    Set {
        pool: Pool,
        key: String,
        value: String,
    },
    Remove {
        pool: Pool,
        key: String,
    },
    Item {
        pool: Pool,
        index: u32,
    },
}

impl Question {
    /// Whether name and value fit.
    pub(super) fn fits(&self) -> bool {
        let (key, value) = match self {
            Self::Get { key, .. } | Self::Remove { key, .. } => (key.as_str(), ""),
            Self::Set { key, value, .. } => (key.as_str(), value.as_str()),
            Self::Item { .. } => ("x", ""),
        };
        !key.is_empty() && wide_len(key) <= MAX_KEY && wide_len(value) <= MAX_VALUE
    }

    pub(super) fn message(&self, agreed: Agreed, id: u8) -> Vec<u8> {
        let mut bytes = request(kind::KEY_VALUE, agreed, id, BODY);
        let (operation, pool) = match self {
            Self::Get { pool, .. } => (GET, *pool),
            Self::Set { pool, .. } => (SET, *pool),
            Self::Remove { pool, .. } => (REMOVE, *pool),
            Self::Item { pool, .. } => (ENUMERATE, *pool),
        };
        let Some((_, body)) = bytes.split_at_mut_checked(HEADER) else {
            return bytes;
        };
        put(body, 0, [operation, pool as u8]);
        match self {
            Self::Item { index, .. } => put32(body, 4, *index),
            Self::Get { key, .. } => {
                let len = put_wide(body, 16, key);
                put32(body, 8, len);
            }
            Self::Set { key, value, .. } => {
                put32(body, 4, TEXT);
                let len = put_wide(body, 16, key);
                put32(body, 8, len);
                let len = put_wide(body, 16 + MAX_KEY, value);
                put32(body, 12, len);
            }
            Self::Remove { key, .. } => {
                let len = put_wide(body, 8, key);
                put32(body, 4, len);
            }
        }
        bytes
    }

    /// Name and value in the answer; `None` if they are malformed. A name is there for an item only.
    pub(super) fn answer(&self, body: &[u8]) -> Option<(String, String)> {
        let at = match self {
            Self::Item { .. } => 8,
            Self::Get { .. } => 4,
            Self::Set { .. } | Self::Remove { .. } => return Some(Default::default()),
        };
        let text = |len: usize, from: usize, room: usize| {
            let len = u32_at(body, len)? as usize;
            let bytes = body.get(from..from.checked_add(len.min(room))?)?;
            (len <= room).then(|| text_of(bytes))
        };
        let key = match self {
            Self::Item { .. } => text(at + 4, at + 12, MAX_KEY)?,
            _ => String::new(),
        };
        let value = match u32_at(body, at)? {
            TEXT => text(at + 8, at + 12 + MAX_KEY, MAX_VALUE)?,
            _ => return None,
        };
        Some((key, value))
    }
}

/// Bytes of a text in UTF-16 with its end.
fn wide_len(text: &str) -> usize {
    2 * (text.encode_utf16().count() + 1)
}

/// Writes a text with its end at `at`; gives its bytes.
fn put_wide(bytes: &mut [u8], at: usize, text: &str) -> u32 {
    for (index, unit) in text.encode_utf16().enumerate() {
        put(bytes, at + 2 * index, unit.to_le_bytes());
    }
    wide_len(text) as u32
}

/// The text in `bytes`, up to its end; what is no UTF-16 is replaced.
fn text_of(bytes: &[u8]) -> String {
    let units = bytes
        .chunks_exact(2)
        .filter_map(|pair| pair.try_into().ok());
    let units = units.map(u16::from_le_bytes).take_while(|unit| *unit != 0);
    char::decode_utf16(units)
        .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}
