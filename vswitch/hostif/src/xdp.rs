//! AF_XDP: frames between the receive and transmit queues of an interface and memory of the caller, past the kernel's
//! network stack (Documentation/networking/af_xdp.rst, linux/if_xdp.h).
//!
//! [`Xdp::open`] takes all receive queues of an interface. Each gets a socket, an [`XdpQueue`], with its own part of the
//! caller's memory (the UMEM), so that queues can be given to different threads. While the [`Xdp`] lives, an XDP program
//! hands every frame to the socket of its queue; when it is dropped or the process dies, the interface belongs to
//! the kernel again.

mod btf;
mod program;
mod queue;
mod wire;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use guestmem::Memory;
use rustix::io::Errno;

use crate::info::{LinkInfo, rx_queues};
use crate::name::IfName;
use crate::sys::packet::hold_promiscuous;
pub use crate::sys::ring::Descriptor;
use program::Program;
use queue::SocketConfig;
pub use queue::{XdpQueue, XdpReceiver, XdpSender};
use wire::Wire;

/// Bytes of a frame buffer, its start a multiple of this within the UMEM.
pub const FRAME_SIZE: u32 = 4096;

/// The most bytes that the kernel puts into one frame buffer: it keeps 256 in front (`XDP_PACKET_HEADROOM`).
pub const FRAME_ROOM: u32 = FRAME_SIZE - 256;

/// How long a queue may take to become free after its socket was closed: far more than the kernel takes (`xp_release_deferred`).
const RELEASE_TIME: Duration = Duration::from_millis(500);

/// Bytes that a frame has more than its MTU: Ethernet header and two VLAN tags.
const FRAME_OVERHEAD: u32 = 14 + 8;

/// How an interface shall be taken.
#[derive(Clone, Debug)]
pub struct XdpConfig {
    /// The interface.
    pub name: IfName,
    /// Frame buffers for each queue, 64 to 524288. [`umem_len`] says how much memory that is.
    pub frames_per_queue: u32,
    /// Slots of each of the four rings of a queue: a power of two, 64 to 32768.
    pub ring_size: u32,
    /// What becomes of frames that no socket takes, as those on a queue that was added later.
    pub unclaimed: Unclaimed,
    /// Whether to put up with [`AttachMode::Generic`] where the driver can't run a program.
    pub generic: bool,
}

/// What becomes of a frame that no socket takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unclaimed {
    /// It goes to the host's network stack.
    Pass,
    /// It is dropped.
    Drop,
}

/// Where the XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// In the driver.
    Native,
    /// Before the network stack, on the kernel's own buffer, with every driver. It is slower, and no perfect wire:
    /// a software peer's TCP superframes come uncut, without a word on their segment size, or are dropped when they are
    /// larger than a buffer and [`XdpMode::multi_buffer`] is off. A packet socket tells the segment size.
    Generic,
}

/// What was agreed with the kernel for an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpMode {
    /// Where the program runs.
    pub attach: AttachMode,
    /// The NIC reads and writes the UMEM itself; if not, the kernel copies.
    pub zero_copy: bool,
    /// Frames may come and go in several frame buffers: the MTU does not fit one.
    pub multi_buffer: bool,
    /// Receive queues.
    pub queues: u32,
    /// Received TCP and UDP frames may have unfinished checksums, and nothing in a descriptor tells which have: a
    /// sender on this host (the other end of a veth pair) leaves them to "hardware" that is not there. Such a field
    /// holds the sum of the pseudo header. A frame whose field equals that sum can be taken as unfinished: to finish it
    /// gives the right checksum, and gives the same one if it was finished already.
    pub unfinished_checksums: bool,
    /// Received frames have their VLAN tags. If not, a tag that the sender or the NIC keeps beside a frame is lost, and
    /// the frame looks untagged. Tag stripping of the NIC is off, which suffices for most; for software peers, as the
    /// other end of a veth pair, the program puts tags back, which needs Linux 6.8. Without that it is the other end
    /// that must put tags into frames: `ethtool -K PEER txvlan off`.
    pub vlan_tags: bool,
}

