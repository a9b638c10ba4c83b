//! The machine, made from its configuration and the open files that came with it.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use anyhow::{Context, bail, ensure};
use hypervisor::device::Effects;
use hypervisor::memory::GuestMemory;
use hypervisor::pc::{Pc, Start};
use hypervisor::{Machine, Named};
use vswitch::api::{AdapterKind, AdapterName};
use vswitch::attach::message::{Configure, FileRole};
use vswitch::mac::Mac;

use crate::attached::Files;
use crate::console::Outbox;
use crate::nic::{self, Shared};
use crate::vmbus::{VMBUS, Vmbus};

/// Bytes of a BIOS or an option ROM, at most.
const MAX_IMAGE: u64 = 4 << 20;

/// Makes the machine, with what vswitchd is given of its legacy adapters.
pub(crate) fn machine(
    name: &str,
    configure: &Configure,
    files: &mut Files,
    outbox: Arc<Outbox>,
) -> anyhow::Result<(Machine, Vec<Shared>)> {
    let rom = files
        .remove(&FileRole::LegacyRom)
        .map(|file| read(file, "the option ROM"))
        .transpose()?;
    let mut functions = Vec::new();
    let mut shared = Vec::new();
    let adapters = configure.adapters.iter();
    for adapter in adapters.filter(|adapter| adapter.name.kind() == AdapterKind::Legacy) {
        let made = nic::adapter(adapter.name, Mac(adapter.mac), adapter.link, rom.as_deref())
            .with_context(|| format!("adapter {}", adapter.name))?;
        put(&mut functions, adapter.name, made.0);
        shared.push(made.1);
    }
    let vcpus = u8::try_from(configure.cpus).context("number of processors")?;
    let memory = GuestMemory::new(configure.memory)?;
    let vmbus = vmbus(configure, &memory)?;
    let now = UNIX_EPOCH.elapsed().unwrap_or_default();
    let pc = Pc {
        name: name.to_owned(),
        uuid: configure.uuid,
        vcpus,
        memory,
        unix_nanos: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
        adapters: functions,
        hyperv: configure.hyperv,
        start: start(configure, files)?,
        debug: false,
    };
    let output = Box::new(move |console: u32, bytes: &[u8]| outbox.say(console, bytes));
    let (config, mut devices) = pc.assemble(output)?;
    devices.extend(vmbus.map(|vmbus| Named::new(VMBUS, vmbus)));
    let machine = Machine::new(config, devices)?;
    let tsc_hz = machine.tsc_hz();
    machine.with(VMBUS, |vmbus: &mut Vmbus, _| vmbus.set_clock(tsc_hz));
    Ok((machine, shared))
}

/// Puts an adapter into the slot that its name says: it keeps it, whichever others there are.
fn put<T>(slots: &mut Vec<Option<T>>, name: AdapterName, adapter: T) {
    let slot = usize::from(name.index());
    slots.resize_with(slots.len().max(slot + 1), || None);
    if let Some(place) = slots.get_mut(slot) {
        *place = Some(adapter);
    }
}

/// Hyper-V's interface, if the guest is to find it, with its synthetic adapters and services.
fn vmbus(configure: &Configure, memory: &GuestMemory) -> anyhow::Result<Option<Vmbus>> {
    let adapters = configure.adapters.iter();
    let mut synthetic = adapters.filter(|adapter| adapter.name.kind() == AdapterKind::Synthetic);
    if !configure.hyperv {
        if let Some(adapter) = synthetic.next() {
            bail!(
                "adapter {} needs Hyper-V, which is switched off",
                adapter.name
            );
        }
        return Ok(None);
    }
    let mut vmbus = Vmbus::new(memory.memory().clone(), configure.cpus)?;
    for adapter in synthetic {
        // Nobody runs yet who could be told anything.
        vmbus
            .add_adapter(adapter.name, adapter.instance, &mut Effects::default())
            .with_context(|| format!("adapter {}", adapter.name))?;
    }
    for service in &configure.services {
        vmbus.add_service(*service, &mut Effects::default())?;
    }
    Ok(Some(vmbus))
}

fn start(configure: &Configure, files: &mut Files) -> anyhow::Result<Start> {
    let firmware = files.remove(&FileRole::Firmware);
    let firmware = firmware.map(|file| read(file, "the BIOS")).transpose()?;
    match files.remove(&FileRole::Kernel) {
        Some(kernel) => Ok(Start::Linux {
            kernel: kernel.into(),
            firmware,
            initrd: files.remove(&FileRole::Initrd).map(File::from),
            command_line: configure.cmdline.clone(),
        }),
        None => {
            let firmware = firmware.context("vswitchd gave neither kernel nor BIOS")?;
            Ok(Start::Firmware(firmware))
        }
    }
}

fn read(file: OwnedFd, what: &str) -> anyhow::Result<Vec<u8>> {
    let mut image = Vec::new();
    let read = File::from(file).take(MAX_IMAGE + 1).read_to_end(&mut image);
    read.with_context(|| format!("cannot read {what}"))?;
    ensure!(
        image.len() as u64 <= MAX_IMAGE,
        "{what} is longer than {MAX_IMAGE} bytes"
    );
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_keeps_its_slot_when_another_goes() {
        let mut slots = Vec::new();
        for name in ["legacy1", "legacy3"] {
            put(&mut slots, name.parse().unwrap(), name);
        }
        assert_eq!(slots, [None, Some("legacy1"), None, Some("legacy3")]);
    }
}
