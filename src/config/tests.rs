//! Configurations as their users write them: what loads, what is refused, and in which words.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::json;

use super::{
    Layers, Loaded, Origin, Problems, Snapshot, bootstrap, check_pushed, environment, load_with, parse_str,
    snapshot::{Auth, ProviderKind, Records, Store, Unpriced},
    with_partials,
};
use crate::{
    policy::{
        experiment::CodingAgents,
        keys::ModelAccess,
        scope::Match,
        stats::{guardrail::Limit, report::Goal, verdict::Direction},
    },
    record::UserIds,
    registry::{self, Book, Command, Deed, Kind, NewVersion, SealedVersion},
    units::NanoUsd,
    wire::revision::{self, Revision},
};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn variables(name: &str) -> Option<String> {
    let value = match name {
        "OPENAI_API_KEY" => "sk-openai",
        "DEV_KEY" | "CLIENT_KEY" => "sk-client-0123456789",
        "UPSTREAM" => "http://127.0.0.1:9999",
        "NUMBER" => "7",
        "EMPTY" => "",
        "BLANK" => "  ",
        _ => return None,
    };
    Some(value.to_owned())
}

fn parse(text: &str) -> Result<Loaded, Problems> {
    parse_str(text, "t.yaml", &variables, &repository())
}

/// The problems of `text`, one a line.
fn problems(text: &str) -> Vec<String> {
    match parse(text) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.0.iter().map(ToString::to_string).collect(),
    }
}

/// A valid configuration, with `more` after it.
fn with(more: &str) -> String {
    format!("providers:\n  sim: {{ kind: simulated }}\nauth: none\n{more}")
}

fn loads(text: &str) -> Loaded {
    parse(text).unwrap_or_else(|problems| panic!("{problems}\n{text}"))
}

/// Each text is appended to a valid configuration of three lines, so that its own first line is line 4.
#[track_caller]
fn each_is_refused(table: &[(&str, &[&str])]) {
    for (text, expected) in table {
        assert_eq!(problems(&with(text)), *expected, "{text}");
    }
}

#[test]
fn the_contracts_configurations_run_as_they_stand() {
    for name in ["everything.yaml", "minimal.yaml", "transparent.yaml"] {
        let path = repository().join("tests/data/contract").join(name);
        let text = std::fs::read_to_string(&path).expect("a copy of the contract's file");
        let loaded = parse_str(&text, name, &variables, &repository()).unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!(loaded.warnings, [""; 0], "{name}");
        assert_eq!(loaded.snapshot.not_yet, [""; 0], "{name}");
    }
}

#[test]
fn the_committed_example_runs_without_any_key() {
    let text = std::fs::read_to_string(repository().join("config/tollgate.yaml")).expect("the example");
    let loaded = parse_str(&text, "tollgate.yaml", &|_| None, &repository().join("config"));
    let loaded = loaded.unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!((loaded.warnings, loaded.snapshot.not_yet), (Vec::new(), Vec::new()));
    assert_eq!(loaded.snapshot.auth, Auth::None);
}

#[test]
fn everything_of_the_contract_arrives_in_the_snapshot() {
    let text = std::fs::read_to_string(repository().join("tests/data/contract/everything.yaml")).expect("a copy");
    let snapshot = loads(&text).snapshot;

    assert_eq!(snapshot.server.listen.to_string(), "127.0.0.1:8080");
    assert_eq!((snapshot.routing.attempts, snapshot.routing.eject), (1, None));
    let upstream = &snapshot.providers["upstream"];
    assert_eq!(upstream.base_url, "http://127.0.0.1:9999/v1");
    assert_eq!(upstream.api_keys[0].expose(), "sk-upstream");
    let support = &snapshot.models["support"];
    let version = &support.versions["v1"];
    assert!(version.targets[0].0.price.is_some());
    assert_eq!(version.defaults, [("temperature".into(), "0.2".into())]);
    assert_eq!(version.prompt.as_ref().map(|prompt| &*prompt.version), Some("v1"));
    assert_eq!(support.experiments.len(), 1);
    let budgets: Vec<_> = snapshot.budgets.iter().map(|b| (&*b.name, b.limit)).collect();
    assert_eq!(budgets, [("each-user", NanoUsd(100_000_000_000)), ("product-month", NanoUsd(1_000_000_000_000))]);
    assert_eq!(snapshot.budgets[0].scope.user, Some(Match::Each));
    assert_eq!(snapshot.limits[0].tokens.map(|rate| rate.count), Some(100_000_000_000));
    let caller = &snapshot.config_keys[0].1;
    assert_eq!(caller.models, ModelAccess::Only(["support".into(), "upstream/*".into()].into()));
}

#[test]
fn words_of_the_contract_keep_their_meaning() {
    let transparent =
        std::fs::read_to_string(repository().join("tests/data/contract/transparent.yaml")).expect("a copy");
    let snapshot = loads(&transparent).snapshot;
    assert!(snapshot.providers["upstream"].organization_api);
    assert!(matches!(snapshot.unpriced, Unpriced::Charge(_)));
    assert_eq!(snapshot.config_keys[0].1.models, ModelAccess::All);
}

