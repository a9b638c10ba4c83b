//! Warnings of addresses that two ports have: one when it begins, and no more until it has been over for a while.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tracing::warn;
use vswitch::api::VlanId;
use vswitch::fdb::{Flap, PortIndex};
use vswitch::mac::Mac;

use super::Network;

/// How long an address must stay where it is before it is warned of again.
const CALM: Duration = Duration::from_secs(60);
/// Addresses of a network that are warned of at once, so that one who invents them does not fill the log.
const WARNED: usize = 16;

/// The addresses that were warned of, with when they last flapped.
#[derive(Default)]
pub(super) struct Flaps(BTreeMap<(Mac, u16), Instant>);

impl Flaps {
    /// Whether it is new that this address flaps.
    fn begins(&mut self, address: (Mac, u16), now: Instant) -> bool {
        self.0
            .retain(|_, last| now.saturating_duration_since(*last) < CALM);
        let known = self.0.len();
        match self.0.get_mut(&address) {
            Some(last) => {
                *last = now;
                false
            }
            None if known < WARNED => self.0.insert(address, now).is_none(),
            None => false,
        }
    }
}

impl Network {
    /// Warns of what flaps and did not before.
    pub(super) fn warn_of(&mut self, flaps: Vec<Flap>) {
        for Flap { key, ports, moves } in flaps {
            if !self.flaps.begins((key.mac(), key.vid()), Instant::now()) {
                continue;
            }
            let [one, other] = ports.map(|index| self.name_of(index));
            let vlan = VlanId::try_from(i64::from(key.vid()))
                .map_or("none".to_owned(), |vlan| vlan.to_string());
            warn!(
                network = %self.config.name, mac = %key.mac(), vlan, moves,
                "ports '{one}' and '{other}' both send from {}: two stations have this address, or there is a loop",
                key.mac()
            );
        }
    }

    fn name_of(&self, index: PortIndex) -> String {
        let mut ports = self.ports.values();
        let port = ports.find(|port| port.handle.place().is_some_and(|(_, at)| at == index));
        // It may have left meanwhile.
        port.map_or("?".to_owned(), |port| port.config.name.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_warning_until_it_has_been_over_for_a_while() {
        let mut flaps = Flaps::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let address = |n| (Mac([2, 0, 0, 0, 0, n]), 0);
        assert!(flaps.begins(address(1), start));
        for second in [1, 50, 100] {
            assert!(!flaps.begins(address(1), at(second)));
        }
        assert!(flaps.begins(address(1), at(160)));
        let warned = (0..100).filter(|&n| flaps.begins(address(n), at(161)));
        assert_eq!(warned.count(), WARNED - 1);
    }
}
