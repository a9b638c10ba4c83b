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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn vid() -> impl Strategy<Value = Vid> {
        // Few, so that they meet.
        prop::sample::select(vec![1, 2, 10, 4093, 4094])
    }

    /// What is tagged, untagged, and whether tagged frames are refused altogether.
    type Table = (BTreeSet<Vid>, Option<Vid>, bool);

    fn mode() -> impl Strategy<Value = (VlanMode, Table)> {
        let trunk = (
            prop::collection::btree_set(vid(), 0..4),
            prop::option::of(prop_oneof![Just(0), vid()]),
        );
        prop_oneof![
            Just((VlanMode::None, (BTreeSet::new(), Some(0), true))),
            vid().prop_map(|vid| (VlanMode::Access(vid), (BTreeSet::new(), Some(vid), true))),
            trunk.prop_map(|(set, native)| {
                let mut allowed = VidSet::empty();
                set.iter().for_each(|&vid| allowed.insert(vid));
                (VlanMode::Trunk { allowed, native }, (set, native, false))
            }),
        ]
    }

    proptest! {
        #[test]
        fn rules_are_those_of_the_table(
            (mode, (tagged, untagged, refuses)) in mode(),
            tag in prop::option::of(prop_oneof![Just(0), vid(), 0u16..4096]),
        ) {
            let expected = match tag {
                None | Some(0) => untagged.ok_or(DropReason::VlanUntagged),
                Some(_) if refuses => Err(DropReason::VlanTagged),
                Some(vid) => tagged.get(&vid).copied().ok_or(DropReason::VlanNotAllowed),
            };
            prop_assert_eq!(mode.ingress(tag), expected);
            for vid in 0..=4095 {
                let expected = if untagged == Some(vid) {
                    Some(Egress::Untagged)
                } else {
                    tagged.contains(&vid).then_some(Egress::Tagged)
                };
                prop_assert_eq!(mode.egress(vid), expected);
            }
        }

        #[test]
        fn what_came_in_may_go_out_at_a_port_of_the_same_mode((mode, _) in mode(), tag in prop::option::of(vid())) {
            if let Ok(vid) = mode.ingress(tag) {
                let egress = mode.egress(vid);
                // A tagged frame of the native VLAN leaves untagged.
                prop_assert!(egress == Some(Egress::Untagged) || (egress == Some(Egress::Tagged) && tag == Some(vid)));
            }
        }

        #[test]
        fn a_set_holds_what_was_inserted(vids in prop::collection::btree_set(0u16..4096, 0..50)) {
            let mut set = VidSet::empty();
            vids.iter().for_each(|&vid| set.insert(vid));
            prop_assert!(set.iter().eq(vids));
        }
    }
}
