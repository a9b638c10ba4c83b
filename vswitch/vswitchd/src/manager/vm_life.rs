//! VMs from start to stop: their processes started, adopted, and missed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{error, info, warn};
use vswitch::api::{
    AdapterKind, AdapterName, AutoStop, Refusal, StartWhen, VmName, VmState, VmVerb,
};
use vswitch::attach::demand::MAX_CHANNELS;
use vswitch::attach::message::Configure;

use super::vms::{Vm, no_vm};
use super::{Manager, failed};
use crate::store::{SavedAdapter, SavedVm, StoredState};
use crate::vm::{Birth, Files, Live, Place, Places};

impl Manager {
    /// Brings the stored VMs back: processes that run are adopted, and automatic starts planned.
    pub(super) fn restore_vms(&mut self) -> Result<(), Refusal> {
        for saved in self.store.load_vms()? {
            let name = saved.config.name.clone();
            let vm = self.restore_vm(saved)?;
            self.vms.insert(name, vm);
        }
        Ok(())
    }

    fn restore_vm(&mut self, saved: SavedVm) -> Result<Vm, Refusal> {
        let name = saved.config.name.clone();
        let start = saved.config.auto_start;
        let mut vm = Vm {
            config: saved.config,
            uuid: saved.uuid,
            adapters: saved
                .adapters
                .into_iter()
                .map(|adapter| (adapter.name, adapter))
                .collect(),
            live: None,
            saved: saved.state == StoredState::Saved,
            detail: None,
            crash: None,
            due: None,
        };
        let mut ran = saved.resume;
        if let StoredState::Running { pid, started } = saved.state {
            let places = self.places_of(&vm);
            let attach = self.vm_host.files.attach(&name);
            let adopted = Live::adopt(&name, (pid, started), places, attach);
            vm.live =
                adopted.map_err(|error| failed(format_args!("cannot adopt VM '{name}'"), error))?;
            if vm.live.is_none() {
                warn!(vm = %name, "its process ended while vswitchd did not run");
                vm.detail = Some("its process ended while vswitchd did not run".to_owned());
                self.note(&name, StoredState::Off, true)?;
                self.vm_host.files.close_sockets(&name);
                ran = true;
            }
        }
        if vm.live.is_none() {
            self.vm_host.files.send_away(&name);
        }
        let wanted = match start.when {
            StartWhen::Nothing => false,
            StartWhen::IfRunning => ran,
            StartWhen::Always => true,
        };
        if wanted && vm.live.is_none() {
            vm.due = Some(Instant::now() + Duration::from_secs(start.delay.into()));
        }
        Ok(vm)
    }

    /// The VMs whose automatic start is due; they are not due a second time.
    pub(crate) fn take_due_vms(&mut self) -> Vec<VmName> {
        let now = Instant::now();
        let due = self
            .vms
            .iter_mut()
            .filter(|(_, vm)| vm.due.is_some_and(|due| due <= now));
        due.map(|(name, vm)| {
            vm.due = None;
            name.clone()
        })
        .collect()
    }

    /// The process of a VM that admits `verb`.
    pub(crate) fn running_vm(&mut self, name: &VmName, verb: VmVerb) -> Result<Arc<Live>, Refusal> {
        self.settle_vms();
        let vm = self.vm(name)?;
        vm.state().admit(name, verb)?;
        vm.live.clone().ok_or_else(|| no_vm(name))
    }

    /// The process of a VM, if it has one.
    pub(crate) fn live_vm(&self, name: &VmName) -> Result<Option<Arc<Live>>, Refusal> {
        Ok(self.vm(name)?.live.clone())
    }

    /// Starts the process of a VM.
    pub(crate) fn start_vm(&mut self, name: &VmName) -> Result<Arc<Live>, Refusal> {
        self.settle_vms();
        let vm = self.vm(name)?;
        vm.state().admit(name, VmVerb::Start)?;
        let what = format!("cannot start VM '{name}'");
        let refuse = |error| failed(&what, error);
        let files = &self.vm_host.files;
        let legacy = vm
            .adapters
            .keys()
            .any(|name| name.kind() == AdapterKind::Legacy);
        let opened = files
            .open(&vm.config, legacy, vm.saved)
            .inspect_err(|_| files.close_sockets(name));
        let birth = Birth {
            configure: self.configure(vm),
            files: opened.map_err(refuse)?,
            attach: files.attach(name),
        };
        let (places, saved) = (self.places_of(vm), vm.saved);
        let (door, launcher) = (&self.vm_host.door, &*self.vm_host.launcher);
        let started = door.expect(name, || {
            Live::start(name, launcher, door.path(), places, birth)
        });
        let live = started
            .inspect_err(|_| files.close_sockets(name))
            .map_err(refuse)?;
        let (pid, started) = live.id();
        // A saved state is good until the machine runs.
        if !saved
            && let Err(refusal) = self.note(name, StoredState::Running { pid, started }, false)
        {
            live.discard("the store refused it");
            return Err(refusal);
        }
        if let Some(vm) = self.vms.get_mut(name) {
            vm.live = Some(live.clone());
            vm.detail = None;
            vm.crash = None;
            vm.due = None;
        }
        Ok(live)
    }

