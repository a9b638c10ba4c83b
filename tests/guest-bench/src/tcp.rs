//! One TCP connection by `smoltcp`, whose bytes follow a pattern.

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet, SocketStorage};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, Ipv4Address};

use crate::bus::Bus;
use crate::memory;
use crate::nic::Nic;
use crate::options::Options;
use crate::raw::Seconds;
use crate::serial::say;
use crate::wire::Wire;

/// Pages of what is sent and not acknowledged, and of what is received and not taken.
const BUFFER: usize = 256;
const PORT: u64 = 5001;

/// One end of a connection.
pub struct Tcp {
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    segment: u16,
    /// Bytes to send; 0 for the side that receives.
    total: u64,
    done: u64,
    /// Bytes that were not those of the pattern.
    wrong: u64,
    patterned: bool,
    origin: u64,
    start: u64,
    end: u64,
}

impl Tcp {
    /// `ip=ADDRESS peer=ADDRESS port=PORT bytes=BYTES`: connects, sends and closes. Without a peer it waits for somebody
    /// who does. `pattern=0`: whatever is in the buffer is sent, and nothing is compared.
    pub fn new(nic: &mut Nic, options: Options<'_>, now: u64) -> Tcp {
        let mut segment = 1460;
        let mut wire = Wire {
            nic,
            segment: &mut segment,
        };
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(wire.nic.mac)));
        config.random_seed = now;
        let mut interface = Interface::new(config, &mut wire, Instant::ZERO);
        let ip = address(options, "ip");
        interface.update_ip_addrs(|addresses| {
            // There is room for two.
            let _ = addresses.push(IpCidr::new(ip.into(), 24));
        });
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        let port = options.number("port", PORT) as u16;
        let total = options.number("bytes", 0);
        if options.text("peer").is_some() {
            let peer = (address(options, "peer"), port);
            let own = 49_152 + (now % 16_384) as u16;
            socket
                .connect(interface.context(), peer, own)
                .expect("a fresh socket");
        } else {
            socket.listen(port).expect("a fresh socket");
        }
        let storage = memory::take(1).cast::<SocketStorage<'_>>();
        // SAFETY: a page of our own, which holds one.
        let storage = unsafe {
            storage.write(SocketStorage::EMPTY);
            core::slice::from_raw_parts_mut(storage, 1)
        };
        let mut sockets = SocketSet::new(storage);
        let socket = sockets.add(socket);
        Tcp {
            interface,
            sockets,
            socket,
            segment,
            total,
            done: 0,
            wrong: 0,
            patterned: options.number("pattern", 1) != 0,
            origin: now,
            start: 0,
            end: 0,
        }
    }

    /// Sends and receives. Whether there was anything to do; `None` once both sides have closed.
    pub fn step(&mut self, bus: &Bus, nic: &mut Nic, now: u64) -> Option<bool> {
        let micros = u128::from(now - self.origin) * 1_000_000 / u128::from(bus.tsc_hz);
        let before = nic.handled();
        let instant = Instant::from_micros(micros as i64);
        self.poll(instant, nic);
        let moved = self.transfer(now);
        if moved {
            // What was put into the buffer, or the window that was opened, goes out.
            self.poll(instant, nic);
        }
        nic.finish_frame();
        nic.show(bus);
        let state = self.sockets.get::<Socket<'_>>(self.socket).state();
        let closed = matches!(state, State::Closed | State::TimeWait);
        if closed && self.end == 0 {
            self.end = now;
        }
        let ended = closed && nic.is_idle();
        (!ended).then_some(moved || nic.handled() != before)
    }

    fn poll(&mut self, now: Instant, nic: &mut Nic) {
        let mut wire = Wire {
            nic,
            segment: &mut self.segment,
        };
        self.interface.poll(now, &mut wire, &mut self.sockets);
    }

    /// Fills or empties the socket's buffer. Whether any byte was moved.
    fn transfer(&mut self, now: u64) -> bool {
        let socket = self.sockets.get_mut::<Socket<'_>>(self.socket);
        let (before, patterned) = (self.done, self.patterned);
        while self.done < self.total && socket.can_send() {
            let left = (self.total - self.done).min(usize::MAX as u64) as usize;
            let sent = socket.send(|room| {
                let len = room.len().min(left);
                if patterned {
                    fill(&mut room[..len], self.done);
                }
                (len, len)
            });
            self.done += sent.unwrap_or(0) as u64;
        }
        while self.total == 0 && socket.can_recv() {
            let taken = socket.recv(|bytes| {
                if patterned {
                    self.wrong += wrong(bytes, self.done);
                }
                (bytes.len(), bytes.len())
            });
            self.done += taken.unwrap_or(0) as u64;
        }
        let all_sent = self.total > 0 && self.done == self.total;
        let all_received = self.total == 0 && self.done > 0 && !socket.may_recv();
        if all_sent || all_received {
            socket.close();
        }
        if self.done == before {
            return false;
        }
        if before == 0 {
            self.start = now;
        }
        true
    }

    /// What it did.
    pub fn report(&self, bus: &Bus, index: usize) {
        let role = if self.total > 0 { "send" } else { "receive" };
        say!(
            "{{\"adapter\":{index},\"role\":\"tcp\",\"way\":\"{role}\",\"bytes\":{},\"wrong\":{},\"seconds\":{}}}",
            self.done,
            self.wrong,
            Seconds::between(bus, self.start, self.end)
        );
    }
}

fn address(options: Options<'_>, key: &str) -> Ipv4Address {
    let [a, b, c, d] = options.address(key, '.', 10);
    Ipv4Address::new(a, b, c, d)
}

fn buffer() -> SocketBuffer<'static> {
    let start = memory::take(BUFFER);
    // SAFETY: pages of our own.
    SocketBuffer::new(unsafe { core::slice::from_raw_parts_mut(start, BUFFER * memory::PAGE) })
}

/// Byte `at` of the pattern: of 64-bit little-endian numbers, each a large odd number more than the last.
fn pattern(at: u64) -> u64 {
    (at / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Fills with the pattern from its byte `at` on.
fn fill(bytes: &mut [u8], at: u64) {
    let head = (at.next_multiple_of(8) - at).min(bytes.len() as u64) as usize;
    let (head, rest) = bytes.split_at_mut(head);
    let skipped = (at % 8) as usize;
    head.copy_from_slice(&pattern(at).to_le_bytes()[skipped..][..head.len()]);
    let mut number = pattern(at.next_multiple_of(8));
    let (words, tail) = rest.as_chunks_mut::<8>();
    for word in words {
        *word = number.to_le_bytes();
        number = number.wrapping_add(pattern(8));
    }
    tail.copy_from_slice(&number.to_le_bytes()[..tail.len()]);
}

/// How many bytes are not those of the pattern from its byte `at` on.
fn wrong(bytes: &[u8], at: u64) -> u64 {
    let mut expected = [0; 4096];
    let (mut count, mut at) = (0, at);
    for part in bytes.chunks(expected.len()) {
        let expected = &mut expected[..part.len()];
        fill(expected, at);
        if part != expected {
            count += part.iter().zip(&*expected).filter(|(a, b)| a != b).count() as u64;
        }
        at += part.len() as u64;
    }
    count
}
