//! The life of an experiment: it comes by the API, begins, rests, ends, and is stopped where it harms.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::{
    DEADLINE, Gateway, Upstream, client::Call, client::Response, eventually, gateway::Setup, upstream,
};

fn setup(upstream: &Upstream) -> Setup {
    Gateway::before(upstream)
        .top("records", "sqlite")
        .top("registry", "{ guardrails_every: 1s }")
        .model("support", "target: upstream/m")
        .prompt("greeting", "system: \"Be warm.\"")
}

async fn post(gateway: &Gateway, path: &str, body: &Value) -> Response {
    Call::new(gateway.admin, "POST", path).json(body).send().await
}

/// Refuses calls of the model `wrong`.
async fn upstream_that_refuses_wrong() -> Upstream {
    Upstream::answering(|request| match request.json()["model"].as_str() {
        Some("wrong") => upstream::Reply::json(400, &json!({"error": {"message": "no", "type": "bad"}})),
        _ => upstream::openai(request),
    })
    .await
}

/// The experiment with another prompt for some, begun.
async fn create(gateway: &Gateway, weight: u32) {
    let tone = json!({
        "name": "tone", "model": "support", "unit": "user", "start": true,
        "variants": {"control": {"weight": 100 - weight}, "warm": {"weight": weight, "prompt": "greeting@v1"}},
    });
    post(gateway, "/api/experiments", &tone).await.expect(200);
}

/// Which variant each of some users is in; empty where none.
async fn assigned(gateway: &Gateway) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for n in 0..40 {
        let user = format!("user-{n}");
        let reply = gateway.hello("support").user(&user).send().await.expect(200);
        all.insert(user, reply.header("x-tollgate-variant").unwrap_or_default().to_owned());
    }
    all
}

