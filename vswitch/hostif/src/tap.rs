//! TAP devices: the host's own adapter on a switch, one file for each queue (linux/if_tun.h,
//! Documentation/networking/tuntap.rst).
//!
//! A frame is read and written with the 12-byte virtio header in front (`struct virtio_net_hdr_v1`, little-endian,
//! VIRTIO 1.2 section 5.1.6), so that unfinished checksums and TCP superframes cross whole. VLAN tags are in the frame.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use linux_raw_sys::if_tun::{
    IFF_MULTI_QUEUE, IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4,
    TUN_F_TSO6,
};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use crate::info::{LinkInfo, ioctl_socket};
use crate::iov::{Iov, IovMut, readv, writev};
use crate::name::IfName;
use crate::sys::ioctl;
use crate::would_block;

/// Length of the virtio header before each frame, in bytes.
pub const VNET_HEADER_LEN: usize = 12;

/// The longest that a read from a TAP device can be, in bytes: virtio header, Ethernet header with one tag, 64 KiB of IP
/// (`TSO_LEGACY_MAX_SIZE`). The kernel cuts what does not fit a reader's buffer and does not say so.
pub const MAX_READ: usize = VNET_HEADER_LEN + 18 + 65_536;

/// The most queues that a TAP device has (`MAX_TAP_QUEUES`, drivers/net/tun.c).
pub const MAX_QUEUES: u16 = 256;

/// What a TAP device shall be like.
#[derive(Clone, Debug)]
pub struct TapConfig {
    /// Its name. A persistent device of that name that nobody holds is taken up again.
    pub name: IfName,
    /// Its queues, 1 to [`MAX_QUEUES`].
    pub queues: u16,
    /// Whether it stays, with its addresses, when the process ends.
    pub persist: bool,
    /// Its MAC address as the host sees it; `None` leaves it as it is, random for a new device.
    pub mac: Option<[u8; 6]>,
}

