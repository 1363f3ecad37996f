//! Clocks that jump: by an hour, into a day that is an hour short or long, into the next month, and back.
//!
//! The gateways' wall clock is faked with `libfaketime`, their monotonic clock is not: timeouts are intervals, windows are dates.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tempfile::TempDir;

use crate::support::{
    DEADLINE, Gateway, eventually,
    fleet::{BOUND, Books, Load, USD, accounts, billed, billing_upstream, costing, fleet, member, statuses},
    gateway::Setup,
    redis::RedisServer,
    wait_until,
};

/// A wall clock that the test sets, for as many gateways as there are.
struct Clock {
    directory: TempDir,
}

impl Clock {
    fn at(instant: &str) -> Clock {
        let clock = Clock { directory: TempDir::new().unwrap() };
        clock.set(instant);
        clock
    }

    /// From now on it is this instant, and time goes on from there.
    fn set(&self, instant: &str) {
        let wanted: Timestamp = instant.parse().unwrap();
        self.shift(wanted.duration_since(Timestamp::now()).as_secs_f64());
    }

    /// From now on it is so many seconds later than it is.
    fn shift(&self, seconds: f64) {
        let draft = self.directory.path().join("draft");
        std::fs::write(&draft, format!("{seconds:+.3}\n")).unwrap();
        std::fs::rename(draft, self.file()).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("clock")
    }

    /// A gateway that goes by it.
    fn of(&self, setup: Setup) -> Setup {
        setup
            .env("LD_PRELOAD", &library())
            .env("FAKETIME_TIMESTAMP_FILE", self.file().to_str().unwrap())
            .env("FAKETIME_NO_CACHE", "1")
            .env("DONT_FAKE_MONOTONIC", "1")
            .env("FAKETIME_DONT_RESET", "1")
    }
}

fn library() -> String {
    let places = std::fs::read_dir("/usr/lib").unwrap().map_while(Result::ok).map(|place| place.path());
    let found = places.map(|place| place.join("faketime/libfaketimeMT.so.1")).find(|library| library.exists());
    found.expect("libfaketime is needed for this test: apt-get install faketime").to_str().unwrap().to_owned()
}

async fn refused_for(gateway: &Gateway) -> u64 {
    let refused = gateway.chat(&costing(1000)).send().await.expect(429);
    refused.header("retry-after").expect("a wait").parse().expect("whole seconds, none of them negative")
}

/// Spends what the window has, which is five calls, and says how long the next one is to wait, in seconds.
async fn spend(gateway: &Gateway) -> u64 {
    for _ in 0..5 {
        gateway.chat(&costing(1000)).send().await.expect(200);
    }
    refused_for(gateway).await
}

/// Within the seconds that a test may have taken since the clock was set.
#[track_caller]
fn assert_about(wait: u64, expected: u64) {
    assert!(wait <= expected && wait + 60 > expected, "{wait} s, not about {expected} s");
}

