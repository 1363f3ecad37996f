//! Good days: the limit is one for all gateways and all of it can be used, Redis is asked by the second, and nobody starts full.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, future::join_all};
use serde_json::{Value, json};

use crate::support::{
    Call, DEADLINE, Gateway, KEY, Reply, Upstream, closed_port, eventually,
    fleet::{USD, attempt, billed, billing_upstream, costing, fleet, member, quiet_books, statuses, team_budget},
    gateway::Setup,
    redis::RedisServer,
    upstream::{DONE, Request, chat_completion, chunk, usage_chunk},
};

/// A second key of the team.
const FRESH: &str = "tg-test-fresh-0123456789abcdef0123456789abcdef";

/// Says 1,000 tokens of output on every endpoint, or hangs where it is asked to.
fn thousand_tokens(request: &Request) -> Reply {
    let body = request.json();
    if body["user"] == "hang" {
        return Reply::hang();
    }
    let usage = (5, 1000);
    match request.path() {
        "/v1/messages" => Reply::json(
            200,
            &json!({
                "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn", "stop_sequence": null,
                "content": [{"type": "text", "text": "x"}], "usage": {"input_tokens": 5, "output_tokens": 1000},
            }),
        ),
        "/v1/responses" => Reply::json(
            200,
            &json!({
                "id": "resp_1", "object": "response", "created_at": 1, "status": "completed", "model": "m", "output": [],
                "usage": {"input_tokens": 5, "output_tokens": 1000, "total_tokens": 1005},
            }),
        ),
        _ if body["stream"] == true => Reply::stream().data(chunk("x")).data(usage_chunk(usage)).data(DONE),
        _ => Reply::json(200, &chat_completion("x", usage)),
    }
}

/// A call of the endpoint that is `number`'s turn, costing 10,000 micro-dollars.
fn mixed(gateway: &Gateway, key: &str, number: usize) -> Call {
    let messages = json!([{"role": "user", "content": "hi"}]);
    let (path, body) = match number % 5 {
        0 => ("chat/completions", json!({"messages": messages, "max_tokens": 1000})),
        1 => ("chat/completions", json!({"messages": messages, "max_completion_tokens": 1000, "stream": true})),
        2 => ("responses", json!({"input": "hi", "max_output_tokens": 1000})),
        3 => ("messages", json!({"messages": messages, "max_tokens": 1000})),
        _ => ("completions", json!({"prompt": "hi", "max_tokens": 1000})),
    };
    let mut body: Value = body;
    body["model"] = json!("upstream/m");
    gateway.post(&format!("/v1/{path}")).key(key).json(&body)
}

/// To a member that is this patient, a busy machine's Redis is not away.
fn patient(upstream: &Upstream, redis: &RedisServer) -> Setup {
    member(upstream, &redis.url()).top("ledger", "{ sync: 100ms, budget_wait: 10s }")
}

