//! Addresses and routes as they were, to be put on another interface and back.

use rtnetlink::packet_core::{Emitable, Parseable};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHop, RouteNextHopFlags,
    RouteProtocol, RouteType,
};
use serde::{Deserialize, Serialize};

use super::LinksError;
use crate::name::{IFNAMSIZ, IfName};

/// Addresses and routes that were moved from one interface to another. To be kept until they are moved back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// The interface that they belong to.
    pub from: IfName,
    /// The interface that they were moved to.
    pub to: IfName,
    /// The addresses.
    pub addresses: Vec<Saved>,
    /// The routes, in an order in which they can be made.
    pub routes: Vec<Saved>,
}

impl Moved {
    /// Takes up what was moved later between the same interfaces. An address that is in both is as it was later.
    pub fn add(&mut self, later: Moved) {
        let is_old = |saved: &Saved| later.addresses.iter().all(|new| new.text != saved.text);
        self.addresses.retain(is_old);
        self.addresses.extend(later.addresses);
        for route in later.routes {
            if !self.routes.contains(&route) {
                self.routes.push(route);
            }
        }
        self.routes.sort_by_key(has_gateway);
    }
}

/// One address or route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// The address with its prefix length, or the route's destination, for people.
    pub text: String,
    /// Its rtnetlink message (`struct ifaddrmsg` or `struct rtmsg`, and attributes) without the interface's index.
    pub message: Vec<u8>,
}

/// Stands for the index of the interface that is moved from or to.
const HERE: u32 = 0;

/// Flags of an address that a user sets; the others tell its state.
const SETTABLE: AddressFlags = AddressFlags::Nodad
    .union(AddressFlags::Homeaddress)
    .union(AddressFlags::Managetempaddr)
    .union(AddressFlags::Noprefixroute)
    .union(AddressFlags::Mcautojoin);

/// Makes a record of an address of the interface `index`; `None` if it is another's, or a link-local one of IPv6, which
/// the kernel makes and keeps for each interface.
pub(super) fn save_address(mut message: AddressMessage, index: u32) -> Option<Saved> {
    let v6 = message.header.family == AddressFamily::Inet6;
    if message.header.index != index || (v6 && message.header.scope == AddressScope::Link) {
        return None;
    }
    message.header.index = HERE;
    message.header.flags = AddressHeaderFlags::empty();
    let text = address_text(&message);
    for attribute in &mut message.attributes {
        if let AddressAttribute::Flags(flags) = attribute {
            *flags &= SETTABLE;
            // It was tried on this link before, and shall not be out of use meanwhile.
            flags.set(AddressFlags::Nodad, v6);
        }
    }
    Some(Saved {
        text,
        message: emit(&message),
    })
}

/// The message that puts a recorded address on the interface `index`, called `to`.
pub(super) fn load_address(
    saved: &Saved,
    from: &IfName,
    to: &IfName,
    index: u32,
) -> Result<AddressMessage, LinksError> {
    let parsed = AddressMessage::parse(&saved.message);
    let mut message = parsed.map_err(|_| LinksError::Record(saved.text.clone()))?;
    message.header.index = index;
    for attribute in &mut message.attributes {
        if let AddressAttribute::Label(label) = attribute {
            *label = relabel(label, from, to);
        }
    }
    Ok(message)
}

/// A label begins with the name of its interface, as `eth0` and `eth0:web` do.
fn relabel(label: &str, from: &IfName, to: &IfName) -> String {
    let alias = label
        .strip_prefix(from.as_str())
        .filter(|alias| alias.is_empty() || alias.starts_with(':'));
    let label = alias.map_or_else(|| label.to_owned(), |alias| format!("{to}{alias}"));
    if label.len() < IFNAMSIZ {
        label
    } else {
        to.to_string()
    }
}

fn address_text(message: &AddressMessage) -> String {
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(local) => address = Some(local),
            AddressAttribute::Address(peer) => address = address.or(Some(peer)),
            _ => {}
        }
    }
    let address = address.map_or_else(|| "address".to_owned(), ToString::to_string);
    format!("{address}/{}", message.header.prefix_len)
}

