//! Sums of the call log as pages show them, over the spans that people choose.

use std::time::Duration;

use serde::Serialize;

use super::visit::Visit;
use crate::store::records::ports::{Dimension, Figures, Filter};

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;

/// How far back a page looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Range {
    Hour,
    Day,
    Week,
    Month,
}

impl Range {
    /// From the shortest.
    pub(super) const ALL: [Range; 4] = [Range::Hour, Range::Day, Range::Week, Range::Month];

    /// The one that a visitor chose.
    pub(super) fn of(visit: &Visit) -> Range {
        let named = visit.parameter("range");
        Range::ALL.into_iter().find(|range| Some(range.label()) == named).unwrap_or(Range::Hour)
    }

    /// Its name in links.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Range::Hour => "1h",
            Range::Day => "24h",
            Range::Week => "7d",
            Range::Month => "30d",
        }
    }

    /// How long it is.
    pub(super) const fn span_ms(self) -> u64 {
        match self {
            Range::Hour => HOUR_MS,
            Range::Day => 24 * HOUR_MS,
            Range::Week => 7 * 24 * HOUR_MS,
            Range::Month => 30 * 24 * HOUR_MS,
        }
    }

    /// What one point of its charts stands for.
    pub(super) const fn bucket(self) -> Duration {
        match self {
            Range::Hour => Duration::from_mins(1),
            Range::Day => Duration::from_hours(1),
            Range::Week => Duration::from_hours(3),
            Range::Month => Duration::from_hours(12),
        }
    }

    /// All calls of it.
    pub(super) fn filter(self, now_ms: u64) -> Filter {
        Filter { since_ms: Some(now_ms.saturating_sub(self.span_ms())), until_ms: Some(now_ms), ..Filter::default() }
    }
}

/// The dimension with this label.
pub(super) fn dimension(label: Option<&str>) -> Option<Dimension> {
    [Dimension::Model, Dimension::Team, Dimension::Key, Dimension::Provider, Dimension::Variant]
        .into_iter()
        .find(|dimension| Some(dimension.label()) == label)
}

/// Sums as a template shows them. Durations are microseconds, money is nano-USD.
#[derive(Debug, Default, Serialize)]
pub(super) struct Sums {
    pub(super) calls: u64,
    pub(super) answered: u64,
    pub(super) refused: u64,
    pub(super) failed: u64,
    pub(super) failed_share: Option<f64>,
    pub(super) cost: u64,
    pub(super) cost_per_call: Option<u64>,
    pub(super) input: u64,
    pub(super) cached: u64,
    pub(super) output: u64,
    pub(super) p50: Option<u64>,
    pub(super) p95: Option<u64>,
    pub(super) p99: Option<u64>,
    pub(super) first_p50: Option<u64>,
    pub(super) first_p95: Option<u64>,
}

impl From<&Figures> for Sums {
    fn from(figures: &Figures) -> Sums {
        let us = |time: Option<Duration>| time.and_then(|time| u64::try_from(time.as_micros()).ok());
        let Figures { calls, errors, refused, cost_nanousd, .. } = *figures;
        Sums {
            calls,
            answered: calls.saturating_sub(errors + refused),
            refused,
            failed: errors,
            failed_share: (calls > 0).then(|| errors as f64 / calls as f64),
            cost: cost_nanousd,
            cost_per_call: cost_nanousd.checked_div(calls.saturating_sub(refused)),
            input: figures.input_tokens,
            cached: figures.cached_tokens,
            output: figures.output_tokens,
            p50: us(figures.duration.percentile(0.5)),
            p95: us(figures.duration.percentile(0.95)),
            p99: us(figures.duration.percentile(0.99)),
            first_p50: us(figures.first_token.percentile(0.5)),
            first_p95: us(figures.first_token.percentile(0.95)),
        }
    }
}
