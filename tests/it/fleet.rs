//! Several gateways, one Redis, one budget: the limit holds for all of them together, on good days and on bad ones.
//!
//! What was truly spent is what the scripted provider was asked for, not what anybody booked.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, future::join_all};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::support::{
    Call, DEADLINE, Dice, Gateway, KEY, Reply, Upstream, closed_port, eventually, gateway::Setup, redis::RedisServer,
    upstream::chat_completion, wait_until,
};

const USD: u64 = 1_000_000_000;
/// What 1,000 output tokens cost, in nano-dollars: the bound of every call here.
const BOUND: u64 = 10_000_000;
const BUDGET_WAIT: Duration = Duration::from_millis(250);
/// What a busy machine may add to a wait.
const MARGIN: Duration = Duration::from_millis(750);

/// A provider that bills as many output tokens as the call's `seed` says, after a moment.
async fn billing_upstream() -> Upstream {
    Upstream::answering(|request| Reply::json(200, &chat_completion("x", (5, tokens_of(&request.json()))))).await
}

fn tokens_of(body: &Value) -> u64 {
    body["seed"].as_u64().expect("sent below")
}

/// What the provider has billed for all that it was asked.
fn billed(upstream: &Upstream) -> u64 {
    upstream.requests().iter().map(|request| tokens_of(&request.json()) * (BOUND / 1000)).sum()
}

fn costing(tokens: u64) -> Value {
    json!({"model": "upstream/m", "max_tokens": 1000, "seed": tokens, "messages": [{"role": "user", "content": "hi"}]})
}

fn member(upstream: &Upstream, redis: &RedisServer, budget: &str) -> Setup {
    Gateway::before(upstream)
        .price("upstream/m", "input: 0 USD/1M, output: 10 USD/1M, max_output: 16384")
        .top("store", &redis.url())
        .top("ledger", "{ sync: 100ms }")
        .budget(&format!("name: all, scope: {{ team: red }}, per: total, clamp: off, {budget}"))
}

async fn fleet(upstream: &Upstream, redis: &RedisServer, budget: &str) -> Vec<Gateway> {
    join_all((0..3).map(|_| member(upstream, redis, budget).run())).await
}

/// What Redis has in its books: limit, held by purses or spent, charged, debt.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Books {
    limit: u64,
    held: u64,
    charged: u64,
    debt: u64,
}

fn books(redis: &RedisServer) -> Books {
    let keys = redis.command(&["KEYS", "tollgate:account:*"]);
    let mut books = Books::default();
    for key in keys.lines() {
        let answer = redis.command(&["HGETALL", key]);
        let lines: Vec<&str> = answer.lines().collect();
        for field in lines.chunks(2) {
            let numbers: Vec<u64> = field[1].split(' ').filter_map(|number| number.parse().ok()).collect();
            match (field[0], &numbers[..]) {
                ("limit", [limit]) => books.limit = *limit,
                (name, [granted, returned, charged, debt, ..]) if name.contains('.') => {
                    books.held += granted - returned;
                    books.charged += charged;
                    books.debt += debt;
                }
                _ => {}
            }
        }
    }
    books
}

/// The books once everything idle was handed back and nothing is open.
async fn quiet_books(redis: &RedisServer) -> Books {
    let settled = |books: &Books| books.held == books.charged && books.charged > 0;
    eventually("all idle money is back", DEADLINE, || async { books(redis) }, settled).await
}

/// A call's status and how long it took, where it was answered.
type Outcome = Option<(u16, Duration)>;

/// One call; `None` when the gateway did not answer.
async fn attempt(gateway: SocketAddr, tokens: u64) -> Outcome {
    let call = Call::new(gateway, "POST", "/v1/chat/completions").key(KEY);
    let call = call.header("connection", "close").json(&costing(tokens));
    let begun = Instant::now();
    let mut stream = TcpStream::connect(gateway).await.ok()?;
    stream.write_all(&call.bytes()).await.ok()?;
    let mut head = [0; 12];
    timeout(DEADLINE, stream.read_exact(&mut head)).await.expect("an answer or an end").ok()?;
    let status = std::str::from_utf8(&head[9..]).ok()?.parse().ok()?;
    // To the end, or the gateway would see a client that left.
    let mut rest = Vec::new();
    let cut = stream.read_to_end(&mut rest);
    timeout(DEADLINE, cut).await.expect("an end").ok()?;
    Some((status, begun.elapsed()))
}

