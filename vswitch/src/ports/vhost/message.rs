//! The messages of a vhost-user front-end (QEMU, docs/interop/vhost-user.rst), parsed from private bytes.
//!
//! A message is a header of three u32, request, flags and size of the body, and the body; all in native byte order.
//! File descriptors come with the first byte.

use std::os::fd::OwnedFd;

use guestmem::RegionSpec;

use crate::mac::Mac;

/// Bytes of a header.
pub const HEADER_LEN: usize = 12;
/// Longest body taken: a memory table of [`MAX_TABLE`] regions.
pub const MAX_BODY: usize = 8 + MAX_TABLE * REGION_LEN;
/// Most regions in one `SET_MEM_TABLE`, and so most descriptors with a message (`VHOST_MEMORY_BASELINE_NREGIONS`).
pub const MAX_TABLE: usize = 8;
/// Bytes of the description of a region.
const REGION_LEN: usize = 32;

/// Flags of a header.
pub mod flags {
    /// The version of the protocol, in bits 1:0.
    pub const VERSION: u32 = 1;
    /// Mask of the version.
    pub const VERSION_MASK: u32 = 3;
    /// The message is a reply.
    pub const REPLY: u32 = 1 << 2;
    /// The sender asks for a reply.
    pub const NEED_REPLY: u32 = 1 << 3;
}

/// Declares the requests that this back-end takes, with their numbers in the specification.
macro_rules! requests {
    ($($name:ident = $number:literal,)*) => {
        /// A request that this back-end takes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        #[expect(missing_docs, reason = "the names are those of the specification, VHOST_USER_ left out")]
        pub enum Code { $($name = $number,)* }

        impl Code {
            /// The request of this number.
            pub const fn from_number(number: u32) -> Option<Code> {
                match number { $($number => Some(Code::$name),)* _ => None }
            }
        }
    };
}

requests! {
    GetFeatures = 1,
    SetFeatures = 2,
    SetOwner = 3,
    ResetOwner = 4,
    SetMemTable = 5,
    SetLogBase = 6,
    SetVringNum = 8,
    SetVringAddr = 9,
    SetVringBase = 10,
    GetVringBase = 11,
    SetVringKick = 12,
    SetVringCall = 13,
    SetVringErr = 14,
    GetProtocolFeatures = 15,
    SetProtocolFeatures = 16,
    GetQueueNum = 17,
    SetVringEnable = 18,
    SendRarp = 19,
    NetSetMtu = 20,
    GetInflightFd = 31,
    SetInflightFd = 32,
    ResetDevice = 34,
    GetMaxMemSlots = 36,
    AddMemReg = 37,
    RemMemReg = 38,
    SetStatus = 39,
    GetStatus = 40,
}

/// A header, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The request.
    pub code: Code,
    /// The front-end asks for a reply where the request has none of its own.
    pub need_reply: bool,
    /// Bytes of the body, at most [`MAX_BODY`].
    pub size: usize,
}

/// Addresses of a ring in the front-end's address space (`struct vhost_vring_addr`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VringAddr {
    /// Index of the ring.
    pub index: u16,
    /// Descriptor table, or packed ring.
    pub table: u64,
    /// Used ring, or device event suppression.
    pub used: u64,
    /// Available ring, or driver event suppression.
    pub avail: u64,
}

/// The number of a ring and a value for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringState {
    /// Index of the ring.
    pub index: u16,
    /// The value.
    pub num: u32,
}

/// A ring and the eventfd for it, if it has one.
#[derive(Debug)]
pub struct VringFd {
    /// Index of the ring.
    pub index: u16,
    /// The eventfd. None: the other side polls.
    pub fd: Option<OwnedFd>,
}

/// Which region of memory goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionKey {
    /// Guest physical address.
    pub guest_addr: u64,
    /// Address in the front-end.
    pub user_addr: u64,
    /// Length in bytes.
    pub len: u64,
}

/// The in-flight region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InflightDesc {
    /// Bytes of the region.
    pub mmap_size: u64,
    /// Where it starts in its file.
    pub mmap_offset: u64,
    /// Queues.
    pub num_queues: u16,
    /// Descriptors of each queue.
    pub queue_size: u16,
}

impl InflightDesc {
    /// The description as a body: 24 bytes, as front-ends pad it.
    pub fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(24);
        bytes.extend(self.mmap_size.to_ne_bytes());
        bytes.extend(self.mmap_offset.to_ne_bytes());
        bytes.extend(self.num_queues.to_ne_bytes());
        bytes.extend(self.queue_size.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes
    }
}

/// A message, its body checked.
#[derive(Debug)]
#[expect(
    missing_docs,
    reason = "the names are those of the specification, VHOST_USER_ left out"
)]
pub enum Message {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    SetMemTable(Vec<RegionSpec>),
    SetLogBase { size: u64, offset: u64, fd: OwnedFd },
    SetVringNum(VringState),
    SetVringAddr(VringAddr),
    SetVringBase(VringState),
    GetVringBase(VringState),
    SetVringKick(VringFd),
    SetVringCall(VringFd),
    SetVringErr(VringFd),
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetVringEnable(VringState),
    SendRarp(Mac),
    NetSetMtu(u64),
    GetInflightFd(InflightDesc),
    SetInflightFd(InflightDesc, OwnedFd),
    ResetDevice,
    GetMaxMemSlots,
    AddMemReg(RegionSpec),
    RemMemReg(RegionKey),
    SetStatus(u64),
    GetStatus,
}

