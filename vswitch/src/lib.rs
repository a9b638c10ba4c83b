//! The poll-mode layer-2 switch.
#[cfg(feature = "api")]
pub mod api;
pub mod drops;
pub mod mac;
pub mod vlan;
