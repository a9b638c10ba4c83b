//! The poll-mode layer-2 switch.
pub mod burst;
pub mod deliver;
pub mod drops;
pub mod port;