#[test]
fn every_mistake_is_reported_at_once_in_the_order_of_the_file() {
    let text = "\
server: { lisen: 127.0.0.1:80, limits: { body: 32Mi } }
default_provider: opanai
providers:
  openai: { kind: openai, api_key: \"${NOT_SET}\" }
  other: { kind: opanai }
routing: { attempts: many, eject: on, retry_budget: 200% }
models:
  support:
    live: v3
    versions:
      v1: { target: openia/gpt }
      v2: { target: gpt }
keys:
  - { name: a, secret: one-secret }
  - { name: a, secret: one-secret, models: [suport] }
budgets:
  - { name: b, limit: 5, per: fortnight }
";
    assert_eq!(
        problems(text),
        [
            "t.yaml:1:11: server.lisen: unknown key; did you mean `listen`?",
            "t.yaml:1:48: server.limits.body: `32Mi` is not a size; write it as `512KiB`, `32MiB` or `1GiB`",
            "t.yaml:2:19: default_provider: no provider is named `opanai`; did you mean `openai`?",
            "t.yaml:4:36: providers.openai.api_key: the environment variable NOT_SET is not set; set it (a .env beside the \
             configuration will do) or write ${NOT_SET:-default}",
            "t.yaml:5:18: providers.other.kind: `opanai` is not known; did you mean `openai`?",
            "t.yaml:6:22: routing.attempts: `many` is not a number that fits here",
            "t.yaml:6:53: routing.retry_budget: must be at most 100%",
            "t.yaml:9:11: models.support.live: no version is named `v3`; known: v1, v2",
            "t.yaml:11:21: models.support.versions.v1.target: no provider is named `openia`; did you mean `openai`?",
            "t.yaml:12:21: models.support.versions.v2.target: `gpt` is not a target; write it as `provider/model`",
            "t.yaml:15:5: keys[1]: is the same key as keys[0]; each key has one name",
            "t.yaml:15:13: keys[1].name: `a` is the name of keys[0] too",
            "t.yaml:17:23: budgets[0].limit: `5` names no currency; write `5 USD`",
            "t.yaml:17:31: budgets[0].per: `fortnight` is not a period; write hour, day, week, month, year or total",
        ]
    );
}

#[test]
fn unknown_keys_name_the_nearest_known_one() {
    each_is_refused(&[
        ("budgts: []", &["t.yaml:4:1: budgts: unknown key; did you mean `budgets`?"]),
        ("server: { tsl: {} }", &["t.yaml:4:11: server.tsl: unknown key; did you mean `tls`?"]),
        ("alerts: { wehbook: x }", &["t.yaml:4:11: alerts.wehbook: unknown key; did you mean `webhook`?"]),
        (
            "prices: { sim/m: { inptu: 1 USD/1M } }",
            &["t.yaml:4:20: prices.sim/m.inptu: unknown key; did you mean `input`?"],
        ),
    ]);
}

#[test]
fn values_of_the_wrong_kind_name_the_mend() {
    each_is_refused(&[
        ("routing: { attempts: many }", &["t.yaml:4:22: routing.attempts: `many` is not a number that fits here"]),
        ("routing: { attempts: -1 }", &["t.yaml:4:22: routing.attempts: `-1` is not a number that fits here"]),
        ("keys: web", &["t.yaml:4:7: keys: a text stands where a list is due; put it in [ ]"]),
        ("keys: { a: b }", &["t.yaml:4:1: keys: a map stands where a list is due; begin each item with `- `"]),
        ("models: [ a ]", &["t.yaml:4:1: models: a list stands where a map is due; write `name: …` without `- `"]),
        ("data_dir: [ a ]", &["t.yaml:4:1: data_dir: a list stands where a string is due"]),
        ("on_disconnect: drian", &["t.yaml:4:16: on_disconnect: `drian` is not known; did you mean `drain`?"]),
        ("on_disconnect: {}", &["t.yaml:4:1: on_disconnect: a map stands where one of cancel, drain is due"]),
        (
            "server: { drain: 3 }",
            &[
                "t.yaml:4:11: server.drain: unknown key; known: admin, admin_token, admin_tokens, limits, listen, oidc, tls",
            ],
        ),
        (
            "server: { limits: { drain: 3 } }",
            &["t.yaml:4:28: server.limits.drain: `3` has no unit; write `3s` for seconds"],
        ),
        ("routing: { eject: never }", &["t.yaml:4:19: routing.eject: `never` is neither on nor off"]),
        (
            "server: { listen: \":80\" }",
            &[
                "t.yaml:4:19: server.listen: `:80` names no address; write `127.0.0.1:80`, or `0.0.0.0:80` for every interface",
            ],
        ),
        (
            "limits: [ { name: a, requests: 60 } ]",
            &["t.yaml:4:32: limits[0].requests: `60` is not a rate; write it as `600/min`"],
        ),
        ("unpriced: free", &["t.yaml:4:11: unpriced: `free` is not known; known: refuse"]),
    ]);
}

#[test]
fn references_lead_somewhere() {
    each_is_refused(&[
        (
            "models: { a: { versions: { v1: { target: smi/m } } } }",
            &["t.yaml:4:42: models.a.versions.v1.target: no provider is named `smi`; did you mean `sim`?"],
        ),
        (
            "models: { a: { versions: { v1: { target: m } } } }",
            &["t.yaml:4:42: models.a.versions.v1.target: `m` is not a target; write it as `provider/model`"],
        ),
        (
            "models: { a: { live: v2, versions: { v1: { target: sim/m } } } }",
            &["t.yaml:4:22: models.a.live: no version is named `v2`; known: v1"],
        ),
        (
            "models: { a: { versions: { v1: { target: sim/m }, v2: { target: sim/m } } } }",
            &["t.yaml:4:11: models.a.live: is missing; name the version that serves: v1, v2"],
        ),
        (
            "models: { a: { versions: { v1: { target: sim/m, prompt: p } } } }",
            &["t.yaml:4:57: models.a.versions.v1.prompt: no prompt is named `p`; `prompts` has none"],
        ),
        (
            "models: { a: { versions: { v1: { targets: [ { use: sim/m, weight: 0 } ] } } } }",
            &["t.yaml:4:34: models.a.versions.v1.targets: no weight is above 0; give at least one target a weight"],
        ),
        (
            "models: { a: { versions: { v1: { target: sim/m, parameters: { model: x } } } } }",
            &[
                "t.yaml:4:70: models.a.versions.v1.parameters.model: is not a parameter that a rule may set; take it out",
            ],
        ),
        (
            "experiments: { e: { model: a, variants: { c: { weight: 1 } } } }",
            &["t.yaml:4:28: experiments.e.model: no model is named `a`; `models` has none"],
        ),
        (
            "models: { a: { versions: { v1: { target: sim/m } } } }\n\
             experiments: { e: { model: a, variants: { c: { weight: 0 }, d: { weight: 0, version: v2 } } } }",
            &[
                "t.yaml:5:31: experiments.e.variants: no weight is above 0; give at least one variant a weight",
                "t.yaml:5:86: experiments.e.variants.d.version: no version of the model `a` is named `v2`; known: v1",
            ],
        ),
        (
            "models: { a: { versions: { v1: { target: sim/m } } } }\n\
             experiments: { e: { model: a, variants: { c: { weight: 1 } }, control: d, share: 0%, goal: { direction: up } } }",
            &[
                "t.yaml:5:72: experiments.e.control: no variant is named `d`; known: c",
                "t.yaml:5:82: experiments.e.share: must be above 0% and at most 100%",
                "t.yaml:5:86: experiments.e.goal.metric: is missing; name one, such as `error_rate`, or one that clients rate calls by",
            ],
        ),
        (
            "models: { a: { versions: { v1: { target: sim/m } } } }\n\
             experiments: { e: { model: a, variants: { c: { weight: 1 } }, guardrails: [ { metric: m }, { metric: error_rate, max: 5 } ] } }",
            &[
                "t.yaml:5:77: experiments.e.guardrails[0]: limits nothing; write `max: 5%`, or `max_increase: 20%` over the control's value",
                "t.yaml:5:119: experiments.e.guardrails[1].max: `5` is no limit of error_rate; write `5%` of a rate, `0.02 USD` of a cost, \
               `1.5s` of a time, or a number",
            ],
        ),
        (
            "models: { a: { versions: { v1: { target: sim/m } } } }\n\
             experiments: { e: { model: a, layer: l, share: 60%, variants: { c: { weight: 1 } } },\n\
             f: { model: a, layer: l, share: 60%, unit: key, variants: { c: { weight: 1 } } } }",
            &[
                "t.yaml:6:23: experiments.f.layer: the layer `l` is given away by more than all of it: up to here 120%; give each a `share`",
                "t.yaml:6:23: experiments.f.layer: the layer `l` shares out another unit: all of its experiments need the same",
            ],
        ),
        (
            "keys: [ { name: k, secret: s, models: [ gpt ] } ]",
            &["t.yaml:4:41: keys[0].models[0]: no model is named `gpt`; `models` has none"],
        ),
        (
            "budgets: [ { name: b, limit: 1 USD, per: day, timezone: Europe/Berln } ]",
            &[
                "t.yaml:4:57: budgets[0].timezone: `Europe/Berln` is not a time zone of this system's tz database; write it like \
               `Europe/Berlin`",
            ],
        ),
        (
            "budgets: [ { name: b, limit: 1 USD, per: day, on_exhausted: { downgrade: x } } ]",
            &["t.yaml:4:74: budgets[0].on_exhausted.downgrade: no model is named `x`; `models` has none"],
        ),
    ]);
}

#[test]
fn goals_and_guardrails_arrive_in_the_unit_of_their_metric() {
    let snapshot = loads(&with(
        "models: { a: { versions: { v1: { target: sim/m } } } }\n\
         experiments: { e: { model: a, control: d, variants: { c: { weight: 1 }, d: { weight: 1 } },\n\
         goal: { metric: resolved, margin: 2% }, coding_agents: force, guardrails: [ { metric: error_rate, max: 5% },\n\
         { metric: cost_per_call, max: 0.02 USD }, { metric: latency, max: 1.5s }, { metric: tokens, max_increase: 20% } ] } }",
    ))
    .snapshot;
    let experiment = &snapshot.models["a"].experiments[0];
    let goal = Goal { metric: "resolved".to_owned(), direction: Direction::Up, margin: Some(0.02) };
    assert_eq!((&*experiment.control, &experiment.goal), ("d", &Some(goal)));
    assert_eq!(experiment.coding_agents, CodingAgents::Force);
    let limits: Vec<Limit> = experiment.guardrails.iter().map(|guardrail| guardrail.limit).collect();
    assert_eq!(limits, [Limit::Max(0.05), Limit::Max(0.02), Limit::Max(1.5), Limit::MaxIncrease(0.2)]);
}

#[test]
fn what_must_be_given_is_asked_for() {
    assert_eq!(
        problems("auth: none"),
        [
            "t.yaml:1:1: providers: is missing; name at least one, such as `openai: { kind: openai, api_key: \"${OPENAI_API_KEY}\" }`"
        ]
    );
    each_is_refused(&[
        (
            "keys: [ { name: k } ]",
            &["t.yaml:4:9: keys[0].secret: is missing; write `secret: \"${NAME}\"`, or a `hash`"],
        ),
        (
            "budgets: [ { limit: 1 USD, per: day } ]",
            &["t.yaml:4:12: budgets[0].name: is missing; name it: errors and metrics show the name"],
        ),
        (
            "limits: [ { name: a } ]",
            &["t.yaml:4:11: limits[0]: limits nothing; write `requests`, `tokens` or `concurrent`"],
        ),
        (
            "prices: { sim/m: { input: 1 USD/1M }, m: { input: 1 USD/1M, output: 1 USD/1M } }",
            &[
                "t.yaml:4:11: prices.sim/m: a price needs `output`, since nothing is free by silence; write `0 USD/1M` where it \
                 is (embeddings have no output)",
                "t.yaml:4:39: prices.m: `m` is not `provider/model`",
            ],
        ),
        (
            "prompts: { p: { versions: { v1: { system: \"{{ a\", variables: { a: { type: integer, default: x } } } } } }",
            &["t.yaml:4:93: prompts.p.versions.v1.variables.a.default: the default of `a` must be an integer"],
        ),
        (
            "prompts: { p: { versions: { v1: {} } } }",
            &[
                "t.yaml:4:29: prompts.p.versions.v1: says nothing; write `system`, `developer`, `before_user`, `after_user`, `messages` or `file`",
            ],
        ),
    ]);
}

#[test]
fn names_and_keys_are_given_once() {
    each_is_refused(&[
        (
            "keys: [ { name: a, secret: s1 }, { name: a, secret: s2 } ]",
            &["t.yaml:4:42: keys[1].name: `a` is the name of keys[0] too"],
        ),
        (
            "keys: [ { name: a, secret: s1 }, { name: b, secret: s1 } ]",
            &["t.yaml:4:34: keys[1]: is the same key as keys[0]; each key has one name"],
        ),
        ("data_dir: a\ndata_dir: b", &["t.yaml:5:1: data_dir: is given twice; the first is on line 4"]),
        (
            "limits: [ { name: a, concurrent: 1 }, { name: a, concurrent: 2 } ]",
            &["t.yaml:4:47: limits[1].name: `a` is the name of limits[0] too"],
        ),
    ]);
}

#[test]
fn doors_are_not_left_open() {
    let listen = "providers:\n  sim: { kind: simulated }\nauth: none\nserver: { listen: 0.0.0.0:80 }";
    assert_eq!(
        problems(listen),
        [
            "t.yaml:3:7: auth: `none` would let everybody who reaches 0.0.0.0:80 spend; listen on 127.0.0.1, or write `required`"
        ]
    );
    each_is_refused(&[
        (
            "server: { admin: 0.0.0.0:9090 }",
            &["t.yaml:4:1: server.admin_token: is missing; `admin` listens on 0.0.0.0:9090, beyond loopback; write \
               `admin_token: \"${TOLLGATE_ADMIN_TOKEN}\"`"],
        ),
        (
            "server: { admin: 0.0.0.0:9090, admin_token: \"${EMPTY:-}\" }",
            &["t.yaml:4:32: server.admin_token: is empty; `admin` listens on 0.0.0.0:9090, beyond loopback; write \
               `admin_token: \"${TOLLGATE_ADMIN_TOKEN}\"`"],
        ),
        (
            "server: { admin: 127.0.0.1:8080 }",
            &["t.yaml:4:18: server.admin: takes the port of `listen` (127.0.0.1:8080); give it a port of its own"],
        ),
    ]);
}

#[test]
fn tokens_of_the_admin_listener_have_names_and_roles() {
    const HASH: &str = "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";
    let with_tokens = |tokens: &str| with(&format!("server: {{ admin: 0.0.0.0:9090, admin_tokens: [ {tokens} ] }}"));
    let text =
        format!("{{ name: ann, hash: \"{HASH}\", role: viewer }}, {{ name: bob, secret: \"${{SET}}\", role: admin }}");
    let loaded =
        parse_str(&with_tokens(&text), "t.yaml", &|name| (name == "SET").then(|| "bobs".to_owned()), Path::new(""))
            .expect("valid");
    let tokens = loaded.snapshot.server.admin_tokens;
    assert_eq!((&*tokens[0].name, tokens[0].role.label()), ("ann", "viewer"));
    assert_eq!(tokens[0].digest, crate::policy::keys::KeyDigest::of("foo", None));
    assert_eq!((tokens[1].digest, tokens[1].role.label()), (crate::policy::keys::KeyDigest::of("bobs", None), "admin"));

    for (tokens, said) in [
        ("{ hash: H, role: admin }", "admin_tokens[0].name: is missing; name its owner"),
        ("{ name: a, hash: H }", "admin_tokens[0].role: is missing; write viewer, operator or admin"),
        ("{ name: a, role: admin }", "admin_tokens[0].secret: is missing; write `secret: \"${NAME}\"`, or a `hash`"),
        ("{ name: a, role: admin, secret: \"\" }", "admin_tokens[0].secret: is empty"),
        ("{ name: a, role: admin, secret: s, hash: H }", "admin_tokens[0].hash: stands beside `secret`"),
        ("{ name: a, role: admin, hash: \"sha256:12\" }", "admin_tokens[0].hash: is no `sha256:`"),
        ("{ name: a, role: admin, hash: \"hmac-H\" }", "admin_tokens[0].hash: is no `sha256:`"),
        ("{ name: \"a b\", role: admin, hash: H }", "admin_tokens[0].name: the token's name holds a blank"),
        (
            "{ name: a, role: admin, hash: H }, { name: a, role: admin, secret: s }",
            "admin_tokens[1]: has the name of `a` too",
        ),
        (
            "{ name: a, role: admin, hash: H }, { name: b, role: admin, hash: H }",
            "admin_tokens[1]: has the token of `a` too",
        ),
        ("{ name: a, role: root, hash: H }", "admin_tokens[0].role:"),
    ] {
        let found = problems(&with_tokens(
            &tokens.replace("hash: H", &format!("hash: \"{HASH}\"")).replace("-H", &format!("-{HASH}")),
        ));
        assert!(found.len() == 1 && found[0].contains(said), "{tokens}: {found:?}");
    }
}

#[test]
fn an_empty_secret_is_never_a_secret() {
    const EMPTY: &str = "is empty; an empty secret protects nothing: set it, or take the line out";
    for value in ["\"\"", "\"  \"", "\"${EMPTY}\"", "\"${BLANK}\"", "\"${BLANK:-}\""] {
        for (text, path) in [
            (format!("keys: [ {{ name: k, secret: {value} }} ]"), "keys[0].secret"),
            (format!("key_pepper: {value}"), "key_pepper"),
            (format!("server: {{ admin_token: {value} }}"), "server.admin_token"),
        ] {
            let found = problems(&with(&text));
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert!(found[0].ends_with(&format!(" {path}: {EMPTY}")), "{text}: {found:?}");
        }
    }
    let none = loads(&with("key_pepper: ${EMPTY:-}\nalerts: { webhook: \"${EMPTY:-}\" }")).snapshot;
    assert!(none.key_pepper.is_none());
    assert_eq!(none.not_yet, [""; 0]);
    let missing = problems(&with("keys: [ { name: k, secret: \"${EMPTY:-}\" } ]"));
    assert_eq!(missing, ["t.yaml:4:20: keys[0].secret: is empty; write `secret: \"${NAME}\"`, or a `hash`"]);
    let provider = problems("auth: none\nproviders: { o: { kind: openai, api_key: \"${EMPTY:-}\" } }");
    assert_eq!(
        provider,
        ["t.yaml:2:33: providers.o.api_key: is empty; set it, or take the line out for a server that asks for no key"]
    );
}

#[test]
fn no_message_shows_a_secret() {
    let text = "\
providers: { o: { kind: openai, base_url: \"http://user:CANARY@host/v1\", api_keys: [ CANARY, CANARY ] } }
keys: [ { name: k, secret: \"CANARY CANARY\", hash: \"sha256:00\" }, { name: l, secret: { CANARY: 1 } } ]
key_pepper: \"CAN\\nARY\"
server: { admin_token: [ CANARY ] }
";
    let found = problems(text);
    assert!(found.len() >= 6, "{found:#?}");
    assert!(found.iter().all(|problem| !problem.contains("CANARY")), "{found:#?}");
    let loaded = loads(&with("keys: [ { name: k, secret: CANARY } ]\nkey_pepper: CANARY"));
    assert!(!format!("{loaded:?}").contains("CANARY"));
}

#[test]
fn alerts_are_checked_and_show_no_address() {
    each_is_refused(&[
        (
            "alerts: { webhook: \"https://u:CANARY@h/x\" }",
            &["t.yaml:4:20: alerts.webhook: is not an absolute URL; write it as `https://host/path`"],
        ),
        (
            "alerts: { webhook: http://h/x, format: pagerduty }",
            &["t.yaml:4:1: alerts.routing_key: is missing; write the integration key of a PagerDuty service"],
        ),
        ("alerts: { repeat: 0s }", &["t.yaml:4:19: alerts.repeat: must be above 0"]),
    ]);
    let loaded = loads(&with("alerts: { webhook: http://h/CANARY, secret: CANARY, routing_key: CANARY }"));
    assert!(loaded.snapshot.alerts.webhook.is_some() && !format!("{loaded:?}").contains("CANARY"));
    assert!(loads(&with("alerts: { routing_key: R0 }")).snapshot.alerts.webhook.is_some(), "PagerDuty's own address");
    assert!(loads(&with("alerts: { secret: s }")).snapshot.alerts.webhook.is_none());
}

#[test]
fn telemetry_is_checked_and_shows_no_header() {
    each_is_refused(&[
        (
            "telemetry: { otlp: \"collector:4318\" }",
            &["t.yaml:4:20: telemetry.otlp: is not an absolute URL; write it as `http://collector:4318`"],
        ),
        (
            "telemetry: { semconv: \"2.0\" }",
            &["t.yaml:4:23: telemetry.semconv: `2.0` is not an edition that is known; write one of 1.36, 1.37, 1.41"],
        ),
        ("telemetry: { sample: 101% }", &["t.yaml:4:22: telemetry.sample: must be at most 100%"]),
        (
            "telemetry: { headers: { \"bad name\": CANARY } }",
            &["t.yaml:4:37: telemetry.headers.bad name: is not a header that can be sent"],
        ),
    ]);
    let loaded = loads(&with("telemetry: { otlp: http://h:4318, headers: { authorization: Bearer CANARY } }"));
    assert!(!format!("{loaded:?}").contains("CANARY"));
    let otlp = loaded.snapshot.telemetry.expect("it is on");
    assert_eq!(otlp.traces, "http://h:4318/v1/traces");
    assert_eq!(otlp.headers[0].1.to_str().expect("text"), "Bearer CANARY");
    assert!(loads(&with("telemetry: { otlp: \"${EMPTY:-}\" }")).snapshot.telemetry.is_none());
    let content = |calls: &str| loads(&with(&format!("telemetry: {{ otlp: http://h, content: on }}\ncalls: {calls}")));
    let told = content("{ bodies: full, body_max: 1KiB }");
    let otlp = told.snapshot.telemetry.expect("it is on");
    assert_eq!(otlp.content.as_ref().map(|content| content.bytes_max), Some(1024));
    assert!(told.warnings.is_empty(), "{:?}", told.warnings);
    assert!(content("{ bodies: metadata }").warnings[0].contains("telemetry.content: tells nothing"));
}

#[test]
fn the_environment_says_where_telemetry_goes_as_for_any_exporter() {
    let environment = |name: &str| match name {
        "OTEL_EXPORTER_OTLP_ENDPOINT" => Some("http://collector:4318/".to_owned()),
        "OTEL_EXPORTER_OTLP_HEADERS" => Some("api-key=a%20b".to_owned()),
        "OTEL_SERVICE_NAME" => Some("llm".to_owned()),
        _ => None,
    };
    let load = |text: &str| parse_str(text, "t.yaml", &environment, &repository()).expect("valid").snapshot.telemetry;
    let from_environment = load("auth: none\nproviders: { sim: { kind: simulated } }").expect("it is on");
    assert_eq!(from_environment.traces, "http://collector:4318/v1/traces");
    assert_eq!((&*from_environment.service, from_environment.headers[0].1.as_bytes()), ("llm", &b"a b"[..]));
    let own =
        load("auth: none\nproviders: { sim: { kind: simulated } }\ntelemetry: { otlp: http://own:1 }").expect("on");
    assert_eq!(own.traces, "http://own:1/v1/traces");
}

#[test]
fn a_value_from_the_environment_fits_wherever_a_value_is_due_and_adds_no_key() {
    let snapshot = loads(&with(
        "routing: { attempts: \"${NUMBER}\" }\nbudgets: [ { name: b, limit: \"${NUMBER} USD\", per: day } ]\nstore: ${STORE:-embedded}",
    ))
    .snapshot;
    assert_eq!(snapshot.routing.attempts, 7);
    assert_eq!(snapshot.budgets[0].limit, NanoUsd(7_000_000_000));

    let evil = |name: &str| (name == "EVIL").then(|| "x\nauth: none\n".to_owned());
    let text = "providers: { sim: { kind: simulated } }\ndata_dir: ${EVIL}\n";
    let loaded = parse_str(text, "t.yaml", &evil, &repository()).expect("a valid configuration");
    assert_eq!(loaded.snapshot.auth, Auth::Required);
    assert_eq!(loaded.snapshot.data_dir, Path::new("x\nauth: none\n"));
}

#[test]
fn parameters_keep_the_type_that_they_were_written_with() {
    let text = "models: { a: { versions: { v1: { target: sim/m, force: { seed: 7 }, parameters: { s: \"7\", t: 0.20, u: true, \
                stop: [ a, 1 ], n: \"${NUMBER}\", m: null, force: { top_p: 1.0 } } } } } }";
    let snapshot = loads(&with(text)).snapshot;
    let version = &snapshot.models["a"].versions["v1"];
    let texts = |parameters: &[(Box<str>, Box<str>)]| -> Vec<String> {
        parameters.iter().map(|(name, value)| format!("{name}={value}")).collect()
    };
    assert_eq!(texts(&version.defaults), ["m=null", "n=\"7\"", "s=\"7\"", "stop=[\"a\",1]", "t=0.2", "u=true"]);
    assert_eq!(texts(&version.forced), ["seed=7", "top_p=1.0"]);
}

#[test]
fn what_this_build_lacks_is_named() {
    let text = "cache: { ttl: 10m }";
    let not_yet = loads(&with(text)).snapshot.not_yet;
    let names: Vec<&str> = not_yet.iter().filter_map(|line| line.split(':').next()).collect();
    assert_eq!(names, ["cache"]);
    each_is_refused(&[
        (
            "store: mysql://u:p@h",
            &[
                "t.yaml:4:8: store: is not a store; write `embedded`, redis://…, redis+sentinel://… or redis+cluster://…",
            ],
        ),
        ("records: mysql://u:p@h", &["t.yaml:4:10: records: is not a call log; write sqlite, postgres://… or none"]),
        (
            "ledger: { sync: 0s }\nserver: { limits: { in_flight: 0 } }",
            &[
                "t.yaml:4:17: ledger.sync: must be above 0",
                "t.yaml:5:32: server.limits.in_flight: must be from 1 to 1000000, got 0",
            ],
        ),
    ]);
}

#[test]
fn the_call_log_is_sqlite_unless_said_otherwise_and_its_url_is_never_shown() {
    let of = |text: &str| loads(&with(text)).snapshot;
    assert_eq!(of("").records, Records::Sqlite);
    assert_eq!(of("records: none").records, Records::None);
    let kept = of("calls: { retention: 7d, users: hash, spill: 1MiB }").calls;
    assert_eq!((kept.retention.as_secs(), kept.users, kept.spill_bytes_max), (7 * 86_400, UserIds::Hash, 1 << 20));
    let all = "0123456789abcdef".repeat(2);
    let captured = |text: &str| of(text).calls.captured_max(&all);
    assert_eq!((captured(""), captured("calls: { bodies: metadata }")), (None, Some(0)));
    assert_eq!(captured("calls: { bodies: full, body_max: 1KiB }"), Some(1 << 20));
    let some = of("calls: { bodies: sampled, sample: 25% }").calls;
    let sampled = (0..4000).filter(|n| some.captured_max(&format!("{n:032x}")).is_some()).count();
    assert!((900..1100).contains(&sampled), "{sampled}");
    let fleet = of("records: postgres://u:secret@h/db");
    assert!(matches!(&fleet.records, Records::Postgres(url) if url.expose() == "postgres://u:secret@h/db"));
    assert!(!format!("{fleet:?}").contains("secret"));
    each_is_refused(&[
        ("calls: { retention: 0s }", &["t.yaml:4:21: calls.retention: must be above 0"]),
        (
            "calls: { bodies: sampled, sample: 120%, redact: { patterns: [ ok, \"(a\" ], paths: [ a..b ] } }",
            &[
                "t.yaml:4:35: calls.sample: must be at most 100%",
                "t.yaml:4:67: calls.redact.patterns[1]: is no regular expression: error: unclosed group",
                "t.yaml:4:84: calls.redact.paths[0]: is no path; write it as `messages[*].content` or `metadata.user_id`",
            ],
        ),
        (
            "records: postgres://u:secret@h:port/db",
            &["t.yaml:4:10: records: is no PostgreSQL URL; write postgres://user:password@host/database"],
        ),
    ]);
}

#[test]
fn people_sign_in_at_a_provider_that_can_be_believed_and_with_a_role() {
    let oidc = |body: &str| format!("server: {{ oidc: {{ {body} }} }}");
    let whole = "issuer: https://id.example.org, client_id: us, client_secret: c-CANARY, roles: { admin: [ops], viewer: [\"*\"] }";
    let snapshot = loads(&with(&oidc(whole))).snapshot;
    let found = snapshot.server.oidc.clone().expect("a provider");
    assert_eq!(
        (&*found.issuer, &*found.scope, &*found.role_claim),
        ("https://id.example.org", "openid email profile", "groups")
    );
    assert!(!format!("{snapshot:?}").contains("CANARY"));
    let beyond = with(&format!("server: {{ admin: 0.0.0.0:9090, oidc: {{ {whole} }} }}"));
    assert!(loads(&beyond).snapshot.server.admin_token.is_none(), "no token is needed beside it");
    each_is_refused(&[
        (
            &oidc("issuer: http://id.example.org, client_id: us, roles: { viewer: [\"*\"] }"),
            &[
                "t.yaml:4:27: server.oidc.issuer: is not an https URL without user, query and fragment (http only on this machine); \
               TLS stands for the signatures of what the provider says",
            ],
        ),
        (
            &oidc("client_id: us, redirect_url: https://gw/login, scopes: [ a b ]"),
            &[
                "t.yaml:4:11: server.oidc.issuer: is missing; write the provider's https URL",
                "t.yaml:4:11: server.oidc.roles: lets nobody in; write for instance `viewer: [\"*\"]` and `admin: [ops]`",
                "t.yaml:4:48: server.oidc.redirect_url: is not the dashboard's address with `/login/oidc/callback` after its host and port",
                "t.yaml:4:76: server.oidc.scopes[0]: `a b` is no scope: write one word an entry",
            ],
        ),
        (
            &oidc("issuer: https://id, client_id: us, client_secret: \"\", roles: { operator: [ \"\" ] }"),
            &[
                "t.yaml:4:69: server.oidc.client_secret: is empty; an empty secret protects nothing: set it, or take the line out",
                "t.yaml:4:82: server.oidc.roles.operator: holds an empty value, which everybody might have",
            ],
        ),
    ]);
}

#[test]
fn a_redis_store_is_read_and_never_shown() {
    let snapshot = loads(&with("store: redis+sentinel://u:secret@a,b:2/main/1\nledger: { wait_replicas: 1 }")).snapshot;
    let Store::Redis(url) = &snapshot.store else { panic!("{:?}", snapshot.store) };
    assert_eq!(
        (url.to_string(), url.expose_password()),
        ("redis+sentinel://a:26379,b:2/main/1".to_owned(), Some("secret"))
    );
    assert!(!format!("{snapshot:?}").contains("secret"));
    assert_eq!((snapshot.ledger.wait_replicas, snapshot.not_yet), (1, Vec::new()));
    each_is_refused(&[
        (
            "store: redis://u:secret@a,b",
            &[
                "t.yaml:4:8: store: names several hosts; write redis+sentinel:// or redis+cluster:// if that is what they are",
            ],
        ),
        (
            "store: redis://u:secret@h/x",
            &["t.yaml:4:8: store: ends in a database that is not a number; write redis://host:6379/0"],
        ),
    ]);
}

#[test]
fn prompts_and_prices_and_secrets_come_from_files() {
    let dir = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("written");
    write("p.md", "Be {{ tone }}.\n");
    write("prices.yaml", "sim/m: { input: 1 USD/1M, output: 2 USD/1M }\n");
    write("key", "sk-from-file\n");
    let text = "\
auth: none
providers: { sim: { kind: simulated }, o: { kind: openai, base_url: http://h/v1, api_key: file:key } }
prices: prices.yaml
prompts: { p: { versions: { v1: { file: p.md, variables: { tone: { default: kind } } } } } }
models: { a: { versions: { v1: { target: sim/m } } } }
";
    let parse = || parse_str(text, "t.yaml", &|_| None, dir.path());
    let loaded = parse().expect("a valid configuration");
    assert_eq!(loaded.snapshot.providers["o"].api_keys[0].expose(), "sk-from-file");
    assert!(loaded.snapshot.models["a"].versions["v1"].targets[0].0.price.is_some());
    let mut names: Vec<_> = loaded.origin.files.iter().filter_map(|file| file.file_name()?.to_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["key", "p.md", "prices.yaml"]);

    write("prices.yaml", "sim/m: { input: 1 USD/1M, out: 2 USD/1M }\nsim/n: { input: cheap }\n");
    write("p.md", "one\n{{ tone");
    std::fs::remove_file(dir.path().join("key")).expect("removed");
    let found: Vec<String> = parse().expect_err("wrong").0.iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), 4, "{found:#?}");
    assert!(found[0].starts_with("prices.yaml:1:27: sim/m.out: unknown key"), "{found:#?}");
    assert!(found[1].starts_with("prices.yaml:2:"), "{found:#?}");
    assert!(found[2].contains("providers.o.api_key: the file key cannot be read: "), "{found:#?}");
    assert!(found[3].contains("prompts.p.versions.v1.file: p.md: "), "{found:#?}");
}

#[test]
fn messages_and_partials_come_from_files_that_are_watched() {
    let dir = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("written");
    std::fs::create_dir_all(dir.path().join("prompts/partials")).expect("made");
    write(
        "shots.messages.yaml",
        "- { role: system, content: \"{% include 'partials/tone.md' %}\" }\n- { role: user, content: hi }\n",
    );
    write("prompts/partials/tone.md", "Be {{ tone }}.{% include 'end.md' %}");
    write("prompts/end.md", "Bye.");
    let text = with(
        "prompts: { p: { versions: { v1: { file: shots.messages.yaml, variables: { tone: { default: kind, enum: [kind] } } } } } }",
    );
    let parse = || parse_str(&text, "t.yaml", &|_| None, dir.path());
    let loaded = parse().expect("a valid configuration");
    let template = &loaded.snapshot.prompts["p"].versions["v1"];
    let rendered = template.render(&serde_json::Map::new()).expect("renders");
    assert_eq!(rendered.messages.iter().map(|one| &*one.content).collect::<Vec<_>>(), ["Be kind.Bye.", "hi"]);
    let watched = |name: &str| loaded.origin.files.contains(&dir.path().join(name));
    assert!(["shots.messages.yaml", "prompts/partials/tone.md", "prompts/end.md"].into_iter().all(watched));

    let before = loaded.snapshot.hash.clone();
    write("prompts/end.md", "Farewell.");
    assert_ne!(parse().expect("valid").snapshot.hash, before, "a partial counts into the content");
    let problem = |what: &str| {
        let found = parse().expect_err(what).to_string();
        assert!(found.starts_with("t.yaml:4:") && found.contains(what) && found.lines().count() == 1, "{found}");
    };
    write("prompts/end.md", "{% include 'partials/tone.md' %}");
    problem("includes go around in a circle: partials/tone.md → end.md → partials/tone.md");
    write("prompts/end.md", "\n{% if %}");
    problem("prompts/end.md, line 2: ");
    write("prompts/end.md", "\n{% include '../secret' %}");
    problem("prompts/end.md, line 2: a file to include is named by its path in the `prompts` folder");
    std::fs::remove_file(dir.path().join("prompts/end.md")).expect("removed");
    problem("prompts/partials/tone.md, line 1: the file prompts/end.md cannot be included: ");
    #[cfg(unix)]
    {
        write("secret", "secret");
        std::os::unix::fs::symlink(dir.path().join("secret"), dir.path().join("prompts/end.md")).expect("linked");
        problem("cannot be included: it leads out of the folder");
    }
    write("shots.messages.yaml", "- { role: robot, content: hi }\n");
    problem("shots.messages.yaml: ");
    write("shots.messages.yaml", "- { role: user }\n");
    problem("shots.messages.yaml: message 1 needs a `role` and a `content`");
}

#[test]
fn rules_of_variables_are_checked_where_they_stand() {
    let each = |variable: &str| {
        format!(
            "prompts: {{ p: {{ versions: {{ v1: {{ system: \"{{{{ a }}}}\", variables: {{ a: {variable} }} }} }} }} }}"
        )
    };
    for (variable, path, says) in [
        ("{ min: 3 }", ".min", "is a rule for numbers, and this is a string"),
        ("{ type: array, max_length: 3 }", ".max_length", "is a rule for strings, and this is an array"),
        ("{ enum: [] }", ".enum", "is empty; list the values that it may have"),
        ("{ pattern: \"(\" }", "", "the rules of `a` are not valid: /pattern: is no regular expression"),
        ("{ schema: { format: date } }", "", "the rules of `a` are not valid: /format: `format` is not checked here"),
        ("{ type: integer, min: 3, default: 2 }", ".default", "the default of `a` must be at least 3"),
        (
            "{ type: array, schema: { items: { type: string } }, default: [x, 2] }",
            ".default",
            "the default of `a` is not as declared: `/1` must be a string",
        ),
    ] {
        let found = problems(&with(&each(variable)));
        assert_eq!(found.len(), 1, "{variable}: {found:?}");
        assert!(found[0].contains(&format!("variables.a{path}: {says}")), "{found:?}");
    }
    loads(&with(&each("{ type: integer, min: 1, max: 5, default: 3 }")));
}

#[cfg(unix)]
#[test]
fn secrets_that_everybody_can_read_are_warned_of() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("t.yaml");
    let warnings = |key: &str, mode: u32| {
        std::fs::write(&path, with(&format!("keys: [ {{ name: k, secret: {key} }} ]"))).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("changed");
        super::load(Some(&path)).expect("valid").warnings.len()
    };
    assert_eq!(warnings("sk-inline", 0o644), 1);
    assert_eq!(warnings("sk-inline", 0o640), 0);
    assert_eq!(warnings("\"${CARGO_PKG_NAME:-sk-x}\"", 0o644), 0);
}

#[test]
fn the_hash_tells_configurations_apart_by_all_that_was_read() {
    let hash = |text: &str, value: &'static str| {
        let env = move |name: &str| (name == "V").then(|| value.to_owned());
        parse_str(text, "t.yaml", &env, &repository()).expect("valid").snapshot.hash
    };
    let text = with("data_dir: ${V}");
    assert_eq!(hash(&text, "a"), hash(&text, "a"));
    assert_ne!(hash(&text, "a"), hash(&text, "b"));
    assert_ne!(hash(&text, "a"), hash(&with("data_dir: ${V} # x"), "a"));
    assert_eq!(hash(&text, "a").len(), 12);
}

#[test]
fn anchors_and_merges_work_and_bombs_do_not() {
    let text = with("budgets:\n  - &b { name: a, limit: 1 USD, per: day }\n  - { <<: *b, name: c }");
    assert_eq!(loads(&text).snapshot.budgets.len(), 2);

    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..12 {
        let aliases = vec![format!("*a{}", i - 1); 10].join(", ");
        bomb.push_str(&format!("a{i}: &a{i} [{aliases}]\n"));
    }
    assert_eq!(problems(&bomb).len(), 1);
    assert_eq!(problems(&"[".repeat(10_000)).len(), 1);
}

#[test]
fn text_that_is_no_yaml_has_a_place_and_a_hint() {
    let found = problems("providers:\n  o: { kind: openai, api_key: ${OPENAI_API_KEY} }\n");
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("t.yaml:2:"), "{found:?}");
    assert!(found[0].ends_with("write \"${NAME}\" in quotes"), "{found:?}");
    assert_eq!(problems("").len(), 1);
    assert_eq!(problems("- a\n- b\n"), ["t.yaml:1:1: a list stands where a map is due; write `name: …` without `- `"]);
}

