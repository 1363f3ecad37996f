//! The function against the law, and the store against real servers: alone, restarted, with replicas, under Sentinels, as a
//! Cluster, and against ones that lie or hang.

#[path = "../../../tests/it/support/redis.rs"]
pub(super) mod server;

use std::{io::Read as _, net::TcpListener, time::Instant};

use proptest::{prelude::*, test_runner::TestRunner};

use self::server::RedisServer;
use super::{claims::RedisClaims, config::ConfigStore, *};
use crate::{
    ledger::{
        account::{self, Server},
        sync::{Merged, NANO_USD_MAX, RowId, SyncRequest, Totals},
    },
    policy::alerts::State,
    store::{embedded::Tables, ports::PushOutcome},
    wire::revision::{self, Head, Revision},
};

/// Learning takes 1.3 s.
const SYNC_INTERVAL: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(20);

async fn open(url: &str) -> Redis {
    open_waiting(url, 0).await
}

async fn open_waiting(url: &str, replicas: u32) -> Redis {
    Redis::open(RedisUrl::parse(url).unwrap(), replicas, SYNC_INTERVAL).await.unwrap()
}

fn request(incarnation: u64, totals: Totals, need: u64) -> SyncRequest {
    let row = RowId { incarnation, purse: 0 };
    SyncRequest { row, totals, need, target: need, limit: 1000, limit_version: 1, create: true, close: None }
}

fn granted(granted: u64) -> Totals {
    Totals { granted, ..Totals::default() }
}

fn of(account: &str, request: SyncRequest) -> AccountSync {
    AccountSync { account: account.into(), request }
}

async fn ask(store: &Redis, account: &str, request: SyncRequest) -> Result<SyncReply, StoreError> {
    store.sync(vec![of(account, request)]).await?.remove(0)
}

/// The answers to reports that go together, each of which has one.
async fn ask_all(store: &Redis, reports: Vec<AccountSync>) -> Vec<SyncReply> {
    store.sync(reports).await.unwrap().into_iter().map(Result::unwrap).collect()
}

#[track_caller]
fn merged(reply: Result<SyncReply, StoreError>) -> Merged {
    match reply {
        Ok(SyncReply::Merged(merged)) => merged,
        other => panic!("expected a merge, got {other:?}"),
    }
}

