//! One AF_XDP socket: the four rings of one queue.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use guestmem::Memory;
use rustix::io::Errno;
use rustix::net::sockopt::{
    set_xdp_rx_ring_size, set_xdp_tx_ring_size, set_xdp_umem_completion_ring_size,
    set_xdp_umem_fill_ring_size, set_xdp_umem_reg, xdp_mmap_offsets, xdp_statistics,
};
use rustix::net::xdp::{
    SocketAddrXdp, SocketAddrXdpFlags, XDP_PGOFF_RX_RING, XDP_PGOFF_TX_RING,
    XDP_UMEM_PGOFF_COMPLETION_RING, XDP_UMEM_PGOFF_FILL_RING, XdpStatistics, XdpUmemReg,
    XdpUmemRegFlags,
};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};
use rustix::process::{Resource, Rlimit, setrlimit};

use super::{FRAME_SIZE, umem_len, umem_part};
use crate::sys::ring::{Consumer, Descriptor, Producer};

/// What all sockets of an interface have in common.
pub(super) struct SocketConfig {
    pub(super) interface: u32,
    pub(super) frames: u32,
    pub(super) ring_size: u32,
    pub(super) zero_copy: bool,
    pub(super) multi_buffer: bool,
}

/// The socket of one receive and transmit queue: a half for each direction, so that two threads can work it.
///
/// A frame buffer has one owner at a time. The caller owns all at first; it gives them away by [`XdpReceiver::fill`] and
/// [`XdpSender::transmit`], and gets them back by [`XdpReceiver::receive`] and [`XdpSender::complete`]. Addresses count
/// from the start of the whole UMEM; a queue takes those of its own part only.
#[derive(Debug)]
pub struct XdpQueue {
    /// What comes from the wire.
    pub receiver: XdpReceiver,
    /// What goes to the wire.
    pub sender: XdpSender,
}

/// The receiving half of an [`XdpQueue`].
#[derive(Debug)]
pub struct XdpReceiver {
    rx: Consumer<Descriptor>,
    fill: Producer<u64>,
    end: End,
}

/// The sending half of an [`XdpQueue`].
#[derive(Debug)]
pub struct XdpSender {
    tx: Producer<Descriptor>,
    completion: Consumer<u64>,
    end: End,
}

/// What both halves have.
#[derive(Clone, Debug)]
struct End {
    socket: Arc<OwnedFd>,
    index: u32,
    /// Start of this queue's part of the UMEM, which the kernel counts from.
    base: u64,
    _umem: Arc<Memory>,
}

impl XdpQueue {
    /// Opens and binds the socket of `queue`. A failure names the call.
    pub(super) fn open(
        config: &SocketConfig,
        queue: u32,
        umem: &Arc<Memory>,
    ) -> Result<Self, (&'static str, Errno)> {
        let failed = |call| move |errno| (call, errno);
        let base = umem_len(queue, config.frames) as u64;
        let socket = socket_with(
            AddressFamily::XDP,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None,
        );
        let socket = socket.map_err(failed("socket(AF_XDP)"))?;
        let address =
            umem_part(umem, queue, config.frames).ok_or(("XDP_UMEM_REG", Errno::FAULT))?;
        let part = XdpUmemReg {
            addr: address as u64,
            len: umem_len(1, config.frames) as u64,
            chunk_size: FRAME_SIZE,
            headroom: 0,
            flags: XdpUmemRegFlags::empty(),
            tx_metadata_len: 0,
        };
        register(&socket, part).map_err(failed("XDP_UMEM_REG"))?;
        let size = config.ring_size;
        set_xdp_umem_fill_ring_size(&socket, size).map_err(failed("XDP_UMEM_FILL_RING"))?;
        set_xdp_umem_completion_ring_size(&socket, size)
            .map_err(failed("XDP_UMEM_COMPLETION_RING"))?;
        set_xdp_rx_ring_size(&socket, size).map_err(failed("XDP_RX_RING"))?;
        set_xdp_tx_ring_size(&socket, size).map_err(failed("XDP_TX_RING"))?;
        let offsets = xdp_mmap_offsets(&socket).map_err(failed("XDP_MMAP_OFFSETS"))?;
        let fd = socket.as_fd();
        let mapped = failed("mmap of a ring");
        let fill =
            Producer::map(fd, &offsets.fr, XDP_UMEM_PGOFF_FILL_RING, size).map_err(mapped)?;
        let completion =
            Consumer::map(fd, &offsets.cr, XDP_UMEM_PGOFF_COMPLETION_RING, size).map_err(mapped)?;
        let rx = Consumer::map(fd, &offsets.rx, XDP_PGOFF_RX_RING, size).map_err(mapped)?;
        let tx = Producer::map(fd, &offsets.tx, XDP_PGOFF_TX_RING, size).map_err(mapped)?;

        let copy = if config.zero_copy {
            SocketAddrXdpFlags::XDP_ZEROCOPY
        } else {
            SocketAddrXdpFlags::XDP_COPY
        };
        let mut flags = SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP | copy;
        flags.set(SocketAddrXdpFlags::XDP_USE_SG, config.multi_buffer);
        bind(&socket, &SocketAddrXdp::new(flags, config.interface, queue))
            .map_err(failed("bind"))?;
        let end = End {
            socket: Arc::new(socket),
            index: queue,
            base,
            _umem: Arc::clone(umem),
        };
        Ok(Self {
            receiver: XdpReceiver {
                rx,
                fill,
                end: end.clone(),
            },
            sender: XdpSender {
                tx,
                completion,
                end,
            },
        })
    }

