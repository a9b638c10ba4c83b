//! The values that users write, each checked when it is parsed, so that what has the type is right.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::fdb::{DEFAULT_AGEING, DEFAULT_CAPACITY, DEFAULT_QUOTA};
use crate::vlan::{MAX_VID, Vid};

/// A value that is not allowed: what it was meant to be, the value, and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} '{value}' is not allowed; allowed: {allowed}")]
pub struct InvalidValue {
    /// What the value stands for, as "MTU".
    pub what: &'static str,
    /// The value, shortened to 80 characters.
    pub value: String,
    /// What would be allowed.
    pub allowed: &'static str,
}

impl InvalidValue {
    /// An error about `value`, which may be long and hostile: only its beginning is kept, escaped.
    pub fn new(what: &'static str, value: &str, allowed: &'static str) -> InvalidValue {
        let mut shown: String = value
            .chars()
            .take(80)
            .flat_map(char::escape_default)
            .collect();
        if value.chars().nth(80).is_some() {
            shown.push('…');
        }
        InvalidValue {
            what,
            value: shown,
            allowed,
        }
    }
}

/// Declares how a type that is parsed from text is read and written by serde.
macro_rules! as_text {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = InvalidValue;

            fn try_from(text: String) -> Result<Self, InvalidValue> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.to_string()
            }
        }
    };
}
pub(super) use as_text;

/// Gives the variants of an enumeration the words that users write and read.
macro_rules! words {
    ($name:ident, $what:literal, $first:ident => $first_word:literal $(, $variant:ident => $word:literal)* $(,)?) => {
        impl FromStr for $name {
            type Err = InvalidValue;

            fn from_str(text: &str) -> Result<Self, InvalidValue> {
                match text {
                    $first_word => Ok($name::$first),
                    $($word => Ok($name::$variant),)*
                    _ => Err(InvalidValue::new($what, text, concat!($first_word $(, ", ", $word)*))),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self {
                    $name::$first => $first_word,
                    $($name::$variant => $word,)*
                })
            }
        }
    };
}
pub(super) use words;

/// Declares a type that is a checked text.
macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $allowed:literal, $check:path) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidValue;

            fn from_str(text: &str) -> Result<Self, InvalidValue> {
                if $check(text) {
                    Ok($name(text.to_owned()))
                } else {
                    Err(InvalidValue::new($what, text, $allowed))
                }
            }
        }

        as_text!($name);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}
pub(super) use text_type;

text_type! {
    /// The name of a network.
    NetworkName, "network name",
    "1 to 64 characters A-Z a-z 0-9 . _ -, the first a letter or digit", is_name
}

text_type! {
    /// The name of a port, unique in its network.
    PortName, "port name",
    "1 to 64 characters A-Z a-z 0-9 . _ -, the first a letter or digit", is_name
}

text_type! {
    /// The name of a network interface of the host (Linux `dev_valid_name`, ASCII only and without `%`).
    IfName, "interface name",
    "1 to 15 printable ASCII characters without space, '/', ':' and '%', and neither '.' nor '..'", is_ifname
}

text_type! {
    /// The path of a unix socket (`sun_path` in unix(7)).
    SocketPath, "socket path",
    "an absolute path of at most 107 bytes, without NUL, not ending in '/'", is_socket_path
}

fn is_name(text: &str) -> bool {
    text.len() <= 64
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c))
}

fn is_ifname(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && text != "."
        && text != ".."
        && text
            .bytes()
            .all(|c| c.is_ascii_graphic() && !b"/:%".contains(&c))
}

fn is_socket_path(text: &str) -> bool {
    text.len() <= 107 && text.starts_with('/') && !text.ends_with('/') && !text.contains('\0')
}

