//! What a method and a path of the client listener mean: which dialect, whether the body is read, what it may cost.
//!
//! Every decision about a call (authentication, routing, price) is made on the same, once checked path: what two
//! parsers could read as two paths is refused here, before anything looks at it.

use std::borrow::Cow;

use http::Method;

/// What a call asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// `POST /v1/chat/completions`
    ChatCompletions,
    /// `POST /v1/completions`
    Completions,
    /// `POST /v1/responses`
    Responses,
    /// `POST /v1/embeddings`
    Embeddings,
    /// `POST /v1/messages`, Anthropic's
    Messages,
    /// `POST /v1/messages/count_tokens`, Anthropic's
    CountTokens,
    /// `GET /v1/models`
    Models,
    /// `GET /v1/models/{id}`; the id is decoded and may have slashes (`provider/model`)
    Model(Box<str>),
    /// `GET /v1/realtime`, a WebSocket
    Realtime,
    /// `/v1/feedback`, the gateway's own
    Feedback,
    /// `/v1/organization/…`, which administrates the provider's account
    Organization,
    /// Everything else under `/v1/`
    Other(Other),
}

/// A path under `/v1/` that passes unread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Other {
    /// Whose API it belongs to.
    pub dialect: Dialect,
    /// What it may cost.
    pub cost: Cost,
}

/// Whose wire format a call and its errors have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// OpenAI's
    OpenAi,
    /// Anthropic's
    Anthropic,
}

/// What a call of an endpoint may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cost {
    /// Tokens, by the usage that the provider reports.
    Metered,
    /// Nothing.
    Free,
    /// Something that is not known from request and reply (images, audio, fine-tuning, batches).
    Unknown,
}

/// Why a path or method is no endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// The path could be read in two ways.
    #[error(transparent)]
    Path(#[from] PathError),
    /// No path of the client listener.
    #[error("unknown endpoint: the paths of the API start with /v1/")]
    Unknown,
    /// `TRACE`, `CONNECT` and methods that HTTP does not define.
    #[error("this method is not supported")]
    Method,
}

/// Why a path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// No leading slash.
    #[error("the path must start with a slash")]
    Relative,
    /// `//`
    #[error("the path must not have an empty segment")]
    EmptySegment,
    /// `.` or `..`, also spelt `%2e`
    #[error("the path must not have dot segments")]
    DotSegment,
    /// `%2f`, `%5c`, `%25` or a control character spelt with a percent sign, or a broken escape
    #[error("the path must not have this percent escape")]
    Escape,
    /// A backslash, a control character, a space or a byte beyond ASCII
    #[error("the path has a character that must not stand in a path")]
    Character,
}

/// Checks that a path (without its query) can be read in one way only, and returns it as it is.
///
/// # Errors
/// What a provider, a proxy or this gateway could each normalise differently; nothing is ever rewritten.
pub fn normalise(path: &str) -> Result<&str, PathError> {
    if !path.starts_with('/') {
        return Err(PathError::Relative);
    }
    let bytes = path.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'%' => check_escape(bytes.get(i + 1..i + 3))?,
            b'\\' | b'#' | b'?' | 0..=0x20 | 0x7F.. => return Err(PathError::Character),
            _ => {}
        }
        i += 1;
    }
    let inner = path.strip_suffix('/').unwrap_or(path);
    for segment in inner.split('/').skip(1) {
        match segment {
            "" => return Err(PathError::EmptySegment),
            "." | ".." => return Err(PathError::DotSegment),
            _ => {}
        }
    }
    Ok(path)
}

fn check_escape(digits: Option<&[u8]>) -> Result<(), PathError> {
    match decoded(digits).ok_or(PathError::Escape)? {
        b'.' => Err(PathError::DotSegment),
        b'/' | b'\\' | b'%' | 0..0x20 | 0x7F => Err(PathError::Escape),
        _ => Ok(()),
    }
}

