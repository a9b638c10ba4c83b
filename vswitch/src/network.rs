//! A network as the workers see it: its MAC table and an immutable list of its ports.
//!
//! A view is never changed. The control side makes a new one and hands it to every worker between two turns; the old
//! one is dropped by the control side once all workers have let go of it.

use std::sync::Arc;

use crate::fdb::{Fdb, PortIndex};
use crate::mac::Mac;
use crate::slot::PortSlot;
use crate::vlan::VlanMode;

/// Identifies a network for the life of the switch; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkId(pub u64);

/// Smallest MTU a port may have, in IP bytes (RFC 791).
pub const MIN_MTU: u16 = 68;
/// Largest MTU a port may have, in IP bytes.
pub const MAX_MTU: u16 = 9000;
/// MTU where nothing else is asked for, in IP bytes (RFC 894).
pub const DEFAULT_MTU: u16 = 1500;

/// What an operator has decided about a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortPolicy {
    /// VLAN membership.
    pub vlan: VlanMode,
    /// If given, the only source addresses that may come from the port.
    pub mac_guard: Option<Vec<Mac>>,
    /// Longest packet delivered to the port, in IP bytes: 68 to 9000.
    pub mtu: u16,
    /// Whether frames pass at all.
    pub link_up: bool,
    /// Most addresses learned behind the port.
    pub mac_quota: u32,
}

impl Default for PortPolicy {
    fn default() -> Self {
        PortPolicy {
            vlan: VlanMode::None,
            mac_guard: None,
            mtu: DEFAULT_MTU,
            link_up: true,
            mac_quota: crate::fdb::DEFAULT_QUOTA,
        }
    }
}

/// One port of a network.
pub struct PortView {
    /// Where frames are delivered.
    pub slot: Arc<PortSlot>,
    /// What was decided about it.
    pub policy: PortPolicy,
}

/// A network at one moment.
pub struct NetworkView {
    /// Which network.
    pub id: NetworkId,
    /// Its MAC table.
    pub fdb: Arc<Fdb>,
    /// Its ports by index; freed indices are `None`.
    pub ports: Vec<Option<Arc<PortView>>>,
}

impl NetworkView {
    /// The port with `index`.
    pub fn port(&self, index: PortIndex) -> Option<&PortView> {
        self.ports.get(usize::from(index))?.as_deref()
    }

    /// All ports with their indices.
    pub fn iter(&self) -> impl Iterator<Item = (PortIndex, &PortView)> {
        self.ports
            .iter()
            .enumerate()
            .filter_map(|(index, port)| Some((index as PortIndex, port.as_deref()?)))
    }
}
