//! Properties over random frames, held against `etherparse` and naive models.

#[path = "properties/adapt.rs"]
mod adapt;
#[path = "properties/frame.rs"]
mod frame;
#[path = "properties/headers.rs"]
mod headers;
