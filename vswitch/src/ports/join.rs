//! Joining the TCP segments that an uplink receives, where they follow one another within a burst.
//!
//! A guest, a TAP device or a virtual cable takes one large frame for a fraction of what its segments cost.

use guestmem::{Memory, Span};
use offload::{Joined, Request, unfinished_checksum};

use crate::burst::{Burst, Frame, SNAPSHOT};

/// Takes the frames of one burst.
pub(super) struct Joiner<'a> {
    memory: &'a Memory,
    /// Frames may come with unfinished checksums, and nothing tells which do.
    unfinished: bool,
    /// The last frame of the burst, if others can be joined to it.
    joined: Option<Joined>,
}

impl<'a> Joiner<'a> {
    /// For frames that lie in `memory`.
    pub(super) fn new(memory: &'a Memory, unfinished: bool) -> Joiner<'a> {
        Joiner {
            memory,
            unfinished,
            joined: None,
        }
    }

    /// Takes the frame in `pieces` into `burst`: as a new one, or joined to the last.
    pub(super) fn take(&mut self, pieces: &[Span], burst: &mut Burst) {
        if let [frame] = pieces
            && self.join(*frame, burst) == Some(true)
        {
            return;
        }
        self.finish(burst);
        if !burst.take(self.memory, pieces, Request::default()) {
            return;
        }
        let Some(frame) = burst.last_mut() else {
            return;
        };
        if self.unfinished {
            complete_request(frame);
        }
        self.joined = Joined::first(frame.head(), frame.len());
    }

    /// No frame is joined to the last any more.
    pub(super) fn finish(&mut self, burst: &mut Burst) {
        if let Some(joined) = self.joined.take()
            && joined.segments() > 1
            && let Some(frame) = burst.last_mut()
        {
            frame.request = joined.finish(frame.head_mut());
        }
    }

    fn join(&mut self, frame: Span, burst: &mut Burst) -> Option<bool> {
        let joined = self.joined.as_mut()?;
        let mut head = [0; SNAPSHOT];
        let head = head.get_mut(..SNAPSHOT.min(frame.len() as usize))?;
        let (front, rest) = frame.split_at(head.len() as u32)?;
        self.memory.read(front, head).ok()?;
        let first = burst.frames().last()?;
        let mut next = *joined;
        if !next.join(first.head(), head, frame.len()) {
            return None;
        }
        let sum = |span: &Span| self.memory.sum(*span).ok();
        let sound = |head: &[u8], len, body: &[Span]| {
            next.is_sound(head, len, self.unfinished, || match body {
                [] => Some(0),
                [body] => sum(body),
                _ => None,
            })
        };
        if joined.segments() == 1 && !sound(first.head(), first.len(), burst.body(first)) {
            self.joined = None;
            return None;
        }
        let (_, payload) = frame.split_at(next.header_len() as u32)?;
        if !sound(head, frame.len(), &[rest]) || !burst.append(payload) {
            return None;
        }
        *joined = next;
        Some(true)
    }
}

/// A sender on this host, at the other end of a veth pair, leaves checksums to hardware that is not there, and nothing
/// tells which frames have one. Such a field holds the sum of the pseudo header, so a frame is taken as unfinished if
/// its field does; to fill that in is right even if it was finished and only looks like it.
fn complete_request(frame: &mut Frame) {
    frame.request.csum = unfinished_checksum(frame.head(), frame.len());
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
mod tests {
    use offload::checksum::pseudo_v4;
    use offload::{CsumAt, Gso, Sum};

    use super::*;

    const MSS: usize = 1460;
    const HEADERS: usize = 54;

    #[derive(Clone, Copy, PartialEq)]
    enum Checksum {
        Right,
        Wrong,
        Unfinished,
    }

    /// Segment `number` of a connection, of `payload` bytes.
    fn segment(number: u16, payload: usize, checksum: Checksum) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        let total = (HEADERS - 14 + payload) as u16;
        let mut ip = [
            0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ];
        ip[2..4].copy_from_slice(&total.to_be_bytes());
        ip[4..6].copy_from_slice(&number.to_be_bytes());
        let mut sum = Sum::new();
        sum.add_bytes(&ip);
        ip[10..12].copy_from_slice(&sum.checksum().to_be_bytes());
        frame.extend(ip);
        let mut tcp = [
            0, 80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0x50, 0x10, 1, 0, 0, 0, 0, 0,
        ];
        tcp[4..8].copy_from_slice(&(u32::from(number) * MSS as u32).to_be_bytes());
        frame.extend(tcp);
        frame.extend((0..payload).map(|i| (i + usize::from(number)) as u8));
        let pseudo = pseudo_v4([10, 0, 0, 1], [10, 0, 0, 2], 6, total - 20);
        let mut whole = pseudo;
        whole.add_bytes(&frame[34..]);
        let field = match checksum {
            Checksum::Right => whole.checksum(),
            Checksum::Wrong => whole.checksum() ^ 1,
            Checksum::Unfinished => pseudo.fold(),
        };
        frame[50..52].copy_from_slice(&field.to_be_bytes());
        frame
    }

    /// Length and request of what becomes of `frames`, and all their bytes.
    fn taken(frames: &[Vec<u8>], unfinished: bool) -> (Vec<(u32, Request)>, Vec<u8>) {
        let memory = Memory::anonymous(frames.len() * 4096).unwrap();
        let mut burst = Burst::new();
        let mut joiner = Joiner::new(&memory, unfinished);
        for (index, frame) in frames.iter().enumerate() {
            let span = memory
                .span(index as u64 * 4096, frame.len() as u32)
                .unwrap();
            memory.write(span, frame).unwrap();
            joiner.take(&[span], &mut burst);
        }
        joiner.finish(&mut burst);
        let mut bytes = Vec::new();
        for frame in burst.frames() {
            bytes.extend(frame.head());
            for span in burst.body(frame) {
                let mut piece = vec![0; span.len() as usize];
                memory.read(*span, &mut piece).unwrap();
                bytes.extend(piece);
            }
        }
        let frames = burst.frames().iter();
        (frames.map(|f| (f.len(), f.request)).collect(), bytes)
    }

    fn large() -> Request {
        Request {
            csum: Some(CsumAt {
                start: 34,
                offset: 16,
            }),
            gso: Gso::Tcp4 {
                mss: MSS as u16,
                ecn: false,
            },
            csum_valid: false,
        }
    }

    #[test]
    fn segments_in_a_row_become_one_frame() {
        for (checksum, unfinished) in [
            (Checksum::Right, false),
            (Checksum::Right, true),
            (Checksum::Unfinished, true),
        ] {
            let payloads = [MSS, MSS, MSS, 100];
            let frames: Vec<Vec<u8>> = (0..)
                .zip(payloads)
                .map(|(number, payload)| segment(number, payload, checksum))
                .collect();
            let (found, bytes) = taken(&frames, unfinished);
            let len = HEADERS + payloads.iter().sum::<usize>();
            assert_eq!(found, [(len as u32, large())]);
            let expected: Vec<u8> = frames.iter().flat_map(|f| f[HEADERS..].to_vec()).collect();
            assert_eq!(bytes.len(), len);
            assert_eq!(bytes[HEADERS..], expected);
        }
    }

    #[test]
    fn what_is_not_sound_stays_as_it_is() {
        for wrong in 0..3 {
            let frames: Vec<Vec<u8>> = (0..3)
                .map(|number| {
                    let checksum = if number == wrong {
                        Checksum::Wrong
                    } else {
                        Checksum::Right
                    };
                    segment(number, MSS, checksum)
                })
                .collect();
            let (found, bytes) = taken(&frames, true);
            let whole = frames.concat();
            let alone = (
                segment(0, MSS, Checksum::Right).len() as u32,
                Request::default(),
            );
            let pair = ((HEADERS + 2 * MSS) as u32, large());
            let expected = match wrong {
                0 => vec![alone, pair],
                1 => vec![alone; 3],
                _ => vec![pair, alone],
            };
            assert_eq!(found, expected, "{wrong}");
            let at = usize::from(wrong) * frames[0].len();
            if wrong < 2 {
                assert_eq!(bytes[at..at + 200], whole[at..at + 200], "{wrong}");
            } else {
                assert_eq!(bytes[bytes.len() - 1514..], frames[2]);
            }
        }
        let unfinished = [0, 1].map(|number| segment(number, MSS, Checksum::Unfinished));
        let (found, _) = taken(&unfinished, false);
        assert_eq!(found, [(1514, Request::default()); 2]);
    }

    #[test]
    fn no_more_than_a_frame_holds() {
        let frames: Vec<Vec<u8>> = (0..46)
            .map(|number| segment(number, MSS, Checksum::Right))
            .collect();
        let (first, second) = frames.split_at(32);
        let (found, _) = taken(first, false);
        assert_eq!(found, [((HEADERS + 32 * MSS) as u32, large())]);
        let (found, _) = taken(&[first, second].concat(), false);
        assert_eq!(
            found,
            [
                ((HEADERS + 44 * MSS) as u32, large()),
                ((HEADERS + 2 * MSS) as u32, large())
            ]
        );
    }
}
