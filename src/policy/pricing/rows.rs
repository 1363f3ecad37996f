//! Price rows as they are written: those of `config/prices.yaml`, and own ones in the configuration.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use jiff::{civil, tz::Offset};
use regex::Regex;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Price, Rate, RateSet, TierRates, Unit, When};
use crate::units::{AmountError, PicoUsdPerToken, Tokens, parse_scaled};

/// Own prices of one model, keyed by `provider/model` or `provider/*`, as in `{ input: 0.15 USD/1M, output: 0.60 USD/1M }`.
///
/// A row with `input` and `output` stands alone; one with neither adds its limits to the built-in row of the model.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PriceRow {
    /// Input tokens, such as `0.15 USD/1M`.
    #[serde(default)]
    pub input: Option<String>,
    /// Input tokens read from the provider's cache; the `input` rate when not given.
    #[serde(default)]
    pub cached: Option<String>,
    /// Input tokens written to the provider's cache; the `input` rate when not given.
    #[serde(default)]
    pub cache_write: Option<String>,
    /// Input tokens written to the cache for one hour; the `cache_write` rate when not given.
    #[serde(default)]
    pub cache_write_1h: Option<String>,
    /// Audio input tokens; the `input` rate when not given.
    #[serde(default)]
    pub input_audio: Option<String>,
    /// Output tokens, reasoning included. `0 USD/1M` for embeddings.
    #[serde(default)]
    pub output: Option<String>,
    /// Audio output tokens; the `output` rate when not given.
    #[serde(default)]
    pub output_audio: Option<String>,
    /// The most tokens that the model can put out in one call.
    #[serde(default)]
    pub max_output: Option<u64>,
    /// Context window in tokens.
    #[serde(default)]
    pub context_window: Option<u64>,
}

/// Why own prices are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PriceError {
    /// Not `provider/model`.
    #[error("`{0}` is not `provider/model`")]
    NotAModel(String),
    /// The same row twice.
    #[error("`{0}` has two price rows")]
    Twice(String),
    /// One rate cannot be read.
    #[error("{row}.{field}: {source}")]
    Amount {
        /// `provider/model`.
        row: String,
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        source: AmountError,
    },
    /// Rates without `input` or without `output`.
    #[error(
        "{row}: a price needs `{missing}`, since nothing is free by silence; write `0 USD/1M` where it is (embeddings have no output)"
    )]
    Incomplete {
        /// `provider/model`.
        row: String,
        /// The field.
        missing: &'static str,
    },
    /// Nothing in it, or a limit of 0.
    #[error("{0}: needs rates, or a limit above 0")]
    Empty(String),
}

/// An own row, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OwnRow {
    /// `None` when the row has limits only.
    pub(super) price: Option<Arc<Price>>,
    pub(super) max_output: Option<Tokens>,
    pub(super) context_window: Option<Tokens>,
}

impl OwnRow {
    pub(super) fn read(row: &str, fields: &PriceRow) -> Result<OwnRow, PriceError> {
        let max_output = fields.max_output.map(Tokens);
        let context_window = fields.context_window.map(Tokens);
        let rates = own_rates(row, fields)?;
        let limits = [max_output, context_window];
        if limits.contains(&Some(Tokens::ZERO)) || (rates.0.is_empty() && limits == [None, None]) {
            return Err(PriceError::Empty(row.to_owned()));
        }
        if rates.0.is_empty() {
            return Ok(OwnRow { price: None, max_output, context_window });
        }
        for (unit, missing) in [(Unit::Input, "input"), (Unit::Output, "output")] {
            if rates.get(unit).is_none() {
                return Err(PriceError::Incomplete { row: row.to_owned(), missing });
            }
        }
        let price = Price { max_output, context_window, ..Price::of_rates(format!("own:{row}").into(), rates) };
        Ok(OwnRow { price: Some(Arc::new(price)), max_output, context_window })
    }
}

