//! What goes over the socket and what does not.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;

use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

use std::collections::BTreeMap;

use super::demand::*;
use super::message::*;
use super::*;
use crate::api::{AdapterKind, AdapterName, Service};

const LIMIT: Timespec = Timespec {
    tv_sec: 2,
    tv_nsec: 0,
};
const AT_ONCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 10_000_000,
};

fn legacy(index: usize) -> AdapterName {
    AdapterName::of(AdapterKind::Legacy).nth(index).unwrap()
}

fn configure() -> Configure {
    Configure {
        memory: 64 << 20,
        cpus: 2,
        cmdline: "console=ttyS0".into(),
        uuid: [7; 16],
        adapters: vec![AdapterConfig {
            name: legacy(0),
            mac: [2, 0, 0, 0, 0, 1],
            link: true,
            instance: [7; 16],
        }],
        hyperv: true,
        services: vec![Service::Shutdown, Service::TimeSync],
        files: vec![FileRole::Kernel, FileRole::Com1],
    }
}

fn event() -> std::os::fd::OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

fn send_bytes(to: &Connection, bytes: &[u8]) {
    let slices = [std::io::IoSlice::new(bytes)];
    sendmsg(
        to,
        &slices,
        &mut SendAncillaryBuffer::default(),
        SendFlags::NOSIGNAL,
    )
    .unwrap();
}

#[test]
fn messages_arrive_with_their_files_in_order() {
    let (a, b) = Connection::pair().unwrap();
    let (first, second) = (event(), event());
    let sent = ToVmm::Configure(configure());
    a.send(&sent, &[first.as_fd(), second.as_fd()], LIMIT)
        .unwrap();
    rustix::io::write(&second, &5u64.to_ne_bytes()).unwrap();
    let (received, fds) = b.receive::<ToVmm>(LIMIT).unwrap();
    assert_eq!(received, sent);
    let mut value = [0; 8];
    rustix::io::read(&fds[1], &mut value).unwrap();
    assert_eq!(u64::from_ne_bytes(value), 5);
    assert!(rustix::io::read(&fds[0], &mut value).is_err());
    let reply = FromVmm::Reply {
        id: 3,
        error: None,
        status: Some(Status {
            state: RunState::Paused,
            exits: [("pio".to_owned(), 4)].into(),
            drivers: vec![legacy(0)],
            services: vec![Service::Heartbeat],
            facts: [("OSName".to_owned(), "Linux \"x\"".to_owned())].into(),
        }),
    };
    b.send(&reply, &[], LIMIT).unwrap();
    assert_eq!(a.receive::<FromVmm>(LIMIT).unwrap().0, reply);
}

#[test]
fn a_peer_that_is_gone_or_silent_is_named() {
    let (a, b) = Connection::pair().unwrap();
    assert!(matches!(
        a.receive::<FromVmm>(AT_ONCE),
        Err(AttachError::Late)
    ));
    assert!(a.try_receive::<FromVmm>().unwrap().is_none());
    // A peer that reads nothing is not waited for.
    let full = loop {
        if let Err(error) = a.send(&ToVmm::Adopt {}, &[], AT_ONCE) {
            break error;
        }
    };
    assert!(matches!(full, AttachError::Late), "{full:?}");
    drop(b);
    assert!(matches!(
        a.receive::<FromVmm>(LIMIT),
        Err(AttachError::Closed)
    ));
    assert!(matches!(
        a.send(&ToVmm::Adopt {}, &[], LIMIT),
        Err(AttachError::Closed)
    ));
}

