//! A PC: the whole of devices, tables and firmware that a [`Machine`](crate::Machine) is made of.

use std::fs::File;
use std::sync::Arc;

use crate::board::{Named, Output};
use crate::boot::fw_cfg::FwCfg;
use crate::boot::{Boot, Linux, acpi, firmware, real_mode, smbios, tables};
use crate::chipset::i440fx::HostBridge;
use crate::chipset::i8042::I8042;
use crate::chipset::piix3;
use crate::chipset::ports::Ports;
use crate::chipset::rtc::{Contents, Rtc};
use crate::chipset::serial::ComPort;
use crate::memory::{GuestMemory, PCI_HOLE};
use crate::pci::{Address, Function};
use crate::{Config, Error};

/// Name of the host bridge with its PCI bus, a [`HostBridge`].
pub const PCI: &str = "pci";
/// Name of COM1, a [`ComPort`]. Its console has the number 0.
pub const COM1: &str = "com1";
/// Name of COM2, a [`ComPort`]. Its console has the number 1.
pub const COM2: &str = "com2";
/// Name of the clock, an [`Rtc`].
pub const RTC: &str = "rtc";

/// The slot of the first adapter; the others follow.
const FIRST_SLOT: u8 = 2;
/// Most adapters.
pub const MAX_ADAPTERS: usize = 12;

/// What a PC is started with.
pub enum Start {
    /// Firmware, which is SeaBIOS: it boots by the adapters' option ROMs, in their order.
    Firmware(Vec<u8>),
    /// A Linux kernel.
    Linux {
        /// A bzImage or an ELF file. One with an entry point for 64-bit mode starts without firmware.
        kernel: File,
        /// Firmware for any other one, such as a program in a kernel's form that needs its services.
        firmware: Option<Vec<u8>>,
        /// Its initial file system.
        initrd: Option<File>,
        /// Its command line.
        command_line: String,
    },
}

/// A PC, to be made.
pub struct Pc {
    /// Name of the machine: its serial number in SMBIOS.
    pub name: String,
    /// Identity of the machine, as its bytes are written in text.
    pub uuid: [u8; 16],
    /// Number of processors, 1 to 64.
    pub vcpus: u8,
    /// Its memory.
    pub memory: GuestMemory,
    /// The time now, in nanoseconds since 1970-01-01 UTC.
    pub unix_nanos: i64,
    /// Network adapters on the PCI bus, by their places there (see [`Pc::adapter_address`]): up to [`MAX_ADAPTERS`].
    pub adapters: Vec<Option<Function>>,
    /// The guest finds Hyper-V's interface (see [`Config::hyperv`]) and its virtual machine bus.
    pub hyperv: bool,
    /// What runs first.
    pub start: Start,
    /// Let firmware write messages to [`DEBUG_CONSOLE`](crate::device::DEBUG_CONSOLE), which takes it time.
    pub debug: bool,
}

impl Pc {
    /// Where adapter `index` is on the PCI bus.
    pub fn adapter_address(index: u8) -> Address {
        Address {
            slot: FIRST_SLOT + index,
            function: 0,
        }
    }

