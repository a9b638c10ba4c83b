//! The serial console of a guest, which takes commands on it.

use std::{
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{cmd, station::Address};

/// How long one command may take. Where KVM emulates ring 0, starting a program takes a tenth of a second, and many times
/// that on a machine that does something else too.
const COMMAND_LIMIT: Duration = Duration::from_secs(120);
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How much of what was said an error shows.
const TAIL: usize = 3000;

/// A connection with a guest's first serial port. What is said while nobody is connected is not heard.
#[derive(Debug)]
pub struct Console {
    stream: UnixStream,
    said: Vec<u8>,
    /// How much of it has been waited for.
    read: usize,
    commands: u32,
}

impl Console {
    /// Connects with the unix socket at `path` as soon as it is there.
    ///
    /// # Errors
    /// When nobody listens there within 10 s.
    pub fn connect(path: &Path) -> Result<Self> {
        let mut stream = None;
        let what = format!("a console at {}", path.display());
        cmd::wait_until(&what, CONNECT_LIMIT, || {
            stream = UnixStream::connect(path).ok();
            Ok(stream.is_some())
        })?;
        let stream = stream.context("no console")?;
        stream.set_read_timeout(Some(Duration::from_millis(50)))?;
        Ok(Self {
            stream,
            said: Vec::new(),
            read: 0,
            commands: 0,
        })
    }

    /// Connects with the unix socket at `path`, where the same guest goes on that the old connection is lost with. What it
    /// said there stays said.
    ///
    /// # Errors
    /// As [`Console::connect`].
    pub fn follow(&mut self, path: &Path) -> Result<()> {
        let start = Instant::now();
        while self.hear()? {
            ensure!(
                start.elapsed() < CONNECT_LIMIT,
                "the old console does not end"
            );
        }
        self.stream = Self::connect(path)?.stream;
        Ok(())
    }

    /// Waits until the guest has said `text` after what was waited for before, and returns all from there to its end.
    ///
    /// # Errors
    /// When it has not within `limit`, or the console was closed. The error holds the end of what it said.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<String> {
        let start = Instant::now();
        loop {
            let rest = self.said.get(self.read..).unwrap_or_default();
            if let Some(at) = find(rest, text.as_bytes()) {
                let end = at + text.len();
                let found = String::from_utf8_lossy(rest.get(..end).unwrap_or_default());
                self.read += end;
                return Ok(found.into_owned());
            }
            ensure!(
                start.elapsed() < limit,
                "waited {limit:?} in vain for {text:?} on the console, which said:\n{}",
                self.tail()
            );
            let open = self.hear();
            ensure!(
                open.with_context(|| format!("waiting for {text:?}"))?,
                "waiting for {text:?}, the console was closed after it said:\n{}",
                self.tail()
            );
        }
    }

    /// Waits until the guest takes commands and returns how many seconds it counted from its kernel's start.
    ///
    /// # Errors
    /// As [`Console::wait_for`].
    pub fn wait_ready(&mut self, limit: Duration) -> Result<f64> {
        self.wait_for("guest ready after ", limit)?;
        let seconds = self.wait_for(" s\n", Duration::from_secs(2))?;
        let seconds = seconds.trim_end_matches(" s\n");
        seconds
            .parse()
            .with_context(|| format!("the guest was ready after {seconds:?}"))
    }

    /// Runs a shell command and returns what it printed, standard error too.
    ///
    /// # Errors
    /// When it does not end with status 0 or not within two minutes.
    pub fn run(&mut self, command: &str) -> Result<String> {
        let (status, text) = self.output(command)?;
        ensure!(
            status == 0,
            "in the guest, `{command}` ended with status {status}: {}",
            text.trim()
        );
        Ok(text)
    }

    /// Runs a shell command and returns its exit status and what it printed.
    ///
    /// # Errors
    /// When it does not end within two minutes.
    pub fn output(&mut self, command: &str) -> Result<(i32, String)> {
        let number = self.begin(command)?;
        self.end(number)
    }

    /// Has the guest ping `to` twice.
    ///
    /// # Errors
    /// When an answer is missing.
    pub fn ping(&mut self, to: Address) -> Result<()> {
        let said = self.run(&format!("ping -c 2 -W 5 {}", to.ip(false)))?;
        ensure!(said.contains(" 0% packet loss"), "{said}");
        Ok(())
    }

    /// Hands a shell command to the guest and returns its number.
    ///
    /// # Errors
    /// When the console was closed.
    pub fn begin(&mut self, command: &str) -> Result<u32> {
        ensure!(!command.contains('\n'), "one line at a time: {command:?}");
        self.commands += 1;
        let line = format!("{} {command}\n", self.commands);
        self.stream
            .write_all(line.as_bytes())
            .with_context(|| format!("handing `{command}` to the guest"))?;
        Ok(self.commands)
    }

    /// Waits for the end of the command with this number and returns its exit status and what it printed.
    ///
    /// # Errors
    /// When it does not end within two minutes.
    pub fn end(&mut self, number: u32) -> Result<(i32, String)> {
        let mark = format!("@{number} ");
        let mut text = self.wait_for(&mark, COMMAND_LIMIT)?;
        text.truncate(text.len() - mark.len());
        let status = self.wait_for("\n", COMMAND_LIMIT)?;
        let status = status.trim();
        let status = status
            .parse()
            .with_context(|| format!("command {number} ended with status {status:?}"))?;
        Ok((status, text))
    }

    /// All that was said since the connection was made.
    #[must_use]
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&self.said).into_owned()
    }

    fn tail(&self) -> String {
        let from = self.said.len().saturating_sub(TAIL);
        String::from_utf8_lossy(self.said.get(from..).unwrap_or_default()).into_owned()
    }

    /// Hears what is being said; false once the connection is closed.
    fn hear(&mut self) -> Result<bool> {
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer) {
            Ok(0) => Ok(false),
            Ok(len) => {
                let bytes = buffer.get(..len).unwrap_or_default();
                self.said
                    .extend(bytes.iter().filter(|byte| **byte != b'\r'));
                Ok(true)
            }
            // Also where the process was stopped and goes on.
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(false),
            Err(error) => Err(error).context("reading the console"),
        }
    }
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{io::Write, os::unix::net::UnixListener, thread};

    use super::*;

    fn guest(answers: &'static str) -> (tempfile::TempDir, Console) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for byte in answers.bytes() {
                stream.write_all(&[byte]).unwrap();
            }
            thread::sleep(Duration::from_millis(300));
        });
        let console = Console::connect(&path).unwrap();
        (dir, console)
    }

    #[test]
    fn commands_end_with_their_number_and_status() {
        let (_dir, mut console) = guest("boot\r\nguest ready after 9.25 s\none\ntwo\n@1 0\n@2 1\n");
        assert_eq!(console.wait_ready(COMMAND_LIMIT).unwrap(), 9.25);
        assert_eq!(console.run("first").unwrap(), "one\ntwo\n");
        let error = console.run("second").unwrap_err().to_string();
        assert!(error.contains("`second` ended with status 1"), "{error}");
    }

    #[test]
    fn what_was_said_before_a_new_connection_counts() {
        let (_old, mut console) = guest("one\n@1 0\n");
        let number = console.begin("first").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let _listener = UnixListener::bind(&path).unwrap();
        console.follow(&path).unwrap();
        assert_eq!(console.end(number).unwrap(), (0, "one\n".to_owned()));
    }

    #[test]
    fn what_was_said_stands_in_the_error() {
        let (_dir, mut console) = guest("panic: no init\n");
        let error = console.wait_ready(Duration::from_millis(150)).unwrap_err();
        assert!(format!("{error:#}").contains("no init"), "{error:#}");
        let error = console.wait_ready(COMMAND_LIMIT).unwrap_err();
        assert!(format!("{error:#}").contains("closed"), "{error:#}");
    }
}
