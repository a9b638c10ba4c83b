//! A TAP device as a port: the host NIC of a network, and the attachment of foreign programs.
//!
//! The kernel on the other side takes and gives partial checksums and TSO frames, so nothing is filled in or cut here.
//! Frames for it go to `writev(2)` straight from the sender's memory: the kernel's copy is the only one.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrayvec::ArrayVec;
use guestmem::{MapError, Memory, Span};
use hostif::iov::{Iov, IovMut};
use hostif::tap::TapQueue;
use offload::plan::plan;
use offload::{Action, Features, HEAD_MAX, Request, VirtioNetHdr};
use rustix::io::Errno;

use crate::burst::{BURST, Burst, MAX_FRAME, MAX_SEGMENTS};
use crate::deliver::{Job, Outgoing, Report, queue_of};
use crate::drops::DropReason;
use crate::port::{PortFault, RxSide, Sides, TxSide};
use crate::ports::backoff::Backoff;

/// What a TAP device takes.
const FEATURES: Features = Features {
    csum: true,
    tso4: true,
    tso6: true,
    ecn: true,
};
/// Bytes from one receive buffer to the next: virtio header and the longest frame, in whole pages.
const STRIDE: u32 = (FRAME_AT + MAX_FRAME).next_multiple_of(4096);
/// Where the frame begins in a buffer: on a cache line, with the virtio header right before it.
const FRAME_AT: u32 = 64;

/// Makes the sides of a port out of the queues of a TAP device.
///
/// # Errors
/// The receive buffers cannot be mapped.
pub fn open(queues: Vec<TapQueue>) -> Result<Sides, MapError> {
    let memory = Memory::anonymous(BURST * STRIDE as usize)?;
    let unused = FRAME_AT - VirtioNetHdr::LEN as u32;
    let buffers = (0..BURST as u32)
        .filter_map(|i| memory.span((i * STRIDE + unused).into(), STRIDE - unused))
        .collect();
    let device = Arc::new(Device {
        queues,
        written: AtomicBool::new(false),
    });
    Ok(Sides {
        tx: Box::new(TapTx {
            device: device.clone(),
            memory,
            buffers,
            next: 0,
            in_a_row: 0,
            backoff: Backoff::default(),
            fault: None,
        }),
        rx: Box::new(TapRx {
            device,
            fault: None,
        }),
    })
}

/// What both sides have.
struct Device {
    queues: Vec<TapQueue>,
    /// Frames were written since the other side has looked: the kernel may have answered already.
    written: AtomicBool,
}

struct TapTx {
    device: Arc<Device>,
    memory: Memory,
    buffers: Vec<Span>,
    /// The queue that is looked at first.
    next: usize,
    /// Looks that found a frame since the last vain one.
    in_a_row: u32,
    backoff: Backoff,
    fault: Option<PortFault>,
}

impl TapTx {
    /// Takes one frame from `queue` into the next buffer; false if there is none.
    fn take(&mut self, queue: usize, burst: &mut Burst) -> bool {
        let (Some(queue), Some(buffer)) =
            (self.device.queues.get(queue), self.buffers.get(burst.len()))
        else {
            return false;
        };
        let Some(whole) = IovMut::span(&self.memory, *buffer) else {
            return false;
        };
        let len = match queue.read_vectored(&mut [whole]) {
            Ok(Some(len)) => len as u32,
            Ok(None) => return false,
            Err(errno) => {
                self.fault = Some(PortFault {
                    what: "TAP device: errno of readv",
                    value: errno.raw_os_error() as u64,
                });
                return false;
            }
        };
        let mut header = [0; VirtioNetHdr::LEN];
        let parts = buffer
            .sub(0, len)
            .and_then(|whole| whole.split_at(header.len() as u32));
        let Some((front, frame)) = parts else {
            return burst.push_refused(DropReason::Runt);
        };
        let request = match self.memory.read(front, &mut header) {
            Ok(()) => Request::from_virtio(&VirtioNetHdr::from_bytes(&header)),
            Err(_) => return burst.push_refused(DropReason::SourceFault),
        };
        match request {
            Ok(request) => burst.push_span(&self.memory, frame, request),
            Err(_) => burst.push_refused(DropReason::BadOffload),
        }
    }

