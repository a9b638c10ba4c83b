//! Virtual machines and vswitchd outlive each other, and their processes have no rights.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use vswitch_tests::{
    Lab, Station, cmd,
    station::Address,
    vm::{
        Console,
        ours::{BOOT_LIMIT, STATE_LIMIT},
    },
};

const fn at(host: u8) -> Address {
    Address { net: 73, host }
}
const HOST: Address = at(1);
const GUEST: Address = at(2);

fn guest(lab: &Lab) -> Result<(Station, Console)> {
    lab.ctl("network create inner --type internal")?;
    lab.ready_guest(Lab::create_vm, HOST, GUEST)
}

fn pid(lab: &Lab) -> Result<i32> {
    let shown = lab.vm("guest")?;
    let pid = shown.get("pid").and_then(Value::as_i64);
    Ok(pid.with_context(|| format!("no process in {shown}"))? as i32)
}

fn port_state(lab: &Lab) -> Result<String> {
    let port = lab.ctl("port show inner guest.legacy0")?;
    Ok(port
        .get("state")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned())
}

#[test]
fn a_vm_goes_on_while_vswitchd_is_killed_and_is_adopted() -> Result<()> {
    let mut lab = Lab::start()?;
    let (mut host, mut console) = guest(&lab)?;
    host.ping(GUEST, false, 56)?;
    let before = pid(&lab)?;
    for _ in 0..3 {
        lab.daemon.kill()?;
        // The console goes on without vswitchd.
        ensure!(console.run("echo still here")?.contains("still here"));
        lab.daemon.start_again()?;
        lab.wait_vm("guest", "running")?;
        ensure!(pid(&lab)? == before, "another process");
        cmd::wait_until("the guest to answer again", STATE_LIMIT, || {
            Ok(host.reaches(GUEST))
        })?;
    }
    ensure!(port_state(&lab)? == "up");
    // vswitchd can do to it what it could before.
    lab.ctl("vm pause guest")?;
    ensure!(!host.reaches(GUEST), "it answers while it is paused");
    lab.ctl("vm resume guest")?;
    lab.ctl("adapter set guest legacy0 --disconnect")?;
    ensure!(!host.reaches(GUEST), "it answers while it is disconnected");
    lab.ctl("adapter set guest legacy0 --connect inner")?;
    cmd::wait_until("the guest to answer once connected", STATE_LIMIT, || {
        Ok(host.reaches(GUEST))
    })?;
    lab.ctl("vm turn-off guest")?;
    lab.wait_vm("guest", "off")
}

#[test]
fn the_end_of_a_process_is_reported_and_its_port_is_quiet() -> Result<()> {
    let lab = Lab::start()?;
    let (mut host, console) = guest(&lab)?;
    ensure!(port_state(&lab)? == "up");
    drop(console);
    let process = Pid::from_raw(pid(&lab)?).context("no process")?;
    kill_process(process, Signal::KILL)?;
    lab.wait_vm("guest", "off")?;
    let shown = lab.vm("guest")?;
    let detail = shown
        .get("detail")
        .and_then(Value::as_str)
        .unwrap_or_default();
    ensure!(
        detail.contains("killed by signal"),
        "the cause is {detail:?}"
    );
    ensure!(port_state(&lab)? == "waiting");
    ensure!(!host.reaches(GUEST));
    lab.counters_add_up()?;
    // It can be started again at once.
    lab.start_vm("guest")?.wait_ready(BOOT_LIMIT)?;
    host.ping(GUEST, false, 56)
}

#[test]
fn vswitchd_saves_what_runs_and_starts_it_again() -> Result<()> {
    let mut lab = Lab::start()?;
    let (host, mut console) = guest(&lab)?;
    console.run("echo kept >/tmp/kept")?;
    drop((host, console));
    lab.daemon.terminate()?;
    ensure!(
        lab.daemon.state_dir().join("vm/guest.saved").is_file(),
        "nothing was saved"
    );
    lab.daemon.start_again()?;
    lab.wait_vm("guest", "running")?;
    let mut console = lab.console("guest")?;
    ensure!(console.run("cat /tmp/kept")?.contains("kept"));
    lab.ctl("vm turn-off guest").map(drop)
}

/// The value of a line of `/proc/PID/task/TID/status`.
fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_default()
        .trim_start_matches(':')
        .trim()
        .to_owned()
}

#[test]
fn the_process_of_a_vm_has_no_rights() -> Result<()> {
    let lab = Lab::start()?;
    let (_host, _console) = guest(&lab)?;
    let tasks = PathBuf::from(format!("/proc/{}/task", pid(&lab)?));
    let mut threads = 0;
    for task in fs::read_dir(&tasks)? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        let name = field(&status, "Name");
        for (key, wanted) in [
            ("CapEff", "0000000000000000"),
            ("CapPrm", "0000000000000000"),
            ("NoNewPrivs", "1"),
            ("Seccomp", "2"),
        ] {
            let found = field(&status, key);
            ensure!(found == wanted, "thread {name}: {key} is {found}");
        }
        threads += 1;
    }
    ensure!(threads >= 3, "only {threads} threads");
    Ok(())
}

#[test]
fn the_console_says_what_it_has_said() -> Result<()> {
    let lab = Lab::start()?;
    let (_host, mut console) = guest(&lab)?;
    console.run("echo one two three")?;
    let log = || -> Result<String> {
        let program = vswitch_tests::paths::program("vswitchctl")?;
        let run_dir = lab.daemon.run_dir().display().to_string();
        let program = program.display().to_string();
        cmd::run(&[
            &program,
            "--run-dir",
            &run_dir,
            "vm",
            "console",
            "guest",
            "--log",
        ])
    };
    cmd::wait_until("the log to have it", Duration::from_secs(5), || {
        Ok(log()?.contains("one two three"))
    })?;
    lab.ctl("vm turn-off guest")?;
    ensure!(
        log()?.contains("guest ready"),
        "the log has gone with the VM"
    );
    Ok(())
}
