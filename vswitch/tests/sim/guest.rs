//! Guests of a simulation, and what a hostile one does between gather and deliver.

use std::any::Any;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use guestmem::{Memory, Span};
use offload::{Features, Request};
use vswitch::burst::Burst;
use vswitch::drops::DropReason;
use vswitch::port::{PortFault, Sides, TxSide};
use vswitch::ports::memory::{MemoryPort, Station};
use vswitch::ports::vhost::driver::{Guest as Driver, Layout, Setup};
use vswitch::ports::vhost::feature;
use vswitch::ports::vhost::message::Message;
use vswitch::ports::vhost::ring::Piece;
use vswitch::ports::vhost::session::{Offer, Session};

use super::frames::Sent;
use super::rng::Rng;

/// A frame as it was gathered.
pub struct Record {
    pub head: Vec<u8>,
    pub body: Vec<u8>,
    pub len: u32,
    pub request: Request,
    pub refused: Option<DropReason>,
}

/// One gathering: by which port, what, and whether the guest took its memory away then.
pub struct Gathered {
    pub port: usize,
    pub frames: Vec<Record>,
    pub gone: bool,
    /// There may be more that was not taken.
    pub full: bool,
    /// Nothing was scribbled on before it: what a driver wrote is what was gathered.
    pub honest: bool,
}

pub type Log = Arc<Mutex<Vec<Gathered>>>;

/// What the guest does right after the next gatherings.
#[derive(Default)]
pub struct Plot {
    pub scribble: bool,
    pub truncate: bool,
}

/// A transmit side whose guest interferes after each gathering, and which is written down.
pub struct Twisted {
    inner: Box<dyn TxSide>,
    port: usize,
    log: Log,
    plot: Arc<Mutex<Plot>>,
    /// Where the guest writes: buffers, and descriptors once all are taken.
    buffers: Vec<u64>,
    descriptors: Vec<u64>,
    file: Option<OwnedFd>,
    honest: bool,
    rng: Rng,
}

fn scribble(memory: &Memory, at: u64, rng: &mut Rng, len: usize) {
    if let Some(span) = memory.span(at, len as u32) {
        let _ = memory.write(span, &rng.bytes(len));
    }
}

fn read(memory: &Memory, spans: &[Span]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for span in spans {
        let mut part = vec![0; span.len() as usize];
        let _ = memory.read(*span, &mut part);
        bytes.extend(part);
    }
    bytes
}

impl TxSide for Twisted {
    fn memory(&self) -> &Memory {
        self.inner.memory()
    }

    fn gather(&mut self, burst: &mut Burst) {
        self.inner.gather(burst);
        let mut plot = self.plot.lock().unwrap();
        if burst.is_empty() {
            return;
        }
        let memory = self.inner.memory();
        let honest = self.honest;
        self.honest &= !plot.scribble;
        if plot.scribble {
            for &at in &self.buffers {
                scribble(memory, at, &mut self.rng, 64);
                scribble(memory, at + 64 * self.rng.below(24), &mut self.rng, 16);
            }
            if !burst.is_full() {
                for &at in &self.descriptors {
                    scribble(memory, at, &mut self.rng, 8);
                }
            }
        }
        let mut gone = memory.is_faulted();
        if plot.truncate
            && let Some(file) = &self.file
        {
            rustix::fs::ftruncate(file, 0).unwrap();
            (plot.truncate, gone) = (false, true);
        }
        let record = |frame: &vswitch::burst::Frame| Record {
            head: frame.head().to_vec(),
            body: if gone {
                vec![0; frame.len() as usize - frame.head().len()]
            } else {
                read(memory, burst.body(frame))
            },
            len: frame.len(),
            request: frame.request,
            refused: frame.refused,
        };
        let frames = burst.frames().iter().map(record).collect();
        self.log.lock().unwrap().push(Gathered {
            port: self.port,
            frames,
            gone,
            full: burst.is_full(),
            honest,
        });
    }

    fn complete(&mut self) -> bool {
        self.inner.complete()
    }

    fn arm(&mut self) -> bool {
        self.inner.arm()
    }

