//! The policy of a port as text: VLAN membership and MAC guard.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::values::{InvalidValue, VlanId};
use crate::mac::Mac;
use crate::vlan::{MAX_VID, Vid, VidSet, VlanMode};

const VLAN_ALLOWED: &str = "access:ID, trunk:LIST, trunk:LIST,native=ID, trunk:LIST,native=untagged, none; \
                            LIST is all, or IDs and ranges as in 10,20,30-40; IDs are 1 to 4094";

/// How a port takes part in VLANs, written `access:ID`, `trunk:LIST[,native=ID]` or `none`.
///
/// `LIST` is `all`, or IDs and ranges as in `10,20,30-40`. `native=untagged` lets untagged frames pass that belong to
/// no VLAN, as an uplink does; without `native` a trunk drops untagged frames.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, example = "trunk:10,20,30-40,native=10")]
pub struct VlanSpec(VlanMode);

impl VlanSpec {
    /// The mode, as the data path takes it.
    pub fn mode(&self) -> &VlanMode {
        &self.0
    }

    /// Untagged frames of one VLAN.
    pub fn access(vlan: VlanId) -> VlanSpec {
        VlanSpec(VlanMode::Access(vlan.get()))
    }

    /// Everything passes as it is: what an uplink does unless told otherwise.
    pub fn all() -> VlanSpec {
        VlanSpec(VlanMode::Trunk {
            allowed: all_vids(),
            native: Some(0),
        })
    }

    /// The VLAN of an access port.
    pub fn access_vlan(&self) -> Option<VlanId> {
        match self.0 {
            VlanMode::Access(vid) => VlanId::try_from(i64::from(vid)).ok(),
            _ => None,
        }
    }
}

fn all_vids() -> VidSet {
    let mut set = VidSet::empty();
    (1..=MAX_VID).for_each(|vid| set.insert(vid));
    set
}

impl FromStr for VlanSpec {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<VlanSpec, InvalidValue> {
        let error = || InvalidValue::new("VLAN setting", text, VLAN_ALLOWED);
        let mode = if text == "none" {
            VlanMode::None
        } else if let Some(id) = text.strip_prefix("access:") {
            VlanMode::Access(id.parse::<VlanId>().map_err(|_| error())?.get())
        } else if let Some(trunk) = text.strip_prefix("trunk:") {
            let (list, native) = match trunk.split_once(",native=") {
                Some((list, "untagged")) => (list, Some(0)),
                Some((list, id)) => (list, Some(id.parse::<VlanId>().map_err(|_| error())?.get())),
                None => (trunk, None),
            };
            VlanMode::Trunk {
                allowed: parse_list(list).ok_or_else(error)?,
                native,
            }
        } else {
            return Err(error());
        };
        Ok(VlanSpec(mode))
    }
}

fn parse_list(list: &str) -> Option<VidSet> {
    if list == "all" {
        return Some(all_vids());
    }
    let mut set = VidSet::empty();
    for item in list.split(',') {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        let first = first.parse::<VlanId>().ok()?.get();
        let last = last.parse::<VlanId>().ok()?.get();
        if first > last {
            return None;
        }
        (first..=last).for_each(|vid| set.insert(vid));
    }
    Some(set)
}

impl fmt::Display for VlanSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            VlanMode::None => f.pad("none"),
            VlanMode::Access(vid) => write!(f, "access:{vid}"),
            VlanMode::Trunk { allowed, native } => {
                write!(f, "trunk:{}", show_list(allowed))?;
                match native {
                    Some(0) => f.write_str(",native=untagged"),
                    Some(vid) => write!(f, ",native={vid}"),
                    None => Ok(()),
                }
            }
        }
    }
}

fn show_list(set: &VidSet) -> String {
    let mut ranges: Vec<(Vid, Vid)> = Vec::new();
    for vid in set.iter() {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == vid => *last = vid,
            _ => ranges.push((vid, vid)),
        }
    }
    if ranges == [(1, MAX_VID)] {
        return "all".to_owned();
    }
    let shown: Vec<String> = ranges
        .into_iter()
        .map(|(first, last)| {
            if first == last {
                first.to_string()
            } else {
                format!("{first}-{last}")
            }
        })
        .collect();
    shown.join(",")
}

impl TryFrom<String> for VlanSpec {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<VlanSpec, InvalidValue> {
        text.parse()
    }
}

impl From<VlanSpec> for String {
    fn from(spec: VlanSpec) -> String {
        spec.to_string()
    }
}

/// Longest list of a MAC guard.
pub const MAX_GUARD: usize = 64;

/// The source addresses a port may send from, written `off`, or addresses with commas between.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, example = "02:00:5e:10:00:01,02:00:5e:10:00:02")]
pub struct MacGuard(Option<Vec<Mac>>);

impl MacGuard {
    /// The list; `None` where the guard is off.
    pub fn list(&self) -> Option<&[Mac]> {
        self.0.as_deref()
    }
}

