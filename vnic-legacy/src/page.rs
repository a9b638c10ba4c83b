//! The page that the two halves share: 4 KiB of words, each written by one half only unless it says otherwise.
//!
//! ```text
//! 0x000  identity: which layout this is
//! 0x040  written by the registers: generation, CSR0, CSR6, CSR7, CSR15, bus, resets, receive demands, CSR3, CSR4
//! 0x080  written by the port: generation seen, resets seen, states of the processes, positions in the lists
//! 0x0c0  written by both, in one step each: status bits of CSR5, missed frames
//! 0x100  written by the port: the last setup frame
//! ```
//! The registers change a word and then count the generation up; the port looks at the generation once a turn, takes all
//! words over, and only then shows the generation as seen. A list address carries a count with it, so that writing the
//! same address again starts the list again. Because a port takes everything it needs from the page, it may be put in
//! place of another one at any time, and goes on where that one stopped.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use guestmem::{MapError, Memory, RegionSpec, Window};

use crate::csr::status;
use crate::port::filter::{FilterKind, SETUP_LEN};

/// Bytes of the page.
pub const LEN: usize = 4096;
/// The layout described above; another one has another number.
const IDENTITY: u32 = 0x2114_0001;

/// Where the words are.
mod at {
    pub(super) const IDENTITY: usize = 0;
    pub(super) const GENERATION: usize = 0x40;
    pub(super) const CSR0: usize = 0x44;
    pub(super) const CSR6: usize = 0x48;
    pub(super) const CSR7: usize = 0x4c;
    pub(super) const CSR15: usize = 0x50;
    pub(super) const BUS: usize = 0x54;
    pub(super) const RESETS: usize = 0x58;
    pub(super) const RX_DEMANDS: usize = 0x5c;
    pub(super) const RX_BASE: usize = 0x60;
    pub(super) const TX_BASE: usize = 0x68;
    pub(super) const SEEN: usize = 0x80;
    pub(super) const RESETS_SEEN: usize = 0x84;
    pub(super) const RX_STATE: usize = 0x88;
    pub(super) const TX_STATE: usize = 0x8c;
    pub(super) const BUS_ERROR: usize = 0x90;
    pub(super) const RX_AT: usize = 0x98;
    pub(super) const TX_AT: usize = 0xa0;
    pub(super) const STATUS: usize = 0xc0;
    pub(super) const MISSED: usize = 0xc4;
    pub(super) const FILTER_KIND: usize = 0x100;
    pub(super) const FILTER: usize = 0x104;
}

/// Why a page was not taken.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// It cannot be mapped.
    #[error("cannot map the page shared with the adapter's registers")]
    Map(#[from] MapError),
    /// It is no such page, or of another version of this program.
    #[error("shared page has the identity {0:#x}; only {IDENTITY:#x} is known")]
    Identity(u32),
}

/// An address, and how often it has been written: a list's base, or a position in the list of that count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) count: u32,
    pub(crate) address: u32,
}

impl Counted {
    fn to_word(self) -> u64 {
        u64::from(self.count) << 32 | u64::from(self.address)
    }

    /// Descriptors lie on longwords.
    fn from_word(word: u64) -> Counted {
        Counted {
            count: (word >> 32) as u32,
            address: word as u32 & !3,
        }
    }
}

/// What the registers tell the port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Control {
    pub(crate) csr0: u32,
    /// With OM as it works out, loopback in the PHY included.
    pub(crate) csr6: u32,
    pub(crate) csr15: u32,
    /// The adapter may use the bus: it is a bus master and awake.
    pub(crate) bus: bool,
    /// Resets so far.
    pub(crate) resets: u32,
    /// Receive poll demands so far.
    pub(crate) rx_demands: u32,
    pub(crate) rx_base: Counted,
    pub(crate) tx_base: Counted,
}

