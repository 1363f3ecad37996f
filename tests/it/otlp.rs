//! Traces and metrics out: what a collector gets is what happened, in OpenTelemetry's words, and a collector that is away or hangs
//! changes nothing for calls.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use opentelemetry_proto::tonic::{
    collector::{metrics::v1::ExportMetricsServiceRequest, trace::v1::ExportTraceServiceRequest},
    common::v1::{KeyValue, any_value::Value},
    metrics::v1::metric::Data,
    trace::v1::{Span, span::SpanKind},
};
use prost::Message as _;
use serde_json::json;

use crate::support::{
    DEADLINE, Gateway, KEY, Reply, Upstream, eventually,
    gateway::Setup,
    upstream::{Request, USAGE, chat_completion, openai},
    wait_until,
};

/// From the specification of trace context.
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const UNSAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

async fn collector() -> Upstream {
    Upstream::always(Reply::bytes(200, "application/x-protobuf", "")).await
}

fn traced(upstream: &Upstream, collector: &Upstream, more: &str) -> Setup {
    let headers = "headers: { x-collector-key: ck-CANARY }";
    let telemetry = format!("{{ otlp: \"{}/otlp/\", interval: 100ms, {headers}{more} }}", collector.url());
    Gateway::before(upstream).top("telemetry", &telemetry)
}

fn is_traces(request: &Request) -> bool {
    request.path() == "/otlp/v1/traces"
}

fn spans_in(request: &Request) -> Vec<Span> {
    let message = ExportTraceServiceRequest::decode(&request.body[..]).expect("a message of OTLP");
    let scopes = message.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
    scopes.flat_map(|scope| scope.spans).collect()
}

/// All spans so far.
fn spans(collector: &Upstream) -> Vec<Span> {
    collector.requests().iter().filter(|request| is_traces(request)).flat_map(spans_in).collect()
}

async fn wait_for_spans(collector: &Upstream, count: usize) -> Vec<Span> {
    wait_until(&format!("{count} spans"), DEADLINE, || spans(collector).len() >= count).await;
    spans(collector)
}