#[test]
fn what_is_no_message_is_refused() {
    for bytes in [
        &b"x"[..],
        b"{}",
        b"[]",
        b"\0",
        b"{\"hello\":{}}",
        b"{\"hello\":{\"version\":1,\"name\":\"a\",\"running\":false,\"x\":1}}",
        b"{\"hello\":{\"version\":-1,\"name\":\"a\",\"running\":false}}",
        b"{\"was_reset\":{}} {}",
        b"\"ended\"",
    ] {
        let (a, b) = Connection::pair().unwrap();
        send_bytes(&a, bytes);
        let shown = String::from_utf8_lossy(bytes);
        match b.try_receive::<FromVmm>() {
            Err(AttachError::Json(_)) => {}
            other => panic!("{shown}: {other:?}"),
        }
    }
    let (a, b) = Connection::pair().unwrap();
    send_bytes(&a, &vec![b' '; MAX_MESSAGE + 1]);
    assert!(matches!(
        b.try_receive::<FromVmm>(),
        Err(AttachError::TooLong)
    ));
    // An empty packet looks as the end does.
    send_bytes(&a, b"");
    assert!(matches!(
        b.try_receive::<FromVmm>(),
        Err(AttachError::Closed)
    ));
}

#[test]
fn deep_nesting_does_not_exhaust_the_stack() {
    let (a, b) = Connection::pair().unwrap();
    send_bytes(&a, &vec![b'['; MAX_MESSAGE]);
    assert!(matches!(
        b.try_receive::<FromVmm>(),
        Err(AttachError::Json(_))
    ));
}

fn why(message: &impl Checked, fds: usize) -> String {
    message.check(fds).unwrap_err().to_string()
}

#[test]
fn fields_out_of_bounds_are_refused_by_name() {
    assert!(ToVmm::Configure(configure()).check(2).is_ok());
    let with = |change: fn(&mut Configure)| {
        let mut configure = configure();
        change(&mut configure);
        ToVmm::Configure(configure)
    };
    assert_eq!(
        why(&with(|c| c.cpus = 65), 2),
        "number of processors is 65; allowed: 1 to 64"
    );
    assert!(why(&with(|c| c.cmdline = "x".repeat(2048)), 2).contains("command line is 2048"));
    assert!(why(&with(|c| c.files.push(FileRole::Kernel)), 3).contains("each once"));
    assert!(
        why(&with(|c| c.adapters.push(c.adapters[0].clone())), 2)
            .contains("adapter is legacy0; allowed: each once")
    );
    assert!(why(&with(|c| c.services.push(Service::Shutdown)), 2).contains("list of services"));
    assert!(why(&with(|_| {}), 1).contains("file descriptors is 1; allowed: 2"));
    let save = ToVmm::Command {
        id: 1,
        command: Command::Save,
    };
    assert!(save.check(1).is_ok() && save.check(0).is_err());
    let ready = |regions, adapters: &[AdapterName]| FromVmm::Ready {
        regions: vec![
            Region {
                guest: 0,
                len: 1,
                offset: 0
            };
            regions
        ],
        adapters: adapters.to_vec(),
        state: RunState::Ready,
    };
    let all: Vec<AdapterName> = AdapterName::all().collect();
    assert!(ready(2, &all).check(1 + 4 * 3 + 8).is_ok());
    assert!(why(&ready(9, &[]), 1).contains("number of regions is 9"));
    assert!(why(&ready(1, &[legacy(2), legacy(2)]), 7).contains("adapter is legacy2"));
    assert!(why(&ready(1, &[legacy(0)]), 1).contains("file descriptors is 1; allowed: 4"));
    let ended = |reason: String| FromVmm::Ended(Ended::Failed { reason });
    let long = "é".repeat(MAX_TEXT + 1);
    assert!(ended(long.clone()).check(0).is_err());
    assert!(ended(shortened(&long)).check(0).is_ok());
}

#[test]
fn files_that_were_not_asked_for_are_closed() {
    let (a, b) = Connection::pair().unwrap();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [writer.as_fd()];
    ancillary.push(rustix::net::SendAncillaryMessage::ScmRights(&fds));
    let bytes = serde_json::to_vec(&FromVmm::WasReset {}).unwrap();
    let slices = [std::io::IoSlice::new(&bytes)];
    sendmsg(&a, &slices, &mut ancillary, SendFlags::NOSIGNAL).unwrap();
    assert!(matches!(
        b.try_receive::<FromVmm>(),
        Err(AttachError::Invalid(_))
    ));
    drop(writer);
    // The last writer has gone: the end of the pipe is read.
    assert_eq!(rustix::io::read(&reader, &mut [0u8; 1]).unwrap(), 0);
}

