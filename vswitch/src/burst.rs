//! What one gather takes from a port: up to [`BURST`] frames.
//!
//! A frame is a private snapshot of its first [`SNAPSHOT`] bytes, and spans of the sender's memory for the rest. Every
//! decision reads the snapshot only, and the snapshot is what is written out: the sender can change its memory at any
//! time, but not what was judged.

use arrayvec::ArrayVec;
use guestmem::{Fault, Memory, Span};
use offload::Request;

use crate::drops::DropReason;

/// Frames in a burst, at most. One bit each in a `u32`.
pub const BURST: usize = 32;
/// Bytes of a burst after which no further frame is taken. A burst is delivered as a whole, and with so much a receiver
/// has long begun on the first frames: it makes room for the next ones while they are copied.
pub const BURST_BYTES: u32 = 128 << 10;
/// Bytes of a frame that are copied to private memory before anything is decided.
pub const SNAPSHOT: usize = 128;
/// Longest frame taken in: a 64 KiB TSO frame with its headers and two tags.
pub const MAX_FRAME: u32 = 65_535 + 14 + 8;
/// Shortest frame taken in: an Ethernet header.
pub const MIN_FRAME: u32 = 14;
/// Body spans of one frame, at most: 64 KiB in 4 KiB pieces, unaligned, would need 18; drivers send up to twice that.
pub const MAX_SEGMENTS: usize = 64;

/// One frame of a burst.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub struct Frame {
    head: [u8; SNAPSHOT],
    head_len: u8,
    len: u32,
    body_first: u16,
    body_count: u16,
    /// What the sender asked for; not yet validated.
    pub request: Request,
    /// Set by the port where the frame cannot be taken: it is dropped for this reason.
    pub refused: Option<DropReason>,
}

impl Frame {
    /// The snapshot: the first bytes of the frame, all of it where it is shorter than [`SNAPSHOT`].
    #[inline]
    pub fn head(&self) -> &[u8] {
        self.head.get(..usize::from(self.head_len)).unwrap_or(&[])
    }

    /// The snapshot, for the port that took the frame to complete.
    pub fn head_mut(&mut self) -> &mut [u8] {
        self.head
            .get_mut(..usize::from(self.head_len))
            .unwrap_or(&mut [])
    }

    /// The Ethernet header, if the frame was taken and its sender asks for nothing and vouches for nothing.
    #[inline]
    pub fn front(&self) -> Option<Front> {
        let quiet = self.refused.is_none()
            && self.request.asks_nothing()
            && !self.request.csum_valid
            && self.head_len >= MIN_FRAME as u8;
        let front = self
            .head
            .first_chunk()
            .map(|front| u128::from_le_bytes(*front));
        front
            .filter(|_| quiet)
            .map(|front| Front(front & ((1 << (8 * MIN_FRAME)) - 1)))
    }

    /// Length of the frame from destination MAC to the end of the payload, without FCS.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether the frame has no byte at all (a refused frame).
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// An Ethernet header of 14 bytes, the first one lowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Front(u128);

impl Front {
    /// The destination address as a number.
    #[inline]
    pub fn destination(self) -> u64 {
        (self.0 as u64).swap_bytes() >> 16
    }

    /// The source address as a number.
    #[inline]
    pub fn source(self) -> u64 {
        ((self.0 >> 48) as u64).swap_bytes() >> 16
    }

    /// The EtherType, or that of a tag.
    #[inline]
    pub fn ethertype(self) -> u16 {
        ((self.0 >> 96) as u16).swap_bytes()
    }

    /// Whether both addresses are those of `other`.
    #[inline]
    pub fn is_between_those_of(self, other: Front) -> bool {
        (self.0 ^ other.0) << 32 == 0
    }
}

/// Up to [`BURST`] frames from one port, and the spans of their bodies.
pub struct Burst {
    /// Always [`BURST`] places, of which the first `count` hold frames: a frame is filled in where it stays.
    frames: Box<[Frame; BURST]>,
    count: usize,
    bytes: u32,
    spans: ArrayVec<Span, { BURST * MAX_SEGMENTS }>,
}

impl Default for Burst {
    fn default() -> Self {
        Self::new()
    }
}

impl Burst {
    /// An empty burst.
    pub fn new() -> Self {
        let blank = Frame {
            head: [0; SNAPSHOT],
            head_len: 0,
            len: 0,
            body_first: 0,
            body_count: 0,
            request: Request::default(),
            refused: None,
        };
        Burst {
            frames: Box::new(std::array::from_fn(|_| blank.clone())),
            count: 0,
            bytes: 0,
            spans: ArrayVec::new(),
        }
    }

