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
use vnic_synthetic::port::Config;
use vswitch::api::{AdapterKind, AdapterName, Link, VmState};
use vswitch::attach::demand::Demand;
use vswitch::attach::message::{Command, Ended, Region, RunState};
use vswitch::attach::{AttachError, Connection, FromVmm, ToVmm};

use super::door::hello;
use super::live::{Live, Place, SEND_LIMIT};
use super::seat::{Kind, Legacy, Rings, Seat};
use super::synthetic::Synthetic;

/// The number of the command that starts a machine.
const START: u64 = u64::MAX;
/// How long a process may go on after it closed its connection, and may take to connect or to answer.
const GRACE: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};

/// Watches until the process has ended.
pub(super) fn run(live: &Arc<Live>, child: Option<Child>) {
    let mut late = "its process did not connect to vswitchd in time".to_owned();
    // One that was adopted waits for this vswitchd.
    if child.is_none() {
        late = reach(live).err().unwrap_or(late);
    }
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
                    late = reach(live).err().unwrap_or(late);
                }
            }
            Woken::Late => live.kill(&late),
            Woken::Other => live.each_seat(Seat::attend),
        }
    }
    // Its last words may still be on the way.
    if let Some(connection) = live.lock().connection.clone() {
        let _ = take_messages(live, &connection);
    }
    live.each_seat(|seat| seat.take_away());
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
    live.each_seat(|seat| seat.take_away());
    live.update(|inner| {
        inner.connection = None;
        inner.memory = None;
    });
    if !matches!(error.downcast_ref(), Some(AttachError::Closed)) {
        warn!(vm = %live.name, "its process breaks the protocol: {error:#}");
        live.kill(&format!("its process breaks the protocol: {error:#}"));
    }
}

/// Connects to a process whose connection is lost. One that is about to end cannot be reached: why not is told only if it
/// does not end.
fn reach(live: &Live) -> Result<(), String> {
    let reached = || {
        let attach = live.lock().attach.clone();
        let connection = Connection::dial(&attach)?;
        let (name, running) = hello(&connection, GRACE)?;
        ensure!(name == live.name, "it says it is VM '{name}'");
        live.connected(connection, running)
    };
    reached().map_err(|error| format!("its process cannot be reached: {error:#}"))
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
            reconcile(live, connection, &adapters, state)?;
            bring(live, &regions, &adapters, fds, state == RunState::Paused)?;
            ready(live, connection, state)?;
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
        FromVmm::Added { adapter } => {
            let memory = live.lock().memory.clone();
            let memory = memory.context("an adapter before the machine")?;
            let place = live.places().get(&adapter).cloned();
            let place = place.with_context(|| format!("adapter {adapter}, which is not known"))?;
            let rings = rings(live, &memory, adapter, &place, &mut fds.into_iter())?;
            place.seat.bring(rings, live.state() == VmState::Paused);
        }
        FromVmm::Demand {
            id,
            adapter,
            demand,
        } => {
            let ok = match live.seat(adapter) {
                Some(seat) => seat.meet(demand, fds.into_iter().next()),
                // It was unplugged: nobody uses its memory.
                None => matches!(demand, Demand::Remove { .. } | Demand::Close { .. }),
            };
            connection.send(&ToVmm::Done { id, ok }, &[], SEND_LIMIT)?;
        }
        FromVmm::Crashed(report) => {
            if live.crash().is_none() {
                let [code, parameters @ ..] = report.parameters;
                warn!(vm = %live.name, "the guest crashed: {code:#x} {parameters:x?}");
            }
            live.update(|inner| inner.crash = Some(report));
        }
        FromVmm::WasReset {} => {
            info!(vm = %live.name, "VM was reset");
            live.each_seat(|seat| seat.renew());
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

/// A machine is there: it is started, unless it runs already.
fn ready(live: &Live, connection: &Connection, state: RunState) -> anyhow::Result<()> {
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
    Ok(())
}

/// Compares the adapters of a machine with those it should have. Synthetic ones may have been plugged in or unplugged
/// when vswitchd was killed: what was not finished then is done now.
fn reconcile(
    live: &Live,
    connection: &Connection,
    found: &[AdapterName],
    state: RunState,
) -> anyhow::Result<()> {
    let places = live.places().clone();
    let missing = places.keys().filter(|name| !found.contains(name));
    let strange = found.iter().filter(|name| !places.contains_key(name));
    for &name in missing.clone().chain(strange) {
        ensure!(
            name.kind() == AdapterKind::Synthetic && state != RunState::Ready,
            "adapters {found:?}, where {:?} were configured",
            places.keys()
        );
        let command = match places.get(&name) {
            Some(place) => Command::AddAdapter {
                adapter: place.config(name),
            },
            None => Command::RemoveAdapter { adapter: name },
        };
        connection.send(&ToVmm::Command { id: 0, command }, &[], SEND_LIMIT)?;
    }
    Ok(())
}

/// Brings the adapters of a machine to their seats.
fn bring(
    live: &Arc<Live>,
    regions: &[Region],
    adapters: &[AdapterName],
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
    live.update(|inner| inner.memory = Some(memory.clone()));
    let places = live.places().clone();
    for &name in adapters {
        match places.get(&name) {
            Some(place) => {
                let rings = rings(live, &memory, name, place, &mut fds)?;
                place.seat.bring(rings, paused);
            }
            // It is being unplugged.
            None => drop(fds.next()),
        }
    }
    Ok(())
}

/// The rings of an adapter, from its files.
fn rings(
    live: &Arc<Live>,
    memory: &Arc<Memory>,
    name: AdapterName,
    place: &Place,
    fds: &mut impl Iterator<Item = OwnedFd>,
) -> anyhow::Result<Rings> {
    let mut next = || fds.next().context("files of an adapter are missing");
    let kind = match name.kind() {
        AdapterKind::Legacy => Kind::Legacy(Legacy {
            memory: memory.clone(),
            page: next()?,
            kick: next()?,
            interrupt: next()?,
        }),
        AdapterKind::Synthetic => {
            let config = Config {
                mac: place.mac,
                mac_may_change: true,
                link_up: place.seat.link() == Link::Up,
                channels: place.channels,
            };
            let attention = live.wake.clone();
            Kind::Synthetic(Synthetic::new(memory.clone(), config, next()?, attention))
        }
    };
    Ok(Rings {
        kind,
        live: Arc::downgrade(live),
        name,
    })
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
