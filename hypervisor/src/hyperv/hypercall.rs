//! Hypercalls.
//!
//! A guest calls the page it asked for. Its code is an `OUT` of 4 bytes to [`PORT`], which leaves to the monitor on every
//! kind of host; `VMCALL` does not. The monitor finds the call in the registers and puts the result there.
//!
//! The call that comes often, to signal a connection, is an `OUT` of the connection's number to [`SIGNAL_PORT`] instead:
//! KVM can turn that into an event for whom it concerns, without the monitor.

use super::Hyperv;
use super::page::ENABLED;
use super::synic::MAX_PAYLOAD;

/// The port that the page's code writes to.
pub const PORT: u16 = 0xe4;
/// The port that the page's code writes the number of a connection to, to signal it. That there is none is not told to
/// the guest.
pub const SIGNAL_PORT: u16 = 0xe6;
/// The code. It means the same in 32-bit mode, but for the comparison: there ECX is the input, of which this value is
/// neither the address of any (they are multiples of 8), nor a connection that a machine of this monitor has (it has
/// fewer channels than 93).
#[rustfmt::skip]
pub(super) const PAGE_CODE: [u8; 22] = [
    0xf3, 0x0f, 0x1e, 0xfa,             // endbr64
    0x81, 0xf9, 0x5d, 0x00, 0x01, 0x00, // cmp ecx, SIGNAL_EVENT | FAST
    0x75, 0x07,                         // jne call
    0x89, 0xd0,                         // mov eax, edx
    0xe7, SIGNAL_PORT as u8,            // out SIGNAL_PORT, eax
    0x31, 0xc0,                         // xor eax, eax
    0xc3,                               // ret
    0xe7, PORT as u8,                   // call: out PORT, eax
    0xc3,                               // ret
];

const POST_MESSAGE: u64 = 0x5c;
const SIGNAL_EVENT: u64 = 0x5d;
/// The input is in the registers.
const FAST: u64 = 1 << 16;
/// Bytes in front of a message to post: u32 connection, u32 reserved, u32 type, u32 length.
const POST_HEADER: usize = 16;

/// Result of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Success = 0,
    /// There is no such call.
    InvalidCode = 2,
    /// The call's input makes no sense.
    InvalidInput = 3,
    /// The input's address is not a multiple of 8, or it crosses a page.
    InvalidAlignment = 4,
    /// The input is wrong in a value.
    InvalidParameter = 5,
    /// There is no such connection.
    InvalidConnection = 0x12,
    /// Not now: the guest tries again.
    InsufficientBuffers = 0x13,
}

/// What a guest asks for. The answer goes back by [`Status`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// Post a message.
    PostMessage {
        /// To whom.
        connection: u32,
        /// At most 240 bytes.
        payload: Vec<u8>,
    },
    /// Signal an event.
    SignalEvent {
        /// To whom.
        connection: u32,
    },
    /// The call fails.
    Fails(Status),
}

/// Registers of a call: in 64-bit mode RCX and RDX; else EDX:EAX and EBX:ECX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Input {
    /// Which call, and how its input is passed.
    pub control: u64,
    /// The input, or its guest address.
    pub input: u64,
}

impl Hyperv {
    /// What the guest asks for. Without a page of code in force there are no calls.
    pub fn call(&self, call: Input) -> Call {
        if self.state.hypercall & ENABLED == 0 {
            return Call::Fails(Status::InvalidCode);
        }
        let fast = call.control & FAST != 0;
        let result = match (call.control & 0xffff, fast) {
            (POST_MESSAGE, false) => self.post_message(call.input),
            (SIGNAL_EVENT, true) => Ok(Call::SignalEvent {
                connection: call.input as u32,
            }),
            (SIGNAL_EVENT, false) => self.read(call.input).map(|bytes: [u8; 8]| {
                let [a, b, c, d, ..] = bytes;
                let connection = u32::from_le_bytes([a, b, c, d]);
                Call::SignalEvent { connection }
            }),
            (POST_MESSAGE, true) => Err(Status::InvalidInput),
            _ => Err(Status::InvalidCode),
        };
        result.unwrap_or_else(Call::Fails)
    }

    fn post_message(&self, address: u64) -> Result<Call, Status> {
        let header: [u8; POST_HEADER] = self.read(address)?;
        let [a, b, c, d, .., e, f, g, h] = header;
        let len = u32::from_le_bytes([e, f, g, h]) as usize;
        if len > MAX_PAYLOAD {
            return Err(Status::InvalidParameter);
        }
        if (address % 4096) as usize + POST_HEADER + len > 4096 {
            return Err(Status::InvalidAlignment);
        }
        let mut payload = vec![0; len];
        let span = self
            .memory
            .span(address + POST_HEADER as u64, len as u32)
            .ok_or(Status::InvalidParameter)?;
        self.memory
            .read(span, &mut payload)
            .map_err(|_| Status::InvalidParameter)?;
        Ok(Call::PostMessage {
            connection: u32::from_le_bytes([a, b, c, d]),
            payload,
        })
    }

    /// Reads the input at a guest address.
    fn read<const N: usize>(&self, address: u64) -> Result<[u8; N], Status> {
        if !address.is_multiple_of(8) || (address % 4096) as usize + N > 4096 {
            return Err(Status::InvalidAlignment);
        }
        let mut bytes = [0; N];
        let span = self
            .memory
            .span(address, N as u32)
            .ok_or(Status::InvalidParameter)?;
        self.memory
            .read(span, &mut bytes)
            .map_err(|_| Status::InvalidParameter)?;
        Ok(bytes)
    }
}
