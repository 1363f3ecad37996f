//! From intervals to a decision on one arm against the control.

use serde::{Deserialize, Serialize};

use super::{
    Estimate, Kind, Moments, power,
    sequence::{MINIMUM_UNITS, Ratio, Sequence},
};

/// Shares that differ by no more than a point count as equal, unless the goal says otherwise.
pub const SHARE_MARGIN: f64 = 0.01;

/// Amounts that differ by no more than 5 % of the control's count as equal, unless the goal says otherwise.
pub const AMOUNT_MARGIN: f64 = 0.05;

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// More.
    Up,
    /// Less.
    Down,
}

/// What is decided on an arm.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Outcome {
    /// The split is broken; nothing is decided.
    Void,
    /// There is no goal to decide by.
    NoGoal,
    /// A guardrail is breached: the arm's units should go back to the control.
    Stopped {
        /// The guardrail's metric.
        metric: String,
    },
    /// Surely better than the control.
    Better,
    /// Surely worse than the control.
    Worse,
    /// Surely no further from the control than the margin, either way.
    Equal {
        /// In points for shares (0.01 is a point), of the control's value for amounts.
        margin: f64,
    },
    /// Not known yet.
    KeepRunning {
        /// New units over all arms until a decision, were the effect what it seems; nothing where that cannot be foreseen.
        more_units: Option<u64>,
    },
}

/// How an effect is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// Difference of two shares: 0.031 is 3.1 points.
    Points,
    /// Change relative to the control: 0.12 is 12 %.
    Percent,
    /// Difference in the metric's unit, where the control is too near 0 for a relative one.
    Plain,
}

/// An effect with its interval, as it is said.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Effect {
    /// What its numbers mean.
    pub scale: Scale,
    /// The effect and its limits.
    pub estimate: Estimate,
}

/// Two arms to be compared on the goal's metric.
#[derive(Debug, Clone, Copy)]
pub(super) struct Comparison<'a> {
    pub(super) sequence: &'a Sequence,
    pub(super) control: &'a Moments,
    pub(super) arm: &'a Moments,
    pub(super) kind: Kind,
    /// Units over all arms of the experiment.
    pub(super) all_units: u64,
}

// === impl Comparison ===

