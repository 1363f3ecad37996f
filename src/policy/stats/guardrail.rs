//! What an experiment must not harm: a limit that stops a variant once it is surely broken.
//!
//! One-sided confidence sequences ([`Boundary::one_sided`]): a variant that keeps to the limit is called a breach with
//! probability at most α over its whole life, however often it is looked at. Where an experiment has several, α is divided
//! among them (Bonferroni). They are tightest early, because harm is worth finding early: at [`TARGET_UNITS`] and from
//! [`MINIMUM_UNITS`] on.

use serde::{Deserialize, Serialize};

use super::{
    Kind, Moments,
    sequence::{Boundary, Ratio},
};

/// Units at which guardrails are tightest.
pub const TARGET_UNITS: f64 = 1_000.0;

/// Units per arm before a guardrail speaks. Fewer than a verdict's: so early only gross harm passes the boundary.
pub const MINIMUM_UNITS: u64 = 50;

/// A limit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// The metric's highest value: 0.05 for an error rate of 5 %.
    Max(f64),
    /// Its highest increase over the control's, as a share of that: 0.2 for 20 % more.
    MaxIncrease(f64),
}

/// What is known of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Surely broken.
    Breached,
    /// Surely kept.
    Held,
    /// Neither, yet.
    Undecided,
}

/// A guardrail's finding on one arm, in the terms of its limit: the metric's value, or its increase over the control's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Finding {
    /// The judgement.
    pub state: State,
    /// The estimate; nothing while there is none.
    pub value: Option<f64>,
}

/// An arm against a limit.
struct Measured {
    /// In the limit's terms.
    value: f64,
    /// What is above the limit, in the metric's unit.
    excess: f64,
    /// Standard error of the excess.
    error: f64,
    /// Units that it is from.
    units: u64,
}

/// Judges `arm` by `limit` at level `alpha`; `control` matters for increases alone.
#[must_use]
pub fn check(limit: Limit, control: &Moments, arm: &Moments, kind: Kind, alpha: f64) -> Finding {
    let Some(Measured { value, excess, error, units }) = measure(limit, control, arm, kind) else {
        return Finding { state: State::Undecided, value: None };
    };
    let margin = Boundary::one_sided(alpha, TARGET_UNITS).multiplier(units as f64) * error;
    let state = match excess {
        excess if excess > margin => State::Breached,
        excess if excess <= -margin => State::Held,
        _ => State::Undecided,
    };
    Finding { state, value: Some(value) }
}

/// Nothing while there are too few units, or there is nothing to increase from.
fn measure(limit: Limit, control: &Moments, arm: &Moments, kind: Kind) -> Option<Measured> {
    if arm.units < MINIMUM_UNITS {
        return None;
    }
    match limit {
        Limit::Max(max) => {
            let arm = Ratio::of(arm, kind)?;
            Some(Measured { value: arm.value, excess: arm.value - max, error: arm.variance.sqrt(), units: arm.units })
        }
        Limit::MaxIncrease(_) if control.units < MINIMUM_UNITS => None,
        Limit::MaxIncrease(increase) => {
            let (control, arm) = Ratio::of_pair(control, arm, kind)?;
            (control.value > 0.0).then(|| increase_of(arm, control, 1.0 + increase))
        }
    }
}

/// Judged by `arm − allowed · control`, whose error is known, rather than by the quotient, which is wild near 0.
fn increase_of(arm: Ratio, control: Ratio, allowed: f64) -> Measured {
    Measured {
        value: arm.value / control.value - 1.0,
        excess: arm.value - allowed * control.value,
        error: (arm.variance + allowed * allowed * control.variance).sqrt(),
        units: arm.units + control.units,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(successes: u64, units: u64) -> Moments {
        let (x, n) = (successes as f64, units as f64);
        Moments { units, sum_x: x, sum_n: n, sum_xx: x, sum_nn: n, sum_xn: x }
    }

    #[test]
    fn limits_are_breached_held_or_open() {
        for (limit, control, arm, state) in [
            (Limit::Max(0.05), binary(0, 0), binary(120, 1_000), State::Breached),
            (Limit::Max(0.05), binary(0, 0), binary(10, 1_000), State::Held),
            (Limit::Max(0.05), binary(0, 0), binary(52, 1_000), State::Undecided),
            (Limit::Max(0.05), binary(0, 0), binary(49, 49), State::Undecided),
            (Limit::Max(0.05), binary(0, 0), binary(25, 50), State::Breached),
            (Limit::MaxIncrease(0.2), binary(400, 2_000), binary(700, 2_000), State::Breached),
            (Limit::MaxIncrease(0.2), binary(400, 2_000), binary(380, 2_000), State::Held),
            (Limit::MaxIncrease(0.2), binary(400, 2_000), binary(480, 2_000), State::Undecided),
            (Limit::MaxIncrease(0.2), binary(0, 2_000), binary(480, 2_000), State::Undecided),
        ] {
            assert_eq!(check(limit, &control, &arm, Kind::Share, 0.05).state, state, "{limit:?} {arm:?}");
        }
    }

    #[test]
    fn the_value_is_in_the_limits_terms() {
        let (control, arm) = (binary(200, 1_000), binary(250, 1_000));
        let value = |limit| check(limit, &control, &arm, Kind::Share, 0.05).value.unwrap();
        assert!((value(Limit::Max(0.3)) - 0.25).abs() < 1e-12);
        assert!((value(Limit::MaxIncrease(0.3)) - 0.25).abs() < 1e-12);
    }
}