#[test]
fn keys_of_the_environment_are_a_configuration() {
    let env = |name: &str| match name {
        "ANTHROPIC_API_KEY" => Some("sk-ant".to_owned()),
        "GROQ_API_KEY" => Some("gsk".to_owned()),
        "OPENAI_API_KEY" => Some(" ".to_owned()),
        _ => None,
    };
    let text = environment::configuration(&env).expect("a configuration");
    assert!(!text.contains("sk-ant"), "{text}");
    let snapshot = parse_str(&text, "environment", &env, &repository()).expect("valid").snapshot;
    assert_eq!(snapshot.default_provider.as_ref().map(|p| &*p.name), Some("anthropic"));
    assert_eq!(snapshot.providers["anthropic"].kind, ProviderKind::Anthropic);
    assert_eq!(snapshot.providers["groq"].base_url, "https://api.groq.com/openai/v1");
    assert_eq!((snapshot.providers.len(), snapshot.auth), (2, Auth::None));

    let local = |name: &str| (name == "OPENAI_BASE_URL").then(|| "http://127.0.0.1:11434/v1".to_owned());
    let text = environment::configuration(&local).expect("a configuration");
    let snapshot = parse_str(&text, "environment", &local, &repository()).expect("valid").snapshot;
    assert_eq!(snapshot.providers["openai"].base_url, "http://127.0.0.1:11434/v1");

    assert_eq!(environment::configuration(&|_| None), None);
}

