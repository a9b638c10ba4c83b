//! A guest's memory: one sealed memfd, and where its bytes appear in the guest.
//!
//! ```text
//! guest address          memfd offset      what
//! 0x0000_0000            the same          memory, up to 640 KiB
//! 0x000a_0000            the same          not mapped (video memory and adapters' ROMs of a PC)
//! 0x000c_0000            the same          memory, over which the chipset can put the firmware's ROM
//! 0x0010_0000            the same          memory, up to the PCI hole at 3 GiB
//! 0xc000_0000                              PCI hole, local and I/O APICs, firmware below 4 GiB
//! 0x1_0000_0000          0xc000_0000       the rest of the memory
//! ```

use std::os::fd::OwnedFd;
use std::sync::Arc;

use guestmem::{Memory, RegionSpec};
use rustix::fs::{MemfdFlags, SealFlags, SeekFrom, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;

use crate::Error;

/// First address of the PCI hole; memory beyond it is found from 4 GiB on.
pub const PCI_HOLE: u64 = 0xc000_0000;
/// End of the PCI hole.
pub const HIGH_MEMORY: u64 = 1 << 32;
/// End of the memory that every PC has.
pub const LOW_MEMORY_END: u64 = 0xa_0000;
/// Where memory goes on after the hole for video memory and adapters' ROMs.
pub const SHADOW_START: u64 = 0xc_0000;
/// Where memory goes on undisturbed.
pub const EXTENDED: u64 = 0x10_0000;

/// A guest has at least this much memory.
pub const MIN_MEMORY: u64 = 4 << 20;
/// And at most this much.
pub const MAX_MEMORY: u64 = 1 << 40;
/// The size of a guest's memory is a multiple of this.
pub const MEMORY_UNIT: u64 = 2 << 20;

/// A range of guest memory, and where its bytes are in the memfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Range {
    /// Guest physical address.
    pub guest_addr: u64,
    /// Length in bytes.
    pub len: u64,
    /// Offset in the memfd.
    pub fd_offset: u64,
}

/// The ranges of a guest with `size` bytes of memory, by address.
pub fn layout(size: u64) -> Vec<Range> {
    let low = size.min(PCI_HOLE);
    let range = |guest_addr, end: u64, fd_offset| Range {
        guest_addr,
        len: end - guest_addr,
        fd_offset,
    };
    let mut ranges = vec![
        range(0, LOW_MEMORY_END, 0),
        range(SHADOW_START, low, SHADOW_START),
    ];
    if size > low {
        ranges.push(range(HIGH_MEMORY, HIGH_MEMORY + (size - low), low));
    }
    ranges
}

/// Guest memory in a memfd that can neither shrink nor grow.
#[derive(Debug)]
pub struct GuestMemory {
    memory: Arc<Memory>,
    fd: OwnedFd,
    size: u64,
    ranges: Vec<Range>,
    huge: bool,
}

impl GuestMemory {
    /// `size` bytes of zeros: on 2 MiB pages if the host keeps enough of them, else on pages that the kernel may join.
    ///
    /// # Errors
    /// A size that is no multiple of 2 MiB or not from 4 MiB to 1 TiB; what the kernel refuses.
    pub fn new(size: u64) -> Result<Self, Error> {
        if !(MIN_MEMORY..=MAX_MEMORY).contains(&size) || !size.is_multiple_of(MEMORY_UNIT) {
            return Err(Error::Config {
                what: "memory size",
                value: size.to_string(),
                allowed: "a multiple of 2 MiB from 4 MiB to 1 TiB",
            });
        }
        // The pages are reserved when they are mapped, so that a failure is known now.
        let huge = MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        Self::map(size, huge).or_else(|_| Self::map(size, MemfdFlags::empty()))
    }

