//! The whole loop on two gateways that share a Redis and a PostgreSQL: a gate, a tenth of the users, a verdict, promotion, the way
//! back. All by the command line and the API, as a team would.

use std::{
    collections::BTreeMap,
    path::Path,
    process::Output,
    time::{Duration, Instant},
};

use futures_util::{
    future::join_all,
    stream::{self, StreamExt as _},
};
use serde_json::{Value, json};

use crate::support::{DEADLINE, Gateway, eventually, gateway::Setup, postgres::PostgresServer, redis::RedisServer};

/// By then every gateway serves what was decided.
const LIVE_WITHIN: Duration = Duration::from_secs(1);
/// Enough for a verdict on what a tenth of them gets.
const USERS: usize = 600;
const CLIENTS: usize = 16;
/// The example's key for the website.
const KEY: &str = "tg-support-bot-example";

/// The example's own configuration with its prompts and suites.
fn setup(redis: &RedisServer, postgres: &PostgresServer) -> Setup {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/support-bot");
    let text = std::fs::read_to_string(example.join("tollgate.yaml")).unwrap();
    let setup = Gateway::yaml(format!("{text}\nrecords: \"{}\"\n", postgres.url()));
    for name in [
        "prompts/support-v1.md",
        "prompts/support-v2.md",
        "suites/support.yaml",
        "suites/live.yaml",
        "suites/cases.jsonl",
    ] {
        let target = setup.directory().join(name);
        std::fs::create_dir_all(target.parent().expect("in a folder")).unwrap();
        std::fs::copy(example.join(name), target).unwrap();
    }
    setup.env("PORT", "0").env("ADMIN_PORT", "0").env("STORE", &redis.url())
}

