//! Network namespaces with real kernel stacks. Needs root and `ip` (package iproute2).
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses its part of these helpers"
)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test support"
)]

use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace without IPv6 autoconfiguration noise, deleted on drop.
pub struct Netns {
    pub name: String,
}

impl Netns {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "hostif-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        run("ip", &["netns", "add", &name]);
        let netns = Self { name };
        netns.run("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0");
        netns.run(
            "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1",
        );
        netns.run("ip link set lo up");
        netns
    }

    /// Two namespaces joined by a veth pair, `va` in the first and `vb` in the second, with `queues` queues each.
    pub fn pair(queues: u32, mtu: u32) -> (Self, Self) {
        let (a, b) = (Self::new(), Self::new());
        a.run(&format!(
            "ip link add name va mtu {mtu} numtxqueues {queues} numrxqueues {queues} address 02:00:00:00:00:0a type veth \
             peer name vb mtu {mtu} netns {} numtxqueues {queues} numrxqueues {queues} address 02:00:00:00:00:0b",
            b.name
        ));
        a.run("ip link set va up");
        b.run("ip link set vb up");
        (a, b)
    }

    /// Runs a command in the namespace; gives its output.
    pub fn run(&self, command: &str) -> String {
        let mut args = vec!["netns", "exec", &self.name];
        args.extend(command.split_whitespace());
        run("ip", &args)
    }

    /// Runs `body` on a thread that lives in the namespace.
    pub fn enter<R: Send>(&self, body: impl FnOnce() -> R + Send) -> R {
        std::thread::scope(|scope| match scope.spawn(|| self.here(body)).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Moves the calling thread into the namespace for good.
    pub fn here<R>(&self, body: impl FnOnce() -> R) -> R {
        let file = File::open(format!("/run/netns/{}", self.name)).expect("namespace");
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("setns needs root");
        body()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
    }
}

pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {args:?} (tests need root): {stderr}"
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Calls `poll` until it gives something, for at most five seconds.
pub fn wait_for<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(Instant::now() < end, "no {what} within 5 s");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// An Ethernet frame with an IPv4 UDP datagram, checksums filled in.
pub fn udp_frame(
    dst: [u8; 6],
    src: [u8; 6],
    addresses: ([u8; 4], [u8; 4]),
    ports: (u16, u16),
    payload: &[u8],
) -> Vec<u8> {
    let mut udp = Vec::new();
    udp.extend(ports.0.to_be_bytes());
    udp.extend(ports.1.to_be_bytes());
    udp.extend((payload.len() as u16 + 8).to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    let mut pseudo = [addresses.0, addresses.1].concat();
    pseudo.extend([0, 17]);
    pseudo.extend((udp.len() as u16).to_be_bytes());
    pseudo.extend(&udp);
    let sum = checksum(&pseudo);
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    let mut ip = vec![0x45, 0];
    ip.extend((udp.len() as u16 + 20).to_be_bytes());
    ip.extend([0, 1, 0, 0, 64, 17, 0, 0]);
    ip.extend(addresses.0);
    ip.extend(addresses.1);
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    [&dst[..], &src[..], &[8, 0], &ip, &udp].concat()
}

/// The Internet checksum (RFC 1071).
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|c| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0)))
        .sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Whether the transport checksum of an untagged IPv4 frame is right.
pub fn transport_checksum_ok(frame: &[u8]) -> bool {
    let ip = &frame[14..14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]))];
    let header = usize::from(ip[0] & 15) * 4;
    let mut pseudo = ip[12..20].to_vec();
    pseudo.extend([0, ip[9]]);
    pseudo.extend(((ip.len() - header) as u16).to_be_bytes());
    pseudo.extend(&ip[header..]);
    checksum(&pseudo) == 0
}
