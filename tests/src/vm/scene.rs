//! A guest with a synthetic adapter that fetches a file while something happens to it.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::netboot::noise;
use super::ours::STATE_LIMIT;
use super::{Console, Netboot};
use crate::station::Address;
use crate::{Lab, Station, cmd};

const fn at(host: u8) -> Address {
    Address { net: 74, host }
}
const HOST: Address = at(1);
/// Where the guest is.
pub const GUEST: Address = at(2);
/// Bytes of a transfer that takes a slow guest some ten seconds.
const LONG: usize = 300_000;

/// A guest with a synthetic adapter, and its host.
pub struct Scene {
    /// The switch and its machines.
    pub lab: Lab,
    /// The host on the internal network `inner`.
    pub host: Station,
    /// The console of machine `guest`.
    pub console: Console,
}

impl Scene {
    /// Starts them, and waits until the guest is ready.
    ///
    /// # Errors
    /// What could not be started.
    pub fn new() -> Result<Scene> {
        Scene::with(Lab::create_synthetic_vm)
    }

    /// The same with a guest that `create` makes: its name, what its adapters are like, and parameters of its kernel.
    ///
    /// # Errors
    /// What could not be started.
    pub fn with(create: impl FnOnce(&Lab, &str, &[&str], &str) -> Result<()>) -> Result<Scene> {
        let lab = Lab::start()?;
        lab.ctl("network create inner --type internal")?;
        let (host, console) = lab.ready_guest(create, HOST, GUEST)?;
        Ok(Scene { lab, host, console })
    }

    /// Saves the guest and starts it from there.
    ///
    /// # Errors
    /// What was refused; or it answers while it is saved.
    pub fn save_and_start(&mut self) -> Result<()> {
        self.lab.ctl("vm save guest")?;
        self.lab.wait_vm("guest", "saved")?;
        ensure!(!self.host.reaches(GUEST), "a saved guest answers");
        self.lab.ctl("vm start guest")?;
        self.console.follow(&self.lab.console_path("guest"))
    }

    /// Waits until the guest answers ping.
    ///
    /// # Errors
    /// It does not.
    pub fn answers(&mut self, what: &str) -> Result<()> {
        cmd::wait_until(&format!("the guest to answer {what}"), STATE_LIMIT, || {
            Ok(self.host.reaches(GUEST))
        })
    }

    /// A file comes through unharmed, though `meanwhile` happens on its way.
    ///
    /// # Errors
    /// It does not, or `meanwhile` failed.
    pub fn transfer(&mut self, meanwhile: impl FnOnce(&mut Scene) -> Result<()>) -> Result<()> {
        let web = Netboot::start(&self.lab.host, "vsw-inner", HOST)?;
        let hash = web.offer("file", &noise(LONG))?;
        let command = format!(
            "wget -q -O /tmp/file {}; sha256sum /tmp/file",
            web.url("file")
        );
        let number = self.console.begin(&command)?;
        std::thread::sleep(Duration::from_secs(3));
        meanwhile(self)?;
        let (_, said) = self.console.end(number)?;
        ensure!(
            said.starts_with(&hash),
            "`{command}` gave {said}, not {hash}"
        );
        Ok(())
    }
}
