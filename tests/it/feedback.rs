//! `POST /v1/feedback`: taken at once, kept with the calls, never forwarded, and counted only for those who share the call.

use std::sync::Arc;

use serde_json::{Value, json};
use tollgate::{
    record::Feedback,
    store::records::{feedback::FeedbackFilter, ports::CallLog, sqlite::Sqlite},
};

use crate::support::{Call, DEADLINE, Gateway, KEY, Upstream, eventually, gateway::Setup};

const RIVAL: &str = "tg-0000000000000000000000000000rival";

/// What is kept once there are `count`, the latest first.
async fn kept(gateway: &Gateway, count: usize) -> Vec<Feedback> {
    let log = Sqlite::read(&gateway.data_dir()).unwrap();
    let all = || async {
        let page = log.feedback(FeedbackFilter::default(), None, 20_000).await;
        page.map(|page| page.rows).unwrap_or_default()
    };
    eventually("the feedback is in the log", DEADLINE, all, |rows| rows.len() >= count).await
}

fn recording(upstream: &Upstream) -> Setup {
    Gateway::before(upstream).top("records", "sqlite").key("rival", RIVAL, r#", team: blue, models: ["*"]"#)
}

fn saying(gateway: &Gateway, rating: &Value) -> Call {
    gateway.post("/v1/feedback").key(KEY).json(rating)
}

#[tokio::test]
async fn what_is_said_of_a_call_is_shown_with_it_and_never_forwarded() {
    let upstream = Upstream::run().await;
    let gateway = recording(&upstream).run().await;
    let call = gateway.hello("m").header("x-tollgate-session", "s-1").send().await.expect(200);
    let call = call.header("x-tollgate-call").unwrap().to_owned();

    let both = json!([
        {"call": call, "metric": "resolved", "value": true, "comment": "use sk-0123456789abcdefghij"},
        {"session": "s-1", "metric": "stars", "value": 4, "source": "survey"},
    ]);
    assert_eq!(saying(&gateway, &both).send().await.expect(202).json()["accepted"], 2);
    let again = json!({"call": call, "metric": "resolved", "value": false});
    saying(&gateway, &again).send().await.expect(202);
    let foreign = json!({"call": call, "metric": "resolved", "value": true});
    gateway.post("/v1/feedback").key(RIVAL).json(&foreign).send().await.expect(202);

    kept(&gateway, 3).await;
    let shown = || async { gateway.admin_get(&format!("/api/calls/{call}")).await.json() };
    let shown = eventually("the last word", DEADLINE, shown, |call| call["feedback"][0]["value"] == json!(false)).await;
    let values: Vec<(&Value, &Value)> =
        shown["feedback"].as_array().unwrap().iter().map(|said| (&said["metric"], &said["value"])).collect();
    assert_eq!(values, [(&json!("resolved"), &json!(false)), (&json!("stars"), &json!(4.0))]);
    let listed = gateway.admin_get("/api/feedback?metric=resolved").await.json();
    assert_eq!(listed.as_array().unwrap().len(), 2, "{listed}");
    assert!(!listed.to_string().contains("sk-0123"), "{listed}");
    let told = gateway.command(&["calls", "show", &call]).output().unwrap();
    assert!(String::from_utf8_lossy(&told.stdout).contains("resolved = false"), "{told:?}");
    assert_eq!(upstream.requests().len(), 1, "only the call itself");
}

#[tokio::test]
async fn a_rating_that_is_sent_twice_counts_once() {
    let upstream = Upstream::run().await;
    let gateway = recording(&upstream)
        .model("support", "target: upstream/m")
        .experiment("tone", "model: support, variants: { only: { weight: 1 } }, goal: { metric: stars }")
        .run()
        .await;
    let call = gateway.hello("support").user("ann").send().await.expect(200);
    let call = call.header("x-tollgate-call").unwrap();

    // In three requests, and twice in one.
    let of = |source: &str, value: u64| json!({"call": call, "metric": "stars", "value": value, "source": source});
    for body in [json!(of("user", 4)), json!(of("user", 4)), json!([of("user", 4), of("user", 4)])] {
        saying(&gateway, &body).send().await.expect(202);
    }
    saying(&gateway, &of("judge", 2)).send().await.expect(202);

    let rows = kept(&gateway, 2).await;
    assert_eq!(rows.len(), 2, "one of each source: {rows:?}");
    let report = || async { gateway.admin_get("/api/experiments/tone/report").await.expect(200).json() };
    let is_rated = |report: &Value| report["arms"][0]["metrics"]["stars"]["units"] == json!(1);
    let report = eventually("it is in the report", DEADLINE, report, is_rated).await;
    let stars = &report["arms"][0]["metrics"]["stars"];
    assert_eq!(stars["value"], json!(3.0), "the mean of 4 and 2, each once: {report}");
}

#[tokio::test]
async fn feedback_that_cannot_be_taken_says_why() {
    let upstream = Upstream::run().await;
    let gateway = recording(&upstream).run().await;
    let rating = json!({"session": "s", "metric": "m", "value": 1});
    for (call, status, code) in [
        (gateway.post("/v1/feedback").key("tg-wrong").json(&rating), 401, "invalid_api_key"),
        (gateway.get("/v1/feedback").key(KEY), 405, "method_not_allowed"),
        (gateway.post("/v1/feedback/x").key(KEY).json(&rating), 404, "unknown_endpoint"),
        (saying(&gateway, &json!({"session": "s", "metric": "M", "value": 1})), 400, "invalid_request"),
        (gateway.post("/v1/feedback").key(KEY).body("application/json", vec![b' '; 300_000]), 400, "invalid_request"),
    ] {
        assert_eq!(call.send().await.expect(status).error_code(), code);
    }
    let without = Gateway::before(&upstream).top("records", "none").run().await;
    let refused = saying(&without, &rating).send().await.expect(501);
    assert!(refused.error_code() == "no_call_log" && refused.text().contains("records: sqlite"), "{}", refused.text());
    assert_eq!(upstream.requests().len(), 0);
}

#[tokio::test]
async fn thousands_of_ratings_right_after_their_replies_are_all_kept() {
    let upstream = Upstream::run().await;
    let gateway = Arc::new(recording(&upstream).run().await);
    let count = crate::support::rounds(400, 10_000);
    let each = count / 8;
    let calling = (0..8).map(|_| {
        let gateway = gateway.clone();
        tokio::spawn(async move {
            for _ in 0..each {
                let reply = gateway.hello("m").send().await.expect(200);
                let rating = json!({"call": reply.header("x-tollgate-call"), "metric": "resolved", "value": true});
                saying(&gateway, &rating).send().await.expect(202);
            }
        })
    });
    for one in calling.collect::<Vec<_>>() {
        one.await.unwrap();
    }
    let all = kept(&gateway, each * 8).await;
    let log = Sqlite::read(&gateway.data_dir()).unwrap();
    let is_known = |rating: &Feedback| log.get(rating.call.clone().unwrap());
    let mut joined = 0;
    for rating in &all {
        let row =
            eventually("its call is there", DEADLINE, || is_known(rating), |row| matches!(row, Ok(Some(_)))).await;
        joined += usize::from(row.unwrap().unwrap().owner() == rating.owner());
    }
    assert_eq!((all.len(), joined), (each * 8, each * 8));
}
