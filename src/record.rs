//! One finished call as plain data: the log's schema, a unit on every field.
//!
//! [`Record`] is what the call's way collects: shared names, clocks' readings. [`CallRow`] is the same as it is stored and exported:
//! its field names are the columns of every store and of every export (docs/calls.md).

use std::{borrow::Cow, collections::BTreeMap, sync::Arc, time::Duration};

use http::StatusCode;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    units::NanoUsd,
    wire::{traceparent::TraceParent, usage::Usage},
};

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The reply was delivered whole and its status is below 400.
    Ok,
    /// The gateway refused the call.
    Refused,
    /// The upstream answered with an error, which passed unchanged.
    UpstreamError,
    /// The upstream could not be reached or did not answer in time.
    UpstreamFailed,
    /// The upstream's reply broke off.
    Cut,
    /// The client left.
    Abandoned,
    /// The gateway failed: a bug.
    Internal,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Outcome; 7] = [
        Outcome::Ok,
        Outcome::Refused,
        Outcome::UpstreamError,
        Outcome::UpstreamFailed,
        Outcome::Cut,
        Outcome::Abandoned,
        Outcome::Internal,
    ];

    /// The outcome with this label.
    #[must_use]
    pub fn of_label(label: &str) -> Option<Outcome> {
        Outcome::ALL.into_iter().find(|outcome| outcome.label() == label)
    }

    /// Whether the provider or the gateway failed the call. A refusal and a client that left are neither's failure.
    #[must_use]
    pub const fn is_error(self) -> bool {
        match self {
            Outcome::UpstreamError | Outcome::UpstreamFailed | Outcome::Cut | Outcome::Internal => true,
            Outcome::Ok | Outcome::Refused | Outcome::Abandoned => false,
        }
    }

    /// The result of the attempt whose reply the client was sent, as a metric label.
    #[must_use]
    pub const fn attempt_result(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Abandoned => "abandoned",
            _ => "error",
        }
    }

    /// The label in metrics and logs.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Refused => "refused",
            Outcome::UpstreamError => "upstream_error",
            Outcome::UpstreamFailed => "upstream_failed",
            Outcome::Cut => "cut",
            Outcome::Abandoned => "abandoned",
            Outcome::Internal => "internal",
        }
    }
}

/// Where the usage figures come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UsageSource {
    /// The provider reported them.
    Provider,
    /// Counted here; the provider reported nothing.
    Counted,
    /// Input bound and the output seen, of a reply that was cut short.
    Estimated,
    /// The reservation's bound was charged: what happened upstream cannot be known.
    Bound,
    /// Surely nothing was processed.
    None,
}

impl UsageSource {
    /// All of them.
    pub const ALL: [UsageSource; 5] =
        [UsageSource::Provider, UsageSource::Counted, UsageSource::Estimated, UsageSource::Bound, UsageSource::None];

    /// The source with this label.
    #[must_use]
    pub fn of_label(label: &str) -> Option<UsageSource> {
        UsageSource::ALL.into_iter().find(|source| source.label() == label)
    }

    /// The label in logs.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            UsageSource::Provider => "provider",
            UsageSource::Counted => "counted",
            UsageSource::Estimated => "estimated",
            UsageSource::Bound => "bound",
            UsageSource::None => "none",
        }
    }
}