impl FromStr for MacGuard {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<MacGuard, InvalidValue> {
        if text == "off" {
            return Ok(MacGuard(None));
        }
        let error = |value: &str| {
            let allowed =
                "off, or 1 to 64 station addresses with commas between, as 02:00:5e:10:00:01";
            InvalidValue::new("MAC guard", value, allowed)
        };
        let mut list = Vec::new();
        for item in text.split(',') {
            let mac: Mac = item.parse().map_err(|_| error(item))?;
            if !mac.is_station() {
                return Err(error(item));
            }
            list.push(mac);
        }
        list.sort_unstable();
        list.dedup();
        if list.len() > MAX_GUARD {
            Err(error(text))
        } else {
            Ok(MacGuard(Some(list)))
        }
    }
}

impl fmt::Display for MacGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            None => f.pad("off"),
            Some(list) => {
                let shown: Vec<String> = list.iter().map(Mac::to_string).collect();
                f.pad(&shown.join(","))
            }
        }
    }
}

impl TryFrom<String> for MacGuard {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<MacGuard, InvalidValue> {
        text.parse()
    }
}

impl From<MacGuard> for String {
    fn from(guard: MacGuard) -> String {
        guard.to_string()
    }
}

/// The address of a station, as a user writes it: neither a group address nor zero.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, example = "02:00:5e:10:00:01")]
pub struct StationMac(Mac);

impl StationMac {
    /// The address.
    pub fn mac(self) -> Mac {
        self.0
    }
}

impl FromStr for StationMac {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<StationMac, InvalidValue> {
        let mac = text.parse().ok().filter(|mac: &Mac| mac.is_station());
        mac.map(StationMac).ok_or_else(|| {
            let allowed =
                "the address of one station, as 02:00:5e:10:00:01; no group address, not zero";
            InvalidValue::new("MAC address", text, allowed)
        })
    }
}

impl TryFrom<String> for StationMac {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<StationMac, InvalidValue> {
        text.parse()
    }
}

impl From<StationMac> for String {
    fn from(mac: StationMac) -> String {
        mac.to_string()
    }
}

impl From<Mac> for StationMac {
    /// What the switch learnt is a station's address already.
    fn from(mac: Mac) -> StationMac {
        StationMac(mac)
    }
}

impl fmt::Display for StationMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vlan_settings() {
        for (text, shown) in [
            ("none", "none"),
            ("access:1", "access:1"),
            ("access:4094", "access:4094"),
            ("trunk:all", "trunk:all"),
            ("trunk:1-4094", "trunk:all"),
            ("trunk:all,native=7", "trunk:all,native=7"),
            ("trunk:all,native=untagged", "trunk:all,native=untagged"),
            ("trunk:20,10,30-40,11", "trunk:10-11,20,30-40"),
            ("trunk:10,native=20", "trunk:10,native=20"),
        ] {
            let spec: VlanSpec = text.parse().unwrap();
            assert_eq!(spec.to_string(), shown);
            assert_eq!(shown.parse(), Ok(spec), "{text}");
        }
        for bad in [
            "",
            "access",
            "access:",
            "access:0",
            "access:4095",
            "access:65546",
            "access:-1",
            "access:10 ",
            "trunk",
            "trunk:",
            "trunk:0",
            "trunk:4095",
            "trunk:1-4095",
            "trunk:20-10",
            "trunk:10,",
            "trunk:10,,20",
            "trunk:1-2-3",
            "trunk:10,native=",
            "trunk:10,native=0",
            "trunk:10,native=4095",
            "trunk:10,native=1,native=2",
            "trunk:,native=1",
            "trunk:10,all",
            "None",
            "10",
            "access:10,20",
        ] {
            let error = bad.parse::<VlanSpec>().unwrap_err().to_string();
            assert!(error.contains("1 to 4094"), "{bad}: {error}");
        }
    }

    #[test]
    fn vlan_modes() {
        let trunk: VlanSpec = "trunk:10,30-31,native=10".parse().unwrap();
        let VlanMode::Trunk { allowed, native } = trunk.mode() else {
            panic!("{trunk}")
        };
        assert_eq!(allowed.iter().collect::<Vec<_>>(), [10, 30, 31]);
        assert_eq!(*native, Some(10));
        assert_eq!(VlanSpec::all().to_string(), "trunk:all,native=untagged");
        assert_eq!(
            "access:9"
                .parse::<VlanSpec>()
                .unwrap()
                .access_vlan()
                .unwrap()
                .get(),
            9
        );
    }

    #[test]
    fn mac_guards() {
        for (text, shown) in [
            ("off", "off"),
            ("02:00:00:00:00:01", "02:00:00:00:00:01"),
            (
                "02-00-00-00-00-0B,02:00:00:00:00:01,02:00:00:00:00:01",
                "02:00:00:00:00:01,02:00:00:00:00:0b",
            ),
        ] {
            assert_eq!(text.parse::<MacGuard>().unwrap().to_string(), shown);
        }
        let many: Vec<String> = (0..65).map(|i| format!("02:00:00:00:00:{i:02x}")).collect();
        for bad in [
            "",
            "on",
            "02:00:00:00:00:01,",
            "ff:ff:ff:ff:ff:ff",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            &many.join(","),
        ] {
            assert!(bad.parse::<MacGuard>().is_err(), "{bad}");
        }
        assert!(many[..64].join(",").parse::<MacGuard>().is_ok());
        assert!("ff:ff:ff:ff:ff:ff".parse::<StationMac>().is_err());
    }
}
