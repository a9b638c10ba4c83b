use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn key(n: u64) -> Key {
    Key::new(Mac::from_u64(0x0200_0000_0000 | n), (n % 3) as Vid)
}

fn table(capacity: usize) -> Fdb {
    Fdb::new(capacity, DEFAULT_AGEING, 0x1234_5678_9abc_def1).unwrap()
}

/// As a turn looks it up.
fn read_at(fdb: &Fdb, key: Key, now: u32) -> Option<PortIndex> {
    let reader = fdb.reader(0, now);
    reader.lookup(key, reader.spot(key))
}

#[test]
fn learns_moves_and_ages() {
    let fdb = table(1024);
    assert_eq!(fdb.lookup(key(1), 0), None);
    assert_eq!(fdb.learn(key(1), 7, 10), Learned::Added);
    assert_eq!(fdb.learn(key(1), 7, 11), Learned::Known);
    assert_eq!(fdb.lookup(key(1), 311), Some(7));
    assert_eq!(
        fdb.lookup(key(1), 312),
        None,
        "300 s after it was last heard"
    );
    assert_eq!(fdb.learn(key(1), 8, 20), Learned::Moved);
    assert_eq!(fdb.lookup(key(1), 20), Some(8));
}

#[test]
fn addresses_that_go_to_and_fro_are_told_of_once() {
    let fdb = table(1024);
    fdb.learn(key(1), 1, 0);
    fdb.learn(key(2), 1, 0);
    // Further addresses that move once do not push out the one that flaps.
    for n in 0..100 {
        fdb.learn(key(100 + n), 3, 0);
        assert_eq!(fdb.learn(key(100 + n), 4, 0), Learned::Moved);
        if n < 11 {
            assert_eq!(fdb.learn(key(1), 2 - n as PortIndex % 2, 0), Learned::Moved);
        }
        if n < 10 {
            assert_eq!(fdb.learn(key(2), 2 - n as PortIndex % 2, 0), Learned::Moved);
        }
    }
    let flap = Flap {
        key: key(1),
        ports: [1, 2],
        moves: 11,
    };
    assert_eq!(fdb.take_flaps(), [flap]);
    assert_eq!(fdb.take_flaps(), []);
    // What aged meanwhile, or was flushed, is new and not moved.
    assert_eq!(fdb.learn(key(2), 9, 1000), Learned::Added);
    fdb.flush();
    assert_eq!(fdb.learn(key(1), 9, 0), Learned::Added);
}

#[test]
fn vlans_are_apart() {
    let fdb = table(1024);
    let mac = Mac([2, 0, 0, 0, 0, 9]);
    fdb.learn(Key::new(mac, 10), 1, 0);
    assert_eq!(fdb.lookup(Key::new(mac, 10), 0), Some(1));
    assert_eq!(fdb.lookup(Key::new(mac, 20), 0), None);
}

#[test]
fn static_entries_neither_move_nor_age_nor_flush() {
    let fdb = table(1024);
    assert!(fdb.add_static(key(1), 3, 0));
    assert_eq!(fdb.learn(key(1), 4, 0), Learned::Pinned);
    fdb.flush_port(3);
    fdb.flush();
    assert_eq!(fdb.lookup(key(1), 1_000_000), Some(3));
    fdb.forget_port(3);
    assert_eq!(fdb.lookup(key(1), 0), None);
}

#[test]
fn flush_of_a_port_leaves_the_others() {
    let fdb = table(1024);
    for n in 0..100 {
        fdb.learn(key(n), (n % 2) as PortIndex, 0);
    }
    fdb.flush_port(0);
    for n in 0..100 {
        assert_eq!(fdb.lookup(key(n), 0), (n % 2 == 1).then_some(1));
    }
    fdb.sweep(0);
    assert_eq!(fdb.entries(0).len(), 50);
}

#[test]
fn epochs_come_round_without_raising_the_dead() {
    let fdb = table(1024);
    fdb.learn(key(1), 5, 0);
    for _ in 0..0x8000 {
        fdb.flush_port(5);
        assert_eq!(fdb.lookup(key(1), 0), None);
    }
}

#[test]
fn quota_holds_and_a_flood_evicts_nobody_else() {
    let fdb = table(1024);
    fdb.set_quota(1, 200);
    for n in 0..100 {
        fdb.learn(key(n), 0, 0);
    }
    for n in 1000..100_000 {
        fdb.learn(key(n), 1, 0);
    }
    let entries = fdb.entries(0);
    assert_eq!(entries.iter().filter(|entry| entry.port == 0).count(), 100);
    assert_eq!(entries.iter().filter(|entry| entry.port == 1).count(), 200);
}

#[test]
fn a_full_table_still_takes_newcomers_from_small_ports() {
    let fdb = table(1024);
    for n in 1000..100_000 {
        fdb.learn(key(n), 1, 0);
    }
    assert_eq!(fdb.entries(0).len(), 1024);
    for n in 0..100 {
        assert_eq!(fdb.learn(key(n), 0, 0), Learned::Added, "{n}");
    }
    for n in 0..100 {
        assert_eq!(fdb.lookup(key(n), 0), Some(0));
    }
}

#[test]
fn holds_a_million() {
    let fdb = table(DEFAULT_CAPACITY);
    fdb.set_quota(0, u32::MAX);
    for n in 0..1_000_000 {
        assert_eq!(fdb.learn(key(n), 0, 0), Learned::Added, "{n}");
        if n % 50_000 == 0 {
            fdb.sweep(0);
        }
    }
    assert!((0..1_000_000).all(|n| fdb.lookup(key(n), 0) == Some(0)));
    assert_eq!(fdb.entries(0).len(), 1_000_000);
    assert_eq!(fdb.active_mask.load(Ordering::Relaxed), fdb.bucket_mask);
}

