//! Intervals that may be looked at after every unit: anytime-valid confidence sequences.
//!
//! An ordinary 95 % interval is right 95 % of the time *at one look*. Who looks daily and stops at the first good day is wrong
//! far more often. A confidence sequence is right *at all looks together* with probability 1 − α, so that anyone may look at
//! any time and stop for any reason.
//!
//! # The boundary
//! An estimate after `t` units with standard error `se` has the interval `estimate ± m(t) · se`, where
//!
//! ```text
//! m(t)² = 2 · (tρ² + 1) / (tρ²) · ln(√(tρ² + 1) / α)
//! ```
//!
//! This is Robbins' Gaussian mixture boundary as an asymptotic confidence sequence: Waudby-Smith, Arbour, Sinha, Kennedy and
//! Ramdas (2024), "Time-uniform central limit theory and asymptotic confidence sequences", *Annals of Statistics* 52(6),
//! Theorem 2.2 (their margin with σ̂/√t taken out as `se`). ρ decides where it is tightest; [`Boundary`] has it so at a target
//! number of units by their closed form, `ρ² = (−2 ln α + ln(−2 ln α + 1)) / t*`. A tenth or ten times of the target costs about
//! a fifth of width. The one-sided form replaces the logarithm by `ln(1 + √(tρ² + 1) / (2α))`: Howard, Ramdas, McAuliffe and
//! Sekhon (2021), "Time-uniform, nonparametric, nonasymptotic confidence sequences", *Annals of Statistics* 49(2), section 3.2.
//!
//! # Ratios of clustered calls
//! Calls of one user are alike; users are the independent draws. A metric is `R = Σx / Σn` over users, and its standard error
//! that of the linearised `zᵢ = (xᵢ − R nᵢ) / n̄` (delta method): Deng, Knoblich and Lu (2018), "Applying the Delta Method in Metric
//! Analytics", KDD. `t` counts the users of both arms.
//!
//! # Small numbers
//! An asymptotic sequence promises nothing of its first steps. It speaks from [`MINIMUM_UNITS`] per arm on; a simulation in the
//! tests counts what it does from there, with skewed costs and rare errors. Before that only [`super::exact`] speaks, which
//! holds for any number of units, where a metric is one yes or no per unit. It has [`EXACT_SHARE`] of α, the asymptotic
//! one the rest, so that both together keep α.

use super::{Estimate, Kind, Moments, exact};

/// Units per arm before the asymptotic sequence speaks.
pub const MINIMUM_UNITS: u64 = 100;

/// Part of α that the exact sequence may spend before [`MINIMUM_UNITS`].
pub const EXACT_SHARE: f64 = 0.1;

/// Units of two compared arms together at which intervals are tightest, unless asked otherwise.
pub const TARGET_UNITS: f64 = 5_000.0;

/// Units that the other arm's spread counts like where amounts are compared. It matters to small arms alone.
pub const BORROWED_UNITS: f64 = 2_000.0;

/// How many standard errors an interval reaches, by the number of units.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Boundary {
    alpha: f64,
    rho_squared: f64,
    two_sided: bool,
}

/// A ratio of sums over units, with the variance that its linearisation has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ratio {
    /// `Σx / Σn`.
    pub value: f64,
    /// Its squared standard error.
    pub variance: f64,
    /// Units that it is over.
    pub units: u64,
}

/// Confidence sequences at one level: the intervals of all looks hold together with probability 1 − α.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sequence {
    alpha: f64,
    boundary: Boundary,
}

// === impl Boundary ===

impl Boundary {
    /// Both limits hold together with probability 1 − `alpha`; tightest at `target_units`.
    #[must_use]
    pub fn two_sided(alpha: f64, target_units: f64) -> Boundary {
        Boundary { alpha, rho_squared: rho_squared(alpha, target_units), two_sided: true }
    }

    /// One limit holds with probability 1 − `alpha`; tightest at `target_units`.
    #[must_use]
    pub fn one_sided(alpha: f64, target_units: f64) -> Boundary {
        // One side of 2α is nearly what two sides of α are, and so is where it is tightest.
        let rho_squared = rho_squared((2.0 * alpha).min(0.5), target_units);
        Boundary { alpha, rho_squared, two_sided: false }
    }

