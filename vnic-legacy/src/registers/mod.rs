//! The registers: what the guest reads and writes, as a function of its accesses.
//!
//! Nothing here waits, reads a clock or calls the kernel: the time is given (nanoseconds since the machine started), and
//! what must happen outside comes back in [`Effects`].

pub mod mii;
pub mod srom;
mod state;
pub mod table;
mod timer;

use vswitch::mac::Mac;

pub use state::{RestoreError, State};

use crate::csr::{GENERAL_PURPOSE_CONTROL, bus_mode, mode, serial, status};
use crate::page::{Control, Counted, SharedPage};
use crate::pci;
use crate::port::filter::{FilterKind, SETUP_LEN};
use mii::Mii;
use srom::Srom;
use table::{REGISTERS, STRIDE};
use timer::GeneralTimer;

/// What the process around the registers must do after a call. Calls add to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Signal the port's kick event.
    pub kick: bool,
    /// Give the interrupt line this level.
    pub line: Option<bool>,
    /// Start or stop the adapter's one timer.
    pub timer: Option<Timer>,
    /// The guest asked for something that is not implemented: worth a line in the log, once.
    pub refused: Option<&'static str>,
}

/// What to do with the timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// Call [`Registers::timer`] after so many nanoseconds, and forget what was asked for before.
    Start {
        /// From now on.
        after: u64,
    },
    /// Forget what was asked for.
    Stop,
}

/// The registers of an adapter.
#[derive(Debug)]
pub struct Registers {
    page: SharedPage,
    /// What was written, of the bits that keep it. CSR9 and CSR6 have more bits of their own making.
    csr: [u32; REGISTERS.len()],
    generation: u32,
    resets: u32,
    rx_demands: u32,
    rx_base_count: u32,
    tx_base_count: u32,
    srom: Srom,
    mii: Mii,
    /// Pins of CSR12: which are outputs, and what they put out.
    pins: Pins,
    timer: GeneralTimer,
    bus_master: bool,
    /// CFDD.
    power: u32,
    /// A port has the page, and answers.
    attached: bool,
    /// A software reset that the port may not have carried out yet.
    resetting: bool,
}

/// The general-purpose pins. Nothing is connected to them; inputs are pulled up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Pins {
    outputs: u8,
    data: u8,
}

impl Registers {
    /// The registers of an adapter with the station address `mac`, after a hardware reset, sharing `page` with its port.
    /// No port is attached, and no cable plugged in.
    pub fn new(mac: Mac, page: SharedPage) -> Registers {
        let mut registers = Registers {
            page,
            csr: [0; REGISTERS.len()],
            generation: 0,
            resets: 0,
            rx_demands: 0,
            rx_base_count: 0,
            tx_base_count: 0,
            srom: Srom::new(mac),
            mii: Mii::new(),
            pins: Pins::default(),
            timer: GeneralTimer::default(),
            bus_master: false,
            power: 0,
            attached: false,
            resetting: false,
        };
        registers.reset(&mut Effects::default());
        registers
    }

    /// Hardware reset, as at machine reset.
    pub fn reset(&mut self, effects: &mut Effects) {
        self.srom.drive(0);
        self.mii.reset();
        self.power = 0;
        self.bus_master = false;
        self.clear(0, effects);
    }

    /// What hardware and software reset have in common. `port`: what stays of CSR6.
    fn clear(&mut self, port: u32, effects: &mut Effects) {
        for (csr, register) in self.csr.iter_mut().zip(&REGISTERS) {
            *csr = register.reset & register.writable;
        }
        if let Some(csr6) = self.csr.get_mut(6) {
            *csr6 |= port;
        }
        self.pins = Pins::default();
        self.timer = GeneralTimer::default();
        self.resets = self.resets.wrapping_add(1);
        self.rx_base_count = self.rx_base_count.wrapping_add(1);
        self.tx_base_count = self.tx_base_count.wrapping_add(1);
        self.resetting = true;
        self.page.set_csr7(0);
        self.page.clear_status(u32::MAX);
        self.page.take_missed();
        effects.line = Some(false);
        effects.timer = Some(Timer::Stop);
        self.tell(effects);
    }

    /// Tells the port what has changed.
    fn tell(&mut self, effects: &mut Effects) {
        let mut csr6 = self.get(6);
        if self.mii.phy.loops_back() && csr6 & mode::OM == 0 {
            csr6 |= mode::OM_EXTERNAL;
        }
        let control = Control {
            csr0: self.get(0),
            csr6,
            csr15: self.get(15),
            bus: self.bus_master && self.power & pci::CFDD_SLEEP == 0,
            resets: self.resets,
            rx_demands: self.rx_demands,
            rx_base: Counted {
                count: self.rx_base_count,
                address: self.get(3),
            },
            tx_base: Counted {
                count: self.tx_base_count,
                address: self.get(4),
            },
        };
        self.generation = self.generation.wrapping_add(1);
        self.page.set_control(&control, self.generation);
        effects.kick = true;
        if !self.attached {
            self.complete(effects);
        }
    }

