//! Realtime: a tunnel opens only on its own route, only after the upstream's 101, and nothing slips through before.

use crate::support::{
    DEADLINE, Gateway, KEY, PROVIDER_KEY, RawClient, Reply, Upstream, eventually, metrics::Metrics, upstream::openai,
    wait_until,
};

fn upgrade(target: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {KEY}\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-protocol: realtime\r\n\r\n"
    )
}

const SESSION: &str = "/v1/realtime?model=gpt-4o-realtime-preview";

#[tokio::test]
async fn after_101_bytes_pass_both_ways() {
    let upstream = Upstream::always(Reply::upgrade_echo()).await;
    let gateway = Gateway::transparent(&upstream).run().await;
    let mut client = RawClient::connect(gateway.listen).await;

    client.send(upgrade(SESSION)).await;
    let (status, headers) = client.any_head().await.expect("a response");
    assert_eq!(status, 101);
    assert_eq!(headers.get("upgrade"), Some("websocket"));
    assert_eq!(headers.get("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    // A masked text frame, a ping, and a large binary one: the tunnel does not care.
    for frame in [b"\x81\x85\x01\x02\x03\x04hello".to_vec(), b"\x89\x80\x00\x00\x00\x00".to_vec(), vec![0xa5; 100_000]]
    {
        client.send(&frame).await;
        assert_eq!(client.exactly(frame.len()).await, frame);
    }

    let heard = upstream.next_request().await;
    assert_eq!(heard.target, SESSION);
    assert_eq!(heard.headers.all("authorization"), [format!("Bearer {PROVIDER_KEY}")]);
    assert_eq!(heard.header("sec-websocket-protocol"), Some("realtime"));
    assert!(heard.header("upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket")));
}

#[tokio::test]
async fn a_hang_up_reaches_the_other_side() {
    let upstream = Upstream::always(Reply::upgrade_echo()).await;
    let gateway = Gateway::transparent(&upstream).run().await;
    let mut client = RawClient::connect(gateway.listen).await;

    client.send(upgrade(SESSION)).await;
    assert_eq!(client.any_head().await.expect("a response").0, 101);
    drop(client);

    wait_until("the call is over", DEADLINE, || !gateway.records().is_empty()).await;
}

#[tokio::test]
async fn bytes_sent_before_the_101_are_not_a_second_request() {
    let upstream = Upstream::answering(openai).await;
    let gateway = Gateway::transparent(&upstream).run().await;
    let mut client = RawClient::connect(gateway.listen).await;

    let smuggled = "GET /v1/smuggled HTTP/1.1\r\nhost: upstream\r\nauthorization: Bearer stolen\r\n\r\n";
    client.send(format!("{}{smuggled}", upgrade(SESSION))).await;
    // The connection may be closed for it, the refusal to switch may pass, and what follows is judged by itself.
    let mut statuses = Vec::new();
    while let Some(response) = client.response_to("GET").await {
        statuses.push(response.status);
    }

    assert!(!statuses.contains(&101), "{statuses:?}");
    assert!(statuses.get(1).is_none_or(|status| *status == 401), "{statuses:?}");
    let targets: Vec<_> = upstream.requests().into_iter().map(|request| request.target).collect();
    assert!(targets.iter().all(|target| target == SESSION) && targets.len() <= 1, "{targets:?}");
}

#[tokio::test]
async fn a_refusal_to_switch_passes_unchanged() {
    let upstream = Upstream::always(Reply::bytes(426, "application/json", "{\"error\":{\"message\":\"no\"}}")).await;
    let gateway = Gateway::transparent(&upstream).run().await;
    let mut client = RawClient::connect(gateway.listen).await;

    client.send(upgrade(SESSION)).await;

    let response = client.response_to("GET").await.expect("a response");
    assert_eq!((response.status, response.text().as_str()), (426, "{\"error\":{\"message\":\"no\"}}"));
}

#[tokio::test]
async fn other_routes_do_not_switch() {
    let upstream = Upstream::answering(openai).await;
    let gateway = Gateway::transparent(&upstream).run().await;
    let mut client = RawClient::connect(gateway.listen).await;

    client.send(upgrade("/v1/files/a")).await;

    let response = client.response_to("GET").await.expect("a response");
    assert!(matches!(response.status, 200 | 400 | 404), "{}", response.status);
    for request in upstream.requests() {
        assert_eq!(request.header("upgrade"), None, "{}", request.target);
    }
}

#[tokio::test]
async fn a_session_needs_a_key() {
    let upstream = Upstream::always(Reply::upgrade_echo()).await;
    let gateway = Gateway::transparent(&upstream).run().await;
    let mut client = RawClient::connect(gateway.listen).await;

    client.send(upgrade(SESSION).replace(KEY, "wrong")).await;

    assert_eq!(client.response_to("GET").await.expect("a response").status, 401);
    assert_eq!(upstream.request_count(), 0);
}

#[tokio::test]
async fn a_session_is_one_attempt_that_is_counted_when_it_ends() {
    let upstream = Upstream::always(Reply::upgrade_echo()).await;
    let gateway = Gateway::transparent(&upstream).run().await;
    let open = async || {
        let mut client = RawClient::connect(gateway.listen).await;
        client.send(upgrade(SESSION)).await;
        client
    };
    let attempts = |metrics: &Metrics| {
        ["ok", "error", "unreachable", "abandoned"].map(|result| {
            metrics.value("tollgate_upstream_attempts_total", &[("provider", "upstream"), ("result", result)])
        })
    };
    let counted = async |what: &str, wanted: [f64; 4]| {
        eventually(what, DEADLINE, || gateway.metrics(), |metrics| attempts(metrics) == wanted).await;
    };

    let mut client = open().await;
    assert_eq!(client.any_head().await.expect("a response").0, 101);
    counted("an open session is not counted", [0.0; 4]).await;
    drop(client);
    counted("it is over", [1.0, 0.0, 0.0, 0.0]).await;

    upstream.script(Reply::json(426, &serde_json::json!({})));
    assert_eq!(open().await.response_to("GET").await.expect("a response").status, 426);
    counted("it was refused", [1.0, 1.0, 0.0, 0.0]).await;

    upstream.script(Reply::raw("").cut());
    assert_eq!(open().await.response_to("GET").await.expect("a response").status, 502);
    counted("nobody answered", [1.0, 1.0, 1.0, 0.0]).await;

    upstream.script(Reply::hang());
    let client = open().await;
    wait_until("the upstream is asked", DEADLINE, || upstream.request_count() == 4).await;
    drop(client);
    counted("the client left before the upstream had agreed", [1.0, 1.0, 1.0, 1.0]).await;
}
