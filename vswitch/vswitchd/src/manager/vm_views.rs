//! What the API shows of VMs.

use vswitch::api::{
    AdapterKind, AdapterView, Boot, ConsoleView, CrashView, DriverState, Refusal, Service,
    ServiceView, VmConfig, VmGlance, VmList, VmName, VmView,
};
use vswitch::attach::message::Status;

use super::Manager;
use super::vms::Vm;
use crate::store::SavedAdapter;

impl Manager {
    /// All VMs.
    pub(crate) fn vms(&mut self) -> VmList {
        self.settle_vms();
        VmList {
            vms: self.vms.values().map(|vm| self.vm_view(vm)).collect(),
        }
    }

    /// One VM.
    pub(crate) fn show_vm(&mut self, name: &VmName) -> Result<VmView, Refusal> {
        self.settle_vms();
        Ok(self.vm_view(self.vm(name)?))
    }

    /// Names and states.
    pub(super) fn vms_at_a_glance(&self) -> Vec<VmGlance> {
        let glance = |(name, vm): (&VmName, &Vm)| VmGlance {
            name: name.clone(),
            state: vm.state(),
        };
        self.vms.iter().map(glance).collect()
    }

    /// Where the consoles of a VM are. They are there while it runs.
    pub(crate) fn console(&mut self, name: &VmName) -> Result<ConsoleView, Refusal> {
        self.settle_vms();
        let vm = self.vm(name)?;
        if vm.live.is_none() {
            return Err(Refusal::conflict(format!(
                "VM '{name}' has no console: it is {}; allowed: start it, or --log for what it has said",
                vm.state()
            )));
        }
        let path = |com| self.vm_host.files.console(name, com).display().to_string();
        Ok(ConsoleView {
            com1: path(1),
            com2: path(2),
        })
    }

    /// What COM1 of a VM has said since its machine was started.
    pub(crate) fn console_log(&self, name: &VmName) -> Result<Vec<u8>, Refusal> {
        self.vm(name)?;
        let path = self.vm_host.files.log(name);
        match std::fs::read(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(super::failed(
                format_args!("cannot read {}", path.display()),
                error,
            )),
            read => Ok(read.unwrap_or_default()),
        }
    }

    fn vm_view(&self, vm: &Vm) -> VmView {
        let config = &vm.config;
        let status = vm.live.as_ref().and_then(|live| live.status());
        let bound = |adapter| {
            let drivers = status.as_ref().map(|status| &status.drivers);
            drivers.is_some_and(|drivers| drivers.contains(&adapter))
        };
        VmView {
            name: config.name.clone(),
            state: vm.state(),
            detail: vm.detail.clone(),
            pid: vm.live.as_ref().map(|live| live.id().0),
            memory: config.memory,
            cpus: config.cpus,
            profile: config.profile,
            boot: config.boot.clone(),
            initrd: config.initrd.clone(),
            cmdline: config.cmdline.clone(),
            boot_rom: config.boot_rom.clone(),
            auto_start: config.auto_start,
            auto_stop: config.auto_stop,
            notes: config.notes.clone(),
            adapters: vm
                .adapters
                .values()
                .map(|adapter| self.adapter_view(&config.name, adapter, bound(adapter.name)))
                .collect(),
            warnings: self.warnings(vm),
            hyperv: config.hyperv,
            services: services(config, status.as_ref()),
            facts: status
                .as_ref()
                .map(|status| status.facts.clone())
                .unwrap_or_default(),
            crash: vm
                .live
                .as_ref()
                .map_or(vm.crash.clone(), |live| live.crash())
                .map(|report| CrashView {
                    parameters: report.parameters,
                    message: report.message,
                }),
            exits: status.map(|status| status.exits).unwrap_or_default(),
        }
    }

    fn adapter_view(&self, vm: &VmName, adapter: &SavedAdapter, bound: bool) -> AdapterView {
        let place = self.port_of(vm, adapter.name);
        AdapterView {
            name: adapter.name,
            kind: adapter.name.kind(),
            mac: adapter.mac,
            static_mac: adapter.static_mac,
            network: place
                .filter(|(_, port)| port.config.connected)
                .map(|(network, _)| network.config.name.clone()),
            vlan: match place {
                Some((_, port)) => port.config.vlan.access_vlan(),
                None => adapter.vlan,
            },
            link: self.plant.seats.seat(vm, adapter.name).link(),
            driver: driver(bound),
        }
    }

    fn warnings(&self, vm: &Vm) -> Vec<String> {
        let name = &vm.config.name;
        let of = |adapter: &SavedAdapter| {
            let mac = adapter.mac;
            let own = adapter.name;
            let line = move |twin| {
                format!("{own} has address {mac}, which {twin} in its network also has")
            };
            let twins = self.twins(name, own).into_iter().map(line);
            let swapped = is_swapped(adapter).then(|| {
                format!(
                    "{own} has address {mac}, which Linux's tulip driver takes for one with its bytes swapped in pairs: \
                     choose one that does not begin with 02:00, a0:00 or c0:00"
                )
            });
            twins.chain(swapped)
        };
        let mut warnings: Vec<_> = vm.adapters.values().flat_map(of).collect();
        let mut kinds = vm.adapters.keys().map(|name| name.kind());
        let rom = self.vm_host.files.boot_rom(&vm.config);
        match (vm.config.boot == Boot::Network, kinds.any(|kind| kind == AdapterKind::Legacy)) {
            (true, false) => warnings.push(
                "it boots from the network, and has no legacy adapter, which is the only kind that can: \
                 add one, or set boot=kernel:PATH"
                    .to_owned(),
            ),
            (true, true) if !rom.is_file() => warnings.push(format!(
                "it boots from the network by a legacy adapter, whose ROM '{}' is not there: allowed is one named by \
                 --boot-rom, or by the setting legacy_rom of vswitchd",
                rom.display()
            )),
            _ => {}
        }
        warnings
    }
}

/// Whether drivers for the 21140 read another address than the one in the serial ROM: early boards of Lite-On had theirs
/// there with the bytes of each word swapped, and Linux knows them by these beginnings.
fn is_swapped(adapter: &SavedAdapter) -> bool {
    let begins = adapter.mac.mac().to_u64() >> 32;
    adapter.name.kind() == AdapterKind::Legacy && matches!(begins, 0x0200 | 0xa000 | 0xc000)
}

fn services(config: &VmConfig, status: Option<&Status>) -> Vec<ServiceView> {
    let in_use = |service| status.is_some_and(|status| status.services.contains(&service));
    let view = |&name: &Service| ServiceView {
        name,
        driver: driver(in_use(name)),
    };
    config.offered_services().iter().map(view).collect()
}

fn driver(bound: bool) -> DriverState {
    if bound {
        DriverState::Bound
    } else {
        DriverState::None
    }
}