#[test]
fn more_files_than_a_message_has_are_refused() {
    let (a, b) = Connection::pair().unwrap();
    let file = event();
    let many: Vec<BorrowedFd<'_>> = std::iter::repeat_n(file.as_fd(), MAX_FDS + 1).collect();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS + 1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(rustix::net::SendAncillaryMessage::ScmRights(&many));
    let bytes = serde_json::to_vec(&FromVmm::WasReset {}).unwrap();
    let slices = [std::io::IoSlice::new(&bytes)];
    sendmsg(&a, &slices, &mut ancillary, SendFlags::NOSIGNAL).unwrap();
    assert!(b.try_receive::<FromVmm>().is_err());
}

#[test]
fn only_the_owner_may_connect_and_the_peer_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("attach.sock");
    std::mem::forget(Listener::bind(&path).unwrap());
    // As after SIGKILL: the file is there.
    let listener = Listener::bind(&path).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert!(listener.accept().unwrap().is_none());
    let client = Connection::dial(&path).unwrap();
    let server = listener.accept().unwrap().unwrap();
    assert_eq!(server.peer_pid().unwrap(), std::process::id() as i32);
    client
        .send(
            &FromVmm::Hello {
                version: VERSION,
                name: "vm".into(),
                running: false,
            },
            &[],
            LIMIT,
        )
        .unwrap();
    assert!(server.receive::<FromVmm>(LIMIT).is_ok());
    drop(listener);
    assert!(!path.exists());
    assert!(Connection::dial(&path).is_err());
}

fn synthetic(index: usize) -> AdapterName {
    AdapterName::of(AdapterKind::Synthetic).nth(index).unwrap()
}

fn demand(demand: Demand) -> FromVmm {
    FromVmm::Demand {
        id: 1,
        adapter: synthetic(7),
        demand,
    }
}

fn range(offset: u32, len: u32, pages: Vec<u64>) -> PageRange {
    PageRange { offset, len, pages }
}

fn open(change: impl FnOnce(&mut PageRange, &mut Vec<Flag>, &mut u8)) -> FromVmm {
    let mut ring = range(0, 8192, vec![1, 2]);
    let mut flags = vec![Flag {
        address: 0x3200,
        bit: 2047,
    }];
    let mut channel = 7;
    change(&mut ring, &mut flags, &mut channel);
    demand(Demand::Open {
        channel,
        ring,
        downstream_page: 1,
        flags,
        resumed: false,
    })
}

/// Each message with so many descriptors is refused for its reason.
fn refused<const N: usize>(messages: [(FromVmm, usize, &str); N]) {
    for (message, fds, reason) in messages {
        let why = why(&message, fds);
        assert!(why.contains(reason), "{why}");
    }
}

#[test]
fn channels_are_not_opened_out_of_bounds() {
    assert!(open(|_, _, _| {}).check(1).is_ok());
    refused([
        (open(|_, _, _| {}), 0, "file descriptors is 0; allowed: 1"),
        (
            open(|_, _, channel| *channel = 8),
            1,
            "index of a channel is 8; allowed: 0 to 7",
        ),
        (
            open(|ring, _, _| ring.len = 0),
            1,
            "length of a range is 0; allowed: at least 1",
        ),
        (
            open(|ring, _, _| ring.offset = 4096),
            1,
            "offset in a page is 4096; allowed: below 4096",
        ),
        (
            open(|ring, _, _| ring.offset = 1),
            1,
            "number of pages is 2; allowed: 3",
        ),
        (
            open(|ring, _, _| ring.len = u32::MAX),
            1,
            "number of pages is 2; allowed: 1048576",
        ),
        (
            open(|ring, _, _| ring.pages[1] = 1 << 40),
            1,
            "number of a page is 1099511627776; allowed: below 2^40",
        ),
        (
            open(|ring, _, _| *ring = range(0, 4097 * 4096, vec![0; 4097])),
            1,
            "number of pages of rings is 4097; allowed: at most 4096",
        ),
        (
            open(|_, flags, _| flags[0].address += 8),
            1,
            "address of flags is 12808; allowed: a multiple of 256",
        ),
        (
            open(|_, flags, _| flags[0].bit = 2048),
            1,
            "number of a flag is 2048; allowed: below 2048",
        ),
        (
            open(|_, flags, _| *flags = vec![flags[0]; 3]),
            1,
            "number of flags is 3; allowed: at most 2",
        ),
    ]);
}