    /// What [`Machine::new`](crate::Machine::new) takes; consoles go to `output`. Further devices can be added behind these.
    ///
    /// # Errors
    /// More adapters than there can be, or a kernel that needs firmware and cannot be given to it.
    pub fn assemble(mut self, output: Output) -> Result<(Config, Vec<Named>), Error> {
        if self.adapters.len() > MAX_ADAPTERS {
            return Err(Error::Config {
                what: "number of PCI adapters",
                value: self.adapters.len().to_string(),
                allowed: "up to 12",
            });
        }
        let for_firmware = match &mut self.start {
            Start::Firmware(_) => false,
            Start::Linux { kernel, .. } => real_mode::is_for_firmware(kernel)?,
        };
        let description = self.describe(for_firmware);
        let mut devices = vec![
            Named::new("ports", Ports::new(self.debug)),
            Named::new("keyboard", I8042::default()),
            Named::new(
                RTC,
                Rtc::new(&contents(&self.memory, self.vcpus), self.unix_nanos),
            ),
            Named::new(COM1, ComPort::new(0)),
            Named::new(COM2, ComPort::new(1)),
        ];
        let (boot, fw_cfg) = boot(self.start, for_firmware, &description, &self.memory)?;
        devices.extend(fw_cfg.map(|device| Named::new("fw_cfg", device)));
        let mut bridge = HostBridge::new(boot.firmware().is_some())?;
        for (index, function) in (0..).zip(self.adapters) {
            if let Some(function) = function {
                bridge.add(Self::adapter_address(index), function)?;
            }
        }
        devices.push(Named::new(PCI, bridge));
        let config = Config {
            vcpus: self.vcpus,
            memory: self.memory,
            boot,
            hyperv: self.hyperv,
            output,
        };
        Ok((config, devices))
    }

    /// `for_firmware`: firmware starts the kernel.
    fn describe(&self, for_firmware: bool) -> firmware::Description {
        let contents = contents(&self.memory, self.vcpus);
        let adapters = (0..).zip(&self.adapters);
        let addresses = adapters.filter_map(|(index, function)| {
            function.as_ref().and(Some(Self::adapter_address(index)))
        });
        // INTA#, as firmware routes it.
        let line = |address: &Address| {
            let request = address.request(1).unwrap_or(0);
            piix3::FIRMWARE_ROUTES.get(request).copied().unwrap_or(0)
        };
        firmware::Description {
            acpi: acpi::Description {
                cpus: self.vcpus,
                pci_hole: PCI_HOLE as u32,
                interrupts: addresses
                    .clone()
                    .map(|address| (address, line(&address)))
                    .collect(),
                vmbus: self.hyperv,
            },
            smbios: smbios::Description {
                uuid: self.uuid,
                name: self.name.clone(),
                cpus: self.vcpus,
                memory_below_4g: contents.memory_below_4g,
                memory_above_4g: contents.memory_above_4g,
                firmware: matches!(self.start, Start::Linux { .. }) && !for_firmware,
            },
            boot_order: addresses.collect(),
            kernel: for_firmware,
            serial_console: true,
        }
    }
}

/// What the clock's memory tells of the machine.
fn contents(memory: &GuestMemory, vcpus: u8) -> Contents {
    let below = memory.size().min(PCI_HOLE);
    Contents {
        memory_below_4g: below,
        memory_above_4g: memory.size() - below,
        cpus: vcpus.into(),
    }
}

/// How the guest boots, and the device by which firmware is told so. `for_firmware`: firmware starts the kernel.
fn boot(
    start: Start,
    for_firmware: bool,
    description: &firmware::Description,
    memory: &GuestMemory,
) -> Result<(Boot, Option<FwCfg>), Error> {
    match start {
        Start::Firmware(image) => {
            let fw_cfg = firmware::fw_cfg(description, Arc::clone(memory.memory()))?;
            Ok((Boot::Firmware(image), Some(fw_cfg)))
        }
        Start::Linux {
            mut kernel,
            firmware: Some(image),
            mut initrd,
            command_line,
        } if for_firmware => {
            let mut fw_cfg = firmware::fw_cfg(description, Arc::clone(memory.memory()))?;
            let size = memory.size();
            real_mode::hand_over(
                &mut fw_cfg,
                size,
                &mut kernel,
                initrd.as_mut(),
                &command_line,
            )?;
            Ok((Boot::Firmware(image), Some(fw_cfg)))
        }
        Start::Linux { .. } if for_firmware => Err(real_mode::no_firmware()),
        Start::Linux {
            kernel,
            initrd,
            command_line,
            ..
        } => {
            let linux = Linux {
                kernel,
                initrd,
                command_line,
                tables: tables::place(&description.acpi, &description.smbios),
                rsdp: tables::RSDP,
            };
            Ok((Boot::Linux(linux), None))
        }
    }
}
