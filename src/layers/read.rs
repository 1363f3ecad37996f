//! Reads the body of a metered call within its limits and scans it once; everything else stays a stream.
//!
//! Stage: [`Authenticated`] in, [`Call`] out. Judges nothing but size, form and time.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, Method, header};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::{body::Incoming, upgrade::OnUpgrade};
use tokio::time::{Instant, timeout_at};

use crate::{
    call::{Answer, Authenticated, Call, Document, Failure, Head, Identity, Payload},
    config::Snapshot,
    error::GatewayError,
    layers::{Inner, Step},
    policy::keys::Caller,
    recorder,
    upstream::client::UPLOAD_IDLE,
    wire::{
        coding::{DecodeError, Decoder},
        endpoint::Endpoint,
        json, request,
    },
};

/// From then on a body must have come at [`BODY_BYTES_PER_SECOND_MIN`] on average.
const BODY_GRACE: Duration = Duration::from_secs(10);
const BODY_BYTES_PER_SECOND_MIN: u64 = 1024;
/// Longest id of a user or session, and most tags, that are taken from a client.
const ID_BYTES_MAX: usize = 256;
const TAGS_MAX: usize = 16;

/// Where clients of this and other gateways name the user, in the order in which they are looked at.
const USER_HEADERS: [HeaderName; 4] = [
    HeaderName::from_static("x-tollgate-user"),
    HeaderName::from_static("helicone-user-id"),
    HeaderName::from_static("x-litellm-end-user-id"),
    HeaderName::from_static("x-litellm-customer-id"),
];
const SESSION_HEADERS: [HeaderName; 3] = [
    HeaderName::from_static("x-tollgate-session"),
    HeaderName::from_static("helicone-session-id"),
    HeaderName::from_static("x-litellm-session-id"),
];
const TAGS_HEADERS: [HeaderName; 2] =
    [HeaderName::from_static("x-tollgate-tags"), HeaderName::from_static("x-litellm-tags")];

/// See the module.
#[derive(Debug)]
pub struct ReadBody;

impl Step for ReadBody {
    type In = Authenticated;
    type Next = Box<Call>;

    async fn handle<S: Inner<Box<Call>>>(&'static self, request: Authenticated, mut inner: S) -> Answer {
        let call = call(request).await?;
        inner.call(call).await
    }
}

/// The call with its body, apart from what follows, so that a call on its way does not keep the room for it.
async fn call(request: Authenticated) -> Result<Box<Call>, Failure> {
    let Authenticated { arrival, caller, snapshot, own_credential } = request;
    let (head, began) = (arrival.head, Instant::now());
    match read(&head, arrival.body, arrival.upgrade, &caller, &snapshot).await {
        Ok((payload, identity)) => {
            let read_for = began.elapsed();
            Ok(Box::new(Call { head, caller, snapshot, own_credential, payload, identity, read_for }))
        }
        Err(error) => Err(Failure::early(error, recorder::of_caller(&head, &caller, &snapshot))),
    }
}

async fn read(
    head: &Head,
    body: Incoming,
    upgrade: Option<OnUpgrade>,
    caller: &Caller,
    snapshot: &Snapshot,
) -> Result<(Payload, Identity), GatewayError> {
    let payload = match upgrade {
        Some(upgrade) if head.endpoint == Endpoint::Realtime => Payload::Upgrade(upgrade),
        _ if head.method == Method::POST && head.endpoint.is_json() => {
            let deadline = head.received + snapshot.routing.total_timeout;
            let body = collect(body, snapshot.server.body_bytes_max, deadline).await?;
            Payload::Json(document(&head.endpoint, &head.headers, body, snapshot.server.body_bytes_max)?)
        }
        _ => Payload::Stream(body),
    };
    let identity = identity(&head.headers, &payload, caller)?;
    Ok((payload, identity))
}

/// The whole body, or why not.
async fn collect(mut body: Incoming, limit_bytes: usize, deadline: Instant) -> Result<Bytes, GatewayError> {
    let too_large = GatewayError::RequestTooLarge { limit_bytes };
    let announced = body.size_hint().exact();
    if announced.is_some_and(|length| length > limit_bytes as u64) {
        return Err(too_large);
    }
    let began = Instant::now();
    let mut first: Option<Bytes> = None;
    let mut rest = BytesMut::new();
    let mut received = 0;
    while let Some(chunk) = next_chunk(&mut body, deadline.min(latest(began, received as u64))).await? {
        received += chunk.len();
        if received > limit_bytes {
            return Err(too_large);
        }
        match &first {
            // A body that came in one chunk is never copied.
            None => first = Some(chunk),
            Some(head) => {
                if rest.is_empty() {
                    let whole = announced.and_then(|length| usize::try_from(length).ok());
                    rest.reserve(whole.unwrap_or(received));
                    rest.extend_from_slice(head);
                }
                rest.extend_from_slice(&chunk);
            }
        }
    }
    Ok(if rest.is_empty() { first.unwrap_or_default() } else { rest.freeze() })
}

/// Until when the next piece of a body must be here.
fn latest(began: Instant, received: u64) -> Instant {
    let paid_until = began + BODY_GRACE + Duration::from_secs(received / BODY_BYTES_PER_SECOND_MIN);
    paid_until.min(Instant::now() + UPLOAD_IDLE)
}

