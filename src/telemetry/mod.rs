//! Metrics, logs, alerts and traces out.

pub mod alerts;
pub mod logging;
pub mod metrics;
pub mod otlp;
pub mod post;
