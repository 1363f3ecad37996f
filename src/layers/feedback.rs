//! `POST /v1/feedback`: what people and programs say of a call or a session. Taken here, never forwarded to a provider.
//!
//! It goes the way of finished calls: into memory, then into the call log or to disk while that is away. So it may come before its
//! call's row does, and is not asked for: whose word counts is decided where both are read (see [`CallRow::owner`]).
//!
//! [`CallRow::owner`]: crate::record::CallRow::owner

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    body::ReplyBody,
    call::{Answer, Authenticated, Reply},
    error::GatewayError,
    layers::{Answering, Early, Turn},
    policy::{keys::Caller, redact::Redactor},
    record::{BUILT_IN_METRICS, COST_PER, Feedback, Rating, UserIds, received_ms, stored_session},
    store::records::writer::{Desk, Refused},
    telemetry::metrics,
    wire::endpoint::Endpoint,
};

/// The path.
const PATH: &str = "/v1/feedback";
/// The longest body.
const BODY_BYTES_MAX: usize = 256 * 1024;
/// How long a client may take to send it.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Ratings of one request.
const RATINGS_MAX: usize = 100;
/// The longest name of a metric or source.
const NAME_BYTES_MAX: usize = 64;
/// The longest id of a session, and the longest word as a value.
const TEXT_BYTES_MAX: usize = 256;
const COMMENT_BYTES_MAX: usize = 4096;
/// The source that is meant where none is named.
const SOURCE: &str = "user";
/// How far another gateway's clock may be ahead, in milliseconds.
const AHEAD_MAX_MS: u64 = 5 * 60 * 1000;

/// See the module.
#[derive(Debug)]
pub struct TakeFeedback {
    /// Where it is taken; `None` where no calls are kept.
    pub desk: Option<Desk>,
}

impl Turn for TakeFeedback {
    type In = Authenticated;
    type Next = Authenticated;

    fn turn(&self, call: Authenticated) -> Result<Authenticated, Early> {
        let head = &call.arrival.head;
        if head.endpoint != Endpoint::Feedback {
            return Ok(call);
        }
        if &*head.path != PATH {
            return Err(GatewayError::UnknownEndpoint(head.path.to_string()).into());
        }
        if head.method != Method::POST {
            return Err(GatewayError::MethodNotAllowed(head.method.to_string()).into());
        }
        let desk = self.desk.clone().ok_or(GatewayError::NoCallLog)?;
        let taking: Answering = Box::pin(take(desk, call));
        Err(taking.into())
    }
}

async fn take(desk: Desk, call: Authenticated) -> Answer {
    if call.arrival.head.headers.get(header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        return Err(GatewayError::invalid("send feedback without content-encoding", None).into());
    }
    let body = read(call.arrival.body).await?;
    let now_ms = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default();
    let kept = &call.snapshot.calls;
    let rater = Rater { caller: &call.caller, users: kept.users, redactor: &kept.redactor, now_ms };
    let feedback = rater.ratings(&body)?;
    let count = feedback.len();
    desk.push(feedback).map_err(|refused| match refused {
        Refused::Full => GatewayError::CallLogFull,
        Refused::Closed => GatewayError::Draining,
    })?;
    metrics::feedback(count);
    Ok(accepted(count))
}

async fn read(body: Incoming) -> Result<Bytes, GatewayError> {
    let whole = timeout(BODY_TIMEOUT, Limited::new(body, BODY_BYTES_MAX).collect()).await;
    match whole {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(GatewayError::invalid(
            format!("the body is larger than {BODY_BYTES_MAX} bytes: send feedback in several requests"),
            None,
        )),
        Ok(Err(_)) => Err(GatewayError::RequestTimeout("the connection broke off")),
        Err(_) => Err(GatewayError::RequestTimeout("it took longer than 10 s")),
    }
}

fn accepted(count: usize) -> Reply {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let body = json!({"object": "feedback", "accepted": count}).to_string();
    Reply { status: StatusCode::ACCEPTED, headers, body: ReplyBody::own(Bytes::from(body)) }
}

/// One rating as it is sent.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    call: Option<String>,
    session: Option<String>,
    metric: String,
    value: Value,
    source: Option<String>,
    comment: Option<String>,
}

