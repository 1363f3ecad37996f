//! The call log: what a row says, that each call has exactly one, and that no call waits for it.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tollgate::{
    record::{CallRow, Outcome, UsageSource},
    store::records::{
        ports::{CallLog, Dimension, Filter, UsageQuery},
        postgres::Postgres,
        sqlite::Sqlite,
    },
};

use crate::support::{
    DEADLINE, Gateway, KEY, PROVIDER_KEY, Reply, Upstream, closed_port, eventually,
    postgres::PostgresServer,
    upstream::{chat_stream, chunk},
};

/// The rows of a gateway's SQLite log once there are `count`, the oldest first.
async fn rows(gateway: &Gateway, count: usize) -> Vec<CallRow> {
    let log = Sqlite::read(&gateway.data_dir()).unwrap();
    let all = || async { log.page(Filter::default(), None, 100_000).await.map(|page| page.rows).unwrap_or_default() };
    let mut rows = eventually("the calls are in the log", DEADLINE, all, |rows| rows.len() >= count).await;
    assert_eq!(rows.len(), count);
    rows.reverse();
    rows
}

#[tokio::test]
async fn a_row_says_who_called_what_served_and_how_it_went() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::everything(&upstream).env("RECORDS", "sqlite").run().await;

    let response = gateway
        .hello("support")
        .user("alice")
        .header("x-tollgate-session", "s-1")
        .header("x-tollgate-tags", "ticket=4711")
        .send()
        .await
        .expect(200);

    let row = rows(&gateway, 1).await.remove(0);
    assert_eq!(Some(&*row.id), response.header("x-tollgate-call"));
    assert_eq!((&*row.endpoint, &*row.key, row.team.as_deref()), ("chat_completions", "web", Some("product")));
    assert_eq!((&*row.user, row.session.as_deref()), ("alice", Some("s-1")));
    let tags: Vec<(&str, &str)> = row.tags.iter().map(|(tag, value)| (&**tag, &**value)).collect();
    assert_eq!(tags, [("app", "web"), ("ticket", "4711")]);
    assert_eq!((&*row.model, row.named.as_deref(), row.version.as_deref()), ("support", Some("support"), Some("v1")));
    assert_eq!(row.target.as_deref(), response.header("x-tollgate-model"));
    assert_eq!(row.prompt.as_deref(), response.header("x-tollgate-prompt"));
    let assigned = &row.variants[0];
    assert_eq!(Some(&*format!("tone={}", assigned.variant)), response.header("x-tollgate-variant"));
    assert_eq!(&*assigned.unit, "alice");
    assert_eq!((row.status, row.outcome, row.usage_source), (200, Outcome::Ok, UsageSource::Provider));
    assert!(row.cost_nanousd > 0 && row.priced && row.prices.as_deref().is_some_and(|p| p.starts_with("genai-prices")));
    let attempt = &row.attempt_list[0];
    assert_eq!((row.attempts, &*attempt.result, attempt.status), (1, "ok", Some(200)));
    assert!(attempt.start_us <= attempt.head_us.unwrap() && attempt.head_us.unwrap() <= attempt.end_us);
    assert!(attempt.end_us <= row.duration_us && row.overhead_us.unwrap() <= row.duration_us);
}

#[tokio::test]
async fn each_attempt_stands_in_the_row_with_its_result() {
    let broken = Upstream::always(Reply::json(503, &json!({"error": {"message": "busy"}}))).await;
    let spare = Upstream::run().await;
    let gateway = Gateway::bare()
        .provider_at("gone", &closed_port().await)
        .provider_at("broken", &broken.url())
        .provider_at("spare", &spare.url())
        .top("routing", "{ attempts: 3, eject: off }")
        .top("records", "sqlite")
        .model("support", "target: gone/a, fallbacks: [ broken/b, spare/c ]")
        .key("dev", KEY, "")
        .run()
        .await;
    gateway.hello("support").send().await.expect(200);

    let row = rows(&gateway, 1).await.remove(0);

    let went: Vec<_> = row.attempt_list.iter().map(|a| (&*a.target, a.status, &*a.result)).collect();
    assert_eq!(went, [("gone/a", None, "unreachable"), ("broken/b", Some(503), "error"), ("spare/c", Some(200), "ok")]);
    assert!(row.attempt_list.is_sorted_by_key(|attempt| attempt.start_us));
    assert_eq!((&*row.provider, row.attempts), ("spare", 3));
}

