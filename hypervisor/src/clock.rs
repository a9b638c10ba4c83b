//! The time a machine has run, and the time its guest reads.

use std::time::{Duration, Instant};

/// Counts nanoseconds while it runs.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    before: u64,
    since: Option<Instant>,
    /// The guest's reference time at `since`, in units of 100 ns.
    reference: u64,
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

    /// The guest's reference time, in units of 100 ns.
    pub(crate) fn reference(&self) -> u64 {
        let more = self
            .since
            .map_or(0, |since| since.elapsed().as_nanos() / 100);
        self.reference.saturating_add(more as u64)
    }

    /// Starts, when the guest's reference time is `reference`.
    pub(crate) fn start(&mut self, reference: u64) {
        if self.since.is_none() {
            self.since = Some(Instant::now());
            self.reference = reference;
        }
    }

    pub(crate) fn stop(&mut self) {
        self.before = self.now();
        self.reference = self.reference();
        self.since = None;
    }

    /// Stands at `now`.
    pub(crate) fn set(&mut self, now: u64) {
        *self = Self {
            before: now,
            since: None,
            reference: 0,
        };
    }
}