fn own_rates(row: &str, fields: &PriceRow) -> Result<RateSet, PriceError> {
    let texts = [
        (Unit::Input, "input", &fields.input),
        (Unit::Cached, "cached", &fields.cached),
        (Unit::CacheWrite, "cache_write", &fields.cache_write),
        (Unit::CacheWrite1h, "cache_write_1h", &fields.cache_write_1h),
        (Unit::InputAudio, "input_audio", &fields.input_audio),
        (Unit::Output, "output", &fields.output),
        (Unit::OutputAudio, "output_audio", &fields.output_audio),
    ];
    let mut rates = Vec::new();
    for (unit, field, text) in texts {
        let Some(text) = text else { continue };
        let amount = text.parse().map_err(|source| PriceError::Amount { row: row.to_owned(), field, source })?;
        rates.push((unit, Rate::flat(amount)));
    }
    Ok(RateSet(rates.into()))
}

/// The first line of `config/prices.yaml` after its comments.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CatalogHeader {
    pub(super) package: String,
    pub(super) version: String,
    /// The day on which the rows were last written.
    pub(super) date: String,
}

/// A provider's line.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProviderRow {
    pub(super) id: Box<str>,
    #[serde(rename = "name")]
    _name: Box<str>,
    /// Regex at the start of a base URL.
    pub(super) api: LazyRegex,
    pub(super) sources: Vec<Box<str>>,
    /// Providers whose rows are searched next.
    #[serde(default)]
    pub(super) fallback: Vec<Box<str>>,
}

/// A model's line.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ModelRow {
    pub(super) model: Box<str>,
    /// `None`: equal to `model`.
    #[serde(rename = "match")]
    rule: Option<Rule>,
    context_window: Option<u64>,
    #[serde(default)]
    prices: Vec<Entry>,
    #[serde(default)]
    tiers: Vec<Entry>,
}

impl ModelRow {
    /// Whether a lower-case model name belongs to this row.
    pub(super) fn matches(&self, name: &str) -> bool {
        match &self.rule {
            Some(rule) => rule.matches(name),
            None => self.model.eq_ignore_ascii_case(name),
        }
    }

    /// The price, or `None` for a model that is not priced by token.
    pub(super) fn price(&self, provider: &str) -> Option<Price> {
        if self.prices.is_empty() {
            return None;
        }
        let tier = |entry: &Entry| TierRates {
            tier: entry.tier.clone().unwrap_or_default(),
            when: entry.when(),
            rates: entry.rates(),
        };
        Some(Price {
            row: format!("{provider}/{}", self.model).into(),
            schedule: self.prices.iter().map(|entry| (entry.when(), entry.rates())).collect(),
            tiers: self.tiers.iter().map(tier).collect(),
            max_output: None,
            context_window: self.context_window.map(Tokens),
        })
    }
}

/// Rates with the time, and the tier, for which they hold.
#[derive(Debug, Deserialize)]
struct Entry {
    tier: Option<Box<str>>,
    from: Option<Midnight>,
    daily: Option<(SecondOfDay, SecondOfDay)>,
    #[serde(flatten)]
    rates: BTreeMap<Unit, ListedRate>,
}

impl Entry {
    fn when(&self) -> When {
        match (&self.from, &self.daily) {
            (Some(Midnight(start)), _) => When::From(*start),
            (None, Some((start, end))) => When::Daily { start_s: start.0, end_s: end.0 },
            (None, None) => When::Always,
        }
    }

    fn rates(&self) -> RateSet {
        RateSet(self.rates.iter().map(|(unit, ListedRate(rate))| (*unit, per_piece(*unit, rate))).collect())
    }
}

/// `2026-10-14`: the start of that day in UTC.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct Midnight(jiff::Timestamp);

impl TryFrom<String> for Midnight {
    type Error = jiff::Error;

    fn try_from(text: String) -> Result<Midnight, jiff::Error> {
        let date: civil::Date = text.parse()?;
        Offset::UTC.to_timestamp(date.at(0, 0, 0, 0)).map(Midnight)
    }
}

/// `16:30:00`, in UTC.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct SecondOfDay(i64);

impl TryFrom<String> for SecondOfDay {
    type Error = jiff::Error;

    fn try_from(text: String) -> Result<SecondOfDay, jiff::Error> {
        let time: civil::Time = text.parse()?;
        Ok(SecondOfDay(i64::from(time.hour()) * 3600 + i64::from(time.minute()) * 60 + i64::from(time.second())))
    }
}

