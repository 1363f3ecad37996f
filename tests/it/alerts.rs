//! Alerts: told once to whom they concern, signed, sent again until they arrive, and never in the way of a call.

use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};

use crate::support::{
    Call, DEADLINE, Gateway, KEY, Reply, Upstream, eventually,
    gateway::Setup,
    redis::RedisServer,
    upstream::{Request, chat_completion},
    wait_until,
};

/// Stands in the path of each webhook: whoever knows it can write there.
const CANARY: &str = "T0CANARYx9";
const SECRET: &str = "whsec-0123456789abcdef";

/// A receiver that takes everything.
async fn receiver() -> Upstream {
    Upstream::always(Reply::bytes(200, "text/plain", "ok")).await
}

/// `alerts:` that go to `receiver`, and are over as soon as their reason is.
fn alerts(receiver: &Upstream, more: &str) -> String {
    format!("{{ webhook: \"{}/hook/{CANARY}\", resolve_after: 0s{more} }}", receiver.url())
}

/// A provider whose replies use 1,000 output tokens: 0.01 USD at the price of [`budgeted`].
async fn provider() -> Upstream {
    Upstream::always(Reply::json(200, &chat_completion("x", (5, 1000)))).await
}

fn budgeted(upstream: &Upstream, budget: &str) -> Setup {
    Gateway::before(upstream).price("upstream/m", "input: 0 USD/1M, output: 10 USD/1M, max_output: 1000").budget(budget)
}

async fn spend(gateway: &Gateway, calls: usize) {
    for _ in 0..calls {
        gateway.hello("upstream/m").send().await.expect(200);
    }
}

/// What was told so far, as `state key`.
fn told(receiver: &Upstream) -> Vec<String> {
    receiver.requests().iter().map(|request| said(&request.json())).collect()
}

fn said(body: &Value) -> String {
    format!("{} {}", body["state"].as_str().unwrap_or_default(), body["key"].as_str().unwrap_or_default())
}

fn error(code: &str) -> Value {
    json!({"error": {"message": "scripted", "type": code, "param": null, "code": code}})
}

/// Whether the signature is the one of this very body, and of now.
fn is_signed(request: &Request) -> bool {
    let header = request.header("x-tollgate-signature").expect("a signature");
    let (time, digest) = header.strip_prefix("t=").and_then(|rest| rest.split_once(",v1=")).expect("t=…,v1=…");
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    mac.update(format!("{time}.").as_bytes());
    mac.update(&request.body);
    let expected: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    digest == expected && now.abs_diff(time.parse().unwrap()) < 60
}

#[tokio::test]
async fn each_threshold_of_a_budget_is_told_once_and_signed() {
    let (upstream, receiver) = (provider().await, receiver().await);
    let budget = "name: month, scope: { team: red }, limit: 0.10 USD, per: month, alerts: [50%, 80%, 100%], clamp: off";
    let gateway =
        budgeted(&upstream, budget).top("alerts", &alerts(&receiver, &format!(", secret: {SECRET}"))).run().await;

    spend(&gateway, 5).await;
    let first = receiver.next_request().await;
    spend(&gateway, 5).await;
    let last = receiver.next_request().await;

    assert!(is_signed(&first) && is_signed(&last));
    let (first, last) = (first.json(), last.json());
    assert!(first["key"].as_str().is_some_and(|key| key.starts_with("budget/month/team=red/") && key.ends_with("/50")));
    assert_eq!(
        (&first["kind"], &first["state"], &first["severity"]),
        (&json!("budget"), &json!("raised"), &json!("warning"))
    );
    assert_eq!(first["summary"], "budget month has passed 50 % of its limit");
    assert_eq!((&first["details"]["spent_usd"], &first["details"]["limit_usd"]), (&json!("0.05"), &json!("0.10")));
    assert_eq!(
        (&last["severity"], &last["summary"]),
        (&json!("critical"), &json!("budget month has passed 100 % of its limit"))
    );
    gateway.hello("upstream/m").send().await.expect(429);
    eventually(
        "a further look is over",
        DEADLINE,
        || gateway.metrics(),
        |metrics| metrics.value("tollgate_alerts_total", &[("result", "sent")]) == 2.0,
    )
    .await;
    assert_eq!(receiver.request_count(), 2, "{:?}", told(&receiver));
}

