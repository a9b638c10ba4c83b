//! The messages, and what is checked about them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::demand::{Demand, MAX_CHANNELS, check_state};
use crate::api::{AdapterKind, AdapterName, MAX_LEGACY, MAX_SYNTHETIC, Service};

/// Adapters of a VM, at most.
pub const MAX_ADAPTERS: usize = MAX_LEGACY + MAX_SYNTHETIC;
/// Integration services of a VM, at most.
pub const MAX_SERVICES: usize = Service::ALL.len();
/// Characters of a name, at most.
pub const MAX_NAME: usize = 64;
/// Bytes of a kernel's command line, at most (Linux on x86: `COMMAND_LINE_SIZE`).
pub const MAX_CMDLINE: usize = 2047;
/// Characters of a report or a reason; longer ones are cut by [`shortened`] before they are sent.
pub const MAX_TEXT: usize = 2048;
/// Regions of guest RAM, at most.
pub const MAX_REGIONS: usize = 8;
/// Kinds of exits that are counted, at most.
pub const MAX_EXITS: usize = 32;
/// Things that a guest says of itself, at most.
pub const MAX_FACTS: usize = 16;
/// Characters of such a thing, at most.
pub const MAX_FACT: usize = 256;

/// What is wrong with a message that can be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {value}; allowed: {allowed}")]
pub struct InvalidMessage {
    /// The field.
    pub what: &'static str,
    /// What was found in it.
    pub value: String,
    /// What may be in it.
    pub allowed: String,
}

pub(super) fn invalid(
    what: &'static str,
    value: impl ToString,
    allowed: impl ToString,
) -> Result<(), InvalidMessage> {
    Err(InvalidMessage {
        what,
        value: value.to_string(),
        allowed: allowed.to_string(),
    })
}

pub(super) fn at_most(what: &'static str, found: usize, most: usize) -> Result<(), InvalidMessage> {
    if found > most {
        return invalid(what, found, format_args!("at most {most}"));
    }
    Ok(())
}

/// A text cut to [`MAX_TEXT`] characters.
pub fn shortened(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

/// A message that is checked after it was read.
pub trait Checked {
    /// Checks the fields, and that `fds` file descriptors belong to the message.
    ///
    /// # Errors
    /// The first field that is not as it must be.
    fn check(&self, fds: usize) -> Result<(), InvalidMessage>;
}

/// What an open file that goes with [`Configure`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileRole {
    /// The kernel to boot.
    Kernel,
    /// Its initial RAM disk.
    Initrd,
    /// The listening socket of COM1.
    Com1,
    /// The listening socket of COM2.
    Com2,
    /// Where what COM1 says is kept.
    ConsoleLog,
    /// The state that was saved.
    Saved,
    /// The BIOS image.
    Firmware,
    /// The option ROM of legacy adapters.
    LegacyRom,
    /// The listening socket on which the next vswitchd comes in.
    Attach,
}

/// An adapter as it is configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterConfig {
    /// Its name, which also says its kind.
    pub name: AdapterName,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Whether it is connected to a network that is up.
    pub link: bool,
    /// Identifies it to its guest, always as the same, if it is a synthetic one (GUID, as on the wire).
    pub instance: [u8; 16],
}

/// Everything about a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configure {
    /// Bytes of RAM.
    pub memory: u64,
    /// Virtual processors: 1 to 64.
    pub cpus: u32,
    /// The kernel's command line.
    pub cmdline: String,
    /// Identifies the VM to its guest (SMBIOS system UUID).
    pub uuid: [u8; 16],
    /// Its adapters; legacy ones are in the order of their slots.
    pub adapters: Vec<AdapterConfig>,
    /// Whether the guest finds Hyper-V. Without it there are neither synthetic adapters nor services.
    pub hyperv: bool,
    /// The integration services it is offered.
    pub services: Vec<Service>,
    /// What the file descriptors are, in their order.
    pub files: Vec<FileRole>,
}

/// What a VM is told to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Command {
    /// Run, from reset or from what was restored.
    Start,
    /// Stop all virtual processors.
    Pause,
    /// Go on.
    Resume,
    /// Press the reset button.
    Reset,
    /// Ask the guest to switch itself off: by the integration service if its driver is there, else by the power button.
    PowerButton,
    /// Write the state of the paused machine to the file descriptor that comes along.
    Save,
    /// Show a legacy adapter its link.
    Link {
        /// The adapter.
        adapter: AdapterName,
        /// Whether it is up.
        up: bool,
    },
    /// Whether anybody serves the rings of a legacy adapter.
    Served {
        /// The adapter.
        adapter: AdapterName,
        /// Whether somebody does.
        served: bool,
    },
    /// Offer so many sub-channels of a synthetic adapter: its driver asked for them.
    SubChannels {
        /// The adapter.
        adapter: AdapterName,
        /// Their number, 0 to 7.
        count: u8,
    },
    /// Keep this for a synthetic adapter, instead of what was kept before, as part of the machine's state: it comes back
    /// with [`Demand::Restore`].
    Keep {
        /// The adapter.
        adapter: AdapterName,
        /// What vswitchd knows of its driver; nothing that the process understands.
        state: String,
    },
    /// Plug a synthetic adapter in. [`FromVmm::Added`] comes before the answer.
    AddAdapter {
        /// The adapter.
        adapter: AdapterConfig,
    },
    /// Unplug a synthetic adapter.
    RemoveAdapter {
        /// The adapter.
        adapter: AdapterName,
    },
    /// Say how things stand.
    Status,
}

