//! The form of a saved machine.
//!
//! ```text
//! 8 bytes    "vswstate"
//! u32        version, 2
//! u32        length of the document
//! …          the document: JSON
//! then, for each run of pages that are not all zeros, by address:
//! u64        offset of the first page in the guest's memory (see `memory`), a multiple of 4096
//! u64        length in bytes, a multiple of 4096
//! …          the pages
//! then:
//! u64        2^64 - 1
//! 32 bytes   SHA-256 of all that is before
//! ```
//! Numbers are little-endian. Nothing follows. A reader has seen all of it, and checked the sum, before a machine runs.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use kvm_bindings::kvm_cpuid_entry2;
use sha2::{Digest as _, Sha256};

use super::VcpuState;
use crate::Error;
use crate::device::State;
use crate::kvm::Chips;
use crate::memory::GuestMemory;

const MAGIC: &[u8; 8] = b"vswstate";
const VERSION: u32 = 2;
/// A document of 64 processors and full devices has about 1 MiB.
const MAX_DOCUMENT: u32 = 64 << 20;
const PAGE: u64 = 4096;
/// Memory is read and written in pieces of this many bytes.
const PIECE: u64 = 256 << 10;
const END: u64 = u64::MAX;

/// Everything but memory.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Document {
    /// Bytes of memory.
    pub(crate) memory: u64,
    /// What CPUID answers on the first processor: it must be the same where the machine goes on.
    pub(crate) cpuid: Vec<kvm_cpuid_entry2>,
    /// Ticks of the TSC in a millisecond.
    pub(crate) tsc_khz: u32,
    pub(crate) vcpus: Vec<VcpuState>,
    pub(crate) chips: Chips,
    /// Nanoseconds the machine has run.
    pub(crate) clock: u64,
    /// By name.
    pub(crate) devices: BTreeMap<String, State>,
}

/// Writes and sums up.
struct Writer<W> {
    out: W,
    sum: Sha256,
}

impl<W: Write> Writer<W> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.sum.update(bytes);
        self.out.write_all(bytes).map_err(|source| Error::Io {
            what: "writing",
            source,
        })
    }
}

/// Writes a machine.
pub(crate) fn write(
    out: impl Write,
    document: &Document,
    memory: &GuestMemory,
) -> Result<(), Error> {
    let mut out = Writer {
        out,
        sum: Sha256::new(),
    };
    let text = serde_json::to_vec(document).map_err(|error| Error::Saved(error.to_string()))?;
    let len = u32::try_from(text.len())
        .ok()
        .filter(|&len| len <= MAX_DOCUMENT);
    let len = len.ok_or_else(|| Error::Saved(format!("its document has {} bytes", text.len())))?;
    out.put(MAGIC)?;
    out.put(&VERSION.to_le_bytes())?;
    out.put(&len.to_le_bytes())?;
    out.put(&text)?;
    let mut piece = vec![0; PIECE as usize];
    let mut at = 0;
    while let Some(start) = memory.next_data(at)? {
        let len = PIECE.min(memory.size() - start);
        let bytes = piece.get_mut(..len as usize).unwrap_or_default();
        memory.read_file(start, bytes)?;
        write_pages(&mut out, start, bytes)?;
        at = start + len;
    }
    out.put(&END.to_le_bytes())?;
    let sum = out.sum.finalize_reset();
    out.put(&sum)?;
    out.out.flush().map_err(|source| Error::Io {
        what: "writing",
        source,
    })
}

