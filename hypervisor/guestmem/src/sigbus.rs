//! Surviving SIGBUS on mappings whose file a peer truncates.
//!
//! A process-wide table names every mapping. The handler looks the faulting address up, marks the owner as gone,
//! puts anonymous zero pages in place of the whole mapping, and returns: the interrupted instruction then succeeds.
//! Any other SIGBUS goes to the handler that was there before.
//!
//! # Races
//! * *A slot changes while a handler reads it.* Slots carry a version, odd while they change; a handler passes over a
//!   slot whose version is odd or moved. It never passes over its own: that one was written before its memory could be
//!   accessed, and is cleared after the last access.
//! * *Unmapping against a handler.* A handler acts on a mapping only during an access, which borrows the
//!   [`Memory`](crate::Memory); dropping needs that borrow to be over. The slot is cleared before `munmap`, so an address
//!   that is mapped anew is never found in an old slot.
//! * *Two threads fault at once.* Both replace the mapping. What one has written to the zero pages may be lost, and is
//!   worth nothing.
//! * *A third thread reads the zeros.* The mark is set before the pages are replaced, so who can see
//!   zeros also sees the mark when it looks after its access.
#![allow(unsafe_code, reason = "signal handler and the mappings it replaces")]

use std::ffi::c_int;
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Mappings a process can hold at once. Linux allows 65,530 by default (vm.max_map_count), so this is not the
/// narrower limit. The table is zero pages until used.
pub(crate) const SLOTS: usize = 65_536;

/// `si_code` of a SIGBUS for an address with nothing behind it (bits/siginfo-consts.h).
const BUS_ADRERR: c_int = 2;

struct Slot {
    version: AtomicU64,
    base: AtomicUsize,
    len: AtomicUsize,
    gone: AtomicPtr<AtomicBool>,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        version: AtomicU64::new(0),
        base: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        gone: AtomicPtr::new(ptr::null_mut()),
    }
}; SLOTS];

/// Slots at and above this index were never used.
static USED: AtomicUsize = AtomicUsize::new(0);
/// Indices below [`USED`] that are free again.
static FREE: Mutex<Vec<usize>> = Mutex::new(Vec::new());
/// The disposition before ours; or why ours could not be installed.
static PREVIOUS: OnceLock<Result<libc::sigaction, i32>> = OnceLock::new();

impl Slot {
    /// Callers hold the lock of [`FREE`]: one writer at a time.
    fn set(&self, base: usize, len: usize, gone: *mut AtomicBool) {
        self.version.fetch_add(1, SeqCst);
        self.base.store(base, SeqCst);
        self.len.store(len, SeqCst);
        self.gone.store(gone, SeqCst);
        self.version.fetch_add(1, SeqCst);
    }

    /// The mapping in this slot, if it contains `addr`.
    fn lookup(&self, addr: usize) -> Option<(usize, usize, *mut AtomicBool)> {
        let version = self.version.load(SeqCst);
        let (base, len, gone) = (
            self.base.load(SeqCst),
            self.len.load(SeqCst),
            self.gone.load(SeqCst),
        );
        let stable = version.is_multiple_of(2) && version == self.version.load(SeqCst);
        (stable && addr.wrapping_sub(base) < len).then_some((base, len, gone))
    }
}

/// A mapping's entry in the table, cleared on drop.
#[derive(Debug)]
pub(crate) struct Registration(usize);

impl Registration {
    /// Enters `len` bytes at `base`; `gone` is set when they are replaced. `None`: the table is full.
    ///
    /// # Safety
    /// Until the registration is dropped, `base..base + len` is a whole mapping of the caller's that may be replaced,
    /// and `gone` points to a live flag.
    pub(crate) unsafe fn new(base: usize, len: usize, gone: *const AtomicBool) -> Option<Self> {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let index = free.pop().unwrap_or_else(|| USED.load(SeqCst));
        let slot = TABLE.get(index)?;
        slot.set(base, len, gone.cast_mut());
        USED.fetch_max(index + 1, SeqCst);
        Some(Self(index))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = TABLE.get(self.0) {
            slot.set(0, 0, ptr::null_mut());
            free.push(self.0);
        }
    }
}

/// Installs the handler, once in the life of the process.
pub(crate) fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let errno = || {
        io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EINVAL)
    };
    // The previous action is known before the handler can run.
    let previous = PREVIOUS.get_or_init(|| {
        // SAFETY: all-zero is a valid `sigaction`.
        let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: a null new action only reads the current one into `old`.
        match unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut old) } {
            0 => Ok(old),
            _ => Err(errno()),
        }
    });
    previous
        .as_ref()
        .map_err(|&code| io::Error::from_raw_os_error(code))?;
    let installed = INSTALLED.get_or_init(|| {
        // SAFETY: all-zero is a valid `sigaction`.
        let mut new: libc::sigaction = unsafe { std::mem::zeroed() };
        new.sa_sigaction =
            on_sigbus as extern "C" fn(c_int, *mut libc::siginfo_t, *mut libc::c_void) as usize;
        new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        // SAFETY: the handler has the signature that SA_SIGINFO asks for and calls async-signal-safe functions only.
        match unsafe { libc::sigaction(libc::SIGBUS, &raw const new, ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(errno()),
        }
    });
    installed.map_err(io::Error::from_raw_os_error)
}

extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to a SA_SIGINFO handler.
    let code = unsafe { (*info).si_code };
    // SAFETY: as above; for a SIGBUS of a positive code the address field is the one that is set.
    if code == BUS_ADRERR && replace(unsafe { (*info).si_addr() } as usize) {
        return;
    }
    chain(signal, code, info, context);
}

/// Replaces the mapping that contains `addr`; false if there is none, or the kernel refuses.
fn replace(addr: usize) -> bool {
    let used = USED.load(SeqCst);
    let Some((base, len, gone)) = TABLE.iter().take(used).find_map(|slot| slot.lookup(addr)) else {
        return false;
    };
    // SAFETY: `addr` is being accessed, so its mapping and its flag are alive (see "Races").
    unsafe { (*gone).store(true, SeqCst) };
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: errno of this thread; the interrupted code must find it unchanged.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: the range is exactly one mapping of ours, which `Registration::new` was told may be replaced.
    let mapped = unsafe { libc::mmap(base as *mut libc::c_void, len, prot, flags, -1, 0) };
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
    mapped != libc::MAP_FAILED
}

/// Does what would have been done without us.
fn chain(signal: c_int, code: c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let previous = match PREVIOUS.get() {
        Some(Ok(previous)) => previous,
        _ => return die(signal),
    };
    match previous.sa_sigaction {
        libc::SIG_DFL => die(signal),
        // A fault cannot be ignored (it would come again at once), a signal sent by somebody can.
        libc::SIG_IGN if code > 0 => die(signal),
        libc::SIG_IGN => {}
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: the kernel held this address as a SA_SIGINFO handler.
            let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: the kernel held this address as a plain handler.
            let handler: extern "C" fn(c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}

/// Ends the process by `signal`, which stays blocked until the handler returns.
fn die(signal: c_int) {
    // SAFETY: all-zero is the default action with an empty mask; both calls are async-signal-safe.
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, &raw const default, ptr::null_mut());
        libc::raise(signal);
    }
}
