//! A receive queue: frames are written into chains of buffers.

use std::sync::Arc;

use arrayvec::ArrayVec;
use guestmem::{Fault, Memory, Span};
use offload::{Features, VirtioNetHdr};

use super::ring::{Buffer, Mark, Piece, Ring, fault};
use super::run::Plain;
use super::tx::Events;
use crate::drops::DropReason;
use crate::port::{MAX_ROOM, PlainFrame, PortFault, Room, RxMeta, RxRing};

/// How many chains ahead of the one being filled a buffer is fetched.
const AHEAD: usize = 8;

/// How often in a burst a full ring is looked at again before a frame is dropped, and the pauses of the processor before
/// each look: some microseconds together, in which a driver that is at work makes room.
const LOOKS: u8 = 8;
const PAUSES: u32 = 16;

/// What was negotiated about received frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RxFormat {
    /// Length of the virtio header: 12, or 10 for legacy drivers without mergeable buffers.
    pub header_len: u8,
    /// A frame may span several buffers (`VIRTIO_NET_F_MRG_RXBUF`).
    pub mergeable: bool,
    /// Offloads the driver takes.
    pub features: Features,
}

/// Room for one frame: the chains taken for it, and where its header goes.
struct Reserved {
    start: Mark,
    /// Each chain, and the bytes written to it.
    chains: ArrayVec<(Buffer, u32), MAX_ROOM>,
    /// Where the header goes: one span, unless the driver split it.
    header: ArrayVec<Span, { VirtioNetHdr::LEN }>,
}

/// A receive queue over a ring of either format.
pub struct RxQueue<R> {
    ring: R,
    memory: Arc<Memory>,
    events: Events,
    format: RxFormat,
    reserved: Reserved,
    /// Looks left in this burst.
    looks: u8,
    /// Where the ring was full all the time that it was waited for. While it stays there nobody waits again.
    stuck: Option<Mark>,
    /// The driver was notified in mid-burst.
    called: bool,
    fault: Option<PortFault>,
}

impl<R: Ring> RxQueue<R> {
    /// A queue over `ring`, whose buffers lie in `memory`.
    pub fn new(ring: R, memory: Arc<Memory>, events: Events, format: RxFormat) -> RxQueue<R> {
        let start = ring.mark();
        let reserved = Reserved {
            start,
            chains: ArrayVec::new(),
            header: ArrayVec::new(),
        };
        RxQueue {
            ring,
            memory,
            events,
            format,
            reserved,
            looks: LOOKS,
            stuck: None,
            called: false,
            fault: None,
        }
    }

    /// The fault that ended the queue.
    pub fn fault(&self) -> Option<PortFault> {
        self.fault
    }

    /// As [`Ring::base`].
    pub fn base(&self) -> u32 {
        self.ring.base()
    }

    /// Fetches a buffer that will be filled soon.
    #[inline]
    fn fetch_ahead(&self) {
        if let Some(place) = self.ring.ahead(AHEAD) {
            self.memory.prefetch_write(place.span);
        }
    }

    #[cold]
    fn fail(&mut self, fault: PortFault) {
        if self.fault.is_none() {
            self.fault = Some(fault);
            self.events.error();
        }
    }

    /// Takes chains until they hold the header and `len` bytes.
    fn take(&mut self, len: u32, room: &mut Room) -> Result<Result<(), DropReason>, PortFault> {
        let mut want = Want {
            memory: &self.memory,
            header: u32::from(self.format.header_len),
            frame: len,
        };
        let Reserved { chains, header, .. } = &mut self.reserved;
        let mut slots = 0;
        loop {
            let before = want.header + want.frame;
            let mut fits = true;
            let taken = self.ring.take(|piece| {
                fits = fits && want.place(piece, header, room)?;
                Ok(())
            })?;
            let Some(buffer) = taken else {
                // All that the ring can ever hold was there.
                let whole = slots >= u32::from(self.ring.size());
                return Ok(Err(if whole {
                    DropReason::RxTooSmall
                } else {
                    DropReason::RxFull
                }));
            };
            slots += u32::from(buffer.slots);
            let left = want.header + want.frame;
            if !fits || chains.try_push((buffer, before - left)).is_err() {
                return Ok(Err(DropReason::RxTooSmall));
            }
            if left == 0 {
                return Ok(Ok(()));
            }
            if !self.format.mergeable {
                return Ok(Err(DropReason::RxTooSmall));
            }
            if want.header > 0 {
                return fault("length of a mergeable receive buffer", before - left);
            }
        }
    }

    #[inline]
    fn try_reserve(&mut self, len: u32, room: &mut Room) -> Result<(), DropReason> {
        room.clear();
        if self.fault.is_some() {
            return Err(DropReason::RxFault);
        }
        self.reserved.start = self.ring.mark();
        self.reserved.chains.clear();
        self.reserved.header.clear();
        let result = self.take(len, room).unwrap_or_else(|fault| {
            self.fail(fault);
            Err(DropReason::RxFault)
        });
        match result {
            Ok(()) => self.fetch_ahead(),
            Err(_) => self.cancel(),
        }
        result
    }

    /// The ring is full: shows the driver what is in it, and gives it a moment to make room. False if it had its chance.
    #[cold]
    fn wait(&mut self) -> bool {
        let at = self.ring.mark();
        if self.looks == 0 || self.stuck == Some(at) {
            self.stuck = Some(at);
            return false;
        }
        self.looks -= 1;
        self.show();
        for _ in 0..PAUSES {
            std::hint::spin_loop();
        }
        true
    }

