//! Delivery of one burst's frames to one destination: retag, adapt, reserve, copy once, publish.
//!
//! The head comes from the private snapshot, the body straight from the source's memory to the destination's. What the
//! destination did not agree to receive is done here, while copying: checksums are filled in, large frames are cut.

mod cursor;

use guestmem::{Fault, Memory, Span};
use offload::plan::plan;
use offload::{
    Action, Checked, CsumAt, Features, HEAD_MAX, Request, Segmenter, Sum, Tag, TagEdit,
    finish_checksum, flow_hash,
};

use crate::burst::{Burst, Frame};
use crate::classify::TPID_8021Q;
use crate::counters::Counts;
use crate::drops::DropReason;
use crate::port::{PlainFrame, Room, RxMeta, RxRing};
use crate::vlan::{Egress, Vid, VlanMode};
use cursor::{Body, Sink};

/// Bytes of an Ethernet header without tags.
const ETHER_LEN: u32 = offload::ETHER_LEN as u32;
/// The first two bytes of an 802.1Q tag.
const TAGGED: [u8; 2] = TPID_8021Q.to_be_bytes();

/// What classifying found out about a frame that a destination needs to know.
#[derive(Clone, Copy, Debug)]
pub struct FrameMeta {
    /// The validated offload request.
    pub checked: Checked,
    /// The 802.1Q tag the frame carries.
    pub tag: Option<Tag>,
    /// The VLAN it belongs to; 0 is none.
    pub vid: Vid,
    /// Priority and drop eligibility for its tag: bits 15:12.
    pub priority: u16,
}

impl FrameMeta {
    /// That of an untagged frame in VLAN `vid` whose sender asks for nothing and vouches for nothing.
    const fn quiet(vid: Vid) -> FrameMeta {
        FrameMeta {
            checked: Checked::untagged(false),
            tag: None,
            vid,
            priority: 0,
        }
    }
}

/// Frames without a tag whose sender asks for nothing and vouches for nothing. All of a burst are in one VLAN.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quiet {
    /// Bit i stands for frame i.
    pub frames: u32,
    /// The VLAN they belong to; 0 is none.
    pub vid: Vid,
}

/// Frames of one burst for one destination.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// The burst.
    pub burst: &'a Burst,
    /// Memory of the source.
    pub source: &'a Memory,
    /// What is known of each frame that is not `quiet`; as many as the burst has.
    pub meta: &'a [Option<FrameMeta>],
    /// The frames of the burst of which nothing else is to be known.
    pub quiet: Quiet,
    /// Which frames: bit i stands for frame i.
    pub frames: u32,
    /// VLAN membership of the destination.
    pub vlan: &'a VlanMode,
    /// Longest packet for the destination, in IP bytes.
    pub mtu: u16,
}

/// What became of the copies of a job.
#[derive(Default)]
pub struct Report {
    /// Booked on the port the frames came from.
    pub source: Counts,
    /// Booked on the port they went to.
    pub destination: Counts,
}

impl Report {
    /// One copy of `len` bytes was delivered, of which the switch itself copied `copied`.
    pub fn delivered(&mut self, len: u32, copied: u32) {
        self.source.delivered += 1;
        self.source.copied_bytes += u64::from(copied);
        self.destination.frames += 1;
        self.destination.bytes += u64::from(len);
        self.destination.copied_bytes += u64::from(copied);
    }

    /// As [`Report::delivered`] for `frames` frames of `bytes` bytes together, all copied by the switch.
    fn delivered_plain(&mut self, frames: u64, bytes: u64) {
        self.source.delivered += frames;
        self.source.copied_bytes += bytes;
        self.destination.frames += frames;
        self.destination.bytes += bytes;
        self.destination.copied_bytes += bytes;
    }

    /// `copies` were dropped.
    pub fn dropped(&mut self, reason: DropReason, copies: u32) {
        self.source.drops.add(reason, u64::from(copies));
        self.destination.drops.add(reason, u64::from(copies));
    }

    /// A frame was cut into `segments` copies.
    pub fn cut(&mut self, segments: u32) {
        self.source.extra_copies += u64::from(segments.saturating_sub(1));
    }
}

