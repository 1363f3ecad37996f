//! Event streams: relayed byte for byte and at once, metered beside, and never passed off as complete when they broke.

use std::{collections::HashMap, io::Write as _, time::Duration};

use futures_util::{StreamExt as _, stream};
use serde_json::json;

use crate::support::{
    Dice, Gate, Gateway, KEY, Reply, Response, Upstream, events, sha256,
    upstream::{self, DONE, USAGE, chunk, event, usage_chunk},
};

const SAMPLE: &[u8] = include_bytes!("../data/sse/chat.sse");
/// What `chat.sse` reports: prompt, completion.
const SAMPLE_USAGE: (i64, i64) = (37, 29);

fn asking() -> serde_json::Value {
    json!({"model": "gpt-4o-mini", "stream": true, "stream_options": {"include_usage": true}, "messages": [{"role": "user", "content": "hi"}]})
}

fn empty_choices(response: &Response) -> usize {
    events(&response.body).iter().filter(|data| data.contains("\"choices\":[]")).count()
}

// === usage ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_is_always_the_providers_and_shown_only_to_clients_that_asked() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::everything(&upstream).run().await;
    const EACH: usize = 60;

    let options = [None, Some(false), Some(true)];
    let calls: Vec<_> = (0..3 * EACH).map(|number| {
        let mut body = json!({"model": "upstream/gpt-4o-mini", "stream": true, "messages": [{"role": "user", "content": "hi"}]});
        if let Some(include) = options[number % 3] {
            body["stream_options"] = json!({"include_usage": include});
        }
        (number, gateway.chat(&body))
    }).collect();
    let calls = stream::iter(calls).map(|(number, call)| async move { (number, call.send().await) });
    let responses: Vec<_> = calls.buffer_unordered(16).collect().await;

    for (number, response) in responses {
        assert_eq!(response.status, 200, "{}", response.text());
        let expected = usize::from(options[number % 3] == Some(true));
        assert_eq!(empty_choices(&response), expected, "include_usage {:?}: {}", options[number % 3], response.text());
        assert!(response.text().ends_with(DONE), "{}", response.text());
    }
    for record in gateway.wait_for_records(3 * EACH).await {
        assert_eq!(record.text("usage_source"), "provider");
        assert_eq!(
            (record.number("prompt_tokens"), record.number("completion_tokens")),
            (USAGE.0 as i64, USAGE.1 as i64)
        );
        assert_eq!(record.text("outcome"), "ok");
    }
    assert_eq!(gateway.records().len(), 3 * EACH);
}

#[tokio::test]
async fn usage_repeated_on_every_chunk_is_counted_once() {
    let mut reply = Reply::stream();
    for count in 1..=100 {
        let choice = json!({"index": 0, "delta": {"content": "x"}});
        let usage = json!({"prompt_tokens": 7, "completion_tokens": count, "total_tokens": 7 + count});
        reply = reply.data(event(&json!({"object": "chat.completion.chunk", "choices": [choice], "usage": usage})));
    }
    let upstream = Upstream::always(reply.data(DONE)).await;
    let gateway = Gateway::everything(&upstream).run().await;

    gateway.hello_stream("upstream/gpt-4o-mini").send().await.expect(200);

    let record = gateway.next_record().await;
    assert_eq!((record.number("prompt_tokens"), record.number("completion_tokens")), (7, 100));
}

#[tokio::test]
async fn a_stream_without_usage_is_counted_and_says_so() {
    let upstream = Upstream::always(upstream::chat_stream(&["one ", "two ", "three"], None)).await;
    let gateway = Gateway::transparent(&upstream).run().await;

    gateway.hello_stream("gpt-4o-mini").send().await.expect(200);

    let record = gateway.next_record().await;
    assert_eq!(record.text("usage_source"), "counted");
    assert!(record.number("completion_tokens") >= 3, "three words were sent");
    assert!(record.number("prompt_tokens") >= 1);
}

#[tokio::test]
async fn a_compressed_stream_passes_as_it_came_and_is_metered() {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(SAMPLE).unwrap();
    let compressed = encoder.finish().unwrap();
    let (first, second) = compressed.split_at(compressed.len() / 2);
    let reply = Reply::stream().header("content-encoding", "gzip").header("vary", "accept-encoding");
    let upstream = Upstream::always(reply.data(first).data(second)).await;
    let gateway = Gateway::transparent(&upstream).run().await;

    let response = gateway.chat(&asking()).header("accept-encoding", "gzip").send().await.expect(200);

    assert_eq!(response.header("content-encoding"), Some("gzip"));
    assert_eq!(sha256(&response.body), sha256(&compressed));
    let record = gateway.next_record().await;
    assert_eq!((record.number("prompt_tokens"), record.number("completion_tokens")), SAMPLE_USAGE);
}

