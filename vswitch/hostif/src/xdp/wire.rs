//! Frames as they are on the wire: what a NIC or the kernel changes in received frames is switched off meanwhile.

use crate::info::ioctl_socket;
use crate::name::IfName;
use crate::sys::ioctl::{ethtool_flags, ethtool_gro, ethtool_set_flags, ethtool_set_gro};

/// `ETH_FLAG_RXVLAN`: the NIC takes VLAN tags out of frames, where an XDP program can't see them.
const RX_VLAN: u32 = 1 << 8;
/// `ETH_FLAG_LRO`: the NIC joins TCP segments.
const LRO: u32 = 1 << 15;

/// What was switched off, put back on drop.
#[derive(Debug)]
pub(super) struct Wire {
    name: IfName,
    cleared: u32,
    gro: bool,
    /// Received frames have their VLAN tags.
    pub(super) vlan_tags: bool,
}

impl Wire {
    /// Switches off tag stripping and segment joining, as far as the driver can.
    ///
    /// A `software` device may pass on the tags that its sender keeps beside the frame, which no setting of its own changes.
    pub(super) fn new(name: &IfName, software: bool) -> Self {
        let mut wire = Self {
            name: name.clone(),
            cleared: 0,
            gro: false,
            vlan_tags: false,
        };
        let Ok(socket) = ioctl_socket() else {
            return wire;
        };
        // Not every driver has the calls; what counts is what the flags are in the end.
        let before = ethtool_flags(&socket, name).unwrap_or(0);
        let _ = ethtool_set_flags(&socket, name, before & !(RX_VLAN | LRO));
        let after = ethtool_flags(&socket, name).unwrap_or(0);
        wire.cleared = before & !after;
        wire.gro = ethtool_gro(&socket, name).unwrap_or(false)
            && ethtool_set_gro(&socket, name, false).is_ok();
        wire.vlan_tags = after & RX_VLAN == 0 && !software;
        wire
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // The interface may be gone, and then there is nothing to put back.
        let Ok(socket) = ioctl_socket() else { return };
        if self.cleared != 0
            && let Ok(flags) = ethtool_flags(&socket, &self.name)
        {
            let _ = ethtool_set_flags(&socket, &self.name, flags | self.cleared);
        }
        if self.gro {
            let _ = ethtool_set_gro(&socket, &self.name, true);
        }
    }
}
