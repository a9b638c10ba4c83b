//! iPXE as it would be if it had been built without compression: unpacking itself takes it half a minute where KVM emulates
//! ring 0, copying itself half a second.
//!
//! ```text
//! setup part (real mode)     boot sector, installer, block .text16.early, padding to a sector
//! payload (from 1 MiB on)    blocks .text16.late, .data16, .textdata
//! a block, multiple of 16    length of the rest (32 bits), LZMA data, CRC-32 of these without the final inversion
//! ```
//! The installer goes from block to block by where the routine for one of them ended, and that routine's address is an
//! operand of one instruction. Its plain copying routine, which a build without compression uses, is always there.

use std::{fs, ops::Range, path::Path};

use anyhow::{Context, Result};

use super::boot_protocol::{PAYLOAD_LENGTH, SECTOR, SETUP_SECTORS, UNIT, put, setup_len};
use crate::{cmd, deb};

const PACKAGE: &str = "ipxe";
/// Where the image lies in the package.
const IMAGE: &str = "boot/ipxe.lkrn";
/// Blocks start at multiples of it.
const ALIGN: usize = UNIT;
/// What iPXE's build sets beyond the defaults; blocks are shorter than this dictionary.
const LZMA: &str = "--lzma1=lc=2,lp=0,pb=0,dict=8MiB";
/// `pushl %ecx; pushw %bx; movw $ROUTINE, %bx`, at the start of installing a block.
const INSTALL: [u8; 4] = [0x66, 0x51, 0x53, 0xbb];
/// The plain routine: `pushl %ecx; rep addr32 movsb; popl %ecx; ret`.
const COPY: [u8; 8] = [0x66, 0x51, 0x67, 0xf3, 0xa4, 0x66, 0x59, 0xc3];

/// An image by the Linux boot protocol.
pub(super) struct Image {
    /// Its boot sector and what runs in real mode: whole sectors.
    pub(super) setup: Vec<u8>,
    /// What lies from 1 MiB on.
    pub(super) payload: Vec<u8>,
}

/// iPXE with all drivers, unpacked.
pub(super) fn unpacked(cache: &Path) -> Result<Image> {
    let folder = cache.join(format!("{PACKAGE}-{}", deb::version(PACKAGE)?));
    deb::unpack(PACKAGE, &folder)?;
    let path = folder.join(IMAGE);
    let image = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    unpack(&image).with_context(|| format!("unpacking {}", path.display()))
}

fn unpack(image: &[u8]) -> Result<Image> {
    let end = setup_len(image)?;
    let setup = image.get(..end).context("only boot sectors")?;
    let first = (0..end)
        .step_by(ALIGN)
        .find_map(|at| block(setup, at))
        .context("no block before the payload")?;
    let installer = first.start - size_of::<u32>();
    let mut setup = setup.get(..installer).context("no installer")?.to_vec();
    patch(&mut setup)?;
    append(&mut setup, &plain(image, first)?);
    setup.resize(setup.len().next_multiple_of(SECTOR), 0);
    let mut payload = Vec::new();
    let mut at = end;
    while at < image.len() {
        let packed = block(image, at).with_context(|| format!("no block at {at:#x}"))?;
        at = (packed.end + size_of::<u32>()).next_multiple_of(ALIGN);
        append(&mut payload, &plain(image, packed)?);
    }
    let sectors = u8::try_from(setup.len() / SECTOR - 1).context("too many boot sectors")?;
    put(&mut setup, SETUP_SECTORS, &[sectors])?;
    let length = u32::try_from(payload.len() / UNIT)?;
    put(&mut setup, PAYLOAD_LENGTH, &length.to_le_bytes())?;
    Ok(Image { setup, payload })
}

