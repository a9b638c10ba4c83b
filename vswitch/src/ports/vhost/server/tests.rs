use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use super::*;
use crate::burst::Burst;
use crate::deliver::Report;
use crate::port::Sides;
use crate::ports::vhost::driver::{Frontend, FrontendError, Guest, Layout, Setup};
use crate::ports::vhost::feature;
use crate::ports::vhost::message::{Message, RegionKey, VringState};
use crate::ports::vhost::tests::{BASE, frame, offer, pass};
use offload::VirtioNetHdr;

/// A switch of one port that sends every frame back to it.
struct Echo {
    sides: Mutex<Option<Sides>>,
    fault: OwnedFd,
    attached: AtomicUsize,
    stop: AtomicBool,
}

impl Echo {
    fn new() -> Arc<Echo> {
        let fault = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
        Arc::new(Echo {
            sides: Mutex::default(),
            fault,
            attached: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        })
    }

    /// One turn. How many frames it took.
    fn turn(&self, burst: &mut Burst) -> usize {
        let mut sides = self.sides.lock().unwrap();
        let Some(Sides { tx, rx }) = sides.as_mut() else {
            return 0;
        };
        let taken = pass(&mut **tx, &mut **rx, burst, &mut Report::default());
        if tx.fault().is_some() || rx.fault().is_some() {
            notify::signal(&self.fault);
        }
        taken
    }
}

impl PortControl for Echo {
    fn attach(&self, sides: Sides) -> Option<Sides> {
        notify::drain(self.fault.as_fd());
        self.attached.fetch_add(1, Ordering::SeqCst);
        self.sides.lock().unwrap().replace(sides)
    }

    fn detach(&self) -> Option<Sides> {
        self.sides.lock().unwrap().take()
    }

    fn fault(&self) -> Option<PortFault> {
        None
    }

    fn fault_fd(&self) -> BorrowedFd<'_> {
        self.fault.as_fd()
    }
}

fn config(path: &Path, mode: Mode) -> Config {
    Config {
        path: path.to_owned(),
        mode,
        offer: offer(2),
    }
}

/// Waits until `done` says so.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "waited in vain: {what}"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Sends a frame and waits until the echo has brought it back.
fn echo(guest: &mut Guest, control: &Echo, seed: u32) {
    assert!(guest.post_receive(0, 2048, &Layout::default()).unwrap());
    guest.publish(0).unwrap();
    assert!(
        guest
            .send(
                0,
                &VirtioNetHdr::default(),
                &frame(seed, 200),
                &Layout::default()
            )
            .unwrap()
    );
    guest.publish(1).unwrap();
    let mut burst = Burst::new();
    until("the echo of a frame", || {
        control.turn(&mut burst);
        guest
            .receive(0)
            .unwrap()
            .inspect(|received| assert_eq!(received.frame, frame(seed, 200)))
            .is_some()
    });
}

fn fresh(features: u64) -> Guest {
    Guest::new(Setup {
        features: BASE | features,
        ..Setup::default()
    })
    .unwrap()
}

#[test]
fn a_server_serves_one_peer_after_another() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("port");
    let control = Echo::new();
    let port = VhostPort::start(config(&path, Mode::Server), control.clone()).unwrap();
    for (round, features) in [0, feature::RING_PACKED, feature::EVENT_IDX]
        .into_iter()
        .enumerate()
    {
        let mut guest = fresh(features);
        let frontend = Frontend::connect(&path).unwrap();
        frontend.handshake(&guest).unwrap();
        for seed in 0..3 {
            echo(&mut guest, &control, seed);
        }
        let status = port.status();
        assert_eq!(
            (status.running, status.rings, status.connections),
            (true, 2, round as u64 + 1)
        );
        assert_eq!(status.features, BASE | features);
        // Another front-end is turned away, and the first one does not notice.
        let stranger = Frontend::connect(&path).unwrap();
        assert!(matches!(
            stranger.ask(&Message::GetFeatures),
            Err(FrontendError::Socket(_))
        ));
        echo(&mut guest, &control, 9);
        drop(frontend);
        until("the peer to be gone", || !port.status().connected);
        assert!(control.sides.lock().unwrap().is_none());
        assert_eq!(
            port.status().last_error.as_deref(),
            Some("the peer closed the connection")
        );
    }
    port.stop();
    assert!(!path.exists());
}

