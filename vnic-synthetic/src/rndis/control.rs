//! The adapter as a driver controls it: a function of control messages.

use arrayvec::ArrayVec;
use vswitch::mac::Mac;

use super::filter::{Filter, MAX_MULTICAST, bit};
use super::info::{self, Facts};
use super::offload::Receive;
use super::rss::Scaling;
use super::{kind, oid, status};
use crate::wire::u32_at;

/// Longest control message that is read: a driver's structure with its tables.
pub const MAX_REQUEST: usize = 1024;
/// Longest value of an answer: the multicast list.
pub(super) const MAX_VALUE: usize = 6 * MAX_MULTICAST;
/// Longest answer.
pub const MAX_REPLY: usize = 24 + MAX_VALUE;
/// Data messages that a driver may put into one packet.
pub const MAX_PACKETS: u32 = 8;
/// Longest packet that a driver may send, as it is told; longer ones are taken as well.
const MAX_TRANSFER: u32 = 0x4000;
/// A driver aligns the data messages of a packet to 2 to the power of this many bytes.
const ALIGNMENT: u32 = 3;
/// The adapter is connectionless.
const CONNECTIONLESS: u32 = 1;

/// An answer or an indication.
pub type Reply = ArrayVec<u8, MAX_REPLY>;

/// What a driver set. Made anew when its channel opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adapter {
    /// Which frames it wants.
    pub filter: Filter,
    /// Receive offloads that are on.
    pub receive: Receive,
    /// Receive-side scaling, if it is on.
    pub scaling: Option<Scaling>,
}

impl Adapter {
    /// An adapter that takes no frame yet.
    pub fn new(mac: Mac) -> Adapter {
        let filter = Filter {
            mac,
            ..Filter::default()
        };
        Adapter {
            filter,
            receive: Receive::default(),
            scaling: None,
        }
    }

    /// Deals with a control message; gives the answer, if one is due. What is malformed has none.
    pub fn handle(&mut self, message: &[u8], facts: &Facts) -> Option<Reply> {
        let len = u32_at(message, 4)? as usize;
        let message = message.get(..len)?;
        let id = u32_at(message, 8);
        let complete = |kind| kind | kind::COMPLETE;
        match u32_at(message, 0)? {
            kind::INITIALIZE => {
                let _versions = (u32_at(message, 12)?, u32_at(message, 16)?);
                let words = [
                    id?,
                    status::SUCCESS,
                    1,
                    0,
                    CONNECTIONLESS,
                    0,
                    MAX_PACKETS,
                    MAX_TRANSFER,
                    ALIGNMENT,
                    0,
                    0,
                ];
                Some(reply(complete(kind::INITIALIZE), &words, &[]))
            }
            kind::HALT => {
                *self = Adapter::new(facts.permanent_mac);
                None
            }
            kind::QUERY => {
                let (id, object, asked) = request(message)?;
                let value = info::query(self, facts, object, asked);
                let result = match &value {
                    Some(_) => status::SUCCESS,
                    None => status::NOT_SUPPORTED,
                };
                let value = value.unwrap_or_default();
                let words = [id, result, value.len() as u32, 16];
                Some(reply(complete(kind::QUERY), &words, &value))
            }
            kind::SET => {
                let (id, object, value) = request(message)?;
                let result = self.set(object, value, facts);
                Some(reply(complete(kind::SET), &[id, result], &[]))
            }
            kind::RESET => {
                *self = Adapter::new(facts.permanent_mac);
                Some(reply(complete(kind::RESET), &[status::SUCCESS, 1], &[]))
            }
            kind::KEEPALIVE => Some(reply(
                complete(kind::KEEPALIVE),
                &[id?, status::SUCCESS],
                &[],
            )),
            _ => None,
        }
    }

    fn set(&mut self, object: u32, value: &[u8], facts: &Facts) -> u32 {
        match object {
            oid::GEN_CURRENT_PACKET_FILTER => match u32_at(value, 0) {
                Some(bits) if bits & !bit::ALL != 0 => status::NOT_SUPPORTED,
                Some(bits) => {
                    self.filter.bits = bits;
                    status::SUCCESS
                }
                None => status::INVALID_LENGTH,
            },
            oid::ETHERNET_MULTICAST_LIST => self.set_multicast(value),
            oid::TCP_OFFLOAD_PARAMETERS => {
                invalid_unless(self.receive.set(value, facts.coalescing))
            }
            oid::OFFLOAD_ENCAPSULATION => status::SUCCESS,
            oid::GEN_CURRENT_LOOKAHEAD => status::SUCCESS,
            oid::GEN_RECEIVE_SCALE_PARAMETERS if facts.channels > 1 => {
                match Scaling::parse(value, facts.channels, self.scaling.as_ref()) {
                    Some(scaling) => {
                        self.scaling = scaling;
                        status::SUCCESS
                    }
                    None => status::INVALID_DATA,
                }
            }
            oid::GEN_RNDIS_CONFIG_PARAMETER => match info::network_address(value) {
                Some(mac) if facts.mac_may_change || mac == facts.permanent_mac => {
                    self.filter.mac = mac;
                    status::SUCCESS
                }
                Some(_) => status::NOT_ACCEPTED,
                None => status::INVALID_DATA,
            },
            _ => status::NOT_SUPPORTED,
        }
    }

    fn set_multicast(&mut self, value: &[u8]) -> u32 {
        if !value.len().is_multiple_of(6) {
            return status::INVALID_LENGTH;
        }
        if value.len() > 6 * MAX_MULTICAST {
            return status::MULTICAST_FULL;
        }
        let address = |bytes: &[u8]| bytes.first_chunk().copied().map(Mac);
        self.filter.multicast = value.chunks_exact(6).filter_map(address).collect();
        status::SUCCESS
    }
}

fn invalid_unless(ok: bool) -> u32 {
    if ok {
        status::SUCCESS
    } else {
        status::INVALID_DATA
    }
}

/// Request, object and value of a query or set. A value that is not all there makes the request malformed; where there
/// is none, its offset means nothing.
fn request(message: &[u8]) -> Option<(u32, u32, &[u8])> {
    let word = |at| u32_at(message, at);
    let (id, object, len) = (word(8)?, word(12)?, word(16)? as usize);
    if len == 0 {
        return Some((id, object, &[]));
    }
    let at = (word(20)? as usize).checked_add(8)?;
    let value = message.get(at..at.checked_add(len)?)?;
    Some((id, object, value))
}

/// A message of numbers and bytes behind them.
fn reply(kind: u32, words: &[u32], value: &[u8]) -> Reply {
    let len = 8 + 4 * words.len() + value.len();
    let numbers = [kind, len as u32];
    let numbers = numbers
        .iter()
        .chain(words)
        .flat_map(|word| word.to_le_bytes());
    numbers
        .chain(value.iter().copied())
        .take(MAX_REPLY)
        .collect()
}

/// Tells the driver that the link came up or went down.
pub fn link_changed(up: bool) -> Reply {
    let status = if up {
        status::MEDIA_CONNECT
    } else {
        status::MEDIA_DISCONNECT
    };
    reply(kind::INDICATE, &[status, 0, 0], &[])
}
