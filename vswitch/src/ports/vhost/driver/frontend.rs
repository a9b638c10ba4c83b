//! A vhost-user front-end over a socket, that waits for every answer.

use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use guestmem::RegionSpec;

use super::Guest;
use crate::ports::vhost::connection::send_some;
use crate::ports::vhost::message::{
    Code, HEADER_LEN, InflightDesc, Message, VringAddr, VringFd, VringState, flags,
};

/// Why a front-end gave up.
#[derive(Debug, thiserror::Error)]
pub enum FrontendError {
    /// The socket.
    #[error("the socket of a test front-end")]
    Socket(#[from] io::Error),
    /// The back-end acknowledged with an error.
    #[error("the back-end refused {0:?}")]
    Refused(Code),
    /// The back-end's reply is not one to the request.
    #[error("the reply to {0:?} is malformed")]
    Reply(Code),
}

/// A front-end.
pub struct Frontend {
    stream: UnixStream,
}

/// A message on its way out.
struct Outgoing<'a> {
    code: Code,
    body: Vec<u8>,
    fds: Vec<BorrowedFd<'a>>,
}

impl Frontend {
    /// Over a connected socket.
    pub fn new(stream: UnixStream) -> Frontend {
        Frontend { stream }
    }

    /// Connects to `path`.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(path: &Path) -> Result<Frontend, FrontendError> {
        Ok(Frontend {
            stream: UnixStream::connect(path)?,
        })
    }

    /// The socket.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends a message; `extra` are flags of its header.
    ///
    /// # Errors
    /// The socket.
    pub fn send(&self, message: &Message, extra: u32) -> Result<Code, FrontendError> {
        let Outgoing { code, body, fds } = encode(message);
        let mut bytes = Vec::with_capacity(HEADER_LEN + body.len());
        for field in [code as u32, flags::VERSION | extra, body.len() as u32] {
            bytes.extend(field.to_ne_bytes());
        }
        bytes.extend(body);
        let sent = send_some(&self.stream, &bytes, &fds).map_err(io::Error::from)?;
        if sent == bytes.len() {
            Ok(code)
        } else {
            Err(io::Error::from(io::ErrorKind::WriteZero).into())
        }
    }

    /// Receives the reply to `code`: its body.
    ///
    /// # Errors
    /// The socket, or a reply to something else.
    pub fn reply(&self, code: Code) -> Result<Vec<u8>, FrontendError> {
        let mut header = [0; HEADER_LEN];
        (&self.stream).read_exact(&mut header)?;
        let mut fields = header
            .as_chunks()
            .0
            .iter()
            .map(|field| u32::from_ne_bytes(*field));
        let (request, flag, size) = (fields.next(), fields.next(), fields.next().unwrap_or(0));
        if request != Some(code as u32)
            || flag != Some(flags::VERSION | flags::REPLY)
            || size > 4096
        {
            return Err(FrontendError::Reply(code));
        }
        let mut body = vec![0; size as usize];
        (&self.stream).read_exact(&mut body)?;
        Ok(body)
    }

    /// Sends a message that has a reply of its own.
    ///
    /// # Errors
    /// [`FrontendError`].
    pub fn ask(&self, message: &Message) -> Result<Vec<u8>, FrontendError> {
        let code = self.send(message, 0)?;
        self.reply(code)
    }

    /// Sends a message and waits until the back-end has acknowledged it.
    ///
    /// # Errors
    /// [`FrontendError`].
    pub fn tell(&self, message: &Message) -> Result<(), FrontendError> {
        let code = self.send(message, flags::NEED_REPLY)?;
        match number(&self.reply(code)?) {
            Some(0) => Ok(()),
            Some(_) => Err(FrontendError::Refused(code)),
            None => Err(FrontendError::Reply(code)),
        }
    }

    /// The whole handshake for `guest`, up to running rings.
    ///
    /// # Errors
    /// [`FrontendError`].
    pub fn handshake(&self, guest: &Guest) -> Result<(), FrontendError> {
        self.ask(&Message::GetFeatures)?;
        let offered = number(&self.ask(&Message::GetProtocolFeatures)?)
            .ok_or(FrontendError::Reply(Code::GetProtocolFeatures))?;
        self.ask(&Message::GetQueueNum)?;
        for message in guest.messages()? {
            // Replies to all can be asked for once that is negotiated.
            match message {
                Message::SetOwner => self.send(&message, 0).map(drop)?,
                Message::SetProtocolFeatures(bits) => {
                    let both = Message::SetProtocolFeatures(bits & offered);
                    self.send(&both, 0).map(drop)?;
                }
                message => self.tell(&message)?,
            }
        }
        Ok(())
    }
}

/// A body of one number.
pub(crate) fn number(body: &[u8]) -> Option<u64> {
    body.try_into().ok().map(u64::from_ne_bytes)
}

