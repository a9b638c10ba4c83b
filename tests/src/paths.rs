//! Where built programs and cached images are.

use std::{
    env,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use anyhow::{Context, Result, bail};

/// The workspace's folder.
#[must_use]
pub fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// The cache of guest kernels and initrds, kept across builds.
#[must_use]
pub fn guests() -> PathBuf {
    workspace().join("target/guests")
}

static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();

/// Takes programs from `dir` from now on. Only the first call in a process counts.
pub fn take_programs_from(dir: PathBuf) {
    PROGRAMS.get_or_init(|| dir);
}

/// A program of this workspace, looked up beside the running one (`target/PROFILE` and `target/PROFILE/deps`)
/// unless [`take_programs_from`] named a folder.
///
/// # Errors
/// When it has not been built; the error says how to build it.
pub fn program(name: &str) -> Result<PathBuf> {
    let dirs: Vec<PathBuf> = match PROGRAMS.get() {
        Some(dir) => vec![dir.clone()],
        None => {
            let exe = env::current_exe().context("asking for this program's path")?;
            exe.ancestors()
                .skip(1)
                .take(2)
                .map(Path::to_path_buf)
                .collect()
        }
    };
    for dir in &dirs {
        let path = dir.join(name);
        if path.is_file() {
            return Ok(path);
        }
    }
    bail!("no program {name} in {dirs:?}: build it with `cargo build --workspace --bins`")
}
