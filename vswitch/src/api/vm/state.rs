//! The states of a VM, and what it is told to do.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::values::VmName;
use crate::api::error::Refusal;

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
