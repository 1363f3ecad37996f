//! Metrics: the contract's names, labels from closed sets only, and counts that add up.

use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use serde_json::json;

use crate::support::{
    DEADLINE, Gateway, KEY, Reply, Upstream, eventually,
    metrics::Metrics,
    rounds,
    upstream::{DONE, USAGE, chunk, usage_chunk},
    wait_until,
};

/// Every metric of the contract.
const CONTRACT: [&str; 17] = [
    "tollgate_requests_total",
    "tollgate_request_duration_seconds",
    "tollgate_time_to_first_token_seconds",
    "tollgate_time_per_output_token_seconds",
    "tollgate_overhead_seconds",
    "tollgate_tokens_total",
    "tollgate_cost_usd_total",
    "tollgate_budget_spent_ratio",
    "tollgate_refusals_total",
    "tollgate_experiment_calls_total",
    "tollgate_upstream_attempts_total",
    "tollgate_circuit_state",
    "tollgate_store_up",
    "tollgate_records_dropped_total",
    "tollgate_config_reloads_total",
    "tollgate_config_info",
    "tollgate_in_flight",
];

#[tokio::test]
async fn every_name_of_the_contract_is_there() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::before(&upstream)
        .model("support", "target: upstream/m")
        .experiment("tone", "model: support, unit: user, variants: { only: { weight: 1 } }")
        .price("upstream/m", "input: 1 USD/1M, output: 1 USD/1M, max_output: 100")
        .top("routing", "{ attempts: 1 }")
        .budget("name: all, scope: { team: red }, limit: 1 USD, per: month")
        .limit("name: all, scope: { team: red }, requests: 2/min")
        .run()
        .await;

    gateway.hello_stream("support").send().await.expect(200);
    gateway.hello("support").send().await.expect(200);
    while gateway.hello("support").send().await.status != 429 {
        assert!(upstream.request_count() < 10, "the limit never bites");
    }
    gateway.replace_config("nonsense: 1\n");

    let metrics = eventually(
        "the reload is counted",
        DEADLINE,
        || gateway.metrics(),
        |metrics| metrics.value("tollgate_config_reloads_total", &[]) > 0.0,
    )
    .await;
    let missing: Vec<_> = CONTRACT.into_iter().filter(|name| !metrics.names(name)).collect();
    assert!(missing.is_empty(), "{missing:?} are missing from\n{}", metrics.text);
    assert_eq!(metrics.value("tollgate_store_up", &[]), 1.0);
    assert_eq!(metrics.value("tollgate_records_dropped_total", &[]), 0.0);
    for name in CONTRACT {
        assert!(metrics.text.contains(&format!("# TYPE {name} ")), "{name} has a type");
    }
}