/// A frame as it leaves for one destination, its tag edited.
pub struct Outgoing<'a> {
    /// Its first bytes, private.
    pub head: &'a [u8],
    /// What follows, in the source's memory.
    pub body: &'a [Span],
    /// Its length, without FCS.
    pub len: u32,
    /// Its offload request, offsets after the tag edit.
    pub checked: Checked,
    /// The tag it has besides its bytes, for destinations that take it so.
    pub tag: Option<Tag>,
}

/// Queues that one job is spread over, at most: vhost-user numbers rings by 8 bits, two for each pair.
pub const MAX_SPREAD: usize = 128;

/// Which of `count` queues a frame goes to: its flow's hash as a fraction of 2^32, scaled.
pub fn queue_of(head: &[u8], len: u32, count: usize) -> usize {
    ((u64::from(flow_hash(head, len)) * count as u64) >> 32) as usize
}

impl Job<'_> {
    /// Deals the frames out to `queues` queues by flow: the frames of queue n in element n. Beyond [`MAX_SPREAD`] queues
    /// the others get none.
    pub fn spread(&self, queues: usize) -> [u32; MAX_SPREAD] {
        let mut shares = [0; MAX_SPREAD];
        for (index, frame) in self.burst.frames().iter().enumerate() {
            let bit = self.frames & (1 << index);
            if bit == 0 {
                continue;
            }
            let queue = queue_of(frame.head(), frame.len(), queues.min(MAX_SPREAD));
            if let Some(share) = shares.get_mut(queue) {
                *share |= bit;
            }
        }
        shares
    }

    /// Whether a frame asks for something: a checksum to be completed, or to be cut.
    pub fn asks(&self) -> bool {
        let mut left = self.frames & !self.quiet.frames;
        while left != 0 {
            let index = left.trailing_zeros() as usize;
            left &= left - 1;
            if let Some(Some(meta)) = self.meta.get(index)
                && !meta.checked.request().asks_nothing()
            {
                return true;
            }
        }
        false
    }

    /// What is known of frame `index`.
    #[inline]
    fn meta(&self, index: usize) -> Option<FrameMeta> {
        if self.quiet.frames >> index & 1 != 0 {
            return Some(FrameMeta::quiet(self.quiet.vid));
        }
        *self.meta.get(index)?
    }

    /// The quiet frames among those of the job, if they leave without a tag.
    fn untouched(&self) -> u32 {
        match self.vlan.egress(self.quiet.vid) {
            Some(Egress::Untagged) => self.quiet.frames & self.frames,
            _ => 0,
        }
    }

    /// Frame `index`, if it leaves as it came and asks nothing of anybody: what `for_each` and [`plan`] would say of it.
    /// `untouched` is that of the job.
    #[inline]
    fn plain(&self, index: usize, untouched: u32) -> Option<PlainFrame<'_>> {
        let frame = self.burst.frame(index)?;
        if untouched >> index & 1 != 0 {
            let fits = frame.len() <= u32::from(self.mtu) + ETHER_LEN;
            return fits.then(|| PlainFrame {
                head: frame.head(),
                body: self.burst.body(frame),
                len: frame.len(),
                csum_valid: false,
            });
        }
        let meta = self.meta(index)?;
        let request = meta.checked.request();
        let plain = request.asks_nothing()
            && meta.tag.is_none()
            && frame.len().saturating_sub(meta.checked.l2_len().into()) <= self.mtu.into()
            && self.vlan.egress(meta.vid) == Some(Egress::Untagged);
        plain.then(|| PlainFrame {
            head: frame.head(),
            body: self.burst.body(frame),
            len: frame.len(),
            csum_valid: request.csum_valid,
        })
    }

    /// Calls `each` for every frame of the job, in order, in the form in which it leaves.
    pub fn for_each(&self, report: &mut Report, each: impl FnMut(&mut Report, &Outgoing<'_>)) {
        self.for_each_tagged(false, report, each);
    }

    /// As [`Job::for_each`]; with `aside`, tags are told besides the bytes.
    fn for_each_tagged(
        &self,
        aside: bool,
        report: &mut Report,
        mut each: impl FnMut(&mut Report, &Outgoing<'_>),
    ) {
        let mut left = self.frames;
        while left != 0 {
            let index = left.trailing_zeros() as usize;
            left &= left - 1;
            let (Some(frame), Some(meta)) = (self.burst.frame(index), self.meta(index)) else {
                continue;
            };
            let wanted = match self.vlan.egress(meta.vid) {
                Some(Egress::Untagged) => None,
                Some(Egress::Tagged) => Some(Tag {
                    tci: meta.priority | meta.vid,
                }),
                None => {
                    report.dropped(DropReason::VlanEgress, 1);
                    continue;
                }
            };
            let (wanted, tag) = if aside {
                (None, wanted)
            } else {
                (wanted, None)
            };
            match TagEdit::between(meta.tag, wanted) {
                TagEdit::Keep => {
                    let outgoing = self.outgoing(frame, frame.head(), 0, meta.checked);
                    each(report, &Outgoing { tag, ..outgoing });
                }
                edit => {
                    let mut head = [0; HEAD_MAX];
                    match edit.apply(frame.head(), &mut head) {
                        Some(len) => {
                            let head = head.get(..len).unwrap_or(&[]);
                            // The frame would come out as one of the VLAN that its second tag names.
                            let bare = edit == TagEdit::Strip && tag.is_none();
                            if bare && head.get(12..14) == Some(&TAGGED) {
                                report.dropped(DropReason::VlanTagged, 1);
                                continue;
                            }
                            let checked = meta.checked.retagged(edit);
                            let outgoing = self.outgoing(frame, head, edit.delta(), checked);
                            each(report, &Outgoing { tag, ..outgoing });
                        }
                        None => report.dropped(DropReason::Runt, 1),
                    }
                }
            }
        }
    }

    fn outgoing<'b>(
        &'b self,
        frame: &'b Frame,
        head: &'b [u8],
        delta: i8,
        checked: Checked,
    ) -> Outgoing<'b> {
        Outgoing {
            head,
            body: self.burst.body(frame),
            len: frame.len().saturating_add_signed(delta.into()),
            checked,
            tag: None,
        }
    }
}

