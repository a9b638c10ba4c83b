//! Moving addresses and routes from one interface to another, as a whole or not at all.

use std::io;

use futures_util::{Stream, TryStreamExt};
use rtnetlink::packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::record::{has_gateway, load_address, load_route, save_address, save_route};
use super::{Links, LinksError, Moved, Saved, index};
use crate::name::IfName;

/// One change, which can be undone.
#[derive(Clone)]
struct Step {
    text: String,
    interface: IfName,
    object: Object,
    add: bool,
}

#[derive(Clone)]
enum Object {
    Address(AddressMessage),
    Route(RouteMessage),
}

impl Links {
    /// Moves all addresses, but for link-local ones of IPv6, and all routes that users and daemons made, from one
    /// interface to another. `to` must be up, or its routes are refused.
    ///
    /// Addresses keep prefix, scope, label and lifetime; routes keep table, metric, gateway and the rest. If a step
    /// fails, those before it are undone. Routes are away for some microseconds. Routes that the kernel makes for
    /// addresses follow them; neighbours and policy rules stay. IPv6 addresses are not checked for duplicates again, and
    /// show `nodad` from then on.
    ///
    /// # Errors
    /// See [`LinksError`].
    pub async fn take_over(&self, from: &IfName, to: &IfName) -> Result<Moved, LinksError> {
        index(to)?;
        let moved = self.survey(from, to).await?;
        self.run(steps(&moved, from, to)?).await?;
        Ok(moved)
    }

    /// What [`take_over`](Self::take_over) would move; `to` need not be there yet.
    ///
    /// # Errors
    /// See [`LinksError`].
    pub async fn survey(&self, from: &IfName, to: &IfName) -> Result<Moved, LinksError> {
        let from_index = index(from)?;
        let addresses = self.save_addresses(from_index).await?;
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            for message in self
                .dump(self.handle.route().get(request).execute(), "routes")
                .await?
            {
                routes.extend(save_route(message, from_index)?);
            }
        }
        // What leads to a gateway comes before what needs it.
        routes.sort_by_key(has_gateway);
        Ok(Moved {
            from: from.clone(),
            to: to.clone(),
            addresses,
            routes,
        })
    }

    /// Moves back what [`take_over`](Self::take_over) moved, as it was then. What is back already, or gone from where it
    /// was moved to, is no error, nor is it one if that interface is gone.
    ///
    /// # Errors
    /// See [`LinksError`]. What was done before a failure is undone.
    pub async fn give_back(&self, moved: &Moved) -> Result<(), LinksError> {
        self.run(steps(moved, &moved.to, &moved.from)?).await
    }

    /// The addresses of an interface that [`take_over`](Self::take_over) would move, with their prefix lengths.
    ///
    /// # Errors
    /// See [`LinksError`].
    pub async fn addresses(&self, name: &IfName) -> Result<Vec<String>, LinksError> {
        let saved = self.save_addresses(index(name)?).await?;
        Ok(saved.into_iter().map(|address| address.text).collect())
    }

    async fn save_addresses(&self, index: u32) -> Result<Vec<Saved>, LinksError> {
        let messages = self
            .dump(self.handle.address().get().execute(), "addresses")
            .await?;
        let (mut v6, v4): (Vec<_>, Vec<_>) = messages
            .into_iter()
            .partition(|m| m.header.family == AddressFamily::Inet6);
        // The kernel puts a new address behind the others of IPv4, and before those of IPv6.
        v6.reverse();
        Ok(v4
            .into_iter()
            .chain(v6)
            .filter_map(|m| save_address(m, index))
            .collect())
    }

    async fn dump<T>(
        &self,
        answers: impl Stream<Item = Result<T, rtnetlink::Error>>,
        what: &str,
    ) -> Result<Vec<T>, LinksError> {
        answers
            .try_collect()
            .await
            .map_err(|error| LinksError::Refused {
                what: format!("listing the {what}"),
                not_restored_list: Vec::new(),
                source: io::Error::other(error),
            })
    }

    /// Does all steps, or undoes those that it did.
    async fn run(&self, steps: Vec<Step>) -> Result<(), LinksError> {
        let mut done: Vec<Step> = Vec::new();
        for step in steps {
            match self.apply(&step).await {
                Ok(true) => done.push(step),
                Ok(false) => {}
                Err(source) => {
                    let mut not_restored_list = Vec::new();
                    while let Some(step) = done.pop() {
                        let undo = Step {
                            add: !step.add,
                            ..step
                        };
                        if let Err(error) = self.apply(&undo).await {
                            not_restored_list.push(format!("{} ({error})", undo.what()));
                        }
                    }
                    return Err(LinksError::Refused {
                        what: step.what(),
                        not_restored_list,
                        source,
                    });
                }
            }
        }
        Ok(())
    }

    /// Does a step; tells whether there was something to do.
    async fn apply(&self, step: &Step) -> io::Result<bool> {
        let (message, flags) = match (step.object.clone(), step.add) {
            (Object::Address(m), true) => (
                RouteNetlinkMessage::NewAddress(m),
                NLM_F_CREATE | NLM_F_EXCL,
            ),
            (Object::Address(m), false) => (RouteNetlinkMessage::DelAddress(m), 0),
            (Object::Route(m), true) => (
                RouteNetlinkMessage::NewRoute(m),
                NLM_F_CREATE | NLM_F_APPEND,
            ),
            (Object::Route(m), false) => (RouteNetlinkMessage::DelRoute(m), 0),
        };
        match self.request(message, flags).await {
            Ok(()) => Ok(true),
            Err(error) => match (error.raw_os_error(), step.add) {
                (Some(libc::EEXIST), true) => Ok(false),
                (Some(libc::ESRCH | libc::EADDRNOTAVAIL | libc::ENODEV), false) => Ok(false),
                _ => Err(error),
            },
        }
    }
}

