//! What a month will cost, from what each of the last days did.
//!
//! Each day to come is expected to cost as much as the same weekday did on average over the last [`WEEKS`] weeks; a weekday that
//! was not seen yet, as much as all days did. The interval holds what days differed from that by, as if they did so independently of
//! each other: a new customer or a new model is in no past, and in no interval.

use jiff::civil::{Date, Weekday};

use crate::units::NanoUsd;

/// How far back days are looked at.
pub const WEEKS: i64 = 4;
/// Fewer whole days than this say too little about how days differ.
pub const DAYS_FOR_INTERVAL: usize = 14;
/// Four of five such sums fall within so many standard deviations. Source: quantile 0.9 of the normal distribution.
const EIGHTY_PERCENT: f64 = 1.2816;

/// What a month will cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forecast {
    /// What it has cost so far, today included.
    pub spent: NanoUsd,
    /// What it will have cost at its end.
    pub total: NanoUsd,
    /// The bounds within which it will be four times out of five; `None` where too few days are known.
    pub range: Option<(NanoUsd, NanoUsd)>,
    /// Whole days that this rests on.
    pub days: usize,
}

/// The forecast for the month that `today` is in. `by_day`: what each day cost; days that are missing after the first one cost nothing.
///
/// `None` where no whole day is known yet.
#[must_use]
pub fn month(by_day: &[(Date, NanoUsd)], today: Date) -> Option<Forecast> {
    let first = by_day.iter().map(|(day, _)| *day).min()?;
    let cost_of = |day: Date| by_day.iter().filter(|(of, _)| *of == day).map(|(_, cost)| cost.0 as f64).sum::<f64>();
    let known: Vec<(Weekday, f64)> = (1..=WEEKS * 7)
        .filter_map(|back| today.checked_sub(jiff::Span::new().days(back)).ok())
        .filter(|day| *day >= first)
        .map(|day| (day.weekday(), cost_of(day)))
        .collect();
    let expected = |weekday: Weekday| {
        let same = mean(known.iter().filter(|(of, _)| *of == weekday).map(|(_, cost)| *cost));
        same.or_else(|| mean(known.iter().map(|(_, cost)| *cost)))
    };
    let this_month = (1..=today.day()).filter_map(|day| Date::new(today.year(), today.month(), day).ok());
    let spent: f64 = this_month.map(cost_of).sum();
    let to_come: Vec<Weekday> = (today.day() + 1..=today.days_in_month())
        .filter_map(|day| Date::new(today.year(), today.month(), day).ok())
        .map(Date::weekday)
        .collect();
    let rest_of_today = (expected(today.weekday())? - cost_of(today)).max(0.0);
    let expected_to_come = to_come.iter().map(|weekday| expected(*weekday)).sum::<Option<f64>>()?;
    let total = spent + rest_of_today + expected_to_come;
    let range = deviation(&known, expected).map(|deviation| {
        let each_weekday = Weekday::Monday.cycle_forward().take(7).map(|weekday| {
            let (ahead, seen) = (
                count(to_come.iter(), weekday) + f64::from(u8::from(weekday == today.weekday())),
                count(known.iter().map(|(of, _)| of), weekday),
            );
            // A mean of few days is itself off, and in the same way for each day that it stands for.
            ahead + ahead * ahead / seen.max(1.0)
        });
        let half = EIGHTY_PERCENT * deviation * each_weekday.sum::<f64>().sqrt();
        (nano((total - half).max(spent)), nano(total + half))
    });
    Some(Forecast { spent: nano(spent), total: nano(total), range, days: known.len() })
}

/// How much days differ from what is expected of their weekday.
fn deviation(known: &[(Weekday, f64)], expected: impl Fn(Weekday) -> Option<f64>) -> Option<f64> {
    if known.len() < DAYS_FOR_INTERVAL {
        return None;
    }
    let squares: f64 = known.iter().filter_map(|(weekday, cost)| Some((cost - expected(*weekday)?).powi(2))).sum();
    // Each weekday's mean takes one degree of freedom.
    Some((squares / (known.len() as f64 - 7.0)).sqrt())
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0_u32), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

fn count<'d>(days: impl Iterator<Item = &'d Weekday>, weekday: Weekday) -> f64 {
    days.filter(|day| **day == weekday).count() as f64
}

fn nano(value: f64) -> NanoUsd {
    NanoUsd(value.round().max(0.0) as u64)
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;

    use super::*;

    /// November 2026 begins on a Sunday and has 30 days. Workdays cost 10, days of the weekend 1.
    fn weeks(from: Date, to: Date) -> Vec<(Date, NanoUsd)> {
        let cost =
            |day: Date| NanoUsd(if matches!(day.weekday(), Weekday::Saturday | Weekday::Sunday) { 1 } else { 10 });
        from.series(jiff::Span::new().days(1)).take_while(|day| *day <= to).map(|day| (day, cost(day))).collect()
    }

    #[test]
    fn a_steady_week_goes_on_as_it_was() {
        let days = weeks(date(2026, 10, 1), date(2026, 11, 15));
        let forecast = month(&days, date(2026, 11, 16)).unwrap();
        // 21 workdays and 9 days of weekends.
        assert_eq!((forecast.total, forecast.days), (NanoUsd(219), 28));
        assert_eq!(forecast.spent, NanoUsd(105));
        assert_eq!(forecast.range, Some((NanoUsd(219), NanoUsd(219))), "days that never differed");
    }

    #[test]
    fn days_that_differ_make_the_range_wider() {
        let mut days = weeks(date(2026, 10, 1), date(2026, 11, 15));
        days.iter_mut().step_by(2).for_each(|(_, cost)| cost.0 *= 3);
        let (low, high) = month(&days, date(2026, 11, 16)).unwrap().range.unwrap();
        let total = month(&days, date(2026, 11, 16)).unwrap().total;
        assert!(low < total && total < high, "{low:?} {total:?} {high:?}");
    }

    #[test]
    fn what_was_spent_is_never_taken_back() {
        let mut days = weeks(date(2026, 10, 1), date(2026, 11, 30));
        days.last_mut().unwrap().1 = NanoUsd(1000);
        let forecast = month(&days, date(2026, 11, 30)).unwrap();
        assert_eq!(forecast.total, forecast.spent);
        assert!(forecast.range.is_none_or(|(low, _)| low >= forecast.spent));
    }

    #[test]
    fn few_days_give_no_range_and_none_no_forecast() {
        let today = date(2026, 11, 16);
        assert_eq!(month(&[], today), None);
        assert_eq!(month(&[(today, NanoUsd(5))], today), None);
        let young = month(&[(date(2026, 11, 15), NanoUsd(7))], today).unwrap();
        assert_eq!((young.total, young.range, young.days), (NanoUsd(7 + 15 * 7), None, 1));
    }

    #[test]
    fn a_day_without_calls_counts_as_one_without_cost() {
        let forecast = month(&[(date(2026, 11, 13), NanoUsd(30))], date(2026, 11, 16)).unwrap();
        assert_eq!(forecast.days, 3);
        // Fridays 30, weekends 0, other days the mean of all, 10. Today and 14 days to come: two Fridays, two weekends, nine others.
        assert_eq!(forecast.total, NanoUsd(30 + 2 * 30 + 9 * 10));
    }
}