#[tokio::test]
async fn the_log_says_why_a_provider_could_not_be_reached() {
    let gateway = Gateway::bare().provider_at("gone", &closed_port().await).key("dev", KEY, r#", models: ["*"]"#);
    let gateway = gateway.run().await;

    gateway.hello("gone/a").send().await.expect(502);

    let failure =
        |line: &Value| line["message"].as_str().is_some_and(|text| text.starts_with("an upstream attempt failed"));
    let lines = eventually("the line", DEADLINE, async || gateway.log_lines(), |lines| lines.iter().any(failure)).await;
    let cause = &lines.iter().find(|line| failure(line)).unwrap()["cause"];
    assert!(cause.as_str().is_some_and(|cause| cause.contains("Connection refused")), "{cause}");
}

#[tokio::test]
async fn refused_abandoned_and_cut_calls_have_a_row_too() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::before(&upstream).top("records", "sqlite").top("calls", "{ users: hash }").run().await;
    gateway.post("/v1/chat/completions").key("wrong").json(&json!({})).send().await.expect(401);
    upstream.script(chat_stream(&["one", "two"], Some((7, 2))));
    gateway.hello_stream("upstream/m").user("alice").send().await.expect(200);
    upstream.script(Reply::stream().data(chunk("one")).cut());
    gateway.hello_stream("upstream/m").send().await.expect(200);

    let rows = rows(&gateway, 3).await;

    assert_eq!(rows.iter().map(|row| row.outcome).collect::<Vec<_>>(), [Outcome::Refused, Outcome::Ok, Outcome::Cut]);
    assert_eq!((rows[0].refusal.as_deref(), &*rows[0].key, rows[0].attempts), (Some("invalid_api_key"), "", 0));
    assert!(rows[1].streamed && rows[1].first_token_us.is_some());
    assert!(rows[1].user.starts_with("sha256:"), "{}", rows[1].user);
    assert_eq!(&*rows[2].attempt_list[0].result, "error");
}

#[tokio::test]
async fn a_refusal_is_somebodys_as_soon_as_the_key_is_known() {
    let gateway = Gateway::bare()
        .provider("sim", "kind: simulated")
        .top("records", "sqlite")
        .model("support", "target: sim/any, prompt: greeting")
        .top("prompts", "{ greeting: { versions: { v1: { system: \"{{ product }}\", variables: { product: {} } } } } }")
        .key("web", KEY, ", team: product")
        .top("unpriced", "refuse")
        .run()
        .await;
    gateway.post("/v1/chat/completions").key(KEY).body("application/json", "no JSON").send().await.expect(400);
    gateway.hello("nothing").user("alice").send().await.expect(404);
    gateway.hello("support").user("alice").send().await.expect(400);
    gateway.hello("sim/unknown-and-unpriced").user("alice").send().await.expect(400);

    let rows = rows(&gateway, 4).await;

    let whose: Vec<_> = rows
        .iter()
        .map(|row| (row.refusal.as_deref().unwrap(), &*row.key, row.team.as_deref(), &*row.user, row.named.as_deref()))
        .collect();
    let team = Some("product");
    let expected = [
        ("invalid_request", "web", team, "web", None),
        ("model_not_found", "web", team, "alice", Some("nothing")),
        ("prompt_variable_missing", "web", team, "alice", Some("support")),
        ("unpriceable", "web", team, "alice", Some("sim/unknown-and-unpriced")),
    ];
    assert_eq!(whose, expected);
}