    /// Standard errors from the estimate to a limit after `units`, above 0.
    #[must_use]
    pub fn multiplier(&self, units: f64) -> f64 {
        let time = units * self.rho_squared;
        let spread = (time + 1.0).sqrt();
        let log = if self.two_sided { (spread / self.alpha).ln() } else { (spread / (2.0 * self.alpha)).ln_1p() };
        (2.0 * (time + 1.0) / time * log).sqrt()
    }
}

/// Waudby-Smith et al. (2024), appendix on "Optimizing Robbins' normal mixture": the closed form close to the optimum.
fn rho_squared(alpha: f64, target_units: f64) -> f64 {
    let doubled = -2.0 * alpha.ln();
    (doubled + (doubled + 1.0).ln()) / target_units.max(1.0)
}

// === impl Ratio ===

impl Ratio {
    /// The ratio of these sums; nothing where they are over fewer than two units, or have no denominator or no spread.
    ///
    /// The variance of a [`Kind::Share`] counts one success and one failure more than were seen: none in 200 is not a
    /// proof of never. That widens intervals a little, and no longer once there are thousands.
    #[must_use]
    pub fn of(moments: &Moments, kind: Kind) -> Option<Ratio> {
        let value = moments.ratio()?;
        if moments.units < 2 {
            return None;
        }
        let units = moments.units as f64;
        let mean_n = moments.sum_n / units;
        let squares = moments.sum_xx - 2.0 * value * moments.sum_xn + value * value * moments.sum_nn;
        let unseen = match kind {
            Kind::Share => value.mul_add(value, (1.0 - value).powi(2)),
            Kind::Amount => 0.0,
        };
        let variance = (squares.max(0.0) / (mean_n * mean_n) + unseen) / (units - 1.0) / units;
        (variance > 0.0).then_some(Ratio { value, variance, units: moments.units })
    }

    /// Standard deviation over units, in the metric's unit: what [`super::power::Baseline::Deviation`] asks for.
    #[must_use]
    pub fn deviation(&self) -> f64 {
        (self.variance * self.units as f64).sqrt()
    }

    /// The ratios of two arms that are compared. Each variance of a [`Kind::Amount`] is at least what the other arm's spread
    /// suggests, in absolute or relative terms, where that counts like [`BORROWED_UNITS`]: costs have long tails, and a small
    /// arm that has not met its expensive users yet looks cheaper and far more certain than it is.
    #[must_use]
    pub fn of_pair(control: &Moments, arm: &Moments, kind: Kind) -> Option<(Ratio, Ratio)> {
        let (control, arm) = (Ratio::of(control, kind)?, Ratio::of(arm, kind)?);
        match kind {
            Kind::Share => Some((control, arm)),
            Kind::Amount => Some((control.borrowing_from(arm), arm.borrowing_from(control))),
        }
    }

    fn borrowing_from(self, other: Ratio) -> Ratio {
        let units = self.units as f64;
        let scale = (self.value / other.value).powi(2);
        // From a value of 0 a relative spread has no meaning.
        let scale = if scale.is_finite() { scale.max(1.0) } else { 1.0 };
        let borrowed = other.variance * other.units as f64 * scale / units;
        let mixed = (units * self.variance + BORROWED_UNITS * borrowed) / (units + BORROWED_UNITS);
        Ratio { variance: mixed.max(self.variance), ..self }
    }
}

// === impl Sequence ===

impl Sequence {
    /// Sequences that err with probability `alpha` over their whole life, tightest at `target_units` of the two arms together.
    #[must_use]
    pub fn new(alpha: f64, target_units: f64) -> Sequence {
        Sequence { alpha, boundary: Boundary::two_sided((1.0 - EXACT_SHARE) * alpha, target_units) }
    }

    /// Standard errors from the estimate to a limit after `units`.
    #[must_use]
    pub fn multiplier(&self, units: f64) -> f64 {
        self.boundary.multiplier(units)
    }

