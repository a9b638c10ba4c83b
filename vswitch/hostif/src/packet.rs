//! Packet sockets: all frames of an interface through the kernel, with virtio header (packet(7)).
//!
//! For interfaces that AF_XDP can't take. TCP superframes that the kernel has joined (GRO) or a software peer sent, and
//! unfinished checksums, come and go with their virtio header (`struct virtio_net_hdr`, little-endian, VIRTIO 1.2
//! section 5.1.6). Where the kernel allows it, a program keeps the frames from the host's network stack.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use guestmem::{Memory, Span};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::info::LinkInfo;
use crate::iov::{Iov, IovMut};
use crate::name::IfName;
use crate::sys::bpf::{Instruction, link_ingress, load_ingress};
use crate::sys::packet as sys;
use crate::would_block;

/// Length of the virtio header before a frame to send, in bytes: that of 12 bytes without its last field.
pub const SEND_HEADER_LEN: usize = 10;

/// The most frames that one call moves.
pub const BATCH: usize = sys::BATCH;

/// Bytes that a receive buffer needs to hold every frame: Ethernet header with two tags, 64 KiB of IP.
pub const BUFFER_LEN: u32 = 22 + 65_536;

/// Bytes of received frames that the kernel keeps before it drops.
const RECEIVE_BUFFER: i32 = 8 << 20;

const MACS: usize = 12;
const TAG: usize = 4;

/// How an interface shall be opened.
#[derive(Clone, Debug)]
pub struct PacketConfig {
    /// The interface. It is made promiscuous while the socket is open.
    pub name: IfName,
    /// Hand frames to the driver past the queueing discipline of the interface: faster, and dropped when the driver is
    /// busy.
    pub qdisc_bypass: bool,
}

