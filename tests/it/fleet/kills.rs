//! Gateways that are killed at random instants: every attempt is in the books once, and the limit holds.

use std::{
    collections::BTreeMap,
    process::Stdio,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::support::{
    DEADLINE, Dice, Gateway, Upstream, eventually,
    fleet::{
        BOUND, Load, USD, accounts, billed, billing_upstream, cost_of, costing, fleet, member, quiet_books, statuses,
        team_budget,
    },
    gateway::Setup,
    redis::RedisServer,
    rounds, seed, wait_until,
};

/// What each account of a store was charged, by the account's name.
type Charged = BTreeMap<String, u64>;

/// Reliability 9. Each call has a user of its own, each user an account: what an account was charged is what became of one call.
struct Ledger {
    redis: Option<RedisServer>,
}

impl Ledger {
    fn setup(&self, upstream: &Upstream) -> Setup {
        let store = self.redis.as_ref().map_or("embedded".to_owned(), RedisServer::url);
        member(upstream, &store)
            .top("ledger", "{ sync: 100ms, budget_wait: 10s }")
            .budget(&team_budget("limit: 1000 USD"))
            .budget("name: each, scope: { user: \"*\" }, per: total, clamp: off, limit: 0.1 USD")
    }

    /// What each account was charged, once nothing is held that was not spent.
    async fn settled(&self, gateway: &Gateway) -> Charged {
        let data_dir = gateway.data_dir();
        let journals = move || {
            let files = std::fs::read_dir(&data_dir).expect("the data directory").map_while(Result::ok);
            files.filter(|file| file.file_name().to_string_lossy().starts_with("journal-")).count()
        };
        wait_until("what killed processes left is taken in", DEADLINE, || journals() == 1).await;
        let Some(redis) = &self.redis else {
            let rows = gateway.budgets().await;
            assert!(rows.iter().all(|row| row.debt_nanousd == 0));
            return rows.into_iter().map(|row| (row.account, row.charged_nanousd as u64)).collect();
        };
        let quiet = |accounts: &BTreeMap<String, _>| accounts.values().all(crate::support::fleet::Books::are_quiet);
        let accounts = eventually("idle money is back", DEADLINE, || async { accounts(&[redis]) }, quiet).await;
        assert!(accounts.values().all(|books| books.debt == 0));
        let name = |key: &str| key.trim_start_matches("tollgate:account:{").trim_end_matches('}').to_owned();
        accounts.into_iter().map(|(key, books)| (name(&key), books.charged)).collect()
    }
}

async fn every_attempt_is_closed_once(ledger: Ledger, kills: usize) {
    const CLIENTS: usize = 6;
    let mut dice = Dice::seeded(seed());
    let upstream = billing_upstream().await;
    let mut gateway = ledger.setup(&upstream).run().await;
    let costs = dice.below(1000) as u64;
    let load = Load::start(std::slice::from_ref(&gateway), CLIENTS, Duration::ZERO, move |number| {
        let mut body = costing(1 + (number * 7919 + costs) % 1000);
        body["user"] = json!(format!("u{number}"));
        body
    });

    for _ in 0..kills {
        // At a random instant: while calls run, or right after the start.
        tokio::time::sleep(Duration::from_millis(dice.below(250) as u64)).await;
        let setup = gateway.kill();
        if dice.below(4) == 0 {
            let config = setup.config_path();
            let mut early = setup.command(&["serve", "--config", config.to_str().expect("UTF-8")]);
            let mut early = early.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary");
            tokio::time::sleep(Duration::from_millis(dice.below(120) as u64)).await;
            early.kill().expect("our own child");
            early.wait().expect("our own child");
        }
        gateway = setup.start().await;
        load.moved(0, &gateway);
    }
    let served = load.count(|outcome| outcome.is(200));
    wait_until("it serves after all", DEADLINE, || load.count(|outcome| outcome.is(200)) > served + 20).await;
    let outcomes = load.stop().await;
    // The last calls are settled, not killed.
    let none = |rows: &Vec<crate::support::Budget>| rows.iter().all(|row| row.reserved_nanousd == 0);
    eventually("nothing is open", DEADLINE, || gateway.budgets(), none).await;
    let charged = ledger.settled(&gateway).await;

    let account = |user: &str| charged.get(&format!("each/tenant=red,user={user}/total")).copied();
    let (mut dispatched, mut at_bound) = (BTreeMap::new(), 0);
    for request in upstream.requests() {
        let user = request.json()["user"].as_str().expect("sent above").to_owned();
        assert_eq!(dispatched.insert(user.clone(), cost_of(&request)), None, "{user} was sent twice");
        let entry = account(&user);
        assert!(
            entry == Some(cost_of(&request)) || entry == Some(BOUND),
            "{user} cost {}: {entry:?}",
            cost_of(&request)
        );
        at_bound += usize::from(entry == Some(BOUND) && cost_of(&request) != BOUND);
    }
    // An intent that was written and not sent stands at its bound too; nothing else is charged anywhere.
    let unsent = |(name, amount): &(&String, &u64)| {
        let user = name.trim_start_matches("each/tenant=red,user=").trim_end_matches("/total");
        **amount > 0 && name.starts_with("each/") && !dispatched.contains_key(user)
    };
    let unsent: Vec<u64> = charged.iter().filter(unsent).map(|(_, amount)| *amount).collect();
    assert!(unsent.iter().all(|amount| *amount == BOUND), "{unsent:?}");
    let each: u64 = charged.iter().filter(|(name, _)| name.starts_with("each/")).map(|(_, amount)| amount).sum();
    let all: u64 = charged.iter().filter(|(name, _)| name.starts_with("all/")).map(|(_, amount)| amount).sum();
    eprintln!(
        "{kills} kills, {} attempts: {at_bound} were open at a kill and stand at their bound, {} were not sent any more; \
         {} billed, {each} charged; {:?}",
        dispatched.len(),
        unsent.len(),
        billed(&upstream),
        statuses(&outcomes),
    );
    assert_eq!(each, all, "what the rows sum up to is what the counter reads");
    assert!(all >= billed(&upstream));
    assert!(at_bound + unsent.len() <= kills * CLIENTS, "only what was open at a kill");
    assert!(statuses(&outcomes).keys().all(|status| *status == 200 || *status == 503), "{:?}", statuses(&outcomes));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_at_random_instants_leave_every_attempt_closed_once_in_redis() {
    every_attempt_is_closed_once(Ledger { redis: Some(RedisServer::start()) }, rounds(10, 200)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_at_random_instants_leave_every_attempt_closed_once_in_the_local_store() {
    every_attempt_is_closed_once(Ledger { redis: None }, rounds(10, 200)).await;
}

/// Reliability 10, with faults.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_killed_under_load_cost_neither_money_nor_count() {
    const CLIENTS: usize = 12;
    let mut dice = Dice::seeded(seed());
    let (kills, limit) = (rounds(3, 30), rounds(4, 30) as u64 * USD);
    let (redis, upstream) = (RedisServer::start(), billing_upstream().await);
    let budget = team_budget(&format!("limit: {} USD", limit / USD));
    let mut gateways = fleet(3, || member(&upstream, &redis.url()).budget(&budget)).await;
    let load = Load::start(&gateways, CLIENTS, Duration::ZERO, |number| costing(number * 7919 % 1001));

    for round in 0..kills {
        let (before, calls) = (load.outcomes().len(), 20 + dice.below(60));
        wait_until("there is load", DEADLINE, || load.outcomes().len() >= before + calls).await;
        let index = round % 3;
        let restarted = gateways.remove(index).kill_and_restart().await;
        load.moved(index, &restarted);
        gateways.insert(index, restarted);
        assert!(billed(&upstream) <= limit);
    }
    let spent = || crate::support::fleet::books(&redis).charged * 100 >= 97 * limit;
    wait_until("97 % of the limit is used", 10 * DEADLINE, spent).await;
    let refused = load.count(|outcome| outcome.is(429));
    wait_until("it is refused everywhere", DEADLINE, || load.count(|outcome| outcome.is(429)) > refused + 50).await;
    load.stop().await;

    let (books, billed) = (quiet_books(&redis).await, billed(&upstream));
    eprintln!("{kills} kills: {billed} billed, {} charged of {limit}", books.charged);
    assert!(billed <= books.charged, "{billed} billed, {} charged", books.charged);
    assert!(books.charged <= limit && books.debt == 0, "{books:?}");
    // An attempt that was open when its gateway was killed is charged its bound: four clients each.
    let open_at_kills = (kills * CLIENTS / 3) as u64 * BOUND;
    assert!(books.charged - billed <= open_at_kills, "{billed} billed, {} charged", books.charged);
}

/// Reliability 10, without faults: whoever is refused is refused because there is nothing left, not because it is elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_refused_while_others_hold_what_is_left() {
    const CLIENTS: usize = 9;
    const GATEWAYS: usize = 3;
    let limit = rounds(4, 40) as u64 * USD;
    let (redis, upstream) = (RedisServer::start(), billing_upstream().await);
    let budget = team_budget(&format!("limit: {} USD", limit / USD));
    let gateways = fleet(GATEWAYS, || member(&upstream, &redis.url()).budget(&budget)).await;
    let mut dice = Dice::seeded(seed());
    let mut refusals = Vec::new();
    let mut served = 0;
    // Now one gateway has all the clients, now another: what the first one leased must come back.
    while refusals.is_empty() {
        let index = dice.below(GATEWAYS);
        let load =
            Load::start(&gateways[index..=index], CLIENTS, Duration::ZERO, |number| costing(number * 7919 % 1001));
        let (begun, lasting) = (Instant::now(), Duration::from_millis(100 + dice.below(600) as u64));
        let over = || begun.elapsed() > lasting || load.count(|outcome| !outcome.is(200)) > 0;
        wait_until("its turn is over", DEADLINE, over).await;
        let outcomes = load.stop().await;
        served += outcomes.iter().filter(|outcome| outcome.is(200)).count();
        refusals.extend(outcomes.into_iter().filter(|outcome| !outcome.is(200)));
    }

    let free = limit - billed(&upstream);
    // What the other clients' calls held while one was refused was not free.
    let held = CLIENTS as u64 * BOUND;
    let tolerated = (limit / 50).max(GATEWAYS as u64 * BOUND);
    eprintln!("{served} served, then {} refused with {free} of {limit} unspent", refusals.len());
    assert!(refusals.iter().all(|refusal| refusal.is(429)), "{refusals:?}");
    assert!(free <= tolerated + held, "{free} free, {tolerated} tolerated, {held} held");
    // And the rest can be used, to within what one call may cost on each gateway.
    let last = Load::start(&gateways, GATEWAYS, Duration::from_millis(20), |_| costing(1000));
    wait_until("all is refused", DEADLINE, || last.count(|outcome| outcome.is(429)) > 30).await;
    last.stop().await;
    let books = quiet_books(&redis).await;
    assert_eq!((books.charged, books.debt), (billed(&upstream), 0));
    assert!(books.charged * 100 >= 97 * limit && books.charged <= limit, "{books:?}");
}