    fn map(size: u64, pages: MemfdFlags) -> Result<Self, Error> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | pages;
        let fd = memfd_create("guest", flags).map_err(Error::system("memfd_create"))?;
        ftruncate(&fd, size).map_err(Error::system("ftruncate"))?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&fd, seals).map_err(Error::system("F_ADD_SEALS"))?;
        let ranges = layout(size);
        let specs = ranges.iter().map(|range| {
            Ok(RegionSpec {
                guest_addr: range.guest_addr,
                user_addr: range.guest_addr,
                len: range.len,
                fd: duplicate(&fd)?,
                fd_offset: range.fd_offset,
            })
        });
        let specs = specs.collect::<Result<_, Error>>()?;
        Ok(Self {
            memory: Arc::new(Memory::map(specs)?),
            fd,
            size,
            ranges,
            huge: !pages.is_empty(),
        })
    }

    /// For access from this process.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The ranges, by address: what another process needs to map the memfd.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// The sealed memfd.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// True if it lies on 2 MiB pages of the host's own.
    pub fn on_huge_pages(&self) -> bool {
        self.huge
    }

    /// Writes `bytes` at `guest_addr`.
    ///
    /// # Errors
    /// [`Error::Memory`] unless all of it is memory; `what` names it there.
    pub fn write(&self, what: &'static str, guest_addr: u64, bytes: &[u8]) -> Result<(), Error> {
        let fault = |source| Error::Memory { what, source };
        let len = u32::try_from(bytes.len()).map_err(|_| fault(guestmem::Fault::Range))?;
        let span = self.memory.span(guest_addr, len);
        let span = span.ok_or(fault(guestmem::Fault::Range))?;
        self.memory.write(span, bytes).map_err(fault)
    }

    /// Reads what is at `guest_addr`.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn read(&self, what: &'static str, guest_addr: u64, to: &mut [u8]) -> Result<(), Error> {
        let fault = |source| Error::Memory { what, source };
        let len = u32::try_from(to.len()).map_err(|_| fault(guestmem::Fault::Range))?;
        let span = self.memory.span(guest_addr, len);
        let span = span.ok_or(fault(guestmem::Fault::Range))?;
        self.memory.read(span, to).map_err(fault)
    }

    /// The offset in the memfd, at or after `at`, of the next page that was ever used; `None` if there is none. Where the
    /// kernel keeps no account (2 MiB pages), every page counts.
    pub(crate) fn next_data(&self, at: u64) -> Result<Option<u64>, Error> {
        if at >= self.size {
            return Ok(None);
        }
        if self.huge {
            return Ok(Some(at));
        }
        match rustix::fs::seek(&self.fd, SeekFrom::Data(at)) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NXIO) => Ok(None),
            Err(error) => Err(Error::system("lseek")(error)),
        }
    }

    /// Reads at an offset in the memfd, by the kernel: pages that were never used stay so.
    pub(crate) fn read_file(&self, offset: u64, to: &mut [u8]) -> Result<(), Error> {
        let mut done = 0;
        while let Some(rest) = to.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match rustix::io::pread(&self.fd, rest, offset + done as u64) {
                Ok(0) => return Err(Error::system("pread")(Errno::NXIO)),
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(Error::system("pread")(error)),
            }
        }
        Ok(())
    }

    /// Writes whole pages at an offset in the memfd. What the guest cannot see, between 640 and 768 KiB, is left out.
    pub(crate) fn write_file(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        for (index, page) in bytes.chunks(4096).enumerate() {
            let at = offset + index as u64 * 4096;
            let range = self.ranges.iter().find(|range| {
                at.checked_sub(range.fd_offset)
                    .is_some_and(|inside| inside < range.len)
            });
            if let Some(range) = range {
                self.write("a page", range.guest_addr + (at - range.fd_offset), page)?;
            }
        }
        Ok(())
    }

    /// Makes all of it zeros, and gives the pages back to the host.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn clear(&self) -> Result<(), Error> {
        use rustix::fs::{FallocateFlags, fallocate};
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        loop {
            match fallocate(&self.fd, flags, 0, self.size) {
                Err(Errno::INTR) => {}
                result => return result.map_err(Error::system("fallocate")),
            }
        }
    }
}

/// A read-only image (firmware), mapped so that it ends at 4 GiB.
///
/// # Errors
/// An image that is empty, larger than 16 MiB, or no multiple of 64 KiB.
pub fn image(bytes: &[u8]) -> Result<Arc<Memory>, Error> {
    const UNIT: usize = 64 << 10;
    if bytes.is_empty() || bytes.len() > 16 << 20 || !bytes.len().is_multiple_of(UNIT) {
        return Err(Error::Image {
            what: "firmware",
            why: format!(
                "it has {} bytes; a multiple of 64 KiB up to 16 MiB is allowed",
                bytes.len()
            ),
        });
    }
    let len = bytes.len() as u64;
    let fd = memfd_create("firmware", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(Error::system("memfd_create"))?;
    ftruncate(&fd, len).map_err(Error::system("ftruncate"))?;
    let guest_addr = HIGH_MEMORY - len;
    let memory = Memory::map(vec![RegionSpec {
        guest_addr,
        user_addr: guest_addr,
        len,
        fd,
        fd_offset: 0,
    }])?;
    let fault = |source| Error::Memory {
        what: "firmware",
        source,
    };
    let span = memory.span(guest_addr, len as u32);
    let span = span.ok_or(fault(guestmem::Fault::Range))?;
    memory.write(span, bytes).map_err(fault)?;
    Ok(Arc::new(memory))
}

fn duplicate(fd: &OwnedFd) -> Result<OwnedFd, Error> {
    fd.try_clone().map_err(Error::system("F_DUPFD_CLOEXEC"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn memory_beyond_3_gib_is_found_above_4_gib() {
        let ranges = layout(5 << 30);
        assert_eq!(
            ranges,
            [
                Range {
                    guest_addr: 0,
                    len: 0xa_0000,
                    fd_offset: 0
                },
                Range {
                    guest_addr: 0xc_0000,
                    len: PCI_HOLE - 0xc_0000,
                    fd_offset: 0xc_0000
                },
                Range {
                    guest_addr: 1 << 32,
                    len: 2 << 30,
                    fd_offset: PCI_HOLE
                },
            ]
        );
        assert_eq!(layout(3 << 30).len(), 2);
    }

    #[test]
    fn the_memfd_is_sealed() {
        let memory = GuestMemory::new(4 << 20).unwrap();
        let file = File::from(memory.fd().try_clone().unwrap());
        assert!(file.set_len(1 << 20).is_err());
        assert!(file.set_len(8 << 20).is_err());
    }

    #[test]
    fn memory_is_written_read_and_cleared() {
        let memory = GuestMemory::new(4 << 20).unwrap();
        memory.write("test", 0x10_0000, b"hello").unwrap();
        let mut read = [0; 5];
        memory.read("test", 0x10_0000, &mut read).unwrap();
        assert_eq!(&read, b"hello");
        assert!(memory.write("test", 0x9_ffff, b"hello").is_err());
        assert!(memory.write("test", (4 << 20) - 1, b"hello").is_err());
        memory.clear().unwrap();
        memory.read("test", 0x10_0000, &mut read).unwrap();
        assert_eq!(read, [0; 5]);
    }

    #[test]
    fn sizes_that_are_not_allowed_are_named() {
        for size in [0, 2 << 20, (4 << 20) + 4096, 2 << 40] {
            let error = GuestMemory::new(size).unwrap_err().to_string();
            assert!(error.contains(&size.to_string()), "{error}");
        }
        assert!(image(&[]).is_err());
        assert!(image(&[0; 1000]).is_err());
    }
}