/// From vswitchd to the process of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum ToVmm {
    /// Make this machine; the file descriptors are [`Configure::files`].
    Configure(Configure),
    /// The VM that runs goes on under this vswitchd.
    Adopt {},
    /// A machine that runs is not known: it ends.
    Leave {},
    /// A command; it is answered by a reply with the same number.
    Command {
        /// The number.
        id: u64,
        /// The command.
        command: Command,
    },
    /// The answer to a demand.
    Done {
        /// The number of the demand.
        id: u64,
        /// Whether it is met.
        ok: bool,
    },
}

impl Checked for ToVmm {
    fn check(&self, fds: usize) -> Result<(), InvalidMessage> {
        let due = match self {
            ToVmm::Configure(configure) => {
                configure.check()?;
                configure.files.len()
            }
            ToVmm::Adopt {} | ToVmm::Leave {} | ToVmm::Done { .. } => 0,
            ToVmm::Command { command, .. } => command.check()?,
        };
        exactly(fds, due)
    }
}

fn exactly(fds: usize, due: usize) -> Result<(), InvalidMessage> {
    if fds != due {
        return invalid("number of file descriptors", fds, due);
    }
    Ok(())
}

/// Checks that no adapter is there twice. As there are [`MAX_ADAPTERS`] names, this bounds their number.
fn check_adapters(names: impl Iterator<Item = AdapterName>) -> Result<(), InvalidMessage> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return invalid("adapter", name, "each once");
        }
    }
    Ok(())
}

fn check_kind(adapter: AdapterName, due: AdapterKind) -> Result<(), InvalidMessage> {
    if adapter.kind() != due {
        return invalid("adapter", adapter, format_args!("a {due} one"));
    }
    Ok(())
}

impl Command {
    /// Checks the fields; gives how many file descriptors belong to it.
    fn check(&self) -> Result<usize, InvalidMessage> {
        match self {
            Command::Link { adapter, .. } | Command::Served { adapter, .. } => {
                check_kind(*adapter, AdapterKind::Legacy)?;
            }
            Command::SubChannels { adapter, count } => {
                check_kind(*adapter, AdapterKind::Synthetic)?;
                if *count >= MAX_CHANNELS {
                    invalid("number of sub-channels", count, "0 to 7")?;
                }
            }
            Command::Keep { adapter, state } => {
                check_kind(*adapter, AdapterKind::Synthetic)?;
                check_state(state)?;
            }
            Command::AddAdapter { adapter } => check_kind(adapter.name, AdapterKind::Synthetic)?,
            Command::RemoveAdapter { adapter } => check_kind(*adapter, AdapterKind::Synthetic)?,
            Command::Save => return Ok(1),
            _ => {}
        }
        Ok(0)
    }
}

impl Configure {
    fn check(&self) -> Result<(), InvalidMessage> {
        if !(1..=64).contains(&self.cpus) {
            return invalid("number of processors", self.cpus, "1 to 64");
        }
        at_most(
            "length of the command line",
            self.cmdline.len(),
            MAX_CMDLINE,
        )?;
        check_adapters(self.adapters.iter().map(|adapter| adapter.name))?;
        let mut services = self.services.clone();
        services.sort_unstable();
        services.dedup();
        if services.len() != self.services.len() {
            let shown = format!("{:?}", self.services);
            return invalid("list of services", shown, "each once");
        }
        let mut roles = self.files.clone();
        roles.sort_unstable();
        roles.dedup();
        if roles.len() != self.files.len() {
            return invalid("list of files", format!("{:?}", self.files), "each once");
        }
        Ok(())
    }
}

/// Whether a machine's processors run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Made, and not started yet.
    Ready,
    /// They run.
    Running,
    /// They are stopped.
    Paused,
}

/// A piece of guest RAM: `len` bytes at guest-physical address `guest` are those at `offset` of the memory's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Region {
    /// Guest-physical address.
    pub guest: u64,
    /// Bytes.
    pub len: u64,
    /// Place in the file.
    pub offset: u64,
}

/// How things stand in a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Status {
    /// Whether it runs.
    pub state: RunState,
    /// Exits to user space by kind.
    pub exits: BTreeMap<String, u64>,
    /// The adapters that a driver has taken into use.
    pub drivers: Vec<AdapterName>,
    /// The integration services that the guest uses.
    pub services: Vec<Service>,
    /// What the guest says of itself by key/value exchange.
    pub facts: BTreeMap<String, String>,
}

