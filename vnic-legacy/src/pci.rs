//! What the adapter shows in PCI configuration space (manual, chapter 3.1).

/// Vendor: Digital Equipment Corporation.
pub const VENDOR: u16 = 0x1011;
/// Device: 21140 and 21140A.
pub const DEVICE: u16 = 0x0009;
/// Revision: 21140A, step 2.2.
pub const REVISION: u8 = 0x22;
/// Class: Ethernet controller.
pub const CLASS: u32 = 0x02_0000;
/// Subsystem vendor, also in the serial ROM.
pub const SUBSYSTEM_VENDOR: u16 = VENDOR;
/// Subsystem, also in the serial ROM. Its high byte differs from the number of controllers in the ROM (1), so that no
/// driver takes the ROM for one of the older format, whose bytes 0 to 7 and 16 to 23 are the same.
pub const SUBSYSTEM: u16 = 0x2114;
/// MIN_GNT, in units of 250 ns.
pub const MIN_GNT: u8 = 0x14;
/// MAX_LAT, in units of 250 ns.
pub const MAX_LAT: u8 = 0x28;
/// Bytes of the registers, in I/O space (BAR 0) and in memory space (BAR 1).
pub const BAR_LEN: u64 = 128;
/// BAR of the registers in I/O space.
pub const BAR_IO: usize = 0;
/// BAR of the registers in memory space.
pub const BAR_MEMORY: usize = 1;
/// Offset of CSR1 in either: a write of any value, 4 bytes long, is a transmit poll demand and may go straight to the
/// port's kick event.
pub const POLL_DEMAND: u64 = 8;

/// Offset of the driver area register (CFDD) in configuration space: 32 bits, read and written by
/// [`crate::registers::Registers::power`] and [`crate::registers::Registers::set_power`].
pub const CFDD: u16 = 0x40;
/// CFDD bit 31, sleep: the adapter leaves the bus alone, and its registers do not answer.
pub const CFDD_SLEEP: u32 = 1 << 31;
/// CFDD bit 30, snooze: the adapter saves power while it has nothing to do, which nobody can see.
pub const CFDD_SNOOZE: u32 = 1 << 30;
/// Bits of CFDD that can be written: sleep, snooze, and a byte that drivers use as they like.
pub const CFDD_WRITABLE: u32 = CFDD_SLEEP | CFDD_SNOOZE | 0xff00;
