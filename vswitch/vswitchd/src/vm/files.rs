//! The files of a VM: what it boots, its consoles, its saved state.

use std::fs::{File, OpenOptions, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use nix::unistd::Gid;
use rustix::fs::OFlags;
use vswitch::api::{Boot, VmConfig, VmName};
use vswitch::attach::message::FileRole;
use vswitch::attach::socket::listen_on;
use vswitch::attach::{Connection, ToVmm};

use crate::socket::make_dir;

/// The BIOS of Debian's package `seabios`, which fits the machine.
const FIRMWARE: &str = "/usr/share/seabios/bios-256k.bin";
/// Where a package puts the option ROM of legacy adapters.
const LEGACY_ROM: &str = "/usr/share/vswitch/legacy.rom";

/// Where files of VMs are.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    /// Saved states and what consoles said.
    state_dir: PathBuf,
    /// The sockets of consoles.
    run_dir: PathBuf,
    /// Who may connect to consoles.
    group: Gid,
    /// The BIOS.
    firmware: PathBuf,
    /// The option ROM of legacy adapters.
    legacy_rom: PathBuf,
}

impl Files {
    /// In folders `vm` of these two, which are made.
    pub(crate) fn new(
        state_dir: &Path,
        run_dir: &Path,
        group: Gid,
        firmware: Option<PathBuf>,
        legacy_rom: Option<PathBuf>,
    ) -> anyhow::Result<Files> {
        let files = Files {
            state_dir: state_dir.join("vm"),
            run_dir: run_dir.join("vm"),
            group,
            firmware: firmware.unwrap_or_else(|| FIRMWARE.into()),
            legacy_rom: legacy_rom.unwrap_or_else(|| LEGACY_ROM.into()),
        };
        make_dir(&files.state_dir, 0o700)?;
        make_dir(&files.run_dir, 0o755)?;
        Ok(files)
    }

    /// The option ROM that a VM boots legacy adapters with.
    pub(crate) fn boot_rom<'a>(&'a self, config: &'a VmConfig) -> &'a Path {
        config
            .boot_rom
            .as_deref()
            .map_or(&self.legacy_rom, Path::new)
    }

    /// The socket of COM1 or COM2.
    pub(crate) fn console(&self, name: &VmName, com: u8) -> PathBuf {
        self.run_dir.join(format!("{name}.com{com}.sock"))
    }

    /// The socket on which the process of a VM lets the next vswitchd in. Unlike those in the run directory it is there
    /// after whatever ended vswitchd.
    pub(crate) fn attach(&self, name: &VmName) -> PathBuf {
        self.state_dir.join(format!("{name}.attach"))
    }

    /// Sends a process away that the store does not know: vswitchd was killed while it was being started.
    pub(crate) fn send_away(&self, name: &VmName) {
        // Hardly ever is there one.
        if let Ok(connection) = Connection::dial(&self.attach(name)) {
            let _ = connection.send(&ToVmm::Leave {}, &[], super::live::SEND_LIMIT);
        }
    }

    /// What COM1 has said.
    pub(crate) fn log(&self, name: &VmName) -> PathBuf {
        self.state_dir.join(format!("{name}.log"))
    }

    /// The saved state.
    pub(crate) fn saved(&self, name: &VmName) -> PathBuf {
        self.state_dir.join(format!("{name}.saved"))
    }

