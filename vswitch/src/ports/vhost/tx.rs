//! A transmit queue: chains of descriptors become frames of a burst.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use arrayvec::ArrayVec;
use guestmem::{Memory, Span};
use offload::{Request, RequestError, VirtioNetHdr};

use super::notify;
use super::ring::{Buffer, Piece, Ring, fault};
use super::run::Plain;
use crate::burst::{BURST, Burst, MAX_SEGMENTS, MIN_FRAME, SNAPSHOT};
use crate::drops::DropReason;
use crate::port::PortFault;

/// Spans kept of one chain: those of the longest body, and some of header and head. A chain of more is refused.
const MAX_SPANS: usize = MAX_SEGMENTS + 8;

/// The descriptors that a ring notifies its driver and is notified by.
#[derive(Clone, Debug, Default)]
pub struct Events {
    /// Signalled when buffers were used. Without it, the driver polls.
    pub call: Option<Arc<OwnedFd>>,
    /// Readable when there are new buffers. Without it, the device polls.
    pub kick: Option<Arc<OwnedFd>>,
    /// Signalled when the ring was found invalid.
    pub err: Option<Arc<OwnedFd>>,
}

impl Events {
    /// Tells the driver about used buffers. True if there was somebody to tell.
    pub(super) fn call(&self) -> bool {
        self.call.as_deref().map(notify::signal).is_some()
    }

    /// Tells the front-end about a fault.
    pub(super) fn error(&self) {
        if let Some(err) = &self.err {
            notify::signal(err);
        }
    }
}

/// A chain as taken from the ring.
#[derive(Clone, Copy)]
struct Taken {
    /// Header and frame together, in bytes, at most.
    len: u32,
    /// It has more spans than are kept.
    scattered: bool,
}

/// A transmit queue over a ring of either format.
pub struct TxQueue<R> {
    ring: R,
    memory: Arc<Memory>,
    events: Events,
    /// Length of the virtio header: 12, or 10 for legacy drivers.
    header_len: u8,
    /// Buffers of the frames gathered and not yet completed.
    pending: ArrayVec<Buffer, BURST>,
    /// Spans of the chain that is being taken.
    spans: Box<ArrayVec<Span, MAX_SPANS>>,
    fault: Option<PortFault>,
}

impl<R: Ring> TxQueue<R> {
    /// A queue over `ring`, whose buffers lie in `memory`, for headers of `header_len` bytes.
    pub fn new(ring: R, memory: Arc<Memory>, events: Events, header_len: u8) -> TxQueue<R> {
        TxQueue {
            ring,
            memory,
            events,
            header_len,
            pending: ArrayVec::new(),
            spans: Box::default(),
            fault: None,
        }
    }

    /// As [`crate::port::TxSide::gather`].
    pub fn gather(&mut self, burst: &mut Burst) {
        if self.fault.is_some() {
            return;
        }
        while !burst.is_full() && !self.pending.is_full() {
            if self.push_plain(burst) {
                continue;
            }
            match self.take_chain() {
                Ok(Some(chain)) => push_frame(
                    burst,
                    &self.memory,
                    chain,
                    &mut self.spans,
                    self.header_len.into(),
                ),
                Ok(None) => return,
                Err(fault) => {
                    self.fail(fault);
                    return;
                }
            }
        }
        self.ring.fetch();
    }

    /// Takes the next chain if it is an ordinary frame: one buffer in one region, asking for nothing.
    #[inline]
    fn push_plain(&mut self, burst: &mut Burst) -> bool {
        let Some(&Plain { span, id }) = self.ring.plain() else {
            return false;
        };
        if !burst.push_plain(&self.memory, span, self.header_len.into()) {
            return false;
        }
        self.ring.take_plain();
        self.pending.push(Buffer { id, slots: 1 });
        true
    }

    fn take_chain(&mut self) -> Result<Option<Taken>, PortFault> {
        let TxQueue {
            ring,
            memory,
            spans,
            ..
        } = self;
        spans.clear();
        let (mut len, mut scattered) = (0u32, false);
        let buffer = ring.take(|piece: Piece| {
            if piece.writable {
                return fault("writable buffer on a transmit queue", piece.addr);
            }
            len = len.saturating_add(piece.len);
            let known = memory.spans(piece.addr, piece.len, |span| {
                scattered |= spans.try_push(span).is_err();
                true
            });
            if !known || (piece.len == 0 && memory.span(piece.addr, 0).is_none()) {
                return fault("address of a buffer", piece.addr);
            }
            Ok(())
        })?;
        let Some(buffer) = buffer else {
            return Ok(None);
        };
        self.pending.push(buffer);
        Ok(Some(Taken { len, scattered }))
    }

    /// As [`crate::port::TxSide::complete`].
    pub fn complete(&mut self) -> bool {
        if self.pending.is_empty() {
            return false;
        }
        let given = self.give_back();
        self.pending.clear();
        match given {
            Ok(wanted) => wanted && self.events.call(),
            Err(fault) => {
                self.fail(fault);
                false
            }
        }
    }

