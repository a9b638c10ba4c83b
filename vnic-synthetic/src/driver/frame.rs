//! Frames as the driver sends and receives them.

/// How a frame is passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carry {
    /// Copied to a section of the send buffer.
    SendBuffer,
    /// By the pages it lies in.
    Pages,
    /// Message header in the send buffer, the frame by its pages.
    Mixed,
}

/// A frame to send.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    /// Destination MAC to the end of the payload.
    pub bytes: Vec<u8>,
    /// Per-packet information: type and value, in this order.
    pub info: Vec<(u32, u32)>,
}

impl Frame {
    /// A frame about which nothing is said.
    pub fn plain(bytes: &[u8]) -> Frame {
        Frame {
            bytes: bytes.to_vec(),
            info: Vec::new(),
        }
    }

    /// The same with one more item of information.
    #[must_use]
    pub fn with(mut self, kind: u32, value: u32) -> Frame {
        self.info.push((kind, value));
        self
    }
}

/// A frame that was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Per-packet information: type and value.
    pub info: Vec<(u32, u32)>,
    /// Sections it came in.
    pub parts: usize,
}
