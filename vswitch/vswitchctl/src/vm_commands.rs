//! What the commands about VMs and adapters ask of vswitchd.

use std::io::Write;

use hyper::Method;
use vswitch::api::{
    ConsoleView, CreateAdapter, CreateVm, PatchAdapter, PatchVm, VmAction, VmList, VmName, VmVerb,
    VmView,
};

use crate::client::Answer;
use crate::commands::Runner;
use crate::console;
use crate::show_vms;
use crate::vm_cli::{AdapterSpec, AdapterVerb, VmCreate, VmSet, VmVerbs};

impl Runner {
    pub(crate) fn vm(&self, verb: VmVerbs) -> anyhow::Result<()> {
        match verb {
            VmVerbs::Create(create) => self.create_vm(*create),
            VmVerbs::List => self.show("/v1/vms", |list: &VmList| show_vms::vms(&list.vms)),
            VmVerbs::Show { name } => self.show(&of_vm(&name), show_vms::vm),
            VmVerbs::Set(set) => self.set_vm(*set),
            VmVerbs::Delete { name } => self.done(
                self.client.delete(&of_vm(&name))?,
                format!("VM '{name}' deleted"),
            ),
            VmVerbs::Start { name } => self.act(&name, VmVerb::Start, None, "started"),
            VmVerbs::TurnOff { name } => self.act(&name, VmVerb::TurnOff, None, "turned off"),
            VmVerbs::Shutdown { name, timeout } => {
                self.act(&name, VmVerb::Shutdown, timeout, "shut down")
            }
            VmVerbs::Pause { name } => self.act(&name, VmVerb::Pause, None, "paused"),
            VmVerbs::Resume { name } => self.act(&name, VmVerb::Resume, None, "resumed"),
            VmVerbs::Reset { name } => self.act(&name, VmVerb::Reset, None, "reset"),
            VmVerbs::Save { name } => self.act(&name, VmVerb::Save, None, "saved"),
            VmVerbs::Discard { name } => {
                self.act(&name, VmVerb::Discard, None, "has no saved state now")
            }
            VmVerbs::Console {
                name, log: true, ..
            } => self.console_log(&name),
            VmVerbs::Console { name, com, .. } => self.console(&name, com),
        }
    }

    fn act(
        &self,
        name: &VmName,
        verb: VmVerb,
        timeout: Option<u32>,
        done: &str,
    ) -> anyhow::Result<()> {
        let path = format!("{}/action", of_vm(name));
        let action = VmAction { verb, timeout };
        let answer = self.client.send(Method::POST, &path, &action)?;
        self.vm_done(answer, format!("VM '{name}' {done}"))
    }

    fn create_vm(&self, create: VmCreate) -> anyhow::Result<()> {
        let done = format!("VM '{}' created", create.name);
        let adapters = |specs: Vec<AdapterSpec>| specs.into_iter().map(|spec| spec.0).collect();
        let settings = create.settings;
        let request = CreateVm {
            name: create.name,
            hyperv: settings.finds_hyperv(),
            memory: settings.memory,
            cpus: settings.cpus,
            profile: settings.profile,
            boot: settings.boot,
            initrd: settings.initrd.and_then(|initrd| initrd.0),
            cmdline: settings.cmdline,
            boot_rom: settings.boot_rom.and_then(|rom| rom.0),
            services: settings.services.map(|list| list.0),
            legacy: adapters(create.legacy),
            synthetic: adapters(create.synthetic),
            auto_start: settings.auto_start,
            auto_stop: settings.auto_stop,
            notes: settings.notes,
        };
        self.vm_done(self.client.send(Method::POST, "/v1/vms", &request)?, done)
    }

    fn set_vm(&self, set: VmSet) -> anyhow::Result<()> {
        let done = format!("VM '{}' changed", set.name);
        let settings = set.settings;
        let patch = PatchVm {
            hyperv: settings.finds_hyperv(),
            memory: settings.memory,
            cpus: settings.cpus,
            profile: settings.profile,
            boot: settings.boot,
            initrd: settings.initrd.map(|initrd| initrd.0),
            cmdline: settings.cmdline,
            boot_rom: settings.boot_rom.map(|rom| rom.0),
            services: settings.services.map(|list| list.0),
            auto_start: settings.auto_start,
            auto_stop: settings.auto_stop,
            notes: settings.notes,
        };
        let answer = self.client.send(Method::PATCH, &of_vm(&set.name), &patch)?;
        self.vm_done(answer, done)
    }

    pub(crate) fn adapter(&self, verb: AdapterVerb) -> anyhow::Result<()> {
        match verb {
            AdapterVerb::Add {
                vm,
                adapter,
                kind,
                net,
                mac,
                vlan,
            } => {
                let done = format!("adapter added to VM '{vm}'");
                let request = CreateAdapter {
                    kind,
                    name: adapter,
                    network: net,
                    mac,
                    vlan,
                };
                let path = format!("{}/adapters", of_vm(&vm));
                self.vm_done(self.client.send(Method::POST, &path, &request)?, done)
            }
            AdapterVerb::Set {
                vm,
                adapter,
                connect,
                disconnect,
                mac,
                vlan,
            } => {
                let patch = PatchAdapter {
                    network: if disconnect {
                        Some(None)
                    } else {
                        connect.map(Some)
                    },
                    mac: mac.map(|mac| mac.0),
                    vlan: vlan.map(|vlan| vlan.0),
                };
                let path = format!("{}/adapters/{adapter}", of_vm(&vm));
                let answer = self.client.send(Method::PATCH, &path, &patch)?;
                self.vm_done(answer, format!("adapter '{adapter}' of VM '{vm}' changed"))
            }
            AdapterVerb::Remove { vm, adapter } => {
                let path = format!("{}/adapters/{adapter}", of_vm(&vm));
                let done = format!("adapter '{adapter}' of VM '{vm}' removed");
                self.done(self.client.delete(&path)?, done)
            }
        }
    }

    /// Says that it is done, and what is not as one would wish.
    fn vm_done(&self, answer: Answer, done: String) -> anyhow::Result<()> {
        let view: VmView = answer.parse()?;
        for warning in &view.warnings {
            let _ = writeln!(std::io::stderr(), "vswitchctl: warning: {warning}");
        }
        self.done(answer, done)
    }

    fn console_log(&self, name: &VmName) -> anyhow::Result<()> {
        let said = self.client.get(&format!("{}/console/log", of_vm(name)))?;
        let mut stdout = std::io::stdout().lock();
        match stdout.write_all(said.bytes()).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            result => Ok(result?),
        }
    }

    fn console(&self, name: &VmName, com: u8) -> anyhow::Result<()> {
        let places: ConsoleView = self
            .client
            .get(&format!("{}/console", of_vm(name)))?
            .parse()?;
        let socket = if com == 2 { places.com2 } else { places.com1 };
        console::run(&socket)
    }
}

fn of_vm(name: &VmName) -> String {
    format!("/v1/vms/{name}")
}
