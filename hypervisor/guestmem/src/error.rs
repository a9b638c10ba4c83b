//! What can go wrong: when mapping ([`MapError`]) and when accessing ([`Fault`]).

use crate::memory::MAX_REGIONS;
use crate::{mapping::MAX_LEN, sigbus::SLOTS};
use std::io;

/// Why an access to guest memory failed. Nothing outside the named piece was touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The piece does not lie inside one region of this memory, or inside the window.
    #[error("outside the region or window of guest memory")]
    Range,
    /// The two sides of a copy differ in length.
    #[error("the two sides of a copy differ in length")]
    Length,
    /// A ring field is not aligned to its size.
    #[error("guest memory field is not aligned to its size")]
    Misaligned,
    /// The file behind the memory was truncated (or ran out of pages): contents are lost, the memory reads as zeros.
    #[error("guest memory was taken away by its owner")]
    Gone,
}

/// Why memory was not mapped. Nothing stays mapped after an error.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// An empty memory table, or one of too many regions.
    #[error("{0} memory regions: 1 to {MAX_REGIONS} are allowed")]
    Count(usize),
    /// A region of no bytes or of too many.
    #[error("length {0:#x} of a memory region: 1 to {MAX_LEN:#x} bytes are allowed")]
    Length(u64),
    /// A range that runs past the end of its address space.
    #[error("{what} {start:#x} plus length {len:#x} is past the end of the address space")]
    Overflow {
        /// Which of the region's addresses.
        what: &'static str,
        /// Its value.
        start: u64,
        /// The region's length in bytes.
        len: u64,
    },
    /// Two regions share guest addresses.
    #[error("memory regions at guest addresses {first:#x} and {second:#x} overlap")]
    Overlap {
        /// Start of the lower region.
        first: u64,
        /// Start of the higher region.
        second: u64,
    },
    /// The file ends before the region does.
    #[error("file of {size:#x} bytes is too short for offset {offset:#x} plus length {len:#x}")]
    Short {
        /// Size of the file in bytes.
        size: u64,
        /// Offset of the region in the file.
        offset: u64,
        /// Length of the region in bytes.
        len: u64,
    },
    /// The descriptor is no memory-backed file.
    #[error(
        "descriptor on file system type {0:#x}: only memfd, tmpfs and hugetlbfs files can be guest memory"
    )]
    Backing(u64),
    /// The log has fewer bits than the memory has pages.
    #[error("dirty log of {size:#x} bytes: guest addresses up to {last:#x} need {needed:#x}")]
    LogSize {
        /// Size of the log in bytes.
        size: u64,
        /// The highest guest address.
        last: u64,
        /// The size needed, in bytes.
        needed: u64,
    },
    /// Every slot of the table of mappings is taken.
    #[error("{SLOTS} mappings exist in this process, and no more are allowed")]
    TableFull,
    /// A system call was refused.
    #[error("{call} failed for offset {offset:#x}, length {len:#x}")]
    System {
        /// The system call.
        call: &'static str,
        /// Offset in the file.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// What the kernel said.
        source: io::Error,
    },
}
