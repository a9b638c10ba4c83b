//! Data messages: a frame, and per-packet information about it.

use arrayvec::ArrayVec;

use super::kind;
use crate::wire::{put32, u32_at};

/// Bytes of the header of a data message.
pub const HEADER: usize = 44;
/// Where the fields of it end that mean something: frame and information may lie behind them. Some drivers leave out what
/// is reserved there.
const FIELDS: u32 = 36;
/// Bytes of per-packet information that are looked at, at most.
pub const MAX_INFO: usize = 256;
/// Bytes in front of a frame in a message to the driver, at most: header and all information that the host ever gives.
pub const MAX_FRONT: usize = HEADER + 3 * ITEM_LEN;

/// Offsets in a message count from here.
const BODY: u32 = 8;
/// Where the header says where the information is, and how long.
const INFO_AT: usize = 28;
pub(crate) const INFO_LEN: usize = 32;
/// Bytes in front of the value of an item of information.
const ITEM: u32 = 12;
/// Bytes of an item with a value of 32 bits.
pub(crate) const ITEM_LEN: usize = 16;

/// Types of per-packet information.
mod info {
    pub(super) const CHECKSUM: u32 = 0;
    pub(super) const LARGE_SEND: u32 = 2;
    pub(super) const VLAN: u32 = 6;
    /// Which part of a large frame it is: an item between host and driver, not of NDIS.
    pub(super) const PART: u32 = 1 << 31 | 1;
}

/// What is wrong with a data message. It fails alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// The length of the message is less than its header or more than there is.
    #[error("RNDIS message of type {kind} and length {len} where {left} bytes are left")]
    Length {
        /// Type of the message.
        kind: u32,
        /// Length it claims.
        len: u32,
        /// Bytes there are.
        left: u32,
    },
    /// Frame or information are not inside the message.
    #[error("{0} of an RNDIS data message lies beyond it")]
    Range(&'static str),
    /// The items do not fill the room of the information.
    #[error("per-packet information is malformed")]
    Info,
}

/// Where things are in a data message, from its start. All lie inside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Length of the message.
    pub len: u32,
    /// The frame: offset and length.
    pub frame: (u32, u32),
    /// Per-packet information: offset and length, at most [`MAX_INFO`].
    pub info: (u32, u32),
}

impl Layout {
    /// Reads the header of a message of which `left` bytes are there.
    ///
    /// # Errors
    /// [`PacketError`].
    #[inline]
    pub fn parse(header: &[u8; HEADER], left: u32) -> Result<Layout, PacketError> {
        let word = |at| u32_at(header, at).unwrap_or(0);
        let (kind, len) = (word(0), word(4));
        if kind != kind::PACKET || len < HEADER as u32 || len > left {
            return Err(PacketError::Length { kind, len, left });
        }
        let range = |offset: u32, size: u32, what| {
            let at = offset.checked_add(BODY).filter(|at| *at >= FIELDS);
            let inside = |at: &u32| size <= len && *at <= len - size;
            at.filter(inside)
                .map(|at| (at, size))
                .ok_or(PacketError::Range(what))
        };
        let info_len = word(INFO_LEN);
        if info_len > MAX_INFO as u32 {
            return Err(PacketError::Info);
        }
        Ok(Layout {
            len,
            frame: range(word(8), word(12), "frame")?,
            info: match info_len {
                0 => (0, 0),
                _ => range(word(INFO_AT), info_len, "per-packet information")?,
            },
        })
    }
}

/// What a driver says about a frame it sends. Values as it wrote them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Checksums to fill in.
    pub checksum: Option<u32>,
    /// How to cut a large frame.
    pub large_send: Option<u32>,
    /// The tag that the frame is to have: tag control information as in 802.1Q.
    pub tag: Option<u16>,
}