    /// Does what a port would do about a change of states.
    fn complete(&mut self, effects: &mut Effects) {
        if self.page.resets_seen() != self.resets {
            self.page.set_filter(FilterKind::None, &[0; SETUP_LEN]);
            self.page.set_bus_error(None);
            self.page.clear_status(status::PORT);
            self.page.set_rx_state(0);
            self.page.set_tx_state(0);
            self.page.set_resets_seen(self.resets);
        }
        let (before, csr6) = (self.page.states(), self.get(6));
        let can_run = !self.page.has_bus_error();
        let receiving = csr6 & mode::SR != 0 && can_run;
        let transmitting = csr6 & mode::ST != 0 && can_run;
        let mut stopped = 0;
        if before & status::RS != 0 && !receiving && can_run {
            stopped |= status::RPS;
        }
        if before & status::TS != 0 && !transmitting && can_run {
            stopped |= status::TPS;
        }
        self.page.set_status(stopped);
        self.page
            .set_rx_state(if receiving { status::RS_WAITING } else { 0 });
        self.page.set_tx_state(if transmitting {
            status::TS_SUSPENDED
        } else {
            0
        });
        self.page.set_seen(self.generation);
        if stopped != 0 {
            effects.line = Some(self.line());
        }
    }

    /// A port will have the page from now on. To be called before the port is given it.
    pub fn attach(&mut self, effects: &mut Effects) {
        self.attached = true;
        effects.kick = true;
    }

    /// No port has the page any more. Changes of state that the guest waits for are complete.
    pub fn detach(&mut self, effects: &mut Effects) {
        self.attached = false;
        self.complete(effects);
    }

    /// Whether the port has carried out all changes: it does not touch what the guest has taken from it.
    pub fn settled(&self) -> bool {
        self.page.seen() == self.generation
    }

    /// Whether a driver has started to send or to receive. An adapter that sleeps does neither.
    pub fn is_started(&self) -> bool {
        self.power & pci::CFDD_SLEEP == 0 && self.get(6) & (mode::SR | mode::ST) != 0
    }

    /// The level of the interrupt line: whether a status bit is set and enabled.
    pub fn line(&self) -> bool {
        status::interrupts(self.page.status(), self.get(7))
    }

    /// Plugs the cable in, or pulls it out. The guest finds out from the PHY.
    pub fn set_link(&mut self, up: bool) {
        self.mii.phy.set_cable(up);
    }

    /// The guest changed bit 2 of the PCI command register: whether the adapter may use the bus.
    pub fn set_bus_master(&mut self, on: bool, effects: &mut Effects) {
        if self.bus_master != on {
            self.bus_master = on;
            self.tell(effects);
        }
    }

    /// CFDD, in PCI configuration space.
    pub fn power(&self) -> u32 {
        self.power
    }

    /// The guest writes CFDD.
    pub fn set_power(&mut self, value: u32, effects: &mut Effects) {
        let slept = self.power & pci::CFDD_SLEEP;
        self.power = value & pci::CFDD_WRITABLE;
        if self.power & pci::CFDD_SLEEP != slept {
            self.tell(effects);
        }
    }

    /// The timer that was asked for has run out.
    pub fn timer(&mut self, now: u64, effects: &mut Effects) {
        if self.timer.expire(now) {
            self.page.set_status(status::GTE);
            effects.line = Some(self.line());
        }
        effects.timer = Some(self.timer.ask(now));
    }

    /// The guest reads `data.len()` bytes at `offset` of either BAR. Where there is no register, ones.
    pub fn read(&mut self, offset: u64, data: &mut [u8], now: u64, effects: &mut Effects) {
        data.fill(0xff);
        if self.power & pci::CFDD_SLEEP != 0 {
            return;
        }
        let mut rest = data;
        let mut at = offset;
        while !rest.is_empty() {
            let lane = (at % STRIDE) as usize;
            let now_len = rest.len().min(STRIDE as usize - lane);
            let (chunk, later) = rest.split_at_mut(now_len);
            if lane < 4
                && let Ok(index) = usize::try_from(at / STRIDE)
                && index < REGISTERS.len()
            {
                let bytes = self.read_register(index, now, effects).to_le_bytes();
                for (to, from) in chunk.iter_mut().zip(bytes.get(lane..).unwrap_or(&[])) {
                    *to = *from;
                }
            }
            at = at.wrapping_add(now_len as u64);
            rest = later;
        }
    }

