use super::*;

const NIC: Address = Address {
    slot: 2,
    function: 0,
};

fn select(bridge: &mut HostBridge, address: Address, offset: u8) {
    let value = ENABLE
        | u32::from(address.slot) << 11
        | u32::from(address.function) << 8
        | u32::from(offset & 0xfc);
    bridge.write(PORTS, 0, &value.to_le_bytes(), &mut Effects::default());
}

fn config_read<const N: usize>(bridge: &mut HostBridge, address: Address, offset: u8) -> [u8; N] {
    select(bridge, address, offset);
    let mut data = [0xff; N];
    bridge.read(
        PORTS,
        4 + u64::from(offset & 3),
        &mut data,
        &mut Effects::default(),
    );
    data
}

fn config_write(bridge: &mut HostBridge, address: Address, offset: u8, data: &[u8]) -> Vec<Effect> {
    select(bridge, address, offset);
    let mut effects = Effects::default();
    bridge.write(PORTS, 4 + u64::from(offset & 3), data, &mut effects);
    effects.take()
}

fn bridge() -> HostBridge {
    HostBridge::new(true).unwrap()
}

fn shadow(start: u32, len: u32, shadow: Shadow) -> Effect {
    Effect::Shadow { start, len, shadow }
}

#[test]
fn the_chipset_is_found_by_mechanism_1() {
    let mut bridge = bridge();
    let ids = |bridge: &mut HostBridge, slot, function| {
        u32::from_le_bytes(config_read(bridge, Address { slot, function }, 0))
    };
    assert_eq!(ids(&mut bridge, 0, 0), 0x1237_8086);
    assert_eq!(ids(&mut bridge, 1, 0), 0x7000_8086);
    assert_eq!(ids(&mut bridge, 1, 3), 0x7113_8086);
    assert_eq!(ids(&mut bridge, 1, 1), 0xffff_ffff);
    assert_eq!(
        config_read(&mut bridge, ADDRESS, 0x2c),
        0x1100_1af4_u32.to_le_bytes()
    );
    assert_eq!(
        config_read(&mut bridge, piix3::ADDRESS, 0x0e),
        [0x80],
        "more functions"
    );
    assert_eq!(config_read(&mut bridge, piix3::ADDRESS, 0x02), [0x00, 0x70]);
    // Another bus; and with the enable bit off.
    for address in [ENABLE | 1 << 16, 0] {
        bridge.write(
            PORTS,
            0,
            &u32::to_le_bytes(address),
            &mut Effects::default(),
        );
        let mut data = [0xff; 4];
        bridge.read(PORTS, 4, &mut data, &mut Effects::default());
        assert_eq!(data, [0xff; 4]);
    }
}

#[test]
fn only_a_doubleword_reaches_config_address() {
    let mut bridge = bridge();
    select(&mut bridge, piix3::ADDRESS, 0x60);
    let address = |bridge: &mut HostBridge| {
        let mut data = [0xff; 4];
        bridge.read(PORTS, 0, &mut data, &mut Effects::default());
        u32::from_le_bytes(data)
    };
    assert_eq!(address(&mut bridge), 0x8000_0860);
    let mut effects = Effects::default();
    // As Linux does when it looks for mechanism 1.
    bridge.write(PORTS, 3, &[1], &mut effects);
    bridge.write(PORTS, 0, &[0, 0], &mut effects);
    bridge.write(PORTS, 2, &[0, 0], &mut effects);
    bridge.write(PORTS, 0, &[0; 8], &mut effects);
    assert_eq!(address(&mut bridge), 0x8000_0860);
    assert!(effects.take().is_empty());
}

#[test]
fn the_reset_register_resets() {
    let mut bridge = bridge();
    let mut effects = Effects::default();
    bridge.write(PORTS, 1, &[0x02], &mut effects);
    assert!(effects.take().is_empty());
    let mut data = [0xff];
    bridge.read(PORTS, 1, &mut data, &mut effects);
    assert_eq!(data, [0x02]);
    bridge.write(PORTS, 1, &[0x06], &mut effects);
    assert_eq!(effects.take(), [Effect::Reset]);
}

#[test]
fn segments_change_one_by_one_and_neighbours_together() {
    let mut bridge = bridge();
    // SeaBIOS: all writable; later option ROMs and itself read-only.
    let all = [0x30, 0x33, 0x33, 0x33];
    assert_eq!(
        config_write(&mut bridge, ADDRESS, 0x58, &[0, all[0], all[1], all[2]]),
        [
            shadow(0xc_0000, 0x1_0000, Shadow::Ram),
            shadow(0xf_0000, 0x1_0000, Shadow::Ram)
        ]
    );
    assert_eq!(
        config_write(&mut bridge, ADDRESS, 0x5c, &[0x33; 4]),
        [shadow(0xd_0000, 0x2_0000, Shadow::Ram)]
    );
    assert_eq!(config_write(&mut bridge, ADDRESS, 0x5c, &[0x33; 4]), []);
    assert_eq!(
        config_write(&mut bridge, ADDRESS, 0x5a, &[0x31]),
        [shadow(0xc_0000, 0x4000, Shadow::ReadOnly)]
    );
    assert_eq!(
        config_write(&mut bridge, ADDRESS, 0x5f, &[0x20]),
        [shadow(0xe_8000, 0x8000, Shadow::Rom)]
    );
    let mut effects = Effects::default();
    bridge.reset(&mut effects);
    assert_eq!(effects.take(), [shadow(0xc_0000, 0x4_0000, Shadow::Rom)]);
}

