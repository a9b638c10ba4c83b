//! Packet sockets (linux/if_packet.h): options, bind, and many frames in one call.
#![allow(unsafe_code, reason = "socket calls that take untyped memory")]

use std::mem::zeroed;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::null_mut;

use rustix::io::Result;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::iov::{Iov, IovMut, result};

/// The most messages that one call moves.
pub(crate) const BATCH: usize = 32;

/// Room for the control message that a received message brings: `CMSG_SPACE(sizeof(struct tpacket_auxdata))`.
const CONTROL: usize = 40;

/// A socket option whose value has no padding and no addresses in it.
///
/// # Safety
/// `OPTION` of level `SOL_PACKET` or `SOL_SOCKET` takes a value of this type.
unsafe trait OptionValue {
    const LEVEL: libc::c_int;
    const OPTION: libc::c_int;
}

macro_rules! switch {
    ($(#[$doc:meta])* $name:ident = $level:ident, $option:ident) => {
        $(#[$doc])*
        #[repr(transparent)]
        pub(crate) struct $name(pub(crate) i32);
        // SAFETY: the option takes an int.
        unsafe impl OptionValue for $name {
            const LEVEL: libc::c_int = libc::$level;
            const OPTION: libc::c_int = linux_raw_sys::if_packet::$option as libc::c_int;
        }
    };
}

switch!(
    /// A `struct virtio_net_hdr` of 10 bytes comes before each frame.
    VnetHdr = SOL_PACKET, PACKET_VNET_HDR
);
switch!(
    /// A `struct tpacket_auxdata` comes beside each received frame.
    Auxdata = SOL_PACKET, PACKET_AUXDATA
);
switch!(
    /// Frames that this host sends are not received.
    IgnoreOutgoing = SOL_PACKET, PACKET_IGNORE_OUTGOING
);
switch!(
    /// Frames go to the driver without queueing discipline.
    QdiscBypass = SOL_PACKET, PACKET_QDISC_BYPASS
);

/// `SO_RCVBUFFORCE`: bytes that received frames may take before they are dropped.
#[repr(transparent)]
pub(crate) struct ReceiveBuffer(pub(crate) i32);
// SAFETY: the option takes an int.
unsafe impl OptionValue for ReceiveBuffer {
    const LEVEL: libc::c_int = libc::SOL_SOCKET;
    const OPTION: libc::c_int = libc::SO_RCVBUFFORCE;
}

/// `struct packet_mreq`
#[repr(C)]
pub(crate) struct Membership {
    interface: i32,
    kind: u16,
    address_len: u16,
    address: [u8; 8],
}

impl Membership {
    /// Every frame on the wire of the interface is received, while the socket is open.
    pub(crate) fn promiscuous(interface: u32) -> Self {
        let kind = linux_raw_sys::if_packet::PACKET_MR_PROMISC as u16;
        Self {
            interface: interface as i32,
            kind,
            address_len: 0,
            address: [0; 8],
        }
    }
}
// SAFETY: the option takes a struct packet_mreq.
unsafe impl OptionValue for Membership {
    const LEVEL: libc::c_int = libc::SOL_PACKET;
    const OPTION: libc::c_int = linux_raw_sys::if_packet::PACKET_ADD_MEMBERSHIP as libc::c_int;
}

/// Sets a socket option.
#[allow(private_bounds, reason = "the options are those of this module")]
pub(crate) fn set<T: OptionValue>(socket: BorrowedFd<'_>, value: &T) -> Result<()> {
    let (pointer, length) = (
        (&raw const *value).cast(),
        size_of::<T>() as libc::socklen_t,
    );
    // SAFETY: the kernel reads `length` bytes at `pointer`, which are `value`; its type fits by `OptionValue`.
    let returned =
        unsafe { libc::setsockopt(socket.as_raw_fd(), T::LEVEL, T::OPTION, pointer, length) };
    result(returned as isize).map(|_| ())
}

/// Makes an interface receive every frame on its wire until the returned socket is closed, also by the end of the process.
pub(crate) fn hold_promiscuous(interface: u32) -> Result<OwnedFd> {
    // Without a protocol the socket itself receives nothing.
    let socket = socket_with(
        AddressFamily::PACKET,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None,
    )?;
    set(socket.as_fd(), &Membership::promiscuous(interface))?;
    Ok(socket)
}

/// `struct tpacket_stats`: since the last call, (frames received, of those dropped for want of room).
pub(crate) fn statistics(socket: BorrowedFd<'_>) -> Result<(u32, u32)> {
    let mut counts = [0_u32; 2];
    let mut length = size_of_val(&counts) as libc::socklen_t;
    let option = linux_raw_sys::if_packet::PACKET_STATISTICS as libc::c_int;
    let (fd, pointer) = (socket.as_raw_fd(), counts.as_mut_ptr().cast());
    // SAFETY: the kernel writes up to `length` bytes at `pointer`, which are `counts`.
    let returned =
        unsafe { libc::getsockopt(fd, libc::SOL_PACKET, option, pointer, &raw mut length) };
    let [received, dropped] = counts;
    result(returned as isize).map(|_| (received, dropped))
}

/// What a bound socket receives.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hears {
    /// All frames.
    All,
    /// No frame.
    Nothing,
}

/// Binds to an interface.
pub(crate) fn bind(socket: BorrowedFd<'_>, interface: u32, hears: Hears) -> Result<()> {
    // SAFETY: a sockaddr_ll is integers and an array of them: all zeros is a value.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = match hears {
        Hears::All => (libc::ETH_P_ALL as u16).to_be(),
        Hears::Nothing => 0,
    };
    address.sll_ifindex = interface as i32;
    let (pointer, length) = (
        (&raw const address).cast(),
        size_of_val(&address) as libc::socklen_t,
    );
    // SAFETY: the kernel reads `length` bytes at `pointer`, which are `address`.
    result(unsafe { libc::bind(socket.as_raw_fd(), pointer, length) } as isize).map(|_| ())
}