/// Makes a record of a route by the interface `index`; `None` if it is another's, or the kernel's own.
pub(super) fn save_route(
    mut message: RouteMessage,
    index: u32,
) -> Result<Option<Saved>, LinksError> {
    let header = &message.header;
    let ours = header.protocol != RouteProtocol::Kernel
        && header.protocol != RouteProtocol::IcmpRedirect
        && header.kind == RouteType::Unicast
        && !header.flags.contains(RouteFlags::Cloned)
        && message.attributes.iter().any(|a| leads_by(a, index));
    if !ours {
        return Ok(None);
    }
    let text = route_text(&message);
    if message
        .attributes
        .iter()
        .any(|a| matches!(a, RouteAttribute::NhId(_)))
    {
        return Err(LinksError::NexthopObject(text));
    }
    message.header.flags &= RouteFlags::Onlink;
    let expires = message.attributes.iter().find_map(|a| match a {
        // In ticks of 1/100 s (USER_HZ); 0 is never, and negative is over.
        RouteAttribute::CacheInfo(info) if info.expires as i32 > 0 => Some(info.expires / 100),
        _ => None,
    });
    message.attributes.retain(|a| {
        !matches!(
            a,
            RouteAttribute::CacheInfo(_) | RouteAttribute::MfcStats(_) | RouteAttribute::Uid(_)
        )
    });
    message
        .attributes
        .extend(expires.map(RouteAttribute::Expires));
    set_index(&mut message.attributes, index, HERE);
    Ok(Some(Saved {
        text,
        message: emit(&message),
    }))
}

/// The message that makes a recorded route by the interface `index`.
pub(super) fn load_route(saved: &Saved, index: u32) -> Result<RouteMessage, LinksError> {
    let parsed = RouteMessage::parse(&saved.message);
    let mut message = parsed.map_err(|_| LinksError::Record(saved.text.clone()))?;
    set_index(&mut message.attributes, HERE, index);
    Ok(message)
}

/// Whether a recorded route needs another to reach its gateway.
pub(super) fn has_gateway(saved: &Saved) -> bool {
    RouteMessage::parse(&saved.message).is_ok_and(|message| {
        let far = |a: &RouteAttribute| {
            matches!(
                a,
                RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_)
            )
        };
        message.attributes.iter().any(far)
    })
}

fn leads_by(attribute: &RouteAttribute, index: u32) -> bool {
    match attribute {
        RouteAttribute::Oif(oif) => *oif == index,
        RouteAttribute::MultiPath(hops) => hops.iter().any(|hop| hop.interface_index == index),
        _ => false,
    }
}

fn set_index(attributes: &mut [RouteAttribute], old: u32, new: u32) {
    for attribute in attributes {
        match attribute {
            RouteAttribute::Oif(oif) if *oif == old => *oif = new,
            RouteAttribute::MultiPath(hops) => {
                for hop in hops {
                    let RouteNextHop {
                        flags,
                        interface_index,
                        ..
                    } = hop;
                    *flags &= RouteNextHopFlags::Onlink;
                    if *interface_index == old {
                        *interface_index = new;
                    }
                }
            }
            _ => {}
        }
    }
}

fn route_text(message: &RouteMessage) -> String {
    let length = message.header.destination_prefix_length;
    let destination = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => {
            Some(format!("{address}/{length}"))
        }
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
            Some(format!("{address}/{length}"))
        }
        _ => None,
    });
    let v6 = message.header.address_family == AddressFamily::Inet6;
    destination.unwrap_or_else(|| if v6 { "default (IPv6)" } else { "default" }.to_owned())
}

fn emit(message: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_follows_the_name() {
        let relabel =
            |label, to: &str| relabel(label, &"eth0".parse().unwrap(), &to.parse().unwrap());
        assert_eq!(relabel("eth0", "vsw-lan"), "vsw-lan");
        assert_eq!(relabel("eth0:web", "vsw-lan"), "vsw-lan:web");
        assert_eq!(relabel("eth01", "vsw-lan"), "eth01");
        assert_eq!(relabel("eth0:web", "fifteen-bytes-x"), "fifteen-bytes-x");
    }
}
