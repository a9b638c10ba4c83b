//! The synthetic interrupt controller: messages and event flags.
//!
//! Each processor has sixteen sources (SINTs). A source has a slot of 256 bytes in the processor's message page and 2048
//! flags in its event-flag page.
//!
//! | message slot | |
//! |---|---|
//! | 0 | u32 type; 0: the slot is free |
//! | 4 | u8 length of the payload |
//! | 5 | u8 flags; bit 0: another message waits, and the guest is to say so by EOM when it has freed the slot |
//! | 8 | u64 who sent it |
//! | 16 | the payload |

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

use guestmem::Fault;
use serde::{Deserialize, Serialize};

use super::page::{ENABLED, PAGE, PAGE_MASK};
use super::{Effect, Hyperv};

/// Longest payload of a message.
pub const MAX_PAYLOAD: usize = 240;
/// Messages that wait for a processor's slots, at most. A guest that posts is made to wait by then.
pub const MAX_WAITING: usize = 1024;
/// Bytes of a slot, and of the flags of a source.
const SLOT: usize = 256;
const SINTS: usize = 16;

const LENGTH: usize = 4;
const SENDER: usize = 8;
const PAYLOAD: usize = 16;
/// The flag that another message waits, in the word that starts with the length.
const PENDING: u32 = 1 << 8;

/// Bits of a source's register.
const VECTOR: u64 = 0xff;
const MASKED: u64 = 1 << 16;
const AUTO_EOI: u64 = 1 << 17;
const POLLING: u64 = 1 << 18;

/// Registers of the sources: masked after power-on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sints(pub(super) [u64; SINTS]);

impl Default for Sints {
    fn default() -> Sints {
        Sints([MASKED; SINTS])
    }
}

/// A message that waits for its slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Message {
    sint: u8,
    kind: u32,
    payload: Vec<u8>,
}

/// The controller of one processor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Synic {
    pub(super) control: u64,
    pub(super) event_flags: u64,
    pub(super) messages: u64,
    pub(super) sints: Sints,
    waiting: VecDeque<Message>,
}

impl Synic {
    /// The vector of a source that interrupts. Not one that the guest polls, nor one that it does not end: nobody here
    /// could end it.
    fn vector(&self, sint: u8) -> Option<u8> {
        let register = *self.sints.0.get(usize::from(sint))?;
        let silent = register & (MASKED | AUTO_EOI | POLLING) != 0;
        (!silent).then_some((register & VECTOR) as u8)
    }

    /// Guest address of source `sint`'s part of a page register, if the page is in force.
    fn part(&self, page: u64, sint: u8) -> Option<u64> {
        let on = self.control & ENABLED != 0 && page & ENABLED != 0;
        let inside = usize::from(sint) < SINTS;
        (on && inside).then_some((page & PAGE_MASK) + (SLOT * usize::from(sint)) as u64)
    }
}

/// Where a source's event flags are, and what interrupt goes with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventRoute {
    /// Guest address of its 2048 flags.
    pub flags: u64,
    /// The vector; `None`: the guest polls.
    pub vector: Option<u8>,
}

/// A message cannot be posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PostError {
    /// There is no such processor.
    #[error("there is no virtual processor {0}")]
    NoProcessor(u32),
    /// It has no such source.
    #[error("a message for interrupt source {0}; there are {SINTS}")]
    NoSource(u8),
    /// Too long.
    #[error("a message of {0} bytes; up to {MAX_PAYLOAD} fit a slot")]
    TooLong(usize),
    /// The guest does not read.
    #[error("{MAX_WAITING} messages wait for virtual processor {0} already")]
    Full(u32),
}

impl Hyperv {
    /// Whether a guest's request may be taken that is answered with some messages to processor `vp`.
    pub fn has_room(&self, vp: u32) -> bool {
        self.state
            .processors
            .get(vp as usize)
            .is_none_or(|processor| processor.synic.waiting.len() < MAX_WAITING / 2)
    }

