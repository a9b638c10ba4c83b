//! Memory of the guest, handed out page by page.

use std::sync::Arc;

use guestmem::Memory;

use crate::vmbus::PageRange;
use crate::vmbus::pages::Pages;

/// A bump allocator over a guest's memory.
pub(super) struct Heap {
    pub(super) memory: Arc<Memory>,
    next: u64,
    /// Pages come in an order in which none are neighbours.
    scattered: bool,
}

/// Pages that belong together, in the order the driver uses them.
#[derive(Clone, Debug)]
pub(super) struct Area {
    pub(super) range: PageRange,
    pub(super) pages: Pages,
}

impl Area {
    /// `len` bytes at `at`, as ranges of a packet: page number, offset, length.
    pub(super) fn pieces(&self, mut at: u32, mut len: u32) -> Vec<(u64, u32, u32)> {
        let mut pieces = Vec::new();
        while len > 0 {
            let now = len.min(4096 - at % 4096);
            let page = self.range.pages[(at / 4096) as usize];
            pieces.push((page, at % 4096, now));
            at += now;
            len -= now;
        }
        pieces
    }
}

impl Heap {
    pub(super) fn new(pages: usize, scattered: bool) -> Heap {
        let memory = Memory::anonymous(pages * 4096).expect("memory of a test guest");
        Heap::over(Arc::new(memory), scattered)
    }

    pub(super) fn over(memory: Arc<Memory>, scattered: bool) -> Heap {
        Heap {
            memory,
            // Page 0 is nobody's.
            next: 1,
            scattered,
        }
    }

    /// `count` pages.
    pub(super) fn take(&mut self, count: usize) -> Area {
        let numbers = self.next..self.next + count as u64;
        self.next = numbers.end;
        let pages: Box<[u64]> = match self.scattered {
            false => numbers.collect(),
            true => numbers.rev().collect(),
        };
        let range = PageRange {
            offset: 0,
            len: count as u32 * 4096,
            pages,
        };
        let pages = Pages::new(&self.memory, &range).expect("own pages");
        Area { range, pages }
    }
}
