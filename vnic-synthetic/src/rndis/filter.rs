//! Which frames a driver wants: the packet filter and the multicast list.

use arrayvec::ArrayVec;
use vswitch::mac::Mac;

/// Multicast addresses that the adapter filters by.
pub const MAX_MULTICAST: usize = 64;

/// Bits of the packet filter (`NDIS_PACKET_TYPE_*`).
pub mod bit {
    /// Frames to the adapter's own address.
    pub const DIRECTED: u32 = 0x01;
    /// Frames to groups of the multicast list.
    pub const MULTICAST: u32 = 0x02;
    /// Frames to all groups.
    pub const ALL_MULTICAST: u32 = 0x04;
    /// Frames to everybody.
    pub const BROADCAST: u32 = 0x08;
    /// All frames.
    pub const PROMISCUOUS: u32 = 0x20;
    /// All that are offered.
    pub(crate) const ALL: u32 = 0x2f;
}

/// What frames are held against. A new one takes none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// [`bit`]s.
    pub bits: u32,
    /// The adapter's address.
    pub mac: Mac,
    /// The multicast list.
    pub multicast: ArrayVec<Mac, MAX_MULTICAST>,
}

impl Filter {
    /// Whether the driver wants the frame that starts with `head`.
    #[inline]
    pub fn takes(&self, head: &[u8]) -> bool {
        if self.bits & bit::PROMISCUOUS != 0 {
            return true;
        }
        let Some(&destination) = head.first_chunk::<6>() else {
            return false;
        };
        let destination = Mac(destination);
        let wanted = if !destination.is_group() {
            bit::DIRECTED * u32::from(destination == self.mac)
        } else if destination == Mac::BROADCAST {
            bit::BROADCAST
        } else if self.multicast.contains(&destination) {
            bit::MULTICAST | bit::ALL_MULTICAST
        } else {
            bit::ALL_MULTICAST
        };
        self.bits & wanted != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_its_bits_say() {
        let own = Mac([2, 0, 0, 0, 0, 1]);
        let other = Mac([2, 0, 0, 0, 0, 2]);
        let (listed, group) = (Mac([1, 0, 0x5e, 0, 0, 1]), Mac([1, 0, 0x5e, 0, 0, 2]));
        let table = [
            (0, [false; 5]),
            (bit::DIRECTED, [true, false, false, false, false]),
            (bit::MULTICAST, [false, false, true, false, false]),
            (bit::ALL_MULTICAST, [false, false, true, true, false]),
            (bit::BROADCAST, [false, false, false, false, true]),
            (bit::PROMISCUOUS, [true; 5]),
        ];
        for (bits, expected) in table {
            let multicast = [listed].into_iter().collect();
            let filter = Filter {
                bits,
                mac: own,
                multicast,
            };
            let taken = [own, other, listed, group, Mac::BROADCAST].map(|mac| filter.takes(&mac.0));
            assert_eq!(taken, expected, "{bits:#x}");
        }
    }
}
