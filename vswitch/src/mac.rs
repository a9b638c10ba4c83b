//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

/// A 48-bit Ethernet address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

/// The bits of an address as a number.
pub const MASK: u64 = (1 << 48) - 1;

/// As [`Mac::is_group`], of an address as a number.
#[inline]
pub const fn is_group(mac: u64) -> bool {
    mac >> 40 & 1 != 0
}

/// As [`Mac::is_station`], of an address as a number.
#[inline]
pub const fn is_station(mac: u64) -> bool {
    !is_group(mac) && mac != 0
}

/// As [`Mac::is_link_local`], of an address as a number.
#[inline]
pub const fn is_link_local(mac: u64) -> bool {
    mac & !0xf == 0x0180_c200_0000
}

impl Mac {
    /// ff:ff:ff:ff:ff:ff.
    pub const BROADCAST: Mac = Mac([0xff; 6]);

    /// The address as a number, first byte on the wire highest: 0 to 2^48 - 1.
    pub const fn to_u64(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }

    /// The address whose number is the low 48 bits of `value`.
    pub const fn from_u64(value: u64) -> Mac {
        let [_, _, a, b, c, d, e, f] = value.to_be_bytes();
        Mac([a, b, c, d, e, f])
    }

    /// Group address: broadcast or multicast (IEEE 802, bit 0 of the first byte).
    pub const fn is_group(self) -> bool {
        is_group(self.to_u64())
    }

    /// An address that a station may send from: not a group, not zero.
    pub const fn is_station(self) -> bool {
        is_station(self.to_u64())
    }

    /// 01:80:c2:00:00:00 to :0f, which bridges do not forward (IEEE 802.1Q, table 8-1).
    pub const fn is_link_local(self) -> bool {
        is_link_local(self.to_u64())
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The text is no Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no MAC address; write six hexadecimal bytes as in 02:00:5e:10:00:01")]
pub struct MacError(String);

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Mac, MacError> {
        let error = || MacError(text.to_owned());
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut bytes = [0u8; 6];
        let mut parts = text.split(separator);
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(error)?;
            if part.len() != 2 || !part.bytes().all(|c| c.is_ascii_hexdigit()) {
                return Err(error());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() {
            Err(error())
        } else {
            Ok(Mac(bytes))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trip_and_refusals() {
        let mac: Mac = "02:00:5E:10:00:01".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:5e:10:00:01");
        assert_eq!("02-00-5e-10-00-01".parse(), Ok(mac));
        assert_eq!(Mac::from_u64(mac.to_u64()), mac);
        for bad in [
            "",
            "02:00:5e:10:00",
            "02:00:5e:10:00:01:02",
            "2:0:5e:10:0:1",
            "02:00:5e:10:00:+1",
            "02:00-5e:10:00:01",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn kinds() {
        assert!(Mac::BROADCAST.is_group() && !Mac::BROADCAST.is_station());
        assert!(!Mac::default().is_station());
        assert!(Mac([0x01, 0x80, 0xc2, 0, 0, 0x0e]).is_link_local());
        assert!(!Mac([0x01, 0x80, 0xc2, 0, 0, 0x10]).is_link_local());
    }
}
