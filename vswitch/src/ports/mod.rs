//! Port kinds.
pub mod vhost;