#[tokio::test]
async fn neither_users_nor_the_address_of_the_receiver_are_shown() {
    let (upstream, receiver) = (provider().await, receiver().await);
    receiver.script(Reply::bytes(404, "text/plain", "no such hook"));
    let gateway = budgeted(
        &upstream,
        "name: each-user, scope: { user: \"*\" }, limit: 0.01 USD, per: day, alerts: [100%], clamp: off",
    )
    .top("alerts", &alerts(&receiver, ""))
    .run()
    .await;

    for user in ["alice-canary", "bob-canary"] {
        gateway.hello("upstream/m").user(user).send().await.expect(200);
    }
    let (first, second) = (receiver.next_request().await, receiver.next_request().await);

    assert_ne!(first.json()["key"], second.json()["key"], "one account each");
    wait_until("the refusal is logged", DEADLINE, || gateway.log_text().contains("could not be delivered")).await;
    let shown = [gateway.log_text(), gateway.metrics().await.text, gateway.admin_get("/api/config").await.text()];
    for text in shown.iter().chain(&[first.json().to_string(), second.json().to_string()]) {
        assert!(!text.contains(CANARY) && !text.contains("-canary"), "{text}");
    }
    assert_eq!(receiver.request_count(), 2, "a refused message is not sent again");
}

#[tokio::test]
async fn a_provider_that_is_ejected_is_told_and_that_it_is_back() {
    let (upstream, receiver) = (Upstream::run().await, receiver().await);
    let gateway = Gateway::before(&upstream)
        .top("routing", "{ attempts: 1, eject: { after: 2, for: 100ms } }")
        .top("alerts", &alerts(&receiver, ""))
        .run()
        .await;

    for _ in 0..2 {
        upstream.script(Reply::json(500, &error("server_error")));
        gateway.hello("upstream/m").send().await.expect(500);
    }
    let raised = receiver.next_request().await.json();
    gateway.hello("upstream/m").send().await.expect(200);
    let resolved = receiver.next_request().await.json();

    assert_eq!(
        (said(&raised), said(&resolved)),
        ("raised provider/upstream".to_owned(), "resolved provider/upstream".to_owned())
    );
    assert_eq!(raised["since"], resolved["since"]);
    assert!(
        gateway
            .log_lines()
            .iter()
            .any(|line| line["alert.key"] == "provider/upstream" && line["alert.state"] == "raised")
    );
}

#[tokio::test]
async fn a_refused_configuration_is_told_with_its_reason_until_it_is_mended() {
    let (upstream, receiver) = (Upstream::run().await, receiver().await);
    let setup = Gateway::before(&upstream).top("alerts", &alerts(&receiver, ""));
    let text = setup.text();
    let gateway = setup.run().await;

    gateway.replace_config(&format!("{text}\nnonsense: 1\n"));
    let raised = receiver.next_request().await.json();
    gateway.replace_config(&text);
    let resolved = receiver.next_request().await.json();

    assert_eq!(
        (said(&raised), said(&resolved)),
        ("raised configuration".to_owned(), "resolved configuration".to_owned())
    );
    assert!(raised["details"]["reason"].as_str().is_some_and(|reason| reason.contains("nonsense")), "{raised}");
}

#[tokio::test]
async fn a_key_that_the_provider_refuses_is_told() {
    let (upstream, receiver) = (Upstream::run().await, receiver().await);
    let gateway = Gateway::before(&upstream).top("alerts", &alerts(&receiver, "")).run().await;

    upstream.script(Reply::json(401, &error("invalid_api_key")));
    gateway.hello("upstream/m").send().await.expect(401);
    assert_eq!(said(&receiver.next_request().await.json()), "raised credentials/upstream");

    gateway.hello("upstream/m").send().await.expect(200);
    assert_eq!(said(&receiver.next_request().await.json()), "resolved credentials/upstream");
}

#[tokio::test]
async fn pagerduty_gets_a_trigger_and_a_resolve_and_slack_a_text() {
    let (upstream, receiver) = (Upstream::run().await, receiver().await);
    let setup = Gateway::before(&upstream);
    let text = |alerts: &str| format!("{}alerts: {alerts}\n", setup.text());
    let (pagerduty, slack) = (alerts(&receiver, ", routing_key: R0CANARY"), alerts(&receiver, ", format: slack"));
    let texts = [text(&pagerduty), text(&slack)];
    let gateway = setup.clone().top("alerts", &pagerduty).run().await;

    upstream.script(Reply::json(401, &error("invalid_api_key")));
    gateway.hello("upstream/m").send().await.expect(401);
    let trigger = receiver.next_request().await.json();
    gateway.hello("upstream/m").send().await.expect(200);
    let resolve = receiver.next_request().await.json();
    gateway.replace_config(&texts[1]);
    wait_until("the change is live", DEADLINE, || gateway.log_text().contains("read again")).await;
    upstream.script(Reply::json(401, &error("invalid_api_key")));
    gateway.hello("upstream/m").send().await.expect(401);
    let slack = receiver.next_request().await.json();

    assert_eq!(trigger["routing_key"], "R0CANARY");
    assert_eq!((&trigger["event_action"], &trigger["payload"]["severity"]), (&json!("trigger"), &json!("critical")));
    assert!(trigger["payload"]["source"].as_str().is_some_and(|source| !source.is_empty()));
    assert_eq!(
        resolve,
        json!({"routing_key": "R0CANARY", "event_action": "resolve", "dedup_key": "tollgate/credentials/upstream"})
    );
    assert_eq!(trigger["dedup_key"], resolve["dedup_key"]);
    let keys: Vec<_> = slack.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["text"]);
    assert!(
        slack["text"].as_str().is_some_and(|text| text.starts_with(":red_circle: *provider upstream refuses its key*"))
    );
    assert!(!gateway.log_text().contains("R0CANARY"));
}

