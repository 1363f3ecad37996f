//! A correct HTTP proxy: framing, hop-by-hop headers, limits, disconnects. Each test names the rule it holds.
//!
//! Rules: RFC 9110 and 9112, and what went wrong in proxies before; hostile requests must never reach the upstream.

use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;

use crate::support::{
    Gate, Gateway, KEY, RawClient, Reply, Response, Upstream, closed_port, eventually,
    upstream::{self, chunk, openai},
    wait_until, wire,
};

const BODY: &str = r#"{"model":"gpt-4o-mini","messages":[{"role":"user","content":"hi"}]}"#;

/// A chat request with these header lines, each ending in CRLF, in place of its framing.
fn post(framing: &str, body: &str) -> String {
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n{framing}\r\n{body}"
    )
}

fn length(body: &str) -> String {
    format!("content-length: {}\r\n", body.len())
}

async fn say(gateway: &Gateway, bytes: impl AsRef<[u8]>) -> (Option<Response>, RawClient) {
    let mut client = RawClient::connect(gateway.listen).await;
    client.send(bytes).await;
    (client.response().await, client)
}

/// Sends each, expects one of `statuses` or a closed connection, and that the upstream saw none of it.
async fn refused(cases: &[String], statuses: &[u16]) {
    let upstream = Upstream::run().await;
    let gateway = Gateway::transparent(&upstream).run().await;
    for case in cases {
        let (response, _) = say(&gateway, case).await;
        let status = response.map(|response| response.status);
        let shown = &case[..case.len().min(400)];
        assert!(
            status.is_some_and(|status| statuses.contains(&status)),
            "{status:?} instead of {statuses:?} for {shown:?}"
        );
        assert_eq!(upstream.request_count(), 0, "the upstream saw {shown:?}");
    }
    gateway.hello("gpt-4o-mini").send().await.expect(200);
}

// === 1, 2: connection headers ===

#[tokio::test]
async fn rule_1_headers_of_the_connection_are_stripped_in_both_directions() {
    let reply = Reply::json(200, &json!({}))
        .header("connection", "X-C")
        .header("connection", "x-d")
        .header("x-c", "1")
        .header("x-d", "1")
        .header("keep-alive", "timeout=5")
        .header("proxy-authenticate", "Basic")
        .header("x-kept", "1");
    let upstream = Upstream::always(reply).await;
    let gateway = Gateway::transparent(&upstream).run().await;

    let hops = "connection: X-A, keep-alive\r\nconnection: x-b\r\nx-a: 1\r\nx-b: 1\r\nx-e: kept\r\nkeep-alive: timeout=5\r\nproxy-connection: keep-alive\r\nte: gzip\r\ntrailer: x-f\r\nproxy-authorization: Basic eA==\r\n";
    let (response, _) = say(&gateway, post(&format!("{hops}{}", length(BODY)), BODY)).await;
    let response = response.unwrap().expect(200);

    let heard = upstream.next_request().await;
    for name in ["x-a", "x-b", "keep-alive", "proxy-connection", "te", "trailer", "proxy-authorization", "upgrade"] {
        assert_eq!(heard.header(name), None, "{name} reached the upstream");
    }
    assert_eq!(heard.header("x-e"), Some("kept"));
    for name in ["x-c", "x-d", "keep-alive", "proxy-authenticate"] {
        assert_eq!(response.header(name), None, "{name} reached the client");
    }
    assert_eq!(response.header("x-kept"), Some("1"));
}

#[tokio::test]
async fn rule_2_connection_cannot_name_away_what_the_gateway_needs() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::transparent(&upstream).run().await;

    let hops = "connection: authorization, host, content-length, content-type, x-api-key\r\n";
    let (response, _) = say(&gateway, post(&format!("{hops}{}", length(BODY)), BODY)).await;

    response.unwrap().expect(200);
    let heard = upstream.next_request().await;
    assert_eq!(heard.body, BODY.as_bytes());
    assert!(heard.header("authorization").is_some_and(|value| !value.contains(KEY)));
    assert_eq!(heard.headers.all("host").len(), 1);
}

// === 3, 4, 5, 6: framing ===

#[tokio::test]
async fn rule_3_both_framings_at_once_are_refused_and_the_connection_closed() {
    let body = "0\r\n\r\nGET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n";
    let upstream = Upstream::run().await;
    let gateway = Gateway::transparent(&upstream).run().await;

    for framing in [
        format!("{}transfer-encoding: chunked\r\n", length(body)),
        format!("transfer-encoding: chunked\r\n{}", length(body)),
    ] {
        let (response, mut client) = say(&gateway, post(&framing, body)).await;
        response.expect("a response").expect(400);
        assert_eq!(client.read_to_end().await, b"", "nothing after the refusal of {framing:?}");
    }
    assert_eq!(upstream.request_count(), 0);
}

