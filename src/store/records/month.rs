//! The current month as a call log has it: what each day cost, and what the month will come to.
//!
//! Days and months are those of UTC, as in providers' statements.

use std::{collections::BTreeMap, time::Duration};

use jiff::{
    Timestamp,
    civil::{Date, Time},
    tz::TimeZone,
};

use super::ports::{CallLog, Figures, Filter, UsageQuery};
use crate::{
    policy::forecast::{self, Forecast},
    store::ports::StoreError,
    units::NanoUsd,
};

/// The sums of each day that has a call, of the calls that `filter` means.
///
/// # Errors
/// As [`CallLog::usage`].
pub async fn by_day(log: &dyn CallLog, filter: Filter) -> Result<BTreeMap<Date, Figures>, StoreError> {
    let bucket = Some(Duration::from_secs(86_400));
    let series = log.usage(UsageQuery { filter, bucket, ..UsageQuery::default() }).await?;
    let points = series.into_iter().flat_map(|series| series.points);
    Ok(points.map(|(at_ms, figures)| (day_of(at_ms), figures)).collect())
}

/// What the month that `now` is in will have cost at its end, for the calls that `filter` means; its span does not matter. `None` where
/// no whole day is known yet.
///
/// # Errors
/// As [`CallLog::usage`].
pub async fn forecast(log: &dyn CallLog, filter: Filter, now: Timestamp) -> Result<Option<Forecast>, StoreError> {
    let today = TimeZone::UTC.to_datetime(now).date();
    let back = today.checked_sub(jiff::Span::new().weeks(forecast::WEEKS));
    let since = back.map_or(today, |day| day.min(today.first_of_month()));
    let filter = Filter { since_ms: Some(first_ms(since)), until_ms: None, ..filter };
    let days = by_day(log, filter).await?.into_iter();
    let days: Vec<(Date, NanoUsd)> = days.map(|(day, figures)| (day, NanoUsd(figures.cost_nanousd))).collect();
    Ok(forecast::month(&days, today))
}

/// The day that a moment is in, in milliseconds since 1970.
#[must_use]
pub fn day_of(ms: u64) -> Date {
    let at = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or_default();
    TimeZone::UTC.to_datetime(at).date()
}

/// The first millisecond of a day.
#[must_use]
pub fn first_ms(day: Date) -> u64 {
    let start = TimeZone::UTC.to_timestamp(day.to_datetime(Time::midnight()));
    start.ok().and_then(|at| u64::try_from(at.as_millisecond()).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;

    use super::*;

    #[test]
    fn a_day_begins_at_its_first_millisecond() {
        let day = date(2026, 11, 1);
        assert_eq!(first_ms(day), 1_793_491_200_000);
        assert_eq!((day_of(first_ms(day)), day_of(first_ms(day) - 1)), (day, date(2026, 10, 31)));
    }
}
