//! A TAP device as a port: the host NIC of a network, and the attachment of foreign programs.
//!
//! The kernel on the other side takes and gives partial checksums and TSO frames, so nothing is filled in or cut here.
//! Frames for it go to `writev(2)` straight from the sender's memory: the kernel's copy is the only one.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use arrayvec::ArrayVec;
use guestmem::{MapError, Memory, Span};
use hostif::iov::{Iov, IovMut};
use hostif::tap::TapQueue;
use offload::plan::plan;
use offload::{Action, Features, Request, VirtioNetHdr};
use rustix::io::Errno;

use crate::burst::{BURST, Burst, MAX_FRAME, MAX_SEGMENTS, SNAPSHOT};
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
/// Bytes of a receive buffer: the longest frame behind its snapshot, in whole pages.
const BUFFER: u32 = (MAX_FRAME - SNAPSHOT as u32).next_multiple_of(4096);

/// Makes the sides of a port out of the queues of a TAP device.
///
/// # Errors
/// The receive buffers cannot be mapped.
pub fn open(queues: Vec<TapQueue>) -> Result<Sides, MapError> {
    let memory = Memory::anonymous(BURST * BUFFER as usize)?;
    let buffers = (0..BURST as u64)
        .filter_map(|i| memory.span(i * u64::from(BUFFER), BUFFER))
        .collect();
    let queues: Arc<[TapQueue]> = queues.into();
    Ok(Sides {
        tx: Box::new(TapTx {
            queues: queues.clone(),
            memory,
            buffers,
            next: 0,
            backoff: Backoff::default(),
            fault: None,
        }),
        rx: Box::new(TapRx {
            queues,
            fault: None,
        }),
    })
}

struct TapTx {
    queues: Arc<[TapQueue]>,
    memory: Memory,
    buffers: Vec<Span>,
    /// The queue that is looked at first.
    next: usize,
    backoff: Backoff,
    fault: Option<PortFault>,
}

impl TapTx {
    /// Takes one frame from `queue` into the next buffer; false if there is none.
    fn take(&mut self, queue: usize, burst: &mut Burst) -> bool {
        let (Some(queue), Some(buffer)) = (self.queues.get(queue), self.buffers.get(burst.len()))
        else {
            return false;
        };
        let (mut header, mut head) = ([0; VirtioNetHdr::LEN], [0; SNAPSHOT]);
        let Some(body) = IovMut::span(&self.memory, *buffer) else {
            return false;
        };
        let read =
            queue.read_vectored(&mut [IovMut::bytes(&mut header), IovMut::bytes(&mut head), body]);
        let len = match read {
            Ok(Some(len)) => len.saturating_sub(VirtioNetHdr::LEN) as u32,
            Ok(None) => return false,
            Err(errno) => {
                self.fault = Some(PortFault {
                    what: "TAP device: errno of readv",
                    value: errno.raw_os_error() as u64,
                });
                return false;
            }
        };
        match Request::from_virtio(&VirtioNetHdr::from_bytes(&header)) {
            Ok(request) => {
                let body = buffer
                    .sub(0, len.saturating_sub(SNAPSHOT as u32))
                    .filter(|body| !body.is_empty());
                burst.push(len, request, body.as_slice(), |to| {
                    let from = head.get(..to.len()).ok_or(DropReason::Runt)?;
                    to.copy_from_slice(from);
                    Ok(())
                })
            }
            Err(_) => burst.push_refused(DropReason::BadOffload),
        }
    }
}

impl TxSide for TapTx {
    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn gather(&mut self, burst: &mut Burst) {
        if !self.backoff.is_due() {
            return;
        }
        for _ in 0..self.queues.len() {
            while !burst.is_full() && self.take(self.next, burst) {}
            if burst.is_full() {
                break;
            }
            self.next = (self.next + 1) % self.queues.len();
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
        for queue in self.queues.iter() {
            each(queue.as_fd());
        }
    }

    fn fault(&self) -> Option<PortFault> {
        self.fault
    }
}

struct TapRx {
    queues: Arc<[TapQueue]>,
    fault: Option<PortFault>,
}

impl TapRx {
    fn write(&self, source: &Memory, frame: &Outgoing<'_>, action: Action) -> Result<(), Errno> {
        let queue = match self.queues.len() {
            1 => 0,
            count => queue_of(frame.head, frame.len, count),
        };
        let queue = self.queues.get(queue).ok_or(Errno::BADFD)?;
        let request = action.outgoing(&frame.checked, &FEATURES);
        let header = request.to_virtio(frame.checked.header_len()).to_bytes();
        let mut pieces: ArrayVec<Iov<'_>, { MAX_SEGMENTS + 2 }> = ArrayVec::new();
        pieces.push(Iov::bytes(&header));
        pieces.push(Iov::bytes(frame.head));
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
        let mut fault = self.fault;
        job.for_each(report, |report, frame| {
            let action = plan(&frame.checked, frame.len, &FEATURES, max_frame);
            if action == Action::TooLong {
                return report.dropped(DropReason::Mtu, 1);
            }
            match self.write(job.source, frame, action) {
                Ok(()) => report.delivered(frame.len, 0),
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
    }

    fn fault(&self) -> Option<PortFault> {
        self.fault
    }
}
