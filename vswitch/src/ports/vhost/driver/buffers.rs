//! A ring of the test guest with its events and its buffers.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use guestmem::{Memory, Span};
use rustix::event::{EventfdFlags, eventfd};

use super::ring::{DriverRing, RingAddr};
use super::{GuestError, MAX_PIECES, Setup, TABLE_LEN, round_up};
use crate::ports::vhost::ring::Piece;

/// How a frame or a buffer is laid out over descriptors.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// Lengths of the first pieces; the last takes the rest. Empty for one piece.
    pub cuts: Vec<u32>,
    /// By an indirect descriptor.
    pub indirect: bool,
}

/// A buffer that the device has.
#[derive(Clone, Copy, Default)]
pub(super) struct Posted {
    pub(super) buffer: u64,
    pub(super) count: u16,
}

/// A ring of a guest, its events and buffers.
pub struct GuestRing {
    /// The ring itself.
    pub ring: DriverRing,
    pub(super) addr: RingAddr,
    pub(super) kick: OwnedFd,
    pub(super) call: OwnedFd,
    pub(super) free: VecDeque<u64>,
    /// By head or id.
    pub(super) posted: Vec<Posted>,
    pieces: Vec<[Piece; MAX_PIECES]>,
    /// Address of the first indirect table; there is one for each buffer.
    tables: u64,
    /// Address of the first buffer, and bytes from one to the next.
    buffers: u64,
    stride: u64,
}

const NO_PIECE: Piece = Piece {
    addr: 0,
    len: 0,
    writable: false,
};

impl GuestRing {
    pub(super) fn new(
        memory: &Arc<Memory>,
        setup: &Setup,
        start: u64,
    ) -> Result<GuestRing, GuestError> {
        let ring = setup.ring();
        let [table, avail, used] = ring.part_lens().map(|len| round_up(len as u64));
        let addr = RingAddr {
            table: start,
            avail: start + table,
            used: start + table + avail,
        };
        let order = if setup.order.is_empty() {
            (0..setup.queue_size).collect()
        } else {
            setup.order.clone()
        };
        let tables = start + table + avail + used;
        let size = u64::from(setup.queue_size);
        let buffers = tables + TABLE_LEN * size;
        let stride = round_up(setup.buffer_len.into());
        let buffer = |index| buffers + index * stride;
        Ok(GuestRing {
            ring: DriverRing::new(memory, ring, addr, order).ok_or(GuestError::Setup)?,
            addr,
            kick: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            call: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            free: (0..size).map(buffer).collect(),
            posted: vec![Posted::default(); setup.queue_size.into()],
            pieces: vec![[NO_PIECE; MAX_PIECES]; setup.queue_size.into()],
            tables,
            buffers,
            stride,
        })
    }

    /// Address of each buffer.
    pub fn buffers(&self) -> impl Iterator<Item = u64> {
        (0..self.posted.len() as u64).map(|index| self.buffers + index * self.stride)
    }

    /// Where the parts of the ring are.
    pub fn addr(&self) -> RingAddr {
        self.addr
    }

    /// The eventfd by which the device is notified.
    pub fn kick(&self) -> &OwnedFd {
        &self.kick
    }

    pub(super) fn pieces_of(&self, id: u16) -> &[Piece] {
        let count = self
            .posted
            .get(usize::from(id))
            .map_or(0, |posted| usize::from(posted.count));
        self.pieces
            .get(usize::from(id))
            .and_then(|pieces| pieces.get(..count))
            .unwrap_or(&[])
    }

    /// Adds a buffer of `len` bytes, laid out by `layout` back to front, so that no piece follows the one before.
    pub(super) fn post(
        &mut self,
        len: u32,
        layout: &Layout,
        writable: bool,
    ) -> Result<Option<u16>, GuestError> {
        let Some(&buffer) = self.free.front() else {
            return Ok(None);
        };
        let mut pieces = Vec::new();
        let mut left = len;
        for &cut in layout.cuts.iter().take(MAX_PIECES - 1) {
            let cut = cut.min(left);
            left -= cut;
            pieces.push(Piece {
                addr: buffer + u64::from(left),
                len: cut,
                writable,
            });
        }
        if left > 0 || pieces.is_empty() {
            pieces.push(Piece {
                addr: buffer,
                len: left,
                writable,
            });
        }
        let index = (buffer - self.buffers) / self.stride;
        let indirect = layout.indirect.then_some(self.tables + index * TABLE_LEN);
        let Some(id) = self.ring.add(&pieces, indirect)? else {
            return Ok(None);
        };
        self.free.pop_front();
        if let (Some(posted), Some(kept)) = (
            self.posted.get_mut(usize::from(id)),
            self.pieces.get_mut(usize::from(id)),
        ) {
            *posted = Posted {
                buffer,
                count: pieces.len() as u16,
            };
            kept.iter_mut()
                .zip(pieces)
                .for_each(|(to, from)| *to = from);
        }
        Ok(Some(id))
    }

    /// Adds a buffer by one descriptor. False if there is no room.
    #[inline]
    pub(super) fn post_plain(&mut self, len: u32, writable: bool) -> Result<bool, GuestError> {
        let Some(&addr) = self.free.front() else {
            return Ok(false);
        };
        let Some(id) = self.ring.add(
            &[Piece {
                addr,
                len,
                writable,
            }],
            None,
        )?
        else {
            return Ok(false);
        };
        self.free.pop_front();
        if let Some(posted) = self.posted.get_mut(usize::from(id)) {
            *posted = Posted {
                buffer: addr,
                count: 0,
            };
        }
        Ok(true)
    }

    /// Takes one used buffer back.
    #[inline]
    pub(super) fn reclaim_one(&mut self) -> Result<bool, GuestError> {
        let Some((id, _)) = self.ring.take_used()? else {
            return Ok(false);
        };
        if let Some(posted) = self.posted.get(usize::from(id)) {
            self.free.push_back(posted.buffer);
        }
        Ok(true)
    }

    /// Takes all used buffers back. How many there were.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn reclaim(&mut self) -> Result<usize, GuestError> {
        let mut count = 0;
        while self.reclaim_one()? {
            count += 1;
        }
        Ok(count)
    }

    /// Takes one used buffer, and appends what the device wrote to it. False if there is none.
    pub(super) fn take_into(
        &mut self,
        memory: &Memory,
        bytes: &mut Vec<u8>,
    ) -> Result<bool, GuestError> {
        let Some((id, mut left)) = self.ring.take_used()? else {
            return Ok(false);
        };
        for piece in self.pieces_of(id) {
            let now = piece.len.min(left);
            let at = bytes.len();
            bytes.resize(at + now as usize, 0);
            let span: Span = memory.span(piece.addr, now).ok_or(GuestError::Setup)?;
            memory.read(span, bytes.get_mut(at..).unwrap_or(&mut []))?;
            left -= now;
        }
        if let Some(posted) = self.posted.get(usize::from(id)) {
            self.free.push_back(posted.buffer);
        }
        // The device claims to have written more than the buffer holds.
        if left > 0 {
            Err(GuestError::Setup)
        } else {
            Ok(true)
        }
    }
}
