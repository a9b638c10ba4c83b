//! One turn of one port: gather, classify, plan, deliver, complete.

use std::sync::Arc;

use arrayvec::ArrayVec;
use offload::request::validate;
use offload::{Checked, Tag};

use crate::burst::{BURST, Burst, Frame};
use crate::classify::{self, Addresses, Admitted, Verdict};
use crate::counters::Counts;
use crate::deliver::{FrameMeta, Job, Quiet, Report};
use crate::drops::DropReason;
use crate::fdb::{Learned, PortIndex, Reader, Spot};
use crate::network::{NetworkView, PortPolicy};
use crate::port::TxSide;
use crate::slot::PortSlot;
use crate::vlan::Vid;

/// Where a port stands in a network.
#[derive(Clone)]
pub struct Membership {
    /// The network, as it is now.
    pub view: Arc<NetworkView>,
    /// The port's index in it.
    pub index: PortIndex,
}

/// The working space of turns. A worker has one; nothing in it outlives a turn.
pub struct Turn {
    burst: Box<Burst>,
    /// The frames of the burst that were admitted.
    trains: Box<ArrayVec<Train, BURST>>,
    /// Of each frame of the burst that was admitted and is not quiet; of the others, what is left of an earlier burst.
    meta: Box<[Option<FrameMeta>; BURST]>,
    quiet: Quiet,
    plan: Plan,
    counts: Counts,
}

/// Which frames of the burst go where.
#[derive(Default)]
struct Plan {
    /// For each port index, the frames that go there.
    frames: Vec<u32>,
    /// Indices with frames.
    ports: Vec<PortIndex>,
}

/// What a turn did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TurnResult {
    /// Frames taken in.
    pub frames: u32,
}

/// Frames in a row from one station to another. They come so, and then what was settled for the first holds for all.
#[derive(Clone, Copy)]
struct Train {
    addresses: Addresses,
    /// Where the table has the source and the destination.
    spots: [Spot; 2],
    /// A bit for each frame.
    frames: u32,
}

impl Turn {
    /// Working space for networks of no ports; see [`Turn::make_room`].
    pub fn new() -> Turn {
        Turn {
            burst: Box::default(),
            trains: Box::default(),
            meta: Box::new([None; BURST]),
            quiet: Quiet::default(),
            plan: Plan::default(),
            counts: Counts::default(),
        }
    }

    /// Prepares for networks of up to `ports` port indices, so that no turn has to allocate.
    pub fn make_room(&mut self, ports: usize) {
        if self.plan.frames.len() < ports {
            self.plan.frames.resize(ports, 0);
            self.plan.ports.reserve(ports);
        }
    }

    /// Takes a burst from `tx`, the transmit side of `slot`, and deals with every frame of it. `now` is in seconds.
    pub fn run(
        &mut self,
        tx: &mut dyn TxSide,
        slot: &PortSlot,
        membership: Option<&Membership>,
        now: u32,
    ) -> TurnResult {
        self.burst.clear();
        tx.gather(&mut self.burst);
        if self.burst.is_empty() {
            return TurnResult::default();
        }
        self.counts = Counts {
            frames: self.burst.len() as u64,
            ..Counts::default()
        };
        self.counts.bytes = self
            .burst
            .frames()
            .iter()
            .map(|frame| u64::from(frame.len()))
            .sum();
        match membership {
            Some(Membership { view, index }) => {
                self.classify(view, *index, now);
                self.deliver(view, tx);
            }
            None => self
                .counts
                .drops
                .add(DropReason::Disconnected, self.burst.len() as u64),
        }
        if tx.complete() {
            self.counts.notifications += 1;
        }
        slot.tx_counts.add(&self.counts);
        TurnResult {
            frames: self.burst.len() as u32,
        }
    }

