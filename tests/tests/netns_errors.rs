//! Bad input: refused with an error that names the value and what is allowed, and nothing half done.

use std::{fs, os::unix::fs::PermissionsExt, os::unix::net::UnixListener, path::PathBuf};

use anyhow::{Context, Result, ensure};
use vswitch_tests::{Lab, cmd, paths};

/// A lab with private network `lab` and TAP port `alice`.
fn lab() -> Result<Lab> {
    let lab = Lab::start()?;
    lab.ctl("network create lab --type private")?;
    lab.ctl("port add lab alice --tap t-alice")?;
    Ok(lab)
}

/// Splits a command line at white space, lets it be refused, and wants the words in the error.
fn refused(lab: &Lab, line: &str, words: &[&str]) -> Result<()> {
    lab.refused(&line.split_whitespace().collect::<Vec<_>>(), words)
        .map(drop)
}

#[test]
fn duplicate_names() -> Result<()> {
    let lab = lab()?;
    refused(&lab, "network create lab --type private", &["lab"])?;
    refused(&lab, "network create lab --type internal", &["lab"])?;
    refused(&lab, "port add lab alice --tap t-other", &["alice"])?;
    refused(&lab, "port add lab bob --tap t-alice", &["t-alice"])
}

#[test]
fn unknown_names() -> Result<()> {
    let lab = lab()?;
    refused(&lab, "port add nowhere bob --tap t-bob", &["nowhere"])?;
    refused(&lab, "port remove lab nobody", &["nobody"])?;
    refused(&lab, "network delete nowhere", &["nowhere"])?;
    refused(&lab, "stats lab nobody", &["nobody"])?;
    refused(
        &lab,
        "network create office --type external --uplink nosuch0",
        &["nosuch0"],
    )
}

#[test]
fn vlans_outside_1_to_4094() -> Result<()> {
    let lab = lab()?;
    for vlan in ["0", "4095", "4096", "x"] {
        refused(
            &lab,
            &format!("port set lab alice --vlan access:{vlan}"),
            &[vlan],
        )?;
        refused(
            &lab,
            &format!("port set lab alice --vlan trunk:5,{vlan}"),
            &[vlan],
        )?;
        refused(
            &lab,
            &format!("network create inner --type internal --vlan {vlan}"),
            &[vlan],
        )?;
    }
    let error = lab.refused(
        &["port", "set", "lab", "alice", "--vlan", "access:4095"],
        &["4095", "4094"],
    )?;
    ensure!(
        error.contains('1'),
        "the error does not say where the range begins: {error}"
    );
    Ok(())
}

#[test]
fn mtus_outside_68_to_9000() -> Result<()> {
    let lab = lab()?;
    for mtu in ["67", "65536", "9001"] {
        refused(
            &lab,
            &format!("network create other --type private --mtu {mtu}"),
            &[mtu, "68", "9000"],
        )?;
        refused(
            &lab,
            &format!("port set lab alice --mtu {mtu}"),
            &[mtu, "68", "9000"],
        )?;
    }
    Ok(())
}

#[test]
fn names_of_interfaces_that_no_interface_can_have() -> Result<()> {
    let lab = lab()?;
    refused(
        &lab,
        "port add lab bob --tap sixteen-letters-",
        &["sixteen-letters-", "15"],
    )?;
    refused(&lab, "port add lab bob --tap a/b", &["a/b"])?;
    refused(
        &lab,
        "network create inner --type internal --host-nic sixteen-letters-",
        &["sixteen-letters-", "15"],
    )
}

#[test]
fn a_socket_path_that_is_too_long() -> Result<()> {
    let lab = lab()?;
    let path = format!("/tmp/{}", "x".repeat(104));
    // sockaddr_un holds 107 bytes and a zero.
    refused(
        &lab,
        &format!("port add lab bob --vhost-user {path} --server"),
        &["xxxx", "107"],
    )
}

#[test]
fn a_socket_that_is_in_use() -> Result<()> {
    let lab = lab()?;
    let path = lab.daemon.socket("taken");
    let _listener = UnixListener::bind(&path)?;
    refused(
        &lab,
        &format!("port add lab bob --vhost-user {path} --server"),
        &[&path, "in use by another process", "or mode client"],
    )
}

#[test]
fn a_socket_in_a_folder_that_is_not_there() -> Result<()> {
    let lab = lab()?;
    refused(
        &lab,
        "port add lab bob --vhost-user /nonexistent/folder/x.sock --server",
        &["/nonexistent/folder"],
    )
}

#[test]
fn options_that_do_not_go_together() -> Result<()> {
    let lab = lab()?;
    refused(&lab, "network create office --type external", &["uplink"])?;
    refused(
        &lab,
        "network create other --type private --uplink eth1",
        &["uplink"],
    )?;
    refused(
        &lab,
        "network create other --type private --host-nic front0",
        &["host"],
    )?;
    refused(&lab, "network create other --type wireless", &["wireless"])
}

