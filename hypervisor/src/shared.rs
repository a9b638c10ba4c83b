//! What the threads of a machine share, and what is done while its processors stand still.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kvm_bindings::kvm_cpuid_entry2;

use crate::board::{Board, Request, describe};
use crate::boot::Boot;
use crate::exits::Counters;
use crate::gate::Gate;
use crate::kvm::{Chips, Kick, Vcpu, Vm};
use crate::memory::GuestMemory;
use crate::phase::{Event, Phase};
use crate::state::{self, Document, VcpuState};
use crate::{Error, chipset, irq};

/// How long a reset waits for other processes.
const SETTLE_LIMIT: Duration = Duration::from_secs(1);
/// How often it looks.
const SETTLE_STEP: Duration = Duration::from_millis(1);

/// What threads share.
pub(crate) struct Shared {
    /// The guest makes calls of Hyper-V's interface.
    pub(crate) hyperv: bool,
    pub(crate) vm: Arc<Vm>,
    pub(crate) memory: GuestMemory,
    pub(crate) vcpus: Vec<Mutex<Vcpu>>,
    pub(crate) kicks: Vec<Kick>,
    pub(crate) gate: Gate,
    pub(crate) board: Mutex<Board>,
    pub(crate) exits: Counters,
    pub(crate) control: Mutex<Control>,
    /// Asked for by the guest and not yet done.
    pub(crate) requests: Mutex<VecDeque<Request>>,
    pub(crate) events: Mutex<VecDeque<Event>>,
    /// Signalled when `events` has more.
    pub(crate) event: OwnedFd,
    /// Signalled when the service thread has more to do.
    pub(crate) service: OwnedFd,
}

/// What only one verb at a time may touch.
pub(crate) struct Control {
    pub(crate) phase: Phase,
    pub(crate) boot: Boot,
    /// What is saved of a processor's MSRs.
    pub(crate) msrs: Vec<u32>,
    /// What CPUID answers on the first processor.
    pub(crate) cpuid: Vec<kvm_cpuid_entry2>,
    pub(crate) tsc_khz: u32,
    pub(crate) power_on: PowerOn,
    pub(crate) ending: bool,
}

/// Processors and chips as they were before anything ran.
pub(crate) struct PowerOn {
    vcpus: Vec<VcpuState>,
    chips: Chips,
}

impl PowerOn {
    pub(crate) fn read(vm: &Vm, vcpus: &[Vcpu], msrs: &[u32]) -> Result<Self, Error> {
        let vcpus = vcpus.iter().map(|vcpu| VcpuState::read(vcpu, msrs));
        Ok(PowerOn {
            vcpus: vcpus.collect::<Result<_, _>>()?,
            chips: vm.chips()?,
        })
    }
}

/// Counts a processor's thread as parked even if it ends by a panic.
pub(crate) struct Leaving<'a>(pub(crate) &'a Shared);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.gate.leave();
        if std::thread::panicking() {
            let why = "a fault in a device model; see the log".to_owned();
            self.0.request(Request::Crash(why));
        }
    }
}

impl Control {
    /// Refuses a state that this machine could not go on from.
    pub(crate) fn check(&self, document: &Document, vcpus: usize) -> Result<(), Error> {
        if document.vcpus.len() != vcpus {
            return Err(Error::Saved(format!(
                "it has {} processors, and the machine {vcpus}",
                document.vcpus.len()
            )));
        }
        let differs = self.cpuid.iter().zip(&document.cpuid).find(|(a, b)| a != b);
        if let Some((leaf, _)) = differs {
            return Err(Error::Saved(format!(
                "this host's processors differ from where it was saved (CPUID {:#x})",
                leaf.function
            )));
        }
        if self.cpuid.len() != document.cpuid.len() {
            return Err(Error::Saved(
                "this host's processors describe themselves otherwise than where it was saved"
                    .to_owned(),
            ));
        }
        // The kernel measures the same processor a little differently at each boot.
        if self.tsc_khz.abs_diff(document.tsc_khz) > self.tsc_khz / 4000 {
            return Err(Error::Saved(format!(
                "its clock ran at {} kHz, and this host's runs at {} kHz",
                document.tsc_khz, self.tsc_khz
            )));
        }
        Ok(())
    }

    pub(crate) fn expect(&self, verb: &'static str, allowed: &[Phase]) -> Result<(), Error> {
        if allowed.contains(&self.phase) {
            return Ok(());
        }
        Err(Error::Illegal {
            verb,
            state: self.phase.name(),
        })
    }
}