// === bytes ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_cut_into_chunks_at_any_byte_is_relayed_and_metered_the_same() {
    let upstream = Upstream::answering(|request| {
        let at: usize = request.header("x-cut").expect("sent below").parse().expect("a number");
        Reply::stream().data(&SAMPLE[..at]).data(&SAMPLE[at..])
    })
    .await;
    let gateway = Gateway::transparent(&upstream).run().await;
    let whole = sha256(SAMPLE);

    let calls: Vec<_> =
        (0..=SAMPLE.len()).map(|at| (at, gateway.chat(&asking()).header("x-cut", &at.to_string()))).collect();
    let calls = stream::iter(calls).map(|(at, call)| async move { (at, call.send().await) });
    let responses: Vec<_> = calls.buffer_unordered(16).collect().await;

    for (at, response) in responses {
        assert_eq!(sha256(&response.body), whole, "cut at byte {at}: {}", response.text());
    }
    let mut usages: HashMap<_, usize> = HashMap::new();
    for record in gateway.wait_for_records(SAMPLE.len() + 1).await {
        *usages
            .entry((record.number("prompt_tokens"), record.number("completion_tokens"), record.number("cached_tokens")))
            .or_default() += 1;
    }
    assert_eq!(usages, HashMap::from([((SAMPLE_USAGE.0, SAMPLE_USAGE.1, 8), SAMPLE.len() + 1)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_of_four_megabytes_passes_in_random_pieces_and_the_usage_after_it_is_seen() {
    let long = event(
        &json!({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "語".repeat(1_400_000)}}]}),
    );
    let script = format!("{}{long}{}{DONE}", chunk("before"), usage_chunk((37, 29))).into_bytes();
    let (mut reply, mut from, mut dice) = (Reply::stream(), 0, Dice::seeded(3));
    while from < script.len() {
        let to = (from + 1 + dice.below(40_000)).min(script.len());
        reply = reply.data(&script[from..to]);
        from = to;
    }
    let upstream = Upstream::always(reply).await;
    let gateway = Gateway::transparent(&upstream).run().await;

    let response = gateway.chat(&asking()).send().await.expect(200);

    assert_eq!(sha256(&response.body), sha256(&script));
    let record = gateway.next_record().await;
    assert_eq!((record.number("prompt_tokens"), record.number("completion_tokens")), SAMPLE_USAGE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_line_costs_bounded_memory() {
    const MIB: usize = 1024 * 1024;
    let endless = Reply::stream().data("data: ").repeat(vec![b'x'; 64 * 1024], 64 * 16);
    let upstream = Upstream::always(endless.data(format!("\n\n{DONE}"))).await;
    let gateway = Gateway::transparent(&upstream).run().await;
    upstream.script(upstream::chat_stream(&["a first stream, which loads what the next ones need"], None));
    gateway.chat(&asking()).send().await.expect(200);
    gateway.next_record().await;
    let before = gateway.memory_bytes("VmHWM:");

    let mut response = gateway.chat(&asking()).open().await;
    let mut received = 0;
    while let Some(piece) = response.next_chunk().await {
        received += piece.len();
    }

    assert_eq!(received, "data: ".len() + 64 * MIB + "\n\n".len() + DONE.len());
    // The promise is 8 MB; the rest is room for the allocator and the sockets of a debug build. The line is 64.
    let grown = gateway.memory_bytes("VmHWM:") - before;
    assert!(grown < 24 * MIB as u64, "grew by {grown} bytes");
}

#[tokio::test]
async fn each_event_arrives_before_the_next_one_is_sent() {
    let gate = Gate::closed();
    let mut reply = Reply::stream();
    for number in 0..5 {
        reply = reply.data(chunk(&format!("event {number}"))).gate(&gate);
    }
    let upstream = Upstream::always(reply.data(DONE)).await;
    for setup in [Gateway::transparent(&upstream), Gateway::everything(&upstream)] {
        let gateway = setup.run().await;
        let mut response = gateway.hello_stream("upstream/gpt-4o-mini").open().await;

        for number in 0..5 {
            let seen = response.read_events(1).await;
            assert!(seen.contains(&format!("event {number}")), "{seen}");
            gate.open(1);
        }

        assert!(response.finish().await.text().ends_with(DONE));
    }
}

// === breaks ===

#[tokio::test]
async fn a_stream_that_breaks_ends_with_one_error_event_and_no_done() {
    for fault in [Fault::Cut, Fault::Reset] {
        let mut reply = Reply::stream();
        for number in 0..5 {
            reply = reply.data(chunk(&number.to_string()));
        }
        let gate = Gate::closed();
        let upstream = Upstream::always(fault.after(reply.gate(&gate))).await;
        let gateway = Gateway::everything(&upstream).run().await;

        let mut streaming = gateway.hello_stream("support").open().await;
        let first = streaming.read_events(5).await;
        gate.open(1);
        let response = streaming.finish().await;

        let all = events(&[first.as_bytes(), &response.body].concat());
        assert_eq!(all.len(), 6, "five chunks and one error: {all:?}");
        let error: serde_json::Value = serde_json::from_str(&all[5]).unwrap();
        assert!(error["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
        assert!(error["error"]["code"].is_string(), "{error}");
        let record = gateway.next_record().await;
        assert_eq!(record.text("outcome"), "cut");
        let metrics = gateway.metrics().await;
        assert_eq!(metrics.value("tollgate_requests_total", &[("outcome", "cut")]), 1.0, "{}", metrics.text);
        assert_eq!(metrics.value("tollgate_requests_total", &[("outcome", "ok")]), 0.0, "{}", metrics.text);
    }
}

#[tokio::test]
async fn the_error_event_stands_alone_after_half_an_event() {
    let half = &chunk("half an event")[..40];
    for end in ["", "\n", "\r\n", "\r"] {
        let gate = Gate::closed();
        let upstream =
            Upstream::always(Reply::stream().data(chunk("whole")).data(format!("{half}{end}")).gate(&gate).cut()).await;
        let gateway = Gateway::transparent(&upstream).run().await;

        let mut streaming = gateway.hello_stream("gpt-4o-mini").open().await;
        let mut seen = streaming.read_events(1).await;
        gate.open(1);
        seen.push_str(&streaming.finish().await.text());

        let all = events(seen.as_bytes());
        let errors = all.iter().filter(|data| {
            serde_json::from_str::<serde_json::Value>(data).is_ok_and(|data| data.get("error").is_some())
        });
        assert_eq!(errors.count(), 1, "half an event then {end:?}: {all:?}");
        assert!(seen.contains(half), "what came is not taken back: {seen}");
        assert!(!seen.contains("[DONE]"), "{seen}");
    }
}

#[tokio::test]
async fn a_broken_messages_stream_ends_with_an_error_in_anthropics_shape() {
    let gate = Gate::closed();
    let start = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"m\",\"type\":\"message\",\"role\":\"assistant\",\"content\":[],\"model\":\"c\",\"usage\":{\"input_tokens\":5,\"output_tokens\":1}}}\n\n";
    let upstream = Upstream::always(Reply::stream().data(start).gate(&gate).cut()).await;
    let gateway = Gateway::transparent(&upstream).run().await;

    let body = json!({"model": "gpt-4o-mini", "max_tokens": 10, "stream": true, "messages": [{"role": "user", "content": "hi"}]});
    let mut streaming = gateway.post("/v1/messages").header("x-api-key", KEY).json(&body).open().await;
    streaming.read_events(1).await;
    gate.open(1);
    let rest = streaming.finish().await;

    assert!(rest.text().contains("event: error"), "{}", rest.text());
    let error: serde_json::Value = serde_json::from_str(events(&rest.body).last().expect("an event")).unwrap();
    assert_eq!(error["type"], "error");
    assert!(error["error"]["message"].is_string(), "{error}");
}

#[tokio::test]
async fn a_body_cut_short_is_not_passed_off_as_complete() {
    let short =
        Reply::raw("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"half\":").cut();
    let chunked = Reply::raw(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n8\r\n{\"half\":\r\n",
    )
    .cut();
    for reply in [short, chunked] {
        let upstream = Upstream::always(reply).await;
        let gateway = Gateway::transparent(&upstream).run().await;

        let response = gateway.hello("gpt-4o-mini").send().await;

        assert!(response.status == 502 || !response.complete, "{} {}", response.status, response.text());
    }
}

#[tokio::test]
async fn a_stream_that_falls_silent_ends_with_an_error_after_the_idle_timeout() {
    let upstream = Upstream::always(Reply::stream().data(chunk("one")).then_hang()).await;
    let routing = "{ attempts: 1, eject: off, timeouts: { idle: 300ms } }";
    let gateway = Gateway::before(&upstream)
        .top("routing", routing)
        .top("unpriced", "{ charge: { input: 1 USD/1M, output: 1 USD/1M } }")
        .run()
        .await;

    let response = gateway.hello_stream("upstream/m").send().await;

    let all = events(&response.body);
    assert_eq!(all.len(), 2, "{all:?}");
    assert!(all[1].contains("\"error\""), "{all:?}");
    upstream.wait_for_aborts(1, Duration::from_secs(1)).await;
}

enum Fault {
    Cut,
    Reset,
}

impl Fault {
    fn after(&self, reply: Reply) -> Reply {
        match self {
            Self::Cut => reply.cut(),
            Self::Reset => reply.reset(),
        }
    }
}
