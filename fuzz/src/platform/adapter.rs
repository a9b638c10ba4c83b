//! A legacy adapter as the monitor has it, in the last slot for adapters that the PC has, and a port that uses its rings.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use hypervisor::chipset::i440fx::HostBridge;
use hypervisor::device::{Effects, Space};
use hypervisor::pc::Pc;
use hypervisor::pci::{Address, Function};
use offload::Request;
use offload::request::validate;
use vnic_legacy::page::SharedPage;
use vswitch::burst::Burst;
use vswitch::deliver::{FrameMeta, Job, Quiet, Report};
use vswitch::mac::Mac;
use vswitch::port::Sides;
use vswitch::ports::memory::{MemoryPort, Station};
use vswitch::vlan::VlanMode;

use super::Board;
use crate::input::Input;
use crate::legacy::sizes;

#[allow(
    dead_code,
    reason = "the monitor's file, of which not all is used here"
)]
#[path = "../../../hypervisor/vswitch-vmm/src/nic.rs"]
mod nic;

const OWN: Mac = Mac([0, 0x15, 0x5d, 1, 2, 3]);
/// Which adapter of the PC it is.
pub(super) const INDEX: u8 = 3;
/// Where a driver puts its registers, and its lists, of so many descriptors each.
const PORTS: u32 = 0xd000;
const LISTS: [u32; 2] = [0x20_0000, 0x20_1000];
const DESCRIPTORS: u32 = 32;
/// Where buffers are, mostly.
const BUFFERS: u32 = 0x21_0000;

/// The adapter's outside: what the switch has of it.
pub(super) struct Adapter {
    page: OwnedFd,
    kick: Arc<OwnedFd>,
    interrupt: Arc<OwnedFd>,
    sides: Option<Sides>,
    /// From where frames come.
    source: Sides,
    station: Station,
    /// Frames that were sent, and that were received.
    pub(super) carried: (u64, u64),
}

/// The adapter, and what the switch is given of it.
pub(super) fn make() -> (Function, Adapter) {
    let name = format!("legacy{INDEX}").parse().expect("a name");
    let mut rom = vec![0x90; 5000];
    rom[..2].copy_from_slice(&[0x55, 0xaa]);
    let (function, shared) = nic::adapter(name, OWN, true, Some(&rom)).expect("an adapter");
    let port = MemoryPort {
        depth: 32,
        buffer: 2048,
        ..MemoryPort::default()
    };
    let (source, station) = port.open().expect("a port");
    let adapter = Adapter {
        page: shared.page,
        kick: shared.kick,
        interrupt: shared.interrupt,
        sides: None,
        source,
        station,
        carried: (0, 0),
    };
    (function, adapter)
}

impl Board {
    /// Takes the port away, as before a state is saved or restored.
    pub(super) fn detach(&mut self) {
        self.adapter.sides = None;
        self.with_nic(|nic, effects| nic.set_served(false, effects));
    }

    /// Gives it a port, as vswitchd does.
    pub(super) fn attach(&mut self) {
        self.with_nic(|nic, effects| nic.set_served(true, effects));
        let copy = |fd: &OwnedFd| fd.try_clone().expect("a descriptor");
        let sides = vnic_legacy::port::open(
            Arc::clone(self.memory.memory()),
            SharedPage::map(copy(&self.adapter.page)).expect("its page"),
            copy(&self.adapter.kick),
            copy(&self.adapter.interrupt),
        );
        self.adapter.sides = Some(sides.expect("a port"));
    }

    fn with_nic(&mut self, call: impl FnOnce(&mut nic::Nic, &mut Effects)) {
        let at = Pc::adapter_address(INDEX);
        self.with("pci", |bridge: &mut HostBridge, effects| {
            bridge
                .with_device(at, effects, call)
                .expect("the adapter in its slot");
        });
    }

    fn configure(&mut self, register: u8, value: u32) {
        let Address { slot, function } = Pc::adapter_address(INDEX);
        let [slot, function] = [slot, function].map(u32::from);
        let address = 1 << 31 | slot << 11 | function << 8 | u32::from(register);
        self.access(Space::Port, 0xcf8, &mut address.to_le_bytes(), true);
        self.access(Space::Port, 0xcfc, &mut value.to_le_bytes(), true);
    }

    fn csr(&mut self, csr: u32, value: u32) {
        let port = u64::from(PORTS + 8 * csr);
        self.access(Space::Port, port, &mut value.to_le_bytes(), true);
    }

