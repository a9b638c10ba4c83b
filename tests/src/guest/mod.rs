//! QEMU guests: Debian's stock cloud kernel and a busybox initrd with a command channel on the second serial port.

pub mod image;
mod init;
pub mod migration;
pub(crate) mod newc;

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::{
    cmd::{self, Background},
    netns::Netns,
    paths,
};

const BOOT_LIMIT: Duration = Duration::from_secs(60);

/// How the guest's NIC is attached.
#[derive(Clone, Debug)]
pub enum Attachment {
    /// vhost-user; QEMU connects to `socket`, and again whenever it was closed.
    VhostUserClient(String),
    /// vhost-user; QEMU listens on `socket`.
    VhostUserServer(String),
    /// A TAP device of a namespace: the stand-in that proves the guest without a switch.
    Tap(String),
}

/// What is booted.
#[derive(Clone, Debug)]
pub struct GuestConfig {
    /// How the NIC is attached.
    pub attachment: Attachment,
    /// The NIC's MAC address.
    pub mac: String,
    /// Addresses of eth0 with prefix length, IPv4 or IPv6.
    pub addresses: Vec<String>,
    /// Further options of `-device virtio-net-pci`, as `packed=on`.
    pub device: Vec<String>,
}

/// A running guest.
#[derive(Debug)]
pub struct QemuGuest {
    qemu: Background,
    agent: BufReader<UnixStream>,
    dir: TempDir,
    commands: u32,
}

impl QemuGuest {
    /// Boots a guest in namespace `netns` and waits until it takes commands.
    ///
    /// # Errors
    /// When a package or the image is missing, or it has not booted in 60 s; the error holds its console.
    pub fn boot(netns: &Netns, config: &GuestConfig) -> Result<Self> {
        let mut guest = Self::start(netns, config, None)?;
        let booted = guest.wait_for_agent();
        booted.with_context(|| {
            let dir = &guest.dir;
            format!("{}\n{}", said(dir, "qemu.log"), said(dir, "console.log"))
        })?;
        Ok(guest)
    }

    /// Starts QEMU, which boots the guest or waits for one to come on the socket `incoming`.
    fn start(netns: &Netns, config: &GuestConfig, incoming: Option<&Path>) -> Result<Self> {
        let image = image::ensure(&paths::guests())?;
        let dir = TempDir::new()?;
        let mut command = netns.command("qemu-system-x86_64");
        machine(&mut command, &image, config, &dir);
        if let Some(socket) = incoming {
            command
                .arg("-incoming")
                .arg(format!("unix:{}", socket.display()));
        }
        let log = std::fs::File::create(dir.path().join("qemu.log"))?;
        command
            .stdout(log.try_clone()?)
            .stderr(log)
            .stdin(Stdio::null());
        let mut qemu = Background::spawn(&mut command)?;
        let agent = connect(&mut qemu, &dir.path().join("agent.sock"))
            .with_context(|| said(&dir, "qemu.log"))?;
        Ok(Self {
            qemu,
            agent: BufReader::new(agent),
            dir,
            commands: 0,
        })
    }

    fn wait_for_agent(&mut self) -> Result<()> {
        let mut line = String::new();
        while !line.ends_with("agent ready\n") {
            line.clear();
            let len = self
                .agent
                .read_line(&mut line)
                .context("waiting for the guest to boot")?;
            ensure!(len > 0, "the guest ended while it booted");
        }
        Ok(())
    }

    /// Runs a shell command in the guest and returns what it printed, standard error too.
    ///
    /// # Errors
    /// When it does not end with status 0, or the guest is gone.
    pub fn run(&mut self, command: &str) -> Result<String> {
        let (status, text) = self.output(command)?;
        ensure!(
            status == 0,
            "in the guest, `{command}` ended with status {status}: {}",
            text.trim()
        );
        Ok(text)
    }