/// One finished call.
#[derive(Debug, Clone)]
pub struct Record {
    /// The call's id, as in `x-tollgate-call`.
    pub id: Arc<str>,
    /// The span of the client's that the call belongs to, where traces go out and the client sent one.
    pub trace: Option<TraceParent>,
    /// The endpoint's label, such as `chat_completions`.
    pub endpoint: &'static str,
    /// The key's name.
    pub key: Arc<str>,
    /// The key's team.
    pub team: Option<Arc<str>>,
    /// On whose behalf: the client's word, else the key's name.
    pub user: Arc<str>,
    /// How the ids of users, sessions and units are stored.
    pub user_ids: UserIds,
    /// The session, where the client names one.
    pub session: Option<Arc<str>>,
    /// Tags of key and call; of two with one name the later holds.
    pub tags: Vec<(Arc<str>, Arc<str>)>,
    /// The model as the client named it: free text; `None` when it named none.
    pub named: Option<Arc<str>>,
    /// The model as a label of a closed set: an alias, a known `provider/model`, or `other`.
    pub model_label: Arc<str>,
    /// Version of the alias.
    pub version: Option<Arc<str>>,
    /// The assigned variants, as (experiment, variant), whatever served.
    pub variants: Vec<(Arc<str>, Arc<str>)>,
    /// What was assigned to each of `variants`: the user, key, session or header's value.
    pub units: Vec<Arc<str>>,
    /// The injected prompt, as `name@version`.
    pub prompt: Option<Arc<str>>,
    /// The provider of the last attempt; `none` when none was made.
    pub provider: Arc<str>,
    /// `provider/model` of the last attempt.
    pub target: Option<Arc<str>>,
    /// The status that the client was sent; 499 when it left before there was one.
    pub status: StatusCode,
    /// How the call ended.
    pub outcome: Outcome,
    /// The gateway's own error code, when it refused or failed.
    pub refusal: Option<&'static str>,
    /// Whether the reply is an event stream.
    pub streamed: bool,
    /// Tokens.
    pub usage: Usage,
    /// Where `usage` comes from.
    pub usage_source: UsageSource,
    /// What was charged for all attempts, in nano-dollars.
    pub cost: NanoUsd,
    /// Whether the model has a price; without one `cost` is 0 and means nothing.
    pub priced: bool,
    /// The revision of the price catalog; `None` where the call was refused before it was priced.
    pub prices: Option<Arc<str>>,
    /// Attempts at providers.
    pub attempts: u32,
    /// Each of them, in order.
    pub attempt_list: Vec<Attempted>,
    /// Time that the client took to send the body.
    pub read: Duration,
    /// Time that the call waited for money, before its first attempt.
    pub waited: Duration,
    /// Its bodies, where they are kept.
    pub bodies: Option<Box<Captured>>,
    /// From the request's head to the end of the reply.
    pub duration: Duration,
    /// From the request's head to the first token.
    pub first_token: Option<Duration>,
    /// What the gateway itself took until it passed on the reply's head: not the client's body, not waiting, not the provider.
    pub overhead: Option<Duration>,
}

/// What a call sent and received, as it is captured on the way: neither redacted nor cut to its size in the log yet.
#[derive(Debug, Clone, Default)]
pub struct Captured {
    /// The request's body, content coding removed.
    pub request: Capture,
    /// The reply's body as the provider sent it, content coding removed.
    pub reply: Capture,
}

/// The first bytes of a body.
#[derive(Clone, Default)]
pub struct Capture {
    /// So many bytes are captured at most; 0: none, only their number.
    pub limit: usize,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// How many there were in all.
    pub length: u64,
}

impl Captured {
    /// Captures at most `limit` bytes of each body.
    #[must_use]
    pub fn new(limit: usize) -> Captured {
        let capture = || Capture { limit, ..Capture::default() };
        Captured { request: capture(), reply: capture() }
    }

    /// Bytes that it takes in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.request.bytes.len() + self.reply.bytes.len()
    }
}

impl Capture {
    /// Takes the next bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        let room = self.limit.saturating_sub(self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

/// Without the bytes, which are nobody's business but the log's.
impl std::fmt::Debug for Capture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Capture({} of {} bytes)", self.bytes.len(), self.length)
    }
}

/// One attempt at a provider. Times are counted from the request's head.
#[derive(Debug, Clone)]
pub struct Attempted {
    /// The provider.
    pub provider: Arc<str>,
    /// `provider/model`.
    pub target: Arc<str>,
    /// When it began.
    pub began: Duration,
    /// When the reply's head had come.
    pub head: Option<Duration>,
    /// When it ended; `None` while it goes on.
    pub ended: Option<Duration>,
    /// The reply's status.
    pub status: Option<StatusCode>,
    /// `ok`, `error`, `timeout`, `unreachable` or `abandoned`; `None` while it goes on.
    pub result: Option<&'static str>,
}

impl Record {
    /// Ends the attempt that goes on, if any, `elapsed` after the request's head.
    pub fn end_attempt(&mut self, elapsed: Duration, result: &'static str) {
        if let Some(attempt) = self.attempt_list.last_mut().filter(|attempt| attempt.ended.is_none()) {
            attempt.ended = Some(elapsed);
            attempt.result = Some(result);
        }
    }
}

/// The longest text of a client's that is stored in one field, in bytes.
const TEXT_BYTES_MAX: usize = 512;
/// The largest integer of the stores.
const INTEGER_MAX: u64 = i64::MAX as u64;

