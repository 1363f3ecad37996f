//! The first page: traffic, cost, tokens, latencies and failures over a span, and by what they can be told apart.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use super::{
    sums::{Range, Sums, dimension},
    visit::{Shown, Visit},
};
use crate::store::{
    ports::StoreError,
    records::{
        Calls,
        ports::{Dimension, Figures, Filter, Series, UsageQuery},
    },
};

/// Values of a dimension that are shown, the dearest first.
const VALUES_MAX: usize = 50;
/// A log whose first call in the span is younger is drawn in fine points, read from the calls themselves …
const YOUNG_MS: u64 = 10 * 60_000;
/// … if there are no more of them than this.
const FINE_CALLS_MAX: u64 = 5000;
/// What a fine point stands for.
const FINE_MS: u64 = 5000;
/// The shortest time that is drawn.
const DRAWN_MS_MIN: u64 = 60_000;

/// One point of the charts.
#[derive(Debug, Serialize)]
struct Point {
    at_ms: u64,
    sums: Sums,
}

/// One value of the dimension, and its part of the cost.
#[derive(Debug, Serialize)]
struct Row {
    value: String,
    sums: Sums,
    cost_share: f64,
}

/// What the charts show.
struct Course {
    total: Figures,
    points: Vec<(u64, Figures)>,
    width_ms: u64,
    from_ms: u64,
}

pub(super) async fn show(visit: Visit) -> Shown {
    let range = Range::of(&visit);
    let by = dimension(visit.parameter("by")).unwrap_or(Dimension::Model);
    let Some(calls) = visit.calls() else { return Ok(visit.page("overview.html", json!({ "log": false }))) };
    let page = gathered(&visit, calls, range, by).await.map_err(|error| visit.store_away(&error))?;
    Ok(visit.page("overview.html", page))
}

async fn gathered(visit: &Visit, calls: &Calls, range: Range, by: Dimension) -> Result<Value, StoreError> {
    let now_ms = visit.now_ms();
    let course = course(calls, range, now_ms).await?;
    let of_each = UsageQuery { filter: range.filter(now_ms), by: Some(by), top: VALUES_MAX, bucket: None };
    let series = calls.log.usage(of_each).await?;
    let shown_s = now_ms.saturating_sub(course.from_ms).max(1000) as f64 / 1000.0;
    Ok(json!({
        "log": true,
        "range": range.label(),
        "ranges": Range::ALL.map(Range::label),
        "by": by.label(),
        "dimensions": ["model", "team", "key", "provider", "variant"],
        "total": Sums::from(&course.total),
        "per_minute": course.total.calls as f64 * 60.0 / shown_s,
        "cost_per_hour": (course.total.cost_nanousd as f64 * 3600.0 / shown_s) as u64,
        "width_s": course.width_ms / 1000,
        "rows": rows(&series, &course.total),
        "points": points(course, now_ms),
        "in_flight": visit.admin.shared.in_flight.now(),
        "waiting": calls.progress.waiting(),
    }))
}

/// The figures over the span, point by point.
async fn course(calls: &Calls, range: Range, now_ms: u64) -> Result<Course, StoreError> {
    let filter = range.filter(now_ms);
    let query = UsageQuery { filter: filter.clone(), bucket: Some(range.bucket()), ..UsageQuery::default() };
    let width_ms = u64::try_from(range.bucket().as_millis()).unwrap_or(u64::MAX);
    let all = calls.log.usage(query).await?.into_iter().next();
    let Series { total, points, .. } = all.unwrap_or_default();
    let first = points.first().map_or(now_ms, |(first, _)| *first);
    let begins = now_ms.saturating_sub(range.span_ms());
    let young = now_ms.saturating_sub(first) < YOUNG_MS;
    if young && total.calls <= FINE_CALLS_MAX {
        let points = fine_points(calls, filter).await?;
        let first = points.first().map_or(now_ms, |(first, _)| *first);
        let from_ms = first.min(now_ms.saturating_sub(DRAWN_MS_MIN));
        return Ok(Course { total, points, width_ms: FINE_MS, from_ms });
    }
    // Where the first half of the span knows no call, the picture begins with the first one.
    let from_ms = if first > begins + range.span_ms() / 2 { first } else { begins };
    Ok(Course { total, points, width_ms, from_ms })
}

/// Points of few calls.
async fn fine_points(calls: &Calls, filter: Filter) -> Result<Vec<(u64, Figures)>, StoreError> {
    let page = calls.log.page(filter, None, FINE_CALLS_MAX as usize).await?;
    let mut points: BTreeMap<u64, Figures> = BTreeMap::new();
    for row in &page.rows {
        points.entry(row.received_ms / FINE_MS * FINE_MS).or_default().add(&row.into());
    }
    Ok(points.into_iter().collect())
}

/// A point for each step of time: also where nothing happened.
fn points(course: Course, now_ms: u64) -> Vec<Point> {
    let width = course.width_ms;
    let (first, last) = (course.from_ms / width * width, now_ms / width * width);
    let known: BTreeMap<u64, Figures> = course.points.into_iter().collect();
    let point = |at_ms: u64| Point { at_ms, sums: known.get(&at_ms).map(Sums::from).unwrap_or_default() };
    if known.is_empty() {
        return Vec::new();
    }
    (first..=last).step_by(usize::try_from(width).unwrap_or(usize::MAX)).map(point).collect()
}

fn rows(series: &[Series], total: &Figures) -> Vec<Row> {
    let share = |series: &Series| series.total.cost_nanousd as f64 / total.cost_nanousd.max(1) as f64;
    let row = |series: &Series| Row {
        value: series.value.to_string(),
        sums: Sums::from(&series.total),
        cost_share: share(series).min(1.0),
    };
    series.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn course(points: &[u64]) -> Course {
        let figures = Figures { calls: 1, ..Figures::default() };
        let points = points.iter().map(|at| (*at, figures.clone())).collect();
        Course { total: figures, points, width_ms: 10, from_ms: 5 }
    }

    #[test]
    fn there_is_a_point_for_each_step_of_time() {
        let drawn: Vec<(u64, u64)> =
            points(course(&[10, 30]), 39).into_iter().map(|point| (point.at_ms, point.sums.calls)).collect();
        assert_eq!(drawn, [(0, 0), (10, 1), (20, 0), (30, 1)]);
        assert!(points(course(&[]), 39).is_empty());
    }
}
