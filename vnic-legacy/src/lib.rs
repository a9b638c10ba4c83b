//! The legacy adapter: a DEC 21140A, the Ethernet controller that old operating systems and PXE loaders drive.
//!
//! Source for all of it: Digital Semiconductor 21140A PCI Fast Ethernet LAN Controller, Hardware Reference Manual
//! (EC-QN7NG); for the serial ROM, Digital Semiconductor 21X4 Serial ROM Format, version 4.05; for the PHY, IEEE 802.3
//! clause 22 and the DP83840A data sheet.
//!
//! It comes in two halves, because two processes do its work:
//!
//! * [`registers`] is what the guest reads and writes: control and status registers, serial ROM, PHY, timer. It lives in
//!   the process of the virtual machine, and is a function of accesses: what must happen outside comes back as
//!   [`registers::Effects`].
//! * [`port`] is the transmit and the receive process: it walks the descriptor lists in guest memory as a port of the
//!   switch, and lives in the switch's workers.
//! * [`page`] is the memory page that both share. Each treats what the other wrote as hostile.
//!
//! With feature `test-support` there is `driver`: a driver of the adapter, for tests.
//!
//! What the adapter leaves out, because nothing on this platform uses it: data buffers of big-endian hosts (CSR0 bit 7
//! stays clear and the attempt is reported), the parallel boot ROM behind CSR9 and CSR10 (reads as an empty one; boot code
//! is in the PCI ROM), collisions and all else that only a real wire can do. There is no limit of 100 Mb/s.

#![forbid(unsafe_code)]

pub mod csr;
pub mod descriptor;
pub mod page;
pub mod pci;
pub mod port;
pub mod registers;
