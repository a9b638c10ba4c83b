//! Medians with their spread, and percentiles.

use serde::{Deserialize, Serialize};

/// What several runs of one measurement gave.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stat {
    /// The run in the middle; of an even number, the lower of the two.
    pub(crate) median: f64,
    /// The smallest run.
    pub(crate) low: f64,
    /// The largest run.
    pub(crate) high: f64,
    /// How many runs.
    pub(crate) runs: usize,
}

impl Stat {
    /// `None` without a run.
    pub(crate) fn of(mut values: Vec<f64>) -> Option<Stat> {
        values.sort_by(f64::total_cmp);
        let runs = values.len();
        Some(Stat {
            median: *values.get(runs.checked_sub(1)? / 2)?,
            low: *values.first()?,
            high: *values.last()?,
            runs,
        })
    }

    /// Half of the distance from the smallest to the largest run, as a share of the median.
    pub(crate) fn spread(&self) -> f64 {
        if self.median == 0.0 {
            0.0
        } else {
            (self.high - self.low) / 2.0 / self.median.abs()
        }
    }
}

/// Sub-buckets of each power of two: values are told apart to 1/64.
const FINE: u32 = 6;

/// Counts of values, told apart to within 1.6 %.
#[derive(Clone)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram {
            counts: vec![0; 64 << FINE],
            total: 0,
        }
    }
}

impl Histogram {
    /// Below 2^FINE each value has a bucket; above, each power of two has 2^FINE of them.
    fn bucket(value: u64) -> usize {
        let log = (value | 1).ilog2();
        if log < FINE {
            return value as usize;
        }
        let rest = (value >> (log - FINE)) - (1 << FINE);
        ((u64::from(log - FINE + 1) << FINE) + rest) as usize
    }

    /// The smallest value of a bucket.
    fn value(bucket: usize) -> u64 {
        let bucket = bucket as u64;
        let (octave, rest) = (bucket >> FINE, bucket & ((1 << FINE) - 1));
        match octave {
            0 => rest,
            _ => ((1 << FINE) + rest) << (octave - 1),
        }
    }

    /// Counts a value.
    #[inline]
    pub(crate) fn add(&mut self, value: u64) {
        if let Some(count) = self.counts.get_mut(Self::bucket(value)) {
            *count += 1;
            self.total += 1;
        }
    }

    /// The smallest value that at least the share `part` of all are not above. 0 without values.
    pub(crate) fn percentile(&self, part: f64) -> u64 {
        let rank = (self.total as f64 * part).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Self::value(bucket);
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_median_is_a_run_and_the_spread_is_half_the_range() {
        let stat = Stat::of(vec![3.0, 1.0, 2.0, 9.0, 2.5]).unwrap();
        assert_eq!(
            (stat.median, stat.low, stat.high, stat.runs),
            (2.5, 1.0, 9.0, 5)
        );
        assert!((stat.spread() - 1.6).abs() < 1e-9);
        assert_eq!(Stat::of(vec![4.0, 1.0]).unwrap().median, 1.0);
        assert_eq!(Stat::of(Vec::new()), None);
    }

    proptest! {
        #[test]
        fn percentiles_are_those_of_the_sorted_values(
            values in prop::collection::vec(0u64..1 << 40, 1..200),
            part in 0.01f64..1.0,
        ) {
            let mut histogram = Histogram::default();
            values.iter().for_each(|&value| histogram.add(value));
            let mut sorted = values;
            sorted.sort_unstable();
            let rank = ((sorted.len() as f64 * part).ceil() as usize).max(1);
            let exact = sorted[rank - 1];
            let told = histogram.percentile(part);
            prop_assert!(told <= exact && exact - told <= exact / 64 + 1, "{told} for {exact}");
        }
    }
}
