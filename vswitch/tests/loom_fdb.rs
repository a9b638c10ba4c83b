//! Entries of the MAC table under every order of reads and writes that the memory model allows two threads.

#![allow(dead_code, reason = "the table uses more of it")]

mod atomic {
    pub(super) use loom::sync::atomic::{AtomicU64, Ordering};
}
#[path = "../src/fdb/entry.rs"]
mod entry;

use atomic::AtomicU64;
use loom::sync::Arc;
use loom::thread;

/// Values are made of their keys, so that a wrong one is seen.
const fn value_of(key: u64) -> u64 {
    key * 10
}

fn bucket() -> Arc<[AtomicU64; entry::BUCKET_WORDS]> {
    Arc::new(std::array::from_fn(|_| AtomicU64::new(0)))
}

fn place(bucket: &[AtomicU64; entry::BUCKET_WORDS]) -> entry::Place<'_> {
    let [key, value, ..] = bucket;
    (key, value)
}

#[test]
fn a_reader_has_the_value_of_its_key_or_none() {
    loom::model(|| {
        let ours = bucket();
        entry::fill(place(&ours), 1, value_of(1));
        let theirs = Arc::clone(&ours);
        let writer = thread::spawn(move || {
            entry::clear(place(&theirs));
            entry::fill(place(&theirs), 2, value_of(2));
        });
        for key in [1, 2] {
            if let Some((_, value)) = entry::find(&ours, key) {
                assert_eq!(value, value_of(key));
            }
        }
        if let Some((key, value)) = entry::read(place(&ours)) {
            assert_eq!(value, value_of(key));
        }
        writer.join().unwrap();
        assert!(entry::find(&ours, 1).is_none());
        assert!(entry::find(&ours, 2).is_some());
    });
}

/// A station that is heard again, or moves to another port, is found all the time.
#[test]
fn a_value_that_changes_in_place_is_never_missed() {
    loom::model(|| {
        let ours = bucket();
        entry::fill(place(&ours), 1, 5);
        let theirs = Arc::clone(&ours);
        let writer = thread::spawn(move || {
            place(&theirs).1.store(6, atomic::Ordering::Release);
        });
        let (_, value) = entry::find(&ours, 1).expect("it is there all the time");
        assert!(value == 5 || value == 6);
        writer.join().unwrap();
    });
}
