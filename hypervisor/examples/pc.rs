//! Runs a PC with its console on the terminal, and says at the end what came out of the guest.
//!
//! `cargo run -p hypervisor --example pc -- --firmware /usr/share/seabios/bios-256k.bin`
//! `cargo run -p hypervisor --example pc -- --kernel vmlinux --initrd initrd.cpio --command-line "console=ttyS0"`
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for the terminal"
)]

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use clap::Parser;
use hypervisor::chipset::i440fx::HostBridge;
use hypervisor::chipset::serial::ComPort;
use hypervisor::device::{DEBUG_CONSOLE, Device, Effects, RestoreError, Space, State, Wiring};
use hypervisor::memory::GuestMemory;
use hypervisor::pc::{self, Pc, Start};
use hypervisor::pci::{Bar, ConfigSpace, Function, Identity};
use hypervisor::{Event, Machine};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

#[derive(Parser)]
struct Arguments {
    /// The firmware's image.
    #[arg(long, conflicts_with = "kernel")]
    firmware: Option<PathBuf>,
    /// A bzImage or vmlinux, started without firmware.
    #[arg(long, required_unless_present = "firmware")]
    kernel: Option<PathBuf>,
    /// Its initial file system.
    #[arg(long)]
    initrd: Option<PathBuf>,
    /// Its command line.
    #[arg(long, default_value = "console=ttyS0")]
    command_line: String,
    /// Number of processors.
    #[arg(long, default_value_t = 1)]
    vcpus: u8,
    /// Memory in MiB.
    #[arg(long, default_value_t = 256)]
    memory: u64,
    /// Ethernet controllers that do nothing.
    #[arg(long, default_value_t = 0)]
    adapters: u8,
    /// Their option ROM.
    #[arg(long)]
    rom: Option<PathBuf>,
    /// Show the firmware's messages.
    #[arg(long)]
    debug: bool,
    /// What to type on COM1, after this many seconds and a colon.
    #[arg(long, value_parser = later)]
    input: Option<(f64, String)>,
    /// Presses the power button after this many seconds.
    #[arg(long)]
    power_button: Option<f64>,
    /// Ends the machine after this many seconds.
    #[arg(long, default_value_t = 3600.0)]
    seconds: f64,
}

fn later(text: &str) -> Result<(f64, String)> {
    let (seconds, input) = text.split_once(':').context("no colon")?;
    Ok((seconds.parse()?, input.replace("\\r", "\r")))
}

/// An Ethernet controller that does nothing.
struct Dummy;

impl Device for Dummy {
    fn read(&mut self, _: usize, _: u64, data: &mut [u8], _: &mut Effects) {
        data.fill(0);
    }
    fn write(&mut self, _: usize, _: u64, _: &[u8], _: &mut Effects) {}
    fn reset(&mut self, _: &mut Effects) {}
    fn save(&self) -> State {
        State::Null
    }
    fn restore(&mut self, _: &State, _: &mut Effects) -> Result<(), RestoreError> {
        Ok(())
    }
    fn wiring(&self) -> Wiring {
        Wiring::default()
    }
}

fn adapter(rom: Option<&[u8]>) -> Result<Function> {
    let mut config = ConfigSpace::new(&Identity {
        vendor: 0x1011,
        device: 0x0009,
        revision: 0x22,
        class: 0x02_00_00,
        ..Identity::default()
    });
    config.add_bar(Bar::standard(0, Space::Port, 128));
    config.add_bar(Bar::standard(1, Space::Memory, 128));
    config.set_pin(1);
    let function = Function::new(config, Box::new(Dummy));
    Ok(match rom {
        Some(image) => function.with_rom(image)?,
        None => function,
    })
}

fn machine(arguments: &Arguments) -> Result<Machine> {
    let context = |path: &PathBuf| format!("reading {}", path.display());
    let open = |path: &PathBuf| File::open(path).with_context(|| context(path));
    let read = |path: &PathBuf| std::fs::read(path).with_context(|| context(path));
    let start = match (&arguments.firmware, &arguments.kernel) {
        (Some(path), _) => Start::Firmware(read(path)?),
        (None, kernel) => Start::Linux {
            kernel: open(kernel.as_ref().context("no kernel")?)?,
            initrd: arguments.initrd.as_ref().map(open).transpose()?,
            command_line: arguments.command_line.clone(),
        },
    };
    let rom = arguments.rom.as_ref().map(read).transpose()?;
    let adapters = (0..arguments.adapters).map(|_| adapter(rom.as_deref()));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let pc = Pc {
        name: "example".to_owned(),
        uuid: [0x11; 16],
        vcpus: arguments.vcpus,
        memory: GuestMemory::new(arguments.memory << 20)?,
        unix_nanos: i64::try_from(now.as_nanos())?,
        adapters: adapters.collect::<Result<_>>()?,
        hyperv: false,
        start,
        debug: arguments.debug,
    };
    let (config, devices) = pc.assemble(Box::new(|console, bytes| {
        let mut out = std::io::stdout();
        if matches!(console, 0 | DEBUG_CONSOLE) {
            let _ = out.write_all(bytes).and_then(|()| out.flush());
        }
    }))?;
    Ok(Machine::new(config, devices)?)
}

fn main() -> Result<()> {
    let mut arguments = Arguments::parse();
    let begin = Instant::now();
    let machine = machine(&arguments)?;
    machine.start()?;
    eprintln!("started after {:?}", begin.elapsed());
    loop {
        let elapsed = begin.elapsed().as_secs_f64();
        if let Some((_, text)) = arguments.input.take_if(|(after, _)| *after <= elapsed) {
            machine.with(pc::COM1, |port: &mut ComPort, effects| {
                port.input(text.as_bytes(), effects)
            });
        }
        if arguments
            .power_button
            .take_if(|after| *after <= elapsed)
            .is_some()
        {
            machine.with(pc::PCI, HostBridge::press_power_button);
        }
        let timeout = Timespec::try_from(Duration::from_millis(100))?;
        poll(
            &mut [PollFd::new(machine.event_fd(), PollFlags::IN)],
            Some(&timeout),
        )?;
        let events = machine.events();
        for event in &events {
            eprintln!("\n{:?}: {event:?}", begin.elapsed());
        }
        if events.iter().any(|event| *event != Event::Reset) || elapsed >= arguments.seconds {
            break;
        }
    }
    eprintln!("\nafter {:?}: {:?}", begin.elapsed(), machine.exits());
    Ok(())
}
