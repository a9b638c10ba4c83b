//! Virtual machines and vswitchd outlive each other, and their processes have no rights.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::{Duration, Instant},
};

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

/// A guest with as many processors as the default profile has at most, all of which run and share its interrupts.
fn four_processors(lab: &Lab) -> Result<(Station, Console)> {
    lab.ctl("network create inner --type internal")?;
    let create = |lab: &Lab, name: &str, adapters: &[&str], parameters: &str| {
        lab.create_vm(name, adapters, parameters)?;
        // Without the integration service, which would be asked in place of the button.
        lab.ctl(&format!("vm set {name} --cpus 4 --services none"))
            .map(drop)
    };
    let wide = ["vm", "create", "wide", "--cpus", "5"];
    lab.refused(&wide, &["1 to 4", "profile modern"])?;
    lab.ready_guest(create, HOST, GUEST)
}

/// The second serial port is a socket of its own, in both directions.
fn second_port(lab: &Lab, console: &mut Console) -> Result<()> {
    let path = lab.daemon.run_dir().join("vm/guest.com2.sock");
    let mut second = UnixStream::connect(&path).context("connecting with COM2")?;
    second.set_read_timeout(Some(STATE_LIMIT))?;
    console.run("stty -F /dev/ttyS1 raw -echo && echo by the second port >/dev/ttyS1")?;
    let mut heard = [0; 19];
    second.read_exact(&mut heard).context("reading COM2")?;
    ensure!(&heard == b"by the second port\n", "{heard:?}");
    console.run("head -n 1 /dev/ttyS1 >/tmp/heard & sleep 1")?;
    second.write_all(b"to the guest\n")?;
    cmd::wait_until("the guest to hear it", STATE_LIMIT, || {
        Ok(console.run("cat /tmp/heard")?.contains("to the guest"))
    })
}

#[test]
fn a_guest_of_four_processors_that_ignores_its_button_is_turned_off_in_time() -> Result<()> {
    let mut lab = Lab::start()?;
    let (mut host, mut console) = four_processors(&lab)?;
    ensure!(console.run("grep -c ^processor /proc/cpuinfo")?.trim() == "4");
    console.ping(HOST)?;
    for payload in [1, 1472] {
        host.ping(GUEST, false, payload)?;
    }
    second_port(&lab, &mut console)?;
    // Nobody reads what the button says then.
    console.run("killall head")?;
    lab.ctl("vm set guest --auto-stop shutdown,timeout=4 --auto-start nothing")?;
    drop((host, console));
    let begin = Instant::now();
    lab.daemon.terminate()?;
    let took = begin.elapsed();
    ensure!(took >= Duration::from_secs(4), "it had {took:?} only");
    let log = lab.daemon.log();
    ensure!(log.contains("the guest is not off after 4 s"), "{log}");
    lab.daemon.start_again()?;
    ensure!(lab.vm_state("guest")? == "off", "it is not off");
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
