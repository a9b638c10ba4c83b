//! Memory on 2 MiB pages. Needs root, so it is named like the other tests that do.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::fs;

use guestmem::{Fault, Memory, RegionSpec};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

/// Lets the kernel make huge pages on demand; puts the setting back on drop.
struct Overcommit(String);

impl Overcommit {
    const SETTING: &str = "/proc/sys/vm/nr_overcommit_hugepages";

    fn allow() -> Overcommit {
        let before = fs::read_to_string(Self::SETTING).expect("a kernel with huge pages");
        fs::write(Self::SETTING, "4").expect("root, to allow huge pages");
        Overcommit(before)
    }
}

impl Drop for Overcommit {
    fn drop(&mut self) {
        let _ = fs::write(Self::SETTING, &self.0);
    }
}

#[test]
fn huge_pages_are_mapped_and_survive_truncation() {
    const HUGE: u64 = 2 << 20;
    let _allowed = Overcommit::allow();
    let fd = memfd_create("huge", MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB).unwrap();
    ftruncate(&fd, 2 * HUGE).unwrap();
    let part = |guest_addr, fd_offset, len| {
        let fd = fd.try_clone().unwrap();
        RegionSpec {
            guest_addr,
            user_addr: guest_addr,
            len,
            fd,
            fd_offset,
        }
    };
    // As QEMU announces guest memory: below and above the hole at 640 KiB.
    let memory = Memory::map(vec![
        part(0, 0, 0xa0000),
        part(0xc0000, 0xc0000, 2 * HUGE - 0xc0000),
    ])
    .unwrap();
    let view = Memory::map(vec![part(0, 0, 2 * HUGE)]).unwrap();
    for at in [0, 0x9fff0, 0xc0000, 2 * HUGE - 16] {
        let bytes = at.to_ne_bytes();
        memory.write(memory.span(at, 8).unwrap(), &bytes).unwrap();
        let mut to = [0; 8];
        view.read(view.span(at, 8).unwrap(), &mut to).unwrap();
        assert_eq!(to, bytes);
    }
    drop(view);
    ftruncate(&fd, 0).unwrap();
    assert_eq!(
        memory.read(memory.span(HUGE, 8).unwrap(), &mut [0; 8]),
        Err(Fault::Gone)
    );
    assert_eq!(
        memory.read(memory.span(0, 8).unwrap(), &mut [0; 8]),
        Err(Fault::Gone)
    );
    drop(memory);
}
