//! Boots a Linux kernel with its console on the terminal, and says at the end what came out of the guest.
//!
//! `cargo run -p hypervisor --example boot -- --kernel vmlinux --initrd initrd.cpio --command-line "console=ttyS0"`
#![allow(
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for the terminal"
)]

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Parser;
use hypervisor::boot::{Boot, Linux};
use hypervisor::device::{Device, Effect, Effects, Region, RestoreError, Space, State, Wiring};
use hypervisor::memory::GuestMemory;
use hypervisor::{Config, Event, Machine, Named};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

#[derive(Parser)]
struct Arguments {
    /// A bzImage or vmlinux.
    #[arg(long)]
    kernel: PathBuf,
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

/// As much of a serial port as a kernel needs to print.
#[derive(Default)]
struct Com(u8, u8);
impl Device for Com {
    fn read(&mut self, _: usize, offset: u64, data: &mut [u8], _: &mut Effects) {
        data[0] = match offset {
            1 => self.0,
            2 => {
                if self.0 & 2 != 0 {
                    2
                } else {
                    1
                }
            }
            3 => self.1,
            5 => 0x60,
            6 => 0xb0,
            _ => 0,
        };
    }
    fn write(&mut self, _: usize, offset: u64, data: &[u8], effects: &mut Effects) {
        match offset {
            0 if self.1 & 0x80 == 0 => effects.push(Effect::Output {
                console: 0,
                bytes: data.to_vec(),
            }),
            1 if self.1 & 0x80 == 0 => self.0 = data[0] & 15,
            3 => self.1 = data[0],
            _ => {}
        }
        if self.0 & 2 != 0 {
            effects.push(Effect::Line {
                gsi: 4,
                high: false,
            });
            effects.push(Effect::Line { gsi: 4, high: true });
        } else {
            effects.push(Effect::Line {
                gsi: 4,
                high: false,
            });
        }
    }
    fn reset(&mut self, _: &mut Effects) {}
    fn save(&self) -> State {
        State::Null
    }
    fn restore(&mut self, _: &State, _: &mut Effects) -> Result<(), RestoreError> {
        Ok(())
    }
    fn wiring(&self) -> Wiring {
        let regions = vec![Region {
            number: 0,
            space: Space::Port,
            start: 0x3f8,
            len: 8,
        }];
        Wiring {
            regions,
            ..Wiring::default()
        }
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let open =
        |path: &PathBuf| File::open(path).with_context(|| format!("opening {}", path.display()));
    let config = Config {
        vcpus: arguments.vcpus,
        memory: GuestMemory::new(arguments.memory << 20)?,
        boot: Boot::Linux(Linux {
            kernel: open(&arguments.kernel)?,
            initrd: arguments.initrd.as_ref().map(open).transpose()?,
            command_line: arguments.command_line,
            tables: Vec::new(),
            rsdp: 0,
        }),
        output: Box::new(|_, bytes| {
            let mut out = std::io::stdout();
            let _ = out.write_all(bytes).and_then(|()| out.flush());
        }),
    };
    let begin = Instant::now();
    let machine = Machine::new(config, vec![Named::new("com", Com::default())])?;
    machine.start()?;
    eprintln!("started after {:?}", begin.elapsed());
    let end = arguments
        .seconds
        .map(|seconds| begin + Duration::from_secs(seconds));
    loop {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        poll(
            &mut [PollFd::new(machine.event_fd(), PollFlags::IN)],
            timeout.as_ref(),
        )?;
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