impl Sent {
    /// Reads items of information, in any order; of two of a kind the last counts.
    ///
    /// # Errors
    /// [`PacketError::Info`].
    #[inline]
    pub fn parse(mut items: &[u8]) -> Result<Sent, PacketError> {
        let mut sent = Sent::default();
        while !items.is_empty() {
            let word = |at| u32_at(items, at).ok_or(PacketError::Info);
            let (size, kind, at) = (word(0)?, word(4)?, word(8)?);
            if size < ITEM {
                return Err(PacketError::Info);
            }
            let (item, rest) = items
                .split_at_checked(size as usize)
                .ok_or(PacketError::Info)?;
            let value = || u32_at(item, at as usize).ok_or(PacketError::Info);
            match kind {
                info::CHECKSUM => sent.checksum = Some(value()?),
                info::LARGE_SEND => sent.large_send = Some(value()?),
                info::VLAN => sent.tag = Some(tag_from_info(value()?)),
                // About what was not offered, or the driver's own bookkeeping.
                _ => {}
            }
            items = rest;
        }
        Ok(sent)
    }
}

/// NDIS has priority, drop eligibility and VLAN in the order of their bits, 802.1Q the other way round.
fn tag_from_info(value: u32) -> u16 {
    let [priority, dei, vid] = [value & 7, value >> 3 & 1, value >> 4 & 0xfff];
    (priority << 13 | dei << 12 | vid) as u16
}

fn info_from_tag(tci: u16) -> u32 {
    let tci = u32::from(tci);
    tci >> 13 | (tci >> 12 & 1) << 3 | (tci & 0xfff) << 4
}

/// Verdicts on checksums, as a driver reads them with a received frame.
pub mod verdict {
    /// The TCP checksum is right.
    pub const TCP: u32 = 1 << 3;
    /// The UDP checksum is right.
    pub const UDP: u32 = 1 << 4;
    /// The IPv4 header checksum is right.
    pub const IP4: u32 = 1 << 5;
}

/// Which part of a large frame it is, that comes in several sections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// It begins the frame.
    pub first: bool,
    /// It ends it.
    pub last: bool,
}

impl Part {
    /// The value of the item: version 1, flags, and a number that nobody reads.
    pub fn value(self) -> u32 {
        const SECTION: u32 = 1;
        const FIRST: u32 = 2;
        const LAST: u32 = 4;
        let first = if self.first { FIRST } else { 0 };
        let last = if self.last { LAST } else { 0 };
        1 | (SECTION | first | last) << 8
    }
}

/// What the host says about a frame that a driver receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// [`verdict`]s.
    pub checksum: u32,
    /// Tag control information of the tag that was taken off.
    pub tag: Option<u16>,
    /// If it is not a whole frame: which part. It is the last item.
    pub part: Option<Part>,
}

impl Received {
    /// Bytes in front of the frame.
    #[inline]
    pub fn front(&self) -> usize {
        let checksum = usize::from(self.checksum != 0);
        let (tag, part) = (self.tag.is_some(), self.part.is_some());
        HEADER + ITEM_LEN * (checksum + usize::from(tag) + usize::from(part))
    }
}

/// What is in front of a frame.
pub type Front = ArrayVec<u8, MAX_FRONT>;

/// What is in front of the `len` bytes of a frame, or of a part of one.
#[inline]
pub fn front(len: u32, about: &Received) -> Front {
    let mut bytes = [0; MAX_FRONT];
    let end = about.front();
    let mut at = HEADER;
    let mut item = |kind, value| {
        for (index, word) in [ITEM_LEN as u32, kind, ITEM, value].into_iter().enumerate() {
            put32(&mut bytes, at + 4 * index, word);
        }
        at += ITEM_LEN;
    };
    if about.checksum != 0 {
        item(info::CHECKSUM, about.checksum);
    }
    if let Some(tci) = about.tag {
        item(info::VLAN, info_from_tag(tci));
    }
    if let Some(part) = about.part {
        item(info::PART, part.value());
    }
    let info_len = (end - HEADER) as u32;
    let info_at = if info_len == 0 {
        0
    } else {
        HEADER as u32 - BODY
    };
    for (at, word) in [
        (0, kind::PACKET),
        (4, end as u32 + len),
        (8, end as u32 - BODY),
        (12, len),
        (INFO_AT, info_at),
        (INFO_LEN, info_len),
    ] {
        put32(&mut bytes, at, word);
    }
    let mut front = Front::from(bytes);
    front.truncate(end);
    front
}