#[test]
fn stored_keys_stand_beside_the_configured_ones() {
    use crate::policy::keys::{Caller, KeyDigest};
    let snapshot = loads(&with("keys: [ { name: k, secret: s } ]")).snapshot;
    let stored = Caller { name: "stored".into(), team: None, models: ModelAccess::All, tags: [].into() };
    let snapshot = snapshot.with_stored_keys(vec![(KeyDigest::of("t", None), stored)]);
    assert_eq!(snapshot.config_keys.len(), 1);
}

mod hostile {
    use proptest::prelude::*;

    use super::*;

    const EVERYTHING: &str = include_str!("../../tests/data/contract/everything.yaml");

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

        #[test]
        fn a_mutated_configuration_loads_or_is_refused_with_a_reason(
            start in 0..EVERYTHING.len(),
            length in 0_usize..40,
            inserted in "[a-z0-9:,{}\\[\\]\"'$&*!|>#%@ \\n\\t-]{0,12}",
        ) {
            let start = EVERYTHING.floor_char_boundary(start);
            let end = EVERYTHING.floor_char_boundary((start + length).min(EVERYTHING.len()));
            let text = format!("{}{inserted}{}", &EVERYTHING[..start], &EVERYTHING[end..]);
            if let Err(problems) = parse(&text) {
                prop_assert!(!problems.is_empty());
                prop_assert!(problems.0.iter().all(|problem| !problem.message.is_empty()));
            }
        }

