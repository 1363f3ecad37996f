//! Connections, seen from both of their ends: what is used again, what is given up, and that nobody holds one for ever.
//!
//! The rules are those of `http.rs`; here a connection outlives a call, or a call the patience for it.

use std::{
    collections::HashSet,
    sync::Mutex,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use crate::support::{
    Call, DEADLINE, Gate, Gateway, KEY, RawClient, Reply, Upstream, eventually, rounds, soon,
    upstream::{DONE, chunk, openai, usage_chunk},
    wait_until,
};

const MIB: usize = 1024 * 1024;

/// The head of a request with the key [`KEY`] and these further lines, each ending in CRLF.
fn head(method: &str, target: &str, lines: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {KEY}\r\n{lines}\r\n")
}

/// A server whose connections the test holds in its hands.
async fn by_hand() -> (String, mpsc::Receiver<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (accepted, connections) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if accepted.send(stream).await.is_err() {
                return;
            }
        }
    });
    (url, connections)
}

/// Reads a request's head, and whatever came with it.
async fn read_head(stream: &mut TcpStream) -> Vec<u8> {
    let mut read = Vec::new();
    while !read.windows(4).any(|window| window == b"\r\n\r\n") {
        assert_ne!(soon("a request", stream.read_buf(&mut read)).await.unwrap(), 0, "closed before a request");
    }
    read
}