/// Why an interface was not taken.
#[derive(Debug, thiserror::Error)]
pub enum XdpError {
    /// There is no such interface.
    #[error("there is no interface {0}")]
    NotFound(IfName),
    /// A program is attached already.
    #[error(
        "{0} has another XDP program already; `ip link set dev {0} xdp off` or its owner can detach it"
    )]
    Occupied(IfName),
    /// The driver can't run a program, and generic mode was not allowed.
    #[error("the driver of {name} can't run an XDP program, and generic mode was not asked for")]
    NoDriverSupport {
        /// The interface.
        name: IfName,
        /// What the kernel said.
        source: io::Error,
    },
    /// A queue has a socket already.
    #[error("receive queue {queue} of {name} has another AF_XDP socket already")]
    QueueBusy {
        /// The interface.
        name: IfName,
        /// The queue.
        queue: u32,
    },
    /// The configuration is out of range.
    #[error("{what} is {value}; allowed is {allowed}")]
    Config {
        /// The field.
        what: &'static str,
        /// What it was.
        value: u64,
        /// What it may be.
        allowed: &'static str,
    },
    /// The UMEM is too short.
    #[error("the UMEM must be {needed} bytes from address 0 on, for {queues} receive queues")]
    Umem {
        /// What [`umem_len`] says.
        needed: usize,
        /// The receive queues of the interface.
        queues: u32,
    },
    /// The MTU needs several frame buffers for a frame, and the kernel or the driver has no such thing.
    #[error("{name} has MTU {mtu}: above {} a frame takes several buffers, which needs Linux 6.6 and a driver that can",
        FRAME_ROOM - FRAME_OVERHEAD)]
    Mtu {
        /// The interface.
        name: IfName,
        /// Its MTU.
        mtu: u32,
    },
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

/// An interface whose frames go to AF_XDP sockets, until this is dropped.
#[derive(Debug)]
pub struct Xdp {
    _program: Program,
    _wire: Wire,
    _promiscuous: OwnedFd,
    mode: XdpMode,
}

/// The memory that `queues` queues of `frames_per_queue` frame buffers take, in bytes.
pub const fn umem_len(queues: u32, frames_per_queue: u32) -> usize {
    queues as usize * frames_per_queue as usize * FRAME_SIZE as usize
}

