//! Requests about VMs, and what they are checked into.

use serde::{Deserialize, Serialize};

use super::error::{Refusal, present};
use super::values::InvalidValue;

mod adapter;
mod state;
mod values;

pub use adapter::{
    AdapterKind, AdapterName, CreateAdapter, MAX_LEGACY, MAX_SYNTHETIC, PatchAdapter,
};
pub use state::{VmAction, VmState, VmVerb};
use values::is_path;
pub use values::{AutoStart, AutoStop, Boot, MemorySize, Profile, Service, StartWhen, VmName};

/// Processors of a VM, at most, unless its profile is `modern`.
pub const CLASSIC_CPUS: u32 = 4;
/// Processors of a VM, at most.
pub const MAX_CPUS: u32 = 64;

/// Asks for a new VM.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVm {
    /// Its name, unique on the host.
    pub name: VmName,
    /// Its RAM; `512M` unless given. 64 GiB at most, or 1 TiB with profile `modern`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemorySize>,
    /// Its processors; 1 unless given. 4 at most, or 64 with profile `modern`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Which limits hold; `classic` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<Profile>,
    /// What it boots; `network` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "kernel:/boot/vmlinuz")]
    pub boot: Option<Boot>,
    /// The path of the kernel's initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
    /// The kernel's command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// The path of the option ROM that legacy adapters boot with; vswitchd's own unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_rom: Option<String>,
    /// Its legacy adapters, 4 at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub legacy: Vec<CreateAdapter>,
    /// Its synthetic adapters, 8 at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub synthetic: Vec<CreateAdapter>,
    /// Whether its guest finds Hyper-V; it does unless given. Synthetic adapters and integration services need it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hyperv: Option<bool>,
    /// The integration services that its guest is offered; all unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<Vec<Service>>,
    /// When it starts by itself; `if-running` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "always,delay=30")]
    pub auto_start: Option<AutoStart>,
    /// What becomes of it when vswitchd ends; `save` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "shutdown,timeout=120")]
    pub auto_stop: Option<AutoStop>,
    /// A note for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notes: Option<String>,
}

/// A VM without its adapters, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// Its name.
    pub name: VmName,
    /// Its RAM.
    pub memory: MemorySize,
    /// Its processors.
    pub cpus: u32,
    /// Which limits hold.
    pub profile: Profile,
    /// What it boots.
    pub boot: Boot,
    /// The kernel's initial RAM disk.
    pub initrd: Option<String>,
    /// The kernel's command line.
    pub cmdline: String,
    /// The option ROM that legacy adapters boot with, if it is not vswitchd's own.
    pub boot_rom: Option<String>,
    /// Whether its guest finds Hyper-V.
    #[serde(default = "yes")]
    pub hyperv: bool,
    /// The integration services that its guest is offered, where it finds Hyper-V; each once.
    #[serde(default = "all_services")]
    pub services: Vec<Service>,
    /// When it starts by itself.
    pub auto_start: AutoStart,
    /// What becomes of it when vswitchd ends.
    pub auto_stop: AutoStop,
    /// A note for people.
    pub notes: String,
}

/// Characters of a note, at most.
const MAX_NOTES: usize = 4096;
/// Bytes of a command line, at most: those of Linux on x86.
const MAX_CMDLINE: usize = 2047;

fn yes() -> bool {
    true
}

fn all_services() -> Vec<Service> {
    Service::ALL.to_vec()
}

impl VmConfig {
    /// The integration services that its guest is offered.
    pub fn offered_services(&self) -> &[Service] {
        if self.hyperv { &self.services } else { &[] }
    }

    fn checked(self) -> Result<VmConfig, Refusal> {
        let name = &self.name;
        let refuse = |what: String| Err(Refusal::invalid(format!("VM '{name}': {what}")));
        let most = match self.profile {
            Profile::Classic => CLASSIC_CPUS,
            Profile::Modern => MAX_CPUS,
        };
        if !(1..=most).contains(&self.cpus) {
            let cpus = self.cpus;
            let more = match self.profile {
                Profile::Classic => format!(", and to {MAX_CPUS} with profile modern"),
                Profile::Modern => String::new(),
            };
            return refuse(format!(
                "number of processors '{cpus}' is not allowed; allowed: 1 to {most}{more}"
            ));
        }
        if self.profile == Profile::Classic && self.memory > MemorySize::CLASSIC {
            let memory = self.memory;
            return refuse(format!(
                "memory size '{memory}' is not allowed; allowed: 8M to 64G, and to 1024G with profile modern"
            ));
        }
        if self.boot == Boot::Network && (self.initrd.is_some() || !self.cmdline.is_empty()) {
            return refuse(
                "initrd and cmdline are given to a kernel, and this VM boots from the network; \
                 allowed with boot kernel:PATH"
                    .to_owned(),
            );
        }
        if self.boot != Boot::Network && self.boot_rom.is_some() {
            return refuse(
                "boot_rom is for the BIOS, and this VM boots a kernel without it; allowed with boot network"
                    .to_owned(),
            );
        }
        for (what, path) in [("initrd", &self.initrd), ("boot ROM", &self.boot_rom)] {
            if let Some(path) = path.as_deref().filter(|path| !is_path(path)) {
                return refuse(InvalidValue::new(what, path, "an absolute path").to_string());
            }
        }
        if self.cmdline.len() > MAX_CMDLINE || self.cmdline.contains(['\0', '\n']) {
            return refuse(format!(
                "the kernel's command line has {} bytes; allowed: one line of at most {MAX_CMDLINE}",
                self.cmdline.len()
            ));
        }
        for (at, service) in self.services.iter().enumerate() {
            if self
                .services
                .iter()
                .skip(at + 1)
                .any(|other| other == service)
            {
                return refuse(format!(
                    "integration service '{service}' is there twice; allowed: each once"
                ));
            }
        }
        let notes = self.notes.chars().count();
        if notes > MAX_NOTES {
            return refuse(format!(
                "the note has {notes} characters; allowed: at most {MAX_NOTES}"
            ));
        }
        Ok(self)
    }
}

