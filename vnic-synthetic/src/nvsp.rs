//! NVSP: the messages by which network driver and host agree on a version and on buffers, and announce RNDIS messages.
//!
//! A message is a number of 32 bits and fields behind it; drivers send and expect 40 bytes, whatever the type.
//! Source: Linux 6.1 `drivers/net/hyperv/hyperv_net.h`.

use crate::wire::{put32, u16_at, u32_at, u64_at};

/// Bytes of a message as drivers send and read it.
pub const MESSAGE: usize = 40;
/// Smallest MTU that a driver can set, in IP bytes: that of IPv4 (RFC 791).
pub const MIN_MTU: u16 = 68;
/// Largest MTU that a driver can set, in IP bytes.
pub const MAX_MTU: u16 = 9000;
/// The MTU until a driver sets one.
pub const DEFAULT_MTU: u16 = 1500;
/// Bytes of a section of the send buffer.
pub const SEND_SECTION: u32 = 6144;
/// The driver's capability to receive coalesced segments.
pub const CAPABILITY_RSC: u64 = 1 << 7;
/// The number of a section, where there is none.
pub const NO_SECTION: u32 = u32::MAX;

const INIT: u32 = 1;
const INIT_COMPLETE: u32 = 2;
const NDIS_VERSION: u32 = 100;
const RECEIVE_BUFFER: u32 = 101;
const RECEIVE_BUFFER_COMPLETE: u32 = 102;
const REVOKE_RECEIVE_BUFFER: u32 = 103;
const SEND_BUFFER: u32 = 104;
const SEND_BUFFER_COMPLETE: u32 = 105;
const REVOKE_SEND_BUFFER: u32 = 106;
const RNDIS_PACKET: u32 = 107;
const RNDIS_PACKET_COMPLETE: u32 = 108;
const NDIS_CONFIG: u32 = 125;
const SWITCH_DATA_PATH: u32 = 129;
const SUB_CHANNEL: u32 = 133;
const SEND_INDIRECTION_TABLE: u32 = 134;

/// Entries of the table that tells a driver which channel to send a flow by.
const SEND_TABLE: usize = 16;

const SUCCESS: u32 = 1;
const FAILURE: u32 = 2;
/// Longest chain of memory descriptors that a driver may send a packet in.
const MAX_MDL_CHAIN: u32 = 34;

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32);

impl Version {
    /// The first.
    pub const V1: Version = Version(0x2);
    /// Sub-channels.
    pub const V5: Version = Version(0x5_0000);
    /// Received packets may be coalesced.
    pub const V6_1: Version = Version(0x6_0001);

    /// What the host speaks, newest first.
    const KNOWN: [Version; 6] = [
        Self::V6_1,
        Version(0x6_0000),
        Self::V5,
        Version(0x4_0000),
        Version(0x3_0002),
        Self::V1,
    ];

    /// The newest that both sides speak, of a driver that speaks `min` to `max`.
    pub fn negotiate(min: u32, max: u32) -> Option<Version> {
        Self::KNOWN
            .into_iter()
            .find(|version| (min..=max).contains(&version.0))
    }
}

/// Where an RNDIS message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// A frame.
    Data,
    /// A request.
    Control,
}

/// A message of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of the protocol")]
pub enum Message {
    Init {
        min: u32,
        max: u32,
    },
    NdisVersion {
        major: u32,
        minor: u32,
    },
    /// `frame` is the longest frame, without tag and FCS.
    NdisConfig {
        frame: u32,
        capabilities: u64,
    },
    ReceiveBuffer {
        gpadl: u32,
        id: u16,
    },
    RevokeReceiveBuffer,
    SendBuffer {
        gpadl: u32,
    },
    RevokeSendBuffer,
    /// `len` bytes of section `section` of the send buffer, if there is one.
    RndisPacket {
        channel: Channel,
        section: u32,
        len: u32,
    },
    SubChannels {
        operation: u32,
        count: u32,
    },
    /// Whether frames are to go by a virtual function of a NIC instead; there is none.
    SwitchDataPath {
        virtual_function: bool,
    },
    /// The answer to what the host sent.
    RndisPacketComplete,
}

impl Message {
    /// Reads a message. `None` if it is unknown or too short.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Option<Message> {
        let field = |at| u32_at(bytes, at);
        Some(match field(0)? {
            RNDIS_PACKET => Message::RndisPacket {
                channel: match field(4)? {
                    0 => Channel::Data,
                    1 => Channel::Control,
                    _ => return None,
                },
                section: field(8)?,
                len: field(12)?,
            },
            RNDIS_PACKET_COMPLETE => Message::RndisPacketComplete,
            INIT => Message::Init {
                min: field(4)?,
                max: field(8)?,
            },
            NDIS_VERSION => Message::NdisVersion {
                major: field(4)?,
                minor: field(8)?,
            },
            NDIS_CONFIG => Message::NdisConfig {
                frame: field(4)?,
                capabilities: u64_at(bytes, 12)?,
            },
            RECEIVE_BUFFER => Message::ReceiveBuffer {
                gpadl: field(4)?,
                id: u16_at(bytes, 8)?,
            },
            REVOKE_RECEIVE_BUFFER => Message::RevokeReceiveBuffer,
            SEND_BUFFER => Message::SendBuffer { gpadl: field(4)? },
            REVOKE_SEND_BUFFER => Message::RevokeSendBuffer,
            SWITCH_DATA_PATH => Message::SwitchDataPath {
                virtual_function: field(4)? != 0,
            },
            SUB_CHANNEL => Message::SubChannels {
                operation: field(4)?,
                count: field(8)?,
            },
            _ => return None,
        })
    }
}

