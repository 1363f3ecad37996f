//! `tollgate plan`: what a reload would change, and what recorded calls would see of it.

use serde_json::{Value, json};
use tollgate::record::{Assigned, CallRow};

use crate::support::{
    Call, Gateway, Upstream,
    calls::{self, row},
    gateway::Setup,
    redis::RedisServer,
};

const CURRENT: &str = r#"
providers: { openai: { kind: openai, api_key: k }, sim: { kind: simulated } }
models:
  support: { versions: { v1: { target: openai/gpt-4o } } }
  cheap: { versions: { v1: { target: openai/gpt-4o-mini } } }
keys:
  - { name: web, secret: web-key, team: product }
  - { name: batch, secret: batch-key }
  - { name: old, secret: old-key }
budgets: [{ name: product-day, scope: { team: product }, limit: 500 USD, per: day }]
experiments: { tone: { model: support, variants: { control: { weight: 90 }, warm: { weight: 10 } } } }
"#;

/// A key less, a right less, a smaller budget, another share of the experiment, another model behind `cheap`.
const NEXT: &str = r#"
providers: { openai: { kind: openai, api_key: k }, sim: { kind: simulated } }
models:
  support: { versions: { v1: { target: openai/gpt-4o } } }
  cheap: { live: v2, versions: { v1: { target: openai/gpt-4o-mini }, v2: { target: openai/gpt-4.1-nano } } }
keys:
  - { name: web, secret: web-key, team: product }
  - { name: batch, secret: batch-key, models: [cheap] }
budgets: [{ name: product-day, scope: { team: product }, limit: 0.01 USD, per: day }]
experiments: { tone: { model: support, variants: { control: { weight: 50 }, warm: { weight: 50 } } } }
"#;

/// Users `u0` to `u99` of product, of whom each calls once; and two calls each of `old` and `batch` to support, three of `batch` to cheap.
fn recorded() -> Vec<CallRow> {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
    // Within one day, whenever the test runs.
    let begin = now / calls::DAY_MS * calls::DAY_MS - calls::DAY_MS;
    let users = (0..100).map(|n| {
        let user: std::sync::Arc<str> = format!("u{n}").into();
        let variants = vec![Assigned { experiment: "tone".into(), variant: "control".into(), unit: user.clone() }];
        CallRow { user, variants, ..row(begin + n, n) }
    });
    let of = |key: &str, model: &str, n: u64| {
        let target = if model == "cheap" { "openai/gpt-4o-mini" } else { "openai/gpt-4o" };
        CallRow {
            key: key.into(),
            user: key.into(),
            team: None,
            variants: Vec::new(),
            model: model.into(),
            named: Some(model.into()),
            target: Some(target.into()),
            ..row(begin + 1000 + n, n)
        }
    };
    let others = [("old", "support", 2), ("batch", "support", 2), ("batch", "cheap", 3)];
    let others = others
        .into_iter()
        .zip(1..)
        .flat_map(|((key, model, count), at)| (0..count).map(move |n| of(key, model, at * 100 + n)));
    users.chain(others.collect::<Vec<_>>()).collect()
}

async fn prepared() -> Setup {
    let setup = Gateway::yaml("");
    let directory = setup.config_path().parent().unwrap().to_owned();
    std::fs::write(directory.join("current.yaml"), CURRENT).unwrap();
    std::fs::write(directory.join("next.yaml"), NEXT).unwrap();
    calls::write(&directory.join("data"), recorded()).await;
    setup
}

fn plan(setup: &Setup, next: &str, more: &[&str]) -> (String, String, Option<i32>) {
    let directory = setup.config_path().parent().unwrap().to_owned();
    let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let (next, current, data) = (path(next), path("current.yaml"), path("data"));
    let arguments = [&["plan", &next, "--config", &current, "--data-dir", &data], more].concat();
    let output = setup.command(&arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr), output.status.code())
}

#[tokio::test]
async fn a_plan_says_what_changes_and_what_calls_would_see() {
    let setup = prepared().await;

    let (out, said, code) = plan(&setup, "next.yaml", &["--json"]);
    let (text, _, _) = plan(&setup, "next.yaml", &[]);

    assert_eq!(code, Some(0), "{said}");
    let plan: Value = serde_json::from_str(&out).unwrap();
    let changes: Vec<String> = plan["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| {
            let word = |key: &str| change[key].as_str().unwrap().to_owned();
            [word("action"), word("section"), word("name")].join(" ")
        })
        .collect();
    assert_eq!(
        changes,
        [
            "change budget product-day",
            "change experiment tone",
            "change key batch",
            "remove key old",
            "change model cheap"
        ]
    );
    assert_eq!(plan["calls"], 107);
    // 0.00325 USD a call: three pass before a cent is spent, and one more spends it.
    let refused = json!([
        {"reason": "budget_exhausted", "key": "web", "model": "support", "calls": 96},
        {"reason": "invalid_api_key", "key": "old", "model": "support", "calls": 2},
        {"reason": "model_not_allowed", "key": "batch", "model": "support", "calls": 2},
    ]);
    assert_eq!(plan["refused"], refused);
    // 800 plain, 200 cached, 100 output tokens: 195 micro-dollars on gpt-4o-mini; 80 + 5 + 40 on gpt-4.1-nano.
    assert_eq!(
        plan["priced"],
        json!([{"model": "cheap", "calls": 3, "before_nanousd": 585_000, "after_nanousd": 375_000}])
    );
    let tone = &plan["variants"][0];
    assert_eq!(
        (&tone["units"], &tone["recorded"]),
        (&json!(102), &json!(true)),
        "the two keys that call for themselves are users too"
    );
    let [moves] = &tone["moves"].as_array().unwrap()[..] else { panic!("{tone}") };
    assert_eq!(
        (&moves["from"], &moves["to"]),
        (&json!("control"), &json!("warm")),
        "raising a weight moves users only into it"
    );
    assert!((20..65).contains(&moves["units"].as_u64().unwrap()), "{moves}");

    for line in [
        "~ budget product-day changes\n    ~ limit  500.00 USD -> 0.01 USD\n",
        "- key old is removed\n",
        "~ live        v1 -> v2\n    + v2.targets  openai/gpt-4.1-nano\n",
        "Plan: 0 to add, 4 to change, 1 to remove.\n",
        "  100 would be refused that pass now\n",
        "  3 of cheap would cost 0.000375 USD instead of 0.000585 (-0.00021)\n",
    ] {
        assert!(text.contains(line), "no `{line}` in\n{text}");
    }
    assert!(!text.contains("old-key") && !out.contains("old-key"));
}

