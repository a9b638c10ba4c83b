//! Memory of a GPADL, translated: bytes by their offset in it, wherever its pages lie.

use std::sync::Arc;

use guestmem::{Fault, Memory, Span, Window};

use super::gpadl::{PAGE, PageRange};

/// A page of a GPADL is not in the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("guest page {0:#x} of a GPADL is not in the guest's memory")]
pub struct PageError(pub u64);

/// A run of guest memory over pages that need not be neighbours.
#[derive(Clone, Debug)]
pub struct Pages {
    memory: Arc<Memory>,
    /// For each page, what lies from its start to the end of the neighbours that follow it.
    runs: Box<[Span]>,
    /// Where the run starts in the first page.
    offset: u32,
    len: u32,
}

impl Pages {
    /// Translates `range`.
    ///
    /// # Errors
    /// [`PageError`] names the first page that is no memory.
    pub fn new(memory: &Arc<Memory>, range: &PageRange) -> Result<Pages, PageError> {
        let mut runs = vec![Span::EMPTY; range.pages.len()];
        let mut next: Option<(u64, u32)> = None;
        for (run, &page) in runs.iter_mut().zip(&range.pages).rev() {
            let translate = |len| memory.span(page.checked_mul(PAGE.into())?, len);
            let joined = match next {
                Some((after, len)) if page.checked_add(1) == Some(after) => translate(PAGE + len),
                _ => None,
            };
            *run = joined.or_else(|| translate(PAGE)).ok_or(PageError(page))?;
            next = Some((page, run.len()));
        }
        Ok(Pages {
            memory: memory.clone(),
            runs: runs.into(),
            offset: range.offset,
            len: range.len,
        })
    }

    /// The memory it is part of.
    #[inline]
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Length in bytes.
    #[inline]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there is no byte: never.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The memory from byte `at` to the end of the neighbouring pages, and no further than the end of the run.
    #[inline]
    fn run(&self, at: u32) -> Option<Span> {
        let left = self.len.checked_sub(at)?;
        let from = self.offset + at;
        let run = self.runs.get((from / PAGE) as usize)?;
        let skip = from % PAGE;
        run.sub(skip, (run.len() - skip).min(left))
    }

    /// The `len` bytes at `at`, if they are there and lie in one piece.
    #[inline]
    pub fn span(&self, at: u32, len: u32) -> Option<Span> {
        self.run(at)?.sub(0, len)
    }

    /// Gives the pieces of the `len` bytes at `at` in order to `each`. True if all were given; false if bytes are
    /// missing, or `each` said false.
    #[inline]
    pub fn spans(&self, mut at: u32, mut len: u32, mut each: impl FnMut(Span) -> bool) -> bool {
        while len > 0 {
            let Some(run) = self.run(at).filter(|run| !run.is_empty()) else {
                return false;
            };
            let piece = run.sub(0, run.len().min(len)).unwrap_or(Span::EMPTY);
            if !each(piece) {
                return false;
            }
            at += piece.len();
            len -= piece.len();
        }
        true
    }

    /// Copies the bytes at `at` to private memory.
    ///
    /// # Errors
    /// [`Fault::Range`], [`Fault::Gone`].
    #[inline]
    pub fn read(&self, at: u32, to: &mut [u8]) -> Result<(), Fault> {
        if let Some(span) = self.span(at, to.len() as u32) {
            return self.memory.read(span, to);
        }
        let (mut left, mut result) = (to, Ok(()));
        let len = left.len() as u32;
        let all = self.spans(at, len, |span| {
            let (now, later) = std::mem::take(&mut left).split_at_mut(span.len() as usize);
            left = later;
            result = self.memory.read(span, now);
            result.is_ok()
        });
        result.and(if all { Ok(()) } else { Err(Fault::Range) })
    }

    /// Copies private bytes to `at`.
    ///
    /// # Errors
    /// As [`Pages::read`].
    #[inline]
    pub fn write(&self, at: u32, from: &[u8]) -> Result<(), Fault> {
        if let Some(span) = self.span(at, from.len() as u32) {
            return self.memory.write(span, from);
        }
        let (mut left, mut result) = (from, Ok(()));
        let all = self.spans(at, from.len() as u32, |span| {
            let (now, later) = left.split_at(span.len() as usize);
            left = later;
            result = self.memory.write(span, now);
            result.is_ok()
        });
        result.and(if all { Ok(()) } else { Err(Fault::Range) })
    }

    /// A view of page `index`, for fields that are read and written at once. `None` if there is no such whole page.
    pub(crate) fn page(&self, range: &PageRange, index: u32) -> Option<Window> {
        let page = range.pages.get(index as usize)?;
        self.memory
            .window(page.checked_mul(PAGE.into())?, PAGE as usize)
    }
}
