//! A Redis that is slow, stopped or cut off: purses go on, nobody waits for it, and afterwards the books are exact.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;

use crate::support::{
    DEADLINE, Gateway, Reply, Upstream, eventually,
    fleet::{
        Books, Load, Outcome, USD, accounts, attempt, billed, billing_upstream, books, costing, fleet, member,
        percentile, quiet_books, statuses, team_budget,
    },
    proxy::{Mode, Proxy},
    redis::RedisServer,
    rounds, wait_until,
};

/// What a busy machine may add to a wait.
const MARGIN: Duration = Duration::from_millis(750);

/// A call whose bound is what it costs: 0.001 USD.
fn exact(_: u64) -> serde_json::Value {
    let mut body = costing(100);
    body["max_tokens"] = 100.into();
    body
}

async fn store_up(gateway: &Gateway) -> f64 {
    gateway.metrics().await.value("tollgate_store_up", &[])
}

/// Acceptance I: two gateways whose budget is closed when the store is away, and one whose budget stays open up to a tenth.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_redis_is_waited_for_by_nobody_and_reconciled_to_the_micro_dollar() {
    const WAIT: Duration = Duration::from_millis(50);
    const LIMIT: u64 = 12 * USD;
    let (redis, upstream) = (RedisServer::start(), billing_upstream().await);
    let setup = |more: &str| {
        member(&upstream, &redis.url())
            .budget(&team_budget(&format!("limit: 12 USD{more}")))
            .top("ledger", "{ sync: 100ms, budget_wait: 50ms }")
    };
    let gateways = [setup("").run().await, setup("").run().await, setup(", on_store_loss: open").run().await];
    const OPEN: usize = 2;
    // 500 calls a second, where the machine manages.
    let load = Load::start(&gateways, 24, Duration::from_millis(48), exact);
    let begun = Instant::now();
    let warm = || begun.elapsed() > Duration::from_secs(2) && load.count(|outcome| outcome.is(200)) > 300;
    wait_until("purses know their demand", DEADLINE, warm).await;

    let stopped = Instant::now();
    redis.signal("STOP");
    for gateway in &gateways {
        eventually("the store counts as away", DEADLINE, || store_up(gateway), |up| *up == 0.0).await;
    }
    let noticed = stopped.elapsed();
    let dry = |gateway: usize| {
        let refused = |outcome: &Outcome| outcome.gateway == gateway && outcome.begun > stopped && outcome.is(503);
        load.count(refused) >= 100
    };
    wait_until("every purse is empty, and the allowance spent", 2 * DEADLINE, || (0..3).all(dry)).await;
    let resumed = Instant::now();
    redis.signal("CONT");
    let served_again = |gateway: usize| {
        load.count(|outcome| outcome.gateway == gateway && outcome.begun > resumed && outcome.is(200)) >= 20
    };
    wait_until("normal service is back", Duration::from_secs(5), || (0..3).all(served_again)).await;
    let back = resumed.elapsed();
    let outcomes = load.stop().await;

    let (before, later): (Vec<&Outcome>, Vec<&Outcome>) =
        outcomes.iter().partition(|outcome| outcome.ended() < stopped);
    let (during, after): (Vec<&Outcome>, Vec<&Outcome>) =
        later.into_iter().partition(|outcome| outcome.begun < resumed);
    let rate = before.len() as f64 / stopped.duration_since(begun).as_secs_f64();
    let longest = percentile(during.iter().copied(), 100);
    eprintln!(
        "{rate:.0} calls/s; away after {noticed:?}; while stopped: {:?}, p50 {:?}, p99 {:?}, longest {longest:?} (before: p99 {:?}); back after {back:?}: {:?}",
        statuses(during.iter().copied()),
        percentile(during.iter().copied(), 50),
        percentile(during.iter().copied(), 99),
        percentile(before.iter().copied(), 99),
        statuses(after.iter().copied()),
    );
    assert!(noticed < Duration::from_secs(1) + MARGIN, "{noticed:?}");
    assert!(longest < WAIT + MARGIN, "a call took {longest:?}");
    for gateway in 0..3 {
        let of_it = |outcome: &&&Outcome| outcome.gateway == gateway;
        let empty_at =
            during.iter().filter(of_it).filter(|outcome| outcome.is(503)).map(|outcome| outcome.ended()).min();
        let empty_at = empty_at.expect("seen above");
        let served_later = during.iter().filter(of_it).filter(|outcome| outcome.is(200) && outcome.begun > empty_at);
        assert_eq!(served_later.count(), 0, "gateway {gateway}: once its purse is empty, all are refused");
    }
    assert!(statuses(outcomes.iter()).keys().all(|status| matches!(status, 200 | 503)), "{:?}", statuses(&outcomes));
    let exact = |books: &Books| books.are_quiet() && books.charged + books.debt == billed(&upstream);
    let books = eventually("the books are the provider's", DEADLINE, || async { books(&redis) }, exact).await;
    assert!(books.debt > 0 && books.debt <= LIMIT / 10, "only the open one went on, by its allowance: {books:?}");
    for gateway in &gateways {
        for message in ["the budget store is away", "the budget store is back"] {
            let lines = gateway.log_text().matches(message).count();
            assert_eq!(lines, 1, "{message}: one line per change of state");
        }
    }
    let open_served = during.iter().filter(|outcome| outcome.gateway == OPEN && outcome.is(200)).count() as u64;
    let closed_served = during.iter().filter(|outcome| outcome.gateway != OPEN && outcome.is(200)).count();
    eprintln!("served while stopped: {open_served} open, {closed_served} by both closed ones; {books:?}");
}