#[test]
fn every_setting_of_the_map_is_told_whole_and_in_bounds() {
    let mut bridge = bridge();
    for value in 0..=255 {
        for register in 0x59..=0x5f {
            for effect in config_write(&mut bridge, ADDRESS, register, &[value]) {
                let Effect::Shadow { start, len, .. } = effect else {
                    panic!("{effect:?}");
                };
                assert!(start >= 0xc_0000 && start + len <= 0x10_0000);
                assert_eq!((start % 0x4000, len % 0x4000), (0, 0));
            }
        }
    }
}

#[test]
fn seabios_leaves_system_management_mode_alone() {
    let mut bridge = bridge();
    let value = u32::from_le_bytes(config_read(&mut bridge, piix4::ADDRESS, 0x58));
    assert_ne!(value & 1 << 25, 0);
}

#[test]
fn power_management_answers_where_firmware_puts_it() {
    let mut bridge = bridge();
    let ports = |bridge: &HostBridge| -> Vec<u64> {
        let regions = bridge.wiring().regions;
        regions.iter().map(|region| region.start).collect()
    };
    assert_eq!(ports(&bridge), [0xcf8]);
    assert_eq!(
        config_write(&mut bridge, piix4::ADDRESS, 0x40, &0x601_u32.to_le_bytes()),
        []
    );
    assert_eq!(
        config_write(&mut bridge, piix4::ADDRESS, 0x80, &[1]),
        [Effect::Rewire]
    );
    assert_eq!(ports(&bridge), [0xcf8, 0x600]);
}

#[test]
fn the_power_button_raises_line_9_whatever_is_routed() {
    let mut bridge = bridge();
    config_write(&mut bridge, piix3::ADDRESS, 0x60, &[3, 3, 3, 3]);
    config_write(&mut bridge, piix4::ADDRESS, 0x40, &0x601_u32.to_le_bytes());
    config_write(&mut bridge, piix4::ADDRESS, 0x80, &[1]);
    let region = bridge.wiring().regions[1].number;
    let mut effects = Effects::default();
    bridge.press_power_button(&mut effects);
    assert_eq!(effects.take(), []);
    bridge.write(region, 2, &[0, 1], &mut effects);
    assert_eq!(effects.take(), [Effect::Line { gsi: 9, high: true }]);
    bridge.write(region, 0, &[0, 1], &mut effects);
    assert_eq!(
        effects.take(),
        [Effect::Line {
            gsi: 9,
            high: false
        }]
    );
}

#[test]
fn without_firmware_everything_is_as_firmware_leaves_it() {
    let mut bridge = HostBridge::new(false).unwrap();
    let mut config = ConfigSpace::new(&Identity::default());
    config.add_bar(crate::pci::Bar::standard(0, Space::Port, 128));
    config.set_pin(1);
    bridge.add(NIC, Function::bridge(config)).unwrap();
    let mut effects = Effects::default();
    bridge.reset(&mut effects);
    assert_eq!(effects.take(), [shadow(0xc_0000, 0x4_0000, Shadow::Ram)]);
    assert_eq!(bridge.routes(), [Some(10), Some(10), Some(11), Some(11)]);
    let regions = bridge.wiring().regions;
    let starts: Vec<_> = { regions.iter() }.map(|region| region.start).collect();
    assert_eq!(starts, [0xcf8, 0x600, 0xc000]);
    assert_eq!(config_read(&mut bridge, NIC, 0x3c), [10]);
    assert_eq!(config_read(&mut bridge, piix4::ADDRESS, 0x3c), [9]);
}

#[test]
fn a_saved_bridge_comes_back_whole_and_a_forged_one_not_at_all() {
    let mut bridge = bridge();
    config_write(&mut bridge, ADDRESS, 0x59, &[0x30]);
    config_write(&mut bridge, piix3::ADDRESS, 0x60, &[5, 6, 7, 9]);
    config_write(&mut bridge, piix4::ADDRESS, 0x40, &0x601_u32.to_le_bytes());
    let state = bridge.save();
    let mut other = HostBridge::new(true).unwrap();
    let mut effects = Effects::default();
    other.restore(&state, &mut effects).unwrap();
    assert!(
        effects
            .take()
            .contains(&shadow(0xf_0000, 0x1_0000, Shadow::Ram))
    );
    assert_eq!(other.save(), state);
    assert_eq!(other.routes(), [Some(5), Some(6), Some(7), Some(9)]);
    // The last function's part is wrong: the first ones keep what they had.
    let mut fresh = HostBridge::new(true).unwrap();
    let before = fresh.save();
    let mut forged = state;
    forged["bus"][2]["device"] = "what".into();
    assert!(fresh.restore(&forged, &mut effects).is_err());
    assert_eq!(fresh.save(), before);
    assert!(effects.take().is_empty());
}
