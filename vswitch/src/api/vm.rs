//! Requests about VMs and their adapters, and what they are checked into.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::{Refusal, present};
use super::policy::StationMac;
use super::values::{InvalidValue, NetworkName, PortName, VlanId};

/// Legacy adapters of a VM, at most.
pub const MAX_LEGACY: usize = 4;
/// Synthetic adapters of a VM, at most.
pub const MAX_SYNTHETIC: usize = 8;
/// Processors of a VM, at most, unless its profile is `modern`.
pub const CLASSIC_CPUS: u32 = 4;
/// Processors of a VM, at most.
pub const MAX_CPUS: u32 = 64;

const NAME_ALLOWED: &str = "1 to 50 characters A-Z a-z 0-9 . _ -, the first a letter or digit";

/// The name of a VM. With the name of an adapter it is the name of a port: `VM.legacy0`.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(try_from = "String", into = "String")]
pub struct VmName(String);

impl VmName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the port of an adapter.
    pub fn port(&self, adapter: AdapterName) -> Result<PortName, InvalidValue> {
        format!("{self}.{adapter}").parse()
    }
}

/// Declares how a type that is parsed from text is written and read.
macro_rules! as_text {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = InvalidValue;

            fn try_from(text: String) -> Result<Self, InvalidValue> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.to_string()
            }
        }
    };
}

as_text!(VmName);
as_text!(AdapterName);
as_text!(MemorySize);
as_text!(AutoStart);
as_text!(Boot);

impl FromStr for VmName {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<VmName, InvalidValue> {
        // The rules of ports, and room for the adapter's name.
        match text.parse::<PortName>() {
            Ok(_) if text.len() <= 50 => Ok(VmName(text.to_owned())),
            _ => Err(InvalidValue::new("VM name", text, NAME_ALLOWED)),
        }
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The name of an adapter: `legacy0` to `legacy3`, `synthetic0` to `synthetic7`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, example = "legacy0")]
pub struct AdapterName(
    /// Legacy ones come first.
    u8,
);

impl AdapterName {
    /// All there are, legacy ones first.
    pub fn all() -> impl Iterator<Item = AdapterName> {
        (0..(MAX_LEGACY + MAX_SYNTHETIC) as u8).map(AdapterName)
    }

    /// All of a kind.
    pub fn of(kind: AdapterKind) -> impl Iterator<Item = AdapterName> {
        AdapterName::all().filter(move |name| name.kind() == kind)
    }

    /// The kind of the adapter.
    pub fn kind(self) -> AdapterKind {
        if usize::from(self.0) < MAX_LEGACY {
            AdapterKind::Legacy
        } else {
            AdapterKind::Synthetic
        }
    }

    /// The number at its end.
    pub fn index(self) -> u8 {
        match self.kind() {
            AdapterKind::Legacy => self.0,
            AdapterKind::Synthetic => self.0 - MAX_LEGACY as u8,
        }
    }
}

impl FromStr for AdapterName {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<AdapterName, InvalidValue> {
        AdapterName::all()
            .find(|name| name.to_string() == text)
            .ok_or_else(|| {
                let allowed = "legacy0 to legacy3, synthetic0 to synthetic7";
                InvalidValue::new("adapter name", text, allowed)
            })
    }
}

impl fmt::Display for AdapterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}{}", self.kind(), self.index()))
    }
}

/// The kind of an adapter.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum AdapterKind {
    /// An emulated DEC 21140.
    Legacy,
    /// NetVSP over VMBus, for guests with Hyper-V's network driver.
    Synthetic,
}

impl AdapterKind {
    /// Adapters of this kind in a VM, at most.
    pub fn most(self) -> usize {
        match self {
            AdapterKind::Legacy => MAX_LEGACY,
            AdapterKind::Synthetic => MAX_SYNTHETIC,
        }
    }
}

impl fmt::Display for AdapterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            AdapterKind::Legacy => "legacy",
            AdapterKind::Synthetic => "synthetic",
        })
    }
}

/// An integration service: what a guest with Hyper-V's drivers does with its host, beside networking.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Service {
    /// The guest switches itself off when it is asked to.
    Shutdown,
    /// It says that it is alive.
    Heartbeat,
    /// It takes its clock from the host.
    TimeSync,
    /// It tells the host of itself, as the name of its operating system.
    KeyValue,
}

impl Service {
    /// All there are.
    pub const ALL: [Service; 4] = [
        Service::Shutdown,
        Service::Heartbeat,
        Service::TimeSync,
        Service::KeyValue,
    ];
}

