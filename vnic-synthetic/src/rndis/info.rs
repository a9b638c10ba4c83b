//! Answers to queries.

use arrayvec::ArrayVec;
use vswitch::mac::Mac;

use super::control::{Adapter, MAX_VALUE};
use super::filter::{MAX_MULTICAST, bit};
use super::{offload, oid, rss};
use crate::wire::u32_at;

/// Speed of the link, in units of 100 bit/s: 10 Gb/s.
const LINK_SPEED: u32 = 100_000_000;
/// What [`oid::GEN_MAC_OPTIONS`] answers: receive data may be copied, no loopback, priorities and VLANs are kept.
const MAC_OPTIONS: u32 = 0x1 | 0x8 | 0x40 | 0x80;
/// The vendor's half of an address is not ours to name.
const VENDOR_ID: u32 = 0x00ff_ffff;
/// Version of NDIS that the adapter is written for, as its drivers count.
const DRIVER_VERSION: u16 = 0x0603;

/// Every object that can be queried; the last only where there are several channels.
const SUPPORTED: [u32; 33] = [
    oid::GEN_SUPPORTED_LIST,
    oid::GEN_HARDWARE_STATUS,
    oid::GEN_MEDIA_SUPPORTED,
    oid::GEN_MEDIA_IN_USE,
    oid::GEN_MAXIMUM_LOOKAHEAD,
    oid::GEN_MAXIMUM_FRAME_SIZE,
    oid::GEN_LINK_SPEED,
    oid::GEN_TRANSMIT_BUFFER_SPACE,
    oid::GEN_RECEIVE_BUFFER_SPACE,
    oid::GEN_TRANSMIT_BLOCK_SIZE,
    oid::GEN_RECEIVE_BLOCK_SIZE,
    oid::GEN_VENDOR_ID,
    oid::GEN_VENDOR_DESCRIPTION,
    oid::GEN_CURRENT_PACKET_FILTER,
    oid::GEN_CURRENT_LOOKAHEAD,
    oid::GEN_DRIVER_VERSION,
    oid::GEN_MAXIMUM_TOTAL_SIZE,
    oid::GEN_MAC_OPTIONS,
    oid::GEN_MEDIA_CONNECT_STATUS,
    oid::GEN_MAXIMUM_SEND_PACKETS,
    oid::GEN_VENDOR_DRIVER_VERSION,
    oid::GEN_XMIT_OK,
    oid::GEN_RCV_OK,
    oid::GEN_XMIT_ERROR,
    oid::GEN_RCV_ERROR,
    oid::GEN_RCV_NO_BUFFER,
    oid::ETHERNET_PERMANENT_ADDRESS,
    oid::ETHERNET_CURRENT_ADDRESS,
    oid::ETHERNET_MULTICAST_LIST,
    oid::ETHERNET_MAXIMUM_LIST_SIZE,
    oid::TCP_OFFLOAD_CURRENT_CONFIG,
    oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES,
    oid::GEN_RECEIVE_SCALE_CAPABILITIES,
];

/// Frames of the adapter since it was made, as statistics show them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Frames that the guest sent.
    pub sent: u64,
    /// Of what it sent, what was malformed.
    pub send_errors: u64,
    /// Frames that the guest received.
    pub received: u64,
    /// Frames that found no room.
    pub no_buffer: u64,
}

/// What a query is answered with besides what the driver set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The address the adapter was made with.
    pub permanent_mac: Mac,
    /// Whether the driver may take another address.
    pub mac_may_change: bool,
    /// Whether the adapter is connected.
    pub link_up: bool,
    /// IP bytes.
    pub mtu: u16,
    /// Channels the adapter can have.
    pub channels: u32,
    /// Revision of NDIS structures that the driver reads.
    pub revision: u8,
    /// Whether the driver knows of coalescing on receive.
    pub coalescing: bool,
    /// Counters.
    pub statistics: Statistics,
}

/// The value of an object.
pub(super) type Value = ArrayVec<u8, MAX_VALUE>;