/// Attributes by name; numbers and booleans as their text.
fn attributes(of: &[KeyValue]) -> BTreeMap<&str, String> {
    let shown = |attribute: &KeyValue| match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        Some(Value::BoolValue(flag)) => flag.to_string(),
        other => panic!("{}: {other:?}", attribute.key),
    };
    of.iter().map(|attribute| (attribute.key.as_str(), shown(attribute))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_call_is_a_span_with_one_below_it_for_each_attempt() {
    let (first, second, collector) = (Upstream::run().await, Upstream::run().await, collector().await);
    first.script(Reply::json(503, &json!({"error": {"message": "busy"}})));
    let gateway = traced(&first, &collector, "")
        .provider_at("second", &second.url())
        .top("routing", "{ attempts: 2, eject: off }")
        .price("second/n", "input: 1 USD/1M, output: 2 USD/1M, max_output: 100")
        .model("support", "target: upstream/m, fallbacks: [ second/n ]")
        .run()
        .await;

    let reply =
        gateway.hello_stream("support").user("user-CANARY").header("x-tollgate-session", "session-CANARY").send().await;
    let id = reply.expect(200).header("x-tollgate-call").expect("an id").to_owned();

    let spans = wait_for_spans(&collector, 3).await;
    let [call, failed, served] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!((call.name.as_str(), call.kind), ("chat support", SpanKind::Server as i32));
    assert_eq!(
        (hex(&call.trace_id), call.parent_span_id.len()),
        (id.clone(), 0),
        "a trace of its own has the call's id"
    );
    assert!([failed, served].iter().all(|span| span.parent_span_id == call.span_id && span.trace_id == call.trace_id));
    assert!(call.start_time_unix_nano <= failed.start_time_unix_nano);
    assert!(failed.end_time_unix_nano <= served.start_time_unix_nano);
    assert!(served.end_time_unix_nano <= call.end_time_unix_nano);

    let said = attributes(&call.attributes);
    for (name, value) in [
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.provider.name", "second"),
        ("gen_ai.request.model", "support"),
        ("gen_ai.response.model", "n"),
        ("gen_ai.request.stream", "true"),
        ("http.response.status_code", "200"),
        ("tollgate.call.id", id.as_str()),
        ("tollgate.key", "dev"),
        ("tollgate.team", "red"),
        ("tollgate.outcome", "ok"),
    ] {
        assert_eq!(said.get(name).map(String::as_str), Some(value), "{name}: {said:?}");
    }
    assert_eq!(said["gen_ai.usage.input_tokens"], USAGE.0.to_string());
    assert_eq!(said["gen_ai.usage.output_tokens"], USAGE.1.to_string());
    let cost = (USAGE.0 + 2 * USAGE.1) as f64 / 1e6;
    assert!((said["tollgate.cost.usd"].parse::<f64>().unwrap() - cost).abs() < 1e-12, "{said:?}");
    assert!(said["gen_ai.response.time_to_first_chunk"].parse::<f64>().unwrap() > 0.0);

    let (failure, success) = (attributes(&failed.attributes), attributes(&served.attributes));
    assert_eq!(
        (failed.name.as_str(), failed.kind, failure["error.type"].as_str()),
        ("chat m", SpanKind::Client as i32, "503")
    );
    assert!(failed.status.is_some() && served.status.is_none() && call.status.is_none());
    assert_eq!((success["gen_ai.provider.name"].as_str(), success["tollgate.attempt"].as_str()), ("second", "2"));

    let sent = collector.requests().into_iter().find(is_traces).expect("looked at above");
    assert_eq!(sent.header("content-type"), Some("application/x-protobuf"));
    assert_eq!(sent.header("x-collector-key"), Some("ck-CANARY"));
    assert!(!String::from_utf8_lossy(&sent.body).contains("CANARY"), "neither users nor sessions are in traces");
    assert!(!gateway.log_text().contains("CANARY"));
}

#[tokio::test]
async fn a_clients_trace_goes_on_through_the_gateway_to_the_provider() {
    let (upstream, collector) = (Upstream::run().await, collector().await);
    let gateway = traced(&upstream, &collector, "").run().await;

    gateway.hello("upstream/m").header("traceparent", PARENT).header("tracestate", "vendor=x").send().await.expect(200);

    let spans = wait_for_spans(&collector, 2).await;
    assert_eq!(hex(&spans[0].trace_id), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(hex(&spans[0].parent_span_id), "b7ad6b7169203331");
    let request = upstream.next_request().await;
    let expected = format!("00-0af7651916cd43dd8448eb211c80319c-{}-01", hex(&spans[1].span_id));
    assert_eq!(
        (request.header("traceparent"), request.header("tracestate")),
        (Some(expected.as_str()), Some("vendor=x"))
    );
}

#[tokio::test]
async fn without_a_collector_a_clients_trace_passes_unchanged_and_none_is_begun() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::before(&upstream).run().await;

    gateway.hello("upstream/m").header("traceparent", PARENT).send().await.expect(200);
    gateway.hello("upstream/m").send().await.expect(200);

    assert_eq!(upstream.next_request().await.header("traceparent"), Some(PARENT));
    assert_eq!(upstream.next_request().await.header("traceparent"), None);
}

#[tokio::test]
async fn what_its_client_does_not_trace_is_not_traced() {
    let (upstream, collector) = (Upstream::run().await, collector().await);
    let gateway = traced(&upstream, &collector, ", sample: 0%").run().await;

    gateway.hello("upstream/m").header("traceparent", UNSAMPLED).send().await.expect(200);
    gateway.hello("upstream/m").send().await.expect(200);
    gateway.hello("upstream/m").header("traceparent", PARENT).send().await.expect(200);

    let spans = wait_for_spans(&collector, 2).await;
    assert_eq!((spans.len(), hex(&spans[0].parent_span_id).as_str()), (2, "b7ad6b7169203331"));
    let flags: Vec<_> =
        upstream.requests().iter().map(|request| request.header("traceparent").unwrap()[53..].to_owned()).collect();
    assert_eq!(flags, ["00", "00", "01"]);
}

#[tokio::test]
async fn older_editions_have_their_own_names() {
    let (upstream, collector) = (Upstream::run().await, collector().await);
    let gateway = traced(&upstream, &collector, ", semconv: \"1.36\"").run().await;

    gateway.hello("upstream/m").send().await.expect(200);

    let spans = wait_for_spans(&collector, 2).await;
    let said = attributes(&spans[0].attributes);
    assert_eq!(said["gen_ai.system"], "upstream");
    assert!(!said.contains_key("gen_ai.provider.name") && !said.contains_key("gen_ai.request.stream"), "{said:?}");
}

#[tokio::test]
async fn what_was_said_is_told_where_it_is_asked_for_redacted_and_cut() {
    let (upstream, collector) = (Upstream::run().await, collector().await);
    let gateway =
        traced(&upstream, &collector, ", content: on").top("calls", "{ bodies: full, body_max: 1KiB }").run().await;
    let long = format!("mail sk-0123456789abcdefghij {}", "x".repeat(4096));
    let body = json!({"model": "upstream/m", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": long}]});

    gateway.chat(&body).send().await.expect(200);
    gateway.hello_stream("upstream/m").send().await.expect(200);

    let spans = wait_for_spans(&collector, 4).await;
    let said: Vec<_> = spans.iter().map(|span| attributes(&span.attributes)).collect();
    let told = |said: &BTreeMap<&str, String>, name: &str| -> serde_json::Value {
        serde_json::from_str(&said[name]).expect("a JSON text")
    };
    let input = told(&said[0], "gen_ai.input.messages");
    assert_eq!(input[0], json!({"role": "system", "parts": [{"type": "text", "content": "Be brief."}]}));
    let text = input[1]["parts"][0]["content"].as_str().expect("a text");
    assert!(text.starts_with("mail [redacted") && text.len() < 1100, "{text}");
    assert_eq!(told(&said[0], "gen_ai.output.messages")[0]["finish_reason"], "stop");
    for at in [0, 2] {
        let output = told(&said[at], "gen_ai.output.messages");
        assert_eq!(output[0]["role"], "assistant", "{output}");
        assert!(output[0]["parts"][0]["content"].as_str().is_some_and(|text| !text.is_empty()), "{output}");
    }
    assert!(said[1].keys().chain(said[3].keys()).all(|name| !name.contains("messages")), "only the call's own span");
    let sent = collector.requests().into_iter().filter(is_traces);
    assert!(sent.into_iter().all(|request| !String::from_utf8_lossy(&request.body).contains("sk-0123456789")));
}

#[tokio::test]
async fn what_was_said_is_not_told_unless_asked_for_and_by_events_before_1_37() {
    let (upstream, quiet, talking) = (Upstream::run().await, collector().await, collector().await);
    let off = traced(&upstream, &quiet, "").top("calls", "{ bodies: full }").run().await;
    let old =
        traced(&upstream, &talking, ", content: on, semconv: \"1.36\"").top("calls", "{ bodies: full }").run().await;

    off.hello("upstream/m").send().await.expect(200);
    old.hello("upstream/m").send().await.expect(200);

    let spans = wait_for_spans(&quiet, 2).await;
    assert!(spans.iter().all(|span| span.events.is_empty()));
    assert!(!attributes(&spans[0].attributes).keys().any(|name| name.contains("messages")));
    let spans = wait_for_spans(&talking, 2).await;
    let names: Vec<&str> = spans[0].events.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(names, ["gen_ai.user.message", "gen_ai.choice"]);
    let choice = attributes(&spans[0].events[1].attributes);
    assert_eq!((choice["gen_ai.system"].as_str(), choice["finish_reason"].as_str()), ("upstream", "stop"));
    assert!(choice["message"].contains("assistant"), "{choice:?}");
}

#[tokio::test]
async fn metrics_are_the_conventions_and_add_up() {
    let (upstream, collector) = (Upstream::run().await, collector().await);
    let gateway = traced(&upstream, &collector, "").run().await;

    for _ in 0..3 {
        gateway.hello("upstream/m").send().await.expect(200);
    }

    let points = |name: &str| {
        let requests = collector.requests();
        let mut reports = requests.iter().filter(|request| request.path() == "/otlp/v1/metrics");
        let report = reports.next_back().map(|last| ExportMetricsServiceRequest::decode(&last.body[..]).expect("OTLP"));
        let resources = report.into_iter().flat_map(|report| report.resource_metrics);
        let metrics = resources.flat_map(|resource| resource.scope_metrics).flat_map(|scope| scope.metrics);
        let mut named = metrics.filter(|metric| metric.name == name);
        match named.next().and_then(|metric| metric.data) {
            Some(Data::Histogram(histogram)) => histogram.data_points,
            _ => Vec::new(),
        }
    };
    let tokens = eventually(
        "three calls are reported",
        DEADLINE,
        || async { points("gen_ai.client.token.usage") },
        |points| points.iter().all(|point| point.count == 3) && points.len() == 2,
    )
    .await;
    let sums: BTreeMap<String, f64> = tokens
        .iter()
        .map(|point| (attributes(&point.attributes)["gen_ai.token.type"].clone(), point.sum.unwrap()))
        .collect();
    assert_eq!(sums["input"], (3 * USAGE.0) as f64);
    assert_eq!(sums["output"], (3 * USAGE.1) as f64);
    assert_eq!(points("gen_ai.client.operation.duration")[0].count, 3);
}

#[tokio::test]
async fn a_collector_that_is_busy_gets_it_later_and_one_that_refuses_does_not() {
    let (upstream, collector) = (Upstream::run().await, collector().await);
    collector.script(Reply::bytes(503, "text/plain", "").header("retry-after", "0"));
    let gateway = traced(&upstream, &collector, ", metrics: off").run().await;

    gateway.hello("upstream/m").send().await.expect(200);
    wait_until("it is sent again", DEADLINE, || collector.request_count() == 2).await;
    let requests = collector.requests();
    assert_eq!(requests[0].body, requests[1].body);

    collector.script(Reply::bytes(500, "text/plain", ""));
    gateway.hello("upstream/m").send().await.expect(200);
    let counted = |result| [("signal", "traces"), ("result", result)];
    let metrics = eventually(
        "the refusal is counted",
        DEADLINE,
        || gateway.metrics(),
        |metrics| metrics.value("tollgate_otlp_total", &counted("failed")) == 1.0,
    )
    .await;
    assert_eq!(metrics.value("tollgate_otlp_total", &counted("sent")), 1.0);
    assert_eq!(collector.request_count(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_hangs_delays_neither_calls_nor_the_end() {
    let upstream = Upstream::answering(|request| match request.json()["max_tokens"].as_u64() {
        Some(_) => Reply::json(200, &chat_completion("x", (1, 1))),
        None => openai(request),
    })
    .await;
    let collector = Upstream::always(Reply::hang()).await;
    let mut gateway = traced(&upstream, &collector, "").run().await;

    let began = Instant::now();
    for _ in 0..100 {
        gateway.hello("upstream/m").send().await.expect(200);
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    collector.next_request().await;
    let stopped = Instant::now();
    gateway.signal("TERM");
    assert!(gateway.exit(Duration::from_secs(8)).await.success());
    assert!(stopped.elapsed() < Duration::from_secs(6), "{:?}", stopped.elapsed());
}

#[tokio::test]
async fn what_was_under_way_is_sent_before_the_process_ends() {
    let (upstream, collector) = (Upstream::run().await, collector().await);
    let mut gateway = traced(&upstream, &collector, "").run().await;

    gateway
        .post("/v1/chat/completions")
        .key(KEY)
        .json(&json!({"model": "upstream/m", "messages": []}))
        .send()
        .await
        .expect(200);
    gateway.signal("TERM");
    assert!(gateway.exit(Duration::from_secs(8)).await.success());

    assert_eq!(spans(&collector).len(), 2);
    assert!(collector.requests().iter().any(|request| request.path() == "/otlp/v1/metrics"));
}
