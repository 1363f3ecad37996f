//! A finished call as spans: one for the call, one below it for each attempt at a provider.
//!
//! Users, sessions and tags are in none of them; prompts and replies only where that is asked for (`telemetry.content`).

use std::time::Duration;

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{
        ResourceSpans, ScopeSpans, Span, Status,
        span::{Event, SpanKind},
        status::StatusCode as SpanStatus,
    },
};
use serde_json::{Value as Json, json};

use super::{messages::Messages, semconv};
use crate::{
    policy::traces::{self, Otlp, Semconv},
    record::{Attempted, Record, received_ms},
};

/// The flags of a span whose parent is known to be in another process: `SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK` and `…IS_REMOTE_MASK`.
const REMOTE_PARENT: u32 = 0x300;
const LOCAL_PARENT: u32 = 0x100;
const SAMPLED: u32 = 1;

/// The message that reports `spans`. `instance` is this gateway.
pub(super) fn request(spans: Vec<Span>, otlp: &Otlp, instance: &str) -> ExportTraceServiceRequest {
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(resource(otlp, instance)),
            scope_spans: vec![ScopeSpans {
                scope: Some(scope()),
                spans,
                schema_url: semconv::schema_url(otlp.semconv),
            }],
            schema_url: semconv::schema_url(otlp.semconv),
        }],
    }
}

pub(super) fn resource(otlp: &Otlp, instance: &str) -> Resource {
    let attributes = vec![
        text(semconv::SERVICE_NAME, &otlp.service),
        text(semconv::SERVICE_VERSION, env!("CARGO_PKG_VERSION")),
        text(semconv::SERVICE_INSTANCE, instance),
    ];
    Resource { attributes, ..Resource::default() }
}

pub(super) fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "tollgate".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    }
}

/// The call's span and its attempts'.
pub(super) fn of(record: &Record, otlp: &Otlp) -> Vec<Span> {
    let edition = otlp.semconv;
    let mut call = call_span(record, edition);
    if let (Some(content), Some(bodies)) = (&otlp.content, &record.bodies) {
        tell(&mut call, Messages::of(record.endpoint, bodies, content), record, edition);
    }
    let attempts = record.attempt_list.iter().zip(1..);
    let mut spans: Vec<Span> =
        attempts.map(|(attempt, number)| attempt_span(record, attempt, number, &call, edition)).collect();
    spans.insert(0, call);
    spans
}

fn call_span(record: &Record, edition: Semconv) -> Span {
    let start = received_ms(&record.id).unwrap_or_default().saturating_mul(1_000_000);
    let failed = record.outcome.is_error();
    Span {
        trace_id: traces::trace_id(&record.id, record.trace).to_be_bytes().to_vec(),
        span_id: traces::span_id(&record.id, 0).to_be_bytes().to_vec(),
        parent_span_id: record.trace.map(|parent| parent.span_id.to_be_bytes().to_vec()).unwrap_or_default(),
        flags: SAMPLED | if record.trace.is_some() { REMOTE_PARENT } else { LOCAL_PARENT },
        name: format!("{} {}", semconv::operation(record.endpoint), record.model_label),
        kind: SpanKind::Server as i32,
        start_time_unix_nano: start,
        end_time_unix_nano: start.saturating_add(nanos(record.duration)),
        attributes: call_attributes(record, edition),
        status: status(failed, record.outcome.label()),
        ..Span::default()
    }
}

fn call_attributes(record: &Record, edition: Semconv) -> Vec<KeyValue> {
    let usage = &record.usage;
    let mut attributes = vec![
        text(semconv::OPERATION, semconv::operation(record.endpoint)),
        text(semconv::provider_key(edition), semconv::provider_name(&record.provider)),
        text(semconv::REQUEST_MODEL, &record.model_label),
        whole(semconv::STATUS_CODE, u64::from(record.status.as_u16())),
        text(semconv::CALL, &record.id),
        text(semconv::KEY, &record.key),
        text(semconv::OUTCOME, record.outcome.label()),
        text(semconv::USAGE_SOURCE, record.usage_source.label()),
        whole(semconv::INPUT_TOKENS, usage.input.0),
        whole(semconv::OUTPUT_TOKENS, usage.output.0),
    ];
    let texts = [
        (semconv::RESPONSE_MODEL, record.target.as_deref().map(model_of)),
        (semconv::TEAM, record.team.as_deref()),
        (semconv::VERSION, record.version.as_deref()),
        (semconv::PROMPT, record.prompt.as_deref()),
        (semconv::REFUSAL, record.refusal),
    ];
    attributes.extend(texts.into_iter().filter_map(|(key, value)| Some(text(key, value?))));
    for (experiment, variant) in &record.variants {
        attributes.push(text(&format!("{}{experiment}", semconv::EXPERIMENT), variant));
    }
    if record.priced {
        attributes.push(number(semconv::COST_USD, record.cost.as_usd()));
    }
    if record.outcome.is_error() {
        attributes.push(text(semconv::ERROR_TYPE, &error_type(record)));
    }
    attributes.extend(record.overhead.map(|overhead| number(semconv::OVERHEAD, overhead.as_secs_f64())));
    if edition >= Semconv::V1_41 {
        attributes.push(flag(semconv::REQUEST_STREAM, record.streamed));
        attributes.push(whole(semconv::CACHE_READ_TOKENS, usage.cached.0));
        attributes
            .push(whole(semconv::CACHE_CREATION_TOKENS, usage.cache_write.0.saturating_add(usage.cache_write_1h.0)));
        attributes.push(whole(semconv::REASONING_TOKENS, usage.reasoning.0));
        let first = record.first_token.filter(|_| record.streamed);
        attributes.extend(first.map(|first| number(semconv::TIME_TO_FIRST_CHUNK, first.as_secs_f64())));
    }
    attributes
}