/// How users' ids are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UserIds {
    /// As given.
    #[default]
    Plain,
    /// As `sha256:` and 32 hexadecimal digits: the same user is the same text, but the id does not stand there.
    Hash,
}

/// One finished call as stored and exported. Its field names are the columns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CallRow {
    /// The call's id: a UUID v7 as 32 hexadecimal digits, so ids sort by time.
    pub id: Arc<str>,
    /// When the request's head had arrived: milliseconds since 1970 (UTC), from the id.
    pub received_ms: u64,
    /// The endpoint's label, such as `chat_completions`.
    pub endpoint: Cow<'static, str>,
    /// The key's name.
    pub key: Arc<str>,
    /// The key's team.
    pub team: Option<Arc<str>>,
    /// On whose behalf: the client's word, else the key's name. See [`UserIds`].
    pub user: Arc<str>,
    /// The session, where the client named one.
    pub session: Option<Arc<str>>,
    /// Tags of key and call.
    pub tags: BTreeMap<Arc<str>, Arc<str>>,
    /// The model as a label of a closed set: an alias, a known `provider/model`, or `other`.
    pub model: Arc<str>,
    /// The model as the client named it.
    pub named: Option<Arc<str>>,
    /// Version of the alias.
    pub version: Option<Arc<str>>,
    /// The assigned variants, whatever served.
    pub variants: Vec<Assigned>,
    /// The injected prompt, as `name@version`.
    pub prompt: Option<Arc<str>>,
    /// The provider of the last attempt; `none` when none was made.
    pub provider: Arc<str>,
    /// `provider/model` of the last attempt.
    pub target: Option<Arc<str>>,
    /// The status that the client was sent; 499 when it left before there was one.
    pub status: u16,
    /// How the call ended.
    pub outcome: Outcome,
    /// The gateway's own error code, when it refused or failed.
    pub refusal: Option<Cow<'static, str>>,
    /// Whether the reply is an event stream.
    pub streamed: bool,
    /// All prompt tokens: cached, cache-write and audio ones included.
    pub input_tokens: u64,
    /// Of `input_tokens`: read from the provider's prompt cache.
    pub cached_tokens: u64,
    /// Of `input_tokens`: written to the provider's prompt cache.
    pub cache_write_tokens: u64,
    /// Of `input_tokens`: written to the prompt cache with a one-hour life.
    pub cache_write_1h_tokens: u64,
    /// Of `input_tokens`: audio.
    pub input_audio_tokens: u64,
    /// Of `cached_tokens`: audio.
    pub cached_audio_tokens: u64,
    /// All output tokens: reasoning and audio ones included.
    pub output_tokens: u64,
    /// Of `output_tokens`: reasoning.
    pub reasoning_tokens: u64,
    /// Of `output_tokens`: audio.
    pub output_audio_tokens: u64,
    /// Where the token figures come from.
    pub usage_source: UsageSource,
    /// What was charged for all attempts, in nano-USD (1e-9 USD).
    pub cost_nanousd: u64,
    /// Whether the model has a price; without one the cost is 0 and means nothing.
    pub priced: bool,
    /// The revision of the price catalog.
    pub prices: Option<Arc<str>>,
    /// Number of attempts at providers.
    pub attempts: u32,
    /// The attempts, in order.
    pub attempt_list: Vec<AttemptRow>,
    /// Microseconds that the client took to send the body.
    pub read_us: u64,
    /// Microseconds that the call waited for money.
    pub waited_us: u64,
    /// Microseconds that the gateway itself took until it passed on the reply's head; see [`Record::overhead`].
    pub overhead_us: Option<u64>,
    /// Microseconds from the request's head to the first token.
    pub first_token_us: Option<u64>,
    /// Microseconds from the request's head to the end of the reply.
    pub duration_us: u64,
}

/// The variant of an experiment that a call was assigned to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assigned {
    /// The experiment.
    pub experiment: Arc<str>,
    /// The variant.
    pub variant: Arc<str>,
    /// What was assigned: the user, key, session or header's value. Hashed where users are.
    pub unit: Arc<str>,
}

/// One attempt at a provider. Times are microseconds from the request's head.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptRow {
    /// The provider.
    pub provider: Arc<str>,
    /// `provider/model`.
    pub target: Arc<str>,
    /// When it began.
    pub start_us: u64,
    /// When the reply's head had come.
    pub head_us: Option<u64>,
    /// When it ended.
    pub end_us: u64,
    /// The reply's status.
    pub status: Option<u16>,
    /// `ok`, `error`, `timeout`, `unreachable` or `abandoned`.
    pub result: Cow<'static, str>,
}

