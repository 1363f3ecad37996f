//! Every refusal and failure of the gateway's own, and one table of what each means to a client.
//!
//! `layers/respond.rs` turns these into bytes; nothing else does. What the client reads and what the log says are separate:
//! messages here are for the client and never hold secrets, prompts or internals.

use std::time::{Duration, SystemTime};

use http::StatusCode;
use jiff::Timestamp;

use crate::{purses::Refused, units::NanoUsd};

/// Why the gateway did not pass a reply on. Each variant's message says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GatewayError {
    /// Not JSON where JSON is due, or a field that means nothing.
    #[error("{message}")]
    InvalidRequest {
        /// What is wrong, and the mend.
        message: String,
        /// The field at fault.
        param: Option<String>,
    },
    /// A template's variable is missing or of the wrong type.
    #[error("{message}")]
    PromptVariable {
        /// Which, and how to give it.
        message: String,
        /// The variable.
        param: String,
    },
    /// No key, an unknown one, or a revoked one: deliberately the same.
    #[error("the API key is missing or not valid here; send a key of this gateway as `Authorization: Bearer …`")]
    InvalidApiKey,
    /// The key may not name this model.
    #[error("{}", not_allowed(.0))]
    ModelNotAllowed(String),
    /// The endpoint is switched off.
    #[error("{0}")]
    Forbidden(String),
    /// Nobody serves this model.
    #[error("no model `{0}` here; GET /v1/models lists the models of this key")]
    ModelNotFound(String),
    /// No such path.
    #[error("no endpoint `{0}` here; the API is under /v1/")]
    UnknownEndpoint(String),
    /// No such method at this path.
    #[error("method {0} is not taken here")]
    MethodNotAllowed(String),
    /// The body is larger than configured.
    #[error("the request body is larger than {limit_bytes} bytes; the limit is server.limits.body")]
    RequestTooLarge {
        /// The limit.
        limit_bytes: usize,
    },
    /// The path is longer than 8 KiB.
    #[error("the request path is longer than 8192 bytes")]
    UriTooLong,
    /// The header block is larger than is taken.
    #[error("the request headers are too large: at most 100 headers and 64 KiB are taken")]
    HeadersTooLarge,
    /// The client stopped sending its body.
    #[error("the request body did not arrive: {0}")]
    RequestTimeout(&'static str),
    /// An `Expect` that is not `100-continue`.
    #[error("only `Expect: 100-continue` is understood")]
    ExpectationFailed,
    /// The money is spent, or what is left would not pay for the call at its worst.
    #[error("budget `{budget}` is exhausted: less is left than the {bound} USD that this call may cost{}", resets(*.retry_after))]
    BudgetExhausted {
        /// The budget.
        budget: String,
        /// What the call may cost.
        bound: NanoUsd,
        /// Until the period ends; `None` when it never does.
        retry_after: Option<Duration>,
    },
    /// What the call costs cannot be bounded, and a budget covers it.
    #[error("{0}")]
    Unpriceable(String),
    /// A rate limit.
    #[error("rate limit `{limit}` on {what} is reached; try again in {} s", retry_after.as_secs_f64().ceil())]
    RateLimited {
        /// The limit.
        limit: String,
        /// `requests`, `tokens` or `concurrent calls`.
        what: &'static str,
        /// When the call could pass.
        retry_after: Duration,
    },
    /// No connection to any target.
    #[error("{target} could not be reached: {reason}")]
    UpstreamUnreachable {
        /// `provider/model`, or the provider.
        target: String,
        /// What happened, without addresses.
        reason: &'static str,
    },
    /// A target did not answer in time.
    #[error("{target} did not answer within {} s", waited.as_secs_f64())]
    UpstreamTimeout {
        /// `provider/model`, or the provider.
        target: String,
        /// The deadline.
        waited: Duration,
    },
    /// Too many calls in flight.
    #[error("the gateway is at its limit of calls in flight; try again")]
    Overloaded,
    /// The ledger's store is away and the budget does not allow going on without.
    #[error("the budget store cannot be reached and the budget does not allow going on without it; try again")]
    StoreUnavailable {
        /// When to try again.
        retry_after: Duration,
    },
    /// Feedback where no calls are kept.
    #[error(
        "feedback is kept in the call log, and this gateway keeps none (`records: none`): set `records: sqlite`, or a PostgreSQL's URL"
    )]
    NoCallLog,
    /// Feedback that has no room to wait for the call log.
    #[error("the call log cannot be reached, and there is no room left to wait for it; try again")]
    CallLogFull,
    /// The process is going down.
    #[error("the gateway is shutting down; try again, another replica will answer")]
    Draining,
    /// The call went through this gateway already.
    #[error("the call came back to this gateway: a provider's base_url points at the gateway itself")]
    LoopDetected,
    /// A bug.
    #[error("the gateway failed; its log has the reason under this call's id")]
    Internal,
}