/// What a guest said when it crashed, in Hyper-V's registers for that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CrashReport {
    /// Five numbers; their meaning is the guest's, as a Windows bug check and its parameters.
    pub parameters: [u64; 5],
    /// Its last words, if it had any.
    pub message: Option<String>,
}

/// Why a VM ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Ended {
    /// The guest switched itself off.
    PoweredOff {},
    /// It cannot go on, for this reason.
    Failed {
        /// The reason, for people.
        reason: String,
    },
}

/// From the process of a VM to vswitchd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum FromVmm {
    /// The first message.
    Hello {
        /// [`super::VERSION`].
        version: u32,
        /// The VM's name.
        name: String,
        /// Whether the machine is made already.
        running: bool,
    },
    /// The machine is there. With it go the file of its RAM, then for each legacy adapter three: the shared page, the
    /// event by which the guest kicks, the event that interrupts the guest; for each synthetic adapter the event by
    /// which the guest kicks any of its channels. Demands for what is shared and open already follow at once.
    Ready {
        /// Where RAM is.
        regions: Vec<Region>,
        /// Its adapters.
        adapters: Vec<AdapterName>,
        /// Whether it runs.
        state: RunState,
    },
    /// The answer to a command.
    Reply {
        /// The number of the command.
        id: u64,
        /// Why it was not carried out; absent if it was.
        error: Option<String>,
        /// How things stand, if that was asked for.
        status: Option<Status>,
    },
    /// A synthetic adapter was plugged in. With it goes the event by which the guest kicks any of its channels.
    Added {
        /// The adapter.
        adapter: AdapterName,
    },
    /// A demand for a channel of a synthetic adapter; those of an adapter are met in order, and each is answered.
    Demand {
        /// A number to know the answer by.
        id: u64,
        /// The adapter.
        adapter: AdapterName,
        /// What is demanded.
        demand: Demand,
    },
    /// The guest was reset: it did so itself, or was told to.
    WasReset {},
    /// The guest says that it crashed. Said again after each `Ready` until it is reset.
    Crashed(CrashReport),
    /// The VM has ended; the process ends, too.
    Ended(Ended),
}

impl Checked for FromVmm {
    fn check(&self, fds: usize) -> Result<(), InvalidMessage> {
        let due = match self {
            FromVmm::Hello { name, .. } => {
                at_most("length of the name", name.len(), MAX_NAME)?;
                0
            }
            FromVmm::Ready {
                regions, adapters, ..
            } => {
                at_most("number of regions", regions.len(), MAX_REGIONS)?;
                check_adapters(adapters.iter().copied())?;
                1 + adapters
                    .iter()
                    .map(|name| files_of(name.kind()))
                    .sum::<usize>()
            }
            FromVmm::Reply { error, status, .. } => {
                let text = error.as_deref().unwrap_or_default();
                at_most("length of the error", text.chars().count(), MAX_TEXT)?;
                if let Some(status) = status {
                    status.check()?;
                }
                0
            }
            FromVmm::Ended(Ended::Failed { reason }) => {
                at_most("length of the reason", reason.chars().count(), MAX_TEXT)?;
                0
            }
            FromVmm::Added { adapter } => {
                check_kind(*adapter, AdapterKind::Synthetic)?;
                files_of(AdapterKind::Synthetic)
            }
            FromVmm::Demand {
                adapter, demand, ..
            } => {
                check_kind(*adapter, AdapterKind::Synthetic)?;
                demand.check()?
            }
            FromVmm::Crashed(report) => {
                let text = report.message.as_deref().unwrap_or_default();
                at_most("length of the last words", text.chars().count(), MAX_TEXT)?;
                0
            }
            FromVmm::WasReset {} | FromVmm::Ended(Ended::PoweredOff {}) => 0,
        };
        exactly(fds, due)
    }
}

/// File descriptors of an adapter.
fn files_of(kind: AdapterKind) -> usize {
    match kind {
        AdapterKind::Legacy => 3,
        AdapterKind::Synthetic => 1,
    }
}

impl Status {
    fn check(&self) -> Result<(), InvalidMessage> {
        at_most("number of kinds of exits", self.exits.len(), MAX_EXITS)?;
        at_most("number of drivers", self.drivers.len(), MAX_ADAPTERS)?;
        at_most("number of services", self.services.len(), MAX_SERVICES)?;
        at_most("number of facts", self.facts.len(), MAX_FACTS)?;
        for (key, value) in &self.facts {
            at_most("length of a fact's name", key.chars().count(), MAX_NAME)?;
            at_most("length of a fact", value.chars().count(), MAX_FACT)?;
        }
        for kind in self.exits.keys() {
            at_most("length of a kind of exit", kind.len(), MAX_NAME)?;
        }
        Ok(())
    }
}
