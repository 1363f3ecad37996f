//! `/api/costs`: what the current month has cost by something, what it will come to, and what calls would have cost elsewhere.

use axum::{Json, extract::State};
use jiff::{Timestamp, civil::Date, tz::TimeZone};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Admin,
    calls::{self, Filters, wrong},
    extract::{Queries, Query},
    openapi::{Api, routes},
    problem::Problem,
};
use crate::{
    analysis::what_if::{self, Compared, Question, WhatIf},
    policy::forecast::Forecast,
    store::records::{
        month,
        ports::{Dimension, Filter, UsageQuery},
    },
};

const DIMENSIONS: [Dimension; 6] =
    [Dimension::Model, Dimension::Team, Dimension::Key, Dimension::Variant, Dimension::Provider, Dimension::User];

/// Calls that a what-if looks at, the latest: each is read. The command line looks at all.
pub(super) const WHAT_IF_CALLS_MAX: u64 = 50_000;

pub(super) fn router() -> Api {
    Api::default().routes(routes!(costs)).routes(routes!(what_if))
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

/// Which calls, and which price.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct WhatIfQuery {
    /// The model that they would have gone to: an alias, `provider/model`, or a model's name.
    pub(super) model: String,
    /// Only calls that named this model or went to it; all unless given.
    pub(super) instead_of: Option<String>,
    /// Received then or later: `2026-11-23T18:00:00Z`, or so long ago: `30m`, `2h`, `7d`. The current month unless given.
    pub(super) since: Option<String>,
    /// Received before then.
    pub(super) until: Option<String>,
    /// Of a team.
    pub(super) team: Option<String>,
    /// Of a key, by its name.
    pub(super) key: Option<String>,
    /// Of a user. Where users are stored hashed, the plain id finds them too.
    pub(super) user: Option<String>,
    /// With a tag: `name=value`.
    pub(super) tag: Option<String>,
}

/// What calls would have cost on another model.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct WhatIfInfo {
    /// What the price is of: `provider/model`.
    model: String,
    /// By the target that they went to.
    rows: Vec<WhatIfRow>,
    /// All of them; its `target` is empty.
    total: WhatIfRow,
    /// Calls that were left out: without a price or without token counts.
    left_out: u64,
    /// Whether there were more calls: the latest 50,000 are looked at.
    is_cut: bool,
    /// How it was computed, and what it cannot know.
    method: &'static str,
}

/// The calls to one target.
#[derive(Debug, Serialize, ToSchema)]
struct WhatIfRow {
    /// The target.
    target: String,
    /// Calls.
    calls: u64,
    /// What they cost, in nano-USD.
    cost_nanousd: u64,
    /// What they would have cost.
    would_nanousd: u64,
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
    let since = this_month(now);
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

/// What calls would have cost on another model
///
/// Each call is priced anew from its tokens by kind, at the price that holds at its time.
#[utoipa::path(get, path = "/api/costs/what-if", tag = "calls", operation_id = "costs_what_if", params(WhatIfQuery),
    responses((status = OK, body = WhatIfInfo), (status = NOT_FOUND, body = Problem),
        (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn what_if(State(admin): State<Admin>, Query(asked): Query<WhatIfQuery>) -> Result<Json<WhatIfInfo>, Problem> {
    what_if_of(&admin, asked, Timestamp::now()).await.map(Json)
}

/// What calls would have cost on another model; the dashboard asks that, too.
pub(super) async fn what_if_of(admin: &Admin, asked: WhatIfQuery, now: Timestamp) -> Result<WhatIfInfo, Problem> {
    let log = calls::log(admin)?;
    let snapshot = admin.shared.live.load_full();
    let WhatIfQuery { model, instead_of, since, until, team, key, user, tag } = asked;
    let (name, price) = what_if::price_of(&model, Some(&snapshot)).ok_or_else(|| {
        wrong(format!("`{model}` has no price; name an alias, `provider/model` or a model of the price catalog"))
    })?;
    let is_this_month = since.is_none() && until.is_none();
    let filters = Filters { since, until, team, key, user, tag, ..Filters::default() };
    let mut filter = filters.read(calls::users(admin), now)?;
    if is_this_month {
        filter.since_ms = Some(month::first_ms(this_month(now)));
    }
    let question = Question { filter, instead_of: instead_of.as_deref(), price: &price, calls_max: WHAT_IF_CALLS_MAX };
    let found = what_if::what_if(&*log, &question).await?;
    Ok(WhatIfInfo::of(name, &found))
}

/// The first day of the month of UTC that `now` is in.
fn this_month(now: Timestamp) -> Date {
    TimeZone::UTC.to_datetime(now).date().first_of_month()
}

impl WhatIfInfo {
    fn of(model: String, found: &WhatIf) -> WhatIfInfo {
        WhatIfInfo {
            model,
            rows: found.by_target.iter().map(|(target, compared)| WhatIfRow::of(target, compared)).collect(),
            total: WhatIfRow::of("", &found.total()),
            left_out: found.left_out,
            is_cut: found.is_cut,
            method: what_if::METHOD,
        }
    }
}

impl WhatIfRow {
    fn of(target: &str, compared: &Compared) -> WhatIfRow {
        WhatIfRow {
            target: target.to_owned(),
            calls: compared.calls,
            cost_nanousd: compared.was_nanousd,
            would_nanousd: compared.would_nanousd,
        }
    }
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