fn resets(retry_after: Option<Duration>) -> String {
    match retry_after {
        Some(wait) => format!("; it resets in {} s", wait.as_secs().max(1)),
        None => "; it does not reset by itself".to_owned(),
    }
}

/// What an error means on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meaning {
    /// HTTP status.
    pub status: StatusCode,
    /// OpenAI's `type`.
    pub kind: &'static str,
    /// OpenAI's `code`; also the label in `tollgate_refusals_total`.
    pub code: &'static str,
}

/// What a key may not; `model` is empty where the call names none.
fn not_allowed(model: &str) -> String {
    let what = match model {
        "" => "this key may not use every model, and the call names none: name one".to_owned(),
        model => format!("this key may not use `{model}`"),
    };
    what + "; GET /v1/models lists what it may use"
}

impl GatewayError {
    /// Shorthand for a client's mistake.
    #[must_use]
    pub fn invalid(message: impl Into<String>, param: Option<&str>) -> GatewayError {
        GatewayError::InvalidRequest { message: message.into(), param: param.map(str::to_owned) }
    }

    /// What a refusal of the purses means to a client whose call may cost `bound`.
    #[must_use]
    pub fn refused(refused: Refused, bound: NanoUsd) -> GatewayError {
        match refused {
            Refused::Exhausted { budget, resets_at } => {
                let now = Timestamp::try_from(SystemTime::now()).unwrap_or_default();
                let until = |end: Timestamp| end.duration_since(now).try_into().unwrap_or_default();
                let retry_after = resets_at.map(until);
                GatewayError::BudgetExhausted { budget: budget.to_string(), bound, retry_after }
            }
            Refused::TooManyAccounts => GatewayError::Overloaded,
            Refused::StoreUnavailable { retry_after } => GatewayError::StoreUnavailable { retry_after },
        }
    }

    /// The table: status, type and code of each error.
    #[must_use]
    pub fn meaning(&self) -> Meaning {
        use GatewayError as E;
        let (status, kind, code) = match self {
            E::InvalidRequest { .. } => (400, "invalid_request_error", "invalid_request"),
            E::PromptVariable { .. } => (400, "invalid_request_error", "prompt_variable_missing"),
            E::Unpriceable(_) => (400, "invalid_request_error", "unpriceable"),
            E::InvalidApiKey => (401, "invalid_request_error", "invalid_api_key"),
            E::ModelNotAllowed(_) => (403, "invalid_request_error", "model_not_allowed"),
            E::Forbidden(_) => (403, "invalid_request_error", "forbidden"),
            E::ModelNotFound(_) => (404, "invalid_request_error", "model_not_found"),
            E::UnknownEndpoint(_) => (404, "invalid_request_error", "unknown_endpoint"),
            E::MethodNotAllowed(_) => (405, "invalid_request_error", "method_not_allowed"),
            E::RequestTimeout(_) => (408, "invalid_request_error", "request_timeout"),
            E::RequestTooLarge { .. } => (413, "invalid_request_error", "request_too_large"),
            E::UriTooLong => (414, "invalid_request_error", "request_too_large"),
            E::ExpectationFailed => (417, "invalid_request_error", "expectation_failed"),
            E::HeadersTooLarge => (431, "invalid_request_error", "request_too_large"),
            E::BudgetExhausted { .. } => (429, "insufficient_quota", "budget_exhausted"),
            E::RateLimited { .. } => (429, "rate_limit_error", "rate_limited"),
            E::UpstreamUnreachable { .. } => (502, "upstream_error", "upstream_unreachable"),
            E::UpstreamTimeout { .. } => (504, "upstream_error", "upstream_timeout"),
            E::Overloaded => (503, "server_error", "overloaded"),
            E::StoreUnavailable { .. } => (503, "server_error", "store_unavailable"),
            E::NoCallLog => (501, "invalid_request_error", "no_call_log"),
            E::CallLogFull => (503, "server_error", "store_unavailable"),
            E::Draining => (503, "server_error", "draining"),
            E::LoopDetected => (508, "server_error", "loop_detected"),
            E::Internal => (500, "server_error", "internal_error"),
        };
        Meaning { status: StatusCode::from_u16(status).expect("constant codes of this table"), kind, code }
    }