fn words(values: &[u64]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_ne_bytes())
        .collect()
}

fn state(VringState { index, num }: &VringState) -> Vec<u8> {
    [u32::from(*index), *num]
        .iter()
        .flat_map(|value| value.to_ne_bytes())
        .collect()
}

fn region(spec: &RegionSpec) -> Vec<u8> {
    words(&[spec.guest_addr, spec.len, spec.user_addr, spec.fd_offset])
}

fn vring_fd<'a>(code: Code, vring: &'a VringFd) -> Outgoing<'a> {
    let no_fd = if vring.fd.is_none() { 1 << 8 } else { 0 };
    let fds = vring.fd.iter().map(|fd: &OwnedFd| fd.as_fd()).collect();
    Outgoing {
        code,
        body: words(&[u64::from(vring.index) | no_fd]),
        fds,
    }
}

fn mem_table(regions: &[RegionSpec]) -> Outgoing<'_> {
    let mut body = words(&[regions.len() as u64]);
    body.extend(regions.iter().flat_map(region));
    Outgoing {
        code: Code::SetMemTable,
        body,
        fds: regions.iter().map(|spec| spec.fd.as_fd()).collect(),
    }
}

fn vring_addr(
    VringAddr {
        index,
        table,
        used,
        avail,
    }: &VringAddr,
) -> Vec<u8> {
    let mut body = u32::from(*index).to_ne_bytes().to_vec();
    body.extend([0; 4]);
    body.extend(words(&[*table, *used, *avail, 0]));
    body
}

fn encode(message: &Message) -> Outgoing<'_> {
    let inflight = |desc: &InflightDesc| desc.to_bytes();
    let (code, body, fds) = match message {
        Message::GetFeatures => (Code::GetFeatures, Vec::new(), Vec::new()),
        Message::SetFeatures(bits) => (Code::SetFeatures, words(&[*bits]), Vec::new()),
        Message::SetOwner => (Code::SetOwner, Vec::new(), Vec::new()),
        Message::ResetOwner => (Code::ResetOwner, Vec::new(), Vec::new()),
        Message::SetMemTable(regions) => return mem_table(regions),
        Message::SetLogBase { size, offset, fd } => {
            (Code::SetLogBase, words(&[*size, *offset]), vec![fd.as_fd()])
        }
        Message::SetVringNum(vring) => (Code::SetVringNum, state(vring), Vec::new()),
        Message::SetVringAddr(addr) => (Code::SetVringAddr, vring_addr(addr), Vec::new()),
        Message::SetVringBase(vring) => (Code::SetVringBase, state(vring), Vec::new()),
        Message::GetVringBase(vring) => (Code::GetVringBase, state(vring), Vec::new()),
        Message::SetVringKick(vring) => return vring_fd(Code::SetVringKick, vring),
        Message::SetVringCall(vring) => return vring_fd(Code::SetVringCall, vring),
        Message::SetVringErr(vring) => return vring_fd(Code::SetVringErr, vring),
        Message::GetProtocolFeatures => (Code::GetProtocolFeatures, Vec::new(), Vec::new()),
        Message::SetProtocolFeatures(bits) => {
            (Code::SetProtocolFeatures, words(&[*bits]), Vec::new())
        }
        Message::GetQueueNum => (Code::GetQueueNum, Vec::new(), Vec::new()),
        Message::SetVringEnable(vring) => (Code::SetVringEnable, state(vring), Vec::new()),
        Message::SendRarp(mac) => {
            let [a, b, c, d, e, f] = mac.0;
            (Code::SendRarp, vec![a, b, c, d, e, f, 0, 0], Vec::new())
        }
        Message::NetSetMtu(mtu) => (Code::NetSetMtu, words(&[*mtu]), Vec::new()),
        Message::GetInflightFd(desc) => (Code::GetInflightFd, inflight(desc), Vec::new()),
        Message::SetInflightFd(desc, fd) => (Code::SetInflightFd, inflight(desc), vec![fd.as_fd()]),
        Message::ResetDevice => (Code::ResetDevice, Vec::new(), Vec::new()),
        Message::GetMaxMemSlots => (Code::GetMaxMemSlots, Vec::new(), Vec::new()),
        Message::AddMemReg(spec) => {
            let mut body = words(&[0]);
            body.extend(region(spec));
            (Code::AddMemReg, body, vec![spec.fd.as_fd()])
        }
        Message::RemMemReg(key) => (
            Code::RemMemReg,
            words(&[0, key.guest_addr, key.len, key.user_addr, 0]),
            Vec::new(),
        ),
        Message::SetStatus(status) => (Code::SetStatus, words(&[*status]), Vec::new()),
        Message::GetStatus => (Code::GetStatus, Vec::new(), Vec::new()),
    };
    Outgoing { code, body, fds }
}
