//! One finished call as plain data: the log's schema, a unit on every field.

use std::{sync::Arc, time::Duration};

use http::StatusCode;

use crate::{units::NanoUsd, wire::usage::Usage};

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// The endpoint's label, such as `chat_completions`.
    pub endpoint: &'static str,
    /// The key's name.
    pub key: Arc<str>,
    /// The key's team.
    pub team: Option<Arc<str>>,
    /// The model as a label of a closed set: an alias, a known `provider/model`, or `other`.
    pub model_label: Arc<str>,
    /// Version of the alias.
    pub version: Option<Arc<str>>,
    /// The assigned variants, as (experiment, variant), whatever served.
    pub variants: Vec<(Arc<str>, Arc<str>)>,
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
    /// Attempts at providers.
    pub attempts: u32,
    /// From the request's head to the end of the reply.
    pub duration: Duration,
    /// From the request's head to the first token.
    pub first_token: Option<Duration>,
    /// What the gateway added before the upstream was called.
    pub overhead: Option<Duration>,
}
