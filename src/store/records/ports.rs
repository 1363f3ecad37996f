//! What the gateway asks of a call log, wherever it is kept.

use std::{fmt, sync::Arc, time::Duration};

use super::{
    evaluations::{Evaluation, EvaluationPage},
    feedback::{FeedbackFilter, FeedbackPage},
    figures::{ArmFigures, ArmsQuery},
};
use crate::{
    record::{CallRow, Feedback, Outcome},
    store::{ports::Answer, records::histogram::Histogram},
};

/// A finished call on its way into the log.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Entry {
    /// The call.
    pub row: CallRow,
    /// What was sent and received, where it is kept.
    pub bodies: Option<Box<Bodies>>,
}

/// What is on its way into the log.
#[expect(clippy::large_enum_variant, reason = "nearly all of them are calls")]
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
pub enum Arrived {
    /// A finished call.
    Call(Entry),
    /// What is said of one.
    Feedback(Feedback),
}

/// What was sent and received, redacted and cut to size.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Bodies {
    /// The request's body as the client sent it, content coding removed.
    pub request: Option<Body>,
    /// The reply's body as the client got it.
    pub reply: Option<Body>,
}

/// One body.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Body {
    /// Its text, or the first part of it.
    pub text: String,
    /// Its whole length, in bytes.
    pub bytes: u64,
    /// Whether `text` is less than all of it.
    pub cut: bool,
}

/// Which calls are meant: those that fulfil all that is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Received then (milliseconds since 1970) or later.
    pub since_ms: Option<u64>,
    /// Received before then.
    pub until_ms: Option<u64>,
    /// The model's label.
    pub model: Option<String>,
    /// The team.
    pub team: Option<String>,
    /// The key's name.
    pub key: Option<String>,
    /// The user as stored: hashed where users are.
    pub user: Option<String>,
    /// The session as stored.
    pub session: Option<String>,
    /// The provider of the last attempt.
    pub provider: Option<String>,
    /// The endpoint's label.
    pub endpoint: Option<String>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Only calls that failed: see [`Outcome::is_error`].
    pub errors: bool,
    /// Experiment and variant.
    pub variant: Option<(String, String)>,
    /// A tag and its value.
    pub tag: Option<(String, String)>,
}

/// Calls, the latest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Page {
    /// The calls.
    pub rows: Vec<CallRow>,
    /// Where the next page begins: the last id of this one. `None` when there is no further call.
    pub next: Option<Arc<str>>,
}

/// What calls can be told apart by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dimension {
    /// The model's label.
    Model,
    /// The team; calls of keys without one count under the empty name.
    Team,
    /// The key's name.
    Key,
    /// `experiment=variant`. A call in two experiments counts under both.
    Variant,
    /// The provider of the last attempt.
    Provider,
    /// How the call ended.
    Outcome,
    /// The user. Summed up beforehand by whole days, and only without a filter on anything else.
    User,
}

/// What to sum up.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct UsageQuery {
    /// Of which calls. Both ends of the span are widened to whole minutes, or to whole hours in spans above six hours.
    pub filter: Filter,
    /// By what; `None`: all together.
    pub by: Option<Dimension>,
    /// At most so many values, the dearest first; the others are left out. 0: all.
    pub top: usize,
    /// Into points of so long; `None`: only the sum. Widened to minutes or hours alike.
    pub bucket: Option<Duration>,
}

/// The sums of one value of a dimension.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Series {
    /// The value, such as a model's label; empty where all calls are summed up together.
    pub value: Arc<str>,
    /// Over the whole span.
    pub total: Figures,
    /// Over each bucket that has a call: its beginning (milliseconds since 1970) and its sums, ascending.
    pub points: Vec<(u64, Figures)>,
}

/// Sums over calls.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Figures {
    /// Calls.
    pub calls: u64,
    /// Of them failed: see [`Outcome::is_error`].
    pub errors: u64,
    /// Of them refused by the gateway.
    pub refused: u64,
    /// Nano-USD.
    pub cost_nanousd: u64,
    /// All prompt tokens.
    pub input_tokens: u64,
    /// Of them from the provider's prompt cache.
    pub cached_tokens: u64,
    /// All output tokens.
    pub output_tokens: u64,
    /// Of them reasoning.
    pub reasoning_tokens: u64,
    /// Durations of all calls that were sent to a provider.
    pub duration: Histogram,
    /// Times to the first token, of calls that had one.
    pub first_token: Histogram,
}

/// What of a call is summed up.
#[derive(Debug, Clone, Copy)]
pub struct Counted {
    /// How it ended.
    pub outcome: Outcome,
    /// Nano-USD.
    pub cost_nanousd: u64,
    /// All prompt tokens.
    pub input_tokens: u64,
    /// Of them from the provider's prompt cache.
    pub cached_tokens: u64,
    /// All output tokens.
    pub output_tokens: u64,
    /// Of them reasoning.
    pub reasoning_tokens: u64,
    /// Attempts at providers.
    pub attempts: u32,
    /// Microseconds.
    pub duration_us: u64,
    /// Microseconds.
    pub first_token_us: Option<u64>,
}

