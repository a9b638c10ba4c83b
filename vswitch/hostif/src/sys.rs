//! The calls that need `unsafe`, each behind a safe function.

pub(crate) mod ioctl;
