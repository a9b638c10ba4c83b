//! The rings as Linux's `tulip` has them: 128 descriptors to receive, 32 to transmit, one buffer each.

use guestmem::{Fault, Window};
use std::sync::atomic::Ordering;

use super::{BASE, Guest};
use crate::csr::{mode, status};
use crate::descriptor::{END_OF_RING, OWN, tdes1};

/// Descriptors to receive.
pub const RX_RING: u32 = 128;
/// Descriptors to transmit.
pub const TX_RING: u32 = 32;
/// Guest address of the receive ring.
pub const RX_LIST: u32 = BASE;
/// Guest address of the transmit ring.
pub const TX_LIST: u32 = BASE + 0x1000;
const SETUP: u32 = BASE + 0x2000;
const RX_BUFFERS: u32 = BASE + 0x1_0000;
const TX_BUFFERS: u32 = BASE + 0x8_0000;
/// From one buffer to the next.
const BUFFER: u32 = 2048;
/// Bytes of a receive buffer that the driver offers.
pub const RX_BUFFER_LEN: u32 = 1540;
const DESCRIPTOR: u32 = 16;
/// CSR0 as Linux sets it on x86.
const CSR0: u32 = 0x01a0_8000;
/// CSR6 for a medium at an MII PHY, without start bits.
pub const CSR6: u32 = 0x020e_0000;
/// Interrupts that Linux enables on a 21140.
pub const INTERRUPTS: u32 = 0x0001_ebef;
/// RDES0 of a good frame: these bits, of which these are set.
const GOOD: (u32, u32) = (0x3800_8300, 0x0000_0300);

/// The driver's rings.
pub struct Rings {
    rx: Window,
    tx: Window,
    /// Descriptors received and sent so far, and those of the latter that were reclaimed.
    cur_rx: u32,
    cur_tx: u32,
    dirty_tx: u32,
    /// Frames received with an error.
    pub errors: u32,
}

fn at(index: u32) -> usize {
    (index * DESCRIPTOR) as usize
}

impl Rings {
    /// Empty rings in the memory of `guest`: all receive descriptors are the adapter's.
    ///
    /// # Errors
    /// [`Fault::Range`].
    pub fn new(guest: &Guest) -> Result<Rings, Fault> {
        let window = |list: u32, count| {
            let len = (count * DESCRIPTOR) as usize;
            guest.memory.window(list.into(), len).ok_or(Fault::Range)
        };
        for index in 0..RX_RING {
            let end = if index + 1 == RX_RING { END_OF_RING } else { 0 };
            let (buffer, next) = (
                RX_BUFFERS + index * BUFFER,
                RX_LIST + (index + 1) * DESCRIPTOR,
            );
            guest.describe(
                RX_LIST + index * DESCRIPTOR,
                [OWN, RX_BUFFER_LEN | end, buffer, next],
            )?;
        }
        for index in 0..TX_RING {
            let next = TX_LIST + (index + 1) % TX_RING * DESCRIPTOR;
            guest.describe(TX_LIST + index * DESCRIPTOR, [0, 0, 0, next])?;
        }
        Ok(Rings {
            rx: window(RX_LIST, RX_RING)?,
            tx: window(TX_LIST, TX_RING)?,
            cur_rx: 0,
            cur_tx: 0,
            dirty_tx: 0,
            errors: 0,
        })
    }

    /// Gives the next transmit descriptor to the adapter, unless the ring is full.
    fn post(&mut self, control: u32, buffer: u32) -> Result<bool, Fault> {
        // Linux keeps two descriptors free.
        let used = self.cur_tx.wrapping_sub(self.dirty_tx);
        if used >= TX_RING - 2 && self.reclaim()? >= TX_RING - 2 {
            return Ok(false);
        }
        let index = self.cur_tx % TX_RING;
        let end = if index + 1 == TX_RING { END_OF_RING } else { 0 };
        self.tx
            .store_u32(at(index) + 8, buffer, Ordering::Relaxed)?;
        self.tx
            .store_u32(at(index) + 4, control | end, Ordering::Relaxed)?;
        self.tx.store_u32(at(index), OWN, Ordering::Release)?;
        self.cur_tx = self.cur_tx.wrapping_add(1);
        Ok(true)
    }

    /// Takes back what was transmitted. How many descriptors are still the adapter's.
    ///
    /// # Errors
    /// [`Fault::Gone`].
    pub fn reclaim(&mut self) -> Result<u32, Fault> {
        while self.dirty_tx != self.cur_tx {
            let index = self.dirty_tx % TX_RING;
            if self.tx.load_u32(at(index), Ordering::Acquire)? & OWN != 0 {
                break;
            }
            self.dirty_tx = self.dirty_tx.wrapping_add(1);
        }
        Ok(self.cur_tx.wrapping_sub(self.dirty_tx))
    }

    /// IC as Linux sets it: in the middle of the ring, and when it gets full.
    fn frame_control(&self, len: u32) -> u32 {
        let used = self.cur_tx.wrapping_sub(self.dirty_tx);
        let interrupt = match used == TX_RING / 2 || used >= TX_RING - 3 {
            true => tdes1::IC,
            false => 0,
        };
        tdes1::FS | tdes1::LS | interrupt | len
    }

    /// Sends up to `count` frames of `len` bytes that already lie in the buffers (see [`Rings::fill`]). Without a kick.
    ///
    /// # Errors
    /// [`Fault::Gone`].
    pub fn send_burst(&mut self, len: u32, count: u32) -> Result<u32, Fault> {
        let mut sent = 0;
        while sent < count {
            let buffer = TX_BUFFERS + self.cur_tx % TX_RING * BUFFER;
            if !self.post(self.frame_control(len), buffer)? {
                break;
            }
            sent += 1;
        }
        Ok(sent)
    }

