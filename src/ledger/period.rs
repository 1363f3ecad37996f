//! Periods of a budget in its time zone: half-open ranges of instants that partition time.
//!
//! The period's id is part of an account's key, so there is no reset job: a new period is a new account.

use jiff::{
    SignedDuration, Timestamp, ToSpan,
    civil::{Date, DateTime},
    tz::{AmbiguousOffset, TimeZone},
};

/// A budget's period and the time zone that it is counted in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Per {
    /// How long one period lasts.
    pub every: Every,
    /// Whose midnight counts.
    pub zone: TimeZone,
}

/// How long one period lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Every {
    /// A clock hour.
    Hour,
    /// A calendar day.
    Day,
    /// An ISO 8601 week, from Monday.
    Week,
    /// A calendar month.
    Month,
    /// A calendar year.
    Year,
    /// All of time: never reset.
    Total,
}

/// One period: `starts <= t < ends`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Period {
    /// `2026-11`, `2026-11-23`, `2026-W48`, `2026-11-23T17`, `2026` or `total`; unique within one [`Per`].
    pub id: String,
    /// Its first instant.
    pub starts: Timestamp,
    /// The first instant of the next one; `None` when it never ends.
    pub ends: Option<Timestamp>,
}

/// Why a period cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeriodError {
    /// Not one of the known lengths.
    #[error("`{0}` is not a period; write hour, day, week, month, year or total")]
    UnknownPeriod(String),
    /// Not in the time zone database.
    #[error("`{0}` is not a time zone of this system's tz database; write it like `Europe/Berlin`")]
    UnknownZone(String),
}

/// The longest distance by which a zone's clocks were ever set back, with room: Samoa skipped a day.
const CLOCK_CHANGE_MAX: SignedDuration = SignedDuration::from_hours(26);

impl Per {
    /// Reads a period (`hour`, `day`, `week`, `month`, `year`, `total`) and an IANA zone name, UTC when none is given.
    ///
    /// # Errors
    /// When either is unknown.
    pub fn parse(every: &str, timezone: Option<&str>) -> Result<Per, PeriodError> {
        let every = match every.trim() {
            "hour" => Every::Hour,
            "day" => Every::Day,
            "week" => Every::Week,
            "month" => Every::Month,
            "year" => Every::Year,
            "total" => Every::Total,
            other => return Err(PeriodError::UnknownPeriod(other.to_owned())),
        };
        let zone = match timezone {
            None => TimeZone::UTC,
            Some(name) => TimeZone::get(name).map_err(|_| PeriodError::UnknownZone(name.to_owned()))?,
        };
        Ok(Per { every, zone })
    }

    /// The period that `now` is in.
    #[must_use]
    pub fn period_of(&self, now: Timestamp) -> Period {
        match self.every {
            Every::Total => Period { id: "total".to_owned(), starts: Timestamp::MIN, ends: None },
            Every::Hour => hour_of(&self.zone, now),
            Every::Day | Every::Week | Every::Month | Every::Year => self.dates_of(now),
        }
    }

    /// Periods made of whole dates. One begins the first time that the zone's clocks reach its first midnight, so clocks
    /// that are set back over midnight do not open the old period again.
    fn dates_of(&self, now: Timestamp) -> Period {
        let mut first = self.first_date(self.zone.to_datetime(now).date());
        let mut ends = self.next(first).and_then(|date| first_instant(&self.zone, date.at(0, 0, 0, 0)));
        if ends.is_some_and(|ends| ends <= now)
            && let Some(next) = self.next(first)
        {
            first = next;
            ends = self.next(first).and_then(|date| first_instant(&self.zone, date.at(0, 0, 0, 0)));
        }
        let starts = first_instant(&self.zone, first.at(0, 0, 0, 0)).unwrap_or(Timestamp::MIN);
        Period { id: self.id(first), starts, ends }
    }

    /// The first date of the period that `date` is in.
    fn first_date(&self, date: Date) -> Date {
        match self.every {
            Every::Week => date.iso_week_date().first_of_week().map_or(date, |monday| monday.date()),
            Every::Month => date.first_of_month(),
            Every::Year => date.first_of_year(),
            Every::Hour | Every::Day | Every::Total => date,
        }
    }

