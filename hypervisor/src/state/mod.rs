//! The state of a machine.

mod file;
mod vcpu;

pub(crate) use file::{Document, read, write};
pub(crate) use vcpu::VcpuState;
pub(crate) use vcpu::{check_time, readable_msrs, time_stamp};
