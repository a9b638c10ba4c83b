//! Synthetic adapters, plugged in and unplugged while their VM runs. Its process is waited for here, without the
//! manager's lock.

use std::sync::{Arc, Mutex, PoisonError};

use tracing::info;
use vswitch::api::{AdapterName, CreateAdapter, ErrorCode, Refusal, VmName};
use vswitch::attach::message::Command;

use super::live::{Live, Place};
use super::{PROMPT, lock};
use crate::manager::Manager;

/// Gives a VM another adapter.
pub(crate) fn add(
    manager: &Mutex<Manager>,
    vm: &VmName,
    request: &CreateAdapter,
) -> Result<(), Refusal> {
    let (name, running) = lock(manager).add_adapter(vm, request)?;
    let Some((live, place)) = running else {
        return Ok(());
    };
    plug_in(&live, name, place).inspect_err(|_| {
        if let Err(error) = lock(manager).drop_adapter(vm, name) {
            tracing::error!(%vm, adapter = %name, %error, "it stays behind, not plugged in");
        }
    })
}

/// Takes an adapter from a VM.
pub(crate) fn remove(
    manager: &Mutex<Manager>,
    vm: &VmName,
    name: AdapterName,
) -> Result<(), Refusal> {
    let running = lock(manager).remove_adapter(vm, name)?;
    let Some(live) = running else {
        return Ok(());
    };
    unplug(&live, name)?;
    lock(manager).drop_adapter(vm, name)
}

fn refuse(live: &Live, what: &str, name: AdapterName, error: &anyhow::Error) -> Refusal {
    let text = format!(
        "cannot {what} adapter '{name}' of VM '{}': {error:#}",
        live.name
    );
    Refusal::new(ErrorCode::Failed, text)
}

fn plug_in(live: &Live, name: AdapterName, place: Place) -> Result<(), Refusal> {
    let _alone = live
        .operation
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let adapter = place.config(name);
    live.places().insert(name, place);
    let added = live.request(Command::AddAdapter { adapter }, None, PROMPT);
    added.map(drop).map_err(|error| {
        if let Some(place) = live.places().remove(&name) {
            place.seat.take_away();
        }
        refuse(live, "plug in", name, &error)
    })?;
    info!(vm = %live.name, adapter = %name, "adapter plugged in");
    Ok(())
}

fn unplug(live: &Arc<Live>, name: AdapterName) -> Result<(), Refusal> {
    let _alone = live
        .operation
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    live.request(Command::RemoveAdapter { adapter: name }, None, PROMPT)
        .map_err(|error| refuse(live, "unplug", name, &error))?;
    if let Some(place) = live.places().remove(&name) {
        place.seat.take_away();
    }
    info!(vm = %live.name, adapter = %name, "adapter unplugged");
    Ok(())
}