    /// The first date of the period after the one that begins with `first`; `None` at the end of the calendar.
    fn next(&self, first: Date) -> Option<Date> {
        match self.every {
            Every::Week => first.checked_add(7.days()).ok(),
            Every::Month => first.checked_add(1.month()).ok(),
            Every::Year => first.checked_add(1.year()).ok(),
            Every::Hour | Every::Day | Every::Total => first.tomorrow().ok(),
        }
    }

    fn id(&self, first: Date) -> String {
        match self.every {
            Every::Week => {
                let week = first.iso_week_date();
                format!("{:04}-W{:02}", week.year(), week.week())
            }
            Every::Month => first.strftime("%Y-%m").to_string(),
            Every::Year => first.strftime("%Y").to_string(),
            Every::Hour | Every::Day | Every::Total => first.strftime("%Y-%m-%d").to_string(),
        }
    }
}

/// The clock hour of `now`: all instants with the same date, hour and UTC offset. An hour that the clocks go through a second
/// time is a period of its own, named with its offset.
fn hour_of(zone: &TimeZone, now: Timestamp) -> Period {
    let offset = zone.to_offset(now);
    let local = offset.to_datetime(now);
    let hour = local.date().at(local.hour(), 0, 0, 0);
    let mut starts = offset.to_timestamp(hour).unwrap_or(Timestamp::MIN);
    let nominal = starts;
    let mut ends = nominal.checked_add(SignedDuration::from_hours(1)).ok();
    let mut repeated = false;

    let just_after = now.checked_add(SignedDuration::from_nanos(1)).unwrap_or(now);
    for change in zone.preceding(just_after) {
        let at = change.timestamp();
        if at.duration_since(nominal) < -CLOCK_CHANGE_MAX {
            break;
        }
        let before = offset_before(zone, at);
        if before == change.offset() {
            continue;
        }
        starts = starts.max(at);
        repeated |= before.to_timestamp(hour).is_ok_and(|began| began < at);
    }
    let changed = zone.following(now).take_while(|change| ends.is_none_or(|ends| change.timestamp() < ends));
    if let Some(change) = changed.into_iter().find(|change| change.offset() != offset) {
        ends = Some(change.timestamp());
    }

    let mut id = hour.strftime("%Y-%m-%dT%H").to_string();
    if repeated {
        id.push_str(&offset.to_string());
    }
    Period { id, starts, ends }
}

/// The offset that was in force right before the change at `at`.
fn offset_before(zone: &TimeZone, at: Timestamp) -> jiff::tz::Offset {
    zone.to_offset(at.checked_sub(SignedDuration::from_nanos(1)).unwrap_or(at))
}

