//! An experiment's units over time: how many each variant had by the end of each day.

use serde::Serialize;

use crate::{policy::experiment::Experiment, store::records::figures::ArmFigures};

/// Milliseconds of a day of UTC.
const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// Days that are drawn: the latest.
const DAYS_MAX: u64 = 366;

/// What is drawn, and stands in a table.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Growth {
    /// Variants, in their order.
    arms: Vec<String>,
    /// The oldest first, none left out.
    days: Vec<Day>,
}

/// A day.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Day {
    /// Its beginning.
    at_ms: u64,
    /// By variant.
    arms: Vec<Units>,
}

/// The units of a variant.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Units {
    /// Seen for the first time on that day.
    new: u64,
    /// By its end.
    all: u64,
}

/// From the day before the first unit to the day of `until_ms`; `None` where nobody takes part yet.
pub(super) fn growth(experiment: &Experiment, figures: &[ArmFigures], until_ms: u64) -> Option<Growth> {
    let arms: Vec<String> = experiment.variants().iter().map(|variant| variant.name.to_string()).collect();
    let new_units: Vec<&[(u64, u64)]> = arms.iter().map(|arm| new_units(arm, figures)).collect();
    let seen = || new_units.iter().flat_map(|days| days.iter().map(|(at_ms, _)| *at_ms));
    let (first, last) = (seen().min()?, seen().max()?);
    let last = last.max(until_ms / DAY_MS * DAY_MS);
    // Nobody took part at the end of the day before: every line begins at nothing.
    let from = first.saturating_sub(DAY_MS).max(last.saturating_sub((DAYS_MAX - 1) * DAY_MS));
    let mut sums: Vec<u64> = new_units.iter().map(|days| before(days, from)).collect();
    let mut days = Vec::new();
    let mut at_ms = from;
    while at_ms <= last {
        let units = |(sum, days): (&mut u64, &&[(u64, u64)])| {
            let new = days.iter().find(|(day, _)| *day == at_ms).map_or(0, |(_, units)| *units);
            *sum += new;
            Units { new, all: *sum }
        };
        days.push(Day { at_ms, arms: sums.iter_mut().zip(&new_units).map(units).collect() });
        at_ms += DAY_MS;
    }
    Some(Growth { arms, days })
}

fn new_units<'f>(arm: &str, figures: &'f [ArmFigures]) -> &'f [(u64, u64)] {
    figures.iter().find(|figures| &*figures.arm == arm).map(|figures| figures.new_units.as_slice()).unwrap_or_default()
}

/// Units of the days before `from`.
fn before(days: &[(u64, u64)], from: u64) -> u64 {
    days.iter().filter(|(at_ms, _)| *at_ms < from).map(|(_, units)| units).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::experiment::{Unit, Variant};

    fn experiment() -> Experiment {
        let variant = |name: &str| Variant {
            name: name.into(),
            weight: 50.0,
            version: None,
            target: None,
            prompt: None,
            parameters: Vec::new(),
        };
        Experiment::new("tone".into(), None, Unit::User, vec![variant("control"), variant("warm")])
    }

    fn figures(arm: &str, days: &[(u64, u64)]) -> ArmFigures {
        let new_units = days.iter().map(|(day, units)| (day * DAY_MS, *units)).collect();
        ArmFigures { arm: arm.into(), new_units, ..ArmFigures::default() }
    }

    /// The day, and of each variant how many were new and how many there are.
    fn drawn(figures: &[ArmFigures], until_day: u64) -> Vec<(u64, Vec<(u64, u64)>)> {
        let growth = growth(&experiment(), figures, until_day * DAY_MS + 5).expect("somebody takes part");
        let units = |day: &Day| day.arms.iter().map(|units| (units.new, units.all)).collect();
        growth.days.iter().map(|day| (day.at_ms / DAY_MS, units(day))).collect()
    }

    #[test]
    fn units_add_up_day_by_day_from_nothing() {
        let figures = [figures("control", &[(10, 3), (12, 4)]), figures("warm", &[(11, 5)])];
        let days = [
            (9, vec![(0, 0), (0, 0)]),
            (10, vec![(3, 3), (0, 0)]),
            (11, vec![(0, 3), (5, 5)]),
            (12, vec![(4, 7), (0, 5)]),
            (13, vec![(0, 7), (0, 5)]),
        ];
        assert_eq!(drawn(&figures, 13), days);
        assert_eq!(drawn(&figures, 11).len(), 4, "the days that have units are there in any case");
        assert_eq!(growth(&experiment(), &[], 13 * DAY_MS), None);
    }

    #[test]
    fn of_a_long_time_the_latest_days_are_drawn_on_what_was_before() {
        let days = drawn(&[figures("warm", &[(10, 2), (1000, 1)])], 1000);
        assert_eq!(days.len(), DAYS_MAX as usize);
        assert_eq!(
            (days.first(), days.last()),
            (Some(&(635, vec![(0, 0), (0, 2)])), Some(&(1000, vec![(0, 0), (1, 3)])))
        );
    }
}
