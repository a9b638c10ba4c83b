//! The MAC table (IEEE 802.1Q: filtering database) of one network.
//!
//! Read without locks by every worker; written by whichever worker learns. Two words an entry, four entries a cache
//! line, two candidate lines a key. An entry is in the first of them unless that was full, so that a lookup nearly
//! always touches one line, which is fetched ahead.
//!
//! * Ageing needs no timer: an entry says when its station was last heard, and one that is too old is not found. A
//!   periodic [`Fdb::sweep`] only gives its place back.
//! * Flushing a port is O(1): an entry carries its port's epoch, and a new epoch makes all entries of the port stale.
//! * A port holds at most its quota, and beyond it replaces its own entries only. Where the table itself is full, a
//!   newcomer replaces an entry of the port that holds most, and only if that is more than its own: so a flood of
//!   addresses from one port cannot push out those of another.

/// What [`entry`] is made of, which is also checked with other ones.
mod atomic {
    pub(super) use std::sync::atomic::{AtomicU64, Ordering};
}

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use zerocopy::FromZeros;

use crate::mac::Mac;
use crate::vlan::Vid;

/// Index of a port within its network.
pub type PortIndex = u16;

/// Buckets of a 4 KiB page: the granularity in which a sweep skips untouched parts.
const BUCKETS_PER_PAGE: usize = 64;
/// Buckets in use at first: 2 MiB, 128 Ki places.
const FIRST_BUCKETS: usize = 1 << 15;
/// Size of a huge page of the processor, to which the table is aligned.
const HUGE_PAGE: usize = 2 << 20;
/// Entries from which on most 4 KiB pages of the buckets in use hold one.
const HUGE_FROM: u32 = 512;
/// Capacity where nothing else is asked for.
pub const DEFAULT_CAPACITY: usize = 1 << 20;
/// Entries an ordinary port may hold where nothing else is asked for.
pub const DEFAULT_QUOTA: u32 = 1 << 17;
/// Seconds an entry lives after its station was last heard (IEEE 802.1Q, table 8-6).
pub const DEFAULT_AGEING: u32 = 300;

/// A station's address in a VLAN, as the table's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(u64);

impl Key {
    /// The key of `mac` in `vid` (0 to 4095).
    pub const fn new(mac: Mac, vid: Vid) -> Key {
        Key::of(mac.to_u64(), vid)
    }

    /// The same of an address as a number of 48 bits.
    #[inline]
    pub(crate) const fn of(mac: u64, vid: Vid) -> Key {
        // The top bit keeps a key apart from an empty place.
        Key(mac | (vid as u64 & 0xfff) << 48 | 1 << 63)
    }

    /// The address.
    pub const fn mac(self) -> Mac {
        Mac::from_u64(self.0 & 0xffff_ffff_ffff)
    }

    /// Whether it is that of a group: broadcast or multicast.
    pub const fn is_group(self) -> bool {
        self.0 >> 40 & 1 != 0
    }

    /// The VLAN; 0 is none.
    pub const fn vid(self) -> Vid {
        (self.0 >> 48) as Vid & 0xfff
    }
}

/// The value word: port 63:48, epoch 47:32, static 31, last heard 30:0 in seconds. Never 0: epochs start at 1.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Value(u64);

const STATIC: u64 = 1 << 31;
const TIME: u64 = STATIC - 1;

impl Value {
    fn new(port: PortIndex, epoch: u16, fixed: bool, now: u32) -> Value {
        let fixed = if fixed { STATIC } else { 0 };
        Value(u64::from(port) << 48 | u64::from(epoch) << 32 | fixed | u64::from(now) & TIME)
    }
    fn port(self) -> PortIndex {
        (self.0 >> 48) as PortIndex
    }
    fn epoch(self) -> u16 {
        (self.0 >> 32) as u16
    }
    fn is_static(self) -> bool {
        self.0 & STATIC != 0
    }
    fn heard(self) -> u32 {
        (self.0 & TIME) as u32
    }
    /// Seconds since it was heard. A worker whose clock lags behind that of the one that heard it sees it as fresh.
    fn age(self, now: u32) -> u32 {
        match now.wrapping_sub(self.heard()) & TIME as u32 {
            ahead if ahead > TIME as u32 / 2 => 0,
            age => age,
        }
    }
}

/// What became of an address that was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// It was known at this port.
    Known,
    /// It is new.
    Added,
    /// It was behind another port until then.
    Moved,
    /// It is pinned to another port by a static entry.
    Pinned,
    /// The port is at its quota, or the table is full.
    Full,
    /// Another worker was changing the table; the next frame will try again.
    Busy,
}

