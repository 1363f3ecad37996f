//! The only place where an error becomes bytes, and where a request becomes a call.
//!
//! Stage: [`http::Request`] in, [`Arrival`] out; [`Reply`] or [`Failure`] back, [`http::Response`] out. What two parsers could read in
//! two ways is refused here, before anything decides on it. A panic further in hurts this one request.

use std::{panic::AssertUnwindSafe, sync::Arc};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, Version, header, request, uri::Authority,
};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use serde_json::json;
use tokio::time::Instant;

use crate::{
    body::ReplyBody,
    call::{Arrival, Failure, Head, Reply},
    error::GatewayError,
    layers::Inner,
    record::Outcome,
    recorder::{self, OpenRecord, Recorder},
    telemetry::metrics,
    wire::{
        endpoint::{Dialect, Endpoint, EndpointError},
        headers,
    },
};

/// Longest path and query together, in bytes.
const URI_BYTES_MAX: usize = 8 * 1024;
/// Most bytes of all header lines, `: ` and line ends included. hyper's own limit is that of its buffer, which is not exact.
const HEADERS_BYTES_MAX: usize = 64 * 1024;
const HEADER_OVERHEAD: usize = 4;
/// Headers besides our own that decide something.
const ONCE: [HeaderName; 4] = [
    header::AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("api-key"),
    header::CONTENT_TYPE,
];
/// What `Allow` says.
const METHODS: &str = "GET, POST, DELETE, PUT, PATCH, HEAD, OPTIONS";
/// The id of a call, in requests that were refused too.
const CALL_HEADER: HeaderName = HeaderName::from_static("x-tollgate-call");

/// See the module.
#[derive(Debug)]
pub struct Respond<S> {
    inner: S,
    recorder: Recorder,
    /// Our name in `Via`, unique to this process: seen on a request, it came round in a loop.
    via: Arc<str>,
}

impl<S: Inner<Arrival>> Respond<S> {
    /// Stands before `inner`.
    #[must_use]
    pub fn new(inner: S, recorder: Recorder, via: Arc<str>) -> Respond<S> {
        Respond { inner, recorder, via }
    }

    /// Refuses a request that nothing may look at.
    pub async fn refuse_request(&self, request: &Request<Incoming>, error: GatewayError) -> Response<ReplyBody> {
        self.refuse(error.into(), &call_id(), "none", dialect(request.uri().path()), Instant::now()).await
    }

    /// Answers one request, whatever happens.
    pub async fn respond(&self, request: Request<Incoming>) -> Response<ReplyBody> {
        let received = Instant::now();
        let id = call_id();
        let (mut parts, body) = request.into_parts();
        headers::hide_credentials(&mut parts.headers);
        let upgrade = parts.extensions.remove::<OnUpgrade>().filter(|_| parts.headers.contains_key(header::UPGRADE));
        let dialect = dialect(parts.uri.path());
        let endpoint = match self.check(&parts) {
            Ok(endpoint) => endpoint,
            Err(error) => return Box::pin(self.refuse(error.into(), &id, "none", dialect, received)).await,
        };
        let label = endpoint.label();
        let head = Head {
            id: id.clone(),
            received,
            endpoint,
            method: parts.method,
            path: parts.uri.path().into(),
            host: host(&parts.uri, &parts.headers).map(Into::into),
            query: parts.uri.query().map(Into::into),
            headers: parts.headers,
        };
        let mut inner = self.inner;
        let answering = inner.call(Arrival { head, body, upgrade });
        let answer = match AssertUnwindSafe(answering).catch_unwind().await {
            Ok(answer) => answer,
            Err(_) => {
                metrics::panicked();
                Err(GatewayError::Internal.into())
            }
        };
        match answer {
            Ok(reply) => response(reply, &id),
            // Boxed, since the future of every call would have to hold the room for it.
            Err(failure) => Box::pin(self.refuse(failure, &id, label, dialect, received)).await,
        }
    }

    /// What the request's line and headers must be, before anything else looks at them.
    fn check(&self, parts: &request::Parts) -> Result<Endpoint, GatewayError> {
        let uri_bytes = parts.uri.path_and_query().map_or(0, |pq| pq.as_str().len());
        if uri_bytes > URI_BYTES_MAX {
            return Err(GatewayError::UriTooLong);
        }
        check_headers(parts)?;
        let via = parts.headers.get_all(header::VIA).iter().filter_map(|value| value.to_str().ok());
        if via.flat_map(|value| value.split(',')).any(|hop| hop.trim().ends_with(&*self.via)) {
            return Err(GatewayError::LoopDetected);
        }
        let path = parts.uri.path();
        Endpoint::of(&parts.method, path).map_err(|error| match error {
            EndpointError::Path(why) => GatewayError::invalid(why.to_string(), None),
            EndpointError::Unknown => GatewayError::UnknownEndpoint(path.to_owned()),
            EndpointError::Method => GatewayError::MethodNotAllowed(parts.method.to_string()),
        })
    }