async fn in_front_of(url: &str, routing: &str) -> Gateway {
    let setup = Gateway::bare().provider_at("upstream", url).top("default_provider", "upstream");
    setup.key("dev", KEY, r#", models: ["*"]"#).top("routing", routing).run().await
}

// === used again, or not ===

#[tokio::test]
async fn a_provider_that_forgot_its_idle_connections_costs_a_call_one_more_attempt() {
    let gate = Gate::closed();
    let (held, served) = (gate.clone(), Mutex::new(HashSet::new()));
    // Each connection serves one request and drops the next one without a word, as behind a balancer that lost its table.
    let upstream = Upstream::answering(move |request| match served.lock().unwrap().insert(request.connection) {
        true if request.json()["stream"] == true => Reply::stream().gate(&held).data(chunk("one")).data(DONE),
        true => openai(request),
        false => Reply::raw("").cut(),
    })
    .await;
    let routing = "{ attempts: 2, retry_budget: 100%, eject: off }";
    let gateway = Gateway::before(&upstream).top("routing", routing).run().await;
    let calls: Vec<_> = (0..8).map(|_| gateway.hello_stream("m")).collect();
    let streams = join_all(calls.iter().map(Call::open)).await;
    gate.open(8);
    join_all(streams.into_iter().map(|stream| stream.finish())).await;

    let response = gateway.hello("m").send().await;

    assert_eq!(response.status, 200, "{}", response.text());
    assert!(matches!(response.header("x-tollgate-attempts"), Some("1" | "2")), "{:?}", response.headers);
}

#[tokio::test]
async fn an_upload_to_a_server_of_http_1_0_arrives_whole_each_time() {
    let reply = "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok";
    let upstream = Upstream::always(Reply::raw(reply)).await;
    let gateway = Gateway::before(&upstream).run().await;
    let mut client = RawClient::connect(gateway.listen).await;

    for _ in 0..2 {
        client.send(head("POST", "/v1/files", "transfer-encoding: chunked\r\n")).await;
        client.send("6\r\nabcdef\r\n0\r\n\r\n").await;
        assert_eq!(client.response().await.expect("a response").text(), "ok");
        assert_eq!(upstream.next_request().await.body, b"abcdef");
    }
}

#[tokio::test]
async fn a_reply_with_trailers_is_whole_and_its_connection_is_used_again() {
    let reply = Reply::stream().data(chunk("x")).data(usage_chunk((37, 29))).data(DONE).trailers("x-checksum: 1\r\n");
    let upstream = Upstream::always(reply).await;
    let gateway = Gateway::before(&upstream).run().await;

    let calls = [gateway.hello_stream("m"), gateway.hello_stream("m").header("te", "trailers")];
    let responses = Call::send_all(gateway.listen, &[&calls[..], &calls[..]].concat()).await;

    assert!(responses.iter().all(|response| response.complete && response.text().ends_with(DONE)), "{responses:?}");
    for record in gateway.wait_for_records(4).await {
        assert_eq!((record.text("outcome"), record.text("usage_source")), ("ok", "provider"), "{record:?}");
    }
    assert_eq!(upstream.connection_count(), 1);
}

#[tokio::test]
async fn what_a_server_says_beyond_its_reply_is_nobodys_answer() {
    const SMUGGLED: &str = "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nSMUGGLED";
    let cases = [
        ("HEAD", format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{SMUGGLED}", SMUGGLED.len())),
        ("GET", format!("HTTP/1.1 204 No Content\r\n\r\n{SMUGGLED}")),
        ("GET", format!("HTTP/1.1 304 Not Modified\r\ncontent-length: 8\r\n\r\n{SMUGGLED}")),
        ("GET", format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok{SMUGGLED}")),
        ("GET", format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n{SMUGGLED}")),
        ("GET", format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok{SMUGGLED}")),
    ];
    let upstream = Upstream::answering(|_| Reply::bytes(200, "text/plain", "clean")).await;
    let gateway = Gateway::before(&upstream).run().await;
    let mut client = RawClient::connect(gateway.listen).await;
    for (method, reply) in &cases {
        upstream.script(Reply::raw(reply.as_bytes()));

        client.send(head(method, "/v1/files/a", "")).await;
        let first = client.response_to(method).await.expect("a response");
        client.send(head("GET", "/v1/files/b", "")).await;
        let second = client.response_to("GET").await.expect("a response");

        assert!(matches!(first.text().as_str(), "" | "ok"), "{reply:?}: {}", first.text());
        assert_eq!(second.text(), "clean", "{reply:?}");
    }
}

#[tokio::test]
async fn what_a_server_says_on_an_idle_connection_is_nobodys_answer() {
    let (url, mut connections) = by_hand().await;
    let gateway = in_front_of(&url, "{ attempts: 1, eject: off }").await;
    let mut client = RawClient::connect(gateway.listen).await;

    client.send(head("GET", "/v1/files/a", "")).await;
    let mut idle = soon("a connection", connections.recv()).await.unwrap();
    read_head(&mut idle).await;
    idle.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
    assert_eq!(client.response_to("GET").await.expect("a response").text(), "ok");
    idle.write_all(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 8\r\n\r\nSMUGGLED").await.unwrap();

    client.send(head("GET", "/v1/files/b", "")).await;
    let mut fresh = soon("another connection", connections.recv()).await.unwrap();
    read_head(&mut fresh).await;
    fresh.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nclean").await.unwrap();
    assert_eq!(client.response_to("GET").await.expect("a response").text(), "clean");
}

#[tokio::test]
async fn a_connection_that_was_answered_before_its_request_was_whole_is_not_used_again() {
    let (url, mut connections) = by_hand().await;
    let gateway = in_front_of(&url, "{ attempts: 1, eject: off }").await;
    let long = json!({"model": "m", "messages": [{"role": "user", "content": "x".repeat(24 * MIB)}]});
    let call = gateway.chat(&long);
    let sent = tokio::spawn(async move { call.send().await });

    let mut unread = soon("a connection", connections.recv()).await.unwrap();
    read_head(&mut unread).await;
    unread.write_all(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\n\r\nno").await.unwrap();
    let refused = soon("the early reply", sent).await.unwrap();
    assert_eq!((refused.status, refused.text().as_str()), (413, "no"));

    let call = gateway.hello("m");
    let next = tokio::spawn(async move { call.send().await });
    let mut fresh = soon("another connection", connections.recv()).await.unwrap();
    read_head(&mut fresh).await;
    fresh.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
    assert_eq!(soon("its reply", next).await.unwrap().text(), "{}");
}

// === given up ===

#[tokio::test]
async fn endless_replies_are_given_up_in_little_memory() {
    let chunked = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    let endless = [
        Reply::raw("").repeat("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n".repeat(100), 100_000),
        Reply::raw(format!("{chunked}2;")).repeat("a".repeat(4096), 10_000),
        Reply::raw(format!("{chunked}2\r\n{{}}\r\n0\r\n"))
            .repeat("x-trailer: aaaaaaaaaaaaaaaaaa\r\n".repeat(100), 10_000),
    ];
    let upstream = Upstream::run().await;
    let routing = "{ attempts: 1, eject: off, timeouts: { first_byte: 1s, idle: 1s } }";
    let gateway = Gateway::before(&upstream).top("routing", routing).run().await;
    gateway.hello("m").send().await.expect(200);
    let before = gateway.memory_bytes("VmHWM:");

    for reply in endless {
        upstream.script(reply);
        let response = gateway.hello("m").send().await;
        assert!(response.status == 504 || !response.complete, "{} {}", response.status, response.text());
    }

    upstream.wait_for_aborts(3, DEADLINE).await;
    let grown = gateway.memory_bytes("VmHWM:").saturating_sub(before);
    assert!(grown < 16 * MIB as u64, "grew by {grown} bytes");
}

#[tokio::test]
async fn an_upload_that_the_provider_does_not_read_waits_in_the_client_and_ends_in_time() {
    let (url, mut connections) = by_hand().await;
    let routing = "{ attempts: 1, eject: off, timeouts: { total: 1s } }";
    let gateway = in_front_of(&url, routing).await;
    let before = gateway.memory_bytes("VmHWM:");
    let mut client = RawClient::connect(gateway.listen).await;
    client.send(head("POST", "/v1/files", &format!("content-length: {}\r\n", 256 * MIB))).await;
    let sending = tokio::spawn(async move { client.send(vec![b'x'; 256 * MIB]).await });
    let _unread = soon("a connection", connections.recv()).await.unwrap();

    let record = gateway.next_record().await;

    assert_eq!((record.number("status"), record.text("outcome")), (504, "upstream_failed"), "{record:?}");
    soon("the client is told", sending).await.unwrap();
    let grown = gateway.memory_bytes("VmHWM:").saturating_sub(before);
    assert!(grown < 16 * MIB as u64, "grew by {grown} bytes");
}

#[tokio::test]
async fn a_reply_to_a_slow_reader_ends_with_the_calls_time() {
    let upstream = Upstream::always(Reply::stream().repeat(vec![b'x'; 64 * 1024], 16 * 1024)).await;
    let routing = "{ attempts: 1, eject: off, timeouts: { total: 500ms } }";
    let gateway = Gateway::before(&upstream).top("routing", routing).run().await;

    let mut streaming = gateway.get("/v1/files/a/content").key(KEY).open_owned().await;
    let begun = Instant::now();
    while gateway.records().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(10), "it still goes on");
        streaming.next_chunk().await;
        // The subject of this test is a client that reads slower than its provider sends.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    assert_eq!(gateway.next_record().await.text("outcome"), "cut");
    assert!(!streaming.finish().await.complete);
}

#[tokio::test]
async fn half_a_preface_of_http_2_has_the_time_of_a_head() {
    let upstream = Upstream::run().await;
    let server = r#"{ listen: "127.0.0.1:0", admin: "127.0.0.1:0", limits: { header_timeout: 300ms } }"#;
    let gateway = Gateway::before(&upstream).top("server", server).run().await;

    let begun = Instant::now();
    let mut client = RawClient::connect(gateway.listen).await;
    client.send("PRI * HTTP/2.0\r\n\r\nS").await;
    assert!(client.read_to_end().await.is_empty());

    assert!(begun.elapsed() < Duration::from_secs(10), "closed after {:?}", begun.elapsed());
}

// === whose fault it was ===

#[tokio::test]
async fn an_upload_that_its_client_broke_off_is_no_sign_of_health() {
    let upstream = Upstream::always(Reply::json(500, &json!({}))).await;
    let spare = Upstream::run().await;
    let gateway = Gateway::before(&upstream)
        .provider_at("spare", &spare.url())
        .model("m", "target: upstream/m, fallbacks: [spare/m]")
        .top("routing", "{ attempts: 1, eject: { after: 2, for: 60s } }")
        .run()
        .await;
    let broken = [&head("POST", "/v1/files", "transfer-encoding: chunked\r\n"), "2\r\nab\r\nnonsense\r\n"].concat();

    gateway.hello("m").send().await.expect(500);
    let mut client = RawClient::connect(gateway.listen).await;
    client.send(broken).await;
    client.read_to_end().await;
    gateway.hello("m").send().await.expect(500);

    gateway.hello("m").send().await.expect(200);
    assert_eq!(spare.request_count(), 1);
}

// === nothing is left behind ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hang_ups_at_any_point_leave_no_descriptor_behind() {
    let upstream = Upstream::answering(|request| match request.json()["model"].as_str() {
        Some("silent") => Reply::hang(),
        Some("stream") => Reply::stream().data(chunk("one")).then_hang(),
        _ => openai(request),
    })
    .await;
    let gateway = Gateway::before(&upstream).run().await;
    gateway.hello("m").send().await.expect(200);
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", gateway.process_id())).unwrap().count();
    let before = descriptors();

    for _ in 0..rounds(5, 500) {
        let asked = upstream.request_count();
        let (silent, stream) = (gateway.hello("silent").bytes(), gateway.hello_stream("stream"));
        let waiting = (0..10).map(|_| async {
            let mut client = RawClient::connect(gateway.listen).await;
            client.send(&silent).await;
            client
        });
        let half = (0..10).map(|_| async {
            let mut client = RawClient::connect(gateway.listen).await;
            client.send(&silent[..silent.len() - 1]).await;
            client
        });
        let (waiting, half) = (join_all(waiting).await, join_all(half).await);
        let mut streams = join_all((0..10).map(|_| stream.open())).await;
        for stream in &mut streams {
            stream.read_events(1).await;
        }
        wait_until("all calls are under way", DEADLINE, || upstream.request_count() >= asked + 20).await;
        drop((waiting, half, streams));
    }

    let in_flight = |metrics: &crate::support::metrics::Metrics| metrics.value("tollgate_in_flight", &[]) == 0.0;
    eventually("no call is in flight", DEADLINE, || gateway.metrics(), in_flight).await;
    wait_until("descriptors are given back", DEADLINE, || descriptors() <= before + 2).await;
}
