//! The table as one turn reads it, for a burst from one port.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{BUCKET_WORDS, Fdb, Key, Learned, PortIndex, Value, glance};

/// Reads the table for frames that come from one port in one second.
pub struct Reader<'a> {
    fdb: &'a Fdb,
    buckets: &'a [[AtomicU64; BUCKET_WORDS]],
    /// Those in use when the turn began. Where there are more meanwhile, what is not found is looked for again.
    mask: u64,
    port: PortIndex,
    now: u32,
    /// The value of a station that was heard from the port in this second.
    known: Value,
}

/// The bucket of a key, of its two the one where nearly all are.
#[derive(Clone, Copy)]
pub struct Spot(u32);

impl Fdb {
    /// For frames from `port` at `now`.
    #[inline]
    pub fn reader(&self, port: PortIndex, now: u32) -> Reader<'_> {
        let words = self.words.get(self.first_word..).unwrap_or(&[]);
        Reader {
            fdb: self,
            buckets: words.as_chunks().0,
            mask: self.active_mask.load(Ordering::Relaxed),
            port,
            now,
            known: Value::new(port, self.epoch(port), false, now),
        }
    }
}

impl Reader<'_> {
    /// Where `key` is, whose line is fetched towards the core.
    #[inline(always)]
    pub fn spot(&self, key: Key) -> Spot {
        let [first, _] = self.fdb.hashes(key);
        let at = first & self.mask;
        if let Some([word, ..]) = self.buckets.get(at as usize) {
            guestmem::prefetch(word);
        }
        Spot(at as u32)
    }

    /// As [`Fdb::lookup`], where `spot` is that of `key`.
    #[inline(always)]
    pub fn lookup(&self, key: Key, spot: Spot) -> Option<PortIndex> {
        match self
            .buckets
            .get(spot.0 as usize)
            .and_then(|bucket| glance(bucket, key))
        {
            Some((_, value)) if self.fdb.is_live(value, self.now) => Some(value.port()),
            _ => self.fdb.lookup(key, self.now),
        }
    }

    /// As [`Fdb::learn`], where `spot` is that of `key`.
    #[inline(always)]
    pub fn learn(&self, key: Key, spot: Spot) -> Learned {
        match self
            .buckets
            .get(spot.0 as usize)
            .and_then(|bucket| glance(bucket, key))
        {
            Some((_, value)) if value == self.known => Learned::Known,
            _ => self.fdb.learn(key, self.port, self.now),
        }
    }
}
