//! The boot ROM: Debian's iPXE with a little code before it that firmware takes for an option ROM.

use anyhow::{Context, Result, ensure};

use super::{assemble, boot_protocol::SECTOR, ipxe::Image};

const LOADER: &str = include_str!("../../../guests/option-rom.s");
/// Where iPXE starts in the ROM.
const IMAGE: usize = 4096;
/// Where an option ROM has its length in sectors.
const LENGTH: usize = 2;

/// The PCI vendor and device of a NIC. Firmware runs a ROM only if they agree with it.
#[derive(Clone, Copy, Debug)]
pub struct NicId {
    vendor: u16,
    device: u16,
}

impl NicId {
    /// The legacy adapter, a DEC 21140.
    pub const LEGACY: Self = Self {
        vendor: 0x1011,
        device: 0x0009,
    };
    /// QEMU's device `tulip`, a DEC 21143.
    pub const QEMU: Self = Self {
        vendor: 0x1011,
        device: 0x0019,
    };
}

/// A ROM for NICs of `id`.
pub(super) fn build(ipxe: &Image, id: NicId) -> Result<Vec<u8>> {
    let mut rom = assemble(
        LOADER,
        &[
            ("VENDOR", id.vendor.into()),
            ("DEVICE", id.device.into()),
            ("IMAGE", IMAGE),
            ("SETUP_BYTES", ipxe.setup.len()),
            ("KERNEL_BYTES", ipxe.payload.len()),
        ],
    )?;
    let length = usize::from(*rom.get(LENGTH).context("an empty ROM")?) * SECTOR;
    ensure!(
        rom.len() == length && length < IMAGE,
        "a ROM of {} bytes",
        rom.len()
    );
    // The bytes that firmware copies add up to zero.
    let sum = rom.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(last) = rom.last_mut() {
        *last = sum.wrapping_neg();
    }
    rom.resize(IMAGE, 0);
    rom.extend(&ipxe.setup);
    rom.extend(&ipxe.payload);
    // A BAR's size is a power of two.
    rom.resize(rom.len().next_power_of_two(), 0);
    Ok(rom)
}
