//! Shutdown: the guest is asked to end.

use super::message::{Agreed, HEADER, kind, request};
use crate::wire::put32;

/// Bytes of the body: reason, time, flags, and 2048 bytes of text.
const BODY: usize = 12 + 2048;
/// Reason: it was planned.
const PLANNED: u32 = 0x8000_0000;
/// Flag: by force, even where a program would rather not.
const FORCE: u32 = 1;
/// Flag: start again.
const RESTART: u32 = 2;

/// How a guest is to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shutdown {
    /// Start again instead of powering off.
    pub restart: bool,
    /// Do not ask programs.
    pub force: bool,
    /// Seconds the guest may take.
    pub seconds: u32,
}

pub(super) fn shutdown(agreed: Agreed, id: u8, how: Shutdown) -> Vec<u8> {
    let mut bytes = request(kind::SHUTDOWN, agreed, id, BODY);
    let restart = if how.restart { RESTART } else { 0 };
    let force = if how.force { FORCE } else { 0 };
    put32(&mut bytes, HEADER, PLANNED);
    put32(&mut bytes, HEADER + 4, how.seconds);
    put32(&mut bytes, HEADER + 8, restart | force);
    bytes
}
