//! The machine, made from its configuration and the open files that came with it.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use anyhow::{Context, ensure};
use hypervisor::Machine;
use hypervisor::memory::GuestMemory;
use hypervisor::pc::{Pc, Start};
use vswitch::api::AdapterKind;
use vswitch::attach::message::{Configure, FileRole};
use vswitch::mac::Mac;

use crate::attached::Files;
use crate::console::Outbox;
use crate::nic::{self, Shared};

/// Bytes of a BIOS or an option ROM, at most.
const MAX_IMAGE: u64 = 4 << 20;

/// Makes the machine, with what vswitchd is given of its adapters.
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
    for adapter in &configure.adapters {
        ensure!(
            adapter.name.kind() == AdapterKind::Legacy,
            "adapter {} is of a kind that is not implemented",
            adapter.name
        );
        let made = nic::adapter(adapter.name, Mac(adapter.mac), adapter.link, rom.as_deref())
            .with_context(|| format!("adapter {}", adapter.name))?;
        functions.push(made.0);
        shared.push(made.1);
    }
    let now = UNIX_EPOCH.elapsed().unwrap_or_default();
    let pc = Pc {
        name: name.to_owned(),
        uuid: configure.uuid,
        vcpus: u8::try_from(configure.cpus).context("number of processors")?,
        memory: GuestMemory::new(configure.memory)?,
        unix_nanos: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
        adapters: functions,
        aml: Vec::new(),
        start: start(configure, files)?,
        debug: false,
    };
    let output = Box::new(move |console: u32, bytes: &[u8]| outbox.say(console, bytes));
    let (config, devices) = pc.assemble(output)?;
    Ok((Machine::new(config, devices)?, shared))
}

fn start(configure: &Configure, files: &mut Files) -> anyhow::Result<Start> {
    match files.remove(&FileRole::Kernel) {
        Some(kernel) => Ok(Start::Linux {
            kernel: kernel.into(),
            initrd: files.remove(&FileRole::Initrd).map(File::from),
            command_line: configure.cmdline.clone(),
        }),
        None => {
            let firmware = files.remove(&FileRole::Firmware);
            let firmware = firmware.context("vswitchd gave neither kernel nor BIOS")?;
            Ok(Start::Firmware(read(firmware, "the BIOS")?))
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