impl FromStr for Service {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Service, InvalidValue> {
        Service::ALL
            .into_iter()
            .find(|service| service.to_string() == text)
            .ok_or_else(|| {
                let allowed = "shutdown, heartbeat, time-sync, key-value";
                InvalidValue::new("integration service", text, allowed)
            })
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Service::Shutdown => "shutdown",
            Service::Heartbeat => "heartbeat",
            Service::TimeSync => "time-sync",
            Service::KeyValue => "key-value",
        })
    }
}

const MEMORY_ALLOWED: &str = "8M to 64G, a multiple of 2M, as 512M, 2G, or a number of bytes";
const MIB: u64 = 1 << 20;

/// The RAM of a VM: a multiple of 2 MiB, written as `64M`, `2G`, or in bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, example = "512M")]
pub struct MemorySize(u64);

impl MemorySize {
    /// 512 MiB.
    pub const DEFAULT: MemorySize = MemorySize(512 * MIB);

    /// Bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for MemorySize {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<MemorySize, InvalidValue> {
        let (digits, unit) = match text.as_bytes().last() {
            Some(b'M' | b'm') => (text.get(..text.len() - 1), MIB),
            Some(b'G' | b'g') => (text.get(..text.len() - 1), MIB << 10),
            _ => (Some(text), 1),
        };
        digits
            .filter(|digits| digits.bytes().all(|c| c.is_ascii_digit()))
            .and_then(|digits| digits.parse::<u64>().ok())
            .and_then(|number| number.checked_mul(unit))
            .filter(|bytes| (8 * MIB..=MIB << 16).contains(bytes) && bytes.is_multiple_of(2 * MIB))
            .map(MemorySize)
            .ok_or_else(|| InvalidValue::new("memory size", text, MEMORY_ALLOWED))
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}M", self.0 / MIB))
    }
}

/// What a VM boots, written `network` or `kernel:PATH`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Boot {
    /// The BIOS, which boots through the first legacy adapter that gets an answer.
    #[default]
    Network,
    /// A Linux kernel, without BIOS.
    Kernel(String),
}

impl FromStr for Boot {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Boot, InvalidValue> {
        match text.split_once(':') {
            None if text == "network" => Ok(Boot::Network),
            Some(("kernel", path)) if is_path(path) => Ok(Boot::Kernel(path.to_owned())),
            _ => Err(InvalidValue::new(
                "boot source",
                text,
                "network, or kernel:PATH with an absolute path",
            )),
        }
    }
}

impl fmt::Display for Boot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Boot::Network => f.pad("network"),
            Boot::Kernel(path) => f.pad(&format!("kernel:{path}")),
        }
    }
}

fn is_path(path: &str) -> bool {
    path.starts_with('/') && path.len() < 4096 && !path.contains('\0')
}

/// When vswitchd starts a VM by itself, written `nothing`, `if-running` or `always`, with `,delay=SECONDS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AutoStart {
    /// When.
    pub when: StartWhen,
    /// Seconds after vswitchd's own start: 0 to 3600.
    pub delay: u32,
}

/// When vswitchd starts a VM by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StartWhen {
    /// Never.
    Nothing,
    /// If it ran when vswitchd ended.
    #[default]
    IfRunning,
    /// Always.
    Always,
}

impl Default for AutoStart {
    fn default() -> AutoStart {
        AutoStart {
            when: StartWhen::IfRunning,
            delay: 0,
        }
    }
}

impl FromStr for AutoStart {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<AutoStart, InvalidValue> {
        let error = || {
            let allowed =
                "nothing, if-running, always; the last two also with ,delay=SECONDS, 0 to 3600";
            InvalidValue::new("automatic start", text, allowed)
        };
        let (when, delay) = match text.split_once(",delay=") {
            None => (text, 0),
            Some(("nothing", _)) => return Err(error()),
            Some((when, delay)) if delay.bytes().all(|c| c.is_ascii_digit()) => {
                (when, delay.parse().map_err(|_| error())?)
            }
            Some(_) => return Err(error()),
        };
        let when = match when {
            "nothing" => StartWhen::Nothing,
            "if-running" => StartWhen::IfRunning,
            "always" => StartWhen::Always,
            _ => return Err(error()),
        };
        if delay > 3600 {
            return Err(error());
        }
        Ok(AutoStart { when, delay })
    }
}

impl fmt::Display for AutoStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let when = match self.when {
            StartWhen::Nothing => "nothing",
            StartWhen::IfRunning => "if-running",
            StartWhen::Always => "always",
        };
        match self.delay {
            0 => f.pad(when),
            delay => f.pad(&format!("{when},delay={delay}")),
        }
    }
}