#[tokio::test]
async fn a_drained_gateway_has_stored_every_call_and_a_restarted_one_goes_on() {
    let upstream = Upstream::run().await;
    let mut gateway = Gateway::before(&upstream).top("records", "sqlite").run().await;
    for _ in 0..20 {
        gateway.hello("upstream/m").send().await.expect(200);
    }
    gateway.signal("TERM");
    assert!(gateway.exit(DEADLINE).await.success());

    let log = Sqlite::read(&gateway.data_dir()).unwrap();
    assert_eq!(log.page(Filter::default(), None, 100).await.unwrap().rows.len(), 20);
    let gateway = gateway.kill_and_restart().await;
    gateway.hello("upstream/m").send().await.expect(200);
    rows(&gateway, 21).await;
    let sums = log.usage(UsageQuery { by: Some(Dimension::Key), ..UsageQuery::default() }).await.unwrap();
    assert_eq!((sums.len(), &sums[0].value, sums[0].total.calls), (1, &Arc::from("dev"), 21));
}

#[tokio::test]
async fn without_a_log_no_file_is_written() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::before(&upstream).top("records", "none").run().await;
    gateway.hello("upstream/m").send().await.expect(200);
    gateway.next_record().await;
    assert!(!gateway.data_dir().join("calls.db").exists());
    assert!(!gateway.metrics().await.names("tollgate_records_waiting"));
}

// === bodies ===

#[tokio::test]
async fn bodies_are_kept_only_where_asked_for_and_never_with_a_secret() {
    let upstream = Upstream::answering(|request| match request.json()["stream"] {
        serde_json::Value::Bool(true) => chat_stream(&["your key is ", KEY], Some((7, 2))),
        _ => Reply::json(200, &json!({"id": "x", "echo": KEY, "usage": {"prompt_tokens": 1, "completion_tokens": 1}})),
    })
    .await;
    let prompt = |stream: bool| {
        json!({"model": "upstream/m", "stream": stream, "metadata": {"plan": "canary-plan"}, "messages": [
            {"role": "user", "content": format!("keys {KEY} {PROVIDER_KEY}, in \u{fc}mlauts")}]})
    };
    for (calls, text) in [
        ("{}", None),
        ("{ bodies: metadata }", Some(false)),
        ("{ bodies: full, redact: { paths: [ metadata.plan ] } }", Some(true)),
    ] {
        let gateway = Gateway::before(&upstream).top("records", "sqlite").top("calls", calls).run().await;
        for stream in [false, true] {
            gateway.chat(&prompt(stream)).send().await.expect(200);
        }
        let rows = rows(&gateway, 2).await;
        let log = Sqlite::read(&gateway.data_dir()).unwrap();
        for row in rows {
            let bodies = log.bodies(row.id.clone()).await.unwrap();
            let Some(whole) = text else {
                assert_eq!(bodies, None);
                continue;
            };
            let bodies = bodies.unwrap();
            let (request, reply) = (bodies.request.unwrap(), bodies.reply.unwrap());
            assert!(request.bytes > 50 && reply.bytes > 50, "{request:?} {reply:?}");
            assert_eq!((request.cut, request.text.is_empty(), reply.text.is_empty()), (!whole, !whole, !whole));
            assert_eq!(request.text.contains("mlauts"), whole, "{}", request.text);
            assert_eq!(reply.text.contains("[redacted]"), whole, "{}", reply.text);
        }
        drop(gateway.metrics().await);
        let files =
            std::fs::read_dir(gateway.data_dir()).unwrap().map(|file| std::fs::read(file.unwrap().path()).unwrap());
        for file in files {
            for canary in [KEY, PROVIDER_KEY, "canary-plan"] {
                assert!(!file.windows(canary.len()).any(|part| part == canary.as_bytes()), "{canary} with {calls}");
            }
        }
    }
}

// === the command ===

fn output(gateway: &Gateway, arguments: &[&str]) -> std::process::Output {
    let config = gateway.config_path();
    gateway.command(&[&["calls", "--config", config.to_str().unwrap()], arguments].concat()).output().unwrap()
}

