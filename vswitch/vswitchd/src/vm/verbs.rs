//! What VMs are told to do. Processes are waited for here, without the manager's lock.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::{error, info, warn};
use vswitch::api::{AutoStop, ErrorCode, Refusal, VmName, VmState, VmVerb};
use vswitch::attach::message::{Command, RunState};

use super::live::Live;
use super::{PROMPT, lock};
use crate::manager::Manager;

/// How long a machine may take until it runs: a large one is read from a file.
const START_LIMIT: Duration = Duration::from_secs(120);
/// How long a machine may take to be written.
const SAVE_LIMIT: Duration = Duration::from_secs(600);

/// Tells a VM to do something, and waits until it has. `timeout` is for [`VmVerb::Shutdown`].
pub(crate) fn act(
    manager: &Mutex<Manager>,
    name: &VmName,
    verb: VmVerb,
    timeout: Duration,
) -> Result<(), Refusal> {
    match verb {
        VmVerb::Start => return start(manager, name),
        VmVerb::Discard => return lock(manager).discard_vm(name),
        _ => {}
    }
    let live = lock(manager).running_vm(name, verb)?;
    let done = match verb {
        VmVerb::TurnOff => turn_off(&live, "it was turned off"),
        VmVerb::Shutdown => shut_down(&live, timeout),
        _ => operate(manager, &live, verb),
    };
    lock(manager).settle_vms();
    done
}

fn refuse(live: &Live, verb: VmVerb, error: &anyhow::Error) -> Refusal {
    let text = format!("cannot {verb} VM '{}': {error:#}", live.name);
    Refusal::new(ErrorCode::Failed, text)
}

fn start(manager: &Mutex<Manager>, name: &VmName) -> Result<(), Refusal> {
    let live = lock(manager).start_vm(name)?;
    let started = live.wait(START_LIMIT, |inner| match (&inner.end, inner.state) {
        (Some(end), _) => Some(Err(anyhow::anyhow!("{end}"))),
        (None, VmState::Starting) => None,
        (None, _) => Some(Ok(())),
    });
    let started = started.unwrap_or_else(|| {
        let why = format!("it did not start in {} s", START_LIMIT.as_secs());
        live.kill(&why);
        live.wait_end(PROMPT);
        Err(anyhow::anyhow!(why))
    });
    let mut manager = lock(manager);
    match started {
        Ok(()) => manager.vm_started(name),
        Err(error) => {
            manager.settle_vms();
            Err(refuse(&live, VmVerb::Start, &error))
        }
    }
}

fn turn_off(live: &Live, why: &str) -> Result<(), Refusal> {
    live.kill(why);
    match live.wait_end(PROMPT) {
        Some(_) => Ok(()),
        None => {
            let error = anyhow::anyhow!("its process does not end");
            Err(refuse(live, VmVerb::TurnOff, &error))
        }
    }
}

fn shut_down(live: &Live, timeout: Duration) -> Result<(), Refusal> {
    let refused = |error: anyhow::Error| refuse(live, VmVerb::Shutdown, &error);
    live.request(Command::PowerButton, None, PROMPT)
        .map_err(refused)?;
    match live.wait_end(timeout) {
        Some(_) => Ok(()),
        None => Err(refused(anyhow::anyhow!(
            "its power button was pressed, and the guest is not off after {} s; it goes on; allowed: a longer \
             --timeout, turn-off",
            timeout.as_secs()
        ))),
    }
}

/// The verbs that change a machine which goes on, one after the other.
fn operate(manager: &Mutex<Manager>, live: &Arc<Live>, verb: VmVerb) -> Result<(), Refusal> {
    let _alone = live
        .operation
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let before = live.state();
    before.admit(&live.name, verb)?;
    let done = match verb {
        VmVerb::Pause => pause(live),
        VmVerb::Resume => resume(live),
        VmVerb::Save => save(manager, live, before),
        _ => live.request(Command::Reset, None, PROMPT).map(drop),
    };
    if done.is_err() {
        resynchronise(live);
    }
    done.map_err(|error| refuse(live, verb, &error))
}

/// A verb failed, perhaps only because its answer did not come in time: takes the state that the process has now.
fn resynchronise(live: &Live) {
    let Ok(Some(status)) = live.request(Command::Status, None, PROMPT) else {
        return;
    };
    let paused = status.state == RunState::Paused;
    live.each_seat(|seat| seat.pause(paused));
    live.set_state(if paused {
        VmState::Paused
    } else {
        VmState::Running
    });
}

fn pause(live: &Live) -> anyhow::Result<()> {
    live.request(Command::Pause, None, PROMPT)?;
    live.each_seat(|seat| seat.pause(true));
    live.set_state(VmState::Paused);
    Ok(())
}

fn resume(live: &Live) -> anyhow::Result<()> {
    live.each_seat(|seat| seat.pause(false));
    let resumed = live.request(Command::Resume, None, PROMPT);
    if resumed.is_err() {
        live.each_seat(|seat| seat.pause(true));
    } else {
        live.set_state(VmState::Running);
    }
    resumed.map(drop)
}

fn save(manager: &Mutex<Manager>, live: &Live, before: VmState) -> anyhow::Result<()> {
    if before == VmState::Running {
        pause(live)?;
    }
    live.set_state(VmState::Saving);
    let files = lock(manager).vm_files();
    let written = files.begin_save(&live.name).and_then(|file| {
        live.request(Command::Save, Some(file.as_fd()), SAVE_LIMIT)?;
        files.finish_save(&live.name, &file)
    });
    let kept = written.and_then(|()| Ok(lock(manager).vm_saved(&live.name)?));
    match kept {
        Ok(()) => {
            live.kill("its state was saved");
            live.wait_end(PROMPT);
            info!(vm = %live.name, "VM saved");
            Ok(())
        }
        Err(error) => {
            files.abandon_save(&live.name);
            live.set_state(VmState::Paused);
            if before == VmState::Running
                && let Err(error) = resume(live)
            {
                warn!(vm = %live.name, "it stays paused after it could not be saved: {error:#}");
            }
            Err(error)
        }
    }
}

/// Starts the VMs whose automatic start is due.
pub(crate) fn start_due(manager: &Mutex<Manager>) {
    let due = lock(manager).take_due_vms();
    for name in due {
        info!(vm = %name, "automatic start");
        if let Err(refusal) = start(manager, &name) {
            error!(vm = %name, "automatic start: {refusal}");
        }
    }
}

/// Ends all VMs by their automatic-stop action: vswitchd ends.
pub(crate) fn stop_all(manager: &Mutex<Manager>) {
    let running = lock(manager).begin_stop();
    std::thread::scope(|scope| {
        for (live, action) in &running {
            scope.spawn(move || stop(manager, live, *action));
        }
    });
    lock(manager).settle_vms();
}

fn stop(manager: &Mutex<Manager>, live: &Arc<Live>, action: AutoStop) {
    let ended = match action {
        AutoStop::Save => operate(manager, live, VmVerb::Save),
        AutoStop::Shutdown { timeout } => shut_down(live, Duration::from_secs(timeout.into())),
        AutoStop::TurnOff => Ok(()),
    };
    if let Err(refusal) = ended {
        warn!(vm = %live.name, "automatic stop: {refusal}; it is turned off");
    }
    if live.end().is_none()
        && let Err(refusal) = turn_off(live, "it was turned off, as vswitchd ended")
    {
        error!(vm = %live.name, "{refusal}");
    }
}
