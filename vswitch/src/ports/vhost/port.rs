//! The two sides of a vhost-user port, over all its queues.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use guestmem::Memory;

use super::packed::PackedRing;
use super::rx::RxQueue;
use super::split::SplitRing;
use super::tx::TxQueue;
use crate::burst::Burst;
use crate::deliver::{Job, Report, deliver};
use crate::drops::DropReason;
use crate::mac::Mac;
use crate::port::{PortFault, RxSide, TxSide};

/// A transmit queue of either format.
#[expect(
    clippy::large_enum_variant,
    reason = "there is one a queue, and it stays where it is"
)]
pub enum TxAny {
    /// Over a split virtqueue.
    Split(TxQueue<SplitRing>),
    /// Over a packed virtqueue.
    Packed(TxQueue<PackedRing>),
}

/// A receive queue of either format.
#[expect(
    clippy::large_enum_variant,
    reason = "there is one a queue, and it stays where it is"
)]
pub enum RxAny {
    /// Over a split virtqueue.
    Split(RxQueue<SplitRing>),
    /// Over a packed virtqueue.
    Packed(RxQueue<PackedRing>),
}

/// Calls a method of the queue inside, whatever its format.
macro_rules! either {
    ($any:ident, $self:expr, $queue:ident => $call:expr) => {
        match $self {
            $any::Split($queue) => $call,
            $any::Packed($queue) => $call,
        }
    };
}

/// A running ring: its index in the device, and its queue.
pub struct Running<Q> {
    /// Index of the virtqueue: 2n receives, 2n + 1 transmits, as the guest sees it.
    pub index: u16,
    /// The queue.
    pub queue: Q,
}

/// Where a queue stood when it was taken out of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Index of the virtqueue.
    pub index: u16,
    /// As [`super::ring::Ring::base`].
    pub base: u32,
    /// What ended it, if something did.
    pub fault: Option<PortFault>,
}

/// The transmit side: all running transmit queues, and announcements that the front-end asked for.
pub struct VhostTx {
    memory: Arc<Memory>,
    queues: Vec<Running<TxAny>>,
    /// The queue that is gathered from first.
    start: usize,
    /// Stations to announce: frames that come from the switch itself on behalf of the guest.
    announce: Vec<Mac>,
}

impl VhostTx {
    /// A side over `queues`, whose buffers lie in `memory`, that first announces the stations `announce`.
    pub fn new(memory: Arc<Memory>, queues: Vec<Running<TxAny>>, announce: Vec<Mac>) -> VhostTx {
        VhostTx {
            memory,
            queues,
            start: 0,
            announce,
        }
    }

    /// Takes the side apart: where its queues stood, and the announcements that were not made.
    pub fn into_stopped(self) -> (Vec<Stopped>, Vec<Mac>) {
        let stopped = |Running { index, queue }: &Running<TxAny>| Stopped {
            index: *index,
            base: either!(TxAny, queue, queue => queue.base()),
            fault: either!(TxAny, queue, queue => queue.fault()),
        };
        (self.queues.iter().map(stopped).collect(), self.announce)
    }
}

/// A RARP request by which `mac` tells its own address (RFC 903), as QEMU broadcasts it: 60 bytes.
fn rarp(mac: Mac) -> [u8; 60] {
    let mut frame = [0; 60];
    let fields: [&[u8]; 7] = [
        &Mac::BROADCAST.0,
        &mac.0,
        // Ethertype RARP; Ethernet, IPv4, lengths 6 and 4, operation 3: request reverse.
        &[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3],
        &mac.0,
        &[0; 4],
        &mac.0,
        &[0; 4],
    ];
    let bytes = fields.into_iter().flatten();
    for (to, from) in frame.iter_mut().zip(bytes) {
        *to = *from;
    }
    frame
}

impl TxSide for VhostTx {
    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn gather(&mut self, burst: &mut Burst) {
        while !burst.is_full()
            && let Some(mac) = self.announce.pop()
        {
            let frame = rarp(mac);
            burst.push(
                frame.len() as u32,
                offload::Request::default(),
                &[],
                |head| {
                    head.copy_from_slice(&frame);
                    Ok(())
                },
            );
        }
        let (later, first) = self
            .queues
            .split_at_mut_checked(self.start)
            .unwrap_or_default();
        for Running { queue, .. } in first.iter_mut().chain(later) {
            if burst.is_full() {
                break;
            }
            either!(TxAny, queue, queue => queue.gather(burst));
        }
        self.start += 1;
        if self.start >= self.queues.len() {
            self.start = 0;
        }
    }

    fn complete(&mut self) -> bool {
        let mut notified = false;
        for Running { queue, .. } in &mut self.queues {
            notified |= either!(TxAny, queue, queue => queue.complete());
        }
        notified
    }

    fn arm(&mut self) -> bool {
        let mut waiting = !self.announce.is_empty();
        for Running { queue, .. } in &mut self.queues {
            waiting |= either!(TxAny, queue, queue => queue.arm());
        }
        waiting
    }

    fn disarm(&mut self) {
        for Running { queue, .. } in &mut self.queues {
            either!(TxAny, queue, queue => queue.disarm());
        }
    }

    fn wake_fds(&self, each: &mut dyn FnMut(BorrowedFd<'_>)) {
        for Running { queue, .. } in &self.queues {
            if let Some(fd) = either!(TxAny, queue, queue => queue.kick_fd()) {
                each(fd);
            }
        }
    }

    fn fault(&self) -> Option<PortFault> {
        self.queues
            .iter()
            .find_map(|Running { queue, .. }| either!(TxAny, queue, queue => queue.fault()))
    }
}

/// The receive side: all running receive queues. A frame goes to the queue that its flow hashes to.
pub struct VhostRx {
    queues: Vec<Running<RxAny>>,
}

impl VhostRx {
    /// A side over `queues`.
    pub fn new(queues: Vec<Running<RxAny>>) -> VhostRx {
        VhostRx { queues }
    }

    /// Takes the side apart: where its queues stood.
    pub fn into_stopped(self) -> Vec<Stopped> {
        let stopped = |Running { index, queue }: &Running<RxAny>| Stopped {
            index: *index,
            base: either!(RxAny, queue, queue => queue.base()),
            fault: either!(RxAny, queue, queue => queue.fault()),
        };
        self.queues.iter().map(stopped).collect()
    }
}

impl RxSide for VhostRx {
    fn deliver(&mut self, job: &Job<'_>, report: &mut Report) {
        match self.queues.as_mut_slice() {
            [] => report.dropped(DropReason::RxNotReady, job.frames.count_ones()),
            [Running { queue, .. }] => either!(RxAny, queue, queue => deliver(queue, job, report)),
            _ => {
                let shares = job.spread(self.queues.len());
                for (Running { queue, .. }, frames) in self.queues.iter_mut().zip(shares) {
                    if frames != 0 {
                        let job = Job { frames, ..*job };
                        either!(RxAny, queue, queue => deliver(queue, &job, report));
                    }
                }
            }
        }
    }

    fn fault(&self) -> Option<PortFault> {
        self.queues
            .iter()
            .find_map(|Running { queue, .. }| either!(RxAny, queue, queue => queue.fault()))
    }
}