impl Xdp {
    /// Takes all receive queues of an interface. `umem` holds at least [`umem_len`] bytes from address 0 on; queue `q`
    /// uses the `frames_per_queue` buffers that begin at `umem_len(q, frames_per_queue)`.
    ///
    /// Zero copy is tried first, and the program is attached in the driver if it can be; [`mode`](Self::mode) tells what
    /// came out. VLAN tag stripping, LRO and GRO of the interface are off, and the interface is promiscuous, until it is
    /// dropped. The MTU decides whether a
    /// frame may take several buffers: after it was raised above [`FRAME_ROOM`]` - 22` the interface must be opened
    /// anew. Needs `CAP_NET_ADMIN`, `CAP_NET_RAW` and `CAP_BPF`. It may take some seconds: drivers
    /// reset the NIC for it, and a queue that was just closed takes a moment to become free.
    ///
    /// # Errors
    /// See [`XdpError`]. After a failure nothing is left attached.
    pub fn open(config: &XdpConfig, umem: &Arc<Memory>) -> Result<(Self, Vec<XdpQueue>), XdpError> {
        let name = &config.name;
        let link = LinkInfo::read(name).map_err(|e| call_failed("RTM_GETLINK", name, e))?;
        let link = link.ok_or_else(|| XdpError::NotFound(name.clone()))?;
        let queues = rx_queues(name).map_err(|e| call_failed("ETHTOOL_GCHANNELS", name, e))?;
        check(config, queues, umem)?;
        let software = link.kind.is_some();
        let needs_several = link.mtu > FRAME_ROOM - FRAME_OVERHEAD;
        let wire = Wire::new(name, software);
        let attach =
            |several| Program::attach(config, link.index, queues, several, !wire.vlan_tags);
        let (program, multi_buffer) = match attach(needs_several) {
            // The other end of a veth pair may have a larger MTU, and send frames of that length.
            Err(XdpError::NoDriverSupport { .. }) if !needs_several => (attach(true)?, true),
            attached => (attached?, needs_several),
        };
        let mut socket = SocketConfig {
            interface: link.index,
            frames: config.frames_per_queue,
            ring_size: config.ring_size,
            zero_copy: program.mode == AttachMode::Native,
            multi_buffer,
        };
        let mut sockets = Vec::with_capacity(queues as usize);
        for queue in 0..queues {
            let mut opened = open_queue(&socket, queue, umem);
            if opened.is_err() && socket.zero_copy && queue == 0 {
                socket.zero_copy = false;
                opened = open_queue(&socket, queue, umem);
            }
            sockets.push(opened.map_err(|(call, errno)| match (call, errno) {
                ("bind", Errno::BUSY) => XdpError::QueueBusy {
                    name: name.clone(),
                    queue,
                },
                ("bind", Errno::INVAL | Errno::OPNOTSUPP) if multi_buffer => XdpError::Mtu {
                    name: name.clone(),
                    mtu: link.mtu,
                },
                (call, errno) => call_failed(call, name, errno.into()),
            })?);
        }
        let promiscuous = hold_promiscuous(link.index)
            .map_err(|e| call_failed("PACKET_ADD_MEMBERSHIP", name, e.into()))?;
        let mode = XdpMode {
            attach: program.mode,
            zero_copy: socket.zero_copy,
            multi_buffer,
            queues,
            unfinished_checksums: software || program.mode == AttachMode::Generic,
            vlan_tags: wire.vlan_tags || program.tagging,
        };
        for socket in &sockets {
            let claimed = program.claim(socket.index(), socket.socket());
            claimed.map_err(|e| call_failed("BPF_MAP_UPDATE_ELEM", name, e.into()))?;
        }
        Ok((
            Self {
                _program: program,
                _wire: wire,
                _promiscuous: promiscuous,
                mode,
            },
            sockets,
        ))
    }

    /// What was agreed with the kernel.
    pub fn mode(&self) -> XdpMode {
        self.mode
    }
}

/// Opens the socket of a queue. The kernel lets go of a queue some time after its socket was closed, and that is waited for.
fn open_queue(
    config: &SocketConfig,
    queue: u32,
    umem: &Arc<Memory>,
) -> Result<XdpQueue, (&'static str, Errno)> {
    let end = Instant::now() + RELEASE_TIME;
    loop {
        match XdpQueue::open(config, queue, umem) {
            Err(("bind", Errno::BUSY)) if Instant::now() < end => thread::sleep(RELEASE_TIME / 50),
            done => return done,
        }
    }
}

fn call_failed(call: &'static str, name: &IfName, source: io::Error) -> XdpError {
    XdpError::Call {
        call,
        name: name.clone(),
        source,
    }
}

fn check(config: &XdpConfig, queues: u32, umem: &Memory) -> Result<(), XdpError> {
    let refuse = |what, value, allowed| {
        Err(XdpError::Config {
            what,
            value,
            allowed,
        })
    };
    let (frames, slots) = (config.frames_per_queue, config.ring_size);
    if !(64..=1 << 19).contains(&frames) {
        return refuse(
            "the number of frame buffers for each queue",
            frames.into(),
            "64 to 524288",
        );
    }
    if !slots.is_power_of_two() || !(64..=32_768).contains(&slots) {
        return refuse(
            "the number of slots of a ring",
            slots.into(),
            "a power of two, 64 to 32768",
        );
    }
    if umem_part(umem, queues.saturating_sub(1), frames).is_none() {
        return Err(XdpError::Umem {
            needed: umem_len(queues, frames),
            queues,
        });
    }
    Ok(())
}

/// The address of the part of the UMEM that belongs to `queue`, if it is there.
fn umem_part(umem: &Memory, queue: u32, frames: u32) -> Option<usize> {
    let length = u32::try_from(umem_len(1, frames)).ok()?;
    let span = umem.span(umem_len(queue, frames) as u64, length)?;
    umem.host_addr(span)
        .filter(|address| address % FRAME_SIZE as usize == 0)
}