    /// The metric in one arm; nothing while there are too few units to say.
    #[must_use]
    pub fn mean(&self, moments: &Moments, kind: Kind) -> Option<Estimate> {
        if moments.units < MINIMUM_UNITS {
            let (successes, units) = moments.as_binary()?;
            return exact::rate(successes, units, EXACT_SHARE * self.alpha);
        }
        let ratio = Ratio::of(moments, kind)?;
        Some(around(ratio.value, self.multiplier(ratio.units as f64) * ratio.variance.sqrt()))
    }

    /// How much higher the metric is in `arm` than in `control`; nothing while there are too few units to say.
    #[must_use]
    pub fn difference(&self, control: &Moments, arm: &Moments, kind: Kind) -> Option<Estimate> {
        if control.units.min(arm.units) < MINIMUM_UNITS {
            return exact::difference(control.as_binary()?, arm.as_binary()?, EXACT_SHARE * self.alpha);
        }
        let (control, arm) = Ratio::of_pair(control, arm, kind)?;
        let multiplier = self.multiplier((control.units + arm.units) as f64);
        Some(around(arm.value - control.value, multiplier * (control.variance + arm.variance).sqrt()))
    }

    /// How much higher the metric is in `arm`, as a share of what it is in `control`: 0.12 for 12 % more.
    ///
    /// Nothing while there are too few units, or the control's value cannot be told from 0. The limits are all `r` for which
    /// `arm − (1 + r) · control` cannot be told from 0 (Fieller's theorem, 1954), not a quotient's doubtful normal.
    #[must_use]
    pub fn relative(&self, control: &Moments, arm: &Moments, kind: Kind) -> Option<Estimate> {
        if control.units.min(arm.units) < MINIMUM_UNITS {
            return None;
        }
        let (control, arm) = Ratio::of_pair(control, arm, kind)?;
        let squared = self.multiplier((control.units + arm.units) as f64).powi(2);
        let quotient = fieller(control, arm, squared)?;
        Some(Estimate { value: quotient.value - 1.0, low: quotient.low - 1.0, high: quotient.high - 1.0 })
    }
}

/// All `q` with `(arm − q · control)² ≤ squared · (variance of it)`: between the roots of `a q² − 2 b q + c`.
fn fieller(control: Ratio, arm: Ratio, squared: f64) -> Option<Estimate> {
    let a = control.value.powi(2) - squared * control.variance;
    let b = control.value * arm.value;
    let c = arm.value.powi(2) - squared * arm.variance;
    if a <= 0.0 || control.value <= 0.0 {
        return None;
    }
    let root = (b * b - a * c).max(0.0).sqrt();
    Some(Estimate { value: arm.value / control.value, low: (b - root) / a, high: (b + root) / a })
}