/// `2.5`, or `2.5 >200000: 5`, per million.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct ListedRate(Rate);

impl TryFrom<String> for ListedRate {
    type Error = AmountError;

    fn try_from(text: String) -> Result<ListedRate, AmountError> {
        let per_million = |amount: &str| parse_scaled(amount, 6).map(PicoUsdPerToken);
        let mut parts = text.split(" >");
        let base = per_million(parts.next().unwrap_or_default())?;
        let mut steps = Vec::new();
        for part in parts {
            let (start, amount) = part.split_once(": ").ok_or_else(|| AmountError::NotPrice(text.clone()))?;
            steps.push((parse_scaled(start, 0)?, per_million(amount)?));
        }
        Ok(ListedRate(Rate { base, steps: steps.into() }))
    }
}

/// Rates that are listed per thousand were read as if per million.
fn per_piece(unit: Unit, rate: &Rate) -> Rate {
    if !unit.is_per_thousand() {
        return rate.clone();
    }
    Rate::flat(PicoUsdPerToken(rate.base.0.saturating_mul(1000)))
}

/// A rate as people write it: `2.5 USD/1M`, or `2.5 USD/1M (5 above 200000)`.
pub(super) fn rate_text(unit: Unit, rate: &Rate) -> String {
    let (scale, per) = if unit.is_per_thousand() { (1_000_000_000, "1K") } else { (1_000_000, "1M") };
    let amount = |rate: PicoUsdPerToken| {
        let decimals = format!("{:06}", rate.0 % scale * (1_000_000_000 / scale) / 1000);
        let decimals = decimals.trim_end_matches('0');
        if decimals.is_empty() { (rate.0 / scale).to_string() } else { format!("{}.{decimals}", rate.0 / scale) }
    };
    let steps: String = rate.steps.iter().map(|(start, step)| format!(" ({} above {start})", amount(*step))).collect();
    format!("{} USD/{per}{steps}", amount(rate.base))
}

/// Which model names a row is for.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Rule {
    Equals(Box<str>),
    StartsWith(Box<str>),
    EndsWith(Box<str>),
    Contains(Box<str>),
    Regex(LazyRegex),
    Not(Box<Rule>),
    Or(Vec<Rule>),
    And(Vec<Rule>),
}

impl Rule {
    fn matches(&self, name: &str) -> bool {
        match self {
            Rule::Equals(text) => name == &**text,
            Rule::StartsWith(text) => name.starts_with(&**text),
            Rule::EndsWith(text) => name.ends_with(&**text),
            Rule::Contains(text) => name.contains(&**text),
            Rule::Regex(regex) => regex.get().is_match(name),
            Rule::Not(rule) => !rule.matches(name),
            Rule::Or(rules) => rules.iter().any(|rule| rule.matches(name)),
            Rule::And(rules) => rules.iter().all(|rule| rule.matches(name)),
        }
    }
}

/// A regex of the catalog, compiled when it is first asked.
#[derive(Debug, Deserialize)]
#[serde(from = "Box<str>")]
pub(super) struct LazyRegex {
    text: Box<str>,
    compiled: OnceLock<Regex>,
}

impl LazyRegex {
    pub(super) fn get(&self) -> &Regex {
        self.compiled.get_or_init(|| Regex::new(&self.text).expect("a test compiles every regex of the catalog"))
    }
}

impl From<Box<str>> for LazyRegex {
    fn from(text: Box<str>) -> LazyRegex {
        LazyRegex { text, compiled: OnceLock::new() }
    }
}

#[cfg(test)]
impl ModelRow {
    /// Compiles what is compiled on demand elsewhere.
    pub(super) fn check(&self) {
        fn walk(rule: &Rule) {
            match rule {
                Rule::Regex(regex) => drop(regex.get().clone()),
                Rule::Not(rule) => walk(rule),
                Rule::Or(rules) | Rule::And(rules) => rules.iter().for_each(walk),
                _ => {}
            }
        }
        self.rule.iter().for_each(walk);
    }
}