    /// Makes what was written visible to the driver, and notifies it if it asked for that.
    #[inline]
    fn show(&mut self) {
        // What was committed before a fault is still published: it was counted as delivered.
        match self.ring.publish() {
            Ok(wanted) => self.called |= wanted && self.events.call(),
            Err(fault) => self.fail(fault),
        }
    }

    fn finish(&mut self, meta: &RxMeta) -> Result<(), PortFault> {
        let mut header = meta.request.to_virtio(meta.header_len);
        header.num_buffers = self.reserved.chains.len() as u16;
        let bytes = header.to_bytes();
        match self.reserved.header.as_slice() {
            [whole] if whole.len() as usize == bytes.len() => self.memory.write(*whole, &bytes),
            pieces => write_pieces(&self.memory, pieces, &bytes),
        }
        .map_err(super::ring::lost)?;
        for &(buffer, written) in &self.reserved.chains {
            self.ring.give(buffer, written)?;
        }
        Ok(())
    }
}

/// Writes a header that the driver split, or its first 10 bytes for legacy drivers.
fn write_pieces(memory: &Memory, pieces: &[Span], header: &[u8]) -> Result<(), Fault> {
    let mut left = header;
    for piece in pieces {
        let Some((now, rest)) = left.split_at_checked(piece.len() as usize) else {
            break;
        };
        memory.write(*piece, now)?;
        left = rest;
    }
    Ok(())
}

/// What is still to be placed in buffers.
struct Want<'a> {
    memory: &'a Memory,
    header: u32,
    frame: u32,
}

impl Want<'_> {
    /// Takes what it can of `piece`. False if it comes in more pieces than are kept.
    #[inline]
    fn place(
        &mut self,
        piece: Piece,
        header: &mut ArrayVec<Span, { VirtioNetHdr::LEN }>,
        room: &mut Room,
    ) -> Result<bool, PortFault> {
        if !piece.writable {
            return fault("read-only buffer on a receive queue", piece.addr);
        }
        let len = piece.len.min(self.header + self.frame);
        if let Some(span) = self.memory.span(piece.addr, len) {
            return Ok(self.place_span(span, header, room));
        }
        let mut fits = true;
        let memory = self.memory;
        let known = memory.spans(piece.addr, len, |span| {
            fits = fits && self.place_span(span, header, room);
            true
        });
        if known {
            Ok(fits)
        } else {
            fault("address of a buffer", piece.addr)
        }
    }

    #[inline]
    fn place_span(
        &mut self,
        span: Span,
        header: &mut ArrayVec<Span, { VirtioNetHdr::LEN }>,
        room: &mut Room,
    ) -> bool {
        let Some((front, rest)) = span.split_at(span.len().min(self.header)) else {
            return false;
        };
        // Every span of the header has a byte of it at least, so there is a place for each.
        if !front.is_empty() && header.try_push(front).is_err() {
            return false;
        }
        self.header -= front.len();
        self.frame -= rest.len();
        rest.is_empty() || room.try_push(rest).is_ok()
    }
}

/// The last four bytes of the header of a frame in one buffer: offset of the checksum, number of buffers.
const ONE_BUFFER: u32 = 1 << 16;

/// Writes header and frame to `to`, which is as long as both.
#[inline(always)]
fn write_plain(
    memory: &Memory,
    to: Span,
    header: u64,
    source: &Memory,
    frame: &PlainFrame<'_>,
) -> Result<(), Fault> {
    let mut room = memory.fill(to)?;
    room.write_u64(header)?;
    room.write_u32(ONE_BUFFER)?;
    room.write(frame.head)?;
    for span in frame.body {
        room.copy(source, *span)?;
    }
    room.finish()
}

impl<R: Ring> RxRing for RxQueue<R> {
    #[inline]
    fn put(&mut self, source: &Memory, frame: &PlainFrame<'_>) -> Option<Result<(), DropReason>> {
        if self.fault.is_some() || usize::from(self.format.header_len) != VirtioNetHdr::LEN {
            return None;
        }
        let &Plain { span: room, id } = self.ring.plain()?;
        let len = frame.len + VirtioNetHdr::LEN as u32;
        let to = room.sub(0, len)?;
        self.fetch_ahead();
        // The first eight bytes are flags and, as nothing is asked for, zeros.
        let header = if frame.csum_valid && self.format.features.csum {
            VirtioNetHdr::DATA_VALID.into()
        } else {
            0
        };
        // What could not be written is not given back: the buffer is there for the next frame.
        if write_plain(&self.memory, to, header, source, frame).is_err() {
            return Some(Err(if source.is_faulted() {
                DropReason::SourceFault
            } else {
                DropReason::RxFault
            }));
        }
        self.ring.take_plain();
        if let Err(fault) = self.ring.give(Buffer { id, slots: 1 }, len) {
            self.fail(fault);
        }
        Some(Ok(()))
    }

    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn features(&self) -> Features {
        self.format.features
    }

    #[inline]
    fn reserve(&mut self, len: u32, room: &mut Room) -> Result<(), DropReason> {
        loop {
            match self.try_reserve(len, room) {
                Err(DropReason::RxFull) if self.wait() => {}
                result => return result,
            }
        }
    }

    #[inline]
    fn commit(&mut self, meta: &RxMeta) {
        if let Err(fault) = self.finish(meta) {
            self.fail(fault);
        }
    }

    fn cancel(&mut self) {
        self.reserved.chains.clear();
        self.ring.rewind(self.reserved.start);
    }

    fn publish(&mut self) -> bool {
        self.ring.fetch();
        self.show();
        self.looks = LOOKS;
        std::mem::take(&mut self.called)
    }
}