#[test]
fn a_client_connects_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("port");
    let control = Echo::new();
    let port = VhostPort::start(config(&path, Mode::Client), control.clone()).unwrap();
    until("an attempt", || port.status().last_error.is_some());
    let mut guest = fresh(0);
    for round in 0..3 {
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        // One that dies within the handshake is no connection.
        let (stream, _) = listener.accept().unwrap();
        Frontend::new(stream).ask(&Message::GetFeatures).unwrap();
        let frontend = Frontend::new(listener.accept().unwrap().0);
        // The rings are as the last connection left them.
        frontend.handshake(&guest).unwrap();
        echo(&mut guest, &control, round);
        drop((frontend, listener));
        std::fs::remove_file(&path).unwrap();
        until("the peer to be gone", || !port.status().running);
    }
    port.stop();
}

/// A guest that sends numbered frames and gets them back.
struct Traffic {
    guest: Guest,
    sent: u32,
    received: u32,
}

impl Traffic {
    fn send(&mut self) {
        while self
            .guest
            .post_receive(0, 2048, &Layout::default())
            .unwrap()
        {}
        self.guest.publish(0).unwrap();
        let plain = VirtioNetHdr::default();
        while self.sent < self.received + 100
            && self
                .guest
                .send(0, &plain, &frame(self.sent, 100), &Layout::default())
                .unwrap()
        {
            self.sent += 1;
        }
        self.guest.publish(1).unwrap();
    }

    fn receive(&mut self) {
        while let Some(got) = self.guest.receive(0).unwrap() {
            assert_eq!(
                got.frame,
                frame(self.received, 100),
                "frame {}",
                self.received
            );
            self.received += 1;
        }
    }
}

/// Change number `round` of memory or rings.
fn change(frontend: &Frontend, guest: &Guest, round: u64) {
    match round % 3 {
        0 => frontend
            .tell(&Message::SetMemTable(guest.mem_table().unwrap()))
            .unwrap(),
        // A region of no use to the rings comes and goes.
        1 => {
            let fd = guest.memory_fd().try_clone().unwrap();
            let (guest_addr, user_addr, len) = (0x4000_0000, 0x5000_0000, 4096);
            let spec = guestmem::RegionSpec {
                guest_addr,
                user_addr,
                len,
                fd,
                fd_offset: 0,
            };
            frontend.tell(&Message::AddMemReg(spec)).unwrap();
            frontend
                .tell(&Message::RemMemReg(RegionKey {
                    guest_addr,
                    user_addr,
                    len,
                }))
                .unwrap();
        }
        _ => {
            for num in [0, 1] {
                frontend
                    .tell(&Message::SetVringEnable(VringState { index: 1, num }))
                    .unwrap();
            }
        }
    }
}

#[test]
fn memory_changes_under_traffic() {
    for packed in [0, feature::RING_PACKED] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("port");
        let control = Echo::new();
        let port = VhostPort::start(config(&path, Mode::Server), control.clone()).unwrap();
        let mut traffic = Traffic {
            guest: fresh(packed),
            sent: 0,
            received: 0,
        };
        let frontend = Frontend::connect(&path).unwrap();
        frontend.handshake(&traffic.guest).unwrap();
        let worker = std::thread::spawn({
            let control = Arc::clone(&control);
            move || {
                let mut burst = Burst::new();
                while !control.stop.load(Ordering::SeqCst) {
                    control.turn(&mut burst);
                }
            }
        });
        for round in 0..60u64 {
            change(&frontend, &traffic.guest, round);
            let before = traffic.received;
            until("frames after a change", || {
                traffic.send();
                traffic.receive();
                traffic.received > before
            });
        }
        until("the last frames", || {
            traffic.receive();
            traffic.received == traffic.sent
        });
        assert!(control.attached.load(Ordering::SeqCst) > 60);
        control.stop.store(true, Ordering::SeqCst);
        worker.join().unwrap();
        assert_eq!(port.status().fault, None);
    }
}

