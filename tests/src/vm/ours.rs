//! Virtual machines under our own monitor, driven by vswitchctl.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{COMMAND_LINE, Console, NO_IPV6, image};
use crate::{Lab, Station, cmd, station::Address};

/// How long a guest may take from its start until it takes commands. Ten to twenty seconds are usual where KVM emulates
/// ring 0, on a machine that does nothing else.
pub const BOOT_LIMIT: Duration = Duration::from_secs(240);
/// The same for one that boots from the network, which takes a minute there.
pub const NETWORK_BOOT_LIMIT: Duration = Duration::from_secs(600);
/// How long a machine may take to get into a state.
pub const STATE_LIMIT: Duration = Duration::from_secs(20);

impl Lab {
    /// Creates a machine that starts the test kernel by itself. `adapters` are arguments of `--legacy`, as
    /// `net=lab`; `parameters` are added to the kernel's.
    ///
    /// # Errors
    /// When it is refused.
    pub fn create_vm(&self, name: &str, adapters: &[&str], parameters: &str) -> Result<()> {
        let parameters = format!("{NO_IPV6} {parameters}");
        self.create_linux_vm(name, "--legacy", adapters, &parameters)
    }

    /// The same with synthetic adapters; `adapters` are arguments of `--synthetic`.
    ///
    /// # Errors
    /// When it is refused.
    pub fn create_synthetic_vm(
        &self,
        name: &str,
        adapters: &[&str],
        parameters: &str,
    ) -> Result<()> {
        let parameters = format!("{NO_IPV6} {parameters}");
        self.create_linux_vm(name, "--synthetic", adapters, &parameters)
    }

    /// The same with IPv6, and so many processors.
    ///
    /// # Errors
    /// When it is refused.
    pub fn create_full_vm(
        &self,
        name: &str,
        adapters: &[&str],
        parameters: &str,
        cpus: u32,
    ) -> Result<()> {
        self.create_linux_vm(name, "--synthetic", adapters, parameters)?;
        self.ctl(&format!("vm set {name} --cpus {cpus}")).map(drop)
    }

    /// The same with one processor, and more programs than busybox.
    ///
    /// # Errors
    /// When it is refused.
    pub fn create_equipped_vm(
        &self,
        name: &str,
        adapters: &[&str],
        parameters: &str,
    ) -> Result<()> {
        self.create_full_vm(name, adapters, parameters, 1)?;
        let initrd = image::shared()?.equipped_initrd.display();
        self.ctl(&format!("vm set {name} --initrd {initrd}"))
            .map(drop)
    }

    /// The host's station at `host` in the internal network `inner`, and a machine `guest` that `create` makes, with one
    /// adapter in it, and that is ready at `guest`.
    ///
    /// # Errors
    /// When something is refused, or the guest does not boot.
    pub fn ready_guest(
        &self,
        create: impl FnOnce(&Lab, &str, &[&str], &str) -> Result<()>,
        host: Address,
        guest: Address,
    ) -> Result<(Station, Console)> {
        let host = self.host_station("inner", host)?;
        let ip = ip_parameter(&guest.ip(false), "eth0");
        create(self, "guest", &["net=inner"], &ip)?;
        let mut console = self.start_vm("guest")?;
        console.wait_ready(BOOT_LIMIT)?;
        Ok((host, console))
    }

    fn create_linux_vm(
        &self,
        name: &str,
        kind: &str,
        adapters: &[&str],
        parameters: &str,
    ) -> Result<()> {
        let image = image::shared()?;
        let kernel = format!("kernel:{}", image.kernel.display());
        let initrd = image.initrd.display().to_string();
        let line = format!("{COMMAND_LINE} {parameters}");
        let boot = ["--boot", &kernel, "--initrd", &initrd, "--cmdline", &line];
        self.create_vm_with(name, kind, adapters, &boot)
    }

    /// Creates a machine that boots from the network by its first adapter.
    ///
    /// # Errors
    /// When it is refused.
    pub fn create_network_vm(&self, name: &str, adapters: &[&str]) -> Result<()> {
        let rom = image::shared()?.rom.display().to_string();
        let boot = ["--boot", "network", "--boot-rom", &rom];
        self.create_vm_with(name, "--legacy", adapters, &boot)
    }

    /// Creates a machine that boots from the network by its first synthetic adapter: the kernel that it starts is iPXE.
    ///
    /// # Errors
    /// When it is refused.
    pub fn create_ipxe_vm(&self, name: &str, adapters: &[&str]) -> Result<()> {
        let kernel = format!("kernel:{}", image::shared()?.ipxe.display());
        self.create_vm_with(name, "--synthetic", adapters, &["--boot", &kernel])
    }