/// Why a packet socket was not opened.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    /// There is no such interface.
    #[error("there is no interface {0}")]
    NotFound(IfName),
    /// The interface does not carry Ethernet.
    #[error("{0} is no Ethernet interface")]
    NotEthernet(IfName),
    /// A system call failed.
    #[error("{call} for {name} failed")]
    Call {
        /// The call.
        call: &'static str,
        /// The interface.
        name: IfName,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A buffer to receive one frame into, and what came.
#[derive(Clone, Copy, Debug)]
pub struct RxSlot {
    /// The buffer, [`BUFFER_LEN`] bytes or at least 64.
    pub buffer: Span,
    /// The virtio header: a `struct virtio_net_hdr_v1` whose last field is 0.
    pub header: [u8; 12],
    /// Where the frame begins in the buffer: 0 or 4.
    pub offset: u32,
    /// Length of the frame in bytes; 0 if it was longer than the buffer, and is lost.
    pub len: u32,
}

impl RxSlot {
    /// An empty slot.
    pub const fn new(buffer: Span) -> Self {
        Self {
            buffer,
            header: [0; 12],
            offset: 0,
            len: 0,
        }
    }

    /// The frame in the buffer; `None` if it was lost.
    pub fn frame(&self) -> Option<Span> {
        if self.len == 0 {
            None
        } else {
            self.buffer.sub(self.offset, self.len)
        }
    }
}

/// An open packet socket, for one thread.
#[derive(Debug)]
pub struct PacketSocket {
    socket: OwnedFd,
    /// Keeps frames from the network stack while it is open.
    silence: Option<OwnedFd>,
}

impl PacketSocket {
    /// Opens a socket on all frames of an interface. Needs `CAP_NET_RAW` and `CAP_NET_ADMIN`.
    ///
    /// # Errors
    /// See [`PacketError`].
    pub fn open(config: &PacketConfig) -> Result<Self, PacketError> {
        let name = &config.name;
        let (socket, interface) = socket_on(name)?;
        let call = |call| move |errno: Errno| failed(name, call, errno.into());
        let fd = socket.as_fd();
        sys::set(fd, &sys::Auxdata(1)).map_err(call("PACKET_AUXDATA"))?;
        sys::set(fd, &sys::IgnoreOutgoing(1)).map_err(call("PACKET_IGNORE_OUTGOING"))?;
        if config.qdisc_bypass {
            sys::set(fd, &sys::QdiscBypass(1)).map_err(call("PACKET_QDISC_BYPASS"))?;
        }
        sys::set(fd, &sys::ReceiveBuffer(RECEIVE_BUFFER)).map_err(call("SO_RCVBUFFORCE"))?;
        sys::set(fd, &sys::Membership::promiscuous(interface))
            .map_err(call("PACKET_ADD_MEMBERSHIP"))?;
        sys::bind(fd, interface, sys::Hears::All).map_err(call("bind"))?;
        Ok(Self {
            socket,
            silence: silence(interface).ok(),
        })
    }

    /// Opens a socket that only sends on an interface: it receives nothing, and who else receives there does not notice
    /// it. Needs `CAP_NET_RAW`.
    ///
    /// # Errors
    /// See [`PacketError`].
    pub fn open_sender(name: &IfName) -> Result<Self, PacketError> {
        let (socket, interface) = socket_on(name)?;
        sys::bind(socket.as_fd(), interface, sys::Hears::Nothing)
            .map_err(|errno| failed(name, "bind", errno.into()))?;
        Ok(Self {
            socket,
            silence: None,
        })
    }

    /// Whether the host's network stack no longer sees the frames. If it does, because this is Linux before 6.6 or
    /// `CAP_BPF` is missing, it may take them for its own.
    pub fn is_exclusive(&self) -> bool {
        self.silence.is_some()
    }

    /// Takes up to [`BATCH`] received frames, each into the buffer of one slot; tells how many came.
    ///
    /// A VLAN tag that the kernel or the NIC took out of a frame is put back, and the header fits that.
    /// `gso_type` may be more than TCP: UDP segmentation (5) comes where a software peer uses it.
    ///
    /// # Errors
    /// `ENETDOWN` once when the interface goes down or away; `EFAULT` for a buffer that is not of `memory` or has less
    /// than 64 bytes.
    pub fn receive(&self, memory: &Memory, slots: &mut [RxSlot]) -> Result<usize, Errno> {
        let mut macs = [[0; MACS]; BATCH];
        let mut received = [sys::Received::default(); BATCH];
        let count = slots.len().min(BATCH);
        let slots = slots.get_mut(..count).unwrap_or_default();
        let arrived = {
            // The rest of a frame goes where it is to stay if a tag is put in before it.
            let mut messages = [const { [const { IovMut::EMPTY }; 3] }; BATCH];
            for ((slot, macs), message) in slots.iter_mut().zip(&mut macs).zip(&mut messages) {
                let front = (MACS + TAG) as u32;
                let length = slot
                    .buffer
                    .len()
                    .checked_sub(front)
                    .filter(|l| *l >= 48)
                    .ok_or(Errno::FAULT)?;
                let rest = slot.buffer.sub(front, length).ok_or(Errno::FAULT)?;
                let rest = IovMut::span(memory, rest).ok_or(Errno::FAULT)?;
                let (header, _) = slot.header.split_at_mut(SEND_HEADER_LEN);
                *message = [IovMut::bytes(header), IovMut::bytes(macs), rest];
            }
            let messages = messages.get_mut(..count).unwrap_or_default();
            would_block(sys::receive(self.socket.as_fd(), messages, &mut received))?.unwrap_or(0)
        };
        for ((slot, macs), received) in slots.iter_mut().zip(&macs).zip(&received).take(arrived) {
            slot.finish(memory, macs, received)?;
        }
        Ok(arrived)
    }

    /// Sends up to [`BATCH`] frames, each gathered from its pieces: [`SEND_HEADER_LEN`] bytes of virtio header, then the
    /// frame with its VLAN tag. Tells how many went, from the first on; 0 when there is no room.
    ///
    /// # Errors
    /// Of the first frame, which can be left out then: `EMSGSIZE` longer than the MTU, `EINVAL` a header that does not fit
    /// the frame, `ENOBUFS` no room (with `qdisc_bypass`); `ENETDOWN` for all.
    pub fn send(&self, frames: &[&[Iov<'_>]]) -> Result<usize, Errno> {
        Ok(would_block(sys::send(self.socket.as_fd(), frames))?.unwrap_or(0))
    }

    /// Frames that were dropped because nobody received them in time, since the last call. For the control side.
    ///
    /// # Errors
    /// What `getsockopt(2)` says.
    pub fn take_drops(&self) -> Result<u32, Errno> {
        sys::statistics(self.socket.as_fd()).map(|(_, dropped)| dropped)
    }
}

/// For `epoll`: readable means that there are frames to receive.
impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl RxSlot {
    /// Puts the addresses, and the tag if there is one, before the rest of the frame.
    fn finish(
        &mut self,
        memory: &Memory,
        macs: &[u8; MACS],
        received: &sys::Received,
    ) -> Result<(), Errno> {
        let [.., num_buffers_low, num_buffers_high] = &mut self.header;
        (*num_buffers_low, *num_buffers_high) = (0, 0);
        let frame = received.len.saturating_sub(SEND_HEADER_LEN);
        if received.truncated || frame < MACS {
            (self.offset, self.len) = (0, 0);
            return Ok(());
        }
        let mut front = [0; MACS + TAG];
        let (offset, front_len) = match received.tag {
            Some(tag) => {
                let (to_macs, to_tag) = front.split_at_mut(MACS);
                to_macs.copy_from_slice(macs);
                to_tag.copy_from_slice(&tag);
                shift_header(&mut self.header);
                (0, MACS + TAG)
            }
            None => {
                front.split_at_mut(MACS).0.copy_from_slice(macs);
                (TAG, MACS)
            }
        };
        (self.offset, self.len) = (offset as u32, (frame - MACS + front_len) as u32);
        let place = self
            .buffer
            .sub(self.offset, front_len as u32)
            .ok_or(Errno::FAULT)?;
        memory
            .write(place, front.get(..front_len).unwrap_or_default())
            .map_err(|_| Errno::FAULT)
    }
}

/// Makes a virtio header fit a frame that became longer by a tag: `hdr_len` of a superframe, `csum_start` of an
/// unfinished checksum.
fn shift_header(header: &mut [u8; 12]) {
    const NEEDS_CSUM: u8 = 1;
    let [
        flags,
        gso_type,
        hdr_len0,
        hdr_len1,
        _,
        _,
        start0,
        start1,
        ..,
    ] = header;
    let add = |low: &mut u8, high: &mut u8| {
        [*low, *high] = u16::from_le_bytes([*low, *high])
            .saturating_add(TAG as u16)
            .to_le_bytes();
    };
    if *gso_type != 0 {
        add(hdr_len0, hdr_len1);
    }
    if *flags & NEEDS_CSUM != 0 {
        add(start0, start1);
    }
}

fn failed(name: &IfName, call: &'static str, source: io::Error) -> PacketError {
    PacketError::Call {
        call,
        name: name.clone(),
        source,
    }
}

/// A socket with virtio headers that is not bound yet, and the number of the interface.
fn socket_on(name: &IfName) -> Result<(OwnedFd, u32), PacketError> {
    let link = LinkInfo::read(name).map_err(|source| failed(name, "RTM_GETLINK", source))?;
    let link = link.ok_or_else(|| PacketError::NotFound(name.clone()))?;
    if link.mac.is_none() {
        return Err(PacketError::NotEthernet(name.clone()));
    }
    let call = |call| move |errno: Errno| failed(name, call, errno.into());
    // Without a protocol it receives nothing before it is bound.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)
        .map_err(call("socket(AF_PACKET)"))?;
    sys::set(socket.as_fd(), &sys::VnetHdr(1)).map_err(call("PACKET_VNET_HDR"))?;
    Ok((socket, link.index))
}

/// Drops the frames of an interface behind the packet sockets, for as long as the returned file is open.
fn silence(interface: u32) -> Result<OwnedFd, Errno> {
    /// `TCX_DROP`
    const DROP: i32 = 2;
    let program = load_ingress(&[
        Instruction::new(0xb7, 0, 0, 0, DROP), // r0 = DROP
        Instruction::new(0x95, 0, 0, 0, 0),    // return r0
    ])?;
    link_ingress(program.as_fd(), interface)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_shifted_where_it_counts_from_the_start() {
        let mut tso = [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0];
        shift_header(&mut tso);
        assert_eq!(tso, [1, 1, 58, 0, 0xb4, 5, 38, 0, 16, 0, 0, 0]);
        let mut valid = [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        shift_header(&mut valid);
        assert_eq!(valid, [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}
