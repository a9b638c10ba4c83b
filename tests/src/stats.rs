//! The counters of `vswitchctl stats --json`, and the sum that every port must keep.

use anyhow::{Context, Result};
use serde_json::Value;

/// The counters of one port; frames are booked on the port they came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortStats {
    /// The network's name.
    pub network: String,
    /// The port's name.
    pub port: String,
    /// Frames the port's guest sent.
    pub tx_frames: u64,
    /// Frames the port's guest was given.
    pub rx_frames: u64,
    /// Frames taken in from this port.
    pub taken: u64,
    /// Copies beyond the first that floods of its frames made.
    pub extra_copies: u64,
    /// Copies that reached a port.
    pub delivered: u64,
    /// Frames the switch kept for itself.
    pub consumed: u64,
    /// Copies dropped for a named reason.
    pub dropped: u64,
    /// The drops by reason.
    pub drops: Vec<(String, u64)>,
}

impl PortStats {
    /// Whether taken + extra copies = delivered + consumed + dropped.
    #[must_use]
    pub fn adds_up(&self) -> bool {
        self.taken + self.extra_copies == self.delivered + self.consumed + self.dropped
    }
}

/// The counters of all ports.
#[derive(Clone, Debug)]
pub struct Stats(pub Vec<PortStats>);

impl Stats {
    /// Reads the answer of `stats --json`.
    ///
    /// # Errors
    /// When a promised key is missing or of the wrong kind; the error names it.
    pub fn parse(answer: &Value) -> Result<Self> {
        let ports = answer
            .get("ports")
            .and_then(Value::as_array)
            .context("no list \"ports\" in the answer of stats")?;
        ports.iter().map(port).collect::<Result<_>>().map(Self)
    }

    /// One port.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn port(&self, network: &str, port: &str) -> Result<&PortStats> {
        let found = self
            .0
            .iter()
            .find(|p| p.network == network && p.port == port);
        found.with_context(|| format!("no port {port} of network {network} in the answer of stats"))
    }

    /// The ports whose counters do not add up.
    #[must_use]
    pub fn wrong(&self) -> Vec<&PortStats> {
        self.0.iter().filter(|p| !p.adds_up()).collect()
    }
}

fn port(value: &Value) -> Result<PortStats> {
    let text = |key: &str| -> Result<String> {
        let found = value.get(key).and_then(Value::as_str);
        Ok(found
            .with_context(|| format!("no text \"{key}\" in {value}"))?
            .to_owned())
    };
    let count = |key: &str| -> Result<u64> {
        value
            .get(key)
            .and_then(Value::as_u64)
            .with_context(|| format!("no count \"{key}\" in {value}"))
    };
    let drops = value
        .get("drops")
        .and_then(Value::as_object)
        .with_context(|| format!("no \"drops\" in {value}"))?;
    Ok(PortStats {
        network: text("network")?,
        port: text("port")?,
        tx_frames: count("tx_frames")?,
        rx_frames: count("rx_frames")?,
        taken: count("taken_frames")?,
        extra_copies: count("extra_copies")?,
        delivered: count("delivered_frames")?,
        consumed: count("consumed_frames")?,
        dropped: count("dropped_frames")?,
        drops: drops
            .iter()
            .map(|(k, v)| (k.clone(), v.as_u64().unwrap_or_default()))
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(delivered: u64) -> Value {
        serde_json::json!({"ports": [{"network": "n", "port": "p", "tx_frames": 4, "rx_frames": 0, "tx_bytes": 0,
            "rx_bytes": 0, "drops": {"no_room": 1}, "taken_frames": 4, "extra_copies": 2, "copied_bytes": 0,
            "delivered_frames": delivered, "consumed_frames": 1, "dropped_frames": 1}]})
    }

    #[test]
    fn counters_that_add_up_are_told_from_those_that_do_not() {
        assert!(Stats::parse(&answer(4)).unwrap().wrong().is_empty());
        assert_eq!(Stats::parse(&answer(5)).unwrap().wrong().len(), 1);
    }

    #[test]
    fn a_missing_key_is_named() {
        let mut answer = answer(4);
        answer["ports"][0]
            .as_object_mut()
            .unwrap()
            .remove("extra_copies");
        assert!(
            Stats::parse(&answer)
                .unwrap_err()
                .to_string()
                .contains("extra_copies")
        );
    }
}
