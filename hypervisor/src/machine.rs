//! A machine: processors, memory and devices, and the verbs of its life.
//!
//! ```text
//!            start             pause
//! created ----------> running ------> paused
//!    |                   ^   <------    ^       any ----> off, crashed
//!    |    restore        |    resume    |
//!    +----------------------------------+
//! ```
//! Reset leaves a machine running or paused, as it was.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use crate::board::{Board, Named, Output};
use crate::boot::Boot;
use crate::cpuid::{self, MAX_VCPUS};
use crate::device::{Device, Effects};
use crate::exits::{Counters, Exits};
use crate::gate::Gate;
use crate::hyperv::msr;
use crate::kvm::{self, Vcpu, Vm};
use crate::memory::{self, GuestMemory};
use crate::phase::{Event, Phase};
use crate::sandbox::{self, Thread};
use crate::shared::{Control, Leaving, PowerOn, Shared, lock};
use crate::slots::Slots;
use crate::state::{self, Document, VcpuState, readable_msrs};
use crate::{Error, irq, service, vcpu};

/// What a machine is made of.
pub struct Config {
    /// Number of processors, 1 to 64.
    pub vcpus: u8,
    /// Its memory.
    pub memory: GuestMemory,
    /// What runs first.
    pub boot: Boot,
    /// The guest finds Hyper-V's interface. A device answers [its registers](Device::write_msr) and
    /// [its calls](Device::hypercall).
    pub hyperv: bool,
    /// Where the guest's consoles go.
    pub output: Output,
}

/// A machine. Dropped, it ends at once, as if its plug were pulled.
pub struct Machine {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Machine {
    /// Makes a machine with the threads of its processors, which wait. The devices are wired up and reset.
    ///
    /// # Errors
    /// A host without usable KVM; a value of `config` that is not allowed; what the kernel refuses. Nothing is left behind.
    pub fn new(config: Config, devices: Vec<Named>) -> Result<Self, Error> {
        if !(1..=MAX_VCPUS).contains(&config.vcpus) {
            return Err(Error::Config {
                what: "number of processors",
                value: config.vcpus.to_string(),
                allowed: "1 to 64",
            });
        }
        let kvm = kvm::open()?;
        let vm = Arc::new(Vm::new(&kvm)?);
        irq::wire(&vm, &[])?;
        if config.hyperv {
            vm.pass_on_msrs(msr::FIRST, msr::COUNT)?;
        }
        let memory = config.memory;
        let firmware = config
            .boot
            .firmware()
            .map(|bytes| memory::image(bytes).map(|image| (image, bytes.len() as u64)));
        let slots = Slots::new(Arc::clone(&vm), &memory, firmware.transpose()?)?;
        let vcpus = (0..config.vcpus)
            .map(|id| {
                let vcpu = vm.create_vcpu(id)?;
                vcpu.set_cpuid(&cpuid::cpuid(&kvm, id, config.vcpus, config.hyperv)?)?;
                Ok(vcpu)
            })
            .collect::<Result<Vec<_>, Error>>()?;
        let Some(first) = vcpus.first() else {
            return Err(Error::NoKvm("no processor".to_owned()));
        };
        let msrs = readable_msrs(&kvm, first)?;
        let cpuid = cpuid::cpuid(&kvm, 0, config.vcpus, config.hyperv)?;
        let tsc_khz = first.fd().get_tsc_khz();
        let tsc_khz = tsc_khz.map_err(Error::kvm("KVM_GET_TSC_KHZ"))?;
        let power_on = PowerOn::read(&vm, &vcpus, &msrs)?;
        let board = Board::new(Arc::clone(&vm), slots, devices, config.output)?;
        let shared = Shared {
            hyperv: config.hyperv,
            vm,
            memory,
            kicks: vcpus.iter().map(Vcpu::kick).collect(),
            vcpus: vcpus.into_iter().map(Mutex::new).collect(),
            gate: Gate::default(),
            board: Mutex::new(board),
            exits: Counters::default(),
            control: Mutex::new(Control {
                phase: Phase::Created,
                boot: config.boot,
                msrs,
                cpuid: cpuid.as_slice().to_vec(),
                tsc_khz,
                power_on,
                ending: false,
            }),
            requests: Mutex::default(),
            events: Mutex::default(),
            event: irq::eventfd()?,
            service: irq::eventfd()?,
        };
        let mut machine = Self {
            shared: Arc::new(shared),
            threads: Vec::new(),
        };
        machine.spawn_all()?;
        machine.shared.reset(&mut machine.control())?;
        Ok(machine)
    }

    fn spawn_all(&mut self) -> Result<(), Error> {
        for index in 0..self.shared.vcpus.len() {
            self.spawn(format!("vcpu{index}"), Thread::Vcpu, move |shared| {
                let _left = Leaving(shared);
                vcpu::run(shared, index);
            })?;
        }
        self.spawn("service".to_owned(), Thread::Service, service::run)
    }

    /// Starts a thread, which confines itself before it does anything else.
    fn spawn(
        &mut self,
        name: String,
        kind: Thread,
        run: impl FnOnce(&Shared) + Send + 'static,
    ) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let (confined, result) = channel();
        let body = move || {
            let outcome = sandbox::confine(kind);
            let failed = outcome.is_err();
            let _ = confined.send(outcome);
            if !failed {
                run(&shared);
            }
        };
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(body)
            .map_err(Error::system("clone"))?;
        self.threads.push(thread);
        result
            .recv()
            .map_err(|_| Error::Sandbox("the thread has ended".to_owned()))?
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        lock(&self.shared.control)
    }