#[tokio::test]
async fn rule_4_any_transfer_coding_but_one_chunked_is_refused() {
    let codings = [
        "transfer-encoding: chunked, chunked\r\n",
        "transfer-encoding: gzip, chunked\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: identity\r\n",
        "transfer-encoding: chunked, identity\r\n",
        "transfer-encoding: xchunked\r\n",
        "transfer-encoding: \x0bchunked\r\n",
    ];
    refused(&codings.map(|coding| post(coding, "2\r\n{}\r\n0\r\n\r\n")), &[400, 501]).await;
}

#[tokio::test]
async fn rule_5_framing_towards_the_upstream_is_rebuilt() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::transparent(&upstream).run().await;

    let sized = post(&format!("cOnTeNt-LeNgTh: {}\r\n", BODY.len()), BODY);
    let (first, rest) = BODY.split_at(9);
    let chunked = format!("{:x};name=value\r\n{first}\r\n{:X}\r\n{rest}\r\n0\r\n\r\n", first.len(), rest.len());
    for bytes in [sized, post("Transfer-Encoding: chunked\r\n", &chunked)] {
        say(&gateway, bytes).await.0.unwrap().expect(200);

        let heard = upstream.next_request().await;
        assert_eq!(heard.body, BODY.as_bytes());
        assert!(wire::find(&heard.raw_head, b"cOnTeNt-LeNgTh").is_none());
        let framings = heard.headers.all("content-length").len() + heard.headers.all("transfer-encoding").len();
        assert_eq!(framings, 1, "{}", String::from_utf8_lossy(&heard.raw_head));
    }
}

#[tokio::test]
async fn rule_6_a_content_length_is_digits_and_says_one_thing() {
    let mut cases = ["+2", "-1", "2, 3", "0x2", "2 2", "", "1e1", "99999999999999999999999"]
        .map(|value| post(&format!("content-length: {value}\r\n"), "{}"))
        .to_vec();
    cases.push(post("content-length: 2\r\ncontent-length: 3\r\n", "{}"));
    refused(&cases, &[400, 413]).await;
}

#[tokio::test]
async fn rule_6_a_length_over_the_limit_is_refused_before_the_body() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::transparent(&upstream).run().await;

    let (response, _) = say(&gateway, post("content-length: 33554433\r\n", "")).await;

    assert_eq!(response.expect("a response without a body sent").expect(413).error_code(), "request_too_large");
    assert_eq!(upstream.request_count(), 0);
}

// === 7, 8, 9: hosts and header syntax ===

#[tokio::test]
async fn rule_7_exactly_one_valid_host_that_agrees_with_the_target() {
    let rest = format!("authorization: Bearer {KEY}\r\n{}\r\n{BODY}", length(BODY));
    let path = "POST /v1/chat/completions HTTP/1.1\r\n";
    let cases = [
        format!("{path}{rest}"),
        format!("{path}host: a\r\nhost: b\r\n{rest}"),
        format!("{path}host: a\r\nhost: a\r\n{rest}"),
        format!("{path}host: a/b\r\n{rest}"),
        format!("{path}host: a b\r\n{rest}"),
        format!("{path}host: user@a\r\n{rest}"),
        format!("POST http://a/v1/chat/completions HTTP/1.1\r\nhost: b\r\n{rest}"),
    ];
    refused(&cases, &[400]).await;
}

#[tokio::test]
async fn rule_8_ambiguous_header_names_and_values_are_refused() {
    let lines = [
        "x_tollgate_user: eve\r\n".to_owned(),
        "x-tollgate-user: ann\r\nx-tollgate-user: eve\r\n".to_owned(),
        format!("authorization: Bearer {KEY}\r\n"),
        "x-a: b\0c\r\n".to_owned(),
        "x-a: b\rc\r\n".to_owned(),
        "x-a: b\r\n folded\r\n".to_owned(),
        "x-a : b\r\n".to_owned(),
        ": b\r\n".to_owned(),
        "x a: b\r\n".to_owned(),
    ];
    refused(&lines.map(|line| post(&format!("{line}{}", length(BODY)), BODY)), &[400, 401]).await;
}

#[tokio::test]
async fn rule_9_bare_line_feeds_never_reach_the_upstream() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::transparent(&upstream).run().await;

    let (response, _) = say(&gateway, post(&format!("x-a: 1\nx-b: 2\r\n{}", length(BODY)), BODY)).await;

    match response {
        Some(response) if response.status == 200 => {
            let head = String::from_utf8(upstream.next_request().await.raw_head).unwrap();
            assert!(!head.replace("\r\n", "").contains('\n'), "{head:?}");
        }
        Some(response) => assert_eq!(response.status, 400),
        None => assert_eq!(upstream.request_count(), 0),
    }
}

// === 10, 11, 12: bodies ===

