//! A provider that answers by itself, for tests and demonstrations: OpenAI's chat completions, completions,
//! embeddings, responses and models, and Anthropic's messages, streamed or whole.
//!
//! It knows what its system prompt says (see `knowledge.rs`). What it says follows from the model and the messages alone; ids and times are fresh. Tokens are counted, caps and
//! stop sequences hold. It misbehaves on demand (see `directives.rs`), so that each failure of a real provider can be had
//! at will. It calls nobody and keeps nothing.

mod answer;
mod anthropic;
mod body;
mod directives;
mod instance;
mod knowledge;
mod openai;
mod prose;
mod responses;
mod vectors;

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response, StatusCode, header, request::Parts};
use serde_json::{Value, json};

pub use self::body::{SimBody, SimError};
use self::{
    body::Event,
    directives::Directives,
    prose::{hash, share_of},
};
use crate::config::snapshot::Simulated;

/// Counts a text's tokens.
pub type CountTokens = fn(&str) -> u64;

/// Answers one request, after the time that a real provider would take. Dropping the future or the body cancels it.
///
/// `parts.uri` is matched by the end of its path, so that any base path does.
pub async fn respond(settings: &Simulated, count: CountTokens, parts: &Parts, body: Bytes) -> Response<SimBody> {
    let dialect = Dialect::of(parts.uri.path());
    let request = match parts.method {
        Method::GET => Value::Null,
        Method::POST => match serde_json::from_slice(&body) {
            Ok(request) => request,
            Err(error) => return dialect.error(StatusCode::BAD_REQUEST, &format!("The body is not JSON: {error}")),
        },
        _ => return dialect.error(StatusCode::METHOD_NOT_ALLOWED, "Only GET and POST are allowed here."),
    };
    let call = Call { settings, count, directives: Directives::of(&parts.headers, &request), request };
    tokio::time::sleep(call.directives.latency.unwrap_or_default()).await;
    if let Some(status) = call.failure() {
        return dialect.error(status, "The simulated provider fails as asked.");
    }
    route(&call, &dialect, parts.uri.path()).await
}

async fn route(call: &Call<'_>, dialect: &Dialect, path: &str) -> Response<SimBody> {
    let planned = match endpoint(path) {
        Some("chat/completions") => openai::chat(call),
        Some("completions") => openai::completions(call),
        Some("embeddings") => vectors::embeddings(call),
        Some("responses") => responses::responses(call),
        Some("messages") => anthropic::messages(call),
        Some("messages/count_tokens") => anthropic::count_tokens(call),
        Some("models") => Ok(Planned::at_once(&openai::models())),
        _ => return dialect.error(StatusCode::NOT_FOUND, "The simulated provider has no such endpoint."),
    };
    match planned {
        Ok(planned) => planned.into_response(call).await,
        Err(message) => dialect.error(StatusCode::BAD_REQUEST, &message),
    }
}

/// The endpoint that a path ends in; the longer name first where one is the end of another.
fn endpoint(path: &str) -> Option<&'static str> {
    const ENDPOINTS: [&str; 7] =
        ["chat/completions", "completions", "embeddings", "responses", "messages/count_tokens", "messages", "models"];
    ENDPOINTS.into_iter().find(|name| path.strip_suffix(name).is_some_and(|base| base.ends_with('/')))
}

/// One request with all that its answer depends on.
struct Call<'a> {
    settings: &'a Simulated,
    count: CountTokens,
    directives: Directives,
    request: Value,
}

impl Call<'_> {
    fn tokens(&self, text: &str) -> u64 {
        (self.count)(text)
    }

    fn text(&self, field: &str) -> Option<&str> {
        self.request[field].as_str()
    }

    fn model(&self) -> Result<&str, String> {
        self.text("model").ok_or_else(|| "`model` is missing.".to_owned())
    }

    fn streams(&self) -> bool {
        self.request["stream"].as_bool().unwrap_or(false)
    }

    /// The failure that was asked for, or that falls to this request by the share of failures.
    fn failure(&self) -> Option<StatusCode> {
        let by_chance = share_of(hash(&self.request.to_string(), "failure")) < self.settings.error_rate;
        self.directives.error.or(by_chance.then_some(StatusCode::INTERNAL_SERVER_ERROR))
    }

    /// Time that `tokens` take to come out.
    fn time_for(&self, tokens: u64) -> Duration {
        let seconds = tokens as f64 / self.settings.tokens_per_second;
        // Unlimited speed (0, infinite) is no time at all.
        Duration::try_from_secs_f64(seconds).unwrap_or_default()
    }
}

/// An answer before its time.
struct Planned {
    events: Vec<Event>,
    streamed: bool,
    /// Whether a model speaks: then there is a time to the first token.
    generated: bool,
    /// Output, over which the time is spread.
    tokens: u64,
}

impl Planned {
    /// A whole reply that takes no time.
    fn at_once(value: &Value) -> Planned {
        Planned { events: vec![Event::other(value.to_string())], streamed: false, generated: false, tokens: 0 }
    }

    /// A whole reply that is there when all its tokens are.
    fn whole(value: &Value, tokens: u64) -> Planned {
        Planned { generated: true, tokens, ..Planned::at_once(value) }
    }

    /// A stream whose pieces come as they are generated.
    fn stream(events: Vec<Event>, tokens: u64) -> Planned {
        Planned { events, streamed: true, generated: true, tokens }
    }

    async fn into_response(self, call: &Call<'_>) -> Response<SimBody> {
        let generating = call.time_for(self.tokens);
        if self.generated {
            let whole = if self.streamed { Duration::ZERO } else { generating };
            tokio::time::sleep(call.settings.time_to_first_token + whole).await;
        }
        let content_type = if self.streamed { "text/event-stream; charset=utf-8" } else { "application/json" };
        let pieces = self.events.iter().filter(|event| event.is_piece).count().max(1);
        let pace = if self.streamed { generating / u32::try_from(pieces).unwrap_or(u32::MAX) } else { Duration::ZERO };
        let cut = call.directives.cut;
        let body =
            if self.streamed { SimBody::stream(self.events, pace, cut) } else { SimBody::whole(self.events, cut) };
        reply(StatusCode::OK, content_type, body)
    }
}

fn reply(status: StatusCode, content_type: &'static str, body: SimBody) -> Response<SimBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    if let Ok(id) = fresh_id("req_").parse() {
        headers.insert("x-request-id", id);
    }
    if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        headers.insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
    }
    response
}

fn fresh_id(prefix: &str) -> String {
    format!("{prefix}{}", uuid::Uuid::now_v7().simple())
}

/// Whose errors a path speaks.
enum Dialect {
    OpenAi,
    Anthropic,
}

impl Dialect {
    fn of(path: &str) -> Dialect {
        match endpoint(path) {
            Some("messages" | "messages/count_tokens") => Dialect::Anthropic,
            _ => Dialect::OpenAi,
        }
    }

    fn error(&self, status: StatusCode, message: &str) -> Response<SimBody> {
        let value = match self {
            Dialect::OpenAi => {
                let (kind, code) = openai::error_type(status);
                json!({"error": {"message": message, "type": kind, "param": null, "code": code}})
            }
            Dialect::Anthropic => {
                json!({"type": "error", "error": {"type": anthropic::error_type(status), "message": message}})
            }
        };
        reply(status, "application/json", SimBody::whole(vec![Event::other(value.to_string())], None))
    }
}

#[cfg(test)]
mod tests;
