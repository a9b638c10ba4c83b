//! The connection to vswitchd, which may go and come back while the VM runs.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::event::Timespec;
use vswitch::attach::message::{Configure, FileRole};
use vswitch::attach::{AttachError, Connection, FromVmm, ToVmm, VERSION};

/// How long vswitchd is waited for: it answers a hello at once, and reads what it is sent.
const LIMIT: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};

/// How long a VM goes on that vswitchd does not know: while it starts it may not know it yet.
const PATIENCE: Duration = Duration::from_secs(30);

/// Open files by what they are for.
pub(crate) type Files = BTreeMap<FileRole, OwnedFd>;

/// The connection to vswitchd.
pub(crate) struct Attached {
    socket: PathBuf,
    name: String,
    connection: Option<Connection>,
    /// Since when a vswitchd that is there does not want this VM.
    unwanted: Option<Instant>,
}

impl Attached {
    /// Connects for the first time.
    pub(crate) fn first(socket: PathBuf, name: String) -> anyhow::Result<Attached> {
        let connection = Connection::dial(&socket)?;
        let mut attached = Attached {
            socket,
            name,
            connection: Some(connection),
            unwanted: None,
        };
        attached.hello(false)?;
        Ok(attached)
    }

    /// The VM's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn hello(&mut self, running: bool) -> anyhow::Result<()> {
        let connection = self.connection.as_ref().context("no connection")?;
        let hello = FromVmm::Hello {
            version: VERSION,
            name: self.name.clone(),
            running,
        };
        Ok(connection.send(&hello, &[], LIMIT)?)
    }

    /// What machine is to be made, and the open files it is made from.
    pub(crate) fn configuration(&self) -> anyhow::Result<(Configure, Files)> {
        let connection = self.connection.as_ref().context("no connection")?;
        let (message, fds) = connection
            .receive::<ToVmm>(LIMIT)
            .context("vswitchd says nothing")?;
        let ToVmm::Configure(configure) = message else {
            bail!("vswitchd did not say what machine to make");
        };
        let files = configure.files.iter().copied().zip(fds).collect();
        Ok((configure, files))
    }

    /// Whether vswitchd has been there for long, and does not know this VM: it must not run beside another of its name.
    pub(crate) fn is_orphan(&self) -> bool {
        self.unwanted
            .is_some_and(|since| since.elapsed() > PATIENCE)
    }

    /// Connects again, for a VM that runs. False if vswitchd is not there, or does not want it now.
    pub(crate) fn again(&mut self) -> bool {
        let Ok(connection) = Connection::dial(&self.socket) else {
            self.unwanted = None;
            return false;
        };
        self.connection = Some(connection);
        let adopted = self.hello(true).and_then(|()| {
            let connection = self.connection.as_ref().context("no connection")?;
            let (message, _) = connection.receive::<ToVmm>(LIMIT)?;
            anyhow::ensure!(message == ToVmm::Adopt {}, "not adopted");
            Ok(())
        });
        if adopted.is_ok() {
            self.unwanted = None;
        } else {
            self.connection = None;
            self.unwanted.get_or_insert_with(Instant::now);
        }
        adopted.is_ok()
    }

    /// The socket, while there is a connection.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.connection.as_ref().map(AsFd::as_fd)
    }

    /// Sends a message; without a connection nobody is there to be told. A connection that does not take it is given up.
    pub(crate) fn send(&mut self, message: &FromVmm, fds: &[BorrowedFd<'_>]) {
        let sent = self
            .connection
            .as_ref()
            .map(|connection| connection.send(message, fds, LIMIT));
        if let Some(Err(error)) = sent {
            if !matches!(error, AttachError::Closed) {
                tracing::error!("{:#}", anyhow::Error::from(error));
            }
            self.connection = None;
        }
    }

    /// The next message that is there. A connection that has ended is given up.
    pub(crate) fn next(&mut self) -> Option<(ToVmm, Vec<OwnedFd>)> {
        match self.connection.as_ref()?.try_receive() {
            Ok(message) => message,
            Err(error) => {
                if !matches!(error, AttachError::Closed) {
                    tracing::error!("{:#}", anyhow::Error::from(error));
                }
                self.connection = None;
                None
            }
        }
    }
}
