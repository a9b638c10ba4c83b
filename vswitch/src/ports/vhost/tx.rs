//! A transmit queue: chains of descriptors become frames of a burst.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use arrayvec::ArrayVec;
use guestmem::{Memory, Span};
use offload::{Request, RequestError, VirtioNetHdr};

use super::notify;
use super::ring::{Buffer, Piece, Ring, fault};
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
    /// Its spans.
    first: usize,
    end: usize,
    /// Header and frame together, in bytes.
    len: u64,
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
    /// Spans of the chains of one gathering. Never grows: it has room for the most.
    spans: Vec<Span>,
    fault: Option<PortFault>,
}

impl<R: Ring> TxQueue<R> {
    /// A queue over `ring`, whose buffers lie in `memory`, for headers of `header_len` bytes.
    pub fn new(ring: R, memory: Arc<Memory>, events: Events, header_len: u8) -> TxQueue<R> {
        let spans = Vec::with_capacity(BURST * MAX_SPANS);
        TxQueue {
            ring,
            memory,
            events,
            header_len,
            pending: ArrayVec::new(),
            spans,
            fault: None,
        }
    }

    /// As [`crate::port::TxSide::gather`].
    pub fn gather(&mut self, burst: &mut Burst) {
        if self.fault.is_some() {
            return;
        }
        let mut taken = ArrayVec::<Taken, BURST>::new();
        let want = (BURST - burst.len()).min(BURST - self.pending.len());
        self.spans.clear();
        // Take all, so that the first line of each frame is on its way before the first frame is read.
        while taken.len() < want {
            match self.take_chain() {
                Ok(Some((chain, buffer))) => {
                    taken.push(chain);
                    self.pending.push(buffer);
                }
                Ok(None) => break,
                Err(fault) => {
                    self.fail(fault);
                    break;
                }
            }
        }
        if taken.len() == want {
            self.ring.fetch();
        }
        for chain in &taken {
            let spans = self
                .spans
                .get_mut(chain.first..chain.end)
                .unwrap_or(&mut []);
            push_frame(
                burst,
                &self.memory,
                chain,
                spans,
                u32::from(self.header_len),
            );
        }
    }

    #[inline]
    fn take_chain(&mut self) -> Result<Option<(Taken, Buffer)>, PortFault> {
        let TxQueue {
            ring,
            memory,
            spans,
            ..
        } = self;
        let first = spans.len();
        let mut chain = Taken {
            first,
            end: first,
            len: 0,
            scattered: false,
        };
        let buffer = ring.take(|piece: Piece| {
            if piece.writable {
                return fault("writable buffer on a transmit queue", piece.addr);
            }
            chain.len += u64::from(piece.len);
            match memory.span(piece.addr, piece.len) {
                Some(span) if spans.len() - first < MAX_SPANS => spans.push(span),
                Some(_) => chain.scattered = true,
                None => {
                    let known = memory.spans(piece.addr, piece.len, |span| {
                        if spans.len() - first < MAX_SPANS {
                            spans.push(span);
                        } else {
                            chain.scattered = true;
                        }
                        true
                    });
                    if !known || piece.len == 0 {
                        return fault("address of a buffer", piece.addr);
                    }
                }
            }
            Ok(())
        })?;
        let Some(buffer) = buffer else {
            return Ok(None);
        };
        chain.end = spans.len();
        if let Some(span) = spans.get(first) {
            memory.prefetch(*span);
            // Header and frame often lie at the two sides of a line's end.
            if let Some(second) = span.sub(64, 1) {
                memory.prefetch(second);
            }
        }
        Ok(Some((chain, buffer)))
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
    chain: &Taken,
    spans: &mut [Span],
    header_len: u32,
) {
    let reason = if chain.scattered {
        DropReason::TooManySegments
    } else if chain.len < u64::from(header_len + MIN_FRAME) {
        DropReason::Runt
    } else if chain.len > u64::from(u32::MAX) {
        DropReason::Oversize
    } else {
        match read_header(memory, spans).and_then(|header| request(&header)) {
            Ok(request) => {
                let len = chain.len as u32 - header_len;
                push_body(burst, memory, len, request, skip(spans, header_len));
                return;
            }
            Err(reason) => reason,
        }
    };
    burst.push_refused(reason);
}

/// Reads the header. Of a legacy one of 10 bytes, the number of buffers is the start of the frame; it means nothing in
/// a frame that was sent.
#[inline]
fn read_header(memory: &Memory, spans: &[Span]) -> Result<[u8; VirtioNetHdr::LEN], DropReason> {
    let mut header = [0; VirtioNetHdr::LEN];
    match spans
        .first()
        .and_then(|span| span.sub(0, VirtioNetHdr::LEN as u32))
    {
        Some(whole) => memory
            .read(whole, &mut header)
            .map_err(|_| DropReason::SourceFault)?,
        None => read_front(memory, spans, &mut header)?,
    }
    Ok(header)
}

#[inline]
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

#[inline]
fn push_body(burst: &mut Burst, memory: &Memory, len: u32, request: Request, spans: &mut [Span]) {
    let head_len = len.min(SNAPSHOT as u32);
    if let [only] = *spans
        && let Some((head, body)) = only.split_at(head_len)
    {
        let body = if body.is_empty() {
            &[][..]
        } else {
            &[body][..]
        };
        burst.push(len, request, body, |to| {
            memory.read(head, to).map_err(|_| DropReason::SourceFault)
        });
        return;
    }
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