fn told(gateway: &Gateway, arguments: &[&str]) -> String {
    let output = output(gateway, arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &*error), (Some(0), ""), "{arguments:?}: quiet in a pipe");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn the_command_shows_and_exports_beside_a_running_gateway() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::before(&upstream).top("records", "sqlite").top("calls", "{ users: hash }").run().await;
    for user in ["alice", "bob", "alice"] {
        gateway.hello("upstream/m").user(user).send().await.expect(200);
    }
    gateway.post("/v1/chat/completions").key("wrong").json(&json!({})).send().await.expect(401);
    let rows = rows(&gateway, 4).await;

    let tail = told(&gateway, &["tail", "-n", "2"]);
    assert_eq!(tail.lines().count(), 2);
    assert!(tail.lines().last().unwrap().contains(&*rows[3].id), "the latest comes last: {tail}");
    assert_eq!(told(&gateway, &["tail", "--user", "alice"]).lines().count(), 2);
    assert_eq!(told(&gateway, &["tail", "--since", "1h", "--outcome", "ok"]).lines().count(), 3);
    assert_eq!(told(&gateway, &["tail", "--until", "1h"]), "");

    let shown = told(&gateway, &["show", &rows[0].id]);
    assert!(shown.contains("attempt 1: upstream/m ok 200") && shown.contains("whole call"), "{shown}");
    let json: serde_json::Value = serde_json::from_str(&told(&gateway, &["show", &rows[0].id, "--json"])).unwrap();
    assert_eq!(serde_json::from_value::<CallRow>(json["call"].clone()).unwrap(), rows[0]);
    let unknown = output(&gateway, &["show", "no-such-call"]);
    assert_eq!(unknown.status.code(), Some(1));

    let lines = told(&gateway, &["export"]);
    let exported: Vec<CallRow> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut latest_first = rows.clone();
    latest_first.reverse();
    assert_eq!(exported, latest_first);
    let file = gateway.data_dir().join("calls.parquet");
    told(&gateway, &["export", "--format", "parquet", "-o", file.to_str().unwrap()]);
    let bytes = std::fs::read(&file).unwrap();
    assert!(bytes.starts_with(b"PAR1") && bytes.ends_with(b"PAR1"));
}

#[tokio::test]
async fn the_command_says_what_is_wrong() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::before(&upstream).top("records", "none").run().await;
    let code = |arguments: &[&str]| output(&gateway, arguments).status.code();
    assert_eq!(code(&["tail"]), Some(2), "the configuration keeps none");
    assert_eq!(code(&["migrate", "--to", "0"]), Some(2));
    assert_eq!(code(&["tail", "--data-dir", "/nonexistent"]), Some(3));
    assert_eq!(code(&["tail", "--since", "yesterday"]), Some(2));
    assert_eq!(code(&["tail", "--outcome", "fine"]), Some(2));
    assert_eq!(code(&["export", "--format", "xlsx"]), Some(2));
}

// === PostgreSQL ===

/// A gateway whose calls go to `server`, with the log as a reader sees it.
async fn on_postgres(server: &PostgresServer, upstream: &Upstream) -> (Gateway, Postgres) {
    let gateway = Gateway::before(upstream).top("records", &server.url()).run().await;
    (gateway, Postgres::read(&server.url()).unwrap())
}

async fn count(log: &Postgres) -> u64 {
    let sums = log.usage(UsageQuery::default()).await.unwrap_or_default();
    sums.first().map_or(0, |all| all.total.calls)
}

