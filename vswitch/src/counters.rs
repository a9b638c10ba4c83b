//! Counters of a port. One writer at a time, any number of readers, no lock on the writer's side.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::drops::{DropCounts, DropReason};

/// What is counted, by the side that counts it.
macro_rules! counters {
    ($($field:ident, $text:literal;)*) => {
        /// One reading of a port's counters, or what a turn adds to them.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Counts {
            $(#[doc = $text] pub $field: u64,)*
            /// Copies that were dropped, by reason.
            pub drops: DropCounts,
        }

        impl Counts {
            const FIELDS: usize = [$(stringify!($field)),*].len();

            fn fields(&self) -> [u64; Self::FIELDS] {
                [$(self.$field),*]
            }

            /// Adds all counts of `other`.
            pub fn merge(&mut self, other: &Counts) {
                $(self.$field += other.$field;)*
                self.drops.merge(&other.drops);
            }

            fn from_fields(fields: [u64; Self::FIELDS], drops: DropCounts) -> Counts {
                let [$($field),*] = fields;
                Counts { $($field,)* drops }
            }
        }
    };
}

counters! {
    frames, "Frames that passed: taken from a port (tx), or delivered to it (rx).";
    bytes, "Bytes of those frames, without FCS.";
    extra_copies, "Copies made beyond one a frame: a flood to n ports, or a cut into n segments, makes n - 1.";
    delivered, "Copies that were delivered.";
    consumed, "Frames that the switch took for itself.";
    copied_bytes, "Bytes the switch copied, snapshots included once.";
    notifications, "Notifications sent to the peer.";
    mac_moves, "Addresses learned that were behind another port until then.";
    learn_refused, "Addresses not learned: quota, full table, or pinned elsewhere.";
}

impl Counts {
    /// Copies dropped, for all reasons.
    pub fn dropped(&self) -> u64 {
        self.drops.total()
    }
}

/// One reading of a port's counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortCounters {
    /// Of frames that came from the port.
    pub tx: Counts,
    /// Of frames that went to it.
    pub rx: Counts,
}

/// A block of counters that one thread at a time adds to, and that readers see whole: a reading never falls between
/// two additions of one turn.
pub struct CounterBlock {
    sequence: AtomicU64,
    fields: [AtomicU64; Counts::FIELDS],
    drops: [AtomicU64; DropReason::COUNT],
}

impl Default for CounterBlock {
    fn default() -> Self {
        CounterBlock {
            sequence: AtomicU64::new(0),
            fields: [const { AtomicU64::new(0) }; Counts::FIELDS],
            drops: [const { AtomicU64::new(0) }; DropReason::COUNT],
        }
    }
}

impl CounterBlock {
    /// Adds what a turn counted. Only the thread that owns the counted side calls this.
    pub fn add(&self, counts: &Counts) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence
            .store(sequence.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        for (cell, add) in self.fields.iter().zip(counts.fields()) {
            if add != 0 {
                cell.store(
                    cell.load(Ordering::Relaxed).wrapping_add(add),
                    Ordering::Relaxed,
                );
            }
        }
        for (reason, add) in counts.drops.iter() {
            if let Some(cell) = self.drops.get(reason as usize) {
                cell.store(
                    cell.load(Ordering::Relaxed).wrapping_add(add),
                    Ordering::Relaxed,
                );
            }
        }
        self.sequence
            .store(sequence.wrapping_add(2), Ordering::Release);
    }

    /// The counters as they stand between two additions.
    pub fn read(&self) -> Counts {
        loop {
            let before = self.sequence.load(Ordering::Acquire);
            let fields = std::array::from_fn(|i| {
                self.fields
                    .get(i)
                    .map_or(0, |cell| cell.load(Ordering::Relaxed))
            });
            let mut drops = DropCounts::default();
            for (&reason, cell) in DropReason::ALL.iter().zip(&self.drops) {
                drops.add(reason, cell.load(Ordering::Relaxed));
            }
            fence(Ordering::Acquire);
            if before & 1 == 0 && self.sequence.load(Ordering::Relaxed) == before {
                return Counts::from_fields(fields, drops);
            }
            std::hint::spin_loop();
        }
    }
}
