//! The guest's kernel and initrd, built once and kept by the hash of their content.
//!
//! The kernel is Debian's, taken out of its package instead of being installed.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use super::{init::INIT, newc::Newc};
use crate::{cmd, deb, paths};

const KERNEL_META_PACKAGE: &str = "linux-image-cloud-amd64";
/// Modules the guest loads; what they need comes along.
const MODULES: [&str; 3] = ["virtio_pci", "virtio_net", "8021q"];
/// Programs that busybox has not, or only in part, and that guests are given, with the libraries they need.
const PROGRAMS: [&str; 4] = ["iperf3", "ethtool", "ip", "ping"];

/// What QEMU boots.
#[derive(Clone, Debug)]
pub struct GuestImage {
    /// The kernel, a bzImage.
    pub kernel: PathBuf,
    /// The initrd, an uncompressed cpio archive.
    pub initrd: PathBuf,
}

/// The image below `cache`, built where it is not there yet or where its content has changed.
///
/// # Errors
/// When the kernel package cannot be had or a program is missing; the error names it.
pub fn ensure(cache: &Path) -> Result<GuestImage> {
    fs::create_dir_all(cache)?;
    let package = kernel_package()?;
    let root = cache.join(&package);
    deb::unpack(&package, &root)?;
    let version = package.trim_start_matches("linux-image-");
    let kernel = root.join("boot").join(format!("vmlinuz-{version}"));
    let archive = archive(&root.join("lib/modules").join(version))?;
    let hash = format!("{:x}", Sha256::digest(&archive));
    let initrd = cache.join(format!(
        "initrd-{}.cpio",
        hash.get(..16).unwrap_or_default()
    ));
    if !initrd.exists() {
        write_whole(&initrd, &archive)?;
    }
    Ok(GuestImage { kernel, initrd })
}

/// Writes a file so that nobody sees half of it.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = path.with_extension(format!("part{}", std::process::id()));
    fs::write(&partial, bytes).with_context(|| format!("writing {}", partial.display()))?;
    fs::rename(&partial, path).with_context(|| format!("naming {}", path.display()))
}

/// The package that the meta package stands for today, as `linux-image-6.1.0-50-cloud-amd64`.
fn kernel_package() -> Result<String> {
    let depends = cmd::run(&["apt-cache", "depends", KERNEL_META_PACKAGE])
        .context("the guest's kernel comes from a Debian archive, so apt is needed")?;
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    let package = package.with_context(|| {
        format!("apt knows no kernel for {KERNEL_META_PACKAGE}: run `apt-get update`")
    })?;
    Ok(format!("linux-image-{package}"))
}

fn archive(modules: &Path) -> Result<Vec<u8>> {
    let mut archive = Newc::default();
    for folder in ["dev", "proc", "sys", "tmp"] {
        archive.folder(folder);
    }
    archive.file("init", INIT.as_bytes());
    let busybox = static_busybox()?;
    archive.file("bin/busybox", &fs::read(&busybox)?);
    for applet in cmd::run(&[&busybox, "--list"])?
        .lines()
        .filter(|applet| *applet != "busybox" && !PROGRAMS.contains(applet))
    {
        archive.link(&format!("bin/{applet}"), "busybox");
    }
    let mut list = String::new();
    for module in load_order(modules)? {
        archive.file(&module, &fs::read(modules.join(&module))?);
        list.push_str(&format!("/{module}\n"));
    }
    archive.file("modules", list.as_bytes());
    let mut programs: Vec<String> = PROGRAMS.into_iter().map(find).collect::<Result<_>>()?;
    programs.push(paths::program("vswitch-traffic")?.display().to_string());
    let mut libraries = BTreeSet::new();
    for program in &programs {
        let name = program.rsplit('/').next().unwrap_or(program);
        archive.file(&format!("usr/bin/{name}"), &fs::read(program)?);
        libraries.extend(shared_libraries(program)?);
    }
    for library in libraries {
        archive.file(library.trim_start_matches('/'), &fs::read(&library)?);
    }
    Ok(archive.finish())
}

/// The module files in the order in which they must be loaded, from `modules.dep`.
///
/// Its lines name a module and all it needs, the ones to load first at the end.
fn load_order(modules: &Path) -> Result<Vec<String>> {
    // A package holds no modules.dep: it is made when a kernel is installed.
    if !modules.join("modules.dep").exists() {
        let base = modules
            .ancestors()
            .nth(3)
            .context("a module folder without a root")?
            .display()
            .to_string();
        let version = modules
            .file_name()
            .context("a module folder without a name")?
            .to_string_lossy();
        cmd::run(&["depmod", "-b", &base, &version]).context("package kmod is needed")?;
    }
    let dep = fs::read_to_string(modules.join("modules.dep"))?;
    let mut order = Vec::new();
    for wanted in MODULES {
        let file = format!("/{wanted}.ko");
        let line = dep.lines().find(|line| {
            line.split(':')
                .next()
                .is_some_and(|path| path.ends_with(&file))
        });
        let line = line.with_context(|| format!("no module {wanted} in {}", modules.display()))?;
        let (module, needs) = line
            .split_once(':')
            .context("a line of modules.dep without a colon")?;
        for path in needs.split_whitespace().rev().chain([module]) {
            if !order.iter().any(|known| known == path) {
                order.push(path.to_owned());
            }
        }
    }
    Ok(order)
}

/// The libraries a program is linked with and their loader, by ldd.
pub(crate) fn shared_libraries(program: &str) -> Result<Vec<String>> {
    let text = cmd::run(&["ldd", program])?;
    ensure!(
        !text.contains("not found"),
        "{program} lacks a library: {text}"
    );
    let paths = text
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(str::to_owned).collect())
}

/// The path of a busybox that needs no libraries.
pub(crate) fn static_busybox() -> Result<String> {
    let busybox = find("busybox")?;
    if !cmd::run(&["ldd", &busybox]).is_err_and(|e| e.to_string().contains("not a dynamic")) {
        bail!("{busybox} is not static: package busybox-static is needed");
    }
    Ok(busybox)
}

/// Where a program is.
pub(crate) fn find(program: &str) -> Result<String> {
    for dir in ["/usr/bin", "/bin", "/usr/sbin", "/sbin"] {
        let path = format!("{dir}/{program}");
        if Path::new(&path).is_file() {
            return Ok(path);
        }
    }
    bail!("no program {program}: run `cargo xtask setup`")
}
