//! The address of a network's host NIC. DHCP servers and neighbours know the host by it, so it is kept with the network
//! and given again to a device that is made anew, as after a reboot.
//!
//! * With an uplink it is the uplink's, as the host had it before. It stays when the card is replaced.
//! * Without one it is chosen by chance, and not out of the pool for adapters of VMs: an operator plans that for guests,
//!   its addresses are never given twice, and one that is used up shall not keep a network from being made.
//!
//! A device that is there keeps the address it has: what an operator sets by `ip link` holds as long as the device.

use std::hash::{BuildHasher, RandomState};

use vswitch::api::{NetworkKind, StationMac};
use vswitch::mac::Mac;

use super::plant::Plant;

impl Plant {
    /// The address for the host NIC of a new network; `None` if it has none.
    pub(super) fn choose_host_mac(&self, kind: &NetworkKind) -> anyhow::Result<Option<StationMac>> {
        if kind.host_nic().is_none() {
            return Ok(None);
        }
        let physical = kind.uplink().map(|uplink| self.host.mac(uplink));
        let physical = physical.transpose()?.flatten();
        Ok(Some(physical.unwrap_or_else(by_chance)))
    }

    /// The address for the host NIC of a network that none was kept for: the one it has.
    pub(super) fn find_host_mac(&self, kind: &NetworkKind) -> anyhow::Result<Option<StationMac>> {
        let present = kind.host_nic().map(|nic| self.host.mac(nic));
        match present.transpose()?.flatten() {
            Some(mac) => Ok(Some(mac)),
            None => self.choose_host_mac(kind),
        }
    }
}

/// A locally administered address (IEEE 802). Pools that are chosen by chance have another first byte.
fn by_chance() -> StationMac {
    let [a, b, c, d, e, ..] = RandomState::new().hash_one(0).to_ne_bytes();
    Mac([0x56, a, b, c, d, e]).into()
}