    fn create_vm_with(
        &self,
        name: &str,
        kind: &str,
        adapters: &[&str],
        boot: &[&str],
    ) -> Result<()> {
        // The driver of a synthetic adapter takes 17 MiB for its buffers.
        let mut words = vec!["vm", "create", name, "--memory", "96M"];
        words.extend(boot);
        for adapter in adapters {
            words.extend([kind, adapter]);
        }
        self.daemon.ctl_words(&words).map(drop)
    }

    /// Starts a machine and connects with its console.
    ///
    /// # Errors
    /// When it is refused; the error holds what vswitchd logged.
    pub fn start_vm(&self, name: &str) -> Result<Console> {
        self.ctl(&format!("vm start {name}"))
            .and_then(|_| self.console(name))
            .with_context(|| format!("vswitchd said: {}", self.daemon.log()))
    }

    /// Connects with the first serial port of a machine that is started.
    ///
    /// # Errors
    /// When it has none within 10 s.
    pub fn console(&self, name: &str) -> Result<Console> {
        Console::connect(&self.console_path(name))
    }

    /// Where the first serial port of a machine is reached.
    #[must_use]
    pub fn console_path(&self, name: &str) -> PathBuf {
        self.daemon.run_dir().join(format!("vm/{name}.com1.sock"))
    }

    /// What `vm show` says.
    ///
    /// # Errors
    /// When there is no such machine.
    pub fn vm(&self, name: &str) -> Result<Value> {
        self.ctl(&format!("vm show {name}"))
    }

    /// The state of a machine: `off`, `running`, …
    ///
    /// # Errors
    /// When there is no such machine.
    pub fn vm_state(&self, name: &str) -> Result<String> {
        let shown = self.vm(name)?;
        let state = shown.get("state").and_then(Value::as_str);
        Ok(state
            .with_context(|| format!("no state in {shown}"))?
            .to_owned())
    }

    /// Waits until a machine is in `state`.
    ///
    /// # Errors
    /// When it is not within 20 s.
    pub fn wait_vm(&self, name: &str, state: &str) -> Result<()> {
        cmd::wait_until(&format!("{name} to be {state}"), STATE_LIMIT, || {
            Ok(self.vm_state(name)? == state)
        })
        .with_context(|| format!("vswitchd said: {}", self.daemon.log()))
    }

    /// How often a machine left guest code for each reason, and the sum.
    ///
    /// # Errors
    /// When `vm show` does not say.
    pub fn vm_exits(&self, name: &str) -> Result<(Vec<(String, u64)>, u64)> {
        let shown = self.vm(name)?;
        let exits = shown.get("exits").and_then(Value::as_object);
        let exits: Vec<(String, u64)> = exits
            .with_context(|| format!("no exits in {shown}"))?
            .iter()
            .filter_map(|(kind, count)| Some((kind.clone(), count.as_u64()?)))
            .collect();
        ensure!(!exits.is_empty(), "no exits counted in {shown}");
        let sum = exits.iter().map(|(_, count)| count).sum();
        Ok((exits, sum))
    }

    /// How often a VM's guest left its code for one reason, such as `hypercall` or `csr5`, as far as `vm show` says.
    ///
    /// # Errors
    /// When `vm show` fails.
    pub fn vm_exits_at(&self, name: &str, kind: &str) -> Result<u64> {
        let (exits, _) = self.vm_exits(name)?;
        let counted = exits.into_iter().find(|(counted, _)| counted == kind);
        Ok(counted.map_or(0, |(_, count)| count))
    }

    /// What `vm show` says of the driver of a VM's first adapter.
    ///
    /// # Errors
    /// When it does not say.
    pub fn adapter_driver(&self, name: &str) -> Result<String> {
        let shown = self.vm(name)?;
        let driver = shown.pointer("/adapters/0/driver").and_then(Value::as_str);
        Ok(driver.context("no driver in `vm show`")?.to_owned())
    }
}

/// An internal network `inner`: the host's station in it at `host`, and a guest that is ready at `guest`.
///
/// # Errors
/// When something is refused, or the guest does not boot.
pub fn guest_on_internal_network(host: Address, guest: Address) -> Result<(Lab, Station, Console)> {
    let lab = Lab::start()?;
    lab.ctl("network create inner --type internal")?;
    let (host, console) = lab.ready_guest(Lab::create_vm, host, guest)?;
    Ok((lab, host, console))
}

/// The `ip=` parameter that gives an interface of a guest its address before there is an init.
#[must_use]
pub fn ip_parameter(ip: &str, ifname: &str) -> String {
    format!("ip={ip}:::255.255.255.0::{ifname}:off")
}

/// How often a test repeats what it usually repeats `count` times: `VSWITCH_REPEAT` in the environment multiplies it.
#[must_use]
pub fn repeat(count: u32) -> u32 {
    let times = std::env::var("VSWITCH_REPEAT").ok();
    let times = times.and_then(|times| times.parse().ok()).unwrap_or(1);
    count.saturating_mul(times)
}
