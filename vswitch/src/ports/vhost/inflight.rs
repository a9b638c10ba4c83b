//! The in-flight region: where the front-end keeps what a killed back-end had not given back (vhost-user specification,
//! "Inflight I/O tracking").
//!
//! This back-end gives buffers back in the order in which it takes them, and resumes at the first one that it had not
//! given back. So the place in the ring says everything, and no descriptor is ever marked as in flight. A split ring
//! has that place in its used index. A packed ring has it nowhere, so it is kept here, in the fields `used_idx` to
//! `old_used_wrap_counter`, which one atomic store writes.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use guestmem::{MapError, Memory, RegionSpec, Window};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::message::InflightDesc;
use super::packed::Place;
use super::ring::{fault, lost};
use crate::port::PortFault;

/// Offset of `version`: 1, or 0 before anything was recorded. Both formats.
const VERSION: usize = 8;
/// Offset of `used_idx` u16, `old_used_idx` u16, `used_wrap_counter` u8, `old_used_wrap_counter` u8.
const PLACE: usize = 16;
/// Regions of queues start at multiples of this.
const ALIGN: u64 = 64;

/// Why a region was refused.
#[derive(Debug, thiserror::Error)]
pub enum InflightError {
    /// The description does not fit the port.
    #[error(
        "in-flight region for {queues} queues of {size} descriptors; 1 to {max_queues} queues of 1 to 32768 are allowed"
    )]
    Shape {
        /// Queues in the description.
        queues: u16,
        /// Descriptors of a queue.
        size: u16,
        /// Queues of the port.
        max_queues: u16,
    },
    /// The region is shorter than what it describes.
    #[error("in-flight region of {size:#x} bytes; {needed:#x} are needed")]
    Short {
        /// Its size in bytes.
        size: u64,
        /// The size needed.
        needed: u64,
    },
    /// The region could not be mapped.
    #[error("cannot map the in-flight region")]
    Map(#[from] MapError),
    /// The region could not be made.
    #[error("cannot make the in-flight region")]
    Create(#[source] std::io::Error),
}

/// A mapped in-flight region.
pub struct Inflight {
    memory: Arc<Memory>,
    queues: u16,
    queue_size: u16,
    queue_len: u64,
}

/// Header and states of a queue, padded. Packed states are the longer ones.
const fn queue_len(queue_size: u16, packed: bool) -> u64 {
    let one = if packed { 32 } else { 16 };
    (one + one * queue_size as u64).next_multiple_of(ALIGN)
}

impl Inflight {
    /// Makes a region for `queues` queues of `queue_size` descriptors, and says how to pass it on.
    pub fn create(
        asked: &InflightDesc,
        packed: bool,
        max_queues: u16,
    ) -> Result<(InflightDesc, OwnedFd), InflightError> {
        let len = check(asked, max_queues)?(packed);
        let create = || {
            let fd = memfd_create("vhost-inflight", MemfdFlags::CLOEXEC)?;
            ftruncate(&fd, len)?;
            Ok(fd)
        };
        let fd =
            create().map_err(|error: rustix::io::Errno| InflightError::Create(error.into()))?;
        Ok((
            InflightDesc {
                mmap_size: len,
                mmap_offset: 0,
                ..*asked
            },
            fd,
        ))
    }

    /// Maps a region that the front-end passed.
    pub fn map(
        given: &InflightDesc,
        fd: OwnedFd,
        packed: bool,
        max_queues: u16,
    ) -> Result<Inflight, InflightError> {
        let needed = check(given, max_queues)?(packed);
        if given.mmap_size < needed {
            return Err(InflightError::Short {
                size: given.mmap_size,
                needed,
            });
        }
        let memory = Memory::map(vec![RegionSpec {
            guest_addr: 0,
            user_addr: 0,
            len: needed,
            fd,
            fd_offset: given.mmap_offset,
        }])?;
        Ok(Inflight {
            memory: Arc::new(memory),
            queues: given.num_queues,
            queue_size: given.queue_size,
            queue_len: queue_len(given.queue_size, packed),
        })
    }

    /// The record of packed queue `index`, which has `size` descriptors.
    pub fn place(&self, index: u16, size: u16) -> Result<PackedPlace, PortFault> {
        if index >= self.queues || size > self.queue_size {
            return fault("size of the queue for its in-flight region", size);
        }
        match self
            .memory
            .window(self.queue_len * u64::from(index), self.queue_len as usize)
        {
            Some(window) => Ok(PackedPlace { window }),
            None => fault("in-flight region of queue", index),
        }
    }
}

/// Checks the shape, and gives the length of the region for either format.
fn check(desc: &InflightDesc, max_queues: u16) -> Result<impl Fn(bool) -> u64, InflightError> {
    let (queues, size) = (desc.num_queues, desc.queue_size);
    if queues == 0 || queues > max_queues || size == 0 || size > 32_768 {
        return Err(InflightError::Shape {
            queues,
            size,
            max_queues,
        });
    }
    Ok(move |packed| queue_len(size, packed) * u64::from(queues))
}

/// The record of one packed queue.
pub struct PackedPlace {
    window: Window,
}

impl PackedPlace {
    /// Where to go on: at the recorded place, or at `base` if there is no record. `used` tells the used flag of a
    /// descriptor: whether the batch that was being published when the process died was published.
    pub(super) fn resume(
        &self,
        base: Place,
        size: u16,
        used: impl FnOnce(u16) -> Result<bool, PortFault>,
    ) -> Result<Place, PortFault> {
        let version = self
            .window
            .load_u16(VERSION, Ordering::Acquire)
            .map_err(lost)?;
        let place = match version {
            0 => base,
            1 => {
                let record = self
                    .window
                    .load_u64(PLACE, Ordering::Acquire)
                    .map_err(lost)?;
                let new = Place {
                    index: record as u16,
                    wrap: record >> 32 & 1 != 0,
                };
                let old = Place {
                    index: (record >> 16) as u16,
                    wrap: record >> 40 & 1 != 0,
                };
                if new.index >= size || old.index >= size {
                    return fault("place in the in-flight region", record);
                }
                if new == old || used(old.index)? == old.wrap {
                    new
                } else {
                    old
                }
            }
            _ => return fault("version of the in-flight region", version),
        };
        self.store(place, place)?;
        self.window
            .store_u16(VERSION, 1, Ordering::Release)
            .map_err(lost)?;
        Ok(place)
    }

    /// A batch that ends before `new` is about to be published at `old`.
    pub(super) fn begin(&self, new: Place, old: Place) -> Result<(), PortFault> {
        self.store(new, old)
    }

    /// It was published.
    pub(super) fn end(&self, new: Place) -> Result<(), PortFault> {
        self.store(new, new)
    }

    /// The queue was stopped in order, and the front-end knows the place: there is nothing to record.
    pub(super) fn forget(&self) -> Result<(), PortFault> {
        self.window
            .store_u16(VERSION, 0, Ordering::Release)
            .map_err(lost)
    }

    fn store(&self, new: Place, old: Place) -> Result<(), PortFault> {
        let record = u64::from(new.index)
            | u64::from(old.index) << 16
            | u64::from(new.wrap) << 32
            | u64::from(old.wrap) << 40;
        self.window
            .store_u64(PLACE, record, Ordering::Release)
            .map_err(lost)
    }
}
