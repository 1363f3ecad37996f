//! What is measured of an answer: each scorer gives a score from 0 to 1, says whether that is enough, and why.

pub mod judge;
pub mod schema;
pub mod similar;
pub mod text;
pub mod tools;
pub mod values;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::{
    judge::{Judge, Preference},
    schema::Schema,
    similar::{EditSimilarity, EmbeddingSimilarity, RougeL},
    text::{Contains, Exact, Pattern},
    tools::ToolCalls,
    values::{JsonField, Numeric},
};
use crate::{eval::answer::Answer, units::NanoUsd};

/// A scorer of a suite.
#[derive(Debug, Clone, Serialize)]
pub struct Named {
    /// Its kind, and its name after a dot where it has one: `exact`, `judge.helpful`.
    pub id: String,
    /// A score of at least this passes. Of latency and cost it is none: they have a maximum.
    pub threshold: f64,
    /// How it scores.
    pub scorer: Scorer,
}

/// How an answer is scored.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scorer {
    /// The expected text.
    Exact(Exact),
    /// Texts in it.
    Contains(Contains),
    /// A pattern in it.
    Regex(Pattern),
    /// JSON of a schema.
    JsonSchema(Schema),
    /// A field of its JSON.
    JsonField(JsonField),
    /// A number in it.
    Numeric(Numeric),
    /// Near the expected text by edits.
    EditSimilarity(EditSimilarity),
    /// Near the expected text by words.
    RougeL(RougeL),
    /// Near the expected text by meaning.
    EmbeddingSimilarity(EmbeddingSimilarity),
    /// Tools that it calls.
    ToolCall(ToolCalls),
    /// What a model thinks of it.
    Judge(Judge),
    /// How long it took; with a maximum.
    Latency(Option<Duration>),
    /// What it cost; with a maximum.
    Cost(Option<NanoUsd>),
}

/// What a scorer says of one answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// From 0 to 1; of latency seconds, of cost USD. `None`: it could not be scored, and `reason` says why.
    pub value: Option<f64>,
    /// Whether it is enough; `None` where nothing was asked for, or nothing is known.
    pub pass: Option<bool>,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Of a pairwise judge: how the answer compares with the baseline's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preference: Option<Preference>,
    /// Of a pairwise judge: whether it said the same in both orders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orders_agree: Option<bool>,
}

/// What a score is a quantity of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// A score from 0 to 1; more is better.
    Score,
    /// Seconds; less is better.
    Seconds,
    /// USD; less is better.
    Usd,
}

impl Unit {
    /// Whether more is better.
    #[must_use]
    pub const fn more_is_better(self) -> bool {
        matches!(self, Unit::Score)
    }
}

impl Score {
    /// A score, which passes once the threshold is known.
    pub(in crate::eval) fn of(value: f64, reason: impl Into<String>) -> Score {
        Score { value: Some(value), reason: reason.into(), ..Score::default() }
    }

    /// All that was asked for.
    pub(in crate::eval) fn passed() -> Score {
        Score { value: Some(1.0), pass: Some(true), ..Score::default() }
    }

    /// Not what was asked for.
    pub(in crate::eval) fn failed(reason: impl Into<String>) -> Score {
        Score { value: Some(0.0), pass: Some(false), reason: reason.into(), ..Score::default() }
    }

    fn met(met: bool, why_not: impl FnOnce() -> String) -> Score {
        if met { Score::passed() } else { Score::failed(why_not()) }
    }

    /// Nothing can be said.
    pub(in crate::eval) fn missing(reason: impl Into<String>) -> Score {
        Score { reason: reason.into(), ..Score::default() }
    }

    /// The same, and whether it reaches `threshold`.
    #[must_use]
    pub fn against(self, threshold: f64) -> Score {
        // A sum of thirds must not fail for the last bit.
        let pass = self.value.map(|value| value >= threshold - 1e-9);
        Score { pass, ..self }
    }
}

impl Scorer {
    /// The kind, as it is written in a suite.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Scorer::Exact(_) => "exact",
            Scorer::Contains(_) => "contains",
            Scorer::Regex(_) => "regex",
            Scorer::JsonSchema(_) => "json_schema",
            Scorer::JsonField(_) => "json_field",
            Scorer::Numeric(_) => "numeric",
            Scorer::EditSimilarity(_) => "edit_similarity",
            Scorer::RougeL(_) => "rouge_l",
            Scorer::EmbeddingSimilarity(_) => "embedding_similarity",
            Scorer::ToolCall(_) => "tool_call",
            Scorer::Judge(_) => "judge",
            Scorer::Latency(_) => "latency",
            Scorer::Cost(_) => "cost",
        }
    }

    /// The score that passes where a suite says nothing.
    #[must_use]
    pub const fn default_threshold(&self) -> f64 {
        match self {
            Scorer::EditSimilarity(_) | Scorer::EmbeddingSimilarity(_) => 0.8,
            Scorer::RougeL(_) | Scorer::Judge(Judge { pairwise: true, .. }) => 0.5,
            Scorer::Judge(_) => 0.75,
            _ => 1.0,
        }
    }

    /// What its scores are.
    #[must_use]
    pub const fn unit(&self) -> Unit {
        match self {
            Scorer::Latency(_) => Unit::Seconds,
            Scorer::Cost(_) => Unit::Usd,
            _ => Unit::Score,
        }
    }

    /// Whether it compares with what a case expects.
    #[must_use]
    pub fn needs_expected(&self) -> bool {
        match self {
            Scorer::Contains(contains) => !contains.is_complete(),
            Scorer::Regex(pattern) => pattern.pattern.is_none(),
            Scorer::JsonField(field) => field.equals.is_none(),
            Scorer::JsonSchema(_) | Scorer::Judge(_) | Scorer::Latency(_) | Scorer::Cost(_) => false,
            _ => true,
        }
    }
}

