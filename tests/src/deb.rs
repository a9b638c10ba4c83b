//! Debian packages that are unpacked and not installed: that needs no root, runs none of their scripts, and leaves the
//! machine's own boot alone.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::cmd;

const LIMIT: Duration = Duration::from_secs(600);

/// The version of `package` that apt would get.
pub(crate) fn version(package: &str) -> Result<String> {
    let shown = cmd::run(&["apt-cache", "show", "--no-all-versions", package])
        .with_context(|| format!("apt knows no package {package}: run `apt-get update`"))?;
    let version = shown
        .lines()
        .find_map(|line| line.strip_prefix("Version: "));
    Ok(version
        .with_context(|| format!("apt knows no version of {package}"))?
        .to_owned())
}

/// Downloads `package` and unpacks it into `folder`, unless that exists already.
pub(crate) fn unpack(package: &str, folder: &Path) -> Result<()> {
    if folder.exists() {
        return Ok(());
    }
    let parent = folder.parent().context("a folder without a parent")?;
    let work = tempfile::tempdir_in(parent)?;
    let dir = work.path().display().to_string();
    cmd::run_within(&["env", "-C", &dir, "apt-get", "download", package], LIMIT)
        .with_context(|| format!("getting package {package}"))?;
    let mut files = fs::read_dir(work.path())?;
    let deb = files
        .next()
        .context("apt-get download left nothing")??
        .path();
    ensure!(
        files.next().is_none(),
        "apt-get download left several files"
    );
    let tree = work.path().join("tree");
    let (deb, target) = (deb.display().to_string(), tree.display().to_string());
    cmd::run_within(&["dpkg", "-x", &deb, &target], LIMIT)?;
    match fs::rename(&tree, folder) {
        // Somebody else was quicker, with the same package.
        Err(_) if folder.exists() => Ok(()),
        result => result.with_context(|| format!("keeping package {package}")),
    }
}
