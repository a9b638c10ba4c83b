//! The uplink of an external network by AF_XDP: the queues of a NIC as a port.
//!
//! The wire takes no offload requests, so checksums are filled in and large frames cut while they are copied into the
//! UMEM. A virtual cable takes them, but AF_XDP has no words for them: there they go through a packet socket. What comes
//! from the wire is complete, except from a peer on this host; TCP segments in a row are joined.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use arrayvec::ArrayVec;
use guestmem::{Memory, Span};
use hostif::packet::PacketSocket;
use hostif::xdp::{Descriptor, FRAME_SIZE, XdpMode, XdpQueue, XdpReceiver, XdpSender, umem_len};
use offload::Features;
use rustix::io::Errno;

use crate::burst::{BURST, Burst, MAX_SEGMENTS};
use crate::deliver::{Job, MAX_SPREAD, Report, deliver};
use crate::drops::DropReason;
use crate::port::{PortFault, Room, RxMeta, RxRing, RxSide, Sides, TxSide};
use crate::ports::join::Joiner;
use crate::ports::packet::PacketRx;

/// Descriptors taken from a receive ring at once.
const PEEK: usize = BURST;

/// Makes the sides of a port out of all queues of an interface. `frames` is the number of buffers of each queue; half of
/// them receive. What asks for something goes to `requests` instead, if there is such a socket on the interface.
pub fn open(
    queues: Vec<XdpQueue>,
    memory: &Arc<Memory>,
    frames: u32,
    mode: XdpMode,
    requests: Option<PacketSocket>,
) -> Sides {
    let (mut receivers, mut senders) = (Vec::new(), Vec::new());
    for queue in queues {
        let first = umem_len(queue.index(), frames) as u64;
        let addresses =
            |from: u32, to: u32| (from..to).map(move |i| first + u64::from(i * FRAME_SIZE));
        let mut receiver = queue.receiver;
        let given: Vec<u64> = addresses(0, frames / 2).collect();
        receiver.fill(&given);
        receivers.push(receiver);
        senders.push(Sender {
            queue: queue.sender,
            memory: memory.clone(),
            free: addresses(frames / 2, frames).collect(),
            reserved: ArrayVec::new(),
            committed: Vec::with_capacity(frames as usize),
            several: mode.multi_buffer,
            fault: None,
        });
    }
    Sides {
        tx: Box::new(XdpTx {
            taken: receivers
                .iter()
                .map(|_| Vec::with_capacity(BURST * 4))
                .collect(),
            receivers,
            memory: memory.clone(),
            next: 0,
            unfinished: mode.unfinished_checksums,
            fault: None,
        }),
        rx: Box::new(XdpRx {
            senders,
            requests: requests.map(|socket| PacketRx::new(Arc::new(socket))),
        }),
    }
}

fn fault(what: &'static str, errno: Errno) -> PortFault {
    PortFault {
        what,
        value: errno.raw_os_error() as u64,
    }
}

struct XdpTx {
    receivers: Vec<XdpReceiver>,
    memory: Arc<Memory>,
    /// Buffers of each queue that the burst lies in.
    taken: Vec<Vec<u64>>,
    /// The queue that is looked at first.
    next: usize,
    unfinished: bool,
    fault: Option<PortFault>,
}

impl XdpTx {
    fn gather_queue(&mut self, queue: usize, burst: &mut Burst) {
        let (Some(receiver), Some(taken)) =
            (self.receivers.get_mut(queue), self.taken.get_mut(queue))
        else {
            return;
        };
        let mut descriptors = [Descriptor::default(); PEEK];
        // A frame has one descriptor at least, so the burst has room for what this takes.
        let room = burst.room().min(PEEK);
        let count = receiver.receive(descriptors.get_mut(..room).unwrap_or(&mut []));
        let mut pieces: ArrayVec<Span, MAX_SEGMENTS> = ArrayVec::new();
        let mut joiner = Joiner::new(&self.memory, self.unfinished);
        for descriptor in descriptors.iter().take(count) {
            taken.push(descriptor.addr);
            if let Some(span) = self.memory.span(descriptor.addr, descriptor.len) {
                let _ = pieces.try_push(span);
            }
            if descriptor.more() {
                continue;
            }
            joiner.take(&pieces, burst);
            pieces.clear();
        }
        joiner.finish(burst);
    }
}

impl TxSide for XdpTx {
    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn gather(&mut self, burst: &mut Burst) {
        for _ in 0..self.receivers.len() {
            self.gather_queue(self.next, burst);
            if burst.is_full() {
                break;
            }
            self.next = (self.next + 1) % self.receivers.len();
        }
    }

