//! The time a machine has run.

use std::time::{Duration, Instant};

/// Counts nanoseconds while it runs.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    before: u64,
    since: Option<Instant>,
}

impl Clock {
    /// Nanoseconds it has run so far.
    pub(crate) fn now(&self) -> u64 {
        let more = self
            .since
            .map_or(0, |since| since.elapsed().as_nanos() as u64);
        self.before.saturating_add(more)
    }

    /// When it will show `time`; `None` while it stands.
    pub(crate) fn until(&self, time: u64) -> Option<Duration> {
        self.since?;
        Some(Duration::from_nanos(time.saturating_sub(self.now())))
    }

    pub(crate) fn start(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    pub(crate) fn stop(&mut self) {
        self.before = self.now();
        self.since = None;
    }

    /// Stands at `now`.
    pub(crate) fn set(&mut self, now: u64) {
        *self = Self {
            before: now,
            since: None,
        };
    }
}
