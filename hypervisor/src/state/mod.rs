//! The state of a machine.

mod vcpu;

pub use vcpu::{VcpuState, readable_msrs};
