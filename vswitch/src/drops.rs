//! Why a frame did not arrive: the closed list of drop reasons.

/// Declares the reasons once, with the name users see and the sentence that explains it.
macro_rules! drop_reasons {
    ($($variant:ident = $name:literal, $text:literal;)*) => {
        /// The one reason a copy of a frame was dropped for.
        ///
        /// Names are part of the interface: `stats --json` keys drops by them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason {
            $(#[doc = $text] $variant,)*
        }

        impl DropReason {
            /// Every reason, in the order of their discriminants.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)*];

            /// How many reasons there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The stable name in snake_case.
            pub const fn name(self) -> &'static str {
                match self { $(DropReason::$variant => $name,)* }
            }

            /// One sentence for people.
            pub const fn explanation(self) -> &'static str {
                match self { $(DropReason::$variant => $text,)* }
            }
        }
    };
}

drop_reasons! {
    Runt = "runt", "The frame is shorter than an Ethernet header.";
    Oversize = "oversize", "The frame is longer than any frame the switch carries.";
    TooManySegments = "too_many_segments", "The frame is scattered over more buffers than the switch gathers.";
    BadOffload = "bad_offload", "The sender's checksum or segmentation request does not fit the frame.";
    SourceMac = "source_mac", "The source address is a group address or zero.";
    MacGuard = "mac_guard", "The source address is not on the port's list.";
    Malformed = "malformed", "The sender's driver wrapped the frame in a message that makes no sense.";
    VlanTagged = "vlan_tagged", "The frame has a tag, or a second one under it, and the port takes no tagged frames.";
    VlanUntagged = "vlan_untagged", "The frame is untagged, and the trunk port has no native VLAN.";
    VlanNotAllowed = "vlan_not_allowed", "The frame's VLAN is not on the trunk port's list.";
    LinkLocal = "link_local", "The destination is a link-local group that bridges do not forward.";
    SamePort = "same_port", "The destination is behind the port the frame came from.";
    NoDestination = "no_destination", "No other port of the network belongs to the frame's VLAN.";
    VlanEgress = "vlan_egress", "The destination's port does not belong to the frame's VLAN.";
    Mtu = "mtu", "The frame is longer than the destination's MTU.";
    RxFull = "rx_full", "The destination had no room: its receive ring was full.";
    RxTooSmall = "rx_too_small", "The destination's buffers can never hold a frame of this length.";
    RxFilter = "rx_filter", "The destination's adapter does not listen to this address.";
    RxNotReady = "rx_not_ready", "Nobody is attached to the destination port, or it has not started.";
    Paused = "paused", "The destination port is that of a VM that is paused.";
    LinkDown = "link_down", "The link of the source or the destination port is down.";
    Disconnected = "disconnected", "The source port is connected to no network.";
    SourceFault = "source_fault", "The sender's memory went away while the frame was read.";
    RxFault = "rx_fault", "The destination's ring or memory was found invalid.";
    HostError = "host_error", "The host kernel refused the frame.";
}

/// A count for each [`DropReason`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropCounts([u64; DropReason::COUNT]);

impl Default for DropCounts {
    fn default() -> Self {
        DropCounts([0; DropReason::COUNT])
    }
}

impl DropCounts {
    /// Adds `n` drops for `reason`.
    pub fn add(&mut self, reason: DropReason, n: u64) {
        if let Some(count) = self.0.get_mut(reason as usize) {
            *count += n;
        }
    }

    /// Drops booked for `reason`.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0.get(reason as usize).copied().unwrap_or(0)
    }

    /// Drops for all reasons together.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The reasons with a count above zero.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL
            .iter()
            .map(|&reason| (reason, self.get(reason)))
            .filter(|&(_, count)| count > 0)
    }

    /// Adds all counts of `other`.
    pub fn merge(&mut self, other: &DropCounts) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0.iter()) {
            *mine += theirs;
        }
    }
}
