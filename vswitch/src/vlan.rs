//! VLAN membership of a port: which frames come in as which VLAN, and which leave how (IEEE 802.1Q).
//!
//! Inside the switch each frame belongs to one VLAN, 1 to 4094, or to none, written 0. A frame of no VLAN reaches the
//! ports that are in none, and trunks whose native VLAN is 0.

use crate::drops::DropReason;

/// A VLAN identifier: 1 to 4094; 0 stands for no VLAN.
pub type Vid = u16;

/// Highest VLAN a port may be given; 4095 is reserved (IEEE 802.1Q, table 9-2).
pub const MAX_VID: Vid = 4094;

/// The set of VLANs a trunk allows: a bit for each of 0 to 4095.
#[derive(Clone, PartialEq, Eq)]
pub struct VidSet(Box<[u64; 64]>);

impl VidSet {
    /// No VLAN.
    pub fn empty() -> VidSet {
        VidSet(Box::new([0; 64]))
    }

    /// Adds `vid`. Values above 4095 are not VLANs and are not added.
    pub fn insert(&mut self, vid: Vid) {
        if let Some(word) = self.0.get_mut(usize::from(vid / 64)) {
            *word |= 1 << (vid % 64);
        }
    }

    /// Whether `vid` is in the set.
    pub fn contains(&self, vid: Vid) -> bool {
        self.0
            .get(usize::from(vid / 64))
            .is_some_and(|word| word >> (vid % 64) & 1 != 0)
    }

    /// The VLANs in the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Vid> + '_ {
        (0..=4095).filter(|&vid| self.contains(vid))
    }
}

impl std::fmt::Debug for VidSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// How a port takes part in VLANs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum VlanMode {
    /// In no VLAN: untagged frames only. Priority-tagged frames (VLAN 0) count as untagged.
    #[default]
    None,
    /// Untagged frames of one VLAN; the guest knows nothing of it.
    Access(Vid),
    /// Tagged frames of the allowed VLANs, and untagged ones of the native VLAN if there is one.
    Trunk {
        /// VLANs that may pass with a tag.
        allowed: VidSet,
        /// The VLAN of untagged frames, both ways. `Some(0)` is "no VLAN". Without one, untagged frames are dropped.
        native: Option<Vid>,
    },
}

/// How a frame leaves a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Egress {
    /// Without a tag.
    Untagged,
    /// With an 802.1Q tag of the frame's VLAN.
    Tagged,
}

impl VlanMode {
    /// The VLAN that a frame belongs to which comes in with `tag_vid` (`None`: no 802.1Q tag).
    pub fn ingress(&self, tag_vid: Option<Vid>) -> Result<Vid, DropReason> {
        // A priority tag carries no VLAN (IEEE 802.1Q 6.9): the frame is classified as an untagged one.
        let tag_vid = tag_vid.filter(|&vid| vid != 0);
        match (self, tag_vid) {
            (VlanMode::None, None) => Ok(0),
            (VlanMode::Access(vid), None) => Ok(*vid),
            (VlanMode::None | VlanMode::Access(_), Some(_)) => Err(DropReason::VlanTagged),
            (VlanMode::Trunk { native, .. }, None) => native.ok_or(DropReason::VlanUntagged),
            (VlanMode::Trunk { allowed, .. }, Some(vid)) => {
                if allowed.contains(vid) {
                    Ok(vid)
                } else {
                    Err(DropReason::VlanNotAllowed)
                }
            }
        }
    }

    /// How a frame of `vid` leaves this port; `None` if it does not.
    pub fn egress(&self, vid: Vid) -> Option<Egress> {
        match self {
            VlanMode::None => (vid == 0).then_some(Egress::Untagged),
            VlanMode::Access(own) => (vid == *own).then_some(Egress::Untagged),
            VlanMode::Trunk { native, .. } if *native == Some(vid) => Some(Egress::Untagged),
            VlanMode::Trunk { allowed, .. } => {
                (vid != 0 && allowed.contains(vid)).then_some(Egress::Tagged)
            }
        }
    }
}