    /// Posts a message of type `kind`, not 0, to source `sint` of processor `vp`; it waits until the slot is free.
    ///
    /// # Errors
    /// [`PostError`].
    pub fn post(
        &mut self,
        (vp, sint): (u32, u8),
        kind: u32,
        payload: &[u8],
        effects: &mut Vec<Effect>,
    ) -> Result<(), PostError> {
        let processor = self.state.processors.get_mut(vp as usize);
        let synic = &mut processor.ok_or(PostError::NoProcessor(vp))?.synic;
        if usize::from(sint) >= SINTS {
            return Err(PostError::NoSource(sint));
        }
        if payload.len() > MAX_PAYLOAD {
            return Err(PostError::TooLong(payload.len()));
        }
        if synic.waiting.len() >= MAX_WAITING {
            return Err(PostError::Full(vp));
        }
        synic.waiting.push_back(Message {
            sint,
            kind,
            payload: payload.to_vec(),
        });
        self.deliver(vp, effects);
        Ok(())
    }

    /// Moves messages that wait for processor `vp` into their slots, as far as these are free. To be called now and then
    /// for guests that free a slot at the moment they are told to say so.
    pub fn deliver(&mut self, vp: u32, effects: &mut Vec<Effect>) {
        let Some(processor) = self.state.processors.get_mut(vp as usize) else {
            return;
        };
        let synic = &mut processor.synic;
        while let Some(message) = synic.waiting.front() {
            let Some(slot) = synic.part(synic.messages, message.sint) else {
                return;
            };
            match fill(&self.memory, slot, message) {
                Ok(true) => {}
                // The guest took the page away: it is its own loss, but the queue must not grow.
                Err(_) => {}
                Ok(false) => return,
            }
            if let Some(vector) = synic.vector(message.sint) {
                effects.push(Effect::Interrupt { vp, vector });
            }
            synic.waiting.pop_front();
        }
    }

    /// Sets flag `flag`, below 2048, of source `sint` of processor `vp`, and interrupts if it was clear.
    pub fn signal(&self, (vp, sint): (u32, u8), flag: u16, effects: &mut Vec<Effect>) {
        let Some(route) = self.event_route(vp, sint) else {
            return;
        };
        let bit = 1 << (flag % 32);
        let Some(flags) = self.memory.window(route.flags, SLOT) else {
            return;
        };
        let before = flags.fetch_or_u32(usize::from(flag / 32) * 4, bit);
        if let (Ok(before), Some(vector)) = (before, route.vector)
            && before & bit == 0
        {
            effects.push(Effect::Interrupt { vp, vector });
        }
    }

    /// Where the flags of source `sint` of processor `vp` are, for who sets them without us; `None` while there are none.
    pub fn event_route(&self, vp: u32, sint: u8) -> Option<EventRoute> {
        let synic = &self.state.processors.get(vp as usize)?.synic;
        Some(EventRoute {
            flags: synic.part(synic.event_flags, sint)?,
            vector: synic.vector(sint),
        })
    }
}

/// Puts `message` into the slot at guest address `slot`. False if the slot is taken: the guest will say when it is free.
fn fill(
    memory: &std::sync::Arc<guestmem::Memory>,
    slot: u64,
    message: &Message,
) -> Result<bool, Fault> {
    let slot = memory.window(slot, SLOT).ok_or(Fault::Range)?;
    if slot.load_u32(0, Ordering::Acquire)? != 0 {
        slot.fetch_or_u32(LENGTH, PENDING)?;
        fence(Ordering::SeqCst);
        // It may have been freed before the flag was seen.
        if slot.load_u32(0, Ordering::Acquire)? != 0 {
            return Ok(false);
        }
    }
    slot.write(PAYLOAD, &message.payload)?;
    slot.store_u32(LENGTH, message.payload.len() as u32, Ordering::Relaxed)?;
    slot.store_u64(SENDER, 0, Ordering::Relaxed)?;
    slot.store_u32(0, message.kind, Ordering::Release)?;
    Ok(true)
}

const _: () = assert!(PAYLOAD + MAX_PAYLOAD == SLOT && SINTS * SLOT == PAGE);