fn attempt_span(record: &Record, attempt: &Attempted, number: u32, call: &Span, edition: Semconv) -> Span {
    let at = |offset: Duration| call.start_time_unix_nano.saturating_add(nanos(offset));
    let model = model_of(&attempt.target);
    let mut attributes = vec![
        text(semconv::OPERATION, semconv::operation(record.endpoint)),
        text(semconv::provider_key(edition), semconv::provider_name(&attempt.provider)),
        text(semconv::REQUEST_MODEL, model),
        whole(semconv::ATTEMPT, u64::from(number)),
    ];
    attributes.extend(attempt.status.map(|status| whole(semconv::STATUS_CODE, u64::from(status.as_u16()))));
    let result = attempt.result.unwrap_or("abandoned");
    let failed = result != "ok" && result != "abandoned";
    if failed {
        let code = attempt.status.map(|status| status.as_str().to_owned());
        attributes.push(text(semconv::ERROR_TYPE, code.as_deref().unwrap_or(result)));
    }
    Span {
        trace_id: call.trace_id.clone(),
        span_id: traces::span_id(&record.id, number).to_be_bytes().to_vec(),
        parent_span_id: call.span_id.clone(),
        flags: SAMPLED | LOCAL_PARENT,
        name: format!("{} {model}", semconv::operation(record.endpoint)),
        kind: SpanKind::Client as i32,
        start_time_unix_nano: at(attempt.began),
        end_time_unix_nano: at(attempt.ended.unwrap_or(record.duration)),
        attributes,
        status: status(failed, result),
        ..Span::default()
    }
}

/// Adds what was said. As JSON texts, since attributes of spans have no structure of their own everywhere yet.
fn tell(call: &mut Span, messages: Messages, record: &Record, edition: Semconv) {
    if edition < Semconv::V1_37 {
        call.events = events(call, &messages, record, edition);
        return;
    }
    let told = [
        (semconv::SYSTEM_INSTRUCTIONS, messages.system),
        (semconv::INPUT_MESSAGES, messages.input),
        (semconv::OUTPUT_MESSAGES, messages.output),
    ];
    let told = told.into_iter().filter(|(_, messages)| !messages.is_empty());
    call.attributes.extend(told.map(|(key, messages)| text(key, &Json::from(messages).to_string())));
}

/// Before 1.37 each message is an event, whose body's fields stand here as attributes: traces are all that is sent.
fn events(call: &Span, messages: &Messages, record: &Record, edition: Semconv) -> Vec<Event> {
    let system = semconv::provider_name(&record.provider);
    let event = |name: &str, time_unix_nano, mut attributes: Vec<KeyValue>| {
        attributes.insert(0, text(semconv::provider_key(edition), system));
        Event { time_unix_nano, name: name.to_owned(), attributes, ..Event::default() }
    };
    let instructions = (!messages.system.is_empty()).then(|| json!({ "role": "system", "parts": messages.system }));
    let sent = instructions.iter().chain(&messages.input).map(|message| {
        let name = semconv::message_event(message["role"].as_str().unwrap_or_default());
        event(name, call.start_time_unix_nano, vec![text("content", &message["parts"].to_string())])
    });
    let answered = messages.output.iter().zip(0..).map(|(choice, index)| {
        let reason = choice["finish_reason"].as_str().unwrap_or_default();
        let message = json!({ "role": "assistant", "content": choice["parts"] });
        let attributes =
            vec![whole("index", index), text("finish_reason", reason), text("message", &message.to_string())];
        event(semconv::CHOICE_EVENT, call.end_time_unix_nano, attributes)
    });
    sent.chain(answered).collect()
}

/// The provider's own name of the model, in `provider/model`.
fn model_of(target: &str) -> &str {
    target.split_once('/').map_or(target, |(_, model)| model)
}

/// A class of errors: the gateway's code, else the provider's status, else how the call ended.
pub(super) fn error_type(record: &Record) -> String {
    match record.refusal {
        Some(code) => code.to_owned(),
        None if record.status.is_client_error() || record.status.is_server_error() => record.status.as_str().to_owned(),
        None => record.outcome.label().to_owned(),
    }
}

/// Only failures have a status: what went well is left unset, as instrumentations should.
fn status(failed: bool, message: &str) -> Option<Status> {
    failed.then(|| Status { message: message.to_owned(), code: SpanStatus::Error as i32 })
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

pub(super) fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

fn whole(key: &str, value: u64) -> KeyValue {
    attribute(key, Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX)))
}

fn number(key: &str, value: f64) -> KeyValue {
    attribute(key, Value::DoubleValue(value))
}

fn flag(key: &str, value: bool) -> KeyValue {
    attribute(key, Value::BoolValue(value))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}