/// Where finished calls are kept.
///
/// Nothing here is awaited by a call. All times are milliseconds since 1970 (UTC).
pub trait CallLog: Send + Sync + fmt::Debug {
    /// Keeps `entries`, all or none, and sums them up. A call whose id is known already is left as it is, so that appending again
    /// after an error is right. Gives back how many were new.
    ///
    /// # Errors
    /// `Unavailable`: try again later. `Damaged`: these entries will never be taken together; one of them may be why.
    fn append(&self, entries: Arc<[Entry]>) -> Answer<'_, u64>;

    /// Calls in descending order of their ids, beginning after `after`; at most `limit`, which is at least 1.
    fn page(&self, filter: Filter, after: Option<Arc<str>>, limit: usize) -> Answer<'_, Page>;

    /// One call.
    fn get(&self, id: Arc<str>) -> Answer<'_, Option<CallRow>>;

    /// What one call sent and received, where it was kept.
    fn bodies(&self, id: Arc<str>) -> Answer<'_, Option<Bodies>>;

    /// Sums over calls, by value of a dimension, the dearest first.
    fn usage(&self, query: UsageQuery) -> Answer<'_, Vec<Series>>;

    /// Keeps ratings, all or none. Of ratings of one subject, metric, source and owner the latest stands, in whatever order they
    /// come, so that giving one again is right. Gives back how many are new or changed something. Nothing is asked of the call:
    /// its row may come later.
    ///
    /// # Errors
    /// As [`CallLog::append`].
    fn rate(&self, feedback: Arc<[Feedback]>) -> Answer<'_, u64>;

    /// Ratings in descending order of their ids, beginning after `after`; at most `limit`, which is at least 1.
    fn feedback(&self, filter: FeedbackFilter, after: Option<Arc<str>>, limit: usize) -> Answer<'_, FeedbackPage>;

    /// What the variants of an experiment, or versions of a model or prompt, did, in the order of their names. Reads each call of the
    /// span, and those that are rated once more.
    fn arms(&self, query: ArmsQuery) -> Answer<'_, Vec<ArmFigures>>;

    /// Keeps the report of an evaluation, in place of one with the same id. Of one suite the latest thousand are kept.
    ///
    /// # Errors
    /// `Damaged`: it is larger than [`REPORT_BYTES_MAX`](super::evaluations::REPORT_BYTES_MAX), or no JSON.
    fn put_evaluation(&self, evaluation: Evaluation) -> Answer<'_, ()>;

    /// Evaluations, of one suite or all, the latest first, beginning after the one with the id `after`; at most `limit`, which is at
    /// least 1.
    fn evaluations(&self, suite: Option<String>, after: Option<Arc<str>>, limit: usize) -> Answer<'_, EvaluationPage>;

    /// One evaluation with its report.
    fn evaluation(&self, id: Arc<str>) -> Answer<'_, Option<Evaluation>>;

    /// Deletes all calls that were received before `until_ms`, their bodies, what was said of them, and the sums of hours that are
    /// over by then; gives the space back. Gives back how many calls there were.
    fn delete_before(&self, until_ms: u64) -> Answer<'_, u64>;
}

impl Dimension {
    /// Its name in queries.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Dimension::Model => "model",
            Dimension::Team => "team",
            Dimension::Key => "key",
            Dimension::Variant => "variant",
            Dimension::Provider => "provider",
            Dimension::Outcome => "outcome",
            Dimension::User => "user",
        }
    }
}

impl Figures {
    /// Counts one call.
    pub fn add(&mut self, call: &Counted) {
        self.calls += 1;
        self.errors += u64::from(call.outcome.is_error());
        self.refused += u64::from(call.outcome == Outcome::Refused);
        self.cost_nanousd = self.cost_nanousd.saturating_add(call.cost_nanousd);
        self.input_tokens = self.input_tokens.saturating_add(call.input_tokens);
        self.cached_tokens = self.cached_tokens.saturating_add(call.cached_tokens);
        self.output_tokens = self.output_tokens.saturating_add(call.output_tokens);
        self.reasoning_tokens = self.reasoning_tokens.saturating_add(call.reasoning_tokens);
        if call.attempts > 0 {
            self.duration.add(call.duration_us);
        }
        if let Some(first) = call.first_token_us {
            self.first_token.add(first);
        }
    }

    /// Adds other sums.
    pub fn merge(&mut self, other: &Figures) {
        self.calls += other.calls;
        self.errors += other.errors;
        self.refused += other.refused;
        self.cost_nanousd = self.cost_nanousd.saturating_add(other.cost_nanousd);
        self.input_tokens = self.input_tokens.saturating_add(other.input_tokens);
        self.cached_tokens = self.cached_tokens.saturating_add(other.cached_tokens);
        self.output_tokens = self.output_tokens.saturating_add(other.output_tokens);
        self.reasoning_tokens = self.reasoning_tokens.saturating_add(other.reasoning_tokens);
        self.duration.merge(&other.duration);
        self.first_token.merge(&other.first_token);
    }
}

impl From<&CallRow> for Counted {
    fn from(row: &CallRow) -> Counted {
        Counted {
            outcome: row.outcome,
            cost_nanousd: row.cost_nanousd,
            input_tokens: row.input_tokens,
            cached_tokens: row.cached_tokens,
            output_tokens: row.output_tokens,
            reasoning_tokens: row.reasoning_tokens,
            attempts: row.attempts,
            duration_us: row.duration_us,
            first_token_us: row.first_token_us,
        }
    }
}
