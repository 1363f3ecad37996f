//! The admin API over budgets, and the operator's command on top of it.

use serde_json::{Value, json};

use crate::support::{
    Call, DEADLINE, Gate, Gateway, Reply, Response, Upstream, eventually,
    gateway::Setup,
    redis::RedisServer,
    upstream::{DONE, chat_completion, chunk, usage_chunk},
    wait_until,
};

const BUDGET: &str = "name: each-user, scope: { user: \"*\" }, limit: 1 USD, per: total";

#[track_caller]
fn problem(response: &Response, status: u16) -> String {
    assert_eq!(response.status, status, "{}", response.text());
    assert_eq!(response.header("content-type"), Some("application/problem+json"));
    let problem = response.json();
    assert_eq!(problem["status"], json!(status), "{problem}");
    assert_eq!(problem["type"], "about:blank");
    problem["detail"].as_str().expect("a detail").to_owned()
}

#[tokio::test]
async fn the_api_describes_itself_and_refuses_with_problem_details() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::before(&upstream).run().await;

    let described = gateway.admin_get("/api/openapi.json").await.expect(200);
    let committed = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json")).unwrap();
    assert_eq!(described.body, committed);
    assert_eq!(described.json()["openapi"], "3.1.0");

    assert!(problem(&gateway.admin_get("/api/nothing").await, 404).contains("/api/openapi.json"));
    problem(&Call::new(gateway.admin, "DELETE", "/api/budgets").send().await, 405);
    problem(&gateway.admin_get("/api/budgets?limits=1").await, 400);
    for (path, content_type) in [("/metrics", "text/plain"), ("/api/config", "application/json")] {
        let response = gateway.admin_get(path).await.expect(200);
        assert!(response.header("content-type").is_some_and(|found| found.starts_with(content_type)), "{path}");
        assert_eq!(response.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(response.header("cache-control"), Some("no-store"));
    }
}

#[tokio::test]
async fn accounts_are_listed_by_page() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::before(&upstream).budget(BUDGET).run().await;
    for user in ["ann", "bob", "c&d e", "dan", "eve"] {
        gateway.hello("upstream/m").user(user).send().await.expect(200);
    }
    gateway.wait_for_records(5).await;
    let all: Vec<String> = gateway.budgets().await.into_iter().map(|row| row.account).collect();
    assert_eq!(all.len(), 5, "{all:?}");

    let (mut pages, mut next) = (Vec::new(), Some("/api/budgets?limit=2".to_owned()));
    while let Some(path) = next {
        let page = gateway.admin_get(&path).await.expect(200);
        let rows = page.json();
        let rows = rows.as_array().expect("a list");
        assert!(!rows.is_empty() && rows.len() <= 2, "{rows:?}");
        pages.extend(rows.iter().map(|row| row["account"].as_str().expect("a key").to_owned()));
        next = page.header("link").map(|link| {
            let link = link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\""));
            link.expect("a link to the next page").to_owned()
        });
    }
    assert_eq!(pages, all);
}

/// A gateway on `redis` with one account of `limit`, each call of which may cost 0.01 USD.
fn member(upstream: &Upstream, redis: &RedisServer, limit: &str) -> Setup {
    Gateway::before(upstream)
        .price("upstream/m", "input: 0 USD/1M, output: 10 USD/1M, max_output: 16384")
        .top("store", &redis.url())
        .top("ledger", "{ sync: 100ms, budget_wait: 2s }")
        .budget(&format!("name: all, scope: {{ team: red }}, per: total, clamp: off, limit: {limit}"))
}

/// A call that is billed 400 tokens of the 1,000 that it may cost.
fn paid(gateway: &Gateway) -> Call {
    gateway.chat(&json!({"model": "upstream/m", "max_tokens": 1000, "messages": [{"role": "user", "content": "hi"}]}))
}

fn billing() -> Reply {
    Reply::json(200, &chat_completion("x", (5, 400)))
}

const COST: i64 = 4_000_000;
const ACCOUNT: &str = "all/team=red/total";

fn post(gateway: &Gateway, what: &str, body: &Value) -> Call {
    Call::new(gateway.admin, "POST", &format!("/api/budgets/all/{what}")).json(body)
}

/// The row of the gateway that holds something unspent, in Redis: its field and its numbers.
fn holder(redis: &RedisServer) -> Option<(String, Vec<String>)> {
    let answer = redis.command(&["HGETALL", KEY_IN_REDIS]);
    let lines: Vec<&str> = answer.lines().collect();
    lines.chunks(2).find_map(|field| {
        let words: Vec<String> = field[1].split(' ').map(str::to_owned).collect();
        let [granted, returned, charged, ..] = &words[..] else { return None };
        let number = |text: &str| text.parse::<u64>().ok();
        let is_open = field[0].contains('.') && words.last().is_some_and(|closed| closed == "-");
        let holds = number(granted)? > number(returned)? + number(charged)?;
        (is_open && holds).then(|| (field[0].to_owned(), words))
    })
}