/// The byte that two hexadecimal digits stand for.
fn decoded(digits: Option<&[u8]>) -> Option<u8> {
    let digits = digits.filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

// === impl Endpoint ===

impl Endpoint {
    /// The endpoint of a method and a path without its query.
    ///
    /// # Errors
    /// A path that [`normalise`] refuses, one outside of `/v1/`, or a method that is never forwarded.
    pub fn of(method: &Method, path: &str) -> Result<Endpoint, EndpointError> {
        let forwarded = [Method::GET, Method::POST, Method::DELETE, Method::HEAD, Method::PUT, Method::PATCH];
        if !forwarded.contains(method) && *method != Method::OPTIONS {
            return Err(EndpointError::Method);
        }
        let rest = normalise(path)?.strip_prefix("/v1/").filter(|rest| !rest.is_empty());
        let rest = rest.ok_or(EndpointError::Unknown)?;
        Ok(named(method, rest).unwrap_or_else(|| other(method, rest)))
    }

    /// The label of metrics and records: one of a closed set, never what a client invented.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Endpoint::ChatCompletions => "chat_completions",
            Endpoint::Completions => "completions",
            Endpoint::Responses => "responses",
            Endpoint::Embeddings => "embeddings",
            Endpoint::Messages => "messages",
            Endpoint::CountTokens => "count_tokens",
            Endpoint::Models | Endpoint::Model(_) => "models",
            Endpoint::Realtime => "realtime",
            Endpoint::Feedback => "feedback",
            Endpoint::Organization => "organization",
            Endpoint::Other(_) => "other",
        }
    }

    /// Whose wire format the call and its errors have.
    #[must_use]
    pub const fn dialect(&self) -> Dialect {
        match self {
            Endpoint::Messages | Endpoint::CountTokens => Dialect::Anthropic,
            Endpoint::Other(other) => other.dialect,
            _ => Dialect::OpenAi,
        }
    }

    /// Whether the request's body is one JSON object that is scanned; other bodies pass unread.
    #[must_use]
    pub const fn is_json(&self) -> bool {
        matches!(
            self,
            Endpoint::ChatCompletions
                | Endpoint::Completions
                | Endpoint::Responses
                | Endpoint::Embeddings
                | Endpoint::Messages
                | Endpoint::CountTokens
        )
    }

    /// What the call may cost.
    #[must_use]
    pub const fn cost(&self) -> Cost {
        match self {
            Endpoint::ChatCompletions
            | Endpoint::Completions
            | Endpoint::Responses
            | Endpoint::Embeddings
            | Endpoint::Messages => Cost::Metered,
            Endpoint::CountTokens | Endpoint::Models | Endpoint::Model(_) | Endpoint::Feedback => Cost::Free,
            Endpoint::Realtime | Endpoint::Organization => Cost::Unknown,
            Endpoint::Other(other) => other.cost,
        }
    }

    /// Whether the model writes output that is charged: all metered endpoints but embeddings.
    #[must_use]
    pub const fn has_output(&self) -> bool {
        matches!(self.cost(), Cost::Metered) && !matches!(self, Endpoint::Embeddings)
    }
}

fn named(method: &Method, rest: &str) -> Option<Endpoint> {
    // Whatever the method: nothing under this path is an ordinary call.
    if rest == "organization" || rest.starts_with("organization/") {
        return Some(Endpoint::Organization);
    }
    // Whatever the method: it is never a provider's.
    if rest == "feedback" || rest.starts_with("feedback/") {
        return Some(Endpoint::Feedback);
    }
    let endpoint = match (method.as_str(), rest) {
        ("POST", "chat/completions") => Endpoint::ChatCompletions,
        ("POST", "completions") => Endpoint::Completions,
        ("POST", "responses") => Endpoint::Responses,
        ("POST", "embeddings") => Endpoint::Embeddings,
        ("POST", "messages") => Endpoint::Messages,
        ("POST", "messages/count_tokens") => Endpoint::CountTokens,
        ("GET", "models") => Endpoint::Models,
        ("GET", "realtime") => Endpoint::Realtime,
        ("GET", _) => Endpoint::Model(percent_decoded(rest.strip_prefix("models/").filter(|id| !id.is_empty())?)),
        _ => return None,
    };
    Some(endpoint)
}

fn percent_decoded(id: &str) -> Box<str> {
    if !id.contains('%') {
        return id.into();
    }
    let bytes = id.as_bytes();
    let mut text = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        match decoded(bytes.get(i + 1..i + 3)).filter(|_| bytes[i] == b'%') {
            Some(byte) => {
                text.push(byte);
                i += 3;
            }
            None => {
                text.push(bytes[i]);
                i += 1;
            }
        }
    }
    match String::from_utf8_lossy(&text) {
        Cow::Borrowed(text) => text.into(),
        Cow::Owned(text) => text.into(),
    }
}

fn other(method: &Method, rest: &str) -> Endpoint {
    let is_anthropic = rest == "messages" || rest.starts_with("messages/");
    let dialect = if is_anthropic { Dialect::Anthropic } else { Dialect::OpenAi };
    let reads = [Method::GET, Method::HEAD, Method::DELETE, Method::OPTIONS].contains(method);
    let is_free = (reads && !rest.starts_with("realtime")) || (*method == Method::POST && is_free_post(rest));
    Endpoint::Other(Other { dialect, cost: if is_free { Cost::Free } else { Cost::Unknown } })
}

