//! The search for the highest rate at which nothing is lost (RFC 2544 section 26.1).

/// Halves the interval between a rate without loss and one with loss until it is less than `precision` of the highest
/// rate. `trial` sends at a rate and says whether nothing was lost. The highest rate tried without loss; 0 if there was
/// none.
pub(crate) fn zero_loss<E>(
    highest: f64,
    precision: f64,
    mut trial: impl FnMut(f64) -> Result<bool, E>,
) -> Result<f64, E> {
    if trial(highest)? {
        return Ok(highest);
    }
    let (mut without, mut with) = (0.0, highest);
    while with - without > highest * precision {
        let rate = (without + with) / 2.0;
        if trial(rate)? {
            without = rate;
        } else {
            with = rate;
        }
    }
    Ok(without)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::convert::Infallible;

    fn search(limit: f64) -> (f64, u32) {
        let mut trials = 0;
        let found = zero_loss::<Infallible>(10.0, 0.01, |rate| {
            trials += 1;
            Ok(rate <= limit)
        });
        (found.unwrap(), trials)
    }

    #[test]
    fn the_rate_found_has_no_loss_and_is_close_to_the_limit() {
        for limit in [0.5, 3.3, 7.77, 9.99] {
            let (found, trials) = search(limit);
            assert!(
                found <= limit && limit - found <= 0.1,
                "{found} for {limit}"
            );
            assert!(trials <= 8);
        }
    }

    #[test]
    fn the_highest_rate_is_enough_and_none_may_be_found() {
        assert_eq!(search(11.0), (10.0, 1));
        assert_eq!(search(0.0).0, 0.0);
    }

    #[test]
    fn a_failed_trial_ends_the_search() {
        assert_eq!(
            zero_loss(1.0, 0.1, |_| Err::<bool, _>("broken")),
            Err("broken")
        );
    }
}
