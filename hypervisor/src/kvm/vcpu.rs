//! A processor: run until the monitor is needed, kicked out by other threads, its registers read and written.
#![allow(unsafe_code, reason = "the page shared with KVM, and signals")]

use std::io;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};

use kvm_bindings::{
    CpuId, KVM_EXIT_IO_IN, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, kvm_run, kvm_xsave,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::Error;

/// An instruction that KVM's emulator gave up on, as far as KVM says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    /// The bytes at the instruction pointer; only the first `len` count.
    pub bytes: [u8; 15],
    /// How many bytes KVM gave: none, if it has not fetched them.
    pub len: u8,
}

/// Why a processor stopped running.
#[derive(Debug)]
pub enum Exit<'a> {
    /// `IN`: one value of `size` bytes for each chunk of `data`, all from `port`.
    PortRead {
        /// The port.
        port: u16,
        /// 1, 2 or 4.
        size: usize,
        /// To be filled in before the processor runs again.
        data: &'a mut [u8],
    },
    /// `OUT`: one value of `size` bytes in each chunk of `data`, all to `port`.
    PortWrite {
        /// The port.
        port: u16,
        /// 1, 2 or 4.
        size: usize,
        /// The values.
        data: &'a [u8],
    },
    /// A load from an address that is no memory; to be filled in before the processor runs again.
    MemoryRead(u64, &'a mut [u8]),
    /// A store to an address that is no memory, or read-only memory.
    MemoryWrite(u64, &'a [u8]),
    /// `RDMSR` of a register that [`Vm::pass_on_msrs`](super::Vm::pass_on_msrs) names; to be answered before the processor
    /// runs again.
    MsrRead {
        /// The register.
        register: u32,
        /// Its value.
        value: &'a mut u64,
        /// Set to 1: there is no such register (#GP).
        error: &'a mut u8,
    },
    /// `WRMSR` to such a register.
    MsrWrite {
        /// The register.
        register: u32,
        /// The value.
        value: u64,
        /// Set to 1: there is no such register, or it does not take the value (#GP).
        error: &'a mut u8,
    },
    /// Kicked, or a signal came.
    Interrupted,
    /// A triple fault, which resets a PC.
    Shutdown,
    /// KVM's emulator does not know the instruction.
    EmulationFailure(Failure),
    /// Anything else: in words. The processor cannot go on.
    Fatal(String),
}

/// A processor.
#[derive(Debug)]
pub struct Vcpu {
    fd: VcpuFd,
    kick: Arc<Target>,
}

/// Where a kick goes.
#[derive(Debug)]
struct Target {
    /// `immediate_exit` of the page shared with KVM; `None` once the processor is gone.
    immediate_exit: Mutex<Option<NonNull<u8>>>,
    /// The thread that runs it, 0 if none does.
    thread: AtomicI32,
}

// SAFETY: the pointer is only used under the lock, by an atomic store, while the page is mapped.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

/// Makes a processor stop running, from any thread.
#[derive(Clone, Debug)]
pub struct Kick(Arc<Target>);

impl Kick {
    /// The processor's current or next [`Vcpu::run`] returns [`Exit::Interrupted`], unless it exits otherwise: the kick
    /// then holds for the run after. [`Vcpu::clear_kick`] ends it.
    pub fn kick(&self) {
        let target = self.0.immediate_exit.lock();
        let Some(byte) = *target.unwrap_or_else(PoisonError::into_inner) else {
            return;
        };
        // SAFETY: the page is mapped while the lock holds the pointer; KVM and `Vcpu` access the byte as a whole.
        unsafe { AtomicU8::from_ptr(byte.as_ptr()) }.store(1, Ordering::SeqCst);
        let thread = self.0.thread.load(Ordering::SeqCst);
        if thread != 0 {
            // SAFETY: a system call without memory; the signal has a handler that does nothing. If the thread has just
            // ended, nobody gets it.
            unsafe {
                libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, libc::SIGRTMIN());
            }
        }
    }
}