    fn complete(&mut self) -> bool {
        for (receiver, taken) in self.receivers.iter_mut().zip(&mut self.taken) {
            // The ring has a slot for every buffer.
            receiver.fill(taken);
            taken.clear();
            if let Err(errno) = receiver.wake()
                && errno != Errno::NETDOWN
            {
                self.fault = Some(fault("AF_XDP socket: errno of recvfrom", errno));
            }
        }
        false
    }

    fn arm(&mut self) -> bool {
        false
    }

    fn disarm(&mut self) {}

    fn wake_fds(&self, each: &mut dyn FnMut(BorrowedFd<'_>)) {
        for receiver in &self.receivers {
            each(receiver.as_fd());
        }
    }

    fn fault(&self) -> Option<PortFault> {
        self.fault
    }
}

struct XdpRx {
    senders: Vec<Sender>,
    requests: Option<PacketRx>,
}

impl RxSide for XdpRx {
    fn deliver(&mut self, job: &Job<'_>, report: &mut Report) {
        // Both ways end in the same call of the driver before they return. So a frame overtakes another only if the kernel
        // has put that off, and then all go the one way.
        if let Some(requests) = &mut self.requests
            && job.asks()
            && self.senders.iter_mut().all(Sender::has_sent_all)
        {
            return requests.deliver(job, report);
        }
        let shares = match self.senders.len() {
            1 => [job.frames; MAX_SPREAD],
            queues => job.spread(queues),
        };
        for (sender, frames) in self.senders.iter_mut().zip(shares) {
            if frames != 0 {
                sender.reclaim();
                deliver(sender, &Job { frames, ..*job }, report);
            }
        }
    }

    fn fault(&self) -> Option<PortFault> {
        let requests = self.requests.as_ref().and_then(RxSide::fault);
        requests.or_else(|| self.senders.iter().find_map(|sender| sender.fault))
    }
}

/// The transmit queue of a NIC as a receive ring of the switch.
struct Sender {
    queue: XdpSender,
    memory: Arc<Memory>,
    /// Buffers that hold nothing.
    free: Vec<u64>,
    /// Buffers of the frame being written, with the bytes in each.
    reserved: ArrayVec<(u64, u32), 4>,
    committed: Vec<Descriptor>,
    /// Frames may take several buffers.
    several: bool,
    fault: Option<PortFault>,
}

impl Sender {
    /// Takes back the buffers that were sent.
    fn reclaim(&mut self) {
        let mut sent = [0; 2 * BURST];
        loop {
            let count = self.queue.complete(&mut sent);
            self.free.extend(
                sent.iter()
                    .take(count)
                    .map(|address| address - address % u64::from(FRAME_SIZE)),
            );
            if count < sent.len() {
                return;
            }
        }
    }

    /// Lets the kernel send what it has put off; whether nothing is left.
    fn has_sent_all(&mut self) -> bool {
        self.wake();
        !self.queue.needs_wakeup()
    }

    /// Tells the kernel of frames until it has taken all, or puts them off.
    fn wake(&mut self) {
        let mut left = self.queue.transmit_room();
        while self.queue.needs_wakeup() {
            if let Err(errno) = self.queue.wake()
                && errno != Errno::NETDOWN
            {
                self.fault = Some(fault("AF_XDP socket: errno of sendto", errno));
            }
            // A call sends 32 frames at most.
            let now = self.queue.transmit_room();
            if now == left {
                return;
            }
            left = now;
        }
    }

    fn release(&mut self) {
        self.free
            .extend(self.reserved.drain(..).map(|(address, _)| address));
    }
}

impl RxRing for Sender {
    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn features(&self) -> Features {
        Features::default()
    }

    fn reserve(&mut self, len: u32, room: &mut Room) -> Result<(), DropReason> {
        let buffers = len.div_ceil(FRAME_SIZE) as usize;
        if buffers > self.reserved.capacity() || (buffers > 1 && !self.several) {
            return Err(DropReason::RxTooSmall);
        }
        if self.queue.transmit_room() < self.committed.len() + buffers {
            return Err(DropReason::RxFull);
        }
        let mut left = len;
        while left > 0 {
            let now = left.min(FRAME_SIZE);
            let Some(address) = self.free.pop() else {
                self.release();
                return Err(DropReason::RxFull);
            };
            self.reserved.push((address, now));
            room.extend(self.memory.span(address, now));
            left -= now;
        }
        Ok(())
    }

    fn commit(&mut self, _meta: &RxMeta) {
        let last = self.reserved.len().saturating_sub(1);
        let pieces = self.reserved.drain(..).enumerate();
        self.committed
            .extend(pieces.map(|(i, (address, len))| Descriptor::new(address, len, i < last)));
    }

    fn cancel(&mut self) {
        self.release();
    }

    fn publish(&mut self) -> bool {
        // There is room for all: it was asked for when they were reserved.
        self.queue.transmit(&self.committed);
        self.committed.clear();
        let asked = self.queue.needs_wakeup();
        self.wake();
        asked
    }
}
