//! The uplink of an external network by a packet socket, where AF_XDP can't be had.
//!
//! Frames go to `sendmmsg(2)` straight from the sender's memory, with their virtio header: the kernel completes checksums
//! and cuts large frames, in the NIC or in software.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use arrayvec::ArrayVec;
use guestmem::{MapError, Memory, Span};
use hostif::iov::Iov;
use hostif::packet::{BATCH, BUFFER_LEN, PacketSocket, RxSlot, SEND_HEADER_LEN};
use offload::plan::plan;
use offload::{Action, Features, HEAD_MAX, Request, VirtioNetHdr};
use rustix::io::Errno;

use crate::burst::{BURST, Burst, MAX_SEGMENTS};
use crate::deliver::{Job, Outgoing, Report};
use crate::drops::DropReason;
use crate::port::{PortFault, RxSide, Sides, TxSide};
use crate::ports::backoff::Backoff;

/// What the kernel takes.
const FEATURES: Features = Features {
    csum: true,
    tso4: true,
    tso6: true,
    ecn: true,
};
/// Bytes from one receive buffer to the next.
const STRIDE: u32 = BUFFER_LEN.next_multiple_of(4096);

/// Makes the sides of a port out of a packet socket.
///
/// # Errors
/// The receive buffers cannot be mapped.
pub fn open(socket: PacketSocket) -> Result<Sides, MapError> {
    let memory = Memory::anonymous(BURST * STRIDE as usize)?;
    let buffer = |i: u32| memory.span(u64::from(i * STRIDE), BUFFER_LEN);
    let slots = (0..BURST as u32)
        .filter_map(buffer)
        .map(RxSlot::new)
        .collect();
    let socket = Arc::new(socket);
    Ok(Sides {
        tx: Box::new(PacketTx {
            socket: socket.clone(),
            memory,
            slots,
            backoff: Backoff::default(),
            fault: None,
        }),
        rx: Box::new(PacketRx::new(socket)),
    })
}

fn fault(what: &'static str, errno: Errno) -> PortFault {
    PortFault {
        what,
        value: errno.raw_os_error() as u64,
    }
}

struct PacketTx {
    socket: Arc<PacketSocket>,
    memory: Memory,
    slots: Vec<RxSlot>,
    backoff: Backoff,
    fault: Option<PortFault>,
}

impl TxSide for PacketTx {
    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn gather(&mut self, burst: &mut Burst) {
        if !self.backoff.is_due() {
            return;
        }
        let count = match self.socket.receive(&self.memory, &mut self.slots) {
            Ok(count) => count,
            Err(Errno::NETDOWN) => 0,
            Err(errno) => {
                self.fault = Some(fault("packet socket: errno of recvmmsg", errno));
                0
            }
        };
        for slot in self.slots.iter().take(count) {
            let header = VirtioNetHdr::from_bytes(&slot.header);
            match (slot.frame(), Request::from_virtio(&header)) {
                (Some(frame), Ok(request)) => burst.take(&self.memory, &[frame], request),
                (None, _) => burst.push_refused(DropReason::Oversize),
                (_, Err(_)) => burst.push_refused(DropReason::BadOffload),
            };
        }
        self.backoff.looked(count > 0);
    }

    fn complete(&mut self) -> bool {
        false
    }

    fn arm(&mut self) -> bool {
        // The descriptor stays readable while there are frames: a sleep then ends at once.
        self.backoff.reset();
        false
    }

    fn disarm(&mut self) {}

    fn wake_fds(&self, each: &mut dyn FnMut(BorrowedFd<'_>)) {
        each(self.socket.as_fd());
    }

    fn fault(&self) -> Option<PortFault> {
        self.fault
    }
}

/// The sending half.
pub(super) struct PacketRx {
    socket: Arc<PacketSocket>,
    fault: Option<PortFault>,
}

/// A frame on its way to the socket: its private bytes, and where the rest lies.
struct Queued {
    header: [u8; SEND_HEADER_LEN],
    head: ArrayVec<u8, HEAD_MAX>,
    body: ArrayVec<Span, MAX_SEGMENTS>,
    len: u32,
}

impl Queued {
    fn new(frame: &Outgoing<'_>, action: Action) -> Option<Queued> {
        let request = action.outgoing(&frame.checked, &FEATURES);
        let header = request.to_virtio(frame.checked.header_len()).to_bytes();
        Some(Queued {
            header: *header.first_chunk()?,
            head: ArrayVec::try_from(frame.head).ok()?,
            body: ArrayVec::try_from(frame.body).ok()?,
            len: frame.len,
        })
    }

    fn pieces<'a>(&'a self, source: &'a Memory) -> Option<ArrayVec<Iov<'a>, { MAX_SEGMENTS + 2 }>> {
        let mut pieces = ArrayVec::new();
        pieces.push(Iov::bytes(&self.header));
        pieces.push(Iov::bytes(&self.head));
        for span in &self.body {
            pieces.push(Iov::span(source, *span)?);
        }
        Some(pieces)
    }
}

impl PacketRx {
    pub(super) fn new(socket: Arc<PacketSocket>) -> PacketRx {
        PacketRx {
            socket,
            fault: None,
        }
    }

    /// Sends all of `queue`; what the kernel refuses is dropped.
    fn flush(&mut self, source: &Memory, queue: &mut ArrayVec<Queued, BATCH>, report: &mut Report) {
        let mut from = 0;
        while let Some(left) = queue.get(from..).filter(|left| !left.is_empty()) {
            let pieces: ArrayVec<_, BATCH> = left
                .iter()
                .map_while(|frame| frame.pieces(source))
                .collect();
            let frames: ArrayVec<&[Iov<'_>], BATCH> = pieces.iter().map(|p| p.as_slice()).collect();
            let sent = match self.socket.send(&frames) {
                Ok(0) => {
                    report.dropped(DropReason::RxFull, left.len() as u32);
                    break;
                }
                Ok(sent) => sent,
                Err(errno) => {
                    report.dropped(self.reason(errno), 1);
                    from += 1;
                    continue;
                }
            };
            for frame in left.iter().take(sent) {
                report.delivered(frame.len, 0);
            }
            from += sent;
        }
        queue.clear();
    }

    fn reason(&mut self, errno: Errno) -> DropReason {
        match errno {
            Errno::NOBUFS | Errno::AGAIN => DropReason::RxFull,
            Errno::NETDOWN => DropReason::LinkDown,
            Errno::FAULT => DropReason::SourceFault,
            Errno::MSGSIZE => DropReason::Mtu,
            Errno::NXIO | Errno::NODEV => {
                self.fault = Some(fault("packet socket: errno of sendmmsg", errno));
                DropReason::HostError
            }
            _ => DropReason::HostError,
        }
    }
}

impl RxSide for PacketRx {
    fn deliver(&mut self, job: &Job<'_>, report: &mut Report) {
        let max_frame = u32::from(job.mtu) + 14;
        let mut queue: ArrayVec<Queued, BATCH> = ArrayVec::new();
        job.for_each(report, |report, frame| {
            let action = plan(&frame.checked, frame.len, &FEATURES, max_frame);
            if action == Action::TooLong {
                return report.dropped(DropReason::Mtu, 1);
            }
            match Queued::new(frame, action) {
                Some(queued) => queue.push(queued),
                None => report.dropped(DropReason::TooManySegments, 1),
            }
            if queue.is_full() {
                self.flush(job.source, &mut queue, report);
            }
        });
        self.flush(job.source, &mut queue, report);
    }

    fn fault(&self) -> Option<PortFault> {
        self.fault
    }
}