/// Reliability 6. A call that waited for Redis would take at least as long as a flight may, 0.8 s, and be refused then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_with_leased_money_take_as_long_as_ever_whatever_redis_does() {
    const FLIGHT: Duration = Duration::from_millis(800);
    let (redis, upstream) = (RedisServer::start(), billing_upstream().await);
    let proxy = Proxy::before(redis.port).await;
    let gateway = member(&upstream, &proxy.url("redis"))
        .budget(&team_budget("limit: 1000 USD"))
        .top("ledger", "{ sync: 100ms, budget_wait: 10s }")
        .run()
        .await;
    let gateways = [gateway];
    let small = |_| {
        let mut body = costing(1);
        body["max_tokens"] = 1.into();
        body
    };
    let lasting = Duration::from_secs(rounds(1, 10) as u64);
    let measure = async |what: &str, lasting: Duration| {
        let load = Load::start(&gateways, 4, Duration::from_millis(10), small);
        // How long the fault lasts is the subject here.
        tokio::time::sleep(lasting).await;
        let outcomes = load.stop().await;
        let [half, most, all] = [50, 99, 100].map(|percent| percentile(&outcomes, percent));
        eprintln!("{what}: {} calls, p50 {half:?}, p99 {most:?}, longest {all:?}", outcomes.len());
        assert_eq!(statuses(&outcomes).into_keys().collect::<Vec<_>>(), [200], "{what}: a call waited for Redis");
        assert!(most < FLIGHT / 2, "{what}: calls take long: {most:?}");
    };
    let lease_much = async |fault: &dyn Fn()| {
        // Calls a thousand times as dear as the ones that are measured leave a purse that lasts.
        let load = Load::start(&gateways, 8, Duration::ZERO, |_| costing(1000));
        let begun = Instant::now();
        let warm = || begun.elapsed() > Duration::from_millis(1200) && load.count(|outcome| outcome.is(200)) > 100;
        wait_until("the purse holds much", DEADLINE, warm).await;
        fault();
        load.stop().await;
    };

    lease_much(&|| ()).await;
    measure("Redis is well", lasting).await;
    lease_much(&|| redis.signal("STOP")).await;
    measure("stopped", Duration::from_secs(rounds(3, 60) as u64)).await;
    redis.signal("CONT");
    let faults = [
        Mode::Delay(Duration::from_secs(2)),
        Mode::Drip(Duration::from_secs(1)),
        Mode::BlackHole,
        Mode::Truncate(3),
        Mode::Cut,
        Mode::Drop,
    ];
    for fault in faults {
        eventually("the store is back", DEADLINE, || store_up(&gateways[0]), |up| *up == 1.0).await;
        lease_much(&|| proxy.set(fault)).await;
        measure(&format!("{fault:?}"), lasting).await;
        proxy.set(Mode::Pass);
    }

    let books = quiet_books(&redis).await;
    assert_eq!((books.charged, books.debt), (billed(&upstream), 0));
}