    /// Forgets all frames.
    pub fn clear(&mut self) {
        self.count = 0;
        self.bytes = 0;
        self.spans.clear();
    }

    /// Frames in the burst.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is no frame.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether no further frame should be pushed: there are [`BURST`], or [`BURST_BYTES`].
    #[inline]
    pub fn is_full(&self) -> bool {
        self.count == BURST || self.bytes >= BURST_BYTES
    }

    /// Frames that may still be pushed.
    pub fn room(&self) -> usize {
        BURST - self.count
    }

    /// The frames, in the order they were taken.
    pub fn frames(&self) -> &[Frame] {
        self.frames.get(..self.count).unwrap_or(&[])
    }

    /// Frame `index`; `None` if there are not so many.
    #[inline]
    pub fn frame(&self, index: usize) -> Option<&Frame> {
        if index < self.count {
            self.frames.get(index)
        } else {
            None
        }
    }

    /// The spans of `frame`'s body: what follows its snapshot.
    #[inline]
    pub fn body(&self, frame: &Frame) -> &[Span] {
        if frame.body_count == 0 {
            return &[];
        }
        let first = usize::from(frame.body_first);
        self.spans
            .get(first..first + usize::from(frame.body_count))
            .unwrap_or(&[])
    }

    /// Takes a frame. `read_head` is lent the snapshot buffer, of which it fills the first `min(len, SNAPSHOT)` bytes;
    /// `body` are the spans of what follows. A burst of [`BURST`] frames takes nothing and answers false.
    ///
    /// A frame whose length or number of spans the switch does not carry is kept as a refused one.
    #[inline]
    pub fn push(
        &mut self,
        len: u32,
        request: Request,
        body: &[Span],
        read_head: impl FnOnce(&mut [u8]) -> Result<(), DropReason>,
    ) -> bool {
        let refused = if len < MIN_FRAME {
            Some(DropReason::Runt)
        } else if len > MAX_FRAME {
            Some(DropReason::Oversize)
        } else if body.len() > MAX_SEGMENTS {
            Some(DropReason::TooManySegments)
        } else {
            None
        };
        if let Some(reason) = refused {
            return self.push_refused(reason);
        }
        let Some(frame) = self.frames.get_mut(self.count) else {
            return false;
        };
        let head_len = (len as usize).min(SNAPSHOT);
        frame.head_len = head_len as u8;
        frame.len = len;
        frame.body_first = self.spans.len() as u16;
        frame.body_count = body.len() as u16;
        frame.request = request;
        // A burst has room for the most spans of every frame, so this cannot fail.
        let _ = self.spans.try_extend_from_slice(body);
        frame.refused = read_head(frame.head.get_mut(..head_len).unwrap_or(&mut [])).err();
        self.count += 1;
        self.bytes += len;
        true
    }

    /// Takes the frame in `buffer` behind a virtio header of `header_len` bytes, if that asks for nothing: neither flags nor
    /// segmentation. False if the burst has [`BURST`] frames, the buffer is too short for both or too long, or it does
    /// ask; nothing is taken then.
    #[inline(always)]
    pub fn push_plain(&mut self, memory: &Memory, buffer: Span, header_len: u32) -> bool {
        let len = buffer.len().wrapping_sub(header_len);
        if !(MIN_FRAME..=MAX_FRAME).contains(&len) {
            return false;
        }
        let Some(frame) = self.frames.get_mut(self.count) else {
            return false;
        };
        let head_len = (len as usize).min(SNAPSHOT);
        let Some(head) = frame.head.get_mut(..head_len) else {
            return false;
        };
        if read_plain(memory, buffer, header_len, head) != Ok(true) {
            return false;
        }
        frame.head_len = head_len as u8;
        frame.len = len;
        frame.request = Request::default();
        frame.refused = None;
        frame.body_first = self.spans.len() as u16;
        frame.body_count = 0;
        if len as usize > SNAPSHOT
            && let Some((_, body)) = buffer.split_at(header_len + SNAPSHOT as u32)
        {
            frame.body_count = 1;
            // A burst has room for the most spans of every frame, so this cannot fail.
            let _ = self.spans.try_push(body);
        }
        self.count += 1;
        self.bytes += len;
        true
    }

