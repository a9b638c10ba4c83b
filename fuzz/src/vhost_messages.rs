//! A vhost-user front-end that says anything in any order, and the session that listens.
//!
//! Input: the port's offer, then actions until it ends: messages built from the fields of the protocol, raw bytes as a
//! message, and what the worker does with the rings in between. Messages go through the parser as they come off a
//! socket; in half of the inputs through a socket too, in pieces. The session is driven as the server thread of a port
//! drives it: sides are taken back before a message that disturbs them, and an error ends the connection.

mod peer;
mod wire;

use std::os::unix::net::UnixStream;

use vswitch::ports::vhost::connection::{Connection, ConnectionError, Next, Watched};
use vswitch::ports::vhost::message::{Header, Message};
use vswitch::ports::vhost::session::Offer;

use crate::input::Input;
use peer::Peer;
use wire::{Files, Packet};

/// Most messages of one input: it bounds the mappings that one makes.
const MESSAGES: usize = 200;

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let bits = input.u8();
    let offer = Offer {
        queue_pairs: [1, 2, 128][usize::from(bits >> 1 & 3) % 3],
        mtu: 1500,
    };
    let files = Files::new();
    let mut peer = Peer::new(offer);
    let mut messages = 0;
    if bits & 1 != 0 {
        through_socket(&mut input, &files, &mut peer);
        return;
    }
    while !input.is_empty() && messages < MESSAGES {
        if peer.is_attached() && input.u8() & 1 != 0 {
            peer.turn(&mut input, &files);
            continue;
        }
        messages += 1;
        let packet = wire::message(&mut input, &files);
        let Some((header, message)) = parse(packet) else {
            continue;
        };
        if peer.handle(&header, message).is_err() {
            break;
        }
    }
    peer.hang_up();
}

fn parse(packet: Packet) -> Option<(Header, Message)> {
    let (header, body) = packet.bytes.split_first_chunk()?;
    let header = Header::parse(header).ok()?;
    let message = Message::parse(&header, body, packet.fds).ok()?;
    Some((header, message))
}

/// The front-end writes all that it has to say, and closes; the session sees it all, unless something is wrong with it.
fn through_socket(input: &mut Input<'_>, files: &Files, peer: &mut Peer) {
    let (front, back) = UnixStream::pair().expect("socket pair");
    let connection = Connection::new(back).expect("socket");
    let mut sent = 0;
    while !input.is_empty() && sent < 20 {
        sent += 1;
        let packet = wire::message(input, files);
        if !wire::send(&front, &packet, input.u8()) {
            break;
        }
    }
    front.shutdown(std::net::Shutdown::Write).expect("socket");
    let nothing: Watched<'_, ()> = Vec::new();
    loop {
        let (header, message) = match connection.receive(nothing.clone(), |()| Next::Wait) {
            Ok(received) => received,
            Err(ConnectionError::Socket(error)) => panic!("{error}"),
            Err(_) => break,
        };
        let Ok(reply) = peer.handle(&header, message) else {
            break;
        };
        if let Some(reply) = reply {
            connection
                .reply(header.code, &reply, nothing.clone(), |()| Next::Wait)
                .expect("the other end is open");
        }
    }
    peer.hang_up();
}
