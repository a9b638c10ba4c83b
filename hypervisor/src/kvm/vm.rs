//! A virtual machine: memory, interrupt controllers, timer, eventfds.
#![allow(unsafe_code, reason = "ioctls that kvm-ioctls leaves to its caller")]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use guestmem::Memory;
use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE, KVM_MEM_READONLY, KVM_PIT_SPEAKER_DUMMY,
    kvm_clock_data, kvm_enable_cap, kvm_ioeventfd, kvm_ioeventfd_flag_nr_datamatch,
    kvm_ioeventfd_flag_nr_deassign, kvm_ioeventfd_flag_nr_pio, kvm_irq_routing_entry, kvm_irqchip,
    kvm_irqfd, kvm_msi, kvm_pit_config, kvm_pit_state2, kvm_userspace_memory_region,
};
use kvm_ioctls::{
    Kvm, MsrExitReason, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd,
};

use super::Vcpu;
use crate::Error;
use crate::device::{Doorbell, Space};

/// Three pages for KVM's own use on old Intel processors, below the firmware; any address that is no memory will do.
const TSS_ADDRESS: usize = 0xfffb_d000;
/// One page more, for the same purpose.
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// `_IOW(0xae, 0x76, struct kvm_irqfd)`.
const KVM_IRQFD: libc::c_ulong = 0x4020_ae76;
/// `_IOW(0xae, 0x79, struct kvm_ioeventfd)`.
const KVM_IOEVENTFD: libc::c_ulong = 0x4040_ae79;

/// The state of what KVM keeps for a machine as a whole.
#[derive(Clone, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chips {
    /// PIC master, PIC slave, I/O APIC.
    irqchips: [kvm_irqchip; 3],
    pit: kvm_pit_state2,
    /// Nanoseconds of the paravirtual clock.
    clock: u64,
}

/// A virtual machine with PIC, I/O APIC, local APICs and PIT in the kernel.
#[derive(Debug)]
pub struct Vm {
    fd: VmFd,
    /// What each slot maps: the guest uses it while the machine lives.
    slots: Mutex<BTreeMap<u32, Arc<Memory>>>,
}

impl Vm {
    /// A machine without memory and processors.
    ///
    /// # Errors
    /// What KVM refuses.
    pub fn new(kvm: &Kvm) -> Result<Self, Error> {
        let fd = loop {
            // A signal may interrupt it.
            match kvm.create_vm() {
                Err(error) if error.errno() == libc::EINTR => {}
                Err(error) if error.errno() == libc::EBUSY => {
                    let why = "the processor's virtualisation is in use by another hypervisor";
                    return Err(Error::NoKvm(why.to_owned()));
                }
                result => break result.map_err(Error::kvm("KVM_CREATE_VM"))?,
            }
        };
        fd.set_identity_map_address(IDENTITY_MAP_ADDRESS)
            .map_err(Error::kvm("KVM_SET_IDENTITY_MAP_ADDR"))?;
        fd.set_tss_address(TSS_ADDRESS)
            .map_err(Error::kvm("KVM_SET_TSS_ADDR"))?;
        fd.create_irq_chip()
            .map_err(Error::kvm("KVM_CREATE_IRQCHIP"))?;
        // Port 0x61, by which programs wait for a counter of the PIT, is the PIT's.
        let pit = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        fd.create_pit2(pit).map_err(Error::kvm("KVM_CREATE_PIT2"))?;
        Ok(Self {
            fd,
            slots: Mutex::default(),
        })
    }

    /// Lets `len` bytes of `memory` from its address `from` appear in the guest at `guest_addr`, as `slot`. Writes to a
    /// slot that is `readonly` come out as [`Exit::MemoryWrite`](super::Exit::MemoryWrite).
    ///
    /// # Errors
    /// A range that `memory` does not hold; what KVM refuses (a slot in use, an overlap, an unaligned range).
    pub fn map(
        &self,
        slot: u32,
        (memory, from): (&Arc<Memory>, u64),
        (guest_addr, len): (u64, u64),
        readonly: bool,
    ) -> Result<(), Error> {
        let range = || Error::Memory {
            what: "a slot",
            source: guestmem::Fault::Range,
        };
        // A window proves that all of the range lies in one mapping.
        memory.window(from, len as usize).ok_or_else(range)?;
        let span = memory.span(from, 1).ok_or_else(range)?;
        let host = memory.host_addr(span).ok_or_else(range)?;
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the host range is mapped, as the window shows, and stays so while `slots` holds the memory, which is
        // until the slot is gone or the machine is. What the guest does to the bytes is no business of Rust's: nobody
        // has references to them (see `guestmem`).
        unsafe {
            self.fd.set_user_memory_region(kvm_userspace_memory_region {
                slot,
                flags: if readonly { KVM_MEM_READONLY } else { 0 },
                guest_phys_addr: guest_addr,
                memory_size: len,
                userspace_addr: host as u64,
            })
        }
        .map_err(Error::kvm("KVM_SET_USER_MEMORY_REGION"))?;
        slots.insert(slot, Arc::clone(memory));
        Ok(())
    }