fn statuses(outcomes: impl IntoIterator<Item = Outcome>) -> BTreeMap<u16, usize> {
    let mut statuses = BTreeMap::new();
    for (status, _) in outcomes.into_iter().flatten() {
        *statuses.entry(status).or_default() += 1;
    }
    statuses
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_five_hundred_calls_at_once_on_three_gateways_one_hundred_are_paid_for() {
    let (redis, upstream) = (RedisServer::start(), billing_upstream().await);
    let gateways = fleet(&upstream, &redis, "limit: 1 USD").await;

    let calls = (0..500).map(|number| attempt(gateways[number % 3].listen, 1000));
    let outcomes = join_all(calls).await;

    let statuses = statuses(outcomes);
    eprintln!("{statuses:?}");
    assert!(billed(&upstream) <= USD, "{} billed of {USD}", billed(&upstream));
    assert!(statuses[&200] >= 97 && statuses.keys().all(|status| matches!(status, 200 | 429)), "{statuses:?}");
    let books = quiet_books(&redis).await;
    assert_eq!((books.charged, books.debt, books.limit), (billed(&upstream), 0, USD));
    // What was in the other purses when the last calls were refused is there for the next ones.
    for gateway in &gateways {
        for _ in 0..3 {
            attempt(gateway.listen, 1000).await;
        }
    }
    assert_eq!(billed(&upstream), USD, "all of it can be used");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_killed_under_load_cost_neither_money_nor_count() {
    let seed = std::env::var("TOLLGATE_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261);
    eprintln!("TOLLGATE_TEST_SEED={seed}");
    let mut dice = Dice::seeded(seed);
    let (redis, upstream) = (RedisServer::start(), billing_upstream().await);
    let mut gateways = fleet(&upstream, &redis, "limit: 4 USD").await;
    let over = Arc::new(AtomicBool::new(false));
    let addresses: Arc<std::sync::Mutex<Vec<_>>> = Arc::new(std::sync::Mutex::new(Vec::new()));
    addresses.lock().unwrap().extend(gateways.iter().map(|gateway| gateway.listen));
    let number = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..12)
        .map(|client| {
            let (over, addresses, number) = (over.clone(), addresses.clone(), number.clone());
            tokio::spawn(async move {
                while !over.load(SeqCst) {
                    let call = number.fetch_add(1, SeqCst);
                    let address = addresses.lock().unwrap()[client % 3];
                    let outcome = attempt(address, call * 7919 % 1001).await;
                    if outcome.is_none_or(|(status, _)| status != 200) {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            })
        })
        .collect();

    for round in 0..3 {
        let before = upstream.request_count();
        let calls = 20 + dice.below(60);
        wait_until("there is load", DEADLINE, || upstream.request_count() >= before + calls).await;
        let victim = gateways.remove(round);
        let restarted = victim.kill_and_restart().await;
        addresses.lock().unwrap()[round] = restarted.listen;
        gateways.insert(round, restarted);
    }
    let exhausted = || books(&redis).charged * 100 >= 97 * 4 * USD;
    wait_until("97 % of the limit is used", DEADLINE, exhausted).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    over.store(true, SeqCst);
    join_all(clients).await;

    let (books, billed) = (quiet_books(&redis).await, billed(&upstream));
    assert!(billed <= books.charged, "{billed} billed, {} charged", books.charged);
    assert!(books.charged <= 4 * USD && books.debt == 0, "{books:?}");
    // An attempt that was open when its gateway was killed is charged its bound: four clients each, three times.
    assert!(books.charged - billed <= 3 * 4 * BOUND, "{billed} billed, {} charged", books.charged);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_hangs_is_never_waited_for_beyond_the_budget_wait() {
    let (redis, upstream) = (RedisServer::start(), billing_upstream().await);
    let gateways = fleet(&upstream, &redis, "limit: 1000 USD").await;
    let lenient = member(&upstream, &redis, "limit: 1000 USD, on_store_loss: open").run().await;
    let call = |gateway: &Gateway| attempt(gateway.listen, 500);
    // Demand, so that purses hold money ahead of use.
    for _ in 0..20 {
        let outcomes = join_all(gateways.iter().chain([&lenient]).map(call)).await;
        assert_eq!(statuses(outcomes), BTreeMap::from([(200, 4)]));
    }

    redis.signal("STOP");
    let (mut strict, mut open): (Vec<Outcome>, Vec<Outcome>) = (Vec::new(), Vec::new());
    let begun = Instant::now();
    // Until each has used up its leased money, and some more.
    let mut refusals = [0; 3];
    while refusals.iter().any(|count| *count < 20) {
        assert!(begun.elapsed() < DEADLINE, "purses never ran dry: {:?}", statuses(strict));
        let outcomes = join_all((0..12).map(|number| call(&gateways[number % 3]))).await;
        for (number, (status, _)) in outcomes.iter().flatten().enumerate() {
            refusals[number % 3] += usize::from(*status == 503);
        }
        strict.extend(outcomes);
        // Three times as many as each of the strict ones: it runs dry before them, and goes on.
        open.extend(join_all((0..12).map(|_| call(&lenient))).await);
    }
    let refused = gateways[0].chat(&costing(500)).send().await.expect(503);
    let up = gateways[0].metrics().await.value("tollgate_store_up", &[]);
    redis.signal("CONT");

    let longest = strict.iter().chain(&open).flatten().map(|(_, took)| *took).max().expect("calls");
    eprintln!("longest call {longest:?}; strict {:?}", statuses(strict.clone()));
    assert!(longest < BUDGET_WAIT + MARGIN, "a call took {longest:?}");
    assert!(strict[..6].iter().flatten().all(|(status, _)| *status == 200), "leased money goes on: {:?}", &strict[..6]);
    let strict = statuses(strict);
    assert!(strict[&503] > 0 && strict.keys().all(|status| matches!(status, 200 | 503)), "{strict:?}");
    assert_eq!(statuses(open).into_keys().collect::<Vec<_>>(), [200], "open up to its allowance");
    assert_eq!((refused.error_code().as_str(), up), ("store_unavailable", 0.0));
    assert!(refused.header("retry-after").is_some_and(|seconds| seconds.parse::<u64>().is_ok_and(|s| s >= 1)));

    let back = || call(&gateways[0]);
    eventually("service is back", Duration::from_secs(5), back, |outcome| outcome.is_some_and(|(s, _)| s == 200)).await;
    let exact = |books: &Books| books.charged + books.debt == billed(&upstream) && books.held == books.charged;
    let books = eventually("the books are exact again", DEADLINE, || async { books(&redis) }, exact).await;
    assert!(books.debt > 0, "what was spent beyond the purse while Redis was away is debt: {books:?}");
    for message in ["the budget store is away", "the budget store is back"] {
        let lines = gateways[0].log_text().matches(message).count();
        assert_eq!(lines, 1, "{message}: one line per change of state");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_is_asked_by_the_second_and_not_by_the_call() {
    let (redis, upstream) = (RedisServer::start(), billing_upstream().await);
    let gateway = member(&upstream, &redis, "limit: 1000 USD").top("ledger", "{ sync: 1s }").run().await;
    let load = |calls: usize| {
        let call = move |_| attempt(gateway.listen, 100);
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
    let gateways = fleet(&upstream, &redis, "limit: 1 USD").await;
    let call = |gateway: &Gateway| attempt(gateway.listen, 1000);
    // Two of three have spent most of it; the third has never heard of the account.
    for number in 0..90 {
        assert_eq!(call(&gateways[number % 2]).await.map(|(status, _)| status), Some(200));
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
        let setup = member(&upstream, &guarded, "limit: 1 USD").top("store", &format!("\"{url}\""));
        std::fs::write(setup.config_path(), setup.text()).unwrap();
        let output = setup.command(&["serve", "--config", "tollgate.yaml"]).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{told}");
        assert!(told.contains(why) && told.contains("redis://127.0.0.1:") && !told.contains("topsecret"), "{told}");
    }
}