/// One entry, as users see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The station.
    pub mac: Mac,
    /// Its VLAN; 0 is none.
    pub vid: Vid,
    /// The port it is behind.
    pub port: PortIndex,
    /// Set by an operator: does not age, move or make place.
    pub fixed: bool,
    /// Seconds since it was last heard; 0 for static entries.
    pub age: u32,
}

/// State of one port in the table.
#[derive(FromZeros)]
#[repr(C)]
struct PortState {
    /// Current epoch, less 1.
    epoch: AtomicU32,
    /// Learned entries of the current epoch.
    count: AtomicU32,
    /// Most learned entries it may have; 0 stands for [`DEFAULT_QUOTA`].
    quota: AtomicU32,
}

/// The MAC table.
pub struct Fdb {
    /// Buckets of [`BUCKET_WORDS`] words from `first_word` on, which is aligned to a huge page.
    words: Vec<AtomicU64>,
    first_word: usize,
    /// Number of buckets less 1, which is a power of two less 1.
    bucket_mask: u64,
    /// The same of those in use: a table of few stations stays in few pages, so that looking up many of them in turn
    /// does not wait for page tables. It grows as it fills, in [`Fdb::sweep`].
    active_mask: AtomicU64,
    /// The same of those for which huge pages were asked; 0 at first.
    huge_mask: AtomicU64,
    /// A bit for each page of buckets that ever held an entry.
    touched: Vec<AtomicU64>,
    ports: Vec<PortState>,
    capacity: u32,
    /// Learned and static entries together, stale ones included until swept.
    used: AtomicU32,
    ageing: AtomicU32,
    /// What the hash function adds and multiplies by: random, so that no guest can pick addresses that collide.
    seeds: [u64; 2],
    writer: Mutex<Moves>,
}

/// There is not enough memory for the table.
#[derive(Debug, thiserror::Error)]
#[error("cannot reserve memory for a MAC table of {0} entries")]
pub struct FdbError(usize);

impl Fdb {
    /// A table for `capacity` entries (rounded up to a power of two, at least 1024) with entries living `ageing`
    /// seconds (0: for ever). `seed` makes its hash function; memory is taken as it is touched.
    pub fn new(capacity: usize, ageing: u32, seed: u64) -> Result<Fdb, FdbError> {
        let error = |_| FdbError(capacity);
        let capacity = capacity.clamp(1024, 1 << 28).next_power_of_two();
        // Twice the places, so that both candidate buckets are practically never full.
        let buckets = capacity * 2 / WAYS;
        let room = HUGE_PAGE / size_of::<AtomicU64>();
        let words = AtomicU64::new_vec_zeroed(buckets * BUCKET_WORDS + room).map_err(error)?;
        let first_word = words.as_ptr().align_offset(HUGE_PAGE).min(room);
        let pages = buckets.div_ceil(BUCKETS_PER_PAGE);
        Ok(Fdb {
            words,
            first_word,
            bucket_mask: buckets as u64 - 1,
            active_mask: AtomicU64::new(buckets.min(FIRST_BUCKETS) as u64 - 1),
            huge_mask: AtomicU64::new(0),
            touched: AtomicU64::new_vec_zeroed(pages.div_ceil(64)).map_err(error)?,
            ports: PortState::new_vec_zeroed(1 << 16).map_err(error)?,
            capacity: capacity as u32,
            used: AtomicU32::new(0),
            ageing: AtomicU32::new(ageing),
            seeds: [
                seed | 1,
                seed.rotate_left(29).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            ],
            writer: Mutex::default(),
        })
    }

    /// Entries the table holds at most.
    pub fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// Seconds after which a silent station is forgotten; 0 is never.
    pub fn set_ageing(&self, seconds: u32) {
        self.ageing.store(seconds, Ordering::Relaxed);
    }

    /// Most learned entries `port` may hold.
    pub fn set_quota(&self, port: PortIndex, quota: u32) {
        if let Some(state) = self.ports.get(usize::from(port)) {
            state.quota.store(quota, Ordering::Relaxed);
        }
    }

    /// The port that `key` is behind at `now`.
    pub fn lookup(&self, key: Key, now: u32) -> Option<PortIndex> {
        let (_, value) = self.find(key)?;
        self.is_live(value, now).then(|| value.port())
    }