/// Reliability 18.
async fn jumps(store: &str) {
    let upstream = billing_upstream().await;
    let clock = Clock::at("2026-11-23T10:30:00Z");
    let setup = member(&upstream, store)
        .top("ledger", "{ sync: 100ms, budget_wait: 10s }")
        .budget("name: hour, scope: { team: red }, per: hour, timezone: Europe/Berlin, clamp: off, limit: 0.05 USD");
    let gateway = clock.of(setup).run().await;

    assert_about(spend(&gateway).await, 1800);
    clock.set("2026-11-23T11:30:00Z");
    assert_about(spend(&gateway).await, 1800);
    for (instant, wait) in [("2026-11-23T10:40:00Z", 1200), ("2026-11-23T11:50:00Z", 600), ("2026-11-23T10:59:30Z", 30)]
    {
        clock.set(instant);
        assert_about(refused_for(&gateway).await, wait);
    }
    // The hour that the clocks go through twice is two hours; the one that they leap over is none.
    for instant in ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2027-03-28T00:30:00Z", "2027-03-28T01:30:00Z"] {
        clock.set(instant);
        assert_about(spend(&gateway).await, 1800);
    }
    clock.set("2026-12-01T00:00:01Z");
    assert_about(spend(&gateway).await, 3600);
    // What was spent is known after a restart in the past, too.
    clock.set("2026-11-23T10:45:00Z");
    let gateway = gateway.kill_and_restart().await;
    assert_about(refused_for(&gateway).await, 900);

    assert_eq!(billed(&upstream), 7 * 5 * BOUND);
    let rows = gateway.budgets().await;
    assert!(rows.iter().all(|row| row.charged_nanousd <= row.limit_nanousd && row.debt_nanousd == 0), "{rows:?}");
    assert_eq!(rows.iter().map(|row| row.charged_nanousd as u64).sum::<u64>(), 7 * 5 * BOUND, "{rows:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_opens_no_window_twice_in_redis() {
    let redis = RedisServer::start();
    jumps(&redis.url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_opens_no_window_twice_in_the_local_store() {
    jumps("embedded").await;
}

#[tokio::test]
async fn a_day_is_as_long_as_the_clocks_make_it() {
    let upstream = billing_upstream().await;
    let clock = Clock::at("2026-10-24T22:30:00Z");
    let setup = member(&upstream, "embedded")
        .top("ledger", "{ sync: 100ms, budget_wait: 10s }")
        .budget("name: day, scope: { team: red }, per: day, timezone: Europe/Berlin, clamp: off, limit: 0.05 USD");
    let gateway = clock.of(setup).run().await;
    // Half past midnight in Berlin, of a day with 25 hours, one with 23, and one with 24.
    assert_about(spend(&gateway).await, 24 * 3600 + 1800);
    clock.set("2027-03-27T23:30:00Z");
    assert_about(spend(&gateway).await, 22 * 3600 + 1800);
    clock.set("2027-05-31T22:30:00Z");
    assert_about(spend(&gateway).await, 23 * 3600 + 1800);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jumps_by_an_hour_under_load_neither_lose_nor_repeat_what_was_spent() {
    let (redis, upstream) = (RedisServer::start(), billing_upstream().await);
    let clock = Clock::at("2026-11-30T23:59:00Z");
    let setup = || {
        let budget = "name: month, scope: { team: red }, per: month, clamp: off, limit: 1000 USD";
        clock.of(member(&upstream, &redis.url()).budget(budget))
    };
    let gateways = fleet(2, setup).await;
    let load = Load::start(&gateways, 8, Duration::from_millis(5), |number| costing(number * 7919 % 1001));
    for instant in ["2026-12-01T00:59:00Z", "2026-11-30T22:59:00Z", "2026-11-30T23:59:59Z", "2027-01-01T00:00:00Z"] {
        let before = load.outcomes().len();
        wait_until("calls go on", DEADLINE, || load.outcomes().len() >= before + 100).await;
        clock.set(instant);
    }
    let before = load.outcomes().len();
    wait_until("calls go on", DEADLINE, || load.outcomes().len() >= before + 100).await;
    let outcomes = load.stop().await;

    assert_eq!(statuses(&outcomes).into_keys().collect::<Vec<_>>(), [200]);
    let settled = |books: &BTreeMap<String, Books>| books.values().all(Books::are_quiet);
    let books = eventually("all is settled", DEADLINE, || async { accounts(&[&redis]) }, settled).await;
    assert_eq!(books.len(), 3, "one account per month: {books:?}");
    assert_eq!(books.values().map(|books| books.charged).sum::<u64>(), billed(&upstream));
}

/// Acceptance A: the end of a window under load.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_window_under_load_zeroes_each_counter_once() {
    let (redis, upstream) = (RedisServer::start(), billing_upstream().await);
    let clock = Clock::at("2026-11-23T10:59:57Z");
    let began = Instant::now();
    let setup = || {
        let each_key = "name: each-key, scope: { key: \"*\" }, per: hour, clamp: off, limit: 1 USD";
        let team = "name: team, scope: { team: red }, per: hour, clamp: off, limit: 1 USD";
        clock.of(member(&upstream, &redis.url()).budget(each_key).budget(team))
    };
    let gateways = fleet(2, setup).await;
    let load = Load::start(&gateways, 16, Duration::from_millis(5), |_| costing(1000));
    let refused = || load.count(|outcome| outcome.is(429) && outcome.begun > began + Duration::from_secs(4)) >= 100;
    wait_until("both windows are spent", DEADLINE, refused).await;
    load.stop().await;

    assert_eq!(billed(&upstream), 2 * USD, "each window in full, and none twice");
    let settled = |books: &BTreeMap<String, Books>| books.len() == 4 && books.values().all(Books::are_quiet);
    let books = eventually("all is settled", DEADLINE, || async { accounts(&[&redis]) }, settled).await;
    for (account, books) in books {
        assert_eq!((books.charged, books.debt), (USD, 0), "{account}");
    }
}