        #[test]
        fn no_text_at_all_is_a_panic(text in "\\PC{0,200}") {
            if let Err(problems) = parse(&text) {
                prop_assert!(!problems.is_empty());
            }
        }
    }
}

// === what was pushed ===

fn revision(text: &str) -> Arc<Revision> {
    Arc::new(Revision {
        number: 7,
        sha256: revision::sha256(text),
        name: "r.yaml".to_owned(),
        text: text.to_owned(),
        author: "ann".to_owned(),
        at: "2026-11-23T20:00:00Z".parse().expect("a time"),
        message: String::new(),
        parent: None,
    })
}

/// A configuration's file, and what loads or is wrong when `pushed` lies over it.
fn over(own: &str, pushed: &str) -> Result<Loaded, Vec<String>> {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("own.yaml");
    std::fs::write(&path, own).expect("written");
    load_with(Some(&path), &Layers { pushed: Some(revision(pushed)), registered: None }).map_err(|error| {
        let text = error.to_string().replace(&format!("{}/", dir.path().display()), "");
        text.lines().map(str::to_owned).collect()
    })
}

#[test]
fn a_pushed_section_replaces_the_files_own_whole() {
    let own = with(
        "routing: { attempts: 7 }\nlimits: [ { name: a, requests: 1/s }, { name: b, tokens: \"${UNSET_HERE}/s\" } ]",
    );
    let loaded = over(&own, "limits: [ { name: c, requests: 1/s } ]\nbudgets:\n").expect("valid");
    let snapshot = loaded.snapshot;
    assert_eq!(snapshot.limits.iter().map(|limit| &*limit.name).collect::<Vec<_>>(), ["c"]);
    assert_eq!((snapshot.routing.attempts, snapshot.providers.len()), (7, 1));
    let pushed = snapshot.pushed.expect("pushed");
    assert_eq!(
        (pushed.revision.number, pushed.sections, pushed.replaced),
        (7, vec!["limits".into(), "budgets".into()], vec!["limits".into()])
    );
    for nothing in ["", "{}", "# nothing\n"] {
        assert!(over(&with(""), nothing).is_ok(), "{nothing:?}");
    }
    assert!(over("", "providers: { sim: { kind: simulated } }\nkeys: []").is_ok());
}