    /// `key` was heard from `port` at `now`.
    pub fn learn(&self, key: Key, port: PortIndex, now: u32) -> Learned {
        if let Some((place, value)) = self.find(key)
            && self.is_live(value, now)
        {
            if value.is_static() {
                return if value.port() == port {
                    Learned::Known
                } else {
                    Learned::Pinned
                };
            }
            if value.port() == port {
                if value.heard() != now {
                    let fresh = Value::new(port, value.epoch(), false, now);
                    // Lost only to a change made by somebody else, which is newer.
                    let _ = place.1.compare_exchange(
                        value.0,
                        fresh.0,
                        Ordering::Release,
                        Ordering::Relaxed,
                    );
                }
                return Learned::Known;
            }
        }
        let mut moves = match self.writer.try_lock() {
            Ok(moves) => moves,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Learned::Busy,
        };
        self.insert(key, port, now, &mut moves)
    }

    /// Pins `key` to `port`. False if there is no place for it: the table is full of other static entries.
    pub fn add_static(&self, key: Key, port: PortIndex, now: u32) -> bool {
        let _guard = self.lock();
        let place = self.find(key).map(|(place, _)| place);
        let Some(place) = place.or_else(|| self.place_for_newcomer(key, now, 0)) else {
            return false;
        };
        self.vacate(place);
        self.used.fetch_add(1, Ordering::Relaxed);
        self.write(place, key, Value::new(port, self.epoch(port), true, 0));
        true
    }

    /// Forgets `key`, static or learned. False if it was not there.
    pub fn remove(&self, key: Key) -> bool {
        let _guard = self.lock();
        self.find(key).is_some_and(|(place, _)| self.vacate(place))
    }

    /// Forgets all learned entries of all ports. Static ones stay.
    pub fn flush(&self) {
        let _guard = self.lock();
        self.drop_if(|value| !value.is_static());
    }

    /// Forgets all learned entries of `port`, in constant time. Its static entries stay.
    pub fn flush_port(&self, port: PortIndex) {
        let _guard = self.lock();
        if let Some(state) = self.ports.get(usize::from(port)) {
            let epoch = state.epoch.load(Ordering::Relaxed).wrapping_add(1);
            // 15 bits of it are in the entries. Before they come round, nothing of the old ones may be left.
            if epoch & 0x7fff == 0 {
                self.drop_if(|value| !value.is_static() && value.port() == port);
            }
            state.epoch.store(epoch, Ordering::Release);
            state.count.store(0, Ordering::Relaxed);
        }
    }

    /// Forgets everything about `port`, static entries too: its index may be given to another port afterwards.
    pub fn forget_port(&self, port: PortIndex) {
        self.flush_port(port);
        let _guard = self.lock();
        self.drop_if(|value| value.port() == port);
        if let Some(state) = self.ports.get(usize::from(port)) {
            state.quota.store(0, Ordering::Relaxed);
        }
    }

    /// Gives back the places of entries that are stale or too old at `now`, takes more buckets into use where those in
    /// use are half full, and has them in huge pages. Workers meanwhile go on, and learn what is new to them a little
    /// later.
    pub fn sweep(&self, now: u32) {
        let _guard = self.lock();
        self.drop_if(|value| !self.is_live(value, now));
        let used = self.used.load(Ordering::Relaxed);
        let mut mask = self.active_mask.load(Ordering::Relaxed);
        while mask < self.bucket_mask && u64::from(used) > mask / 2 * WAYS as u64 {
            mask = mask << 1 | 1;
            self.grow(mask);
        }
        // A lookup of one station among many mostly waits for the translation of its line's address.
        if used >= HUGE_FROM && self.huge_mask.swap(mask, Ordering::Relaxed) < mask {
            let end = self.first_word + (mask as usize + 1) * BUCKET_WORDS;
            guestmem::collapse(self.words.get(self.first_word..end).unwrap_or(&[]));
        }
    }