async fn next_chunk(body: &mut Incoming, deadline: Instant) -> Result<Option<Bytes>, GatewayError> {
    loop {
        let frame = match timeout_at(deadline, body.frame()).await {
            Err(_) => return Err(GatewayError::RequestTimeout("it came too slowly")),
            Ok(None) => return Ok(None),
            Ok(Some(Err(_))) => {
                return Err(GatewayError::invalid("the request body broke off or is framed wrongly", None));
            }
            Ok(Some(Ok(frame))) => frame,
        };
        if let Ok(chunk) = frame.into_data() {
            return Ok(Some(chunk));
        }
    }
}

/// Decodes where need be, scans, and looks up what policies ask.
fn document(endpoint: &Endpoint, headers: &HeaderMap, body: Bytes, limit: usize) -> Result<Document, GatewayError> {
    let (bytes, coded) = match content_coding(headers) {
        None => (body, None),
        Some(coding) => (decode(coding, &body, limit)?, Some(body)),
    };
    let scan = json::scan(&bytes)
        .map_err(|e| GatewayError::invalid(format!("the request body is no proper JSON object: {e}"), None))?;
    let facts =
        request::facts(endpoint, &bytes, &scan).map_err(|e| GatewayError::invalid(e.message, Some(&e.param)))?;
    Ok(Document { bytes, coded, scan, facts })
}

fn content_coding(headers: &HeaderMap) -> Option<&str> {
    let coding = headers.get(header::CONTENT_ENCODING)?.to_str().unwrap_or("?").trim();
    (!coding.is_empty() && !coding.eq_ignore_ascii_case("identity")).then_some(coding)
}

/// A bounded decode: what a few bytes blow up to is not ours to hold.
fn decode(coding: &str, body: &[u8], limit_bytes: usize) -> Result<Bytes, GatewayError> {
    let unknown = || {
        GatewayError::invalid(
            format!("content-encoding `{coding}` is not taken; send gzip, deflate, br or identity"),
            None,
        )
    };
    let mut decoder = Decoder::for_encoding(coding, limit_bytes as u64).ok_or_else(unknown)?;
    let mut plain = BytesMut::new();
    match decoder.push(body, |chunk| plain.extend_from_slice(chunk)) {
        Ok(()) => Ok(plain.freeze()),
        Err(DecodeError::TooLarge) => Err(GatewayError::RequestTooLarge { limit_bytes }),
        Err(_) => Err(GatewayError::invalid(format!("the request body is no proper {coding}"), None)),
    }
}

/// Who the call is for: the first that says so of our header, other gateways' headers, the body, and else the key.
fn identity(headers: &HeaderMap, payload: &Payload, caller: &Caller) -> Result<Identity, GatewayError> {
    let in_body = match payload {
        Payload::Json(document) => document.facts.user.as_deref(),
        Payload::Stream(_) | Payload::Upgrade(_) | Payload::Nothing => None,
    };
    let user = match named(headers, &USER_HEADERS)?.or(in_body) {
        Some(user) if user.len() > ID_BYTES_MAX => {
            return Err(GatewayError::invalid(
                format!("the user's id is longer than {ID_BYTES_MAX} bytes"),
                Some("user"),
            ));
        }
        Some(user) if !user.is_empty() => Arc::from(user),
        _ => caller.name.clone(),
    };
    let session = named(headers, &SESSION_HEADERS)?.map(Arc::from);
    Ok(Identity { user, session, tags: tags(headers, caller)? })
}

fn named<'h>(headers: &'h HeaderMap, names: &[HeaderName]) -> Result<Option<&'h str>, GatewayError> {
    let Some((name, value)) = names.iter().find_map(|name| Some((name, headers.get(name)?))) else { return Ok(None) };
    match value.to_str() {
        Ok(value) if value.len() <= ID_BYTES_MAX => Ok(Some(value).filter(|value| !value.is_empty())),
        _ => Err(GatewayError::invalid(
            format!("header `{name}` must be at most {ID_BYTES_MAX} visible ASCII characters"),
            None,
        )),
    }
}

/// Name and value.
type Tag = (Arc<str>, Arc<str>);

/// The key's tags, then the call's: `x-tollgate-tags: a=b,c=d` (LiteLLM's list `a,b` reads as `a=true`).
fn tags(headers: &HeaderMap, caller: &Caller) -> Result<Vec<Tag>, GatewayError> {
    let mut tags = caller.tags.to_vec();
    for name in TAGS_HEADERS {
        let Some(value) = headers.get(&name) else { continue };
        let value = value.to_str().map_err(|_| {
            GatewayError::invalid(format!("header `{name}` must be visible ASCII, as in `a=b,c=d`"), None)
        })?;
        for tag in value.split(',').map(str::trim).filter(|tag| !tag.is_empty()) {
            let (tag, value) = tag.split_once('=').unwrap_or((tag, "true"));
            tags.push((Arc::from(tag.trim()), Arc::from(value.trim())));
        }
    }
    if tags.len() > caller.tags.len() + TAGS_MAX {
        return Err(GatewayError::invalid(format!("at most {TAGS_MAX} tags are taken"), None));
    }
    Ok(tags)
}