#[tokio::test]
async fn a_receiver_that_is_busy_is_asked_again_when_it_says_so() {
    let (upstream, receiver) = (Upstream::run().await, receiver().await);
    receiver.script(Reply::bytes(429, "text/plain", "slow down").header("retry-after", "1"));
    receiver.script(Reply::raw("").cut());
    let gateway =
        Gateway::before(&upstream).top("alerts", &alerts(&receiver, &format!(", secret: {SECRET}"))).run().await;

    upstream.script(Reply::json(401, &error("invalid_api_key")));
    gateway.hello("upstream/m").send().await.expect(401);
    let requests = [receiver.next_request().await, receiver.next_request().await, receiver.next_request().await];

    assert!(requests[1].at - requests[0].at >= Duration::from_secs(1));
    assert!(requests.iter().all(is_signed));
    let ids: Vec<_> = requests.iter().map(|request| request.json()["id"].clone()).collect();
    assert!(ids[0].is_string() && ids.iter().all(|id| *id == ids[0]), "one message, one id: {ids:?}");
}

#[tokio::test]
async fn a_receiver_that_hangs_delays_neither_calls_nor_the_end() {
    let (upstream, receiver) = (Upstream::run().await, Upstream::always(Reply::hang()).await);
    let mut gateway = Gateway::before(&upstream).top("alerts", &alerts(&receiver, "")).run().await;
    upstream.script(Reply::json(401, &error("invalid_api_key")));
    gateway.hello("upstream/m").send().await.expect(401);
    receiver.next_request().await;

    let began = Instant::now();
    for _ in 0..20 {
        gateway.hello("upstream/m").send().await.expect(200);
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    gateway.signal("TERM");
    assert!(gateway.exit(Duration::from_secs(8)).await.success());
}

#[tokio::test]
async fn only_what_was_asked_for_is_told_and_all_of_it_is_logged_without_a_webhook() {
    let (upstream, receiver) = (Upstream::run().await, receiver().await);
    let selective = Gateway::before(&upstream).top("alerts", &alerts(&receiver, ", on: [budget]")).run().await;
    let silent = Gateway::before(&upstream).run().await;

    for gateway in [&selective, &silent] {
        upstream.script(Reply::json(401, &error("invalid_api_key")));
        gateway
            .post("/v1/chat/completions")
            .key(KEY)
            .json(&json!({"model": "upstream/m", "messages": []}))
            .send()
            .await
            .expect(401);
    }

    let is_logged = |gateway: &Gateway| gateway.log_text().contains("provider upstream refuses its key");
    wait_until("the alert is logged", DEADLINE, || is_logged(&silent)).await;
    assert!(!is_logged(&selective));
    assert_eq!(receiver.request_count(), 0);
}

#[tokio::test]
async fn of_a_fleet_one_gateway_tells_what_all_of_them_find() {
    let (upstream, receiver) = (provider().await, receiver().await);
    let store = RedisServer::start();
    let budget = "name: month, scope: { team: red }, limit: 0.10 USD, per: month, alerts: [50%], clamp: off";
    let member = || {
        budgeted(&upstream, budget)
            .top("store", &store.url())
            .top("ledger", "{ sync: 100ms }")
            .top("alerts", &alerts(&receiver, ", on: [budget, credentials]"))
    };
    let fleet = [member().run().await, member().run().await];

    spend(&fleet[0], 5).await;
    spend(&fleet[1], 1).await;
    let told_of = |gateway: &Gateway| gateway.log_text().contains("has passed 50 %");
    wait_until("both have found it", DEADLINE, || fleet.iter().all(told_of)).await;
    let count = async |gateway: &Gateway, result: &str| {
        gateway.metrics().await.value("tollgate_alerts_total", &[("result", result)])
    };
    eventually(
        "one has told it and one has left it",
        DEADLINE,
        || async {
            (
                count(&fleet[0], "sent").await + count(&fleet[1], "sent").await,
                count(&fleet[0], "left").await + count(&fleet[1], "left").await,
            )
        },
        |counts| *counts == (1.0, 1.0),
    )
    .await;
    assert_eq!(receiver.request_count(), 1, "{:?}", told(&receiver));

    upstream.script(Reply::json(401, &error("invalid_api_key")));
    fleet[0].hello("upstream/m").send().await.expect(401);
    upstream.script(Reply::json(401, &error("invalid_api_key")));
    fleet[1].hello("upstream/m").send().await.expect(401);
    wait_until("each tells of its own provider", DEADLINE, || receiver.request_count() == 3).await;
}

#[tokio::test]
async fn what_one_gateway_of_a_fleet_cannot_deliver_another_one_tells() {
    let (upstream, refusing, taking) = (provider().await, receiver().await, receiver().await);
    refusing.script(Reply::bytes(404, "text/plain", "no such hook"));
    let store = RedisServer::start();
    let budget = "name: month, scope: { team: red }, limit: 0.10 USD, per: month, alerts: [50%], clamp: off";
    let member = |receiver: &Upstream| {
        budgeted(&upstream, budget)
            .top("store", &store.url())
            .top("ledger", "{ sync: 100ms }")
            .top("alerts", &alerts(receiver, ""))
    };
    let (first, second) = (member(&refusing).run().await, member(&taking).run().await);
    let count = async |gateway: &Gateway, result: &str| {
        gateway.metrics().await.value("tollgate_alerts_total", &[("result", result)])
    };

    spend(&first, 5).await;
    eventually("the first has claimed it in vain", DEADLINE, || count(&first, "failed"), |failed| *failed == 1.0).await;
    spend(&second, 1).await;
    let body = taking.next_request().await.json();

    assert!(said(&body).starts_with("raised budget/month/team=red/"), "{body}");
    eventually("it is told", DEADLINE, || count(&second, "sent"), |sent| *sent == 1.0).await;
    assert_eq!((count(&second, "left").await, refusing.request_count(), taking.request_count()), (1.0, 1, 1));
}

#[tokio::test]
async fn while_redis_does_not_answer_each_gateway_of_a_fleet_tells() {
    let (upstream, receiver) = (provider().await, receiver().await);
    let store = RedisServer::start();
    let budget = "name: month, scope: { team: red }, limit: 0.10 USD, per: month, alerts: [50%], clamp: off";
    let member = |on: &str| {
        budgeted(&upstream, budget)
            .top("store", &store.url())
            .top("ledger", "{ sync: 100ms }")
            .top("alerts", &alerts(&receiver, &format!(", on: [{on}]")))
    };
    let fleet = [member("credentials").run().await, member("credentials").run().await];
    spend(&fleet[0], 5).await;
    spend(&fleet[1], 1).await;
    for gateway in &fleet {
        let spent = || async { gateway.metrics().await.value("tollgate_budget_spent_ratio", &[("budget", "month")]) };
        eventually("it knows what was spent", DEADLINE, spent, |ratio| *ratio >= 0.5).await;
    }

    store.signal("STOP");
    for gateway in &fleet {
        gateway.replace_config(&member("budget").text());
    }
    let (one, other) = (receiver.next_request().await.json(), receiver.next_request().await.json());

    assert!(said(&one).starts_with("raised budget/month/"), "{one}");
    assert_eq!(said(&one), said(&other));
    for gateway in &fleet {
        assert!(gateway.log_text().contains("it may be told twice"), "{}", gateway.log_text());
    }
}

#[tokio::test]
async fn a_credit_note_ends_the_alert_of_a_budget() {
    let (upstream, receiver) = (provider().await, receiver().await);
    let budget = "name: month, scope: { team: red }, limit: 0.01 USD, per: month, alerts: [100%], clamp: off";
    let gateway = budgeted(&upstream, budget).top("alerts", &alerts(&receiver, "")).run().await;
    spend(&gateway, 1).await;
    let raised = receiver.next_request().await.json();

    let note = json!({"amount_nanousd": 5_000_000, "reason": "a provider's fault"});
    let path = "/api/budgets/month/credit";
    let credit = || Call::new(gateway.admin, "POST", path).json(&note).header("idempotency-key", "a").send_owned();
    eventually("the store knows what can be credited", DEADLINE, credit, |reply| reply.status == 200).await;
    let resolved = receiver.next_request().await.json();

    assert_eq!((&raised["state"], &raised["severity"]), (&json!("raised"), &json!("critical")));
    assert_eq!((&resolved["state"], &resolved["key"]), (&json!("resolved"), &raised["key"]));
}
