//! Periods of a budget in its time zone.

/// A budget's period and the time zone that it is counted in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Per {}
