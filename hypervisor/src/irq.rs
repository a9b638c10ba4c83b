//! Where interrupts lead.
//!
//! Lines (GSIs 0 to 23) lead as in every PC: those below 16 to the two PICs, and all to the I/O APIC, where line 0, the
//! timer, is at pin 2, as tables for operating systems say. The GSIs from 24 on are messages that eventfds send.

use std::os::fd::OwnedFd;

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use rustix::event::EventfdFlags;

use crate::Error;
use crate::kvm::Vm;

/// Number of interrupt lines: the pins of the I/O APIC.
pub const LINES: u32 = 24;
/// The line by which one PIC is wired to the other; it has no pin of the I/O APIC.
pub(crate) const CASCADE: u32 = 2;
/// The I/O APIC's pin of the timer, line 0.
const TIMER_PIN: u32 = 2;

/// The routes of the lines.
fn line_routes() -> Vec<kvm_irq_routing_entry> {
    let mut routes = Vec::new();
    for gsi in (0..LINES).filter(|&gsi| gsi != CASCADE) {
        match gsi {
            0..8 => routes.push(route(gsi, KVM_IRQCHIP_PIC_MASTER, gsi)),
            8..16 => routes.push(route(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - 8)),
            _ => {}
        }
        let pin = if gsi == 0 { TIMER_PIN } else { gsi };
        routes.push(route(gsi, KVM_IRQCHIP_IOAPIC, pin));
    }
    routes
}

fn route(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            irqchip: kvm_irq_routing_irqchip { irqchip, pin },
        },
        ..Default::default()
    }
}

/// Where a message of a GSI from [`LINES`] on goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MessageRoute {
    pub(crate) gsi: u32,
    pub(crate) address: u64,
    pub(crate) data: u32,
}

/// Wires the lines and these messages.
pub(crate) fn wire(vm: &Vm, messages: &[MessageRoute]) -> Result<(), Error> {
    let mut routes = line_routes();
    routes.extend(messages.iter().map(|message| kvm_irq_routing_entry {
        gsi: message.gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            msi: kvm_irq_routing_msi {
                address_lo: message.address as u32,
                address_hi: (message.address >> 32) as u32,
                data: message.data,
                ..Default::default()
            },
        },
        ..Default::default()
    }));
    vm.set_routes(&routes)
}

/// A new eventfd that never blocks.
///
/// # Errors
/// What the kernel refuses.
pub fn eventfd() -> Result<OwnedFd, Error> {
    rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(Error::system("eventfd"))
}

/// Signals an eventfd. One that is full is signalled already.
pub fn signal(event: &OwnedFd) {
    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
}

/// Takes the signals of an eventfd.
pub(crate) fn drain(event: &OwnedFd) {
    let _ = rustix::io::read(event, &mut [0; 8]);
}
