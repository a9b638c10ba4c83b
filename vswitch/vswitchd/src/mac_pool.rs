//! The host's pool of addresses for adapters that are given none.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::str::FromStr;

use serde::Deserialize;
use vswitch::api::{InvalidValue, StationMac};
use vswitch::mac::Mac;

/// A range of addresses, written `FIRST-LAST`. It ends before group addresses begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct MacPool {
    first: StationMac,
    last: StationMac,
}

impl MacPool {
    /// The first address, as a number.
    pub(crate) fn first(self) -> u64 {
        self.first.mac().to_u64()
    }

    /// The last address, as a number.
    pub(crate) fn last(self) -> u64 {
        self.last.mac().to_u64()
    }

    /// 65,536 addresses of the kind that are administered locally (IEEE 802), chosen by chance, so that the adapters
    /// of several hosts on one network have different ones.
    pub(crate) fn by_chance() -> MacPool {
        let [a, b, c, ..] = RandomState::new().hash_one(0).to_ne_bytes();
        MacPool {
            first: Mac([0x52, a, b, c, 0, 0]).into(),
            last: Mac([0x52, a, b, c, 0xff, 0xff]).into(),
        }
    }
}

impl FromStr for MacPool {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<MacPool, InvalidValue> {
        let allowed = "FIRST-LAST, as 52:00:00:00:00:00-52:00:00:00:ff:ff: addresses of stations with the same \
                       first byte, FIRST not above LAST";
        let parse = || {
            let (first, last) = text.split_once('-')?;
            let (first, last): (StationMac, StationMac) = (first.parse().ok()?, last.parse().ok()?);
            let same = first.mac().0.first() == last.mac().0.first();
            (same && first <= last).then_some(MacPool { first, last })
        };
        parse().ok_or_else(|| InvalidValue::new("MAC pool", text, allowed))
    }
}

impl TryFrom<String> for MacPool {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<MacPool, InvalidValue> {
        text.parse()
    }
}

impl fmt::Display for MacPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools() {
        let pool: MacPool = "52:00:00:00:00:10-52:00:00:00:00:1f".parse().unwrap();
        assert_eq!(pool.last() - pool.first(), 15);
        assert_eq!(pool.to_string().parse(), Ok(pool));
        let chosen = MacPool::by_chance();
        assert_eq!(chosen.last() - chosen.first(), 0xffff);
        assert_eq!(chosen.to_string().parse(), Ok(chosen));
        for bad in [
            "",
            "52:00:00:00:00:10",
            "52:00:00:00:00:10-",
            "52:00:00:00:00:11-52:00:00:00:00:10",
            "52:00:00:00:00:11-54:00:00:00:00:10",
            "01:00:00:00:00:00-01:00:00:00:00:10",
            "00:00:00:00:00:00-00:00:00:00:00:10",
        ] {
            assert!(bad.parse::<MacPool>().is_err(), "{bad}");
        }
    }
}
