//! A transmit and a receive queue, and the delivery from one to the other.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use guestmem::Memory;
use offload::Request;
use offload::request::validate;
use rustix::event::{EventfdFlags, eventfd};
use vswitch::burst::{BURST, Burst, SNAPSHOT};
use vswitch::deliver::{FrameMeta, Job, Quiet, Report, deliver};
use vswitch::drops::DropReason;
use vswitch::port::{PortFault, Room, RxMeta, RxRing};
use vswitch::ports::vhost::ring::Ring;
use vswitch::ports::vhost::rx::{RxFormat, RxQueue};
use vswitch::ports::vhost::tx::{Events, TxQueue};
use vswitch::vlan::VlanMode;

use super::Setup;
use super::guest::Guest;
use crate::input::Input;

struct Queues<R> {
    memory: Arc<Memory>,
    tx: TxQueue<R>,
    rx: RxQueue<R>,
    burst: Burst,
    packed: bool,
    /// Frames gathered, and of these given back.
    gathered: u64,
    completed: u64,
    first: u32,
    faults: [Watch; 2],
}

/// A fault, once there, stays as it is, and was told once.
struct Watch {
    seen: Option<PortFault>,
    err: Arc<OwnedFd>,
    told: u64,
}

impl Watch {
    fn new() -> Watch {
        let err = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("eventfd");
        Watch {
            seen: None,
            err: Arc::new(err),
            told: 0,
        }
    }

    fn check(&mut self, fault: Option<PortFault>) {
        assert!(
            self.seen.is_none() || self.seen == fault,
            "{:?} became {fault:?}",
            self.seen
        );
        self.seen = fault;
        let mut count = [0; 8];
        if rustix::io::read(self.err.as_fd(), &mut count).is_ok() {
            self.told += u64::from_ne_bytes(count);
        }
        assert_eq!(
            self.told,
            u64::from(fault.is_some()),
            "times that the fault was told"
        );
    }
}

/// Calls until the input ends.
pub(super) fn run<R: Ring>(input: &mut Input<'_>, guest: &mut Guest, setup: &Setup, tx: R, rx: R) {
    let faults = [Watch::new(), Watch::new()];
    let events = |watch: &Watch| Events {
        err: Some(watch.err.clone()),
        ..Events::default()
    };
    let format = RxFormat {
        header_len: setup.header_len,
        mergeable: setup.mergeable,
        features: input.features(),
    };
    let mut queues = Queues {
        memory: guest.memory.clone(),
        first: tx.base(),
        tx: TxQueue::new(
            tx,
            guest.memory.clone(),
            events(&faults[0]),
            setup.header_len,
        ),
        rx: RxQueue::new(rx, guest.memory.clone(), events(&faults[1]), format),
        burst: Burst::new(),
        packed: guest.is_packed(),
        gathered: 0,
        completed: 0,
        faults,
    };
    while !input.is_empty() {
        let action = input.u8();
        if action & 1 == 0 {
            guest.act(input);
        } else {
            queues.call(action >> 1, input);
            queues.faults[0].check(queues.tx.fault());
            queues.faults[1].check(queues.rx.fault());
        }
    }
    queues.tx.complete();
    if !setup.negotiated.batch_used && queues.tx.fault().is_none() && !guest.is_packed() {
        let given = queues.tx.base().wrapping_sub(queues.first) as u16;
        assert_eq!(
            u64::from(given),
            queues.gathered & 0xffff,
            "frames taken are buffers given back"
        );
    }
}

impl<R: Ring> Queues<R> {
    fn call(&mut self, action: u8, input: &mut Input<'_>) {
        match action & 7 {
            0 | 1 => self.gather(),
            2 => {
                self.tx.complete();
                self.completed = self.gathered;
            }
            3 => self.deliver(input),
            4 => self.reserve(input.u16().into(), input.u8()),
            5 => {
                self.rx.publish();
            }
            6 => {
                self.tx.arm();
            }
            _ => self.tx.disarm(),
        }
    }

    fn gather(&mut self) {
        self.burst.clear();
        let dead = self.tx.fault().is_some();
        self.tx.gather(&mut self.burst);
        assert!(!dead || self.burst.is_empty(), "a ring that lied was used");
        self.gathered += self.burst.len() as u64;
        assert!(
            self.gathered - self.completed <= BURST as u64,
            "more is taken than can be given back"
        );
        for frame in self
            .burst
            .frames()
            .iter()
            .filter(|frame| frame.refused.is_none())
        {
            let body: u32 = self.burst.body(frame).iter().map(|span| span.len()).sum();
            assert_eq!(frame.head().len(), SNAPSHOT.min(frame.len() as usize));
            assert_eq!(
                frame.head().len() as u32 + body,
                frame.len(),
                "length of a frame"
            );
        }
    }

    fn deliver(&mut self, input: &mut Input<'_>) {
        let mut meta = [None; BURST];
        let mut frames = 0u32;
        for (index, frame) in self.burst.frames().iter().enumerate() {
            if frame.refused.is_none()
                && let Ok(checked) = validate(&frame.request, frame.head(), frame.len())
            {
                meta[index] = Some(FrameMeta {
                    checked,
                    tag: None,
                    vid: 0,
                    priority: 0,
                });
                frames |= 1 << index;
            }
        }
        let mtu = input.choose(&[9000, 1500, 68]);
        let meta = &meta[..self.burst.len()];
        let job = Job {
            burst: &self.burst,
            source: &self.memory,
            meta,
            quiet: Quiet::default(),
            frames,
            vlan: &VlanMode::None,
            mtu,
        };
        let mut report = Report::default();
        deliver(&mut self.rx, &job, &mut report);
        let Report {
            source,
            destination,
        } = report;
        let copies = u64::from(frames.count_ones()) + source.extra_copies;
        assert_eq!(source.delivered + source.dropped(), copies, "{source:?}");
        assert_eq!(
            (destination.frames, destination.dropped()),
            (source.delivered, source.dropped())
        );
    }

    fn reserve(&mut self, len: u32, how: u8) {
        let mut room = Room::new();
        let result = self.rx.reserve(len, &mut room);
        if self.rx.fault().is_some() {
            assert_eq!(result, Err(DropReason::RxFault));
            return;
        }
        if result.is_ok() {
            assert_eq!(
                room.iter().map(|span| span.len()).sum::<u32>(),
                len,
                "length of the room"
            );
            if how & 1 == 0 {
                let bytes = vec![how; len as usize];
                let mut at = 0;
                for span in &room {
                    let next = at + span.len() as usize;
                    self.memory
                        .write(*span, &bytes[at..next])
                        .expect("room is guest memory");
                    at = next;
                }
                let request = Request::default();
                self.rx.commit(&RxMeta {
                    request,
                    ..RxMeta::default()
                });
                return;
            }
            self.rx.cancel();
        }
        // Nothing was taken, so the same is there again. (A split ring reads its heads again, which may have changed.)
        if self.packed {
            let mut again = Room::new();
            assert_eq!(self.rx.reserve(len, &mut again), result);
            if result.is_ok() {
                assert_eq!(again, room);
                self.rx.cancel();
            }
        }
    }
}
