//! Which device answers an address.

use crate::device::{Region, Space};

/// A region, and the device it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    device: usize,
    region: Region,
}

/// Where an access ends up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The device's number.
    pub device: usize,
    /// The device's region.
    pub region: usize,
    /// Bytes from the start of the region.
    pub offset: u64,
}

/// The regions of all devices, in both address spaces.
#[derive(Debug, Default)]
pub struct Bus {
    /// In the order of devices, so that the first that claims an address has it.
    entries: Vec<Entry>,
}

impl Bus {
    /// Exchanges the regions of `device`. Empty regions, and those that pass the end of their space (0x10000 for
    /// ports), answer nothing.
    pub fn set(&mut self, device: usize, regions: &[Region]) {
        self.entries.retain(|entry| entry.device != device);
        let at = self.entries.partition_point(|entry| entry.device < device);
        let valid = regions.iter().filter(|region| {
            let end = region.start.checked_add(region.len);
            region.len > 0
                && match region.space {
                    Space::Port => end.is_some_and(|end| end <= 0x1_0000),
                    Space::Memory => end.is_some(),
                }
        });
        let new = valid.map(|&region| Entry { device, region });
        self.entries.splice(at..at, new);
    }

    /// The device that answers all of `len` bytes at `address`, if one does.
    pub fn find(&self, space: Space, address: u64, len: usize) -> Option<Target> {
        self.entries.iter().find_map(|Entry { device, region }| {
            let offset = address.checked_sub(region.start)?;
            let inside =
                region.space == space && offset < region.len && len as u64 <= region.len - offset;
            inside.then_some(Target {
                device: *device,
                region: region.number,
                offset,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(number: usize, space: Space, start: u64, len: u64) -> Region {
        Region {
            number,
            space,
            start,
            len,
        }
    }

    fn found(bus: &Bus, space: Space, address: u64, len: usize) -> Option<(usize, usize, u64)> {
        bus.find(space, address, len)
            .map(|target| (target.device, target.region, target.offset))
    }

    #[test]
    fn an_access_reaches_the_region_that_holds_all_of_it() {
        let mut bus = Bus::default();
        bus.set(3, &[region(0, Space::Port, 0x3f8, 8)]);
        bus.set(5, &[region(7, Space::Memory, 0x3f8, 0x100)]);
        assert_eq!(found(&bus, Space::Port, 0x3f8, 1), Some((3, 0, 0)));
        assert_eq!(found(&bus, Space::Port, 0x3ff, 1), Some((3, 0, 7)));
        assert_eq!(found(&bus, Space::Port, 0x3ff, 2), None);
        assert_eq!(found(&bus, Space::Port, 0x400, 1), None);
        assert_eq!(found(&bus, Space::Port, 0x3f7, 2), None);
        assert_eq!(found(&bus, Space::Memory, 0x400, 4), Some((5, 7, 8)));
    }

    #[test]
    fn regions_move_and_the_first_device_wins() {
        let mut bus = Bus::default();
        bus.set(2, &[region(0, Space::Memory, 0x1000, 0x1000)]);
        bus.set(1, &[region(0, Space::Memory, 0x1800, 0x10)]);
        assert_eq!(found(&bus, Space::Memory, 0x1800, 4), Some((1, 0, 0)));
        bus.set(1, &[region(0, Space::Memory, 0x3000, 0x10)]);
        assert_eq!(found(&bus, Space::Memory, 0x1800, 4), Some((2, 0, 0x800)));
        assert_eq!(found(&bus, Space::Memory, 0x3000, 4), Some((1, 0, 0)));
        bus.set(1, &[]);
        assert_eq!(found(&bus, Space::Memory, 0x3000, 4), None);
    }

    #[test]
    fn regions_that_leave_their_space_answer_nothing() {
        let mut bus = Bus::default();
        bus.set(
            0,
            &[
                region(0, Space::Port, 0xffff, 2),
                region(1, Space::Memory, u64::MAX, 2),
                region(2, Space::Memory, 0x1000, 0),
            ],
        );
        assert_eq!(bus.find(Space::Port, 0xffff, 1), None);
        assert_eq!(bus.find(Space::Memory, u64::MAX, 1), None);
        assert_eq!(bus.find(Space::Memory, 0x1000, 0), None);
        // The last bytes of a space can be used.
        bus.set(1, &[region(0, Space::Port, 0xfffe, 2)]);
        assert!(bus.find(Space::Port, 0xffff, 1).is_some());
    }
}
