//! What a confined thread can still do, and what not. Works with and without privileges.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
#![allow(missing_docs)]

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::UdpSocket;
use std::os::unix::net::UnixStream;
use std::process::Command;

use hypervisor::sandbox::{Thread, confine};

/// Runs `act` in a thread of its own that has confined itself.
fn confined<R: Send + 'static>(kind: Thread, act: impl FnOnce() -> R + Send + 'static) -> R {
    let body = move || {
        confine(kind).unwrap();
        act()
    };
    std::thread::spawn(body).join().unwrap()
}

const KINDS: [Thread; 3] = [Thread::Vcpu, Thread::Service, Thread::Control];

#[test]
fn no_file_is_opened_and_no_program_run() {
    for kind in KINDS {
        let (open, create, run) = confined(kind, || {
            let open = File::open("/etc/hostname").err().map(|e| e.kind());
            let create = File::create("/tmp/escape").err().map(|e| e.kind());
            (open, create, Command::new("/bin/true").status().is_err())
        });
        assert_eq!(open, Some(ErrorKind::PermissionDenied), "{kind:?}");
        assert_eq!(create, Some(ErrorKind::PermissionDenied), "{kind:?}");
        assert!(run, "{kind:?} has run a program");
    }
    assert!(!std::path::Path::new("/tmp/escape").exists());
}

#[test]
fn no_network_is_reached() {
    for kind in KINDS {
        let result = confined(kind, || {
            UdpSocket::bind("127.0.0.1:0").err().map(|e| e.kind())
        });
        assert_eq!(result, Some(ErrorKind::PermissionDenied), "{kind:?}");
    }
}

#[test]
fn only_the_control_thread_makes_sockets_and_threads() {
    for kind in KINDS {
        let (socket, thread) = confined(kind, || {
            let thread = std::thread::Builder::new().spawn(|| ()).is_ok();
            let name = "/nonexistent/socket";
            let socket = UnixStream::connect(name).unwrap_err().kind();
            (socket, thread)
        });
        let control = kind == Thread::Control;
        assert_eq!(thread, control, "{kind:?}");
        assert_eq!(socket != ErrorKind::PermissionDenied, control, "{kind:?}");
    }
}

#[test]
fn no_capability_is_left() {
    // The other kinds may not even ask.
    let sets = confined(Thread::Control, || {
        rustix::thread::capabilities(None).unwrap()
    });
    assert!(sets.effective.is_empty() && sets.permitted.is_empty());
}

#[test]
fn what_is_open_stays_usable() {
    for kind in KINDS {
        let (mut near, mut far) = UnixStream::pair().unwrap();
        let read = confined(kind, move || {
            // Memory, locks, time and open descriptors.
            let bytes = vec![7_u8; 1 << 20];
            near.write_all(&bytes[..5]).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(1));
            std::sync::Mutex::new(bytes).lock().unwrap().len()
        });
        assert_eq!(read, 1 << 20);
        let mut got = [0; 5];
        far.read_exact(&mut got).unwrap();
        assert_eq!(got, [7; 5]);
    }
}
