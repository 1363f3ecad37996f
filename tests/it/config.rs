//! Configuration: what runs, what is refused and how it is said, and reloads that break nothing.

use std::{process::Output, time::Duration};

use futures_util::future::join_all;

use crate::support::{
    Gate, Gateway, KEY, Reply, Upstream, eventually,
    gateway::Setup,
    metrics::Metrics,
    upstream::{DONE, chunk, openai},
};

fn with_alias(upstream: &Upstream, alias: &str) -> Setup {
    Gateway::bare().upstream(upstream).key("dev", KEY, ", team: red").model(alias, "target: upstream/m")
}

fn reloads(metrics: &Metrics, good: bool) -> f64 {
    let is_good = |result: &str| matches!(result, "ok" | "applied" | "success");
    let series = metrics.series("tollgate_config_reloads_total");
    series.filter(|sample| is_good(sample.label("result").unwrap_or_default()) == good).map(|sample| sample.value).sum()
}

fn hash(metrics: &Metrics) -> String {
    let live: Vec<_> = metrics.series("tollgate_config_info").filter(|sample| sample.value == 1.0).collect();
    assert_eq!(live.len(), 1, "exactly one configuration serves: {live:?}");
    live[0].label("hash").expect("a hash").to_owned()
}

/// The hash that is shown as serving, where it is exactly one.
fn only_hash(metrics: &Metrics) -> Option<String> {
    let mut live = metrics.series("tollgate_config_info").filter(|sample| sample.value == 1.0);
    let only = live.next()?.label("hash")?.to_owned();
    live.next().is_none().then_some(only)
}

fn check(setup: &Setup, text: &str) -> Output {
    std::fs::write(setup.config_path(), text).unwrap();
    setup.command(&["check", "tollgate.yaml"]).output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test]
async fn a_changed_file_serves_within_a_second_and_shows_its_hash() {
    let upstream = Upstream::run().await;
    let gateway = with_alias(&upstream, "before").run().await;
    gateway.hello("before").send().await.expect(200);
    let first = hash(&gateway.metrics().await);

    gateway.replace_config(&with_alias(&upstream, "after").text());

    eventually(
        "the new alias answers",
        Duration::from_secs(1),
        || gateway.hello("after").send_owned(),
        |response| response.header("x-tollgate-version") == Some("v1"),
    )
    .await;
    gateway.hello("before").send().await.expect(404);
    let metrics = gateway.metrics().await;
    assert_ne!(hash(&metrics), first);
    assert_eq!(reloads(&metrics, true), 1.0, "{}", metrics.text);
}

#[tokio::test]
async fn a_file_written_in_place_is_seen_too() {
    let upstream = Upstream::run().await;
    let gateway = with_alias(&upstream, "before").run().await;

    std::fs::write(gateway.config_path(), with_alias(&upstream, "after").text()).unwrap();

    eventually(
        "the new alias answers",
        Duration::from_secs(2),
        || gateway.hello("after").send_owned(),
        |response| response.status == 200,
    )
    .await;
}

#[tokio::test]
async fn a_bad_file_is_refused_whole_and_the_last_good_one_stays() {
    let upstream = Upstream::run().await;
    let gateway = with_alias(&upstream, "support").run().await;
    let good = with_alias(&upstream, "support").text();
    let first = hash(&gateway.metrics().await);
    let bad = [
        with_alias(&upstream, "other").text() + "nonsense: 1\n",
        good[..good.len() / 2].to_owned(),
        with_alias(&upstream, "other").model("broken", "target: nowhere/m").text(),
        with_alias(&upstream, "other").top("routing", "{ attempts: many }").text(),
    ];

    for (number, text) in bad.iter().enumerate() {
        gateway.replace_config(text);
        eventually(
            "the refusal is counted",
            Duration::from_secs(3),
            || gateway.metrics(),
            |metrics| reloads(metrics, false) as usize > number,
        )
        .await;

        gateway.hello("support").send().await.expect(200);
        assert_eq!(hash(&gateway.metrics().await), first, "{text}");
    }
    let log = gateway.log_text();
    assert!(log.contains("nonsense"), "the log names the unknown key: {log}");
    assert_eq!(reloads(&gateway.metrics().await, true), 0.0);
}