#[test]
fn mac_addresses_that_no_station_can_have() -> Result<()> {
    let lab = lab()?;
    refused(
        &lab,
        "port set lab alice --mac-guard 01:00:5e:00:00:01",
        &["01:00:5e:00:00:01"],
    )?;
    refused(
        &lab,
        "port set lab alice --mac-guard 02:00:00:00:00",
        &["02:00:00:00:00"],
    )?;
    refused(
        &lab,
        "fdb add lab ff:ff:ff:ff:ff:ff alice",
        &["ff:ff:ff:ff:ff:ff"],
    )
}

#[test]
fn a_daemon_that_is_not_there() -> Result<()> {
    let mut lab = lab()?;
    lab.daemon.terminate()?;
    let out = lab.daemon.ctl_output(&["status"])?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(
        out.status.code() == Some(1) && said.trim().lines().count() == 1,
        "{}: {said}",
        out.status
    );
    ensure!(
        said.contains("api.sock"),
        "the error does not name the socket: {said}"
    );
    Ok(())
}

/// Runs vswitchctl as a user without any rights, to whom the way to the socket is open. It must be refused with status 1
/// and one line, which is returned.
fn refused_to_nobody(lab: &Lab, args: &[&str]) -> Result<String> {
    let everybody = fs::Permissions::from_mode(0o755);
    let run_dir = lab.daemon.run_dir();
    let top = run_dir
        .parent()
        .context("a run directory without a parent")?;
    fs::set_permissions(top, everybody.clone())?;
    fs::set_permissions(&run_dir, everybody.clone())?;
    let program = top.join("vswitchctl");
    fs::copy(paths::program("vswitchctl")?, &program)?;
    fs::set_permissions(&program, everybody)?;
    let (program, run_dir) = (program.display().to_string(), run_dir.display().to_string());
    let nobody = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    let argv: Vec<&str> = nobody
        .into_iter()
        .chain([program.as_str(), "--run-dir", &run_dir])
        .chain(args.iter().copied())
        .collect();
    let out = cmd::output(&argv)?;
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure!(
        out.status.code() == Some(1) && said.trim().lines().count() == 1,
        "{}: {said}",
        out.status
    );
    Ok(said)
}

#[test]
fn a_caller_without_permission() -> Result<()> {
    let lab = lab()?;
    let said = refused_to_nobody(&lab, &["status"])?.to_lowercase();
    ensure!(
        said.contains("permi"),
        "the error does not speak of permission: {said}"
    );
    Ok(())
}

#[test]
fn a_caller_whom_only_the_mode_of_the_socket_lets_in() -> Result<()> {
    let lab = lab()?;
    let socket = lab.daemon.run_dir().join("api.sock");
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666))?;
    let before = lab.ctl("network list")?;
    for args in [
        &["status"][..],
        &["network", "create", "theirs", "--type", "private"],
        &["port", "remove", "lab", "alice"],
    ] {
        let said = refused_to_nobody(&lab, args)?;
        for word in ["user 65534", "allowed: root", "members of group"] {
            ensure!(said.contains(word), "{args:?}: no {word:?} in: {said}");
        }
    }
    ensure!(
        lab.ctl("network list")? == before,
        "a stranger changed something"
    );
    Ok(())
}

#[test]
fn a_database_of_a_newer_version() -> Result<()> {
    let mut lab = lab()?;
    lab.daemon.terminate()?;
    let database = database(&lab)?.display().to_string();
    let version = cmd::run(&["sqlite3", &database, "PRAGMA user_version"])?;
    cmd::run(&["sqlite3", &database, "PRAGMA user_version = 1000000"])?;
    let (code, said) = lab.daemon.start_refused()?;
    ensure!(code == Some(1), "ended with {code:?}: {said}");
    ensure!(
        said.contains("1000000"),
        "the error does not name the version: {said}"
    );
    // What is not understood is left as it is: with its own version it is as good as before.
    cmd::run(&[
        "sqlite3",
        &database,
        &format!("PRAGMA user_version = {version}"),
    ])?;
    lab.daemon.start_again()?;
    refused(&lab, "port add lab alice --tap t-other", &["alice"])
}

/// The file in the state directory that is an SQLite database.
fn database(lab: &Lab) -> Result<PathBuf> {
    for entry in fs::read_dir(lab.daemon.state_dir())? {
        let path = entry?.path();
        if path.is_file() && fs::read(&path)?.starts_with(b"SQLite format 3") {
            return Ok(path);
        }
    }
    anyhow::bail!("no database in {}", lab.daemon.state_dir().display())
}
