//! The synthetic machine-specific registers.

use std::sync::atomic::Ordering;

use super::hypercall::PAGE_CODE;
use super::page::{ENABLED, PAGE, PAGE_MASK};
use super::{Effect, Hyperv};

/// First register of the range that Hyper-V uses.
pub const FIRST: u32 = 0x4000_0000;
/// Registers in that range.
pub const COUNT: u32 = 0x200;

const GUEST_OS_ID: u32 = 0x4000_0000;
const HYPERCALL: u32 = 0x4000_0001;
const VP_INDEX: u32 = 0x4000_0002;
const REFERENCE_TSC: u32 = 0x4000_0021;
const TSC_FREQUENCY: u32 = 0x4000_0022;
const APIC_FREQUENCY: u32 = 0x4000_0023;
const VP_ASSIST_PAGE: u32 = 0x4000_0073;
const SCONTROL: u32 = 0x4000_0080;
const SVERSION: u32 = 0x4000_0081;
const SIEFP: u32 = 0x4000_0082;
const SIMP: u32 = 0x4000_0083;
const EOM: u32 = 0x4000_0084;
const SINT0: u32 = 0x4000_0090;
const SINT15: u32 = 0x4000_009f;
const CRASH_P0: u32 = 0x4000_0100;
const CRASH_P4: u32 = 0x4000_0104;
const CRASH_CONTROL: u32 = 0x4000_0105;
const TSC_INVARIANT_CONTROL: u32 = 0x4000_0118;

/// The crash is complete and to be noticed.
const CRASH_NOTIFY: u64 = 1 << 63;

impl Hyperv {
    /// What the register answers on processor `vp`; `None`: there is no such register (#GP).
    pub fn read_msr(&self, vp: u32, register: u32) -> Option<u64> {
        let state = &self.state;
        let processor = state.processors.get(vp as usize)?;
        let synic = &processor.synic;
        Some(match register {
            GUEST_OS_ID => state.guest_os_id,
            HYPERCALL => state.hypercall,
            VP_INDEX => vp.into(),
            REFERENCE_TSC => state.reference_tsc,
            TSC_FREQUENCY => self.clocks.tsc_hz,
            APIC_FREQUENCY => self.clocks.apic_hz,
            VP_ASSIST_PAGE => processor.assist_page,
            SCONTROL => synic.control,
            SVERSION => 1,
            SIEFP => synic.event_flags,
            SIMP => synic.messages,
            EOM => 0,
            SINT0..=SINT15 => *synic.sints.0.get((register - SINT0) as usize)?,
            CRASH_P0..=CRASH_P4 => *state.crash.get((register - CRASH_P0) as usize)?,
            CRASH_CONTROL => CRASH_NOTIFY,
            TSC_INVARIANT_CONTROL => state.tsc_invariant,
            _ => return None,
        })
    }

    /// Processor `vp` writes `value`. False: there is no such register, it is read-only, or the value names memory that is
    /// not there (#GP).
    pub fn write_msr(
        &mut self,
        vp: u32,
        register: u32,
        value: u64,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let Some(processor) = self.state.processors.get_mut(vp as usize) else {
            return false;
        };
        match register {
            GUEST_OS_ID => {
                self.state.guest_os_id = value;
                if value == 0 {
                    self.state.hypercall &= !ENABLED;
                }
            }
            HYPERCALL => return self.set_hypercall(value),
            REFERENCE_TSC => return self.set_reference_tsc(value),
            VP_ASSIST_PAGE => processor.assist_page = value,
            EOM => self.deliver(vp, effects),
            SCONTROL | SIEFP | SIMP | SINT0..=SINT15 => {
                let synic = &mut processor.synic;
                match register {
                    SCONTROL => synic.control = value & ENABLED,
                    SIEFP => synic.event_flags = value,
                    SIMP => synic.messages = value,
                    _ => {
                        if let Some(sint) = synic.sints.0.get_mut((register - SINT0) as usize) {
                            *sint = value;
                        }
                    }
                }
                effects.push(Effect::Rerouted { vp });
                self.deliver(vp, effects);
            }
            CRASH_P0..=CRASH_P4 => {
                if let Some(number) = self.state.crash.get_mut((register - CRASH_P0) as usize) {
                    *number = value;
                }
            }
            CRASH_CONTROL => {
                if value & CRASH_NOTIFY != 0 {
                    effects.push(Effect::Crashed(self.state.crash));
                }
            }
            TSC_INVARIANT_CONTROL => self.state.tsc_invariant = value & 1,
            _ => return false,
        }
        true
    }

    /// Puts the code of hypercalls into the guest's page. A guest that has not named itself gets none.
    fn set_hypercall(&mut self, mut value: u64) -> bool {
        if self.state.guest_os_id == 0 {
            value &= !ENABLED;
        }
        if value & ENABLED != 0 {
            let page = self.memory.window(value & PAGE_MASK, PAGE);
            let Some(Ok(())) = page.map(|page| page.write(0, &PAGE_CODE)) else {
                return false;
            };
        }
        self.state.hypercall = value;
        true
    }

    /// Fills the page by which a guest turns the time-stamp counter into units of 100 ns (TLFS, "Reference TSC page"): u32
    /// sequence, not 0 while valid; at 8 u64 scale and at 16 s64 offset: time = (tsc · scale >> 64) + offset.
    fn set_reference_tsc(&mut self, value: u64) -> bool {
        const UNITS: u128 = 10_000_000;
        if value & ENABLED != 0 {
            let Some(page) = self.memory.window(value & PAGE_MASK, PAGE) else {
                return false;
            };
            let scale = (UNITS << 64) / u128::from(self.clocks.tsc_hz.max(1));
            let filled = page
                .store_u64(8, scale as u64, Ordering::Relaxed)
                .and_then(|()| page.store_u64(16, 0, Ordering::Relaxed))
                .and_then(|()| page.store_u32(0, 1, Ordering::Release));
            if filled.is_err() {
                return false;
            }
        }
        self.state.reference_tsc = value;
        true
    }
}
