//! How many units an experiment needs, before it starts and while it runs.

use serde::{Deserialize, Serialize};

use super::{
    sequence::{Sequence, TARGET_UNITS},
    special::normal_quantile,
};

/// More units than any experiment has: searches end here.
const UNITS_MAX: u64 = 1 << 50;

/// What the metric is like in the control, per unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Baseline {
    /// A share with one yes or no per unit.
    Share(f64),
    /// Anything else: the standard deviation over units, in the metric's unit. For a share over several calls of a
    /// user it is that of the linearised metric, see [`super::sequence::Ratio`].
    Deviation(f64),
}

/// What to plan for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Question {
    /// The metric in the control.
    pub baseline: Baseline,
    /// The smallest difference worth finding, in the metric's unit: 0.02 for two points.
    pub effect: f64,
    /// Probability of a false verdict over the experiment's life.
    pub alpha: f64,
    /// Probability that such a difference is found: 0.8.
    pub power: f64,
    /// Variants, the control included; at least 2. All have the same weight.
    pub variants: u32,
    /// New units a day, over all variants.
    pub units_per_day: Option<f64>,
}

/// How many units it takes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Plan {
    /// Units per variant by which the anytime-valid test has found the effect with the asked probability. Often it is earlier.
    pub units_per_variant: u64,
    /// The same over all variants.
    pub units: u64,
    /// Units per variant of a test that is looked at once, at the end: what looking at any time is paid with.
    pub fixed_units_per_variant: u64,
    /// Days until `units`, where the pace is known.
    pub days: Option<f64>,
}

/// How many units a difference needs; nothing where the question has no answer (no effect, a share off 0 to 1, no spread).
///
/// The anytime-valid test is asked to have decided *at* that number of units; it may decide at any look before, so the true
/// probability is above the promised one.
#[must_use]
pub fn plan(question: &Question) -> Option<Plan> {
    let variance = question.baseline.variance(0.0)? + question.baseline.variance(question.effect)?;
    let sound = question.effect != 0.0 && variance > 0.0 && question.variants >= 2;
    let levels = [question.alpha, question.power].iter().all(|level| (0.0..1.0).contains(level) && *level > 0.0);
    if !sound || !levels {
        return None;
    }
    let alpha = question.alpha / f64::from(question.variants - 1);
    let reserve = normal_quantile(question.power);
    let sequence = Sequence::new(alpha, TARGET_UNITS);
    let finds = |multiplier: f64, units: u64| {
        (multiplier + reserve) * (variance / units as f64).sqrt() <= question.effect.abs()
    };
    let fixed = normal_quantile(1.0 - alpha / 2.0);
    let units_per_variant = first(|units| finds(sequence.multiplier(2.0 * units as f64), units))?;
    let units = units_per_variant * u64::from(question.variants);
    Some(Plan {
        units_per_variant,
        units,
        fixed_units_per_variant: first(|units| finds(fixed, units))?,
        days: question.units_per_day.filter(|pace| *pace > 0.0).map(|pace| units as f64 / pace),
    })
}

/// How many times the present `units` of two arms it takes until a margin that is now `multiplier · error` shrinks to `distance`.
/// At least 1; nothing where that is beyond all reason.
#[must_use]
pub fn growth(sequence: &Sequence, units: u64, error: f64, distance: f64) -> Option<f64> {
    let now = units.max(1) as f64;
    let reaches = |then: u64| sequence.multiplier(then as f64) * error * (now / then as f64).sqrt() <= distance;
    let then = first(|then| then >= units && reaches(then))?;
    Some(then as f64 / now)
}

/// The least number from 1 on that is `enough`, which all greater ones are, too.
fn first(enough: impl Fn(u64) -> bool) -> Option<u64> {
    if !enough(UNITS_MAX) {
        return None;
    }
    let (mut low, mut high) = (0, UNITS_MAX);
    while high - low > 1 {
        let middle = u64::midpoint(low, high);
        if enough(middle) { high = middle } else { low = middle }
    }
    Some(high)
}

// === impl Baseline ===

impl Baseline {
    /// Variance per unit where the metric is `effect` above the baseline.
    fn variance(self, effect: f64) -> Option<f64> {
        match self {
            Baseline::Share(share) => {
                let share = share + effect;
                (0.0..=1.0).contains(&share).then_some(share * (1.0 - share))
            }
            Baseline::Deviation(deviation) => deviation.is_finite().then_some(deviation * deviation),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(share: f64, effect: f64) -> Question {
        Question { baseline: Baseline::Share(share), effect, alpha: 0.05, power: 0.8, variants: 2, units_per_day: None }
    }

    /// References: scipy 1.17, `ceil((norm.ppf(0.975) + norm.ppf(0.8))**2 * (p1 q1 + p2 q2) / (p2 - p1)**2)`.
    #[test]
    fn a_test_with_one_look_needs_the_textbooks_number() {
        for (share, effect, expected) in [(0.2, 0.02, 6_507), (0.5, 0.05, 1_562), (0.7, -0.1, 354)] {
            assert_eq!(plan(&question(share, effect)).unwrap().fixed_units_per_variant, expected, "{share} {effect}");
        }
    }

    #[test]
    fn looking_at_any_time_costs_about_twice_the_units() {
        for effect in [0.01, 0.02, 0.05, 0.1] {
            let found = plan(&question(0.5, effect)).unwrap();
            let inflation = found.units_per_variant as f64 / found.fixed_units_per_variant as f64;
            assert!((1.7..2.8).contains(&inflation), "{effect}: {inflation}");
        }
    }

    #[test]
    fn more_variants_need_more_units_each() {
        let three = plan(&Question { variants: 3, units_per_day: Some(1_000.0), ..question(0.5, 0.05) }).unwrap();
        assert!(three.units_per_variant > plan(&question(0.5, 0.05)).unwrap().units_per_variant);
        assert_eq!(three.units, 3 * three.units_per_variant);
        assert_eq!(three.days, Some(three.units as f64 / 1_000.0));
    }

    #[test]
    fn questions_without_an_answer_get_none() {
        for wrong in [
            question(0.5, 0.0),
            question(0.95, 0.1),
            Question { variants: 1, ..question(0.5, 0.1) },
            Question { power: 1.0, ..question(0.5, 0.1) },
            Question { alpha: 0.0, ..question(0.5, 0.1) },
            Question { baseline: Baseline::Deviation(0.0), ..question(0.5, 0.1) },
            Question { baseline: Baseline::Deviation(f64::NAN), ..question(0.5, 0.1) },
        ] {
            assert_eq!(plan(&wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn growth_is_one_once_the_margin_is_small_enough() {
        let sequence = Sequence::new(0.05, TARGET_UNITS);
        let error = 0.01;
        let margin = sequence.multiplier(5_000.0) * error;
        assert_eq!(growth(&sequence, 5_000, error, margin * 1.01), Some(1.0));
        let four_times = growth(&sequence, 5_000, error, margin / 2.0).unwrap();
        assert!((3.5..4.5).contains(&four_times), "{four_times}");
        assert_eq!(growth(&sequence, 5_000, error, 0.0), None);
    }
}