/// Why a message was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Another version of the protocol.
    #[error("header flags {0:#x}: version 1 and no reply is expected")]
    Flags(u32),
    /// A request that is not known, or not offered.
    #[error("request {0} is unknown or was not negotiated")]
    Request(u32),
    /// A body of the wrong size.
    #[error("{code:?} with a body of {size} bytes")]
    Size {
        /// The request.
        code: Code,
        /// Size of its body in bytes.
        size: usize,
    },
    /// Too few or too many descriptors.
    #[error("{code:?} with {fds} file descriptors")]
    Fds {
        /// The request.
        code: Code,
        /// How many came.
        fds: usize,
    },
    /// A value in the body.
    #[error("{code:?} with {what} {value:#x}")]
    Value {
        /// The request.
        code: Code,
        /// What it is.
        what: &'static str,
        /// The value.
        value: u64,
    },
}

impl Header {
    /// Reads a header.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Header, MessageError> {
        let mut reader = Reader(bytes.as_slice());
        let (number, flags, size) = (reader.u32(), reader.u32(), reader.u32() as usize);
        if flags & flags::VERSION_MASK != flags::VERSION || flags & flags::REPLY != 0 {
            return Err(MessageError::Flags(flags));
        }
        let code = Code::from_number(number).ok_or(MessageError::Request(number))?;
        if size > MAX_BODY {
            return Err(MessageError::Size { code, size });
        }
        Ok(Header {
            code,
            need_reply: flags & flags::NEED_REPLY != 0,
            size,
        })
    }
}

/// Takes fields off the front of a body whose size was checked; past the end all is zero.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk() {
            Some((bytes, rest)) => {
                self.0 = rest;
                *bytes
            }
            None => [0; N],
        }
    }

    fn u16(&mut self) -> u16 {
        u16::from_ne_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_ne_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_ne_bytes(self.take())
    }
}

/// A message as it came off the socket.
struct Parser<'a> {
    code: Code,
    body: Reader<'a>,
    fds: Vec<OwnedFd>,
}

impl Message {
    /// Reads the body of a message with `header`, which came with `fds`.
    pub fn parse(header: &Header, body: &[u8], fds: Vec<OwnedFd>) -> Result<Message, MessageError> {
        use Code::*;
        let code = header.code;
        let size_fits = match code {
            GetFeatures | SetOwner | ResetOwner | GetProtocolFeatures | GetQueueNum
            | ResetDevice | GetMaxMemSlots | GetStatus => body.is_empty(),
            SetFeatures | SetVringKick | SetVringCall | SetVringErr | SetProtocolFeatures
            | SendRarp | NetSetMtu | SetStatus | SetVringNum | SetVringBase | GetVringBase
            | SetVringEnable => body.len() == 8,
            SetLogBase => body.len() == 16,
            SetVringAddr | AddMemReg | RemMemReg => body.len() == 40,
            // The structure is 20 bytes, and 24 where the compiler pads it.
            GetInflightFd | SetInflightFd => body.len() == 20 || body.len() == 24,
            SetMemTable => body.len() >= 8,
        };
        if !size_fits || body.len() != header.size {
            return Err(MessageError::Size {
                code,
                size: body.len(),
            });
        }
        let parser = Parser {
            code,
            body: Reader(body),
            fds,
        };
        match code {
            SetMemTable => parser.mem_table(),
            SetLogBase | SetInflightFd | AddMemReg => parser.with_fd(),
            SetVringKick | SetVringCall | SetVringErr => parser.vring_fd(),
            // A descriptor may come with the region that goes; it is not needed.
            RemMemReg => parser.without_fds(),
            _ if parser.fds.is_empty() => parser.without_fds(),
            _ => Err(MessageError::Fds {
                code,
                fds: parser.fds.len(),
            }),
        }
    }
}

