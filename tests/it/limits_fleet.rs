//! Rate limits of several gateways on one Redis: together they admit what one would, and Redis is never waited for.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::support::{DEADLINE, Gateway, Upstream, eventually, redis::RedisServer, wait_until};

/// The promise over any window: the limit times 1.05, and one request per gateway.
fn promised(limit: usize) -> usize {
    limit * 105 / 100 + 3
}

async fn fleet(upstream: &Upstream, redis: &RedisServer, sync: &str, limit: &str) -> Vec<Gateway> {
    let member = || {
        let setup = Gateway::before(upstream).top("store", &redis.url()).top("ledger", &format!("{{ sync: {sync} }}"));
        setup.limit(&format!(r#"name: team, scope: {{ team: red }}, {limit}"#)).run()
    };
    join_all((0..3).map(|_| member())).await
}

/// What a client saw of its calls.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    admitted: usize,
    refused: usize,
    longest: Duration,
}

/// Calls without a pause over four connections, for so long.
async fn flood(gateway: &Gateway, time: Duration) -> Seen {
    let begun = Instant::now();
    let client = async || {
        let mut seen = Seen::default();
        while begun.elapsed() < time {
            let sent = Instant::now();
            let response = gateway.hello("upstream/m").send().await;
            seen.longest = seen.longest.max(sent.elapsed());
            match response.status {
                200 => seen.admitted += 1,
                429 => seen.refused += 1,
                other => panic!("{other}: {}", response.text()),
            }
            // Refusals cost next to nothing, and a loop of them would take the machine from the others.
            if response.status == 429 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        seen
    };
    let seen = join_all((0..4).map(|_| client())).await;
    Seen {
        admitted: seen.iter().map(|seen| seen.admitted).sum(),
        refused: seen.iter().map(|seen| seen.refused).sum(),
        longest: seen.iter().map(|seen| seen.longest).max().unwrap_or_default(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_gateways_admit_what_one_would() {
    let (redis, upstream) = (RedisServer::start(), Upstream::run().await);
    let gateways = fleet(&upstream, &redis, "100ms", "requests: 300/min").await;
    let begun = Instant::now();

    let seen = join_all(gateways.iter().map(|gateway| flood(gateway, Duration::from_secs(4)))).await;
    // Whoever has nothing left has nothing left anywhere.
    let again = join_all(gateways.iter().map(|gateway| flood(gateway, Duration::from_secs(1)))).await;

    let admitted = upstream.request_count();
    eprintln!("{admitted} of 300 in {:?}: {seen:?}, then {again:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(55), "one window");
    assert!((270..=promised(300)).contains(&admitted), "{admitted} were admitted");
    assert!(seen.iter().all(|seen| seen.admitted >= 20 && seen.refused > 0), "each has a part: {seen:?}");
    let refused = gateways[0].hello("upstream/m").send().await.expect(429);
    assert_eq!(refused.header("x-ratelimit-limit-requests"), Some("300"));
    assert_eq!(refused.header("x-ratelimit-remaining-requests"), Some("0"));
    let wait: u64 = refused.header("retry-after").expect("retry-after").parse().expect("whole seconds");
    assert!((1..=60).contains(&wait), "{wait}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_gateway_with_all_the_traffic_has_all_of_the_limit() {
    let (redis, upstream) = (RedisServer::start(), Upstream::run().await);
    let gateways = fleet(&upstream, &redis, "100ms", "requests: 300/min").await;
    for gateway in &gateways {
        gateway.hello("upstream/m").send().await.expect(200);
    }

    let seen = flood(&gateways[0], Duration::from_secs(4)).await;

    assert!(seen.admitted >= 270, "{seen:?}");
    assert!(upstream.request_count() <= promised(300), "{} were admitted", upstream.request_count());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_share_follows_the_load() {
    let (redis, upstream) = (RedisServer::start(), Upstream::run().await);
    let gateways = fleet(&upstream, &redis, "100ms", "requests: 30/s").await;
    let measured = Duration::from_secs(3);

    for gateway in [&gateways[0], &gateways[1], &gateways[0]] {
        flood(gateway, Duration::from_secs(2)).await;
        let (before, begun) = (upstream.request_count(), Instant::now());
        let seen = flood(gateway, measured).await;
        let admitted = upstream.request_count() - before;
        // Windows that begin before and end after what was measured.
        let windows = begun.elapsed().as_secs_f64().ceil() as usize + 1;
        assert!(admitted <= windows * promised(30), "{admitted} in {windows} windows");
        assert!(seen.admitted * 10 >= 9 * 30 * 3, "{seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_shared_as_well() {
    let (redis, upstream) = (RedisServer::start(), Upstream::run().await);
    let gateways = fleet(&upstream, &redis, "100ms", "tokens: 3000/min").await;

    let seen = join_all(gateways.iter().map(|gateway| flood(gateway, Duration::from_secs(3)))).await;

    let again = gateways[0].hello("upstream/m").send().await.expect(429);
    assert_eq!(again.header("x-ratelimit-limit-tokens"), Some("3000"), "{:?}", again.headers);
    let alone = Upstream::run().await;
    let gateway = Gateway::before(&alone).limit("name: team, scope: { team: red }, tokens: 3000/min").run().await;
    let by_one = flood(&gateway, Duration::from_secs(3)).await.admitted;
    let together: usize = seen.iter().map(|seen| seen.admitted).sum();
    assert!(together <= by_one * 105 / 100 + 3 && together * 10 >= by_one * 8, "{together} together, {by_one} by one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_hangs_leaves_the_last_shares_and_nobody_waits() {
    let (redis, upstream) = (RedisServer::start(), Upstream::run().await);
    let gateways = fleet(&upstream, &redis, "100ms", "requests: 300/min").await;
    // A part of the limit, evenly, so that there are shares.
    for _ in 0..10 {
        join_all(gateways.iter().map(|gateway| gateway.hello("upstream/m").send_owned())).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    redis.signal("STOP");
    let seen = join_all(gateways.iter().map(|gateway| flood(gateway, Duration::from_secs(4)))).await;
    let while_away = upstream.request_count();
    redis.signal("CONT");

    eprintln!("{while_away} of 300 while Redis hung: {seen:?}");
    assert!(seen.iter().all(|seen| seen.longest < Duration::from_millis(750)), "{seen:?}");
    assert!(seen.iter().all(|seen| seen.admitted >= 80), "each has its share, or a third: {seen:?}");
    // Shares of an even load are even; at the worst it could be twice the limit.
    assert!(while_away <= 300 * 3 / 2, "{while_away}");
    let told = |message: &str| gateways.iter().all(|gateway| gateway.log_text().matches(message).count() == 1);
    wait_until("all notice that it is back", DEADLINE, || told("the rate limits' store is back")).await;
    assert!(told("the rate limits' store is away"), "one line per change of state");
    let after = join_all(gateways.iter().map(|gateway| flood(gateway, Duration::from_secs(1)))).await;
    assert!(after.iter().all(|seen| seen.admitted <= 1), "what was admitted meanwhile counts: {after:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_is_asked_once_a_second_for_all_limits() {
    let (redis, upstream) = (RedisServer::start(), Upstream::run().await);
    let limit = r#"requests: 100000/min, tokens: 100000000/min }
  - { name: user, scope: { user: "*" }, requests: 90000/min"#;
    let gateways = fleet(&upstream, &redis, "1s", limit).await;
    let load =
        async |seconds| join_all(gateways.iter().map(|gateway| flood(gateway, Duration::from_secs(seconds)))).await;
    load(2).await;

    let (before, begun) = (redis.calls("evalsha"), Instant::now());
    let seen = load(4).await;
    let (asked, seconds) = (redis.calls("evalsha") - before, begun.elapsed().as_secs_f64());

    eprintln!("{asked} operations in {seconds:.1} s by three gateways, {seen:?}");
    assert!(seen.iter().all(|seen| seen.refused == 0), "{seen:?}");
    assert!(asked as f64 <= 3.0 * (seconds + 1.0), "{asked} operations in {seconds:.1} s by three gateways");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_ends_hands_its_share_back() {
    let (redis, upstream) = (RedisServer::start(), Upstream::run().await);
    let mut gateways = fleet(&upstream, &redis, "100ms", "requests: 60/min").await;
    let mut leaver = gateways.remove(0);
    leaver.hello("upstream/m").send().await.expect(200);
    let holds_most =
        || redis.command(&["HVALS", "tollgate:limits:{share}:team/requests/60000/team=red"]).contains(" 60 ");
    wait_until("it holds the limit", DEADLINE, holds_most).await;

    leaver.signal("TERM");
    assert!(leaver.exit(DEADLINE).await.success());

    let admitted = || async { flood(&gateways[0], Duration::from_millis(500)).await.admitted };
    let begun = Instant::now();
    let mut total = 0;
    while total < 54 {
        assert!(begun.elapsed() < Duration::from_secs(10), "{total} of 60");
        total += admitted().await;
    }
    eventually("no more than the rest", DEADLINE, admitted, |more| *more == 0).await;
    assert!(upstream.request_count() <= promised(60), "{}", upstream.request_count());
}
