//! Costs: what the current month has cost by something, what it will come to, and what calls would have cost on another model.

use std::collections::BTreeSet;

use jiff::tz::TimeZone;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    super::costs::{self, WhatIfQuery},
    figures,
    sums::{self, Sums},
    visit::{Shown, Visit},
};
use crate::{
    policy::forecast::Forecast,
    store::records::{
        month,
        ports::{Dimension, Figures, Filter, UsageQuery},
    },
};

/// Values that are shown.
const TOP: usize = 100;

/// What costs are told apart by.
const DIMENSIONS: [&str; 5] = ["model", "team", "key", "provider", "variant"];

/// Spans that a what-if may look at instead of the current month.
const SPANS: [&str; 3] = ["24h", "7d", "30d"];

#[derive(Debug, Serialize)]
struct Row {
    value: String,
    /// Of all costs, 0 to 1.
    share: f64,
    sums: Sums,
}

/// What the month will come to, in nano-USD.
#[derive(Debug, Serialize)]
struct Expected {
    total: u64,
    range: Option<(u64, u64)>,
    days: usize,
}

pub(super) async fn show(visit: Visit) -> Shown {
    let by = sums::dimension(visit.parameter("by")).unwrap_or(Dimension::Model);
    let first = TimeZone::UTC.to_datetime(visit.now).date().first_of_month();
    let since_ms = month::first_ms(first);
    let base = json!({ "log": false, "by": by.label(), "dimensions": DIMENSIONS, "since_ms": since_ms });
    let Some(calls) = visit.calls() else { return Ok(visit.page("costs.html", base)) };
    let filter = Filter { since_ms: Some(since_ms), ..Filter::default() };
    let query = |by| UsageQuery { filter: filter.clone(), by, top: TOP, bucket: None };
    let away = |error| visit.store_away(&error);
    let all = calls.log.usage(query(None)).await.map_err(away)?;
    let series = calls.log.usage(query(Some(by))).await.map_err(away)?;
    let named = calls.log.usage(query(Some(Dimension::Model))).await.map_err(away)?;
    let expected = month::forecast(&*calls.log, Filter::default(), visit.now).await.map_err(away)?;
    let total = all.into_iter().next().map_or_else(Figures::default, |all| all.total);
    let whole = total.cost_nanousd.max(1) as f64;
    let row = |series: crate::store::records::ports::Series| Row {
        value: series.value.to_string(),
        share: series.total.cost_nanousd as f64 / whole,
        sums: Sums::from(&series.total),
    };
    let rows: Vec<Row> = series.into_iter().map(row).collect();
    let page = json!({
        "log": true,
        "by": by.label(),
        "dimensions": DIMENSIONS,
        "since_ms": since_ms,
        "now": figures::milliseconds(visit.now),
        "total": Sums::from(&total),
        "rows": rows,
        "expected": expected.map(Expected::from),
        "what_if": what_if(&visit, named.iter().map(|series| &*series.value)).await,
    });
    Ok(visit.page("costs.html", page))
}

/// The form of a what-if, and its answer where something was asked.
async fn what_if(visit: &Visit, named: impl Iterator<Item = &str>) -> Value {
    let given = |name: &str| visit.parameter(name).map(str::to_owned);
    let (model, instead_of) = (given("model"), given("instead_of"));
    let mut models = known_models(visit);
    models.extend(named.filter(|name| !name.is_empty() && *name != "other").map(str::to_owned));
    models.extend(instead_of.clone());
    let mut form = json!({
        "models": models,
        "spans": SPANS,
        "calls_max": costs::WHAT_IF_CALLS_MAX,
        "model": &model,
        "instead_of": &instead_of,
        "since": given("since"),
        "team": given("team"),
        "key": given("key"),
    });
    let Some(model) = model else { return form };
    let asked = WhatIfQuery {
        model,
        instead_of,
        since: given("since"),
        team: given("team"),
        key: given("key"),
        ..WhatIfQuery::default()
    };
    match costs::what_if_of(&visit.admin, asked, visit.now).await {
        Ok(found) => form["found"] = json!(found),
        Err(problem) => form["refusal"] = json!(problem.into_parts().1),
    }
    form
}

/// The aliases of the configuration, and where they lead.
fn known_models(visit: &Visit) -> BTreeSet<String> {
    let snapshot = visit.admin.shared.live.load_full();
    let versions = snapshot.models.values().flat_map(|model| model.versions.values());
    let targets =
        versions.flat_map(|version| version.targets.iter().map(|(target, _)| target).chain(&version.fallbacks));
    let targets = targets.map(|target| format!("{}/{}", target.provider.name, target.model));
    snapshot.models.keys().map(ToString::to_string).chain(targets).collect()
}

impl From<Forecast> for Expected {
    fn from(forecast: Forecast) -> Expected {
        let range = forecast.range.map(|(low, high)| (low.0, high.0));
        Expected { total: forecast.total.0, range, days: forecast.days }
    }
}
