//! What a port implementation provides: a [`TxSide`] that one worker owns, and an [`RxSide`] that any worker borrows.
//!
//! tx and rx are as the guest sees them: tx leaves the guest, so the switch gathers from it; rx enters the guest, so
//! the switch delivers to it. Both are driven in bursts; no call is made per frame.
//!
//! # Life cycle
//! 1. The control side makes a pair of sides and attaches it to a port slot ([`crate::control::PortHandle::attach`]).
//! 2. The owner worker gathers, judges and completes; all workers deliver, each holding the slot's rx lease for the
//!    length of one burst.
//! 3. To change anything under a running port (rings, memory, queues) the control side detaches the pair, which returns
//!    once no worker uses it, changes it at leisure, and attaches it again. Indices and counters survive in the sides.

use std::any::Any;
use std::os::fd::BorrowedFd;

use guestmem::Memory;
use offload::Features;

use crate::burst::Burst;
use crate::deliver::{Job, Outgoing, Report};

/// A ring, memory or peer was found invalid: the port is taken out of service until its peer starts anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} is invalid: {value:#x}")]
pub struct PortFault {
    /// What was wrong, in the words of the ring's specification.
    pub what: &'static str,
    /// The value that was found.
    pub value: u64,
}

/// The half of a port that frames come from. Owned by one worker.
pub trait TxSide: Any + Send {
    /// The memory that the spans of gathered frames lie in.
    fn memory(&self) -> &Memory;

    /// Takes frames until the burst is full or the rings are empty. Buffers stay taken until [`TxSide::complete`].
    /// Rings that lie end the gathering and are reported by [`TxSide::fault`]; frames taken before that still count.
    fn gather(&mut self, burst: &mut Burst);

    /// Gives back the buffers of everything gathered since the last call, with one notification at most: true if there
    /// was one.
    fn complete(&mut self) -> bool;

    /// Asks for a wake-up on the next frame, as the worker is about to sleep. True if frames came in meanwhile, so that
    /// the worker must not sleep.
    fn arm(&mut self) -> bool;

    /// The worker polls again: wake-ups are not needed.
    fn disarm(&mut self);

    /// Calls `each` for every file descriptor that becomes readable when a frame may be waiting.
    fn wake_fds(&self, each: &mut dyn FnMut(BorrowedFd<'_>));

    /// The fault that ended this side, if one did.
    fn fault(&self) -> Option<PortFault>;
}

/// The half of a port that frames go to. Any worker delivers to it, one at a time.
pub trait RxSide: Any + Send {
    /// Delivers the frames of `job`, in order; books each copy in `report` as delivered or dropped. Ends with at most
    /// one notification. Never waits for the peer: what finds no room is dropped.
    fn deliver(&mut self, job: &Job<'_>, report: &mut Report);

    /// The fault that ended this side, if one did.
    fn fault(&self) -> Option<PortFault>;
}

/// A pair of sides, as it is attached and detached.
pub struct Sides {
    /// Where frames come from.
    pub tx: Box<dyn TxSide>,
    /// Where frames go to.
    pub rx: Box<dyn RxSide>,
}

/// A receive ring, as the generic delivery ([`crate::deliver::deliver`]) fills it.
///
/// For each frame: `reserve` once; on success the bytes are written to the spans, then `commit` or `cancel`. At the end
/// of the burst `publish` makes everything committed visible and notifies.
pub trait RxRing {
    /// The memory that reserved spans lie in.
    fn memory(&self) -> &Memory;

    /// What this destination agreed to receive.
    fn features(&self) -> Features;

    /// What this destination agreed to receive of this frame, which is written next: for destinations to which frames differ.
    #[inline]
    fn agreed(&mut self, _frame: &Outgoing<'_>) -> Features {
        self.features()
    }

    /// Whether a tag that the frame is to have goes into [`RxMeta::tag`] instead of into its bytes.
    fn takes_tags(&self) -> bool {
        false
    }

    /// Takes room for a frame of `len` bytes. On success `room` holds spans of `len` bytes together. On failure nothing
    /// is taken: `RxFull` if room may come, `RxTooSmall` if it never will, `RxFault` if the ring lies.
    fn reserve(&mut self, len: u32, room: &mut Room) -> Result<(), crate::drops::DropReason>;

    /// Writes a frame that goes as it is, in one step; `None` if the ring has no place that it fits in as a whole, or no
    /// such step: then `reserve` finds out. It stands for `reserve`, writing and `commit`.
    #[inline]
    fn put(
        &mut self,
        _source: &Memory,
        _frame: &PlainFrame<'_>,
    ) -> Option<Result<(), crate::drops::DropReason>> {
        None
    }

    /// The reserved frame has been written; `meta` goes into its header, where the ring has one.
    fn commit(&mut self, meta: &RxMeta);

    /// The reserved frame could not be written: its room is free again.
    fn cancel(&mut self);

    /// Makes committed frames visible to the peer and notifies it if it asked for that: true if it was notified.
    fn publish(&mut self) -> bool;
}

/// A frame that goes as it is and leaves nothing to the destination.
pub struct PlainFrame<'a> {
    /// Its first bytes, private.
    pub head: &'a [u8],
    /// What follows, in the source's memory.
    pub body: &'a [guestmem::Span],
    /// Its length, without FCS: that of head and body.
    pub len: u32,
    /// The sender vouches for its checksums, and the switch believes it.
    pub csum_valid: bool,
}

/// Spans of the room reserved for one frame.
pub type Room = arrayvec::ArrayVec<guestmem::Span, MAX_ROOM>;

/// Pieces of one reserved frame, at most: 64 KiB in mergeable buffers of 1.5 KiB needs 44, in 1 KiB 65; in 48 sections of a
/// buffer over pages, each may come in two.
pub const MAX_ROOM: usize = 96;

/// What the destination is told about a frame besides its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RxMeta {
    /// Checksum and segmentation left to the destination; offsets are those of the frame as written.
    pub request: offload::Request,
    /// Bytes of headers of a large frame, up to the end of TCP; 0 where none is large.
    pub header_len: u16,
    /// The tag the frame has, where the ring takes it besides the bytes ([`RxRing::takes_tags`]).
    pub tag: Option<offload::Tag>,
}

/// How the control side of a port (a vhost-user session, a VM) brings its sides into and out of service.
pub trait PortControl: Send + Sync {
    /// Puts the pair into service. Returns once the owner worker has it. A pair that was there before is returned.
    fn attach(&self, sides: Sides) -> Option<Sides>;

    /// Takes the pair out of service. Returns once no worker uses it.
    fn detach(&self) -> Option<Sides>;

    /// Why the attached sides are out of service, if they are.
    fn fault(&self) -> Option<PortFault>;

    /// Readable while there is a fault, so that the port's control thread can wait for one.
    fn fault_fd(&self) -> BorrowedFd<'_>;
}
