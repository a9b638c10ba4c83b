//! More buckets for a table that fills up, while workers read it.

use std::sync::atomic::Ordering;

use super::{Fdb, Key, Place, Value, clear, read};

impl Fdb {
    /// Takes the buckets of `mask` into use. The caller holds the writer lock.
    pub(super) fn grow(&self, mask: u64) {
        // First the copies, so that a worker finds an entry whether it knows of the new buckets yet or not.
        self.for_each_place(|place| {
            let Some((key, value)) = read(place) else {
                return;
            };
            let buckets = self.candidates_within(key, mask);
            if !self.is_within(place, buckets)
                && let Some(free) = self.free_within(buckets)
            {
                self.write_to(free, key, value, buckets);
            }
        });
        self.active_mask.store(mask, Ordering::Release);
        // A worker that has looked at the mask before and looks at the place after this takes its frame for an unknown
        // one, and floods it.
        self.for_each_outside(|place, key, _| {
            if self.find(key).is_some() {
                clear(place);
            }
        });
        // What found no free place at first: now others have made room, or can.
        self.for_each_outside(|place, key, value| {
            let free = self.free_within(self.candidates(key));
            match free.or_else(|| self.displace(key)) {
                Some(free) => {
                    self.write(free, key, value);
                    clear(place);
                }
                None => {
                    self.vacate(place);
                }
            }
        });
    }

    /// Calls `each` for every entry that is not in one of its buckets.
    fn for_each_outside(&self, each: impl Fn(Place<'_>, Key, Value)) {
        self.for_each_place(|place| {
            if let Some((key, value)) = read(place)
                && !self.is_within(place, self.candidates(key))
            {
                each(place, key, value);
            }
        });
    }

    /// Whether `place` is in one of the buckets that begin at these words.
    pub(super) fn is_within(&self, place: Place<'_>, buckets: [usize; 2]) -> bool {
        buckets.iter().any(|first| {
            self.bucket(*first)
                .any(|other| std::ptr::eq(other.0, place.0))
        })
    }

    fn free_within(&self, buckets: [usize; 2]) -> Option<Place<'_>> {
        buckets
            .iter()
            .find_map(|first| self.bucket(*first).find(|place| read(*place).is_none()))
    }
}
