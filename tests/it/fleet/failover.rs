//! A primary is lost with grants that no replica has, and the replica takes its place: what is spent stays within the limit.
//!
//! Each round has an account of its own, so that its limit is reached across the failover. In every other round a gateway is
//! stopped meanwhile: it holds money, and is not there when the new primary listens to the holders.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use serde_json::json;

use crate::support::{
    DEADLINE, Dice, Gateway, Upstream, eventually,
    fleet::{Books, Load, Outcome, USD, accounts, billing_upstream, cost_of, costing, fleet, member, statuses},
    gateway::Setup,
    proxy::{Mode, Proxy},
    redis::RedisServer,
    rounds, seed, wait_until,
};

/// Of each account.
const LIMIT: u64 = USD;
/// A failover, and all that follows until the limit is reached.
const ROUND: Duration = Duration::from_secs(40);

/// A member whose grants count once a replica has them, with an account per user.
fn careful(upstream: &Upstream, store: &str) -> Setup {
    member(upstream, store)
        .top("ledger", "{ sync: 100ms, wait_replicas: 1 }")
        .budget("name: each, scope: { user: \"*\" }, per: total, clamp: off, limit: 1 USD")
}

/// What the provider billed for each user.
fn billed_by_user(upstream: &Upstream) -> BTreeMap<String, u64> {
    let mut billed = BTreeMap::new();
    for request in upstream.requests() {
        *billed.entry(request.json()["user"].as_str().expect("sent below").to_owned()).or_default() +=
            cost_of(&request);
    }
    billed
}

/// A primary and the replica that follows it over a link which can be cut.
struct Pair {
    primary: RedisServer,
    replica: RedisServer,
    link: Proxy,
}

impl Pair {
    async fn start() -> Pair {
        Pair::of(RedisServer::start()).await
    }

    async fn of(primary: RedisServer) -> Pair {
        let link = Proxy::before(primary.port).await;
        let replica = RedisServer::replica_by(link.port);
        Pair { primary, replica, link }
    }
}

/// Fails over `count` times under load. `promote` makes the replica the primary, after that was killed, for all to find;
/// `follow` is told of the pair that then is.
async fn spend_across_failovers(
    upstream: &Upstream,
    gateways: &[Gateway],
    mut pair: Pair,
    count: usize,
    promote: impl Fn(&RedisServer),
    follow: impl Fn(&Pair),
) {
    let mut dice = Dice::seeded(seed());
    let round = Arc::new(AtomicUsize::new(0));
    let user = Arc::clone(&round);
    let load = Load::start(gateways, 6, Duration::from_millis(20), move |number| {
        let mut body = costing(number * 7919 % 1001);
        body["user"] = json!(format!("round-{}", user.load(SeqCst)));
        body
    });
    for number in 0..count {
        round.store(number, SeqCst);
        let (before, some) = (upstream.request_count(), 5 + dice.below(40));
        wait_until("some of it is spent", ROUND, || upstream.request_count() >= before + some).await;
        pair.link.set(Mode::BlackHole);
        let before = load.outcomes().len();
        wait_until("calls go on", ROUND, || load.outcomes().len() >= before + 20).await;
        let absent = (number % 2 == 1).then(|| dice.below(gateways.len()));
        if let Some(absent) = absent {
            gateways[absent].signal("STOP");
        }
        pair.primary.kill();
        promote(&pair.replica);
        pair = Pair::of(pair.replica).await;
        follow(&pair);
        let refused = |who: &dyn Fn(usize) -> bool, from: usize| {
            load.outcomes()[from..].iter().filter(|outcome| who(outcome.gateway) && outcome.is(429)).count() >= 10
        };
        let from = load.outcomes().len();
        wait_until("the rest is spent", ROUND, || refused(&|gateway| Some(gateway) != absent, from)).await;
        if let Some(absent) = absent {
            gateways[absent].signal("CONT");
            let from = load.outcomes().len();
            wait_until("who was away spent its own", ROUND, || refused(&|gateway| gateway == absent, from)).await;
        }
        let billed = billed_by_user(upstream)[&format!("round-{number}")];
        eprintln!("failover {number}: {billed} of {LIMIT} spent; away meanwhile: {absent:?}");
        assert!(billed <= LIMIT, "failover {number}: {billed} spent of {LIMIT}");
        assert!(billed * 100 >= LIMIT * 95, "failover {number}: only {billed} of {LIMIT} could be spent");
    }
    let outcomes = load.stop().await;
    eprintln!("{:?}", statuses(&outcomes));

    let settled = |books: &BTreeMap<String, Books>| books.values().all(Books::are_quiet);
    let books = eventually("all is settled", DEADLINE, || async { accounts(&[&pair.primary]) }, settled).await;
    for (user, billed) in billed_by_user(upstream) {
        let books = books[&format!("tollgate:account:{{each/tenant=red,user={user}/total}}")];
        assert_eq!((books.charged, books.debt), (billed, 0), "{user}");
    }
}

