//! Which memory appears where in the guest: KVM's memory slots.

use std::collections::BTreeMap;
use std::sync::Arc;

use guestmem::Memory;

use crate::Error;
use crate::device::{Rom, Shadow};
use crate::kvm::Vm;
use crate::memory::{EXTENDED, GuestMemory, HIGH_MEMORY, LOW_MEMORY_END, PCI_HOLE, SHADOW_START};

/// The shadow area is switched in pieces of this size, as the PAM registers of Intel's host bridges do.
const SEGMENT: u64 = 16 << 10;
const SEGMENTS: usize = ((EXTENDED - SHADOW_START) / SEGMENT) as usize;
/// This much of the firmware's end is seen below 1 MiB too.
const LOW_FIRMWARE: u64 = 128 << 10;

const SLOT_LOW: u32 = 0;
const SLOT_EXTENDED: u32 = 1;
const SLOT_HIGH: u32 = 2;
const SLOT_FIRMWARE: u32 = 3;
const SLOT_SEGMENTS: u32 = 4;
const SLOT_ROMS: u32 = SLOT_SEGMENTS + SEGMENTS as u32;
/// Most images of devices that are mapped at a time; KVM has 509 slots at least.
const MAX_ROMS: u32 = 64;

/// The slots of a machine.
#[derive(Debug)]
pub(crate) struct Slots {
    vm: Arc<Vm>,
    memory: Arc<Memory>,
    /// The firmware, at the guest addresses it has below 4 GiB, and its length.
    firmware: Option<(Arc<Memory>, u64)>,
    shadows: [Option<Shadow>; SEGMENTS],
    /// Images of devices, by slot, and whose they are.
    roms: BTreeMap<u32, (usize, Rom)>,
}

impl Slots {
    /// Maps guest memory, and `firmware` below 4 GiB and over the shadow area.
    pub(crate) fn new(
        vm: Arc<Vm>,
        guest: &GuestMemory,
        firmware: Option<(Arc<Memory>, u64)>,
    ) -> Result<Self, Error> {
        let memory = Arc::clone(guest.memory());
        let low = guest.size().min(PCI_HOLE);
        let map = |slot, start: u64, end: u64| {
            vm.map(slot, (&memory, start), (start, end - start), false)
        };
        map(SLOT_LOW, 0, LOW_MEMORY_END)?;
        map(SLOT_EXTENDED, EXTENDED, low)?;
        if guest.size() > low {
            map(SLOT_HIGH, HIGH_MEMORY, HIGH_MEMORY + (guest.size() - low))?;
        }
        if let Some((image, len)) = &firmware {
            let start = HIGH_MEMORY - len;
            vm.map(SLOT_FIRMWARE, (image, start), (start, *len), true)?;
        }
        let mut slots = Self {
            vm,
            memory,
            firmware,
            shadows: [None; SEGMENTS],
            roms: BTreeMap::new(),
        };
        slots.reset()?;
        Ok(slots)
    }

    /// As after power-on: the firmware's ROM over the shadow area, or plain memory if there is no firmware.
    pub(crate) fn reset(&mut self) -> Result<(), Error> {
        let shadow = if self.firmware.is_some() {
            Shadow::Rom
        } else {
            Shadow::Ram
        };
        self.set(SHADOW_START, EXTENDED - SHADOW_START, shadow)
    }

    /// Lets `len` bytes at `start` answer as `shadow`. What lies outside the shadow area, or is no whole segment, stays
    /// as it is.
    pub(crate) fn set(&mut self, start: u64, len: u64, shadow: Shadow) -> Result<(), Error> {
        for (index, current) in self.shadows.iter_mut().enumerate() {
            let address = SHADOW_START + index as u64 * SEGMENT;
            let inside = address >= start && address + SEGMENT <= start.saturating_add(len);
            if !inside || *current == Some(shadow) {
                continue;
            }
            let slot = SLOT_SEGMENTS + index as u32;
            self.vm.unmap(slot)?;
            *current = Some(shadow);
            match (shadow, &self.firmware) {
                (Shadow::Ram | Shadow::ReadOnly, _) => {
                    let readonly = shadow == Shadow::ReadOnly;
                    self.vm
                        .map(slot, (&self.memory, address), (address, SEGMENT), readonly)?;
                }
                (Shadow::Rom, Some((image, image_len)))
                    if EXTENDED - address <= LOW_FIRMWARE.min(*image_len) =>
                {
                    let from = HIGH_MEMORY - (EXTENDED - address);
                    self.vm.map(slot, (image, from), (address, SEGMENT), true)?;
                }
                // Nobody answers there: ones.
                (Shadow::Rom, _) => {}
            }
        }
        Ok(())
    }

    /// Exchanges the images of `device`. One that KVM does not take, since memory is there, is left out: its reads, as
    /// far as they come out of the guest, reach the device.
    pub(crate) fn set_roms(&mut self, device: usize, wanted: &[Rom]) {
        let same = |a: &Rom, b: &Rom| {
            (a.start, a.len) == (b.start, b.len) && Arc::ptr_eq(&a.image, &b.image)
        };
        let vm = &self.vm;
        self.roms.retain(|&slot, (owner, old)| {
            let stays = *owner != device || wanted.iter().any(|new| same(old, new));
            stays || vm.unmap(slot).is_err()
        });
        for new in wanted {
            let mut mapped = self.roms.values();
            if mapped.any(|(owner, old)| *owner == device && same(old, new)) {
                continue;
            }
            let mut slots = SLOT_ROMS..SLOT_ROMS + MAX_ROMS;
            let Some(slot) = slots.find(|slot| !self.roms.contains_key(slot)) else {
                return;
            };
            let to = (new.start, new.len);
            if self.vm.map(slot, (&new.image, 0), to, true).is_ok() {
                self.roms.insert(slot, (device, new.clone()));
            }
        }
    }
}
