//! The serial ROM: a 93C46 of 64 words of 16 bits, clocked bit by bit through CSR9.
//!
//! Instructions are shifted in on rising clock edges while chip select is high: a start bit, two bits of operation, six of
//! address. The operations are read (10), write (01), erase (11), and by the top address bits of 00: write enable (11),
//! write disable (00), erase all (10), write all (01) (data sheet of the NM93C46).

use serde::{Deserialize, Serialize};
use vswitch::mac::Mac;

use crate::csr::serial;
use crate::pci;

/// Words of the ROM.
pub const WORDS: usize = 64;
/// Where the information of the one controller begins, in bytes.
const LEAF: u8 = 0x1e;

/// The contents for an adapter with the address `mac`, in the 21X4 serial ROM format, version 4: one controller whose
/// only medium is an MII PHY at address 1, which needs neither reset nor general-purpose sequences.
pub fn image(mac: Mac) -> [u16; WORDS] {
    let mut bytes = [0u8; 2 * WORDS];
    let mut put = |at: usize, from: &[u8]| {
        if let Some(to) = bytes.get_mut(at..at + from.len()) {
            to.copy_from_slice(from);
        }
    };
    put(0, &pci::SUBSYSTEM_VENDOR.to_le_bytes());
    put(2, &pci::SUBSYSTEM.to_le_bytes());
    // Format version, number of controllers.
    put(18, &[4, 1]);
    put(20, &mac.0);
    // Device number of the controller, and where its leaf is.
    put(26, &[0, LEAF, 0]);
    // Autosense; general-purpose pins all inputs; one medium.
    put(LEAF.into(), &[0x00, 0x08, 0x00, 1]);
    // Extended block of 13 bytes, type 1 (MII): PHY 1, no sequences, all media of 10 and 100 Mb/s, advertised, of these in
    // full duplex, of these at 10 Mb/s.
    let mii = [
        0x8d, 1, 1, 0, 0, 0x00, 0x78, 0xe0, 0x01, 0x00, 0x50, 0x00, 0x18, 0,
    ];
    put(usize::from(LEAF) + 4, &mii);
    let crc = crc32fast::hash(bytes.get(..126).unwrap_or(&[])) as u16;
    if let Some(to) = bytes.get_mut(126..) {
        to.copy_from_slice(&crc.to_le_bytes());
    }
    let mut words = [0; WORDS];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(2)) {
        if let [low, high] = *bytes {
            *word = u16::from_le_bytes([low, high]);
        }
    }
    words
}

/// What the chip is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Phase {
    /// Waiting for a start bit.
    #[default]
    Idle,
    /// Taking the eight bits of operation and address: those taken, and how many.
    Instruction { bits: u8, count: u8 },
    /// Giving out the word at `address`: `left` bits of it are still to come.
    Reading { address: u8, left: u8 },
    /// Taking data: those bits taken, and how many. Written to `address`, or to all words, when chip select falls.
    Writing {
        address: u8,
        all: bool,
        bits: u16,
        count: u8,
    },
    /// The instruction is done; nothing more until chip select falls.
    Done,
}

/// The chip.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Srom {
    words: Vec<u16>,
    phase: Phase,
    write_enabled: bool,
    /// Level of the clock, to see its edges.
    clock: bool,
    /// Level of data out.
    output: bool,
}

impl Srom {
    pub(super) fn new(mac: Mac) -> Srom {
        Srom {
            words: image(mac).into(),
            phase: Phase::Idle,
            write_enabled: false,
            clock: false,
            output: true,
        }
    }

    /// Whether a saved chip is one that can be.
    pub(super) fn is_sound(&self) -> bool {
        let phase = match self.phase {
            Phase::Idle | Phase::Done => true,
            Phase::Instruction { count, .. } => count < 8,
            Phase::Reading { address, left } => usize::from(address) < WORDS && left <= 16,
            Phase::Writing { address, count, .. } => usize::from(address) < WORDS && count <= 16,
        };
        phase && self.words.len() == WORDS
    }

    /// Level of data out; high while the chip drives nothing.
    pub(super) fn output(&self) -> bool {
        self.output
    }

    /// The pins as CSR9 sets them: all low unless the serial ROM is selected.
    pub(super) fn drive(&mut self, csr9: u32) {
        let pins = if csr9 & serial::SR != 0 { csr9 } else { 0 };
        let clock = pins & serial::CLK != 0;
        if pins & serial::CS == 0 {
            self.deselect();
        } else if clock && !self.clock {
            self.rise(pins & serial::DI != 0);
        }
        self.clock = clock;
    }

    /// Chip select is low: what was taken completely is written now.
    fn deselect(&mut self) {
        if let Phase::Writing {
            address,
            all,
            bits,
            count: 16,
        } = self.phase
            && self.write_enabled
        {
            for (index, word) in self.words.iter_mut().enumerate() {
                if all || index == usize::from(address) {
                    *word = bits;
                }
            }
        }
        self.phase = Phase::Idle;
        self.output = true;
    }

    /// A rising clock edge, with `data` on data in.
    fn rise(&mut self, data: bool) {
        self.phase = match self.phase {
            Phase::Idle if data => Phase::Instruction { bits: 0, count: 0 },
            Phase::Idle => Phase::Idle,
            Phase::Instruction { bits, count } => {
                let bits = bits << 1 | u8::from(data);
                if count == 7 {
                    self.execute(bits)
                } else {
                    Phase::Instruction {
                        bits,
                        count: count + 1,
                    }
                }
            }
            Phase::Reading { address, left } => self.shift_out(address, left),
            Phase::Writing {
                address,
                all,
                bits,
                count,
            } if count < 16 => Phase::Writing {
                address,
                all,
                bits: bits << 1 | u16::from(data),
                count: count + 1,
            },
            phase @ (Phase::Writing { .. } | Phase::Done) => phase,
        };
    }

    fn execute(&mut self, bits: u8) -> Phase {
        let address = bits & 0x3f;
        let writing = |all| Phase::Writing {
            address,
            all,
            bits: 0,
            count: 0,
        };
        match (bits >> 6, address >> 4) {
            (0b10, _) => {
                // A dummy zero comes before the data.
                self.output = false;
                Phase::Reading { address, left: 16 }
            }
            (0b01, _) => writing(false),
            (0b00, 0b01) => writing(true),
            (0b11, _) => Self::erase(address, false),
            (0b00, 0b10) => Self::erase(address, true),
            (_, enable) => {
                self.write_enabled = enable == 0b11;
                Phase::Done
            }
        }
    }

    /// Erasing is writing ones, without data to be taken.
    fn erase(address: u8, all: bool) -> Phase {
        Phase::Writing {
            address,
            all,
            bits: u16::MAX,
            count: 16,
        }
    }

    /// Puts the next bit on data out. After a word comes the next one.
    fn shift_out(&mut self, address: u8, left: u8) -> Phase {
        let (address, left) = match left {
            0 => ((address + 1) % WORDS as u8, 16),
            left => (address, left),
        };
        let word = self.words.get(usize::from(address)).copied().unwrap_or(0);
        self.output = word >> (left - 1) & 1 != 0;
        Phase::Reading {
            address,
            left: left - 1,
        }
    }
}