    /// Runs a shell command in the guest and returns its exit status and what it printed.
    ///
    /// # Errors
    /// When the guest is gone or answers nothing for 60 s.
    pub fn output(&mut self, command: &str) -> Result<(i32, String)> {
        ensure!(!command.contains('\n'), "one line at a time: {command:?}");
        self.qemu.must_run()?;
        self.commands += 1;
        let number = self.commands;
        writeln!(self.agent.get_mut(), "{number} {command}")?;
        let mut line = String::new();
        self.agent
            .read_line(&mut line)
            .with_context(|| format!("no answer of the guest to `{command}`"))?;
        let mut words = line.split_whitespace().map(str::parse::<i64>);
        let (Some(Ok(echoed)), Some(Ok(status)), Some(Ok(length))) =
            (words.next(), words.next(), words.next())
        else {
            bail!("the guest answered {line:?} to `{command}`");
        };
        ensure!(
            echoed == i64::from(number),
            "the guest answered command {echoed}, not {number}"
        );
        let mut text = vec![0; usize::try_from(length)?];
        self.agent.read_exact(&mut text)?;
        Ok((
            i32::try_from(status)?,
            String::from_utf8_lossy(&text).into_owned(),
        ))
    }

    /// What the guest's kernel and its init said on the serial console.
    #[must_use]
    pub fn console(&self) -> String {
        said(&self.dir, "console.log")
    }
}

/// Connects to a socket that QEMU listens on.
fn connect(qemu: &mut Background, path: &Path) -> Result<UnixStream> {
    let mut stream = None;
    cmd::wait_until("QEMU (package qemu-system-x86)", BOOT_LIMIT, || {
        qemu.must_run()?;
        stream = UnixStream::connect(path).ok();
        Ok(stream.is_some())
    })?;
    let stream = stream.context("no connection to QEMU")?;
    stream.set_read_timeout(Some(BOOT_LIMIT))?;
    Ok(stream)
}

fn said(dir: &TempDir, file: &str) -> String {
    let bytes = std::fs::read(dir.path().join(file)).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The command line: software emulation, so that a machine without KVM runs the tests too, and memory that can
/// be shared. QEMU 7.2 under TCG crashes on vhost-user with MSI-X, hence `vectors=0`.
fn machine(command: &mut Command, image: &image::GuestImage, config: &GuestConfig, dir: &TempDir) {
    let path = |name: &str| -> PathBuf { dir.path().join(name) };
    let netdev = match &config.attachment {
        Attachment::VhostUserClient(_) | Attachment::VhostUserServer(_) => {
            "vhost-user,id=net,chardev=vhost".to_owned()
        }
        Attachment::Tap(ifname) => format!("tap,id=net,ifname={ifname},script=no,downscript=no"),
    };
    match &config.attachment {
        Attachment::VhostUserClient(socket) => {
            command
                .arg("-chardev")
                .arg(format!("socket,id=vhost,path={socket},reconnect=1"));
        }
        Attachment::VhostUserServer(socket) => {
            command
                .arg("-chardev")
                .arg(format!("socket,id=vhost,path={socket},server=on,wait=off"));
        }
        Attachment::Tap(_) => {}
    }
    let mut device = format!(
        "virtio-net-pci,netdev=net,vectors=0,romfile=,mac={}",
        config.mac
    );
    for option in &config.device {
        device.push(',');
        device.push_str(option);
    }
    command
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args([
            "-machine",
            "pc,accel=tcg,memory-backend=ram",
            "-m",
            "192M",
            "-cpu",
            "max",
        ])
        .args(["-object", "memory-backend-memfd,id=ram,size=192M,share=on"])
        .arg("-netdev")
        .arg(netdev)
        .arg("-device")
        .arg(device)
        .arg("-serial")
        .arg(format!("file:{}", path("console.log").display()))
        .arg("-serial")
        .arg(format!(
            "unix:{},server=on,wait=off",
            path("agent.sock").display()
        ))
        .arg("-qmp")
        .arg(format!(
            "unix:{},server=on,wait=off",
            path("qmp.sock").display()
        ))
        .arg("-kernel")
        .arg(&image.kernel)
        .arg("-initrd")
        .arg(&image.initrd)
        .arg("-append")
        .arg(format!(
            "console=ttyS0 quiet panic=-1 mitigations=off addresses={}",
            config.addresses.join(",")
        ));
}
