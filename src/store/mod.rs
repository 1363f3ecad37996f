//! Ports named by their consumer, and their implementations.

pub mod keys;
