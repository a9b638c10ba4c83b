//! The thread that watches the process of a VM: takes its messages, brings its adapters to their seats, and finds out
//! how it ended.

use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use guestmem::{Memory, RegionSpec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing::{info, warn};
use vswitch::api::VmState;
use vswitch::attach::message::{Command, Ended, Region, RunState};
use vswitch::attach::{AttachError, Connection, FromVmm, ToVmm};

use super::live::{Live, SEND_LIMIT};
use super::seat::Rings;

/// The number of the command that starts a machine.
const START: u64 = u64::MAX;
/// How long a process may go on after it closed its connection, and may take to connect.
const GRACE: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};

/// Watches until the process has ended.
pub(super) fn run(live: &Arc<Live>, child: Option<Child>) {
    loop {
        let connection = live.lock().connection.clone();
        match wait(live, connection.as_deref()) {
            Woken::Ended => break,
            Woken::Message => {
                let Some(connection) = connection else {
                    continue;
                };
                if let Err(error) = take_messages(live, &connection) {
                    disconnect(live, &error);
                }
            }
            Woken::Late => live.kill("its process did not connect to vswitchd in time"),
            Woken::Other => {}
        }
    }
    // Its last words may still be on the way.
    if let Some(connection) = live.lock().connection.clone() {
        let _ = take_messages(live, &connection);
    }
    live.seats.values().for_each(|seat| seat.take_away());
    let status = child.and_then(|mut child| child.wait().ok());
    let end = live.update(|inner| {
        let said = inner.intent.take().or_else(|| inner.said.take());
        let end = said.unwrap_or_else(|| how_it_ended(status));
        inner.connection = None;
        inner.end = Some(end.clone());
        end
    });
    info!(vm = %live.name, "VM ended: {end}");
}

enum Woken {
    Ended,
    Message,
    Late,
    Other,
}

fn wait(live: &Live, connection: Option<&Connection>) -> Woken {
    let mut fds = vec![
        PollFd::new(&live.process, PollFlags::IN),
        PollFd::new(&live.wake, PollFlags::IN),
    ];
    fds.extend(connection.map(|connection| PollFd::new(connection, PollFlags::IN)));
    let limit = connection.is_none().then_some(&GRACE);
    let ready = poll(&mut fds, limit);
    let fired: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
    match (ready, fired.as_slice()) {
        (Ok(0), _) => Woken::Late,
        // Messages before the end, which says nothing.
        (Ok(_), [_, _, true]) => Woken::Message,
        (Ok(_), [true, ..]) => Woken::Ended,
        (Ok(_), [_, true, ..]) => {
            let _ = rustix::io::read(&live.wake, &mut [0u8; 8]);
            Woken::Other
        }
        _ => Woken::Other,
    }
}

/// The connection is of no use any more: its memory is let go of at once. A process that has closed it is about to end,
/// or to be told that it must.
fn disconnect(live: &Live, error: &anyhow::Error) {
    live.seats.values().for_each(|seat| seat.take_away());
    live.update(|inner| inner.connection = None);
    if !matches!(error.downcast_ref(), Some(AttachError::Closed)) {
        warn!(vm = %live.name, "its process breaks the protocol: {error:#}");
        live.kill(&format!("its process breaks the protocol: {error:#}"));
    }
}

fn take_messages(live: &Arc<Live>, connection: &Connection) -> anyhow::Result<()> {
    while let Some((message, fds)) = connection.try_receive::<FromVmm>()? {
        take(live, connection, message, fds)?;
    }
    Ok(())
}

fn take(
    live: &Arc<Live>,
    connection: &Connection,
    message: FromVmm,
    fds: Vec<OwnedFd>,
) -> anyhow::Result<()> {
    match message {
        FromVmm::Hello { .. } => bail!("a second hello"),
        FromVmm::Ready {
            regions,
            adapters,
            state,
        } => {
            ensure!(
                adapters.iter().eq(live.seats.keys()),
                "adapters {adapters:?}, where {:?} were configured",
                live.seats.keys()
            );
            bring(live, &regions, fds, state == RunState::Paused)?;
            match state {
                RunState::Running => live.set_state(VmState::Running),
                RunState::Paused => live.set_state(VmState::Paused),
                RunState::Ready => {
                    let start = ToVmm::Command {
                        id: START,
                        command: Command::Start,
                    };
                    connection.send(&start, &[], SEND_LIMIT)?;
                }
            }
        }
        FromVmm::Reply {
            id: START,
            error: Some(reason),
            ..
        } => live.kill(&format!("it could not be started: {reason}")),
        FromVmm::Reply { id: START, .. } => {
            info!(vm = %live.name, "VM started");
            live.set_state(VmState::Running);
        }
        FromVmm::Reply { id, error, status } => {
            live.answered(id, error.map_or(Ok(status), Err));
        }
        FromVmm::Added { .. } | FromVmm::Demand { .. } | FromVmm::Crashed(_) => {
            bail!("a message for synthetic adapters, which it has none of")
        }
        FromVmm::WasReset {} => {
            info!(vm = %live.name, "VM was reset");
            live.seats.values().for_each(|seat| seat.renew());
        }
        FromVmm::Ended(ended) => {
            let said = match ended {
                Ended::PoweredOff {} => "the guest switched itself off".to_owned(),
                Ended::Failed { reason } => reason,
            };
            live.update(|inner| inner.said = Some(said));
        }
    }
    Ok(())
}

/// Brings the adapters of a machine to their seats.
fn bring(
    live: &Arc<Live>,
    regions: &[Region],
    fds: Vec<OwnedFd>,
    paused: bool,
) -> anyhow::Result<()> {
    let mut fds = fds.into_iter();
    let ram = fds.next().context("no file of the RAM")?;
    let specs = regions.iter().map(|region| {
        Ok(RegionSpec {
            guest_addr: region.guest,
            user_addr: region.guest,
            len: region.len,
            fd: ram.try_clone()?,
            fd_offset: region.offset,
        })
    });
    let specs = specs.collect::<anyhow::Result<_>>()?;
    let memory = Arc::new(Memory::map(specs).context("its RAM cannot be mapped")?);
    for (&name, seat) in &live.seats {
        let (Some(page), Some(kick), Some(interrupt)) = (fds.next(), fds.next(), fds.next()) else {
            bail!("files of an adapter are missing");
        };
        let rings = Rings {
            memory: memory.clone(),
            page,
            kick,
            interrupt,
            live: Arc::downgrade(live),
            name,
        };
        seat.bring(rings, paused);
    }
    Ok(())
}

/// How a process ended that had not said anything.
fn how_it_ended(status: Option<ExitStatus>) -> String {
    let Some(status) = status else {
        return "its process ended".to_owned();
    };
    match (status.signal(), status.code()) {
        (Some(signal), _) => {
            let name = rustix::process::Signal::from_named_raw(signal)
                .map_or(signal.to_string(), |name| format!("{name:?}"));
            format!("its process was killed by signal {name}")
        }
        (None, Some(code)) => format!("its process ended with status {code}"),
        (None, None) => "its process ended".to_owned(),
    }
}