/// What becomes of a running VM when vswitchd ends in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AutoStop {
    /// Its state is saved.
    #[default]
    Save,
    /// Its power button is pressed; it is turned off if it does not react in time.
    Shutdown,
    /// It is turned off.
    TurnOff,
}

impl FromStr for AutoStop {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<AutoStop, InvalidValue> {
        match text {
            "save" => Ok(AutoStop::Save),
            "shutdown" => Ok(AutoStop::Shutdown),
            "turn-off" => Ok(AutoStop::TurnOff),
            _ => Err(InvalidValue::new(
                "automatic stop",
                text,
                "save, shutdown, turn-off",
            )),
        }
    }
}

impl fmt::Display for AutoStop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            AutoStop::Save => "save",
            AutoStop::Shutdown => "shutdown",
            AutoStop::TurnOff => "turn-off",
        })
    }
}

/// Which limits hold for a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// Those of Hyper-V of the day: 4 processors.
    #[default]
    Classic,
    /// 64 processors.
    Modern,
}

impl FromStr for Profile {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Profile, InvalidValue> {
        match text {
            "classic" => Ok(Profile::Classic),
            "modern" => Ok(Profile::Modern),
            _ => Err(InvalidValue::new("profile", text, "classic, modern")),
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Profile::Classic => "classic",
            Profile::Modern => "modern",
        })
    }
}

/// Asks for a new adapter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateAdapter {
    /// Its name; the first that is free unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<AdapterName>,
    /// The network it is connected to; none unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkName>,
    /// Its address; one of the host's pool unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<StationMac>,
    /// Its VLAN; none unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanId>,
}

/// Asks for a new VM.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVm {
    /// Its name, unique on the host.
    pub name: VmName,
    /// Its RAM; `512M` unless given.
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
    /// When it starts by itself; `if-running` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "always,delay=30")]
    pub auto_start: Option<AutoStart>,
    /// What becomes of it when vswitchd ends; `save` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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

impl VmConfig {
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
        let config = VmConfig {
            name: self.name,
            memory: self.memory.unwrap_or(MemorySize::DEFAULT),
            cpus: self.cpus.unwrap_or(1),
            profile: self.profile.unwrap_or_default(),
            boot: self.boot.unwrap_or_default(),
            initrd: self.initrd,
            cmdline: self.cmdline.unwrap_or_default(),
            boot_rom: self.boot_rom,
            auto_start: self.auto_start.unwrap_or_default(),
            auto_stop: self.auto_stop.unwrap_or_default(),
            notes: self.notes.unwrap_or_default(),
        }
        .checked()?;
        let mut adapters: Vec<(AdapterName, CreateAdapter)> = Vec::new();
        for adapter in self.legacy {
            let taken: Vec<AdapterName> = adapters.iter().map(|(name, _)| *name).collect();
            let name = choose_name(&config.name, &taken, AdapterKind::Legacy, adapter.name)?;
            adapters.push((name, adapter));
        }
        Ok((config, adapters))
    }
}

/// The name of a new adapter: the one asked for, or the first of its kind that is free.
pub fn choose_name(
    vm: &VmName,
    taken: &[AdapterName],
    kind: AdapterKind,
    wanted: Option<AdapterName>,
) -> Result<AdapterName, Refusal> {
    match wanted {
        Some(name) if taken.contains(&name) => Err(Refusal::conflict(format!(
            "VM '{vm}' has an adapter '{name}' already; names are unique in a VM"
        ))),
        Some(name) if name.kind() != kind => Err(Refusal::invalid(format!(
            "'{name}' is no name of a {kind} adapter"
        ))),
        Some(name) => Ok(name),
        None => AdapterName::of(kind)
            .find(|name| !taken.contains(name))
            .ok_or_else(|| {
                let most = kind.most();
                Refusal::conflict(format!(
                    "VM '{vm}' has {most} {kind} adapters already; allowed: at most {most}"
                ))
            }),
    }
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
    /// When it starts by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "always,delay=30")]
    pub auto_start: Option<AutoStart>,
    /// What becomes of it when vswitchd ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
            || patch.cmdline.is_some();
        let other =
            patch.auto_start.is_some() || patch.auto_stop.is_some() || patch.notes.is_some();
        if !machine && !other {
            return Err(Refusal::invalid(format!(
                "VM '{}': nothing to change; allowed: memory, cpus, profile, boot, initrd, cmdline, boot_rom, auto_start, \
                 auto_stop, notes",
                config.name
            )));
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
            auto_start: patch.auto_start.unwrap_or(config.auto_start),
            auto_stop: patch.auto_stop.unwrap_or(config.auto_stop),
            notes: patch.notes.unwrap_or_else(|| config.notes.clone()),
        };
        Ok((new.checked()?, machine))
    }
}