/// Acceptance A.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_five_hundred_calls_at_once_on_mixed_endpoints_exactly_a_hundred_are_paid_for() {
    let (redis, upstream) = (RedisServer::start(), Upstream::answering(thousand_tokens).await);
    let each_key = "name: each-key, scope: { key: \"*\" }, per: total, clamp: off, limit: 1 USD";
    let gateways = fleet(2, || patient(&upstream, &redis).key("fresh", FRESH, ", team: red").budget(each_key)).await;

    let calls: Vec<Call> = (0..500).map(|number| mixed(&gateways[number % 2], KEY, number)).collect();
    let responses = join_all(calls.iter().map(Call::send)).await;

    let mut statuses = BTreeMap::new();
    for response in &responses {
        *statuses.entry(response.status).or_insert(0) += 1;
    }
    assert_eq!(statuses, BTreeMap::from([(200, 100), (429, 400)]));
    assert_eq!(upstream.request_count(), 100, "a refused call never reaches the provider");
    let books = quiet_books(&redis).await;
    assert_eq!((books.limit, books.charged, books.debt), (USD, USD, 0));

    // A fresh key has its own limit; what its clients leave behind is settled.
    let hanging = json!({"model": "upstream/m", "max_tokens": 400, "user": "hang", "messages": [{"role": "user", "content": "hi"}]});
    let calls: Vec<Call> =
        (0..200).map(|number| gateways[number % 2].post("/v1/chat/completions").key(FRESH).json(&hanging)).collect();
    let mut calls: Vec<_> = calls.iter().map(|call| Box::pin(call.send())).collect();
    tokio::select! {
        _ = join_all(calls.iter_mut()) => panic!("no call ends by itself"),
        () = crate::support::wait_until("all are in flight", DEADLINE, || upstream.request_count() == 300) => {}
    }
    let left_at = Instant::now();
    drop(calls);
    for gateway in &gateways {
        let reserved = || async { gateway.budgets().await.iter().map(|row| row.reserved_nanousd).sum::<i64>() };
        eventually("nothing is reserved", Duration::from_secs(5), reserved, |reserved| *reserved == 0).await;
    }
    eprintln!("200 calls that were left: nothing is reserved after {:?}", left_at.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_five_hundred_calls_at_once_on_three_gateways_one_hundred_are_paid_for() {
    let (redis, upstream) = (RedisServer::start(), billing_upstream().await);
    let gateways = fleet(3, || patient(&upstream, &redis).budget(&team_budget("limit: 1 USD"))).await;

    let body = costing(1000);
    let outcomes = join_all((0..500).map(|number| attempt(gateways[number % 3].listen, &body))).await;

    let statuses = statuses(&outcomes);
    eprintln!("{statuses:?}");
    assert!(billed(&upstream) <= USD, "{} billed of {USD}", billed(&upstream));
    assert!(statuses[&200] >= 97 && statuses.keys().all(|status| matches!(status, 200 | 429)), "{statuses:?}");
    let books = quiet_books(&redis).await;
    assert_eq!((books.charged, books.debt, books.limit), (billed(&upstream), 0, USD));
    // What was in the other purses when the last calls were refused is there for the next ones.
    for gateway in &gateways {
        for _ in 0..3 {
            attempt(gateway.listen, &body).await;
        }
    }
    assert_eq!(billed(&upstream), USD, "all of it can be used");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_is_asked_by_the_second_and_not_by_the_call() {
    let (redis, upstream) = (RedisServer::start(), billing_upstream().await);
    let gateway = member(&upstream, &redis.url())
        .budget(&team_budget("limit: 1000 USD"))
        .top("ledger", "{ sync: 1s }")
        .run()
        .await;
    let body = costing(100);
    let load = |calls: usize| {
        let call = |_| attempt(gateway.listen, &body);
        futures_util::stream::iter(0..calls).map(call).buffer_unordered(8).collect::<Vec<_>>()
    };
    // Demand is known after the first syncs.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        load(40).await;
    }

    let (asked_before, calls_before, begun) = (redis.calls("evalsha"), upstream.request_count(), Instant::now());
    while begun.elapsed() < Duration::from_secs(3) {
        load(40).await;
    }
    let (asked, calls) = (redis.calls("evalsha") - asked_before, upstream.request_count() - calls_before);
    eprintln!("{calls} calls, {asked} operations in {:?}", begun.elapsed());
    assert!(calls > 100 && asked <= 6, "{asked} operations for {calls} calls in {:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_redis_is_restored_by_its_holders_and_nobody_starts_full() {
    let (redis, upstream) = (RedisServer::start(), billing_upstream().await);
    let gateways = fleet(3, || member(&upstream, &redis.url()).budget(&team_budget("limit: 1 USD"))).await;
    let body = costing(1000);
    let call = |gateway: &Gateway| attempt(gateway.listen, &body);
    // Two of three have spent most of it; the third has never heard of the account.
    for number in 0..90 {
        assert_eq!(call(&gateways[number % 2]).await.status, Some(200));
    }
    quiet_books(&redis).await;

    assert_eq!(redis.command(&["FLUSHALL"]), "OK");
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        join_all(gateways.iter().rev().map(call)).await;
    }

    assert_eq!(billed(&upstream), USD, "what was left, and not more");
    let books = quiet_books(&redis).await;
    assert_eq!((books.limit, books.charged, books.debt), (USD, USD, 0));
    assert!(gateways[2].log_text().contains("the store lost what it held"), "somebody should look");
}

#[tokio::test]
async fn a_redis_that_cannot_be_used_is_said_at_the_start_without_its_password() {
    let upstream = Upstream::run().await;
    let guarded = RedisServer::with(&["--requirepass", "right"]);
    let closed = closed_port().await;
    let refused = [
        (format!("redis://:topsecret@{}", guarded.url().trim_start_matches("redis://")), "AuthenticationFailed"),
        (format!("redis://:topsecret@{}", closed.trim_start_matches("http://")), "refused"),
    ];
    for (url, why) in refused {
        let setup = member(&upstream, &format!("\"{url}\"")).budget(&team_budget("limit: 1 USD"));
        std::fs::write(setup.config_path(), setup.text()).unwrap();
        let output = setup.command(&["serve", "--config", "tollgate.yaml"]).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{told}");
        assert!(told.contains(why) && told.contains("redis://127.0.0.1:") && !told.contains("topsecret"), "{told}");
    }
}
