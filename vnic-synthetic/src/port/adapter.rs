//! The control side of the adapter.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use guestmem::Memory;
use vswitch::mac::Mac;
use vswitch::port::Sides;
use vswitch::ports::vhost::notify;

use super::receive::{RxChannel, RxState, SyntheticRx};
use super::signal::Signal;
use super::transmit::{State, SyntheticTx, TxChannel, TxState};
use crate::vmbus::pages::{PageError, Pages};
use crate::vmbus::ring::{self, RingError};
use crate::vmbus::{PageList, PageRange, StateError};

/// Channels of an adapter, at most: its primary channel and sub-channels.
pub const MAX_CHANNELS: usize = 8;
/// Memory that an adapter's guest can share, at most: rings of all channels, both buffers, and some more.
const MAX_GPADLS: usize = 64;
/// Attempts at a lock before the core is offered to others.
const SPINS: u32 = 1000;

/// How an adapter is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Its address.
    pub mac: Mac,
    /// Whether its driver may take another address.
    pub mac_may_change: bool,
    /// Whether it is connected.
    pub link_up: bool,
    /// Channels its driver can have, 1 to [`MAX_CHANNELS`].
    pub channels: u32,
}

/// Why a channel is not opened, or memory not shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// There is no such channel.
    #[error(
        "channel {0} of an adapter; it has {MAX_CHANNELS} at most, and the first is opened first"
    )]
    Channel(usize),
    /// It is open.
    #[error("channel {0} of an adapter is open already")]
    Open(usize),
    /// A GPADL of several ranges.
    #[error("{0} ranges in a GPADL of an adapter, which uses one")]
    Ranges(usize),
    /// Too much is shared.
    #[error("{MAX_GPADLS} GPADLs of an adapter are shared already")]
    Full,
    /// Pages that are no memory.
    #[error(transparent)]
    Page(#[from] PageError),
    /// Rings that are none.
    #[error(transparent)]
    Ring(#[from] RingError),
}

/// What the control side and the two sides of the port share.
pub(super) struct Shared {
    pub(super) memory: Arc<Memory>,
    pub(super) config: Config,
    /// Wakes the worker.
    pub(super) kick: Arc<OwnedFd>,
    pub(super) link_up: AtomicBool,
    /// Sub-channels that the driver asked for.
    pub(super) sub_channels: AtomicU32,
    /// Signalled when it did.
    pub(super) attention: Arc<OwnedFd>,
    /// Taken before `rx` where both are.
    pub(super) tx: Mutex<TxState>,
    pub(super) rx: Mutex<RxState>,
}

/// Takes a lock that is held for a burst at most, by spinning.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    let mut spins = 0u32;
    loop {
        match mutex.try_lock() {
            Ok(guard) => return guard,
            Err(TryLockError::Poisoned(poisoned)) => return PoisonError::into_inner(poisoned),
            Err(TryLockError::WouldBlock) if spins < SPINS => std::hint::spin_loop(),
            // The holder may have lost its core.
            Err(TryLockError::WouldBlock) => std::thread::yield_now(),
        }
        spins = spins.wrapping_add(1);
    }
}

/// An adapter, as the control side has it.
#[derive(Clone)]
pub struct Adapter(Arc<Shared>);

impl Adapter {
    /// An adapter of a guest with the memory `memory`. `kick` becomes readable when the guest signals any of its channels
    /// and is written to for changes; `attention` is written to when the driver negotiated something: it may want
    /// [`Adapter::sub_channels`], and [`Adapter::negotiated`] may be another.
    pub fn new(
        memory: Arc<Memory>,
        config: Config,
        kick: Arc<OwnedFd>,
        attention: Arc<OwnedFd>,
    ) -> Adapter {
        Adapter(Arc::new(Shared {
            memory,
            config,
            kick,
            link_up: AtomicBool::new(config.link_up),
            sub_channels: AtomicU32::new(0),
            attention,
            tx: Mutex::new(TxState::new(&config)),
            rx: Mutex::new(RxState::new()),
        }))
    }

    /// A new pair of sides, to be attached to a port once the primary channel is open. A pair that was there before must
    /// have been detached: a fault ends with it.
    pub fn sides(&self) -> Sides {
        lock(&self.0.tx).fault = None;
        lock(&self.0.rx).fault = None;
        Sides {
            tx: Box::new(SyntheticTx::new(self.0.clone())),
            rx: Box::new(SyntheticRx {
                shared: self.0.clone(),
                fault: None,
            }),
        }
    }