    /// A VM runs: its saved state is history.
    pub(crate) fn vm_started(&mut self, name: &VmName) -> Result<(), Refusal> {
        let vm = self.vms.get_mut(name).ok_or_else(|| no_vm(name))?;
        let Some(live) = vm.live.as_ref().filter(|_| vm.saved) else {
            return Ok(());
        };
        let (pid, started) = live.id();
        vm.saved = false;
        self.note(name, StoredState::Running { pid, started }, false)?;
        self.vm_host
            .files
            .discard(name)
            .unwrap_or_else(|error| error!(vm = %name, "{error:#}"));
        Ok(())
    }

    /// The state of a VM is in its file, as a whole.
    pub(crate) fn vm_saved(&mut self, name: &VmName) -> Result<(), Refusal> {
        let resume = self.stopping;
        self.note(name, StoredState::Saved, resume)?;
        if let Some(vm) = self.vms.get_mut(name) {
            vm.saved = true;
        }
        Ok(())
    }

    /// Throws a saved state away.
    pub(crate) fn discard_vm(&mut self, name: &VmName) -> Result<(), Refusal> {
        self.settle_vms();
        self.vm(name)?.state().admit(name, VmVerb::Discard)?;
        self.note(name, StoredState::Off, false)?;
        if let Some(vm) = self.vms.get_mut(name) {
            vm.saved = false;
        }
        let discarded = self.vm_host.files.discard(name);
        discarded.map_err(|error| failed(format_args!("VM '{name}' has no saved state now"), error))
    }

    /// Takes note of processes that have ended.
    pub(crate) fn settle_vms(&mut self) {
        let ended: Vec<(VmName, String)> = self
            .vms
            .iter()
            .filter_map(|(name, vm)| Some((name.clone(), vm.live.as_ref()?.end()?)))
            .collect();
        for (name, end) in ended {
            let Some(vm) = self.vms.get_mut(&name) else {
                continue;
            };
            vm.crash = vm.live.take().and_then(|live| live.crash());
            vm.detail = Some(end);
            let (saved, resume) = (vm.saved, self.stopping);
            self.vm_host.files.close_sockets(&name);
            if !saved {
                self.note(&name, StoredState::Off, resume)
                    .unwrap_or_else(|error| error!(vm = %name, %error, "its end was not noted"));
            }
        }
    }

    /// vswitchd ends: no more automatic starts; answers the processes, and how they are to end.
    pub(crate) fn begin_stop(&mut self) -> Vec<(Arc<Live>, AutoStop)> {
        self.settle_vms();
        self.stopping = true;
        let running = self.vms.values_mut().filter_map(|vm| {
            vm.due = None;
            let live = vm.live.clone()?;
            let action = match live.state() {
                // What does not run cannot react to a button.
                VmState::Paused if matches!(vm.config.auto_stop, AutoStop::Shutdown { .. }) => {
                    AutoStop::Save
                }
                VmState::Starting => AutoStop::TurnOff,
                _ => vm.config.auto_stop,
            };
            info!(vm = %vm.config.name, "automatic stop: {action}");
            Some((live, action))
        });
        running.collect()
    }

    /// Lets go of all processes, as SIGKILL does.
    #[cfg(test)]
    pub(crate) fn sever(&self) {
        let live = self.vms.values().filter_map(|vm| vm.live.as_ref());
        live.for_each(|live| live.sever());
    }

    /// Where files of VMs are.
    pub(crate) fn vm_files(&self) -> Files {
        self.vm_host.files.clone()
    }

    fn note(&mut self, name: &VmName, state: StoredState, resume: bool) -> Result<(), Refusal> {
        let change = self.store.change()?;
        change.set_vm_state(name, state, resume)?;
        Ok(change.commit()?)
    }

    fn places_of(&self, vm: &Vm) -> Places {
        let place = |adapter| self.place_of(vm, adapter);
        vm.adapters.values().map(place).collect()
    }

    pub(super) fn place_of(&self, vm: &Vm, adapter: &SavedAdapter) -> (AdapterName, Place) {
        let mut instance = vm.uuid;
        // Unlike the VM's own, and unlike those of its other adapters.
        if let Some(last) = instance.last_mut() {
            *last ^= 0x80 | adapter.name.index();
        }
        let place = Place {
            seat: self.plant.seats.seat(&vm.config.name, adapter.name),
            mac: adapter.mac.mac(),
            instance,
            channels: vm.config.cpus.min(MAX_CHANNELS.into()),
        };
        (adapter.name, place)
    }

    fn configure(&self, vm: &Vm) -> Configure {
        let places = self.places_of(vm);
        Configure {
            memory: vm.config.memory.bytes(),
            cpus: vm.config.cpus,
            cmdline: vm.config.cmdline.clone(),
            uuid: vm.uuid,
            adapters: places
                .iter()
                .map(|(name, place)| place.config(*name))
                .collect(),
            hyperv: vm.config.hyperv,
            services: vm.config.offered_services().to_vec(),
            files: Vec::new(),
        }
    }
}