    fn give_back(&mut self) -> Result<bool, PortFault> {
        for &buffer in &self.pending {
            self.ring.give(buffer, 0)?;
        }
        self.ring.publish()
    }

    /// As [`crate::port::TxSide::arm`].
    pub fn arm(&mut self) -> bool {
        if self.fault.is_some() {
            return false;
        }
        let waiting = self.ring.arm().unwrap_or_else(|fault| {
            self.fail(fault);
            false
        });
        // Without a kick there is nothing to sleep on.
        waiting || self.events.kick.is_none()
    }

    /// As [`crate::port::TxSide::disarm`].
    pub fn disarm(&mut self) {
        if let Some(kick) = &self.events.kick {
            notify::drain(kick.as_fd());
        }
        if self.fault.is_none()
            && let Err(fault) = self.ring.disarm()
        {
            self.fail(fault);
        }
    }

    /// The descriptor that becomes readable when there are new buffers.
    pub fn kick_fd(&self) -> Option<BorrowedFd<'_>> {
        self.events.kick.as_ref().map(|kick| kick.as_fd())
    }

    /// The fault that ended the queue.
    pub fn fault(&self) -> Option<PortFault> {
        self.fault
    }

    /// As [`Ring::base`].
    pub fn base(&self) -> u32 {
        self.ring.base()
    }

    fn fail(&mut self, fault: PortFault) {
        if self.fault.is_none() {
            self.fault = Some(fault);
            self.events.error();
        }
    }
}

/// Makes a frame of a chain.
#[inline]
fn push_frame(
    burst: &mut Burst,
    memory: &Memory,
    chain: Taken,
    spans: &mut [Span],
    header_len: u32,
) {
    let reason = if chain.scattered {
        DropReason::TooManySegments
    } else if chain.len < header_len + MIN_FRAME {
        DropReason::Runt
    } else {
        let len = chain.len - header_len;
        match read_header(memory, spans).and_then(|header| request(&header)) {
            Ok(request) => {
                match skip(spans, header_len) {
                    [only] => {
                        burst.push_span(memory, *only, request);
                    }
                    frame => push_body(burst, memory, len, request, frame),
                }
                return;
            }
            Err(reason) => reason,
        }
    };
    burst.push_refused(reason);
}

/// Reads the header. Of a legacy one of 10 bytes, the number of buffers is the start of the frame; it means nothing in
/// a frame that was sent.
fn read_header(memory: &Memory, spans: &[Span]) -> Result<[u8; VirtioNetHdr::LEN], DropReason> {
    let mut header = [0; VirtioNetHdr::LEN];
    read_front(memory, spans, &mut header)?;
    Ok(header)
}

fn request(header: &[u8; VirtioNetHdr::LEN]) -> Result<Request, DropReason> {
    match Request::from_virtio(&VirtioNetHdr::from_bytes(header)) {
        // A guest is not trusted with vouching for checksums.
        Ok(request) => Ok(Request {
            csum_valid: false,
            ..request
        }),
        Err(RequestError::Runt) => Err(DropReason::Runt),
        Err(_) => Err(DropReason::BadOffload),
    }
}

/// Takes a frame that lies in several pieces.
fn push_body(burst: &mut Burst, memory: &Memory, len: u32, request: Request, spans: &mut [Span]) {
    let head_len = len.min(SNAPSHOT as u32);
    let mut head = [0; SNAPSHOT];
    let head = head.get_mut(..head_len as usize).unwrap_or(&mut []);
    let result = read_front(memory, spans, head);
    let body = skip(spans, head_len);
    burst.push(len, request, body, |to| {
        result?;
        to.copy_from_slice(head);
        Ok(())
    });
}

/// Reads the first bytes of `spans`.
#[inline]
fn read_front(memory: &Memory, spans: &[Span], to: &mut [u8]) -> Result<(), DropReason> {
    let mut left = to;
    for span in spans {
        if left.is_empty() {
            break;
        }
        let now = left.len().min(span.len() as usize);
        let (front, rest) = left.split_at_mut(now);
        let from = span.sub(0, now as u32).unwrap_or(Span::EMPTY);
        memory
            .read(from, front)
            .map_err(|_| DropReason::SourceFault)?;
        left = rest;
    }
    Ok(())
}

/// Cuts the first `len` bytes off `spans`.
#[inline]
fn skip(spans: &mut [Span], mut len: u32) -> &mut [Span] {
    let mut first = 0;
    for span in spans.iter_mut() {
        if span.len() > len {
            *span = span.sub(len, span.len() - len).unwrap_or(Span::EMPTY);
            break;
        }
        len -= span.len();
        first += 1;
    }
    spans.get_mut(first..).unwrap_or(&mut [])
}