    /// Takes frames from `queue` until there is none, the burst is full, or the first came after a pause: that is likely to
    /// be alone, and a vain look would only hold it up. Whether to look at other queues, too.
    fn gather_queue(&mut self, queue: usize, burst: &mut Burst) -> bool {
        while !burst.is_full() {
            if !self.take(queue, burst) {
                self.in_a_row = 0;
                return true;
            }
            self.in_a_row = self.in_a_row.saturating_add(1);
            if self.in_a_row == 1 {
                return false;
            }
        }
        false
    }
}

impl TxSide for TapTx {
    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn gather(&mut self, burst: &mut Burst) {
        if self.device.written.load(Ordering::Relaxed) {
            self.device.written.store(false, Ordering::Relaxed);
            self.backoff.reset();
        }
        if !self.backoff.is_due() {
            return;
        }
        for _ in 0..self.device.queues.len() {
            if !self.gather_queue(self.next, burst) {
                break;
            }
            self.next = (self.next + 1) % self.device.queues.len();
        }
        self.backoff.looked(!burst.is_empty());
    }

    fn complete(&mut self) -> bool {
        false
    }

    fn arm(&mut self) -> bool {
        // The descriptors stay readable while there are frames: a sleep then ends at once.
        self.backoff.reset();
        false
    }

    fn disarm(&mut self) {}

    fn wake_fds(&self, each: &mut dyn FnMut(BorrowedFd<'_>)) {
        for queue in &self.device.queues {
            each(queue.as_fd());
        }
    }

    fn fault(&self) -> Option<PortFault> {
        self.fault
    }
}

struct TapRx {
    device: Arc<Device>,
    fault: Option<PortFault>,
}

impl TapRx {
    fn write(&self, source: &Memory, frame: &Outgoing<'_>, action: Action) -> Result<(), Errno> {
        let queues = &self.device.queues;
        let queue = match queues.len() {
            1 => 0,
            count => queue_of(frame.head, frame.len, count),
        };
        let queue = queues.get(queue).ok_or(Errno::BADFD)?;
        let request = action.outgoing(&frame.checked, &FEATURES);
        let header = request.to_virtio(frame.checked.header_len()).to_bytes();
        // One piece less for the kernel to look at.
        let mut front: ArrayVec<u8, { VirtioNetHdr::LEN + HEAD_MAX }> = ArrayVec::new();
        front.extend(header);
        front
            .try_extend_from_slice(frame.head)
            .map_err(|_| Errno::MSGSIZE)?;
        let mut pieces: ArrayVec<Iov<'_>, { MAX_SEGMENTS + 1 }> = ArrayVec::new();
        pieces.push(Iov::bytes(&front));
        for span in frame.body {
            pieces
                .try_push(Iov::span(source, *span).ok_or(Errno::FAULT)?)
                .map_err(|_| Errno::MSGSIZE)?;
        }
        match queue.write_vectored(&pieces)? {
            Some(_) => Ok(()),
            None => Err(Errno::AGAIN),
        }
    }
}

impl RxSide for TapRx {
    fn deliver(&mut self, job: &Job<'_>, report: &mut Report) {
        let max_frame = u32::from(job.mtu) + 14;
        let (mut fault, mut written) = (self.fault, false);
        job.for_each(report, |report, frame| {
            let action = plan(&frame.checked, frame.len, &FEATURES, max_frame);
            if action == Action::TooLong {
                return report.dropped(DropReason::Mtu, 1);
            }
            match self.write(job.source, frame, action) {
                Ok(()) => {
                    written = true;
                    report.delivered(frame.len, 0);
                }
                Err(Errno::AGAIN | Errno::NOBUFS) => report.dropped(DropReason::RxFull, 1),
                // The interface is down.
                Err(Errno::IO) => report.dropped(DropReason::LinkDown, 1),
                Err(Errno::FAULT) => report.dropped(DropReason::SourceFault, 1),
                Err(errno) => {
                    report.dropped(DropReason::HostError, 1);
                    if matches!(errno, Errno::BADFD | Errno::NODEV | Errno::NXIO) {
                        let value = errno.raw_os_error() as u64;
                        fault = Some(PortFault {
                            what: "TAP device: errno of writev",
                            value,
                        });
                    }
                }
            }
        });
        self.fault = fault;
        if written {
            self.device.written.store(true, Ordering::Relaxed);
        }
    }

    fn fault(&self) -> Option<PortFault> {
        self.fault
    }
}