/// What somebody, or some program, says of a call or of a session: one value of one metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Feedback {
    /// Its id: a UUID v7 as 32 hexadecimal digits. Of two about the same, from the same source, the later one holds.
    pub id: Arc<str>,
    /// The call's id, or
    pub call: Option<Arc<str>>,
    /// the session as stored: see [`UserIds`].
    pub session: Option<Arc<str>>,
    /// The metric: lower-case letters, digits, `_`, `.` and `-`.
    pub metric: Arc<str>,
    /// Its value.
    pub value: Rating,
    /// Who says so, in the client's words: lower-case letters, digits, `_`, `.` and `-`.
    pub source: Arc<str>,
    /// A remark, redacted.
    pub comment: Option<Arc<str>>,
    /// The key by which it came.
    pub key: Arc<str>,
    /// Its team.
    pub team: Option<Arc<str>>,
    /// When it came: milliseconds since 1970 (UTC).
    pub rated_ms: u64,
}

/// The value of a metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Rating {
    /// Yes or no; counts as 1 or 0.
    Flag(bool),
    /// A finite number.
    Number(f64),
    /// A word. Shown, never summed up.
    Text(Arc<str>),
}

impl Feedback {
    /// What it is about: `call` or `session`, and its id.
    #[must_use]
    pub fn subject(&self) -> (&'static str, &str) {
        match &self.call {
            Some(call) => ("call", call),
            None => ("session", self.session.as_deref().unwrap_or_default()),
        }
    }

    /// Whose calls it may be about: see [`CallRow::owner`].
    #[must_use]
    pub fn owner(&self) -> String {
        owner(self.team.as_deref(), &self.key)
    }

    /// When the call came that it is about; of a session, when the feedback came. It is kept as long as a call of then.
    #[must_use]
    pub fn received_ms(&self) -> u64 {
        self.call.as_deref().and_then(received_ms).unwrap_or(self.rated_ms)
    }
}

/// What the log measures of each call by itself: metrics that no feedback can have the name of.
pub const BUILT_IN_METRICS: [&str; 7] =
    ["error_rate", "refusal_rate", "cost_per_call", "latency", "time_to_first_token", "tokens", "input_tokens"];

/// What begins the name of a metric that sets cost in proportion to feedback.
pub const COST_PER: &str = "cost_per_";

/// Who shares calls and what is said of them: `team/NAME`, or `key/NAME` of a key without a team.
fn owner(team: Option<&str>, key: &str) -> String {
    match team {
        Some(team) => format!("team/{team}"),
        None => format!("key/{key}"),
    }
}

impl CallRow {
    /// Whose word on this call counts: its team's, or of a key without a team that key's.
    #[must_use]
    pub fn owner(&self) -> String {
        owner(self.team.as_deref(), &self.key)
    }

    /// The row of a finished call.
    #[must_use]
    pub fn of(record: Record) -> CallRow {
        let users = record.user_ids;
        let usage = &record.usage;
        let units = record.units.into_iter().map(|unit| stored_id(clean(unit), users));
        let variants = record.variants.into_iter().zip(units);
        let attempt_list = record.attempt_list.into_iter().map(|attempt| AttemptRow::of(attempt, record.duration));
        CallRow {
            received_ms: received_ms(&record.id).unwrap_or_default(),
            id: record.id,
            endpoint: Cow::Borrowed(record.endpoint),
            key: record.key,
            team: record.team,
            user: stored_id(clean(record.user), users),
            session: record.session.map(|session| stored_session(session, users)),
            tags: record.tags.into_iter().map(|(tag, value)| (clean(tag), clean(value))).collect(),
            model: record.model_label,
            named: record.named.map(clean),
            version: record.version,
            variants: variants.map(|((experiment, variant), unit)| Assigned { experiment, variant, unit }).collect(),
            prompt: record.prompt,
            provider: record.provider,
            target: record.target.map(clean),
            status: record.status.as_u16(),
            outcome: record.outcome,
            refusal: record.refusal.map(Cow::Borrowed),
            streamed: record.streamed,
            input_tokens: usage.input.0,
            cached_tokens: usage.cached.0,
            cache_write_tokens: usage.cache_write.0,
            cache_write_1h_tokens: usage.cache_write_1h.0,
            input_audio_tokens: usage.input_audio.0,
            cached_audio_tokens: usage.cached_audio.0,
            output_tokens: usage.output.0,
            reasoning_tokens: usage.reasoning.0,
            output_audio_tokens: usage.output_audio.0,
            usage_source: record.usage_source,
            cost_nanousd: record.cost.0.min(INTEGER_MAX),
            priced: record.priced,
            prices: record.prices,
            attempts: record.attempts,
            attempt_list: attempt_list.collect(),
            read_us: micros(record.read),
            waited_us: micros(record.waited),
            overhead_us: record.overhead.map(micros),
            first_token_us: record.first_token.map(micros),
            duration_us: micros(record.duration),
        }
    }

