//! Telling a guest that there is something in a channel's ring.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use guestmem::Window;
use vswitch::ports::vhost::notify;

/// A bit that the guest finds set when it is interrupted, and clears itself.
#[derive(Clone, Debug)]
pub struct EventFlag {
    /// Memory of the flags.
    pub flags: Window,
    /// Number of the bit, from the start of it.
    pub bit: u32,
}

/// How a channel's guest is told.
#[derive(Clone, Debug, Default)]
pub struct Signal {
    /// What is set first: in the event flags of its interrupt; for old versions of the bus in its interrupt page too.
    pub flags: Vec<EventFlag>,
    /// What raises the interrupt. Without it, the guest polls.
    pub interrupt: Option<Arc<OwnedFd>>,
}

impl Signal {
    /// Sets the flags and raises the interrupt. True if there was somebody to tell. Flags that the guest took away are
    /// its own loss.
    pub(super) fn raise(&self) -> bool {
        for flag in &self.flags {
            let word = (flag.bit / 32) as usize * 4;
            let _ = flag.flags.fetch_or_u32(word, 1 << (flag.bit % 32));
        }
        self.interrupt.as_deref().map(notify::signal).is_some()
    }
}
