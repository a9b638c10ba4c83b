//! The chipset: what an operating system finds in a PC with Intel's 82440FX host bridge and PIIX south bridge.
//!
//! The PICs, the I/O APIC, the local APICs and the PIT are KVM's. The rest is here, each device a function of register
//! accesses: [`i440fx`] with [`piix3`] and [`piix4`] on its PCI bus, [`rtc`], [`i8042`], [`serial`] and [`ports`].
//! There is no DMA controller, no IDE, no USB, no SMBus and no graphics.
//!
//! # Interrupts
//! | line | who |
//! |---|---|
//! | 0 | PIT (KVM) |
//! | 1 | keyboard controller |
//! | 3, 4 | COM2, COM1 |
//! | 8 | real-time clock |
//! | 9 | ACPI events |
//! | 10, 11 | PCI functions |
//!
//! A PCI function's pin goes to one of four requests of the south bridge (slot and pin added up, so that INTA# of
//! slots 1, 2, 3, 4 are requests A, B, C, D), and the south bridge's route registers send each to one of the lines 3 to 15.
//! SeaBIOS sends A and B to line 10, C and D to line 11, makes both lines level-triggered in the PICs (ELCR), and
//! writes the line into the function's interrupt line register; started without firmware, a guest finds
//! the same. KVM gives lines 0 to 15 to the PICs and to the I/O APIC's inputs of the same number (the PIT's to input 2), so one
//! number serves every guest:
//!
//! * with the PICs (`noapic`, DOS, iPXE) the interrupt line register says it;
//! * with the I/O APIC and the MP table (`acpi=off`), the table that SeaBIOS makes from that register says it;
//! * with ACPI, `_PRT` says it, as global interrupt 10 or 11 without a link device, and the MADT says that
//!   9, 10 and 11 are level-triggered.
//!
//! So the ACPI tables need no code that reads or writes route registers. A guest that changes them all the same is
//! obeyed: lines and interrupt eventfds follow.

mod calendar;
pub mod i440fx;
pub mod i8042;
pub mod piix3;
pub mod piix4;
pub mod ports;
pub mod rtc;
pub mod serial;

/// The interrupt lines that are level-triggered, one bit for each: PCI's and ACPI's. Firmware says so to the PICs; who
/// starts a guest without firmware does the same.
pub const LEVEL_LINES: u16 = 1 << piix4::SCI | 1 << 10 | 1 << 11;
