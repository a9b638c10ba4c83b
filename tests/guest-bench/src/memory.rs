//! Physical memory, which is mapped where it is.

use core::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of a page.
pub const PAGE: usize = 4096;

unsafe extern "C" {
    /// The end of the program, by the linker.
    static _end: u8;
}

/// Not yet taken: from here to `END`.
static NEXT: AtomicUsize = AtomicUsize::new(1);
static END: AtomicUsize = AtomicUsize::new(1);

/// Takes the memory behind the program, as far as the zero page of the boot protocol says there is some.
///
/// # Safety
/// It is the zero page, and nothing was taken yet.
pub unsafe fn init(zero_page: *const u8) {
    const COUNT: usize = 0x1e8;
    const ENTRIES: usize = 0x2d0;
    const ENTRY: usize = 20;
    let start = (&raw const _end as usize).next_multiple_of(PAGE);
    // SAFETY: the zero page has a count and so many entries of address, length and type.
    unsafe {
        for index in 0..usize::from(zero_page.add(COUNT).read()) {
            let entry = zero_page.add(ENTRIES + ENTRY * index);
            let address = entry.cast::<u64>().read_unaligned() as usize;
            let end = address + entry.add(8).cast::<u64>().read_unaligned() as usize;
            if (address..end).contains(&start) {
                NEXT.store(start, Ordering::Relaxed);
                END.store(end, Ordering::Relaxed);
            }
        }
    }
}

/// Pages of memory, zeroed, that are nobody else's for ever.
///
/// # Panics
/// There are no more.
pub fn take(pages: usize) -> *mut u8 {
    let at = NEXT.fetch_add(pages * PAGE, Ordering::Relaxed);
    assert!(
        at + pages * PAGE <= END.load(Ordering::Relaxed),
        "out of memory"
    );
    let start = at as *mut u8;
    // SAFETY: memory that is handed out once.
    unsafe { start.write_bytes(0, pages * PAGE) };
    start
}

/// The number of the page at an address.
pub fn page_number(at: *const u8) -> u64 {
    (at as usize / PAGE) as u64
}
