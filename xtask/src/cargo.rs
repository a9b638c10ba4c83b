//! Calling cargo on this workspace.

use std::{env, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vswitch_tests::paths;

/// A cargo command in the workspace's folder.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // A backtrace of a failed assertion buries what it says.
    command
        .args(args)
        .current_dir(paths::workspace())
        .env("RUST_BACKTRACE", "0");
    command
}

/// Builds with these arguments of `cargo build`.
pub(crate) fn build(args: &[&str]) -> Result<()> {
    let mut command = cargo(&["build", "--quiet"]);
    let status = command.args(args).status().context("starting cargo")?;
    ensure!(status.success(), "`cargo build {}` failed", args.join(" "));
    Ok(())
}

/// Builds with these arguments of `cargo rustc`, the last crate with `flags` of the compiler.
pub(crate) fn rustc(args: &[&str], flags: &[&str]) -> Result<()> {
    let mut command = cargo(&["rustc", "--quiet"]);
    command.args(args).arg("--").args(flags);
    let status = command.status().context("starting cargo")?;
    ensure!(status.success(), "`cargo rustc {}` failed", args.join(" "));
    Ok(())
}

/// What `cargo metadata` says of the workspace whose manifest is `manifest`, without packages from elsewhere.
pub(crate) fn metadata(manifest: &str) -> Result<Value> {
    let mut command = cargo(&[
        "metadata",
        "--no-deps",
        "--format-version=1",
        "--manifest-path",
        manifest,
    ]);
    let out = command.output().context("starting cargo")?;
    ensure!(
        out.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&out.stderr).trim()
    );
    serde_json::from_slice(&out.stdout).context("reading the answer of cargo metadata")
}

/// The packages of a workspace.
pub(crate) fn packages(metadata: &Value) -> impl Iterator<Item = &Value> {
    list(metadata, "packages")
}

/// The names of a workspace's targets of kind `kind` (`test`, `bin`).
pub(crate) fn targets(metadata: &Value, kind: &str) -> Vec<String> {
    let all = packages(metadata).flat_map(|package| list(package, "targets"));
    let wanted = all.filter(|target| list(target, "kind").any(|k| k.as_str() == Some(kind)));
    wanted
        .map(|target| text(target, "name").to_owned())
        .collect()
}

/// The values of list `key`; none where there is no list.
pub(crate) fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value
        .get(key)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

/// The text at `key`; empty where there is none.
pub(crate) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}