    /// The guest shares memory.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn add(&self, gpadl: u32, list: &PageList) -> Result<(), OpenError> {
        let pages = Arc::new(Pages::new(&self.0.memory, single(list)?)?);
        let mut tx = lock(&self.0.tx);
        if tx.gpadls.len() >= MAX_GPADLS {
            return Err(OpenError::Full);
        }
        tx.gpadls.insert(gpadl, pages);
        Ok(())
    }

    /// The guest takes memory back: once this returns, nobody writes to it.
    pub fn remove(&self, gpadl: u32) {
        let mut tx = lock(&self.0.tx);
        tx.gpadls.remove(&gpadl);
        tx.forget_send_buffer(gpadl);
        let mut rx = lock(&self.0.rx);
        if rx
            .buffer
            .as_ref()
            .is_some_and(|buffer| buffer.gpadl == gpadl)
        {
            rx.buffer = None;
        }
    }

    /// Opens channel `index` over the rings in `list`, the one to the guest from page `downstream` on. 0 is the primary
    /// channel: with it the driver starts anew.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(
        &self,
        index: usize,
        list: &PageList,
        downstream: u32,
        signal: Signal,
    ) -> Result<(), OpenError> {
        let range = single(list)?;
        let pages = Pages::new(&self.0.memory, range)?;
        let (mut incoming, outgoing) = ring::open(pages, range, downstream)?;
        // Until its worker sleeps, it polls.
        incoming.disarm().map_err(RingError::Index)?;
        let mut tx = lock(&self.0.tx);
        let mut rx = lock(&self.0.rx);
        let open = tx.channels.first().is_some_and(Option::is_some);
        let allowed = index < self.0.config.channels as usize && (index == 0 || open);
        let (true, Some(tx_channel), Some(rx_channel)) = (
            allowed,
            tx.channels.get_mut(index),
            rx.channels.get_mut(index),
        ) else {
            return Err(OpenError::Channel(index));
        };
        if tx_channel.is_some() {
            return Err(OpenError::Open(index));
        }
        *tx_channel = Some(TxChannel::new(incoming));
        *rx_channel = Some(RxChannel {
            ring: outgoing,
            signal,
        });
        // The last of the sub-channels that the driver asked for.
        let open = tx.channels.iter().flatten().count() as u32;
        tx.table_due = index > 0 && open == 1 + self.sub_channels();
        drop(rx);
        drop(tx);
        notify::signal(&*self.0.kick);
        Ok(())
    }

    /// Closes channel `index`: once this returns, nobody uses its rings. With the primary channel everything ends that its
    /// driver set up.
    pub fn close(&self, index: usize) {
        let mut tx = lock(&self.0.tx);
        let mut rx = lock(&self.0.rx);
        tx.close(index);
        if let Some(channel) = rx.channels.get_mut(index) {
            *channel = None;
        }
        if index == 0 {
            let gpadls: BTreeMap<u32, Arc<Pages>> = std::mem::take(&mut tx.gpadls);
            *tx = TxState::new(&self.0.config);
            tx.gpadls = gpadls;
            *rx = RxState::new();
            self.0.sub_channels.store(0, Ordering::Relaxed);
        }
    }

    /// Channel `index` interrupts in another way from now on.
    pub fn set_signal(&self, index: usize, signal: Signal) {
        if let Some(Some(channel)) = lock(&self.0.rx).channels.get_mut(index) {
            channel.signal = signal;
        }
    }

    /// Connects or disconnects the adapter; its driver is told.
    pub fn set_link(&self, up: bool) {
        self.0.link_up.store(up, Ordering::Relaxed);
        notify::signal(&*self.0.kick);
    }

    /// All there is to know besides the guest's memory: what the driver negotiated, what it holds, and what is on its way to
    /// it. To be taken while the sides are detached, and before the guest's memory is saved.
    pub fn save(&self) -> State {
        lock(&self.0.tx).save(&self.0)
    }

    /// What the driver negotiated: what is needed to go on if this process ends without a word. It may have changed whenever
    /// `attention` was written to.
    pub fn negotiated(&self) -> State {
        lock(&self.0.tx).negotiated(&self.0)
    }

    /// Goes on where `state` was taken: over the same memory, which has been added, and the same channels, which have been
    /// opened. Nothing is changed if it is refused.
    ///
    /// After [`Adapter::save`] nothing is lost and nothing comes twice. After [`Adapter::negotiated`], frames that were on
    /// their way when the process ended may be, and what the driver set last may be missing.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn restore(&self, state: &State) -> Result<(), StateError> {
        lock(&self.0.tx).restore(&self.0, state)
    }

    /// Sub-channels that the driver asked for and waits to be offered.
    pub fn sub_channels(&self) -> u32 {
        self.0.sub_channels.load(Ordering::Relaxed)
    }
}

fn single(list: &PageList) -> Result<&PageRange, OpenError> {
    list.single().ok_or(OpenError::Ranges(list.ranges.len()))
}
