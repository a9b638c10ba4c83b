//! The session as the server thread of a port drives it, and the turns of a worker between two messages.

use rustix::fs::ftruncate;
use rustix::io::pwrite;
use vswitch::burst::{BURST, Burst};
use vswitch::deliver::{FrameMeta, Job, Quiet, Report};
use vswitch::port::Sides;
use vswitch::ports::vhost::connection::Reply;
use vswitch::ports::vhost::message::{Header, Message};
use vswitch::ports::vhost::session::{Offer, Session, SessionError};
use vswitch::vlan::VlanMode;

use super::wire::{Files, MEMORY, PART_STRIDE, RING_STRIDE};
use crate::input::Input;

pub(super) struct Peer {
    session: Session,
    sides: Option<Sides>,
}

impl Peer {
    pub(super) fn new(offer: Offer) -> Peer {
        Peer {
            session: Session::new(offer),
            sides: None,
        }
    }

    pub(super) fn is_attached(&self) -> bool {
        self.sides.is_some()
    }

    /// Handles a message, and starts what is ready.
    pub(super) fn handle(
        &mut self,
        header: &Header,
        message: Message,
    ) -> Result<Option<Reply>, SessionError> {
        if self.sides.is_some() && self.session.disturbs(&message) {
            self.hang_up();
        }
        let mut reply = self.session.handle(message)?;
        if self.sides.is_none() {
            self.sides = self.session.start()?;
        }
        if reply.is_none() && header.need_reply && self.session.acknowledges() {
            reply = Some(Reply {
                body: vec![0; 8],
                fd: None,
            });
        }
        Ok(reply)
    }

    /// Takes the sides out of service.
    pub(super) fn hang_up(&mut self) {
        if let Some(sides) = self.sides.take() {
            let fault = sides.tx.fault().or(sides.rx.fault());
            self.session.take_back(sides);
            assert_eq!(
                self.session.fault().is_some(),
                fault.is_some(),
                "a fault is kept"
            );
        }
    }

    /// What a worker or the guest does while the rings run.
    pub(super) fn turn(&mut self, input: &mut Input<'_>, files: &Files) {
        let Some(sides) = &mut self.sides else { return };
        match input.u8() & 15 {
            // The guest writes to its memory: anywhere, or to the start of a part of a ring.
            0..3 => {
                let (at, len) = (input.u32(), input.u8() & 63);
                let _ = pwrite(
                    &files.memory,
                    input.bytes(len.into()),
                    u64::from(at) % MEMORY,
                );
            }
            3..8 => {
                let which = input.u8();
                let part =
                    u64::from(which & 7) * RING_STRIDE + u64::from(which >> 3 & 3) * PART_STRIDE;
                let len = input.u8() & 63;
                let _ = pwrite(&files.memory, input.bytes(len.into()), part);
            }
            8 | 9 => {
                let armed = input.u8() & 1 != 0 && sides.tx.arm();
                if !armed {
                    sides.tx.disarm();
                }
            }
            // The front-end takes memory away, or gives it back: what is mapped stays gone.
            10 if input.u8() == 0xff => {
                let _ = ftruncate(&files.memory, 4096);
                let _ = ftruncate(&files.memory, MEMORY);
            }
            _ => exchange(sides),
        }
    }
}

/// One turn: what the guest sent is delivered back to it.
fn exchange(sides: &mut Sides) {
    let mut burst = Burst::new();
    sides.tx.gather(&mut burst);
    let mut meta = [None; BURST];
    let mut frames = 0u32;
    for (index, frame) in burst.frames().iter().enumerate() {
        if frame.refused.is_none()
            && let Ok(checked) =
                offload::request::validate(&frame.request, frame.head(), frame.len())
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
    let meta = &meta[..burst.len()];
    let job = Job {
        burst: &burst,
        source: sides.tx.memory(),
        meta,
        quiet: Quiet::default(),
        frames,
        vlan: &VlanMode::None,
        mtu: 1500,
    };
    let mut report = Report::default();
    sides.rx.deliver(&job, &mut report);
    let source = report.source;
    let copies = u64::from(frames.count_ones()) + source.extra_copies;
    assert_eq!(source.delivered + source.dropped(), copies, "{source:?}");
    sides.tx.complete();
}