    fn disarm(&mut self) {
        self.inner.disarm();
    }

    fn wake_fds(&self, each: &mut dyn FnMut(BorrowedFd<'_>)) {
        self.inner.wake_fds(each);
    }

    fn fault(&self) -> Option<PortFault> {
        self.inner.fault()
    }
}

/// Room in a receive ring, as the guest knows it.
#[derive(Clone, Debug)]
pub struct Room {
    pub free: u64,
    buffer: u64,
    header: u64,
    mergeable: bool,
}

impl Room {
    /// Takes room for a frame of `len` bytes, if there is.
    pub fn take(&mut self, len: usize) -> bool {
        let buffers = (len as u64 + self.header).div_ceil(self.buffer);
        let fits = buffers <= self.free && (self.mergeable || buffers == 1);
        if fits {
            self.free -= buffers;
        }
        fits
    }
}

enum Kind {
    Memory(Station),
    Vhost(Box<(Driver, Session)>),
}

/// A guest, its end of a port.
pub struct Guest {
    kind: Kind,
    port: usize,
    log: Log,
    pub plot: Arc<Mutex<Plot>>,
    pub features: Features,
    pub room: Room,
    /// Longest frame that it can send.
    max_send: usize,
    depth: u64,
    indirect: bool,
    honest: bool,
    sides: Option<Sides>,
}

/// Something received: bytes, request, header length.
pub type Received = (Vec<u8>, Request, u16);

fn features(rng: &mut Rng) -> Features {
    let csum = rng.chance(70);
    let large = |rng: &mut Rng| csum && rng.chance(60);
    let (tso4, tso6) = (large(rng), large(rng));
    Features {
        csum,
        tso4,
        tso6,
        ecn: (tso4 || tso6) && rng.chance(50),
    }
}

impl Guest {
    pub fn new(rng: &mut Rng, port: usize, log: &Log) -> Guest {
        let features = features(rng);
        if rng.chance(40) {
            Guest::memory(rng, port, log, features)
        } else {
            Guest::vhost(rng, port, log, features)
        }
    }

    fn memory(rng: &mut Rng, port: usize, log: &Log, features: Features) -> Guest {
        let depth = rng.pick(&[4, 33, 64]);
        let buffer = rng.pick(&[1600, 9100, 66 * 1024]);
        let (sides, station) = MemoryPort {
            depth,
            buffer,
            features,
        }
        .open()
        .unwrap();
        Guest {
            kind: Kind::Memory(station),
            port,
            log: log.clone(),
            plot: Arc::default(),
            features,
            room: Room {
                free: depth.into(),
                buffer: buffer.into(),
                header: 0,
                mergeable: false,
            },
            max_send: buffer as usize,
            depth: depth.into(),
            indirect: false,
            honest: true,
            sides: Some(sides),
        }
    }

    fn vhost(rng: &mut Rng, port: usize, log: &Log, agreed: Features) -> Guest {
        let mut bits =
            feature::VERSION_1 | feature::PROTOCOL_FEATURES | feature::CSUM | feature::HOST_TSO4;
        bits |= feature::HOST_TSO6 | feature::HOST_ECN;
        for (bit, on) in [
            (feature::GUEST_CSUM, agreed.csum),
            (feature::GUEST_TSO4, agreed.tso4),
            (feature::GUEST_TSO6, agreed.tso6),
            (feature::GUEST_ECN, agreed.ecn),
            (feature::MRG_RXBUF, rng.chance(70)),
            (feature::INDIRECT_DESC, rng.chance(50)),
            (feature::EVENT_IDX, rng.chance(50)),
            (feature::IN_ORDER, rng.chance(30)),
            (feature::RING_PACKED, rng.chance(50)),
        ] {
            bits |= if on { bit } else { 0 };
        }
        let setup = Setup {
            features: bits,
            queue_size: rng.pick(&[8, 32, 128]),
            pairs: 1,
            buffer_len: rng.pick(&[1600, 2048, 9100, 66_000]),
            order: Vec::new(),
            regions: rng.pick(&[1, 1, 3]),
        };
        // The switch reads an indirect table where it lies in one region only.
        let indirect = bits & feature::INDIRECT_DESC != 0 && setup.regions == 1;
        let buffer = setup.buffer_len;
        let driver = Driver::new(setup).unwrap();
        let mut session = Session::new(Offer {
            queue_pairs: 1,
            mtu: 9000,
        });
        let sides = driver.start_in(&mut session).unwrap();
        Guest {
            kind: Kind::Vhost(Box::new((driver, session))),
            port,
            log: log.clone(),
            plot: Arc::default(),
            features: agreed,
            room: Room {
                free: 0,
                buffer: buffer.into(),
                header: 12,
                mergeable: bits & feature::MRG_RXBUF != 0,
            },
            max_send: buffer as usize - 12,
            depth: 0,
            indirect,
            honest: true,
            sides: Some(sides),
        }
    }

