//! MII management, clocked bit by bit through CSR9, and the PHY at its other end (IEEE 802.3, clause 22).

use serde::{Deserialize, Serialize};

use crate::csr::serial;

/// Address of the PHY.
pub const PHY: u8 = 1;

/// PHY registers.
pub mod phy {
    /// Control.
    pub const BMCR: u8 = 0;
    /// Status.
    pub const BMSR: u8 = 1;
    /// Identifier, high half.
    pub const ID1: u8 = 2;
    /// Identifier, low half.
    pub const ID2: u8 = 3;
    /// Own abilities.
    pub const ANAR: u8 = 4;
    /// The partner's abilities.
    pub const ANLPAR: u8 = 5;
    /// Whether the partner negotiates.
    pub const ANER: u8 = 6;

    /// Control: reset, which is over at once.
    pub const RESET: u16 = 1 << 15;
    /// Control: loopback.
    pub const LOOPBACK: u16 = 1 << 14;
    /// Control: negotiation is on.
    pub const NEGOTIATE: u16 = 1 << 12;
    /// Control: off.
    pub const POWER_DOWN: u16 = 1 << 11;
    /// Control: cut off from the MII.
    pub const ISOLATE: u16 = 1 << 10;
    /// Control: negotiate anew, which is over at once.
    pub const RESTART: u16 = 1 << 9;
    /// Status: there is a link. Once lost, it reads as lost one time at least.
    pub const LINK: u16 = 1 << 2;
    /// Status: negotiation is complete.
    pub const NEGOTIATED: u16 = 1 << 5;
}

/// 100 Mb/s, full duplex, negotiation.
const BMCR_RESET: u16 = 0x3100;
/// 100BASE-TX and 10BASE-T in full and half duplex, negotiation, extended registers.
const BMSR_ABILITIES: u16 = 0x7809;
/// National DP83840A.
const ID: [u16; 2] = [0x2000, 0x5c01];
const ANAR_RESET: u16 = 0x01e1;
/// As of a switch's port: all of 10 and 100 Mb/s, flow control, acknowledged.
const PARTNER: u16 = 0x45e1;

/// The PHY.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Phy {
    bmcr: u16,
    anar: u16,
    /// A cable is plugged in.
    cable: bool,
    /// The link was lost, and nobody has been told.
    lost: bool,
}

impl Phy {
    fn new() -> Phy {
        Phy {
            bmcr: BMCR_RESET,
            anar: ANAR_RESET,
            cable: false,
            lost: false,
        }
    }

    fn link(&self) -> bool {
        self.cable && self.bmcr & (phy::POWER_DOWN | phy::ISOLATE) == 0
    }

    pub(super) fn loops_back(&self) -> bool {
        self.bmcr & phy::LOOPBACK != 0
    }

    pub(super) fn set_cable(&mut self, plugged: bool) {
        self.lost |= self.link() && !plugged;
        self.cable = plugged;
    }

    fn read(&mut self, register: u8) -> u16 {
        let negotiated = self.link() && self.bmcr & phy::NEGOTIATE != 0;
        match register {
            phy::BMCR => self.bmcr,
            phy::BMSR => {
                let mut value = BMSR_ABILITIES;
                if self.link() && !std::mem::take(&mut self.lost) {
                    value |= phy::LINK;
                }
                self.lost = false;
                if negotiated {
                    value |= phy::NEGOTIATED;
                }
                value
            }
            phy::ID1 => ID[0],
            phy::ID2 => ID[1],
            phy::ANAR => self.anar,
            phy::ANLPAR if negotiated => PARTNER,
            phy::ANER if negotiated => 1,
            _ => 0,
        }
    }

    fn write(&mut self, register: u8, value: u16) {
        match register {
            phy::BMCR if value & phy::RESET != 0 => {
                *self = Phy {
                    cable: self.cable,
                    ..Phy::new()
                }
            }
            phy::BMCR => {
                let before = self.link();
                self.bmcr = value & 0x7f80 & !phy::RESTART;
                self.lost |= before && !self.link();
            }
            // The selector field is fixed.
            phy::ANAR => self.anar = value & 0x2fe0 | 1,
            _ => {}
        }
    }
}

