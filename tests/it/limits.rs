//! Rate limits: refusals say how long to wait; concurrency is exact; tokens are corrected by what was used.

use futures_util::future::join_all;
use serde_json::json;

use crate::support::{
    DEADLINE, Gate, Gateway, KEY, Reply, Upstream, eventually,
    metrics::Metrics,
    upstream::{DONE, chat_completion, chunk},
};

const OTHER: &str = "tg-test-other-ffffffffffffffffffffffffffffffff";

#[tokio::test]
async fn requests_over_the_rate_are_refused_with_the_time_to_wait() {
    let upstream = Upstream::run().await;
    let gateway =
        Gateway::before(&upstream).limit(r#"name: each-key, scope: { key: "*" }, requests: 3/min"#).run().await;

    let mut refused = Vec::new();
    for _ in 0..20 {
        let response = gateway.hello("upstream/m").send().await;
        if response.status != 200 {
            refused.push(response.expect(429));
        }
    }

    // The promise over any 60 s: the limit times 1.05, plus one per replica.
    assert!((16..=17).contains(&refused.len()), "{} of 20 were refused", refused.len());
    assert_eq!(upstream.request_count(), 20 - refused.len());
    for response in &refused {
        assert_eq!(response.error_code(), "rate_limited");
        let wait: u64 = response.header("retry-after").expect("retry-after").parse().expect("whole seconds");
        assert!((1..=60).contains(&wait), "{wait}");
        assert_eq!(response.header("x-ratelimit-limit-requests"), Some("3"), "{:?}", response.headers);
        assert_eq!(response.header("x-ratelimit-remaining-requests"), Some("0"));
        assert!(response.header("x-ratelimit-reset-requests").is_some());
    }
    let counted = |metrics: &Metrics| metrics.value("tollgate_refusals_total", &[("reason", "rate_limited")]);
    let expected = refused.len() as f64;
    eventually("the refusals are counted", DEADLINE, || gateway.metrics(), |metrics| counted(metrics) == expected)
        .await;
}

#[tokio::test]
async fn each_key_has_a_rate_of_its_own() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::before(&upstream)
        .key("other", OTHER, "")
        .limit(r#"name: each-key, scope: { key: "*" }, requests: 1/min"#)
        .run()
        .await;
    let body = json!({"model": "upstream/m", "messages": [{"role": "user", "content": "hi"}]});

    gateway.hello("upstream/m").send().await.expect(200);
    while gateway.hello("upstream/m").send().await.status == 200 {
        assert!(upstream.request_count() < 5, "the limit never bites");
    }

    gateway.post("/v1/chat/completions").key(OTHER).json(&body).send().await.expect(200);
}

#[tokio::test]
async fn a_client_cannot_escape_its_rate_by_naming_another_user() {
    let upstream = Upstream::run().await;
    let gateway =
        Gateway::before(&upstream).limit(r#"name: each-key, scope: { key: "*" }, requests: 2/min"#).run().await;

    let mut refused = 0;
    for number in 0..10 {
        let response =
            gateway.hello("upstream/m").user(&number.to_string()).header("x-forwarded-for", "10.0.0.1").send().await;
        refused += usize::from(response.status == 429);
    }

    assert!((7..=8).contains(&refused), "{refused} of 10 were refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrency_is_exact_and_given_back() {
    let gate = Gate::closed();
    let upstream = Upstream::always(Reply::stream().data(chunk("x")).gate(&gate).data(DONE)).await;
    let gateway = Gateway::before(&upstream).limit(r#"name: each-key, scope: { key: "*" }, concurrent: 5"#).run().await;

    let calls: Vec<_> = (0..30).map(|_| gateway.hello_stream("upstream/m")).collect();
    let mut streams = join_all(calls.iter().map(|call| call.open())).await;
    let admitted = streams.iter().filter(|stream| stream.status == 200).count();
    assert_eq!(admitted, 5);
    assert_eq!(upstream.request_count(), 5);

    // Two end, two leave: four places are free again.
    streams.retain(|stream| stream.status == 200);
    streams.drain(..2).for_each(|stream| stream.hang_up());
    upstream.wait_for_aborts(2, DEADLINE).await;
    gate.open(3);
    for stream in streams {
        stream.finish().await;
    }
    let free = eventually(
        "a place is free",
        DEADLINE,
        || gateway.hello_stream("upstream/m").open_owned(),
        |stream| stream.status == 200,
    )
    .await;
    free.hang_up();
}

#[tokio::test]
async fn tokens_that_were_used_count_against_the_rate() {
    let upstream = Upstream::always(Reply::json(200, &chat_completion("x", (50, 5000)))).await;
    let gateway =
        Gateway::before(&upstream).limit(r#"name: each-key, scope: { key: "*" }, tokens: 1000/min"#).run().await;
    let call = gateway
        .chat(&json!({"model": "upstream/m", "max_tokens": 10, "messages": [{"role": "user", "content": "hi"}]}));

    call.send().await.expect(200);
    gateway.next_record().await;

    let refused = call.send().await.expect(429);
    assert_eq!(refused.error_code(), "rate_limited");
    assert!(refused.header("retry-after").is_some());
    assert_eq!(refused.header("x-ratelimit-limit-tokens"), Some("1000"), "{:?}", refused.headers);
}

#[tokio::test]
async fn a_refusal_on_messages_has_anthropics_shape() {
    let upstream = Upstream::run().await;
    let gateway =
        Gateway::before(&upstream).limit(r#"name: each-key, scope: { key: "*" }, requests: 1/min"#).run().await;
    let body = json!({"model": "upstream/m", "max_tokens": 10, "messages": [{"role": "user", "content": "hi"}]});

    let mut last = gateway.post("/v1/messages").header("x-api-key", KEY).json(&body).send().await;
    for _ in 0..3 {
        last = gateway.post("/v1/messages").header("x-api-key", KEY).json(&body).send().await;
    }

    let error = last.expect(429).json();
    assert_eq!((&error["type"], &error["error"]["type"]), (&json!("error"), &json!("rate_limit_error")));
}