    /// Puts `frame` in all transmit buffers.
    ///
    /// # Errors
    /// [`Fault::Gone`].
    pub fn fill(&self, guest: &Guest, frame: &[u8]) -> Result<(), Fault> {
        (0..TX_RING).try_for_each(|index| guest.put(TX_BUFFERS + index * BUFFER, frame))
    }

    /// Takes up to `count` received frames, then gives their descriptors back. How many came without an error.
    ///
    /// # Errors
    /// [`Fault::Gone`].
    pub fn receive_burst(&mut self, count: u32) -> Result<u32, Fault> {
        let (mut good, mut taken) = (0, 0);
        while taken < count.min(RX_RING) {
            let index = self.cur_rx.wrapping_add(taken) % RX_RING;
            let word = self.rx.load_u32(at(index), Ordering::Acquire)?;
            if word & OWN != 0 {
                break;
            }
            good += u32::from(word & GOOD.0 == GOOD.1);
            taken += 1;
        }
        (0..taken).try_for_each(|_| self.give_back())?;
        Ok(good)
    }

    /// Index and status of the next received descriptor.
    fn next_received(&self) -> Result<Option<(u32, u32)>, Fault> {
        let index = self.cur_rx % RX_RING;
        let word = self.rx.load_u32(at(index), Ordering::Acquire)?;
        Ok((word & OWN == 0).then_some((index, word)))
    }

    fn give_back(&mut self) -> Result<(), Fault> {
        let index = self.cur_rx % RX_RING;
        self.rx.store_u32(at(index), OWN, Ordering::Release)?;
        self.cur_rx = self.cur_rx.wrapping_add(1);
        Ok(())
    }

    /// The next received frame, without its CRC, as Linux takes it.
    ///
    /// # Errors
    /// [`Fault::Gone`].
    pub fn receive(&mut self, guest: &Guest) -> Result<Option<Vec<u8>>, Fault> {
        while let Some((index, word)) = self.next_received()? {
            let len = (word >> 16 & 0x7ff).wrapping_sub(4);
            let good = word & GOOD.0 == GOOD.1 && len <= RX_BUFFER_LEN;
            let frame = match good {
                true => Some(guest.get(RX_BUFFERS + index * BUFFER, len as usize)?),
                false => None,
            };
            self.give_back()?;
            match frame {
                Some(frame) => return Ok(Some(frame)),
                None => self.errors += 1,
            }
        }
        Ok(None)
    }

    /// Sends a frame and kicks; false if the ring is full.
    ///
    /// # Errors
    /// [`Fault::Gone`].
    pub fn send(&mut self, guest: &mut Guest, frame: &[u8]) -> Result<bool, Fault> {
        let buffer = TX_BUFFERS + self.cur_tx % TX_RING * BUFFER;
        self.reclaim()?;
        if self.cur_tx.wrapping_sub(self.dirty_tx) >= TX_RING - 2 {
            return Ok(false);
        }
        guest.put(buffer, frame)?;
        let sent = self.post(self.frame_control(frame.len() as u32), buffer)?;
        guest.set_csr(1, 0);
        Ok(sent)
    }

    /// Sends a setup frame of 192 bytes. `control` has FT0 and FT1, and IC if wanted.
    ///
    /// # Errors
    /// [`Fault::Gone`].
    pub fn set_up(
        &mut self,
        guest: &mut Guest,
        control: u32,
        frame: &[u8; 192],
    ) -> Result<bool, Fault> {
        guest.put(SETUP, frame)?;
        let sent = self.post(tdes1::SET | control | 192, SETUP)?;
        guest.set_csr(1, 0);
        Ok(sent)
    }
}

/// A perfect setup frame for `addresses`, up to 16; unused entries are broadcast.
pub fn perfect(addresses: &[[u8; 6]]) -> [u8; 192] {
    let mut frame = [0xff; 192];
    for (entry, address) in frame.chunks_exact_mut(12).zip(addresses) {
        for (longword, pair) in entry.chunks_exact_mut(4).zip(address.chunks_exact(2)) {
            for (to, from) in longword.iter_mut().zip(pair) {
                *to = *from;
            }
        }
    }
    frame
}

impl Guest {
    /// Brings the adapter up as Linux does: reset, rings, a perfect filter for `mac` and broadcast, interrupts, start.
    ///
    /// # Errors
    /// [`Fault::Range`].
    pub fn up(&mut self, mac: [u8; 6]) -> Result<Rings, Fault> {
        self.set_csr(6, 0x0004_0000);
        self.set_csr(0, 1);
        self.now += 100_000;
        self.set_csr(0, CSR0);
        let mut rings = Rings::new(self)?;
        self.set_csr(3, RX_LIST);
        self.set_csr(4, TX_LIST);
        rings.set_up(self, tdes1::IC, &perfect(&[mac]))?;
        self.set_csr(6, CSR6 | mode::ST);
        self.set_csr(5, INTERRUPTS);
        self.set_csr(7, INTERRUPTS);
        self.set_csr(6, CSR6 | mode::ST | mode::SR);
        self.set_csr(2, 0);
        Ok(rings)
    }

    /// Takes the adapter down as Linux does, which polls CSR5 until both processes have stopped, up to 1300 times; `turn`
    /// lets the switch work meanwhile. Whether they stopped.
    pub fn down(&mut self, mut turn: impl FnMut()) -> bool {
        self.set_csr(7, 0);
        let csr6 = self.csr(6);
        self.set_csr(6, csr6 & !(mode::SR | mode::ST));
        for _ in 0..1300 {
            turn();
            if self.csr(5) & (status::RS | status::TS) == 0 {
                self.csr(8);
                return true;
            }
        }
        false
    }
}
