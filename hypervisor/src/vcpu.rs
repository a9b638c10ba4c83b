//! The thread of a processor: runs the guest, and answers its accesses.

use std::sync::{MutexGuard, PoisonError};

use crate::board::{Access, Request, describe};
use crate::device::Space;
use crate::exits::Kind;
use crate::hyperv::hypercall::{self, Input, Status};
use crate::kvm::{Exit, Vcpu};
use crate::shared::Shared;
use crate::{Error, emulate};

/// Bit of EFER: long mode is active.
const EFER_LMA: u64 = 1 << 10;

/// Runs processor `index` until the machine ends.
pub(crate) fn run(shared: &Shared, index: usize) {
    let Some(vcpu) = shared.vcpus.get(index) else {
        return;
    };
    let lock = || vcpu.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(error) = lock().bind_thread() {
        shared.request(Request::Crash(describe(&error)));
    }
    while shared.gate.pass() {
        // Held while the guest runs, and free for others while this thread waits at the gate.
        let guard = lock();
        if let Some(request) = run_until_closed(shared, index, guard) {
            shared.request(request);
        }
    }
}

/// Runs the guest until the gate may be closed, or the machine as a whole must do something.
fn run_until_closed(
    shared: &Shared,
    index: usize,
    mut vcpu: MutexGuard<'_, Vcpu>,
) -> Option<Request> {
    vcpu.clear_kick();
    // A kick that came before was for a gate that is closed: it must be looked at again.
    if !shared.gate.is_open() {
        return None;
    }
    loop {
        let step = match vcpu.run() {
            Ok(exit) => handle(shared, index, exit),
            Err(error) => Step::Ask(Request::Crash(describe(&error))),
        };
        match step {
            Step::Continue => {}
            Step::Look => return None,
            Step::Ask(request) => return Some(request),
            Step::Emulate(failure) => {
                shared.exits.count(Kind::Emulation);
                if let Err(report) = emulate::instruction(&vcpu, &shared.memory, &failure) {
                    return Some(Request::Crash(report));
                }
            }
            Step::Call => {
                shared.exits.count(Kind::Hypercall);
                match hypercall(shared, &vcpu) {
                    Ok(None) => {}
                    Ok(Some(request)) => return Some(request),
                    Err(error) => return Some(Request::Crash(describe(&error))),
                }
            }
        }
    }
}

enum Step {
    Continue,
    /// Something may have happened outside.
    Look,
    Ask(Request),
    Emulate(crate::kvm::Failure),
    /// A call of Hyper-V's interface.
    Call,
}

fn handle(shared: &Shared, index: usize, exit: Exit<'_>) -> Step {
    match exit {
        Exit::PortRead { port, size, data } => {
            shared.exits.count(Kind::PortRead);
            let values = data.chunks_exact_mut(size.max(1)).map(Access::Read);
            access(shared, Space::Port, port.into(), values)
        }
        Exit::PortWrite {
            port: hypercall::PORT,
            size: 4,
            data: &[_, _, _, _],
        } if shared.hyperv => Step::Call,
        Exit::PortWrite { port, size, data } => {
            shared.exits.count(Kind::PortWrite);
            let values = data.chunks_exact(size.max(1)).map(Access::Write);
            access(shared, Space::Port, port.into(), values)
        }
        Exit::MemoryRead(address, data) => {
            shared.exits.count(Kind::MemoryRead);
            access(shared, Space::Memory, address, [Access::Read(data)])
        }
        Exit::MemoryWrite(address, data) => {
            shared.exits.count(Kind::MemoryWrite);
            access(shared, Space::Memory, address, [Access::Write(data)])
        }
        Exit::MsrRead {
            register,
            value,
            error,
        } => {
            shared.exits.count(Kind::Msr);
            let read = shared.board().read_msr(index as u32, register);
            *error = read.is_none().into();
            *value = read.unwrap_or_default();
            Step::Continue
        }
        Exit::MsrWrite {
            register,
            value,
            error,
        } => {
            shared.exits.count(Kind::Msr);
            let mut board = shared.board();
            *error = (!board.write_msr(index as u32, register, value)).into();
            board.take_request().map_or(Step::Continue, Step::Ask)
        }
        Exit::Interrupted => {
            shared.exits.count(Kind::Interrupted);
            Step::Look
        }
        // Three faults in a row shut a processor down, upon which a PC's chipset resets it.
        Exit::Shutdown => Step::Ask(Request::Reset),
        Exit::EmulationFailure(failure) => Step::Emulate(failure),
        Exit::Fatal(why) => Step::Ask(Request::Crash(why)),
    }
}

/// Carries out the call in the registers of a processor, which is at the `OUT` of the page of calls or just behind it,
/// and puts the result there (TLFS, "Hypercall Interface": in 64-bit mode RCX is the control, RDX the input and RAX the
/// result; else these are EDX:EAX, EBX:ECX and EDX:EAX).
fn hypercall(shared: &Shared, vcpu: &Vcpu) -> Result<Option<Request>, Error> {
    let (regs, sregs) = (vcpu.fd().get_regs(), vcpu.fd().get_sregs());
    let mut regs = regs.map_err(Error::kvm("KVM_GET_REGS"))?;
    let sregs = sregs.map_err(Error::kvm("KVM_GET_SREGS"))?;
    let long = sregs.efer & EFER_LMA != 0 && sregs.cs.l != 0;
    let pair = |high: u64, low: u64| high << 32 | low & 0xffff_ffff;
    let (control, input) = if long {
        (regs.rcx, regs.rdx)
    } else {
        (pair(regs.rdx, regs.rax), pair(regs.rbx, regs.rcx))
    };
    let mut board = shared.board();
    let status = board.hypercall(Input { control, input });
    let request = board.take_request();
    drop(board);
    regs.rax = status.unwrap_or(Status::InvalidCode) as u64;
    if !long {
        regs.rdx = 0;
    }
    let set = vcpu.fd().set_regs(&regs);
    set.map_err(Error::kvm("KVM_SET_REGS"))?;
    Ok(request)
}

fn access<'a>(
    shared: &Shared,
    space: Space,
    address: u64,
    accesses: impl IntoIterator<Item = Access<'a>>,
) -> Step {
    let mut board = shared.board();
    let before = board.next_timer();
    for access in accesses {
        board.access(space, address, access);
    }
    if board.next_timer() != before {
        shared.wake_service();
    }
    match board.take_request() {
        Some(request) => Step::Ask(request),
        None => Step::Continue,
    }
}
