//! Several gateways, one store, one budget: the limit holds for all of them together, on good days and on bad ones.
//!
//! Every test drives real processes and is bounded. Each runs a few rounds of its faults; `make campaign` runs all of them.

mod clients;
mod clocks;
mod disk;
mod failover;
mod kills;
mod outage;
mod proxy;
mod secured;
mod sharing;
