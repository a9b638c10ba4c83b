//! `vswitchctl`: the command line of the switch. Everything it does goes through the API of vswitchd.

mod cli;
mod client;
mod commands;
mod config;
mod console;
mod show;
mod show_vms;
mod table;
mod vm_cli;
mod vm_commands;

use std::io::Write;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use cli::{Cli, Noun};
use client::Client;
use commands::Runner;
use vm_cli::VmVerbs;

/// Refused or failed.
const REFUSED: u8 = 1;
/// Wrong usage.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return report_usage(&error),
    };
    if let Err(message) = check(&cli) {
        return report(USAGE, message);
    }
    if let Noun::Completion { shell } = cli.noun {
        clap_complete::generate(
            shell,
            &mut Cli::command(),
            "vswitchctl",
            &mut std::io::stdout(),
        );
        return ExitCode::SUCCESS;
    }
    let client = Client::new(&cli.run_dir);
    match client.and_then(|client| {
        Runner {
            client,
            json: cli.json,
        }
        .run(cli.noun)
    }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(REFUSED, &format!("{error:#}")),
    }
}

/// Refuses what clap cannot: `--json` goes with all commands but these.
fn check(cli: &Cli) -> Result<(), &'static str> {
    match &cli.noun {
        Noun::Stats(args) if args.watch && cli.json => {
            Err("--json prints one value, and --watch goes on; give one")
        }
        Noun::Vm(VmVerbs::Console { .. }) if cli.json => {
            Err("a console is no JSON value; --json is not allowed with it")
        }
        Noun::Completion { .. } if cli.json => {
            Err("completion prints a script; --json is not allowed with it")
        }
        _ => Ok(()),
    }
}

/// A value that is not allowed is a refusal, in one line; anything else is wrong usage, with a hint.
fn report_usage(error: &clap::Error) -> ExitCode {
    if error.kind() != ErrorKind::ValueValidation {
        let code = error.exit_code();
        // Nothing to be done if stderr is closed.
        let _ = error.print();
        return ExitCode::from(if code == 0 { 0 } else { USAGE });
    }
    report(REFUSED, &refusal(error))
}

/// What a value was refused for, in one line.
fn refusal(error: &clap::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

fn report(code: u8, message: &str) -> ExitCode {
    let line = message.replace('\n', " ");
    let _ = writeln!(std::io::stderr(), "vswitchctl: {line}");
    ExitCode::from(code)
}

#[cfg(test)]
mod tests;
