//! Running other programs: with a time limit, and with an error that says what was run and what it said.

use std::{
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// What a program may take before it counts as hung.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Runs `argv` with [`LIMIT`] and returns what it left, whatever its exit status.
///
/// # Errors
/// When the program cannot be started. A program that ran into the limit ends with status 124.
pub fn output(argv: &[&str]) -> Result<Output> {
    output_within(argv, LIMIT)
}

/// Runs `argv` for at most `limit` and returns what it left, whatever its exit status.
///
/// # Errors
/// When the program cannot be started.
pub fn output_within(argv: &[&str], limit: Duration) -> Result<Output> {
    let (program, args) = argv.split_first().context("an empty command line")?;
    // coreutils' timeout also ends the children's process group, which a kill of the child would not.
    Command::new("timeout")
        .arg("--kill-after=2")
        .arg(format!("{}", limit.as_secs_f32()))
        .arg(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running `{}`", argv.join(" ")))
}

/// Runs `argv` with [`LIMIT`] and returns its standard output.
///
/// # Errors
/// When it cannot be started or does not end with status 0; the error holds its standard error.
pub fn run(argv: &[&str]) -> Result<String> {
    run_within(argv, LIMIT)
}

/// As [`run`], with a limit of its own.
///
/// # Errors
/// As [`run`].
pub fn run_within(argv: &[&str], limit: Duration) -> Result<String> {
    let out = output_within(argv, limit)?;
    let stdout = String::from_utf8_lossy(&out.stdout).into_owned();
    if !out.status.success() {
        bail!(
            "`{}` ended with {}: {}{}",
            argv.join(" "),
            status_text(out.status),
            String::from_utf8_lossy(&out.stderr).trim(),
            if out.stderr.is_empty() {
                stdout.trim()
            } else {
                ""
            },
        );
    }
    Ok(stdout)
}

fn status_text(status: ExitStatus) -> String {
    match status.code() {
        Some(124) => "its time limit reached".into(),
        Some(127) => "status 127 (no such program)".into(),
        _ => status.to_string(),
    }
}

/// Calls `ready` every 20 ms until it says yes.
///
/// # Errors
/// When it has not said yes within `limit`; the error names `what` was awaited.
pub fn wait_until(
    what: &str,
    limit: Duration,
    mut ready: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let start = Instant::now();
    while !ready()? {
        if start.elapsed() > limit {
            bail!("waited {limit:?} in vain for {what}");
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A program that runs beside the test and ends with this value.
#[derive(Debug)]
pub struct Background {
    child: Child,
    what: String,
}

impl Background {
    /// Starts `command`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let what = format!("{command:?}");
        let child = command
            .spawn()
            .with_context(|| format!("starting {what}"))?;
        Ok(Self { child, what })
    }

    /// The process, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Fails when the program has ended.
    ///
    /// # Errors
    /// With its exit status.
    pub fn must_run(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("{} ended early with {status}", self.what),
            None => Ok(()),
        }
    }

    /// Sends `signal` and waits at most `limit` for the end.
    ///
    /// # Errors
    /// When the signal cannot be sent or the program goes on.
    pub fn end(&mut self, signal: Signal, limit: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        kill_process(Pid::from_child(&self.child), signal)?;
        let mut ended = None;
        wait_until(
            &format!("{} to end on {signal:?}", self.what),
            limit,
            || {
                ended = self.child.try_wait()?;
                Ok(ended.is_some())
            },
        )?;
        ended.context("a program without an exit status")
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
