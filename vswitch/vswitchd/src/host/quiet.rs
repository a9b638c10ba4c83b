//! Keeping the host's network stack out of a bound uplink.
//!
//! The interface carries the switch's traffic only: the host's own addresses live on the host NIC. Linux, however, takes a
//! packet for any of its addresses from any interface, and answers ARP there; and it makes itself an IPv6 address on
//! every interface. Where frames are also seen by the stack (packet socket), they would arrive twice.

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

/// Makes the stack leave `interface` alone. What the kernel does not let us set is logged.
pub(super) fn quieten(interface: &IfName) {
    for (family, key, value) in SETTINGS {
        set(interface, family, key, value);
    }
}

/// Gives `interface` the settings of a new one.
pub(super) fn restore(interface: &IfName) {
    for (family, key, _) in SETTINGS {
        match fs::read_to_string(path("default", family, key)) {
            Ok(value) => set(interface, family, key, value.trim()),
            // This kernel has no such family.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => warn!(%interface, key, %error, "a setting of the uplink is not restored"),
        }
    }
}

fn set(interface: &IfName, family: &str, key: &str, value: &str) {
    match fs::write(path(interface.as_str(), family, key), value) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            warn!(%interface, key, value, %error, "the host's network stack may hear the uplink")
        }
    }
}

fn path(interface: &str, family: &str, key: &str) -> String {
    format!("/proc/sys/net/{family}/conf/{interface}/{key}")
}