    /// Runs it for the first time.
    ///
    /// # Errors
    /// [`Error::Illegal`] unless it was just created.
    pub fn start(&self) -> Result<(), Error> {
        let mut control = self.control();
        control.expect("start", &[Phase::Created])?;
        self.shared.go(&mut control);
        Ok(())
    }

    /// Lets its processors and its time stand still.
    ///
    /// # Errors
    /// [`Error::Illegal`] unless it runs.
    pub fn pause(&self) -> Result<(), Error> {
        let mut control = self.control();
        control.expect("pause", &[Phase::Running])?;
        self.shared.stop();
        control.phase = Phase::Paused;
        Ok(())
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// [`Error::Illegal`] unless it is paused.
    pub fn resume(&self) -> Result<(), Error> {
        let mut control = self.control();
        control.expect("resume", &[Phase::Paused])?;
        self.shared.go(&mut control);
        Ok(())
    }

    /// Resets it, as the button on its case would. It is running or paused afterwards, as it was.
    ///
    /// # Errors
    /// [`Error::Illegal`] unless it runs or is paused; what the kernel refuses.
    pub fn reset(&self) -> Result<(), Error> {
        let mut control = self.control();
        control.expect("reset", &[Phase::Running, Phase::Paused])?;
        let was = control.phase;
        self.shared.stop();
        self.shared.reset(&mut control)?;
        if was == Phase::Running {
            self.shared.go(&mut control);
        }
        Ok(())
    }

    /// Writes all of its state, from which [`restore`](Self::restore) makes it go on. It stays paused. Who saves to a
    /// file writes to a new one and renames it at the end, so that no half state is ever found.
    ///
    /// # Errors
    /// [`Error::Illegal`] unless it is paused; what KVM refuses; what writing meets.
    pub fn save(&self, out: impl Write) -> Result<(), Error> {
        let control = self.control();
        control.expect("save its state", &[Phase::Paused])?;
        let shared = &self.shared;
        let vcpu = |vcpu| VcpuState::read(&lock(vcpu), &control.msrs);
        let vcpus = shared.vcpus.iter().map(vcpu).collect::<Result<_, _>>()?;
        let board = shared.board();
        let document = Document {
            memory: shared.memory.size(),
            cpuid: control.cpuid.clone(),
            tsc_khz: control.tsc_khz,
            vcpus,
            chips: shared.vm.chips()?,
            clock: board.clock.now(),
            devices: board.save(),
        };
        drop(board);
        state::write(out, &document, &shared.memory)
    }

    /// Takes over the state of a machine with as many processors, as much memory and the same devices. It is paused then.
    ///
    /// # Errors
    /// [`Error::Illegal`] unless it was just created. A state that is damaged, of another version or of another machine,
    /// or from a processor that differs: the machine can then not be started any more.
    pub fn restore(&self, input: impl Read) -> Result<(), Error> {
        let mut control = self.control();
        control.expect("take over a saved state", &[Phase::Created])?;
        control.phase = Phase::Crashed;
        let shared = &self.shared;
        // Firmware's and the kernel's images, which `new` has put there.
        shared.memory.clear()?;
        let document = state::read(input, &shared.memory)?;
        control.check(&document, shared.vcpus.len())?;
        for (vcpu, state) in shared.vcpus.iter().zip(&document.vcpus) {
            state.write(&lock(vcpu))?;
        }
        if let (Some(vcpu), Some(state)) = (shared.vcpus.first(), document.vcpus.first()) {
            let now = state::time_stamp(&lock(vcpu))?;
            state::check_time(control.tsc_khz, state.time_stamp(), now)?;
        }
        shared.vm.set_chips(&document.chips)?;
        let mut board = shared.board();
        board.clock.set(document.clock);
        board.restore(&document.devices)?;
        control.phase = Phase::Paused;
        Ok(())
    }

    /// Where it is in its life.
    pub fn phase(&self) -> Phase {
        self.control().phase
    }

    /// Its memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.shared.memory
    }

    /// Ticks of its processors' time-stamp counters in a second.
    pub fn tsc_hz(&self) -> u64 {
        u64::from(self.control().tsc_khz) * 1000
    }

    /// How often its processors came out of the guest.
    pub fn exits(&self) -> Exits {
        self.shared.exits.read()
    }

    /// Calls the device `name` if it exists and is a `T`, and carries out what it asks for: how the world outside
    /// reaches a device (a key pressed, a cable pulled, the power button). The guest's accesses wait meanwhile.
    pub fn with<T: Device, R>(
        &self,
        name: &str,
        call: impl FnOnce(&mut T, &mut Effects) -> R,
    ) -> Option<R> {
        let mut board = self.shared.board();
        let result = board.with(name, call);
        let request = board.take_request();
        drop(board);
        if let Some(request) = request {
            self.shared.request(request);
        }
        self.shared.wake_service();
        result
    }

    /// Readable when there are events.
    pub fn event_fd(&self) -> &OwnedFd {
        &self.shared.event
    }

    /// The events since the last call. Several resets in a row are one.
    pub fn events(&self) -> Vec<Event> {
        irq::drain(&self.shared.event);
        lock(&self.shared.events).drain(..).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.control().ending = true;
        self.shared.gate.end();
        self.shared.kick();
        self.shared.wake_service();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
