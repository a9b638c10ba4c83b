//! A virtqueue as the front-end describes it, message by message, until it can be built.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use guestmem::{Memory, Window};
use offload::Features;

use super::feature;
use super::inflight::Inflight;
use super::message::VringAddr;
use super::packed::{EVENT_LEN, PackedParts, PackedRing};
use super::port::{Running, RxAny, TxAny};
use super::ring::{DESC_LEN, Negotiated, fault};
use super::rx::{RxFormat, RxQueue};
use super::split::{self, SplitParts, SplitRing};
use super::tx::{Events, TxQueue};
use crate::port::PortFault;

/// How the back-end learns of new buffers.
#[derive(Debug, Default)]
pub(super) enum Kick {
    /// Not said yet: the ring is stopped.
    #[default]
    Unset,
    /// By looking.
    Poll,
    /// By an eventfd.
    Fd(Arc<OwnedFd>),
}

/// What the front-end has said about a ring.
#[derive(Default)]
pub(super) struct Vring {
    /// Descriptors; 0 before it was said.
    pub(super) size: u16,
    pub(super) addr: Option<VringAddr>,
    /// As in `SET_VRING_BASE`.
    pub(super) base: u32,
    pub(super) kick: Kick,
    pub(super) call: Option<Arc<OwnedFd>>,
    pub(super) err: Option<Arc<OwnedFd>>,
    pub(super) enabled: bool,
    /// What ended the ring. It is cleared when the front-end stops the ring.
    pub(super) fault: Option<PortFault>,
}

/// What a ring is built in.
pub(super) struct Context<'a> {
    pub(super) memory: &'a Arc<Memory>,
    pub(super) features: u64,
    pub(super) inflight: Option<&'a Inflight>,
}

impl Context<'_> {
    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// Length of the virtio header (virtio 1.2 section 5.1.6.1).
    fn header_len(&self) -> u8 {
        if self.has(feature::VERSION_1 | feature::MRG_RXBUF) {
            12
        } else {
            10
        }
    }

    /// The `len` bytes at `user_addr` of the front-end, aligned to `align`.
    fn part(
        &self,
        what: &'static str,
        user_addr: u64,
        len: usize,
        align: u64,
    ) -> Result<Window, PortFault> {
        let window = self
            .memory
            .user_to_guest(user_addr, len as u64)
            .filter(|guest_addr| guest_addr.is_multiple_of(align))
            .and_then(|guest_addr| self.memory.window(guest_addr, len));
        window.map_or_else(|| fault(what, user_addr), Ok)
    }
}

impl Vring {
    /// Whether everything was said that the ring needs to run.
    pub(super) fn is_ready(&self) -> bool {
        self.enabled && self.size > 0 && self.addr.is_some() && !matches!(self.kick, Kick::Unset)
    }

    /// `GET_VRING_BASE`: the ring runs again once it gets a new kick.
    pub(super) fn stop(&mut self) {
        self.kick = Kick::Unset;
        self.call = None;
        self.fault = None;
    }

    fn events(&self) -> Events {
        let kick = match &self.kick {
            Kick::Fd(fd) => Some(Arc::clone(fd)),
            Kick::Unset | Kick::Poll => None,
        };
        Events {
            call: self.call.clone(),
            kick,
            err: self.err.clone(),
        }
    }

    fn split(&self, context: &Context<'_>, negotiated: Negotiated) -> Result<SplitRing, PortFault> {
        let (addr, size) = (self.addr.unwrap_or_default(), self.size);
        // Alignment: virtio 1.2 section 2.7.
        let parts = SplitParts {
            table: context.part(
                "address of the descriptor table",
                addr.table,
                split::table_len(size),
                16,
            )?,
            avail: context.part(
                "address of the available ring",
                addr.avail,
                split::avail_len(size),
                2,
            )?,
            used: context.part(
                "address of the used ring",
                addr.used,
                split::used_len(size),
                4,
            )?,
        };
        SplitRing::new(parts, size, negotiated)
    }

    fn packed(
        &self,
        index: u16,
        context: &Context<'_>,
        negotiated: Negotiated,
    ) -> Result<PackedRing, PortFault> {
        let (addr, size) = (self.addr.unwrap_or_default(), self.size);
        // Alignment: virtio 1.2 section 2.8.10.1.
        let parts = PackedParts {
            table: context.part(
                "address of the descriptor ring",
                addr.table,
                usize::from(size) * DESC_LEN,
                16,
            )?,
            driver_event: context.part(
                "address of the driver's event suppression",
                addr.avail,
                EVENT_LEN,
                4,
            )?,
            device_event: context.part(
                "address of the device's event suppression",
                addr.used,
                EVENT_LEN,
                4,
            )?,
        };
        let inflight = context
            .inflight
            .map(|inflight| inflight.place(index, size))
            .transpose()?;
        PackedRing::new(parts, size, self.base, negotiated, inflight)
    }

    fn negotiated(&self, context: &Context<'_>, writable: bool) -> Negotiated {
        Negotiated {
            indirect: context.has(feature::INDIRECT_DESC),
            event_idx: context.has(feature::EVENT_IDX),
            writable,
            // Receive buffers are given back with a length each, so never as a batch.
            batch_used: !writable && context.has(feature::IN_ORDER),
        }
    }

    /// The transmit queue over this ring.
    pub(super) fn build_tx(
        &self,
        index: u16,
        context: &Context<'_>,
    ) -> Result<Running<TxAny>, PortFault> {
        let negotiated = self.negotiated(context, false);
        let (memory, events, header_len) = (
            Arc::clone(context.memory),
            self.events(),
            context.header_len(),
        );
        let queue = if context.has(feature::RING_PACKED) {
            TxAny::Packed(TxQueue::new(
                self.packed(index, context, negotiated)?,
                memory,
                events,
                header_len,
            ))
        } else {
            TxAny::Split(TxQueue::new(
                self.split(context, negotiated)?,
                memory,
                events,
                header_len,
            ))
        };
        Ok(Running { index, queue })
    }

    /// The receive queue over this ring.
    pub(super) fn build_rx(
        &self,
        index: u16,
        context: &Context<'_>,
    ) -> Result<Running<RxAny>, PortFault> {
        let negotiated = self.negotiated(context, true);
        let csum = context.has(feature::GUEST_CSUM);
        let format = RxFormat {
            header_len: context.header_len(),
            mergeable: context.has(feature::MRG_RXBUF),
            features: Features {
                csum,
                tso4: csum && context.has(feature::GUEST_TSO4),
                tso6: csum && context.has(feature::GUEST_TSO6),
                ecn: csum && context.has(feature::GUEST_ECN),
            },
        };
        let (memory, events) = (Arc::clone(context.memory), self.events());
        let queue = if context.has(feature::RING_PACKED) {
            RxAny::Packed(RxQueue::new(
                self.packed(index, context, negotiated)?,
                memory,
                events,
                format,
            ))
        } else {
            RxAny::Split(RxQueue::new(
                self.split(context, negotiated)?,
                memory,
                events,
                format,
            ))
        };
        Ok(Running { index, queue })
    }
}
