//! `vswitch-vmm`: the process of one VM. vswitchd starts it, and gives it everything it needs as open files; then it
//! gives up its rights. See [`vswitch::attach`] for how they speak.

#![forbid(unsafe_code)]

mod attached;
mod build;
mod console;
mod nic;
mod vm;
mod vmbus;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use tracing::error;

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "vswitch-vmm",
    version,
    about = "The process of one VM; vswitchd starts it"
)]
struct Args {
    /// The attach socket of vswitchd
    #[arg(long, value_name = "SOCKET", required_unless_present = "check")]
    attach: Option<PathBuf>,
    /// The VM
    #[arg(long, value_name = "NAME", required_unless_present = "check")]
    name: Option<String>,
    /// Say whether this host can run VMs, and why it cannot
    #[arg(long, conflicts_with_all = ["attach", "name"])]
    check: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.check {
        return check();
    }
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            error!("{reason:#}");
            ExitCode::FAILURE
        }
    }
}

fn check() -> ExitCode {
    match hypervisor::kvm::check() {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            let reason = anyhow::Error::from(reason);
            let _ = writeln!(std::io::stderr(), "vswitch-vmm: {reason:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    let socket = args.attach.context("no attach socket")?;
    let name = args.name.context("no name")?;
    let attached = attached::Attached::first(&socket, name)?;
    vm::run(attached)
}
