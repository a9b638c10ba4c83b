//! The VM: waits for vswitchd, for the machine and for its consoles, and does what they ask for.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::Context;
use hypervisor::chipset::i440fx::HostBridge;
use hypervisor::chipset::rtc::Rtc;
use hypervisor::chipset::serial::ComPort;
use hypervisor::device::{Device, Effects};
use hypervisor::pc::{self, Pc};
use hypervisor::sandbox::{self, Thread};
use hypervisor::{Event, Machine, Phase};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use vswitch::api::{AdapterKind, AdapterName};
use vswitch::attach::message::{
    AdapterConfig, Command, CrashReport, Ended, FileRole, Region, RunState, Status, shortened,
};
use vswitch::attach::{FromVmm, ToVmm};

use crate::attached::{Attached, Return};
use crate::build;
use crate::console::{Consoles, Outbox};
use crate::nic::{Accesses, Nic, Shared};
use crate::vmbus::{VMBUS, Vmbus};

/// How long vswitchd is waited for before a reset.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// How often a guest is offered what it had no room for.
const OFFER: Timespec = millis(10);

const fn millis(millis: i64) -> Timespec {
    Timespec {
        tv_sec: 0,
        tv_nsec: millis * 1_000_000,
    }
}

struct Vm {
    attached: Attached,
    machine: Machine,
    /// The legacy ones.
    adapters: Vec<Shared>,
    /// Signalled when the virtual machine bus has something for us, if there is one.
    vmbus: Option<Arc<OwnedFd>>,
    /// What came while answers were waited for.
    later: VecDeque<(ToVmm, Vec<OwnedFd>)>,
    /// What the guest said when it crashed, until it is reset.
    crash: Option<CrashReport>,
    consoles: Consoles,
    /// The machine goes on from a saved state, and has not been started yet.
    restored: bool,
}

/// Runs the VM until it has ended.
pub(crate) fn run(mut attached: Attached) -> anyhow::Result<()> {
    match make(&mut attached) {
        Ok((machine, adapters, consoles, restored)) => {
            let mut vm = Vm {
                attached,
                vmbus: machine.with(VMBUS, |vmbus: &mut Vmbus, _| vmbus.wake()),
                later: VecDeque::new(),
                crash: None,
                machine,
                adapters,
                consoles,
                restored,
            };
            vm.announce();
            vm.serve();
            Ok(())
        }
        Err(error) => {
            let reason = shortened(&format!("{error:#}"));
            attached.send(&FromVmm::Ended(Ended::Failed { reason }), &[]);
            Err(error)
        }
    }
}

type Made = (Machine, Vec<Shared>, Consoles, bool);

fn make(attached: &mut Attached) -> anyhow::Result<Made> {
    let (configure, mut files) = attached.configuration()?;
    let outbox = Outbox::new()?;
    let (machine, adapters) =
        build::machine(attached.name(), &configure, &mut files, outbox.clone())?;
    let sockets = [FileRole::Com1, FileRole::Com2].map(|role| files.remove(&role));
    let consoles = Consoles::new(outbox, sockets, files.remove(&FileRole::ConsoleLog));
    let saved = files.remove(&FileRole::Saved);
    let restored = saved.is_some();
    if let Some(saved) = saved {
        machine
            .restore(BufReader::new(File::from(saved)))
            .context("the saved state cannot be used")?;
        let legacy = |adapter: &&AdapterConfig| adapter.name.kind() == AdapterKind::Legacy;
        for adapter in configure.adapters.iter().filter(legacy) {
            // Its cable may have been pulled out, or plugged in, since it was saved.
            with_nic(&machine, adapter.name, |nic, _| nic.set_link(adapter.link));
        }
    }
    // Nothing is opened from now on. The threads of the machine are confined already.
    sandbox::confine(Thread::Control)?;
    Ok((machine, adapters, consoles, restored))
}

