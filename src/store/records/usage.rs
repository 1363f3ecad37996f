//! How a usage query is answered: from which sums, over which span, and put together into series.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    ports::{Dimension, Figures, Filter, Series, UsageQuery},
    rollup::{ALL, HOUR_MS, MINUTE_MS},
};

/// Longer spans are answered from sums by hour.
const MINUTES_SPAN_MAX_MS: u64 = 6 * HOUR_MS;

/// Where the figures are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// Sums over one dimension, of all its values or of one.
    Rollup { width_ms: u64, dimension: &'static str, value: Option<String> },
    /// Sums by hour of combinations of values.
    Cube,
    /// The calls themselves.
    Calls,
}

/// A query that is understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) source: Source,
    /// The filter with its span widened.
    pub(super) filter: Filter,
    pub(super) by: Option<Dimension>,
    /// Length of a point; `None`: no points.
    bucket_ms: Option<u64>,
    top: usize,
}

impl Plan {
    /// `minutes_from_ms`: since when there are sums by minute; `None` when there are none.
    pub(super) fn of(query: UsageQuery, minutes_from_ms: Option<u64>) -> Plan {
        let UsageQuery { mut filter, by, top, bucket } = query;
        let since = filter.since_ms.unwrap_or(0);
        let span = filter.until_ms.map(|until| until.saturating_sub(since));
        let by_hour = filter.since_ms.is_none() || span.is_none_or(|span| span > MINUTES_SPAN_MAX_MS);
        let width_ms = if by_hour { HOUR_MS } else { MINUTE_MS };
        let since = since / width_ms * width_ms;
        filter.since_ms = filter.since_ms.map(|_| since);
        filter.until_ms = filter.until_ms.map(|until| until.div_ceil(width_ms).saturating_mul(width_ms));
        let kept = by_hour || minutes_from_ms.is_some_and(|from| from <= since);
        let source = source(&filter, by, width_ms).filter(|_| kept).unwrap_or(Source::Calls);
        let bucket_ms = bucket.map(|bucket| whole(bucket, width_ms));
        Plan { source, filter, by, bucket_ms, top }
    }

    /// Begins to put series together.
    pub(super) fn collect(&self) -> Collector {
        Collector { bucket_ms: self.bucket_ms, top: self.top, series: BTreeMap::new() }
    }
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
        _ => (width_ms == HOUR_MS).then_some(Source::Cube),
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
    pub(super) fn at(&mut self, at_ms: u64, value: &str, mut change: impl FnMut(&mut Figures)) {
        if !self.series.contains_key(value) {
            self.series.insert(Arc::from(value), Default::default());
        }
        let (total, points) = self.series.get_mut(value).expect("inserted above");
        change(total);
        if let Some(bucket_ms) = self.bucket_ms {
            change(points.entry(at_ms / bucket_ms * bucket_ms).or_default());
        }
    }

    /// The dearest first; of equally dear ones, those with more calls.
    pub(super) fn finish(self) -> Vec<Series> {
        let in_turn = self.series.into_iter();
        let mut all: Vec<Series> = in_turn
            .map(|(value, (total, points))| Series { value, total, points: points.into_iter().collect() })
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

    fn plan(filter: Filter, by: Option<Dimension>) -> Plan {
        Plan::of(UsageQuery { filter, by, ..UsageQuery::default() }, Some(0))
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
        assert_eq!(plan(span(2), None).source, rollup(MINUTE_MS, "", None));
        assert_eq!(plan(span(24), Some(Dimension::Model)).source, rollup(HOUR_MS, "model", None));
        assert_eq!(plan(team(24), None).source, rollup(HOUR_MS, "team", Some("a")));
        assert_eq!(plan(team(24), Some(Dimension::Model)).source, Source::Cube);
        assert_eq!(plan(team(2), Some(Dimension::Model)).source, Source::Calls);
        assert_eq!(plan(Filter { errors: true, ..span(24) }, None).source, Source::Cube);
        assert_eq!(plan(span(24), Some(Dimension::User)).source, Source::Calls);
    }

    #[test]
    fn minutes_that_are_gone_are_read_from_the_calls() {
        let query = UsageQuery { filter: span(2), ..UsageQuery::default() };
        assert_eq!(Plan::of(query.clone(), Some(2 * HOUR_MS)).source, Source::Calls);
        assert_eq!(Plan::of(query, None).source, Source::Calls);
    }

    #[test]
    fn spans_are_widened_to_whole_units() {
        let of = |hours| plan(Filter { until_ms: Some(hours * HOUR_MS + 1), ..span(0) }, None).filter;
        assert_eq!((of(3).since_ms, of(3).until_ms), (Some(HOUR_MS), Some(3 * HOUR_MS + MINUTE_MS)));
        assert_eq!((of(30).since_ms, of(30).until_ms), (Some(HOUR_MS), Some(31 * HOUR_MS)));
    }
}
