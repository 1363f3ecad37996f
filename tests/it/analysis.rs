//! From calls and what is said of them to a decision: reports, comparisons, exports, and the commands that show them.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use tollgate::policy::experiment::{Experiment, Unit, Variant};

use crate::support::{DEADLINE, Gateway, KEY, Upstream, eventually, gateway::Setup, upstream};

const VARIANTS: &str = "control: { weight: 50 }, warm: { weight: 50, prompt: greeting@v1 }";

fn setup(upstream: &Upstream) -> Setup {
    let goal = "goal: { metric: resolved, direction: up }";
    let experiment = |name: &str| format!("model: {name}, unit: user, variants: {{ {VARIANTS} }}, {goal}");
    let broken = "model: broken, unit: user, variants: { control: { weight: 50 }, warm: { weight: 50, target: upstream/wrong } }, \
                  guardrails: [ { metric: error_rate, max: 5% } ]";
    Gateway::before(upstream)
        .top("records", "sqlite")
        .model("support", "target: upstream/m")
        .model("quiet", "target: upstream/m")
        .model("lonely", "target: upstream/m")
        .model("broken", "target: upstream/m")
        .prompt("greeting", "system: \"Be warm.\"")
        .experiment("tone", &experiment("support"))
        .experiment("same", &experiment("quiet"))
        .experiment("lost", &experiment("lonely"))
        .experiment("harm", broken)
}

/// One call of each user, and what each is rated: `rates` of ten of each variant are resolved.
async fn traffic(gateway: &Gateway, model: &str, users: Vec<String>, rates: &BTreeMap<&str, usize>) {
    let calls = users.into_iter().map(|user| async move {
        let reply = gateway.hello(model).user(&user).send().await;
        let of = |name: &str| reply.header(name).unwrap_or_default().to_owned();
        (of("x-tollgate-variant"), of("x-tollgate-call"))
    });
    let replies: Vec<(String, String)> = stream::iter(calls).buffer_unordered(16).collect().await;
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut ratings = Vec::new();
    for (variant, call) in replies {
        let variant = variant.split_once('=').map_or("", |(_, variant)| variant).to_owned();
        let Some(rate) = rates.get(variant.as_str()) else { continue };
        let before = seen.entry(variant).or_default();
        ratings.push(json!({"call": call, "metric": "resolved", "value": *before % 10 < *rate}));
        *before += 1;
    }
    for batch in ratings.chunks(100) {
        gateway.post("/v1/feedback").key(KEY).json(&json!(batch)).send().await.expect(202);
    }
}

fn users(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("user-{number}")).collect()
}

