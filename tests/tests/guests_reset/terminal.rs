//! The console of a virtual machine on a terminal.

use std::{
    fs,
    io::{Read, Write},
    path::PathBuf,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
};

use anyhow::{Context, Result, ensure};
use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, tcgetattr},
};
use vswitch_tests::{Background, Lab, cmd, vm::ours::STATE_LIMIT};

/// `vm console` on a terminal passes every key on, until Ctrl-], and leaves the terminal as it was.
pub(super) fn is_the_guests(lab: &Lab) -> Result<()> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let path = PathBuf::from(ptsname(&master, Vec::new())?.into_string()?);
    let open = || fs::File::options().read(true).write(true).open(&path);
    let terminal = open()?;
    let edits = |terminal: &fs::File| -> Result<bool> {
        let modes = tcgetattr(terminal)?.local_modes;
        Ok(modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG))
    };
    ensure!(edits(&terminal)?, "a new terminal does not edit lines");
    let mut command = Command::new(vswitch_tests::paths::program("vswitchctl")?);
    command
        .arg("--run-dir")
        .arg(lab.daemon.run_dir())
        .args(["vm", "console", "guest"])
        .stdin(open()?)
        .stdout(open()?)
        .stderr(Stdio::null());
    let mut client = Background::spawn(&mut command)?;
    cmd::wait_until("the terminal to be raw", STATE_LIMIT, || {
        Ok(!edits(&terminal)?)
    })?;
    // Ctrl-C would end a program that leaves the terminal as it is.
    let mut master = fs::File::from(master);
    master.write_all(b"\x03\n1000 echo $((6*7))\n")?;
    let (said, heard) = mpsc::channel();
    let mut reader = master.try_clone()?;
    thread::spawn(move || {
        let mut bytes = [0; 256];
        while let Ok(len @ 1..) = reader.read(&mut bytes) {
            let _ = said.send(bytes.get(..len).unwrap_or_default().to_vec());
        }
    });
    let mut text = String::new();
    while !text.contains("42") || !text.contains("@1000 0") {
        let bytes = heard.recv_timeout(STATE_LIMIT);
        let bytes = bytes.with_context(|| format!("the guest said {text:?} only"))?;
        text.push_str(&String::from_utf8_lossy(&bytes));
    }
    ensure!(!text.contains("echo"), "typed text was echoed: {text:?}");
    client.must_run()?;
    master.write_all(b"\x1d")?;
    cmd::wait_until("vm console to end", STATE_LIMIT, || {
        Ok(client
            .child()
            .try_wait()?
            .is_some_and(|status| status.success()))
    })?;
    ensure!(edits(&terminal)?, "the terminal is not as it was");
    Ok(())
}
