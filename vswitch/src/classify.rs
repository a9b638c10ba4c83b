//! What is to become of a frame: the one place that decides it, from the snapshot alone.
//!
//! [`admit`], or for most frames [`admit_untagged`], reads the frame and applies the source port's rules; [`find`] looks up
//! where it goes, and [`forward`] applies the rules there. The turn calls them for a burst each, with a prefetch in between,
//! and not again where it knows the answer; whoever wants to explain a frame calls [`classify`].

use crate::burst::{Front, MIN_FRAME};
use crate::drops::DropReason;
use crate::fdb::{Key, PortIndex, Reader, Spot};
use crate::mac::{self, Mac};
use crate::network::{NetworkView, PortPolicy};
use crate::vlan::Vid;

/// EtherType of an 802.1Q tag. An 802.1ad service tag (0x88a8) is no VLAN of ours: such frames pass as untagged ones.
pub const TPID_8021Q: u16 = 0x8100;
/// EtherType of an 802.1ad service tag.
const TPID_8021AD: u16 = 0x88a8;

/// Who a frame is from and for, within its VLAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Destination address, and the VLAN the frame belongs to in the switch.
    pub destination: Key,
    /// Source address, and the same VLAN.
    pub source: Key,
}

impl Addresses {
    /// The VLAN the frame belongs to; 0 is none.
    #[inline]
    pub fn vid(&self) -> Vid {
        self.destination.vid()
    }
}

/// A frame that its source port may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// Who it is from and for.
    pub addresses: Addresses,
    /// Tag control information of the 802.1Q tag the frame carries.
    pub tag: Option<u16>,
    /// Whether the Ethernet header is the plain one of 14 bytes, without tags of any kind.
    pub untagged: bool,
}

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// To one port.
    Unicast(PortIndex),
    /// To all other ports of its VLAN.
    Flood,
    /// Nowhere.
    Drop(DropReason),
}

/// Reads the addresses and the VLAN of `head` and applies the rules of the port it came from.
#[inline]
pub fn admit(policy: &PortPolicy, head: &[u8]) -> Result<Admitted, DropReason> {
    // Addresses are handled as numbers: bytes put together one by one would have to be waited for.
    let (Some(first), Some((_, second))) = (
        head.first_chunk::<8>(),
        head.first_chunk::<{ MIN_FRAME as usize }>()
            .and_then(|header| header.split_last_chunk::<8>()),
    ) else {
        return Err(DropReason::Runt);
    };
    if !policy.link_up {
        return Err(DropReason::LinkDown);
    }
    let (first, second) = (u64::from_be_bytes(*first), u64::from_be_bytes(*second));
    let (destination, source) = (first >> 16, second >> 16 & mac::MASK);
    check_addresses(policy, destination, source)?;
    let ethertype = second as u16;
    let tag = match ethertype {
        // A tag needs its identifier and the type of what follows.
        TPID_8021Q => match head.get(14..18) {
            Some([high, low, _, _]) => Some(u16::from_be_bytes([*high, *low])),
            _ => return Err(DropReason::Runt),
        },
        _ => None,
    };
    let vid = policy.vlan.ingress(tag.map(|tci| tci & 0xfff))?;
    Ok(Admitted {
        addresses: Addresses {
            destination: Key::of(destination, vid),
            source: Key::of(source, vid),
        },
        tag,
        untagged: !is_tag(ethertype),
    })
}

/// Whether `ethertype` is that of a tag, 802.1Q or 802.1ad.
#[inline]
pub fn is_tag(ethertype: u16) -> bool {
    matches!(ethertype, TPID_8021Q | TPID_8021AD)
}

/// The address rules of the port with `policy`, for a frame from `source` to `destination`.
#[inline(always)]
fn check_addresses(policy: &PortPolicy, destination: u64, source: u64) -> Result<(), DropReason> {
    if !mac::is_station(source) {
        return Err(DropReason::SourceMac);
    }
    if let Some(allowed) = &policy.mac_guard
        && !allowed.contains(&Mac::from_u64(source))
    {
        return Err(DropReason::MacGuard);
    }
    if mac::is_link_local(destination) {
        return Err(DropReason::LinkLocal);
    }
    Ok(())
}

/// The VLAN of untagged frames from the port with `policy`, where it may send them.
pub fn untagged_vlan(policy: &PortPolicy) -> Option<Vid> {
    policy.vlan.ingress(None).ok().filter(|_| policy.link_up)
}

/// What [`admit`] says of an untagged frame with the header `front`, where `vid` is the VLAN of those.
#[inline(always)]
pub fn admit_untagged(
    policy: &PortPolicy,
    front: Front,
    vid: Vid,
) -> Result<Addresses, DropReason> {
    let (destination, source) = (front.destination(), front.source());
    check_addresses(policy, destination, source)?;
    Ok(Addresses {
        destination: Key::of(destination, vid),
        source: Key::of(source, vid),
    })
}

/// The port that `destination` is behind, which `table` has at `spot`. Without one, the frame is flooded.
#[inline(always)]
pub fn find(table: &Reader<'_>, destination: Key, spot: Spot) -> Option<PortIndex> {
    if destination.is_group() {
        return None;
    }
    table.lookup(destination, spot)
}

/// What becomes of a frame of `vid` from port `from` whose destination is behind port `found`.
pub fn forward(view: &NetworkView, from: PortIndex, vid: Vid, found: Option<PortIndex>) -> Verdict {
    let Some(to) = found else {
        return Verdict::Flood;
    };
    if to == from {
        return Verdict::Drop(DropReason::SamePort);
    }
    match view.port(to) {
        None => Verdict::Flood,
        Some(port) if port.policy.vlan.egress(vid).is_none() => {
            Verdict::Drop(DropReason::VlanEgress)
        }
        Some(port) if !port.policy.link_up => Verdict::Drop(DropReason::LinkDown),
        Some(_) => Verdict::Unicast(to),
    }
}

/// The ports a flooded frame of `vid` from port `from` goes to.
pub fn flood(
    view: &NetworkView,
    from: PortIndex,
    vid: Vid,
) -> impl Iterator<Item = PortIndex> + '_ {
    view.iter()
        .filter(move |(index, port)| {
            *index != from && port.policy.link_up && port.policy.vlan.egress(vid).is_some()
        })
        .map(|(index, _)| index)
}

/// The verdict for a frame that came from port `from` at `now` seconds, without learning from it.
pub fn classify(view: &NetworkView, from: PortIndex, head: &[u8], now: u32) -> Verdict {
    let Some(port) = view.port(from) else {
        return Verdict::Drop(DropReason::Disconnected);
    };
    match admit(&port.policy, head) {
        Ok(Admitted { addresses, .. }) => {
            let table = view.fdb.reader(from, now);
            let spot = table.spot(addresses.destination);
            let found = find(&table, addresses.destination, spot);
            forward(view, from, addresses.vid(), found)
        }
        Err(reason) => Verdict::Drop(reason),
    }
}
