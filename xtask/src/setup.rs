//! What must be on the machine, and getting it.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, bail, ensure};
use vswitch_tests::{cmd, guest::image, paths, vm};

use crate::{cargo, say::say};

/// A program, or another file by its path, and the Debian package it comes in.
struct Needed {
    program: &'static str,
    package: &'static str,
}

const fn needed(program: &'static str, package: &'static str) -> Needed {
    Needed { program, package }
}

const NEEDED: [Needed; 27] = [
    needed("ip", "iproute2"),
    needed("ping", "iputils-ping"),
    needed("ethtool", "ethtool"),
    needed("setpriv", "util-linux"),
    needed("tcpdump", "tcpdump"),
    needed("tshark", "tshark"),
    needed("iperf3", "iperf3"),
    needed("qemu-system-x86_64", "qemu-system-x86"),
    needed("busybox", "busybox-static"),
    needed("depmod", "kmod"),
    needed("dpdk-testpmd", "dpdk-dev"),
    needed("sqlite3", "sqlite3"),
    needed("g++", "g++"),
    needed("dnsmasq", "dnsmasq-base"),
    needed("systemd-analyze", "systemd"),
    needed("/usr/share/seabios/bios.bin", "seabios"),
    // For the guests' kernel and boot ROM.
    needed("make", "make"),
    needed("gcc", "gcc"),
    needed("ld", "binutils"),
    needed("flex", "flex"),
    needed("bison", "bison"),
    needed("bc", "bc"),
    needed("patch", "patch"),
    needed("xz", "xz-utils"),
    needed("lz4", "lz4"),
    needed("/usr/include/libelf.h", "libelf-dev"),
    needed("dpkg", "dpkg"),
];

/// The manifest of the guest that drives synthetic adapters at full speed.
pub(crate) const BENCH_GUEST: &str = "tests/guest-bench/Cargo.toml";

/// Whether a program is on the path, or where only root has it on the path; whether a file is there.
fn installed(program: &str) -> bool {
    if program.starts_with('/') {
        return Path::new(program).exists();
    }
    ["/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin"]
        .iter()
        .any(|dir| Path::new(dir).join(program).exists())
}

fn missing() -> Vec<&'static str> {
    NEEDED
        .iter()
        .filter(|needed| !installed(needed.program))
        .map(|needed| needed.package)
        .collect()
}

/// Says what is missing, changes nothing, and returns whether all is there.
pub(crate) fn check() -> Result<bool> {
    let missing = missing();
    for needed in &NEEDED {
        let state = if installed(needed.program) {
            "there"
        } else {
            "MISSING"
        };
        say!("{state:8} {:28} package {}", needed.program, needed.package);
    }
    let image = std::fs::read_dir(paths::guests()).is_ok_and(|mut files| {
        files.any(|file| {
            file.is_ok_and(|file| file.file_name().to_string_lossy().starts_with("initrd-"))
        })
    });
    say!(
        "{:8} guest image in {}",
        if image { "there" } else { "MISSING" },
        paths::guests().display()
    );
    let cache = paths::guests();
    let ours = vm::image::is_there(&cache);
    say!(
        "{:8} kernel for guests of our own monitor",
        if ours { "there" } else { "MISSING" },
    );
    if !missing.is_empty() {
        say!("install with: apt-get install {}", missing.join(" "));
    }
    Ok(image && ours && missing.is_empty())
}

/// Installs the packages and builds the guest images.
pub(crate) fn everything() -> Result<()> {
    for_networks()?;
    bench_guest()?;
    vm_image()
}

/// What tests with networks need: all but the kernel for VMs of our own, which takes minutes to build.
pub(crate) fn for_networks() -> Result<()> {
    install(&missing())?;
    guest_image()
}

/// Installs the compiler that libFuzzer needs.
pub(crate) fn for_fuzzing() -> Result<()> {
    install(
        &missing()
            .into_iter()
            .filter(|package| *package == "g++")
            .collect::<Vec<_>>(),
    )
}

fn guest_image() -> Result<()> {
    cargo::build(&["-p", "vswitch-tests", "--bins"])?;
    if cmd::run(&["apt-cache", "depends", "linux-image-cloud-amd64"]).is_err() {
        apt_get(&["update"])?;
    }
    let image = image::ensure(&paths::guests())?;
    say!(
        "guest image: {}, {}",
        image.kernel.display(),
        image.initrd.display()
    );
    Ok(())
}

/// Builds the guest that drives synthetic adapters at full speed. It is no part of the workspace: it is linked for a
/// machine without an operating system, at a fixed address behind what the boot protocol uses.
pub(crate) fn bench_guest() -> Result<()> {
    let folder = vm::image::static_programs(&paths::guests());
    let folder = folder.display().to_string();
    let build = ["--release", "--manifest-path", BENCH_GUEST, "--target-dir"];
    let link = "link-args=-nostartfiles -nostdlib -static -no-pie \
                -Wl,-e,start,--image-base=0x200000,--build-id=none,-z,norelro";
    let flags = ["-C", "relocation-model=static", "-C", link];
    cargo::rustc(&[&build[..], &[&folder]].concat(), &flags)
}

/// Builds what VMs of our own boot in tests.
pub(crate) fn vm_image() -> Result<()> {
    let folder = vm::image::static_programs(&paths::guests());
    let folder = folder.display().to_string();
    for program in vm::image::STATIC_PROGRAMS {
        cargo::rustc(
            &[
                "--release",
                "-p",
                "vswitch-tests",
                "--bin",
                program,
                "--target-dir",
                &folder,
            ],
            &["-C", "target-feature=+crt-static", "-C", "strip=symbols"],
        )?;
    }
    if !vm::image::is_there(&paths::guests()) {
        say!("building the kernel for guests of our own monitor; that takes some minutes, once");
    }
    let image = vm::image::ensure(&paths::guests())?;
    say!(
        "our monitor's guest: {}, {}, {}",
        image.kernel.display(),
        image.initrd.display(),
        image.rom.display()
    );
    Ok(())
}

/// Makes the boot ROM of legacy adapters.
pub(crate) fn rom(file: &Path) -> Result<()> {
    let rom = vm::image::boot_rom(&paths::guests())?;
    if let Some(folder) = file
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    fs::copy(&rom, file).with_context(|| format!("cannot write {}", file.display()))?;
    say!("boot ROM of legacy adapters: {}", file.display());
    Ok(())
}

fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let line = packages.join(" ");
    let user = cmd::run(&["id", "-u"])?;
    ensure!(
        user.trim() == "0",
        "missing packages, and only root can install them: apt-get install {line}"
    );
    ensure!(
        installed("apt-get"),
        "missing packages, and there is no apt-get: {line}"
    );
    say!("installing {line}");
    apt_get(&["update"])?;
    let mut args = vec!["install", "--yes", "--no-install-recommends"];
    args.extend(packages);
    apt_get(&args)?;
    let still = missing();
    let absent: Vec<&&str> = packages
        .iter()
        .filter(|package| still.contains(package))
        .collect();
    ensure!(
        absent.is_empty(),
        "installed, but their programs are not there: {absent:?}"
    );
    Ok(())
}

fn apt_get(args: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    // Somebody else's apt may hold the lock for a while.
    command
        .args(["-q", "-o", "DPkg::Lock::Timeout=300"])
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive");
    let out = command.output().context("starting apt-get")?;
    if !out.status.success() {
        bail!(
            "`apt-get {}` failed: {}",
            args.join(" "),
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(())
}
