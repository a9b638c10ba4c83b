//! What a thread of the monitor may ask of the kernel, once it deals with a guest: what it needs, and nothing else.
//!
//! Each thread gives up all capabilities, all access to files by name (Landlock, where the kernel has it) and all system
//! calls but those of its kind (seccomp): a call that is not allowed fails with `EPERM`. Everything else it needs, it
//! has open already. Nothing can be undone, and programs cannot be run.

use std::collections::BTreeMap;

use landlock::{ABI, Access as _, AccessFs, Ruleset, RulesetAttr as _};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

use crate::Error;

/// The kinds of threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// Runs a processor and the devices behind its accesses. It writes to consoles and eventfds that are open.
    Vcpu,
    /// Timers, and resets: reads the kernel and initrd again, which are open.
    Service,
    /// Talks to the daemon and to consoles, by sockets that are open or come in by those that listen; saved states, threads.
    /// It makes no socket and connects to none: as root it would be let in by whoever listens on this host.
    Control,
}

/// Every thread: memory, time, locks, open descriptors, its end.
const COMMON: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_futex,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_sched_yield,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Reading images again, and guest memory through another mapping.
const SERVICE: &[libc::c_long] = &[
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fcntl,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
];

/// Sockets, waiting, descriptors, threads.
const CONTROL: &[libc::c_long] = &[
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_accept4,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_memfd_create,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_clone3,
    libc::SYS_clone,
    libc::SYS_sched_getaffinity,
    // Of the threads that it makes, which confine themselves further.
    libc::SYS_prctl,
    libc::SYS_seccomp,
    libc::SYS_capset,
    libc::SYS_capget,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_restrict_self,
];

/// The type of KVM's calls among all ioctls (linux/kvm.h, `KVMIO`), in bits 8 to 15.
const KVM_IOCTLS: u64 = 0xae00;

/// Confines the calling thread for good, and the threads it makes.
///
/// # Errors
/// What the kernel refuses. The thread may be confined in part then.
pub fn confine(kind: Thread) -> Result<(), Error> {
    let failed = |what: &str, why: &dyn std::fmt::Display| Error::Sandbox(format!("{what}: {why}"));
    let program = program(kind).map_err(|error| failed("seccomp filter", &error))?;
    // Best effort, as older kernels know fewer kinds of access; it also forbids to gain privileges.
    Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V3))
        .and_then(Ruleset::create)
        .and_then(|rules| rules.restrict_self())
        .map_err(|error| failed("landlock", &error))?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).map_err(|error| failed("capset", &error))?;
    apply_filter(&program).map_err(|error| failed("seccomp", &error))
}

fn program(kind: Thread) -> Result<BpfProgram, seccompiler::BackendError> {
    let more = match kind {
        Thread::Vcpu => [&[][..], &[]],
        Thread::Service => [SERVICE, &[]],
        Thread::Control => [SERVICE, CONTROL],
    };
    let always = COMMON.iter().chain(more.into_iter().flatten());
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        always.map(|&number| (number, Vec::new())).collect();
    let only_if = |argument, op, value| {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value)?;
        Ok::<_, seccompiler::BackendError>(vec![SeccompRule::new(vec![condition])?])
    };
    // Memory that can be executed is never made.
    let executable = SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64);
    rules.insert(libc::SYS_mmap, only_if(2, executable.clone(), 0)?);
    rules.insert(libc::SYS_mprotect, only_if(2, executable, 0)?);
    let kvm = only_if(1, SeccompCmpOp::MaskedEq(0xff00), KVM_IOCTLS)?;
    rules.insert(libc::SYS_ioctl, kvm);
    // Signals go to threads of this process only.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, only_if(0, SeccompCmpOp::Eq, own)?);
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(rules, refuse, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}