/// Who rates, and when.
struct Rater<'c> {
    caller: &'c Caller,
    users: UserIds,
    redactor: &'c Redactor,
    now_ms: u64,
}

impl Rater<'_> {
    /// All ratings of a body: one, or a list.
    fn ratings(&self, body: &[u8]) -> Result<Vec<Feedback>, GatewayError> {
        let body: Value = serde_json::from_slice(body)
            .map_err(|error| GatewayError::invalid(format!("the body is not JSON: {error}"), None))?;
        let Value::Array(list) = body else { return Ok(vec![self.rating(body, "")?]) };
        if list.is_empty() || list.len() > RATINGS_MAX {
            let why = format!("send 1 to {RATINGS_MAX} ratings in one request, got {}", list.len());
            return Err(GatewayError::invalid(why, None));
        }
        list.into_iter().enumerate().map(|(n, rating)| self.rating(rating, &format!("[{n}]."))).collect()
    }

    /// One of them; `at` is where it stands, for messages.
    fn rating(&self, given: Value, at: &str) -> Result<Feedback, GatewayError> {
        let wrong = |field: &str, why: String| GatewayError::invalid(why, Some(&format!("{at}{field}")));
        let given: Given = serde_json::from_value(given).map_err(|error| {
            GatewayError::invalid(format!("{error}; a rating is {FORM}"), Some(at).filter(|at| !at.is_empty()))
        })?;
        let (call, session) = match (given.call, given.session) {
            (Some(call), None) => (Some(self.call(call).map_err(|why| wrong("call", why))?), None),
            (None, Some(session)) => (None, Some(self.session(session).map_err(|why| wrong("session", why))?)),
            _ => return Err(wrong("call", "name either the `call` or the `session` that is rated".to_owned())),
        };
        let metric = name("metric", given.metric).map_err(|why| wrong("metric", why))?;
        // `cost_per_call` is one of ours, and would be made of `call`.
        if BUILT_IN_METRICS.contains(&&*metric) || metric.starts_with(COST_PER) || &*metric == "call" {
            return Err(wrong("metric", format!("`{metric}` is a metric that the gateway measures itself")));
        }
        let source = given.source.unwrap_or_else(|| SOURCE.to_owned());
        Ok(Feedback {
            id: Arc::from(uuid::Uuid::now_v7().simple().to_string()),
            call,
            session,
            metric,
            value: value(given.value).map_err(|why| wrong("value", why))?,
            source: name("source", source).map_err(|why| wrong("source", why))?,
            comment: given
                .comment
                .map(|text| comment(&text, self.redactor))
                .transpose()
                .map_err(|why| wrong("comment", why))?,
            key: self.caller.name.clone(),
            team: self.caller.team.clone(),
            rated_ms: self.now_ms,
        })
    }

    fn call(&self, id: String) -> Result<Arc<str>, String> {
        match received_ms(&id) {
            Some(at) if at <= self.now_ms + AHEAD_MAX_MS => Ok(id.into()),
            _ => Err("this is no call's id: send the one that the reply's `x-tollgate-call` names".to_owned()),
        }
    }

    fn session(&self, session: String) -> Result<Arc<str>, String> {
        if session.is_empty() || session.len() > TEXT_BYTES_MAX {
            return Err(format!("a session is named with 1 to {TEXT_BYTES_MAX} bytes"));
        }
        Ok(stored_session(session.into(), self.users))
    }
}

/// What is shown where a rating cannot be read.
const FORM: &str = r#"{"call": "…", "metric": "resolved", "value": true}"#;

fn name(what: &str, text: String) -> Result<Arc<str>, String> {
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_.-".contains(&b);
    if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.bytes().all(is_plain) {
        return Err(format!("a {what} is named with 1 to {NAME_BYTES_MAX} of a-z, 0-9, `_`, `.` and `-`"));
    }
    Ok(text.into())
}

fn value(value: Value) -> Result<Rating, String> {
    match value {
        Value::Bool(flag) => Ok(Rating::Flag(flag)),
        Value::Number(number) => {
            number.as_f64().filter(|n| n.is_finite()).map(Rating::Number).ok_or("too large".to_owned())
        }
        Value::String(text) if text.len() <= TEXT_BYTES_MAX => Ok(Rating::Text(text.replace('\0', "\u{fffd}").into())),
        _ => Err(format!("a value is true, false, a number, or a word of at most {TEXT_BYTES_MAX} bytes")),
    }
}

