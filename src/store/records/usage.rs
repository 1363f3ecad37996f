//! How a usage query is answered: from which sums, over which span, and put together into series.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    ports::{Dimension, Figures, Filter, Series, UsageQuery},
    rollup::{ALL, DAY_MS, HOUR_MS, MINUTE_MS},
};

/// Longer spans are answered from sums by hour.
const MINUTES_SPAN_MAX_MS: u64 = 6 * HOUR_MS;

/// Where the figures are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// Sums over one dimension, of all its values or of one.
    Rollup { width_ms: u64, dimension: &'static str, value: Option<String> },
    /// Sums of combinations of values, by hour or day.
    Cube { width_ms: u64 },
    /// The calls themselves.
    Calls,
}

/// What a log has sums of.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Kept {
    /// The first minute, in milliseconds since 1970. `None` when there is none.
    pub(super) minutes_from_ms: Option<u64>,
    /// The first hour.
    pub(super) hours_from_ms: Option<u64>,
}

/// A query that is understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// What is read, one after the other; the spans do not overlap.
    pub(super) parts: Vec<Part>,
    pub(super) by: Option<Dimension>,
    /// Length of a point; `None`: no points.
    bucket_ms: Option<u64>,
    top: usize,
}

/// A source with the span that is read of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) source: Source,
    /// The query's filter, its span cut to this part.
    pub(super) filter: Filter,
}

impl Plan {
    /// How to answer `query` from a log with these sums.
    pub(super) fn of(query: UsageQuery, kept: Kept) -> Plan {
        let UsageQuery { mut filter, by, top, bucket } = query;
        let since = filter.since_ms.unwrap_or(0);
        let span = filter.until_ms.map(|until| until.saturating_sub(since));
        let by_hour = filter.since_ms.is_none() || span.is_none_or(|span| span > MINUTES_SPAN_MAX_MS);
        let width_ms = if by_hour { HOUR_MS } else { MINUTE_MS };
        let since = since / width_ms * width_ms;
        filter.since_ms = filter.since_ms.map(|_| since);
        filter.until_ms = filter.until_ms.map(|until| until.div_ceil(width_ms).saturating_mul(width_ms));
        let bucket_ms = bucket.map(|bucket| whole(bucket, width_ms));
        let are_kept = by_hour || kept.minutes_from_ms.is_some_and(|from| from <= since);
        let source = source(&filter, by, width_ms).filter(|_| are_kept).unwrap_or(Source::Calls);
        let by_days = by_hour && bucket_ms.is_none_or(|bucket| bucket.is_multiple_of(DAY_MS));
        let parts = match source_by_day(&source, &filter, by).filter(|_| by_days) {
            Some(by_day) => around_days(&source, &by_day, &filter, kept),
            None => vec![Part { source, filter }],
        };
        Plan { parts, by, bucket_ms, top }
    }

    /// Begins to put series together.
    pub(super) fn collect(&self) -> Collector {
        Collector { bucket_ms: self.bucket_ms, top: self.top, series: BTreeMap::new() }
    }
}

/// The sums by day that answer the same as `source`, where it has too many rows for a long span.
fn source_by_day(source: &Source, filter: &Filter, by: Option<Dimension>) -> Option<Source> {
    match source {
        Source::Rollup { .. } => None,
        Source::Cube { .. } => Some(Source::Cube { width_ms: DAY_MS }),
        Source::Calls => {
            let span_alone = Filter { since_ms: filter.since_ms, until_ms: filter.until_ms, ..Filter::default() };
            let only_users = *filter == Filter { user: filter.user.clone(), ..span_alone };
            let of_users = only_users && by.is_none_or(|by| by == Dimension::User);
            let dimension = Dimension::User.label();
            of_users.then(|| Source::Rollup { width_ms: DAY_MS, dimension, value: filter.user.clone() })
        }
    }
}

/// Whole days from `by_day`, what is before and after them from `source`.
fn around_days(source: &Source, by_day: &Source, filter: &Filter, kept: Kept) -> Vec<Part> {
    // Of the day in which the first hour is, hours may have been deleted: its sum may be gone, or be of more.
    let kept_from = kept.hours_from_ms.map_or(u64::MAX, |from| from.div_ceil(DAY_MS).saturating_mul(DAY_MS));
    let from = filter.since_ms.unwrap_or(0).div_ceil(DAY_MS).saturating_mul(DAY_MS).max(kept_from);
    let to = filter.until_ms.map(|until| until / DAY_MS * DAY_MS);
    if from == u64::MAX || to.is_some_and(|to| from >= to) {
        return vec![Part { source: source.clone(), filter: filter.clone() }];
    }
    let part = |source: &Source, since_ms, until_ms| Part {
        source: source.clone(),
        filter: Filter { since_ms, until_ms, ..filter.clone() },
    };
    let mut parts = vec![part(by_day, Some(from), to)];
    if filter.since_ms.is_none_or(|since| since < from) {
        parts.insert(0, part(source, filter.since_ms, Some(from)));
    }
    if to < filter.until_ms {
        parts.push(part(source, to, filter.until_ms));
    }
    parts
}

