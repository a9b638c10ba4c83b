//! Messages of VMBus channel management. Each begins with its type and four bytes of padding.

use serde::{Deserialize, Serialize};

use crate::wire::{put, put32, u16_at, u32_at, u64_at};

/// Bytes in front of the body.
const HEADER: usize = 8;

/// Types of messages.
pub(crate) mod kind {
    pub(crate) const OFFER_CHANNEL: u32 = 1;
    pub(crate) const RESCIND_CHANNEL_OFFER: u32 = 2;
    pub(crate) const REQUEST_OFFERS: u32 = 3;
    pub(crate) const ALL_OFFERS_DELIVERED: u32 = 4;
    pub(crate) const OPEN_CHANNEL: u32 = 5;
    pub(crate) const OPEN_CHANNEL_RESULT: u32 = 6;
    pub(crate) const CLOSE_CHANNEL: u32 = 7;
    pub(crate) const GPADL_HEADER: u32 = 8;
    pub(crate) const GPADL_BODY: u32 = 9;
    pub(crate) const GPADL_CREATED: u32 = 10;
    pub(crate) const GPADL_TEARDOWN: u32 = 11;
    pub(crate) const GPADL_TORNDOWN: u32 = 12;
    pub(crate) const RELID_RELEASED: u32 = 13;
    pub(crate) const INITIATE_CONTACT: u32 = 14;
    pub(crate) const VERSION_RESPONSE: u32 = 15;
    pub(crate) const UNLOAD: u32 = 16;
    pub(crate) const UNLOAD_RESPONSE: u32 = 17;
    pub(crate) const MODIFY_CHANNEL: u32 = 22;
    pub(crate) const MODIFY_CHANNEL_RESPONSE: u32 = 24;
}

/// Status of a request that was refused (`STATUS_INVALID_PARAMETER`).
pub(crate) const REFUSED: u32 = 0xc000_000d;

/// A version of the protocol: major in the high half, minor in the low.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version(pub u32);

impl Version {
    /// Windows Server 2008.
    pub const WS2008: Version = Version(0x0000_000d);
    /// Windows Server 2008 R2.
    pub const WIN7: Version = Version(0x0001_0001);
    /// Windows Server 2012: from here on channels have interrupts of their own.
    pub const WIN8: Version = Version(0x0002_0004);
    /// Windows Server 2016, second revision: channels can move to another processor.
    pub const WIN10_V4_1: Version = Version(0x0004_0001);
    /// Windows Server 2019: messages go to a connection that the host names.
    pub const V5_0: Version = Version(0x0005_0000);
    /// Moving a channel is answered.
    pub const V5_3: Version = Version(0x0005_0003);

    /// Every version the host speaks.
    const KNOWN: [Version; 10] = [
        Self::WS2008,
        Self::WIN7,
        Self::WIN8,
        Version(0x0003_0000),
        Version(0x0004_0000),
        Self::WIN10_V4_1,
        Self::V5_0,
        Version(0x0005_0001),
        Version(0x0005_0002),
        Self::V5_3,
    ];

    /// Whether the host speaks it.
    pub fn is_known(self) -> bool {
        Self::KNOWN.contains(&self)
    }
}

/// A message of the guest, by its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FromGuest<'a> {
    InitiateContact {
        version: Version,
        target_vp: u32,
        /// Guest address of the interrupt page; from 5.0 on, the low byte is the SINT that messages go to.
        interrupt_page: u64,
    },
    RequestOffers,
    GpadlHeader {
        relid: u32,
        gpadl: u32,
        /// Bytes of all ranges, in this and in the messages that follow.
        ranges_len: u16,
        range_count: u16,
        ranges: &'a [u8],
    },
    GpadlBody {
        gpadl: u32,
        ranges: &'a [u8],
    },
    GpadlTeardown {
        relid: u32,
        gpadl: u32,
    },
    OpenChannel {
        relid: u32,
        open_id: u32,
        ring: u32,
        target_vp: u32,
        downstream_page: u32,
    },
    CloseChannel {
        relid: u32,
    },
    RelidReleased {
        relid: u32,
    },
    ModifyChannel {
        relid: u32,
        target_vp: u32,
    },
    Unload,
}

