//! Rate limits in this process: GCRA for requests and tokens, exact counts for concurrency.

use std::sync::Arc;

use crate::policy::scope::Scope;

/// A rate limit as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// Its name.
    pub name: Arc<str>,
    /// Whom it is for.
    pub scope: Scope,
    /// Requests per minute-like window.
    pub requests: Option<Rate>,
    /// Tokens per window, estimated at admission and corrected at the end.
    pub tokens: Option<Rate>,
    /// Calls at the same time.
    pub concurrent: Option<u32>,
}

/// So many per so long: `600/min`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many.
    pub count: u64,
    /// Per how long, in milliseconds.
    pub per_ms: u64,
}