#[tokio::test]
async fn rule_10_a_broken_chunk_is_refused_and_never_a_complete_request() {
    let chunks = [
        "zz\r\n{}\r\n0\r\n\r\n",
        "-1\r\n{}\r\n0\r\n\r\n",
        "2\r\n{}xx0\r\n\r\n",
        "fffffffffffffffff\r\n{}\r\n0\r\n\r\n",
        " 2\r\n{}\r\n0\r\n\r\n",
        "0x2\r\n{}\r\n0\r\n\r\n",
    ];
    let huge = format!("2;{}\r\n{{}}\r\n0\r\n\r\n", "x".repeat(20_000));
    let upstream = Upstream::run().await;
    let gateway = Gateway::transparent(&upstream).run().await;

    for chunk in chunks.into_iter().chain([huge.as_str()]) {
        let (response, _) = say(&gateway, post("transfer-encoding: chunked\r\n", chunk)).await;
        let status = response.map(|response| response.status);
        assert!(matches!(status, None | Some(400 | 413 | 431)), "{status:?} for {:?}", &chunk[..chunk.len().min(40)]);
    }
    let complete = upstream.requests().into_iter().filter(|request| request.complete).count();
    assert_eq!(complete, 0, "a broken body was passed off as complete");
}

#[tokio::test]
async fn rule_10_a_body_that_stops_short_is_never_a_complete_request() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::transparent(&upstream).run().await;

    for framing in ["content-length: 500\r\n", "transfer-encoding: chunked\r\n"] {
        let mut client = RawClient::connect(gateway.listen).await;
        client.send(post(framing, "5\r\n{\"a\":")).await;
        client.half_close().await;
        let response = client.response().await;
        assert!(response.is_none_or(|response| response.status == 400), "{framing}");
    }
    assert_eq!(upstream.requests().into_iter().filter(|request| request.complete).count(), 0);
}

#[tokio::test]
async fn rule_11_a_refused_client_is_not_invited_to_send_its_body() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::transparent(&upstream).run().await;

    let mut client = RawClient::connect(gateway.listen).await;
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer wrong\r\nexpect: 100-continue\r\ncontent-length: 1000\r\n\r\n";
    client.send(head).await;
    assert_eq!(client.any_head().await.map(|(status, _)| status), Some(401));

    let mut client = RawClient::connect(gateway.listen).await;
    client.send(post("expect: 100-continue\r\ncontent-length: 33554433\r\n", "")).await;
    assert_eq!(client.any_head().await.map(|(status, _)| status), Some(413));
}

#[tokio::test]
async fn rule_11_an_expectation_is_met_here_and_not_forwarded() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::transparent(&upstream).run().await;

    let mut client = RawClient::connect(gateway.listen).await;
    client.send(post(&format!("expect: 100-continue\r\n{}", length(BODY)), "")).await;
    assert_eq!(client.any_head().await.map(|(status, _)| status), Some(100));
    client.send(BODY).await;

    client.response().await.unwrap().expect(200);
    assert_eq!(upstream.next_request().await.header("expect"), None);
    let (other, _) = say(&gateway, post(&format!("expect: 200-ok\r\n{}", length(BODY)), BODY)).await;
    other.unwrap().expect(417);
}

#[tokio::test]
async fn rule_12_an_unread_body_is_never_taken_for_the_next_request() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::transparent(&upstream).run().await;
    let inner = post(&length(BODY), BODY);

    for size in [inner.len(), 200_000] {
        let body = format!("{inner}{}", " ".repeat(size - inner.len()));
        let outer = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer wrong\r\n{}\r\n{body}",
            length(&body)
        );
        let mut client = RawClient::connect(gateway.listen).await;
        client.send(format!("{outer}GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")).await;

        client.response().await.unwrap().expect(401);
        if let Some(next) = client.response_to("GET").await {
            assert_eq!(next.status, 200, "the second request is /healthz: {}", next.text());
        }
        assert_eq!(client.response().await.map(|third| third.status), None);
    }
    assert_eq!(upstream.request_count(), 0, "the body was read as a request");
}

// === 13, 14, 15: replies ===

#[tokio::test]
async fn rule_13_informational_replies_are_not_final() {
    let hints = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\n";
    let upstream = Upstream::always(Reply::json(200, &json!({"final": true})).informational(hints)).await;
    let gateway = Gateway::transparent(&upstream).run().await;

    let mut client = RawClient::connect(gateway.listen).await;
    client.send(post(&length(BODY), BODY)).await;

    let mut statuses = vec![];
    while statuses.last().is_none_or(|status| *status < 200) {
        statuses.push(client.any_head().await.expect("a final response").0);
    }
    assert!(matches!(statuses[..], [200] | [103, 200]), "{statuses:?}");
}

#[tokio::test]
async fn rule_14_trailers_never_carry_framing_or_credentials() {
    let reply = Reply::stream()
        .data(chunk("x"))
        .trailers("authorization: Bearer leak\r\ncontent-length: 5\r\nset-cookie: a=b\r\n");
    let upstream = Upstream::always(reply).await;
    let gateway = Gateway::transparent(&upstream).run().await;

    let mut client = RawClient::connect(gateway.listen).await;
    let chunked = format!("{:x}\r\n{BODY}\r\n0\r\nx-smuggled: 1\r\nauthorization: Bearer trailer\r\n\r\n", BODY.len());
    client.send(post("te: trailers\r\nconnection: close\r\ntransfer-encoding: chunked\r\n", &chunked)).await;
    let response = String::from_utf8(client.read_to_end().await).unwrap();

    let (_, body) = response.split_once("\r\n\r\n").unwrap();
    for name in ["authorization", "content-length", "set-cookie"] {
        assert!(!body.to_ascii_lowercase().contains(name), "{response}");
    }
    let heard = upstream.next_request().await;
    assert_eq!((heard.body.as_slice(), heard.header("x-smuggled")), (BODY.as_bytes(), None));
}