    /// A driver, or what looks like one, and the switch at the adapter's other end.
    pub(super) fn adapter(&mut self, input: &mut Input<'_>) {
        match input.u8() % 16 {
            0..=3 => self.describe(input),
            4..=6 => self.turn(),
            7 | 8 => self.deliver(1 + input.u8() % 32, input.u16() % 1600),
            9 => {
                self.configure(0x10, PORTS);
                self.configure(0x04, 7);
                self.csr(3, LISTS[0]);
                self.csr(4, LISTS[1]);
                self.csr(7, u32::MAX);
                self.csr(6, 0x2042 | u32::from(input.u16()) << 16);
            }
            10 => self.csr(u32::from(input.u8() % 16), input.u32()),
            11 => {
                let mut value = [0xff; 4];
                let port = PORTS + 8 * u32::from(input.u8() % 16);
                self.access(Space::Port, port.into(), &mut value, false);
            }
            12 => self.csr(1 + u32::from(input.u8() & 1), 0),
            13 => {
                let up = input.u8() & 1 != 0;
                self.with_nic(|nic, _| nic.set_link(up));
            }
            14 => {
                self.detach();
                self.attach();
            }
            _ => self.csr(6, input.u32() & !0xc00 | 0x2002),
        }
    }

    /// Writes a descriptor that makes some sense.
    fn describe(&mut self, input: &mut Input<'_>) {
        let (index, bits) = (u32::from(input.u8()), input.u8());
        let list = LISTS[usize::from(bits & 1)];
        let at = list + index % DESCRIPTORS * 16;
        let ends = [0, 1 << 25, 1 << 24, 0][usize::from(bits >> 1 & 3)];
        let kind = [0x6000_0000, 0xe000_0000, 0x2000_0000, 0x0800_0000_u32];
        let size = sizes(bits >> 5, input);
        let buffer = match input.u8() {
            0 => input.u32(),
            page => BUFFERS + 0x1000 * u32::from(page),
        };
        let next = match ends {
            0 => buffer,
            _ => list + u32::from(input.u8()) % DESCRIPTORS * 16,
        };
        let control = kind[usize::from(bits >> 3 & 3)] | ends | size;
        let words = [1 << 31, control, buffer, next];
        let bytes = words.map(u32::to_le_bytes).concat();
        let written = self.memory.write("descriptor", at.into(), &bytes);
        written.expect("inside");
    }

    fn turn(&mut self) {
        let Some(sides) = &mut self.adapter.sides else {
            return;
        };
        let mut burst = Burst::new();
        sides.tx.gather(&mut burst);
        self.adapter.carried.0 += burst.len() as u64;
        if !burst.is_empty() {
            sides.tx.complete();
        }
        if !sides.tx.arm() {
            sides.tx.disarm();
        }
        assert!(sides.tx.fault().is_none() && sides.rx.fault().is_none());
    }

    fn deliver(&mut self, count: u8, len: u16) {
        let Some(sides) = &mut self.adapter.sides else {
            return;
        };
        let outside = &mut self.adapter.source;
        let mut bytes = [&OWN.0[..], &[2, 0, 0, 0, 0, 1], &[0x88, 0xb5]].concat();
        bytes.resize(usize::from(len.max(14)), 7);
        for _ in 0..count {
            assert!(self.adapter.station.send(&bytes));
        }
        let mut burst = Burst::new();
        outside.tx.gather(&mut burst);
        let head = &bytes[..bytes.len().min(128)];
        let checked = validate(&Request::default(), head, bytes.len() as u32);
        let meta = FrameMeta {
            checked: checked.expect("a plain frame"),
            tag: None,
            vid: 0,
            priority: 0,
        };
        let meta = vec![Some(meta); count.into()];
        let job = Job {
            burst: &burst,
            source: outside.tx.memory(),
            meta: &meta,
            quiet: Quiet::default(),
            frames: u32::MAX >> (32 - u32::from(count)),
            vlan: &VlanMode::None,
            mtu: 9000,
        };
        let mut report = Report::default();
        sides.rx.deliver(&job, &mut report);
        let arrived = report.destination.frames + report.destination.drops.total();
        assert_eq!(arrived, u64::from(count), "a copy got lost");
        self.adapter.carried.1 += report.destination.frames;
        outside.tx.complete();
    }
}
