//! Entries of the table as words: read by many without a lock while one, who holds the writer's lock, changes them.
//!
//! A writer clears the value before it changes the key, and sets the key before the value. So whoever reads the key before
//! and after the value, and finds the same one, has its own value, unless the entry went and came back in between.

use super::atomic::{AtomicU64, Ordering};

/// Entries a bucket (one cache line) holds.
pub(super) const WAYS: usize = 4;
/// Words of a bucket: key and value of each entry.
pub(super) const BUCKET_WORDS: usize = 2 * WAYS;

/// Key and value of an entry; an empty one has no value.
pub(super) type Place<'a> = (&'a AtomicU64, &'a AtomicU64);

/// Fills an empty `place`.
pub(super) fn fill(place: Place<'_>, key: u64, value: u64) {
    place.0.store(key, Ordering::Release);
    place.1.store(value, Ordering::Release);
}

/// Empties `place`.
pub(super) fn clear(place: Place<'_>) {
    place.1.store(0, Ordering::Release);
    place.0.store(0, Ordering::Release);
}

/// The entry in `place`.
pub(super) fn read((key, value): Place<'_>) -> Option<(u64, u64)> {
    let before = key.load(Ordering::Acquire);
    let found = value.load(Ordering::Acquire);
    (found != 0 && before != 0 && key.load(Ordering::Acquire) == before).then_some((before, found))
}

/// Looks for `key` in `bucket`. All places are compared before it branches: which of them it is cannot be foreseen.
#[inline(always)]
pub(super) fn find(bucket: &[AtomicU64; BUCKET_WORDS], key: u64) -> Option<(Place<'_>, u64)> {
    let (places, _) = bucket.as_chunks::<2>();
    let mut hits = 0u32;
    for (at, [occupant, _]) in places.iter().enumerate() {
        hits |= u32::from(occupant.load(Ordering::Acquire) == key) << at;
    }
    let [occupant, value] = places.get(hits.trailing_zeros() as usize)?;
    let found = value.load(Ordering::Acquire);
    (found != 0 && occupant.load(Ordering::Acquire) == key).then_some(((occupant, value), found))
}