#[tokio::test]
async fn requests_carry_the_contracts_labels() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::before(&upstream).run().await;

    gateway.hello("upstream/m").send().await.expect(200);
    gateway.next_record().await;

    let metrics = gateway.metrics().await;
    let mut labels: Vec<_> = metrics
        .series("tollgate_requests_total")
        .next()
        .expect("a series")
        .labels
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    labels.sort_unstable();
    assert_eq!(labels, ["endpoint", "model", "outcome", "provider", "status"]);
    assert_eq!(
        metrics.value("tollgate_requests_total", &[("status", "200"), ("provider", "upstream"), ("outcome", "ok")]),
        1.0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_invented_models_and_users_make_no_series() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::before(&upstream)
        .budget("name: each-user, scope: { user: \"*\" }, limit: 1 USD, per: day")
        .run()
        .await;

    let calls: Vec<_> = (0..rounds(1000, 10_000)).map(|number| {
        let body = json!({"model": format!("upstream/invented-{}", number % 1000), "user": format!("invented-user-{number}"), "messages": [{"role": "user", "content": "hi"}]});
        let path = if number % 10 == 0 { format!("/v1/invented/{number}") } else { "/v1/chat/completions".to_owned() };
        gateway.post(&path).key(KEY).header("x-tollgate-tags", &format!("invented-{number}=1")).json(&body)
    }).collect();
    stream::iter(calls).map(|call| async move { call.send().await }).buffer_unordered(16).for_each(|_| async {}).await;
    for number in 0..100 {
        gateway.get("/v1/models").key(&format!("invented-key-{number}")).send().await.expect(401);
        gateway.post(&format!("/invented-{number}")).key(KEY).json(&json!({})).send().await.expect(404);
    }

    let mut quickest = Duration::MAX;
    for _ in 0..10 {
        let begun = Instant::now();
        gateway.admin_get("/metrics").await.expect(200);
        quickest = quickest.min(begun.elapsed());
    }
    assert!(quickest < Duration::from_millis(50), "a scrape takes {quickest:?}");
    let metrics = gateway.metrics().await;
    assert!(metrics.series_count() <= 500, "{} series", metrics.series_count());
    assert!(!metrics.text.contains("invented"), "a client's invention is a label:\n{}", metrics.text);
    assert!(metrics.value("tollgate_requests_total", &[("model", "other")]) > 0.0, "{}", metrics.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_hundred_streams_the_ten_that_break_are_the_ten_that_are_counted() {
    let upstream = Upstream::answering(|request| {
        let reply = Reply::stream().data(chunk("one")).data(chunk("two"));
        if request.json()["seed"].as_u64().expect("sent below") % 10 == 3 {
            reply.cut()
        } else {
            reply.data(usage_chunk(USAGE)).data(DONE)
        }
    })
    .await;
    let gateway = Gateway::everything(&upstream).run().await;

    let calls: Vec<_> = (0..100).map(|number| {
        gateway.chat(&json!({"model": "upstream/gpt-4o-mini", "stream": true, "seed": number, "messages": [{"role": "user", "content": "hi"}]}))
    }).collect();
    stream::iter(calls).map(|call| async move { call.send().await }).buffer_unordered(8).for_each(|_| async {}).await;
    gateway.wait_for_records(100).await;

    let metrics = gateway.metrics().await;
    let outcome = |outcome: &str| metrics.value("tollgate_requests_total", &[("outcome", outcome)]);
    assert_eq!((outcome("ok"), outcome("cut")), (90.0, 10.0), "{}", metrics.text);
    assert_eq!(metrics.value("tollgate_time_to_first_token_seconds_count", &[]), 100.0);
    let statuses: Vec<_> = gateway.records().iter().map(|record| record.text("outcome").to_owned()).collect();
    assert_eq!(statuses.iter().filter(|outcome| *outcome == "cut").count(), 10);
    assert!(metrics.value("tollgate_tokens_total", &[("direction", "output")]) >= 90.0 * USAGE.1 as f64);
}

#[tokio::test]
async fn every_log_line_is_one_json_object_whatever_a_client_sends() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::before(&upstream).run().await;

    for name in ["a\\n{\\\"level\\\":\\\"ERROR\\\"}", "\\u001b[31mred", "\\u0000", "\\u2028"] {
        let body = format!(
            "{{\"model\":\"upstream/{name}\",\"user\":\"{name}\",\"messages\":[{{\"role\":\"user\",\"content\":\"hi\"}}]}}"
        );
        gateway.post("/v1/chat/completions").key(KEY).body("application/json", body).send().await;
    }
    gateway.hello("upstream/m").send().await.expect(200);
    wait_until("the last call is logged", DEADLINE, || {
        gateway.records().iter().any(|record| record.text("outcome") == "ok")
    })
    .await;

    for line in gateway.log_text().lines() {
        let parsed: Result<serde_json::Value, _> = serde_json::from_str(line);
        assert!(parsed.is_ok_and(|line| line.is_object()), "not one JSON object: {line:?}");
        assert!(!line.contains('\u{1b}'), "{line:?}");
    }
}

/// How often a provider was tried: `ok`, `error`, `timeout`, `unreachable`, `abandoned`.
fn attempts(metrics: &Metrics, provider: &str) -> [f64; 5] {
    ["ok", "error", "timeout", "unreachable", "abandoned"]
        .map(|result| metrics.value("tollgate_upstream_attempts_total", &[("provider", provider), ("result", result)]))
}

#[tokio::test]
async fn an_attempt_that_was_given_up_before_its_head_is_counted_once_when_its_call_ends() {
    let (busy, silent) = (Upstream::always(Reply::bodyless(503)).await, Upstream::always(Reply::hang()).await);
    let gateway = Gateway::bare()
        .provider_at("busy", &busy.url())
        .provider_at("silent", &silent.url())
        .top("routing", "{ attempts: 2, retry_budget: 100%, eject: off }")
        .model("m", "target: busy/m, fallbacks: [ silent/m ]")
        .key("dev", KEY, "")
        .run()
        .await;

    let call = tokio::spawn(gateway.hello("m").send_owned());
    silent.next_request().await;
    let meanwhile = gateway.metrics().await;
    assert_eq!((attempts(&meanwhile, "busy"), attempts(&meanwhile, "silent")), ([0.0; 5], [0.0; 5]));
    call.abort();
    let record = gateway.next_record().await;

    assert_eq!((record.text("outcome"), record.number("attempts")), ("abandoned", 2));
    let metrics = gateway.metrics().await;
    assert_eq!(attempts(&metrics, "busy"), [0.0, 1.0, 0.0, 0.0, 0.0], "{}", metrics.text);
    assert_eq!(attempts(&metrics, "silent"), [0.0, 0.0, 0.0, 0.0, 1.0], "{}", metrics.text);
}

#[tokio::test]
async fn an_attempt_that_was_given_up_for_a_fallback_is_counted_beside_it() {
    let (silent, spare) = (Upstream::always(Reply::hang()).await, Upstream::run().await);
    let gateway = Gateway::bare()
        .provider_at("silent", &silent.url())
        .provider_at("spare", &spare.url())
        .top("routing", "{ attempts: 2, retry_budget: 100%, eject: off, timeouts: { first_byte: 1s } }")
        .model("m", "target: silent/m, fallbacks: [ spare/m ]")
        .key("dev", KEY, "")
        .run()
        .await;

    gateway.hello("m").send().await.expect(200);
    gateway.next_record().await;

    let metrics = gateway.metrics().await;
    assert_eq!(attempts(&metrics, "silent"), [0.0, 0.0, 1.0, 0.0, 0.0], "{}", metrics.text);
    assert_eq!(attempts(&metrics, "spare"), [1.0, 0.0, 0.0, 0.0, 0.0], "{}", metrics.text);
}