impl Comparison<'_> {
    /// The effect as it is said; nothing while there are too few units.
    pub(super) fn effect(&self) -> Option<Effect> {
        let difference = self.sequence.difference(self.control, self.arm, self.kind)?;
        Some(match (self.kind, self.sequence.relative(self.control, self.arm, self.kind)) {
            (Kind::Share, _) => Effect { scale: Scale::Points, estimate: difference },
            (Kind::Amount, Some(relative)) => Effect { scale: Scale::Percent, estimate: relative },
            (Kind::Amount, None) => Effect { scale: Scale::Plain, estimate: difference },
        })
    }

    /// The decision. Equality goes before better and worse: who sets a margin does not care for what is within.
    pub(super) fn outcome(&self, direction: Direction, margin: Option<f64>) -> Outcome {
        let margin = margin.unwrap_or(match self.kind {
            Kind::Share => SHARE_MARGIN,
            Kind::Amount => AMOUNT_MARGIN,
        });
        let Some(Effect { scale, estimate }) = self.effect() else {
            return Outcome::KeepRunning { more_units: self.until_first_look() };
        };
        let within = -margin < estimate.low && estimate.high < margin;
        match direction {
            _ if within && scale != Scale::Plain => Outcome::Equal { margin },
            Direction::Up if estimate.low > 0.0 => Outcome::Better,
            Direction::Down if estimate.high < 0.0 => Outcome::Better,
            Direction::Up if estimate.high < 0.0 => Outcome::Worse,
            Direction::Down if estimate.low > 0.0 => Outcome::Worse,
            _ => Outcome::KeepRunning { more_units: self.until_decided(margin) },
        }
    }

    /// New units until both arms have the least number that an interval needs.
    fn until_first_look(&self) -> Option<u64> {
        let fewest = self.control.units.min(self.arm.units);
        let growth = (fewest > 0).then(|| MINIMUM_UNITS as f64 / fewest as f64)?;
        Some(self.more(growth).max(1)).filter(|_| growth > 1.0)
    }

    /// New units until the interval is small enough to exclude 0, or to be within the margin, whichever is sooner.
    fn until_decided(&self, margin: f64) -> Option<u64> {
        let (control, arm) = Ratio::of_pair(self.control, self.arm, self.kind)?;
        let error = (control.variance + arm.variance).sqrt();
        let effect = (arm.value - control.value).abs();
        let margin = match self.kind {
            Kind::Share => margin,
            Kind::Amount => margin * control.value.abs(),
        };
        let growth = |distance: f64| power::growth(self.sequence, control.units + arm.units, error, distance);
        let growths = [growth(effect), growth(margin - effect)];
        let soonest = growths.into_iter().flatten().min_by(f64::total_cmp)?;
        Some(self.more(soonest).max(1))
    }

    fn more(&self, growth: f64) -> u64 {
        ((growth - 1.0).max(0.0) * self.all_units as f64).ceil() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::{super::sequence::TARGET_UNITS, *};

    fn binary(successes: u64, units: u64) -> Moments {
        let (x, n) = (successes as f64, units as f64);
        Moments { units, sum_x: x, sum_n: n, sum_xx: x, sum_nn: n, sum_xn: x }
    }

    /// `units` with costs of `mean` and a deviation of `mean`.
    fn cost(mean: f64, units: u64) -> Moments {
        let n = units as f64;
        Moments { units, sum_x: n * mean, sum_n: n, sum_xx: 2.0 * n * mean * mean, sum_nn: n, sum_xn: n * mean }
    }

    fn outcome(control: &Moments, arm: &Moments, kind: Kind, direction: Direction) -> Outcome {
        let sequence = Sequence::new(0.05, TARGET_UNITS);
        let all_units = control.units + arm.units;
        Comparison { sequence: &sequence, control, arm, kind, all_units }.outcome(direction, None)
    }

    #[test]
    fn intervals_decide() {
        use Direction::{Down, Up};
        for (control, arm, direction, expected) in [
            (binary(2_000, 4_000), binary(2_300, 4_000), Up, Outcome::Better),
            (binary(2_000, 4_000), binary(2_300, 4_000), Down, Outcome::Worse),
            (binary(2_300, 4_000), binary(2_000, 4_000), Up, Outcome::Worse),
            (binary(2_300, 4_000), binary(2_000, 4_000), Down, Outcome::Better),
            (binary(40_000, 80_000), binary(40_080, 80_000), Up, Outcome::Equal { margin: 0.01 }),
            (binary(0, 0), binary(0, 0), Up, Outcome::KeepRunning { more_units: None }),
        ] {
            assert_eq!(outcome(&control, &arm, Kind::Share, direction), expected, "{control:?} {arm:?}");
        }
        assert_eq!(outcome(&cost(2.0, 9_000), &cost(1.7, 9_000), Kind::Amount, Down), Outcome::Better);
        assert_eq!(
            outcome(&cost(2.0, 90_000), &cost(2.02, 90_000), Kind::Amount, Down),
            Outcome::Equal { margin: 0.05 }
        );
    }

    /// What is foreseen comes true: with so many more units and the same shares there is a verdict, with a tenth fewer none.
    #[test]
    fn more_units_is_what_it_takes_at_the_observed_effect() {
        let share = |percent: u64, units: u64| binary(units * percent / 100, units);
        let (control, arm) = (share(50, 2_000), share(52, 2_000));
        let Outcome::KeepRunning { more_units: Some(more) } = outcome(&control, &arm, Kind::Share, Direction::Up)
        else {
            panic!("4,000 units cannot show two points");
        };
        let after =
            |more: u64| outcome(&share(50, 2_000 + more / 2), &share(52, 2_000 + more / 2), Kind::Share, Direction::Up);
        assert_eq!(after(more + 100), Outcome::Better, "{more}");
        assert!(matches!(after(more * 9 / 10), Outcome::KeepRunning { .. }), "{more}");
    }

    #[test]
    fn an_effect_near_zero_is_foreseen_to_show_equality() {
        let same = binary(1_000, 2_000);
        let Outcome::KeepRunning { more_units: Some(more) } = outcome(&same, &same, Kind::Share, Direction::Up) else {
            panic!("4,000 units cannot show equality within a point");
        };
        let later = binary(1_000 + more / 4 + 50, 2_000 + more / 2 + 100);
        assert_eq!(outcome(&later, &later, Kind::Share, Direction::Up), Outcome::Equal { margin: 0.01 });
    }

    #[test]
    fn before_the_first_look_the_slowest_arm_sets_the_pace() {
        let mut clustered = Moments::default();
        (0..20).for_each(|unit| clustered.add(f64::from(unit % 2), 3.0));
        let found = outcome(&cost(1.0, 180), &clustered, Kind::Amount, Direction::Up);
        assert_eq!(found, Outcome::KeepRunning { more_units: Some(800) });
    }
}
