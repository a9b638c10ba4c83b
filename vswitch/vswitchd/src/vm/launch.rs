//! Where the program of VMs is, and how it is started.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use vswitch::api::VmName;

/// The program's name.
const PROGRAM: &str = "vswitch-vmm";

/// How processes of VMs are started.
pub(crate) trait Launcher: Send + Sync {
    /// Why this host cannot run VMs, if it cannot.
    fn check(&self) -> anyhow::Result<()>;

    /// The command that starts the process of a VM, which then connects to `socket`.
    fn command(&self, name: &VmName, socket: &Path) -> anyhow::Result<Command>;
}

/// `vswitch-vmm`, as it was configured or as it is found.
pub(crate) struct VmmProgram {
    /// Where it is, if that was configured.
    pub(crate) configured: Option<PathBuf>,
}

impl Launcher for VmmProgram {
    fn check(&self) -> anyhow::Result<()> {
        let program = self.find()?;
        let shown = program.display();
        let output = Command::new(&program)
            .arg("--check")
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {shown}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        let why = said.lines().next().unwrap_or_default();
        ensure!(
            output.status.success(),
            "this host cannot run VMs: {}",
            why.trim_start_matches("vswitch-vmm: ")
        );
        Ok(())
    }

    fn command(&self, name: &VmName, socket: &Path) -> anyhow::Result<Command> {
        let mut command = Command::new(self.find()?);
        command
            .arg("--attach")
            .arg(socket)
            .args(["--name", name.as_str()]);
        Ok(command)
    }
}

impl VmmProgram {
    /// The configured program; else the one beside this program, in `PATH`, or in `/usr/libexec`.
    fn find(&self) -> anyhow::Result<PathBuf> {
        if let Some(path) = &self.configured {
            ensure!(
                path.is_file(),
                "there is no program {}, which the setting vmm names",
                path.display()
            );
            return Ok(path.clone());
        }
        let beside = std::env::current_exe().ok();
        let beside = beside.as_deref().and_then(Path::parent).map(Path::to_owned);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let places = beside
            .into_iter()
            .chain(std::env::split_paths(&path))
            .chain(["/usr/libexec".into(), "/usr/local/libexec".into()]);
        for place in places {
            let program = place.join(PROGRAM);
            if program.is_file() {
                return Ok(program);
            }
        }
        bail!(
            "there is no program {PROGRAM} beside vswitchd, in PATH or in /usr/libexec; \
             allowed: one there, or the setting vmm = PATH"
        )
    }
}