/// The sums that answer a query, if any do.
fn source(filter: &Filter, by: Option<Dimension>, width_ms: u64) -> Option<Source> {
    let Filter { model, team, key, user, session, provider, endpoint, outcome, errors, variant, tag, .. } = filter;
    if user.is_some() || session.is_some() || endpoint.is_some() || tag.is_some() || by == Some(Dimension::User) {
        return None;
    }
    let asked = [
        (Dimension::Model, model.clone()),
        (Dimension::Team, team.clone()),
        (Dimension::Key, key.clone()),
        (Dimension::Provider, provider.clone()),
        (Dimension::Outcome, outcome.map(|outcome| outcome.label().to_owned())),
        (Dimension::Variant, variant.as_ref().map(|(experiment, variant)| format!("{experiment}={variant}"))),
    ];
    let mut asked = asked.into_iter().filter_map(|(dimension, value)| Some((dimension, value?)));
    match (asked.next(), asked.next(), by) {
        (None, None, by) if !errors => {
            Some(Source::Rollup { width_ms, dimension: by.map_or(ALL, Dimension::label), value: None })
        }
        (Some((dimension, value)), None, by) if !errors && by.is_none_or(|by| by == dimension) => {
            Some(Source::Rollup { width_ms, dimension: dimension.label(), value: Some(value) })
        }
        _ => (width_ms == HOUR_MS).then_some(Source::Cube { width_ms }),
    }
}

/// A bucket's length as a whole number of `width_ms`.
fn whole(bucket: Duration, width_ms: u64) -> u64 {
    let bucket_ms = u64::try_from(bucket.as_millis()).unwrap_or(u64::MAX / 2);
    bucket_ms.div_ceil(width_ms).max(1).saturating_mul(width_ms)
}

/// Series in the making.
#[derive(Debug)]
pub(super) struct Collector {
    bucket_ms: Option<u64>,
    top: usize,
    series: BTreeMap<Arc<str>, (Figures, BTreeMap<u64, Figures>)>,
}

impl Collector {
    /// Changes the sums that a call or bucket at `at_ms` belongs to.
    pub(super) fn at(&mut self, at_ms: u64, value: &str, change: impl FnOnce(&mut Figures)) {
        if !self.series.contains_key(value) {
            self.series.insert(Arc::from(value), Default::default());
        }
        let (total, points) = self.series.get_mut(value).expect("inserted above");
        // Where there are points, the total is summed up from them at the end.
        change(match self.bucket_ms {
            Some(bucket_ms) => points.entry(at_ms / bucket_ms * bucket_ms).or_default(),
            None => total,
        });
    }

