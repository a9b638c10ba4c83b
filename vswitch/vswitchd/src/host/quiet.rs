//! Keeping the host's network stack out of a bound uplink.
//!
//! The interface carries the switch's traffic only: the host's own addresses live on the host NIC. Linux, however, takes a
//! packet for any of its addresses from any interface, and answers ARP there; and it makes itself an IPv6 address on
//! every interface. Where frames are also seen by the stack (packet socket), they would arrive twice.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use tracing::warn;
use vswitch::api::IfName;

/// Settings of a bound uplink, under `/proc/sys/net` (Documentation/networking/ip-sysctl.rst).
const SETTINGS: [(&str, &str, &str); 3] = [
    // Packets whose way back leads over another interface are dropped: all, as no route leads over this one.
    ("ipv4", "rp_filter", "1"),
    ("ipv4", "arp_ignore", "8"),
    ("ipv6", "disable_ipv6", "1"),
];

/// Settings as they were, by their names.
pub(super) type Settings = BTreeMap<String, String>;

/// The settings of `interface` that [`quieten`] changes. What this kernel has not is left out.
pub(super) fn read(interface: &IfName) -> Settings {
    let setting = |(family, key, _): (&str, &str, &str)| {
        let value = fs::read_to_string(path(interface.as_str(), family, key)).ok()?;
        Some((key.to_owned(), value.trim().to_owned()))
    };
    SETTINGS.into_iter().filter_map(setting).collect()
}

/// Makes the stack leave `interface` alone. What the kernel does not let us set is logged.
pub(super) fn quieten(interface: &IfName) {
    for (family, key, value) in SETTINGS {
        set(interface, family, key, value);
    }
}

/// Gives `interface` the settings that it had before; where they are not known, those of a new interface.
pub(super) fn restore(interface: &IfName, before: Option<&Settings>) {
    for (family, key, _) in SETTINGS {
        let value = match before {
            Some(before) => before.get(key).cloned(),
            None => fs::read_to_string(path("default", family, key)).ok(),
        };
        // This kernel may have no such family.
        if let Some(value) = value {
            set(interface, family, key, value.trim());
        }
    }
}

fn set(interface: &IfName, family: &str, key: &str, value: &str) {
    match fs::write(path(interface.as_str(), family, key), value) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            warn!(%interface, key, value, %error, "a setting of the uplink cannot be made")
        }
    }
}

fn path(interface: &str, family: &str, key: &str) -> String {
    format!("/proc/sys/net/{family}/conf/{interface}/{key}")
}
