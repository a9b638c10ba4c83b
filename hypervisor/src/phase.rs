//! Where a machine is in its life, and what it tells of it.

/// What a machine tells of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest has reset the machine, which goes on.
    Reset,
    /// The guest has turned it off.
    PoweredOff,
    /// It cannot go on: why, in words.
    Crashed(String),
}

/// Where a machine is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Made, and never run.
    Created,
    /// Its processors run.
    Running,
    /// Its processors and its time stand still.
    Paused,
    /// Turned off by its guest, for good.
    Off,
    /// Stopped by a fault, for good.
    Crashed,
}

impl Phase {
    /// The word for users.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Off => "off",
            Self::Crashed => "crashed",
        }
    }
}
