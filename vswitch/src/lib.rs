//! The poll-mode layer-2 switch.
pub mod burst;
pub mod counters;
pub mod deliver;
pub mod drops;
pub mod mac;
pub mod port;
pub mod ports;
pub mod vlan;
