//! From the head and body of a frame to the room reserved for it: cursors over both.

use guestmem::{Fault, Memory, Span};
use offload::Sum;

/// The bytes behind a head, taken front to back: first those that the snapshot holds, then spans of the source.
#[derive(Clone, Copy)]
pub(super) struct Body<'a> {
    private: &'a [u8],
    current: Span,
    rest: &'a [Span],
}

impl<'a> Body<'a> {
    pub(super) fn new(private: &'a [u8], spans: &'a [Span]) -> Self {
        let (current, rest) = spans
            .split_first()
            .map_or((Span::EMPTY, spans), |(first, rest)| (*first, rest));
        Body {
            private,
            current,
            rest,
        }
    }

    /// Takes up to `len` private bytes.
    fn take_private(&mut self, len: u32) -> &'a [u8] {
        let (taken, left) = self.private.split_at(self.private.len().min(len as usize));
        self.private = left;
        taken
    }

    /// Takes up to `len` bytes of one span. Empty once there are none left.
    fn take_span(&mut self, len: u32) -> Span {
        while self.current.is_empty() {
            let Some((first, rest)) = self.rest.split_first() else {
                return Span::EMPTY;
            };
            (self.current, self.rest) = (*first, rest);
        }
        let (taken, left) = self
            .current
            .split_at(self.current.len().min(len))
            .unwrap_or((self.current, Span::EMPTY));
        self.current = left;
        taken
    }

    pub(super) fn copy(
        &mut self,
        source: &Memory,
        len: u32,
        sink: &mut Sink<'_>,
    ) -> Result<(), Fault> {
        let private = self.take_private(len);
        sink.write(private)?;
        let mut left = len - private.len() as u32;
        while left > 0 {
            let span = self.take_span(left);
            if span.is_empty() {
                return Err(Fault::Length);
            }
            left -= span.len();
            sink.each_piece(span, |memory, from, to| source.copy(from, memory, to))?;
        }
        Ok(())
    }

    pub(super) fn copy_sum(
        &mut self,
        source: &Memory,
        len: u32,
        sink: &mut Sink<'_>,
        sum: &mut Sum,
    ) -> Result<(), Fault> {
        let private = self.take_private(len);
        sum.add_bytes(private);
        sink.write(private)?;
        let mut left = len - private.len() as u32;
        while left > 0 {
            let span = self.take_span(left);
            if span.is_empty() {
                return Err(Fault::Length);
            }
            left -= span.len();
            sink.each_piece(span, |memory, from, to| {
                sum.add_partial(source.copy_sum(from, memory, to)?, from.len() as usize);
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// Reserved room, filled front to back.
pub(super) struct Sink<'a> {
    memory: &'a Memory,
    current: Span,
    rest: &'a [Span],
}

impl<'a> Sink<'a> {
    /// The room from byte `skip` on.
    pub(super) fn new(memory: &'a Memory, room: &'a [Span], mut skip: u32) -> Self {
        let mut rest = room;
        while let Some((first, after)) = rest.split_first() {
            rest = after;
            if let Some((_, current)) = first.split_at(skip) {
                return Sink {
                    memory,
                    current,
                    rest,
                };
            }
            skip -= first.len();
        }
        Sink {
            memory,
            current: Span::EMPTY,
            rest,
        }
    }

    fn next(&mut self, len: u32) -> Result<Span, Fault> {
        while self.current.is_empty() {
            let (first, rest) = self.rest.split_first().ok_or(Fault::Length)?;
            (self.current, self.rest) = (*first, rest);
        }
        let (piece, left) = self
            .current
            .split_at(self.current.len().min(len))
            .ok_or(Fault::Range)?;
        self.current = left;
        Ok(piece)
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<(), Fault> {
        while !bytes.is_empty() {
            let to = self.next(bytes.len() as u32)?;
            let (now, later) = bytes
                .split_at_checked(to.len() as usize)
                .ok_or(Fault::Length)?;
            self.memory.write(to, now)?;
            bytes = later;
        }
        Ok(())
    }

    fn each_piece(
        &mut self,
        mut from: Span,
        mut copy: impl FnMut(&Memory, Span, Span) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        while !from.is_empty() {
            let to = self.next(from.len())?;
            let (now, later) = from.split_at(to.len()).ok_or(Fault::Range)?;
            copy(self.memory, now, to)?;
            from = later;
        }
        Ok(())
    }
}
