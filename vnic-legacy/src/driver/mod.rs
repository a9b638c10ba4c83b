//! A guest for tests: memory, the registers of an adapter, and a driver of it.
//!
//! [`Guest`] has the machine's part: it carries out effects and reads and writes registers and descriptors in any way.
//! [`serial`] clocks serial ROM and PHY. [`ring`] drives the rings as Linux's `tulip` does, and is fast enough to measure
//! the switch with; [`Guest::send_and_wait`] works as iPXE's driver.

pub mod ring;
pub mod serial;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use guestmem::{Fault, MapError, Memory, RegionSpec};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vswitch::mac::Mac;
use vswitch::port::Sides;
use vswitch::ports::vhost::notify;

use crate::descriptor::OWN;
use crate::page::{PageError, SharedPage};
use crate::port::{OpenError, open};
use crate::registers::{Effects, Registers, Timer};

/// Guest address of the first byte of memory.
pub const BASE: u32 = 0x10_0000;
/// Bytes of memory.
pub const MEMORY: u32 = 0x10_0000;

/// Why a guest could not be made or driven.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// Its memory cannot be had.
    #[error("cannot map the memory of a test guest")]
    Map(#[from] MapError),
    /// The page shared with the port cannot be had.
    #[error("cannot map the shared page of a test guest")]
    Page(#[from] PageError),
    /// A file descriptor cannot be had.
    #[error("cannot make a file descriptor for a test guest")]
    System(#[from] rustix::io::Errno),
    /// A file descriptor cannot be copied.
    #[error("cannot copy a file descriptor of a test guest")]
    Copy(#[from] std::io::Error),
    /// The port refused it.
    #[error("cannot open the port of a test guest")]
    Open(#[from] OpenError),
    /// Its own memory is gone, or it named an address outside.
    #[error("access to the memory of a test guest")]
    Fault(#[from] Fault),
}

/// A guest with an adapter.
pub struct Guest {
    /// Its memory, from [`BASE`].
    pub memory: Arc<Memory>,
    /// The file behind it.
    pub memory_fd: OwnedFd,
    /// Its adapter.
    pub registers: Registers,
    /// Nanoseconds since it started.
    pub now: u64,
    /// Level of the interrupt line, but for what the port raised.
    pub line: bool,
    /// When the adapter's timer runs out.
    pub deadline: Option<u64>,
    /// What the adapter refused last.
    pub refused: Option<&'static str>,
    /// The file of the page that registers and port share.
    pub page: OwnedFd,
    kick: OwnedFd,
    interrupt: OwnedFd,
}

impl Guest {
    /// A guest whose adapter has the address `mac`, a cable, and the bus.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new(mac: Mac) -> Result<Guest, GuestError> {
        let (page, page_fd) = SharedPage::create()?;
        let memory_fd = memfd_create("guest", MemfdFlags::CLOEXEC)?;
        ftruncate(&memory_fd, MEMORY.into())?;
        let memory = Memory::map(vec![RegionSpec {
            guest_addr: BASE.into(),
            user_addr: 0,
            len: MEMORY.into(),
            fd: memory_fd.try_clone()?,
            fd_offset: 0,
        }])?;
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let mut guest = Guest {
            memory: Arc::new(memory),
            memory_fd,
            registers: Registers::new(mac, page),
            now: 0,
            line: false,
            deadline: None,
            refused: None,
            page: page_fd,
            kick: event()?,
            interrupt: event()?,
        };
        guest.registers.set_link(true);
        let mut effects = Effects::default();
        guest.registers.set_bus_master(true, &mut effects);
        guest.carry_out(&effects);
        Ok(guest)
    }

    /// Opens the port, and attaches the registers to it.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn open_port(&mut self) -> Result<Sides, GuestError> {
        let mut effects = Effects::default();
        self.registers.attach(&mut effects);
        self.carry_out(&effects);
        Ok(open(
            Arc::clone(&self.memory),
            SharedPage::map(self.page.try_clone()?)?,
            self.kick.try_clone()?,
            self.interrupt.try_clone()?,
        )?)
    }

    /// The port is gone.
    pub fn detach(&mut self) {
        let mut effects = Effects::default();
        self.registers.detach(&mut effects);
        self.carry_out(&effects);
    }

    /// Does what the registers ask for.
    pub fn carry_out(&mut self, effects: &Effects) {
        if effects.kick {
            notify::signal(&self.kick);
        }
        self.line = effects.line.unwrap_or(self.line);
        self.refused = effects.refused.or(self.refused);
        match effects.timer {
            Some(Timer::Start { after }) => self.deadline = Some(self.now + after),
            Some(Timer::Stop) => self.deadline = None,
            None => {}
        }
    }

    /// Lets time pass, and the timer run out.
    pub fn advance(&mut self, nanoseconds: u64) {
        let end = self.now + nanoseconds;
        while let Some(deadline) = self.deadline.filter(|&deadline| deadline <= end) {
            self.now = deadline;
            self.deadline = None;
            let mut effects = Effects::default();
            self.registers.timer(self.now, &mut effects);
            self.carry_out(&effects);
        }
        self.now = end;
    }

    /// Reads CSR `n`.
    pub fn csr(&mut self, n: u64) -> u32 {
        let (mut bytes, mut effects) = ([0; 4], Effects::default());
        self.registers
            .read(8 * n, &mut bytes, self.now, &mut effects);
        self.carry_out(&effects);
        u32::from_le_bytes(bytes)
    }

    /// Writes CSR `n`.
    pub fn set_csr(&mut self, n: u64, value: u32) {
        self.write(8 * n, &value.to_le_bytes());
    }

    /// Writes bytes of the registers.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut effects = Effects::default();
        self.registers.write(offset, bytes, self.now, &mut effects);
        self.carry_out(&effects);
    }

    /// Interrupts that the port raised since the last call.
    pub fn interrupts(&self) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(self.interrupt.as_fd(), &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    }

    /// Whether the port was kicked and has not looked yet.
    pub fn is_kicked(&self) -> bool {
        let mut fds = [rustix::event::PollFd::new(
            &self.kick,
            rustix::event::PollFlags::IN,
        )];
        rustix::event::poll(&mut fds, Some(&Default::default())).is_ok_and(|ready| ready > 0)
    }

    /// Writes guest memory.
    ///
    /// # Errors
    /// [`Fault::Range`].
    pub fn put(&self, at: u32, bytes: &[u8]) -> Result<(), Fault> {
        let span = self.memory.span(at.into(), bytes.len() as u32);
        self.memory.write(span.ok_or(Fault::Range)?, bytes)
    }

    /// Reads guest memory.
    ///
    /// # Errors
    /// [`Fault::Range`].
    pub fn get(&self, at: u32, len: usize) -> Result<Vec<u8>, Fault> {
        let mut bytes = vec![0; len];
        let span = self.memory.span(at.into(), len as u32);
        self.memory.read(span.ok_or(Fault::Range)?, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads a word of guest memory.
    ///
    /// # Errors
    /// [`Fault::Range`], [`Fault::Misaligned`].
    pub fn word(&self, at: u32) -> Result<u32, Fault> {
        self.memory
            .load_u32(self.memory.span(at.into(), 4).ok_or(Fault::Range)?)
    }

    /// Writes a word of guest memory.
    ///
    /// # Errors
    /// [`Fault::Range`], [`Fault::Misaligned`].
    pub fn set_word(&self, at: u32, value: u32) -> Result<(), Fault> {
        self.memory
            .store_u32(self.memory.span(at.into(), 4).ok_or(Fault::Range)?, value)
    }

    /// Writes a descriptor, its status last.
    ///
    /// # Errors
    /// [`Fault::Range`], [`Fault::Misaligned`].
    pub fn describe(
        &self,
        at: u32,
        [status, control, first, second]: [u32; 4],
    ) -> Result<(), Fault> {
        self.set_word(at + 4, control)?;
        self.set_word(at + 8, first)?;
        self.set_word(at + 12, second)?;
        self.set_word(at, status)
    }

    /// Sends as iPXE does: one descriptor, written anew with the list's address for each frame, whose OWN bit is waited
    /// for while `turn` lets the switch work. False if it did not clear.
    ///
    /// # Errors
    /// [`Fault::Range`].
    pub fn send_and_wait(&mut self, frame: &[u8], mut turn: impl FnMut()) -> Result<bool, Fault> {
        const DESCRIPTOR: u32 = BASE + 0x3000;
        const BUFFER: u32 = BASE + 0x3100;
        let csr6 = self.csr(6);
        self.set_csr(6, csr6 & !crate::csr::mode::ST);
        turn();
        self.put(BUFFER, frame)?;
        // First and last segment, end of ring.
        let control = 0x6200_0000 | frame.len() as u32;
        self.describe(DESCRIPTOR, [OWN, control, BUFFER, 0])?;
        self.set_csr(4, DESCRIPTOR);
        self.set_csr(6, csr6 | crate::csr::mode::ST);
        self.set_csr(1, 0);
        for _ in 0..100 {
            turn();
            if self.word(DESCRIPTOR)? & OWN == 0 {
                self.set_csr(6, csr6 & !crate::csr::mode::ST);
                return Ok(true);
            }
        }
        Ok(false)
    }
}