    /// Takes `slot` away from the guest, if it exists.
    ///
    /// # Errors
    /// What KVM refuses.
    pub fn unmap(&self, slot: u32) -> Result<(), Error> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if !slots.contains_key(&slot) {
            return Ok(());
        }
        let nothing = kvm_userspace_memory_region {
            slot,
            ..Default::default()
        };
        // SAFETY: a slot of no bytes is removed; the kernel follows no address.
        unsafe { self.fd.set_user_memory_region(nothing) }
            .map_err(Error::kvm("KVM_SET_USER_MEMORY_REGION"))?;
        slots.remove(&slot);
        Ok(())
    }

    /// Makes processor `id`.
    ///
    /// # Errors
    /// What KVM refuses.
    pub fn create_vcpu(&self, id: u8) -> Result<Vcpu, Error> {
        let fd = self
            .fd
            .create_vcpu(u64::from(id))
            .map_err(Error::kvm("KVM_CREATE_VCPU"))?;
        Ok(Vcpu::new(fd))
    }

    /// From now on accesses to the `count` MSRs from `first` on come out as [`Exit::MsrRead`](super::Exit::MsrRead) and
    /// [`Exit::MsrWrite`](super::Exit::MsrWrite). Before any processor is made.
    ///
    /// # Errors
    /// What KVM refuses, as one that lacks KVM_CAP_X86_USER_SPACE_MSR or KVM_CAP_X86_MSR_FILTER does.
    pub fn pass_on_msrs(&self, first: u32, count: u32) -> Result<(), Error> {
        let exits = kvm_enable_cap {
            cap: KVM_CAP_X86_USER_SPACE_MSR,
            args: [MsrExitReason::Filter.bits().into(), 0, 0, 0],
            ..Default::default()
        };
        self.fd
            .enable_cap(&exits)
            .map_err(Error::kvm("KVM_ENABLE_CAP(KVM_CAP_X86_USER_SPACE_MSR)"))?;
        // A bit that is clear keeps KVM from answering itself.
        let bitmap = vec![0; count.div_ceil(8) as usize];
        let range = MsrFilterRange {
            flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
            base: first,
            msr_count: count,
            bitmap: &bitmap,
        };
        self.fd
            .set_msr_filter(MsrFilterDefaultAction::ALLOW, &[range])
            .map_err(Error::kvm("KVM_X86_SET_MSR_FILTER"))
    }

    /// Drives interrupt line `gsi`.
    ///
    /// # Errors
    /// What KVM refuses.
    pub fn set_line(&self, gsi: u32, high: bool) -> Result<(), Error> {
        self.fd
            .set_irq_line(gsi, high)
            .map_err(Error::kvm("KVM_IRQ_LINE"))
    }

    /// Delivers a message-signalled interrupt once.
    ///
    /// # Errors
    /// What KVM refuses.
    pub fn signal_msi(&self, address: u64, data: u32) -> Result<(), Error> {
        let msi = kvm_msi {
            address_lo: address as u32,
            address_hi: (address >> 32) as u32,
            data,
            ..Default::default()
        };
        self.fd
            .signal_msi(msi)
            .map(drop)
            .map_err(Error::kvm("KVM_SIGNAL_MSI"))
    }

    /// Exchanges the table that says where each GSI leads.
    ///
    /// # Errors
    /// What KVM refuses.
    pub fn set_routes(&self, entries: &[kvm_irq_routing_entry]) -> Result<(), Error> {
        let table =
            kvm_bindings::KvmIrqRouting::from_entries(entries).map_err(|_| Error::Config {
                what: "number of interrupt routes",
                value: entries.len().to_string(),
                allowed: "what KVM_SET_GSI_ROUTING takes",
            })?;
        self.fd
            .set_gsi_routing(&table)
            .map_err(Error::kvm("KVM_SET_GSI_ROUTING"))
    }

    /// From now on (or no longer) each write to `event` raises `gsi`: a pulse, or with `resample` a level that stays
    /// until the guest has ended the interrupt, which `resample` then tells.
    ///
    /// # Errors
    /// What KVM refuses.
    pub fn irqfd(
        &self,
        event: BorrowedFd<'_>,
        gsi: u32,
        resample: Option<BorrowedFd<'_>>,
        on: bool,
    ) -> Result<(), Error> {
        let resampled = if resample.is_some() {
            KVM_IRQFD_FLAG_RESAMPLE
        } else {
            0
        };
        let request = kvm_irqfd {
            fd: event.as_raw_fd() as u32,
            gsi,
            flags: if on {
                resampled
            } else {
                KVM_IRQFD_FLAG_DEASSIGN
            },
            resamplefd: resample.map_or(0, |fd| fd.as_raw_fd() as u32),
            ..Default::default()
        };
        // SAFETY: the kernel reads the structure this call is defined with; both descriptors are open.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), KVM_IRQFD, &raw const request) };
        checked("KVM_IRQFD", result)
    }

    /// From now on (or no longer) writes of the doorbell's size at its address signal its event.
    ///
    /// # Errors
    /// What KVM refuses.
    pub fn ioeventfd(&self, doorbell: &Doorbell, on: bool) -> Result<(), Error> {
        let space = match doorbell.space {
            Space::Port => 1 << kvm_ioeventfd_flag_nr_pio,
            Space::Memory => 0,
        };
        let matched = doorbell
            .value
            .map_or(0, |_| 1 << kvm_ioeventfd_flag_nr_datamatch);
        let request = kvm_ioeventfd {
            datamatch: doorbell.value.unwrap_or_default(),
            addr: doorbell.address,
            len: doorbell.len,
            fd: doorbell.event.as_raw_fd(),
            flags: space
                | matched
                | if on {
                    0
                } else {
                    1 << kvm_ioeventfd_flag_nr_deassign
                },
            ..Default::default()
        };
        // SAFETY: the kernel reads the structure this call is defined with; the descriptor is open.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), KVM_IOEVENTFD, &raw const request) };
        checked("KVM_IOEVENTFD", result)
    }

    /// Makes lines level-triggered in the PICs (registers ELCR1 and ELCR2 of a PIIX3): one bit for each of lines 0 to 15.
    /// No processor runs.
    ///
    /// # Errors
    /// What KVM refuses.
    pub fn set_level_lines(&self, lines: u16) -> Result<(), Error> {
        let [master, slave] = lines.to_le_bytes();
        for (chip_id, elcr) in [
            (KVM_IRQCHIP_PIC_MASTER, master),
            (KVM_IRQCHIP_PIC_SLAVE, slave),
        ] {
            let mut chip = self.irqchip(chip_id)?;
            chip.chip.pic.elcr = elcr;
            self.fd
                .set_irqchip(&chip)
                .map_err(Error::kvm("KVM_SET_IRQCHIP"))?;
        }
        Ok(())
    }

    fn irqchip(&self, chip_id: u32) -> Result<kvm_irqchip, Error> {
        let mut chip = kvm_irqchip {
            chip_id,
            ..Default::default()
        };
        self.fd
            .get_irqchip(&mut chip)
            .map_err(Error::kvm("KVM_GET_IRQCHIP"))?;
        Ok(chip)
    }

    /// The state of interrupt controllers, timer and clock. No processor runs.
    ///
    /// # Errors
    /// What KVM refuses.
    pub fn chips(&self) -> Result<Chips, Error> {
        let clock = self
            .fd
            .get_clock()
            .map_err(Error::kvm("KVM_GET_CLOCK"))?
            .clock;
        Ok(Chips {
            irqchips: [
                self.irqchip(KVM_IRQCHIP_PIC_MASTER)?,
                self.irqchip(KVM_IRQCHIP_PIC_SLAVE)?,
                self.irqchip(KVM_IRQCHIP_IOAPIC)?,
            ],
            pit: self.fd.get_pit2().map_err(Error::kvm("KVM_GET_PIT2"))?,
            clock,
        })
    }

    /// Takes over a state. No processor runs.
    ///
    /// # Errors
    /// What KVM refuses.
    pub fn set_chips(&self, chips: &Chips) -> Result<(), Error> {
        for chip in &chips.irqchips {
            self.fd
                .set_irqchip(chip)
                .map_err(Error::kvm("KVM_SET_IRQCHIP"))?;
        }
        self.fd
            .set_pit2(&chips.pit)
            .map_err(Error::kvm("KVM_SET_PIT2"))?;
        let clock = kvm_clock_data {
            clock: chips.clock,
            ..Default::default()
        };
        self.fd
            .set_clock(&clock)
            .map_err(Error::kvm("KVM_SET_CLOCK"))
    }
}

/// The result of a raw ioctl.
fn checked(call: &'static str, result: libc::c_int) -> Result<(), Error> {
    if result < 0 {
        return Err(Error::Kvm {
            call,
            source: io::Error::last_os_error(),
        });
    }
    Ok(())
}
