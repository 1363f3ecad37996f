//! Metrics and logs out.
