//! Where frames to be transmitted lie in guest memory.

use guestmem::{Memory, Span};
use vswitch::burst::{BURST, MAX_FRAME, MAX_SEGMENTS, SNAPSHOT};
use vswitch::drops::DropReason;

use crate::descriptor::BusError;

/// Pieces of a frame that are kept: more than the switch takes.
const MAX_PIECES: usize = SNAPSHOT + MAX_SEGMENTS + 1;

/// A frame found in the list.
pub(super) struct Found {
    /// Its pieces.
    first: usize,
    end: usize,
    /// Why the switch does not take it.
    pub(super) refused: Option<DropReason>,
}

/// The pieces of the frames of one gathering. Never grows.
pub(super) struct Pieces {
    spans: Vec<Span>,
    /// Buffers of the frame being followed, adjoining ones joined: address and length.
    buffers: Vec<(u32, u32)>,
}

impl Pieces {
    pub(super) fn new() -> Pieces {
        Pieces {
            spans: Vec::with_capacity(BURST * MAX_PIECES),
            buffers: Vec::with_capacity(MAX_PIECES),
        }
    }

    /// Forgets all frames.
    pub(super) fn clear(&mut self) {
        self.spans.clear();
    }

    /// A frame begins.
    pub(super) fn begin(&mut self) {
        self.buffers.clear();
    }

    /// A buffer of it.
    pub(super) fn add(&mut self, address: u32, size: u32) {
        if size == 0 {
            return;
        }
        if let Some((start, len)) = self.buffers.last_mut()
            && start.checked_add(*len) == Some(address)
        {
            *len += size;
        } else if self.buffers.len() < MAX_PIECES {
            self.buffers.push((address, size));
        }
    }

    /// The frame ends: it is the first `len` bytes of its buffers.
    pub(super) fn end(&mut self, memory: &Memory, len: u32) -> Result<Found, BusError> {
        let first = self.spans.len();
        let mut refused = match self.buffers.len() {
            MAX_PIECES => Some(DropReason::TooManySegments),
            _ if len > MAX_FRAME => Some(DropReason::Oversize),
            _ => None,
        };
        let mut left = len;
        let spans = &mut self.spans;
        for &(address, size) in &self.buffers {
            let known = memory.spans(address.into(), size, |span| {
                let now = span.sub(0, span.len().min(left)).unwrap_or(Span::EMPTY);
                left -= now.len();
                if spans.len() - first == MAX_PIECES {
                    refused = refused.or(Some(DropReason::TooManySegments));
                } else if !now.is_empty() {
                    spans.push(now);
                }
                true
            });
            if !known {
                return Err(BusError);
            }
        }
        if let Some(span) = self.spans.get(first) {
            memory.prefetch(*span);
        }
        Ok(Found {
            first,
            end: self.spans.len(),
            refused,
        })
    }

    /// The pieces of a frame.
    pub(super) fn of(&self, found: &Found) -> &[Span] {
        self.spans.get(found.first..found.end).unwrap_or(&[])
    }
}