    /// Takes the frame that lies in one piece of `memory`. A burst of [`BURST`] frames takes nothing and answers false.
    #[inline]
    pub fn push_span(&mut self, memory: &Memory, frame: Span, request: Request) -> bool {
        let head_len = frame.len().min(SNAPSHOT as u32);
        let Some((head, body)) = frame.split_at(head_len) else {
            return false;
        };
        let body = [body];
        let body = match body {
            [span] if span.is_empty() => &[],
            _ => body.as_slice(),
        };
        self.push(frame.len(), request, body, |to| {
            memory.read(head, to).map_err(|_| DropReason::SourceFault)
        })
    }

    /// Takes the frame that lies in `pieces` of `memory`, front to back. A burst of [`BURST`] frames takes nothing and
    /// answers false.
    pub fn take(&mut self, memory: &Memory, pieces: &[Span], request: Request) -> bool {
        let len = pieces
            .iter()
            .fold(0u32, |len, piece| len.saturating_add(piece.len()));
        let mut body: ArrayVec<Span, MAX_SEGMENTS> = ArrayVec::new();
        let mut skip = SNAPSHOT as u32;
        for piece in pieces {
            let (head, rest) = piece
                .split_at(piece.len().min(skip))
                .unwrap_or((Span::EMPTY, *piece));
            skip -= head.len();
            if !rest.is_empty() && body.try_push(rest).is_err() {
                return self.push_refused(DropReason::TooManySegments);
            }
        }
        self.push(len, request, &body, |mut head| {
            for piece in pieces {
                let (now, later) = head.split_at_mut(head.len().min(piece.len() as usize));
                let piece = piece
                    .sub(0, now.len() as u32)
                    .ok_or(DropReason::SourceFault)?;
                memory
                    .read(piece, now)
                    .map_err(|_| DropReason::SourceFault)?;
                head = later;
            }
            Ok(())
        })
    }

    /// Appends `more` to the frame that was taken last, where that is longer than its snapshot. False if there is none, or
    /// it would become one that the switch does not carry; then it stays as it is.
    pub fn append(&mut self, more: Span) -> bool {
        let Some(frame) = self.last_mut() else {
            return false;
        };
        let len = frame.len.saturating_add(more.len());
        let fits = usize::from(frame.head_len) == SNAPSHOT
            && len <= MAX_FRAME
            && usize::from(frame.body_count) < MAX_SEGMENTS;
        if !fits {
            return false;
        }
        frame.len = len;
        frame.body_count += 1;
        self.bytes += more.len();
        // The spans of the last frame are the last ones; a burst has room for the most of every frame.
        self.spans.try_push(more).is_ok()
    }

    /// The frame that was taken last, for the port to complete its request.
    pub fn last_mut(&mut self) -> Option<&mut Frame> {
        self.frames.get_mut(self.count.checked_sub(1)?)
    }

    /// Takes a frame that the port could not make sense of; it will be dropped for `reason`.
    pub fn push_refused(&mut self, reason: DropReason) -> bool {
        let Some(frame) = self.frames.get_mut(self.count) else {
            return false;
        };
        (frame.head_len, frame.len, frame.body_count) = (0, 0, 0);
        frame.request = Request::default();
        frame.refused = Some(reason);
        self.count += 1;
        true
    }
}

/// Reads the frame in `buffer` behind its virtio header to `head`. False if the header asks for anything.
#[inline(always)]
fn read_plain(
    memory: &Memory,
    buffer: Span,
    header_len: u32,
    head: &mut [u8],
) -> Result<bool, Fault> {
    let mut buffer = memory.drain(buffer)?;
    // Flags and kind of segmentation come first.
    if buffer.peek_u128()? as u16 != 0 {
        return Ok(false);
    }
    buffer.skip(header_len)?;
    buffer.read(head)?;
    buffer.finish()?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_full_with_few_large_frames_or_many_small_ones() {
        let push = |burst: &mut Burst, len| {
            let mut frames = 0;
            while !burst.is_full() && burst.push(len, Request::default(), &[], |_| Ok(())) {
                frames += 1;
            }
            frames
        };
        let mut burst = Burst::new();
        assert_eq!(push(&mut burst, MAX_FRAME), 2);
        burst.clear();
        assert_eq!(push(&mut burst, 9000), 15);
        burst.clear();
        assert_eq!(push(&mut burst, 1518), BURST);
    }
}
