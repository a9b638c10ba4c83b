//! The 82371SB (PIIX3) south bridge's function 0, the ISA bridge: routing of PCI interrupts and the reset register.

use crate::pci::bus::Routes;
use crate::pci::{Address, ConfigSpace, Identity};

/// Where the ISA bridge is on PCI bus 0.
pub const ADDRESS: Address = Address {
    slot: 1,
    function: 0,
};

/// Offset of the four route control registers, PIRQA# to PIRQD#.
pub const PIRQ_ROUTES: u8 = 0x60;

/// The routes that SeaBIOS chooses, and this monitor where it starts a guest without firmware.
pub const FIRMWARE_ROUTES: [u8; 4] = [10, 10, 11, 11];

/// A route control bit: the request goes nowhere.
const ROUTE_OFF: u8 = 0x80;
/// Lines that a request can be routed to: 3 to 7, 9 to 12, 14 and 15.
const ROUTABLE: u16 = 0b1101_1110_1111_1000;

/// Reset control register (port 0xcf9) bit: resets the processor.
pub const RESET_CPU: u8 = 1 << 2;
/// Bits of the reset control register that keep what is written. The reset bit is not among them: the reset it asks for
/// clears it.
pub const RESET_CONTROL_MASK: u8 = 1 << 1;

/// The ISA bridge's configuration space.
pub fn config() -> ConfigSpace {
    let mut config = ConfigSpace::new(&Identity {
        vendor: 0x8086,
        device: 0x7000,
        revision: 0,
        class: 0x06_01_00,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
    });
    // I/O, memory and bus master are always on.
    config.set(0x04, &[0x07]);
    config.allow(0x04, &[0x08, 0x01]);
    // X-bus chip select, and the enable bits of the ISA and DMA functions: firmware's notes.
    config.set(0x4c, &[0x4d]);
    config.allow(0x4c, &[0xff, 0, 0xff, 0xff]);
    config.set(PIRQ_ROUTES, &[ROUTE_OFF; 4]);
    config.allow(PIRQ_ROUTES, &[0x8f; 4]);
    config
}

/// Where the requests go at present.
pub fn routes(config: &ConfigSpace) -> Routes {
    let mut registers = [0; 4];
    config.read(PIRQ_ROUTES, &mut registers);
    registers.map(|register| {
        let line = register & 0x0f;
        (register & ROUTE_OFF == 0 && ROUTABLE & (1 << line) != 0).then_some(line)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_go_nowhere_until_routed_and_never_to_the_chipsets_own_lines() {
        let mut config = config();
        assert_eq!(routes(&config), [None; 4]);
        config.write(PIRQ_ROUTES, &[10, 11, 0x8a, 5]);
        assert_eq!(routes(&config), [Some(10), Some(11), None, Some(5)]);
        config.write(PIRQ_ROUTES, &[0, 1, 2, 8]);
        assert_eq!(routes(&config), [None; 4]);
        config.write(PIRQ_ROUTES, &[13, 15, 3, 0x7f]);
        assert_eq!(routes(&config), [None, Some(15), Some(3), Some(15)]);
    }
}
