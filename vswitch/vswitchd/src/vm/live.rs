//! The process of a VM that runs, and the connection to it.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use guestmem::Memory;
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use vswitch::api::{AdapterName, Link, VmName, VmState};
use vswitch::attach::message::{AdapterConfig, Command, Configure, CrashReport, FileRole, Status};
use vswitch::attach::{Connection, ToVmm};
use vswitch::mac::Mac;

use super::launch::Launcher;
use super::seat::Seat;
use super::{PROMPT, supervise};

/// How long a process that does not read its messages is waited for.
pub(super) const SEND_LIMIT: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// An adapter of a VM, as its process and its rings are made.
#[derive(Clone)]
pub(crate) struct Place {
    /// Its seat.
    pub(crate) seat: Arc<Seat>,
    /// Its address.
    pub(crate) mac: Mac,
    /// Identifies it to its guest.
    pub(crate) instance: [u8; 16],
    /// Channels its driver can have, if it is a synthetic one.
    pub(crate) channels: u32,
}

/// Those of a VM.
pub(crate) type Places = BTreeMap<AdapterName, Place>;

impl Place {
    /// What its process is told of it.
    pub(crate) fn config(&self, name: AdapterName) -> AdapterConfig {
        AdapterConfig {
            name,
            mac: self.mac.0,
            link: self.seat.link() == Link::Up,
            instance: self.instance,
        }
    }
}

/// What a process that is started is given.
pub(crate) struct Birth {
    /// The machine; [`Configure::files`] is filled in from `files`.
    pub(crate) configure: Configure,
    /// Open files.
    pub(crate) files: Vec<(FileRole, OwnedFd)>,
    /// The socket it listens on, which is one of them.
    pub(crate) attach: PathBuf,
}

/// The process of a VM. It is there until it has ended, whatever happens to the connection.
pub(crate) struct Live {
    pub(super) name: VmName,
    pid: i32,
    started: i64,
    pub(super) process: OwnedFd,
    /// Wakes the thread that watches; its adapters do, when they have news.
    pub(super) wake: Arc<OwnedFd>,
    /// Its adapters.
    places: Mutex<Places>,
    /// Held by whoever changes the VM's state, so that changes follow each other.
    pub(super) operation: Mutex<()>,
    inner: Mutex<Inner>,
    changed: Condvar,
}

/// What is known of the process.
pub(super) struct Inner {
    pub(super) state: VmState,
    pub(super) connection: Option<Arc<Connection>>,
    /// The socket on which it can be reached when the connection is lost.
    pub(super) attach: PathBuf,
    /// What it is to be given when it connects.
    pub(super) birth: Option<Birth>,
    next_id: u64,
    /// Commands whose answer is waited for, and the answer.
    replies: BTreeMap<u64, Option<Answer>>,
    pub(super) status: Option<Status>,
    /// What the guest said when it crashed.
    pub(super) crash: Option<CrashReport>,
    /// Its RAM, while there is a connection and a machine.
    pub(super) memory: Option<Arc<Memory>>,
    /// Why it is being ended by us.
    pub(super) intent: Option<String>,
    /// Why it said that it ends.
    pub(super) said: Option<String>,
    /// It has ended, for this reason.
    pub(super) end: Option<String>,
}

/// The answer to a command: why it was not carried out, or how things stand.
type Answer = Result<Option<Status>, String>;

impl Live {
    /// Starts the process of a VM.
    pub(crate) fn start(
        name: &VmName,
        launcher: &dyn Launcher,
        socket: &Path,
        places: Places,
        birth: Birth,
    ) -> anyhow::Result<Arc<Live>> {
        use std::os::unix::process::CommandExt;
        let mut child = launcher
            .command(name, socket)?
            .stdin(Stdio::null())
            // What is sent to vswitchd's group, as by a terminal, is not for VMs.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start the process of VM '{name}'"))?;
        let pid = child.id() as i32;
        let attach = birth.attach.clone();
        let live = Live::new(name, pid, places, attach, Some(birth)).inspect_err(|_| {
            let _ = child.kill();
            let _ = child.wait();
        })?;
        live.watch(Some(child))?;
        Ok(live)
    }