    /// The places of the bucket that begins at word `first`.
    fn bucket(&self, first: usize) -> impl Iterator<Item = Place<'_>> {
        places_of(self.words.get(first..first + BUCKET_WORDS))
    }

    /// All entries that are found at `now`. A table under change is read entry by entry.
    pub fn entries(&self, now: u32) -> Vec<Entry> {
        let mut entries = Vec::new();
        self.for_each_place(|place| {
            // While the table grows, an entry is in two places.
            if let Some((key, value)) = read(place)
                && self.is_live(value, now)
                && self.is_within(place, self.candidates(key))
            {
                entries.push(Entry {
                    mac: key.mac(),
                    vid: key.vid(),
                    port: value.port(),
                    fixed: value.is_static(),
                    age: if value.is_static() { 0 } else { value.age(now) },
                });
            }
        });
        entries
    }

    fn lock(&self) -> MutexGuard<'_, Moves> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    fn epoch(&self, port: PortIndex) -> u16 {
        let epoch = self
            .ports
            .get(usize::from(port))
            .map_or(0, |state| state.epoch.load(Ordering::Acquire));
        // 1 to 32768, so that a value is never 0.
        (epoch & 0x7fff) as u16 + 1
    }

    #[inline]
    fn is_live(&self, value: Value, now: u32) -> bool {
        if value.is_static() {
            return true;
        }
        let ageing = self.ageing.load(Ordering::Relaxed);
        value.epoch() == self.epoch(value.port()) && (ageing == 0 || value.age(now) <= ageing)
    }

    /// First words of the two buckets of `key`.
    fn candidates(&self, key: Key) -> [usize; 2] {
        self.candidates_within(key, self.active_mask.load(Ordering::Relaxed))
    }

    /// The same among the buckets of `mask`.
    fn candidates_within(&self, key: Key, mask: u64) -> [usize; 2] {
        self.hashes(key)
            .map(|hash| self.first_word + (hash & mask) as usize * BUCKET_WORDS)
    }

    /// What chooses the two buckets of `key`: both halves of one hash.
    #[inline]
    fn hashes(&self, key: Key) -> [u64; 2] {
        let [add, multiply] = self.seeds;
        let hash = (key.0 ^ add).wrapping_mul(multiply);
        let hash = (hash ^ hash >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        [hash >> 4, hash >> 34]
    }

    fn find(&self, key: Key) -> Option<(Place<'_>, Value)> {
        self.candidates(key)
            .into_iter()
            .find_map(|first| glance(self.words.get(first..)?.first_chunk()?, key))
    }

    /// Empties `place` and books its entry out. False if it was empty.
    fn vacate(&self, place: Place<'_>) -> bool {
        let Some((_, value)) = read(place) else {
            return false;
        };
        clear(place);
        self.used.fetch_sub(1, Ordering::Relaxed);
        if !value.is_static()
            && value.epoch() == self.epoch(value.port())
            && let Some(state) = self.ports.get(usize::from(value.port()))
        {
            state.count.fetch_sub(1, Ordering::Relaxed);
        }
        true
    }

    /// Fills an empty `place` of one of the buckets of `key`.
    fn write(&self, place: Place<'_>, key: Key, value: Value) {
        self.write_to(place, key, value, self.candidates(key));
    }

    /// The same in one of `buckets`.
    fn write_to(&self, place: Place<'_>, key: Key, value: Value, buckets: [usize; 2]) {
        entry::fill(place, key.0, value.0);
        for first in buckets {
            let page = (first - self.first_word) / BUCKET_WORDS / BUCKETS_PER_PAGE;
            if let Some(word) = self.touched.get(page / 64) {
                word.fetch_or(1 << (page % 64), Ordering::Relaxed);
            }
        }
    }

    /// Drops the entries that `doomed` says. The caller holds the writer lock.
    fn drop_if(&self, doomed: impl Fn(Value) -> bool) {
        self.for_each_place(|place| {
            if read(place).is_some_and(|(_, value)| doomed(value)) {
                self.vacate(place);
            }
        });
    }

    /// Calls `each` for every place in pages that ever held an entry.
    fn for_each_place(&self, mut each: impl FnMut(Place<'_>)) {
        let page_words = BUCKETS_PER_PAGE * BUCKET_WORDS;
        let buckets = self.words.get(self.first_word..).unwrap_or(&[]);
        for (index, word) in self.touched.iter().enumerate() {
            let mut bits = word.load(Ordering::Relaxed);
            while bits != 0 {
                let page = index * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let end = ((page + 1) * page_words).min(buckets.len());
                places_of(buckets.get(page * page_words..end)).for_each(&mut each);
            }
        }
    }
}

impl PortState {
    fn quota(&self) -> u32 {
        match self.quota.load(Ordering::Relaxed) {
            0 => DEFAULT_QUOTA,
            quota => quota,
        }
    }
}

/// The places in a slice of whole buckets.
fn places_of(words: Option<&[AtomicU64]>) -> impl Iterator<Item = Place<'_>> {
    words
        .unwrap_or(&[])
        .as_chunks::<2>()
        .0
        .iter()
        .map(|[key, value]| (key, value))
}

/// The entry in `place`.
fn read(place: Place<'_>) -> Option<(Key, Value)> {
    entry::read(place).map(|(key, value)| (Key(key), Value(value)))
}

/// Looks for `key` in `bucket`.
#[inline(always)]
fn glance(bucket: &[AtomicU64; BUCKET_WORDS], key: Key) -> Option<(Place<'_>, Value)> {
    entry::find(bucket, key.0).map(|(place, value)| (place, Value(value)))
}

mod entry;
mod grow;
mod insert;
mod moves;
mod reader;
use entry::{BUCKET_WORDS, Place, WAYS, clear};
pub use moves::Flap;
use moves::Moves;
pub use reader::{Reader, Spot};
#[cfg(test)]
mod tests;
