//! A bzImage that iPXE cannot damage where KVM emulates ring 0.
//!
//! There an interrupt of 32-bit code pushes its frame at the address in ESP as if the stack segment began at zero. That of
//! iPXE, which moves itself to the end of memory, does not: its interrupts overwrite 12 bytes a little above 1 MiB, where
//! it has put the kernel by then. So the kernel is given room there, and moves to its place once iPXE is gone.

use anyhow::{Context, Result, ensure};

use super::{
    assemble,
    boot_protocol::{PAYLOAD_LENGTH, UNIT, put, setup_len},
};

const MOVE: &str = include_str!("../../../guests/moved-kernel.s");
/// Beyond where iPXE's stack is, which is 316 KiB from its start.
const ROOM: usize = 512 << 10;

/// `image` with room before its 32-bit part.
pub(super) fn moved(image: &[u8]) -> Result<Vec<u8>> {
    let end = setup_len(image)?;
    let (setup, kernel) = image.split_at_checked(end).context("only boot sectors")?;
    ensure!(kernel.len().is_multiple_of(UNIT), "a bzImage of odd length");
    let symbols = [("ROOM", ROOM), ("KERNEL_BYTES", kernel.len())];
    let mut payload = assemble(MOVE, &symbols)?;
    put(&mut payload, ROOM, kernel)?;
    payload.resize(payload.len().next_multiple_of(UNIT), 0);
    let mut moved = setup.to_vec();
    let length = u32::try_from(payload.len() / UNIT)?;
    put(&mut moved, PAYLOAD_LENGTH, &length.to_le_bytes())?;
    moved.extend(payload);
    Ok(moved)
}
