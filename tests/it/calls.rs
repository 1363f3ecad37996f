//! The call log: what a row says, that each call has exactly one, and that no call waits for it.

use std::sync::Arc;

use serde_json::json;
use tollgate::{
    record::{CallRow, Outcome, UsageSource},
    store::records::{
        ports::{CallLog, Dimension, Filter, UsageQuery},
        sqlite::Sqlite,
    },
};

use crate::support::{
    DEADLINE, Gateway, KEY, Reply, Upstream, closed_port, eventually,
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
