//! What the bus of a VM demands for the channels of a synthetic adapter, whose rings are vswitchd's.
//!
//! The words are those of VMBus: a GPADL is memory that a guest shares under a handle, a list of its pages. Memory is
//! named by the numbers of its pages, flags by guest-physical addresses: both say nothing until vswitchd has found them
//! in the RAM that the process gave it.

use serde::{Deserialize, Serialize};

use super::message::{InvalidMessage, at_most, invalid};

/// Channels of an adapter, at most: its primary channel and sub-channels.
pub const MAX_CHANNELS: u8 = 8;
/// Pages of a GPADL, at most: all that a guest can describe in one.
pub const MAX_PAGES: usize = 8190;
/// Pages of the rings of a channel, at most: 8 MiB in each direction.
pub const MAX_RING_PAGES: usize = 4096;
/// Bytes of what is kept for an adapter, at most.
pub const MAX_STATE: usize = 48 * 1024;
/// Bytes of the event flags of one interrupt, and of all interrupts in a page of the old kind.
pub const FLAG_BYTES: u32 = 256;

/// Bytes of a page.
const PAGE: u64 = 4096;
/// Page numbers are below: guest-physical addresses have 52 bits.
const PAGE_NUMBERS: u64 = 1 << 40;
/// Flags that are set for one interrupt, at most.
const MAX_FLAGS: usize = 2;

/// A run of memory over guest pages that need not be neighbours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PageRange {
    /// Where it starts in the first page, below 4096.
    pub offset: u32,
    /// Its length in bytes, at least 1.
    pub len: u32,
    /// Numbers of the pages, below 2^40; exactly as many as it takes.
    pub pages: Vec<u64>,
}

/// A bit in guest memory that is set before the guest is interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flag {
    /// Guest-physical address of the [`FLAG_BYTES`] bytes it is in, a multiple of that.
    pub address: u64,
    /// Its number there.
    pub bit: u32,
}

/// What the service of an adapter is asked to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Demand {
    /// The guest shares memory.
    Add {
        /// Its handle.
        gpadl: u32,
        /// The memory.
        range: PageRange,
    },
    /// It wants the memory back. Nobody uses it once this is done, which it always is.
    Remove {
        /// Its handle.
        gpadl: u32,
    },
    /// Put a channel into service. With it goes the event that interrupts the guest.
    Open {
        /// Its index: 0 for the primary channel, 1 to 7 for sub-channels.
        channel: u8,
        /// Memory of both rings.
        ring: PageRange,
        /// First page of the ring from host to guest.
        downstream_page: u32,
        /// The flags of its interrupt.
        flags: Vec<Flag>,
        /// Whether it was open before, under a vswitchd that is no more or before the VM was saved. It stands still then
        /// until [`Demand::Restore`].
        resumed: bool,
    },
    /// All that was shared and open has been demanded again: the adapter goes on from here.
    Restore {
        /// What [`Keep`](super::message::Command::Keep) said last since the primary channel was opened; empty if it said
        /// nothing.
        state: String,
    },
    /// Take a channel out of service. Nobody uses its rings once this is done, which it always is.
    Close {
        /// Its index.
        channel: u8,
    },
    /// The flags of a channel's interrupt are others from now on. If this cannot be done it has none.
    Retarget {
        /// Its index.
        channel: u8,
        /// The flags.
        flags: Vec<Flag>,
    },
}

impl PageRange {
    fn check(&self) -> Result<(), InvalidMessage> {
        at_most("number of pages", self.pages.len(), MAX_PAGES)?;
        if u64::from(self.offset) >= PAGE {
            return invalid("offset in a page", self.offset, "below 4096");
        }
        if self.len == 0 {
            return invalid("length of a range", self.len, "at least 1");
        }
        let due = (u64::from(self.offset) + u64::from(self.len)).div_ceil(PAGE);
        if self.pages.len() as u64 != due {
            return invalid("number of pages", self.pages.len(), due);
        }
        match self.pages.iter().find(|&&page| page >= PAGE_NUMBERS) {
            Some(page) => invalid("number of a page", page, "below 2^40"),
            None => Ok(()),
        }
    }
}

fn check_channel(channel: u8) -> Result<(), InvalidMessage> {
    if channel >= MAX_CHANNELS {
        return invalid("index of a channel", channel, "0 to 7");
    }
    Ok(())
}

fn check_flags(flags: &[Flag]) -> Result<(), InvalidMessage> {
    at_most("number of flags", flags.len(), MAX_FLAGS)?;
    for flag in flags {
        if !flag.address.is_multiple_of(FLAG_BYTES.into()) {
            return invalid("address of flags", flag.address, "a multiple of 256");
        }
        if flag.bit >= FLAG_BYTES * 8 {
            return invalid("number of a flag", flag.bit, "below 2048");
        }
    }
    Ok(())
}

pub(super) fn check_state(state: &str) -> Result<(), InvalidMessage> {
    at_most("length of what is kept", state.len(), MAX_STATE)?;
    // So that a message with it has a length that is bounded: nothing of it takes more than two bytes in JSON.
    match state.bytes().find(|c| !matches!(c, b' '..=b'~')) {
        Some(byte) => invalid("byte of what is kept", byte, "printable ASCII"),
        None => Ok(()),
    }
}

impl Demand {
    /// Checks the fields; gives how many file descriptors belong to it.
    pub(super) fn check(&self) -> Result<usize, InvalidMessage> {
        match self {
            Demand::Add { range, .. } => range.check()?,
            Demand::Remove { .. } => {}
            Demand::Open {
                channel,
                ring,
                flags,
                ..
            } => {
                check_channel(*channel)?;
                at_most("number of pages of rings", ring.pages.len(), MAX_RING_PAGES)?;
                ring.check()?;
                check_flags(flags)?;
                return Ok(1);
            }
            Demand::Restore { state } => check_state(state)?,
            Demand::Close { channel } => check_channel(*channel)?,
            Demand::Retarget { channel, flags } => {
                check_channel(*channel)?;
                check_flags(flags)?;
            }
        }
        Ok(0)
    }
}
