//! Memory that its owner takes away is an error of that memory, and of nothing else.
#![allow(
    unsafe_code,
    reason = "foreign mappings and handlers, to be left alone"
)]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use guestmem::{DirtyLog, Fault, MapError, Memory, RegionSpec, Span};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const LEN: u64 = 0x10000;

fn file() -> OwnedFd {
    let fd = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, LEN).unwrap();
    fd
}

fn region(fd: &OwnedFd, guest_addr: u64) -> RegionSpec {
    RegionSpec {
        guest_addr,
        user_addr: guest_addr,
        len: LEN,
        fd: fd.try_clone().unwrap(),
        fd_offset: 0,
    }
}

/// A memory of one region, and the file its owner can truncate.
fn memory() -> (Arc<Memory>, OwnedFd) {
    let fd = file();
    (Arc::new(Memory::map(vec![region(&fd, 0)]).unwrap()), fd)
}

/// A memory whose contents were taken away, unnoticed so far.
fn truncated() -> Arc<Memory> {
    let (memory, fd) = memory();
    memory.write(memory.span(0, 4).unwrap(), b"gone").unwrap();
    ftruncate(&fd, 0).unwrap();
    assert!(!memory.is_faulted());
    memory
}

/// Ends the other thread of a test, also when the test fails.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn every_access_to_truncated_memory_is_an_error() {
    let good = Memory::anonymous(LEN as usize).unwrap();
    let here = good.span(0, 1000).unwrap();
    good.write(here, &[7; 1000]).unwrap();
    type Access<'a> = &'a dyn Fn(&Arc<Memory>, Span) -> Result<(), Fault>;
    let order = Ordering::SeqCst;
    let accesses: [Access<'_>; 15] = [
        &|bad, at| bad.read(at, &mut [0; 1000]),
        &|bad, at| bad.write(at, &[1; 1000]),
        &|bad, at| bad.copy(at, &good, here),
        &|bad, at| good.copy(here, bad, at),
        &|bad, at| bad.copy_sum(at, &good, here).map(drop),
        &|bad, at| good.copy_sum(here, bad, at).map(drop),
        &|bad, at| bad.sum(at).map(drop),
        &|bad, _| bad.window(0, 64).unwrap().load_u16(0, order).map(drop),
        &|bad, _| bad.window(0, 64).unwrap().load_u32(0, order).map(drop),
        &|bad, _| bad.window(0, 64).unwrap().load_u64(0, order).map(drop),
        &|bad, _| bad.window(0, 64).unwrap().store_u16(0, 1, order),
        &|bad, _| bad.window(0, 64).unwrap().store_u32(0, 1, order),
        &|bad, _| bad.window(0, 64).unwrap().store_u64(0, 1, order),
        &|bad, _| bad.window(0, 64).unwrap().read(1, &mut [0; 40]),
        &|bad, _| bad.window(0, 64).unwrap().write(1, &[1; 40]),
    ];
    for (index, access) in accesses.iter().enumerate() {
        let bad = truncated();
        let at = bad.span(100, 1000).unwrap();
        bad.prefetch(at);
        bad.prefetch_write(at);
        assert!(!bad.is_faulted(), "a prefetch must not fault");
        assert_eq!(access(&bad, at), Err(Fault::Gone), "access {index}");
        assert!(bad.is_faulted());
        // Again, now that zero pages are there.
        assert_eq!(access(&bad, at), Err(Fault::Gone), "access {index}");
    }
    let mut to = [0; 4];
    let bad = truncated();
    assert_eq!(bad.read(bad.span(0, 4).unwrap(), &mut to), Err(Fault::Gone));
    assert_eq!(to, [0; 4]);
    good.write(here, &[7; 1000]).unwrap();
    assert!(!good.is_faulted());
}

#[test]
fn truncation_in_part_shows_when_the_lost_part_is_used() {
    let (first, second) = (file(), file());
    let memory = Memory::map(vec![region(&first, 0), region(&second, LEN)]).unwrap();
    ftruncate(&second, 0x1000).unwrap();
    let kept = memory.span(LEN + 0xff8, 8).unwrap();
    memory.write(kept, &[1; 8]).unwrap();
    memory.read(kept, &mut [0; 8]).unwrap();
    assert!(!memory.is_faulted());
    assert_eq!(
        memory.read(memory.span(LEN + 0x1000, 1).unwrap(), &mut [0]),
        Err(Fault::Gone)
    );
    // The owner faults its port: no region of this memory is good any more.
    assert_eq!(
        memory.read(memory.span(0, 1).unwrap(), &mut [0]),
        Err(Fault::Gone)
    );
}

#[test]
fn truncation_under_copying_threads() {
    for _ in 0..50 {
        let (bad, fd) = memory();
        let good = Memory::anonymous(LEN as usize).unwrap();
        let whole = good.span(0, LEN as u32).unwrap();
        let window = bad.window(0, LEN as usize).unwrap();
        let running = AtomicBool::new(false);
        let last = std::thread::scope(|scope| {
            let until_fault = |access: &dyn Fn() -> Result<(), Fault>| loop {
                if let Err(fault) = access() {
                    break fault;
                }
                running.store(true, Ordering::Release);
            };
            let (bad, good, window) = (&bad, &good, &window);
            let threads = [
                scope.spawn(move || until_fault(&|| bad.copy(whole, good, whole))),
                scope.spawn(move || until_fault(&|| good.copy_sum(whole, bad, whole).map(drop))),
                scope.spawn(move || {
                    until_fault(&|| window.store_u16(LEN as usize - 2, 1, Ordering::Release))
                }),
            ];
            while !running.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            ftruncate(&fd, 0).unwrap();
            threads.map(|thread| thread.join().unwrap())
        });
        assert_eq!(last, [Fault::Gone; 3]);
        assert!(!good.is_faulted());
    }
}