/// The report once it is over so many units and as many ratings.
async fn report(gateway: &Gateway, experiment: &str, units: u64, rated: u64) -> Value {
    let path = format!("/api/experiments/{experiment}/report");
    let asked = || async { gateway.admin_get(&path).await.expect(200).json() };
    let is_whole = |report: &Value| {
        let arms = report["arms"].as_array().unwrap().iter();
        let ratings: u64 = arms.filter_map(|arm| arm["metrics"]["resolved"]["units"].as_u64()).sum();
        report["units"] == json!(units) && ratings == rated
    };
    eventually("all units are counted", DEADLINE, asked, is_whole).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_and_ratings_become_a_verdict_that_a_pipeline_can_wait_for() {
    let upstream = Upstream::run().await;
    let gateway = setup(&upstream).run().await;
    traffic(&gateway, "support", users(300), &BTreeMap::from([("control", 3), ("warm", 8)])).await;

    let found = report(&gateway, "tone", 300, 300).await;

    assert_eq!((&found["verdict"]["kind"], &found["verdict"]["arm"]), (&json!("better"), &json!("warm")), "{found}");
    let sentence = found["verdict"]["sentence"].as_str().unwrap();
    assert!(sentence.starts_with("warm is better: resolved +"), "{sentence}");
    let warm = &found["arms"][1]["metrics"];
    assert_eq!((&warm["resolved"]["kind"], &warm["cost_per_resolved"]["kind"]), (&json!("share"), &json!("amount")));
    assert_eq!(found["split"]["split"], "sound");
    let german = gateway.admin_get("/api/experiments/tone/report?lang=de").await.expect(200).json();
    assert!(german["verdict"]["sentence"].as_str().unwrap().starts_with("warm ist besser"), "{german}");

    for (form, beginning) in [("csv", "row,variant,metric,units"), ("jsonl", "{")] {
        let export = gateway.admin_get(&format!("/api/experiments/tone/export?format={form}")).await.expect(200);
        assert!(export.text().starts_with(beginning) && export.text().contains("resolved"), "{}", export.text());
        assert!(!export.text().contains("user-"), "no row is about one user: {}", export.text());
    }

    let page = gateway.admin_get("/experiments?lang=de").await.expect(200).text();
    let figures = page.split("<table id=\"units-").find(|part| part.contains("+") && part.contains("data-v=\"0\""));
    let figures = figures.and_then(|part| part.split("</table>").next()).unwrap_or_else(|| panic!("{page}"));
    let last_day = figures.rsplit("<tr>").next().unwrap_or_default();
    let drawn: u64 = last_day
        .split("<td class=\"n\" data-v=\"")
        .skip(1)
        .map(|cell| cell.split('"').next().unwrap().parse::<u64>().unwrap())
        .sum();
    assert_eq!(drawn, 300, "all units stand in the table behind the chart: {figures}");
    assert!(page.contains("Teilnehmer je Variante"), "{page}");

    let url = format!("http://{}", gateway.admin);
    let told = gateway.command(&["experiments", "report", "tone", "--gate", "--url", &url]).output().unwrap();
    let said = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.status.success() && said.starts_with("warm is better: resolved +"), "{told:?}");
    assert!(said.contains("cost_per_resolved"), "{said}");
    let undecided = gateway.command(&["experiments", "report", "same", "--gate", "--url", &url]).output().unwrap();
    assert_eq!(undecided.status.code(), Some(1), "{undecided:?}");
    let planned = gateway.command(&["experiments", "power", "--baseline", "30%", "--effect", "5pt"]).output().unwrap();
    assert!(String::from_utf8_lossy(&planned.stdout).starts_with("2683 users per variant"), "{planned:?}");
    assert_eq!(gateway.admin_get("/api/power?baseline=0.3&effect=0.05").await.json()["units_per_variant"], 2683);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_proves_nothing_decides_nothing() {
    let upstream = Upstream::answering(|request| match request.json()["model"].as_str() {
        Some("wrong") => {
            upstream::Reply::json(400, &json!({"error": {"message": "no", "type": "invalid_request_error"}}))
        }
        _ => upstream::openai(request),
    })
    .await;
    let gateway = setup(&upstream).run().await;
    let even = BTreeMap::from([("control", 5), ("warm", 5)]);
    traffic(&gateway, "quiet", users(240), &even).await;
    let lost: Vec<String> = users(800).into_iter().filter(|user| variant_of("lost", user) == "control").collect();
    let count = lost.len() as u64;
    traffic(&gateway, "lonely", lost, &even).await;
    traffic(&gateway, "broken", users(240), &BTreeMap::new()).await;

    let same = report(&gateway, "same", 240, 240).await;
    assert!(["keep_running", "equal"].contains(&same["verdict"]["kind"].as_str().unwrap()), "{same}");
    let lost = report(&gateway, "lost", count, count).await;
    assert_eq!((&lost["verdict"]["kind"], &lost["split"]["split"]), (&json!("void"), &json!("broken")), "{lost}");
    let harm = report(&gateway, "harm", 240, 0).await;
    let guardrail = &harm["arms"][1]["guardrails"][0];
    assert_eq!((&guardrail["metric"], &guardrail["state"]), (&json!("error_rate"), &json!("breached")), "{harm}");
    gateway.admin_get("/api/experiments/none/report").await.expect(404);
    gateway.admin_get("/api/experiments/tone/report?lang=fr").await.expect(400);
}

/// The variant that a user belongs to.
fn variant_of(experiment: &str, user: &str) -> String {
    let variant = |name: &str| Variant {
        name: name.into(),
        weight: 50.0,
        version: None,
        target: None,
        prompt: None,
        parameters: Vec::new(),
    };
    let variants = vec![variant("control"), variant("warm")];
    let experiment = Experiment::new(experiment.into(), None, Unit::User, variants);
    experiment.assign(user).expect("a variant").name.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_stand_side_by_side_with_their_difference() {
    let served = AtomicU64::new(0);
    let upstream = Upstream::answering(move |_| {
        let tokens = 10 + served.fetch_add(1, Ordering::Relaxed) % 7;
        upstream::Reply::json(200, &upstream::chat_completion("Hello.", (tokens, tokens)))
    })
    .await;
    let versions = "live: v1, versions: { v1: { target: upstream/m }, v2: { target: upstream/n } }";
    let gateway = Gateway::before(&upstream)
        .top("records", "sqlite")
        .entry("models", "support", versions)
        .price("upstream/m", "input: 1 USD/1M, output: 2 USD/1M")
        .price("upstream/n", "input: 2 USD/1M, output: 4 USD/1M")
        .run()
        .await;
    for version in ["support@v1", "support@v2"] {
        traffic(&gateway, version, users(120), &BTreeMap::new()).await;
    }

    let path = "/api/models/support/compare?versions=v1,v2";
    let asked = || async { gateway.admin_get(path).await.expect(200).json() };
    let is_whole = |found: &Value| (0..2).all(|at| found["versions"][at]["calls"] == json!(120));
    let found = eventually("all calls are counted", DEADLINE, asked, is_whole).await;

    let (one, two) = (&found["versions"][0]["metrics"], &found["versions"][1]["metrics"]);
    let relative = two["cost_per_call"]["relative"]["value"].as_f64().unwrap_or_else(|| panic!("{found}"));
    assert!((relative - 1.0).abs() < 0.1, "twice the price: {found}");
    assert!(one["latency"]["estimate"].is_object() && one["cost_per_call"]["difference"].is_null(), "{found}");
    let page = gateway.admin_get("/models/compare?name=support&from=v1&to=v2&lang=de").await.expect(200).text();
    for words in
        ["Was ihre Aufrufe taten", "cost_per_call", " % (", "<del>upstream&#x2f;m</del>", "<ins>upstream&#x2f;n</ins>"]
    {
        assert!(page.contains(words), "{words}: {page}");
    }
    let same = gateway.admin_get("/models/compare?name=support&from=v1&to=v1").await.expect(200).text();
    assert!(same.contains("choose two") && !same.contains("cost_per_call"), "{same}");
    gateway.admin_get("/models/compare?name=support&from=v1&to=v9").await.expect(404);
    gateway.admin_get("/prompts/compare?name=none").await.expect(404);
    gateway.admin_get("/models/compare?name=support&since=soon").await.expect(400);
    let url = format!("http://{}", gateway.admin);
    let told = gateway.command(&["models", "compare", "support", "v1", "v2", "--url", &url]).output().unwrap();
    assert!(String::from_utf8_lossy(&told.stdout).contains("cost_per_call"), "{told:?}");
    gateway.admin_get("/api/models/support/compare?versions=v1").await.expect(400);
    let unknown = gateway.admin_get("/api/models/support/compare?versions=v1,v9").await.expect(404);
    assert!(unknown.text().contains("there are v1, v2"), "{}", unknown.text());
}
