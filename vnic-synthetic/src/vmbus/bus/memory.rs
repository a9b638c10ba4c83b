//! The memory a guest shares over the bus.

use std::sync::Arc;

use super::{Bus, Connection, ask, post, refused};
use crate::vmbus::effect::{Demand, Effect, Refused};
use crate::vmbus::gpadl::{Assembly, PageList};
use crate::vmbus::message::{self, REFUSED};

/// GPADLs a guest has at most.
pub(in crate::vmbus) const MAX_GPADLS: usize = 512;
/// Pages of all GPADLs of a guest together, at most: 4 GiB.
pub(in crate::vmbus) const MAX_PAGES: usize = 1 << 20;

pub(in crate::vmbus) enum GpadlState {
    Building(Assembly),
    Adding(Arc<PageList>),
    Ready(Arc<PageList>),
    Removing,
}

pub(in crate::vmbus) struct Gpadl {
    pub(in crate::vmbus) relid: u16,
    pub(in crate::vmbus) pages: usize,
    pub(in crate::vmbus) state: GpadlState,
}

impl Bus {
    pub(super) fn gpadl_header(
        &mut self,
        relid: u32,
        gpadl: u32,
        assembly: Assembly,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refused> {
        let known = u16::try_from(relid)
            .ok()
            .filter(|relid| self.channels.contains_key(relid));
        let room = !self.gpadls.contains_key(&gpadl) && self.gpadls.len() < MAX_GPADLS;
        let Some(relid) = known.filter(|_| room) else {
            // Drivers wait for the result, whatever it is.
            self.post(effects, message::gpadl_created(relid, gpadl, REFUSED));
            return refused("GPADL_HEADER", gpadl);
        };
        let state = GpadlState::Building(assembly);
        let pages = 0;
        self.gpadls.insert(
            gpadl,
            Gpadl {
                relid,
                pages,
                state,
            },
        );
        Ok(())
    }

    pub(super) fn gpadl_part(
        &mut self,
        id: u32,
        part: &[u8],
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refused> {
        let pages: usize = self.gpadls.values().map(|gpadl| gpadl.pages).sum();
        let Some(gpadl) = self.gpadls.get_mut(&id) else {
            return refused("GPADL_BODY", id);
        };
        let GpadlState::Building(assembly) = &mut gpadl.state else {
            return refused("GPADL_BODY", id);
        };
        if !assembly.push(part) {
            return Ok(());
        }
        let relid = gpadl.relid;
        match assembly.finish() {
            Ok(list) if pages + list.page_count() <= MAX_PAGES => {
                let list = Arc::new(list);
                gpadl.pages = list.page_count();
                gpadl.state = GpadlState::Adding(list.clone());
                ask(effects, relid, Demand::Add { gpadl: id, list });
            }
            _ => {
                self.gpadls.remove(&id);
                self.post(effects, message::gpadl_created(relid.into(), id, REFUSED));
            }
        }
        Ok(())
    }

    pub(super) fn gpadl_added(&mut self, relid: u16, id: u32, ok: bool, effects: &mut Vec<Effect>) {
        let Some(gpadl) = self
            .gpadls
            .get_mut(&id)
            .filter(|gpadl| gpadl.relid == relid)
        else {
            return;
        };
        let GpadlState::Adding(list) = &gpadl.state else {
            return;
        };
        if ok {
            gpadl.state = GpadlState::Ready(list.clone());
        } else {
            self.gpadls.remove(&id);
        }
        let status = if ok { 0 } else { REFUSED };
        self.post(effects, message::gpadl_created(relid.into(), id, status));
    }

    pub(super) fn gpadl_teardown(
        &mut self,
        connection: Connection,
        id: u32,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refused> {
        self.close_rings(id, effects);
        match self.gpadls.get_mut(&id) {
            Some(gpadl) if !matches!(gpadl.state, GpadlState::Building(_)) => {
                begin_remove(id, gpadl, effects);
            }
            // What was never there is gone: drivers wait for this answer.
            _ => {
                self.gpadls.remove(&id);
                post(effects, connection.target_vp, message::gpadl_torndown(id));
            }
        }
        Ok(())
    }

    pub(super) fn gpadl_removed(&mut self, relid: u16, id: u32, effects: &mut Vec<Effect>) {
        let removing =
            |gpadl: &Gpadl| gpadl.relid == relid && matches!(gpadl.state, GpadlState::Removing);
        if self.gpadls.get(&id).is_some_and(removing) {
            self.gpadls.remove(&id);
            self.post(effects, message::gpadl_torndown(id));
        }
    }
}

pub(super) fn begin_remove(id: u32, gpadl: &mut Gpadl, effects: &mut Vec<Effect>) {
    if !matches!(gpadl.state, GpadlState::Removing) {
        gpadl.state = GpadlState::Removing;
        ask(effects, gpadl.relid, Demand::Remove { gpadl: id });
    }
}
