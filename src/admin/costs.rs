//! `/api/costs`: what the current month has cost by something, and what it will come to.

use axum::{Json, extract::State};
use jiff::{Timestamp, tz::TimeZone};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Admin,
    calls::{self, wrong},
    extract::Queries,
    openapi::{Api, routes},
    problem::Problem,
};
use crate::{
    policy::forecast::Forecast,
    store::records::{
        month,
        ports::{Dimension, Filter, UsageQuery},
    },
};

const DIMENSIONS: [Dimension; 6] =
    [Dimension::Model, Dimension::Team, Dimension::Key, Dimension::Variant, Dimension::Provider, Dimension::User];

pub(super) fn router() -> Api {
    Api::default().routes(routes!(costs))
}

/// Of whom.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Whose {
    /// Of a team.
    team: Option<String>,
    /// Of a key, by its name.
    key: Option<String>,
    /// Of a model: an alias, `provider/model`, or `other`.
    model: Option<String>,
}

/// By what.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Shape {
    /// By `model`, `team`, `key`, `variant`, `provider` or `user`; by `model` unless given.
    by: Option<String>,
}

/// What the current month of UTC costs.
#[derive(Debug, Serialize, ToSchema)]
struct Costs {
    /// Its first day, such as `2026-11-01`.
    since: String,
    /// By value, the dearest first.
    rows: Vec<CostsRow>,
    /// What it will come to; `null` where no whole day is known yet.
    forecast: Option<CostsForecast>,
}

/// The sums of one value.
#[derive(Debug, Serialize, ToSchema)]
struct CostsRow {
    /// The value, such as a team; empty where a call has none.
    value: String,
    /// Calls.
    calls: u64,
    /// All prompt tokens.
    input_tokens: u64,
    /// Of them from the provider's prompt cache.
    cached_tokens: u64,
    /// All output tokens.
    output_tokens: u64,
    /// What they cost, in nano-USD.
    cost_nanousd: u64,
}

/// What the month will come to: each day to come as the same weekdays of the last four weeks. See docs/costs.md.
#[derive(Debug, Serialize, ToSchema)]
struct CostsForecast {
    /// What it has cost so far, in nano-USD.
    spent_nanousd: u64,
    /// What it will have cost at its end.
    total_nanousd: u64,
    /// Four times out of five it is not less; `null` where fewer than 14 whole days are known.
    low_nanousd: Option<u64>,
    /// Nor more.
    high_nanousd: Option<u64>,
    /// Whole days that this rests on.
    days: usize,
}

/// Costs of the current month
#[utoipa::path(get, path = "/api/costs", tag = "calls", operation_id = "costs", params(Whose, Shape),
    responses((status = OK, body = Costs), (status = NOT_FOUND, body = Problem),
        (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn costs(
    State(admin): State<Admin>,
    Queries(whose, shape): Queries<Whose, Shape>,
) -> Result<Json<Costs>, Problem> {
    let log = calls::log(&admin)?;
    let now = Timestamp::now();
    let by = shape.by()?;
    let since = TimeZone::UTC.to_datetime(now).date().first_of_month();
    let filter = Filter {
        since_ms: Some(month::first_ms(since)),
        team: whose.team,
        key: whose.key,
        model: whose.model,
        ..Filter::default()
    };
    let series = log.usage(UsageQuery { filter: filter.clone(), by: Some(by), ..UsageQuery::default() }).await?;
    let forecast = month::forecast(&*log, filter, now).await?.map(CostsForecast::from);
    let row = |series: crate::store::records::ports::Series| CostsRow {
        value: series.value.to_string(),
        calls: series.total.calls,
        input_tokens: series.total.input_tokens,
        cached_tokens: series.total.cached_tokens,
        output_tokens: series.total.output_tokens,
        cost_nanousd: series.total.cost_nanousd,
    };
    Ok(Json(Costs { since: since.to_string(), rows: series.into_iter().map(row).collect(), forecast }))
}

impl Shape {
    fn by(&self) -> Result<Dimension, Problem> {
        let Some(name) = &self.by else { return Ok(Dimension::Model) };
        let found = DIMENSIONS.into_iter().find(|dimension| dimension.label() == *name);
        found.ok_or_else(|| wrong(format!("`by` is one of {}", DIMENSIONS.map(Dimension::label).join(", "))))
    }
}

impl From<Forecast> for CostsForecast {
    fn from(forecast: Forecast) -> CostsForecast {
        CostsForecast {
            spent_nanousd: forecast.spent.0,
            total_nanousd: forecast.total.0,
            low_nanousd: forecast.range.map(|(low, _)| low.0),
            high_nanousd: forecast.range.map(|(_, high)| high.0),
            days: forecast.days,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_by_model_unless_something_else_is_asked_for() {
        let by = |text: Option<&str>| Shape { by: text.map(str::to_owned) }.by().ok();
        assert_eq!((by(None), by(Some("team"))), (Some(Dimension::Model), Some(Dimension::Team)));
        assert_eq!((by(Some("outcome")), by(Some("colour"))), (None, None));
    }
}
