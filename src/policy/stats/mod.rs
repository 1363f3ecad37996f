//! Statistics that decide: of experiments, which are looked at while they run, and of evaluations, which have an end.
//!
//! Pure functions of sums. For experiments, read [`sequence`] first: it says what may be looked at how often.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub mod agreement;
pub mod bootstrap;
pub mod exact;
pub mod guardrail;
pub mod paired;
pub mod power;
pub mod proportion;
pub mod random;
pub mod report;
pub mod sequence;
pub mod special;
pub mod srm;
pub mod verdict;
pub mod words;

#[cfg(test)]
mod tests;

pub use self::{
    report::{Report, Study, analyse},
    words::Language,
};

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

/// What a metric is a ratio of, which decides how it is smoothed and said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Some of all: errors of calls, successes of rated calls. From 0 to 1.
    Share,
    /// So much per call: cost, latency, tokens; or per success. In the unit that its sums are in.
    Amount,
}

/// Sums of one metric over the units of one arm: all that analysis needs, and what many stores can add up alike.
///
/// A unit has a numerator `x` and a denominator `n`, both over all of its calls so far: errors and calls, cost and calls, cost
/// and successes. A unit of which nothing could be counted is not in the sums: no rated call, for a metric of ratings.
/// For cost per success that is a unit without a rated call; one with rated calls and no success *is* in them, with its cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Moments {
    /// Units in the sums.
    pub units: u64,
    /// Σ x.
    pub sum_x: f64,
    /// Σ n.
    pub sum_n: f64,
    /// Σ x².
    pub sum_xx: f64,
    /// Σ n².
    pub sum_nn: f64,
    /// Σ x n.
    pub sum_xn: f64,
}

/// One variant of an experiment and what its units did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Arm {
    /// The variant's name.
    pub name: String,
    /// Its configured weight, relative to the others'.
    pub weight: f64,
    /// Units that were exposed to it.
    pub units: u64,
    /// Sums by the metric's name.
    pub metrics: BTreeMap<String, Moments>,
}

// === impl Moments ===

impl Moments {
    /// Takes a unit in.
    pub fn add(&mut self, x: f64, n: f64) {
        self.units += 1;
        self.sum_x += x;
        self.sum_n += n;
        self.sum_xx += x * x;
        self.sum_nn += n * n;
        self.sum_xn += x * n;
    }

    /// `Σx / Σn`; nothing where the denominator is not above 0.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        (self.sum_n > 0.0).then(|| self.sum_x / self.sum_n)
    }

    /// Whether these can be the sums of a share: each unit has a whole numerator of at least 0 and at most its denominator.
    ///
    /// Fractions and amounts above 1 show in the sums; that they cancel out in all of them is as good as impossible.
    #[must_use]
    pub fn may_be_share(&self) -> bool {
        let whole = [self.sum_x, self.sum_xx, self.sum_xn].iter().all(|sum| sum.fract() == 0.0);
        let within = |x: f64, n: f64| (0.0..=n).contains(&x);
        whole
            && within(self.sum_x, self.sum_n)
            && within(self.sum_xx, self.sum_xn)
            && within(self.sum_xn, self.sum_nn)
            && self.sum_x <= self.sum_xx
    }

    /// Successes and units, where each unit is one yes or no: one call a unit, and none but 0 and 1 among the `x`.
    ///
    /// Sums show it for counts: `x² ≥ x` for whole numbers, and equal only for 0 and 1.
    #[must_use]
    pub fn as_binary(&self) -> Option<(u64, u64)> {
        let units = self.units as f64;
        let once = self.sum_n == units && self.sum_nn == units;
        let yes_or_no = self.sum_xx == self.sum_x && self.sum_xn == self.sum_x && (0.0..=units).contains(&self.sum_x);
        (once && yes_or_no && self.sum_x.fract() == 0.0).then_some((self.sum_x as u64, self.units))
    }
}
