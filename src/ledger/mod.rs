//! Strict limits: the pure state machine. No I/O, no clock.
//!
//! Money is moved to a replica *before* it can be spent, and a call takes only from that replica's purse. Per account and
//! purse there are totals that only grow (granted, returned, charged, debt); every message carries totals and is merged by
//! `max`, so a lost, repeated or late one is harmless:
//!
//! ```text
//! Σ true spend ≤ Σ (charged + open) ≤ Σ (granted − returned) ≤ limit        (plus debt, which is visible as such)
//! ```
//!
//! - [`account`]: the authority's side, one account's truth.
//! - [`purse`]: the replica's side, atomics that a call takes from.
//! - [`sync`]: what the two say to each other.
//! - [`period`]: which account a call belongs to at a given instant.

pub mod account;
pub mod period;
pub mod purse;
pub mod sync;

#[cfg(test)]
mod simulation;