#[tokio::test]
async fn rule_15_bodyless_replies_have_no_body_and_keep_their_length() {
    let upstream = Upstream::answering(|request| match request.path() {
        "/v1/files/none" => Reply::bodyless(204),
        "/v1/files/same" => Reply::bodyless(304).header("etag", "\"a\""),
        _ => Reply::bytes(200, "application/json", "0123456789"),
    })
    .await;
    let gateway = Gateway::transparent(&upstream).run().await;
    let mut client = RawClient::connect(gateway.listen).await;

    for (method, path, status) in [
        ("HEAD", "/v1/files/a", 200),
        ("GET", "/v1/files/none", 204),
        ("GET", "/v1/files/same", 304),
        ("GET", "/v1/files/a", 200),
    ] {
        client.send(format!("{method} {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {KEY}\r\n\r\n")).await;
        let response = client.response_to(method).await.unwrap_or_else(|| panic!("no response to {method} {path}"));
        assert_eq!(response.status, status, "{method} {path}: {}", response.text());
        if method == "HEAD" {
            assert_eq!(response.header("content-length"), Some("10"));
        }
        let expected = if (method, status) == ("GET", 200) { "0123456789" } else { "" };
        assert_eq!(response.text(), expected, "{method} {path}");
    }
}

#[tokio::test]
async fn rule_15_bodyless_replies_over_http_2() {
    let upstream = Upstream::answering(|_| Reply::bytes(200, "application/json", "0123456789")).await;
    let gateway = Gateway::transparent(&upstream).run().await;
    let mut client = h2(&gateway).await;

    let request = http::Request::builder().method("HEAD").uri(format!("http://{}/v1/files/a", gateway.listen));
    let request = request.header("authorization", format!("Bearer {KEY}")).body(Full::default()).unwrap();
    let response = client.send_request(request).await.unwrap();

    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-length"], "10");
    assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
}

#[tokio::test]
async fn http_2_with_prior_knowledge_carries_a_call() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::transparent(&upstream).run().await;
    let mut client = h2(&gateway).await;

    let response = client.send_request(h2_chat(&gateway)).await.unwrap();

    assert_eq!(response.status(), 200);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&body).unwrap()["object"], "chat.completion");
}

// === 16, 17, 18: what is taken at all ===

#[tokio::test]
async fn rule_16_odd_methods_and_paths_never_reach_upstream_or_admin() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::transparent(&upstream).run().await;
    let key = format!("authorization: Bearer {KEY}\r\n");

    let lines = [
        ("CONNECT", "example.com:443"),
        ("TRACE", "/v1/models"),
        ("TRACK", "/v1/models"),
        ("GET", "/v1/../metrics"),
        ("GET", "/v1/%2e%2e/metrics"),
        ("GET", "/v1%2f..%2fmetrics"),
        ("GET", "//metrics"),
        ("GET", "//api/budgets"),
        ("GET", "/v1/models/../../metrics"),
        ("GET", "/v1//../api/budgets"),
        ("GET", "/v1/models%00"),
        ("GET", "/v1/..%5cmetrics"),
        ("GET", "*"),
        ("GET", "/v2/models"),
        ("GET", "/v1/a%0d%0ab"),
    ];
    for (method, target) in lines {
        let (response, _) =
            say(&gateway, format!("{method} {target} HTTP/1.1\r\nhost: example.com:443\r\n{key}\r\n")).await;
        let status = response.as_ref().map(|response| response.status);
        assert!(matches!(status, None | Some(400 | 404 | 405 | 501)), "{status:?} for {method} {target}");
    }
    assert_eq!(upstream.requests().iter().map(|request| request.target.clone()).collect::<Vec<_>>(), [""; 0]);
}

#[tokio::test]
async fn rule_16_an_unknown_endpoint_is_named_as_such() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::transparent(&upstream).run().await;

    let refused = gateway.get("/nothing/here").key(KEY).send().await.expect(404);

    assert_eq!(refused.error_code(), "unknown_endpoint");
}

#[tokio::test]
async fn rule_17_headers_and_targets_have_limits() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::transparent(&upstream).run().await;
    let many = |count: usize| (0..count).map(|number| format!("x-{number}: 1\r\n")).collect::<String>();
    let get = |target: &str, headers: &str| {
        format!("GET {target} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {KEY}\r\n{headers}\r\n")
    };

    let cases = [
        (get("/v1/models/a", &many(90)), 200),
        (get("/v1/models/a", &many(120)), 431),
        (get("/v1/models/a", &format!("x-long: {}\r\n", "a".repeat(30_000))), 200),
        (get("/v1/models/a", &format!("x-long: {}\r\n", "a".repeat(70_000))), 431),
        (get(&format!("/v1/models/{}", "a".repeat(7_000)), ""), 200),
        (get(&format!("/v1/models/{}", "a".repeat(9_000)), ""), 414),
    ];
    for (bytes, expected) in cases {
        let (response, _) = say(&gateway, &bytes).await;
        let status = response.map(|response| response.status);
        assert_eq!(status, Some(expected), "{} bytes, {} lines", bytes.len(), bytes.matches("\r\n").count());
    }
    assert_eq!(upstream.request_count(), 3);
}

