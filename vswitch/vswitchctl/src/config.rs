//! The configuration as a file, in TOML.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Subcommand;
use hyper::Method;
use vswitch::api::ConfigDocument;

use crate::commands::{Runner, print};

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigVerb {
    /// Write networks, ports, VMs and static MAC table entries as one document
    #[command(after_help = EXPORT)]
    Export {
        /// Where to, in TOML; standard output without it
        file: Option<PathBuf>,
    },
    /// Check a document, and change nothing
    #[command(after_help = CHECK)]
    Check {
        /// What `export` has written
        file: PathBuf,
    },
}

const EXPORT: &str = "\
Addresses that came from the pools of the host are no part of it.

Examples:
  vswitchctl config export /var/backups/vswitch.toml
  vswitchctl config export --json | jq '.network[].name'";

const CHECK: &str = "\
Each part is checked by itself and against the others. What depends on the host, as whether an
interface or a file is there, is not looked at.

Example:
  vswitchctl config check /var/backups/vswitch.toml";

impl Runner {
    pub(crate) fn config(&self, verb: ConfigVerb) -> anyhow::Result<()> {
        match verb {
            ConfigVerb::Export { file } => {
                let answer = self.client.get("/v1/config")?;
                let text = toml::to_string_pretty(&answer.parse::<ConfigDocument>()?)
                    .context("cannot write the configuration as TOML")?;
                if let Some(file) = &file {
                    replace(file, &text)
                        .with_context(|| format!("cannot write {}", file.display()))?;
                }
                match file {
                    _ if self.json => print(format_args!("{}\n", answer.json()?)),
                    Some(file) => print(format_args!(
                        "configuration written to {}\n",
                        file.display()
                    )),
                    None => print(text),
                }
            }
            ConfigVerb::Check { file } => {
                let text = std::fs::read_to_string(&file)
                    .with_context(|| format!("cannot read {}", file.display()))?;
                let document: ConfigDocument = toml::from_str(&text)
                    .with_context(|| format!("{} is no configuration", file.display()))?;
                let answer = self
                    .client
                    .send(Method::POST, "/v1/config/check", &document)?;
                self.done(answer, format!("{} is allowed", file.display()))
            }
        }
    }
}

/// Writes `text` to `file` as a whole or not at all.
fn replace(file: &Path, text: &str) -> std::io::Result<()> {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new{}", std::process::id()));
    let new = file.with_file_name(name);
    let write = || {
        let mut to = std::fs::File::create_new(&new)?;
        to.write_all(text.as_bytes())?;
        to.sync_all()?;
        std::fs::rename(&new, file)
    };
    write().inspect_err(|_| {
        // It may not have been made.
        let _ = std::fs::remove_file(&new);
    })
}
