//! GPADLs: lists of guest pages that a guest shares under a handle, put together from a header and bodies.

use serde::{Deserialize, Serialize};

use crate::wire::{u32_at, u64_at};

/// Bytes of a page.
pub(crate) const PAGE: u32 = 4096;
/// Pages a GPADL describes at most: its length in bytes is a number of 16 bits.
pub const MAX_GPADL_PAGES: usize = 8190;

/// A run of memory over guest pages that need not be neighbours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PageRange {
    /// Where it starts in the first page, below 4096.
    pub offset: u32,
    /// Its length in bytes, at least 1.
    pub len: u32,
    /// Guest page numbers; exactly as many as it takes.
    pub pages: Box<[u64]>,
}

/// What a GPADL describes: almost always one range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PageList {
    /// The ranges.
    pub ranges: Box<[PageRange]>,
}

impl PageList {
    /// The only range; `None` if there are several.
    pub fn single(&self) -> Option<&PageRange> {
        match &*self.ranges {
            [range] => Some(range),
            _ => None,
        }
    }

    /// Whether it could have come from a guest: there are ranges, none is empty, and each has the pages it takes.
    pub(crate) fn is_valid(&self) -> bool {
        let whole = |range: &PageRange| {
            let count = pages_of(range.offset, range.len);
            range.offset < PAGE && range.len > 0 && range.pages.len() == count
        };
        !self.ranges.is_empty()
            && self.page_count() <= MAX_GPADL_PAGES
            && self.ranges.iter().all(whole)
    }

    /// Pages of all ranges.
    pub fn page_count(&self) -> usize {
        self.ranges.iter().map(|range| range.pages.len()).sum()
    }
}

/// Pages that a range takes.
fn pages_of(offset: u32, len: u32) -> usize {
    (u64::from(offset) + u64::from(len)).div_ceil(PAGE.into()) as usize
}

/// Why a GPADL is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GpadlError {
    /// No range, or more than fit.
    #[error("{0} ranges in a GPADL; at least one, and as many as its length bears")]
    Ranges(u16),
    /// A range that is empty or starts beyond its first page.
    #[error(
        "range of {len} bytes at offset {offset} in a GPADL; the offset is below 4096, the length not 0"
    )]
    Range {
        /// Offset in the first page.
        offset: u32,
        /// Length in bytes.
        len: u32,
    },
    /// The announced length is not that of the ranges.
    #[error("{0} bytes of ranges in a GPADL: more or fewer than its ranges take")]
    Length(usize),
}

/// A GPADL of which some messages are still to come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Assembly {
    range_count: u16,
    /// Bytes of all ranges together.
    len: usize,
    bytes: Vec<u8>,
}

impl Assembly {
    /// From a header. Memory is taken as it arrives, never more than the 64 KiB that a header can announce.
    pub(crate) fn new(range_count: u16, len: u16) -> Assembly {
        Assembly {
            range_count,
            len: len.into(),
            bytes: Vec::new(),
        }
    }

    /// Whether something is missing.
    pub(crate) fn is_building(&self) -> bool {
        self.bytes.len() < self.len && self.len <= u16::MAX.into()
    }

    /// Takes the next part. True once all is there; bytes beyond are padding.
    pub(crate) fn push(&mut self, part: &[u8]) -> bool {
        let left = self.len - self.bytes.len();
        self.bytes
            .extend_from_slice(part.get(..left).unwrap_or(part));
        self.bytes.len() == self.len
    }

    /// The list, once all is there.
    pub(crate) fn finish(&self) -> Result<PageList, GpadlError> {
        let mut ranges = Vec::new();
        let mut at = 0;
        for _ in 0..self.range_count {
            let range = self.range(at)?;
            at += 8 + 8 * range.pages.len();
            ranges.push(range);
        }
        if ranges.is_empty() {
            return Err(GpadlError::Ranges(0));
        }
        if at != self.len {
            return Err(GpadlError::Length(self.len));
        }
        Ok(PageList {
            ranges: ranges.into(),
        })
    }

    fn range(&self, at: usize) -> Result<PageRange, GpadlError> {
        let (Some(len), Some(offset)) = (u32_at(&self.bytes, at), u32_at(&self.bytes, at + 4))
        else {
            return Err(GpadlError::Ranges(self.range_count));
        };
        if offset >= PAGE || len == 0 {
            return Err(GpadlError::Range { offset, len });
        }
        let count = pages_of(offset, len);
        if count > MAX_GPADL_PAGES {
            return Err(GpadlError::Range { offset, len });
        }
        let pages = (0..count).map(|index| u64_at(&self.bytes, at + 8 + 8 * index));
        let pages = pages.collect::<Option<Box<[u64]>>>();
        Ok(PageRange {
            offset,
            len,
            pages: pages.ok_or(GpadlError::Length(self.len))?,
        })
    }
}