/// Asks again until an answer is as wanted.
async fn eventually(store: &Redis, account: &str, request: SyncRequest, accept: impl Fn(&Merged) -> bool) -> Merged {
    let begun = Instant::now();
    loop {
        let answer = ask(store, account, request).await;
        if let Ok(SyncReply::Merged(merged)) = &answer
            && accept(merged)
        {
            return *merged;
        }
        assert!(begun.elapsed() < PATIENCE, "never; last: {answer:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

// === the contract ===

/// One report of a random script, told relative to what the account knows by then.
#[derive(Debug, Clone)]
struct Step {
    account: u8,
    incarnation: u64,
    purse: u32,
    elapsed_ms: i64,
    server: u8,
    wiped: bool,
    report: Report,
    grows: [u64; 3],
    wishes: [u64; 2],
    limit: u64,
    limit_version: u64,
    create: bool,
    close: Option<Close>,
}

/// What the totals of a report are like.
#[derive(Debug, Clone)]
enum Report {
    /// What the account knows, and more was returned, charged and owed since.
    Grown,
    /// Repeated from an earlier time.
    Stale,
    /// More than was ever granted.
    Beyond,
    /// Numbers at the edge of what fits.
    Huge(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let report = prop_oneof![
        8 => Just(Report::Grown),
        2 => Just(Report::Stale),
        1 => Just(Report::Beyond),
        1 => prop::sample::select(vec![NANO_USD_MAX / 2, NANO_USD_MAX - 1, NANO_USD_MAX, NANO_USD_MAX + 1, u64::MAX / 2]).prop_map(Report::Huge),
    ];
    let elapsed_ms = prop_oneof![
        10 => 0i64..2500,
        2 => prop::sample::select(vec![1500, 3000, 4999, 5000, 5001, 9_999, 10_000, 29_999, 30_000, 60_000]),
        1 => prop::sample::select(vec![3_599_999, 3_600_000, 3_600_001]),
        1 => -6000i64..0,
    ];
    let amount = prop_oneof![6 => 0u64..60, 1 => 0u64..2000];
    let wish = prop_oneof![6 => 0u64..1500, 1 => prop::sample::select(vec![NANO_USD_MAX, NANO_USD_MAX + 1, u64::MAX])];
    let limit = prop_oneof![6 => 0u64..3000, 1 => prop::sample::select(vec![NANO_USD_MAX, NANO_USD_MAX + 1, u64::MAX])];
    let closes = vec![Close::Settled, Close::Forfeited, Close::Reclaimed];
    let close = prop_oneof![8 => Just(None), 3 => prop::sample::select(closes).prop_map(Some)];
    let who = (0u8..2, 1u64..4, prop_oneof![8 => 0u32..2, 1 => Just(RowId::credit(0).purse)]);
    let server = (prop_oneof![12 => Just(0u8), 1 => Just(1u8)], prop::bool::weighted(0.1));
    let money = (report, [amount.clone(), amount.clone(), amount], [wish.clone(), wish]);
    let rules = (limit, 0u64..4, prop::bool::weighted(0.8), close);
    (who, elapsed_ms, server, money, rules).prop_map(
        |(
            (account, incarnation, purse),
            elapsed_ms,
            (server, wiped),
            (report, grows, wishes),
            (limit, limit_version, create, close),
        )| {
            Step {
                account,
                incarnation,
                purse,
                elapsed_ms,
                server,
                wiped,
                report,
                grows,
                wishes,
                limit,
                limit_version,
                create,
                close,
            }
        },
    )
}

impl Step {
    fn request(&self, state: Option<&AccountState>) -> SyncRequest {
        let row = RowId { incarnation: self.incarnation, purse: self.purse };
        let known = state.and_then(|state| state.rows.get(&row)).copied().unwrap_or_default().totals;
        let [returned, charged, debt] = self.grows;
        let grown = Totals {
            granted: known.granted,
            returned: known.returned + returned.min(known.unspent()),
            charged: known.charged + charged.min(known.unspent().saturating_sub(returned)),
            debt: known.debt + debt / 20,
        };
        let totals = match self.report {
            Report::Grown if row.is_credit() => Totals { granted: returned, returned, charged: 0, debt: 0 },
            Report::Grown => grown,
            Report::Stale => Totals { granted: known.granted / 2, returned: 0, charged: known.charged / 2, debt: 0 },
            Report::Beyond => Totals { charged: grown.granted + charged, ..grown },
            Report::Huge(huge) => Totals { granted: huge, debt: huge, ..grown },
        };
        SyncRequest {
            row,
            totals,
            need: self.wishes[0].min(self.wishes[1]),
            target: self.wishes[0].max(self.wishes[1]),
            limit: self.limit,
            limit_version: self.limit_version,
            create: self.create,
            close: self.close,
        }
    }
}

/// A thousand random scripts; a failure prints the smallest one that still fails, and its seed.
#[test]
fn model_embedded_store_and_redis_agree() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = RedisServer::with(&["--appendonly", "no"]);
    let store = runtime.block_on(open(&server.url()));
    let scripts = std::cell::Cell::new(0);
    let mut runner = TestRunner::new(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) });
    let outcome = runner.run(&prop::collection::vec(step(), 1..32), |steps| {
        scripts.set(scripts.get() + 1);
        runtime.block_on(compare(&store, scripts.get(), &steps))
    });
    if let Err(failure) = outcome {
        panic!("script {}: {failure}\nseed: {:?}", scripts.get(), runner.bytes_used());
    }
}

async fn compare(store: &Redis, script: u32, steps: &[Step]) -> Result<(), TestCaseError> {
    let mut model: BTreeMap<String, Option<AccountState>> = BTreeMap::new();
    let mut tables = Tables::new();
    let mut now_ms: u64 = 10_000_000;
    for step in steps {
        now_ms = now_ms.saturating_add_signed(step.elapsed_ms);
        let run = ["aa", "bb"][usize::from(step.server)];
        let server = Server { now_ms, run, learn_ms: store.learn_ms, wiped: step.wiped };
        let key = format!("script-{script}/{}", step.account);
        let state = model.entry(key.clone()).or_default();
        let sync = of(&key, step.request(state.as_ref()));
        let expected = account::sync(state, &sync.request, server);
        prop_assert_eq!(tables.sync(&sync, server), expected, "the embedded store, {:?}", sync);
        let replies = store.fly(std::slice::from_ref(&sync), Clock::Given { now_ms, run, wiped: step.wiped }).await;
        prop_assert_eq!(replies, Ok(vec![expected]), "redis, {:?}", sync);
    }
    for (key, state) in &model {
        prop_assert_eq!(&tables.account(key), state);
        prop_assert_eq!(&stored(store, key).await, state);
    }
    Ok(())
}

async fn stored(store: &Redis, account: &str) -> Option<AccountState> {
    match store.find(account).await.unwrap() {
        Held::Missing => None,
        Held::Whole(state, _) => Some(state),
        Held::Damaged(damaged) => panic!("the function damaged it: {damaged:?}"),
    }
}

// === one server ===

#[tokio::test]
async fn what_one_process_was_granted_another_does_not_get() {
    let server = RedisServer::start();
    let (one, other) = (open(&server.url()).await, open(&server.url()).await);
    assert_eq!(merged(ask(&one, "a", request(1, Totals::default(), 700)).await).totals.granted, 700);
    assert_eq!(merged(ask(&other, "a", request(2, Totals::default(), 700)).await).totals.granted, 300);
    assert_eq!(merged(ask(&one, "a", request(1, granted(700), 700)).await).free, 0);
}

#[tokio::test]
async fn reports_that_go_together_are_answered_in_their_order() {
    let server = RedisServer::start();
    let store = open(&server.url()).await;
    let reports: Vec<AccountSync> =
        (0..500).map(|n| of(&format!("a{}", n % 250), request(n, Totals::default(), n + 1))).collect();
    let replies = ask_all(&store, reports).await;
    let first: Vec<u64> = replies[..250].iter().map(|reply| merged(Ok(*reply)).totals.granted).collect();
    assert_eq!(first, (1..=250).collect::<Vec<u64>>());
    assert!(replies[250..].iter().all(|reply| merged(Ok(*reply)).totals.granted > 250));
}

#[tokio::test]
async fn a_forgotten_function_is_sent_again() {
    let server = RedisServer::start();
    let store = open(&server.url()).await;
    for expected in [10, 20] {
        assert_eq!(server.command(&["SCRIPT", "FLUSH"]), "OK");
        let reply = ask(&store, "a", request(1, granted(expected - 10), expected)).await;
        assert_eq!(merged(reply).totals.granted, expected);
    }
}

#[tokio::test]
async fn a_restarted_server_listens_before_it_grants() {
    let mut server = RedisServer::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let store = open(&server.url()).await;
    merged(ask(&store, "a", request(1, Totals::default(), 400)).await);
    server.kill();
    assert!(matches!(ask(&store, "a", request(1, granted(400), 500)).await, Err(StoreError::Unavailable(_))));
    server.restart();
    let reply = merged(ask(&store, "a", request(1, granted(400), 500)).await);
    assert_eq!((reply.totals.granted, reply.learning), (400, true));
    eventually(&store, "a", request(1, granted(400), 500), |merged| merged.totals.granted == 500).await;
}

#[tokio::test]
async fn a_wiped_server_never_starts_a_known_account_full() {
    let server = RedisServer::start();
    let store = open(&server.url()).await;
    merged(ask(&store, "a", request(1, Totals::default(), 600)).await);
    server.command(&["FLUSHALL"]);
    let known = SyncRequest { create: false, ..request(1, granted(600), 600) };
    assert_eq!(ask(&store, "a", known).await, Ok(SyncReply::NoAccount));
    let restored = merged(ask(&store, "a", request(1, granted(600), 700)).await);
    assert_eq!((restored.totals.granted, restored.free, restored.learning), (600, 400, true));
    let other = merged(ask(&store, "a", request(2, Totals::default(), 1000)).await);
    assert_eq!(other.totals.granted, 0, "others are heard first");
}

#[tokio::test]
async fn a_wiped_server_lets_even_a_newcomer_wait_for_the_holders() {
    let server = RedisServer::start();
    let (holder, newcomer) = (open(&server.url()).await, open(&server.url()).await);
    merged(ask(&holder, "a", request(1, Totals::default(), 600)).await);
    server.command(&["FLUSHALL"]);
    let first = merged(ask(&newcomer, "a", request(2, Totals::default(), 1000)).await);
    assert_eq!((first.totals.granted, first.learning), (0, true), "it cannot know of the 600");
    merged(ask(&holder, "a", request(1, granted(600), 600)).await);
    let then = eventually(&newcomer, "a", request(2, Totals::default(), 1000), |merged| !merged.learning).await;
    assert_eq!((then.totals.granted, then.free), (400, 0));
    let calm = merged(ask(&newcomer, "b", request(2, Totals::default(), 10)).await);
    assert_eq!(calm.totals.granted, 10, "what is new once the store is of age is just new");
}

#[tokio::test]
async fn an_account_that_cannot_be_read_is_refused_and_others_go_on() {
    let server = RedisServer::start();
    let store = open(&server.url()).await;
    let reports = || vec![of("a", request(1, Totals::default(), 1)), of("b", request(1, Totals::default(), 1))];
    ask_all(&store, reports()).await;
    for (field, value) in [("limit", "lots"), ("archived", "0"), ("schema", "2"), ("0000000000000001.0", "1 2 3")] {
        server.command(&["HSET", &store.key("a"), field, value]);
        let replies = ask_all(&store, reports()).await;
        assert_eq!(replies[0], SyncReply::BadReport, "{field}");
        assert_eq!(merged(Ok(replies[1])).totals.granted, 1);
        server.command(&["DEL", &store.key("a")]);
        ask_all(&store, reports()).await;
    }
}

#[tokio::test]
async fn accounts_are_listed_in_order_and_by_page() {
    let server = RedisServer::start();
    let store = open(&format!("{}?prefix=here:", server.url())).await;
    let elsewhere = open(&server.url()).await;
    merged(ask(&elsewhere, "another fleet's", request(1, Totals::default(), 1)).await);
    let mut names: Vec<String> = (0..40).map(|n| format!("b/user=u{n}/2026-11")).collect();
    names.extend(["b/user=*}:{x/2026-11".to_owned(), "b/user=ä ö\n/2026-11".to_owned()]);
    let charged = Totals { charged: 3, debt: 1, ..granted(5) };
    ask_all(&store, names.iter().map(|name| of(name, request(1, charged, 5))).collect()).await;
    names.sort();
    let mut listed: Vec<StoredAccount> = Vec::new();
    loop {
        let after = listed.last().map(|account| Arc::clone(&account.account));
        let page = store.accounts(after, 15).await.unwrap();
        listed.extend(page.iter().cloned());
        if page.len() < 15 {
            break;
        }
    }
    assert_eq!(listed.iter().map(|account| account.account.to_string()).collect::<Vec<_>>(), names);
    assert_eq!((listed[0].limit, listed[0].held, listed[0].charged, listed[0].debt), (1000, 5, 3, 1));
    assert_eq!(
        server.command(&["KEYS", "*"]).lines().count(),
        names.len() + 3,
        "a key per account, and a mark per prefix"
    );
}

#[tokio::test]
async fn a_damaged_account_is_replaced_by_what_can_be_read_and_listens_before_it_grants() {
    let server = RedisServer::start();
    let store = open(&server.url()).await;
    let charged = Totals { charged: 30, ..granted(100) };
    ask_all(&store, vec![of("a", request(1, charged, 100)), of("a", request(2, granted(50), 50))]).await;
    let id = RowId { incarnation: 1, purse: 0 };
    store.note("a".into(), id, "who".to_owned()).await.unwrap();
    let key = store.key("a");
    server.command(&["HSET", &key, "limit", "lots", "0000000000000002.0", "1 2 3"]);

    let Held::Damaged(damaged) = store.look_up("a".into()).await.unwrap() else { panic!("it is damaged") };
    assert_eq!(damaged.unreadable, ["limit", "0000000000000002.0"]);
    assert_eq!((damaged.readable.charged(), damaged.readable.held()), (30, 100));
    let listed = &store.accounts(None, 10).await.unwrap()[0];
    assert_eq!((listed.charged, listed.damaged), (30, true));

    let state = AccountState { limit: 1000, limit_version: 0, ..damaged.readable };
    let mut outdated = damaged.fields.clone();
    outdated.insert("limit".to_owned(), "few".to_owned());
    assert_eq!(store.replace("a".into(), outdated, state.clone()).await, Ok(false), "it has changed");
    assert_eq!(store.replace("a".into(), damaged.fields, state).await, Ok(true));
    assert_eq!(store.replace("a".into(), BTreeMap::new(), AccountState::default()).await, Ok(false), "it is there");
    let Held::Whole(_, notes) = store.look_up("a".into()).await.unwrap() else { panic!("it is whole") };
    assert_eq!(notes, BTreeMap::from([(id, "who".to_owned())]));

    let newcomer = merged(ask(&store, "a", request(3, Totals::default(), 500)).await);
    assert_eq!((newcomer.totals.granted, newcomer.learning), (0, true));
    let holder = SyncRequest { create: false, ..request(2, granted(50), 50) };
    assert_eq!(merged(ask(&store, "a", holder).await).free, 850, "who holds something says so meanwhile");
}

/// As `docs/ledger.md` has it: a gateway.
const ACL: &str = "on >s3cret resetkeys ~tollgate:* resetchannels &tollgate:* -@all +evalsha +eval +hgetall +hset +hdel +get +set +time +info +scan +wait +pexpire +subscribe";
/// And who pushes.
const PUSHER: &str =
    "on >s3cret resetkeys ~tollgate:{config}:* resetchannels &tollgate:{config}:* -@all +eval +get +set +publish +time";
/// A gateway's keys where Redis is 7 or later.
const READS_CONFIG: &str = "resetkeys ~tollgate:account:* ~tollgate:store ~tollgate:limits:* ~tollgate:{registry}:* ~tollgate:{alert}:* %R~tollgate:{config}:*";

fn allow(server: &RedisServer, more: &str) {
    allow_user(server, "ledger", ACL, more);
}

fn allow_user(server: &RedisServer, user: &str, rules: &str, more: &str) {
    let words = ["ACL", "SETUSER", user].into_iter().chain(rules.split(' ')).chain(more.split_whitespace());
    assert_eq!(server.command(&words.collect::<Vec<_>>()), "OK");
}

#[test]
fn the_documentation_names_the_users_that_are_tested() {
    let page = include_str!("../../../docs/ledger.md").replace("password", "s3cret");
    for rules in [ACL, PUSHER, READS_CONFIG.trim_start_matches("resetkeys ")] {
        assert!(page.contains(rules), "{rules}");
    }
}

#[tokio::test]
async fn the_documented_user_may_do_what_is_needed_and_nothing_else() {
    let server = RedisServer::start();
    let _replica = server.replica();
    allow(&server, "");
    let url = format!("redis://ledger:s3cret@127.0.0.1:{}", server.port);
    let store = open_waiting(&url, 1).await;
    assert_eq!(merged(ask(&store, "a", request(1, Totals::default(), 10)).await).totals.granted, 10);
    assert_eq!(store.accounts(None, 10).await.unwrap().len(), 1);
    let mut connection = Connection::open(&store.url, PATIENCE).await.unwrap();
    for command in [&["FLUSHALL"][..], &["CONFIG", "GET", "*"], &["DEL", "tollgate:store"], &["HGETALL", "other"]] {
        let mut pipeline = Pipeline::new();
        pipeline.cmd(command[0]).arg(&command[1..]);
        let answer = connection.send(&pipeline, "").await.unwrap();
        assert!(matches!(&answer[0], Value::ServerError(error) if error.code() == "NOPERM"), "{command:?}: {answer:?}");
    }
}

#[tokio::test]
async fn a_wrong_password_and_a_closed_port_are_said_without_the_password() {
    let server = RedisServer::with(&["--requirepass", "right"]);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for url in
        [format!("redis://:topsecret@127.0.0.1:{}", server.port), format!("redis://:topsecret@127.0.0.1:{closed}")]
    {
        let error = Redis::open(RedisUrl::parse(&url).unwrap(), 0, SYNC_INTERVAL).await.unwrap_err();
        let StoreError::Unavailable(why) = &error else { panic!("{error:?}") };
        assert!(why.starts_with("redis://127.0.0.1:") && !why.contains("topsecret"), "{why}");
    }
}

#[tokio::test]
async fn the_registry_keeps_the_contract_beside_the_pushed_configuration() {
    let server = RedisServer::start();
    let url = RedisUrl::parse(&server.url()).unwrap();
    crate::store::books::contract::holds(&ConfigStore::registry(url.clone())).await;
    assert_eq!(ConfigStore::new(url).head().await, Ok(None));
}

// === the pushed configuration ===

fn config_store(url: &str) -> ConfigStore {
    ConfigStore::new(RedisUrl::parse(url).unwrap())
}

fn next(head: Option<&Head>, text: &str) -> Revision {
    Revision {
        number: head.map_or(0, |head| head.number) + 1,
        sha256: revision::sha256(text),
        name: "r.yaml".to_owned(),
        text: text.to_owned(),
        author: "ann".to_owned(),
        at: jiff::Timestamp::UNIX_EPOCH,
        message: String::new(),
        parent: head.map(|head| head.number),
    }
}

/// Pushes `text` over what is live.
async fn pushed(store: &ConfigStore, text: &str) -> Head {
    let head = store.state().await.unwrap().head;
    let revision = next(head.as_ref(), text);
    assert_eq!(store.push(head.as_ref(), &revision).await, Ok(PushOutcome::Pushed));
    assert_eq!(store.head().await, Ok(Some(revision.head())));
    revision.head()
}

#[tokio::test]
async fn of_two_pushes_on_one_base_one_is_stale() {
    let server = RedisServer::start();
    let (one, other) = (config_store(&server.url()), config_store(&server.url()));
    assert_eq!(one.head().await, Ok(None));
    let first = pushed(&one, "a").await;
    let (mine, theirs) = (next(Some(&first), "b"), next(Some(&first), "c"));
    let outcomes = tokio::join!(one.push(Some(&first), &mine), other.push(Some(&first), &theirs));
    let winner = if outcomes.0 == Ok(PushOutcome::Pushed) { &mine } else { &theirs };
    let lost = if winner == &mine { outcomes.1 } else { outcomes.0 };
    assert_eq!(lost, Ok(PushOutcome::Stale(Some(winner.head()))));
    assert_eq!(one.revision(2).await, Ok(Some(winner.clone())));
    assert_eq!(other.push(None, &mine).await, Ok(PushOutcome::Stale(Some(winner.head()))));
    let texts: Vec<String> = one.history(2, 10).await.unwrap().into_iter().map(|revision| revision.text).collect();
    assert_eq!(texts, [winner.text.clone(), "a".to_owned()]);
}

#[tokio::test]
async fn a_revision_that_is_there_is_never_written_again_and_a_wrong_one_never_read() {
    let server = RedisServer::start();
    let store = config_store(&server.url());
    let first = pushed(&store, "a").await;
    server.command(&["DEL", "tollgate:{config}:head"]);
    assert!(matches!(store.push(None, &next(None, "b")).await, Err(StoreError::Damaged(_))));
    assert_eq!(store.revision(1).await.unwrap().unwrap().text, "a");
    server.command(&["SET", "tollgate:{config}:head", "seven"]);
    assert!(matches!(store.head().await, Err(StoreError::Damaged(_))));
    let elsewhere = next(Some(&first), "b").to_json();
    for wrong in ["", "{}", &elsewhere.replace("\"b\"", "\"c\""), &elsewhere] {
        server.command(&["SET", "tollgate:{config}:3", wrong]);
        assert!(matches!(store.revision(3).await, Err(StoreError::Damaged(_))), "{wrong}");
    }
}

#[tokio::test]
async fn who_listens_is_told_of_a_push_and_of_the_end() {
    let server = RedisServer::start();
    let store = config_store(&server.url());
    let mut announcements = store.subscribe().await.unwrap().expect("one server");
    pushed(&store, "a").await;
    assert!(timeout(PATIENCE, announcements.next()).await.expect("told"));
    server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    assert!(!timeout(PATIENCE, announcements.next()).await.expect("told"));
}

#[tokio::test]
async fn a_gateways_user_follows_and_cannot_push_and_a_pushers_can_do_nothing_else() {
    let server = RedisServer::start();
    allow_user(&server, "pusher", PUSHER, "");
    let as_user = |user: &str| format!("redis://{user}:s3cret@127.0.0.1:{}", server.port);
    let pusher = config_store(&as_user("pusher"));
    let mut head = pushed(&pusher, "a").await;
    for more in ["", READS_CONFIG] {
        allow(&server, more);
        let gateway = config_store(&as_user("ledger"));
        let mut announcements = gateway.subscribe().await.unwrap().expect("one server");
        let refused = gateway.push(Some(&head), &next(Some(&head), "mine")).await;
        assert!(matches!(&refused, Err(StoreError::Unavailable(why)) if !why.contains("s3cret")), "{refused:?}");
        assert_eq!(gateway.head().await, Ok(Some(head.clone())), "nothing was changed");
        head = pushed(&pusher, &format!("b{more}")).await;
        assert!(timeout(PATIENCE, announcements.next()).await.expect("told"));
        assert!(gateway.revision(head.number).await.unwrap().is_some());
        let store = open(&as_user("ledger")).await;
        merged(ask(&store, "a", request(1, Totals::default(), 10)).await);
    }
    let mut connection = Connection::open(&RedisUrl::parse(&as_user("pusher")).unwrap(), PATIENCE).await.unwrap();
    for command in [&["GET", "tollgate:store"][..], &["HGETALL", "tollgate:account:{a}"], &["INFO"]] {
        let mut pipeline = Pipeline::new();
        pipeline.cmd(command[0]).arg(&command[1..]);
        let answer = connection.send(&pipeline, "").await.unwrap();
        assert!(matches!(&answer[0], Value::ServerError(error) if error.code() == "NOPERM"), "{command:?}: {answer:?}");
    }
}

#[tokio::test]
async fn a_configuration_store_that_hangs_is_given_up() {
    let server = RedisServer::start();
    let store = config_store(&server.url());
    pushed(&store, "a").await;
    server.signal("STOP");
    let begun = Instant::now();
    assert!(store.head().await.is_err());
    assert!(store.subscribe().await.is_err());
    assert!(begun.elapsed() < Duration::from_millis(2100), "{:?}", begun.elapsed());
    server.signal("CONT");
    assert!(store.head().await.is_ok());
}

// === servers that hang or lie ===

#[tokio::test]
async fn a_server_that_hangs_costs_a_flight_its_time_and_the_next_one_nothing() {
    let server = RedisServer::start();
    let store = open(&server.url()).await;
    merged(ask(&store, "a", request(1, Totals::default(), 10)).await);
    server.signal("STOP");
    let begun = Instant::now();
    let answer = ask(&store, "a", request(1, granted(10), 20)).await;
    assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
    assert!(begun.elapsed() < FLIGHT_TIMEOUT + Duration::from_millis(500), "{:?}", begun.elapsed());
    assert!(store.sync(Vec::new()).await.is_err(), "a probe is not fooled by a connection that only the system took");
    server.signal("CONT");
    eventually(&store, "a", request(1, granted(10), 20), |merged| merged.totals.granted == 20).await;
}

/// A server that greets and then answers every message with `answer`.
fn liar(answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut bytes = [0; 65_536];
                while stream.read(&mut bytes).is_ok_and(|count| count > 0) {
                    let asked = String::from_utf8_lossy(&bytes);
                    let answer = match () {
                        () if asked.contains("EVALSHA") => answer,
                        () if asked.contains("TIME") => b"*2\r\n:2000000000\r\n:0\r\n",
                        () if asked.contains("SET") => b"+OK\r\n$13\r\n1000000000000\r\n",
                        () if asked.contains("GET") => b"$13\r\n1000000000000\r\n",
                        () => b"+OK\r\n",
                    };
                    if std::io::Write::write_all(&mut stream, answer).is_err() {
                        return;
                    }
                    bytes.fill(0);
                }
            });
        }
    });
    port
}