    /// Takes on a process that a vswitchd before this one had started; `None` if it is no more.
    pub(crate) fn adopt(
        name: &VmName,
        (pid, started): (i32, i64),
        places: Places,
        attach: PathBuf,
    ) -> anyhow::Result<Option<Arc<Live>>> {
        if start_time(pid) != Some(started) {
            return Ok(None);
        }
        let live = Live::new(name, pid, places, attach, None)?;
        // It may have ended, and its number been given to another, before it was opened.
        if live.started != started {
            return Ok(None);
        }
        live.watch(None)?;
        Ok(Some(live))
    }

    fn new(
        name: &VmName,
        pid: i32,
        places: Places,
        attach: PathBuf,
        birth: Option<Birth>,
    ) -> anyhow::Result<Arc<Live>> {
        let raw = Pid::from_raw(pid).context("no process")?;
        let process = pidfd_open(raw, PidfdFlags::empty())
            .with_context(|| format!("cannot watch process {pid} of VM '{name}'"))?;
        let started = start_time(pid).with_context(|| {
            format!("the process of VM '{name}' ended before it could be watched")
        })?;
        Ok(Arc::new(Live {
            name: name.clone(),
            pid,
            started,
            process,
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                .map(Arc::new)
                .context("cannot make an event file descriptor")?,
            places: Mutex::new(places),
            operation: Mutex::new(()),
            inner: Mutex::new(Inner {
                state: VmState::Starting,
                connection: None,
                attach,
                birth,
                // 0 is for commands whose answer nobody waits for.
                next_id: 1,
                replies: BTreeMap::new(),
                status: None,
                crash: None,
                memory: None,
                intent: None,
                said: None,
                end: None,
            }),
            changed: Condvar::new(),
        }))
    }

    fn watch(self: &Arc<Self>, child: Option<Child>) -> anyhow::Result<()> {
        let live = self.clone();
        std::thread::Builder::new()
            .name(format!("vm-{}", self.name))
            .spawn(move || supervise::run(&live, child))
            .map(drop)
            .inspect_err(|_| self.kill("it could not be watched"))
            .with_context(|| format!("cannot start a thread for VM '{}'", self.name))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its adapters. No other lock is taken while this is held.
    pub(super) fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The seat of an adapter.
    pub(super) fn seat(&self, name: AdapterName) -> Option<Arc<Seat>> {
        self.places().get(&name).map(|place| place.seat.clone())
    }

    /// Does something with the seats of all adapters.
    pub(super) fn each_seat(&self, each: impl Fn(&Seat)) {
        let seats: Vec<_> = self
            .places()
            .values()
            .map(|place| place.seat.clone())
            .collect();
        seats.iter().for_each(|seat| each(seat));
    }

    /// What its guest said when it crashed.
    pub(crate) fn crash(&self) -> Option<CrashReport> {
        self.lock().crash.clone()
    }

    /// Number and start time of the process.
    pub(crate) fn id(&self) -> (i32, i64) {
        (self.pid, self.started)
    }

    /// The state; off once the process has ended.
    pub(crate) fn state(&self) -> VmState {
        let inner = self.lock();
        match inner.end {
            Some(_) => VmState::Off,
            None => inner.state,
        }
    }

    /// Why the process has ended, if it has.
    pub(crate) fn end(&self) -> Option<String> {
        self.lock().end.clone()
    }

    /// How things stood when that was last asked for.
    pub(crate) fn status(&self) -> Option<Status> {
        self.lock().status.clone()
    }

    /// Changes what is known of the process, and wakes who waits for a change.
    pub(super) fn update<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.notify_all();
        result
    }

    pub(super) fn set_state(&self, state: VmState) {
        self.update(|inner| inner.state = state);
    }