#[test]
fn a_problem_is_told_in_the_text_that_it_stands_in() {
    let own = with("routing: { attempts: many }\ndefault_provider: far");
    let pushed = "models:\n  m: { versions: { v1: { target: gone/x } } }\nlimits:\n  - { name: a }\nserver: {}\n";
    let expected = [
        "own.yaml:4:22: routing.attempts: ",
        "own.yaml:5:19: default_provider: ",
        "r.yaml@7:2:34: models.m.versions.v1.target: ",
        "r.yaml@7:4:",
        "r.yaml@7:5:1: server: belongs to each gateway's own file",
    ];
    let found = over(&own, pushed).expect_err("wrong");
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}\n{expected}");
    }
    assert!(over(&own, "models: [").expect_err("wrong")[0].starts_with("r.yaml@7:"));
    let doubled = over(&with(""), "budgets: []\nbudgets: []\n").expect_err("wrong");
    assert_eq!(doubled, ["r.yaml@7:2:1: budgets: is given twice; the first is on line 1"]);
}

#[test]
fn who_pushes_needs_no_secret_but_everything_else_must_be_right() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("own.yaml");
    std::fs::write(&path, "store: redis://127.0.0.1:1\n").expect("written");
    let check = |text: &str| check_pushed(Some(&path), &revision(text)).map_err(|error| error.to_string());
    let text = "providers:\n  a: { kind: openai, api_key: \"${A_KEY_NOT_HERE}\" }\n  b: { kind: openai, api_key: \"file:not/here\" }\n  c: { kind: openai, api_key: \"${C_NOT_HERE:-}\" }\n\
                keys: [ { name: k, secret: \"${K_NOT_HERE}\" } ]\nrouting: { attempts: \"${N_NOT_HERE}\" }\n";
    let draft = check(text).expect("valid as far as can be told");
    assert_eq!(
        draft.missing.into_iter().collect::<Vec<_>>(),
        ["A_KEY_NOT_HERE", "K_NOT_HERE", "N_NOT_HERE", "file:not/here"]
    );
    let wrong =
        check(&text.replace("kind: openai, api_key: \"file", "kind: open, api_key: \"file")).expect_err("wrong");
    assert!(wrong.starts_with("r.yaml@7:3:14: providers.b.kind:") && wrong.lines().count() == 1, "{wrong}");
    assert!(over("store: redis://127.0.0.1:1\n", text).expect_err("a gateway needs them").len() >= 4);
}

