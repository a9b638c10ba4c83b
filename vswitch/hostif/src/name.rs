//! Interface names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Bytes in the name field of the kernel's structures, with the closing zero (`IFNAMSIZ`, linux/if.h).
pub(crate) const IFNAMSIZ: usize = 16;

/// The name of a network interface: 1 to 15 printable ASCII characters without `/`, `:`, `%` and blanks, neither `.`
/// nor `..`.
///
/// These are the kernel's own rules (`dev_valid_name`), but for two that are stricter: `%` would be taken for a pattern
/// to number new devices by, and bytes outside ASCII make names that no tool shows alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IfName(String);

/// A name that no interface may have.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} cannot name an interface: 1 to 15 printable ASCII characters without '/', ':', '%' and blanks, not '.' or '..'"
)]
pub struct BadName(String);

impl IfName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as the kernel's structures hold it: filled up with zeros.
    pub(crate) fn padded(&self) -> [u8; IFNAMSIZ] {
        let mut bytes = [0; IFNAMSIZ];
        for (to, from) in bytes.iter_mut().zip(self.0.bytes()) {
            *to = from;
        }
        bytes
    }
}

impl FromStr for IfName {
    type Err = BadName;

    fn from_str(name: &str) -> Result<Self, BadName> {
        let fits = (1..IFNAMSIZ).contains(&name.len());
        let clean = name
            .bytes()
            .all(|b| b.is_ascii_graphic() && !b"/:%".contains(&b));
        if fits && clean && name != "." && name != ".." {
            Ok(Self(name.to_owned()))
        } else {
            Err(BadName(name.to_owned()))
        }
    }
}

impl TryFrom<String> for IfName {
    type Error = BadName;

    fn try_from(name: String) -> Result<Self, BadName> {
        name.parse()
    }
}

impl From<IfName> for String {
    fn from(name: IfName) -> Self {
        name.0
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_kernels_rules() {
        for good in ["a", "vsw-lan", "eth0.10", "fifteen-bytes-x"] {
            assert_eq!(good.parse::<IfName>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "sixteen-bytes-xx",
            ".",
            "..",
            "a/b",
            "a:b",
            "tap%d",
            "a b",
            "a\n",
            "é",
        ] {
            assert!(bad.parse::<IfName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn is_checked_when_deserialised() {
        assert!(serde_json::from_str::<IfName>("\"eth0\"").is_ok());
        assert!(serde_json::from_str::<IfName>("\"eth/0\"").is_err());
    }
}
