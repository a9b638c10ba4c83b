//! Registers that say where a page is.

/// The page is in force.
pub(super) const ENABLED: u64 = 1;
/// Where the page is.
pub(super) const PAGE_MASK: u64 = !0xfff;
/// Bytes of a page.
pub(super) const PAGE: usize = 4096;
