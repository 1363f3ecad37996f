//! Builds what leaves for a provider: its origin, its key, the client's headers without what is not the provider's business.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, header, uri};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    call::{Call, Head},
    config::snapshot::{Provider, ProviderKind},
    policy::traces,
    upstream::client::UpstreamBody,
    wire::{
        endpoint::{Dialect, Endpoint},
        headers,
        traceparent::{TRACEPARENT, TraceParent},
    },
};

/// Anthropic wants its API's version named: <https://docs.anthropic.com/en/api/versioning>.
const ANTHROPIC_VERSION: HeaderName = HeaderName::from_static("anthropic-version");
const ANTHROPIC_VERSION_DEFAULT: HeaderValue = HeaderValue::from_static("2023-06-01");
const TIMEOUT: HeaderName = HeaderName::from_static("x-tollgate-timeout");
const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// How a request's body is to travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Travel {
    /// Whether the reply must come uncompressed, since something in it will be removed.
    pub plain_reply: bool,
    /// Whether the request's own content coding still holds.
    pub keep_coding: bool,
    /// Whether the client asked to switch protocols.
    pub upgrade: bool,
}

/// The request for one attempt.
///
/// # Errors
/// When the path cannot be appended to the provider's base URL: the client's mistake.
pub fn build(
    call: &Call,
    provider: &Provider,
    body: UpstreamBody,
    travel: Travel,
    via: &HeaderValue,
) -> Result<Request<UpstreamBody>, http::Error> {
    let mut request = Request::builder().method(call.head.method.clone()).uri(uri(&call.head, provider)?).body(body)?;
    *request.headers_mut() = outgoing_headers(call, provider, travel, via);
    Ok(request)
}

/// Tells the provider of the span that this attempt is, where traces go out; else what the client said of its own goes on.
pub fn trace(request: &mut Request<UpstreamBody>, call: &Call, attempt: u32) {
    let Some(otlp) = &call.snapshot.telemetry else { return };
    let span = traces::for_attempt(&call.head.id, TraceParent::of(&call.head.headers), attempt, otlp.sample);
    let value = HeaderValue::from_str(&span.to_string()).expect("hexadecimal digits and dashes");
    request.headers_mut().insert(TRACEPARENT, value);
}

/// `base_url` and what follows `/v1` in the client's path.
fn uri(head: &Head, provider: &Provider) -> Result<Uri, http::Error> {
    let rest = head.path.strip_prefix("/v1").unwrap_or(&head.path);
    let base = provider.base_url.path().trim_end_matches('/');
    let path_and_query = match &head.query {
        Some(query) => [base, rest, "?", query].concat(),
        None => [base, rest].concat(),
    };
    let mut parts = uri::Parts::default();
    parts.scheme = provider.base_url.scheme().cloned();
    parts.authority = provider.base_url.authority().cloned();
    parts.path_and_query = Some(path_and_query.parse()?);
    Ok(Uri::from_parts(parts)?)
}

fn outgoing_headers(call: &Call, provider: &Provider, travel: Travel, via: &HeaderValue) -> HeaderMap {
    let mut out = headers::forwarded(&call.head.headers);
    if travel.plain_reply {
        out.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    } else {
        out.insert(header::ACCEPT_ENCODING, headers::accept_encoding(call.head.headers.get(header::ACCEPT_ENCODING)));
    }
    if !travel.keep_coding {
        out.remove(header::CONTENT_ENCODING);
    }
    if travel.upgrade {
        out.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        if let Some(protocol) = call.head.headers.get(header::UPGRADE) {
            out.insert(header::UPGRADE, protocol.clone());
        }
    }
    out.append(header::VIA, via.clone());
    credentials(call, provider, &mut out);
    out
}

/// Attached last, to the provider's own origin only.
fn credentials(call: &Call, provider: &Provider, out: &mut HeaderMap) {
    let own = call.own_credential.as_ref().and_then(|key| key.to_str().ok());
    let Some(key) = own.or_else(|| provider_key(provider, &call.head.id)) else { return };
    let anthropic = provider.kind == ProviderKind::Anthropic;
    if anthropic && (call.head.endpoint.dialect() == Dialect::Anthropic || call.head.endpoint == Endpoint::Models) {
        if let Some(key) = secret(key.to_owned()) {
            out.insert(X_API_KEY, key);
        }
        if !out.contains_key(ANTHROPIC_VERSION) {
            out.insert(ANTHROPIC_VERSION, ANTHROPIC_VERSION_DEFAULT);
        }
        return;
    }
    if let Some(bearer) = secret(["Bearer ", key].concat()) {
        out.insert(header::AUTHORIZATION, bearer);
    }
}

fn secret(text: String) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// One of the provider's keys, spread evenly over calls.
fn provider_key<'p>(provider: &'p Provider, call: &str) -> Option<&'p str> {
    let count = provider.api_keys.len() as u64;
    let index = usize::try_from(xxh3_64(call.as_bytes()).checked_rem(count)?).ok()?;
    Some(provider.api_keys[index].expose())
}

/// The client's own time limit, `x-tollgate-timeout: 30s` (also `500ms`, `2m`), where it is given and makes sense.
#[must_use]
pub fn client_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(TIMEOUT)?.to_str().ok()?.trim();
    let (number, scale) = match text {
        t if t.ends_with("ms") => (t.strip_suffix("ms")?, 0.001),
        t if t.ends_with('s') => (t.strip_suffix('s')?, 1.0),
        t if t.ends_with('m') => (t.strip_suffix('m')?, 60.0),
        t => (t, 1.0),
    };
    let seconds = number.trim().parse::<f64>().ok()? * scale;
    Duration::try_from_secs_f64(seconds).ok().filter(|limit| !limit.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_may_shorten_its_time() {
        for (text, ms) in [
            ("30s", Some(30_000)),
            ("500ms", Some(500)),
            ("2m", Some(120_000)),
            ("7", Some(7000)),
            ("0s", None),
            ("-1s", None),
            ("x", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("x-tollgate-timeout", text.parse().unwrap());
            assert_eq!(client_timeout(&headers), ms.map(Duration::from_millis), "{text}");
        }
    }
}
