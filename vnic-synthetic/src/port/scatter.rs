//! The bytes that a packet of the guest is about: part of the send buffer, pages that it names, or one after the other.

use arrayvec::ArrayVec;
use guestmem::{Fault, Memory, Span};

use crate::vmbus::pages::Pages;
use crate::wire::{u32_at, u64_at};

/// Pieces of one packet, at most: 64 KiB in pages of which each comes in two pieces, and messages in front of it.
pub(super) const MAX_PIECES: usize = 96;
/// Bytes of a page.
const PAGE: u32 = 4096;
/// Bytes of one packet, at most: eight messages of 64 KiB.
const MAX_LEN: u32 = 1 << 20;

/// The packet names memory that is not there, or more than is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Pieces of guest memory, front to back.
#[derive(Clone, Debug, Default)]
pub(super) struct Scatter {
    pieces: ArrayVec<Span, MAX_PIECES>,
    len: u32,
}

impl Scatter {
    /// All bytes of all pieces.
    #[inline]
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    pub(super) fn clear(&mut self) {
        self.pieces.clear();
        self.len = 0;
    }

    fn push(&mut self, piece: Span) -> bool {
        self.len += piece.len();
        self.len <= MAX_LEN && self.pieces.try_push(piece).is_ok()
    }

    /// Adds `len` bytes at `at` of `pages`.
    #[inline]
    pub(super) fn add_pages(&mut self, pages: &Pages, at: u32, len: u32) -> Result<(), Malformed> {
        match pages.spans(at, len, |piece| self.push(piece)) {
            true => Ok(()),
            false => Err(Malformed),
        }
    }

    /// Adds what the header of a packet of kind GPA direct names: u32 reserved, u32 number of ranges, then for each u32
    /// length, u32 offset in the first page, and the numbers of its pages.
    pub(super) fn add_ranges(&mut self, memory: &Memory, header: &[u8]) -> Result<(), Malformed> {
        let count = u32_at(header, 4).ok_or(Malformed)?;
        let mut at = 8;
        for _ in 0..count {
            let len = u32_at(header, at).ok_or(Malformed)?;
            let offset = u32_at(header, at + 4).ok_or(Malformed)?;
            if offset >= PAGE {
                return Err(Malformed);
            }
            at = self.add_range(memory, header, at + 8, (offset, len))?;
        }
        Ok(())
    }

    /// Adds one range, its page numbers from `at`; gives where they end.
    fn add_range(
        &mut self,
        memory: &Memory,
        header: &[u8],
        mut at: usize,
        (mut offset, mut left): (u32, u32),
    ) -> Result<usize, Malformed> {
        while left > 0 {
            let page = u64_at(header, at).ok_or(Malformed)?;
            let len = left.min(PAGE - offset);
            let address = page.checked_mul(PAGE.into()).ok_or(Malformed)?;
            let piece = memory
                .span(address + u64::from(offset), len)
                .ok_or(Malformed)?;
            if !self.push(piece) {
                return Err(Malformed);
            }
            left -= len;
            offset = 0;
            at += 8;
        }
        Ok(at)
    }

    /// Gives the pieces of the `len` bytes at `at` in order to `each`.
    #[inline]
    pub(super) fn each(&self, at: u32, len: u32, mut each: impl FnMut(Span)) {
        let (mut skip, mut left) = (at, len);
        for piece in &self.pieces {
            if left == 0 {
                break;
            }
            if skip >= piece.len() {
                skip -= piece.len();
                continue;
            }
            let now = left.min(piece.len() - skip);
            each(piece.sub(skip, now).unwrap_or(Span::EMPTY));
            left -= now;
            skip = 0;
        }
    }

    /// Copies the bytes at `at` to private memory; fewer where there are no more. Gives how many.
    #[inline]
    pub(super) fn read(&self, memory: &Memory, at: u32, to: &mut [u8]) -> Result<usize, Fault> {
        let len = (self.len.saturating_sub(at) as usize).min(to.len());
        let (mut left, mut result) = (to.get_mut(..len).unwrap_or(&mut []), Ok(()));
        self.each(at, len as u32, |piece| {
            let (now, later) = std::mem::take(&mut left).split_at_mut(piece.len() as usize);
            left = later;
            if result.is_ok() {
                result = memory.read(piece, now);
            }
        });
        result.map(|()| len)
    }
}
