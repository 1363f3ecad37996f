//! Acceptance D, its budget parts: clients that leave. What they held is free again, and what they got is in the books.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::{
    Call, DEADLINE, Gate, Gateway, RawClient, Reply, Upstream, eventually,
    fleet::{BOUND, fleet, member, quiet_books, team_budget},
    metrics::Metrics,
    redis::RedisServer,
    rounds,
    upstream::{DONE, chat_completion, chunk, usage_chunk},
    wait_until,
};

/// Tokens of a whole reply, and those that a client waits for before it leaves.
const TOKENS: usize = 40;
const SEEN: usize = 7;
const NANOUSD_PER_TOKEN: u64 = BOUND / 1000;

/// A provider that says one token of every stream, and then another, when it is let.
struct Slow {
    tokens: Vec<Gate>,
    unstreamed: Gate,
}

impl Slow {
    fn new() -> Slow {
        Slow { tokens: (0..TOKENS).map(|_| Gate::closed()).collect(), unstreamed: Gate::closed() }
    }

    async fn upstream(&self) -> Upstream {
        let stream = self.tokens.iter().fold(Reply::stream(), |reply, gate| reply.gate(gate).data(chunk(" one")));
        let stream = stream.data(usage_chunk((5, TOKENS as u64))).data(DONE);
        let body = chat_completion("one", (5, TOKENS as u64)).to_string();
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
        let plain = Reply::raw("").gate(&self.unstreamed).data(head + &body);
        Upstream::answering(
            move |request| if request.json()["stream"] == true { stream.clone() } else { plain.clone() },
        )
        .await
    }

    /// Lets so many streams say these of their tokens.
    fn say(&self, tokens: std::ops::Range<usize>, streams: usize) {
        self.tokens[tokens].iter().for_each(|gate| gate.open(streams));
    }
}

fn body(stream: bool) -> Value {
    json!({"model": "upstream/m", "max_tokens": 1000, "stream": stream, "messages": [{"role": "user", "content": "hi"}]})
}

fn call(gateways: &[Gateway], number: usize, stream: bool) -> Call {
    gateways[number % gateways.len()].chat(&body(stream))
}

/// Half of the calls are streams, whose clients leave after some tokens; the others' leave before their reply. Says when.
async fn leave(gateways: &[Gateway], slow: &Slow, upstream: &Upstream, each: usize) -> Instant {
    let streams = (0..each).map(|number| async move { call(gateways, number, true).open_owned().await });
    let plain = (0..each).map(|number| async move {
        let gateway = &gateways[number % gateways.len()];
        let mut client = RawClient::connect(gateway.listen).await;
        client.send(gateway.chat(&body(false)).bytes()).await;
        client
    });
    slow.say(0..SEEN, each);
    let (mut streams, plain) = tokio::join!(join_all(streams), join_all(plain));
    join_all(streams.iter_mut().map(|stream| stream.read_events(SEEN))).await;
    wait_until("all are in flight", DEADLINE, || upstream.request_count() == 2 * each).await;
    for gateway in gateways {
        assert!(gateway.budget("all").await.reserved_nanousd > 0, "while they run, their bounds are reserved");
    }
    drop((streams, plain));
    Instant::now()
}

/// Nothing is in flight or reserved on any gateway.
async fn at_baseline(gateways: &[Gateway]) {
    let within = Duration::from_secs(10);
    for gateway in gateways {
        let none = |budget: &crate::support::Budget| budget.reserved_nanousd == 0;
        eventually("nothing is reserved", within, || gateway.budget("all"), none).await;
        let none = |metrics: &Metrics| metrics.value("tollgate_in_flight", &[]) == 0.0;
        eventually("nothing is in flight", within, || gateway.metrics(), none).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_leave_are_charged_what_they_got_and_hold_nothing_when_calls_are_cancelled() {
    let each = rounds(30, 200);
    let (redis, slow) = (RedisServer::start(), Slow::new());
    let upstream = slow.upstream().await;
    let gateways = fleet(2, || member(&upstream, &redis.url()).budget(&team_budget("limit: 100 USD"))).await;

    let left_at = leave(&gateways, &slow, &upstream, each).await;

    let aborts = upstream.wait_for_aborts(2 * each, DEADLINE).await;
    let slowest = aborts.iter().map(|abort| abort.at.duration_since(left_at)).max().expect("aborts");
    at_baseline(&gateways).await;
    let (mut streams, mut charged) = (0, 0);
    for gateway in &gateways {
        for record in gateway.wait_for_records(each).await {
            assert_eq!(record.text("outcome"), "abandoned");
            let cost = record.number("cost_nanousd") as u64;
            charged += cost;
            // A reply of which nothing was seen may have been made in full.
            if record.text("usage_source") == "bound" {
                assert_eq!(cost, BOUND);
                continue;
            }
            streams += 1;
            let row = (record.text("usage_source"), record.number("completion_tokens"));
            assert!(row.0 == "estimated" && row.1.abs_diff(SEEN as i64) <= 1, "{row:?}");
            assert!(cost >= SEEN as u64 * NANOUSD_PER_TOKEN, "{cost} nano-dollars for {SEEN} tokens");
        }
    }
    eprintln!("{} clients left; the last provider's connection closed {slowest:?} later", 2 * each);
    assert_eq!(streams, each, "every stream's row holds the tokens that were delivered");
    assert!(slowest < Duration::from_millis(500 + 1000), "{slowest:?}");
    let books = quiet_books(&redis).await;
    assert_eq!((books.charged, books.debt), (charged, 0), "the rows and the counter");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_leave_are_charged_what_the_provider_reports_when_replies_are_drained() {
    let each = rounds(30, 200);
    let (redis, slow) = (RedisServer::start(), Slow::new());
    let upstream = slow.upstream().await;
    let member = || {
        let setup = member(&upstream, &redis.url()).budget(&team_budget("limit: 100 USD"));
        setup.top("on_disconnect", "drain")
    };
    let gateways = fleet(2, member).await;

    leave(&gateways, &slow, &upstream, each).await;
    slow.say(SEEN..TOKENS, each);
    slow.unstreamed.open(each);

    at_baseline(&gateways).await;
    for gateway in &gateways {
        for record in gateway.wait_for_records(each).await {
            let row = (record.text("usage_source"), record.number("completion_tokens"));
            assert_eq!(row, ("provider", TOKENS as i64));
        }
    }
    assert_eq!(upstream.aborts().len(), 0, "every reply was read to its end");
    let books = quiet_books(&redis).await;
    assert_eq!((books.charged, books.debt), (2 * (each * TOKENS) as u64 * NANOUSD_PER_TOKEN, 0));
}