/// The value of object `id`; `None` if it cannot be queried. `asked` is what came with the query.
pub(super) fn query(adapter: &Adapter, facts: &Facts, id: u32, asked: &[u8]) -> Option<Value> {
    let mtu = u32::from(facts.mtu);
    let number = match id {
        oid::GEN_SUPPORTED_LIST => {
            let without_scaling = SUPPORTED.split_last().map_or(&[][..], |(_, list)| list);
            let list = match facts.channels {
                ..=1 => without_scaling,
                _ => &SUPPORTED,
            };
            return Some(numbers(list));
        }
        oid::GEN_HARDWARE_STATUS | oid::GEN_MEDIA_SUPPORTED | oid::GEN_MEDIA_IN_USE => 0,
        oid::GEN_MAXIMUM_FRAME_SIZE => mtu,
        oid::GEN_MAXIMUM_LOOKAHEAD
        | oid::GEN_CURRENT_LOOKAHEAD
        | oid::GEN_MAXIMUM_TOTAL_SIZE
        | oid::GEN_TRANSMIT_BLOCK_SIZE
        | oid::GEN_RECEIVE_BLOCK_SIZE => mtu + 14,
        oid::GEN_TRANSMIT_BUFFER_SPACE | oid::GEN_RECEIVE_BUFFER_SPACE => 1 << 20,
        oid::GEN_LINK_SPEED => LINK_SPEED,
        oid::GEN_VENDOR_ID => VENDOR_ID,
        oid::GEN_VENDOR_DESCRIPTION => return Some(bytes(b"vswitch synthetic adapter\0")),
        oid::GEN_CURRENT_PACKET_FILTER => adapter.filter.bits & bit::ALL,
        oid::GEN_DRIVER_VERSION => return Some(bytes(&DRIVER_VERSION.to_le_bytes())),
        oid::GEN_MAC_OPTIONS => MAC_OPTIONS,
        oid::GEN_MEDIA_CONNECT_STATUS => u32::from(!facts.link_up),
        oid::GEN_MAXIMUM_SEND_PACKETS => super::control::MAX_PACKETS,
        oid::GEN_VENDOR_DRIVER_VERSION => 1,
        oid::GEN_XMIT_OK => return Some(counter(facts.statistics.sent, asked)),
        oid::GEN_RCV_OK => return Some(counter(facts.statistics.received, asked)),
        oid::GEN_XMIT_ERROR => return Some(counter(facts.statistics.send_errors, asked)),
        oid::GEN_RCV_NO_BUFFER => return Some(counter(facts.statistics.no_buffer, asked)),
        oid::GEN_RCV_ERROR => return Some(counter(0, asked)),
        oid::ETHERNET_PERMANENT_ADDRESS => return Some(bytes(&facts.permanent_mac.0)),
        oid::ETHERNET_CURRENT_ADDRESS => return Some(bytes(&adapter.filter.mac.0)),
        oid::ETHERNET_MULTICAST_LIST => {
            let list = adapter.filter.multicast.iter().flat_map(|mac| mac.0);
            return Some(list.take(MAX_VALUE).collect());
        }
        oid::ETHERNET_MAXIMUM_LIST_SIZE => MAX_MULTICAST as u32,
        oid::TCP_OFFLOAD_CURRENT_CONFIG | oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES => {
            let (capabilities, len) =
                offload::capabilities(asked, facts.revision, facts.coalescing);
            return Some(bytes(capabilities.get(..len)?));
        }
        oid::GEN_RECEIVE_SCALE_CAPABILITIES if facts.channels > 1 => {
            let mut capabilities = rss::capabilities(facts.channels);
            // Drivers refuse more than the structure they know.
            let len = match asked.len() {
                len @ 16..rss::CAPABILITIES => len,
                _ => rss::CAPABILITIES,
            };
            crate::wire::put(&mut capabilities, 2, (len as u16).to_le_bytes());
            return Some(bytes(capabilities.get(..len)?));
        }
        _ => return None,
    };
    Some(numbers(&[number]))
}

/// A counter, in 64 bits where the driver has room for them.
fn counter(value: u64, asked: &[u8]) -> Value {
    match asked.len() {
        8.. => bytes(&value.to_le_bytes()),
        _ => numbers(&[value as u32]),
    }
}

fn numbers(values: &[u32]) -> Value {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

fn bytes(value: &[u8]) -> Value {
    value.iter().copied().collect()
}

/// The address in a configuration parameter named `NetworkAddress` with a text value of twelve hexadecimal digits, all
/// in UTF-16 (\[MS-RNDIS\] 2.2.4). `None` if it is anything else.
pub(super) fn network_address(parameter: &[u8]) -> Option<Mac> {
    const TEXT: u32 = 2;
    let text = |at: usize, len: usize| {
        let (at, len) = (
            u32_at(parameter, at)? as usize,
            u32_at(parameter, len)? as usize,
        );
        let bytes = parameter.get(at..at.checked_add(len)?)?;
        // One byte each: both texts are ASCII.
        let chars = bytes.chunks_exact(2).map(|pair| match pair {
            [low, 0] => Some(*low),
            _ => None,
        });
        chars.collect::<Option<ArrayVec<u8, 32>>>()
    };
    // A driver's text of more than 32 characters would not fit.
    let lens = [u32_at(parameter, 4)?, u32_at(parameter, 16)?];
    if lens.iter().any(|len| *len > 64) || u32_at(parameter, 8)? != TEXT {
        return None;
    }
    if text(0, 4)?.as_slice() != b"NetworkAddress" {
        return None;
    }
    let digits = text(12, 16)?;
    let digits = <&[u8; 12]>::try_from(digits.as_slice()).ok()?;
    let digit = |digit: &u8| (*digit as char).to_digit(16);
    let number = digits.iter().try_fold(0, |number, next| {
        Some(number << 4 | u64::from(digit(next)?))
    })?;
    let mac = Mac::from_u64(number);
    mac.is_station().then_some(mac)
}