/// Reliability 17, with a service address that is led to the new primary by hand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_missed_grants_is_promoted_by_hand_and_nothing_is_spent_twice() {
    let (pair, upstream) = (Pair::start().await, billing_upstream().await);
    let service = Proxy::before(pair.primary.port).await;
    let gateways = fleet(3, || careful(&upstream, &service.url("redis"))).await;
    let promote = |replica: &RedisServer| {
        assert_eq!(replica.command(&["REPLICAOF", "NO", "ONE"]), "OK");
        service.lead_to(replica.port);
    };
    spend_across_failovers(&upstream, &gateways, pair, rounds(2, 20), promote, |_| ()).await;
}

/// Reliability 17, with three Sentinels that find out by themselves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_missed_grants_is_promoted_by_sentinels_and_nothing_is_spent_twice() {
    let (pair, upstream) = (Pair::start().await, billing_upstream().await);
    let sentinels = RedisServer::sentinels(&pair.primary, 300, 3);
    for sentinel in &sentinels {
        // They look at replicas often, and let them follow over the link as they do.
        let debug = sentinel.command(&["SENTINEL", "DEBUG", "INFO-PERIOD", "200", "PUBLISH-PERIOD", "15000"]);
        assert_eq!(debug, "OK");
    }
    let knows = |replica: &RedisServer| {
        let listed = format!("\nport\n{}\n", replica.port);
        sentinels.iter().all(|sentinel| {
            let replicas = sentinel.command(&["SENTINEL", "REPLICAS", "main"]);
            let own = replicas.split("name\n").find(|one| one.contains(&listed));
            own.is_some_and(|one| one.contains("master-link-status\nok"))
        })
    };
    wait_until("the Sentinels know the replica", DEADLINE, || knows(&pair.replica)).await;
    let hosts: Vec<String> = sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port)).collect();
    let url = format!("redis+sentinel://{}/main", hosts.join(","));
    let gateways = fleet(3, || careful(&upstream, &url)).await;
    let until = |what: &str, done: &dyn Fn() -> bool| {
        let begun = std::time::Instant::now();
        while !done() {
            assert!(begun.elapsed() < DEADLINE, "waited in vain: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let promote = |replica: &RedisServer| {
        until("the Sentinels promote it", &|| replica.is_primary());
    };
    let follow = |pair: &Pair| until("the Sentinels know the new replica", &|| knows(&pair.replica));
    spend_across_failovers(&upstream, &gateways, pair, rounds(2, 20), promote, follow).await;
}

/// A Cluster of three primaries with a replica each: one primary after the other is killed and replaced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn primaries_of_a_cluster_are_replaced_and_no_account_is_overspent() {
    const USERS: u64 = 12;
    let (mut nodes, upstream) = (RedisServer::cluster(3), billing_upstream().await);
    let hosts: Vec<String> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
    let gateways = fleet(2, || careful(&upstream, &format!("redis+cluster://{}", hosts.join(",")))).await;
    for round in 0..rounds(1, 6) {
        let load = Load::start(&gateways, 6, Duration::from_millis(5), move |number| {
            let mut body = costing(number * 7919 % 1001);
            body["user"] = json!(format!("u{round}-{}", number % USERS));
            body
        });
        let begun = upstream.request_count();
        wait_until("money is spent on all of them", DEADLINE, || upstream.request_count() >= begun + 200).await;
        // A node's place in the Cluster: it and its follower stand three apart.
        let (one, other) = (round % 3, round % 3 + 3);
        let (primary, replica) = if nodes[one].is_primary() { (one, other) } else { (other, one) };
        nodes[primary].kill();
        wait_until("its replica takes over", ROUND, || nodes[replica].is_primary()).await;
        nodes[primary].restart();
        let refused = || load.count(|outcome: &Outcome| outcome.is(429)) >= 400;
        wait_until("the limits are reached", 2 * ROUND, refused).await;
        let outcomes = load.stop().await;

        let billed = billed_by_user(&upstream);
        let of_round = billed.iter().filter(|(user, _)| user.starts_with(&format!("u{round}-")));
        let spent: Vec<u64> = of_round.map(|(_, billed)| *billed).collect();
        eprintln!("round {round}: {:?}; spent of {LIMIT} each: {spent:?}", statuses(&outcomes));
        assert!(spent.iter().all(|spent| *spent <= LIMIT), "{spent:?}");
        assert!(spent.iter().sum::<u64>() * 100 >= 90 * USERS * LIMIT, "{spent:?}");
    }
    let primaries: Vec<&RedisServer> = nodes.iter().filter(|node| node.is_primary()).collect();
    let settled = |books: &BTreeMap<String, Books>| books.values().all(Books::are_quiet);
    let books = eventually("all is settled", DEADLINE, || async { accounts(&primaries) }, settled).await;
    let (charged, billed) = (books.values().map(|books| books.charged).sum::<u64>(), billed_by_user(&upstream));
    assert_eq!(charged, billed.values().sum::<u64>());
}
