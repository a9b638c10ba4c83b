//! Heartbeat: a number that the guest sends back one higher.

use super::message::{Agreed, HEADER, kind, request};
use crate::wire::put;

/// Bytes of the body: the number, and what nobody reads.
const BODY: usize = 40;

pub(super) fn beat(agreed: Agreed, id: u8, number: u64) -> Vec<u8> {
    let mut bytes = request(kind::HEARTBEAT, agreed, id, BODY);
    put(&mut bytes, HEADER, number.to_le_bytes());
    bytes
}