impl Vcpu {
    pub(super) fn new(mut fd: VcpuFd) -> Self {
        let byte = NonNull::from(&mut fd.get_kvm_run().immediate_exit);
        let kick = Arc::new(Target {
            immediate_exit: Mutex::new(Some(byte)),
            thread: AtomicI32::new(0),
        });
        Self { fd, kick }
    }

    /// To kick it out of [`run`](Self::run).
    pub fn kick(&self) -> Kick {
        Kick(Arc::clone(&self.kick))
    }

    /// Says that the calling thread runs it from now on, and lets kicks through to it.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn bind_thread(&self) -> Result<(), Error> {
        install_handler()?;
        // SAFETY: a system call without arguments.
        let thread = unsafe { libc::gettid() };
        self.kick.thread.store(thread, Ordering::SeqCst);
        Ok(())
    }

    /// Forgets kicks. Who calls this looks next whether a kick meant anything.
    pub fn clear_kick(&mut self) {
        let byte = &raw mut self.fd.get_kvm_run().immediate_exit;
        // SAFETY: the page is mapped while `self` is; other threads access the byte by atomics too.
        unsafe { AtomicU8::from_ptr(byte) }.store(0, Ordering::SeqCst);
    }

    /// Runs the processor until the monitor is needed.
    ///
    /// # Errors
    /// What KVM refuses.
    pub fn run(&mut self) -> Result<Exit<'_>, Error> {
        let exit = match self.fd.run() {
            Ok(exit) => plain(exit),
            Err(error) => match error.errno() {
                libc::EINTR | libc::EAGAIN => return Ok(Exit::Interrupted),
                _ => return Err(Error::kvm("KVM_RUN")(error)),
            },
        };
        match exit {
            // The compiler cannot see that `exit` borrows nothing on this path.
            Plain::Memory { address, write } => Ok(self.memory(address, write)),
            Plain::Port => Ok(self.port()),
            Plain::Msr { write } => Ok(self.msr(write)),
            Plain::Internal => Ok(self.internal_error()),
            Plain::Shutdown => Ok(Exit::Shutdown),
            Plain::Interrupted => Ok(Exit::Interrupted),
            Plain::Fatal(why) => Ok(Exit::Fatal(why)),
        }
    }

    fn memory(&mut self, address: u64, write: bool) -> Exit<'_> {
        // SAFETY: KVM_EXIT_MMIO says that this member of the union is in use; it is made of integers.
        let mmio = unsafe { &mut self.fd.get_kvm_run().__bindgen_anon_1.mmio };
        let data = mmio.data.get_mut(..mmio.len as usize).unwrap_or_default();
        if write {
            Exit::MemoryWrite(address, data)
        } else {
            Exit::MemoryRead(address, data)
        }
    }

    /// Decodes `KVM_EXIT_IO`: kvm-ioctls drops the size of the values, which string instructions need.
    fn port(&mut self) -> Exit<'_> {
        let run = self.fd.get_kvm_run();
        // SAFETY: KVM_EXIT_IO says that this member of the union is in use; it is made of integers.
        let io = unsafe { run.__bindgen_anon_1.io };
        let len = usize::from(io.size) * io.count as usize;
        let start = (&raw mut *run).cast::<u8>();
        // SAFETY: KVM puts the values at this offset of the mapping behind `run`, which is larger than the structure.
        // Nothing of the structure itself is there, and KVM does not touch it until it runs again.
        let data = unsafe {
            std::slice::from_raw_parts_mut(start.wrapping_add(io.data_offset as usize), len)
        };
        let (port, size) = (io.port, usize::from(io.size));
        if u32::from(io.direction) == KVM_EXIT_IO_IN {
            Exit::PortRead { port, size, data }
        } else {
            Exit::PortWrite { port, size, data }
        }
    }

    fn msr(&mut self, write: bool) -> Exit<'_> {
        // SAFETY: KVM_EXIT_X86_RDMSR or KVM_EXIT_X86_WRMSR says that this member of the union is in use; it is made of
        // integers.
        let msr = unsafe { &mut self.fd.get_kvm_run().__bindgen_anon_1.msr };
        let (register, error) = (msr.index, &mut msr.error);
        if write {
            let value = msr.data;
            Exit::MsrWrite {
                register,
                value,
                error,
            }
        } else {
            let value = &mut msr.data;
            Exit::MsrRead {
                register,
                value,
                error,
            }
        }
    }

    fn internal_error(&mut self) -> Exit<'_> {
        let run: &kvm_run = self.fd.get_kvm_run();
        // SAFETY: KVM_EXIT_INTERNAL_ERROR says that this member of the union is in use; it is made of integers.
        let internal = unsafe { run.__bindgen_anon_1.internal };
        if internal.suberror != KVM_INTERNAL_ERROR_EMULATION {
            let data = internal.data.get(..internal.ndata as usize);
            return Exit::Fatal(format!(
                "KVM internal error {}, data {:x?}",
                internal.suberror,
                data.unwrap_or_default()
            ));
        }
        // SAFETY: as above; with this sub-error, the data has this form.
        let failure = unsafe { run.__bindgen_anon_1.emulation_failure };
        let flag = u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES);
        let mut known = Failure::default();
        if failure.ndata >= 3 && failure.flags & flag != 0 {
            // SAFETY: the flag says that this member is in use.
            let insn = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
            known.bytes = insn.insn_bytes;
            known.len = insn.insn_size.min(15);
        }
        Exit::EmulationFailure(known)
    }

    /// Sets what CPUID answers.
    ///
    /// # Errors
    /// What KVM refuses.
    pub fn set_cpuid(&self, cpuid: &CpuId) -> Result<(), Error> {
        self.fd
            .set_cpuid2(cpuid)
            .map_err(Error::kvm("KVM_SET_CPUID2"))
    }

    /// Sets the extended register state.
    ///
    /// # Errors
    /// What KVM refuses.
    pub fn set_xsave(&self, state: &kvm_xsave) -> Result<(), Error> {
        // SAFETY: KVM reads 4096 bytes, which the structure has, as the larger states that need a permission by
        // arch_prctl(2) are not enabled in this process.
        unsafe { self.fd.set_xsave(state) }.map_err(Error::kvm("KVM_SET_XSAVE"))
    }

    /// For the calls that kvm-ioctls offers as they are.
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        let target = self.kick.immediate_exit.lock();
        *target.unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// An exit without what it borrows.
