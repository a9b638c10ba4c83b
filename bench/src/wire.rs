//! One copy from one core to another and nothing else: what the machine, and the driver, can do at most.
//!
//! It plays the device of two guests with split rings: takes what one sends, copies it into the next receive buffers of
//! the other, and gives the buffers back. It trusts the guests, looks at no byte, and knows no addresses.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use guestmem::{Fault, Memory, Window};
use vswitch::ports::vhost::driver::Guest as Front;
use vswitch::ports::vhost::ring::DESC_LEN;
use vswitch::ports::vhost::split::{avail_len, table_len, used_len};

use crate::machine;

/// Frames between two stores of an index.
const BATCH: usize = 32;
/// Where the virtio header counts the buffers of a frame.
const NUM_BUFFERS: u32 = 10;

/// The device's half of a split ring.
struct Device {
    memory: Arc<Memory>,
    table: Window,
    avail: Window,
    used: Window,
    mask: u16,
    next: u16,
    /// The driver's index when it was last read.
    driver: u16,
}

impl Device {
    fn new(front: &Front, index: usize) -> Result<Device> {
        let ring = front.rings.get(index).context("a guest without rings")?;
        let (size, addr, memory) = (front.setup().queue_size, ring.addr(), front.memory());
        let part = |at, len| memory.window(at, len).context("a ring outside memory");
        let used = part(addr.used, used_len(size))?;
        used.store_u16(0, 1, Ordering::Relaxed)?;
        Ok(Device {
            memory: Arc::clone(memory),
            table: part(addr.table, table_len(size))?,
            avail: part(addr.avail, avail_len(size))?,
            used,
            mask: size - 1,
            next: 0,
            driver: 0,
        })
    }

    /// The next buffer that is available: its id, address and length.
    #[inline]
    fn take(&mut self) -> Result<Option<(u16, u64, u32)>, Fault> {
        if self.next == self.driver {
            self.driver = self.avail.load_u16(2, Ordering::Acquire)?;
            if self.next == self.driver {
                return Ok(None);
            }
        }
        let slot = 4 + 2 * usize::from(self.next & self.mask);
        let id = self.avail.load_u16(slot, Ordering::Relaxed)?;
        let at = DESC_LEN * usize::from(id & self.mask);
        let addr = self.table.load_u64(at, Ordering::Relaxed)?;
        let len = self.table.load_u32(at + 8, Ordering::Relaxed)?;
        Ok(Some((id, addr, len)))
    }

    /// Where the buffer `ahead` of the next one is, if the driver's index said so.
    #[inline]
    fn peek(&self, ahead: u16) -> Option<u64> {
        if ahead >= self.driver.wrapping_sub(self.next) {
            return None;
        }
        let slot = 4 + 2 * usize::from(self.next.wrapping_add(ahead) & self.mask);
        let id = self.avail.load_u16(slot, Ordering::Relaxed).ok()?;
        let at = DESC_LEN * usize::from(id & self.mask);
        self.table.load_u64(at, Ordering::Relaxed).ok()
    }

    /// Gives the buffer that was taken back.
    #[inline]
    fn give(&mut self, id: u16, len: u32) -> Result<(), Fault> {
        let slot = 4 + 8 * usize::from(self.next & self.mask);
        self.next = self.next.wrapping_add(1);
        self.used.store_u32(slot, id.into(), Ordering::Relaxed)?;
        self.used.store_u32(slot + 4, len, Ordering::Relaxed)
    }

    fn publish(&self) -> Result<(), Fault> {
        self.used.store_u16(2, self.next, Ordering::Release)
    }
}

/// From the transmit ring of one guest to the receive ring of another.
struct Lane {
    from: Device,
    to: Device,
}

impl Lane {
    /// Moves some frames. Whether there were any.
    fn turn(&mut self) -> Result<bool, Fault> {
        let mut moved = 0;
        self.from.take()?;
        self.to.take()?;
        for ahead in 0..BATCH as u16 {
            if let Some(span) = self
                .from
                .peek(ahead)
                .and_then(|at| self.from.memory.span(at, 1))
            {
                self.from.memory.prefetch(span);
            }
            if let Some(span) = self
                .to
                .peek(ahead)
                .and_then(|at| self.to.memory.span(at, 1))
            {
                self.to.memory.prefetch_write(span);
            }
        }
        while moved < BATCH
            && let Some((id, addr, len)) = self.from.take()?
        {
            if !self.copy(addr, len)? {
                break;
            }
            self.from.give(id, 0)?;
            moved += 1;
        }
        if moved > 0 {
            self.to.publish()?;
            self.from.publish()?;
        }
        Ok(moved > 0)
    }

    /// Copies a frame into as many buffers as it needs. False, with nothing taken, where they are not there.
    #[inline]
    fn copy(&mut self, addr: u64, len: u32) -> Result<bool, Fault> {
        let Lane { from, to } = self;
        let before = to.next;
        let (mut done, mut buffers, mut first) = (0, 0u16, 0);
        while done < len {
            let Some((id, at, room)) = to.take()? else {
                to.next = before;
                return Ok(false);
            };
            let now = room.min(len - done);
            let source = from.memory.span(addr + u64::from(done), now);
            let target = to.memory.span(at, now);
            from.memory.copy(
                source.ok_or(Fault::Range)?,
                &to.memory,
                target.ok_or(Fault::Range)?,
            )?;
            if buffers == 0 {
                first = at;
            }
            to.give(id, now)?;
            buffers += 1;
            done += now;
        }
        let count = to.memory.span(first + u64::from(NUM_BUFFERS), 2);
        to.memory
            .write(count.ok_or(Fault::Range)?, &buffers.to_le_bytes())?;
        Ok(true)
    }
}

/// The thread that copies; it ends when this is dropped.
pub(crate) struct Wire {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Wire {
    /// Connects two guests, on `core`.
    pub(crate) fn start(core: usize, [a, b]: [&Front; 2]) -> Result<Wire> {
        let lane = |from: &Front, to: &Front| -> Result<Lane> {
            Ok(Lane {
                from: Device::new(from, 1)?,
                to: Device::new(to, 0)?,
            })
        };
        let mut lanes = [lane(a, b)?, lane(b, a)?];
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("copy".into())
            .spawn(move || {
                // A fault shows as a run in which nothing arrives.
                let _ = machine::pin(core);
                while !stopped.load(Ordering::Relaxed) {
                    for lane in &mut lanes {
                        if !matches!(lane.turn(), Ok(true)) {
                            std::hint::spin_loop();
                        }
                    }
                }
            })?;
        Ok(Wire {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
