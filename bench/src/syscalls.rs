//! System calls of one thread, counted by `perf stat`.

use std::fs;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use tempfile::NamedTempFile;
use vswitch_tests::Background;

const EVENT: &str = "raw_syscalls:sys_enter";
/// How long perf takes until it counts.
const BOOT: Duration = Duration::from_millis(150);

/// The threads of this process whose name starts with `name`.
pub(crate) fn threads(name: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc/self/task")? {
        let path = entry?.path();
        // A thread may end meanwhile.
        let called = fs::read_to_string(path.join("comm")).unwrap_or_default();
        if called.starts_with(name) {
            let id = path.file_name().context("a path without a name")?;
            found.push(id.to_string_lossy().into_owned());
        }
    }
    Ok(found)
}

/// A count that is under way.
pub(crate) struct Counting {
    perf: Background,
    file: NamedTempFile,
}

impl Counting {
    /// Starts to count the calls of the worker threads of this process.
    pub(crate) fn start() -> Result<Counting> {
        let ids = threads("worker-")?.join(",");
        let file = NamedTempFile::new()?;
        let mut command = Command::new("perf");
        command
            .args(["stat", "-x,", "-e", EVENT, "-t", &ids, "-o"])
            .arg(file.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let perf = Background::spawn(&mut command).context("package linux-perf is needed")?;
        sleep(BOOT);
        Ok(Counting { perf, file })
    }

    /// Ends the count.
    pub(crate) fn end(mut self) -> Result<u64> {
        self.perf.end(Signal::INT, Duration::from_secs(5))?;
        parse(&fs::read_to_string(self.file.path())?)
    }
}

fn parse(said: &str) -> Result<u64> {
    let line = said.lines().find(|line| line.contains(EVENT));
    let count = line.and_then(|line| line.split(',').next());
    match count.and_then(|count| count.parse().ok()) {
        Some(count) => Ok(count),
        None => bail!("perf counted nothing: {}", said.trim()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_count_is_read_and_a_refusal_is_an_error() {
        let said = "# started on Sat\n\n144,,raw_syscalls:sys_enter,1280,100.00,,\n";
        assert_eq!(parse(said).unwrap(), 144);
        assert!(parse("<not supported>,,raw_syscalls:sys_enter,0,0.00,,\n").is_err());
    }
}
