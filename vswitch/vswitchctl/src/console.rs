//! The serial console: this terminal as that of the VM.

use std::io::{ErrorKind, IsTerminal, Write};
use std::os::unix::net::UnixStream;

use anyhow::{Context, anyhow};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// Ctrl-], as of telnet: leaves the console.
const ESCAPE: u8 = 0x1d;

/// Connects terminal and console, until the escape is typed, or either ends.
pub(crate) fn run(path: &str) -> anyhow::Result<()> {
    let mut console = UnixStream::connect(path).map_err(|error| match error.kind() {
        ErrorKind::PermissionDenied => {
            anyhow!("no permission for {path}; allowed: root, and members of the socket's group")
        }
        _ => anyhow!("cannot connect to the console {path}: {error}"),
    })?;
    let stdin = std::io::stdin();
    let _raw = if stdin.is_terminal() {
        let _ = writeln!(std::io::stderr(), "Connected; Ctrl-] leaves.");
        Some(Raw::enter()?)
    } else {
        None
    };
    let mut bytes = [0; 4096];
    loop {
        let mut fds = [
            PollFd::new(&stdin, PollFlags::IN),
            PollFd::new(&console, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno).context("cannot wait for the console"),
        }
        let [typed, said] = fds.map(|fd| !fd.revents().is_empty());
        if said {
            match rustix::io::read(&console, &mut bytes) {
                Ok(0) | Err(Errno::CONNRESET) => return Ok(()),
                Ok(count) => {
                    let mut stdout = std::io::stdout().lock();
                    stdout.write_all(bytes.get(..count).unwrap_or_default())?;
                    stdout.flush()?;
                }
                Err(errno) => return Err(errno).context("the console failed"),
            }
        }
        if typed {
            let count = rustix::io::read(&stdin, &mut bytes).context("cannot read the terminal")?;
            let typed = bytes.get(..count).unwrap_or_default();
            let end = typed.iter().position(|&byte| byte == ESCAPE);
            let text = typed.get(..end.unwrap_or(count)).unwrap_or_default();
            match console.write_all(text) {
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
                result => result.context("the console failed")?,
            }
            if end.is_some() || count == 0 {
                return Ok(());
            }
        }
    }
}

/// The terminal without line editing and signals; as it was before when dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> anyhow::Result<Raw> {
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin).context("cannot read the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).context("cannot set up the terminal")?;
        Ok(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing to be done if the terminal has gone.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
        let _ = writeln!(std::io::stderr());
    }
}