/// Asks for changes to an adapter. Absent keys change nothing.
#[derive(Clone, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PatchAdapter {
    /// The network it is to be connected to; `null` disconnects it. The guest sees its link change.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    #[schema(value_type = Option<NetworkName>)]
    pub network: Option<Option<NetworkName>>,
    /// Its address, while the VM is off; `null` takes a new one from the host's pool.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    #[schema(value_type = Option<StationMac>)]
    pub mac: Option<Option<StationMac>>,
    /// Its VLAN; `null` for none.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    #[schema(value_type = Option<VlanId>)]
    pub vlan: Option<Option<VlanId>>,
}

impl PatchAdapter {
    /// Checks that something is to be changed.
    pub fn check(&self, vm: &VmName, adapter: AdapterName) -> Result<(), Refusal> {
        if self.network.is_none() && self.mac.is_none() && self.vlan.is_none() {
            return Err(Refusal::invalid(format!(
                "adapter '{adapter}' of VM '{vm}': nothing to change; allowed: network, mac, vlan"
            )));
        }
        Ok(())
    }
}

/// What a VM is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VmVerb {
    /// Switch it on, or go on from where it was saved.
    Start,
    /// Pull its plug.
    TurnOff,
    /// Press its power button, and wait until it is off.
    Shutdown,
    /// Stop its processors.
    Pause,
    /// Let them go on.
    Resume,
    /// Press its reset button.
    Reset,
    /// Write its state to a file, and switch it off.
    Save,
    /// Throw its saved state away.
    Discard,
}

impl fmt::Display for VmVerb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            VmVerb::Start => "start",
            VmVerb::TurnOff => "turn-off",
            VmVerb::Shutdown => "shutdown",
            VmVerb::Pause => "pause",
            VmVerb::Resume => "resume",
            VmVerb::Reset => "reset",
            VmVerb::Save => "save",
            VmVerb::Discard => "discard",
        })
    }
}

/// The state of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// It has no process and no saved state.
    Off,
    /// Its machine is being made, or its process has not yet come back to a vswitchd that was started anew.
    Starting,
    /// It runs.
    Running,
    /// Its processors are stopped.
    Paused,
    /// Its state is being written.
    Saving,
    /// Its state is in a file.
    Saved,
}

impl fmt::Display for VmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            VmState::Off => "off",
            VmState::Starting => "starting",
            VmState::Running => "running",
            VmState::Paused => "paused",
            VmState::Saving => "saving",
            VmState::Saved => "saved",
        })
    }
}

impl VmState {
    /// What may be done in this state.
    pub fn allowed(self) -> &'static [VmVerb] {
        match self {
            VmState::Off => &[VmVerb::Start],
            VmState::Starting | VmState::Saving => &[VmVerb::TurnOff],
            VmState::Running => &[
                VmVerb::TurnOff,
                VmVerb::Shutdown,
                VmVerb::Pause,
                VmVerb::Reset,
                VmVerb::Save,
            ],
            VmState::Paused => &[VmVerb::TurnOff, VmVerb::Resume, VmVerb::Reset, VmVerb::Save],
            VmState::Saved => &[VmVerb::Start, VmVerb::Discard],
        }
    }

    /// Refuses a verb that this state does not admit.
    pub fn admit(self, vm: &VmName, verb: VmVerb) -> Result<(), Refusal> {
        if self.allowed().contains(&verb) {
            return Ok(());
        }
        let allowed: Vec<String> = self.allowed().iter().map(ToString::to_string).collect();
        Err(Refusal::conflict(format!(
            "cannot {verb} VM '{vm}': it is {self}; allowed: {}",
            allowed.join(", ")
        )))
    }
}

/// Asks a VM to do something.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmAction {
    /// What to do.
    pub verb: VmVerb,
    /// With `shutdown`: seconds to wait until the VM is off, 0 to 3600; 60 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
}

impl VmAction {
    /// Seconds to wait until the VM is off.
    pub fn check(self) -> Result<u32, Refusal> {
        match (self.verb, self.timeout) {
            (VmVerb::Shutdown, None) => Ok(60),
            (VmVerb::Shutdown, Some(timeout)) if timeout <= 3600 => Ok(timeout),
            (VmVerb::Shutdown, Some(timeout)) => Err(Refusal::invalid(format!(
                "timeout '{timeout}' is not allowed; allowed: 0 to 3600 seconds"
            ))),
            (_, None) => Ok(0),
            (verb, Some(_)) => Err(Refusal::invalid(format!(
                "timeout given with {verb}; allowed with shutdown"
            ))),
        }
    }
}
