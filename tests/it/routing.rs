//! Attempts: fallbacks before the first byte, none after it, none where the provider may have worked already;
//! what the provider says passes unchanged.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{
    Gateway, KEY, Reply, Upstream, closed_port, events, eventually,
    gateway::Setup,
    upstream::{chunk, openai},
};

fn error(code: &str) -> Value {
    json!({"error": {"message": "as the provider says it", "type": "server_error", "param": null, "code": code}, "vendor": [1.0]})
}

fn two(first: &str, second: &Upstream, routing: &str) -> Setup {
    Gateway::bare()
        .provider_at("first", first)
        .provider_at("second", &second.url())
        .top("routing", routing)
        .model("support", "target: first/m, fallbacks: [ second/n ]")
        .key("dev", KEY, "")
}

#[tokio::test]
async fn a_provider_that_fails_before_its_first_byte_is_replaced_by_the_fallback() {
    let spare = Upstream::run().await;
    let broken = Upstream::always(Reply::json(503, &error("overloaded"))).await;
    for first in [broken.url(), closed_port().await] {
        let gateway = two(&first, &spare, "{ attempts: 2, eject: off }").run().await;

        let response = gateway.hello("support").send().await.expect(200);

        assert_eq!(response.header("x-tollgate-model"), Some("second/n"));
        assert_eq!(response.header("x-tollgate-attempts"), Some("2"));
        assert_eq!(spare.next_request().await.json()["model"], "n");
        let record = gateway.next_record().await;
        assert_eq!((record.text("provider"), record.number("attempts"), record.text("outcome")), ("second", 2, "ok"));
        let metrics = gateway.metrics().await;
        assert_eq!(
            metrics.value("tollgate_upstream_attempts_total", &[("provider", "first")]),
            1.0,
            "{}",
            metrics.text
        );
        assert_eq!(metrics.value("tollgate_upstream_attempts_total", &[("provider", "second")]), 1.0);
    }
}

#[tokio::test]
async fn nothing_is_retried_after_the_first_byte() {
    let spare = Upstream::run().await;
    let broken = Upstream::always(Reply::stream().data(chunk("one")).cut()).await;
    let gateway = two(&broken.url(), &spare, "{ attempts: 3, eject: off }").run().await;

    let response = gateway.hello_stream("support").send().await;

    assert!(events(&response.body).last().is_some_and(|last| last.contains("\"error\"")), "{}", response.text());
    assert_eq!((broken.request_count(), spare.request_count()), (1, 0));
}

#[tokio::test]
async fn a_call_that_the_provider_took_and_dropped_is_not_repeated_at_it() {
    let upstream = Upstream::always(Reply::raw("").cut()).await;
    let gateway = Gateway::before(&upstream).top("routing", "{ attempts: 3, eject: off }").run().await;

    let response = gateway.hello("upstream/m").send().await;

    assert_eq!(response.expect(502).error_code(), "upstream_unreachable");
    assert_eq!(upstream.request_count(), 1, "a POST that may have been worked on");
}

#[tokio::test]
async fn attempts_never_exceed_the_setting() {
    for attempts in 1..=3 {
        let broken = Upstream::always(Reply::json(503, &error("overloaded")).header("retry-after", "0")).await;
        let routing = format!("{{ attempts: {attempts}, eject: off, retry_budget: 100% }}");
        let gateway = Gateway::before(&broken).top("routing", &routing).run().await;

        gateway.hello("upstream/m").send().await.expect(503);

        assert!((1..=attempts).contains(&broken.request_count()), "{} of {attempts}", broken.request_count());
    }
}

#[tokio::test]
async fn no_retry_comes_before_the_provider_allows_it() {
    let upstream = Upstream::run().await;
    upstream.script(Reply::json(429, &error("rate_limit_exceeded")).header("retry-after", "1"));
    let gateway =
        Gateway::before(&upstream).top("routing", "{ attempts: 2, eject: off, retry_budget: 100% }").run().await;

    let response = gateway.hello("upstream/m").send().await;

    let requests = upstream.requests();
    assert!(
        matches!((response.status, requests.len()), (200, 2) | (429, 1)),
        "{} after {}",
        response.status,
        requests.len()
    );
    if requests.len() == 2 {
        let waited = requests[1].at - requests[0].at;
        assert!(waited >= Duration::from_millis(950), "retried after {waited:?}");
    } else {
        assert_eq!(response.header("retry-after"), Some("1"));
    }
}

#[tokio::test]
async fn retries_do_not_multiply_the_load_on_a_failing_provider() {
    let broken = Upstream::always(Reply::json(503, &error("overloaded")).header("retry-after", "0")).await;
    let gateway = Gateway::before(&broken).top("routing", "{ attempts: 3, eject: off, retry_budget: 20% }").run().await;
    const CALLS: usize = 200;

    let begun = Instant::now();
    for _ in 0..CALLS {
        gateway.hello("upstream/m").send().await.expect(503);
    }

    // A fifth of the calls, and at least three retries a second, may be tried again.
    let allowed = CALLS + CALLS / 5 + 3 * (begun.elapsed().as_secs() as usize + 2);
    assert!(
        broken.request_count() <= allowed,
        "{} attempts for {CALLS} calls, {allowed} allowed",
        broken.request_count()
    );
}

