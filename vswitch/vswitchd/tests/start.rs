//! What vswitchd says when it is started in a way that it refuses.

use std::path::Path;
use std::process::{Command, Stdio};

/// Starts vswitchd on state in `dir`; it must end with status 1. What it said.
fn refused(dir: &Path, set_up: impl FnOnce(&mut Command)) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vswitchd"));
    command
        .arg("--state-dir")
        .arg(dir.join("state"))
        .env_remove("VSWITCH_RUN_DIR")
        .stdin(Stdio::null());
    set_up(&mut command);
    let out = command.output().unwrap();
    let said = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(1), "{said}");
    said
}

#[test]
fn the_run_directory_may_come_from_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    // Too long for a socket, so that vswitchd names it and ends.
    let [from_environment, from_file] = ["e", "f"].map(|name| dir.path().join(name.repeat(110)));
    let config = dir.path().join("config.toml");
    std::fs::write(&config, format!("run_dir = '{}'", from_file.display())).unwrap();
    let named = |command: &mut Command| {
        command
            .env("VSWITCH_RUN_DIR", &from_environment)
            .arg("--config")
            .arg(&config);
    };
    let said = refused(dir.path(), named);
    assert!(said.contains(from_environment.to_str().unwrap()), "{said}");
    // As the option whose place it takes, which wins over it, it wins over the file.
    let option = dir.path().join("o".repeat(110));
    let said = refused(dir.path(), |command| {
        named(command);
        command.arg("--run-dir").arg(&option);
    });
    assert!(said.contains(option.to_str().unwrap()), "{said}");
}

#[test]
fn a_core_that_cannot_be_had_is_refused_with_those_that_can() {
    let dir = tempfile::tempdir().unwrap();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let mut lines = status.lines();
    let allowed = lines.find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let said = refused(dir.path(), |command| {
        command.arg("--run-dir").arg(dir.path().join("run"));
        command.args(["--cores", "1023"]);
    });
    let allowed = format!(
        "core 1023; allowed for this process: {}",
        allowed.unwrap().trim()
    );
    assert!(said.contains(&allowed), "{said}");
}