    /// The guest writes `data` at `offset` of either BAR. Bytes of a register that are not written stay as they are.
    pub fn write(&mut self, offset: u64, data: &[u8], now: u64, effects: &mut Effects) {
        if self.power & pci::CFDD_SLEEP != 0 {
            return;
        }
        let mut rest = data;
        let mut at = offset;
        while !rest.is_empty() {
            let lane = (at % STRIDE) as usize;
            let (chunk, later) = rest.split_at(rest.len().min(STRIDE as usize - lane));
            if lane < 4
                && let Ok(index) = usize::try_from(at / STRIDE)
                && index < REGISTERS.len()
            {
                let (mut value, mut mask) = ([0; 4], [0; 4]);
                let lanes = value.iter_mut().zip(&mut mask).skip(lane);
                for ((value, mask), byte) in lanes.zip(chunk) {
                    (*value, *mask) = (*byte, 0xff);
                }
                let write = Write {
                    value: u32::from_le_bytes(value),
                    mask: u32::from_le_bytes(mask),
                };
                self.write_register(index, write, now, effects);
            }
            at = at.wrapping_add(chunk.len() as u64);
            rest = later;
        }
    }

    fn get(&self, index: usize) -> u32 {
        self.csr.get(index).copied().unwrap_or(0)
    }

    /// Keeps what is written of the bits that keep it. Gives the register's new value.
    fn keep(&mut self, index: usize, write: Write) -> u32 {
        match (self.csr.get_mut(index), REGISTERS.get(index)) {
            (Some(csr), Some(register)) => {
                *csr = write.over(*csr) & register.writable;
                *csr
            }
            _ => 0,
        }
    }

    fn read_register(&mut self, index: usize, now: u64, effects: &mut Effects) -> u32 {
        let Some(register) = REGISTERS.get(index) else {
            return u32::MAX;
        };
        let plain = register.reset & !register.writable | self.get(index);
        match index {
            0 => plain | u32::from(self.resetting && !self.settled()),
            5 => {
                let status = self.page.status();
                plain | status | status::summary(status, self.get(7)) | self.page.states()
            }
            6 => plain | self.page.filter_bits(),
            8 => {
                let missed = self.page.take_missed();
                plain | missed & 0xffff | u32::from(missed > 0xffff) << 16
            }
            9 => self.read_serial(plain),
            11 => plain & !0x1_ffff | self.timer.read(now),
            12 => {
                let inputs = !self.pins.outputs;
                plain & !0xff | u32::from(self.pins.outputs & self.pins.data | inputs)
            }
            _ => {
                let _ = effects;
                plain
            }
        }
    }

    fn read_serial(&self, plain: u32) -> u32 {
        let mut value = plain;
        if self.mii.input() {
            value |= serial::MDI;
        }
        if plain & serial::SR != 0 && !self.srom.output() {
            value &= !serial::DO;
        }
        // The boot ROM is not there.
        if plain & serial::BR != 0 {
            value | 0xff
        } else {
            value
        }
    }

    fn write_register(&mut self, index: usize, write: Write, now: u64, effects: &mut Effects) {
        match index {
            0 => self.write_bus_mode(write, effects),
            1 => effects.kick = true,
            2 => {
                self.rx_demands = self.rx_demands.wrapping_add(1);
                self.tell(effects);
            }
            3 => {
                self.keep(index, write);
                self.rx_base_count = self.rx_base_count.wrapping_add(1);
                self.tell(effects);
            }
            4 => {
                self.keep(index, write);
                self.tx_base_count = self.tx_base_count.wrapping_add(1);
                self.tell(effects);
            }
            5 => {
                self.page.clear_status(write.value & write.mask);
                effects.line = Some(self.line());
            }
            6 | 15 => {
                self.keep(index, write);
                self.tell(effects);
            }
            7 => {
                let enabled = self.keep(index, write);
                self.page.set_csr7(enabled);
                effects.line = Some(self.line());
            }
            9 => {
                let csr9 = self.keep(index, write);
                self.srom.drive(csr9);
                let looped = self.mii.phy.loops_back();
                self.mii.drive(csr9);
                if self.mii.phy.loops_back() != looped {
                    self.tell(effects);
                }
            }
            11 => {
                let value = write.over(self.timer.read(now));
                effects.timer = Some(self.timer.start(value, self.get(6), now));
            }
            12 => {
                let value = write.value & write.mask;
                match value & GENERAL_PURPOSE_CONTROL {
                    0 => self.pins.data = value as u8,
                    _ => self.pins.outputs = value as u8,
                }
            }
            _ => {
                self.keep(index, write);
            }
        }
    }

    fn write_bus_mode(&mut self, write: Write, effects: &mut Effects) {
        if write.value & write.mask & bus_mode::SWR != 0 {
            // CSR0 SWR excepts the port select: drivers set it, and reset then.
            self.clear(self.get(6) & mode::PS, effects);
        } else if write.mask & bus_mode::SWR != 0 {
            self.resetting = false;
        }
        if write.value & write.mask & bus_mode::BLE != 0 {
            effects.refused = Some("big-endian data buffers (CSR0, bit 7)");
        }
        self.keep(0, write);
        self.tell(effects);
    }
}

/// A write to a register: only the bits of `mask` are written.
#[derive(Clone, Copy, Debug)]
struct Write {
    value: u32,
    mask: u32,
}

impl Write {
    fn over(self, before: u32) -> u32 {
        before & !self.mask | self.value & self.mask
    }
}
