//! The messages, and what is checked about them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Adapters of a VM, at most: 4 legacy and 8 synthetic ones.
pub const MAX_ADAPTERS: usize = 12;
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

fn invalid(
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

fn at_most(what: &'static str, found: usize, most: usize) -> Result<(), InvalidMessage> {
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
}

/// An adapter as it is configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterConfig {
    /// Its name, as `legacy0`.
    pub name: String,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Whether it is connected to a network that is up.
    pub link: bool,
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
    /// Its adapters, in the order of their slots.
    pub adapters: Vec<AdapterConfig>,
    /// What the file descriptors are, in their order.
    pub files: Vec<FileRole>,
}

/// What a VM is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Press the power button.
    PowerButton,
    /// Write the state of the paused machine to the file descriptor that comes along.
    Save,
    /// Show an adapter its link.
    Link {
        /// Its index in the configuration.
        adapter: usize,
        /// Whether it is up.
        up: bool,
    },
    /// Whether anybody serves the rings of an adapter.
    Served {
        /// Its index in the configuration.
        adapter: usize,
        /// Whether somebody does.
        served: bool,
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
    /// A command; it is answered by a reply with the same number.
    Command {
        /// The number.
        id: u64,
        /// The command.
        command: Command,
    },
}

impl Checked for ToVmm {
    fn check(&self, fds: usize) -> Result<(), InvalidMessage> {
        let due = match self {
            ToVmm::Configure(configure) => {
                configure.check()?;
                configure.files.len()
            }
            ToVmm::Adopt {} => 0,
            ToVmm::Command { command, .. } => usize::from(*command == Command::Save),
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
        at_most("number of adapters", self.adapters.len(), MAX_ADAPTERS)?;
        for adapter in &self.adapters {
            at_most("length of an adapter's name", adapter.name.len(), MAX_NAME)?;
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
    /// For each adapter whether a driver has taken it into use.
    pub drivers: Vec<bool>,
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
    /// The machine is there. With it go the file of its RAM, then three for each adapter: the shared page, the event
    /// by which the guest kicks, the event that interrupts the guest.
    Ready {
        /// Where RAM is.
        regions: Vec<Region>,
        /// How many adapters there are.
        adapters: usize,
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
    /// The guest was reset: it did so itself, or was told to.
    WasReset {},
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
                at_most("number of adapters", *adapters, MAX_ADAPTERS)?;
                1 + 3 * adapters
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
            FromVmm::WasReset {} | FromVmm::Ended(Ended::PoweredOff {}) => 0,
        };
        exactly(fds, due)
    }
}

impl Status {
    fn check(&self) -> Result<(), InvalidMessage> {
        at_most("number of kinds of exits", self.exits.len(), MAX_EXITS)?;
        at_most("number of drivers", self.drivers.len(), MAX_ADAPTERS)?;
        for kind in self.exits.keys() {
            at_most("length of a kind of exit", kind.len(), MAX_NAME)?;
        }
        Ok(())
    }
}
