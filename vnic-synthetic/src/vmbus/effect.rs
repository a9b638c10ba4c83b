//! What the bus and the process around it say to each other.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::gpadl::PageList;
use super::message::Message;

/// Channels a bus offers at most, sub-channels included: event flags number them from 1.
pub const MAX_CHANNELS: u16 = 2047;

/// Interface of network adapters: f8615163-df3e-46c5-913f-f2d2f965ed0e, as on the wire.
pub const NETWORK: [u8; 16] = [
    0x63, 0x51, 0x61, 0xf8, 0x3e, 0xdf, 0xc5, 0x46, 0x91, 0x3f, 0xf2, 0xd2, 0xf9, 0x65, 0xed, 0x0e,
];

/// A channel to offer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// Class of the device, as on the wire.
    pub interface: [u8; 16],
    /// The device: what the guest knows it by across restarts. Sub-channels have their primary channel's.
    pub instance: [u8; 16],
    /// Data for the class's driver.
    #[serde(with = "super::state::user_defined")]
    pub user_defined: [u8; 120],
    /// Packets have the header of a pipe, as those of integration services.
    pub pipe: bool,
    /// The primary channel and an index from 1, for a sub-channel.
    pub sub_channel: Option<(u16, u16)>,
}

impl Offer {
    /// A network adapter's channel. `instance` is what its guest knows it by.
    pub fn network(instance: [u8; 16]) -> Offer {
        Offer {
            interface: NETWORK,
            instance,
            user_defined: [0; 120],
            pipe: false,
            sub_channel: None,
        }
    }

    /// The same device's sub-channel `index`, from 1; its primary channel is `primary`.
    #[must_use]
    pub fn sub_channel(&self, primary: u16, index: u16) -> Offer {
        Offer {
            sub_channel: Some((primary, index)),
            ..self.clone()
        }
    }
}

/// Why a channel is not offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OfferError {
    /// Every number is taken.
    #[error("a virtual machine bus has {MAX_CHANNELS} channels at most")]
    Full,
    /// There is no such channel.
    #[error("channel {0} of the virtual machine bus does not exist")]
    NoChannel(u16),
}

/// A message the guest should not have sent; it was not acted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Unknown, or shorter than its fields.
    #[error("VMBus message of type {0} is unknown or too short")]
    Kind(u32),
    /// It names a channel or memory that is not there or not in that state, or comes before a connection.
    #[error("VMBus message {what} for {id} does not fit the state of the bus")]
    State {
        /// Name of the message.
        what: &'static str,
        /// The channel or GPADL it names.
        id: u32,
    },
}

/// How the guest is told that there is something in a channel's ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupts {
    /// By its own flag: bit = channel, in the event flags of SINT 2.
    Flag,
    /// Before Windows Server 2012: bit = channel in the first half of the page at this guest address, and event flag 0.
    Page(u64),
}

/// How a channel is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// Memory of both rings.
    pub ring: Arc<PageList>,
    /// First page of the ring from host to guest.
    pub downstream_page: u32,
    /// Virtual processor that is interrupted.
    pub target_vp: u32,
    /// How it is told.
    pub interrupts: Interrupts,
}

/// What the service behind a channel is asked to do. Demands of a channel are met in order; for a channel that has no
/// service any more, the process answers itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Demand {
    /// The guest shares memory: answer [`Done::Added`].
    Add {
        /// Handle.
        gpadl: u32,
        /// The pages.
        list: Arc<PageList>,
    },
    /// It wants the memory back: answer [`Done::Removed`] once nobody uses it.
    Remove {
        /// Handle.
        gpadl: u32,
    },
    /// Put the channel into service: answer [`Done::Opened`].
    Open(Open),
    /// Take it out of service: answer [`Done::Closed`] once nobody uses its rings.
    Close,
    /// Interrupt another virtual processor from now on: answer [`Done::Retargeted`].
    Retarget {
        /// The processor.
        target_vp: u32,
    },
}

impl Demand {
    /// The answer: it is met, or cannot be.
    #[must_use]
    pub fn answer(&self, ok: bool) -> Done {
        match self {
            Self::Add { gpadl, .. } => Done::Added { gpadl: *gpadl, ok },
            Self::Remove { gpadl } => Done::Removed { gpadl: *gpadl },
            Self::Open(_) => Done::Opened { ok },
            Self::Close => Done::Closed,
            Self::Retarget { .. } => Done::Retargeted { ok },
        }
    }
}

/// The answer to a [`Demand`]. `ok` false: it cannot be met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named after what they answer")]
pub enum Done {
    Added { gpadl: u32, ok: bool },
    Removed { gpadl: u32 },
    Opened { ok: bool },
    Closed,
    Retargeted { ok: bool },
}

/// What the process around the bus has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Post to SINT 2 of a virtual processor. The guest chose the number: there may be no such processor.
    Post {
        /// Virtual processor.
        vp: u32,
        /// The message.
        message: Message,
    },
    /// Ask the service of a channel.
    Ask {
        /// The channel.
        relid: u16,
        /// For what.
        demand: Demand,
    },
}

/// Which channels a guest's signal is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// This one.
    Channel(u16),
    /// Any: all have to look.
    All,
}