/// Writes those runs of pages in `bytes`, which begin at `start`, that are not all zeros.
fn write_pages<W: Write>(out: &mut Writer<W>, start: u64, bytes: &[u8]) -> Result<(), Error> {
    let mut run: Option<(usize, usize)> = None;
    let pages = bytes.chunks(PAGE as usize).enumerate();
    let full = pages.map(|(index, page)| (index, page.iter().any(|&byte| byte != 0)));
    let count = bytes.len() / PAGE as usize;
    for (index, used) in full.chain([(count, false)]) {
        match (used, run) {
            (true, None) => run = Some((index, index + 1)),
            (true, Some((first, _))) => run = Some((first, index + 1)),
            (false, Some((first, end))) => {
                let range = first * PAGE as usize..end * PAGE as usize;
                out.put(&(start + range.start as u64).to_le_bytes())?;
                out.put(&(range.len() as u64).to_le_bytes())?;
                out.put(bytes.get(range).unwrap_or_default())?;
                run = None;
            }
            (false, None) => {}
        }
    }
    Ok(())
}

/// Reads and sums up.
struct Reader<R> {
    input: R,
    sum: Sha256,
}

impl<R: Read> Reader<R> {
    fn get(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        self.input.read_exact(bytes).map_err(|source| Error::Io {
            what: "reading",
            source,
        })?;
        self.sum.update(bytes);
        Ok(())
    }

    fn word32(&mut self) -> Result<u32, Error> {
        let mut bytes = [0; 4];
        self.get(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn word64(&mut self) -> Result<u64, Error> {
        let mut bytes = [0; 8];
        self.get(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// Reads a machine's document, and its memory into `memory`, which is all zeros before. Everything is checked that can
/// be without KVM. After an error, `memory` holds any bytes.
pub(crate) fn read(input: impl Read, memory: &GuestMemory) -> Result<Document, Error> {
    let mut input = Reader {
        input,
        sum: Sha256::new(),
    };
    let mut magic = [0; 8];
    input.get(&mut magic)?;
    if &magic != MAGIC {
        return Err(Error::Saved("it is not the state of a machine".to_owned()));
    }
    let version = input.word32()?;
    if version != VERSION {
        let why = format!("it has version {version}; version {VERSION} is understood");
        return Err(Error::Saved(why));
    }
    let len = input.word32()?;
    if len > MAX_DOCUMENT {
        return Err(Error::Saved(format!("its document has {len} bytes")));
    }
    let mut text = vec![0; len as usize];
    input.get(&mut text)?;
    let document: Document =
        serde_json::from_slice(&text).map_err(|error| Error::Saved(error.to_string()))?;
    if document.memory != memory.size() {
        return Err(Error::Saved(format!(
            "it has {} bytes of memory, and the machine {}",
            document.memory,
            memory.size()
        )));
    }
    read_pages(&mut input, memory)?;
    let sum = input.sum.finalize_reset();
    let mut expected = [0; 32];
    input.get(&mut expected)?;
    if sum.as_slice() != expected {
        return Err(Error::Saved("its checksum is wrong".to_owned()));
    }
    let more = input.input.read(&mut [0]).map_err(|source| Error::Io {
        what: "reading",
        source,
    })?;
    if more != 0 {
        return Err(Error::Saved("more follows after its end".to_owned()));
    }
    Ok(document)
}

fn read_pages<R: Read>(input: &mut Reader<R>, memory: &GuestMemory) -> Result<(), Error> {
    let mut piece = vec![0; PIECE as usize];
    let mut end = 0;
    loop {
        let start = input.word64()?;
        if start == END {
            return Ok(());
        }
        let len = input.word64()?;
        let last = start.checked_add(len);
        let inside = last.is_some_and(|last| last <= memory.size());
        let aligned = start.is_multiple_of(PAGE) && len.is_multiple_of(PAGE);
        if !inside || !aligned || len == 0 || len > PIECE || start < end {
            return Err(Error::Saved(format!(
                "it has {len:#x} bytes of memory at {start:#x}, after {end:#x}"
            )));
        }
        end = start + len;
        let bytes = piece.get_mut(..len as usize).unwrap_or_default();
        input.get(bytes)?;
        memory.write_file(start, bytes)?;
    }
}

#[cfg(test)]
mod tests;