    /// The field at fault, as OpenAI's `param`.
    #[must_use]
    pub fn param(&self) -> Option<&str> {
        match self {
            GatewayError::InvalidRequest { param, .. } => param.as_deref(),
            GatewayError::PromptVariable { param, .. } => Some(param),
            GatewayError::ModelNotAllowed(_) | GatewayError::ModelNotFound(_) => Some("model"),
            _ => None,
        }
    }

    /// When to try again, for `retry-after`.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            GatewayError::BudgetExhausted { retry_after, .. } => *retry_after,
            GatewayError::RateLimited { retry_after, .. } | GatewayError::StoreUnavailable { retry_after } => {
                Some(*retry_after)
            }
            GatewayError::Overloaded | GatewayError::CallLogFull | GatewayError::Draining => {
                Some(Duration::from_secs(1))
            }
            _ => None,
        }
    }

    /// Whether an SDK may try again by itself: money does not come back by insisting.
    #[must_use]
    pub fn should_retry(&self) -> Option<bool> {
        match self {
            GatewayError::BudgetExhausted { .. } => Some(false),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_with_some_models_is_told_to_name_one() {
        let said = |model: &str| GatewayError::ModelNotAllowed(model.to_owned()).to_string();
        assert_eq!(said("gpt-9"), "this key may not use `gpt-9`; GET /v1/models lists what it may use");
        assert!(said("").contains("names none: name one;"), "{}", said(""));
    }

    #[test]
    fn each_error_of_the_contract_has_its_status_and_code() {
        let wait = Duration::from_secs(7);
        for (error, status, code) in [
            (GatewayError::invalid("no", None), 400, "invalid_request"),
            (GatewayError::PromptVariable { message: "m".into(), param: "p".into() }, 400, "prompt_variable_missing"),
            (GatewayError::InvalidApiKey, 401, "invalid_api_key"),
            (GatewayError::ModelNotAllowed("m".into()), 403, "model_not_allowed"),
            (GatewayError::ModelNotFound("m".into()), 404, "model_not_found"),
            (GatewayError::UnknownEndpoint("/x".into()), 404, "unknown_endpoint"),
            (GatewayError::RequestTooLarge { limit_bytes: 1 }, 413, "request_too_large"),
            (GatewayError::HeadersTooLarge, 431, "request_too_large"),
            (
                GatewayError::BudgetExhausted { budget: "b".into(), bound: NanoUsd::USD, retry_after: None },
                429,
                "budget_exhausted",
            ),
            (GatewayError::RateLimited { limit: "l".into(), what: "requests", retry_after: wait }, 429, "rate_limited"),
            (GatewayError::UpstreamUnreachable { target: "p".into(), reason: "refused" }, 502, "upstream_unreachable"),
            (GatewayError::UpstreamTimeout { target: "p".into(), waited: wait }, 504, "upstream_timeout"),
            (GatewayError::Overloaded, 503, "overloaded"),
            (GatewayError::StoreUnavailable { retry_after: wait }, 503, "store_unavailable"),
            (GatewayError::NoCallLog, 501, "no_call_log"),
            (GatewayError::CallLogFull, 503, "store_unavailable"),
            (GatewayError::Draining, 503, "draining"),
        ] {
            let meaning = error.meaning();
            assert_eq!((meaning.status.as_u16(), meaning.code), (status, code), "{error}");
        }
    }

    #[test]
    fn an_exhausted_budget_tells_the_sdk_not_to_insist() {
        let error = GatewayError::BudgetExhausted {
            budget: "team".into(),
            bound: NanoUsd::USD,
            retry_after: Some(Duration::from_secs(60)),
        };
        assert_eq!(error.should_retry(), Some(false));
        assert_eq!(
            error.to_string(),
            "budget `team` is exhausted: less is left than the 1.00 USD that this call may cost; it resets in 60 s"
        );
    }
}
