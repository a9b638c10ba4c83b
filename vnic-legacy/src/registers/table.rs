//! The register file: sixteen registers of 32 bits, eight bytes apart (manual, chapter 3.2).

/// A register.
#[derive(Clone, Copy, Debug)]
pub struct Register {
    /// Its name in the manual.
    pub name: &'static str,
    /// What it reads as after a reset.
    pub reset: u32,
    /// Bits that keep what is written to them. Others have an effect, or none.
    pub writable: u32,
}

const fn register(name: &'static str, reset: u32, writable: u32) -> Register {
    Register {
        name,
        reset,
        writable,
    }
}

/// From one register to the next, in bytes.
pub const STRIDE: u64 = 8;

/// CSR0 to CSR15.
pub const REGISTERS: [Register; 16] = [
    register("CSR0, bus mode", 0xfe00_0000, 0x01be_ff7e),
    register("CSR1, transmit poll demand", 0xffff_ffff, 0),
    register("CSR2, receive poll demand", 0xffff_ffff, 0),
    register("CSR3, receive list base address", 0, 0xffff_fffc),
    register("CSR4, transmit list base address", 0, 0xffff_fffc),
    register("CSR5, status", 0xfc00_0000, 0),
    register("CSR6, operation mode", 0x3200_0040, 0xc1ee_feea),
    register("CSR7, interrupt enable", 0xf3fe_0000, 0x0001_efef),
    register("CSR8, missed frames", 0xe000_0000, 0),
    register("CSR9, serial ROM and MII", 0xfff4_83ff, 0x0007_7c07),
    register("CSR10, boot ROM address", 0, 0x0003_ffff),
    register("CSR11, general-purpose timer", 0xfffe_0000, 0),
    register("CSR12, general-purpose port", 0xffff_feff, 0),
    register("CSR13, reserved", 0xffff_ffff, 0),
    register("CSR14, reserved", 0xffff_ffff, 0),
    register("CSR15, watchdog timer", 0xffff_fec8, 0x37),
];
