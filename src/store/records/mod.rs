//! The call log: each finished call as one row, in a local file or in PostgreSQL.
//!
//! - [`ports`]: what the gateway asks of a log, with the rules that hold for each of them (`contract`).
//! - [`sqlite`]: a file in the data directory.
//! - [`postgres`]: a server that a fleet shares.
//! - [`bodies`]: what is kept of prompts and replies.
//! - [`evaluations`]: reports of evaluations, kept beside the calls.
//! - [`figures`]: what the arms of an experiment or roll-out did.
//! - [`feedback`]: what is said of calls and sessions.
//! - [`export`]: calls as files.
//! - [`writer`]: batches on their way into a log, which may be away: off the call's path, bounded, spilled to disk.
//! - [`month`]: what each day cost, and what the month will come to.
//! - [`histogram`]: latencies that can be summed up.

pub mod bodies;
pub mod evaluations;
pub mod export;
pub mod feedback;
pub mod figures;
mod filter;
pub mod histogram;
pub mod migrations;
pub mod month;
pub mod ports;
pub mod postgres;
mod rollup;
mod spill;
pub mod sqlite;
mod usage;
pub mod writer;

#[cfg(test)]
mod contract;

use std::sync::Arc;

use ports::CallLog;
use writer::{Desk, Progress};

/// The call log of a running gateway.
#[derive(Debug, Clone)]
pub struct Calls {
    /// To be read: by the API, the dashboard.
    pub log: Arc<dyn CallLog>,
    /// How far the writer is.
    pub progress: Arc<Progress>,
    /// Where feedback is taken.
    pub desk: Desk,
}
