//! The Gregorian calendar, as far as a clock with years 0 to 9999 needs it.

/// A moment, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Calendar {
    /// Year, 0 to 9999.
    pub(super) year: u16,
    /// Month, 1 to 12.
    pub(super) month: u8,
    /// Day of the month, from 1 on.
    pub(super) day: u8,
    /// Hour, 0 to 23.
    pub(super) hour: u8,
    /// Minute, 0 to 59.
    pub(super) minute: u8,
    /// Second, 0 to 59.
    pub(super) second: u8,
}

/// Days from 1 March of the year 0 to 1 January 1970.
const EPOCH: i64 = 719_468;
const DAYS_IN_400_YEARS: i64 = 146_097;

impl Calendar {
    /// The moment `seconds` after the start of 1970; the years outside 0 to 9999 are cut off there.
    pub(super) fn from_unix(seconds: i64) -> Self {
        // 0000-03-01 and 9999-12-31T23:59:59.
        let seconds = seconds.clamp(-EPOCH * 86_400, 253_402_300_799);
        let (days, second) = (
            seconds.div_euclid(86_400) + EPOCH,
            seconds.rem_euclid(86_400),
        );
        // Years that start in March have their leap day at the end.
        let (era, day) = (
            days.div_euclid(DAYS_IN_400_YEARS),
            days.rem_euclid(DAYS_IN_400_YEARS),
        );
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        // From March on, five months have 153 days.
        let month = (5 * day + 2) / 153;
        let late = i64::from(month >= 10);
        Self {
            year: (era * 400 + year + late) as u16,
            month: ((month + 2) % 12 + 1) as u8,
            day: (day - (153 * month + 2) / 5 + 1) as u8,
            hour: (second / 3_600) as u8,
            minute: (second / 60 % 60) as u8,
            second: (second % 60) as u8,
        }
    }

    /// Seconds since the start of 1970; `None` if there is no such moment.
    pub(super) fn to_unix(self) -> Option<i64> {
        let in_range = (1..=12).contains(&self.month)
            && (1..=31).contains(&self.day)
            && self.hour < 24
            && self.minute < 60
            && self.second < 60;
        if !in_range {
            return None;
        }
        let month = (i64::from(self.month) + 9) % 12;
        let year = i64::from(self.year) - i64::from(self.month <= 2);
        let day = (153 * month + 2) / 5 + i64::from(self.day) - 1;
        let days = 365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
        let of_day = i64::from(self.hour) * 3_600 + i64::from(self.minute) * 60;
        let seconds = (days + day - EPOCH) * 86_400 + of_day + i64::from(self.second);
        (Self::from_unix(seconds) == self).then_some(seconds)
    }

    /// Day of the week: 1 is Sunday.
    pub(super) fn weekday(self) -> u8 {
        let days = self.to_unix().unwrap_or(0).div_euclid(86_400);
        // 1970-01-01 was a Thursday.
        ((days + 4).rem_euclid(7) + 1) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn date(year: u16, month: u8, day: u8) -> Calendar {
        Calendar {
            year,
            month,
            day,
            hour: 0,
            minute: 0,
            second: 0,
        }
    }

    #[test]
    fn known_days() {
        for (seconds, expected, weekday) in [
            (0, date(1970, 1, 1), 5),
            (951_782_400, date(2000, 2, 29), 3),
            (951_868_800, date(2000, 3, 1), 4),
            (4_107_456_000, date(2100, 2, 28), 1),
            (4_107_542_400, date(2100, 3, 1), 2),
            (-86_400, date(1969, 12, 31), 4),
        ] {
            assert_eq!(Calendar::from_unix(seconds), expected);
            assert_eq!(expected.to_unix(), Some(seconds));
            assert_eq!(expected.weekday(), weekday, "{expected:?}");
        }
        let moment = Calendar {
            hour: 23,
            minute: 59,
            second: 58,
            ..date(2026, 11, 21)
        };
        assert_eq!(moment.to_unix(), Some(1_795_305_598));
    }

    #[test]
    fn every_day_of_four_centuries_has_a_successor() {
        let mut previous = Calendar::from_unix(-86_400);
        for day in 0..DAYS_IN_400_YEARS {
            let today = Calendar::from_unix(day * 86_400);
            let next_day = (today.year, today.month, today.day)
                == (previous.year, previous.month, previous.day + 1);
            let next_month = today.day == 1 && (previous.month % 12 + 1 == today.month);
            assert!(next_day || next_month, "{previous:?} {today:?}");
            assert_eq!(today.to_unix(), Some(day * 86_400));
            previous = today;
        }
    }

    #[test]
    fn what_is_no_moment_is_none() {
        let hour = |hour| Calendar {
            hour,
            ..date(2026, 1, 1)
        };
        for none in [
            date(2026, 2, 29),
            date(2026, 4, 31),
            date(2026, 0, 1),
            date(2026, 1, 0),
            hour(24),
        ] {
            assert_eq!(none.to_unix(), None, "{none:?}");
        }
        for extreme in [i64::MIN, i64::MAX] {
            let moment = Calendar::from_unix(extreme);
            assert!(moment.year <= 9999 && moment.to_unix().is_some());
        }
    }
}
