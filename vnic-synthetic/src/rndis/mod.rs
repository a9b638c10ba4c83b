//! RNDIS: how a network driver asks its adapter for facts and settings, and how frames are wrapped.
//!
//! A message is a type, its length and a body; offsets in a body count from the body's start (byte 8 of the message).
//! All numbers are little-endian. Sources: \[MS-RNDIS\]; Linux 6.1 `include/linux/rndis.h`; for the structures of NDIS 6
//! `drivers/net/hyperv/hyperv_net.h`.

pub mod control;
pub mod filter;
pub mod info;
pub mod offload;
pub mod packet;
pub mod rss;
#[cfg(test)]
mod tests;

/// Types of messages; an answer has the highest bit set.
pub(crate) mod kind {
    pub(crate) const PACKET: u32 = 1;
    pub(crate) const INITIALIZE: u32 = 2;
    pub(crate) const HALT: u32 = 3;
    pub(crate) const QUERY: u32 = 4;
    pub(crate) const SET: u32 = 5;
    pub(crate) const RESET: u32 = 6;
    pub(crate) const INDICATE: u32 = 7;
    pub(crate) const KEEPALIVE: u32 = 8;
    pub(crate) const COMPLETE: u32 = 0x8000_0000;
}

/// NDIS status codes.
pub mod status {
    /// Done.
    pub const SUCCESS: u32 = 0;
    /// The adapter does not know that.
    pub const NOT_SUPPORTED: u32 = 0xc000_00bb;
    /// The value is too short.
    pub const INVALID_LENGTH: u32 = 0xc001_0014;
    /// The value makes no sense.
    pub const INVALID_DATA: u32 = 0xc001_0015;
    /// The adapter may not do that.
    pub const NOT_ACCEPTED: u32 = 0x0001_0003;
    /// More multicast addresses than the adapter filters.
    pub const MULTICAST_FULL: u32 = 0xc001_0009;
    /// Indication: the link came up.
    pub const MEDIA_CONNECT: u32 = 0x4001_000b;
    /// Indication: the link went down.
    pub const MEDIA_DISCONNECT: u32 = 0x4001_000c;
}

/// Object identifiers (NDIS).
#[allow(missing_docs, reason = "named as in NDIS, without the prefix OID")]
pub mod oid {
    pub const GEN_SUPPORTED_LIST: u32 = 0x0001_0101;
    pub const GEN_HARDWARE_STATUS: u32 = 0x0001_0102;
    pub const GEN_MEDIA_SUPPORTED: u32 = 0x0001_0103;
    pub const GEN_MEDIA_IN_USE: u32 = 0x0001_0104;
    pub const GEN_MAXIMUM_LOOKAHEAD: u32 = 0x0001_0105;
    pub const GEN_MAXIMUM_FRAME_SIZE: u32 = 0x0001_0106;
    pub const GEN_LINK_SPEED: u32 = 0x0001_0107;
    pub const GEN_TRANSMIT_BUFFER_SPACE: u32 = 0x0001_0108;
    pub const GEN_RECEIVE_BUFFER_SPACE: u32 = 0x0001_0109;
    pub const GEN_TRANSMIT_BLOCK_SIZE: u32 = 0x0001_010a;
    pub const GEN_RECEIVE_BLOCK_SIZE: u32 = 0x0001_010b;
    pub const GEN_VENDOR_ID: u32 = 0x0001_010c;
    pub const GEN_VENDOR_DESCRIPTION: u32 = 0x0001_010d;
    pub const GEN_CURRENT_PACKET_FILTER: u32 = 0x0001_010e;
    pub const GEN_CURRENT_LOOKAHEAD: u32 = 0x0001_010f;
    pub const GEN_DRIVER_VERSION: u32 = 0x0001_0110;
    pub const GEN_MAXIMUM_TOTAL_SIZE: u32 = 0x0001_0111;
    pub const GEN_MAC_OPTIONS: u32 = 0x0001_0113;
    pub const GEN_MEDIA_CONNECT_STATUS: u32 = 0x0001_0114;
    pub const GEN_MAXIMUM_SEND_PACKETS: u32 = 0x0001_0115;
    pub const GEN_VENDOR_DRIVER_VERSION: u32 = 0x0001_0116;
    pub const GEN_RECEIVE_SCALE_CAPABILITIES: u32 = 0x0001_0203;
    pub const GEN_RECEIVE_SCALE_PARAMETERS: u32 = 0x0001_0204;
    pub const GEN_RNDIS_CONFIG_PARAMETER: u32 = 0x0001_021b;
    pub const GEN_XMIT_OK: u32 = 0x0002_0101;
    pub const GEN_RCV_OK: u32 = 0x0002_0102;
    pub const GEN_XMIT_ERROR: u32 = 0x0002_0103;
    pub const GEN_RCV_ERROR: u32 = 0x0002_0104;
    pub const GEN_RCV_NO_BUFFER: u32 = 0x0002_0105;
    pub const OFFLOAD_ENCAPSULATION: u32 = 0x0101_010a;
    pub const ETHERNET_PERMANENT_ADDRESS: u32 = 0x0101_0101;
    pub const ETHERNET_CURRENT_ADDRESS: u32 = 0x0101_0102;
    pub const ETHERNET_MULTICAST_LIST: u32 = 0x0101_0103;
    pub const ETHERNET_MAXIMUM_LIST_SIZE: u32 = 0x0101_0104;
    pub const TCP_OFFLOAD_CURRENT_CONFIG: u32 = 0xfc01_020b;
    pub const TCP_OFFLOAD_PARAMETERS: u32 = 0xfc01_020c;
    pub const TCP_OFFLOAD_HARDWARE_CAPABILITIES: u32 = 0xfc01_020d;
}
