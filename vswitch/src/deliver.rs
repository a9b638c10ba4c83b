//! Delivery of one burst's frames to one destination.
