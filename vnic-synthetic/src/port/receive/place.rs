//! A place in the receive buffer that is filled front to back.

use guestmem::{Fault, Memory, Span};
use offload::Sum;

use crate::vmbus::pages::Pages;

/// So many bytes of the buffer.
pub(super) struct Place<'a> {
    pub(super) pages: &'a Pages,
    pub(super) at: u32,
    pub(super) len: u32,
}

impl Place<'_> {
    /// Writes private bytes and then what lies in a source's memory, all together as long as the place.
    #[inline]
    pub(super) fn fill(
        &self,
        private: &[&[u8]],
        source: &Memory,
        body: &[Span],
    ) -> Result<(), Fault> {
        let Some(to) = self.pages.span(self.at, self.len) else {
            return self.fill_pieces(private, body, &mut |from, memory, to| {
                source.copy(from, memory, to)
            });
        };
        let mut filler = self.pages.memory().fill(to)?;
        for bytes in private {
            filler.write(bytes)?;
        }
        for span in body {
            filler.copy(source, *span)?;
        }
        filler.finish()
    }

    /// The same, and adds what lies in the source's memory to `sum`.
    pub(super) fn fill_summed(
        &self,
        private: &[&[u8]],
        source: &Memory,
        body: &[Span],
        sum: &mut Sum,
    ) -> Result<(), Fault> {
        self.fill_pieces(private, body, &mut |from, memory, to| {
            sum.add_partial(source.copy_sum(from, memory, to)?, from.len() as usize);
            Ok(())
        })
    }

    /// The same piece by piece, where the place is not one; `copy` copies as much as fits a piece.
    fn fill_pieces(
        &self,
        private: &[&[u8]],
        body: &[Span],
        copy: &mut dyn FnMut(Span, &Memory, Span) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let memory = self.pages.memory();
        let mut at = self.at;
        for bytes in private {
            self.pages.write(at, bytes)?;
            at += bytes.len() as u32;
        }
        for span in body {
            let (mut left, mut result) = (*span, Ok(()));
            let all = self.pages.spans(at, span.len(), |to| {
                let Some((now, later)) = left.split_at(to.len()) else {
                    return false;
                };
                left = later;
                result = copy(now, memory, to);
                result.is_ok()
            });
            result.and(if all { Ok(()) } else { Err(Fault::Range) })?;
            at += span.len();
        }
        Ok(())
    }
}
