//! The general-purpose timer (CSR11).

use serde::{Deserialize, Serialize};

use super::Timer;
use crate::csr::{TIMER_CONTINUOUS, mode};

/// The timer; times are nanoseconds since the machine started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GeneralTimer {
    /// As last written: the count, and whether it starts anew.
    value: u32,
    /// Length of one count.
    unit: u64,
    /// When it runs out.
    deadline: Option<u64>,
}

/// Bits of CSR11 that mean something.
const VALUE: u32 = 0xffff;

impl GeneralTimer {
    /// Starts it from a write to CSR11, or stops it with a count of zero. The count goes by the clock of the port that
    /// CSR6 selects: 100 Mb/s, 10 Mb/s, or the serial one.
    pub(super) fn start(&mut self, value: u32, csr6: u32, now: u64) -> Timer {
        self.value = value & (VALUE | TIMER_CONTINUOUS);
        self.unit = match (csr6 & mode::PS != 0, csr6 & mode::TTM != 0) {
            (true, false) => 81_920,
            (true, true) => 819_200,
            (false, _) => 204_800,
        };
        let period = self.period();
        self.deadline = (period > 0).then(|| now.saturating_add(period));
        self.ask(now)
    }

    fn period(&self) -> u64 {
        u64::from(self.value & VALUE) * self.unit
    }

    /// What must be asked for so that it runs out in time.
    pub(super) fn ask(&self, now: u64) -> Timer {
        match self.deadline {
            Some(deadline) => Timer::Start {
                after: deadline.saturating_sub(now),
            },
            None => Timer::Stop,
        }
    }

    /// Whether it has run out at `now`. A continuous one then starts anew.
    pub(super) fn expire(&mut self, now: u64) -> bool {
        let Some(deadline) = self.deadline.filter(|&deadline| deadline <= now) else {
            return false;
        };
        self.deadline = (self.value & TIMER_CONTINUOUS != 0).then(|| {
            // One that runs late does not catch up.
            let next = deadline.saturating_add(self.period());
            if next > now {
                next
            } else {
                now.saturating_add(self.period())
            }
        });
        true
    }

    /// CSR11 as it reads: the count that is left.
    pub(super) fn read(&self, now: u64) -> u32 {
        let left = match self.deadline {
            Some(deadline) => deadline.saturating_sub(now).div_ceil(self.unit.max(1)),
            None => 0,
        };
        self.value & TIMER_CONTINUOUS | (left as u32).min(VALUE)
    }

    /// The timer as it is saved: its deadline counted from `now`.
    pub(super) fn relative(self, now: u64) -> GeneralTimer {
        GeneralTimer {
            deadline: self.deadline.map(|at| at.saturating_sub(now)),
            ..self
        }
    }

    /// The timer of [`GeneralTimer::relative`], from `now` on.
    pub(super) fn absolute(self, now: u64) -> GeneralTimer {
        GeneralTimer {
            deadline: self.deadline.map(|left| left.saturating_add(now)),
            ..self
        }
    }

    /// Whether a saved timer is one that can be.
    pub(super) fn is_sound(&self) -> bool {
        let longest = u64::from(VALUE) * 819_200;
        self.value & !(VALUE | TIMER_CONTINUOUS) == 0
            && [0, 81_920, 204_800, 819_200].contains(&self.unit)
            && self
                .deadline
                .is_none_or(|left| left <= longest && self.period() > 0)
    }
}