/// A node that is stopped and has no replica: nobody takes its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accounts_on_other_nodes_of_a_cluster_go_on_while_one_is_stopped() {
    const USERS: usize = 12;
    let (nodes, upstream) = (RedisServer::cluster(0), billing_upstream().await);
    for node in &nodes {
        node.command(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]);
    }
    let gateway = member(&upstream, &format!("redis+cluster://127.0.0.1:{}", nodes[0].port))
        .budget("name: each, scope: { user: \"*\" }, per: total, clamp: off, limit: 10 USD")
        .top("ledger", "{ sync: 100ms, budget_wait: 10s }")
        .run()
        .await;
    let status = async |user: &str| {
        let call = gateway.chat(&costing(1000)).user(user);
        call.send().await.status
    };
    let users: Vec<String> = (0..USERS).map(|number| format!("u{number}")).collect();
    for user in &users {
        assert_eq!(status(user).await, 200);
    }
    let on_stopped = accounts(&[&nodes[2]]);
    let is_on_stopped = |user: &&String| on_stopped.keys().any(|key| key.contains(&format!("user={user}/")));
    let (stopped, others): (Vec<&String>, Vec<&String>) = users.iter().partition(is_on_stopped);
    assert!(!stopped.is_empty() && !others.is_empty(), "{stopped:?} {others:?}");

    nodes[2].signal("STOP");
    for user in &stopped {
        eventually("what is held of it is spent", DEADLINE, || status(user), |status| *status == 503).await;
    }
    for _ in 0..30 {
        for user in &others {
            assert_eq!(status(user).await, 200, "{user}");
        }
    }
    assert_eq!(store_up(&gateway).await, 0.0, "it is told that a part is away");
    nodes[2].signal("CONT");
    for user in &stopped {
        eventually("its accounts go on", DEADLINE, || status(user), |status| *status == 200).await;
    }

    let all: Vec<&RedisServer> = nodes.iter().collect();
    let charged = || async { accounts(&all).values().map(|books| books.charged).sum::<u64>() };
    eventually("the books are the provider's", DEADLINE, charged, |charged| *charged == billed(&upstream)).await;
    eventually("all of the store is back", DEADLINE, || store_up(&gateway), |up| *up == 1.0).await;
    let said = |line: &str| gateway.log_text().matches(line).count();
    assert_eq!((said("a node of the Cluster is away"), said("a node of the Cluster is back")), (1, 1));
    assert_eq!(said("the budget store is away"), 0, "{}", gateway.log_text());
}

/// A call that its purse cannot pay asks for its bound, then for the bound of its counted prompt, then for what is left: all of
/// it within one wait, though the money is in other hands all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_that_a_call_tries_before_it_is_refused_takes_one_wait() {
    const WAIT: Duration = Duration::from_millis(600);
    let (redis, upstream) = (RedisServer::start(), Upstream::always(Reply::hang()).await);
    let setup = || {
        member(&upstream, &redis.url())
            .price("upstream/gpt-4o", "input: 10 USD/1M, output: 10 USD/1M, max_output: 16384")
            .budget("name: all, scope: { team: red }, per: total, limit: 0.1 USD")
            .top("ledger", "{ sync: 100ms, budget_wait: 600ms }")
    };
    let gateways = fleet(2, setup).await;
    let mut holders: Vec<_> = (0..10).map(|_| Box::pin(attempt_at(&gateways[0]))).collect();
    tokio::select! {
        _ = join_all(holders.iter_mut()) => panic!("no call ends by itself"),
        () = wait_until("all the money is held", DEADLINE, || upstream.request_count() == 10) => {}
    }

    let long = json!({"model": "upstream/gpt-4o", "max_tokens": 4000, "messages": [{"role": "user", "content": "word ".repeat(900)}]});
    // The first one that is counted waits for the tokenizer to be read, too.
    gateways[1].chat(&long).send().await.expect(429);
    let begun = Instant::now();
    let refused = gateways[1].chat(&long).send().await;
    let took = begun.elapsed();

    eprintln!("{} after {took:?}", refused.status);
    assert!(matches!(refused.status, 429 | 503), "{}", refused.text());
    assert!(took < WAIT + WAIT / 2, "one wait is {WAIT:?}, this took {took:?}");
}

async fn attempt_at(gateway: &Gateway) -> Outcome {
    attempt(gateway.listen, &costing(1000)).await
}