    /// The cost in USD as decimal text, such as `0.000184`: exact, where a float would not be.
    #[must_use]
    pub fn cost_usd(&self) -> String {
        NanoUsd(self.cost_nanousd).to_string()
    }
}

impl AttemptRow {
    fn of(attempt: Attempted, call_duration: Duration) -> AttemptRow {
        AttemptRow {
            provider: attempt.provider,
            target: clean(attempt.target),
            start_us: micros(attempt.began),
            head_us: attempt.head.map(micros),
            end_us: micros(attempt.ended.unwrap_or(call_duration)),
            status: attempt.status.map(|status| status.as_u16()),
            result: Cow::Borrowed(attempt.result.unwrap_or("abandoned")),
        }
    }
}

/// The time in an id, in milliseconds since 1970: the first 48 bits of a UUID v7 (RFC 9562 §5.7). `None` when it is no id of ours.
#[must_use]
pub fn received_ms(id: &str) -> Option<u64> {
    let well_formed = id.len() == 32 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if !well_formed {
        return None;
    }
    u64::from_str_radix(&id[..12], 16).ok()
}

/// An id of a user as it is stored: the one place where it is hashed, so that filters can be hashed alike.
#[must_use]
pub fn stored_id(id: Arc<str>, users: UserIds) -> Arc<str> {
    match users {
        UserIds::Plain => id,
        UserIds::Hash => {
            let digest = Sha256::digest(id.as_bytes());
            let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
            Arc::from(format!("sha256:{hex}"))
        }
    }
}

/// A session that a client names, as it is stored in the rows of its calls.
#[must_use]
pub fn stored_session(session: Arc<str>, users: UserIds) -> Arc<str> {
    stored_id(clean(session), users)
}

/// Text of a client's as every store takes it: PostgreSQL has no NUL, and nobody needs a megabyte of a model's name.
fn clean(text: Arc<str>) -> Arc<str> {
    if text.len() <= TEXT_BYTES_MAX && !text.contains('\0') {
        return text;
    }
    let end = text.floor_char_boundary(TEXT_BYTES_MAX);
    Arc::from(text[..end].replace('\0', "\u{fffd}"))
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).min(INTEGER_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_the_serialised_names() {
        for outcome in Outcome::ALL {
            assert_eq!(serde_json::to_value(outcome).unwrap(), outcome.label());
            assert_eq!(Outcome::of_label(outcome.label()), Some(outcome));
        }
        for source in UsageSource::ALL {
            assert_eq!(serde_json::to_value(source).unwrap(), source.label());
            assert_eq!(UsageSource::of_label(source.label()), Some(source));
        }
    }

    #[test]
    fn an_id_tells_when_the_call_came() {
        let id = uuid::Uuid::now_v7();
        let (seconds, nanos) = id.get_timestamp().expect("version 7").to_unix();
        assert_eq!(received_ms(&id.simple().to_string()), Some(seconds * 1000 + u64::from(nanos) / 1_000_000));
        for other in ["", "call-1", &id.to_string(), &"g".repeat(32), "ÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄ"] {
            assert_eq!(received_ms(other), None, "{other}");
        }
    }

    #[test]
    fn a_hashed_user_is_the_same_text_each_time_and_not_the_id() {
        let (once, again) = (stored_id("alice".into(), UserIds::Hash), stored_id("alice".into(), UserIds::Hash));
        assert_eq!(once, again);
        assert!(once.starts_with("sha256:") && once.len() == 39 && !once.contains("alice"), "{once}");
        assert_ne!(once, stored_id("bob".into(), UserIds::Hash));
    }
}
