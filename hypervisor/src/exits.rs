//! How often processors came out of the guest, and why.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a processor came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `IN`.
    PortRead,
    /// `OUT`.
    PortWrite,
    /// A load from an address without memory.
    MemoryRead,
    /// A store to an address without memory.
    MemoryWrite,
    /// `RDMSR` or `WRMSR` of a synthetic register.
    Msr,
    /// A call of Hyper-V's interface.
    Hypercall,
    /// A kick or a signal.
    Interrupted,
    /// An instruction that KVM's emulator does not know.
    Emulation,
}

const KINDS: usize = 8;

/// Counters of exits, in the order of [`Kind`].
#[derive(Debug, Default)]
pub(crate) struct Counters([AtomicU64; KINDS]);

impl Counters {
    pub(crate) fn count(&self, kind: Kind) {
        if let Some(counter) = self.0.get(kind as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn read(&self) -> Exits {
        let read = |kind| {
            let counter = self.0.get(kind as usize);
            counter.map_or(0, |counter| counter.load(Ordering::Relaxed))
        };
        Exits {
            port_reads: read(Kind::PortRead),
            port_writes: read(Kind::PortWrite),
            memory_reads: read(Kind::MemoryRead),
            memory_writes: read(Kind::MemoryWrite),
            msrs: read(Kind::Msr),
            hypercalls: read(Kind::Hypercall),
            interrupted: read(Kind::Interrupted),
            emulated: read(Kind::Emulation),
        }
    }
}

/// Exits to the monitor since the machine was made, of all processors. What KVM handles itself (interrupt controllers,
/// timer, doorbells, halting) is not among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Exits {
    /// `IN` instructions.
    pub port_reads: u64,
    /// `OUT` instructions.
    pub port_writes: u64,
    /// Loads from addresses without memory.
    pub memory_reads: u64,
    /// Stores to addresses without memory.
    pub memory_writes: u64,
    /// Accesses to synthetic machine-specific registers.
    pub msrs: u64,
    /// Calls of Hyper-V's interface.
    pub hypercalls: u64,
    /// Kicks and signals.
    pub interrupted: u64,
    /// Instructions carried out here because KVM's emulator does not know them.
    pub emulated: u64,
}

impl Exits {
    /// All of them.
    pub fn total(&self) -> u64 {
        let Self {
            port_reads,
            port_writes,
            memory_reads,
            memory_writes,
            msrs,
            hypercalls,
            interrupted,
            emulated,
        } = self;
        let accesses = port_reads + port_writes + memory_reads + memory_writes;
        accesses + msrs + hypercalls + interrupted + emulated
    }
}