/// The compressed data of the block at `at`, if there is one.
fn block(image: &[u8], at: usize) -> Option<Range<usize>> {
    let word = |at: usize| {
        let bytes = image.get(at..at.checked_add(4)?)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let start = at + size_of::<u32>();
    let end = start
        .checked_add(word(at)? as usize)?
        .checked_sub(size_of::<u32>())?;
    let data = image.get(start..end).filter(|data| !data.is_empty())?;
    (word(end)? == !crc32fast::hash(data)).then_some(start..end)
}

fn plain(image: &[u8], packed: Range<usize>) -> Result<Vec<u8>> {
    let work = tempfile::tempdir()?;
    let path = work.path().join("block");
    let name = path.with_extension("lzma").display().to_string();
    fs::write(
        &name,
        image.get(packed).context("a block outside the image")?,
    )?;
    cmd::run(&[
        "xz",
        "--decompress",
        "--format=raw",
        "--suffix=.lzma",
        LZMA,
        &name,
    ])?;
    let mut block = fs::read(&path)?;
    relative(&mut block);
    Ok(block)
}

/// Makes the targets of calls and jumps relative again. Before compression iPXE's build makes those absolute that lie in
/// the block, and moves what would then be ambiguous to where no absolute target lies.
fn relative(block: &mut [u8]) {
    const CALL_AND_JUMP: [u8; 2] = [0xe8, 0xe9];
    let limit = block.len().saturating_sub(5);
    let mut at = 0;
    while let Some([opcode, target @ ..]) =
        block.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<5>)
    {
        if !CALL_AND_JUMP.contains(opcode) {
            at += 1;
            continue;
        }
        let offset = at as i32;
        let limit = limit as i32;
        let stored = i32::from_le_bytes(*target);
        if (0..limit).contains(&stored) {
            *target = (stored - offset).to_le_bytes();
        } else if (-offset..0).contains(&stored) {
            *target = (stored + limit).to_le_bytes();
        }
        at += 5;
    }
}

/// Lets the installer copy blocks.
fn patch(installer: &mut [u8]) -> Result<()> {
    let only = |code: &[u8]| {
        let mut found = (0..installer.len()).filter(|&at| {
            installer
                .get(at..)
                .is_some_and(|rest| rest.starts_with(code))
        });
        found.next().filter(|_| found.next().is_none())
    };
    let install = only(&INSTALL).context("an installer of another form")?;
    let copy = only(&COPY).context("no copying routine in the installer")?;
    put(
        installer,
        install + INSTALL.len(),
        &u16::try_from(copy)?.to_le_bytes(),
    )
}

fn append(to: &mut Vec<u8>, block: &[u8]) {
    to.extend(block);
    to.resize(to.len().next_multiple_of(ALIGN), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What iPXE's build does (`bcj_filter` in its `src/util/zbin.c`).
    fn absolute(block: &mut [u8]) {
        let limit = block.len() as i32 - 5;
        let mut at = 0;
        while at <= limit {
            let range = at as usize + 1..at as usize + 5;
            if [0xe8, 0xe9].contains(&block[at as usize]) {
                let target = i32::from_le_bytes(block[range.clone()].try_into().unwrap());
                let stored = if (-at..limit - at).contains(&target) {
                    target + at
                } else if (limit - at..limit).contains(&target) {
                    target - limit
                } else {
                    target
                };
                block[range].copy_from_slice(&stored.to_le_bytes());
                at += 4;
            }
            at += 1;
        }
    }

    #[test]
    fn targets_become_what_they_were() {
        let mut block = Vec::new();
        for target in [
            0,
            1,
            -1,
            3,
            -3,
            20,
            33,
            34,
            35,
            36,
            37,
            -40,
            1000,
            -1000,
            i32::MAX,
            i32::MIN,
        ] {
            block.push(0xe8 + (target & 1) as u8);
            block.extend(target.to_le_bytes());
            block.push(0x90);
        }
        block.push(0xe8);
        let mut filtered = block.clone();
        absolute(&mut filtered);
        assert_ne!(filtered, block);
        relative(&mut filtered);
        assert_eq!(filtered, block);
    }

    #[test]
    fn a_block_is_known_by_its_checksum() {
        let data = b"packed";
        let mut image = vec![0xff; 16];
        image.extend(10_u32.to_le_bytes());
        image.extend(data);
        image.extend((!crc32fast::hash(data)).to_le_bytes());
        assert_eq!(block(&image, 16), Some(20..26));
        assert_eq!(block(&image, 0), None);
        image[20] ^= 1;
        assert_eq!(block(&image, 16), None);
    }
}
