//! What virtual machines of ours boot in tests: a Linux kernel with its own drivers for the emulated NICs, an initrd
//! that takes commands on the console, and a boot ROM with iPXE.
//!
//! All of it is made on this machine from Debian packages that are downloaded and unpacked, not installed, and kept
//! below the cache by a hash of what went into it.

mod boot_protocol;
mod ipxe;
mod kernel;
mod moved;
mod rom;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::{
    cmd,
    guest::{image as debian, newc::Newc},
};

pub use rom::NicId;

/// Programs that guests run, linked statically.
pub const STATIC_PROGRAMS: [&str; 2] = ["vswitch-guest", "vswitch-traffic"];
const INIT: &str = include_str!("../../guests/init");

/// Where the files are.
#[derive(Clone, Debug)]
pub struct VmImage {
    /// The kernel as ELF file: it starts without unpacking itself.
    pub kernel: PathBuf,
    /// The same kernel as bzImage, for iPXE.
    pub network_kernel: PathBuf,
    /// The initrd, an uncompressed cpio archive.
    pub initrd: PathBuf,
    /// The same with further programs: `ethtool`, `vswitch-guest` and `vswitch-traffic`.
    pub equipped_initrd: PathBuf,
    /// The boot ROM for the legacy adapter.
    pub rom: PathBuf,
    /// iPXE in the form of a kernel, as Debian ships it, but unpacked.
    pub ipxe: PathBuf,
    /// The same for the Tulip that QEMU emulates.
    pub qemu_rom: PathBuf,
}

/// The files below `cache`, made where they are not there yet or what they are made of has changed. The kernel takes
/// some minutes.
///
/// # Errors
/// When a package cannot be had, a program is missing or the kernel does not build; the error says which.
pub fn ensure(cache: &Path) -> Result<VmImage> {
    fs::create_dir_all(cache)?;
    let kernel = kernel::ensure(cache)?;
    let network = fs::read(kernel.join("bzImage")).context("reading the guests' bzImage")?;
    let ipxe = ipxe::unpacked(cache)?;
    Ok(VmImage {
        network_kernel: keep(cache, "network-kernel", &moved::moved(&network)?)?,
        kernel: kernel.join("vmlinux"),
        initrd: keep(cache, "vm-initrd", &initrd()?.finish())?,
        equipped_initrd: keep(cache, "vm-initrd", &equipped_initrd(cache)?)?,
        rom: boot_rom(cache)?,
        ipxe: keep(cache, "ipxe", &[&*ipxe.setup, &*ipxe.payload].concat())?,
        qemu_rom: keep(cache, "ipxe", &rom::build(&ipxe, NicId::QEMU)?)?,
    })
}

/// The boot ROM for the legacy adapter alone, below `cache`: iPXE from Debian's package.
///
/// # Errors
/// As [`ensure()`].
pub fn boot_rom(cache: &Path) -> Result<PathBuf> {
    fs::create_dir_all(cache)?;
    let ipxe = ipxe::unpacked(cache)?;
    keep(cache, "ipxe", &rom::build(&ipxe, NicId::LEGACY)?)
}

/// Whether all that [`ensure()`] makes is below `cache`, as far as that can be said without making it.
#[must_use]
pub fn is_there(cache: &Path) -> bool {
    kernel::folder(cache).is_ok_and(|folder| folder.is_dir())
}

/// Cargo's target folder for programs that are linked statically.
#[must_use]
pub fn static_programs(cache: &Path) -> PathBuf {
    cache.join("static")
}

/// The program that guests get by HTTP, `vswitch-guest`.
///
/// # Errors
/// When it has not been built; the error says how to build it.
pub fn guest_program() -> Result<PathBuf> {
    static_program(&crate::paths::guests(), "vswitch-guest")
}

fn static_program(cache: &Path, name: &str) -> Result<PathBuf> {
    let path = static_programs(cache).join("release").join(name);
    ensure!(
        path.is_file(),
        "no {}: run `cargo xtask setup`",
        path.display()
    );
    Ok(path)
}

/// The guest that drives synthetic adapters at full speed, `guest-bench`: a kernel without an operating system.
///
/// # Errors
/// As [`guest_program`].
pub fn bench_guest() -> Result<PathBuf> {
    static_program(&crate::paths::guests(), "guest-bench")
}

/// The files of this process: what they are made of is looked up once.
///
/// # Errors
/// As [`ensure()`].
pub fn shared() -> Result<&'static VmImage> {
    static IMAGE: std::sync::OnceLock<VmImage> = std::sync::OnceLock::new();
    if let Some(image) = IMAGE.get() {
        return Ok(image);
    }
    let image = ensure(&crate::paths::guests())?;
    Ok(IMAGE.get_or_init(|| image))
}

fn initrd() -> Result<Newc> {
    let mut archive = Newc::default();
    for folder in ["dev", "proc", "sys", "tmp"] {
        archive.folder(folder);
    }
    archive.file("init", INIT.as_bytes());
    // Its shell runs its other programs without links to them.
    archive.file("bin/busybox", &fs::read(debian::static_busybox()?)?);
    Ok(archive)
}

fn equipped_initrd(cache: &Path) -> Result<Vec<u8>> {
    let mut archive = initrd()?;
    for name in STATIC_PROGRAMS {
        let program = fs::read(static_program(cache, name)?)?;
        archive.file(&format!("bin/{name}"), &program);
    }
    let ethtool = debian::find("ethtool")?;
    archive.file("bin/ethtool", &fs::read(&ethtool)?);
    for library in debian::shared_libraries(&ethtool)? {
        archive.file(library.trim_start_matches('/'), &fs::read(&library)?);
    }
    Ok(archive.finish())
}

/// The code of a source file, with these symbols.
fn assemble(code: &str, symbols: &[(&str, usize)]) -> Result<Vec<u8>> {
    let work = tempfile::tempdir()?;
    let path = |name: &str| work.path().join(name).display().to_string();
    let (source, object, binary) = (path("code.s"), path("code.o"), path("code"));
    fs::write(&source, code)?;
    let mut argv: Vec<String> = ["as", "--32", "-o", &object, &source]
        .map(str::to_owned)
        .into();
    for (name, value) in symbols {
        argv.extend(["--defsym".to_owned(), format!("{name}={value}")]);
    }
    cmd::run(&argv.iter().map(String::as_str).collect::<Vec<_>>())?;
    let link = [
        "ld",
        "-m",
        "elf_i386",
        "-Ttext=0",
        "-e",
        "0",
        "--oformat=binary",
    ];
    cmd::run(&[&link[..], &["-o", &binary, &object]].concat())?;
    fs::read(&binary).context("reading the assembled code")
}

/// Keeps `bytes` below `cache` in a file named by their hash.
fn keep(cache: &Path, name: &str, bytes: &[u8]) -> Result<PathBuf> {
    let path = cache.join(format!("{name}-{}", digest(&[bytes])));
    if !path.exists() {
        debian::write_whole(&path, bytes)?;
    }
    Ok(path)
}

/// 16 hexadecimal digits that stand for `parts`.
fn digest(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    let hex = format!("{:x}", hash.finalize());
    hex.get(..16).unwrap_or(&hex).to_owned()
}
