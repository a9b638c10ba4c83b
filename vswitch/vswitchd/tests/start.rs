//! How vswitchd starts: what it is told, what it refuses, and what it asks of the system.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "test support")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Starts vswitchd on state in `dir`; it must end with status 1. What it said.
fn refused(dir: &Path, set_up: impl FnOnce(&mut Command)) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vswitchd"));
    command
        .arg("--state-dir")
        .arg(dir.join("state"))
        .env_remove("VSWITCH_RUN_DIR")
        .stdin(Stdio::null());
    set_up(&mut command);
    let out = command.output().unwrap();
    let said = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(1), "{said}");
    said
}

#[test]
fn the_run_directory_may_come_from_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    // Too long for a socket, so that vswitchd names it and ends.
    let [from_environment, from_file] = ["e", "f"].map(|name| dir.path().join(name.repeat(110)));
    let config = dir.path().join("config.toml");
    std::fs::write(&config, format!("run_dir = '{}'", from_file.display())).unwrap();
    let named = |command: &mut Command| {
        command
            .env("VSWITCH_RUN_DIR", &from_environment)
            .arg("--config")
            .arg(&config);
    };
    let said = refused(dir.path(), named);
    assert!(said.contains(from_environment.to_str().unwrap()), "{said}");
    // As the option whose place it takes, which wins over it, it wins over the file.
    let option = dir.path().join("o".repeat(110));
    let said = refused(dir.path(), |command| {
        named(command);
        command.arg("--run-dir").arg(&option);
    });
    assert!(said.contains(option.to_str().unwrap()), "{said}");
}

#[test]
fn a_core_that_cannot_be_had_is_refused_with_those_that_can() {
    let dir = tempfile::tempdir().unwrap();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let mut lines = status.lines();
    let allowed = lines.find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let said = refused(dir.path(), |command| {
        command.arg("--run-dir").arg(dir.path().join("run"));
        command.args(["--cores", "1023"]);
    });
    let allowed = format!(
        "core 1023; allowed for this process: {}",
        allowed.unwrap().trim()
    );
    assert!(said.contains(&allowed), "{said}");
}

/// A vswitchd that is killed with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asks on a connection that is kept: the status and the body of the answer.
fn call(stream: &mut BufReader<UnixStream>, method: &str, path: &str, body: &str) -> (u16, String) {
    let length = body.len();
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.get_mut().write_all(request.as_bytes()).unwrap();
    let (mut status, mut length) = (None, 0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        let line = line.trim().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        match status {
            None => status = line.split(' ').nth(1).map(|code| code.parse().unwrap()),
            Some(status) if line.is_empty() => {
                let mut body = vec![0; length];
                stream.read_exact(&mut body).unwrap();
                return (status, String::from_utf8(body).unwrap());
            }
            Some(_) => {}
        }
    }
}

#[test]
fn the_limit_of_open_files_is_raised_and_named_when_it_is_reached() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let child = Command::new("prlimit")
        .args(["--nofile=64:160", env!("CARGO_BIN_EXE_vswitchd")])
        .arg("--state-dir")
        .arg(dir.path().join("state"))
        .arg("--run-dir")
        .arg(&run_dir)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let vswitchd = Running(child.unwrap());
    let socket = run_dir.join("api.sock");
    let stream = (0..200).find_map(|_| {
        std::thread::sleep(Duration::from_millis(100));
        UnixStream::connect(&socket).ok()
    });
    let stream = &mut BufReader::new(stream.unwrap());
    assert_eq!(call(stream, "GET", "/v1/status", "").0, 200);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", vswitchd.0.id())).unwrap();
    let mut limits = limits.lines();
    let files = limits.find_map(|line| line.strip_prefix("Max open files"));
    let files: Vec<_> = files.unwrap().split_whitespace().collect();
    assert_eq!(files[..2], ["160", "160"]);

    let network = r#"{"name":"lab","type":"private"}"#;
    assert_eq!(call(stream, "POST", "/v1/networks", network).0, 201);
    let add = |stream: &mut _, n| {
        let socket = run_dir.join(format!("p{n}.sock"));
        let body = format!(r#"{{"name":"p{n}","vhost_user":"{}"}}"#, socket.display());
        call(stream, "POST", "/v1/networks/lab/ports", &body)
    };
    let refused = (0..200).map(|n| (n, add(stream, n)));
    let (n, (status, said)) = refused
        .into_iter()
        .find(|(_, (status, _))| *status != 201)
        .unwrap();
    assert!(n > 10 && status == 500, "{n} {status} {said}");
    assert!(
        said.contains(&format!("port 'p{n}'")) && said.contains("Too many open files"),
        "{said}"
    );
    // Nothing of it is left, and when there is room again it is taken.
    let (_, ports) = call(stream, "GET", "/v1/networks/lab/ports", "");
    assert!(!ports.contains(&format!("\"p{n}\"")), "{ports}");
    for gone in 0..5 {
        let path = format!("/v1/networks/lab/ports/p{gone}");
        assert_eq!(call(stream, "DELETE", &path, "").0, 204);
    }
    assert_eq!(add(stream, n).0, 201);
}
