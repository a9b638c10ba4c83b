//! Time synchronisation: the guest is told what time it is on the host.

use super::message::{Agreed, HEADER, Version, kind, request};
use super::service::Now;
use crate::wire::put;

/// Units of 100 ns from 1601 to 1970.
const EPOCH: u64 = 116_444_736_000_000_000;
/// From this version on, the guest is told its own reference time with it.
const WITH_REFERENCE: Version = Version(4, 0);

/// What the guest is to do with the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Urgency {
    /// Set its clock: it stood still, or was never set.
    Set = 1,
    /// Take it as a sample.
    Sample = 2,
}

pub(super) fn time(agreed: Agreed, id: u8, now: &Now, urgency: Urgency) -> Vec<u8> {
    let host = (now.unix_ns / 100).saturating_add(EPOCH);
    if agreed.service >= WITH_REFERENCE {
        let mut bytes = request(kind::TIME_SYNC, agreed, id, 22);
        put(&mut bytes, HEADER, host.to_le_bytes());
        put(&mut bytes, HEADER + 8, now.reference_100ns.to_le_bytes());
        put(&mut bytes, HEADER + 16, [urgency as u8]);
        bytes
    } else {
        let mut bytes = request(kind::TIME_SYNC, agreed, id, 25);
        put(&mut bytes, HEADER, host.to_le_bytes());
        put(&mut bytes, HEADER + 24, [urgency as u8]);
        bytes
    }
}
