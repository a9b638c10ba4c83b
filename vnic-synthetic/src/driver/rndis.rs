//! RNDIS messages, written and read by the driver.

use super::frame::{Frame, Received};

pub(super) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub(super) fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

/// A control message with its length filled in.
pub(super) fn control(kind: u32, body: &[u32], value: &[u8]) -> Vec<u8> {
    let len = 8 + 4 * body.len() + value.len();
    let mut message = words(&[kind, len as u32]);
    message.extend(words(body));
    message.extend(value);
    message
}

/// The header of a data message for `frame` with its information, padded to `align` bytes behind the frame.
pub(super) fn data_header(frame: &Frame, align: usize) -> Vec<u8> {
    let info_len = 16 * frame.info.len();
    let len = (44 + info_len + frame.bytes.len()).next_multiple_of(align);
    let info_at = if info_len == 0 { 0 } else { 36 };
    let mut header = words(&[
        1,
        len as u32,
        (36 + info_len) as u32,
        frame.bytes.len() as u32,
        0,
        0,
        0,
        info_at,
        info_len as u32,
        0,
        0,
    ]);
    for (kind, value) in &frame.info {
        header.extend(words(&[16, *kind, 12, *value]));
    }
    header
}

/// Reads a data message as strictly as drivers do.
pub(super) fn read_data(message: &[u8]) -> Received {
    assert_eq!(word(message, 0), 1, "a data message");
    assert_eq!(word(message, 4) as usize, message.len(), "its length");
    let (at, len) = (word(message, 8) as usize + 8, word(message, 12) as usize);
    let mut items = match word(message, 32) as usize {
        0 => &[][..],
        info_len => {
            let info_at = word(message, 28) as usize + 8;
            &message[info_at..info_at + info_len]
        }
    };
    let mut info = Vec::new();
    while !items.is_empty() {
        let (size, value) = (word(items, 0) as usize, word(items, 8) as usize);
        info.push((word(items, 4), word(items, value)));
        items = &items[size..];
    }
    Received {
        bytes: message[at..at + len].to_vec(),
        info,
        parts: 1,
    }
}