/// Declares a type that is a number in a range.
macro_rules! number_type {
    ($(#[$doc:meta])* $name:ident($number:ident, $json:tt), $what:literal, $range:expr, $allowed:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
        )]
        #[serde(try_from = "i64", into = $json)]
        pub struct $name($number);

        impl $name {
            /// The number.
            pub const fn get(self) -> $number {
                self.0
            }
        }

        impl TryFrom<i64> for $name {
            type Error = InvalidValue;

            fn try_from(number: i64) -> Result<Self, InvalidValue> {
                $number::try_from(number)
                    .ok()
                    .filter(|number| $range.contains(number))
                    .map($name)
                    .ok_or_else(|| InvalidValue::new($what, &number.to_string(), $allowed))
            }
        }

        impl FromStr for $name {
            type Err = InvalidValue;

            fn from_str(text: &str) -> Result<Self, InvalidValue> {
                // Digits only: "+5" is a number for Rust, but not here.
                if !text.bytes().all(|c| c.is_ascii_digit()) {
                    return Err(InvalidValue::new($what, text, $allowed));
                }
                text.parse()
                    .map_err(|_| InvalidValue::new($what, text, $allowed))
                    .and_then(|number: i64| number.try_into())
            }
        }

        impl From<$name> for $number {
            fn from(value: $name) -> $number {
                value.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number_type! {
    /// Bytes of an IP packet, at most; the Ethernet header and tags come on top.
    Mtu(u16, "u16"), "MTU", (68..=9000), "68 to 9000"
}

number_type! {
    /// A VLAN identifier (IEEE 802.1Q): 0 and 4095 are reserved.
    VlanId(u16, "u16"), "VLAN", (1..=MAX_VID as Vid), "1 to 4094"
}

number_type! {
    /// Pairs of queues of a port.
    Queues(u16, "u16"), "number of queues", (1..=16), "1 to 16"
}

number_type! {
    /// Seconds that a MAC table remembers a silent station (IEEE 802.1Q, table 8-6: up to a million); 0 is for ever.
    Ageing(u32, "u32"), "ageing time", (0..=1_000_000), "0 (never) to 1000000 seconds"
}

number_type! {
    /// Most addresses that are learned behind a port: up to all that a MAC table holds.
    MacQuota(u32, "u32"), "MAC quota", (1..=DEFAULT_CAPACITY as u32), "1 to 1048576"
}

impl Ageing {
    /// The ageing time of a network that is given none: 300 s.
    pub const DEFAULT: Ageing = Ageing(DEFAULT_AGEING);
}

impl MacQuota {
    /// The quota of a port that is given none: 131072.
    pub const DEFAULT: MacQuota = MacQuota(DEFAULT_QUOTA);
    /// That of an uplink, behind which all stations of the physical network are: as many as the table holds.
    pub const UPLINK: MacQuota = MacQuota(DEFAULT_CAPACITY as u32);
}

impl Mtu {
    /// The MTU of a network that is given none: 1500.
    pub const DEFAULT: Mtu = Mtu(1500);
}

impl Queues {
    /// One pair.
    pub const ONE: Queues = Queues(1);
}

/// The state of a port's link, as the operator sets it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Link {
    /// Frames pass.
    #[default]
    Up,
    /// Every frame from and to the port is dropped.
    Down,
}

words! {
    Link, "link state",
    Up => "up", Down => "down"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let longest = "n".repeat(64);
        for good in ["a", "0", "lab.net_1-x", &longest] {
            assert_eq!(good.parse::<NetworkName>().unwrap().as_str(), good);
            assert!(good.parse::<PortName>().is_ok());
        }
        let too_long = "n".repeat(65);
        for bad in [
            "", ".", "..", "-x", "_x", "a b", "a/b", "ä", "a\n", "a\0", &too_long,
        ] {
            let error = bad.parse::<NetworkName>().unwrap_err().to_string();
            assert!(error.contains("1 to 64 characters"), "{error}");
        }
    }

    #[test]
    fn interface_names() {
        for good in ["e", "eth0", "enp3s0f1.100", "abcdefghijklmno", "vsw-lab"] {
            assert!(good.parse::<IfName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "abcdefghijklmnop",
            "a b",
            "a/b",
            "a:1",
            "tap%d",
            "eth\u{7f}",
            "é",
        ] {
            assert!(bad.parse::<IfName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn socket_paths() {
        let longest = format!("/{}", "p".repeat(106));
        for good in ["/run/vm.sock", &longest] {
            assert!(good.parse::<SocketPath>().is_ok(), "{good}");
        }
        let too_long = format!("/{}", "p".repeat(107));
        for bad in ["", "vm.sock", "./vm.sock", "/run/", "/", "/a\0b", &too_long] {
            let error = bad.parse::<SocketPath>().unwrap_err().to_string();
            assert!(error.contains("at most 107 bytes"), "{error}");
        }
    }

    #[test]
    fn numbers() {
        for good in ["68", "1500", "9000"] {
            assert_eq!(good.parse::<Mtu>().unwrap().to_string(), good);
        }
        for bad in [
            "67",
            "9001",
            "65536",
            "0",
            "-1",
            "+1500",
            "",
            "1e3",
            " 1500",
            "99999999999999999999",
        ] {
            let error = bad.parse::<Mtu>().unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("MTU '{bad}' is not allowed; allowed: 68 to 9000")
            );
        }
        for (text, good) in [
            ("0", false),
            ("1", true),
            ("4094", true),
            ("4095", false),
            ("65537", false),
        ] {
            assert_eq!(text.parse::<VlanId>().is_ok(), good, "{text}");
        }
        assert!(
            Queues::try_from(0).is_err()
                && Queues::try_from(17).is_err()
                && Queues::try_from(16).is_ok()
        );
    }

    #[test]
    fn mac_table_settings() {
        for (text, good) in [
            ("0", true),
            ("1000000", true),
            ("1000001", false),
            ("-1", false),
        ] {
            assert_eq!(text.parse::<Ageing>().is_ok(), good, "{text}");
        }
        for (text, good) in [
            ("0", false),
            ("1", true),
            ("1048576", true),
            ("1048577", false),
        ] {
            assert_eq!(text.parse::<MacQuota>().is_ok(), good, "{text}");
        }
        assert_eq!(Ageing::DEFAULT.to_string(), "300");
        assert_eq!(MacQuota::UPLINK, "1048576".parse().unwrap());
    }

    #[test]
    fn long_hostile_values_are_shortened_and_escaped() {
        let error = "\x1b[2J".repeat(1000).parse::<NetworkName>().unwrap_err();
        assert!(
            error.value.chars().count() < 800 && !error.value.contains('\x1b'),
            "{}",
            error.value
        );
        assert!(error.value.ends_with('…'));
    }
}