/// What is known of one answer, beside itself.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// From sending the request to the last byte of the reply.
    pub latency: Duration,
    /// What it cost; `None` where no price or no usage is known.
    pub cost: Option<NanoUsd>,
}

impl Named {
    /// The score of an answer; `None` for scorers that have to ask a model first.
    #[must_use]
    pub fn score(&self, expected: &Value, answer: &Answer, measured: Measured) -> Option<Score> {
        let text = answer.text.as_str();
        if self.scorer.needs_expected() && expected.is_null() {
            return Some(Score::missing("the case expects nothing"));
        }
        let score = match &self.scorer {
            Scorer::Exact(exact) => exact.score(expected, text),
            Scorer::Contains(contains) => contains.score(expected, text),
            Scorer::Regex(pattern) => pattern.score(expected, text),
            Scorer::JsonSchema(schema) => schema.score(text),
            Scorer::JsonField(field) => field.score(expected, text),
            Scorer::Numeric(numeric) => numeric.score(expected, text),
            Scorer::EditSimilarity(similarity) => similarity.score(expected, text),
            Scorer::RougeL(rouge) => rouge.score(expected, text),
            Scorer::ToolCall(calls) => calls.score(expected, answer),
            Scorer::EmbeddingSimilarity(_) | Scorer::Judge(_) => return None,
            Scorer::Latency(max) => return Some(latency(measured.latency, *max)),
            Scorer::Cost(max) => return Some(cost(measured.cost, *max)),
        };
        Some(score.against(self.threshold))
    }
}

fn latency(took: Duration, max: Option<Duration>) -> Score {
    let said = format!("took {:.2} s", took.as_secs_f64());
    Score { pass: max.map(|max| took <= max), ..Score::of(took.as_secs_f64(), said) }
}

fn cost(cost: Option<NanoUsd>, max: Option<NanoUsd>) -> Score {
    let Some(cost) = cost else { return Score::missing("its cost is not known") };
    Score { pass: max.map(|max| cost <= max), ..Score::of(cost.as_usd(), format!("{cost} USD")) }
}

/// The texts that would be right: one, or each of a list.
pub(in crate::eval) fn expected_texts(expected: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match expected {
        Value::Array(texts) => texts.iter().map(text).collect(),
        one => vec![text(one)],
    }
}

/// Characters of a quoted text in a reason.
const QUOTED_MAX: usize = 120;

/// A text in quotes, cut where it is long.
fn shortened(text: &str) -> String {
    let cut = text.char_indices().nth(QUOTED_MAX).map(|(at, _)| &text[..at]);
    match cut {
        Some(start) => format!("{start:?}…"),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn named(scorer: Scorer) -> Named {
        Named { id: scorer.kind().to_owned(), threshold: scorer.default_threshold(), scorer }
    }

    fn score(scorer: Scorer, expected: &Value, text: &str) -> Score {
        let measured = Measured { latency: Duration::from_millis(1500), cost: Some(NanoUsd(2_000_000)) };
        named(scorer).score(expected, &Answer::text(text), measured).expect("scored without a model")
    }

    #[test]
    fn a_case_that_expects_nothing_is_not_scored_by_comparison() {
        let unscored = score(Scorer::Exact(Exact::default()), &Value::Null, "x");
        assert_eq!((unscored.value, unscored.pass), (None, None));
        let pattern = Pattern { pattern: Some("x".to_owned()), ..Pattern::default() };
        assert_eq!(score(Scorer::Regex(pattern), &Value::Null, "x").pass, Some(true));
    }

    #[test]
    fn a_score_passes_at_its_threshold() {
        let near = Scorer::EditSimilarity(EditSimilarity::default());
        assert_eq!(score(near.clone(), &json!("abcde"), "abcdx").pass, Some(true));
        assert_eq!(score(near, &json!("abcde"), "abcxx").pass, Some(false));
        assert_eq!(Score::of(0.7, "").against(0.1 + 0.6).pass, Some(true));
    }

    #[test]
    fn latency_and_cost_are_quantities_with_an_optional_maximum() {
        let slow = score(Scorer::Latency(Some(Duration::from_secs(1))), &Value::Null, "");
        assert_eq!((slow.value, slow.pass), (Some(1.5), Some(false)));
        assert_eq!(score(Scorer::Latency(None), &Value::Null, "").pass, None);
        let dear = score(Scorer::Cost(Some(NanoUsd(2_000_000))), &Value::Null, "");
        assert_eq!((dear.value, dear.pass), (Some(0.002), Some(true)));
        let unknown = Measured { latency: Duration::ZERO, cost: None };
        let unknown = named(Scorer::Cost(None)).score(&Value::Null, &Answer::default(), unknown).unwrap();
        assert_eq!(unknown.value, None);
    }

    #[test]
    fn what_is_quoted_is_cut() {
        assert_eq!(shortened("a\nb"), "\"a\\nb\"");
        assert!(shortened(&"ä".repeat(1000)).chars().count() < 130);
    }
}
