//! Messages of integration services.
//!
//! | offset | |
//! |---|---|
//! | 0 | u32 type of the pipe's packet: 1, data; u32 bytes that follow |
//! | 8 | u16 major, u16 minor version of the framework |
//! | 12 | u16 type of the message |
//! | 14 | u16 major, u16 minor version of the service |
//! | 18 | u16 bytes of the body; u32 status |
//! | 24 | u8 transaction, u8 flags, 2 bytes reserved |
//! | 28 | body |

use crate::wire::{put, put32, u16_at, u32_at};

/// Bytes in front of the body.
pub(super) const HEADER: usize = 28;
/// Bytes of the pipe's header.
const PIPE: usize = 8;
/// A pipe's packet of data.
const PIPE_DATA: u32 = 1;

const TRANSACTION: u8 = 1;
const REQUEST: u8 = 2;
const RESPONSE: u8 = 4;

/// Versions of the framework that the host speaks, best first.
pub(super) const FRAMEWORKS: [Version; 2] = [Version(3, 0), Version(1, 0)];

/// Types of messages.
pub(super) mod kind {
    pub(in crate::integration) const NEGOTIATE: u16 = 0;
    pub(in crate::integration) const HEARTBEAT: u16 = 1;
    pub(in crate::integration) const KEY_VALUE: u16 = 2;
    pub(in crate::integration) const SHUTDOWN: u16 = 3;
    pub(in crate::integration) const TIME_SYNC: u16 = 4;
}

/// A version: major and minor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u16, pub u16);

/// What both sides agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Agreed {
    pub(super) framework: Version,
    pub(super) service: Version,
}

/// A request with number `id` and so many bytes of body, which are zero.
pub(super) fn request(kind: u16, agreed: Agreed, id: u8, body: usize) -> Vec<u8> {
    let mut bytes = vec![0; HEADER + body];
    put32(&mut bytes, 0, PIPE_DATA);
    put32(&mut bytes, 4, (HEADER - PIPE + body) as u32);
    let halves = [
        (8, agreed.framework.0),
        (10, agreed.framework.1),
        (12, kind),
        (14, agreed.service.0),
        (16, agreed.service.1),
        (18, body as u16),
    ];
    for (at, half) in halves {
        put(&mut bytes, at, half.to_le_bytes());
    }
    put(&mut bytes, 24, [id, TRANSACTION | REQUEST]);
    bytes
}

/// The question which of these versions of the service the guest speaks.
pub(super) fn negotiate(id: u8, versions: &[Version]) -> Vec<u8> {
    let count = FRAMEWORKS.len() + versions.len();
    let first = Agreed {
        framework: Version(1, 0),
        service: Version(1, 0),
    };
    let mut bytes = request(kind::NEGOTIATE, first, id, 8 + 4 * count);
    put(&mut bytes, HEADER, (FRAMEWORKS.len() as u16).to_le_bytes());
    put(
        &mut bytes,
        HEADER + 2,
        (versions.len() as u16).to_le_bytes(),
    );
    for (index, version) in FRAMEWORKS.iter().chain(versions).enumerate() {
        let at = HEADER + 8 + 4 * index;
        put(&mut bytes, at, version.0.to_le_bytes());
        put(&mut bytes, at + 2, version.1.to_le_bytes());
    }
    bytes
}

/// A message that the guest sent back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Response<'a> {
    pub(super) kind: u16,
    pub(super) status: u32,
    pub(super) id: u8,
    pub(super) body: &'a [u8],
}

impl<'a> Response<'a> {
    /// Reads a packet's payload. `None` if it is no response, or shorter than it says.
    pub(super) fn parse(payload: &'a [u8]) -> Option<Response<'a>> {
        let len = PIPE.checked_add(u32_at(payload, 4)? as usize)?;
        let message = payload.get(..len)?;
        let [id, flags] = crate::wire::array(message, 24)?;
        if u32_at(message, 0)? != PIPE_DATA || flags & RESPONSE == 0 {
            return None;
        }
        Some(Response {
            kind: u16_at(message, 12)?,
            status: u32_at(message, 20)?,
            id,
            body: message.get(HEADER..)?,
        })
    }

    /// What the guest chose of `versions` and of the framework's; `None` if nothing that was asked.
    pub(super) fn agreed(&self, versions: &[Version]) -> Option<Agreed> {
        let version = |at| Some(Version(u16_at(self.body, at)?, u16_at(self.body, at + 2)?));
        let one = |at| u16_at(self.body, at) == Some(1);
        let (framework, service) = (version(8)?, version(12)?);
        let known = FRAMEWORKS.contains(&framework) && versions.contains(&service);
        (one(0) && one(2) && known).then_some(Agreed { framework, service })
    }
}
