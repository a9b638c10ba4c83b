//! Interfaces as the control side handles them: set, watched, their addresses and routes moved (rtnetlink(7)).

mod record;
mod take_over;

use std::io;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::{Handle, MulticastGroup, new_multicast_connection};
use tokio::task::JoinHandle;

use crate::info::LinkInfo;
use crate::name::IfName;
pub use record::{Moved, Saved};

/// Why something was not done with an interface.
#[derive(Debug, thiserror::Error)]
pub enum LinksError {
    /// There is no such interface.
    #[error("there is no interface {0}")]
    NotFound(IfName),
    /// A route hangs on a nexthop object, which can't be moved.
    #[error(
        "route {0} uses a nexthop object (`ip nexthop`), which can't be moved; make it a plain route first"
    )]
    NexthopObject(String),
    /// A record of moved addresses and routes can't be read.
    #[error("the record of {0} can't be read")]
    Record(String),
    /// The kernel refused.
    #[error("{what} failed{}", not_restored(not_restored_list))]
    Refused {
        /// What was tried.
        what: String,
        /// What could not be put back after it.
        not_restored_list: Vec<String>,
        /// What the kernel said.
        source: io::Error,
    },
}

fn not_restored(list: &[String]) -> String {
    if list.is_empty() {
        String::new()
    } else {
        format!("; and these were not put back: {}", list.join(", "))
    }
}

/// A change to an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// It is new, or something about it changed.
    Changed(LinkInfo),
    /// It is gone.
    Removed {
        /// Its index.
        index: u32,
        /// Its name.
        name: String,
    },
    /// Some changes were lost, as they came faster than they were read: look at all interfaces anew.
    Lost,
}

/// A connection to rtnetlink, in the network namespace of the thread that made it.
#[derive(Debug)]
pub struct Links {
    handle: Handle,
    connection: JoinHandle<()>,
}

/// The changes to all interfaces, from when it was made.
pub struct LinkEvents(BoxStream<'static, LinkEvent>);

impl Links {
    /// Connects. To be called within a tokio runtime; the events end when the [`Links`] are dropped.
    ///
    /// # Errors
    /// What the socket says.
    pub fn connect() -> io::Result<(Self, LinkEvents)> {
        let (connection, handle, messages) = new_multicast_connection(&[MulticastGroup::Link])?;
        let connection = tokio::spawn(connection);
        let events = messages.filter_map(|(message, _)| std::future::ready(event(message)));
        Ok((Self { handle, connection }, LinkEvents(events.boxed())))
    }

    /// Sets the MTU, in bytes of IP.
    ///
    /// # Errors
    /// [`LinksError::NotFound`], [`LinksError::Refused`].
    pub async fn set_mtu(&self, name: &IfName, mtu: u32) -> Result<(), LinksError> {
        let mut message = link_message(name)?;
        message.attributes.push(LinkAttribute::Mtu(mtu));
        self.set(message, || format!("setting the MTU of {name} to {mtu}"))
            .await
    }

    /// Sets the interface up or down.
    ///
    /// # Errors
    /// [`LinksError::NotFound`], [`LinksError::Refused`].
    pub async fn set_up(&self, name: &IfName, up: bool) -> Result<(), LinksError> {
        let mut message = link_message(name)?;
        message.header.change_mask = LinkFlags::Up;
        message.header.flags = if up {
            LinkFlags::Up
        } else {
            LinkFlags::empty()
        };
        self.set(message, || {
            format!("setting {name} {}", if up { "up" } else { "down" })
        })
        .await
    }

    async fn set(
        &self,
        message: LinkMessage,
        what: impl FnOnce() -> String,
    ) -> Result<(), LinksError> {
        let set = self.request(RouteNetlinkMessage::SetLink(message), 0).await;
        set.map_err(|source| LinksError::Refused {
            what: what(),
            not_restored_list: Vec::new(),
            source,
        })
    }

    /// Asks the kernel to do something, and waits until it is done.
    async fn request(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut answers = self
            .handle
            .clone()
            .request(message)
            .map_err(io::Error::other)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(error.to_io());
            }
        }
        Ok(())
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl LinkEvents {
    /// The next change; `None` when the [`Links`] were dropped.
    pub async fn next(&mut self) -> Option<LinkEvent> {
        self.0.next().await
    }
}

fn event(message: NetlinkMessage<RouteNetlinkMessage>) -> Option<LinkEvent> {
    match message.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
            Some(LinkEvent::Changed(LinkInfo::from_message(&link)))
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => {
            let LinkInfo { index, name, .. } = LinkInfo::from_message(&link);
            Some(LinkEvent::Removed { index, name })
        }
        NetlinkPayload::Overrun(_) => Some(LinkEvent::Lost),
        _ => None,
    }
}

/// The index of an interface that must be there.
fn index(name: &IfName) -> Result<u32, LinksError> {
    match LinkInfo::read(name) {
        Ok(Some(link)) => Ok(link.index),
        Ok(None) => Err(LinksError::NotFound(name.clone())),
        Err(source) => Err(LinksError::Refused {
            what: format!("looking for {name}"),
            not_restored_list: Vec::new(),
            source,
        }),
    }
}

fn link_message(name: &IfName) -> Result<LinkMessage, LinksError> {
    let mut message = LinkMessage::default();
    message.header.index = index(name)?;
    Ok(message)
}
