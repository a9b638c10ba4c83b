//! An adapter as the TCP/IP stack sees it: one that takes and gives TCP segments of 64 KiB, and looks after checksums.
//!
//! The stack knows of no offloads. It is told of a link with a large MTU; the adapter cuts what it sends into segments
//! as large as the peer can take, and joins what it receives. The option of the first segments that says how large
//! segments may be is changed on its way, so that the peer is told the truth.

use smoltcp::phy::{self, Checksum, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

use crate::nic::{FRONT, Information, Nic, information};

/// Payload of a segment on the link.
const SEGMENT: u16 = 1460;
/// The same for the stack: what 64 KiB of IP hold, in whole segments.
const LARGE_SEGMENT: u16 = 44 * SEGMENT;
/// Bytes of Ethernet, IPv4 and TCP headers without options.
const ETHERNET: usize = 14;
const IP: usize = 20;
const TCP: usize = 20;
/// The longest frame that is not cut.
const PLAIN: usize = 1514;

/// An adapter for the duration of one call of the stack.
pub struct Wire<'a> {
    /// The adapter.
    pub nic: &'a mut Nic,
    /// How large the peer's segments are.
    pub segment: &'a mut u16,
}

/// A frame that was received.
pub struct Frame<'a>(&'a mut [u8]);

impl phy::RxToken for Frame<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(self.0)
    }
}

/// The right to send a frame.
pub struct Send<'a> {
    nic: &'a mut Nic,
    segment: u16,
}

impl phy::TxToken for Send<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut room = self.nic.room(len).expect("room that was there before");
        // SAFETY: the place has room for as many.
        let frame = &mut unsafe { room.bytes(FRONT + len) }[FRONT..];
        let result = fill(frame);
        if let Some(option) = segment_option(frame) {
            *option = SEGMENT.to_be_bytes();
        }
        let about = finish(frame, self.segment);
        self.nic.send(room, len, about);
        result
    }
}

impl phy::Device for Wire<'_> {
    type RxToken<'b>
        = Frame<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Send<'b>
    where
        Self: 'b;

    fn receive(&mut self, _: Instant) -> Option<(Frame<'_>, Send<'_>)> {
        if !self.nic.has_room() {
            return None;
        }
        // SAFETY: the stack is done with a frame before it asks for the next.
        let frame = unsafe { self.nic.next_frame() }?;
        if let Some(option) = segment_option(frame) {
            *self.segment = u16::from_be_bytes(*option).min(SEGMENT);
            *option = LARGE_SEGMENT.to_be_bytes();
        }
        let segment = *self.segment;
        Some((
            Frame(frame),
            Send {
                nic: self.nic,
                segment,
            },
        ))
    }

    fn transmit(&mut self, _: Instant) -> Option<Send<'_>> {
        let segment = *self.segment;
        self.nic.has_room().then_some(Send {
            nic: self.nic,
            segment,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = ETHERNET + IP + TCP + usize::from(LARGE_SEGMENT);
        capabilities.checksum.tcp = Checksum::None;
        capabilities
    }
}

/// Where the TCP header of a frame is, if it has one right behind an IPv4 header without options.
fn is_tcp(frame: &[u8]) -> bool {
    matches!(frame, [_, _, _, _, _, _, _, _, _, _, _, _, 8, 0, 0x45, ..])
        && frame.len() >= ETHERNET + IP + TCP
        && frame[ETHERNET + 9] == 6
}

/// The option of a first segment that says how large segments may be.
fn segment_option(frame: &mut [u8]) -> Option<&mut [u8; 2]> {
    const SYN: u8 = 2;
    if !is_tcp(frame) || frame[ETHERNET + IP + 13] & SYN == 0 {
        return None;
    }
    let end = ETHERNET + IP + usize::from(frame[ETHERNET + IP + 12] >> 4) * 4;
    let mut at = ETHERNET + IP + TCP;
    while at + 4 <= end.min(frame.len()) {
        match frame[at..] {
            [2, 4, ..] => return frame[at + 2..].first_chunk_mut(),
            [0, ..] => return None,
            [1, ..] => at += 1,
            [_, len, ..] => at += usize::from(len.max(2)),
            _ => return None,
        }
    }
    None
}

/// What the adapter has to do to a frame; writes what it needs for that.
fn finish(frame: &mut [u8], segment: u16) -> Information {
    const HEADER: u32 = (ETHERNET + IP) as u32;
    if !is_tcp(frame) {
        return None;
    }
    if frame.len() > PLAIN {
        let value = u32::from(segment) | HEADER << 20 | 1 << 30;
        return Some((information::LARGE_SEND, value));
    }
    // The sum of the pseudo-header; the adapter adds the rest.
    let addresses = frame[ETHERNET + 12..ETHERNET + IP].as_chunks::<2>().0;
    let mut sum = 6 + (frame.len() - ETHERNET - IP) as u32;
    // A frame may be padded behind its end, but the stack does not.
    sum += addresses
        .iter()
        .map(|pair| u32::from(u16::from_be_bytes(*pair)))
        .sum::<u32>();
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    frame[ETHERNET + IP + 16..][..2].copy_from_slice(&(sum as u16).to_be_bytes());
    // IPv4, TCP.
    Some((information::CHECKSUM, 1 << 0 | 1 << 2 | HEADER << 16))
}