#[tokio::test]
async fn what_the_provider_refuses_passes_unchanged() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::transparent(&upstream).run().await;

    for status in [400, 401, 402, 403, 404, 408, 409, 413, 415, 422, 429, 500, 501, 502, 503, 504, 529] {
        let body = format!("{{ \"error\" : {{\"message\":\"{status}\", \"code\":null}},\"n\":1.0 }}\n");
        upstream.script(
            Reply::bytes(status, "application/problem+json", &*body)
                .header("retry-after", "7")
                .header("x-request-id", "req_1"),
        );

        let response = gateway.hello("gpt-4o-mini").send().await.expect(status);

        assert_eq!(response.text(), body, "{status}");
        assert_eq!(response.header("content-type"), Some("application/problem+json"));
        assert_eq!(response.header("retry-after"), Some("7"));
        assert_eq!(response.header("x-request-id"), Some("req_1"));
    }
    assert_eq!(upstream.request_count(), 17, "one attempt each");
}

#[tokio::test]
async fn a_provider_that_says_nothing_is_a_504_at_its_timeout() {
    let upstream = Upstream::always(Reply::hang()).await;
    let gateway = Gateway::before(&upstream)
        .top("routing", "{ attempts: 1, eject: off, timeouts: { first_byte: 400ms } }")
        .run()
        .await;

    let begun = Instant::now();
    let response = gateway.hello("upstream/m").send().await.expect(504);
    let waited = begun.elapsed();

    assert_eq!(response.error_code(), "upstream_timeout");
    assert!(waited >= Duration::from_millis(400) && waited < Duration::from_millis(1500), "{waited:?}");
    upstream.wait_for_aborts(1, Duration::from_secs(2)).await;
}

#[tokio::test]
async fn a_clients_own_timeout_is_kept() {
    let upstream = Upstream::always(Reply::hang()).await;
    let gateway = Gateway::before(&upstream).run().await;

    let begun = Instant::now();
    gateway.hello("upstream/m").header("x-tollgate-timeout", "300ms").send().await.expect(504);

    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_client_can_forbid_retries() {
    let spare = Upstream::run().await;
    let broken = Upstream::always(Reply::json(503, &error("overloaded"))).await;
    let gateway = two(&broken.url(), &spare, "{ attempts: 3, eject: off }").run().await;

    gateway.hello("support").header("x-tollgate-retries", "0").send().await.expect(503);

    assert_eq!((broken.request_count(), spare.request_count()), (1, 0));
}

#[tokio::test]
async fn redirects_are_not_followed_with_the_providers_key() {
    let thief = Upstream::run().await;
    let location = format!("{}/v1/chat/completions", thief.url());
    let upstream = Upstream::always(Reply::json(302, &json!({})).header("location", &location)).await;
    let gateway = Gateway::transparent(&upstream).run().await;

    let response = gateway.hello("gpt-4o-mini").send().await;

    assert!(matches!(response.status, 302 | 502), "{}", response.status);
    assert_eq!(thief.request_count(), 0);
}

#[tokio::test]
async fn weights_share_calls_between_targets() {
    let (first, second) = (Upstream::run().await, Upstream::run().await);
    let gateway = Gateway::bare()
        .provider_at("first", &first.url())
        .provider_at("second", &second.url())
        .model("support", "targets: [ { use: first/m, weight: 80 }, { use: second/m, weight: 20 } ]")
        .key("dev", KEY, "")
        .run()
        .await;

    for number in 0..200 {
        gateway.hello("support").user(&number.to_string()).send().await.expect(200);
    }

    // 160 expected, four standard deviations of 5.7 either side.
    assert!((137..=183).contains(&first.request_count()), "{} of 200", first.request_count());
    assert_eq!(first.request_count() + second.request_count(), 200);
}

#[tokio::test]
async fn a_failing_provider_is_taken_out_and_comes_back() {
    let broken = Upstream::answering(openai).await;
    for _ in 0..8 {
        broken.script(Reply::json(500, &error("internal")));
    }
    let spare = Upstream::run().await;
    let gateway =
        two(&broken.url(), &spare, "{ attempts: 2, retry_budget: 100%, eject: { after: 5, for: 500ms } }").run().await;

    for _ in 0..20 {
        gateway.hello("support").send().await;
    }
    let asked = broken.request_count();
    assert!(asked <= 8, "{asked} of 20 calls went to a provider that failed five times");
    let metrics = gateway.metrics().await;
    assert!(metrics.value("tollgate_circuit_state", &[("provider", "first")]) > 0.0, "{}", metrics.text);

    eventually(
        "it is asked again and serves",
        Duration::from_secs(10),
        || gateway.hello("support").send_owned(),
        |response| response.header("x-tollgate-model") == Some("first/m"),
    )
    .await;
}

#[tokio::test]
async fn parameters_of_a_version_are_defaults_unless_forced() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::before(&upstream)
        .model("soft", "target: upstream/m, parameters: { temperature: 0.2, top_p: 0.9 }")
        .model("hard", "target: upstream/m, force: { temperature: 0.2 }")
        .run()
        .await;

    for (model, expected) in [("soft", json!(1.5)), ("hard", json!(0.2))] {
        let body = json!({"model": model, "temperature": 1.5, "messages": [{"role": "user", "content": "hi"}]});
        gateway.chat(&body).send().await.expect(200);

        let heard = upstream.next_request().await.json();
        assert_eq!(heard["temperature"], expected, "{model}");
        assert_eq!(heard.get("top_p"), (model == "soft").then_some(&json!(0.9)));
    }
}
