//! Sections of the receive buffer: which are free, and which the guest holds.
//!
//! A packet to the guest names one section or several, and its transaction is the first of them and the epoch; the others
//! are chained to it. The guest gives all of them back by answering the transaction. A new epoch begins where it is not
//! known for sure what the guest holds, so that late answers mean nothing. Nothing is allocated after the start.

/// Sections that are used of a buffer, at most.
pub(super) const MAX_SECTIONS: u32 = 16 * 1024;
/// Sections that frames leave free, for answers to the driver.
const RESERVED: usize = 8;
/// Bits of a transaction for the section.
const EPOCH_SHIFT: u32 = 16;
/// No section.
const NONE: u16 = u16::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Free,
    /// Taken, and not yet shown to the guest; or in a chain behind the first.
    Taken,
    /// The guest holds it: first of a chain.
    First,
}

#[derive(Clone, Copy, Debug)]
struct Section {
    state: Use,
    next: u16,
    /// Of the packet whose first it is.
    epoch: u16,
}

/// The sections of one buffer.
#[derive(Debug)]
pub(super) struct Sections {
    sections: Vec<Section>,
    free: Vec<u16>,
    epoch: u16,
}

/// A packet that the guest holds: its epoch and its sections.
pub(super) type Held = (u16, Vec<u16>);

impl Sections {
    /// None, and room for the most.
    pub(super) fn new() -> Sections {
        Sections {
            sections: Vec::with_capacity(MAX_SECTIONS as usize),
            free: Vec::with_capacity(MAX_SECTIONS as usize),
            epoch: 0,
        }
    }

    /// The epoch of packets that are shown from now on.
    pub(super) fn epoch(&self) -> u16 {
        self.epoch
    }

    /// `count` free sections, at most [`MAX_SECTIONS`].
    pub(super) fn reset(&mut self, count: u32) {
        let count = count.min(MAX_SECTIONS) as u16;
        let free = Section {
            state: Use::Free,
            next: NONE,
            epoch: 0,
        };
        self.sections.clear();
        self.sections.resize(count.into(), free);
        self.free.clear();
        // Taken from the end: the first sections, which stay in the cache, are used first.
        self.free.extend((0..count).rev());
    }

    /// The packets that the guest holds.
    pub(super) fn held(&self) -> Vec<Held> {
        let firsts = self.sections.iter().enumerate();
        let firsts = firsts.filter(|(_, section)| section.state == Use::First);
        firsts
            .map(|(first, section)| (section.epoch, self.chain(first as u16).collect()))
            .collect()
    }

    /// `count` free sections, in epoch `epoch`.
    pub(super) fn restart(&mut self, count: u32, epoch: u16) {
        self.reset(count);
        self.epoch = epoch;
    }

    /// The guest holds this packet already. `Err` names a section that is not free, or not there; then nothing is changed.
    pub(super) fn hold(&mut self, (epoch, chain): &Held) -> Result<(), u16> {
        for (index, section) in chain.iter().enumerate() {
            let state = self.sections.get(usize::from(*section)).map(|at| at.state);
            let again = chain.iter().take(index).any(|before| before == section);
            if state != Some(Use::Free) || again {
                return Err(*section);
            }
        }
        self.free.retain(|free| !chain.contains(free));
        let now = std::mem::replace(&mut self.epoch, *epoch);
        self.show(chain);
        self.epoch = now;
        Ok(())
    }

    /// `first`, and the sections that are chained to it.
    fn chain(&self, first: u16) -> impl Iterator<Item = u16> {
        let next = |at: &u16| {
            let section = self.sections.get(usize::from(*at))?;
            Some(section.next).filter(|next| *next != NONE)
        };
        std::iter::successors(Some(first), next)
    }

    /// The section that is taken next for a frame.
    #[inline]
    pub(super) fn peek(&self) -> Option<u16> {
        // A buffer that small is shared evenly.
        let reserved = RESERVED.min(self.sections.len() / 2);
        if self.free.len() <= reserved {
            return None;
        }
        self.free.last().copied()
    }

    /// The section that is taken after `count` others.
    #[inline]
    pub(super) fn ahead(&self, count: usize) -> Option<u16> {
        let index = self.free.len().checked_sub(count + 1)?;
        self.free.get(index).copied()
    }

    /// Takes a section for a frame.
    #[inline]
    pub(super) fn take(&mut self) -> Option<u16> {
        self.peek()?;
        self.take_reserved()
    }