fn in_variant<'a>(assigned: &'a BTreeMap<String, String>, variant: &str) -> Vec<&'a String> {
    assigned.iter().filter(|(_, label)| label.ends_with(variant)).map(|(user, _)| user).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_experiment_begins_rests_goes_on_and_leaves_each_user_where_they_were() {
    let upstream = Upstream::run().await;
    let gateway = setup(&upstream).run().await;
    assert!(assigned(&gateway).await.values().all(String::is_empty));

    create(&gateway, 30).await;
    let first = assigned(&gateway).await;
    let warm = in_variant(&first, "tone=warm");
    assert!((3..=25).contains(&warm.len()) && in_variant(&first, "tone=control").len() + warm.len() == 40, "{first:?}");

    post(&gateway, "/api/experiments/tone/pause", &json!({"reason": "holidays"})).await.expect(200);
    assert!(assigned(&gateway).await.values().all(String::is_empty));
    let gateway = gateway.kill_and_restart().await;
    assert!(assigned(&gateway).await.values().all(String::is_empty), "a restart changes nothing");
    post(&gateway, "/api/experiments/tone/start", &json!({})).await.expect(200);
    assert_eq!(assigned(&gateway).await, first);

    let weights = json!({"weights": {"control": 30, "warm": 70}});
    post(&gateway, "/api/experiments/tone/weights", &weights).await.expect(200);
    let later = assigned(&gateway).await;
    let more = in_variant(&later, "tone=warm");
    assert!(warm.iter().all(|user| more.contains(user)) && more.len() > warm.len(), "users move into warm alone");

    let history = gateway.admin_get("/api/experiments/tone/history").await.expect(200).json();
    let what: Vec<&str> = history.as_array().unwrap().iter().map(|event| event["what"].as_str().unwrap()).collect();
    assert_eq!(what.len(), 5, "{history}");
    let audit = gateway.admin_get("/api/audit?action=experiments.").await.expect(200).json();
    assert!(audit["entries"].as_array().is_some_and(|entries| entries.len() >= 4), "{audit}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_variant_serves_everybody_and_a_rollback_takes_it_back() {
    let upstream = Upstream::run().await;
    let gateway = setup(&upstream).run().await;
    create(&gateway, 50).await;

    let promoted =
        post(&gateway, "/api/experiments/tone/promote", &json!({"variant": "warm"})).await.expect(200).json();
    let version = promoted["about"].as_str().expect("a version").to_owned();
    let reply = gateway.hello("support").user("anybody").send().await.expect(200);
    assert_eq!((reply.header("x-tollgate-version"), reply.header("x-tollgate-variant")), (Some(&*version), None));
    assert_eq!(reply.header("x-tollgate-prompt"), Some("greeting@v1"));
    assert_eq!(promoted["now"]["state"], "promoted");
    post(&gateway, "/api/experiments/tone/start", &json!({})).await.expect(409);

    post(&gateway, "/api/models/support/rollback", &json!({"reason": "second thoughts"})).await.expect(200);
    let reply = gateway.hello("support").user("anybody").send().await.expect(200);
    assert_eq!((reply.header("x-tollgate-version"), reply.header("x-tollgate-prompt")), (Some("v1"), None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_variant_that_breaks_a_guardrail_is_stopped_and_its_users_get_the_control() {
    let upstream = upstream_that_refuses_wrong().await;
    let harm = "model: support, variants: { control: { weight: 50 }, wrong: { weight: 50, target: upstream/wrong } }, \
                guardrails: [ { metric: error_rate, max: 5% } ]";
    let gateway = setup(&upstream).experiment("harm", harm).run().await;
    for n in 0..200 {
        gateway.hello("support").user(&format!("user-{n}")).send().await;
    }

    let shown = || async { gateway.admin_get("/api/experiments/harm").await.expect(200).json() };
    let halted = |shown: &Value| shown["variants"][1]["halted"]["by"] == "gateway";
    let shown = eventually("the gateway stops it", DEADLINE, shown, halted).await;

    assert!(shown["variants"][1]["halted"]["reason"].as_str().unwrap().contains("error_rate"), "{shown}");
    for n in 0..40 {
        let reply = gateway.hello("support").user(&format!("user-{n}")).send().await.expect(200);
        assert_eq!(reply.header("x-tollgate-variant"), Some("harm=control"));
    }
    let audit = gateway.admin_get("/api/audit?action=experiments.").await.expect(200).json();
    assert!(audit.to_string().contains("\"actor\":\"gateway\""), "{audit}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_form_of_the_dashboard_decides_what_becomes_of_an_experiment() {
    let upstream = Upstream::run().await;
    let gateway = setup(&upstream).run().await;
    create(&gateway, 50).await;
    let send = |form: &'static str| {
        let call = Call::new(gateway.admin, "POST", "/experiments?lang=de");
        call.body("application/x-www-form-urlencoded", form).send_owned()
    };
    let shown = || async { gateway.admin_get("/experiments?lang=de").await.expect(200).text() };
    assert!(shown().await.contains("Pausieren"));

    let done = send("name=tone&action=pause&reason=by+hand").await.expect(303);
    assert_eq!(done.header("location"), Some("/experiments?lang=de#tone"));
    assert!(shown().await.contains("Laufen lassen"));
    send("name=tone&action=promote&variant=warm").await.expect(303);
    let reply = gateway.hello("support").send().await.expect(200);
    assert_eq!(reply.header("x-tollgate-prompt"), Some("greeting@v1"));
    let sorry = send("name=tone&action=start").await.expect(409).text();
    assert!(sorry.contains("Das wurde nicht getan."), "{sorry}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_roll_out_that_breaks_a_guardrail_is_rolled_back_for_everybody() {
    let upstream = upstream_that_refuses_wrong().await;
    let gateway = setup(&upstream).run().await;
    let version = json!({"version": "v2", "target": "upstream/wrong"});
    post(&gateway, "/api/models/support/versions", &version).await.expect(200);
    let rollout = json!({
        "version": "v2",
        "rollout": {"stages": ["50% 1h", "100%"], "guardrails": [{"metric": "error_rate", "max": 0.05}]},
    });
    post(&gateway, "/api/models/support/deploy", &rollout).await.expect(200);
    for n in 0..200 {
        gateway.hello("support").user(&format!("user-{n}")).send().await;
    }

    let history = || async { gateway.admin_get("/api/models/support/history").await.expect(200).json() };
    let is_over = |history: &Value| history.to_string().contains("rollout_aborted");
    let history = eventually("the gateway takes it back", DEADLINE, history, is_over).await;

    let aborted = history.as_array().unwrap().iter().find(|event| event["what"] == "rollout_aborted").unwrap();
    assert_eq!(aborted["by"], "gateway");
    assert!(aborted["reason"].as_str().unwrap().contains("error_rate"), "{aborted}");
    for n in 0..40 {
        let reply = gateway.hello("support").user(&format!("user-{n}")).send().await.expect(200);
        assert_eq!(reply.header("x-tollgate-version"), Some("v1"));
    }
}
