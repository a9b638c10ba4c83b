//! The attach socket, on which the processes of VMs come in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use anyhow::{Context, bail, ensure};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use tracing::warn;
use vswitch::api::VmName;
use vswitch::attach::{Connection, FromVmm, Listener, VERSION};

use super::live::Live;

/// How long whoever connects may take to say who it is. Only the owner of the socket can connect.
const HELLO_LIMIT: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

type Expected = Mutex<BTreeMap<VmName, Weak<Live>>>;

/// The attach socket, and who is expected on it. Dropping it closes it.
pub(crate) struct Door {
    path: PathBuf,
    expected: Arc<Expected>,
    stop: Arc<std::os::fd::OwnedFd>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Door {
    /// Opens the socket `path`.
    pub(crate) fn open(path: PathBuf) -> anyhow::Result<Door> {
        let shown = path.display();
        let listener = Listener::bind(&path).with_context(|| format!("cannot make {shown}"))?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let stop = Arc::new(eventfd(0, flags).context("cannot make an event file descriptor")?);
        let expected: Arc<Expected> = Arc::default();
        let (whom, until) = (expected.clone(), stop.clone());
        let thread = std::thread::Builder::new()
            .name("attach".to_owned())
            .spawn(move || admit(&listener, &whom, &until))
            .context("cannot start a thread for the attach socket")?;
        Ok(Door {
            path,
            expected,
            stop,
            thread: Some(thread),
        })
    }

    /// The socket.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Lets the process in that `start` makes. Nobody is let in before it is known here.
    pub(crate) fn expect(
        &self,
        name: &VmName,
        start: impl FnOnce() -> anyhow::Result<Arc<Live>>,
    ) -> anyhow::Result<Arc<Live>> {
        let mut expected = lock(&self.expected);
        let live = start()?;
        expected.retain(|_, live| live.strong_count() > 0);
        expected.insert(name.clone(), Arc::downgrade(&live));
        Ok(live)
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(expected: &Expected) -> MutexGuard<'_, BTreeMap<VmName, Weak<Live>>> {
    expected.lock().unwrap_or_else(PoisonError::into_inner)
}

fn admit(listener: &Listener, expected: &Expected, stop: &std::os::fd::OwnedFd) {
    loop {
        let mut fds = [
            PollFd::new(listener, PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
        ];
        let _ = poll(&mut fds, None);
        let [_, stopped] = &fds;
        if !stopped.revents().is_empty() {
            return;
        }
        match listener.accept() {
            Ok(Some(connection)) => {
                if let Err(error) = welcome(connection, expected) {
                    warn!("somebody on the attach socket was turned away: {error:#}");
                }
            }
            Ok(None) => {}
            Err(error) => {
                warn!("{:#}", anyhow::Error::from(error));
                // As with no file descriptors left: not at once again.
                std::thread::sleep(std::time::Duration::from_secs(1));
            }
        }
    }
}

fn welcome(connection: Connection, expected: &Expected) -> anyhow::Result<()> {
    let (name, running) = hello(&connection, HELLO_LIMIT)?;
    let live = lock(expected).get(&name).and_then(Weak::upgrade);
    let live = live.with_context(|| format!("VM '{name}' is not waited for"))?;
    let pid = connection.peer_pid()?;
    ensure!(
        pid == live.id().0,
        "process {pid} says it is VM '{name}', which is process {}",
        live.id().0
    );
    live.connected(connection, running)
}

/// The first message of a process: its VM, and whether that runs already.
pub(super) fn hello(connection: &Connection, limit: Timespec) -> anyhow::Result<(VmName, bool)> {
    let (message, _) = connection.receive::<FromVmm>(limit)?;
    let FromVmm::Hello {
        version,
        name,
        running,
    } = message
    else {
        bail!("its first message is no hello");
    };
    ensure!(
        version == VERSION,
        "it speaks version {version}; allowed: {VERSION}"
    );
    Ok((name.parse()?, running))
}