    /// The sides, to be attached.
    pub fn sides(&mut self, rng: &mut Rng) -> Sides {
        let Sides { tx, rx } = self.sides.take().unwrap();
        let (buffers, descriptors, file) = match &self.kind {
            Kind::Memory(_) => (
                (0..self.depth).map(|i| i * self.room.buffer).collect(),
                Vec::new(),
                None,
            ),
            Kind::Vhost(both) => {
                let ring = &both.0.rings[1];
                let table = ring.addr().table;
                let size = u64::from(both.0.setup().queue_size);
                let descriptors = (0..size).map(|i| table + 16 * i).collect();
                (
                    ring.buffers().collect(),
                    descriptors,
                    both.0.memory_fd().try_clone().ok(),
                )
            }
        };
        let (log, plot) = (self.log.clone(), self.plot.clone());
        let (honest, rng) = (self.honest, Rng::new(rng.next()));
        let tx = Twisted {
            inner: tx,
            port: self.port,
            log,
            plot,
            buffers,
            descriptors,
            file,
            honest,
            rng,
        };
        Sides {
            tx: Box::new(tx),
            rx,
        }
    }

    /// Takes the sides back. `change` has the memory table set again, as for a guest that plugs memory.
    pub fn take_back(&mut self, sides: Sides, change: bool) {
        let twisted = (sides.tx as Box<dyn Any>).downcast::<Twisted>().unwrap();
        self.honest = twisted.honest;
        let tx = twisted.inner;
        let sides = Sides { tx, rx: sides.rx };
        self.sides = match &mut self.kind {
            Kind::Memory(_) => Some(sides),
            Kind::Vhost(both) => {
                let (driver, session) = &mut **both;
                session.take_back(sides);
                if change {
                    session
                        .handle(Message::SetMemTable(driver.mem_table().unwrap()))
                        .unwrap();
                }
                session.start().unwrap()
            }
        };
    }

    /// Queues a frame; false if it has no room or cannot send such.
    pub fn send(&mut self, rng: &mut Rng, sent: &Sent) -> bool {
        if sent.frame.len() > self.max_send {
            return false;
        }
        match &mut self.kind {
            Kind::Memory(station) => station.send_with(&sent.frame, sent.request),
            Kind::Vhost(both) => {
                let layout = Layout {
                    cuts: cuts(rng),
                    indirect: self.indirect && rng.chance(50),
                };
                let header = sent.request.to_virtio(0);
                both.0
                    .send(0, &header, &sent.frame, &layout)
                    .unwrap_or(false)
            }
        }
    }

    /// Shows the switch what was queued; without a `kick` the notification is lost.
    pub fn publish(&mut self, kick: bool) {
        if let Kind::Vhost(both) = &mut self.kind {
            let _ = if kick {
                both.0.publish(1).map(drop)
            } else {
                both.0.rings[1].ring.publish().map(drop).map_err(Into::into)
            };
        }
    }

