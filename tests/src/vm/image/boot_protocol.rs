//! What the Linux boot protocol says of an image (Documentation/arch/x86/boot.rst).

use anyhow::{Context, Result};

pub(super) const SECTOR: usize = 512;
/// Where the number of sectors of the setup part is, not counting its boot sector.
pub(super) const SETUP_SECTORS: usize = 0x1f1;
/// Where the length of what follows the setup part is, in units.
pub(super) const PAYLOAD_LENGTH: usize = 0x1f4;
/// Such a unit in bytes.
pub(super) const UNIT: usize = 16;

/// Length of the setup part with its boot sector.
pub(super) fn setup_len(image: &[u8]) -> Result<usize> {
    let sectors = *image.get(SETUP_SECTORS).context("no boot sector")?;
    Ok((usize::from(sectors) + 1) * SECTOR)
}

/// Writes `bytes` at `at`.
pub(super) fn put(to: &mut [u8], at: usize, bytes: &[u8]) -> Result<()> {
    let place = to.get_mut(at..at + bytes.len());
    place.context("an image cut short")?.copy_from_slice(bytes);
    Ok(())
}
