//! The calls that need `unsafe`, each behind a safe function.

pub(crate) mod bpf;
pub(crate) mod ioctl;
pub(crate) mod packet;
pub(crate) mod ring;