#[test]
fn the_store_is_found_whatever_else_is_wrong_and_never_guessed() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("own.yaml");
    let of = |text: &str| {
        std::fs::write(&path, text).expect("written");
        bootstrap(Some(&path)).map(|found| (found.store, found.data_dir))
    };
    let (store, data_dir) =
        of("store: redis://h\ndata_dir: d\nnonsense: 1\nrouting: { attempts: \"${UNSET_HERE}\" }\n").expect("found");
    assert!(matches!(store, Store::Redis(_)) && data_dir == Path::new("d"));
    assert!(matches!(of("auth: none\n"), Ok((Store::Embedded, _))));
    for wrong in [
        "store: \"redis://:${UNSET_HERE}@h\"\n",
        "store: file:not/here\n",
        "store: http://h\n",
        "store: [\n",
        "store: {}\n",
    ] {
        assert!(of(wrong).is_err(), "{wrong}");
    }
}

// === the registry ===

/// A configuration's file and prompts beside it, with a book laid over.
fn with_book(own: &str, book: &Book) -> Result<Loaded, String> {
    with_book_and_tone(own, book, "Be kind.")
}

/// The same beside a file that prompts may include.
fn with_book_and_tone(own: &str, book: &Book, tone: &str) -> Result<Loaded, String> {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("own.yaml");
    std::fs::write(&path, own).expect("written");
    std::fs::write(dir.path().join("one.txt"), "One.").expect("written");
    std::fs::create_dir(dir.path().join("prompts")).expect("made");
    std::fs::write(dir.path().join("prompts/outer.md"), "{% include 'tone.md' %}").expect("written");
    std::fs::write(dir.path().join("prompts/tone.md"), tone).expect("written");
    let text = book.to_json();
    let sha256 = crate::wire::revision::sha256(&text);
    let revision = Revision { number: 3, name: "registry".to_owned(), sha256, text, ..(*revision("")).clone() };
    load_with(Some(&path), &Layers { pushed: None, registered: Some(Arc::new(revision)) })
        .map_err(|error| error.to_string().replace(&format!("{}/", dir.path().display()), ""))
}

/// A book after `deeds` with the prompt `p`, at a gateway whose files say `own`.
fn book(own: &str, deeds: Vec<Deed>) -> Book {
    let files = with_book(own, &Book::default()).expect("valid").snapshot.registry.files;
    let at = "2026-11-23T20:00:00Z".parse().expect("a time");
    deeds.into_iter().fold(Book::default(), |book, deed| {
        let command = Command::To { kind: Kind::Prompts, name: "p".to_owned(), deed };
        book.apply(&command, &files, at, "ann").expect("done").book
    })
}

fn add(version: &str, content: serde_json::Value) -> Deed {
    Deed::AddVersion(NewVersion { version: Some(version.to_owned()), content, ..NewVersion::default() })
}

fn deploy(version: &str) -> Deed {
    Deed::Deploy { version: version.to_owned(), reason: String::new() }
}

const ONE_PROMPT: &str = "prompts: { p: { versions: { v1: { system: One. } } } }\n";

#[test]
fn what_is_registered_stands_beside_the_files_and_what_is_deployed_is_live() {
    let own = with(ONE_PROMPT);
    let text = json!({ "system": "Two, literally: ${HOME}", "variables": {} });
    let registered = book(&own, vec![add("v2", text.clone())]);
    let prompt = with_book(&own, &registered).expect("valid").snapshot.prompts["p"].clone();
    assert_eq!((&*prompt.live, prompt.versions.len()), ("v1", 2));

    let deployed = book(&own, vec![add("v2", text), deploy("v2")]);
    let snapshot = with_book(&own, &deployed).expect("valid").snapshot;
    let prompt = &snapshot.prompts["p"];
    assert_eq!(&*prompt.live, "v2");
    let says: Vec<String> = prompt.versions["v2"].sources().map(|(_, text)| text).collect();
    assert_eq!(says, ["Two, literally: ${HOME}"]);

    let later = with("prompts: { p: { live: v9, versions: { v1: { system: One. }, v9: { system: Nine. } } } }\n");
    assert_eq!(
        &*with_book(&later, &deployed).expect("valid").snapshot.prompts["p"].live,
        "v9",
        "the file decided later"
    );
    let pinned = with("prompts: { p: { pin: true, versions: { v1: { system: One. } } } }\n");
    assert_eq!(&*with_book(&pinned, &deployed).expect("valid").snapshot.prompts["p"].live, "v1");
}

