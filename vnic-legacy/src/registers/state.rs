//! The adapter's state as a value, to be saved and restored.

use serde::{Deserialize, Serialize};

use super::mii::Mii;
use super::srom::Srom;
use super::table::REGISTERS;
use super::timer::GeneralTimer;
use super::{Effects, Pins, Registers};
use crate::csr::status;
use crate::page::{Counted, SharedPage};
use crate::pci;
use crate::port::filter::{FilterKind, SETUP_LEN};

/// All that the adapter is, its port included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// What was written to CSR0 to CSR15, of the bits that keep it.
    csr: [u32; REGISTERS.len()],
    /// Status bits of CSR5.
    status: u32,
    missed: u32,
    srom: Srom,
    mii: Mii,
    pins: Pins,
    /// With its deadline in nanoseconds from the moment of saving.
    timer: GeneralTimer,
    bus_master: bool,
    power: u32,
    /// Where the processes are in their lists; `None` is at the beginning.
    rx_at: Option<u32>,
    tx_at: Option<u32>,
    bus_error: bool,
    filter_kind: u32,
    filter: Vec<u8>,
}

/// A saved state that no adapter can be in. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// A register has bits that it cannot keep.
    #[error(
        "{register} is {value:#x} in the saved state, and only bits of {allowed:#x} may be set"
    )]
    Register {
        /// Its name.
        register: &'static str,
        /// What was saved.
        value: u32,
        /// What may be.
        allowed: u32,
    },
    /// Something else.
    #[error("{0} of the saved state is none that the adapter can have")]
    Unsound(&'static str),
}

impl Registers {
    /// The state at `now`. The port must be detached, or it goes on changing it.
    pub fn save(&self, now: u64) -> State {
        let (kind, filter) = self.page.filter();
        let position =
            |position: Counted, count| (position.count == count).then_some(position.address);
        State {
            csr: self.csr,
            status: self.page.status(),
            missed: self.page.missed(),
            srom: self.srom.clone(),
            mii: self.mii,
            pins: self.pins,
            timer: self.timer.relative(now),
            bus_master: self.bus_master,
            power: self.power,
            rx_at: position(self.page.rx_at(), self.rx_base_count),
            tx_at: position(self.page.tx_at(), self.tx_base_count),
            bus_error: self.page.has_bus_error(),
            filter_kind: kind.to_word(),
            filter: filter.into(),
        }
    }

    /// Puts the adapter in a state that was saved, at `now`. No port may be attached.
    ///
    /// # Errors
    /// [`RestoreError`]; the adapter is then as before.
    pub fn restore(
        &mut self,
        state: &State,
        now: u64,
        effects: &mut Effects,
    ) -> Result<(), RestoreError> {
        let filter = state.check()?;
        self.clear(0, effects);
        self.csr = state.csr;
        self.srom = state.srom.clone();
        self.mii = state.mii;
        self.pins = state.pins;
        self.timer = state.timer.absolute(now);
        self.bus_master = state.bus_master;
        self.power = state.power;
        self.resetting = false;
        let page = &self.page;
        put_position(state.rx_at, self.rx_base_count, |at| page.set_rx_at(at));
        put_position(state.tx_at, self.tx_base_count, |at| page.set_tx_at(at));
        restore_page(page, state, &filter);
        page.set_csr7(self.get(7));
        self.tell(effects);
        // What the states became on the way is no news.
        self.page.clear_status(u32::MAX);
        self.page.set_status(state.status);
        effects.line = Some(self.line());
        effects.timer = Some(self.timer.ask(now));
        Ok(())
    }
}

fn put_position(at: Option<u32>, count: u32, put: impl FnOnce(Counted)) {
    put(match at {
        Some(address) => Counted { count, address },
        // A count that is not the base's: the port starts at the base.
        None => Counted {
            count: count.wrapping_sub(1),
            address: 0,
        },
    });
}

fn restore_page(page: &SharedPage, state: &State, filter: &[u8; SETUP_LEN]) {
    page.set_filter(FilterKind::from_word(state.filter_kind), filter);
    page.set_bus_error(state.bus_error.then_some(status::EB_MASTER_ABORT));
    page.add_missed(state.missed);
}

impl State {
    fn check(&self) -> Result<[u8; SETUP_LEN], RestoreError> {
        for (&value, register) in self.csr.iter().zip(&REGISTERS) {
            if value & !register.writable != 0 {
                return Err(RestoreError::Register {
                    register: register.name,
                    value,
                    allowed: register.writable,
                });
            }
        }
        let aligned = |at: Option<u32>| at.is_none_or(|at| at % 4 == 0);
        let sound = [
            ("serial ROM", self.srom.is_sound()),
            ("MII management", self.mii.is_sound()),
            ("timer", self.timer.is_sound()),
            ("power register", self.power & !pci::CFDD_WRITABLE == 0),
            (
                "status",
                self.status & !(status::NORMAL | status::ABNORMAL) == 0,
            ),
            ("position in the receive list", aligned(self.rx_at)),
            ("position in the transmit list", aligned(self.tx_at)),
            ("kind of filter", self.filter_kind <= 4),
        ];
        if let Some((what, _)) = sound.iter().find(|(_, sound)| !sound) {
            return Err(RestoreError::Unsound(what));
        }
        <[u8; SETUP_LEN]>::try_from(self.filter.as_slice())
            .map_err(|_| RestoreError::Unsound("setup frame"))
    }
}