/// Why a TAP device was not opened, or not changed.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The number of queues is out of range.
    #[error("a TAP device has 1 to {MAX_QUEUES} queues, not {0}")]
    Queues(u16),
    /// The name belongs to an interface of another kind.
    #[error("{name} is no TAP device: it is of kind {kind}")]
    NotTap {
        /// The name.
        name: IfName,
        /// The kind of the interface.
        kind: String,
    },
    /// The TAP device exists, made for one queue only, and can't get more.
    #[error(
        "the TAP device {0} was made without multi_queue; delete it, or make it again with multi_queue"
    )]
    SingleQueue(IfName),
    /// A program, maybe this one, has the device open.
    #[error("the TAP device {name} is busy: {queues} of its queues are held by a program")]
    Busy {
        /// The name.
        name: IfName,
        /// The queues that are held.
        queues: u32,
    },
    /// A system call failed.
    #[error("{call} for the TAP device {name} failed")]
    Call {
        /// The call.
        call: &'static str,
        /// The name.
        name: IfName,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The control side of an open TAP device.
///
/// It holds the first queue open: the device is released when this and all its [`TapQueue`]s are dropped.
#[derive(Debug)]
pub struct Tap {
    name: IfName,
    control: OwnedFd,
}

/// One queue of an open TAP device, for one thread.
#[derive(Debug)]
pub struct TapQueue {
    file: OwnedFd,
}

impl Tap {
    /// Makes the device, or takes up the persistent one of that name, with all its queues.
    ///
    /// The device takes and gives unfinished checksums and TCP superframes of IPv4 and IPv6 with ECN. A device that was
    /// new is down. Needs `CAP_NET_ADMIN`.
    ///
    /// # Errors
    /// See [`TapError`]. A device that was made by a call that fails goes away again.
    pub fn open(config: &TapConfig) -> Result<(Self, Vec<TapQueue>), TapError> {
        if !(1..=MAX_QUEUES).contains(&config.queues) {
            return Err(TapError::Queues(config.queues));
        }
        let name = &config.name;
        let failed = |call| move |errno: Errno| call_failed(call, name, errno.into());
        if let Some(link) = LinkInfo::read(name).map_err(|e| call_failed("RTM_GETLINK", name, e))? {
            check_free(name, &link)?;
        }
        let queues = (0..config.queues)
            .map(|_| TapQueue::attach(name))
            .collect::<Result<Vec<_>, _>>()?;
        let Some(first) = queues.first() else {
            return Err(TapError::Queues(0));
        };
        ioctl::tun_set_offload(first, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN)
            .map_err(failed("TUNSETOFFLOAD"))?;
        if let Some(mac) = config.mac {
            ioctl::set_mac(first, name, mac).map_err(failed("SIOCSIFHWADDR"))?;
        }
        let control = first
            .file
            .try_clone()
            .map_err(|e| call_failed("dup", name, e))?;
        let tap = Self {
            name: name.clone(),
            control,
        };
        tap.set_persist(config.persist)?;
        Ok((tap, queues))
    }

    /// The device's name.
    pub fn name(&self) -> &IfName {
        &self.name
    }

    /// Whether the device stays when it is released. `false`, then dropping everything, deletes it.
    ///
    /// # Errors
    /// [`TapError::Call`].
    pub fn set_persist(&self, persist: bool) -> Result<(), TapError> {
        ioctl::tun_set_persist(&self.control, persist).map_err(|e| self.failed("TUNSETPERSIST", e))
    }

    /// Tells the host whether the link is up (a plugged cable).
    ///
    /// # Errors
    /// [`TapError::Call`].
    pub fn set_carrier(&self, up: bool) -> Result<(), TapError> {
        ioctl::tun_set_carrier(&self.control, up).map_err(|e| self.failed("TUNSETCARRIER", e))
    }

    /// Sets the MTU, in bytes of IP. The kernel takes 68 to 65521.
    ///
    /// # Errors
    /// [`TapError::Call`].
    pub fn set_mtu(&self, mtu: u32) -> Result<(), TapError> {
        let set = || ioctl::set_mtu(ioctl_socket()?, &self.name, mtu);
        set().map_err(|e| self.failed("SIOCSIFMTU", e))
    }

    /// Sets the device up or down, as `ip link set` does.
    ///
    /// # Errors
    /// [`TapError::Call`].
    pub fn set_up(&self, up: bool) -> Result<(), TapError> {
        let set = || ioctl::set_up(ioctl_socket()?, &self.name, up);
        set().map_err(|e| self.failed("SIOCSIFFLAGS", e))
    }

    /// Sets the MAC address that the host has on this device.
    ///
    /// # Errors
    /// [`TapError::Call`].
    pub fn set_mac(&self, mac: [u8; 6]) -> Result<(), TapError> {
        ioctl::set_mac(&self.control, &self.name, mac).map_err(|e| self.failed("SIOCSIFHWADDR", e))
    }

    fn failed(&self, call: &'static str, errno: Errno) -> TapError {
        call_failed(call, &self.name, errno.into())
    }
}

impl TapQueue {
    fn attach(name: &IfName) -> Result<Self, TapError> {
        let failed = |call| move |errno: Errno| call_failed(call, name, errno.into());
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file =
            open("/dev/net/tun", flags, Mode::empty()).map_err(failed("open /dev/net/tun"))?;
        ioctl::tun_set_iff(
            &file,
            name,
            IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE,
        )
        .map_err(|errno| match errno {
            Errno::BUSY | Errno::TOOBIG => TapError::Busy {
                name: name.clone(),
                queues: u32::from(MAX_QUEUES),
            },
            errno => call_failed("TUNSETIFF", name, errno.into()),
        })?;
        ioctl::tun_set_vnet_hdr_size(&file, VNET_HEADER_LEN as i32)
            .map_err(failed("TUNSETVNETHDRSZ"))?;
        ioctl::tun_set_vnet_le(&file, true).map_err(failed("TUNSETVNETLE"))?;
        Ok(Self { file })
    }

    /// Takes one frame that the host sends: virtio header, then the frame, spread over `buffers`.
    ///
    /// Gives the bytes read, header included, or `None` when there is no frame. The buffers together should hold
    /// [`MAX_READ`] bytes: a longer frame is cut without a word.
    ///
    /// # Errors
    /// What `readv(2)` says; `EBADFD` when the device was deleted.
    pub fn read_vectored(&self, buffers: &mut [IovMut<'_>]) -> Result<Option<usize>, Errno> {
        would_block(readv(&self.file, buffers))
    }

    /// Hands the host one frame: virtio header, then the frame, gathered from `buffers`.
    ///
    /// Gives the bytes taken, or `None` when the device has no room.
    ///
    /// # Errors
    /// What `writev(2)` says: `EINVAL` for a header that does not fit the frame, `EIO` when the device is down, `EBADFD`
    /// when it was deleted.
    pub fn write_vectored(&self, buffers: &[Iov<'_>]) -> Result<Option<usize>, Errno> {
        would_block(writev(&self.file, buffers))
    }
}

/// For `epoll`: readable means that there is a frame to read.
impl AsFd for TapQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn call_failed(call: &'static str, name: &IfName, source: io::Error) -> TapError {
    TapError::Call {
        call,
        name: name.clone(),
        source,
    }
}

/// Refuses an existing interface that can't be taken up.
///
/// The kernel would let several programs share a multi-queue device; each would get some of the flows.
fn check_free(name: &IfName, link: &LinkInfo) -> Result<(), TapError> {
    let name = name.clone();
    match link.tun {
        Some(tun) if tun.tap && tun.queues > 0 => Err(TapError::Busy {
            name,
            queues: tun.queues,
        }),
        Some(tun) if tun.tap && !tun.multi_queue => Err(TapError::SingleQueue(name)),
        Some(tun) if tun.tap => Ok(()),
        _ => Err(TapError::NotTap {
            name,
            kind: link
                .kind
                .clone()
                .unwrap_or_else(|| "hardware or loopback".to_owned()),
        }),
    }
}
