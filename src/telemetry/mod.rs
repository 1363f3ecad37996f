//! Metrics and logs out.

pub mod logging;
pub mod metrics;