const KEY_IN_REDIS: &str = "tollgate:account:{all/team=red/total}";

/// Makes the store believe that a gateway was silent for an hour; says which.
fn age(redis: &RedisServer) -> String {
    let (field, mut words) = holder(redis).expect("one that holds something");
    words[4] = (words[4].parse::<u64>().unwrap() - 3_600_000).to_string();
    redis.command(&["HSET", KEY_IN_REDIS, &field, &words.join(" ")]);
    field.split('.').next().unwrap().to_owned()
}

fn audited(gateway: &Gateway) -> Vec<Value> {
    let log = std::fs::read_to_string(gateway.data_dir().join("audit.jsonl")).unwrap_or_default();
    assert_eq!(tollgate::store::audit::verify(&log), Ok(log.lines().count()));
    log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn what_a_dead_gateway_held_can_be_reclaimed_once_it_was_silent_for_long() {
    let (redis, upstream) = (RedisServer::start(), Upstream::run().await);
    let dead = member(&upstream, &redis, "0.02 USD").run().await;
    let gateway = member(&upstream, &redis, "0.02 USD").run().await;
    upstream.script(billing());
    paid(&dead).send().await.expect(200);
    upstream.script(Reply::hang());
    let hanging = tokio::spawn(paid(&dead).send_owned());
    wait_until("a call is under way", DEADLINE, || upstream.request_count() == 2 && holder(&redis).is_some()).await;
    dead.signal("KILL");
    hanging.abort();

    let (field, _) = holder(&redis).unwrap();
    let id = field.split('.').next().unwrap();
    let wish = json!({"gateway": id, "reason": "its disk is lost"});
    assert!(problem(&post(&gateway, "reclaim", &wish).send().await, 409).contains("heard of lately"));
    problem(&post(&gateway, "reclaim", &json!({"gateway": id, "reason": " "})).send().await, 422);
    problem(&post(&gateway, "reclaim", &json!({"gateway": "00000000000000ff", "reason": "x"})).send().await, 404);
    assert_eq!(audited(&gateway), [] as [Value; 0]);

    assert_eq!(age(&redis), id);
    let too_much = json!({"gateway": id, "account": ACCOUNT, "charged_nanousd": 1_000_000_000, "reason": "x"});
    problem(&post(&gateway, "reclaim", &too_much).send().await, 422);
    let spent = json!({"gateway": id, "account": ACCOUNT, "charged_nanousd": COST + 1_000_000, "reason": "as billed"});
    let done = post(&gateway, "reclaim", &spent).header("x-tollgate-actor", "ann").send().await.expect(200).json();
    assert_eq!(done["reclaimed"][0]["charged_nanousd"], json!(COST + 1_000_000), "{done}");
    let again = post(&gateway, "reclaim", &spent).send().await.expect(200).json();
    assert_eq!(again, json!({"reclaimed": []}));

    let shown = gateway.admin_get("/api/budgets/all").await.expect(200).json();
    let rows = shown["accounts"][0]["gateways"].as_array().unwrap();
    let row = rows.iter().find(|row| row["gateway"] == id).unwrap();
    assert_eq!((&row["open"], &row["held_nanousd"]), (&json!(false), &json!(0)), "{row}");
    assert_eq!(row["reclaimed"]["by"], "ann (loopback)");
    assert_eq!(row["reclaimed"]["reason"], "as billed");
    let log = audited(&gateway);
    assert_eq!(log.len(), 1, "{log:?}");
    assert_eq!((&log[0]["action"], &log[0]["actor"]), (&json!("budgets.reclaim"), &json!("ann (loopback)")));
    upstream.script(billing());
    paid(&gateway).send().await.expect(200);
}

#[tokio::test]
async fn a_reclaimed_gateway_that_lives_is_stopped_and_its_spending_is_debt() {
    let (redis, upstream) = (RedisServer::start(), Upstream::run().await);
    let stopped = member(&upstream, &redis, "0.02 USD").run().await;
    let gateway = member(&upstream, &redis, "0.02 USD").run().await;
    let gate = Gate::closed();
    let usage = Reply::stream().data(chunk("x")).gate(&gate).data(usage_chunk((5, 400))).data(DONE);
    upstream.script(usage);
    let body = json!({"model": "upstream/m", "max_tokens": 1000, "stream": true, "messages": [{"role": "user", "content": "hi"}]});
    let call = tokio::spawn(stopped.chat(&body).send_owned());
    wait_until("a call is under way", DEADLINE, || upstream.request_count() == 1 && holder(&redis).is_some()).await;
    stopped.signal("STOP");
    let id = age(&redis);
    let wish = json!({"gateway": id, "reason": "it seems dead"});
    post(&gateway, "reclaim", &wish).send().await.expect(200);
    stopped.signal("CONT");
    gate.open(9);
    call.await.unwrap().expect(200);

    let account = || async { gateway.admin_get("/api/budgets/all").await.expect(200).json()["accounts"][0].clone() };
    let booked = eventually("what it spent is debt", DEADLINE, account, |account| {
        account["gateways"].as_array().is_some_and(|rows| rows.iter().any(|row| row["debt_nanousd"] == json!(COST)))
    })
    .await;
    assert_eq!(booked["charged_nanousd"], json!(0), "{booked}");
    wait_until("it says so", DEADLINE, || stopped.log_text().contains("an operator reclaimed")).await;
    upstream.script(billing());
    paid(&stopped).send().await.expect(200);
}

#[tokio::test]
async fn a_credit_note_lets_calls_go_on_once() {
    let (redis, upstream) = (RedisServer::start(), Upstream::answering(|_| billing()).await);
    let gateway = member(&upstream, &redis, "0.01 USD").run().await;
    paid(&gateway).send().await.expect(200);
    paid(&gateway).send().await.expect(429);
    let credit = |amount: i64, key: &str| {
        let wish = json!({"amount_nanousd": amount, "reason": "a provider's fault"});
        post(&gateway, "credit", &wish).header("idempotency-key", key)
    };
    problem(&post(&gateway, "credit", &json!({"amount_nanousd": 1, "reason": "x"})).send().await, 400);
    let charged = || async { gateway.budget("all").await.charged_nanousd };
    eventually("it is charged", DEADLINE, charged, |charged| *charged == COST).await;
    let stored = || async { gateway.admin_get("/api/budgets/all").await.json()["accounts"][0]["gateways"][0].clone() };
    eventually("the store knows", DEADLINE, stored, |row| row["charged_nanousd"] == json!(COST)).await;
    problem(&credit(COST + 1, "a").send().await, 409);
    for _ in 0..2 {
        let credited = credit(COST, "b").send().await.expect(200).json();
        assert_eq!((&credited["credited_nanousd"], &credited["account"]), (&json!(COST), &json!(ACCOUNT)));
    }
    problem(&credit(COST - 1, "b").send().await, 409);
    problem(&credit(1, "c").send().await, 409);
    paid(&gateway).send().await.expect(200);

    let listed = gateway.admin_get("/api/budgets").await.json();
    assert_eq!(listed[0]["credited_nanousd"], json!(COST), "{listed}");
    assert_eq!(audited(&gateway).len(), 1);
    let shown = gateway.admin_get("/api/budgets/all").await.json();
    assert_eq!(shown["accounts"][0]["credits"][0]["noted"]["reason"], "a provider's fault");
}

#[tokio::test]
async fn a_credit_note_counts_in_the_spent_ratio_as_it_does_in_the_listing() {
    let upstream = Upstream::answering(|_| billing()).await;
    let gateway = Gateway::before(&upstream)
        .price("upstream/m", "input: 0 USD/1M, output: 10 USD/1M, max_output: 16384")
        .budget("name: all, scope: { team: red }, per: total, clamp: off, limit: 0.01 USD")
        .run()
        .await;
    let ratio = || async { gateway.metrics().await.value("tollgate_budget_spent_ratio", &[("budget", "all")]) };
    paid(&gateway).send().await.expect(200);
    eventually("it is charged", DEADLINE, ratio, |ratio| *ratio == 0.4).await;

    let wish = json!({"amount_nanousd": COST, "reason": "a provider's fault"});
    let credit = || async { post(&gateway, "credit", &wish).header("idempotency-key", "a").send().await.status };
    eventually("the store knows what can be credited", DEADLINE, credit, |status| *status == 200).await;

    let listed = gateway.admin_get("/api/budgets").await.json()[0].clone();
    let amount = |field: &str| listed[field].as_f64().expect("an amount");
    let share = 1.0 - amount("left_nanousd") / (amount("limit_nanousd") + amount("credited_nanousd"));
    assert!((share - 4.0 / 14.0).abs() < 1e-9, "{listed}");
    eventually("the gauge says the same", DEADLINE, ratio, |ratio| (ratio - share).abs() < 1e-9).await;
}

#[tokio::test]
async fn a_damaged_account_is_rebuilt_from_a_figure_and_its_living_holders() {
    let (redis, upstream) = (RedisServer::start(), Upstream::answering(|_| billing()).await);
    let gateway = member(&upstream, &redis, "1 USD").run().await;
    paid(&gateway).send().await.expect(200);
    let stored =
        || async { gateway.admin_get("/api/budgets/all").await.json()["accounts"][0]["charged_nanousd"].clone() };
    eventually("it is charged", DEADLINE, stored, |charged| *charged == json!(COST)).await;
    redis.command(&["HSET", KEY_IN_REDIS, "archived", "nonsense"]);
    wait_until("calls are refused", DEADLINE, || gateway.log_text().contains("cannot be read")).await;
    paid(&gateway).send().await.expect(503);
    assert_eq!(gateway.admin_get("/api/budgets").await.json()[0]["damaged"], json!(true));

    let wish =
        |charged: Value| json!({"account": ACCOUNT, "charged_nanousd": charged, "reason": "somebody wrote to it"});
    assert!(problem(&post(&gateway, "rebuild", &wish(Value::Null)).send().await, 422).contains("archived"));
    let done = post(&gateway, "rebuild", &wish(json!(5 * COST))).send().await.expect(200).json();
    assert_eq!((&done["was"], &done["charged_nanousd"]), (&json!("damaged"), &json!(5 * COST)), "{done}");
    let again = post(&gateway, "rebuild", &wish(json!(5 * COST))).send().await.expect(200).json();
    assert_eq!(again["was"], "whole");

    let calling = || async { paid(&gateway).send().await.status };
    eventually("calls go on", DEADLINE, calling, |status| *status == 200).await;
    let all = || async { gateway.budget("all").await.charged_nanousd };
    eventually("all is in the books", DEADLINE, all, |charged| *charged >= 6 * COST).await;
    assert_eq!(audited(&gateway)[0]["before"]["archived"], "nonsense");
}

fn tollgate(gateway: &Gateway, arguments: &[&str]) -> (Option<i32>, String, String) {
    let config = gateway.config_path();
    let words = ["budgets", "--config", config.to_str().unwrap()].into_iter().chain(arguments.iter().copied());
    let output = gateway.command(&words.collect::<Vec<_>>()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_says_the_same_of_a_running_gateway_and_of_its_store() {
    let upstream = Upstream::answering(|_| billing()).await;
    let gateway =
        Gateway::before(&upstream).price("upstream/m", "input: 0 USD/1M, output: 10 USD/1M, max_output: 16384");
    let gateway = gateway.budget("name: all, scope: { team: red }, per: month, limit: 1 USD");
    let mut gateway = gateway.budget(BUDGET).run().await;
    paid(&gateway).user("ann").send().await.expect(200);
    gateway.wait_for_records(1).await;
    let url = format!("http://{}", gateway.admin);
    let ask = |arguments: &[&str]| tollgate(&gateway, &[&["--url", &url], arguments].concat());

    let (code, table, _) = ask(&[]);
    assert_eq!(code, Some(0));
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("ACCOUNT") && lines.len() == 3, "{table}");
    assert!(
        lines[1].starts_with("all/team=red/") && lines[1].contains("0.004") && lines[1].contains("0.996"),
        "{table}"
    );
    let (_, listed, _) = ask(&["list", "--json"]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed[0]["left_nanousd"], json!(1_000_000_000 - COST));
    assert!(listed[0]["resets_at"].is_string(), "{listed}");
    let (code, shown, _) = ask(&["show", "all"]);
    assert!(code == Some(0) && shown.contains("GATEWAY") && shown.contains("open"), "{shown}");
    let (code, _, why) = ask(&["show", "nothing"]);
    assert!(code == Some(2) && why.contains("no budget is named `nothing`"), "{code:?} {why}");
    let (code, _, why) = ask(&["credit", "all", "5 USD", "--reason", "x"]);
    assert!(code == Some(1) && why.contains("less spent"), "{code:?} {why}");
    let (code, _, why) = tollgate(&gateway, &["--offline", "list"]);
    assert!(code == Some(3) && why.contains("--offline"), "{code:?} {why}");

    gateway.signal("TERM");
    assert!(gateway.exit(DEADLINE).await.success());
    let (code, _, why) = tollgate(&gateway, &["--url", &url, "list"]);
    assert!(code == Some(3) && why.contains("cannot be reached"), "{code:?} {why}");
    let (code, offline, why) = tollgate(&gateway, &["--offline", "list", "--json"]);
    assert_eq!(code, Some(0), "{why}");
    let offline: Value = serde_json::from_str(&offline).unwrap();
    for (offline, online) in offline.as_array().unwrap().iter().zip(listed.as_array().unwrap()) {
        for field in ["account", "limit_nanousd", "charged_nanousd", "left_nanousd", "resets_at"] {
            assert_eq!(offline[field], online[field], "{field}");
        }
    }
    let credit = ["--offline", "credit", "all", "0.001 USD", "--reason", "a test"];
    let (code, said, why) = tollgate(&gateway, &credit);
    assert!(code == Some(0) && said.starts_with("Gave back 0.001 USD"), "{said} {why}");
    assert_eq!(audited(&gateway)[0]["action"], "budgets.credit");
}