/// A view of the page. Reads are zero once the page was taken away, which [`SharedPage::is_lost`] tells.
#[derive(Clone, Debug)]
pub struct SharedPage {
    window: Window,
}

impl SharedPage {
    /// A new page, and its file for the other process.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn create() -> Result<(SharedPage, OwnedFd), MapError> {
        let (memory, fd) = Memory::shared(LEN)?;
        let page = SharedPage::over(memory)?;
        page.put(at::IDENTITY, IDENTITY);
        Ok((page, fd))
    }

    /// The page that another process made.
    ///
    /// # Errors
    /// [`PageError`].
    pub fn map(fd: OwnedFd) -> Result<SharedPage, PageError> {
        let memory = Memory::map(vec![RegionSpec {
            guest_addr: 0,
            user_addr: 0,
            len: LEN as u64,
            fd,
            fd_offset: 0,
        }])?;
        let page = SharedPage::over(memory)?;
        match page.get(at::IDENTITY) {
            IDENTITY => Ok(page),
            other => Err(PageError::Identity(other)),
        }
    }

    fn over(memory: Memory) -> Result<SharedPage, MapError> {
        let window = Arc::new(memory).window(0, LEN);
        // The memory has exactly this length, so this is never refused.
        window
            .map(|window| SharedPage { window })
            .ok_or(MapError::Length(LEN as u64))
    }

    /// The page was taken away by the other process.
    #[inline]
    pub fn is_lost(&self) -> bool {
        self.window.memory().is_faulted()
    }

    #[inline]
    fn get(&self, at: usize) -> u32 {
        self.window.load_u32(at, Ordering::Acquire).unwrap_or(0)
    }

    /// Sequentially consistent, as a half that writes a word and then looks at one of the other half's must.
    #[inline]
    fn put(&self, at: usize, value: u32) {
        let _ = self.window.store_u32(at, value, Ordering::SeqCst);
    }

    fn counted(&self, at: usize) -> Counted {
        Counted::from_word(self.window.load_u64(at, Ordering::Acquire).unwrap_or(0))
    }

    #[inline]
    fn put_counted(&self, at: usize, value: Counted) {
        let _ = self
            .window
            .store_u64(at, value.to_word(), Ordering::Release);
    }
}

/// Of the registers.
impl SharedPage {
    /// Tells the port, and counts the generation up to `generation`.
    pub(crate) fn set_control(&self, control: &Control, generation: u32) {
        self.put(at::CSR0, control.csr0);
        self.put(at::CSR15, control.csr15);
        self.put(at::BUS, u32::from(control.bus));
        self.put(at::RESETS, control.resets);
        self.put(at::RX_DEMANDS, control.rx_demands);
        self.put_counted(at::RX_BASE, control.rx_base);
        self.put_counted(at::TX_BASE, control.tx_base);
        self.put(at::CSR6, control.csr6);
        self.put(at::GENERATION, generation);
    }

    pub(crate) fn set_csr7(&self, value: u32) {
        self.put(at::CSR7, value);
    }

    /// The generation that the port has seen.
    pub(crate) fn seen(&self) -> u32 {
        self.get(at::SEEN)
    }

    /// RS, TS and EB, as they stand in CSR5.
    pub(crate) fn states(&self) -> u32 {
        self.get(at::RX_STATE) & status::RS
            | self.get(at::TX_STATE) & status::TS
            | self.get(at::BUS_ERROR) & status::EB
    }

    /// Clears bits of the status.
    pub(crate) fn clear_status(&self, bits: u32) {
        let _ = self.window.fetch_and_u32(at::STATUS, !bits);
    }

    /// Frames missed since the last call.
    pub(crate) fn take_missed(&self) -> u32 {
        self.window.swap_u32(at::MISSED, 0).unwrap_or(0)
    }

    /// Frames missed since the last [`take_missed`](Self::take_missed).
    pub(crate) fn missed(&self) -> u32 {
        self.get(at::MISSED)
    }
}

