//! The thread of a processor: runs the guest, and answers its accesses.

use std::sync::{MutexGuard, PoisonError};

use crate::board::{Access, Request, describe};
use crate::device::Space;
use crate::emulate;
use crate::exits::Kind;
use crate::kvm::{Exit, Vcpu};
use crate::machine::Shared;

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
        if let Some(request) = run_until_closed(shared, guard) {
            shared.request(request);
        }
    }
}

/// Runs the guest until the gate may be closed, or the machine as a whole must do something.
fn run_until_closed(shared: &Shared, mut vcpu: MutexGuard<'_, Vcpu>) -> Option<Request> {
    vcpu.clear_kick();
    // A kick that came before was for a gate that is closed: it must be looked at again.
    if !shared.gate.is_open() {
        return None;
    }
    loop {
        let step = match vcpu.run() {
            Ok(exit) => handle(shared, exit),
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
        }
    }
}

enum Step {
    Continue,
    /// Something may have happened outside.
    Look,
    Ask(Request),
    Emulate(crate::kvm::Failure),
}

fn handle(shared: &Shared, exit: Exit<'_>) -> Step {
    match exit {
        Exit::PortRead { port, size, data } => {
            shared.exits.count(Kind::PortRead);
            let values = data.chunks_exact_mut(size.max(1)).map(Access::Read);
            access(shared, Space::Port, port.into(), values)
        }
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
