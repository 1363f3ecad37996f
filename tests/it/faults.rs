//! What one client or one provider must not be able to do to others, whatever it sends.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    DEADLINE, Gateway, KEY, RawClient, Reply, Upstream, eventually,
    upstream::{chat_completion, openai},
};

#[tokio::test]
async fn a_client_in_a_hurry_takes_no_provider_out_of_rotation() {
    let upstream = Upstream::always(Reply::hang()).await;
    let routing = "{ attempts: 1, eject: { after: 1, for: 60s } }";
    let gateway = Gateway::before(&upstream).top("routing", routing).run().await;

    for _ in 0..3 {
        let call = gateway.hello("m").header("x-tollgate-timeout", "50ms");
        assert_eq!(call.send().await.expect(504).error_code(), "upstream_timeout");
    }

    let metrics = gateway.metrics().await;
    assert_eq!(metrics.value("tollgate_circuit_state", &[("provider", "upstream")]), 0.0, "{}", metrics.text);
}

#[tokio::test]
async fn a_switch_of_protocols_that_nobody_asked_for_is_a_fault_of_the_provider() {
    let switch =
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: other\r\n\r\nGET / HTTP/1.1\r\n\r\n";
    let upstream = Upstream::always(Reply::raw(switch)).await;
    let gateway = Gateway::before(&upstream).run().await;

    let response = gateway.hello("m").send().await;

    assert_eq!(response.expect(502).error_code(), "upstream_unreachable");
}

#[tokio::test]
async fn an_endless_name_of_a_model_is_refused_and_not_repeated() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::before(&upstream).run().await;

    let name = "m".repeat(1 << 20);
    let response = gateway.hello(&name).send().await.expect(400);

    assert_eq!(response.json()["error"]["param"], "model");
    assert!(response.body.len() < 1000);
    assert_eq!(upstream.request_count(), 0);
}

#[tokio::test]
async fn each_attempt_is_counted_once() {
    let upstream = Upstream::run().await;
    let gateway =
        Gateway::before(&upstream).top("routing", "{ attempts: 2, retry_budget: 100%, eject: off }").run().await;
    for status in [500, 400, 429] {
        upstream.script(Reply::json(status, &json!({})).header("retry-after", "0"));
        gateway.hello("m").send().await;
        gateway.next_record().await;
    }

    let metrics = gateway.metrics().await;
    let counted = |result: &str| {
        metrics.value("tollgate_upstream_attempts_total", &[("provider", "upstream"), ("result", result)])
    };
    assert_eq!((upstream.request_count(), counted("error"), counted("ok")), (4, 3.0, 1.0), "{}", metrics.text);
}

#[tokio::test]
async fn a_call_that_names_no_model_goes_on_as_it_is() {
    let upstream = Upstream::always(Reply::json(200, &chat_completion("x", (1, 1)))).await;
    let gateway = Gateway::before(&upstream).run().await;

    let body = json!({"messages": [{"role": "user", "content": "hi"}]});
    gateway.chat(&body).send().await.expect(200);

    assert_eq!(upstream.next_request().await.json(), body);
}

#[tokio::test]
async fn an_upload_may_take_longer_than_a_provider_may_think() {
    let upstream = Upstream::answering(openai).await;
    let routing = "{ attempts: 1, eject: off, timeouts: { first_byte: 300ms } }";
    let gateway = Gateway::before(&upstream).top("routing", routing).run().await;
    let mut client = RawClient::connect(gateway.listen).await;

    let head =
        format!("POST /v1/files HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {KEY}\r\ncontent-length: 6\r\n\r\n");
    client.send(head).await;
    for piece in ["ab", "cd", "ef"] {
        // The subject of this test is how long an upload takes.
        tokio::time::sleep(Duration::from_millis(200)).await;
        client.send(piece).await;
    }

    assert_ne!(client.response_to("POST").await.expect("a response").status, 504);
    assert_eq!(upstream.next_request().await.body, b"abcdef");
}

#[tokio::test]
async fn a_tunnel_is_in_flight_until_it_ends_and_holds_no_money() {
    let upstream = Upstream::always(Reply::upgrade_echo()).await;
    let mut gateway = Gateway::before(&upstream)
        .budget("name: all, scope: { team: red }, limit: 1 USD, per: month, mode: warn")
        .run()
        .await;
    let mut client = RawClient::connect(gateway.listen).await;
    client.send(format!(
        "GET /v1/realtime HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {KEY}\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )).await;
    assert_eq!(client.any_head().await.expect("a response").0, 101);

    let in_flight = |wanted: f64| {
        move |metrics: &crate::support::metrics::Metrics| metrics.value("tollgate_in_flight", &[]) == wanted
    };
    eventually("it is in flight", DEADLINE, || gateway.metrics(), in_flight(1.0)).await;
    gateway.signal("TERM");
    tokio::time::sleep(Duration::from_millis(600)).await;
    client.send("still here").await;
    assert_eq!(client.exactly(10).await, b"still here");
    drop(client);

    assert!(gateway.exit(DEADLINE).await.success());
    assert!(!gateway.log_text().contains("without being settled"), "{}", gateway.log_text());
}

/// A body of `auth: none` in front of `upstream`.
async fn open_gateway(upstream: &Upstream) -> Gateway {
    Gateway::bare().upstream(upstream).top("default_provider", "upstream").top("auth", "none").run().await
}

#[tokio::test]
async fn where_nobody_is_asked_other_sites_in_a_browser_are_refused() {
    let upstream = Upstream::run().await;
    let gateway = open_gateway(&upstream).await;
    let body: Value = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    let chat = || gateway.post("/v1/chat/completions").json(&body);

    for origin in ["https://evil.example", "null", "http://127.0.0.1.evil.example"] {
        assert_eq!(chat().header("origin", origin).send().await.expect(403).error_code(), "forbidden", "{origin}");
    }
    for origin in ["http://localhost:3000", "http://127.0.0.1:8080", "http://[::1]"] {
        chat().header("origin", origin).send().await.expect(200);
    }
    chat().send().await.expect(200);
    assert_eq!(upstream.request_count(), 4);

    let mut rebound = RawClient::connect(gateway.listen).await;
    rebound.send("GET /v1/files HTTP/1.1\r\nhost: evil.example\r\n\r\n").await;
    assert_eq!(rebound.response_to("GET").await.expect("a response").status, 403);
}