/// Where in a management frame the bus is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Phase {
    /// Ones, or nothing.
    #[default]
    Idle,
    /// The zero of the start was seen.
    Start,
    /// Operation, PHY address and register: those of 12 bits taken, and how many.
    Header { bits: u16, count: u8 },
    /// The PHY gives `value` out: turnaround, data; clocks so far.
    Reading { value: u16, clocks: u8 },
    /// Turnaround and data for a register: those of 18 bits taken, and how many. `None` is another PHY's.
    Writing {
        register: Option<u8>,
        bits: u32,
        count: u8,
    },
}

/// The management bus and its PHY.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mii {
    pub(super) phy: Phy,
    phase: Phase,
    clock: bool,
}

/// Clocks from the end of a header to the last bit of data.
const READ_CLOCKS: u8 = 18;

impl Mii {
    pub(super) fn new() -> Mii {
        Mii {
            phy: Phy::new(),
            phase: Phase::Idle,
            clock: false,
        }
    }

    /// A hardware reset: the cable stays where it is.
    pub(super) fn reset(&mut self) {
        let cable = self.phy.cable;
        *self = Mii::new();
        self.phy.cable = cable;
    }

    /// Whether a saved bus is one that can be.
    pub(super) fn is_sound(&self) -> bool {
        match self.phase {
            Phase::Idle | Phase::Start => true,
            Phase::Header { count, .. } => count < 12,
            Phase::Reading { clocks, .. } => clocks < READ_CLOCKS,
            Phase::Writing {
                register, count, ..
            } => register.is_none_or(|register| register < 32) && count < 18,
        }
    }

    /// The data line as the PHY drives it; high where nobody does.
    pub(super) fn input(&self) -> bool {
        match self.phase {
            // Released for one clock, then a zero, then the data.
            Phase::Reading { clocks: 0, .. } => true,
            Phase::Reading { clocks: 1, .. } => false,
            Phase::Reading { value, clocks } => {
                value >> (READ_CLOCKS - 1).saturating_sub(clocks) & 1 != 0
            }
            _ => true,
        }
    }

    /// The lines as CSR9 sets them.
    pub(super) fn drive(&mut self, csr9: u32) {
        let clock = csr9 & serial::MDC != 0;
        if clock && !self.clock {
            // A line that the adapter does not drive is pulled up.
            self.rise(csr9 & (serial::MDO | serial::MII_READ) != 0);
        }
        self.clock = clock;
    }

    fn rise(&mut self, data: bool) {
        self.phase = match self.phase {
            Phase::Idle if data => Phase::Idle,
            Phase::Idle => Phase::Start,
            Phase::Start if data => Phase::Header { bits: 0, count: 0 },
            Phase::Start => Phase::Start,
            Phase::Header { bits, count } => {
                let bits = bits << 1 | u16::from(data);
                if count == 11 {
                    self.addressed(bits)
                } else {
                    Phase::Header {
                        bits,
                        count: count + 1,
                    }
                }
            }
            Phase::Reading { value, clocks } if clocks + 1 < READ_CLOCKS => Phase::Reading {
                value,
                clocks: clocks + 1,
            },
            Phase::Reading { .. } => Phase::Idle,
            Phase::Writing {
                register,
                bits,
                count,
            } => {
                let bits = bits << 1 | u32::from(data);
                if count < 17 {
                    Phase::Writing {
                        register,
                        bits,
                        count: count + 1,
                    }
                } else {
                    if let Some(register) = register {
                        self.phy.write(register, bits as u16);
                    }
                    Phase::Idle
                }
            }
        };
    }

    /// A header is complete.
    fn addressed(&mut self, bits: u16) -> Phase {
        let (to, register) = ((bits >> 5 & 0x1f) as u8, (bits & 0x1f) as u8);
        let ours = to == PHY;
        match bits >> 10 {
            // Nobody answers for another PHY: the line stays high, turnaround included.
            0b10 if !ours => Phase::Idle,
            0b10 => Phase::Reading {
                value: self.phy.read(register),
                clocks: 0,
            },
            0b01 => Phase::Writing {
                register: ours.then_some(register),
                bits: 0,
                count: 0,
            },
            _ => Phase::Idle,
        }
    }
}
