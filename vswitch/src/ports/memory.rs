//! A port in memory: whoever holds its [`Station`] is the guest. For tests, simulations and benchmarks.
//!
//! Each direction has a fixed number of buffers in one private memory, a queue of free ones and a queue of full ones.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crossbeam_queue::ArrayQueue;
use guestmem::{MapError, Memory, Span};
use offload::{Features, Request};
use rustix::event::{EventfdFlags, eventfd};

use crate::burst::{BURST, Burst};
use crate::deliver::{Job, Report, deliver};
use crate::drops::DropReason;
use crate::port::{PortFault, Room, RxMeta, RxRing, RxSide, Sides, TxSide};
use crate::wakeup::{Armed, Event};

/// How a memory port is made.
#[derive(Clone, Copy, Debug)]
pub struct MemoryPort {
    /// Buffers in each direction.
    pub depth: u32,
    /// Bytes of a buffer: the longest frame.
    pub buffer: u32,
    /// What the guest agreed to receive.
    pub features: Features,
}

impl Default for MemoryPort {
    fn default() -> Self {
        MemoryPort {
            depth: 256,
            buffer: 66 * 1024,
            features: Features::default(),
        }
    }
}

/// Why a memory port was not made.
#[derive(Debug, thiserror::Error)]
pub enum MemoryPortError {
    /// The buffers cannot be had.
    #[error("cannot map the buffers of a memory port")]
    Map(#[from] MapError),
    /// The wake-up event cannot be had.
    #[error("cannot make an event file descriptor")]
    Event(#[from] rustix::io::Errno),
}

#[derive(Clone, Copy)]
struct Full {
    buffer: Span,
    len: u32,
    meta: RxMeta,
}

/// Buffers on their way in one direction.
struct Lane {
    free: ArrayQueue<Span>,
    full: ArrayQueue<Full>,
}

struct Shared {
    memory: Memory,
    /// From the guest.
    tx: Lane,
    /// To the guest.
    rx: Lane,
    features: Features,
    /// The worker sleeps and wants to be woken.
    armed: Armed,
    wake: OwnedFd,
}

/// The guest's end of a memory port.
#[derive(Clone)]
pub struct Station(Arc<Shared>);

/// A frame that a guest received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Destination MAC to end of payload.
    pub frame: Vec<u8>,
    /// What the switch left to the guest.
    pub meta: RxMeta,
}

impl MemoryPort {
    /// Makes the sides of a port, and the station that is its guest.
    ///
    /// # Errors
    /// [`MemoryPortError`].
    pub fn open(self) -> Result<(Sides, Station), MemoryPortError> {
        let depth = self.depth.max(1);
        let size = 2 * depth as usize * self.buffer.max(64) as usize;
        let memory = Memory::anonymous(size)?;
        let lane = |first: u32| {
            let lane = Lane {
                free: ArrayQueue::new(depth as usize),
                full: ArrayQueue::new(depth as usize),
            };
            for index in first..first + depth {
                let span = memory.span(
                    u64::from(index) * u64::from(self.buffer.max(64)),
                    self.buffer.max(64),
                );
                // The queue has room for as many as there are buffers.
                let _ = lane.free.push(span.unwrap_or(Span::EMPTY));
            }
            lane
        };
        let (tx, rx) = (lane(0), lane(depth));
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared {
            memory,
            tx,
            rx,
            features: self.features,
            armed: Armed::default(),
            wake,
        });
        let sides = Sides {
            tx: Box::new(MemoryTx {
                shared: shared.clone(),
                taken: Vec::with_capacity(BURST),
            }),
            rx: Box::new(MemoryRx {
                shared: shared.clone(),
                reserved: None,
                // As many as there are buffers: cutting makes more than a burst.
                committed: Vec::with_capacity(depth as usize),
            }),
        };
        Ok((sides, Station(shared)))
    }
}

impl Station {
    /// Sends a plain frame; false if there is no free buffer or the frame is longer than one.
    pub fn send(&self, frame: &[u8]) -> bool {
        self.send_with(frame, Request::default())
    }

