//! Sections of the receive buffer: which are free, and which the guest holds.
//!
//! A packet to the guest names one section or several, and its transaction is the first of them; the others are chained
//! to it. The guest gives all of them back by answering the transaction. Nothing is allocated after the start.

/// Sections that are used of a buffer, at most.
pub(super) const MAX_SECTIONS: u32 = 16 * 1024;
/// Sections that frames leave free, for answers to the driver.
const RESERVED: usize = 8;
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
}

/// The sections of one buffer.
#[derive(Debug)]
pub(super) struct Sections {
    sections: Vec<Section>,
    free: Vec<u16>,
}

impl Sections {
    /// None, and room for the most.
    pub(super) fn new() -> Sections {
        Sections {
            sections: Vec::with_capacity(MAX_SECTIONS as usize),
            free: Vec::with_capacity(MAX_SECTIONS as usize),
        }
    }

    /// `count` free sections, at most [`MAX_SECTIONS`].
    pub(super) fn reset(&mut self, count: u32) {
        let count = count.min(MAX_SECTIONS) as u16;
        let free = Section {
            state: Use::Free,
            next: NONE,
        };
        self.sections.clear();
        self.sections.resize(count.into(), free);
        self.free.clear();
        // Taken from the end: the first sections, which stay in the cache, are used first.
        self.free.extend((0..count).rev());
    }

    /// The packets that the guest holds: sections of each, the first of which is its transaction.
    pub(super) fn held(&self) -> Vec<Vec<u16>> {
        let firsts = self.sections.iter().enumerate();
        let firsts = firsts.filter(|(_, section)| section.state == Use::First);
        firsts
            .map(|(first, _)| self.chain(first as u16).collect())
            .collect()
    }

    /// `count` sections, of which the guest holds those of `packets`. `Err` names a section that is not there, or is in two
    /// places.
    pub(super) fn restore(&mut self, count: u32, packets: &[Vec<u16>]) -> Result<(), u16> {
        self.reset(count);
        for section in packets.iter().flatten() {
            match self.sections.get_mut(usize::from(*section)) {
                Some(at) if at.state == Use::Free => at.state = Use::Taken,
                _ => return Err(*section),
            }
        }
        let sections = &self.sections;
        let taken = |section: &u16| {
            let at = sections.get(usize::from(*section));
            at.is_some_and(|at| at.state == Use::Taken)
        };
        self.free.retain(|section| !taken(section));
        for packet in packets {
            self.show(packet);
        }
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

    /// Takes a section for a frame.
    #[inline]
    pub(super) fn take(&mut self) -> Option<u16> {
        // A buffer that small is shared evenly.
        let reserved = RESERVED.min(self.sections.len() / 2);
        if self.free.len() <= reserved {
            return None;
        }
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
        chain.first().map_or(0, |first| u64::from(*first))
    }

    /// The guest answered `transaction`. False if it holds no such packet: nothing happens.
    pub(super) fn answered(&mut self, transaction: u64) -> bool {
        let first = u16::try_from(transaction).unwrap_or(NONE);
        match self.sections.get(usize::from(first)) {
            Some(section) if section.state == Use::First => {}
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
            *at = Section { state, next };
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
        assert_eq!(held, [chain.to_vec(), vec![single]]);
        let mut again = Sections::new();
        again.restore(32, &held).unwrap();
        assert_eq!(again.held(), held);
        assert_eq!(again.free.len(), 28);
        assert!(again.answered(chain[0].into()) && again.answered(single.into()));
        assert_eq!(again.free.len(), 32);
        assert_eq!(again.restore(32, &[vec![32]]), Err(32));
        assert_eq!(again.restore(32, &[vec![1, 2], vec![2]]), Err(2));
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