/// Of the port, or of the registers while there is no port.
impl SharedPage {
    #[inline]
    pub(crate) fn generation(&self) -> u32 {
        self.get(at::GENERATION)
    }

    /// What the registers tell. Taken after the generation, it is at least as new.
    pub(crate) fn control(&self) -> Control {
        Control {
            csr6: self.get(at::CSR6),
            csr0: self.get(at::CSR0),
            csr15: self.get(at::CSR15),
            bus: self.get(at::BUS) != 0,
            resets: self.get(at::RESETS),
            rx_demands: self.get(at::RX_DEMANDS),
            rx_base: self.counted(at::RX_BASE),
            tx_base: self.counted(at::TX_BASE),
        }
    }

    #[inline]
    pub(crate) fn csr7(&self) -> u32 {
        self.window
            .load_u32(at::CSR7, Ordering::SeqCst)
            .unwrap_or(0)
    }

    pub(crate) fn set_seen(&self, generation: u32) {
        self.put(at::SEEN, generation);
    }

    /// The resets that the port has carried out.
    pub(crate) fn resets_seen(&self) -> u32 {
        self.get(at::RESETS_SEEN)
    }

    pub(crate) fn set_resets_seen(&self, resets: u32) {
        self.put(at::RESETS_SEEN, resets);
    }

    pub(crate) fn set_rx_state(&self, state: u32) {
        self.put(at::RX_STATE, state);
    }

    pub(crate) fn set_tx_state(&self, state: u32) {
        self.put(at::TX_STATE, state);
    }

    /// A bus error: EB, with a bit that is set though EB may be zero.
    pub(crate) fn set_bus_error(&self, error: Option<u32>) {
        self.put(at::BUS_ERROR, error.map_or(0, |bits| bits | 1));
    }

    pub(crate) fn has_bus_error(&self) -> bool {
        self.get(at::BUS_ERROR) != 0
    }

    pub(crate) fn rx_at(&self) -> Counted {
        self.counted(at::RX_AT)
    }

    #[inline]
    pub(crate) fn set_rx_at(&self, position: Counted) {
        self.put_counted(at::RX_AT, position);
    }

    pub(crate) fn tx_at(&self) -> Counted {
        self.counted(at::TX_AT)
    }

    #[inline]
    pub(crate) fn set_tx_at(&self, position: Counted) {
        self.put_counted(at::TX_AT, position);
    }

    /// The status bits of CSR5, without summary and states.
    #[inline]
    pub(crate) fn status(&self) -> u32 {
        self.window
            .load_u32(at::STATUS, Ordering::SeqCst)
            .unwrap_or(0)
            & (status::NORMAL | status::ABNORMAL)
    }

    /// Sets status bits; gives those that were not set before.
    #[inline]
    pub(crate) fn set_status(&self, bits: u32) -> u32 {
        let before = self.window.fetch_or_u32(at::STATUS, bits).unwrap_or(bits);
        bits & !before
    }

    /// Counts missed frames.
    pub(crate) fn add_missed(&self, frames: u32) {
        let _ = self.window.fetch_add_u32(at::MISSED, frames);
    }

    /// The last setup frame.
    pub(crate) fn filter(&self) -> (FilterKind, [u8; SETUP_LEN]) {
        let mut bytes = [0; SETUP_LEN];
        let _ = self.window.read(at::FILTER, &mut bytes);
        (FilterKind::from_word(self.get(at::FILTER_KIND)), bytes)
    }

    pub(crate) fn set_filter(&self, kind: FilterKind, bytes: &[u8; SETUP_LEN]) {
        let _ = self.window.write(at::FILTER, bytes);
        self.put(at::FILTER_KIND, kind.to_word());
    }

    /// What the last setup frame shows in CSR6: HP, HO and IF.
    pub(crate) fn filter_bits(&self) -> u32 {
        FilterKind::from_word(self.get(at::FILTER_KIND)).mode_bits()
    }
}
