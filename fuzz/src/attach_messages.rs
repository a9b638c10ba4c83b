//! Anything as a message of the attach protocol, in either direction.
//!
//! Input: a byte whose lowest bit says who speaks and whose others how many file descriptors came along, the packet.
//! What is accepted can be written again, fits a packet, and then means the same.

use serde::Serialize;
use serde::de::DeserializeOwned;
use vswitch::attach::message::Checked;
use vswitch::attach::{FromVmm, MAX_FDS, ToVmm};

/// Runs one input.
pub fn run(data: &[u8]) {
    let Some((first, packet)) = data.split_first() else {
        return;
    };
    let fds = usize::from(first >> 1);
    match first & 1 {
        0 => message::<FromVmm>(packet, fds),
        _ => message::<ToVmm>(packet, fds),
    }
}

fn message<M: DeserializeOwned + Serialize + Checked + PartialEq + std::fmt::Debug>(
    packet: &[u8],
    fds: usize,
) {
    let Ok(message) = serde_json::from_slice::<M>(packet) else {
        return;
    };
    if let Err(error) = message.check(fds) {
        assert!(!error.to_string().is_empty());
        return;
    }
    assert!(fds <= MAX_FDS, "more files than fit a packet");
    let again = serde_json::to_vec(&message).expect("messages are plain data");
    let read: M = serde_json::from_slice(&again).expect("what was accepted is accepted again");
    assert_eq!(read, message);
}