#[tokio::test]
async fn two_gateways_write_into_one_postgresql() {
    let (server, upstream) = (PostgresServer::start(), Upstream::run().await);
    let (first, log) = on_postgres(&server, &upstream).await;
    let (second, _) = on_postgres(&server, &upstream).await;
    let calls: Vec<_> = (0..60).map(|n| [&first, &second][n % 2].hello("upstream/m")).collect();
    let sent =
        calls.iter().map(|call| async { call.send().await.expect(200).header("x-tollgate-call").unwrap().to_owned() });
    let mut ids = futures_util::future::join_all(sent).await;

    eventually("all are counted", DEADLINE, || count(&log), |count| *count == 60).await;

    ids.sort_unstable();
    let mut kept: Vec<String> =
        log.page(Filter::default(), None, 100).await.unwrap().rows.iter().map(|row| row.id.to_string()).collect();
    kept.reverse();
    assert_eq!(kept, ids);
}

/// By default a short outage under little load. The whole of it, 500 calls a second and a minute each:
/// `TOLLGATE_OUTAGE=500,60 cargo test --release --test it calls::a_store_that`.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_fails_no_call_and_loses_none() {
    let whole = std::env::var("TOLLGATE_OUTAGE").unwrap_or_else(|_| "50,3".to_owned());
    let (per_second, away) = whole.split_once(',').expect("calls a second, seconds");
    let (per_second, away): (u64, u64) = (per_second.parse().unwrap(), away.parse().unwrap());
    let (mut server, upstream) = (PostgresServer::start(), Upstream::run().await);
    let (gateway, log) = on_postgres(&server, &upstream).await;

    // Up for a second, killed, up for a second, hanging for longer than the writer waits, up again.
    let seconds = away * 2 + 9;
    let call = gateway.hello("upstream/m");
    let load = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_micros(1_000_000 / per_second));
        let mut sent = Vec::new();
        for _ in 0..seconds * per_second {
            ticks.tick().await;
            sent.push(tokio::spawn(call.clone().send_owned()));
        }
        let mut ids = Vec::new();
        for response in sent {
            ids.push(response.await.unwrap().expect(200).header("x-tollgate-call").unwrap().to_owned());
        }
        ids
    });
    let pause = |seconds| tokio::time::sleep(Duration::from_secs(seconds));
    pause(1).await;
    server.kill();
    pause(away).await;
    let missed = gateway.metrics().await;
    assert_eq!(missed.value("tollgate_records_store_up", &[]), 0.0, "{}", missed.text);
    tokio::task::block_in_place(|| server.restart());
    pause(1).await;
    server.signal("STOP");
    pause(away + 6).await;
    server.signal("CONT");
    let mut ids = load.await.unwrap();

    let total = ids.len() as u64;
    eventually("all are counted", DEADLINE.max(Duration::from_secs(away * 2)), || count(&log), |count| *count >= total)
        .await;
    let mut kept = Vec::new();
    let mut after = None;
    loop {
        let page = log.page(Filter::default(), after, 1000).await.unwrap();
        kept.extend(page.rows.iter().map(|row| row.id.to_string()));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    kept.reverse();
    ids.sort_unstable();
    assert_eq!((kept.len(), kept), (ids.len(), ids), "each served call has exactly one row");
    assert_eq!(count(&log).await, total);
    let after = gateway.metrics().await;
    assert_eq!(after.value("tollgate_records_dropped_total", &[]), 0.0);
    assert_eq!(after.value("tollgate_records_store_up", &[]), 1.0);
    assert!(!gateway.log_text().contains("postgres://"), "the URL may hold a password");
}

#[tokio::test]
async fn a_gateway_starts_without_its_postgresql_and_catches_up() {
    let (mut server, upstream) = (PostgresServer::start(), Upstream::run().await);
    server.kill();
    let (gateway, log) = on_postgres(&server, &upstream).await;
    for _ in 0..5 {
        gateway.hello("upstream/m").send().await.expect(200);
    }
    let gateway = gateway.kill_and_restart().await;
    gateway.hello("upstream/m").send().await.expect(200);
    server.restart();
    // Of the first five those are there that were spilled before the kill; nothing promises the last 200 ms.
    eventually("the later one is stored", DEADLINE, || count(&log), |count| (1..=6).contains(count)).await;
}