#[test]
fn a_name_of_the_registry_alone_waits_until_it_is_deployed() {
    let own = with("");
    let waiting = book(&own, vec![add("v1", json!({ "system": "New." }))]);
    assert!(with_book(&own, &waiting).expect("valid").snapshot.prompts.is_empty());
    let deployed = book(&own, vec![add("v1", json!({ "system": "New." })), deploy("v1")]);
    assert_eq!(&*with_book(&own, &deployed).expect("valid").snapshot.prompts["p"].live, "v1");
}

#[test]
fn what_is_wrong_in_the_registry_is_named_by_its_revision() {
    let own = with(ONE_PROMPT);
    let wrong = book(&own, vec![add("v2", json!({ "system": "{{ x", "nonsense": 1 }))]);
    let said = with_book(&own, &wrong).expect_err("wrong");
    assert!(said.contains("registry@3: prompts.p.versions.v2.nonsense: "), "{said}");
    assert!(said.contains("registry@3: prompts.p.versions.v2.system: "), "{said}");
}

/// A book in which the version `v1` of the prompt `p` is sealed as `own` says it.
fn sealed(own: &str) -> Book {
    let files = with_book(own, &Book::default()).expect("valid").snapshot.registry.files.clone();
    let at = "2026-11-23T20:00:00Z".parse().expect("a time");
    let declared = &files.prompts["p"];
    let (sha256, partials) = (declared.versions["v1"].clone(), registry::partials(&declared.contents["v1"]));
    let (kind, name, version) = (Kind::Prompts, "p".to_owned(), "v1".to_owned());
    let seal = Command::Seal { versions: vec![SealedVersion { kind, name, version, sha256, partials }], reseal: false };
    Book::default().apply(&seal, &files, at, "steward").expect("sealed").book
}

#[test]
fn a_sealed_version_counts_the_files_that_it_includes() {
    let own = with("prompts: { p: { versions: { v1: { system: \"{% include 'outer.md' %} One.\" } } } }\n");
    let book = sealed(&own);
    assert!(with_book(&own, &book).is_ok());
    let said = with_book_and_tone(&own, &book, "Be curt.").expect_err("changed");
    let words = "prompts.p.versions.v1: prompts/tone.md, which it includes, changed: v1 was registered as sha256:";
    assert!(said.contains(words), "{said}");
    let allowed = format!("{own}registry: {{ changed_versions: allow }}\n");
    assert!(with_book_and_tone(&allowed, &book, "Be curt.").is_ok());
}

#[test]
fn a_version_that_brings_its_partials_along_needs_no_folder_and_is_the_same_version() {
    let included = with("prompts: { p: { versions: { v1: { system: \"{% include 'outer.md' %} One.\" } } } }\n");
    let version = "system: \"{% include 'outer.md' %} One.\", partials: { outer.md: \"{% include 'tone.md' %}\", tone.md: Be kind. }";
    let brought = with(&format!("prompts: {{ p: {{ versions: {{ v1: {{ {version} }} }} }} }}\n"));
    assert_eq!(sealed(&included), sealed(&brought));
    assert!(with_book_and_tone(&brought, &sealed(&included), "Be curt.").is_ok(), "the folder does not count");

    let idle = brought.replace("tone.md: Be kind.", "tone.md: Be kind., idle.md: x");
    let said = with_book(&idle, &Book::default()).expect_err("idle");
    assert!(said.contains("prompts.p.versions.v1.partials.idle.md: is included by nothing; take it out"), "{said}");
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(dir.path().join("prompts")).expect("made");
    std::fs::write(dir.path().join("prompts/tone.md"), "Be kind.").expect("written");
    let origin = Origin { path: Some(dir.path().join("own.yaml")), files: Vec::new() };
    let includes = "{% include 'tone.md' %}";
    for (typed, partials) in [
        (json!({"system": includes}), json!({"tone.md": "Be kind."})),
        (
            json!({"messages": [{"role": "user", "content": includes}], "partials": null}),
            json!({"tone.md": "Be kind."}),
        ),
        (json!({"system": includes, "partials": {"tone.md": "Mine."}}), json!({"tone.md": "Mine."})),
        (
            json!({"system": "{% include 'a.md' %}", "partials": {"a.md": includes}}),
            json!({"a.md": includes, "tone.md": "Be kind."}),
        ),
        (json!({"system": "x", "variables": {"v": {"default": includes}}}), json!(null)),
        (json!({"system": "{% include 'none.md' %}"}), json!(null)),
    ] {
        assert_eq!(with_partials(&origin, typed.clone())["partials"], partials, "{typed}");
    }

    let lost = with("prompts: { p: { versions: { v1: { system: \"{% include 'x.md' %}\" } } } }\n");
    let said = with_book(&lost, &Book::default()).expect_err("lost");
    assert!(
        said.contains("prompts/x.md cannot be included: ") && said.contains("or its text under `partials`"),
        "{said}"
    );
}

#[test]
fn a_sealed_version_of_a_file_never_changes_unless_that_is_allowed() {
    let own = with("prompts: { p: { versions: { v1: { file: one.txt } } } }\n");
    let book = sealed(&own);
    assert_eq!(book, sealed(&with(ONE_PROMPT)), "what counts is what it says, not where that stands");
    assert!(with_book(&with("\n\n\nprompts: { p: { versions: { v1: { system: \"One.\" } } } }\n"), &book).is_ok());

    let changed = with("prompts: { p: { versions: { v1: { system: Uno. } } } }\n");
    let said = with_book(&changed, &book).expect_err("changed");
    assert!(
        said.starts_with("own.yaml:") && said.contains(": prompts.p.versions.v1: v1 was registered as sha256:"),
        "{said}"
    );
    assert!(said.contains(" on 2026-11-23, and a version never changes: call it v2"), "{said}");
    let allowed = format!("{changed}registry: {{ changed_versions: allow }}\n");
    assert!(with_book(&allowed, &book).is_ok());
}

#[test]
fn a_roll_out_gives_each_user_a_version_and_moves_nobody_back() {
    let own = with(ONE_PROMPT);
    let at_stage = |stage: usize| {
        let stages = "10% 1h, 50% 1h, 100% 1h".parse().expect("stages");
        let (guardrails, reason) = (serde_json::Value::Null, String::new());
        let start = Deed::StartRollout { version: "v2".to_owned(), stages, guardrails, reason };
        let advances = (0..stage).map(|stage| Deed::AdvanceRollout { stage });
        let deeds = [add("v2", json!({ "system": "Two." })), start].into_iter().chain(advances).collect();
        with_book(&own, &book(&own, deeds)).expect("valid").snapshot
    };
    let snapshots: Vec<Snapshot> = (0..3).map(at_stage).collect();
    assert_eq!(snapshots.iter().map(|one| &one.hash).collect::<std::collections::BTreeSet<_>>().len(), 3);
    let gets_new = |snapshot: &Snapshot, user: usize| {
        let chosen = snapshot.registry.choose(Kind::Prompts, "p", &format!("user-{user}"));
        &**chosen.expect("a roll-out") == "v2"
    };
    let shares: Vec<usize> =
        snapshots.iter().map(|snapshot| (0..2000).filter(|user| gets_new(snapshot, *user)).count()).collect();
    assert!((150..250).contains(&shares[0]) && (900..1100).contains(&shares[1]) && shares[2] == 2000, "{shares:?}");
    for user in 0..2000 {
        assert!(!gets_new(&snapshots[0], user) || gets_new(&snapshots[1], user), "user-{user} went back");
    }
}
