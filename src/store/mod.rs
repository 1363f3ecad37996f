//! Ports named by their consumer, and their implementations.