/// The first instant at which clocks in `zone` show `local` or later; `None` beyond the calendar's end.
fn first_instant(zone: &TimeZone, local: DateTime) -> Option<Timestamp> {
    let ambiguous = zone.to_ambiguous_timestamp(local);
    match ambiguous.offset() {
        // Clocks jump over `local`: the jump is the first instant after it.
        AmbiguousOffset::Gap { after, .. } => {
            let before_jump = after.to_timestamp(local).ok()?;
            zone.following(before_jump).next().map(|change| change.timestamp())
        }
        AmbiguousOffset::Unambiguous { .. } | AmbiguousOffset::Fold { .. } => ambiguous.compatible().ok(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    fn per(every: &str, zone: &str) -> Per {
        Per::parse(every, Some(zone)).unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn ids_name_the_period_in_its_zone() {
        for (every, zone, now, id) in [
            ("hour", "UTC", "2026-11-23T17:21:00Z", "2026-11-23T17"),
            ("day", "UTC", "2026-11-23T17:21:00Z", "2026-11-23"),
            ("day", "Europe/Berlin", "2026-11-23T23:00:00Z", "2026-11-24"),
            ("week", "UTC", "2026-11-23T00:00:00Z", "2026-W48"),
            ("week", "UTC", "2027-01-03T23:59:59Z", "2026-W53"),
            ("month", "America/New_York", "2026-12-01T04:59:59Z", "2026-11"),
            ("year", "UTC", "2026-11-23T17:21:00Z", "2026"),
            ("total", "UTC", "2026-11-23T17:21:00Z", "total"),
        ] {
            assert_eq!(per(every, zone).period_of(at(now)).id, id, "{every} {zone} {now}");
        }
    }

    #[test]
    fn a_day_with_a_clock_change_has_23_or_25_hours() {
        let berlin = per("day", "Europe/Berlin");
        for (now, hours) in [("2026-03-29T12:00:00Z", 23), ("2026-10-25T12:00:00Z", 25), ("2026-11-23T12:00:00Z", 24)] {
            let day = berlin.period_of(at(now));
            assert_eq!(day.ends.unwrap().duration_since(day.starts), SignedDuration::from_hours(hours), "{now}");
        }
    }

    #[test]
    fn the_hour_that_comes_twice_is_two_periods() {
        let berlin = per("hour", "Europe/Berlin");
        assert_eq!(berlin.period_of(at("2026-10-25T00:30:00Z")).id, "2026-10-25T02");
        assert_eq!(berlin.period_of(at("2026-10-25T01:30:00Z")).id, "2026-10-25T02+01");
        assert_eq!(berlin.period_of(at("2026-10-25T02:30:00Z")).id, "2026-10-25T03");
    }

    #[test]
    fn unknown_words_are_refused_by_name() {
        assert_eq!(Per::parse("fortnight", None), Err(PeriodError::UnknownPeriod("fortnight".into())));
        assert_eq!(Per::parse("day", Some("Mars/Olympus")), Err(PeriodError::UnknownZone("Mars/Olympus".into())));
        assert_eq!(Per::parse("day", None).unwrap().zone, TimeZone::UTC);
    }

    /// A period holds its instant, is the same from its first instant to its last, and the next one begins where it ends.
    fn assert_partition(per: &Per, now: Timestamp) {
        let nano = SignedDuration::from_nanos(1);
        let period = per.period_of(now);
        let ends = period.ends.unwrap();
        assert!(period.starts <= now && now < ends, "{per:?} {now}: {period:?}");
        assert_eq!(per.period_of(period.starts), period, "first instant, {per:?} {now}");
        assert_eq!(per.period_of(ends - nano), period, "last instant, {per:?} {now}");
        let next = per.period_of(ends);
        assert_eq!(next.starts, ends, "{per:?} {now}");
        assert_ne!(next.id, period.id, "{per:?} {now}");
        assert_ne!(per.period_of(period.starts - nano).id, period.id, "{per:?} {now}");
    }

    /// All that can be read; a system may list files that are none.
    fn zones() -> &'static [TimeZone] {
        static ZONES: LazyLock<Vec<TimeZone>> =
            LazyLock::new(|| jiff::tz::db().available().filter_map(|name| TimeZone::get(name.as_str()).ok()).collect());
        assert!(ZONES.len() > 300, "this test needs the system's tz database");
        &ZONES
    }

    #[test]
    fn periods_partition_time_around_every_clock_change() {
        let (from, to) = (at("2020-01-01T00:00:00Z"), at("2036-01-01T00:00:00Z"));
        for zone in zones() {
            let mut ids = std::collections::HashSet::new();
            for change in zone.following(from).take_while(|change| change.timestamp() < to) {
                for minutes in [-150, -61, -31, -1, 0, 1, 29, 59, 61, 119, 150] {
                    let now = change.timestamp() + SignedDuration::from_mins(minutes);
                    for every in [Every::Hour, Every::Day, Every::Week, Every::Month, Every::Year] {
                        assert_partition(&Per { every, zone: zone.clone() }, now);
                    }
                    let hour = Per { every: Every::Hour, zone: zone.clone() }.period_of(now);
                    ids.insert((hour.id, hour.starts));
                }
            }
            let names: std::collections::HashSet<_> = ids.iter().map(|(id, _)| id).collect();
            assert_eq!(names.len(), ids.len(), "one id, one hour: {zone:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]
        #[test]
        fn periods_partition_time_in_every_zone(zone: prop::sample::Index, second in 1_577_836_800i64..2_082_758_400) {
            let zone = zone.get(zones());
            let now = Timestamp::from_second(second).unwrap();
            for every in [Every::Hour, Every::Day, Every::Week, Every::Month, Every::Year] {
                assert_partition(&Per { every, zone: zone.clone() }, now);
            }
        }
    }
}