    /// Gives the switch up to `count` receive buffers.
    pub fn post(&mut self, rng: &mut Rng, count: u64) {
        let Kind::Vhost(both) = &mut self.kind else {
            return;
        };
        let len = both.0.setup().buffer_len;
        for _ in 0..count {
            // A frame is written in at most 72 pieces, so small buffers that are merged come in one.
            let whole = self.room.mergeable && len < 9000;
            let mut cuts = if whole { Vec::new() } else { cuts(rng) };
            cuts.truncate(8);
            let layout = Layout {
                cuts,
                indirect: self.indirect && rng.chance(50),
            };
            if !both.0.post_receive(0, len, &layout).unwrap_or(false) {
                break;
            }
            self.room.free += 1;
        }
        let _ = both.0.publish(0);
    }

    pub fn receive(&mut self) -> Option<Received> {
        match &mut self.kind {
            Kind::Memory(station) => {
                let received = station.receive()?;
                self.room.free += 1;
                Some((
                    received.frame,
                    received.meta.request,
                    received.meta.header_len,
                ))
            }
            Kind::Vhost(both) => {
                let received = both.0.receive(0).ok()??;
                let request = Request::from_virtio(&received.header).unwrap_or_default();
                Some((received.frame, request, received.header.hdr_len))
            }
        }
    }

    /// A kick without a reason.
    pub fn kick(&mut self) {
        if let Kind::Vhost(both) = &self.kind {
            let _ = rustix::io::write(both.0.rings[1].kick(), &1u64.to_ne_bytes());
        }
    }

    pub fn is_vhost(&self) -> bool {
        matches!(self.kind, Kind::Vhost(_))
    }

    /// Breaks the rules of a ring. True if the switch is sure to notice at the next gathering.
    pub fn lie(&mut self, rng: &mut Rng) -> bool {
        let Kind::Vhost(both) = &mut self.kind else {
            return false;
        };
        let driver = &mut both.0;
        let index = rng.below(2) as usize;
        let packed = driver.setup().features & feature::RING_PACKED != 0;
        let memory = driver.memory().clone();
        let ring = &mut driver.rings[index];
        let addr = ring.addr();
        match rng.below(4) {
            0 if !packed => {
                let window = memory.window(addr.avail + 2, 2).unwrap();
                let Ok(old) = window.load_u16(0, Ordering::Relaxed) else {
                    return false;
                };
                let new = old.wrapping_add(rng.range(300, 60_000) as u16);
                window.store_u16(0, new, Ordering::Relaxed).is_ok() && index == 1
            }
            1 => {
                let piece = Piece {
                    addr: rng.pick(&[0, 1 << 45, u64::MAX - 10]),
                    len: 100,
                    writable: index == 0,
                };
                let added = matches!(ring.ring.add(&[piece], None), Ok(Some(_)));
                let published = driver.publish(index).is_ok();
                added && published && index == 1
            }
            2 if !packed => {
                // A chain whose second descriptor is its first.
                let piece = Piece {
                    addr: ring.buffers().next().unwrap(),
                    len: 100,
                    writable: index == 0,
                };
                let Ok(Some(head)) = ring.ring.add(&[piece], None) else {
                    return false;
                };
                let window = memory
                    .window(addr.table + 16 * u64::from(head) + 12, 4)
                    .unwrap();
                let _ = window.store_u16(0, 1, Ordering::Relaxed);
                let _ = window.store_u16(2, head, Ordering::Relaxed);
                driver.publish(index).is_ok() && index == 1
            }
            _ => {
                let size = u64::from(driver.setup().queue_size);
                for _ in 0..rng.range(1, 8) {
                    scribble(&memory, addr.table + 4 * rng.below(4 * size), rng, 4);
                    scribble(&memory, addr.avail + 2 * rng.below(size), rng, 2);
                }
                false
            }
        }
    }
}

fn cuts(rng: &mut Rng) -> Vec<u32> {
    match rng.below(20) {
        0..9 => Vec::new(),
        9..12 => vec![12],
        12..15 => vec![12, 14, 20],
        15..18 => (0..rng.range(1, 4))
            .map(|_| rng.range(1, 700) as u32)
            .collect(),
        18 => vec![5, 3, 4, 1, 1, 1, 128],
        _ => vec![1; rng.pick(&[3, 90])],
    }
}
