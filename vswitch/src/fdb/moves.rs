//! Addresses that go to and fro between two ports: two stations have the same one, or the wire has a loop.

use arrayvec::ArrayVec;

use super::{Fdb, Key, PortIndex};

/// Addresses that are watched at once. Of more, those that move most.
const WATCHED: usize = 16;
/// Moves between two looks that a station may make: a VM that migrates makes one, a bond that fails over a few.
const TOLERATED: u32 = 10;

/// An address that moved too often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flap {
    /// The address and its VLAN.
    pub key: Key,
    /// The ports of its last move: from, to.
    pub ports: [PortIndex; 2],
    /// Its moves since the last look.
    pub moves: u32,
}

/// The moves since the last look.
#[derive(Default)]
pub(super) struct Moves(ArrayVec<Flap, WATCHED>);

impl Moves {
    /// `key` moved from the first to the second of `ports`.
    pub(super) fn note(&mut self, key: Key, ports: [PortIndex; 2]) {
        if let Some(flap) = self.0.iter_mut().find(|flap| flap.key == key) {
            flap.ports = ports;
            flap.moves = flap.moves.saturating_add(1);
            return;
        }
        let moves = 1;
        let new = Flap { key, ports, moves };
        if self.0.try_push(new).is_err()
            && let Some(calmest) = self.0.iter_mut().min_by_key(|flap| flap.moves)
            && calmest.moves == 1
        {
            *calmest = new;
        }
    }
}

impl Fdb {
    /// The addresses that moved more than 10 times since this was asked last; 16 at most.
    pub fn take_flaps(&self) -> Vec<Flap> {
        let flaps = std::mem::take(&mut self.lock().0);
        let often = |flap: &Flap| flap.moves > TOLERATED;
        flaps.into_iter().filter(often).collect()
    }
}
