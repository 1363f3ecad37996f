//! What a request wants to be simulated, in the header `x-simulate` or a line `x-simulate: …` of its last user
//! message: `error=503`, `latency=2s`, `cut=5` (pieces), `tokens=200`, `cached=1000`, `reasoning=300`, separated by
//! blanks, commas, semicolons or bars. The header wins; what is not understood is ignored.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use serde_json::Value;

use super::prose::text_of;

/// Longest latency and largest output on demand, so that a typing error can't hold a connection for a day.
const LATENCY_MAX: Duration = Duration::from_secs(600);
pub(super) const TOKENS_MAX: u64 = 16_384;

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Directives {
    /// Fail with this status.
    pub(super) error: Option<StatusCode>,
    /// Wait before anything else.
    pub(super) latency: Option<Duration>,
    /// Break off after so many pieces of output.
    pub(super) cut: Option<usize>,
    /// Tokens to say.
    pub(super) tokens: Option<u64>,
    /// Prompt tokens that came from the provider's cache.
    pub(super) cached: u64,
    /// Tokens thought before the first word.
    pub(super) reasoning: u64,
}

impl Directives {
    pub(super) fn of(headers: &HeaderMap, request: &Value) -> Directives {
        let mut directives = Directives::default();
        let message = last_user_text(request);
        if let Some((_, marked)) = message.split_once("x-simulate:") {
            directives.read(marked.lines().next().unwrap_or_default());
        }
        if let Some(value) = headers.get("x-simulate").and_then(|value| value.to_str().ok()) {
            directives.read(value);
        }
        directives
    }

    fn read(&mut self, text: &str) {
        let items = text.split([' ', ',', ';', '|']).filter_map(|item| item.split_once('='));
        for (name, value) in items {
            match name {
                "error" => self.error = error_status(value),
                "latency" => self.latency = parse_duration(value).map(|latency| latency.min(LATENCY_MAX)),
                "cut" => self.cut = value.parse().ok(),
                "tokens" => self.tokens = value.parse().ok().map(|tokens: u64| tokens.min(TOKENS_MAX)),
                "cached" => self.cached = value.parse().unwrap_or(0),
                "reasoning" => self.reasoning = value.parse().unwrap_or(0).min(TOKENS_MAX),
                _ => {}
            }
        }
    }
}

fn error_status(value: &str) -> Option<StatusCode> {
    value.parse().ok().filter(|status: &StatusCode| status.is_client_error() || status.is_server_error())
}

fn parse_duration(value: &str) -> Option<Duration> {
    let (number, unit) = value.split_at(value.find(|c: char| c.is_ascii_alphabetic())?);
    let number: f64 = number.parse().ok()?;
    let seconds = match unit {
        "ms" => number / 1000.0,
        "s" => number,
        _ => return None,
    };
    Duration::try_from_secs_f64(seconds).ok()
}

/// The last user message of any dialect: `messages`, `input` or `prompt`.
pub(super) fn last_user_text(request: &Value) -> String {
    let messages = request["messages"].as_array().or_else(|| request["input"].as_array());
    match messages {
        Some(messages) => messages
            .iter()
            .rfind(|message| message["role"] == "user")
            .map(|message| text_of(&message["content"]))
            .unwrap_or_default(),
        None => text_of(if request["input"].is_null() { &request["prompt"] } else { &request["input"] }),
    }
}
