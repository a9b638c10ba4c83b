//! A guest for tests and benchmarks: a network driver over memory of its own.

pub mod ring;
