//! The side that frames go to: they are written to sections of the receive buffer, and a packet names many of them.

use std::sync::Arc;

use vswitch::deliver::{Job, Report, deliver};
use vswitch::drops::DropReason;
use vswitch::port::{PortFault, RxSide};

use super::adapter::{MAX_CHANNELS, Shared, lock};
use super::sections::Sections;
use super::signal::Signal;
use crate::nvsp::{self, Channel};
use crate::rndis::filter::Filter;
use crate::rndis::offload::Receive;
use crate::rndis::rss::Scaling;
use crate::vmbus::pages::Pages;
use crate::vmbus::ring::{Outgoing, kind};
use crate::wire::{put, put32};

mod coalesce;
mod delivery;
mod place;
mod verdict;

use delivery::Delivery;

/// Sections that one packet names, at most.
const MAX_RANGES: usize = 64;
/// Bytes in front of the ranges: identifier of the buffer, and their number.
pub(super) const RANGES_AT: usize = 8;

/// The ring of a channel that the guest reads, and how it is told.
pub(super) struct RxChannel {
    pub(super) ring: Outgoing,
    pub(super) signal: Signal,
}

/// The buffer that frames are written to.
pub(super) struct Buffer {
    pub(super) gpadl: u32,
    /// What packets name it by.
    pub(super) id: u16,
    pub(super) pages: Arc<Pages>,
    /// Bytes of a section.
    pub(super) section: u32,
}

/// What is needed to deliver.
pub(super) struct RxState {
    pub(super) channels: [Option<RxChannel>; MAX_CHANNELS],
    pub(super) buffer: Option<Buffer>,
    pub(super) sections: Sections,
    pub(super) filter: Filter,
    pub(super) receive: Receive,
    pub(super) scaling: Option<Scaling>,
    pub(super) received: u64,
    pub(super) no_buffer: u64,
    pub(super) fault: Option<PortFault>,
}

impl RxState {
    pub(super) fn new() -> RxState {
        RxState {
            channels: Default::default(),
            buffer: None,
            sections: Sections::new(),
            filter: Filter::default(),
            receive: Receive::default(),
            scaling: None,
            received: 0,
            no_buffer: 0,
            fault: None,
        }
    }

    /// A control message to the driver. False if there is no room in its ring now. To wait for a section would be to wait for
    /// good: it comes back by the ring that waits for this answer. There is one, unless a driver keeps all of them.
    pub(super) fn send_control(&mut self, message: &[u8]) -> Result<bool, PortFault> {
        let (Some(Some(channel)), Some(buffer)) = (self.channels.first_mut(), &self.buffer) else {
            // Nobody can be told.
            return Ok(true);
        };
        let Some(section) = self.sections.take_reserved() else {
            return Ok(true);
        };
        let at = u32::from(section) * buffer.section;
        let written = buffer.pages.write(at, message).is_ok();
        let range = [(message.len() as u32, at)];
        let transaction = self.sections.transaction(section);
        if !written || !announce(channel, buffer.id, Channel::Control, transaction, &range)? {
            self.sections.put_back(section);
            return Ok(!written);
        }
        self.sections.show(&[section]);
        if channel.ring.publish()? {
            channel.signal.raise();
        }
        Ok(true)
    }
}

/// Writes the packet that names `ranges`, each length and offset. False if it does not fit.
fn announce(
    channel: &mut RxChannel,
    buffer: u16,
    about: Channel,
    transaction: u64,
    ranges: &[(u32, u32)],
) -> Result<bool, PortFault> {
    let mut header = [0; RANGES_AT + 8 * MAX_RANGES];
    put(&mut header, 0, buffer.to_le_bytes());
    put32(&mut header, 4, ranges.len() as u32);
    for (index, (len, at)) in ranges.iter().enumerate() {
        put32(&mut header, RANGES_AT + 8 * index, *len);
        put32(&mut header, RANGES_AT + 8 * index + 4, *at);
    }
    let header = header.get(..RANGES_AT + 8 * ranges.len()).unwrap_or(&[]);
    let message = nvsp::packet(about);
    channel
        .ring
        .push(kind::TRANSFER_PAGES, transaction, header, &message)
}

/// The side that frames go to.
pub(super) struct SyntheticRx {
    pub(super) shared: Arc<Shared>,
    pub(super) fault: Option<PortFault>,
}

impl RxSide for SyntheticRx {
    fn deliver(&mut self, job: &Job<'_>, report: &mut Report) {
        let mut rx = lock(&self.shared.rx);
        let RxState {
            channels,
            buffer,
            sections,
            filter,
            receive,
            scaling,
            fault,
            ..
        } = &mut *rx;
        let frames = wanted(filter, job);
        report.dropped(DropReason::RxFilter, (job.frames & !frames).count_ones());
        let open = channels.each_ref().map(Option::is_some);
        let shares = spread(scaling.as_ref(), job, frames, open);
        let before = report.destination.frames;
        for (channel, frames) in channels.iter_mut().zip(shares) {
            if frames == 0 {
                continue;
            }
            let (Some(channel), Some(buffer)) = (channel, &*buffer) else {
                report.dropped(DropReason::RxNotReady, frames.count_ones());
                continue;
            };
            let mut delivery = Delivery::new(channel, buffer, sections, *receive, fault);
            deliver(&mut delivery, &Job { frames, ..*job }, report);
        }
        self.fault = *fault;
        rx.received += report.destination.frames - before;
        rx.no_buffer += report.destination.drops.get(DropReason::RxFull);
    }

    fn fault(&self) -> Option<PortFault> {
        self.fault
    }
}

/// The frames of `job` that the driver's filter takes.
fn wanted(filter: &Filter, job: &Job<'_>) -> u32 {
    let mut wanted = 0;
    let mut left = job.frames;
    while left != 0 {
        let index = left.trailing_zeros();
        left &= left - 1;
        let head = job
            .burst
            .frames()
            .get(index as usize)
            .map_or(&[][..], |frame| frame.head());
        wanted |= u32::from(filter.takes(head)) << index;
    }
    wanted
}

/// Deals `frames` out to channels as the driver's scaling says; to the primary channel where another is not open.
fn spread(
    scaling: Option<&Scaling>,
    job: &Job<'_>,
    frames: u32,
    open: [bool; MAX_CHANNELS],
) -> [u32; MAX_CHANNELS] {
    let mut shares = [0; MAX_CHANNELS];
    let Some(scaling) = scaling else {
        shares[0] = frames;
        return shares;
    };
    for (index, frame) in job.burst.frames().iter().enumerate() {
        let bit = frames & (1 << index);
        if bit == 0 {
            continue;
        }
        let channel = scaling.channel(frame.head(), frame.len());
        let channel = match open.get(channel) {
            Some(true) => channel,
            _ => 0,
        };
        if let Some(share) = shares.get_mut(channel) {
            *share |= bit;
        }
    }
    shares
}