impl CreateVm {
    /// Checks the fields against each other. The second value are its adapters, each with its name.
    pub fn check(self) -> Result<(VmConfig, Vec<(AdapterName, CreateAdapter)>), Refusal> {
        let hyperv = self.hyperv.unwrap_or(true);
        if !hyperv && !self.synthetic.is_empty() {
            return Err(no_hyperv(&self.name, "a synthetic adapter"));
        }
        if !hyperv && self.services.is_some() {
            return Err(no_hyperv(&self.name, "an integration service"));
        }
        let config = VmConfig {
            name: self.name,
            memory: self.memory.unwrap_or(MemorySize::DEFAULT),
            cpus: self.cpus.unwrap_or(1),
            profile: self.profile.unwrap_or_default(),
            boot: self.boot.unwrap_or_default(),
            initrd: self.initrd,
            cmdline: self.cmdline.unwrap_or_default(),
            boot_rom: self.boot_rom,
            hyperv,
            services: self.services.unwrap_or_else(all_services),
            auto_start: self.auto_start.unwrap_or_default(),
            auto_stop: self.auto_stop.unwrap_or_default(),
            notes: self.notes.unwrap_or_default(),
        }
        .checked()?;
        let mut adapters: Vec<(AdapterName, CreateAdapter)> = Vec::new();
        let lists = [
            (AdapterKind::Legacy, self.legacy),
            (AdapterKind::Synthetic, self.synthetic),
        ];
        for (kind, list) in lists {
            for mut adapter in list {
                if *adapter.kind.get_or_insert(kind) != kind {
                    return Err(Refusal::invalid(format!(
                        "VM '{}': an adapter of another kind in the list {kind}",
                        config.name
                    )));
                }
                let taken: Vec<AdapterName> = adapters.iter().map(|(name, _)| *name).collect();
                let name = adapter.choose_name(&config.name, &taken)?;
                adapters.push((name, adapter));
            }
        }
        Ok((config, adapters))
    }
}

/// Refuses what a VM cannot have whose guest does not find Hyper-V.
pub fn no_hyperv(vm: &VmName, what: &str) -> Refusal {
    Refusal::conflict(format!(
        "VM '{vm}' cannot have {what}: its guest does not find Hyper-V; allowed with hyperv on"
    ))
}

/// Asks for changes to a VM. Absent keys change nothing. What the machine is made of changes only while it is off.
#[derive(Clone, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PatchVm {
    /// Its RAM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemorySize>,
    /// Its processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Which limits hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<Profile>,
    /// What it boots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "kernel:/boot/vmlinuz")]
    pub boot: Option<Boot>,
    /// The kernel's initial RAM disk; `null` for none.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    #[schema(value_type = Option<String>)]
    pub initrd: Option<Option<String>>,
    /// The option ROM that legacy adapters boot with; `null` for vswitchd's own.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    #[schema(value_type = Option<String>)]
    pub boot_rom: Option<Option<String>>,
    /// The kernel's command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// Whether its guest finds Hyper-V.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hyperv: Option<bool>,
    /// The integration services that its guest is offered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<Vec<Service>>,
    /// When it starts by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "always,delay=30")]
    pub auto_start: Option<AutoStart>,
    /// What becomes of it when vswitchd ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "shutdown,timeout=120")]
    pub auto_stop: Option<AutoStop>,
    /// A note for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notes: Option<String>,
}

impl PatchVm {
    /// The configuration after the change. The second value is whether the machine itself is changed.
    pub fn apply(&self, config: &VmConfig) -> Result<(VmConfig, bool), Refusal> {
        let patch = self.clone();
        let machine = patch.memory.is_some()
            || patch.cpus.is_some()
            || patch.profile.is_some()
            || patch.boot.is_some()
            || patch.initrd.is_some()
            || patch.boot_rom.is_some()
            || patch.cmdline.is_some()
            || patch.hyperv.is_some()
            || patch.services.is_some();
        let other =
            patch.auto_start.is_some() || patch.auto_stop.is_some() || patch.notes.is_some();
        if !machine && !other {
            return Err(Refusal::invalid(format!(
                "VM '{}': nothing to change; allowed: memory, cpus, profile, boot, initrd, cmdline, boot_rom, hyperv, \
                 services, auto_start, auto_stop, notes",
                config.name
            )));
        }
        let hyperv = patch.hyperv.unwrap_or(config.hyperv);
        if !hyperv && patch.services.is_some() {
            return Err(no_hyperv(&config.name, "an integration service"));
        }
        let new = VmConfig {
            name: config.name.clone(),
            memory: patch.memory.unwrap_or(config.memory),
            cpus: patch.cpus.unwrap_or(config.cpus),
            profile: patch.profile.unwrap_or(config.profile),
            boot: patch.boot.unwrap_or_else(|| config.boot.clone()),
            initrd: patch.initrd.unwrap_or_else(|| config.initrd.clone()),
            cmdline: patch.cmdline.unwrap_or_else(|| config.cmdline.clone()),
            boot_rom: patch.boot_rom.unwrap_or_else(|| config.boot_rom.clone()),
            hyperv,
            services: patch.services.unwrap_or_else(|| config.services.clone()),
            auto_start: patch.auto_start.unwrap_or(config.auto_start),
            auto_stop: patch.auto_stop.unwrap_or(config.auto_stop),
            notes: patch.notes.unwrap_or_else(|| config.notes.clone()),
        };
        Ok((new.checked()?, machine))
    }
}
