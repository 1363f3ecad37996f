//! `/api/usage`: sums over calls, by what they can be told apart by, and over time.

use axum::{Json, extract::State};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Admin,
    calls::{self, Filters, length, wrong},
    extract::Queries,
    openapi::{Api, routes},
    problem::Problem,
};
use crate::store::records::{
    histogram::Histogram,
    ports::{Dimension, Figures, Series, UsageQuery},
};

/// Values that are shown unless another number is asked for.
const TOP: usize = 100;
/// Values that are shown at most.
const TOP_MAX: usize = 1000;
/// Points of one value at most.
const POINTS_MAX: u64 = 2000;

const DIMENSIONS: [Dimension; 7] = [
    Dimension::Model,
    Dimension::Team,
    Dimension::Key,
    Dimension::Variant,
    Dimension::Provider,
    Dimension::Outcome,
    Dimension::User,
];

pub(super) fn router() -> Api {
    Api::default().routes(routes!(usage))
}

/// How to sum up.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Shape {
    /// By `model`, `team`, `key`, `variant`, `provider`, `outcome` or `user`; all together unless given.
    by: Option<String>,
    /// At most so many values, the dearest first; 100 unless given, 1000 at most.
    top: Option<usize>,
    /// Into points of so long: `1m`, `1h`, `1d`; only the sum unless given. Takes `since`, and at most 2000 points.
    bucket: Option<String>,
}

/// What was used.
#[derive(Debug, Serialize, ToSchema)]
struct Usage {
    /// By value, the dearest first.
    series: Vec<UsageSeries>,
}

/// The sums of one value.
#[derive(Debug, Serialize, ToSchema)]
struct UsageSeries {
    /// The value, such as a model's label; empty where all calls are summed up together, or a call has none.
    value: String,
    /// Over the whole span.
    total: UsageFigures,
    /// Over each bucket in which there was a call.
    points: Vec<UsagePoint>,
}

/// The sums of one bucket.
#[derive(Debug, Serialize, ToSchema)]
struct UsagePoint {
    /// When it begins.
    at: String,
    /// Its sums.
    #[serde(flatten)]
    figures: UsageFigures,
}

/// Sums over calls.
#[derive(Debug, Serialize, ToSchema)]
struct UsageFigures {
    /// Calls.
    calls: u64,
    /// Of them failed.
    errors: u64,
    /// Of them refused by the gateway.
    refused: u64,
    /// What they cost, in nano-USD.
    cost_nanousd: u64,
    /// All prompt tokens.
    input_tokens: u64,
    /// Of them from the provider's prompt cache.
    cached_tokens: u64,
    /// All output tokens.
    output_tokens: u64,
    /// Of them reasoning.
    reasoning_tokens: u64,
    /// How long calls took that were sent to a provider.
    duration: Percentiles,
    /// How long streams took to their first token.
    first_token: Percentiles,
}

/// Half, nine tenths, … of all took at most so many microseconds, to within 3.2 %.
#[derive(Debug, Serialize, ToSchema)]
struct Percentiles {
    /// How many there are.
    count: u64,
    /// Half of them.
    p50_us: Option<u64>,
    /// Nine tenths.
    p90_us: Option<u64>,
    /// Ninety-five of a hundred.
    p95_us: Option<u64>,
    /// Ninety-nine of a hundred.
    p99_us: Option<u64>,
}