#[tokio::test]
async fn what_needs_a_restart_is_refused_by_name() {
    let upstream = Upstream::run().await;
    let gateway = with_alias(&upstream, "support").run().await;

    let moved = with_alias(&upstream, "other").top("server", r#"{ listen: "127.0.0.1:1", admin: "127.0.0.1:0" }"#);
    gateway.replace_config(&moved.text());

    eventually(
        "the refusal is counted",
        Duration::from_secs(3),
        || gateway.metrics(),
        |metrics| reloads(metrics, false) == 1.0,
    )
    .await;
    assert!(gateway.log_text().contains("server.listen"), "{}", gateway.log_text());
    gateway.hello("support").send().await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_outlive_a_hundred_reloads() {
    let gate = Gate::closed();
    let upstream =
        Upstream::always(Reply::stream().data(chunk("first")).gate(&gate).data(chunk("last")).data(DONE)).await;
    let gateway = with_alias(&upstream, "support").run().await;
    let calls: Vec<_> = (0..20).map(|_| gateway.hello_stream("support")).collect();
    let mut streams = join_all(calls.iter().map(|call| call.open())).await;
    for stream in &mut streams {
        stream.read_events(1).await;
    }

    for number in 0..100 {
        let text = with_alias(&upstream, &format!("alias-{number}")).text();
        gateway.replace_config(&if number % 10 == 5 { text + "half: [" } else { text });
    }
    gateway.replace_config(&with_alias(&upstream, "final").text());
    eventually(
        "the last file serves",
        Duration::from_secs(3),
        || gateway.get("/v1/models").key(KEY).send_owned(),
        |response| response.text().contains("final"),
    )
    .await;
    gate.open(20);

    for stream in streams {
        let response = stream.finish().await;
        assert!(response.complete && response.text().ends_with(DONE), "{}", response.text());
    }
}

#[tokio::test]
async fn the_contracts_configurations_run_as_they_stand() {
    let upstream = Upstream::run().await;

    for setup in [Gateway::everything(&upstream), Gateway::transparent(&upstream)] {
        let gateway = setup.run().await;
        gateway.hello("upstream/gpt-4o-mini").send().await.expect(200);
    }
}

#[tokio::test]
async fn the_contracts_configurations_pass_the_check() {
    let upstream = Upstream::run().await;
    let minimal = include_str!("../data/contract/minimal.yaml");
    let setup = Gateway::yaml(minimal).env("OPENAI_API_KEY", "sk-x").env("DEV_KEY", KEY);

    let output = check(&setup, minimal);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    for (name, setup) in
        [("everything", Gateway::everything(&upstream)), ("transparent", Gateway::transparent(&upstream))]
    {
        let output = check(&setup, &setup.text());
        assert_eq!(output.status.code(), Some(0), "{name}: {}", said(&output));
    }
}

#[tokio::test]
async fn the_check_names_file_line_and_column_of_every_problem() {
    let upstream = Upstream::run().await;
    let good = with_alias(&upstream, "support");
    let cases = [
        ("an unknown key", good.text() + "nonsense: 1\n", "nonsense"),
        ("a missing provider", good.clone().model("broken", "target: nowhere/m").text(), "nowhere"),
        ("a bad duration", good.clone().top("routing", "{ timeouts: { idle: soon } }").text(), "idle"),
        ("bad money", good.clone().budget("name: b, scope: { team: red }, limit: lots, per: month").text(), "limit"),
        (
            "a wrong period",
            good.clone().budget("name: b, scope: { team: red }, limit: 1 USD, per: blue-moon").text(),
            "per",
        ),
        (
            "a live version that is not there",
            good.clone().top("prompts", "{ p: { live: v9, versions: { v1: { system: x } } } }").text(),
            "v9",
        ),
        ("broken YAML", "keys: [\n".to_owned(), ""),
        ("a template that does not parse", good.clone().prompt("p", "system: \"{{ a\"").text(), "p"),
        (
            "a variable of the environment that is not set",
            good.clone().key("x", "${NOT_SET_ANYWHERE}", "").text(),
            "NOT_SET_ANYWHERE",
        ),
        ("an empty secret", good.clone().key("x", "", "").text(), "secret"),
    ];
    for (what, text, named) in cases {
        let output = check(&good, &text);

        let said = said(&output);
        assert_eq!(output.status.code(), Some(2), "{what}: {said}");
        assert!(said.contains("tollgate.yaml:"), "{what}: no file:line:column in {said}");
        assert!(said.contains(named), "{what}: {named} is not named in {said}");
        let place = said.split("tollgate.yaml:").nth(1).unwrap();
        let mut numbers = place.split(':').map(|number| number.trim().parse::<u32>());
        assert!(matches!((numbers.next(), numbers.next()), (Some(Ok(1..)), Some(Ok(1..)))), "{what}: {said}");
    }
}

#[tokio::test]
async fn the_check_reports_all_problems_at_once() {
    let upstream = Upstream::run().await;
    let good = with_alias(&upstream, "support");
    let text = good.clone().model("a", "target: nowhere/m").model("b", "target: elsewhere/m").text();

    let said = said(&check(&good, &text));

    assert!(said.contains("nowhere") && said.contains("elsewhere"), "{said}");
}

#[tokio::test]
async fn a_server_with_a_bad_file_does_not_start() {
    let setup = Gateway::yaml("nonsense: 1\n");
    std::fs::write(setup.config_path(), setup.text()).unwrap();

    let output = setup.command(&["serve", "--config", "tollgate.yaml"]).output().unwrap();

    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("nonsense"), "{}", said(&output));
}

#[tokio::test]
async fn secrets_are_not_in_what_the_check_says() {
    let upstream = Upstream::run().await;
    let setup = with_alias(&upstream, "support");

    let output = check(&setup, &(setup.text() + "nonsense: 1\n"));

    assert!(!said(&output).contains(KEY), "{}", said(&output));
}

/// Ten ways to spoil a good file, each with the key that the refusal must name.
fn spoilt(good: &Setup) -> Vec<(String, &'static str)> {
    let text = good.text();
    vec![
        (text.clone() + "nonsense: 1\n", "nonsense"),
        (text.clone() + "budgetts: []\n", "budgetts"),
        (good.clone().top("routing", "{ attempts: many }").text(), "attempts"),
        (good.clone().top("routing", "{ timeouts: { idle: soon } }").text(), "idle"),
        (good.clone().model("broken", "target: nowhere/m").text(), "nowhere"),
        (good.clone().experiment("e", "model: support, variants: { a: { weight: -1 } }").text(), "weight"),
        (good.clone().experiment("e", "model: nowhere, variants: { a: { weight: 1 } }").text(), "model"),
        (good.clone().budget("name: b, scope: { team: red }, limit: lots, per: month").text(), "limit"),
        (good.clone().key("x", "", "").text(), "secret"),
        (text[..text.len() - 20].to_owned(), ""),
    ]
}

/// Where in the file a refusal says that the mistake is.
fn place(line: &str) -> Option<(u32, u32)> {
    let mut numbers = line.split_once("tollgate.yaml:")?.1.split(':').map(|number| number.trim().parse());
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_streams_outlive_a_hundred_replacements_and_each_bad_one_is_refused_by_its_place() {
    const STREAMS: usize = 50;
    let gate = Gate::closed();
    let held = Reply::stream().data(chunk("first")).gate(&gate).data(chunk("last")).data(DONE);
    let upstream = Upstream::answering(
        move |request| if request.json()["stream"] == true { held.clone() } else { openai(request) },
    )
    .await;
    let numbered =
        |number: usize| with_alias(&upstream, "support").model(&format!("alias-{number}"), "target: upstream/m");
    let gateway = numbered(0).run().await;
    let calls: Vec<_> = (0..STREAMS).map(|_| gateway.hello_stream("support")).collect();
    let mut streams = join_all(calls.iter().map(|call| call.open())).await;
    for stream in &mut streams {
        stream.read_events(1).await;
    }

    for (number, (bad, named)) in spoilt(&numbered(0)).into_iter().enumerate() {
        let good = numbered(number + 1);
        let before = gateway.metrics().await;
        gateway.replace_config(&bad);
        let refused = || gateway.metrics();
        let after = eventually("a refusal is counted", Duration::from_secs(2), refused, |metrics| {
            reloads(metrics, false) as usize > number
        })
        .await;
        assert_eq!(hash(&after), hash(&before), "the last good one serves: {bad}");
        gateway.hello(&format!("alias-{number}")).send().await.expect(200);
        let reasons: Vec<_> = gateway.log_lines().into_iter().filter(|line| line["level"] == "ERROR").collect();
        let reason = reasons.last().expect("a refusal is logged").to_string();
        assert!(reason.contains(named) && place(&reason).is_some(), "no {named} or place in {reason}");

        // Others come so fast that not every one of them is looked at.
        for hurried in 0..8 {
            gateway.replace_config(&numbered(1000 + hurried).text());
        }
        gateway.replace_config(&good.text());
        let alias = format!("alias-{}", number + 1);
        let served = || gateway.hello(&alias).send_owned();
        eventually("a good file serves", Duration::from_secs(2), served, |response| response.status == 200).await;
        gateway.hello(&format!("alias-{number}")).send().await.expect(404);
        // The metric follows the swap, not the other way round.
        let shown = |metrics: &Metrics| only_hash(metrics).is_some_and(|live| live != hash(&before));
        eventually("the hash that serves is shown", Duration::from_secs(2), || gateway.metrics(), shown).await;
    }

    gate.open(STREAMS);
    for stream in streams {
        let response = stream.finish().await;
        assert!(response.complete && response.text().ends_with(DONE), "{}", response.text());
    }
    let broken = gateway.metrics().await.value("tollgate_requests_total", &[("outcome", "cut")]);
    assert_eq!(broken, 0.0);
}