#[tokio::test]
async fn rule_17_a_body_is_taken_up_to_its_limit_and_not_one_byte_more() {
    const LIMIT: usize = 64 * 1024;
    let upstream = Upstream::run().await;
    let server = r#"{ listen: "127.0.0.1:0", admin: "127.0.0.1:0", limits: { body: 64KiB } }"#;
    let gateway = Gateway::before(&upstream).top("server", server).run().await;
    let body = |size: usize| {
        let frame = BODY.len() - "hi".len();
        BODY.replace("hi", &"a".repeat(size - frame))
    };

    for (size, expected) in [(LIMIT - 1, 200), (LIMIT, 200), (LIMIT + 1, 413)] {
        let body = body(size);
        assert_eq!(body.len(), size);
        let chunked = format!("{size:x}\r\n{body}\r\n0\r\n\r\n");
        for bytes in [post(&length(&body), &body), post("transfer-encoding: chunked\r\n", &chunked)] {
            let response = say(&gateway, bytes).await.0.expect("a response").expect(expected);
            if expected == 413 {
                assert_eq!(response.error_code(), "request_too_large");
            }
        }
    }
    assert_eq!(upstream.request_count(), 4);
}

#[tokio::test]
async fn rule_18_a_header_that_dribbles_in_is_given_up() {
    let upstream = Upstream::run().await;
    let server = r#"{ listen: "127.0.0.1:0", admin: "127.0.0.1:0", limits: { header_timeout: 300ms } }"#;
    let gateway = Gateway::before(&upstream).top("server", server).run().await;

    let begun = Instant::now();
    let mut client = RawClient::connect(gateway.listen).await;
    client.send("POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nx-slow: ").await;
    let said = client.read_to_end().await;

    let waited = begun.elapsed();
    assert!(waited >= Duration::from_millis(250) && waited < Duration::from_secs(5), "closed after {waited:?}");
    assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 408"), "{:?}", String::from_utf8_lossy(&said));
}

// === 23, 24, 25, 26: disconnects, backpressure, pools ===

#[tokio::test]
async fn rule_23_a_client_that_leaves_before_the_first_byte_cancels_the_call() {
    let upstream = Upstream::always(Reply::hang()).await;
    let gateway = Gateway::transparent(&upstream).run().await;

    let mut client = RawClient::connect(gateway.listen).await;
    client.send(post(&length(BODY), BODY)).await;
    upstream.next_request().await;
    let left = Instant::now();
    drop(client);

    let aborts = upstream.wait_for_aborts(1, Duration::from_secs(5)).await;
    assert!(aborts[0].at - left < Duration::from_secs(1), "cancelled after {:?}", aborts[0].at - left);
    assert_eq!(gateway.next_record().await.text("outcome"), "abandoned");
}

#[tokio::test]
async fn rule_23_a_client_that_leaves_mid_stream_cancels_the_call() {
    let upstream = Upstream::always(Reply::stream().data(chunk("one")).then_hang()).await;
    let gateway = Gateway::transparent(&upstream).run().await;

    let mut streaming = gateway.hello_stream("gpt-4o-mini").open().await;
    streaming.read_events(1).await;
    let left = Instant::now();
    streaming.hang_up();

    let aborts = upstream.wait_for_aborts(1, Duration::from_secs(5)).await;
    assert!(aborts[0].at - left < Duration::from_secs(1), "cancelled after {:?}", aborts[0].at - left);
    let record = gateway.next_record().await;
    assert_eq!(record.text("outcome"), "abandoned");
    assert!(matches!(record.text("usage_source"), "estimated" | "bound"), "{record:?}");
}

#[tokio::test]
async fn rule_23_a_reset_http_2_stream_cancels_the_call() {
    let upstream = Upstream::always(Reply::stream().data(chunk("one")).then_hang()).await;
    let gateway = Gateway::transparent(&upstream).run().await;
    let mut client = h2(&gateway).await;

    let mut response = client.send_request(h2_chat(&gateway)).await.unwrap();
    response.body_mut().frame().await.unwrap().unwrap();
    let left = Instant::now();
    drop(response);

    let aborts = upstream.wait_for_aborts(1, Duration::from_secs(5)).await;
    assert!(aborts[0].at - left < Duration::from_secs(1), "cancelled after {:?}", aborts[0].at - left);
    assert_eq!(gateway.next_record().await.text("outcome"), "abandoned");
}

