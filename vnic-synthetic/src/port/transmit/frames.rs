//! Frames of one packet: data messages, one behind the other.

use arrayvec::ArrayVec;
use guestmem::{Fault, Memory, Span};
use offload::Request;
use vswitch::burst::{Burst, MAX_SEGMENTS, MIN_FRAME, SNAPSHOT};
use vswitch::drops::DropReason;

use super::{MAX_MESSAGES, TxState};
use crate::port::large;
use crate::port::scatter::Scatter;
use crate::rndis::packet::{HEADER, Layout, MAX_INFO, Sent};

/// Bytes of a data message that are read at once: header, information and the start of the frame.
const FRONT: usize = 256;
/// Bytes of a packet that are read at once where it is no longer: several small messages.
const WINDOW: usize = 1024;
/// Bytes of the two addresses, behind which a tag goes.
const ADDRESSES: usize = 12;
/// Bytes of a tag.
const TAG: u32 = 4;

/// Private memory for a part of a packet.
pub(super) struct Window {
    bytes: Box<[u8; WINDOW]>,
    /// Where the part starts, and its length.
    from: u32,
    len: usize,
}

impl Default for Window {
    fn default() -> Window {
        Window {
            bytes: Box::new([0; WINDOW]),
            from: 0,
            len: 0,
        }
    }
}

impl Window {
    /// What is in it is of another packet.
    fn forget(&mut self) {
        self.len = 0;
    }

    /// What is at `at` of the packet in `scatter`: the first [`FRONT`] bytes at least, or all there are.
    #[inline]
    fn front(&mut self, memory: &Memory, scatter: &Scatter, at: u32) -> Result<&[u8], Fault> {
        let left = scatter.len().saturating_sub(at) as usize;
        let have = (self.from as usize + self.len).saturating_sub(at as usize);
        if self.len == 0 || have < left.min(FRONT) {
            let wanted = if left <= WINDOW { left } else { FRONT };
            let to = self.bytes.get_mut(..wanted).unwrap_or(&mut []);
            self.len = scatter.read(memory, at, to)?;
            self.from = at;
        }
        let front = self.bytes.get(..self.len).unwrap_or(&[]);
        Ok(front.get((at - self.from) as usize..).unwrap_or(&[]))
    }
}

impl TxState {
    /// Takes the frames of a packet. False if something is wrong with it.
    pub(super) fn take_frames(&mut self, memory: &Memory, burst: &mut Burst) -> bool {
        let mut window = std::mem::take(&mut self.window);
        let taken = self.take_messages(memory, burst, &mut window);
        self.window = window;
        taken
    }

    fn take_messages(&mut self, memory: &Memory, burst: &mut Burst, window: &mut Window) -> bool {
        let mut at = 0;
        window.forget();
        for _ in 0..MAX_MESSAGES {
            let Ok(front) = window.front(memory, &self.scatter, at) else {
                burst.push_refused(DropReason::SourceFault);
                return false;
            };
            match self.take_frame(memory, burst, front, at) {
                Some(len) => at += len,
                None => {
                    // Where a message does not say where it ends, the rest of the packet is lost.
                    self.errors += 1;
                    burst.push_refused(DropReason::Malformed);
                    return false;
                }
            }
            if at >= self.scatter.len() {
                return true;
            }
        }
        // More than a driver is allowed.
        self.errors += 1;
        burst.push_refused(DropReason::Malformed);
        false
    }

    /// Takes the frame of the data message at `at`, which starts with `front`; gives the message's length.
    #[inline]
    fn take_frame(
        &mut self,
        memory: &Memory,
        burst: &mut Burst,
        front: &[u8],
        at: u32,
    ) -> Option<u32> {
        let header = front.first_chunk::<HEADER>()?;
        let layout = Layout::parse(header, self.scatter.len() - at).ok()?;
        let sent = match self.read_info(memory, front, (at, layout.info)) {
            Ok(sent) => sent,
            Err(reason) => {
                self.errors += 1;
                burst.push_refused(reason);
                return Some(layout.len);
            }
        };
        let (frame_at, frame_len) = layout.frame;
        if frame_len < MIN_FRAME {
            burst.push_refused(DropReason::Runt);
            return Some(layout.len);
        }
        let tag_len = if sent.tag.is_some() { TAG } else { 0 };
        let head_len = frame_len.min(SNAPSHOT as u32 - tag_len);
        let mut body = ArrayVec::<Span, MAX_SEGMENTS>::new();
        let mut fits = true;
        self.scatter
            .each(at + frame_at + head_len, frame_len - head_len, |piece| {
                fits &= body.try_push(piece).is_ok();
            });
        if !fits {
            burst.push_refused(DropReason::TooManySegments);
            return Some(layout.len);
        }
        let known = front
            .get(frame_at as usize..)
            .and_then(|frame| frame.get(..head_len as usize));
        let mut request = Request::default();
        burst.push(frame_len + tag_len, request, &body, |head| {
            let (_, to) = head
                .split_at_mut_checked(tag_len as usize)
                .ok_or(DropReason::Runt)?;
            match known {
                Some(frame) => to.copy_from_slice(frame),
                None => {
                    self.scatter
                        .read(memory, at + frame_at, to)
                        .map_err(|_| DropReason::SourceFault)?;
                }
            }
            if let Some(tci) = sent.tag {
                insert_tag(head, tci);
            }
            request = large::request(head, frame_len + tag_len, &sent, tag_len as u16)?;
            Ok(())
        });
        if let Some(frame) = burst.last_mut() {
            frame.request = request;
        }
        self.sent += 1;
        Some(layout.len)
    }

    /// Per-packet information of the message at `at`.
    #[inline]
    fn read_info(
        &self,
        memory: &Memory,
        front: &[u8],
        (at, (info_at, len)): (u32, (u32, u32)),
    ) -> Result<Sent, DropReason> {
        let near = front
            .get(info_at as usize..)
            .and_then(|info| info.get(..len as usize));
        if let Some(info) = near {
            return Sent::parse(info).map_err(|_| DropReason::Malformed);
        }
        let mut info = [0; MAX_INFO];
        let info = info.get_mut(..len as usize).unwrap_or(&mut []);
        self.scatter
            .read(memory, at + info_at, info)
            .map_err(|_| DropReason::SourceFault)?;
        Sent::parse(info).map_err(|_| DropReason::Malformed)
    }
}

/// Writes a tag behind the addresses, over what is at the start of `head`: its first 4 bytes are free.
fn insert_tag(head: &mut [u8], tci: u16) {
    let end = ADDRESSES + TAG as usize;
    if head.len() >= end {
        head.copy_within(TAG as usize..end, 0);
        crate::wire::put(head, ADDRESSES, vswitch::classify::TPID_8021Q.to_be_bytes());
        crate::wire::put(head, ADDRESSES + 2, tci.to_be_bytes());
    }
}
