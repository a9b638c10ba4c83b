//! What a device of the platform is.
//!
//! A device is a function of register accesses. It has no thread, reads no clock and makes no system call: what must
//! happen around it, it asks for through [`Effects`]; where it can be reached, it says in its [`Wiring`]. So tests and
//! fuzzers call it as the machine does.

use std::any::Any;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use guestmem::Memory;

use crate::hyperv::hypercall::{Input, Status};

/// A saved device: a JSON value whose form is the device's own. [`Device::restore`] treats it as hostile.
pub type State = serde_json::Value;

/// Why a saved state was refused. The device is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It does not have the form that the device saves.
    #[error("the saved state does not have the form of this device")]
    Form(#[from] serde_json::Error),
    /// A value that the device could never have had.
    #[error("{what} is {value} in the saved state; allowed: {allowed}")]
    Value {
        /// Name of the value.
        what: &'static str,
        /// What the state says.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// The machine has other parts than the one that was saved.
    #[error("{what}: it was saved with {saved}, and this machine has {here}")]
    Other {
        /// Which part.
        what: String,
        /// What the saved machine had.
        saved: String,
        /// What is there now.
        here: String,
    },
}

/// A device of the platform: a function of register accesses.
///
/// The machine calls one device at a time, from any of its threads. A device never panics, whatever the guest writes.
pub trait Device: Any + Send {
    /// The guest reads `data.len()` bytes (1, 2, 4 or 8) at `offset` of the device's region number `region`. `data`
    /// holds ones, which is what a bus reads where nobody answers. The access lies inside the region.
    fn read(&mut self, region: usize, offset: u64, data: &mut [u8], effects: &mut Effects);

    /// The guest writes `data.len()` bytes (1, 2, 4 or 8). The access lies inside the region.
    fn write(&mut self, region: usize, offset: u64, data: &[u8], effects: &mut Effects);

    /// A timer asked for by [`Effect::Timer`] has run out.
    fn timer(&mut self, _id: u32, _effects: &mut Effects) {}

    /// True if the device wants interrupt `id` of its [`Wiring`] now. Asked when the guest has ended such an interrupt:
    /// the answer true raises it again.
    fn wants_interrupt(&mut self, _id: u32) -> bool {
        false
    }

    /// Processor `vp` reads one of [`hyperv::msr`](crate::hyperv::msr)'s registers. `None`: it is not this device's.
    fn read_msr(&mut self, _vp: u32, _register: u32) -> Option<u64> {
        None
    }

    /// Processor `vp` writes such a register. False: it is not this device's, or does not take the value.
    fn write_msr(&mut self, _vp: u32, _register: u32, _value: u64, _effects: &mut Effects) -> bool {
        false
    }

    /// A processor makes a call of Hyper-V's interface. `None`: calls are not for this device.
    fn hypercall(&mut self, _call: Input, _effects: &mut Effects) -> Option<Status> {
        None
    }

    /// The machine is reset: the device is as after power-on. Its timers are already cancelled, its lines low, and its
    /// wiring is asked for anew.
    fn reset(&mut self, effects: &mut Effects);

    /// False while another process may still write to the guest's memory on the device's behalf, as it stood before a
    /// reset. The machine goes on after a reset once this is true, or after a while.
    fn is_settled(&self) -> bool {
        true
    }

    /// The state as a value that [`restore`](Self::restore) takes.
    fn save(&self) -> State;

    /// Takes over a saved state. Timers and lines are asked for anew through `effects`; the wiring is read anew.
    ///
    /// # Errors
    /// A state that this device could not have saved.
    fn restore(&mut self, state: &State, effects: &mut Effects) -> Result<(), RestoreError>;

    /// Where the device is to be reached, now. Read when the machine is made, after reset and restore, and after
    /// [`Effect::Rewire`].
    fn wiring(&self) -> Wiring;
}

/// The two address spaces of an x86 processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// Ports 0 to 0xffff (`IN`, `OUT`).
    Port,
    /// Guest physical memory addresses.
    Memory,
}

/// A range of addresses that a device answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The device's own number for it, given back in accesses.
    pub number: usize,
    /// Where it is.
    pub space: Space,
    /// Its first address.
    pub start: u64,
    /// Its length in bytes, at least 1.
    pub len: u64,
}

/// A register whose writes signal an eventfd and are not seen by the device, nor by the monitor (`KVM_IOEVENTFD`).
#[derive(Clone, Debug)]
pub struct Doorbell {
    /// Where it is.
    pub space: Space,
    /// Its address.
    pub address: u64,
    /// Size of the writes in bytes that ring: 1, 2, 4 or 8. Writes of another size go to the device.
    pub len: u32,
    /// The only value that rings, if not any does; others go to the device.
    pub value: Option<u64>,
    /// The eventfd.
    pub event: Arc<OwnedFd>,
}