#[tokio::test]
async fn exit_codes_tell_refusals_and_mistakes_apart() {
    let setup = prepared().await;
    std::fs::write(setup.config_path(), "providers: 3\n").unwrap();
    let broken = setup.config_path().file_name().unwrap().to_str().unwrap().to_owned();

    let (_, _, refusing) = plan(&setup, "next.yaml", &["--fail-on-refusals"]);
    let (same, _, calm) = plan(&setup, "current.yaml", &["--fail-on-refusals"]);
    let (_, said, wrong) = plan(&setup, &broken, &[]);

    assert_eq!((refusing, calm, wrong), (Some(1), Some(0), Some(2)), "{said}");
    assert!(same.starts_with("Nothing changes.\n") && same.contains("0 would be refused"), "{same}");
    assert!(said.contains("providers"), "{said}");
}

/// What a gateway has from its store beside its file is on both sides of a plan.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_is_made_with_what_was_pushed_and_what_was_registered() {
    let (upstream, mut redis) = (Upstream::run().await, RedisServer::start());
    let setup = Gateway::before(&upstream).model("support", "target: upstream/m, prompt: greeting");
    let gateway = setup.prompt("greeting", "system: \"One.\"").top("store", &redis.url()).run().await;
    let file = |name: &str| gateway.config_path().with_file_name(name);
    let run = |arguments: &[&str]| {
        let output = gateway.command(&[arguments, &["--config", "tollgate.yaml"]].concat()).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (text(output.stdout), text(output.stderr), output.status.code())
    };
    std::fs::write(file("routing.yaml"), "limits: [{ name: all, scope: { key: \"*\" }, requests: 600/min }]\n")
        .unwrap();
    assert_eq!(run(&["config", "push", "routing.yaml", "--author", "ann"]).2, Some(0));
    for (path, body) in [("versions", json!({"version": "v2", "system": "Two."})), ("deploy", json!({"version": "v2"}))]
    {
        Call::new(gateway.admin, "POST", &format!("/api/prompts/greeting/{path}")).json(&body).send().await.expect(200);
    }
    let current = std::fs::read_to_string(gateway.config_path()).unwrap();
    std::fs::write(
        file("same.yaml"),
        format!("{current}\nlimits: [{{ name: mine, scope: {{ key: \"*\" }}, requests: 1/min }}]\n"),
    )
    .unwrap();
    let live = current
        .replace("greeting: { live: v1, versions: {", "greeting: { live: v3, versions: { v3: { system: Three. },");
    assert_ne!(live, current, "{current}");
    std::fs::write(file("live.yaml"), live).unwrap();

    let (same, said, code) = run(&["plan", "same.yaml"]);
    let (live, _, _) = run(&["plan", "live.yaml", "--json"]);

    assert_eq!(code, Some(0), "{said}");
    assert!(same.starts_with("Over both configurations\n  pushed revision 1 (ann, 20"), "{same}");
    assert!(same.contains("): limits; FILE does not count in limits\n  registry revision "), "{same}");
    assert!(same.contains("\nNothing changes.\n"), "{same}");
    let live: Value = serde_json::from_str(&live).unwrap();
    assert_eq!(live["changes"].as_array().map(Vec::len), Some(2), "the prompt, and the model that injects it: {live}");
    assert_eq!(live["in_force"]["pushed"]["sections"], json!(["limits"]));
    let prompt = live["changes"].as_array().unwrap().iter().find(|change| change["section"] == "prompt").unwrap();
    let fields = prompt["fields"].as_array().unwrap();
    assert!(fields.contains(&json!({"field": "live", "before": "v2", "after": "v3"})), "{live}");

    let body = json!({"version": "v1", "rollout": {"stages": ["10%", "100%"]}});
    Call::new(gateway.admin, "POST", "/api/prompts/greeting/deploy").json(&body).send().await.expect(200);
    let (ended, _, _) = run(&["plan", "live.yaml"]);
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(ended.lines().any(|line| words(line) == "- roll-out v2 -> v1, 10% of users"), "{ended}");

    redis.kill();
    let (kept, _, code) = run(&["plan", "same.yaml"]);
    assert!(code == Some(0) && kept.contains("  warning: the pushed configuration cannot be read: "), "{kept}");
    assert!(
        kept.contains("; the one that was last good here is taken\n") && kept.contains("Nothing changes."),
        "{kept}"
    );
    let (alone, _, code) = run(&["plan", "same.yaml", "--data-dir", "elsewhere"]);
    assert!(
        code == Some(0) && alone.contains("; what was pushed and what was registered are not part of this plan"),
        "{alone}"
    );
    assert!(alone.contains("+ limit mine is added"), "{alone}");
}