/// A message to the driver.
pub type Bytes = [u8; MESSAGE];

fn words(words: &[u32]) -> Bytes {
    let mut bytes = [0; MESSAGE];
    for (index, word) in words.iter().enumerate() {
        put32(&mut bytes, 4 * index, *word);
    }
    bytes
}

fn status(ok: bool) -> u32 {
    if ok { SUCCESS } else { FAILURE }
}

/// The answer to [`Message::Init`]; `None`: no common version.
pub fn init_complete(version: Option<Version>) -> Bytes {
    let number = version.map_or(0, |version| version.0);
    words(&[
        INIT_COMPLETE,
        number,
        MAX_MDL_CHAIN,
        status(version.is_some()),
    ])
}

/// The answer to [`Message::ReceiveBuffer`]: it is `count` sections of `size` bytes from its start. `None`: refused.
pub fn receive_buffer_complete(sections: Option<(u32, u32)>) -> Bytes {
    match sections {
        Some((size, count)) => words(&[
            RECEIVE_BUFFER_COMPLETE,
            SUCCESS,
            1,
            0,
            size,
            count,
            size * count,
        ]),
        None => words(&[RECEIVE_BUFFER_COMPLETE, FAILURE]),
    }
}

/// The answer to [`Message::SendBuffer`].
pub fn send_buffer_complete(ok: bool) -> Bytes {
    words(&[SEND_BUFFER_COMPLETE, status(ok), SEND_SECTION])
}

/// The answer to [`Message::SubChannels`]: so many will be offered.
pub fn sub_channels_complete(count: Option<u32>) -> Bytes {
    words(&[SUB_CHANNEL, status(count.is_some()), count.unwrap_or(0)])
}

/// The answer to a packet: the first 8 bytes are what drivers read.
pub fn packet_complete(ok: bool) -> [u8; 8] {
    let mut bytes = [0; 8];
    put32(&mut bytes, 0, RNDIS_PACKET_COMPLETE);
    put32(&mut bytes, 4, status(ok));
    bytes
}

/// The answer to a message that asks for what there is not.
pub fn refused() -> Bytes {
    words(&[RNDIS_PACKET_COMPLETE, FAILURE])
}

/// Announces RNDIS messages in the receive buffer.
pub fn packet(channel: Channel) -> Bytes {
    words(&[
        RNDIS_PACKET,
        u32::from(channel == Channel::Control),
        NO_SECTION,
    ])
}

/// Tells a driver with `channels` channels to spread what it sends over all of them. The table lies behind the message.
pub fn send_table(channels: u32) -> [u8; MESSAGE + 4 * SEND_TABLE] {
    let mut bytes = [0; MESSAGE + 4 * SEND_TABLE];
    for (at, word) in [
        (0, SEND_INDIRECTION_TABLE),
        (4, SEND_TABLE as u32),
        (8, MESSAGE as u32),
    ] {
        put32(&mut bytes, at, word);
    }
    for index in 0..SEND_TABLE {
        let channel = index as u32 % channels.max(1);
        put32(&mut bytes, MESSAGE + 4 * index, channel);
    }
    bytes
}

/// Bytes of a section of the receive buffer that holds any frame of `mtu` IP bytes with its RNDIS headers: 1728 for
/// 1500, as on Hyper-V.
pub fn receive_section(mtu: u16) -> u32 {
    (u32::from(mtu) + 14 + 214).next_multiple_of(64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_chosen() {
        for (min, max, expected) in [
            (2, 2, Some(2)),
            (0x6_0001, 0x6_0001, Some(0x6_0001)),
            (0x5_0000, 0x5_0000, Some(0x5_0000)),
            (2, 0x3_0003, Some(0x3_0002)),
            (2, u32::MAX, Some(0x6_0001)),
            (3, 4, None),
            (0x7_0000, 0x7_0000, None),
            (9, 1, None),
        ] {
            let version = Version::negotiate(min, max).map(|version| version.0);
            assert_eq!(version, expected, "{min:#x} to {max:#x}");
        }
    }

    #[test]
    fn sections_hold_a_frame_and_its_headers() {
        assert_eq!(receive_section(1500), 1728);
        for mtu in [68, 576, 1500, 4000, 9000] {
            assert!(receive_section(mtu) >= u32::from(mtu) + 14 + 4 + 96);
        }
    }

    #[test]
    fn short_messages_are_refused() {
        let whole = words(&[RNDIS_PACKET, 0, 5, 100]);
        assert!(Message::parse(&whole).is_some());
        for len in 0..16 {
            assert_eq!(Message::parse(&whole[..len]), None, "{len}");
        }
        assert_eq!(Message::parse(&words(&[RNDIS_PACKET, 2])), None);
        assert_eq!(Message::parse(&words(&[99])), None);
    }
}