/// A level-triggered interrupt that another process raises through an eventfd (`KVM_IRQFD` with resampling). It
/// stays up until the guest ends it; then [`Device::wants_interrupt`] is asked.
#[derive(Clone, Debug)]
pub struct Interrupt {
    /// The device's own number for it.
    pub id: u32,
    /// The interrupt line (GSI 0 to 23) it is wired to at present.
    pub gsi: u32,
    /// The eventfd that raises it.
    pub event: Arc<OwnedFd>,
}

/// A message-signalled interrupt that another process raises through an eventfd (`KVM_IRQFD` with a route of its own):
/// each signal sends the message once.
#[derive(Clone, Debug)]
pub struct Message {
    /// Address of the message: 0xfee00000 and the target's local APIC in bits 12 to 19 (Intel SDM volume 3, 11.11).
    pub address: u64,
    /// Its data: the vector in bits 0 to 7.
    pub data: u32,
    /// The eventfd that raises it.
    pub event: Arc<OwnedFd>,
}

/// An image that the guest reads as memory, without the device's doing. Writes come to the device's region there.
#[derive(Clone, Debug)]
pub struct Rom {
    /// Guest physical address, a multiple of 4 KiB.
    pub start: u64,
    /// The image, from its address 0 on.
    pub image: Arc<Memory>,
    /// Length in bytes, a multiple of 4 KiB: all of the image.
    pub len: u64,
}

/// Where a device is to be reached.
#[derive(Clone, Debug, Default)]
pub struct Wiring {
    /// Its addresses. Of two devices that claim one address, the device added first gets it.
    pub regions: Vec<Region>,
    /// Its doorbells.
    pub doorbells: Vec<Doorbell>,
    /// Its interrupts from other processes.
    pub interrupts: Vec<Interrupt>,
    /// Its message-signalled interrupts from other processes.
    pub messages: Vec<Message>,
    /// Its images.
    pub roms: Vec<Rom>,
}

/// How the memory at 0xc0000 to 0xfffff answers, where the chipset can put the firmware's ROM over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shadow {
    /// Reads come from the firmware image (ones where it does not reach), writes are lost.
    Rom,
    /// Memory, writes are lost.
    ReadOnly,
    /// Ordinary memory.
    Ram,
}

/// What the world around a device must do. Carried out in the order asked for, before the guest goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Drives the interrupt line `gsi` (0 to 23; below 16 that of the PIC too). A line is high while any device
    /// drives it high.
    Line {
        /// The line.
        gsi: u32,
        /// Its level.
        high: bool,
    },
    /// Sends a message-signalled interrupt once.
    Message {
        /// As [`Message::address`].
        address: u64,
        /// As [`Message::data`].
        data: u32,
    },
    /// Resets the machine.
    Reset,
    /// Turns the machine off.
    PowerOff,
    /// Calls [`Device::timer`] with `id` once `after` has passed; replaces the timer of that id.
    Timer {
        /// The device's own number for it.
        id: u32,
        /// Time from now, while the machine runs.
        after: Duration,
    },
    /// Cancels the timer of this id, if it runs.
    CancelTimer {
        /// The device's own number for it.
        id: u32,
    },
    /// The device's wiring has changed.
    Rewire,
    /// The memory of `len` bytes at `start` answers as `shadow` from now on: both are multiples of 16 KiB, and the
    /// range lies in 0xc0000 to 0xfffff.
    Shadow {
        /// First address.
        start: u32,
        /// Length in bytes.
        len: u32,
        /// How it answers.
        shadow: Shadow,
    },
    /// Bytes for the user of a console.
    Output {
        /// Number of the console: 0 is COM1, 1 is COM2, [`DEBUG_CONSOLE`] the firmware's debug port.
        console: u32,
        /// The bytes.
        bytes: Vec<u8>,
    },
}

/// The console number of the firmware's debug port.
pub const DEBUG_CONSOLE: u32 = 0x402;

/// The effects that a device asks for, and the time.
#[derive(Debug, Default)]
pub struct Effects {
    /// Nanoseconds that the machine has run: it stands still in pause, and goes on after restore.
    pub now: u64,
    /// Hyper-V's reference time as the guest knows it by its time-stamp counter, in units of 100 ns.
    pub reference: u64,
    list: Vec<Effect>,
}

impl Effects {
    /// None yet, at time `now`.
    pub fn new(now: u64) -> Self {
        Self {
            now,
            reference: now / 100,
            list: Vec::new(),
        }
    }

    /// Asks for one more.
    pub fn push(&mut self, effect: Effect) {
        self.list.push(effect);
    }

    /// Those asked for, in order. None are left.
    pub fn take(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.list)
    }
}