#[test]
fn bad_peers_are_dropped_and_told() {
    use std::io::Write as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("port");
    let port = VhostPort::start(config(&path, Mode::Server), Echo::new()).unwrap();
    let last_error = |expected: &str| {
        until(expected, || {
            port.status()
                .last_error
                .is_some_and(|error| error.contains(expected))
        });
    };
    let frontend = Frontend::connect(&path).unwrap();
    (&mut frontend.stream()).write_all(&[0xff; 12]).unwrap();
    last_error("header flags 0xffffffff");
    let frontend = Frontend::connect(&path).unwrap();
    (&mut frontend.stream()).write_all(&[1, 0, 0]).unwrap();
    drop(frontend);
    last_error("within a message");
    // With acknowledgements, a refusal is said before the connection ends.
    let frontend = Frontend::connect(&path).unwrap();
    frontend
        .send(
            &Message::SetProtocolFeatures(crate::ports::vhost::protocol::REPLY_ACK),
            0,
        )
        .unwrap();
    let refused = frontend.tell(&Message::SetVringNum(VringState { index: 77, num: 8 }));
    assert!(matches!(refused, Err(FrontendError::Refused(_))));
    last_error("ring 77: the port has 4");
}

#[test]
fn a_fault_takes_the_port_out_and_a_new_peer_brings_it_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("port");
    let control = Echo::new();
    let port = VhostPort::start(config(&path, Mode::Server), control.clone()).unwrap();
    let guest = fresh(0);
    let frontend = Frontend::connect(&path).unwrap();
    frontend.handshake(&guest).unwrap();
    let avail = guest
        .memory()
        .window(guest.rings[1].addr().avail, 4)
        .unwrap();
    avail.store_u16(2, 5000, Ordering::Release).unwrap();
    let mut burst = Burst::new();
    until("the fault", || {
        control.turn(&mut burst);
        port.status().fault
            == Some(PortFault {
                what: "available index",
                value: 5000,
            })
    });
    assert!(!port.status().running);
    drop(frontend);
    until("the peer to be gone", || !port.status().connected);
    let mut guest = fresh(0);
    let frontend = Frontend::connect(&path).unwrap();
    frontend.handshake(&guest).unwrap();
    echo(&mut guest, &control, 1);
    drop(frontend);
}

#[test]
fn link_down_ends_the_connection_until_it_is_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("port");
    let control = Echo::new();
    let port = VhostPort::start(config(&path, Mode::Server), control.clone()).unwrap();
    let mut guest = fresh(0);
    let frontend = Frontend::connect(&path).unwrap();
    frontend.handshake(&guest).unwrap();
    port.set_link(false);
    until("the socket to go", || !path.exists());
    assert!(matches!(
        frontend.ask(&Message::GetFeatures),
        Err(FrontendError::Socket(_))
    ));
    assert!(!port.status().connected);
    port.set_link(true);
    until("the socket to come", || path.exists());
    let frontend = Frontend::connect(&path).unwrap();
    frontend.handshake(&guest).unwrap();
    echo(&mut guest, &control, 1);
    drop(frontend);
}

#[test]
fn the_mtu_of_a_guest_is_held_against_that_of_the_port() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("port");
    let port = VhostPort::start(config(&path, Mode::Server), Echo::new()).unwrap();
    for (of_port, of_guest, allowed) in
        [(9000, 9000, true), (1500, 9000, false), (1500, 1500, true)]
    {
        port.set_mtu(of_port);
        let frontend = Frontend::connect(&path).unwrap();
        let bits = crate::ports::vhost::protocol::REPLY_ACK;
        frontend
            .send(&Message::SetProtocolFeatures(bits), 0)
            .unwrap();
        assert_eq!(
            frontend.tell(&Message::NetSetMtu(of_guest)).is_ok(),
            allowed
        );
        if allowed {
            assert_eq!(port.status().guest_mtu.map(u64::from), Some(of_guest));
        }
        drop(frontend);
        until("the peer to be gone", || !port.status().connected);
    }
}

#[test]
fn refuses_to_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("port");
    let start = |config| VhostPort::start(config, Echo::new()).map(drop);
    let long = dir.path().join("x".repeat(108));
    for mode in [Mode::Server, Mode::Client] {
        assert!(matches!(
            start(config(&long, mode)),
            Err(StartError::Socket(SocketError::Path(_)))
        ));
        for pairs in [0, 129] {
            let bad = Config {
                offer: offer(pairs),
                ..config(&path, mode)
            };
            assert!(matches!(start(bad), Err(StartError::Queues(_))));
        }
    }
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert!(matches!(
        start(config(&path, Mode::Server)),
        Err(StartError::Socket(SocketError::InUse(_)))
    ));
}