#[tokio::test]
async fn on_disconnect_drain_reads_the_reply_to_its_end() {
    let gate = Gate::closed();
    let reply = Reply::stream()
        .data(chunk("one"))
        .gate(&gate)
        .data(chunk("two"))
        .data(upstream::usage_chunk((37, 29)))
        .data(upstream::DONE);
    let upstream = Upstream::always(reply).await;
    let gateway = Gateway::before(&upstream).top("on_disconnect", "drain").run().await;

    let mut streaming = gateway.hello_stream("gpt-4o-mini").open().await;
    streaming.read_events(1).await;
    streaming.hang_up();
    gate.open(1);

    let record = gateway.next_record().await;
    // Which of the two comes first, the end of the reply or the news that the client is gone, is not ours to say.
    assert!(matches!(record.text("outcome"), "abandoned" | "ok"), "{record:?}");
    assert_eq!((record.text("usage_source"), record.number("completion_tokens")), ("provider", 29));
    assert!(upstream.aborts().is_empty());
}

#[tokio::test]
async fn rule_24_a_half_closed_client_is_answered_or_given_up_but_always_recorded() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::transparent(&upstream).run().await;

    let mut client = RawClient::connect(gateway.listen).await;
    client.send(post(&length(BODY), BODY)).await;
    client.half_close().await;
    let response = client.response().await;

    if upstream.request_count() > 0 {
        let record = gateway.next_record().await;
        let expected = if response.is_some() { "ok" } else { "abandoned" };
        assert_eq!(record.text("outcome"), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_25_a_client_that_does_not_read_stops_the_upstream() {
    const MIB: u64 = 1024 * 1024;
    let upstream = Upstream::always(Reply::stream().repeat(chunk(&"x".repeat(16_000)), 32 * 1024)).await;
    let gateway = Gateway::transparent(&upstream).run().await;
    upstream.script(upstream::chat_stream(&["a first stream, which loads what the next ones need"], None));
    gateway.hello_stream("gpt-4o-mini").send().await.expect(200);
    gateway.next_record().await;
    let before = gateway.memory_bytes("VmRSS:");

    let streaming = gateway.hello_stream("gpt-4o-mini").open().await;
    let mut last = (u64::MAX, Instant::now());
    wait_until("the upstream's writes stall", Duration::from_secs(20), || {
        let written = upstream.bytes_written();
        if written != last.0 {
            last = (written, Instant::now());
        }
        last.1.elapsed() > Duration::from_millis(500)
    })
    .await;

    // The kernel may hold some megabytes per socket, of which there are two; the gateway itself only a few buffers.
    assert!(last.0 < 64 * MIB, "{} bytes were taken from the upstream", last.0);
    let grown = gateway.memory_bytes("VmRSS:").saturating_sub(before);
    assert!(grown < 16 * MIB, "grew by {grown} bytes");
    streaming.hang_up();
    upstream.wait_for_aborts(1, Duration::from_secs(5)).await;
}

#[tokio::test]
async fn rule_26_connections_that_the_upstream_closed_are_not_seen_by_clients() {
    let upstream = Upstream::answering(|request| openai(request).then_close()).await;
    let gateway = Gateway::transparent(&upstream).run().await;

    for call in 0..60 {
        let response = gateway.hello("gpt-4o-mini").send().await;
        assert_eq!(response.status, 200, "call {call}: {}", response.text());
    }

    assert_eq!(upstream.request_count(), 60, "no call was made twice");
}

#[tokio::test]
async fn connections_to_the_upstream_are_used_again() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::transparent(&upstream).run().await;

    for _ in 0..20 {
        gateway.hello("gpt-4o-mini").send().await.expect(200);
    }

    assert!(upstream.connection_count() <= 2, "{} connections for 20 calls in turn", upstream.connection_count());
}

// === 19, 20, 30: codings, loops, ids ===

#[tokio::test]
async fn rule_19_a_coded_request_passes_as_it_came_or_is_edited_in_the_clear() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::before(&upstream).model("support", "target: upstream/m").run().await;
    let gzip = |text: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut encoder, text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };

    for (model, edited) in [("m", false), ("support", true)] {
        let coded = gzip(&format!(r#"{{"messages":[], "model" : "{model}"}}"#));
        let call = gateway.post("/v1/chat/completions").key(KEY).header("content-encoding", "gzip");
        call.body("application/json", coded.clone()).send().await.expect(200);

        let heard = upstream.next_request().await;
        let plain = br#"{"messages":[], "model" : "m"}"#.to_vec();
        assert_eq!(heard.header("content-encoding"), (!edited).then_some("gzip"));
        assert_eq!(heard.body, if edited { plain } else { coded });
    }
}

#[tokio::test]
async fn rule_20_only_codings_that_can_be_metered_are_asked_for() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::transparent(&upstream).run().await;

    for (offered, asked) in [
        (None, "identity"),
        (Some("br"), "br"),
        (Some("gzip, deflate, br, zstd"), "gzip, deflate, br"),
        (Some("zstd"), "identity"),
        (Some("*"), "identity"),
        (Some("br;q=0.5, gzip;q=1.0"), "br;q=0.5, gzip;q=1.0"),
    ] {
        let call = gateway.hello("gpt-4o-mini");
        let call = offered.map_or(call.clone(), |offered| call.header("accept-encoding", offered));
        call.send().await.expect(200);
        assert_eq!(upstream.next_request().await.headers.all("accept-encoding"), [asked], "{offered:?}");
    }
}

