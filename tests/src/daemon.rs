//! The daemon on temporary directories, and the command line that drives it.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    cmd::{self, Background},
    netns::Netns,
    paths,
    stats::Stats,
};

const READY_LIMIT: Duration = Duration::from_secs(10);
const END_LIMIT: Duration = Duration::from_secs(10);

/// A running vswitchd, killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    process: Background,
    netns: String,
    dirs: TempDir,
    options: Options,
}

/// What a daemon is started with, where it is not what it has by itself.
#[derive(Clone, Debug, Default)]
struct Options {
    without_xdp: bool,
    vmm: Option<PathBuf>,
    cores: Option<String>,
}

impl Daemon {
    /// Starts vswitchd in `netns` with empty state and waits until it answers.
    ///
    /// # Errors
    /// When it is not built, ends early, or does not answer in 10 s; the error holds what it logged.
    pub fn start(netns: &Netns) -> Result<Self> {
        Self::start_with(netns, Options::default())
    }

    /// As [`Daemon::start`], without the right to load BPF programs, so that AF_XDP cannot be had.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn start_without_xdp(netns: &Netns) -> Result<Self> {
        let options = Options {
            without_xdp: true,
            ..Options::default()
        };
        Self::start_with(netns, options)
    }

    /// As [`Daemon::start`]; `vmm` is the program of its virtual machines.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn start_with_vmm(netns: &Netns, vmm: &Path) -> Result<Self> {
        let options = Options {
            vmm: Some(vmm.to_owned()),
            ..Options::default()
        };
        Self::start_with(netns, options)
    }

    /// As [`Daemon::start`], with a worker on each of `cores`, as `0,1`.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn start_on_cores(netns: &Netns, cores: &str) -> Result<Self> {
        let options = Options {
            cores: Some(cores.to_owned()),
            ..Options::default()
        };
        Self::start_with(netns, options)
    }

    fn start_with(netns: &Netns, options: Options) -> Result<Self> {
        let dirs = TempDir::new()?;
        for dir in ["run", "state"] {
            std::fs::create_dir(dirs.path().join(dir))?;
        }
        let process = spawn(netns.name(), dirs.path(), &options)?;
        let mut daemon = Self {
            process,
            netns: netns.name().to_owned(),
            dirs,
            options,
        };
        daemon.wait_ready()?;
        Ok(daemon)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let socket = self.run_dir().join("api.sock");
        let process = &mut self.process;
        let ready = cmd::wait_until("vswitchd to answer GET /v1/status", READY_LIMIT, || {
            process.must_run()?;
            Ok(answers(&socket))
        });
        ready.with_context(|| format!("vswitchd said: {}", self.log()))
    }

    /// Its run directory, with `api.sock`. There is room for other sockets.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.dirs.path().join("run")
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Its state directory.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.dirs.path().join("state")
    }

    /// A path for a vhost-user socket.
    #[must_use]
    pub fn socket(&self, name: &str) -> String {
        self.run_dir()
            .join(format!("{name}.sock"))
            .display()
            .to_string()
    }

    /// What it has logged since it was started first.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dirs.path().join("log")).unwrap_or_default()
    }

    /// Runs vswitchctl with these arguments, split at white space, and returns its JSON answer
    /// (null where it said nothing).
    ///
    /// # Errors
    /// When it is refused, or answers something else than JSON.
    pub fn ctl(&self, args: &str) -> Result<Value> {
        self.ctl_words(&args.split_whitespace().collect::<Vec<_>>())
    }

    /// As [`Daemon::ctl`], with arguments that may hold white space.
    ///
    /// # Errors
    /// As [`Daemon::ctl`].
    pub fn ctl_words(&self, args: &[&str]) -> Result<Value> {
        let out = self.ctl_output(args)?;
        let said = String::from_utf8_lossy(&out.stdout);
        let line = args.join(" ");
        if !out.status.success() {
            bail!(
                "`vswitchctl {line}` ended with {}: {}",
                out.status,
                String::from_utf8_lossy(&out.stderr).trim()
            );
        }
        if said.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&said)
            .with_context(|| format!("`vswitchctl --json {line}` answered {said}"))
    }

    /// Runs vswitchctl and returns what it left, whatever its exit status.
    ///
    /// # Errors
    /// When it is not built.
    pub fn ctl_output(&self, args: &[&str]) -> Result<Output> {
        let program = paths::program("vswitchctl")?.display().to_string();
        let run_dir = self.run_dir().display().to_string();
        let mut argv = vec![program.as_str(), "--run-dir", &run_dir, "--json"];
        argv.extend(args);
        cmd::output(&argv)
    }

    /// The counters of every port.
    ///
    /// # Errors
    /// As [`Daemon::ctl`], and when a key is missing.
    pub fn stats(&self) -> Result<Stats> {
        Stats::parse(&self.ctl("stats")?)
    }

    /// Ends it in order (SIGTERM).
    ///
    /// # Errors
    /// When it does not end with status 0 in 10 s.
    pub fn terminate(&mut self) -> Result<()> {
        let status = self.process.end(Signal::TERM, END_LIMIT)?;
        if !status.success() {
            bail!("vswitchd ended with {status} on SIGTERM: {}", self.log());
        }
        Ok(())
    }

    /// Kills it (SIGKILL), as a crash would end it.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill(&mut self) -> Result<()> {
        self.process.end(Signal::KILL, END_LIMIT).map(drop)
    }

    /// Starts it again on the same directories.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn start_again(&mut self) -> Result<()> {
        self.process = self.spawn_again()?;
        self.wait_ready()
    }

    /// Starts it again and returns how it ended, for state that it must refuse.
    ///
    /// # Errors
    /// When it goes on for 10 s.
    pub fn start_refused(&mut self) -> Result<(Option<i32>, String)> {
        let before = self.log().len();
        self.process = self.spawn_again()?;
        let mut code = None;
        cmd::wait_until("vswitchd to refuse to start", END_LIMIT, || {
            let ended = self.process.child().try_wait()?;
            code = ended.and_then(|status| status.code());
            Ok(ended.is_some())
        })?;
        Ok((
            code,
            self.log().get(before..).unwrap_or_default().to_owned(),
        ))
    }

    fn spawn_again(&self) -> Result<Background> {
        spawn(&self.netns, self.dirs.path(), &self.options)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Virtual machines outlive a daemon that is killed, but no test.
        let _ = self.kill();
        for pid in vm_processes(&self.run_dir()) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
}