/// Delivers `job` into `ring`.
pub fn deliver<R: RxRing>(ring: &mut R, job: &Job<'_>, report: &mut Report) {
    let (mut left, untouched) = (job.frames, job.untouched());
    let (mut frames, mut bytes) = (0, 0);
    while left != 0 {
        let index = left.trailing_zeros() as usize;
        let this = left & left.wrapping_neg();
        left ^= this;
        if let Some(frame) = job.plain(index, untouched)
            && let Some(result) = ring.put(job.source, &frame)
        {
            match result {
                Ok(()) => {
                    frames += 1;
                    bytes += u64::from(frame.len);
                }
                Err(reason) => report.dropped(reason, 1),
            }
        } else {
            adapt(
                ring,
                &Job {
                    frames: this,
                    ..*job
                },
                report,
            );
        }
    }
    report.delivered_plain(frames, bytes);
    if job.frames != 0 && ring.publish() {
        report.destination.notifications += 1;
    }
}

/// Delivers the frames of `job` that need more than to be written as they are, or more than one piece of room.
fn adapt<R: RxRing>(ring: &mut R, job: &Job<'_>, report: &mut Report) {
    let max_frame = u32::from(job.mtu) + ETHER_LEN;
    let mut room = Room::new();
    job.for_each_tagged(ring.takes_tags(), report, |report, frame| {
        let features = ring.agreed(frame);
        let mut writer = Writer {
            ring: &mut *ring,
            source: job.source,
            features,
            tag: frame.tag,
            room: &mut room,
        };
        match plan(&frame.checked, frame.len, &features, max_frame) {
            Action::TooLong => report.dropped(DropReason::Mtu, 1),
            Action::Segment { mss } => writer.cut(frame, mss, report),
            action => {
                let request = action.outgoing(&frame.checked, &features);
                let mut body = Body::new(&[], frame.body);
                let fill = matches!(action, Action::FillChecksum | Action::FillLarge);
                let piece = Piece {
                    head: frame.head,
                    body_len: frame.len.saturating_sub(frame.head.len() as u32),
                };
                let result = match frame.checked.request().csum.filter(|_| fill) {
                    Some(at) => writer.write_summed(piece, &mut body, at),
                    None => writer.write(piece, &mut body, request, frame.checked.header_len()),
                };
                match result {
                    Ok(()) => report.delivered(frame.len, frame.len),
                    Err(reason) => report.dropped(reason, 1),
                }
            }
        }
    });
}

