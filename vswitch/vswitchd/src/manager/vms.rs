//! VMs: made, changed and deleted, each as a whole or not at all.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tracing::{error, info};
use vswitch::api::{
    AdapterKind, AdapterName, Boot, CreateVm, ErrorCode, PatchVm, Refusal, VmConfig, VmName,
    VmState, no_hyperv,
};
use vswitch::attach::message::CrashReport;

use super::{Manager, failed};
use crate::mac_pool::MacPool;
use crate::store::SavedAdapter;
use crate::vm::{Door, Files, Launcher, Live};

/// What VMs are made with.
pub(crate) struct VmHost {
    /// How their processes are started.
    pub(crate) launcher: Box<dyn Launcher>,
    /// Where their processes come in.
    pub(crate) door: Door,
    /// Where their files are.
    pub(crate) files: Files,
    /// Addresses for their adapters, if that is configured.
    pub(crate) macs: Option<MacPool>,
}

/// A VM.
pub(super) struct Vm {
    pub(super) config: VmConfig,
    pub(super) uuid: [u8; 16],
    pub(super) adapters: BTreeMap<AdapterName, SavedAdapter>,
    /// Its process, until its end has been taken note of.
    pub(super) live: Option<Arc<Live>>,
    /// Its state is in a file.
    pub(super) saved: bool,
    /// Why it ended last.
    pub(super) detail: Option<String>,
    /// What its guest said when it crashed, before it ended.
    pub(super) crash: Option<CrashReport>,
    /// When it starts by itself.
    pub(super) due: Option<Instant>,
}

impl Vm {
    pub(super) fn state(&self) -> VmState {
        match &self.live {
            Some(live) => live.state(),
            None if self.saved => VmState::Saved,
            None => VmState::Off,
        }
    }

    /// Whether an adapter of a kind can be added or removed now; answers the process if the VM runs.
    pub(super) fn pluggable(
        &self,
        kind: AdapterKind,
        what: &str,
    ) -> Result<Option<Arc<Live>>, Refusal> {
        match (self.state(), kind) {
            (VmState::Running | VmState::Paused, AdapterKind::Synthetic) => Ok(self.live.clone()),
            _ => self
                .must_be_off(&format!("{what} {kind} adapter"))
                .map(|()| None),
        }
    }

    /// Refuses a change that needs the machine to be off.
    pub(super) fn must_be_off(&self, what: &str) -> Result<(), Refusal> {
        match self.state() {
            VmState::Off => Ok(()),
            state => {
                let first = match state {
                    VmState::Saved => "discard its saved state first",
                    _ => "turn it off first",
                };
                Err(Refusal::conflict(format!(
                    "VM '{}': {what} while it is {state}; allowed while it is off: {first}",
                    self.config.name
                )))
            }
        }
    }
}

pub(super) fn no_vm(name: &VmName) -> Refusal {
    Refusal::new(ErrorCode::NotFound, format!("there is no VM '{name}'"))
}

impl Manager {
    pub(super) fn vm(&self, name: &VmName) -> Result<&Vm, Refusal> {
        self.vms.get(name).ok_or_else(|| no_vm(name))
    }

    /// Makes a VM with its adapters.
    pub(crate) fn create_vm(&mut self, request: CreateVm) -> Result<(), Refusal> {
        let (config, adapters) = request.check()?;
        let name = config.name.clone();
        if self.vms.contains_key(&name) {
            return Err(Refusal::conflict(format!(
                "there is a VM '{name}' already; names are unique"
            )));
        }
        self.vm_host
            .launcher
            .check()
            .map_err(|error| failed(format_args!("cannot create VM '{name}'"), error))?;
        check_files(&config)?;
        for (adapter, request) in &adapters {
            if let Some(network) = &request.network {
                self.check_port_name(network, &name.port(*adapter)?)?;
            }
        }
        let uuid = random_uuid()?;
        let change = self.store.change()?;
        change.add_vm(&config, uuid)?;
        change.commit()?;
        self.vms.insert(
            name.clone(),
            Vm {
                config,
                uuid,
                adapters: BTreeMap::new(),
                live: None,
                saved: false,
                detail: None,
                crash: None,
                due: None,
            },
        );
        for (adapter, request) in adapters {
            if let Err(refusal) = self.add_adapter_named(&name, adapter, &request) {
                self.delete_vm(&name)
                    .unwrap_or_else(|error| error!(%error, "half of a VM stays behind"));
                return Err(refusal);
            }
        }
        info!(vm = %name, "VM created");
        Ok(())
    }

    /// Changes a VM.
    pub(crate) fn set_vm(&mut self, name: &VmName, patch: &PatchVm) -> Result<(), Refusal> {
        self.settle_vms();
        let vm = self.vm(name)?;
        let (config, machine) = patch.apply(&vm.config)?;
        if machine {
            vm.must_be_off("cannot change the machine")?;
            check_files(&config)?;
        }
        if !config.hyperv
            && let Some(adapter) = vm
                .adapters
                .keys()
                .find(|name| name.kind() == AdapterKind::Synthetic)
        {
            return Err(no_hyperv(name, &format!("adapter '{adapter}'")));
        }
        let change = self.store.change()?;
        change.set_vm(&config)?;
        change.commit()?;
        if let Some(vm) = self.vms.get_mut(name) {
            vm.config = config;
        }
        info!(vm = %name, "VM changed");
        Ok(())
    }

    /// Deletes a VM that does not run, with its adapters, its saved state and what its console said.
    pub(crate) fn delete_vm(&mut self, name: &VmName) -> Result<(), Refusal> {
        self.settle_vms();
        let vm = self.vm(name)?;
        if let Some(live) = &vm.live {
            return Err(Refusal::conflict(format!(
                "cannot delete VM '{name}': it is {}; allowed while it is off or saved: turn it off first",
                live.state()
            )));
        }
        let adapters: Vec<AdapterName> = vm.adapters.keys().copied().collect();
        for adapter in adapters {
            self.drop_adapter(name, adapter)?;
        }
        let change = self.store.change()?;
        change.delete_vm(name)?;
        change.commit()?;
        self.vms.remove(name);
        self.vm_host.files.delete(name);
        info!(vm = %name, "VM deleted");
        Ok(())
    }
}

/// Refuses what a VM is to boot if it is not there. It is opened when the VM starts.
fn check_files(config: &VmConfig) -> Result<(), Refusal> {
    let kernel = match &config.boot {
        Boot::Kernel(path) => Some(("kernel", path)),
        Boot::Network => None,
    };
    let initrd = config.initrd.as_ref().map(|path| ("initrd", path));
    let rom = config.boot_rom.as_ref().map(|path| ("boot ROM", path));
    for (what, path) in kernel.into_iter().chain(initrd).chain(rom) {
        if !std::path::Path::new(path).is_file() {
            return Err(Refusal::invalid(format!(
                "VM '{}': {what} '{path}' is not there; allowed: the path of a file",
                config.name
            )));
        }
    }
    Ok(())
}

/// A random UUID (RFC 9562, version 4).
fn random_uuid() -> Result<[u8; 16], Refusal> {
    let mut uuid = [0; 16];
    let random = rustix::rand::getrandom(&mut uuid, rustix::rand::GetRandomFlags::empty());
    random.map_err(|error| failed("cannot make a UUID", error))?;
    let [.., version, _, variant, _, _, _, _, _, _, _] = &mut uuid;
    *version = *version & 0x0f | 0x40;
    *variant = *variant & 0x3f | 0x80;
    Ok(uuid)
}
