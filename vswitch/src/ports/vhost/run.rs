//! What a ring shows next, read ahead of its use and translated: the ordinary buffers, of one descriptor in one region.
//!
//! Everything else (chains, tables, bad addresses, wrong directions) has an empty span here, and is dealt with one by
//! one by [`super::ring::Ring::take`], which reads it anew.

use guestmem::{Memory, Span};

use super::ring::{Desc, INDIRECT, NEXT, WRITE};

/// Places that are read at once: as many as a burst has frames.
pub(super) const RUN: usize = crate::burst::BURST;

/// A place of a ring that shows an ordinary buffer, or nothing that is dealt with here: then its span is empty.
///
/// Handed out by reference: copies of it in options and tuples end up at odd places of the stack, where what was stored
/// as a whole is loaded in parts, and has to wait for the cache.
#[derive(Clone, Copy)]
pub struct Plain {
    /// The buffer.
    pub span: Span,
    /// What it is given back as.
    pub id: u16,
}

/// Places of a ring from one on.
pub(super) struct Run {
    places: [Plain; RUN],
    /// Where the next one is.
    next: usize,
    count: usize,
    /// The device writes to the buffers.
    writable: bool,
}

impl Run {
    /// Nothing read yet, of a ring whose buffers the device writes to or reads.
    pub(super) fn new(writable: bool) -> Run {
        Run {
            places: [Plain {
                span: Span::EMPTY,
                id: 0,
            }; RUN],
            next: 0,
            count: 0,
            writable,
        }
    }

    /// Forgets what was read.
    #[inline]
    pub(super) fn clear(&mut self) {
        (self.next, self.count) = (0, 0);
    }

    /// Whether nothing that was read is left.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.next >= self.count
    }

    /// Reads up to [`RUN`] places anew: each is what `next` shows, a descriptor with its flags and what it will be given
    /// back as, until that shows none. A place that shows `Some(None)` is none of those dealt with here.
    #[inline]
    pub(super) fn fill(
        &mut self,
        memory: &Memory,
        mut next: impl FnMut() -> Option<Option<(Desc, u16, u16)>>,
    ) {
        let wanted = if self.writable { WRITE } else { 0 };
        let fetch = !self.writable;
        let mut translator = memory.translator();
        let mut count = 0;
        for place in &mut self.places {
            let Some(shown) = next() else { break };
            count += 1;
            place.span = Span::EMPTY;
            let Some((desc, flags, id)) = shown else {
                continue;
            };
            // The buffer of a chain is fetched too, or the table of one.
            let span = translator.span(desc.addr(), desc.len(), fetch);
            if let Some(span) = span
                && flags & (NEXT | INDIRECT | WRITE) == wanted
            {
                *place = Plain { span, id };
            }
        }
        (self.next, self.count) = (0, count);
    }

    /// The next place, if it is an ordinary one.
    #[inline]
    pub(super) fn first(&self) -> Option<&Plain> {
        self.ahead(0)
    }

    /// The place `distance` after the next one, if it was read and is an ordinary one.
    #[inline]
    pub(super) fn ahead(&self, distance: usize) -> Option<&Plain> {
        let at = self.next + distance;
        let place = self.places.get(at)?;
        (at < self.count && !place.span.is_empty()).then_some(place)
    }

    /// The next place was taken.
    #[inline]
    pub(super) fn advance(&mut self) {
        self.next += 1;
    }
}
