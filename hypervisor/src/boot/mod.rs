//! What a guest finds when it starts: tables that describe the machine, and the firmware's configuration.
//!
//! * [`acpi`], [`smbios`] and [`mptable`] make the tables. They say the same whether SeaBIOS places them or we do.
//! * [`tables`] places them in the memory of a guest that is started without firmware.
//! * [`fw_cfg`] is the device by which firmware reads its configuration, and [`firmware`] what it reads there.

pub mod acpi;
pub mod firmware;
pub mod fw_cfg;
pub mod mptable;
pub mod smbios;
pub mod tables;

/// Sets the byte at `at` so that all add up to 0.
fn complement(bytes: &mut [u8], at: usize) {
    let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(byte) = bytes.get_mut(at) {
        *byte = byte.wrapping_sub(sum);
    }
}
