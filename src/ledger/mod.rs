//! Strict limits: the pure state machine. No I/O, no clock.

pub mod period;