    pub(super) fn socket(&self) -> &OwnedFd {
        &self.receiver.end.socket
    }

    /// The number of the queue.
    pub fn index(&self) -> u32 {
        self.receiver.end.index
    }

    /// What the kernel has dropped, and why (`XDP_STATISTICS`). For the control side.
    ///
    /// # Errors
    /// What `getsockopt(2)` says.
    pub fn statistics(&self) -> Result<XdpStatistics, Errno> {
        xdp_statistics(self.socket())
    }
}

impl XdpReceiver {
    /// Gives frame buffers to receive into. An address means the buffer that it lies in, so those of received
    /// descriptors can be given back as they are. Tells how many were taken, from the first on: the rest found the ring
    /// full.
    pub fn fill(&mut self, addresses: &[u64]) -> usize {
        let base = self.end.base;
        self.fill
            .push(addresses.iter().map(|a| a.wrapping_sub(base)))
    }

    /// Takes received frames into the front of `out`; tells how many descriptors that are.
    ///
    /// Frames come whole: a frame of which some pieces don't fit is left for the next call. Only if `out` is too short
    /// for one frame alone does the last one taken say [`more`](Descriptor::more), and the frame goes on in the next call.
    pub fn receive(&mut self, out: &mut [Descriptor]) -> usize {
        let found = self.rx.peek(out);
        let ready = out.get_mut(..found).unwrap_or_default();
        let whole = ready
            .iter()
            .rposition(|d| !d.more())
            .map_or(0, |last| last + 1);
        let taken = if whole == 0 && found == out.len() {
            found
        } else {
            whole
        };
        let out = out.get_mut(..taken).unwrap_or_default();
        for descriptor in out {
            descriptor.addr = descriptor.addr.wrapping_add(self.end.base);
        }
        self.rx.release(taken);
        taken
    }

    /// Lets the kernel fill buffers, if it waits for that.
    ///
    /// # Errors
    /// As [`XdpSender::wake`].
    pub fn wake(&mut self) -> Result<(), Errno> {
        if self.fill.needs_wakeup() {
            later(recv(&self.end.socket, &mut [0_u8; 0][..], RecvFlags::DONTWAIT).map(|(n, _)| n))?;
        }
        Ok(())
    }
}

impl XdpSender {
    /// Hands over descriptors to send; tells how many were taken, from the first on: never some pieces of a frame
    /// without the others. Call [`wake`](Self::wake) after.
    pub fn transmit(&mut self, descriptors: &[Descriptor]) -> usize {
        let room = self.tx.free(descriptors.len());
        let fitting = descriptors
            .get(..room.min(descriptors.len()))
            .unwrap_or_default();
        let whole = fitting
            .iter()
            .rposition(|d| !d.more())
            .map_or(0, |last| last + 1);
        let base = self.end.base;
        let shifted = |d: &Descriptor| Descriptor::new(d.addr.wrapping_sub(base), d.len, d.more());
        self.tx.push(fitting.iter().take(whole).map(shifted))
    }

    /// Free slots to [`transmit`](Self::transmit) into.
    pub fn transmit_room(&mut self) -> usize {
        self.tx.free(usize::MAX)
    }

    /// Takes back the addresses of sent descriptors into the front of `out`; tells how many.
    pub fn complete(&mut self, out: &mut [u64]) -> usize {
        let count = self.completion.peek(out);
        for address in out.iter_mut().take(count) {
            *address = address.wrapping_add(self.end.base);
        }
        self.completion.release(count);
        count
    }

    /// Whether frames wait for [`wake`](Self::wake) to be sent. Without zero copy they always do. To be asked in every
    /// turn, as the kernel may come to wait after it was asked.
    pub fn needs_wakeup(&self) -> bool {
        self.tx.pending() && self.tx.needs_wakeup()
    }

    /// Tells the kernel to look at the ring, if it waits for that. Without zero copy the call sends the frames itself,
    /// at most 32 of them; [`needs_wakeup`](Self::needs_wakeup) tells that some are left.
    ///
    /// # Errors
    /// `ENETDOWN` while the interface is down; `ENXIO`, `ENODEV` and others when it is gone.
    pub fn wake(&mut self) -> Result<(), Errno> {
        if self.needs_wakeup() {
            later(send(&self.end.socket, &[], SendFlags::DONTWAIT))?;
        }
        Ok(())
    }
}

/// For `epoll`: readable means that frames were received.
impl AsFd for XdpReceiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.end.socket.as_fd()
    }
}

/// Registers the UMEM. Without `CAP_IPC_LOCK` its pages count against `RLIMIT_MEMLOCK`, which is raised if it must be.
fn register(socket: &OwnedFd, part: XdpUmemReg) -> Result<(), Errno> {
    match set_xdp_umem_reg(socket, part) {
        Err(Errno::NOBUFS) => {
            setrlimit(
                Resource::Memlock,
                Rlimit {
                    current: None,
                    maximum: None,
                },
            )?;
            set_xdp_umem_reg(socket, part)
        }
        done => done,
    }
}

/// The kernel could not do it now; the next turn asks again.
fn later(result: Result<usize, Errno>) -> Result<(), Errno> {
    match result {
        Ok(_) | Err(Errno::AGAIN | Errno::BUSY | Errno::NOBUFS | Errno::INTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}