impl Vm {
    /// Tells vswitchd what there is. Its adapters are served from now on, until it says otherwise.
    fn announce(&mut self) {
        for adapter in &self.adapters {
            self.with_nic(adapter.name, |nic, effects| nic.set_served(true, effects));
        }
        let memory = self.machine.memory();
        let regions = memory.ranges().iter().map(|range| Region {
            guest: range.guest_addr,
            len: range.len,
            offset: range.fd_offset,
        });
        let legacy = self.adapters.iter().map(|adapter| adapter.name);
        let synthetic = self.with_vmbus(|vmbus, _| vmbus.adapters());
        let synthetic = synthetic.unwrap_or_default();
        let ready = FromVmm::Ready {
            regions: regions.collect(),
            adapters: legacy
                .chain(synthetic.iter().map(|(name, _)| *name))
                .collect(),
            state: self.state(),
        };
        let mut fds = vec![memory.fd().as_fd()];
        for adapter in &self.adapters {
            fds.extend([
                adapter.page.as_fd(),
                adapter.kick.as_fd(),
                adapter.interrupt.as_fd(),
            ]);
        }
        fds.extend(synthetic.iter().map(|(_, kick)| kick.as_fd()));
        self.attached.send(&ready, &fds);
        self.with_vmbus(|vmbus, effects| vmbus.set_served(true, effects));
        if let Some(report) = &self.crash {
            self.attached.send(&FromVmm::Crashed(report.clone()), &[]);
        }
    }

    fn state(&self) -> RunState {
        match self.machine.phase() {
            Phase::Created => RunState::Ready,
            Phase::Paused if self.restored => RunState::Ready,
            Phase::Running => RunState::Running,
            Phase::Paused | Phase::Off | Phase::Crashed => RunState::Paused,
        }
    }

    /// Until the machine ends, or never ran and vswitchd has gone.
    fn serve(&mut self) {
        let mut typed = false;
        loop {
            if self.attached.fd().is_none() && !self.return_home() {
                return;
            }
            self.wait(typed);
            self.ask_for_vmbus();
            while let Some((message, fds)) = self.next() {
                self.obey(message, fds);
            }
            if let Some(ended) = self.take_events() {
                self.consoles.spread();
                self.attached.send(&FromVmm::Ended(ended), &[]);
                return;
            }
            let machine = &self.machine;
            typed = self.consoles.type_in(|port, bytes| {
                let name = if port == 0 { pc::COM1 } else { pc::COM2 };
                machine
                    .with(name, |com: &mut ComPort, effects| com.input(bytes, effects))
                    .unwrap_or(bytes.len())
            });
        }
    }

    fn next(&mut self) -> Option<(ToVmm, Vec<OwnedFd>)> {
        self.later.pop_front().or_else(|| self.attached.next())
    }

    /// Lets the next vswitchd in, if it is there. False if the VM is to end.
    fn return_home(&mut self) -> bool {
        if self.state() == RunState::Ready {
            return false;
        }
        // vswitchd has gone, and its workers with it.
        for adapter in &self.adapters {
            self.with_nic(adapter.name, |nic, effects| nic.set_served(false, effects));
        }
        self.with_vmbus(|vmbus, effects| vmbus.set_served(false, effects));
        let outcome = self.attached.again();
        if outcome == Return::Adopted {
            self.announce();
        }
        outcome != Return::Unwanted
    }