    /// Opens everything a VM needs; `saved`: it goes on from its saved state.
    pub(crate) fn open(
        &self,
        config: &VmConfig,
        adapters: bool,
        saved: bool,
    ) -> anyhow::Result<Vec<(FileRole, OwnedFd)>> {
        let name = &config.name;
        let mut files = Vec::new();
        if saved {
            files.push((FileRole::Saved, open_regular(&self.saved(name))?));
        }
        match &config.boot {
            Boot::Kernel(path) => {
                files.push((FileRole::Kernel, open_regular(Path::new(path))?));
                // For a kernel that needs it; the process of the VM says so if it does and there is none.
                if let Ok(firmware) = open_regular(&self.firmware) {
                    files.push((FileRole::Firmware, firmware));
                }
                if let Some(path) = &config.initrd {
                    files.push((FileRole::Initrd, open_regular(Path::new(path))?));
                }
            }
            Boot::Network => {
                let firmware = open_regular(&self.firmware)
                    .context("no BIOS: install package seabios, or set firmware = PATH")?;
                files.push((FileRole::Firmware, firmware));
                if adapters {
                    let rom = open_regular(self.boot_rom(config)).context(
                        "no option ROM to boot legacy adapters with; allowed: one named by --boot-rom, \
                         or by the setting legacy_rom of vswitchd",
                    )?;
                    files.push((FileRole::LegacyRom, rom));
                }
            }
        }
        files.push((FileRole::Com1, self.listen(name, 1)?));
        files.push((FileRole::Com2, self.listen(name, 2)?));
        let path = self.attach(name);
        let attach = listen_on(&path).with_context(|| format!("cannot make {}", path.display()))?;
        files.push((FileRole::Attach, attach));
        let log = self.log(name);
        let opened = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&log)
            .and_then(|file| {
                // It begins anew where the machine does.
                file.set_len(if saved { file.metadata()?.len() } else { 0 })?;
                Ok(file)
            });
        let log = opened.with_context(|| format!("cannot open {}", log.display()))?;
        files.push((FileRole::ConsoleLog, log.into()));
        Ok(files)
    }

    fn listen(&self, name: &VmName, com: u8) -> anyhow::Result<OwnedFd> {
        let path = self.console(name, com);
        let shown = path.display();
        ensure!(
            path.as_os_str().len() <= 107,
            "the path of a console's socket is too long: {shown}; allowed: at most 107 bytes"
        );
        // Its VM does not run, or this would not be called.
        let _ = std::fs::remove_file(&path);
        let listener =
            UnixListener::bind(&path).with_context(|| format!("cannot make socket {shown}"))?;
        std::os::unix::fs::chown(&path, None, Some(self.group.as_raw()))
            .and_then(|()| std::fs::set_permissions(&path, Permissions::from_mode(0o660)))
            .and_then(|()| listener.set_nonblocking(true))
            .with_context(|| format!("cannot set up socket {shown}"))?;
        Ok(listener.into())
    }

    /// Takes the sockets of a VM away, whose process has ended.
    pub(crate) fn close_sockets(&self, name: &VmName) {
        for path in [
            self.console(name, 1),
            self.console(name, 2),
            self.attach(name),
        ] {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Deletes everything a VM leaves behind.
    pub(crate) fn delete(&self, name: &VmName) {
        self.close_sockets(name);
        for path in [self.log(name), self.saved(name), self.unfinished(name)] {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Forgets a saved state.
    pub(crate) fn discard(&self, name: &VmName) -> anyhow::Result<()> {
        let path = self.saved(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// A new file for a state that is being saved.
    pub(crate) fn begin_save(&self, name: &VmName) -> anyhow::Result<File> {
        let path = self.unfinished(name);
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot make {}", path.display()))
    }

    /// The state is written: puts it in the place of the one before, as a whole.
    pub(crate) fn finish_save(&self, name: &VmName, file: &File) -> anyhow::Result<()> {
        let path = self.saved(name);
        file.sync_all()
            .and_then(|()| std::fs::rename(self.unfinished(name), &path))
            .and_then(|()| File::open(&self.state_dir)?.sync_all())
            .with_context(|| format!("cannot keep {}", path.display()))
    }

    /// The state could not be written.
    pub(crate) fn abandon_save(&self, name: &VmName) {
        let _ = std::fs::remove_file(self.unfinished(name));
    }

    fn unfinished(&self, name: &VmName) -> PathBuf {
        self.state_dir.join(format!("{name}.saving"))
    }
}

/// Opens a file for reading; never waits, as opening a pipe would.
fn open_regular(path: &Path) -> anyhow::Result<OwnedFd> {
    let shown = path.display();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path)
        .with_context(|| format!("cannot open {shown}"))?;
    let metadata = file
        .metadata()
        .with_context(|| format!("cannot stat {shown}"))?;
    ensure!(
        metadata.is_file(),
        "{shown} is no regular file; allowed: a regular file"
    );
    Ok(file.into())
}