/// A comment as it is stored. Redaction may make it longer, and never more than half as long again.
fn comment(text: &str, redactor: &Redactor) -> Result<Arc<str>, String> {
    if text.len() > COMMENT_BYTES_MAX {
        return Err(format!("a comment has at most {COMMENT_BYTES_MAX} bytes"));
    }
    let mut redacted = redactor.redact(&text.replace('\0', "\u{fffd}"), false).unwrap_or_default();
    redacted.truncate(redacted.floor_char_boundary(COMMENT_BYTES_MAX));
    Ok(redacted.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::keys::ModelAccess;

    const NOW_MS: u64 = 1_795_000_000_000;

    fn id(at_ms: u64) -> String {
        format!("{at_ms:012x}70008000000000000001")
    }

    fn taken(body: &str, users: UserIds) -> Result<Vec<Feedback>, GatewayError> {
        let caller = Caller { name: "web".into(), team: None, models: ModelAccess::All, tags: [].into() };
        let redactor = &Redactor::builtin();
        Rater { caller: &caller, users, redactor, now_ms: NOW_MS }.ratings(body.as_bytes())
    }

    #[test]
    fn one_rating_or_a_list_is_taken() {
        let call = id(NOW_MS - 1);
        let one =
            taken(&json!({"call": call, "metric": "resolved", "value": true}).to_string(), UserIds::Plain).unwrap();
        assert_eq!((one[0].subject(), &*one[0].source, &one[0].value), (("call", &*call), SOURCE, &Rating::Flag(true)));
        let list = json!([
            {"call": call, "metric": "stars", "value": 4, "source": "survey-2", "comment": "my key is sk-0123456789abcdefghij"},
            {"session": "s-1", "metric": "topic", "value": "refund"},
        ]);
        let both = taken(&list.to_string(), UserIds::Hash).unwrap();
        assert_eq!(both[0].comment.as_deref(), Some("my key is [redacted]"));
        assert_eq!((&both[0].value, &both[1].value), (&Rating::Number(4.0), &Rating::Text("refund".into())));
        assert!(both[1].session.as_deref().is_some_and(|session| session.starts_with("sha256:")));
        assert!(both[0].id < both[1].id, "the later one holds");
    }

    #[test]
    fn what_is_no_rating_is_refused_with_its_place() {
        let (call, long) = (id(NOW_MS), "x".repeat(5000));
        let good = json!({"call": call, "metric": "m", "value": 1});
        let with = |field: &str, value: Value| {
            let mut rating = good.clone();
            rating[field] = value;
            rating
        };
        for (body, param) in [
            (json!([good, with("metric", json!("Größe"))]), Some("[1].metric")),
            (with("metric", json!("")), Some("metric")),
            (with("metric", json!("x".repeat(65))), Some("metric")),
            (with("metric", json!("latency")), Some("metric")),
            (with("metric", json!("cost_per_resolved")), Some("metric")),
            (with("source", json!("a b")), Some("source")),
            (with("value", json!(null)), Some("value")),
            (with("value", json!([1])), Some("value")),
            (with("value", json!("x".repeat(257))), Some("value")),
            (with("comment", json!(long)), Some("comment")),
            (with("call", json!("call-1")), Some("call")),
            (with("call", json!(id(NOW_MS + 400_000))), Some("call")),
            (with("session", json!("s")), Some("call")),
            (json!({"session": "", "metric": "m", "value": 1}), Some("session")),
            (json!({"metric": "m", "value": 1}), Some("call")),
            (json!({"call": call, "metric": "m"}), None),
            (with("score", json!(1)), None),
            (json!([]), None),
            (json!(vec![good.clone(); 101]), None),
            (json!("good"), None),
        ] {
            let error = taken(&body.to_string(), UserIds::Plain).expect_err(&body.to_string());
            assert_eq!((error.meaning().status.as_u16(), error.param()), (400, param), "{body}: {error}");
        }
        assert!(taken("{", UserIds::Plain).is_err() && taken("1e999", UserIds::Plain).is_err());
    }
}