/// The closed list of `POST`s that run no model. What is not on it may cost something.
fn is_free_post(rest: &str) -> bool {
    let segments: Vec<&str> = rest.split('/').collect();
    // A trailing slash may be dropped upstream: `chat/completions/` is then no update of a stored completion.
    let ends_in_slash = segments.last().is_some_and(|segment| segment.is_empty());
    !ends_in_slash
        && matches!(
            segments[..],
            ["moderations" | "files" | "uploads"]
                | ["uploads", _, "parts" | "complete" | "cancel"]
                | ["chat", "completions", _]
                | ["responses", "input_tokens"]
                | ["responses" | "batches", _, "cancel"]
                | ["messages", "batches", _, "cancel"]
                | ["fine_tuning", "jobs", _, "cancel" | "pause"]
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(method: &Method, path: &str) -> Endpoint {
        Endpoint::of(method, path).expect(path)
    }

    #[test]
    fn the_named_endpoints_are_told_by_method_and_path() {
        for (method, path, endpoint, label, cost) in [
            (Method::POST, "/v1/chat/completions", Endpoint::ChatCompletions, "chat_completions", Cost::Metered),
            (Method::POST, "/v1/completions", Endpoint::Completions, "completions", Cost::Metered),
            (Method::POST, "/v1/responses", Endpoint::Responses, "responses", Cost::Metered),
            (Method::POST, "/v1/embeddings", Endpoint::Embeddings, "embeddings", Cost::Metered),
            (Method::POST, "/v1/messages", Endpoint::Messages, "messages", Cost::Metered),
            (Method::POST, "/v1/messages/count_tokens", Endpoint::CountTokens, "count_tokens", Cost::Free),
            (Method::GET, "/v1/models", Endpoint::Models, "models", Cost::Free),
            (Method::GET, "/v1/models/a/b%3A1", Endpoint::Model("a/b:1".into()), "models", Cost::Free),
            (Method::GET, "/v1/realtime", Endpoint::Realtime, "realtime", Cost::Unknown),
            (Method::POST, "/v1/feedback", Endpoint::Feedback, "feedback", Cost::Free),
            (Method::GET, "/v1/feedback/", Endpoint::Feedback, "feedback", Cost::Free),
            (Method::GET, "/v1/organization/costs", Endpoint::Organization, "organization", Cost::Unknown),
            (Method::POST, "/v1/organization/projects", Endpoint::Organization, "organization", Cost::Unknown),
        ] {
            let found = of(&method, path);
            assert_eq!(found, endpoint, "{path}");
            assert_eq!((found.label(), found.cost()), (label, cost), "{path}");
        }
    }

    #[test]
    fn what_runs_no_model_is_free_and_what_is_not_listed_may_cost() {
        use Cost::{Free, Unknown};
        for (method, path, cost) in [
            (Method::GET, "/v1/responses/resp_1", Free),
            (Method::DELETE, "/v1/responses/resp_1", Free),
            (Method::GET, "/v1/batches", Free),
            (Method::GET, "/v1/files/f/content", Free),
            (Method::POST, "/v1/files", Free),
            (Method::POST, "/v1/moderations", Free),
            (Method::POST, "/v1/batches/b/cancel", Free),
            (Method::POST, "/v1/batches", Unknown),
            (Method::POST, "/v1/images/generations", Unknown),
            (Method::POST, "/v1/audio/speech", Unknown),
            (Method::POST, "/v1/fine_tuning/jobs", Unknown),
            (Method::POST, "/v1/threads/t/runs", Unknown),
            (Method::POST, "/v1/messages/batches", Unknown),
            (Method::POST, "/v1/realtime/client_secrets", Unknown),
            (Method::POST, "/v1/chat/completions/", Unknown),
            (Method::POST, "/v1/Chat/Completions", Unknown),
            (Method::PUT, "/v1/chat/completions", Unknown),
        ] {
            assert_eq!(of(&method, path).cost(), cost, "{method} {path}");
        }
        assert_eq!(of(&Method::POST, "/v1/messages/batches").dialect(), Dialect::Anthropic);
    }

    #[test]
    fn paths_that_can_be_read_in_two_ways_are_refused() {
        for (path, error) in [
            ("/v1/../admin", PathError::DotSegment),
            ("/v1/./models", PathError::DotSegment),
            ("/v1/%2e%2E/admin", PathError::DotSegment),
            ("/v1/models/..", PathError::DotSegment),
            ("/v1%2f..", PathError::Escape),
            ("/v1/a%5Cb", PathError::Escape),
            ("/v1/%252e", PathError::Escape),
            ("/v1/%0a", PathError::Escape),
            ("/v1/%zz", PathError::Escape),
            ("/v1/%2", PathError::Escape),
            ("//admin", PathError::EmptySegment),
            ("/v1//chat", PathError::EmptySegment),
            ("/v1/models//", PathError::EmptySegment),
            ("/v1\\admin", PathError::Character),
            ("/v1/a b", PathError::Character),
            ("/v1/\u{e9}", PathError::Character),
            ("*", PathError::Relative),
            ("", PathError::Relative),
        ] {
            assert_eq!(normalise(path), Err(error), "{path}");
        }
        assert_eq!(normalise("/v1/models/a..b"), Ok("/v1/models/a..b"));
        assert_eq!(normalise("/"), Ok("/"));
    }

    #[test]
    fn what_is_outside_of_the_api_is_unknown() {
        for path in ["/", "/v1", "/v1/", "/api/keys", "/V1/models", "/v2/models", "/metrics"] {
            assert_eq!(Endpoint::of(&Method::GET, path), Err(EndpointError::Unknown), "{path}");
        }
        for method in [Method::TRACE, Method::CONNECT, Method::from_bytes(b"BREW").expect("a token")] {
            assert_eq!(Endpoint::of(&method, "/v1/models"), Err(EndpointError::Method));
        }
    }
}