    /// Takes a section for an answer.
    #[inline]
    pub(super) fn take_reserved(&mut self) -> Option<u16> {
        let section = self.free.pop()?;
        self.set(section, Use::Taken, NONE);
        Some(section)
    }

    /// Gives back a section that was not shown.
    pub(super) fn put_back(&mut self, section: u16) {
        self.set(section, Use::Free, NONE);
        self.free.push(section);
    }

    /// The guest gets `chain`, sections that were taken; gives the transaction.
    pub(super) fn show(&mut self, chain: &[u16]) -> u64 {
        let nexts = chain.iter().skip(1).copied().chain([NONE]);
        for (index, (&section, next)) in chain.iter().zip(nexts).enumerate() {
            let state = if index == 0 { Use::First } else { Use::Taken };
            self.set(section, state, next);
        }
        chain.first().map_or(0, |first| self.transaction(*first))
    }

    /// The transaction of a packet whose first section is `first`.
    pub(super) fn transaction(&self, first: u16) -> u64 {
        u64::from(self.epoch) << EPOCH_SHIFT | u64::from(first)
    }

    /// The guest answered `transaction`. False if it holds no such packet: nothing happens.
    pub(super) fn answered(&mut self, transaction: u64) -> bool {
        let (first, epoch) = (transaction as u16, transaction >> EPOCH_SHIFT);
        match self.sections.get(usize::from(first)) {
            Some(section) if section.state == Use::First && u64::from(section.epoch) == epoch => {}
            _ => return false,
        }
        let mut at = first;
        while let Some(section) = self.sections.get_mut(usize::from(at)) {
            let next = section.next;
            self.put_back(at);
            at = next;
        }
        true
    }

    fn set(&mut self, section: u16, state: Use, next: u16) {
        if let Some(at) = self.sections.get_mut(usize::from(section)) {
            let epoch = self.epoch;
            *at = Section { state, next, epoch };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packets_sections_come_back_once() {
        let mut sections = Sections::new();
        sections.reset(32);
        let chain = [(); 3].map(|()| sections.take().unwrap());
        let free = sections.free.len();
        let transaction = sections.show(&chain);
        assert!(!sections.answered(u64::from(chain[1])), "not the first");
        assert!(!sections.answered(31), "not held");
        assert!(!sections.answered(1 << 40));
        assert_eq!(sections.free.len(), free);
        assert!(sections.answered(transaction));
        assert!(!sections.answered(transaction), "once");
        assert_eq!(sections.free.len(), 32);
    }

    #[test]
    fn answers_find_a_section_when_frames_find_none() {
        for count in [0, 1, 2, 20, MAX_SECTIONS + 5] {
            let mut sections = Sections::new();
            sections.reset(count);
            while sections.take().is_some() {}
            assert_eq!(sections.take_reserved().is_some(), count > 1, "{count}");
        }
    }

    #[test]
    fn what_the_guest_holds_is_kept() {
        let mut sections = Sections::new();
        sections.reset(32);
        let chain = [(); 3].map(|()| sections.take().unwrap());
        sections.show(&chain);
        let single = sections.take().unwrap();
        sections.show(&[single]);
        let held = sections.held();
        assert_eq!(held, [(0, chain.to_vec()), (0, vec![single])]);
        let mut again = Sections::new();
        again.restart(32, 1);
        held.iter().for_each(|held| again.hold(held).unwrap());
        assert_eq!(again.held(), held);
        assert_eq!(again.free.len(), 28);
        assert_eq!(again.hold(&(0, vec![5, single])), Err(single));
        assert_eq!(again.hold(&(0, vec![32])), Err(32));
        assert_eq!(again.hold(&(0, vec![9, 9])), Err(9));
        assert_eq!(again.free.len(), 28);
        assert!(again.answered(chain[0].into()) && again.answered(single.into()));
        assert_eq!(again.free.len(), 32);
        // A late answer to a packet of before, whose sections were thought free.
        let section = again.take().unwrap();
        let transaction = again.show(&[section]);
        assert!(!again.answered(section.into()));
        assert!(again.answered(transaction));
    }

    #[test]
    fn nothing_is_allocated_later() {
        let mut sections = Sections::new();
        let room = (sections.sections.capacity(), sections.free.capacity());
        sections.reset(u32::MAX);
        while sections.take_reserved().is_some() {}
        (0..MAX_SECTIONS as u16).for_each(|section| sections.put_back(section));
        assert_eq!(
            (sections.sections.capacity(), sections.free.capacity()),
            room
        );
    }
}
