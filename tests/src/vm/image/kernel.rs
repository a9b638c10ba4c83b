//! The guests' kernel, built from Debian's source package.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::digest;
use crate::{cmd, deb};

const PACKAGE: &str = "linux-source-6.1";
/// What is set beyond `make tinyconfig`.
const CONFIG: &str = include_str!("../../../guests/linux.config");
const PATCH: &str = include_str!("../../../guests/linux.patch");
const UNPACK_LIMIT: Duration = Duration::from_secs(600);
/// On one slow core.
const BUILD_LIMIT: Duration = Duration::from_secs(3600);
/// What a kernel contains of the machine that built it, and of the hour.
const BUILD_ENVIRONMENT: [&str; 5] = [
    "KBUILD_BUILD_TIMESTAMP=@0",
    "KBUILD_BUILD_USER=vswitch",
    "KBUILD_BUILD_HOST=vswitch",
    "KCONFIG_NOTIMESTAMP=1",
    "MAKEFLAGS=",
];

/// The kernel's folder below `cache`, which belongs to what is in this file and in apt's lists, whether it exists or not.
pub(super) fn folder(cache: &Path) -> Result<PathBuf> {
    let version = deb::version(PACKAGE)?;
    let made_of = [version.as_bytes(), CONFIG.as_bytes(), PATCH.as_bytes()];
    Ok(cache.join(format!("linux-{}", digest(&made_of))))
}

/// The folder with `vmlinux` and `bzImage`, made where it is not there.
pub(super) fn ensure(cache: &Path) -> Result<PathBuf> {
    let folder = folder(cache)?;
    if folder.is_dir() {
        return Ok(folder);
    }
    // Beside the result, so that it can be moved there in one step.
    let work = tempfile::tempdir_in(cache)?;
    let out = build(work.path()).context("building the guests' kernel")?;
    match fs::rename(&out, &folder) {
        // Somebody else was quicker, with the same kernel.
        Err(_) if folder.is_dir() => Ok(folder),
        result => result
            .map(|()| folder)
            .context("keeping the guests' kernel"),
    }
}

fn build(work: &Path) -> Result<PathBuf> {
    let package = work.join("package");
    deb::unpack(PACKAGE, &package)?;
    let source = work.join("source");
    fs::create_dir(&source)?;
    let archive = package.join(format!("usr/src/{PACKAGE}.tar.xz"));
    let tree = source.display().to_string();
    // What is left out is large and not needed.
    let tar: [&str; 6] = [
        "tar",
        "-xf",
        &archive.display().to_string(),
        "--strip-components=1",
        "--exclude=*/Documentation/*/*",
        &format!("--directory={tree}"),
    ];
    cmd::run_within(&tar, UNPACK_LIMIT)?;
    let patch = work.join("patch");
    fs::write(&patch, PATCH)?;
    let patch = patch.display().to_string();
    cmd::run(&["patch", "-d", &tree, "-p1", "-i", &patch])?;
    configure(&source)?;
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    make(&tree, &[&format!("-j{jobs}"), "vmlinux", "bzImage"])?;
    let out = work.join("out");
    fs::create_dir(&out)?;
    let stripped = out.join("vmlinux").display().to_string();
    cmd::run(&["strip", "-o", &stripped, &format!("{tree}/vmlinux")])?;
    fs::copy(source.join("arch/x86/boot/bzImage"), out.join("bzImage"))?;
    Ok(out)
}

/// Writes the configuration and checks that nothing in it was refused.
fn configure(source: &Path) -> Result<()> {
    let tree = source.display().to_string();
    make(&tree, &["tinyconfig"])?;
    let path = source.join(".config");
    let mut config = fs::read_to_string(&path)?;
    config.push_str(CONFIG);
    fs::write(&path, config)?;
    make(&tree, &["olddefconfig"])?;
    let config = fs::read_to_string(&path)?;
    let refused = refused(&config, CONFIG);
    ensure!(
        refused.is_empty(),
        "{PACKAGE} cannot be configured with {refused:?}"
    );
    Ok(())
}

/// The lines of `wanted` that do not hold in `config`.
fn refused<'a>(config: &str, wanted: &'a str) -> Vec<&'a str> {
    wanted
        .lines()
        .filter(|line| !is_set(config, line))
        .collect()
}

/// Whether line `wanted` holds in `config`. A symbol that nothing offers any more is off, too.
fn is_set(config: &str, wanted: &str) -> bool {
    match wanted
        .strip_prefix("# ")
        .and_then(|line| line.strip_suffix(" is not set"))
    {
        Some(symbol) => {
            let on = format!("{symbol}=");
            !config.lines().any(|line| line.starts_with(&on))
        }
        None => wanted.is_empty() || config.lines().any(|line| line == wanted),
    }
}

fn make(tree: &str, targets: &[&str]) -> Result<()> {
    let mut argv = vec!["env"];
    argv.extend(BUILD_ENVIRONMENT);
    argv.extend(["nice", "make", "-s", "-C", tree]);
    argv.extend(targets);
    cmd::run_within(&argv, BUILD_LIMIT).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_holds_what_is_wanted_of_it() {
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_CD=4\n";
        for good in [
            "CONFIG_A=y",
            "# CONFIG_B is not set",
            "CONFIG_CD=4",
            "# CONFIG_C is not set",
            "",
        ] {
            assert!(is_set(config, good), "{good}");
        }
        for bad in [
            "CONFIG_B=y",
            "# CONFIG_A is not set",
            "CONFIG_CD=5",
            "CONFIG_C=4",
        ] {
            assert!(!is_set(config, bad), "{bad}");
        }
    }
}