/// Sums over calls
///
/// Both ends of the span are widened to whole minutes, or to whole hours in spans above six hours.
#[utoipa::path(get, path = "/api/usage", tag = "calls", operation_id = "usage", params(Filters, Shape),
    responses((status = OK, body = Usage), (status = NOT_FOUND, body = Problem),
        (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn usage(
    State(admin): State<Admin>,
    Queries(filters, shape): Queries<Filters, Shape>,
) -> Result<Json<Usage>, Problem> {
    let log = calls::log(&admin)?;
    let now = Timestamp::now();
    let query = shape.read(filters, calls::users(&admin), now)?;
    let series = log.usage(query).await?;
    Ok(Json(Usage { series: series.into_iter().map(UsageSeries::from).collect() }))
}

impl Shape {
    fn read(self, filters: Filters, users: crate::record::UserIds, now: Timestamp) -> Result<UsageQuery, Problem> {
        let filter = filters.read(users, now)?;
        let known = |name: String| {
            let names = || DIMENSIONS.map(Dimension::label).join(", ");
            let found = DIMENSIONS.into_iter().find(|dimension| dimension.label() == name);
            found.ok_or_else(|| wrong(format!("`by` is one of {}", names())))
        };
        let bucket = self.bucket.map(|text| {
            let bucket = length(&text).filter(|bucket| bucket.as_secs() >= 60);
            bucket.ok_or_else(|| wrong("write `bucket` as 1m, 1h or 1d; it is a minute at least".to_owned()))
        });
        let bucket = bucket.transpose()?;
        if let Some(bucket) = bucket {
            let since = filter.since_ms.ok_or_else(|| wrong("with `bucket`, say `since` when".to_owned()))?;
            let now_ms = u64::try_from(now.as_millisecond()).unwrap_or_default();
            let span_ms = filter.until_ms.unwrap_or(now_ms).saturating_sub(since);
            if span_ms / 1000 / bucket.as_secs() > POINTS_MAX {
                return Err(wrong(format!("that would be more than {POINTS_MAX} points: take a longer `bucket`")));
            }
        }
        let top = self.top.unwrap_or(TOP).clamp(1, TOP_MAX);
        Ok(UsageQuery { filter, by: self.by.map(known).transpose()?, top, bucket })
    }
}

impl From<Series> for UsageSeries {
    fn from(series: Series) -> UsageSeries {
        let points =
            series.points.iter().map(|(at_ms, figures)| UsagePoint { at: time(*at_ms), figures: figures.into() });
        UsageSeries { value: series.value.to_string(), total: (&series.total).into(), points: points.collect() }
    }
}

impl From<&Figures> for UsageFigures {
    fn from(figures: &Figures) -> UsageFigures {
        UsageFigures {
            calls: figures.calls,
            errors: figures.errors,
            refused: figures.refused,
            cost_nanousd: figures.cost_nanousd,
            input_tokens: figures.input_tokens,
            cached_tokens: figures.cached_tokens,
            output_tokens: figures.output_tokens,
            reasoning_tokens: figures.reasoning_tokens,
            duration: (&figures.duration).into(),
            first_token: (&figures.first_token).into(),
        }
    }
}

impl From<&Histogram> for Percentiles {
    fn from(histogram: &Histogram) -> Percentiles {
        let at = |share| histogram.percentile(share).and_then(|time| u64::try_from(time.as_micros()).ok());
        Percentiles { count: histogram.count(), p50_us: at(0.5), p90_us: at(0.9), p95_us: at(0.95), p99_us: at(0.99) }
    }
}

fn time(ms: u64) -> String {
    let time = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    time.unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::UserIds;

    #[test]
    fn there_are_never_more_points_than_can_be_drawn() {
        let now: Timestamp = "2026-11-23T20:00:00Z".parse().expect("a time");
        let read = |since: Option<&str>, bucket: &str, by: &str| {
            let filters = Filters { since: since.map(str::to_owned), ..Filters::default() };
            let shape = Shape { by: Some(by.to_owned()), top: None, bucket: Some(bucket.to_owned()) };
            shape.read(filters, UserIds::Plain, now)
        };
        let query = read(Some("24h"), "1m", "team").expect("1440 points");
        assert_eq!((query.by, query.top, query.bucket.map(|b| b.as_secs())), (Some(Dimension::Team), 100, Some(60)));
        assert!(read(Some("7d"), "1m", "team").is_err());
        assert!(read(Some("7d"), "1h", "team").is_ok());
        assert!(read(None, "1h", "team").is_err());
        assert!(read(Some("24h"), "1s", "team").is_err());
        assert!(read(Some("24h"), "1m", "colour").is_err());
    }
}