    /// Judges every frame and plans where it goes. First the frame's own bytes for all, with the table lines fetched
    /// ahead; then the table.
    fn classify(&mut self, view: &NetworkView, from: PortIndex, now: u32) {
        let Some(port) = view.port(from) else {
            self.counts
                .drops
                .add(DropReason::Disconnected, self.burst.len() as u64);
            return;
        };
        self.trains.clear();
        let table = view.fdb.reader(from, now);
        let untagged = classify::untagged_vlan(&port.policy);
        self.quiet = Quiet {
            frames: 0,
            vid: untagged.unwrap_or(0),
        };
        let mut before = None;
        for (index, frame) in self.burst.frames().iter().enumerate() {
            let front = frame.front().zip(untagged);
            let found = match front.filter(|(front, _)| !classify::is_tag(front.ethertype())) {
                Some((front, vid)) => {
                    self.quiet.frames |= 1 << index;
                    if let (Some(last), Some(train)) = (before, self.trains.last_mut())
                        && front.is_between_those_of(last)
                    {
                        train.frames |= 1 << index;
                        continue;
                    }
                    before = Some(front);
                    classify::admit_untagged(&port.policy, front, vid)
                }
                None => {
                    before = None;
                    let Some(meta) = self.meta.get_mut(index) else {
                        break;
                    };
                    judge(&port.policy, frame, meta).map(|found| found.addresses)
                }
            };
            let addresses = match found {
                Ok(addresses) => addresses,
                Err(reason) => {
                    self.counts.drops.add(reason, 1);
                    before = None;
                    continue;
                }
            };
            match self.trains.last_mut() {
                Some(train) if train.addresses == addresses => train.frames |= 1 << index,
                last => {
                    let spots = spots(&table, &addresses, last.as_deref());
                    self.trains.push(Train {
                        addresses,
                        spots,
                        frames: 1 << index,
                    });
                }
            }
        }
        self.route(view, from, &table);
    }

    /// Learns from each train and looks up where it goes. What was found out for the train before holds where an address
    /// or the port is the same.
    fn route(&mut self, view: &NetworkView, from: PortIndex, table: &Reader<'_>) {
        let (mut heard, mut aimed, mut passed) = (None, None, None);
        let mut routes = Routes {
            view,
            from,
            plan: &mut self.plan,
            counts: &mut self.counts,
        };
        // Frames with the verdict of `passed`.
        let mut together = 0;
        for train in self.trains.iter() {
            let Train {
                addresses, frames, ..
            } = train;
            let [source, destination] = train.spots;
            if heard != Some(addresses.source) {
                let learned = table.learn(addresses.source, source);
                heard = Some(addresses.source);
                if learned != Learned::Known {
                    // It may be where the next train goes.
                    aimed = None;
                    routes.counts.learn_refused +=
                        u64::from(matches!(learned, Learned::Full | Learned::Pinned));
                    routes.counts.mac_moves += u64::from(learned == Learned::Moved);
                }
            }
            let found = match aimed {
                Some((same, found)) if same == addresses.destination => found,
                _ => classify::find(table, addresses.destination, destination),
            };
            aimed = Some((addresses.destination, found));
            let way = (addresses.vid(), found);
            match passed {
                Some((same, _)) if same == way => together |= frames,
                before => {
                    if let Some(((vid, _), verdict)) = before {
                        routes.settle(verdict, vid, together);
                    }
                    passed = Some((way, classify::forward(view, from, way.0, found)));
                    together = *frames;
                }
            }
        }
        if let Some(((vid, _), verdict)) = passed {
            routes.settle(verdict, vid, together);
        }
    }

    /// Carries out the plan, one destination after the other, each under its lease.
    fn deliver(&mut self, view: &NetworkView, tx: &dyn TxSide) {
        let meta = self.meta.get(..self.burst.len()).unwrap_or(&[]);
        for to in self.plan.ports.drain(..) {
            let frames = self.plan.frames.get_mut(usize::from(to));
            let Some(frames) = frames.map(std::mem::take) else {
                continue;
            };
            let mut report = Report::default();
            let Some(port) = view.port(to) else { continue };
            let mut lease = port.slot.lease();
            let absence = lease.absence();
            match &mut lease.side {
                Some(side) => {
                    let job = Job {
                        burst: &self.burst,
                        source: tx.memory(),
                        meta,
                        quiet: self.quiet,
                        frames,
                        vlan: &port.policy.vlan,
                        mtu: port.policy.mtu,
                    };
                    side.deliver(&job, &mut report);
                    if let Some(fault) = side.fault() {
                        port.slot.set_fault(fault);
                    }
                }
                None => report.dropped(absence, frames.count_ones()),
            }
            port.slot.rx_counts.add(&report.destination);
            drop(lease);
            self.counts.merge(&report.source);
        }
    }
}