    /// Sends a frame with an offload request.
    pub fn send_with(&self, frame: &[u8], request: Request) -> bool {
        let shared = &*self.0;
        let Some(buffer) = shared.tx.free.pop() else {
            return false;
        };
        let len = frame.len() as u32;
        let written = buffer
            .sub(0, len)
            .is_some_and(|span| shared.memory.write(span, frame).is_ok());
        if !written {
            let _ = shared.tx.free.push(buffer);
            return false;
        }
        let _ = shared.tx.full.push(Full {
            buffer,
            len,
            meta: RxMeta {
                request,
                ..RxMeta::default()
            },
        });
        if shared.armed.fire() {
            shared.wake.set();
        }
        true
    }

    /// Gives the next received frame's buffer back unread. False if there is none.
    pub fn discard(&self) -> bool {
        let full = self.0.rx.full.pop();
        full.is_some_and(|full| self.0.rx.free.push(full.buffer).is_ok())
    }

    /// Takes the next received frame.
    pub fn receive(&self) -> Option<Received> {
        let full = self.0.rx.full.pop()?;
        let mut frame = vec![0; full.len as usize];
        let span = full.buffer.sub(0, full.len).unwrap_or(Span::EMPTY);
        let read = self.0.memory.read(span, &mut frame);
        let _ = self.0.rx.free.push(full.buffer);
        read.ok().map(|()| Received {
            frame,
            meta: full.meta,
        })
    }
}

struct MemoryTx {
    shared: Arc<Shared>,
    taken: Vec<Span>,
}

impl TxSide for MemoryTx {
    fn memory(&self) -> &Memory {
        &self.shared.memory
    }

    fn gather(&mut self, burst: &mut Burst) {
        while !burst.is_full() {
            let Some(full) = self.shared.tx.full.pop() else {
                break;
            };
            self.taken.push(full.buffer);
            let frame = full.buffer.sub(0, full.len).unwrap_or(Span::EMPTY);
            burst.take(&self.shared.memory, &[frame], full.meta.request);
        }
    }

    fn complete(&mut self) -> bool {
        for buffer in self.taken.drain(..) {
            let _ = self.shared.tx.free.push(buffer);
        }
        false
    }

    fn arm(&mut self) -> bool {
        self.shared.armed.arm();
        !self.shared.tx.full.is_empty()
    }

    fn disarm(&mut self) {
        self.shared.armed.disarm();
        self.shared.wake.clear();
    }

    fn wake_fds(&self, each: &mut dyn FnMut(BorrowedFd<'_>)) {
        each(self.shared.wake.as_fd());
    }

    fn fault(&self) -> Option<PortFault> {
        None
    }
}

struct MemoryRx {
    shared: Arc<Shared>,
    reserved: Option<(Span, u32)>,
    committed: Vec<Full>,
}

impl RxRing for MemoryRx {
    fn memory(&self) -> &Memory {
        &self.shared.memory
    }

    fn features(&self) -> Features {
        self.shared.features
    }

    fn reserve(&mut self, len: u32, room: &mut Room) -> Result<(), DropReason> {
        let buffer = self.shared.rx.free.pop().ok_or(DropReason::RxFull)?;
        let Some(span) = buffer.sub(0, len) else {
            let _ = self.shared.rx.free.push(buffer);
            return Err(DropReason::RxTooSmall);
        };
        room.push(span);
        self.reserved = Some((buffer, len));
        Ok(())
    }

    fn commit(&mut self, meta: &RxMeta) {
        if let Some((buffer, len)) = self.reserved.take() {
            self.committed.push(Full {
                buffer,
                len,
                meta: *meta,
            });
        }
    }

    fn cancel(&mut self) {
        if let Some((buffer, _)) = self.reserved.take() {
            let _ = self.shared.rx.free.push(buffer);
        }
    }

    fn publish(&mut self) -> bool {
        for full in self.committed.drain(..) {
            let _ = self.shared.rx.full.push(full);
        }
        false
    }
}

impl RxSide for MemoryRx {
    fn deliver(&mut self, job: &Job<'_>, report: &mut Report) {
        deliver(self, job, report);
    }

    fn fault(&self) -> Option<PortFault> {
        None
    }
}
