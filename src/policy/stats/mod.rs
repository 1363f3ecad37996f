//! Statistics that decide: of experiments, which are looked at while they run, and of evaluations, which have an end.
//!
//! Pure functions of sums. For experiments, read [`sequence`] first: it says what may be looked at how often.

use serde::Serialize;

pub mod agreement;
pub mod bootstrap;
pub mod paired;
pub mod proportion;
pub mod random;
pub mod special;

/// An estimate and the interval around it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// The estimate.
    pub value: f64,
    /// The interval's lower limit.
    pub low: f64,
    /// The interval's upper limit.
    pub high: f64,
}