/// `tollgate ARGUMENTS`, asking this gateway.
async fn tollgate(gateway: &Gateway, arguments: &[&str]) -> Output {
    let mut command = gateway.command(arguments);
    command.env("TOLLGATE_CONFIG", "tollgate.yaml");
    command.env("TOLLGATE_URL", format!("http://{}", gateway.listen));
    command.env("TOLLGATE_ADMIN_URL", format!("http://{}", gateway.admin));
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// What it prints, when it ends with this code.
#[track_caller]
fn said(output: &Output, code: i32) -> String {
    let (said, complaint) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{said}\n--\n{complaint}");
    said.into_owned()
}

/// A question of the suite, with what a right answer says.
struct Case {
    question: String,
    expected: String,
}

fn cases() -> Vec<Case> {
    let text = include_str!("../../examples/support-bot/suites/cases.jsonl");
    let case = |line: &str| {
        let case: Value = serde_json::from_str(line).unwrap();
        let of = |field: &str| case[field].as_str().unwrap().to_owned();
        Case { question: of("input"), expected: of("expected") }
    };
    text.lines().map(case).collect()
}

/// One visitor asks: the version and the variant that served, whether the answer is right, the call.
async fn visit(gateway: &Gateway, user: &str, case: &Case) -> (String, String, bool, String) {
    let body = json!({ "model": "support", "messages": [{ "role": "user", "content": case.question }] });
    let reply = gateway.post("/v1/chat/completions").key(KEY).user(user).json(&body).send().await.expect(200);
    let header = |name: &str| reply.header(name).unwrap_or_default().to_owned();
    let is_right = reply.text().contains(&case.expected);
    (header("x-tollgate-version"), header("x-tollgate-variant"), is_right, header("x-tollgate-call"))
}

/// Visitors come to both gateways in turns, and rate what they got; how many there were of each variant.
async fn visitors(fleet: &[Gateway]) -> BTreeMap<String, usize> {
    let cases = cases();
    let visits = (0..USERS).map(|number| {
        let (gateway, case) = (&fleet[number % fleet.len()], &cases[number % cases.len()]);
        async move {
            let (_, variant, is_right, call) = visit(gateway, &format!("visitor-{number}"), case).await;
            let rating = json!({ "call": call, "metric": "resolved", "value": is_right });
            gateway.post("/v1/feedback").key(KEY).json(&rating).send().await.expect(202);
            variant
        }
    });
    let variants: Vec<String> = stream::iter(visits).buffer_unordered(CLIENTS).collect().await;
    variants.into_iter().fold(BTreeMap::new(), |mut seen, variant| {
        *seen.entry(variant).or_default() += 1;
        seen
    })
}

/// Waits until all gateways serve what was just decided, and says how long that took.
async fn live_everywhere(fleet: &[Gateway], version: &str) {
    let (begun, case) = (Instant::now(), &cases()[0]);
    let is_live = |gateway| async move { visit(gateway, "ann", case).await.0 };
    let each = |gateway| eventually(version, LIVE_WITHIN, move || is_live(gateway), |served| served == version);
    join_all(fleet.iter().map(each)).await;
    eprintln!("{version} is live everywhere after {:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_a_gate_to_a_verdict_to_promotion_and_back_on_two_gateways() {
    let (redis, postgres) = (RedisServer::start(), PostgresServer::start());
    let fleet = join_all((0..2).map(|_| setup(&redis, &postgres).run())).await;

    // The gate, as a pull request would meet it: what is live fails, the candidate passes.
    let failed = tollgate(&fleet[0], &["eval", "run", "suites/live.yaml", "--junit", "live.xml"]).await;
    assert!(said(&failed, 1).contains("FAIL"));
    let passed = tollgate(&fleet[1], &["eval", "run", "suites/support.yaml", "--junit", "support.xml"]).await;
    assert!(!said(&passed, 0).contains("FAIL"));

    // A tenth of the users, on both gateways alike.
    let variants = ["--variant", "control=90", "--variant", "facts=10,prompt=support@v2"];
    let rules = ["--goal", "resolved up", "--guardrail", "error_rate max 5%", "--start"];
    let create = [&["experiments", "create", "facts", "--model", "support"][..], &variants, &rules].concat();
    said(&tollgate(&fleet[0], &create).await, 0);
    let running = || async { fleet[1].admin_get("/api/experiments/facts").await.json() };
    eventually("it runs on the other one", LIVE_WITHIN, running, |shown| shown["state"] == "running").await;
    let seen = visitors(&fleet).await;
    let facts = seen["facts=facts"];
    assert!((USERS / 20..USERS / 5).contains(&facts) && seen.len() == 2, "a tenth: {seen:?}");
    let case = &cases()[0];
    for user in (0..20).map(|number| format!("visitor-{number}")) {
        let (one, other) = (visit(&fleet[0], &user, case).await, visit(&fleet[1], &user, case).await);
        assert_eq!(one.1, other.1, "{user} is in one variant everywhere");
    }

    // The verdict, over the calls of both.
    let report = || async { fleet[1].admin_get("/api/experiments/facts/report").await.expect(200).json() };
    let is_whole = |report: &Value| {
        let rated = (0..2).map(|arm| report["arms"][arm]["metrics"]["resolved"]["units"].as_u64().unwrap_or_default());
        rated.sum::<u64>() == USERS as u64
    };
    let found = eventually("all ratings are counted", DEADLINE, report, is_whole).await;
    assert_eq!((&found["verdict"]["kind"], &found["verdict"]["arm"]), (&json!("better"), &json!("facts")), "{found}");
    let told = said(&tollgate(&fleet[0], &["experiments", "report", "facts", "--gate"]).await, 0);
    assert!(told.starts_with("facts is better: resolved +"), "{told}");

    // Promotion, and the way back: everywhere within a second.
    let promote = ["experiments", "promote", "facts", "facts", "--reason", "the verdict"];
    said(&tollgate(&fleet[0], &promote).await, 0);
    live_everywhere(&fleet, "facts-facts").await;
    let (_, variant, is_right, _) = visit(&fleet[1], "visitor-0", case).await;
    assert!(is_right && variant.is_empty(), "everybody gets the better prompt, and no experiment runs: {variant}");
    said(&tollgate(&fleet[1], &["eval", "run", "suites/live.yaml"]).await, 0);
    said(&tollgate(&fleet[1], &["models", "rollback", "support", "--reason", "to be sure"]).await, 0);
    live_everywhere(&fleet, "v1").await;
    let history = said(&tollgate(&fleet[0], &["models", "history", "support"]).await, 0);
    assert!(history.contains("rolled back") && history.contains("to be sure"), "{history}");
}
