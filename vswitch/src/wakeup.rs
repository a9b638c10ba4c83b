//! How a sleeping worker is woken, and no wake-up lost: by the control side ([`Bell`]), and by what feeds a port
//! ([`Armed`]).
//!
//! Both sides first leave word and then look for the other's: the sleeper says that it will sleep and looks for work,
//! the waker leaves work and looks whether somebody sleeps. So one of them sees the other at least.
//!
//! Flags that both write are exchanged, not stored: so `tests/loom_wakeup.rs` can tell in which order they were written.
//! It happens once in a sleep only.

use super::atomic::{AtomicBool, Ordering, fence};

/// What a sleeper waits for, as an eventfd: once set, it ends every sleep until it is cleared.
pub(crate) trait Event {
    /// Sets it.
    fn set(&self);
    /// Clears it.
    fn clear(&self);
}

/// The control side's bell at a worker.
pub(crate) struct Bell<E> {
    rung: AtomicBool,
    event: E,
}

impl<E: Event> Bell<E> {
    /// One that ends sleeps by `event`.
    pub(crate) fn new(event: E) -> Bell<E> {
        Bell {
            rung: AtomicBool::new(false),
            event,
        }
    }

    /// What ends sleeps.
    pub(crate) fn event(&self) -> &E {
        &self.event
    }

    /// Tells the worker that a command is waiting.
    pub(crate) fn ring(&self) {
        self.rung.swap(true, Ordering::Release);
        self.event.set();
    }

    /// Whether it rang since this was asked last: then the commands are to be seen to.
    #[inline]
    pub(crate) fn answer(&self) -> bool {
        // A look is cheap; taking it would make every turn wait for what it has written.
        self.rung.load(Ordering::Relaxed) && self.rung.swap(false, Ordering::Acquire)
    }

    /// Whether it rings and was not answered: no time to sleep.
    pub(crate) fn rings(&self) -> bool {
        self.rung.load(Ordering::Acquire)
    }

    /// After a sleep, before [`Bell::answer`]: what rang so far ends no further sleep.
    pub(crate) fn hush(&self) {
        self.event.clear();
    }
}

/// Whether the sleeper wants to be woken for what comes in.
#[derive(Default)]
pub(crate) struct Armed(AtomicBool);

impl Armed {
    /// The sleeper wants it, and looks for what came in after this call only.
    pub(crate) fn arm(&self) {
        self.0.swap(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The sleeper is awake.
    pub(crate) fn disarm(&self) {
        self.0.swap(false, Ordering::Relaxed);
    }

    /// After something was left: whether the sleeper is to be woken for it. The one who is told so does it.
    pub(crate) fn fire(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.swap(false, Ordering::Relaxed)
    }
}
