//! What a driver negotiates: NVSP messages, and RNDIS control messages.

use std::sync::atomic::Ordering;

use vswitch::ports::vhost::notify;

use super::{SendBuffer, TxState};
use crate::nvsp::{self, Message, Version};
use crate::port::adapter::{Shared, lock};
use crate::port::receive::{Buffer, RxState};
use crate::port::sections::MAX_SECTIONS;
use crate::rndis::control::{self, MAX_REQUEST};
use crate::rndis::info::{Facts, Statistics};
use crate::rndis::offload::revision;

impl TxState {
    /// Deals with a control message. False if it is malformed.
    pub(super) fn control(&mut self, shared: &Shared) -> bool {
        let mut message = [0; MAX_REQUEST];
        let Ok(len) = self.scatter.read(&shared.memory, 0, &mut message) else {
            return false;
        };
        let mut rx = lock(&shared.rx);
        let facts = Facts {
            permanent_mac: shared.config.mac,
            mac_may_change: shared.config.mac_may_change,
            link_up: shared.link_up.load(Ordering::Relaxed),
            mtu: self.mtu,
            channels: shared.config.channels,
            revision: self.revision,
            coalescing: self.coalescing,
            statistics: Statistics {
                sent: self.sent,
                send_errors: self.errors,
                received: rx.received,
                no_buffer: rx.no_buffer,
            },
        };
        let reply = self
            .adapter
            .handle(message.get(..len).unwrap_or(&[]), &facts);
        // In force before the driver reads the answer.
        rx.filter.clone_from(&self.adapter.filter);
        rx.scaling.clone_from(&self.adapter.scaling);
        rx.receive = self.adapter.receive;
        self.replies.extend(reply);
        notify::signal(&*shared.attention);
        true
    }

    /// Deals with a message of NVSP; gives the answer, if it has one of its own.
    pub(super) fn negotiate(&mut self, shared: &Shared, message: Message) -> Option<nvsp::Bytes> {
        let answer = self.agree(shared, message);
        notify::signal(&*shared.attention);
        answer
    }

    fn agree(&mut self, shared: &Shared, message: Message) -> Option<nvsp::Bytes> {
        match message {
            Message::Init { min, max } => {
                self.version = Version::negotiate(min, max);
                return Some(nvsp::init_complete(self.version));
            }
            Message::NdisVersion { major, minor } => self.revision = revision(major, minor),
            Message::NdisConfig {
                frame,
                capabilities,
            } => {
                let asked = capabilities & nvsp::CAPABILITY_RSC != 0;
                self.coalescing = asked && self.version >= Some(Version::V6_1);
                let mtu = frame.saturating_sub(14).min(nvsp::MAX_MTU.into()) as u16;
                self.mtu = mtu.max(nvsp::MIN_MTU);
            }
            Message::ReceiveBuffer { gpadl, id } => {
                let sections = self.set_receive_buffer(&mut lock(&shared.rx), gpadl, id);
                return Some(nvsp::receive_buffer_complete(sections));
            }
            Message::RevokeReceiveBuffer => lock(&shared.rx).buffer = None,
            Message::SendBuffer { gpadl } => {
                let pages = self.version.and_then(|_| self.gpadls.get(&gpadl).cloned());
                self.send_buffer = pages.map(|pages| SendBuffer { gpadl, pages });
                return Some(nvsp::send_buffer_complete(self.send_buffer.is_some()));
            }
            Message::RevokeSendBuffer => self.send_buffer = None,
            Message::SubChannels { operation, count } => {
                let granted = count.min(shared.config.channels.saturating_sub(1));
                let allowed = operation == 1 && self.version >= Some(Version::V5);
                if allowed {
                    shared.sub_channels.store(granted, Ordering::Relaxed);
                }
                return Some(nvsp::sub_channels_complete(allowed.then_some(granted)));
            }
            Message::SwitchDataPath {
                virtual_function: true,
            } => return Some(nvsp::refused()),
            Message::SwitchDataPath { .. }
            | Message::RndisPacket { .. }
            | Message::RndisPacketComplete => {}
        }
        None
    }

    /// Divides a buffer into sections; gives their size and number.
    fn set_receive_buffer(&mut self, rx: &mut RxState, gpadl: u32, id: u16) -> Option<(u32, u32)> {
        let pages = self.version.and_then(|_| self.gpadls.get(&gpadl))?.clone();
        let section = nvsp::receive_section(self.mtu);
        let count = (pages.len() / section).min(MAX_SECTIONS);
        if count == 0 || rx.buffer.is_some() {
            return None;
        }
        rx.sections.reset(count);
        rx.buffer = Some(Buffer {
            gpadl,
            id,
            pages,
            section,
        });
        Some((section, count))
    }

    /// Tells the driver of a change of the link.
    pub(super) fn tell_link(&mut self, shared: &Shared) {
        let up = shared.link_up.load(Ordering::Relaxed);
        if up != self.link_up && !self.replies.is_full() {
            self.link_up = up;
            self.replies.push(control::link_changed(up));
        }
    }
}