impl Step {
    fn what(&self) -> String {
        let kind = match self.object {
            Object::Address(_) => "address",
            Object::Route(_) => "route",
        };
        let (verb, preposition) = if self.add {
            ("adding", "to")
        } else {
            ("removing", "from")
        };
        format!(
            "{verb} {kind} {} {preposition} {}",
            self.text, self.interface
        )
    }
}

/// What moves the recorded things from `source` to `target`. The addresses are on both for a while, so that no
/// connection finds them missing; a route can't be, as two of the same destination and metric exclude each other.
fn steps(moved: &Moved, source: &IfName, target: &IfName) -> Result<Vec<Step>, LinksError> {
    let target_index = index(target)?;
    let source_index = match index(source) {
        Ok(index) => Some(index),
        Err(LinksError::NotFound(_)) => None,
        Err(error) => return Err(error),
    };
    let address = |saved: &Saved, interface: &IfName, index, add| {
        let object = Object::Address(load_address(saved, &moved.from, interface, index)?);
        Ok(Step {
            text: saved.text.clone(),
            interface: interface.clone(),
            object,
            add,
        })
    };
    let route = |saved: &Saved, interface: &IfName, index, add| {
        let object = Object::Route(load_route(saved, index)?);
        Ok(Step {
            text: saved.text.clone(),
            interface: interface.clone(),
            object,
            add,
        })
    };
    let mut steps = Vec::new();
    for saved in &moved.addresses {
        steps.push(address(saved, target, target_index, true));
    }
    if let Some(index) = source_index {
        // In reverse: gateways before what leads to them, secondary addresses before primary ones.
        for saved in moved.routes.iter().rev() {
            steps.push(route(saved, source, index, false));
        }
        for saved in moved.addresses.iter().rev() {
            steps.push(address(saved, source, index, false));
        }
    }
    for saved in &moved.routes {
        steps.push(route(saved, target, target_index, true));
    }
    steps.into_iter().collect()
}