#[test]
fn growing_loses_nothing_and_takes_quotas_along() {
    let fdb = table(DEFAULT_CAPACITY);
    let stations = 4 * FIRST_BUCKETS as u64 - 40_000;
    for n in 0..stations {
        assert_eq!(fdb.learn(key(n), (n % 3) as PortIndex, 0), Learned::Added);
    }
    assert!(fdb.add_static(key(stations), 4, 0));
    let held: Vec<_> = (0..3)
        .map(|port: usize| fdb.ports[port].count.load(Ordering::Relaxed))
        .collect();
    // A turn that has begun before.
    let turn = fdb.reader(0, 0);
    let spots: Vec<_> = (0..stations).map(|n| turn.spot(key(n))).collect();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let found =
                (0..stations).filter(|n| fdb.lookup(key(*n), 0) == Some((n % 3) as PortIndex));
            found.count() as u64
        });
        fdb.sweep(0);
        // One that is looked for while it moves may be missed.
        assert!(reader.join().unwrap() > stations - 100);
    });
    assert!(fdb.active_mask.load(Ordering::Relaxed) as usize >= 2 * FIRST_BUCKETS - 1);
    for n in 0..stations {
        assert_eq!(read_at(&fdb, key(n), 0), Some((n % 3) as PortIndex), "{n}");
        let found = turn.lookup(key(n), spots[n as usize]);
        assert_eq!(found, Some((n % 3) as PortIndex), "{n}, before it grew");
    }
    assert_eq!(read_at(&fdb, key(stations), 1_000_000), Some(4));
    assert_eq!(fdb.entries(0).len() as u64, stations + 1);
    assert_eq!(fdb.used.load(Ordering::Relaxed) as u64, stations + 1);
    let after: Vec<_> = (0..3)
        .map(|port: usize| fdb.ports[port].count.load(Ordering::Relaxed))
        .collect();
    assert_eq!(held, after);
}

/// Readers never see a port that the address was not behind at some time.
#[test]
fn concurrent_readers_see_whole_entries() {
    let fdb = table(1024);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    for n in 0..4000 {
                        if let Some(port) = read_at(&fdb, key(n), 0) {
                            assert_eq!(u64::from(port), n % 7);
                        }
                    }
                }
            });
        }
        for round in 0..40 {
            for n in 0..4000u64 {
                fdb.learn(
                    key((n * 31 + round) % 4000),
                    ((n * 31 + round) % 4000 % 7) as PortIndex,
                    0,
                );
            }
            fdb.flush_port((round % 7) as PortIndex);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[derive(Clone, Debug)]
enum Op {
    Learn(u64, PortIndex),
    Static(u64, PortIndex),
    Remove(u64),
    FlushPort(PortIndex),
    Forget(PortIndex),
    Flush,
    Pass(u32),
    Sweep,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0..60u64, 0..4u16).prop_map(|(n, port)| Op::Learn(n, port)),
        1 => (0..60u64, 0..4u16).prop_map(|(n, port)| Op::Static(n, port)),
        1 => (0..60u64).prop_map(Op::Remove),
        1 => (0..4u16).prop_map(Op::FlushPort),
        1 => (0..4u16).prop_map(Op::Forget),
        1 => Just(Op::Flush),
        2 => (1..200u32).prop_map(Op::Pass),
        1 => Just(Op::Sweep),
    ]
}

proptest! {
    /// The table against a HashMap of (port, last heard, static).
    #[test]
    fn behaves_like_a_map(ops in prop::collection::vec(op(), 1..300)) {
        let fdb = table(1024);
        let mut model: HashMap<u64, (PortIndex, u32, bool)> = HashMap::new();
        let mut now = 0;
        for op in ops {
            match op {
                Op::Learn(n, port) => {
                    let turn = fdb.reader(port, now);
                    turn.learn(key(n), turn.spot(key(n)));
                    if !model.get(&n).is_some_and(|entry| entry.2) {
                        model.insert(n, (port, now, false));
                    }
                }
                Op::Static(n, port) => {
                    prop_assert!(fdb.add_static(key(n), port, now));
                    model.insert(n, (port, now, true));
                }
                Op::Remove(n) => {
                    let was_there = fdb.remove(key(n));
                    let expected = model.remove(&n);
                    prop_assert!(was_there || expected.is_none_or(|entry| now - entry.1 > DEFAULT_AGEING));
                }
                Op::FlushPort(port) => {
                    fdb.flush_port(port);
                    model.retain(|_, entry| entry.2 || entry.0 != port);
                }
                Op::Forget(port) => {
                    fdb.forget_port(port);
                    model.retain(|_, entry| entry.0 != port);
                }
                Op::Flush => {
                    fdb.flush();
                    model.retain(|_, entry| entry.2);
                }
                Op::Pass(seconds) => now += seconds,
                Op::Sweep => fdb.sweep(now),
            }
            model.retain(|_, entry| entry.2 || now - entry.1 <= DEFAULT_AGEING);
            for n in 0..60 {
                prop_assert_eq!(read_at(&fdb, key(n), now), model.get(&n).map(|entry| entry.0), "station {}", n);
            }
            prop_assert_eq!(fdb.entries(now).len(), model.len());
        }
    }
}

#[test]
fn a_worker_whose_clock_lags_behind_finds_what_another_just_heard() {
    let fdb = Fdb::new(1024, 300, 7).unwrap();
    let key = Key::new(Mac([2, 0, 0, 0, 0, 1]), 0);
    assert_eq!(fdb.learn(key, 3, 100), Learned::Added);
    assert_eq!(fdb.lookup(key, 99), Some(3));
    assert_eq!(fdb.lookup(key, 400), Some(3));
    assert_eq!(fdb.lookup(key, 401), None);
}
