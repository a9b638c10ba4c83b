//! A place for an entry that is new, and whose entry has to go for it.

use std::sync::atomic::Ordering;

use super::{Fdb, Key, Learned, Moves, Place, PortIndex, Value, clear, read};

/// Entries that are moved in a row to make place for one, at most. With two, a bucket that is found again on the way is
/// full as it was, so no entry moves twice.
const MOVES: u32 = 2;

/// What is in a place that a newcomer might take.
enum Occupant {
    /// Nothing.
    Empty,
    /// An entry that is not found any more.
    Stale,
    /// A learned entry that is.
    Live(Value),
}

impl Fdb {
    /// Enters `key` behind `port`, as learned at `now`. The caller holds the writer lock.
    pub(super) fn insert(&self, key: Key, port: PortIndex, now: u32, moves: &mut Moves) -> Learned {
        let Some(state) = self.ports.get(usize::from(port)) else {
            return Learned::Full;
        };
        let held = state.count.load(Ordering::Relaxed);
        let at_quota = held >= state.quota();
        let mut learned = Learned::Added;
        let place = match self.find(key) {
            Some((_, value)) if self.is_live(value, now) && value.is_static() => {
                return Learned::Pinned;
            }
            Some((_, value)) if self.is_live(value, now) && at_quota && value.port() != port => {
                return Learned::Full;
            }
            Some((place, value)) => {
                if self.is_live(value, now) && value.port() != port {
                    moves.note(key, [value.port(), port]);
                    learned = Learned::Moved;
                }
                Some(place)
            }
            None if at_quota => self.choose(key, now, |occupant| match occupant {
                Occupant::Live(value) if value.port() == port => Some(value.age(now)),
                _ => None,
            }),
            None => self.place_for_newcomer(key, now, held),
        };
        let Some(place) = place else {
            return Learned::Full;
        };
        self.vacate(place);
        self.used.fetch_add(1, Ordering::Relaxed);
        state.count.fetch_add(1, Ordering::Relaxed);
        self.write(place, key, Value::new(port, self.epoch(port), false, now));
        learned
    }

    /// A place for `key`, whose port holds `held` entries.
    pub(super) fn place_for_newcomer(&self, key: Key, now: u32, held: u32) -> Option<Place<'_>> {
        let place = self.choose(key, now, |occupant| match occupant {
            Occupant::Live(_) => None,
            occupant => self.rank_for_newcomer(occupant, held),
        });
        place
            .or_else(|| {
                (self.used.load(Ordering::Relaxed) < self.capacity).then(|| self.displace(key))?
            })
            .or_else(|| self.choose(key, now, |occupant| self.rank_for_newcomer(occupant, held)))
    }

    /// Empties a place of `key` by moving other entries to the other of their buckets.
    pub(super) fn displace(&self, key: Key) -> Option<Place<'_>> {
        let buckets = self.candidates(key);
        buckets
            .into_iter()
            .find_map(|first| self.make_room(first, MOVES))
    }

    /// An empty place in the bucket that begins at word `first`, if `moves` entries in a row have to make place for it at
    /// most. A copy is written before an entry goes, so that readers find one or the other.
    fn make_room(&self, first: usize, moves: u32) -> Option<Place<'_>> {
        if let Some(free) = self.bucket(first).find(|place| read(*place).is_none()) {
            return Some(free);
        }
        let moves = moves.checked_sub(1)?;
        for place in self.bucket(first) {
            let Some((occupant, value)) = read(place) else {
                continue;
            };
            for other in self.candidates(occupant) {
                if other != first
                    && let Some(free) = self.make_room(other, moves)
                {
                    self.write(free, occupant, value);
                    clear(place);
                    return Some(place);
                }
            }
        }
        None
    }

    /// How willingly a place is given to a newcomer whose port holds `held` entries: empty and stale ones first, then
    /// those of the port that holds most.
    fn rank_for_newcomer(&self, occupant: Occupant, held: u32) -> Option<u32> {
        match occupant {
            // What is stale to one worker may not be to another, whose clock lags.
            Occupant::Stale => Some(u32::MAX / 2),
            Occupant::Empty => {
                (self.used.load(Ordering::Relaxed) < self.capacity).then_some(u32::MAX)
            }
            Occupant::Live(value) => {
                let holds = self
                    .ports
                    .get(usize::from(value.port()))?
                    .count
                    .load(Ordering::Relaxed);
                (holds > held).then_some(holds.min(u32::MAX / 4))
            }
        }
    }

    /// The place among `key`'s candidates that `rank` values most, of equals the first; `None` is not to be had.
    fn choose(
        &self,
        key: Key,
        now: u32,
        rank: impl Fn(Occupant) -> Option<u32>,
    ) -> Option<Place<'_>> {
        let mut best = None;
        for first in self.candidates(key) {
            for place in self.bucket(first) {
                let occupant = match read(place) {
                    None => Occupant::Empty,
                    Some((_, value)) if !self.is_live(value, now) => Occupant::Stale,
                    Some((_, value)) if value.is_static() => continue,
                    Some((_, value)) => Occupant::Live(value),
                };
                if let Some(rank) = rank(occupant)
                    && best.is_none_or(|(_, least)| rank > least)
                {
                    best = Some((place, rank));
                }
            }
        }
        best.map(|(place, _)| place)
    }
}