/// What is written as one frame: private head, and so many bytes of a body.
#[derive(Clone, Copy)]
struct Piece<'a> {
    head: &'a [u8],
    body_len: u32,
}

impl Piece<'_> {
    fn len(&self) -> u32 {
        self.head.len() as u32 + self.body_len
    }
}

struct Writer<'a, R> {
    ring: &'a mut R,
    source: &'a Memory,
    features: Features,
    tag: Option<Tag>,
    room: &'a mut Room,
}

impl<R: RxRing> Writer<'_, R> {
    fn write(
        &mut self,
        piece: Piece<'_>,
        body: &mut Body<'_>,
        request: Request,
        header_len: u16,
    ) -> Result<(), DropReason> {
        self.reserve(piece)?;
        let mut sink = Sink::new(self.ring.memory(), self.room, 0);
        let written = sink
            .write(piece.head)
            .and_then(|()| body.copy(self.source, piece.body_len, &mut sink));
        self.finish(
            written,
            RxMeta {
                request,
                header_len,
                tag: self.tag,
            },
        )
    }

    /// As `write`, completing the checksum at `at`: the body is summed as it is copied, the head goes last.
    fn write_summed(
        &mut self,
        piece: Piece<'_>,
        body: &mut Body<'_>,
        at: CsumAt,
    ) -> Result<(), DropReason> {
        self.reserve(piece)?;
        let mut head = [0; HEAD_MAX];
        let Some((head, _)) = head.split_at_mut_checked(piece.head.len()) else {
            return Err(DropReason::BadOffload);
        };
        head.copy_from_slice(piece.head);
        let mut sum = Sum::new();
        sum.add_bytes(piece.head.get(usize::from(at.start)..).unwrap_or(&[]));
        let mut sink = Sink::new(self.ring.memory(), self.room, head.len() as u32);
        let written = body
            .copy_sum(self.source, piece.body_len, &mut sink, &mut sum)
            .and_then(|()| {
                if let Some(field) = head.get_mut(at.field()..at.field() + 2) {
                    field.copy_from_slice(&finish_checksum(sum, at).to_be_bytes());
                }
                Sink::new(self.ring.memory(), self.room, 0).write(head)
            });
        let meta = RxMeta {
            tag: self.tag,
            ..RxMeta::default()
        };
        self.finish(written, meta)
    }

    fn reserve(&mut self, piece: Piece<'_>) -> Result<(), DropReason> {
        self.room.clear();
        self.ring.reserve(piece.len(), self.room)
    }

    fn finish(&mut self, written: Result<(), Fault>, meta: RxMeta) -> Result<(), DropReason> {
        match written {
            Ok(()) => {
                self.ring.commit(&meta);
                Ok(())
            }
            Err(_) => {
                self.ring.cancel();
                Err(if self.source.is_faulted() {
                    DropReason::SourceFault
                } else {
                    DropReason::RxFault
                })
            }
        }
    }

    /// Cuts a large frame. Each segment is a copy of its own: those that find no room are dropped one by one.
    fn cut(&mut self, frame: &Outgoing<'_>, mss: u16, report: &mut Report) {
        let mut segments = Segmenter::new(frame.head, &frame.checked, frame.len, mss);
        report.cut(segments.remaining());
        let in_head = frame
            .head
            .get(usize::from(frame.checked.header_len())..)
            .unwrap_or(&[]);
        let mut body = Body::new(in_head, frame.body);
        let mut head = [0; HEAD_MAX];
        while let Some(segment) = segments.next(&mut head) {
            let piece = Piece {
                head: head.get(..usize::from(segment.head_len)).unwrap_or(&[]),
                body_len: segment.body_len,
            };
            let result = if self.features.csum {
                let request = Request {
                    csum: Some(segment.csum),
                    ..Request::default()
                };
                self.write(piece, &mut body, request, 0)
            } else {
                self.write_summed(piece, &mut body, segment.csum)
            };
            match result {
                Ok(()) => report.delivered(piece.len(), piece.len()),
                Err(reason) => {
                    report.dropped(reason, 1 + segments.remaining());
                    return;
                }
            }
        }
    }
}