    fn wait(&mut self, typed: bool) {
        let limit = typed.then_some(&OFFER);
        let mut which = Vec::new();
        let mut fds = vec![PollFd::new(self.machine.event_fd(), PollFlags::IN)];
        let vmbus = self.vmbus.iter();
        fds.extend(vmbus.map(|wake| PollFd::new(wake, PollFlags::IN)));
        let before = fds.len();
        self.consoles.each_fd(|name, fd, flags| {
            which.push(name);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        });
        if let Some(fd) = self.attached.awaited() {
            fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
        }
        match poll(&mut fds, limit) {
            Ok(_) | Err(Errno::INTR) => {}
            // What is waited for is open: this is never refused.
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(200)),
        }
        let fired: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let consoles = which.into_iter().zip(fired.into_iter().skip(before));
        let ready: Vec<_> = consoles
            .filter_map(|(name, fired)| fired.then_some(name))
            .collect();
        self.consoles.ready(&ready);
    }

    /// Tells vswitchd what the bus has for it.
    fn ask_for_vmbus(&mut self) {
        let Some(wake) = &self.vmbus else {
            return;
        };
        // Nothing to read means nothing new.
        if rustix::io::read(wake, &mut [0; 8]).is_err() {
            return;
        }
        let news = self.with_vmbus(|vmbus, _| (vmbus.take_demands(), vmbus.take_crash()));
        let (demands, crash) = news.unwrap_or_default();
        for demanded in demands {
            let interrupt = demanded.interrupt.as_ref().map(AsFd::as_fd);
            let message = FromVmm::Demand {
                id: demanded.id,
                adapter: demanded.adapter,
                demand: demanded.demand,
            };
            self.attached.send(&message, interrupt.as_slice());
        }
        if let Some(parameters) = crash {
            let message = None;
            let report = CrashReport {
                parameters,
                message,
            };
            self.attached.send(&FromVmm::Crashed(report.clone()), &[]);
            self.crash = Some(report);
        }
    }

    fn take_events(&mut self) -> Option<Ended> {
        for event in self.machine.events() {
            match event {
                Event::Reset => self.was_reset(),
                Event::PoweredOff => return Some(Ended::PoweredOff {}),
                Event::Crashed(reason) => {
                    return Some(Ended::Failed {
                        reason: shortened(&format!("the guest cannot go on: {reason}")),
                    });
                }
            }
        }
        None
    }

    fn obey(&mut self, message: ToVmm, fds: Vec<OwnedFd>) {
        let (id, command) = match message {
            ToVmm::Command { id, command } => (id, command),
            ToVmm::Done { id, ok } => {
                self.with_vmbus(|vmbus, effects| vmbus.done(id, ok, effects));
                return;
            }
            ToVmm::Configure(_) | ToVmm::Adopt {} | ToVmm::Leave {} => {
                tracing::error!("vswitchd says what it may not say to a machine that is made");
                return;
            }
        };
        let asks = command == Command::Status;
        let done = self.carry_out(command, fds);
        let status = asks.then(|| self.status());
        let error = done.err().map(|error| shortened(&format!("{error:#}")));
        self.attached
            .send(&FromVmm::Reply { id, error, status }, &[]);
    }

    fn carry_out(&mut self, command: Command, fds: Vec<OwnedFd>) -> anyhow::Result<()> {
        match command {
            Command::Start if self.restored => {
                self.resume()?;
                self.restored = false;
            }
            Command::Start => self.machine.start()?,
            Command::Pause => self.machine.pause()?,
            Command::Resume => self.resume()?,
            Command::Reset => {
                let runs = self.machine.pause().is_ok();
                self.let_go();
                self.machine.reset()?;
                if runs {
                    self.machine.resume()?;
                }
                self.was_reset();
            }
            Command::PowerButton
                if self.with_vmbus(|vmbus, effects| vmbus.shut_down(effects)) == Some(true) => {}
            Command::PowerButton => {
                let press = |bridge: &mut HostBridge, effects: &mut Effects| {
                    bridge.press_power_button(effects);
                };
                self.machine.with(pc::PCI, press);
            }
            Command::Save => {
                let file = fds.into_iter().next().context("no file to save to")?;
                let mut file = BufWriter::new(File::from(file));
                self.machine.save(&mut file)?;
                file.flush().context("cannot write the saved state")?;
            }
            Command::Link { adapter, up } => {
                self.with_nic(adapter, |nic, _| nic.set_link(up))
                    .with_context(|| format!("no adapter {adapter}"))?;
            }
            Command::Served { adapter, served } => {
                self.with_nic(adapter, |nic, effects| nic.set_served(served, effects))
                    .with_context(|| format!("no adapter {adapter}"))?;
            }
            Command::SubChannels { adapter, count } => {
                self.vmbus(|vmbus, effects| vmbus.offer_sub_channels(adapter, count, effects))?;
            }
            Command::Keep { adapter, state } => {
                self.vmbus(|vmbus, _| vmbus.keep(adapter, state))?
            }
            Command::AddAdapter { adapter } => {
                let AdapterConfig { name, instance, .. } = adapter;
                let kick =
                    self.vmbus(|vmbus, effects| vmbus.add_adapter(name, instance, effects))?;
                let added = FromVmm::Added { adapter: name };
                self.attached.send(&added, &[kick.as_fd()]);
            }
            Command::RemoveAdapter { adapter } => {
                self.vmbus(|vmbus, effects| vmbus.remove_adapter(adapter, effects))?;
            }
            Command::Status => {}
        }
        Ok(())
    }

    /// Lets vswitchd let go of what the guest of the paused machine has set up. Its answers are heard by this thread, which
    /// cannot wait for them while it resets the machine.
    fn let_go(&mut self) {
        self.with_vmbus(|vmbus, effects| vmbus.reset(effects));
        let begin = Instant::now();
        let settled = |vm: &Vm| vm.with_vmbus(|vmbus, _| vmbus.is_settled()) != Some(false);
        while !settled(self) && begin.elapsed() < ANSWER_LIMIT && self.attached.fd().is_some() {
            self.ask_for_vmbus();
            if let Some(fd) = self.attached.fd() {
                // What cannot be waited for is looked at.
                let _ = poll(
                    &mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)],
                    Some(&OFFER),
                );
            }
            while let Some((message, fds)) = self.attached.next() {
                match message {
                    ToVmm::Done { .. } => self.obey(message, fds),
                    other => self.later.push_back((other, fds)),
                }
            }
        }
    }

    /// Goes on, and tells the guest what time it is.
    fn resume(&self) -> anyhow::Result<()> {
        set_clock(&self.machine);
        self.machine.resume()?;
        self.with_vmbus(|vmbus, effects| vmbus.set_time(effects));
        Ok(())
    }

    fn was_reset(&mut self) {
        self.crash = None;
        self.attached.send(&FromVmm::WasReset {}, &[]);
    }

    fn status(&self) -> Status {
        let bound = |name| self.with_nic(name, |nic, _| nic.has_driver());
        let adapters = self.adapters.iter().map(|adapter| adapter.name);
        let synthetic = self.with_vmbus(|vmbus, _| vmbus.drivers());
        let services = self.with_vmbus(|vmbus, _| vmbus.services_in_use());
        let facts = self.with_vmbus(|vmbus, effects| vmbus.facts(effects));
        Status {
            state: self.state(),
            exits: self.exits(),
            drivers: adapters
                .filter(|name| bound(*name) == Some(true))
                .chain(synthetic.unwrap_or_default())
                .collect(),
            services: services.unwrap_or_default(),
            facts: facts.unwrap_or_default(),
        }
    }

    /// Exits by kind, those at the registers of legacy adapters by register (of all adapters). Each counts once.
    fn exits(&self) -> BTreeMap<String, u64> {
        let adapters = self.adapters.iter();
        let nics: Vec<Accesses> = adapters
            .filter_map(|adapter| self.with_nic(adapter.name, |nic, _| nic.accesses()))
            .collect();
        let by_port: u64 = nics.iter().map(|nic| nic.by_port).sum();
        let by_memory: u64 = nics.iter().map(|nic| nic.by_memory).sum();
        let exits = self.machine.exits();
        let (ports, memory) = (
            exits.port_reads + exits.port_writes,
            exits.memory_reads + exits.memory_writes,
        );
        let kinds = [
            // A string instruction makes several accesses in one exit.
            ("pio", ports.saturating_sub(by_port)),
            ("mmio", memory.saturating_sub(by_memory)),
            ("interrupted", exits.interrupted),
            ("emulated", exits.emulated),
            ("msr", exits.msrs),
            ("hypercall", exits.hypercalls),
            // KVM handles these itself.
            ("hlt", 0),
        ];
        let mut counts = BTreeMap::from(kinds.map(|(kind, count)| (kind.to_owned(), count)));
        for (register, count) in nics.iter().flat_map(|nic| (0..).zip(nic.registers)) {
            if count > 0 {
                *counts.entry(format!("csr{register}")).or_default() += count;
            }
        }
        counts
    }

    /// Calls the virtual machine bus, if there is one.
    fn with_vmbus<T>(&self, call: impl FnOnce(&mut Vmbus, &mut Effects) -> T) -> Option<T> {
        self.machine.with(VMBUS, call)
    }

    /// Calls the virtual machine bus.
    fn vmbus<T>(
        &self,
        call: impl FnOnce(&mut Vmbus, &mut Effects) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        self.with_vmbus(call).context("the VM has no Hyper-V")?
    }

    fn with_nic<T>(
        &self,
        adapter: AdapterName,
        call: impl FnOnce(&mut Nic, &mut Effects) -> T,
    ) -> Option<T> {
        with_nic(&self.machine, adapter, call)
    }
}

fn with_nic<T>(
    machine: &Machine,
    adapter: AdapterName,
    call: impl FnOnce(&mut Nic, &mut Effects) -> T,
) -> Option<T> {
    let address = Pc::adapter_address(adapter.index());
    machine
        .with(pc::PCI, |bridge: &mut HostBridge, effects| {
            bridge.with_device(address, effects, call)
        })
        .flatten()
}

/// Puts the machine's clock right after it stood still.
fn set_clock(machine: &Machine) {
    let now = UNIX_EPOCH.elapsed().unwrap_or_default();
    let nanos = i64::try_from(now.as_nanos()).unwrap_or(i64::MAX);
    machine.with(pc::RTC, |clock: &mut Rtc, effects| {
        clock.set_time(nanos, effects);
    });
}