/// What [`receive`] tells about one message.
#[derive(Clone, Copy, Default)]
pub(crate) struct Received {
    /// Bytes in its pieces.
    pub(crate) len: usize,
    /// It was longer than its pieces.
    pub(crate) truncated: bool,
    /// The VLAN tag that the kernel took out of the frame: protocol and control information, big-endian.
    pub(crate) tag: Option<[u8; 4]>,
}

/// `recvmmsg(2)` without waiting: up to [`BATCH`] messages, each into one of `messages`; tells how many came.
pub(crate) fn receive<const N: usize>(
    socket: BorrowedFd<'_>,
    messages: &mut [[IovMut<'_>; N]],
    received: &mut [Received; BATCH],
) -> Result<usize> {
    let mut controls = [[0_u64; CONTROL / 8]; BATCH];
    // SAFETY: an mmsghdr is integers and pointers: all zeros is a value.
    let mut headers: [libc::mmsghdr; BATCH] = unsafe { zeroed() };
    let count = messages.len().min(BATCH);
    for ((header, message), control) in headers.iter_mut().zip(messages).zip(&mut controls) {
        header.msg_hdr.msg_iov = message.as_mut_ptr().cast();
        header.msg_hdr.msg_iovlen = N;
        header.msg_hdr.msg_control = control.as_mut_ptr().cast();
        header.msg_hdr.msg_controllen = CONTROL;
    }
    let (fd, flags) = (socket.as_raw_fd(), libc::MSG_DONTWAIT);
    // SAFETY: each of the `count` first headers has `N` pieces, which an `IovMut` lets the kernel write, and a control
    // buffer of its length; all live until the call is over.
    let returned = unsafe {
        libc::recvmmsg(
            fd,
            headers.as_mut_ptr(),
            count as libc::c_uint,
            flags,
            null_mut(),
        )
    };
    let count = result(returned as isize)?;
    for (((header, control), out), _) in headers.iter().zip(&controls).zip(received).zip(0..count) {
        *out = Received {
            len: header.msg_len as usize,
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            tag: (header.msg_hdr.msg_controllen >= CONTROL)
                .then(|| tag_of(control))
                .flatten(),
        };
    }
    Ok(count)
}

/// Finds the VLAN tag in a `struct cmsghdr` with a `struct tpacket_auxdata`.
fn tag_of(control: &[u64; CONTROL / 8]) -> Option<[u8; 4]> {
    use linux_raw_sys::if_packet::{
        PACKET_AUXDATA, TP_STATUS_VLAN_TPID_VALID, TP_STATUS_VLAN_VALID,
    };
    // cmsg_len | cmsg_level, cmsg_type | tp_status, tp_len | tp_snaplen, tp_mac, tp_net | tp_vlan_tci, tp_vlan_tpid
    let [_, level_type, status_len, _, vlan] = *control;
    let auxdata = u64::from(PACKET_AUXDATA) << 32 | libc::SOL_PACKET as u64;
    let status = status_len as u32;
    if level_type != auxdata || status & TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let tpid = if status & TP_STATUS_VLAN_TPID_VALID != 0 {
        (vlan >> 16) as u16
    } else {
        libc::ETH_P_8021Q as u16
    };
    let ([t0, t1], [c0, c1]) = (tpid.to_be_bytes(), (vlan as u16).to_be_bytes());
    Some([t0, t1, c0, c1])
}

/// `sendmmsg(2)` without waiting: up to [`BATCH`] messages, each gathered from its pieces; tells how many went.
pub(crate) fn send(socket: BorrowedFd<'_>, messages: &[&[Iov<'_>]]) -> Result<usize> {
    // SAFETY: an mmsghdr is integers and pointers: all zeros is a value.
    let mut headers: [libc::mmsghdr; BATCH] = unsafe { zeroed() };
    let count = messages.len().min(BATCH);
    for (header, message) in headers.iter_mut().zip(messages) {
        // The kernel reads the pieces and does not change them.
        header.msg_hdr.msg_iov = message.as_ptr().cast_mut().cast();
        header.msg_hdr.msg_iovlen = message.len();
    }
    let (fd, flags) = (socket.as_raw_fd(), libc::MSG_DONTWAIT);
    // SAFETY: each of the `count` first headers has pieces which an `Iov` lets the kernel read, until the call is over.
    result(
        unsafe { libc::sendmmsg(fd, headers.as_mut_ptr(), count as libc::c_uint, flags) } as isize,
    )
}
