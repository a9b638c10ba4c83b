//! The connection to vswitchd, which may go and come back while the VM runs.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, bail};
use rustix::event::Timespec;
use vswitch::attach::message::{Configure, FileRole};
use vswitch::attach::{AttachError, Connection, FromVmm, ToVmm, VERSION};

/// How long vswitchd is waited for: it answers a hello at once, and reads what it is sent.
const LIMIT: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};

/// Open files by what they are for.
pub(crate) type Files = BTreeMap<FileRole, OwnedFd>;

/// The connection to vswitchd.
pub(crate) struct Attached {
    name: String,
    connection: Option<Connection>,
    /// Where the next vswitchd comes in.
    door: Option<OwnedFd>,
}

/// What became of a wait for vswitchd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Return {
    /// It is there, and has adopted this VM.
    Adopted,
    /// It is not there.
    Nobody,
    /// It is there, and wants this VM to end.
    Unwanted,
}

impl Attached {
    /// Connects for the first time.
    pub(crate) fn first(socket: &Path, name: String) -> anyhow::Result<Attached> {
        let connection = Connection::dial(socket)?;
        let mut attached = Attached {
            name,
            connection: Some(connection),
            door: None,
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
    pub(crate) fn configuration(&mut self) -> anyhow::Result<(Configure, Files)> {
        let connection = self.connection.as_ref().context("no connection")?;
        let (message, fds) = connection
            .receive::<ToVmm>(LIMIT)
            .context("vswitchd says nothing")?;
        let ToVmm::Configure(configure) = message else {
            bail!("vswitchd did not say what machine to make");
        };
        let mut files: Files = configure.files.iter().copied().zip(fds).collect();
        self.door = files.remove(&FileRole::Attach);
        Ok((configure, files))
    }

    /// Lets the next vswitchd in, if it has come, for a VM that runs.
    pub(crate) fn again(&mut self) -> Return {
        let waiting = self.door.as_ref().map(Connection::accept);
        let Some(Ok(Some(connection))) = waiting else {
            return Return::Nobody;
        };
        self.connection = Some(connection);
        // One that wants the VM to end does not wait for the hello.
        let _ = self.hello(true);
        match self.answer() {
            Ok(ToVmm::Adopt {}) => return Return::Adopted,
            Ok(ToVmm::Leave {}) => return Return::Unwanted,
            Ok(_) => tracing::error!("vswitchd neither adopts the VM nor lets it go"),
            // It has gone again.
            Err(_) => {}
        }
        self.connection = None;
        Return::Nobody
    }

    fn answer(&self) -> anyhow::Result<ToVmm> {
        let connection = self.connection.as_ref().context("no connection")?;
        Ok(connection.receive::<ToVmm>(LIMIT)?.0)
    }

    /// What to wait for: messages, or without a connection the next vswitchd.
    pub(crate) fn awaited(&self) -> Option<BorrowedFd<'_>> {
        self.fd().or_else(|| self.door.as_ref().map(AsFd::as_fd))
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
