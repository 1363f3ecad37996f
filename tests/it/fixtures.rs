//! The suite's own tools do what they say: a mock that is wrong would make every other test say nothing.

use std::time::Duration;

use serde_json::json;

use crate::support::{
    Call, DEADLINE, Gate, RawClient, Reply, Upstream, events,
    metrics::Metrics,
    upstream::{USAGE, chat_stream, chunk, openai},
    wait_until,
};

fn call(upstream: &Upstream, method: &str, target: &str) -> Call {
    let address = upstream.url().trim_start_matches("http://").parse().unwrap();
    Call::new(address, method, target)
}

#[tokio::test]
async fn the_upstream_records_what_it_hears_and_says_what_it_is_told() {
    let upstream = Upstream::answering(openai).await;
    upstream.script(Reply::bytes(418, "text/plain", "short and stout").header("x-a", "1"));

    let scripted =
        call(&upstream, "POST", "/v1/tea?a=b").header("X-Case", "kept").body("text/plain", "hello").send().await;
    let body = json!({"stream": true, "stream_options": {"include_usage": true}});
    let streamed = call(&upstream, "POST", "/v1/chat/completions").json(&body).send().await.expect(200);

    assert_eq!(
        (scripted.status, scripted.text().as_str(), scripted.header("X-A")),
        (418, "short and stout", Some("1"))
    );
    let heard = upstream.next_request().await;
    assert_eq!((heard.method.as_str(), heard.target.as_str(), heard.path()), ("POST", "/v1/tea?a=b", "/v1/tea"));
    assert_eq!(
        (heard.header("x-case"), heard.body.as_slice(), heard.complete),
        (Some("kept"), b"hello".as_slice(), true)
    );
    let all = events(&streamed.body);
    assert_eq!((all.len(), all[4].as_str()), (5, "[DONE]"));
    assert!(all[3].contains(&USAGE.1.to_string()));
}

#[tokio::test]
async fn gates_hold_streams_and_leaving_clients_are_noticed() {
    let gate = Gate::closed();
    let upstream = Upstream::always(Reply::stream().data(chunk("a")).gate(&gate).data(chunk("b")).then_hang()).await;

    let mut stream = call(&upstream, "POST", "/").json(&json!({})).open().await;
    assert!(stream.read_events(1).await.contains("\"a\""));
    gate.open(1);
    assert!(stream.read_events(1).await.contains("\"b\""));
    assert!(upstream.aborts().is_empty());
    stream.hang_up();

    upstream.wait_for_aborts(1, Duration::from_secs(1)).await;
}

#[tokio::test]
async fn cuts_and_resets_are_incomplete_and_ends_are_not() {
    for (reply, complete) in [
        (Reply::stream().data("x").cut(), false),
        (Reply::stream().data("x").reset(), false),
        (chat_stream(&["x"], None), true),
        (Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab").cut(), false),
        (Reply::raw("HTTP/1.1 200 OK\r\n\r\nab").cut(), true),
    ] {
        let upstream = Upstream::always(reply).await;
        let response = call(&upstream, "GET", "/").send().await;
        assert_eq!(response.complete, complete, "{}", response.text());
    }
}

#[tokio::test]
async fn an_upgrade_echoes() {
    let upstream = Upstream::always(Reply::upgrade_echo()).await;
    let mut client = RawClient::connect(upstream.url().trim_start_matches("http://").parse().unwrap()).await;

    client.send("GET / HTTP/1.1\r\nupgrade: websocket\r\n\r\n").await;
    assert_eq!(client.any_head().await.unwrap().0, 101);
    client.send("ping").await;

    assert_eq!(client.exactly(4).await, b"ping");
}

#[tokio::test]
#[should_panic(expected = "the upstream's handler panicked: on purpose")]
async fn a_handler_that_panics_fails_its_test() {
    let upstream = Upstream::answering(|_| panic!("on purpose")).await;
    call(&upstream, "GET", "/").send().await;
}

#[tokio::test]
async fn keep_alive_connections_are_closed_when_told() {
    let upstream = Upstream::always(Reply::json(200, &json!({})).then_close()).await;
    let mut client = RawClient::connect(upstream.url().trim_start_matches("http://").parse().unwrap()).await;

    client.send("GET / HTTP/1.1\r\n\r\n").await;

    assert_eq!(client.response_to("GET").await.unwrap().header("connection"), None);
    assert!(client.response_to("GET").await.is_none());
    wait_until("one request", DEADLINE, || upstream.request_count() == 1).await;
}

#[test]
fn metrics_are_parsed_with_their_labels() {
    let metrics = Metrics::parse("# TYPE a counter\na{x=\"1\",y=\"q\\\"uo,te\"} 2\na{x=\"2\"} 3.5\nb_count 4\n");

    assert_eq!(metrics.value("a", &[]), 5.5);
    assert_eq!(metrics.value("a", &[("x", "1"), ("y", "q\"uo,te")]), 2.0);
    assert!(metrics.names("b") && !metrics.names("c"));
    assert_eq!(metrics.series_count(), 3);
}

#[test]
fn events_are_read_across_line_endings() {
    let all = events(b": c\r\n\r\ndata: a\r\ndata: b\r\n\r\nevent: x\ndata:c\n\nid: 1\n\n");
    assert_eq!(all, ["a\nb", "c"]);
}
