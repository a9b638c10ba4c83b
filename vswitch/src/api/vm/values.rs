//! What a VM is made of, as users write it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::adapter::AdapterName;
use crate::api::values::{InvalidValue, PortName, as_text, text_type, words};

text_type! {
    /// The name of a VM. With the name of an adapter it is the name of a port: `VM.legacy0`.
    VmName, "VM name",
    "1 to 50 characters A-Z a-z 0-9 . _ -, the first a letter or digit", is_vm_name
}

/// The rules of ports, and room for the adapter's name.
fn is_vm_name(text: &str) -> bool {
    text.len() <= 50 && text.parse::<PortName>().is_ok()
}

impl VmName {
    /// The name of the port of an adapter.
    pub fn port(&self, adapter: AdapterName) -> Result<PortName, InvalidValue> {
        format!("{self}.{adapter}").parse()
    }
}

as_text!(MemorySize);
as_text!(AutoStart);
as_text!(AutoStop);
as_text!(Boot);

const MEMORY_ALLOWED: &str = "8M to 1024G, a multiple of 2M, as 512M, 2G, or a number of bytes";
const MIB: u64 = 1 << 20;

/// The RAM of a VM: a multiple of 2 MiB, which its profile may limit further, written as `64M`, `2G`, or in bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, example = "512M")]
pub struct MemorySize(u64);

impl MemorySize {
    /// 512 MiB.
    pub const DEFAULT: MemorySize = MemorySize(512 * MIB);
    /// 64 GiB, the most that a VM of profile `classic` has.
    pub const CLASSIC: MemorySize = MemorySize(64 << 30);

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
            .filter(|bytes| (8 * MIB..=MIB << 20).contains(bytes) && bytes.is_multiple_of(2 * MIB))
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

pub(super) fn is_path(path: &str) -> bool {
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

/// What becomes of a running VM when vswitchd ends in order, written `save`, `turn-off`, or `shutdown`, the last also with
/// `,timeout=SECONDS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum AutoStop {
    /// Its state is saved.
    #[default]
    Save,
    /// Its power button is pressed; it is turned off if it is not off in time.
    Shutdown {
        /// Seconds it has: 1 to 600.
        timeout: u32,
    },
    /// It is turned off.
    TurnOff,
}

impl AutoStop {
    /// Seconds that a guest has to shut down where nothing else is said.
    pub const DEFAULT_TIMEOUT: u32 = 60;
    const MAX_TIMEOUT: u32 = 600;
}

impl FromStr for AutoStop {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<AutoStop, InvalidValue> {
        let error = || {
            let allowed = "save, shutdown, turn-off; shutdown also with ,timeout=SECONDS, 1 to 600";
            InvalidValue::new("automatic stop", text, allowed)
        };
        let (action, timeout) = match text.split_once(",timeout=") {
            None => (text, Self::DEFAULT_TIMEOUT),
            Some(("shutdown", seconds)) if seconds.bytes().all(|c| c.is_ascii_digit()) => {
                ("shutdown", seconds.parse().map_err(|_| error())?)
            }
            Some(_) => return Err(error()),
        };
        match action {
            "save" => Ok(AutoStop::Save),
            "shutdown" if (1..=Self::MAX_TIMEOUT).contains(&timeout) => {
                Ok(AutoStop::Shutdown { timeout })
            }
            "turn-off" => Ok(AutoStop::TurnOff),
            _ => Err(error()),
        }
    }
}

impl fmt::Display for AutoStop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AutoStop::Save => f.pad("save"),
            AutoStop::Shutdown { timeout } if *timeout == Self::DEFAULT_TIMEOUT => {
                f.pad("shutdown")
            }
            AutoStop::Shutdown { timeout } => f.pad(&format!("shutdown,timeout={timeout}")),
            AutoStop::TurnOff => f.pad("turn-off"),
        }
    }
}

/// Which limits hold for a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// Those of Hyper-V of the day: 4 processors, 64 GiB of RAM.
    #[default]
    Classic,
    /// 64 processors, 1 TiB of RAM.
    Modern,
}

words! {
    Profile, "profile",
    Classic => "classic", Modern => "modern"
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

words! {
    Service, "integration service",
    Shutdown => "shutdown", Heartbeat => "heartbeat", TimeSync => "time-sync", KeyValue => "key-value"
}