/// The processes of virtual machines of the daemon with this run directory.
fn vm_processes(run_dir: &Path) -> Vec<rustix::process::Pid> {
    let socket = run_dir.join("attach.sock").display().to_string();
    let of = |entry: std::fs::DirEntry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let mut words = line.split(|&byte| byte == 0);
        words.any(|word| word == socket.as_bytes()).then_some(pid)
    };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(of)
        .filter_map(rustix::process::Pid::from_raw)
        .collect()
}

fn spawn(netns: &str, dirs: &Path, options: &Options) -> Result<Background> {
    let program = paths::program("vswitchd")?;
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(dirs.join("log"))?;
    let mut command = std::process::Command::new("ip");
    command.args(["netns", "exec", netns]);
    if options.without_xdp {
        command.args([
            "setpriv",
            "--bounding-set=-bpf,-sys_admin",
            "--inh-caps=-bpf,-sys_admin",
        ]);
    }
    command.arg(program);
    if let Some(vmm) = &options.vmm {
        command.arg("--vmm").arg(vmm);
    }
    if let Some(cores) = &options.cores {
        command.args(["--cores", cores]);
    }
    command
        .arg("--run-dir")
        .arg(dirs.join("run"))
        .arg("--state-dir")
        .arg(dirs.join("state"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    Background::spawn(&mut command)
}

fn answers(socket: &Path) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream
            .write_all(b"GET /v1/status HTTP/1.1\r\nHost: vswitch\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| {
        answer
            .lines()
            .next()
            .is_some_and(|line| line.contains(" 200 "))
    })
}