#[tokio::test]
async fn a_lie_is_an_error_and_never_money() {
    let lies: [&'static [u8]; 8] = [
        b"+MERGED 99999999999999999999 0 0 0 0 0 0 0 0 0 0 0 0 0\r\n",
        b"+MERGED -5 0 0 0 0 0 0 0 0 0 0 0 0 0\r\n",
        b"+MERGED 1e30 0 0 0 0 0 0 0 0 0 0 0 0 0\r\n",
        b"+MERGED nan 0 0 0 0 0 0 0 0 0 0 0 0 0\r\n",
        b"*2\r\n:1\r\n:2\r\n",
        b":1000\r\n",
        b"$-1\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ];
    for lie in lies {
        let store = open(&format!("redis://127.0.0.1:{}", liar(lie))).await;
        let answer = ask(&store, "a", request(1, Totals::default(), 10)).await;
        assert!(answer.is_err(), "{}: {answer:?}", String::from_utf8_lossy(lie));
    }
}

// === claims ===

#[tokio::test]
async fn an_alert_that_its_gateway_could_not_deliver_is_taken_over_by_one_other() {
    const REPEAT: Duration = Duration::from_hours(4);
    let server = RedisServer::start();
    let claims = || RedisClaims::new(RedisUrl::parse(&server.url()).unwrap());
    let (one, other, third) = (claims(), claims(), claims());
    let claimed = async |claims: &RedisClaims, state| claims.claim("a", state, REPEAT).await.unwrap();
    let taken = async |claims: &RedisClaims| claims.take_over("a", REPEAT).await.unwrap();
    let gone = async || while !server.command(&["KEYS", "*:held"]).trim().is_empty() {};

    assert_eq!((claimed(&one, State::Raised).await, claimed(&other, State::Raised).await), (true, false));
    assert!(!taken(&other).await, "it is on its way");
    one.settle("a", false, REPEAT).await.unwrap();
    gone().await;
    assert_eq!((taken(&other).await, taken(&third).await), (true, false));
    // Nobody hears of the one that took it over again.
    server.command(&["DEL", server.command(&["KEYS", "*:held"]).trim()]);
    assert!(taken(&third).await);
    third.settle("a", true, REPEAT).await.unwrap();
    assert!(!taken(&one).await, "it was told");

    assert_eq!((claimed(&one, State::Resolved).await, claimed(&other, State::Resolved).await), (true, false));
    assert!(!taken(&other).await, "what is over is not told to have begun");
    let open = || server.command(&["KEYS", "*"]).lines().any(|key| !key.ends_with(":held"));
    while open() {}
    assert!(claimed(&other, State::Raised).await, "what begins again is a new alert");
    other.settle("a", false, REPEAT).await.unwrap();
    gone().await;
    assert!(taken(&one).await);
}

// === replicas, Sentinels, a Cluster ===

#[tokio::test]
async fn a_grant_that_no_replica_has_is_not_usable() {
    let server = RedisServer::start();
    let replica = server.replica();
    let store = open_waiting(&server.url(), 1).await;
    assert_eq!(merged(ask(&store, "a", request(1, Totals::default(), 10)).await).totals.granted, 10);
    replica.signal("STOP");
    let withheld = merged(ask(&store, "a", request(1, granted(10), 30)).await);
    assert_eq!((withheld.totals.granted, withheld.free, withheld.learning), (10, 990, true));
    replica.signal("CONT");
    let told = eventually(&store, "a", request(1, granted(10), 30), |merged| merged.totals.granted == 30).await;
    assert_eq!((told.free, told.learning), (970, false));
}

/// `WAIT` counts what its own connection wrote: told again without being written again, the grant seemed to be everywhere.
#[tokio::test]
async fn a_grant_that_no_replica_has_is_not_usable_on_a_new_connection_either() {
    let server = RedisServer::start();
    let replica = server.replica();
    let store = open_waiting(&server.url(), 1).await;
    assert_eq!(merged(ask(&store, "a", request(1, Totals::default(), 10)).await).totals.granted, 10);
    replica.signal("STOP");
    for connection in 1..=3 {
        let withheld = merged(ask(&store, "a", request(1, granted(10), 30)).await);
        assert_eq!(withheld.totals.granted, 10, "connection {connection}");
        store.reports.lock().await.connection = None;
    }
    replica.signal("CONT");
    eventually(&store, "a", request(1, granted(10), 30), |merged| merged.totals.granted == 30).await;
}

#[tokio::test]
async fn a_primary_that_missed_a_grant_listens_to_its_holder_first() {
    let mut primary = RedisServer::start();
    let replica = primary.replica();
    let sentinel = RedisServer::sentinel(&primary, 600_000);
    let store = open(&format!("redis+sentinel://127.0.0.1:{}/main", sentinel.port)).await;
    merged(ask(&store, "a", request(1, Totals::default(), 100)).await);
    while replica.command(&["EXISTS", &store.key("a")]) != "1" {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The link is cut: what is granted now, only the primary knows.
    replica.command(&["REPLICAOF", "NO", "ONE"]);
    assert_eq!(merged(ask(&store, "a", request(1, granted(100), 900)).await).totals.granted, 900);
    primary.kill();
    sentinel.command(&["SENTINEL", "REMOVE", "main"]);
    assert_eq!(sentinel.command(&["SENTINEL", "MONITOR", "main", "127.0.0.1", &replica.port.to_string(), "1"]), "OK");
    // The other process asks first, and must not get what the first one holds.
    let other = eventually(&store, "a", request(2, Totals::default(), 500), |_| true).await;
    assert_eq!((other.totals.granted, other.free, other.learning), (0, 900, true));
    let holder = merged(ask(&store, "a", request(1, granted(900), 900)).await);
    assert_eq!((holder.totals.granted, holder.free), (900, 100));
    let other = eventually(&store, "a", request(2, Totals::default(), 500), |merged| !merged.learning).await;
    assert_eq!(other.totals.granted, 100);
}

#[tokio::test]
async fn a_primary_that_never_heard_of_an_account_lets_newcomers_wait_for_its_holder() {
    let mut primary = RedisServer::start();
    let replica = primary.replica();
    let sentinel = RedisServer::sentinel(&primary, 600_000);
    let url = format!("redis+sentinel://127.0.0.1:{}/main", sentinel.port);
    let (holder, newcomer) = (open(&url).await, open(&url).await);
    while replica.command(&["EXISTS", &holder.mark()]) != "1" {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    replica.command(&["REPLICAOF", "NO", "ONE"]);
    assert_eq!(merged(ask(&holder, "a", request(1, Totals::default(), 900)).await).totals.granted, 900);
    primary.kill();
    sentinel.command(&["SENTINEL", "REMOVE", "main"]);
    assert_eq!(sentinel.command(&["SENTINEL", "MONITOR", "main", "127.0.0.1", &replica.port.to_string(), "1"]), "OK");
    let first = eventually(&newcomer, "a", request(2, Totals::default(), 1000), |_| true).await;
    assert_eq!((first.totals.granted, first.learning), (0, true), "it cannot know of the 900");
    eventually(&holder, "a", request(1, granted(900), 900), |_| true).await;
    let then = eventually(&newcomer, "a", request(2, Totals::default(), 1000), |merged| !merged.learning).await;
    assert_eq!(then.totals.granted, 100);
}

#[tokio::test]
async fn the_primary_is_found_again_after_the_sentinels_replaced_it() {
    let mut primary = RedisServer::start();
    let replica = primary.replica();
    let sentinel = RedisServer::sentinel(&primary, 300);
    for server in [&primary, &replica] {
        allow(server, "+role");
    }
    let store = open(&format!("redis+sentinel://ledger:s3cret@127.0.0.1:{}/main", sentinel.port)).await;
    merged(ask(&store, "a", request(1, Totals::default(), 100)).await);
    let begun = Instant::now();
    while !(sentinel.command(&["INFO", "sentinel"]).contains("slaves=1")
        && replica.command(&["EXISTS", &store.key("a")]) == "1")
    {
        assert!(begun.elapsed() < PATIENCE, "the Sentinel never finds the replica");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    primary.kill();
    let told = eventually(&store, "a", request(1, granted(100), 200), |merged| merged.totals.granted == 200).await;
    assert_eq!(told.free, 800);
    assert!(replica.command(&["ROLE"]).starts_with("master"));
    let configs = config_store(&format!("redis+sentinel://127.0.0.1:{}/main", sentinel.port));
    assert_eq!(pushed(&configs, "a").await.number, 1);
    assert!(configs.subscribe().await.unwrap().is_none(), "the poll has to do");
}

#[tokio::test]
async fn in_a_cluster_each_account_has_its_node() {
    let nodes = RedisServer::cluster(3);
    for node in &nodes {
        allow(node, "+cluster|slots +ping");
    }
    let configs = config_store(&format!("redis+cluster://127.0.0.1:{}", nodes[0].port));
    pushed(&configs, "a").await;
    let head = pushed(&configs, "b").await;
    let follower = config_store(&format!("redis+cluster://ledger:s3cret@127.0.0.1:{}", nodes[1].port));
    assert_eq!(follower.head().await, Ok(Some(head)));
    assert_eq!(follower.history(2, 9).await.unwrap().len(), 2);
    let store = open_waiting(&format!("redis+cluster://ledger:s3cret@127.0.0.1:{}", nodes[0].port), 1).await;
    let names: Vec<String> = (0..60).map(|n| format!("a/user=u{n:02}/total")).collect();
    let reports =
        |incarnation: u64| names.iter().map(|name| of(name, request(incarnation, Totals::default(), 600))).collect();
    for (incarnation, expected) in [(1, 600), (2, 400)] {
        let replies = ask_all(&store, reports(incarnation)).await;
        assert!(replies.iter().all(|reply| merged(Ok(*reply)).totals.granted == expected), "{replies:?}");
    }
    let keys = |node: &RedisServer| node.command(&["DBSIZE"]).parse::<usize>().unwrap();
    assert!(nodes.iter().all(|node| keys(node) > 5), "each node has its share");
    let listed = store.accounts(None, 100).await.unwrap();
    assert_eq!(listed.iter().map(|account| account.account.to_string()).collect::<Vec<_>>(), names);
    assert!(listed.iter().all(|account| account.held == 1000));
}

/// Whether each report was answered.
fn answered(replies: &[Result<SyncReply, StoreError>]) -> Vec<bool> {
    replies.iter().map(|reply| matches!(reply, Ok(SyncReply::Merged(_)))).collect()
}

#[tokio::test]
async fn a_node_that_does_not_answer_holds_up_no_account_of_others() {
    let nodes = RedisServer::cluster(0);
    for node in &nodes {
        node.command(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]);
    }
    let store = open(&format!("redis+cluster://127.0.0.1:{}", nodes[0].port)).await;
    let names: Vec<String> = (0..30).map(|n| format!("a/user=u{n:02}/total")).collect();
    let slot =
        |name: &String| nodes[0].command(&["CLUSTER", "KEYSLOT", &store.key(name)]).trim().parse::<u16>().unwrap();
    let healthy: Vec<bool> = names.iter().map(|name| slot(name) <= 10_922).collect();
    assert!(healthy.contains(&true) && healthy.contains(&false), "{healthy:?}");
    let reports = |held: u64| names.iter().map(|name| of(name, request(1, granted(held), held + 10))).collect();
    let all = |replies: Vec<Result<SyncReply, StoreError>>| answered(&replies).iter().all(|answered| *answered);
    assert!(all(store.sync(reports(0)).await.unwrap()) && store.is_whole());

    nodes[2].signal("STOP");
    for held in [10, 20, 30] {
        let replies = store.sync(reports(held)).await.unwrap();
        assert_eq!(answered(&replies), healthy);
        let mut granted = replies.iter().flatten().map(|reply| merged(Ok(*reply)).totals.granted);
        assert!(granted.all(|granted| granted == held + 10), "{replies:?}");
        assert!(!store.is_whole());
    }
    let begun = Instant::now();
    assert_eq!(answered(&store.sync(reports(40)).await.unwrap()), healthy);
    assert!(begun.elapsed() < FLIGHT_TIMEOUT / 2, "nobody waits for it: {:?}", begun.elapsed());

    nodes[2].signal("CONT");
    let begun = Instant::now();
    while !all(store.sync(reports(50)).await.unwrap()) {
        assert!(begun.elapsed() < PATIENCE, "it does not come back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(store.is_whole());
    nodes.iter().for_each(|node| node.signal("STOP"));
    while store.sync(reports(60)).await.is_ok() {
        assert!(begun.elapsed() < 2 * PATIENCE, "it is not noticed that all are away");
    }
    assert!(store.sync(Vec::new()).await.is_err());
    nodes.iter().for_each(|node| node.signal("CONT"));
    while store.sync(Vec::new()).await.is_err() {
        assert!(begun.elapsed() < 3 * PATIENCE, "it is not noticed that they are back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn reports_follow_an_account_that_moves_to_another_node() {
    let nodes = RedisServer::cluster(0);
    let store = open(&format!("redis+cluster://127.0.0.1:{}", nodes[0].port)).await;
    let slot = |name: &String| nodes[0].command(&["CLUSTER", "KEYSLOT", &store.key(name)]).trim().to_owned();
    let on_first = |name: &String| slot(name).parse::<u16>().unwrap() <= 5460;
    let name = (0..).map(|n| format!("a/user=u{n}/total")).find(on_first).unwrap();
    let slot = slot(&name);
    assert_eq!(merged(ask(&store, &name, request(1, Totals::default(), 10)).await).totals.granted, 10);

    let id = |node: &RedisServer| node.command(&["CLUSTER", "MYID"]).trim().to_owned();
    let (from, to) = (id(&nodes[0]), id(&nodes[1]));
    assert_eq!(nodes[1].command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from]), "OK");
    assert_eq!(nodes[0].command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to]), "OK");
    let port = nodes[1].port.to_string();
    assert_eq!(nodes[0].command(&["MIGRATE", "127.0.0.1", &port, &store.key(&name), "0", "5000"]), "OK");
    let known = |held: u64, need: u64| SyncRequest { create: false, ..request(1, granted(held), need) };
    // To the account it is another server, to which it listens first.
    let asked = merged(ask(&store, &name, known(10, 20)).await);
    assert_eq!((asked.totals.granted, asked.learning), (10, true), "the new node is asked");
    eventually(&store, &name, known(10, 20), |merged| merged.totals.granted == 20).await;

    for node in [&nodes[1], &nodes[0], &nodes[2]] {
        assert_eq!(node.command(&["CLUSTER", "SETSLOT", &slot, "NODE", &to]), "OK");
    }
    for need in [30, 40] {
        // A connection that was closed meanwhile is no node that is away.
        nodes.iter().for_each(|node| drop(node.command(&["CLIENT", "KILL", "TYPE", "normal"])));
        assert_eq!(merged(ask(&store, &name, known(need - 10, need)).await).totals.granted, need);
    }
}