enum Plain {
    Memory { address: u64, write: bool },
    Port,
    Msr { write: bool },
    Internal,
    Shutdown,
    Interrupted,
    Fatal(String),
}

fn plain(exit: VcpuExit<'_>) -> Plain {
    match exit {
        VcpuExit::IoIn(..) | VcpuExit::IoOut(..) => Plain::Port,
        VcpuExit::MmioRead(address, _) => Plain::Memory {
            address,
            write: false,
        },
        VcpuExit::MmioWrite(address, _) => Plain::Memory {
            address,
            write: true,
        },
        VcpuExit::X86Rdmsr(_) => Plain::Msr { write: false },
        VcpuExit::X86Wrmsr(_) => Plain::Msr { write: true },
        VcpuExit::InternalError => Plain::Internal,
        VcpuExit::Shutdown => Plain::Shutdown,
        VcpuExit::Intr | VcpuExit::IrqWindowOpen => Plain::Interrupted,
        other => Plain::Fatal(format!("unexpected KVM exit {other:?}")),
    }
}

/// Gives the kick's signal a handler that does nothing, so that it interrupts system calls and no more.
fn install_handler() -> Result<(), Error> {
    extern "C" fn nothing(_signal: libc::c_int) {}
    static ONCE: Once = Once::new();
    let mut result = 0;
    // SAFETY: a zeroed sigaction is a valid one; the handler does nothing, so it is safe at any moment.
    ONCE.call_once(|| unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        result = libc::sigaction(libc::SIGRTMIN(), &raw const action, null_mut());
    });
    // SAFETY: a zeroed set is initialised by sigemptyset; only this thread's mask is changed.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGRTMIN());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, null_mut());
    }
    if result < 0 {
        return Err(Error::System {
            call: "sigaction",
            source: io::Error::last_os_error(),
        });
    }
    Ok(())
}
