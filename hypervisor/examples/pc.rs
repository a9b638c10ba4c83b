//! Runs a PC with its console on the terminal, and says at the end how often the guest was left.
//!
//! `cargo run -p hypervisor --example pc -- --firmware /usr/share/seabios/bios-256k.bin`
//! `cargo run -p hypervisor --example pc -- --kernel vmlinux --initrd initrd.cpio --command-line "console=ttyS0"`
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for the terminal"
)]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use hypervisor::chipset::serial::ComPort;
use hypervisor::memory::GuestMemory;
use hypervisor::pc::{COM1, Pc, Start};
use hypervisor::{Event, Machine, Output};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

#[derive(Parser)]
struct Arguments {
    /// A bzImage or vmlinux.
    #[arg(long)]
    kernel: Option<PathBuf>,
    /// Or firmware: SeaBIOS.
    #[arg(long)]
    firmware: Option<PathBuf>,
    /// Prints the firmware's messages too.
    #[arg(long)]
    debug: bool,
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
    /// Ends the machine after this many seconds.
    #[arg(long)]
    seconds: Option<u64>,
}

/// Puts the machine together.
fn assemble(arguments: &Arguments) -> Result<Machine> {
    let open =
        |path: &PathBuf| File::open(path).with_context(|| format!("opening {}", path.display()));
    let start = match (&arguments.kernel, &arguments.firmware) {
        (Some(kernel), None) => Start::Linux {
            kernel: open(kernel)?,
            firmware: None,
            initrd: arguments.initrd.as_ref().map(open).transpose()?,
            command_line: arguments.command_line.clone(),
        },
        (None, Some(firmware)) => Start::Firmware(
            std::fs::read(firmware).with_context(|| format!("reading {}", firmware.display()))?,
        ),
        _ => bail!("either --kernel or --firmware is needed"),
    };
    let pc = Pc {
        name: "example".to_owned(),
        uuid: [0; 16],
        vcpus: arguments.vcpus,
        memory: GuestMemory::new(arguments.memory << 20)?,
        unix_nanos: UNIX_EPOCH.elapsed()?.as_nanos() as i64,
        adapters: Vec::new(),
        hyperv: false,
        start,
        debug: arguments.debug,
    };
    let output: Output = Box::new(|_, bytes| {
        let mut out = std::io::stdout();
        let _ = out.write_all(bytes).and_then(|()| out.flush());
    });
    let (config, devices) = pc.assemble(output)?;
    Ok(Machine::new(config, devices)?)
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let begin = Instant::now();
    let machine = assemble(&arguments)?;
    machine.start()?;
    eprintln!("started after {:?}", begin.elapsed());
    let end = arguments
        .seconds
        .map(|seconds| begin + Duration::from_secs(seconds));
    let mut input = Vec::new();
    let mut stdin = Some(std::io::stdin());
    loop {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        // What the port has no room for is tried again soon.
        let soon = (!input.is_empty()).then_some(Duration::from_millis(10));
        let timeout = left.into_iter().chain(soon).min();
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut waiting = vec![PollFd::new(machine.event_fd(), PollFlags::IN)];
        waiting.extend(stdin.iter().map(|stdin| PollFd::new(stdin, PollFlags::IN)));
        poll(&mut waiting, timeout.as_ref())?;
        let typed = waiting
            .get(1)
            .is_some_and(|stdin| !stdin.revents().is_empty());
        if let Some(terminal) = stdin.as_mut().filter(|_| typed) {
            let mut bytes = [0; 256];
            let count = terminal.read(&mut bytes)?;
            input.extend(bytes.iter().take(count));
            if count == 0 {
                stdin = None;
            }
        }
        let taken = machine.with(COM1, |com: &mut ComPort, effects| {
            com.input(&input, effects)
        });
        input.drain(..taken.unwrap_or_default());
        let events = machine.events();
        for event in &events {
            eprintln!("\n{event:?}");
        }
        let over = events.iter().any(|event| *event != Event::Reset);
        if over || end.is_some_and(|end| Instant::now() >= end) {
            break;
        }
    }
    eprintln!("\nafter {:?}: {:?}", begin.elapsed(), machine.exits());
    Ok(())
}