    /// Ends a call without a reply.
    async fn refuse(
        &self,
        failure: Failure,
        id: &Arc<str>,
        endpoint: &'static str,
        dialect: Dialect,
        received: Instant,
    ) -> Response<ReplyBody> {
        let Failure { error, headers, record, facts, .. } = failure;
        let record = match record {
            Some(record) => Some(*record),
            None => {
                let facts = facts.map_or_else(|| recorder::blank(id.clone(), endpoint), |facts| *facts);
                self.recorder.open(facts, received).await
            }
        };
        if let Some(record) = record {
            close(record, &error);
        }
        let mut response = error_response(&error, dialect);
        response.headers_mut().extend(headers);
        response.headers_mut().insert(CALL_HEADER, ascii(id));
        response
    }
}

fn close(mut record: OpenRecord, error: &GatewayError) {
    let meaning = error.meaning();
    let facts = record.facts();
    facts.status = meaning.status;
    facts.refusal = Some(meaning.code);
    let outcome = match error {
        GatewayError::UpstreamUnreachable { .. } | GatewayError::UpstreamTimeout { .. } => Outcome::UpstreamFailed,
        GatewayError::Internal => Outcome::Internal,
        _ => Outcome::Refused,
    };
    record.close(outcome);
}

fn host<'r>(uri: &'r Uri, headers: &'r HeaderMap) -> Option<&'r str> {
    uri.authority().map(Authority::as_str).or_else(|| headers.get(header::HOST)?.to_str().ok())
}

/// Errors have the shape of the dialect that the client speaks.
fn dialect(path: &str) -> Dialect {
    if path.starts_with("/v1/messages") { Dialect::Anthropic } else { Dialect::OpenAi }
}

fn check_headers(parts: &request::Parts) -> Result<(), GatewayError> {
    // Frameworks read `x_user` as `x-user`: a second spelling of a header that means something here.
    if let Some(name) = headers::underscored(&parts.headers) {
        return Err(GatewayError::invalid(format!("header `{name}` has an underscore; spell it with `-`"), None));
    }
    let bytes: usize =
        parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + HEADER_OVERHEAD).sum();
    if bytes > HEADERS_BYTES_MAX {
        return Err(GatewayError::HeadersTooLarge);
    }
    // Said twice, a header that decides something could mean one thing here and another there.
    let ours = |name: &&HeaderName| name.as_str().starts_with("x-tollgate-") || ONCE.contains(name);
    if parts.headers.len() > parts.headers.keys_len()
        && let Some(name) =
            parts.headers.keys().filter(ours).find(|name| parts.headers.get_all(*name).iter().count() > 1)
    {
        return Err(GatewayError::invalid(format!("header `{name}` is given twice"), None));
    }
    if let Some(expect) = parts.headers.get(header::EXPECT)
        && !expect.as_bytes().eq_ignore_ascii_case(b"100-continue")
    {
        return Err(GatewayError::ExpectationFailed);
    }
    // HTTP/1 is checked on the wire (gateway/framing.rs); in HTTP/2 `Host` may only repeat `:authority` (RFC 9113 §8.3.1).
    let host = parts.headers.get(header::HOST);
    if parts.version == Version::HTTP_2
        && let (Some(host), Some(authority)) = (host, parts.uri.authority())
        && host.as_bytes() != authority.as_str().as_bytes()
    {
        return Err(GatewayError::invalid("`host` differs from `:authority`", None));
    }
    if parts.method == Method::CONNECT || parts.method == Method::TRACE {
        return Err(GatewayError::MethodNotAllowed(parts.method.to_string()));
    }
    Ok(())
}

fn response(reply: Reply, id: &str) -> Response<ReplyBody> {
    let mut response = Response::new(reply.body);
    *response.status_mut() = reply.status;
    *response.headers_mut() = reply.headers;
    response.headers_mut().insert(CALL_HEADER, ascii(id));
    response
}

fn error_response(error: &GatewayError, dialect: Dialect) -> Response<ReplyBody> {
    let meaning = error.meaning();
    let body = match dialect {
        Dialect::OpenAi => json!({"error": {
            "message": error.to_string(), "type": meaning.kind, "param": error.param(), "code": meaning.code}}),
        Dialect::Anthropic => json!({"type": "error", "error": {
            "type": anthropic_type(meaning.status.as_u16()), "message": error.to_string(), "code": meaning.code}}),
    };
    let mut response = Response::new(ReplyBody::own(Bytes::from(body.to_string())));
    *response.status_mut() = meaning.status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(wait) = error.retry_after() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs_f64().ceil().max(1.0) as u64));
    }
    if error.should_retry() == Some(false) {
        headers.insert("x-should-retry", HeaderValue::from_static("false"));
    }
    if let GatewayError::MethodNotAllowed(_) = error {
        headers.insert(header::ALLOW, HeaderValue::from_static(METHODS));
    }
    response
}

/// Anthropic's error types: <https://docs.anthropic.com/en/api/errors>.
fn anthropic_type(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        503 => "overloaded_error",
        _ => "api_error",
    }
}

/// Time-ordered and unguessable enough to be nobody else's: UUID version 7 (RFC 9562 §5.7).
fn call_id() -> Arc<str> {
    let mut digits = [0; uuid::fmt::Simple::LENGTH];
    Arc::from(&*uuid::Uuid::now_v7().simple().encode_lower(&mut digits))
}

fn ascii(id: &str) -> HeaderValue {
    HeaderValue::from_str(id).expect("ids are hexadecimal")
}