#[test]
fn demands_out_of_bounds_are_refused_by_name() {
    refused([
        (
            demand(Demand::Close { channel: 9 }),
            0,
            "index of a channel is 9",
        ),
        (
            demand(Demand::Add {
                gpadl: 1,
                range: range(0, 8191 * 4096, vec![0; 8191]),
            }),
            0,
            "number of pages is 8191; allowed: at most 8190",
        ),
        (
            FromVmm::Demand {
                id: 1,
                adapter: legacy(0),
                demand: Demand::Remove { gpadl: 1 },
            },
            0,
            "adapter is legacy0; allowed: a synthetic one",
        ),
        (
            FromVmm::Added { adapter: legacy(1) },
            1,
            "adapter is legacy1",
        ),
    ]);
}

#[test]
fn commands_are_for_the_kind_of_adapter_that_knows_them() {
    let checked = |command| ToVmm::Command { id: 1, command }.check(0);
    let link = |adapter| Command::Link { adapter, up: true };
    assert!(checked(link(legacy(0))).is_ok() && checked(link(synthetic(0))).is_err());
    let keep = |adapter, state: &str| Command::Keep {
        adapter,
        state: state.to_owned(),
    };
    assert!(checked(keep(synthetic(0), "{\"a\": 1}")).is_ok());
    assert!(checked(keep(synthetic(0), "\n")).is_err());
    assert!(checked(keep(legacy(0), "")).is_err());
    assert!(checked(keep(synthetic(0), &"x".repeat(MAX_STATE + 1))).is_err());
    let sub_channels = |count| Command::SubChannels {
        adapter: synthetic(0),
        count,
    };
    assert!(checked(sub_channels(7)).is_ok() && checked(sub_channels(8)).is_err());
    let remove = |adapter| Command::RemoveAdapter { adapter };
    assert!(checked(remove(synthetic(1))).is_ok() && checked(remove(legacy(1))).is_err());
}

#[test]
fn the_longest_messages_fit_a_packet() {
    let (a, b) = Connection::pair().unwrap();
    let last = (1 << 40) - 1;
    let add = demand(Demand::Add {
        gpadl: u32::MAX,
        range: range(0, 8190 * 4096, vec![last; MAX_PAGES]),
    });
    a.send(&add, &[], LIMIT).unwrap();
    assert_eq!(b.receive::<FromVmm>(LIMIT).unwrap().0, add);
    let open = demand(Demand::Open {
        channel: 0,
        ring: range(0, 4096 * 4096, vec![last; MAX_RING_PAGES]),
        downstream_page: u32::MAX,
        flags: vec![
            Flag {
                address: u64::MAX << 8,
                bit: 2047,
            };
            2
        ],
        resumed: true,
    });
    let event = event();
    a.send(&open, &[event.as_fd()], LIMIT).unwrap();
    assert_eq!(b.receive::<FromVmm>(LIMIT).unwrap().0, open);
    let restore = demand(Demand::Restore {
        state: "\"".repeat(MAX_STATE),
    });
    a.send(&restore, &[], LIMIT).unwrap();
    assert_eq!(b.receive::<FromVmm>(LIMIT).unwrap().0, restore);
    let status = FromVmm::Reply {
        id: u64::MAX,
        error: Some("\u{1}".repeat(MAX_TEXT)),
        status: Some(Status {
            state: RunState::Running,
            exits: BTreeMap::new(),
            drivers: AdapterName::all().collect(),
            services: Service::ALL.to_vec(),
            facts: (0..MAX_FACTS)
                .map(|n| (format!("{n:\u{1}>64}"), "\u{1}".repeat(MAX_FACT)))
                .collect(),
        }),
    };
    a.send(&status, &[], LIMIT).unwrap();
    assert_eq!(b.receive::<FromVmm>(LIMIT).unwrap().0, status);
}