#[tokio::test]
async fn rule_20_a_coded_reply_passes_as_it_came_and_is_metered() {
    let (plain, events) = (include_bytes!("../data/coded/chat.json.br"), include_bytes!("../data/coded/chat.sse.br"));
    let upstream = Upstream::run().await;
    let gateway = Gateway::transparent(&upstream).run().await;
    let asking = json!({"model": "gpt-4o-mini", "stream": true, "stream_options": {"include_usage": true}, "messages": [{"role": "user", "content": "hi"}]});
    let coded = |reply: Reply| reply.header("content-encoding", "br").header("vary", "accept-encoding, origin");

    upstream.script(coded(Reply::bytes(200, "application/json", *plain)));
    upstream.script(coded(Reply::stream().data(&events[..50]).data(&events[50..])));
    for (call, bytes) in [(gateway.hello("gpt-4o-mini"), &plain[..]), (gateway.chat(&asking), &events[..])] {
        let response = call.header("accept-encoding", "br").send().await.expect(200);

        assert_eq!(response.body, bytes);
        assert_eq!(response.header("content-encoding"), Some("br"));
        assert_eq!(response.header("vary"), Some("accept-encoding, origin"));
        let record = gateway.next_record().await;
        assert_eq!((record.number("prompt_tokens"), record.number("completion_tokens")), (11, 3));
        assert_eq!(record.text("usage_source"), "provider");
    }
}

