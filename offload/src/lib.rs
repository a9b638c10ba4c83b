//! Pure frame work for the switch: header parsing, Internet checksums, VLAN tags, offload requests, TCP
//! segmentation and the flow hash.
//!
//! The switch keeps a private snapshot of a frame's first bytes, the *head* (at most [`SNAPSHOT`] bytes; all of the
//! frame if it is shorter), and its length `len` from the destination MAC to the end of the payload, without FCS.
//! The rest, the *body*, stays in the sender's memory and is never seen here. All decisions are made from the head.
//!
//! A frame goes through these steps, each a pure function of its arguments:
//!
//! 1. [`Request`] is what the sender asks for, in one normal form for every kind of port.
//! 2. [`validate`](request::validate) holds it against head and length and gives a [`Checked`].
//! 3. [`plan`](plan::plan) says what must be done for one destination: an [`Action`].
//! 4. [`Segmenter`] cuts a large frame if the plan says so; [`TagEdit`] then changes the 802.1Q tag;
//!    [`finish_checksum`] closes a checksum once the caller has summed the body.
//!
//! Nothing here does I/O, reads a clock, allocates, or can panic, whatever the bytes are. `no_std` without `alloc` keeps
//! the first three so.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), no_std)]

pub mod checksum;
mod field;
pub mod hash;
pub mod join;
pub mod parse;
pub mod plan;
pub mod request;
pub mod segment;
pub mod tag;
mod unfinished;
pub mod virtio;

pub use checksum::{Sum, finish_checksum};
pub use hash::flow_hash;
pub use join::Joined;
pub use parse::{Fragment, Headers, Network, Transport};
pub use plan::{Action, Features};
pub use request::{Checked, CsumAt, Gso, Request, RequestError};
pub use segment::{Segment, Segmenter};
pub use tag::{Tag, TagEdit};
pub use unfinished::unfinished_checksum;
pub use virtio::VirtioNetHdr;

/// Most bytes of a frame that the switch snapshots and judges.
pub const SNAPSHOT: usize = 128;

/// Room for an outgoing head: a full snapshot and one inserted 802.1Q tag.
pub const HEAD_MAX: usize = SNAPSHOT + 4;

/// Bytes of an Ethernet header without tag: two MAC addresses and the ethertype.
pub const ETHER_LEN: usize = 14;