impl Shared {
    pub(crate) fn board(&self) -> MutexGuard<'_, Board> {
        lock(&self.board)
    }

    pub(crate) fn wake_service(&self) {
        irq::signal(&self.service);
    }

    pub(crate) fn kick(&self) {
        for kick in &self.kicks {
            kick.kick();
        }
    }

    /// Asks for something that needs all processors to stop. They do so now; the service thread does it.
    pub(crate) fn request(&self, request: Request) {
        self.gate.close();
        self.kick();
        lock(&self.requests).push_back(request);
        self.wake_service();
    }

    /// Stops processors and time.
    pub(crate) fn stop(&self) {
        self.gate.close();
        self.kick();
        self.gate.wait_parked(self.vcpus.len());
        self.board().clock.stop();
    }

    /// Lets processors and time go on.
    pub(crate) fn go(&self, control: &mut Control) {
        if control.phase == Phase::Paused {
            for vcpu in &self.vcpus {
                // So that the guest takes the gap for no fault; refused if it does not use KVM's clock.
                let _ = lock(vcpu).fd().kvmclock_ctrl();
            }
        }
        control.phase = Phase::Running;
        let reference = self.reference(control);
        let mut board = self.board();
        board.clock.start(reference);
        board.ended_interrupts();
        drop(board);
        self.wake_service();
        // A request that came while they stood is still to be done; the service thread opens the gate then.
        if lock(&self.requests).is_empty() {
            self.gate.open();
        }
    }

    /// The guest's reference time, in units of 100 ns: that of its first processor's time-stamp counter. No processor
    /// runs.
    fn reference(&self, control: &Control) -> u64 {
        let first = self.vcpus.first().map(lock);
        // One that cannot be read is no reason to stand still: only services of the guest look at it.
        let tsc = first.and_then(|first| state::time_stamp(&first).ok());
        let ticks = u128::from(tsc.unwrap_or_default());
        (ticks * 10_000 / u128::from(control.tsc_khz.max(1))) as u64
    }

    /// Everything as after power-on, and the first program in place. No processor runs.
    pub(crate) fn reset(&self, control: &mut Control) -> Result<(), Error> {
        self.vm.set_chips(&control.power_on.chips)?;
        if control.boot.firmware().is_none() {
            // Firmware would have done it.
            self.vm.set_level_lines(chipset::LEVEL_LINES)?;
        }
        self.board().reset()?;
        self.settle();
        for (vcpu, state) in self.vcpus.iter().zip(&control.power_on.vcpus) {
            state.write(&lock(vcpu))?;
        }
        let first = self.vcpus.first().map(lock);
        if let Some(first) = first {
            control.boot.load(&self.memory, &first)?;
        }
        Ok(())
    }

    /// Waits until nobody outside writes to the guest's memory any more for what was before a reset. One who does not
    /// answer is not waited for: a guest that is reset is not to be stopped by it.
    fn settle(&self) {
        let begin = Instant::now();
        while !self.board().is_settled() && begin.elapsed() < SETTLE_LIMIT {
            std::thread::sleep(SETTLE_STEP);
        }
    }

    /// Tells the world outside.
    pub(crate) fn tell(&self, event: Event) {
        let mut events = lock(&self.events);
        if !(event == Event::Reset && events.back() == Some(&Event::Reset)) {
            events.push_back(event);
        }
        irq::signal(&self.event);
    }

    /// Does what the guest asked for.
    pub(crate) fn serve(&self, request: Request) {
        let mut control = lock(&self.control);
        // A paused machine's guest asked just before it was paused: the answer comes at once too.
        if control.ending || !matches!(control.phase, Phase::Running | Phase::Paused) {
            return;
        }
        let was = control.phase;
        self.stop();
        match request {
            Request::Reset => match self.reset(&mut control) {
                Ok(()) => {
                    self.tell(Event::Reset);
                    if was == Phase::Running {
                        self.go(&mut control);
                    }
                }
                Err(error) => {
                    control.phase = Phase::Crashed;
                    self.tell(Event::Crashed(describe(&error)));
                }
            },
            Request::PowerOff => {
                control.phase = Phase::Off;
                self.tell(Event::PoweredOff);
            }
            Request::Crash(why) => {
                control.phase = Phase::Crashed;
                self.tell(Event::Crashed(why));
            }
        }
    }
}

/// Locks, also after a panic elsewhere: what is protected is never left half changed for others to trip over.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