    /// The dearest first; of equally dear ones, those with more calls.
    pub(super) fn finish(self) -> Vec<Series> {
        let in_turn = self.series.into_iter();
        let mut all: Vec<Series> = in_turn
            .map(|(value, (mut total, points))| {
                points.values().for_each(|point| total.merge(point));
                Series { value, total, points: points.into_iter().collect() }
            })
            .collect();
        all.sort_by_key(|series| std::cmp::Reverse((series.total.cost_nanousd, series.total.calls)));
        if self.top > 0 {
            all.truncate(self.top);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL_KEPT: Kept = Kept { minutes_from_ms: Some(0), hours_from_ms: Some(0) };

    fn plan(filter: Filter, by: Option<Dimension>) -> Plan {
        Plan::of(UsageQuery { filter, by, ..UsageQuery::default() }, ALL_KEPT)
    }

    /// Where a query is answered that is answered from one source.
    fn source(filter: Filter, by: Option<Dimension>) -> Source {
        let [Part { source, .. }] = <[Part; 1]>::try_from(plan(filter, by).parts).unwrap();
        source
    }

    fn span(hours: u64) -> Filter {
        Filter { since_ms: Some(HOUR_MS + 1), until_ms: Some(HOUR_MS + hours * HOUR_MS), ..Filter::default() }
    }

    #[test]
    fn a_dimension_alone_is_answered_from_its_sums() {
        let rollup = |width_ms, dimension, value: Option<&str>| Source::Rollup {
            width_ms,
            dimension,
            value: value.map(str::to_owned),
        };
        let team = |hours| Filter { team: Some("a".to_owned()), ..span(hours) };
        let cube = Source::Cube { width_ms: HOUR_MS };
        assert_eq!(source(span(2), None), rollup(MINUTE_MS, "", None));
        assert_eq!(source(span(90 * 24), Some(Dimension::Model)), rollup(HOUR_MS, "model", None));
        assert_eq!(source(team(24), None), rollup(HOUR_MS, "team", Some("a")));
        assert_eq!(source(team(24), Some(Dimension::Model)), cube);
        assert_eq!(source(team(2), Some(Dimension::Model)), Source::Calls);
        assert_eq!(source(Filter { errors: true, ..span(24) }, None), cube);
        assert_eq!(source(span(24), Some(Dimension::User)), Source::Calls);
    }

    #[test]
    fn minutes_that_are_gone_are_read_from_the_calls() {
        let query = UsageQuery { filter: span(2), ..UsageQuery::default() };
        for minutes_from_ms in [Some(2 * HOUR_MS), None] {
            let plan = Plan::of(query.clone(), Kept { minutes_from_ms, ..ALL_KEPT });
            assert_eq!(plan.parts[0].source, Source::Calls);
        }
    }

    #[test]
    fn spans_are_widened_to_whole_units() {
        let of = |hours| {
            let plan = plan(Filter { until_ms: Some(hours * HOUR_MS + 1), ..span(0) }, None);
            (plan.parts[0].filter.since_ms, plan.parts[0].filter.until_ms)
        };
        assert_eq!(of(3), (Some(HOUR_MS), Some(3 * HOUR_MS + MINUTE_MS)));
        assert_eq!(of(30), (Some(HOUR_MS), Some(31 * HOUR_MS)));
    }

    #[test]
    fn whole_days_are_read_from_sums_by_day() {
        let (hour, day) = (Source::Cube { width_ms: HOUR_MS }, Source::Cube { width_ms: DAY_MS });
        let failed = |since_ms, until_ms| Filter { errors: true, since_ms, until_ms, ..Filter::default() };
        let parts = |filter: Filter, bucket: Option<u64>, kept: Kept| -> Vec<(Source, Option<u64>, Option<u64>)> {
            let query = UsageQuery { filter, bucket: bucket.map(Duration::from_millis), ..UsageQuery::default() };
            let parts = Plan::of(query, kept).parts.into_iter();
            parts.map(|part| (part.source, part.filter.since_ms, part.filter.until_ms)).collect()
        };
        let from_one_to_one = failed(Some(HOUR_MS), Some(3 * DAY_MS + HOUR_MS));
        let split = [
            (hour.clone(), Some(HOUR_MS), Some(DAY_MS)),
            (day.clone(), Some(DAY_MS), Some(3 * DAY_MS)),
            (hour.clone(), Some(3 * DAY_MS), Some(3 * DAY_MS + HOUR_MS)),
        ];
        assert_eq!(parts(from_one_to_one.clone(), None, ALL_KEPT), split);
        assert_eq!(parts(from_one_to_one.clone(), Some(DAY_MS), ALL_KEPT), split);
        let whole = [(hour.clone(), Some(HOUR_MS), Some(3 * DAY_MS + HOUR_MS))];
        assert_eq!(parts(from_one_to_one.clone(), Some(HOUR_MS), ALL_KEPT), whole);
        assert_eq!(
            parts(failed(Some(DAY_MS), Some(3 * DAY_MS)), None, ALL_KEPT),
            [(day.clone(), Some(DAY_MS), Some(3 * DAY_MS))]
        );
        // The day of the first hour that is there may have lost others.
        let rest = Kept { hours_from_ms: Some(DAY_MS + 1), ..ALL_KEPT };
        assert_eq!(
            parts(failed(None, None), None, rest),
            [(hour.clone(), None, Some(2 * DAY_MS)), (day, Some(2 * DAY_MS), None)]
        );
        assert_eq!(parts(failed(None, None), None, Kept::default()), [(hour, None, None)]);
    }

    #[test]
    fn users_alone_are_read_from_sums_by_day() {
        let days = |filter| Filter { since_ms: Some(0), until_ms: Some(2 * DAY_MS), ..filter };
        let user = || Some("u".to_owned());
        let rollup = |value| Source::Rollup { width_ms: DAY_MS, dimension: "user", value };
        assert_eq!(source(days(Filter::default()), Some(Dimension::User)), rollup(None));
        assert_eq!(source(days(Filter { user: user(), ..Filter::default() }), None), rollup(user()));
        let crossed = Filter { user: user(), model: Some("m".to_owned()), ..Filter::default() };
        assert_eq!(source(days(crossed), None), Source::Calls);
        assert_eq!(source(days(Filter { user: user(), ..Filter::default() }), Some(Dimension::Model)), Source::Calls);
    }
}