impl Default for Turn {
    fn default() -> Self {
        Self::new()
    }
}

/// Where the verdicts on frames from one port are entered.
struct Routes<'a> {
    view: &'a NetworkView,
    from: PortIndex,
    plan: &'a mut Plan,
    counts: &'a mut Counts,
}

impl Routes<'_> {
    /// `verdict` is that on `frames`, which belong to `vid`.
    fn settle(&mut self, verdict: Verdict, vid: Vid, frames: u32) {
        match verdict {
            Verdict::Drop(reason) => self.counts.drops.add(reason, frames.count_ones().into()),
            Verdict::Unicast(to) => self.plan.add(to, frames),
            Verdict::Flood => self.flood(vid, frames),
        }
    }

    fn flood(&mut self, vid: Vid, frames: u32) {
        let mut copies = 0;
        for to in classify::flood(self.view, self.from, vid) {
            self.plan.add(to, frames);
            copies += 1;
        }
        let frames = u64::from(frames.count_ones());
        match copies {
            0 => self.counts.drops.add(DropReason::NoDestination, frames),
            _ => self.counts.extra_copies += (copies - 1) * frames,
        }
    }
}

impl Plan {
    fn add(&mut self, to: PortIndex, more: u32) {
        if let Some(frames) = self.frames.get_mut(usize::from(to)) {
            if *frames == 0 {
                self.ports.push(to);
            }
            *frames |= more;
        }
    }
}

/// Where `table` has the source and the destination, whose lines are fetched, but for those of the train before. A group is
/// nowhere, and nothing is fetched for it.
#[inline(always)]
fn spots(table: &Reader<'_>, addresses: &Addresses, before: Option<&Train>) -> [Spot; 2] {
    let known = before.map(|train| (train.addresses, train.spots));
    let source = match known {
        Some((before, [source, _])) if before.source == addresses.source => source,
        _ => table.spot(addresses.source),
    };
    let destination = match known {
        Some((before, [_, destination])) if before.destination == addresses.destination => {
            destination
        }
        _ if addresses.destination.is_group() => source,
        _ => table.spot(addresses.destination),
    };
    [source, destination]
}

/// Applies the source port's rules to `frame` and validates its request; fills in `meta`.
#[inline(always)]
fn judge(
    policy: &PortPolicy,
    frame: &Frame,
    meta: &mut Option<FrameMeta>,
) -> Result<Admitted, DropReason> {
    if let Some(reason) = frame.refused {
        return Err(reason);
    }
    let found = classify::admit(policy, frame.head())?;
    if found.untagged && frame.request.asks_nothing() {
        *meta = Some(FrameMeta {
            checked: Checked::untagged(frame.request.csum_valid),
            tag: None,
            vid: found.addresses.vid(),
            priority: 0,
        });
        return Ok(found);
    }
    judge_request(frame, &found, meta)?;
    Ok(found)
}

/// The same for a frame with a tag or a request. Apart from `judge`, so that the ordinary frame does not pay for it.
#[inline(never)]
fn judge_request(
    frame: &Frame,
    found: &Admitted,
    meta: &mut Option<FrameMeta>,
) -> Result<(), DropReason> {
    let checked =
        validate(&frame.request, frame.head(), frame.len()).map_err(|_| DropReason::BadOffload)?;
    *meta = Some(FrameMeta {
        checked,
        tag: found.tag.map(|tci| Tag { tci }),
        vid: found.addresses.vid(),
        priority: found.tag.unwrap_or(0) & 0xf000,
    });
    Ok(())
}
