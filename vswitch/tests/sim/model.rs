//! Who may receive a frame: VLAN rules as a table, the MAC table as a map.

use std::collections::{BTreeSet, HashMap};

use vswitch::drops::DropReason;
use vswitch::mac::Mac;
use vswitch::network::PortPolicy;
use vswitch::vlan::{VidSet, VlanMode};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Egress {
    Untagged,
    Tagged,
}

/// VLAN membership as two sets and the VLAN of untagged frames; 0 is "no VLAN".
#[derive(Clone, Debug)]
pub struct Vlans {
    tagged: Option<BTreeSet<u16>>,
    untagged: Option<u16>,
}

impl Vlans {
    pub fn none() -> Vlans {
        Vlans {
            tagged: None,
            untagged: Some(0),
        }
    }

    pub fn access(vid: u16) -> Vlans {
        Vlans {
            tagged: None,
            untagged: Some(vid),
        }
    }

    pub fn trunk(allowed: &[u16], native: Option<u16>) -> Vlans {
        Vlans {
            tagged: Some(allowed.iter().copied().collect()),
            untagged: native,
        }
    }

    pub fn mode(&self) -> VlanMode {
        match (&self.tagged, self.untagged) {
            (None, Some(0)) => VlanMode::None,
            (None, vid) => VlanMode::Access(vid.unwrap()),
            (Some(allowed), native) => {
                let mut set = VidSet::empty();
                allowed.iter().for_each(|&vid| set.insert(vid));
                VlanMode::Trunk {
                    allowed: set,
                    native,
                }
            }
        }
    }

    pub fn ingress(&self, tag: Option<u16>) -> Result<u16, DropReason> {
        match tag.map(|tci| tci & 0xfff).filter(|vid| *vid > 0) {
            None => self.untagged.ok_or(DropReason::VlanUntagged),
            Some(vid) => match &self.tagged {
                None => Err(DropReason::VlanTagged),
                Some(allowed) if allowed.contains(&vid) => Ok(vid),
                Some(_) => Err(DropReason::VlanNotAllowed),
            },
        }
    }

    pub fn egress(&self, vid: u16) -> Option<Egress> {
        if self.untagged == Some(vid) {
            Some(Egress::Untagged)
        } else if vid > 0 && self.tagged.as_ref()?.contains(&vid) {
            Some(Egress::Tagged)
        } else {
            None
        }
    }
}

/// What a port is configured to, with its VLANs in the model's own terms.
#[derive(Clone)]
pub struct Config {
    pub vlans: Vlans,
    pub policy: PortPolicy,
    pub network: Option<usize>,
    pub attached: bool,
    /// Whether nobody is attached because the VM is paused.
    pub paused: bool,
}

/// Where each station of each network and VLAN was heard last: port and second.
#[derive(Default)]
pub struct Model {
    pub stations: HashMap<(usize, Mac, u16), (usize, i64)>,
}

pub struct Route {
    pub vid: u16,
    pub to: Vec<usize>,
}

impl Model {
    pub fn forget(&mut self, port: usize) {
        self.stations.retain(|_, (at, _)| *at != port);
    }

    /// Where a frame whose request is right goes, and learns from it.
    pub fn route(
        &mut self,
        ports: &[Config],
        from: usize,
        head: &[u8],
        (now, ageing): (i64, i64),
    ) -> Result<Route, DropReason> {
        let (to, vid, source) = self.admit(&ports[from], head)?;
        let network = ports[from].network.unwrap();
        self.stations.insert((network, source, vid), (from, now));
        let members = |port: &usize| {
            let config = &ports[*port];
            *port != from
                && config.network == Some(network)
                && config.policy.link_up
                && config.vlans.egress(vid).is_some()
        };
        let known = self
            .stations
            .get(&(network, to, vid))
            .filter(|(_, heard)| now - heard <= ageing);
        match known {
            Some((port, _)) if to.0[0] & 1 == 0 => {
                let config = &ports[*port];
                if *port == from {
                    Err(DropReason::SamePort)
                } else if config.vlans.egress(vid).is_none() {
                    Err(DropReason::VlanEgress)
                } else if !config.policy.link_up {
                    Err(DropReason::LinkDown)
                } else {
                    Ok(Route {
                        vid,
                        to: vec![*port],
                    })
                }
            }
            _ => {
                let to: Vec<usize> = (0..ports.len()).filter(members).collect();
                if to.is_empty() {
                    Err(DropReason::NoDestination)
                } else {
                    Ok(Route { vid, to })
                }
            }
        }
    }

    /// Source rules.
    pub fn admit(&self, from: &Config, head: &[u8]) -> Result<(Mac, u16, Mac), DropReason> {
        if head.len() < 14 {
            return Err(DropReason::Runt);
        }
        let to = Mac(head[..6].try_into().unwrap());
        let source = Mac(head[6..12].try_into().unwrap());
        if !from.policy.link_up {
            return Err(DropReason::LinkDown);
        }
        if source.0[0] & 1 == 1 || source.0 == [0; 6] {
            return Err(DropReason::SourceMac);
        }
        if from
            .policy
            .mac_guard
            .as_ref()
            .is_some_and(|list| !list.contains(&source))
        {
            return Err(DropReason::MacGuard);
        }
        if to.0[..5] == [1, 0x80, 0xc2, 0, 0] && to.0[5] < 16 {
            return Err(DropReason::LinkLocal);
        }
        let tag = match head[12..] {
            [0x81, 0, a, b, _, _, ..] => Some(u16::from_be_bytes([a, b])),
            [0x81, 0, ..] => return Err(DropReason::Runt),
            _ => None,
        };
        Ok((to, from.vlans.ingress(tag)?, source))
    }
}