fn around(value: f64, margin: f64) -> Estimate {
    Estimate { value, low: value - margin, high: value + margin }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn binary(successes: u64, units: u64) -> Moments {
        let (x, n) = (successes as f64, units as f64);
        Moments { units, sum_x: x, sum_n: n, sum_xx: x, sum_nn: n, sum_xn: x }
    }

    /// References: the formula in the module's head, which is also `std_conjmix_margin` of the authors' R package
    /// `drconfseq`, evaluated with numpy.
    #[test]
    fn the_boundary_is_the_papers() {
        let boundary = Boundary::two_sided(0.05, 5_000.0);
        for (units, expected) in
            [(200.0, 5.099_959_969_897_444), (5_000.0, 3.035_208_990_376_253), (100_000.0, 3.336_857_533_786_599)]
        {
            assert!((boundary.multiplier(units) - expected).abs() < 1e-9, "{units}: {}", boundary.multiplier(units));
        }
    }

    #[test]
    fn the_boundary_is_tightest_about_its_target() {
        // The margin is `multiplier / √units`; what is least at the target is its ratio to every other boundary's there.
        let at_target = Boundary::two_sided(0.05, 5_000.0).multiplier(5_000.0);
        for other in [500.0, 2_000.0, 12_000.0, 50_000.0] {
            assert!(Boundary::two_sided(0.05, other).multiplier(5_000.0) > at_target, "target {other}");
        }
    }

    #[test]
    fn one_side_costs_less_than_two() {
        for units in [100.0, 1_000.0, 20_000.0] {
            let (one, two) = (Boundary::one_sided(0.05, 5_000.0), Boundary::two_sided(0.05, 5_000.0));
            assert!(one.multiplier(units) < two.multiplier(units));
            assert!(one.multiplier(units) > 1.645, "and more than a single look");
        }
    }

    /// By hand: three users with 1 of 2, 0 of 1 and 3 of 3 calls failed. R = 4/6; z = (x − R n) / 2.
    #[test]
    fn a_ratio_has_the_variance_of_its_linearisation() {
        let mut moments = Moments::default();
        for (x, n) in [(1.0, 2.0), (0.0, 1.0), (3.0, 3.0)] {
            moments.add(x, n);
        }
        let ratio = Ratio::of(&moments, Kind::Amount).unwrap();
        let z = [(1.0 - 4.0 / 3.0) / 2.0, (0.0 - 2.0 / 3.0) / 2.0, (3.0 - 2.0) / 2.0_f64];
        let expected = z.iter().map(|z| z * z).sum::<f64>() / 2.0 / 3.0;
        assert!((ratio.value - 2.0 / 3.0).abs() < 1e-12 && (ratio.variance - expected).abs() < 1e-12, "{ratio:?}");
        assert!((ratio.deviation() - (3.0 * expected).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn too_few_units_say_nothing_unless_they_are_yes_or_no() {
        let sequence = Sequence::new(0.05, TARGET_UNITS);
        let mut clustered = Moments::default();
        (0..99).for_each(|unit| clustered.add(f64::from(unit % 3), 2.0));
        assert_eq!(sequence.difference(&clustered, &clustered, Kind::Share), None);
        assert!(sequence.difference(&binary(10, 99), &binary(80, 99), Kind::Share).unwrap().low > 0.0);
        assert_eq!(sequence.relative(&binary(10, 99), &binary(80, 99), Kind::Share), None);
    }

    #[test]
    fn never_in_two_hundred_is_no_proof_of_never() {
        let found =
            Sequence::new(0.05, TARGET_UNITS).difference(&binary(0, 200), &binary(0, 200), Kind::Share).unwrap();
        assert!(found.high > 0.02 && found.low < -0.02, "{found:?}");
    }

    #[test]
    fn a_relative_change_needs_a_control_that_is_not_zero() {
        let sequence = Sequence::new(0.05, TARGET_UNITS);
        assert_eq!(sequence.relative(&binary(1, 500), &binary(30, 500), Kind::Share), None);
        let found = sequence.relative(&binary(2_000, 4_000), &binary(2_400, 4_000), Kind::Share).unwrap();
        assert!((found.value - 0.2).abs() < 1e-12 && found.low > 0.1 && found.high < 0.31, "{found:?}");
    }

    proptest! {
        #[test]
        fn intervals_contain_the_estimate_are_symmetric_and_shrink(
            units in 100_u64..2_000, control in 0.05..0.95_f64, arm in 0.05..0.95_f64,
        ) {
            let share = |share: f64, units: u64| binary((share * units as f64) as u64, units);
            let sequence = Sequence::new(0.05, TARGET_UNITS);
            let few = sequence.difference(&share(control, units), &share(arm, units), Kind::Share).unwrap();
            let swapped = sequence.difference(&share(arm, units), &share(control, units), Kind::Share).unwrap();
            let many = sequence.difference(&share(control, units * 4), &share(arm, units * 4), Kind::Share).unwrap();
            prop_assert!(few.low <= few.value && few.value <= few.high);
            prop_assert!((few.low + swapped.high).abs() < 1e-9 && (few.high + swapped.low).abs() < 1e-9);
            prop_assert!(many.high - many.low < few.high - few.low);
        }

        #[test]
        fn difference_and_relative_change_agree_on_whether_there_is_one(
            units in 100_u64..20_000, control in 0.2..0.8_f64, arm in 0.2..0.8_f64,
        ) {
            let share = |share: f64| binary((share * units as f64) as u64, units);
            let sequence = Sequence::new(0.05, TARGET_UNITS);
            let difference = sequence.difference(&share(control), &share(arm), Kind::Share).unwrap();
            if let Some(relative) = sequence.relative(&share(control), &share(arm), Kind::Share) {
                prop_assert_eq!(difference.low > 0.0, relative.low > 0.0);
                prop_assert_eq!(difference.high < 0.0, relative.high < 0.0);
            }
        }
    }
}
