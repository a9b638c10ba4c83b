//! Medians with their spread, and percentiles.

use serde::{Deserialize, Serialize};

/// What several runs of one measurement gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stat {
    /// The run in the middle; of an even number, the lower of the two.
    pub(crate) median: f64,
    /// The smallest run.
    pub(crate) low: f64,
    /// The largest run.
    pub(crate) high: f64,
    /// All runs, in the order in which they were made.
    pub(crate) runs: Vec<f64>,
}

impl Stat {
    /// `None` without a run.
    pub(crate) fn of(runs: Vec<f64>) -> Option<Stat> {
        let mut values = runs.clone();
        values.sort_by(f64::total_cmp);
        Some(Stat {
            median: *values.get(values.len().checked_sub(1)? / 2)?,
            low: *values.first()?,
            high: *values.last()?,
            runs,
        })
    }

    /// These runs as a multiple of `others`: the median of the multiples of those that were made in the same round, so
    /// that a machine that is slower for some seconds is so for both. Of the medians where a run is missing.
    pub(crate) fn over(&self, others: &Stat) -> f64 {
        let pairs = self.runs.iter().zip(&others.runs);
        let multiples = pairs.map(|(run, other)| run / other).collect();
        match Stat::of(multiples) {
            Some(stat) if self.runs.len() == others.runs.len() => stat.median,
            _ => self.median / others.median,
        }
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

    /// Takes in the values of another.
    pub(crate) fn merge(&mut self, other: &Histogram) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.total += other.total;
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
            (stat.median, stat.low, stat.high, stat.runs.len()),
            (2.5, 1.0, 9.0, 5)
        );
        assert!((stat.spread() - 1.6).abs() < 1e-9);
        assert_eq!(Stat::of(vec![4.0, 1.0]).unwrap().median, 1.0);
        assert_eq!(Stat::of(Vec::new()), None);
    }

    #[test]
    fn a_multiple_is_that_of_the_same_round() {
        let of = |runs: &[f64]| Stat::of(runs.to_vec()).unwrap();
        // The machine is three times slower in the second and the third round.
        assert_eq!(of(&[9.0, 2.0, 2.0]).over(&of(&[3.0, 1.0, 1.0])), 2.0);
        assert_eq!(of(&[9.0, 8.0]).over(&of(&[4.0])), 2.0);
    }

    proptest! {
        #[test]
        fn percentiles_are_those_of_the_sorted_values(
            values in prop::collection::vec(0u64..1 << 40, 1..200),
            part in 0.01f64..1.0,
        ) {
            let mut halves = [Histogram::default(), Histogram::default()];
            for (at, &value) in values.iter().enumerate() {
                halves[at % 2].add(value);
            }
            let [mut histogram, other] = halves;
            histogram.merge(&other);
            let mut sorted = values;
            sorted.sort_unstable();
            let rank = ((sorted.len() as f64 * part).ceil() as usize).max(1);
            let exact = sorted[rank - 1];
            let told = histogram.percentile(part);
            prop_assert!(told <= exact && exact - told <= exact / 64 + 1, "{told} for {exact}");
        }
    }
}
