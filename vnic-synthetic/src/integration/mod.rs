//! Integration services: what the host and a guest's own drivers do for each other besides devices.
//!
//! Each service is a channel of the bus whose packets are messages in the header of a pipe ([`message`]). The host sends a
//! request and the guest sends it back, filled in. First of all both agree on versions. A [`Service`] is a function of its
//! channel's rings and of the time it is told; it lives beside the bus, which offers its channel only where it is wanted.
//!
//! A guest without the driver never opens the channel: [`Status::Absent`].
//!
//! Source: Linux 6.1 `include/linux/hyperv.h`, `include/uapi/linux/hyperv.h`, `drivers/hv/hv_util.c`, `drivers/hv/hv_kvp.c`.

mod beat;
mod channel;
mod message;
mod pairs;
mod service;
mod shutdown;
mod time;

pub use message::Version;
pub use pairs::{MAX_KEY, MAX_VALUE, Pool};
pub use service::{Event, Now, Request, RequestError, Service, ServiceError, Status, Turn};
pub use shutdown::Shutdown;

use crate::vmbus::Offer;

/// Which service it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The guest shuts itself down when asked to.
    Shutdown,
    /// The guest says that it lives.
    Heartbeat,
    /// The guest is told the time.
    TimeSync,
    /// Texts under names, of the guest and for the guest.
    KeyValue,
}

impl Kind {
    /// All services.
    pub const ALL: [Kind; 4] = [
        Self::Shutdown,
        Self::Heartbeat,
        Self::TimeSync,
        Self::KeyValue,
    ];

    /// The channel of the service. Interface and instance are those that guests know from Hyper-V.
    pub fn offer(self) -> Offer {
        let (interface, instance) = match self {
            Self::Shutdown => (
                guid(0x0e0b_6031, 0x5213, 0x4934, 0x818b_38d9_0ced_39db),
                guid(0xb665_0ff7, 0x33bc, 0x4840, 0x8048_e067_6786_f393),
            ),
            Self::Heartbeat => (
                guid(0x5716_4f39, 0x9115, 0x4e78, 0xab55_382f_3bd5_422d),
                guid(0xfd14_9e91, 0x82e0, 0x4a7d, 0xafa6_2a41_66cb_d7c0),
            ),
            Self::TimeSync => (
                guid(0x9527_e630, 0xd0ae, 0x497b, 0xadce_e80a_b017_5caf),
                guid(0x2dd1_ce17, 0x079e, 0x403c, 0xb352_a192_1ee2_07ee),
            ),
            Self::KeyValue => (
                guid(0xa9a0_f4e7, 0x5a45, 0x4d96, 0xb827_8a84_1e8c_03e6),
                guid(0x242f_f919, 0x07db, 0x4180, 0x9c2e_b86c_b68c_8c55),
            ),
        };
        let mut user_defined = [0; 120];
        user_defined[0] = MESSAGE_MODE;
        Offer {
            interface,
            instance,
            user_defined,
            pipe: true,
            sub_channel: None,
        }
    }

    /// Versions of the service's messages that the host speaks.
    fn versions(self) -> &'static [Version] {
        match self {
            Self::Shutdown => &[Version(3, 2), Version(3, 1), Version(3, 0), Version(1, 0)],
            Self::Heartbeat => &[Version(3, 0), Version(1, 0)],
            Self::TimeSync => &[Version(4, 0), Version(3, 0), Version(1, 0)],
            Self::KeyValue => &[Version(4, 0), Version(3, 0), Version(1, 0)],
        }
    }
}

/// The pipe of an offer carries messages, not bytes.
const MESSAGE_MODE: u8 = 4;

/// A GUID as on the wire: the first three parts are little-endian.
fn guid(first: u32, second: u16, third: u16, rest: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    let number = u128::from(first.swap_bytes()) << 96
        | u128::from(second.swap_bytes()) << 80
        | u128::from(third.swap_bytes()) << 64
        | u128::from(rest);
    bytes.copy_from_slice(&number.to_be_bytes());
    bytes
}