impl Parser<'_> {
    fn value_error(&self, what: &'static str, value: impl Into<u64>) -> MessageError {
        MessageError::Value {
            code: self.code,
            what,
            value: value.into(),
        }
    }

    fn vring_state(&mut self) -> Result<VringState, MessageError> {
        let (index, num) = (self.body.u32(), self.body.u32());
        let index = u16::try_from(index).map_err(|_| self.value_error("ring index", index))?;
        Ok(VringState { index, num })
    }

    fn inflight(&mut self) -> InflightDesc {
        InflightDesc {
            mmap_size: self.body.u64(),
            mmap_offset: self.body.u64(),
            num_queues: self.body.u16(),
            queue_size: self.body.u16(),
        }
    }

    fn region(&mut self, fd: OwnedFd) -> RegionSpec {
        let RegionKey {
            guest_addr,
            user_addr,
            len,
        } = self.region_key();
        RegionSpec {
            guest_addr,
            user_addr,
            len,
            fd,
            fd_offset: self.body.u64(),
        }
    }

    fn region_key(&mut self) -> RegionKey {
        let (guest_addr, len, user_addr) = (self.body.u64(), self.body.u64(), self.body.u64());
        RegionKey {
            guest_addr,
            user_addr,
            len,
        }
    }

    fn without_fds(mut self) -> Result<Message, MessageError> {
        Ok(match self.code {
            Code::GetFeatures => Message::GetFeatures,
            Code::SetFeatures => Message::SetFeatures(self.body.u64()),
            Code::SetOwner => Message::SetOwner,
            Code::ResetOwner => Message::ResetOwner,
            Code::SetVringNum => Message::SetVringNum(self.vring_state()?),
            Code::SetVringAddr => self.vring_addr()?,
            Code::SetVringBase => Message::SetVringBase(self.vring_state()?),
            Code::GetVringBase => Message::GetVringBase(self.vring_state()?),
            Code::GetProtocolFeatures => Message::GetProtocolFeatures,
            Code::SetProtocolFeatures => Message::SetProtocolFeatures(self.body.u64()),
            Code::GetQueueNum => Message::GetQueueNum,
            Code::SetVringEnable => {
                let state = self.vring_state()?;
                if state.num > 1 {
                    return Err(self.value_error("enable value", state.num));
                }
                Message::SetVringEnable(state)
            }
            Code::SendRarp => Message::SendRarp(Mac(self.body.take())),
            Code::NetSetMtu => Message::NetSetMtu(self.body.u64()),
            Code::GetInflightFd => Message::GetInflightFd(self.inflight()),
            Code::ResetDevice => Message::ResetDevice,
            Code::GetMaxMemSlots => Message::GetMaxMemSlots,
            Code::RemMemReg => {
                self.body.u64();
                Message::RemMemReg(self.region_key())
            }
            Code::SetStatus => Message::SetStatus(self.body.u64()),
            Code::GetStatus => Message::GetStatus,
            code => return Err(MessageError::Fds { code, fds: 0 }),
        })
    }

    fn vring_addr(&mut self) -> Result<Message, MessageError> {
        let VringState { index, num: flags } = self.vring_state()?;
        // VHOST_VRING_F_LOG: with VHOST_F_LOG_ALL, all that is written is logged by guest address, rings too.
        if flags & !1 != 0 {
            return Err(self.value_error("flags", flags));
        }
        let (table, used, avail) = (self.body.u64(), self.body.u64(), self.body.u64());
        Ok(Message::SetVringAddr(VringAddr {
            index,
            table,
            used,
            avail,
        }))
    }

    /// A message with exactly one descriptor.
    fn with_fd(mut self) -> Result<Message, MessageError> {
        let fds = self.fds.len();
        let (Some(fd), 1) = (self.fds.pop(), fds) else {
            return Err(MessageError::Fds {
                code: self.code,
                fds,
            });
        };
        Ok(match self.code {
            Code::SetLogBase => Message::SetLogBase {
                size: self.body.u64(),
                offset: self.body.u64(),
                fd,
            },
            Code::SetInflightFd => Message::SetInflightFd(self.inflight(), fd),
            _ => {
                self.body.u64();
                Message::AddMemReg(self.region(fd))
            }
        })
    }

    fn vring_fd(mut self) -> Result<Message, MessageError> {
        /// Bit 8: there is no descriptor.
        const NO_FD: u64 = 1 << 8;
        let value = self.body.u64();
        if value >= 2 * NO_FD {
            return Err(self.value_error("ring index and flag", value));
        }
        let expected = usize::from(value & NO_FD == 0);
        if self.fds.len() != expected {
            return Err(MessageError::Fds {
                code: self.code,
                fds: self.fds.len(),
            });
        }
        let vring = VringFd {
            index: (value & 0xff) as u16,
            fd: self.fds.pop(),
        };
        Ok(match self.code {
            Code::SetVringKick => Message::SetVringKick(vring),
            Code::SetVringCall => Message::SetVringCall(vring),
            _ => Message::SetVringErr(vring),
        })
    }

    fn mem_table(mut self) -> Result<Message, MessageError> {
        let size = self.body.0.len();
        let count = self.body.u32();
        self.body.u32();
        if count as usize > MAX_TABLE {
            return Err(self.value_error("number of regions", count));
        }
        if size != 8 + REGION_LEN * count as usize {
            return Err(MessageError::Size {
                code: self.code,
                size,
            });
        }
        if self.fds.len() != count as usize {
            return Err(MessageError::Fds {
                code: self.code,
                fds: self.fds.len(),
            });
        }
        let fds = std::mem::take(&mut self.fds);
        Ok(Message::SetMemTable(
            fds.into_iter().map(|fd| self.region(fd)).collect(),
        ))
    }
}

#[cfg(test)]
mod tests;