/// Slots of the table are taken and given back while another thread's handler searches it.
#[test]
fn truncation_under_mapping_and_unmapping() {
    let steady = Memory::anonymous(LEN as usize).unwrap();
    let all = steady.span(0, LEN as u32).unwrap();
    let pattern = vec![0x5a; LEN as usize];
    steady.write(all, &pattern).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _end = SetOnDrop(&done);
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let (kept, _fd) = memory();
                let at = kept.span(0x8000, 8).unwrap();
                kept.write(at, &[9; 8]).unwrap();
                let mut to = [0; 8];
                kept.read(at, &mut to).unwrap();
                assert_eq!(to, [9; 8]);
            }
        });
        for _ in 0..500 {
            let bad = truncated();
            assert_eq!(bad.sum(bad.span(0, 8).unwrap()), Err(Fault::Gone));
        }
    });
    let mut to = vec![0; LEN as usize];
    steady.read(all, &mut to).unwrap();
    assert_eq!(to, pattern);
}

#[test]
fn a_truncated_dirty_log_faults_the_memory() {
    let (memory, _fd) = memory();
    let fd = file();
    let log = Arc::new(DirtyLog::map(fd.try_clone().unwrap(), 0, 4096).unwrap());
    memory.set_dirty_log(Some(Arc::clone(&log))).unwrap();
    ftruncate(&fd, 0).unwrap();
    memory.write(memory.span(0, 1).unwrap(), &[1]).unwrap();
    assert!(log.is_faulted());
    assert!(memory.is_faulted());
    memory.set_dirty_log(None).unwrap();
    assert!(!memory.is_faulted());
}

const CHILD: &str = "GUESTMEM_TEST_CHILD";

/// Runs `test` of this program again in a process of its own, where [`in_child`] is true.
fn run_child(test: &str) -> ExitStatus {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, test)
        .status()
        .unwrap()
}

fn in_child(test: &str) -> bool {
    std::env::var_os(CHILD).is_some_and(|name| name == test)
}

/// Reads a truncated mapping that is not guest memory.
fn foreign_fault() {
    let (_, survives) = (truncated(), memory());
    let fd = file();
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            LEN as usize,
            libc::PROT_READ,
            libc::MAP_SHARED,
            fd.as_raw_fd(),
            0,
        )
    };
    assert_ne!(start, libc::MAP_FAILED);
    ftruncate(&fd, 0).unwrap();
    // SAFETY: mapped memory of ours; the SIGBUS is what this is for.
    unsafe { start.cast::<u8>().read_volatile() };
    drop(survives);
}

fn set_handler(handler: usize, flags: i32) {
    // SAFETY: all-zero is a valid `sigaction`; `handler` fits the flags.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        assert_eq!(
            libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()),
            0
        );
    }
}

#[test]
fn a_foreign_fault_kills() {
    let name = "a_foreign_fault_kills";
    if in_child(name) {
        // Under the handler that the Rust runtime installs.
        foreign_fault();
    }
    assert_eq!(run_child(name).signal(), Some(libc::SIGBUS));
}

#[test]
fn a_foreign_fault_kills_by_the_default_action() {
    let name = "a_foreign_fault_kills_by_the_default_action";
    if in_child(name) {
        set_handler(libc::SIG_DFL, 0);
        foreign_fault();
    }
    assert_eq!(run_child(name).signal(), Some(libc::SIGBUS));
}

#[test]
fn an_ignored_foreign_fault_kills_and_an_ignored_signal_does_not() {
    let name = "an_ignored_foreign_fault_kills_and_an_ignored_signal_does_not";
    if in_child(name) {
        set_handler(libc::SIG_IGN, 0);
        let bad = truncated();
        // SAFETY: sends a signal to this thread.
        unsafe { libc::raise(libc::SIGBUS) };
        assert_eq!(bad.sum(bad.span(0, 8).unwrap()), Err(Fault::Gone));
        foreign_fault();
    }
    assert_eq!(run_child(name).signal(), Some(libc::SIGBUS));
}

extern "C" fn exit_42(_: i32) {
    // SAFETY: ends the process.
    unsafe { libc::_exit(42) }
}

extern "C" fn exit_by_info(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel's siginfo; ends the process.
    unsafe { libc::_exit(if (*info).si_addr().is_null() { 1 } else { 43 }) }
}

#[test]
fn a_foreign_fault_goes_to_the_handler_before_ours() {
    let name = "a_foreign_fault_goes_to_the_handler_before_ours";
    if in_child(name) {
        set_handler(exit_42 as extern "C" fn(i32) as usize, 0);
        foreign_fault();
    }
    assert_eq!(run_child(name).code(), Some(42));
}

#[test]
fn a_foreign_fault_goes_to_the_informed_handler_before_ours() {
    let name = "a_foreign_fault_goes_to_the_informed_handler_before_ours";
    if in_child(name) {
        type Informed = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);
        set_handler(exit_by_info as Informed as usize, libc::SA_SIGINFO);
        foreign_fault();
    }
    assert_eq!(run_child(name).code(), Some(43));
}

#[test]
fn a_file_sealed_against_writing_is_refused() {
    let fd = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, LEN).unwrap();
    rustix::fs::fcntl_add_seals(&fd, rustix::fs::SealFlags::WRITE).unwrap();
    let error = Memory::map(vec![region(&fd, 0)]).unwrap_err();
    assert!(
        matches!(error, MapError::System { call: "mmap", .. }),
        "{error}"
    );
    assert_eq!(
        error.to_string(),
        "mmap failed for offset 0x0, length 0x10000"
    );
}
