//! Offloads.