/// A gateway at `listen` whose only provider is at `next`, both `http://ADDRESS`.
async fn link(listen: &str, next: &str) -> Gateway {
    let server = format!(r#"{{ listen: "{}", admin: "127.0.0.1:0" }}"#, listen.trim_start_matches("http://"));
    let provider = format!(r#"kind: openai, base_url: "{next}/v1", api_key: {KEY}"#);
    let setup = Gateway::bare().top("server", &server).top("default_provider", "next").provider("next", &provider);
    setup.key("dev", KEY, "").run().await
}

#[tokio::test]
async fn rule_30_a_call_that_comes_round_is_refused_the_first_time() {
    let (one, two) = (closed_port().await, closed_port().await);
    let itself = link(&one, &one).await;
    assert_eq!(itself.hello("m").send().await.expect(508).error_code(), "loop_detected");
    assert_eq!(itself.wait_for_records(2).await.len(), 2, "the call and its refused return");
    drop(itself);

    let (first, second) = (link(&one, &two).await, link(&two, &one).await);
    assert_eq!(first.hello("m").send().await.expect(508).error_code(), "loop_detected");
    assert_eq!((first.wait_for_records(2).await.len(), second.wait_for_records(1).await.len()), (2, 1));
    let mut client = RawClient::connect(first.listen).await;
    client.send(post(&format!("via: 1.1 a, 2 b, 1.0 tollgate-00000000\r\n{}", length(BODY)), BODY)).await;
    client.response().await.unwrap().expect(508);
}

#[tokio::test]
async fn rule_30_via_and_the_ids_of_calls_are_the_gateways_own() {
    let upstream = Upstream::answering(|request| openai(request).header("x-request-id", "req_provider")).await;
    let gateway = Gateway::transparent(&upstream).run().await;
    let mut seen = std::collections::HashSet::new();

    for id in ["call-1", "a_b-C9", "has space", "a;b", "{\"a\":1}", &"x".repeat(65), &"x".repeat(64)] {
        let call = gateway.hello("gpt-4o-mini").header("x-request-id", id).header("x-tollgate-call", "mine");
        let response = call.header("via", "1.1 before").send().await.expect(200);

        let own = response.header("x-tollgate-call").expect("an id").to_owned();
        assert!(own != "mine" && seen.insert(own), "ids are new and not the client's");
        assert_eq!(response.headers.all("x-request-id"), ["req_provider"]);
        let heard = upstream.next_request().await;
        let proper =
            (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
        assert_eq!(heard.header("x-request-id"), proper.then_some(id));
        assert_eq!(heard.header("x-tollgate-call"), None);
        let via = heard.headers.all("via").join(", ");
        assert!(via.starts_with("1.1 before, ") && via.contains("tollgate"), "{via}");
    }
}

// === 31, 32, 33: streams, errors, hostile upstreams ===

#[tokio::test]
async fn rule_31_every_line_ending_comment_and_mark_of_a_stream_survives() {
    let script = "\u{feff}: hello\r\n\r\ndata: {\"a\":\rdata: 1}\r\revent: x\nid: 1\nretry: 5\ndata\n\n: ping\n\n\n\ndata:[DONE]\n\n";
    let mut invalid = script.as_bytes().to_vec();
    invalid.extend_from_slice(b"data: \xff\xfe\n\n");
    let upstream = Upstream::always(Reply::stream().data(&*invalid)).await;
    let gateway = Gateway::transparent(&upstream).run().await;

    let response = gateway.hello_stream("gpt-4o-mini").send().await.expect(200);

    assert_eq!(response.body, invalid);
    assert_eq!(response.header("content-type"), Some("text/event-stream"));
}

#[tokio::test]
async fn rule_32_the_gateways_errors_have_the_shape_of_the_dialect_and_show_no_internals() {
    let gone = closed_port().await;
    let gateway = Gateway::bare().provider_at("gone", &gone).key("dev", KEY, "").run().await;
    let body = json!({"model": "gone/m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]});
    let malformed = gateway.post("/v1/chat/completions").key(KEY).body("application/json", "{\"model\":");

    let cases = [
        (gateway.chat(&body).send().await, 502, "upstream_unreachable"),
        (malformed.send().await, 400, "invalid_request"),
        (gateway.hello("nowhere/m").send().await, 404, "model_not_found"),
        (gateway.post("/v1/chat/completions").key("wrong").json(&body).send().await, 401, "invalid_api_key"),
    ];
    for (response, status, code) in cases {
        let error = response.clone().expect(status).json()["error"].clone();
        assert_eq!(error["code"], code);
        for field in ["message", "type"] {
            assert!(error[field].as_str().is_some_and(|text| !text.is_empty()), "{field} of {error}");
        }
        assert!(error.get("param").is_some(), "{error}");
        assert!(response.header("content-type").is_some_and(|kind| kind.starts_with("application/json")));
        for internal in ["127.0.0.1", "hyper", "src/", "panicked", "os error"] {
            assert!(!response.text().contains(internal), "{internal} in {}", response.text());
        }
    }

    let refused = gateway.post("/v1/messages").header("x-api-key", KEY).json(&body).send().await.expect(502).json();
    assert_eq!(refused["type"], "error");
    assert!(refused["error"]["type"].is_string() && refused["error"]["message"].is_string(), "{refused}");
}

#[tokio::test]
async fn duplicate_members_and_deep_nesting_are_refused() {
    let deep = format!("{{\"model\":\"gpt-4o-mini\",\"x\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let cases = [
        r#"{"model":"gpt-4o-mini","max_tokens":1,"max_tokens":100000,"messages":[]}"#,
        r#"{"model":"gpt-4o-mini","model":"upstream/other","messages":[]}"#,
        r#"{"model":"gpt-4o-mini","max_tok\u0065ns":1,"max_tokens":100000,"messages":[]}"#,
        "[]",
        "null",
        "{}x",
        "{\"model\":\"gpt-4o-mini\",}",
        &deep,
    ];
    refused(&cases.map(|body| post(&length(body), body)), &[400]).await;
}

#[tokio::test]
async fn rule_33_ambiguous_replies_are_refused_or_their_connection_is_dropped() {
    let replies = [
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\ncontent-length: 30\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nSMUGGLED",
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: -2\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\nbad header\r\n\r\n{}",
        "SMUGGLED\r\n\r\n",
    ];
    for reply in replies {
        let upstream = Upstream::run().await;
        upstream.script(Reply::raw(reply));
        let gateway = Gateway::transparent(&upstream).run().await;

        let first = gateway.hello("gpt-4o-mini").send().await;
        let second = gateway.hello("gpt-4o-mini").send().await;

        assert!(first.status == 502 || first.text() == "{}", "{reply:?}: {} {}", first.status, first.text());
        assert!(!first.text().contains("SMUGGLED"), "{reply:?}: {}", first.text());
        assert_eq!(second.status, 200, "{reply:?}: {}", second.text());
        assert_eq!(second.json()["object"], "chat.completion", "{reply:?}");
        assert_ne!(
            upstream.requests()[1].connection,
            upstream.requests()[0].connection,
            "{reply:?}: the connection was used again"
        );
    }
}

#[tokio::test]
async fn rule_33_endless_reply_headers_are_given_up() {
    let endless = Reply::raw("HTTP/1.1 200 OK\r\n")
        .repeat("x-endless: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n", 200_000);
    let upstream = Upstream::always(endless).await;
    let gateway = Gateway::transparent(&upstream).run().await;

    gateway.hello("gpt-4o-mini").send().await.expect(502);
}

#[tokio::test]
async fn health_is_told_without_a_key() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::transparent(&upstream).run().await;

    gateway.get("/healthz").send().await.expect(200);
    eventually(
        "ready",
        Duration::from_secs(2),
        || gateway.get("/readyz").send_owned(),
        |response| response.status == 200,
    )
    .await;
}

// === HTTP/2 ===

type H2 = hyper::client::conn::http2::SendRequest<Full<bytes::Bytes>>;

async fn h2(gateway: &Gateway) -> H2 {
    let stream = tokio::net::TcpStream::connect(gateway.listen).await.unwrap();
    let (client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    client
}

fn h2_chat(gateway: &Gateway) -> http::Request<Full<bytes::Bytes>> {
    http::Request::post(format!("http://{}/v1/chat/completions", gateway.listen))
        .header("authorization", format!("Bearer {KEY}"))
        .header("content-type", "application/json")
        .body(Full::from(BODY))
        .unwrap()
}