    /// Waits until `done` answers; `None` if it has not after `limit`.
    pub(super) fn wait<T>(
        &self,
        limit: Duration,
        mut done: impl FnMut(&mut Inner) -> Option<T>,
    ) -> Option<T> {
        let deadline = Instant::now() + limit;
        let mut inner = self.lock();
        loop {
            if let Some(result) = done(&mut inner) {
                return Some(result);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            inner = self
                .changed
                .wait_timeout(inner, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits until the process has ended.
    pub(super) fn wait_end(&self, limit: Duration) -> Option<String> {
        self.wait(limit, |inner| inner.end.clone())
    }

    /// Ends the process at once; `why` is reported as the cause.
    pub(super) fn kill(&self, why: &str) {
        self.update(|inner| {
            inner.intent.get_or_insert_with(|| why.to_owned());
        });
        // It may have ended by itself.
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
    }

    /// Ends the process, and waits for that.
    pub(crate) fn discard(&self, why: &str) {
        self.kill(why);
        self.wait_end(PROMPT);
    }

    /// Sends a command whose answer nobody waits for. Where there is no connection there is nobody to be told.
    pub(super) fn post(&self, command: Command) {
        let connection = self.lock().connection.clone();
        if let Some(connection) = connection {
            let message = ToVmm::Command { id: 0, command };
            // A process that does not read is found out by the next command that is waited for.
            let _ = connection.send(&message, &[], SEND_LIMIT);
        }
    }

    /// Sends a command and waits for the answer.
    pub(crate) fn request(
        &self,
        command: Command,
        file: Option<BorrowedFd<'_>>,
        limit: Duration,
    ) -> anyhow::Result<Option<Status>> {
        let (id, connection) = {
            let mut inner = self.lock();
            let connection = inner.connection.clone();
            let connection = connection.context("its process is not connected")?;
            let id = inner.next_id;
            inner.next_id += 1;
            inner.replies.insert(id, None);
            (id, connection)
        };
        let sent = connection.send(&ToVmm::Command { id, command }, file.as_slice(), SEND_LIMIT);
        let answer = match sent {
            Ok(()) => self.wait(limit, |inner| {
                let answer = inner.replies.get_mut(&id).and_then(Option::take);
                let ended = || inner.end.as_ref().map(|end| Err(end.clone()));
                answer.or_else(ended)
            }),
            Err(error) => Some(Err(format!("{:#}", anyhow!(error)))),
        };
        self.lock().replies.remove(&id);
        match answer {
            Some(Ok(status)) => Ok(status),
            Some(Err(reason)) => bail!(reason),
            None => bail!("its process did not answer in {} s", limit.as_secs()),
        }
    }

    /// Asks how things stand, for what is shown.
    pub(crate) fn refresh(&self) {
        // What was known before stands.
        let _ = self.request(Command::Status, None, PROMPT / 5);
    }

    /// Cuts the connection, as the end of vswitchd does.
    #[cfg(test)]
    pub(crate) fn sever(&self) {
        let mut inner = self.lock();
        // Another vswitchd has it now.
        inner.attach = PathBuf::new();
        if let Some(connection) = &inner.connection {
            rustix::net::shutdown(connection, rustix::net::Shutdown::Both).unwrap();
        }
    }

    /// An answer has come in.
    pub(super) fn answered(&self, id: u64, answer: Answer) {
        self.update(|inner| {
            if let Ok(Some(status)) = &answer {
                inner.status = Some(status.clone());
            }
            if let Some(place) = inner.replies.get_mut(&id) {
                *place = Some(answer);
            }
        });
    }

    /// The process has connected. It is given its machine, or adopted.
    pub(super) fn connected(&self, connection: Connection, running: bool) -> anyhow::Result<()> {
        let birth = self.lock().birth.take();
        match (birth, running) {
            (Some(birth), false) => {
                let mut configure = birth.configure;
                configure.files = birth.files.iter().map(|(role, _)| *role).collect();
                let files: Vec<_> = birth.files.iter().map(|(_, file)| file.as_fd()).collect();
                connection.send(&ToVmm::Configure(configure), &files, SEND_LIMIT)?;
            }
            (None, true) => connection.send(&ToVmm::Adopt {}, &[], SEND_LIMIT)?,
            (Some(_), true) => bail!("it says that it runs, and was only just started"),
            (None, false) => bail!("it asks for its machine again"),
        }
        self.update(|inner| inner.connection = Some(Arc::new(connection)));
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        Ok(())
    }
}

/// When a process was started (proc(5), stat, field 22: clock ticks since the host was); `None` if there is none.
fn start_time(pid: i32) -> Option<i64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before is in parentheses, and may have any in it.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_times_tell_processes_apart() {
        let own = start_time(std::process::id() as i32).unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = child.id() as i32;
        assert!(start_time(pid).unwrap() >= own);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(start_time(pid), None);
        assert_eq!(start_time(-1), None);
    }
}
