//! Virtual machines of ours, as tests and the demonstration use them.

pub mod bench;
pub mod console;
pub mod image;
pub mod netboot;
pub mod ours;
pub mod qemu;
pub mod scene;

pub use console::Console;
pub use netboot::Netboot;
pub use qemu::QemuTulip;

/// The guest kernel's parameters. Where KVM emulates ring 0 it lacks the instructions that are switched off, and copies
/// byte by byte what `erms` and `fsrm` would have copied in one instruction.
pub const COMMAND_LINE: &str = "console=ttyS0 panic=-1 noxsave clearcpuid=popcnt,smap,erms,fsrm tsc=reliable \
     no_timer_check rodata=off retain_initrd quiet";
/// For guests that need IPv4 only: what IPv6 says of itself is not among their frames, and they are ready sooner.
pub const NO_IPV6: &str = "ipv6.disable=1";