impl<'a> FromGuest<'a> {
    /// Reads a message. `Err` is the type of one that is unknown or too short (0 where there is no type).
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<FromGuest<'a>, u32> {
        let kind = u32_at(bytes, 0).ok_or(0u32)?;
        Self::parse_body(kind, bytes).ok_or(kind)
    }

    fn parse_body(kind: u32, bytes: &'a [u8]) -> Option<FromGuest<'a>> {
        let field = |at| u32_at(bytes, at);
        let _padding = field(4)?;
        Some(match kind {
            kind::INITIATE_CONTACT => FromGuest::InitiateContact {
                version: Version(field(8)?),
                target_vp: field(12)?,
                interrupt_page: u64_at(bytes, 16)?,
            },
            kind::REQUEST_OFFERS => FromGuest::RequestOffers,
            kind::GPADL_HEADER => FromGuest::GpadlHeader {
                relid: field(8)?,
                gpadl: field(12)?,
                ranges_len: u16_at(bytes, 16)?,
                range_count: u16_at(bytes, 18)?,
                ranges: bytes.get(20..)?,
            },
            kind::GPADL_BODY => FromGuest::GpadlBody {
                gpadl: field(12)?,
                ranges: bytes.get(16..)?,
            },
            kind::GPADL_TEARDOWN => FromGuest::GpadlTeardown {
                relid: field(8)?,
                gpadl: field(12)?,
            },
            kind::OPEN_CHANNEL => FromGuest::OpenChannel {
                relid: field(8)?,
                open_id: field(12)?,
                ring: field(16)?,
                target_vp: field(20)?,
                downstream_page: field(24)?,
            },
            kind::CLOSE_CHANNEL => FromGuest::CloseChannel { relid: field(8)? },
            kind::RELID_RELEASED => FromGuest::RelidReleased { relid: field(8)? },
            kind::MODIFY_CHANNEL => FromGuest::ModifyChannel {
                relid: field(8)?,
                target_vp: field(12)?,
            },
            kind::UNLOAD => FromGuest::Unload,
            _ => return None,
        })
    }
}

/// A message to the guest, shorter than the 240 bytes of a SynIC message slot.
pub type Message = Vec<u8>;

/// A message of type `kind` with a body of `len` bytes that `fill` writes; offsets count from the start of the message.
fn message(kind: u32, len: usize, fill: impl FnOnce(&mut [u8])) -> Message {
    let mut bytes = vec![0; HEADER + len];
    put32(&mut bytes, 0, kind);
    fill(&mut bytes);
    bytes
}

/// A message whose body is numbers of 32 bits.
fn words(kind: u32, words: &[u32]) -> Message {
    message(kind, 4 * words.len(), |bytes| {
        for (index, word) in words.iter().enumerate() {
            put32(bytes, HEADER + 4 * index, *word);
        }
    })
}

/// `accepted`: where messages go to from version 5.0 on. Before that it is the version once more, and some drivers look at
/// it.
pub(crate) fn version_response(accepted: Option<u32>) -> Message {
    words(
        kind::VERSION_RESPONSE,
        &[accepted.is_some().into(), accepted.unwrap_or(0)],
    )
}

pub(crate) fn all_offers_delivered() -> Message {
    words(kind::ALL_OFFERS_DELIVERED, &[])
}

pub(crate) fn gpadl_created(relid: u32, gpadl: u32, status: u32) -> Message {
    words(kind::GPADL_CREATED, &[relid, gpadl, status])
}

pub(crate) fn gpadl_torndown(gpadl: u32) -> Message {
    words(kind::GPADL_TORNDOWN, &[gpadl])
}

pub(crate) fn open_result(relid: u32, open_id: u32, status: u32) -> Message {
    words(kind::OPEN_CHANNEL_RESULT, &[relid, open_id, status])
}

pub(crate) fn rescind(relid: u16) -> Message {
    words(kind::RESCIND_CHANNEL_OFFER, &[relid.into()])
}

pub(crate) fn modify_response(relid: u32, status: u32) -> Message {
    words(kind::MODIFY_CHANNEL_RESPONSE, &[relid, status])
}

pub(crate) fn unload_response() -> Message {
    words(kind::UNLOAD_RESPONSE, &[])
}

/// What an offer says about its channel.
pub(crate) struct OfferFields<'a> {
    pub(crate) interface: &'a [u8; 16],
    pub(crate) instance: &'a [u8; 16],
    pub(crate) user_defined: &'a [u8; 120],
    pub(crate) pipe: bool,
    pub(crate) sub_channel: u16,
    pub(crate) relid: u16,
    pub(crate) connection: u32,
}

/// Flag of an offer: the guest shows the device to its drivers.
const ENUMERATE: u16 = 0x1;
/// Flag of an offer: packets of the channel have the header of a pipe.
const NAMED_PIPE: u16 = 0x10;

/// Offer of a channel, 196 bytes. No monitor page is allocated, and the interrupt is the channel's own.
pub(crate) fn offer(fields: &OfferFields<'_>) -> Message {
    message(kind::OFFER_CHANNEL, 188, |bytes| {
        put(bytes, 8, *fields.interface);
        put(bytes, 24, *fields.instance);
        let flags = ENUMERATE | if fields.pipe { NAMED_PIPE } else { 0 };
        put(bytes, 56, flags.to_le_bytes());
        put(bytes, 60, *fields.user_defined);
        put(bytes, 180, fields.sub_channel.to_le_bytes());
        put32(bytes, 184, fields.relid.into());
        put(bytes, 190, 1u16.to_le_bytes());
        put32(bytes, 192, fields.connection);
    })
}
