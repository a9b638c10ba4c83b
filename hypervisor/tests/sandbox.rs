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
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
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
fn only_the_control_thread_makes_threads() {
    for kind in KINDS {
        let thread = confined(kind, || std::thread::Builder::new().spawn(|| ()).is_ok());
        assert_eq!(thread, kind == Thread::Control, "{kind:?}");
    }
}

/// What listens on this host would let the user of this process in, who may be root.
#[test]
fn nobody_who_listens_on_this_host_is_reached() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    let by_path = UnixListener::bind(&path).unwrap();
    let name = format!("vswitch-sandbox-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let by_name = UnixListener::bind_addr(&address).unwrap();
    let listeners = [by_path, by_name];
    for listener in &listeners {
        listener.set_nonblocking(true).unwrap();
    }
    // Both can be reached, as long as nothing is confined.
    drop(UnixStream::connect(&path).unwrap());
    drop(UnixStream::connect_addr(&address).unwrap());
    for listener in &listeners {
        listener.accept().unwrap();
    }
    for kind in KINDS {
        let (path, address) = (path.clone(), address.clone());
        // A socket from before the thread was confined is of no use either.
        let domain = rustix::net::AddressFamily::UNIX;
        let made = rustix::net::socket(domain, rustix::net::SocketType::STREAM, None).unwrap();
        let refused = confined(kind, move || {
            let to = rustix::net::SocketAddrUnix::new(&path).unwrap();
            [
                UnixStream::connect(&path).unwrap_err().kind(),
                UnixStream::connect_addr(&address).unwrap_err().kind(),
                UnixDatagram::unbound().unwrap_err().kind(),
                UnixStream::pair().unwrap_err().kind(),
                rustix::net::connect(&made, &to).unwrap_err().kind(),
            ]
        });
        assert_eq!(refused, [ErrorKind::PermissionDenied; 5], "{kind:?}");
        for listener in &listeners {
            let reached = listener.accept().map(drop).map_err(|error| error.kind());
            assert_eq!(reached, Err(ErrorKind::WouldBlock), "{kind:?}");
        }
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
