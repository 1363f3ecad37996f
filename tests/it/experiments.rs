//! Experiments: the same user gets the same variant everywhere and always; weights move only who they must.

use std::collections::BTreeMap;

use futures_util::{StreamExt as _, stream};
use serde_json::json;

use std::time::Duration;

use crate::support::{Call, Gateway, KEY, Reply, Upstream, eventually, gateway::Setup, metrics::Metrics};

const USERS: usize = 400;

fn split(upstream: &Upstream, control: u32, warm: u32) -> Setup {
    Gateway::before(upstream)
        .model("support", "target: upstream/m")
        .prompt("greeting", "system: \"Be warm.\"")
        .experiment("tone", &format!("model: support, unit: user, variants: {{ control: {{ weight: {control} }}, warm: {{ weight: {warm}, prompt: greeting@v1 }} }}"))
}

/// The variant of each of [`USERS`] users, as the response says.
async fn variants(gateway: &Gateway) -> BTreeMap<String, String> {
    let calls: Vec<_> = (0..USERS)
        .map(|number| format!("user-{number}"))
        .map(|user| (gateway.hello("support").user(&user), user))
        .collect();
    let calls = stream::iter(calls).map(|(call, user)| async move {
        let response = call.send().await.expect(200);
        let variant =
            response.header("x-tollgate-variant").unwrap_or_else(|| panic!("no variant for {user}")).to_owned();
        (user, variant)
    });
    calls.buffer_unordered(16).collect().await
}

fn share(variants: &BTreeMap<String, String>, name: &str) -> f64 {
    variants.values().filter(|variant| *variant == name).count() as f64 / USERS as f64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_and_a_restart_agree_on_every_user() {
    let upstream = Upstream::run().await;
    let first = split(&upstream, 50, 50).run().await;
    let second = split(&upstream, 50, 50).run().await;

    let seen = variants(&first).await;

    assert_eq!(variants(&second).await, seen, "another process");
    assert_eq!(variants(&first.kill_and_restart().await).await, seen, "after a restart");
    // Half of 400, give or take four standard deviations.
    assert!((share(&seen, "tone=control") - 0.5).abs() < 0.1, "{}", share(&seen, "tone=control"));
    assert!((share(&seen, "tone=warm") - 0.5).abs() < 0.1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raising_a_weight_moves_users_only_into_that_variant() {
    let upstream = Upstream::run().await;
    let before = variants(&split(&upstream, 90, 10).run().await).await;
    let after = variants(&split(&upstream, 80, 20).run().await).await;

    let back = before.iter().filter(|(user, variant)| *variant == "tone=warm" && after[*user] != "tone=warm").count();
    assert_eq!(back, 0, "users left the variant whose weight rose");
    assert!((share(&before, "tone=warm") - 0.1).abs() < 0.06, "{}", share(&before, "tone=warm"));
    assert!((share(&after, "tone=warm") - 0.2).abs() < 0.08, "{}", share(&after, "tone=warm"));
}

#[tokio::test]
async fn a_variant_of_weight_zero_gets_nobody() {
    let upstream = Upstream::run().await;
    let gateway = split(&upstream, 100, 0).run().await;

    for number in 0..50 {
        let response = gateway.hello("support").user(&number.to_string()).send().await.expect(200);
        assert_eq!(response.header("x-tollgate-variant"), Some("tone=control"));
    }
}

#[tokio::test]
async fn a_user_is_the_same_however_it_is_told() {
    let upstream = Upstream::run().await;
    let gateway = split(&upstream, 50, 50).run().await;

    for number in 0..20 {
        let user = format!("person-{number}");
        let by_header = gateway.hello("support").user(&user).send().await.expect(200);
        let body = json!({"model": "support", "user": user, "messages": [{"role": "user", "content": "hi"}]});
        let by_body = gateway.chat(&body).send().await.expect(200);

        assert_eq!(by_body.header("x-tollgate-variant"), by_header.header("x-tollgate-variant"), "{user}");
    }
}

#[tokio::test]
async fn a_variant_does_what_it_says() {
    let upstream = Upstream::run().await;
    let gateway = split(&upstream, 50, 50).run().await;

    for number in 0..30 {
        let response = gateway.hello("support").user(&number.to_string()).send().await.expect(200);

        let heard = upstream.next_request().await.json();
        let warm = response.header("x-tollgate-variant") == Some("tone=warm");
        assert_eq!(heard["messages"][0]["content"] == "Be warm.", warm, "{heard}");
    }
}

#[tokio::test]
async fn a_call_without_a_user_is_its_keys() {
    let upstream = Upstream::run().await;
    let gateway = split(&upstream, 50, 50).run().await;

    let first = gateway.hello("support").send().await.expect(200);
    for _ in 0..5 {
        let next = gateway.hello("support").send().await.expect(200);
        assert_eq!(next.header("x-tollgate-variant"), first.header("x-tollgate-variant"));
    }
}

#[tokio::test]
async fn calls_of_other_models_take_no_part() {
    let upstream = Upstream::run().await;
    let gateway = split(&upstream, 50, 50).run().await;

    let response = gateway.hello("upstream/m").user("ann").send().await.expect(200);

    assert_eq!(response.header("x-tollgate-variant"), None);
    assert_eq!(gateway.next_record().await.text("variant"), "");
}

#[tokio::test]
async fn each_call_is_recorded_and_counted_under_its_variant() {
    let upstream = Upstream::run().await;
    let gateway = split(&upstream, 50, 50).run().await;

    let mut warm = 0.0;
    for number in 0..20 {
        let response = gateway.hello("support").user(&number.to_string()).send().await.expect(200);
        let record = gateway.next_record().await;
        let expected = response.header("x-tollgate-variant").unwrap().trim_start_matches("tone=");
        assert_eq!((record.text("experiment"), record.text("variant")), ("tone", expected));
        warm += f64::from(u8::from(expected == "warm"));
    }

    let metrics = gateway.metrics().await;
    let count = |variant: &str| {
        metrics.value("tollgate_experiment_calls_total", &[("experiment", "tone"), ("variant", variant)])
    };
    assert_eq!((count("warm"), count("control")), (warm, 20.0 - warm), "{}", metrics.text);
}

#[tokio::test]
async fn a_fallback_keeps_the_assigned_variant() {
    let broken = Upstream::always(Reply::bodyless(503).header("content-length", "0")).await;
    let spare = Upstream::run().await;
    let gateway = Gateway::bare()
        .provider_at("first", &broken.url())
        .provider_at("spare", &spare.url())
        .top("routing", "{ attempts: 2, eject: off }")
        .model("support", "target: first/m, fallbacks: [ spare/m ]")
        .experiment(
            "tone",
            "model: support, unit: user, variants: { only: { weight: 1, parameters: { temperature: 0.5 } } }",
        )
        .key("dev", KEY, "")
        .run()
        .await;

    let response = gateway.hello("support").user("ann").send().await.expect(200);

    assert_eq!(response.header("x-tollgate-variant"), Some("tone=only"));
    assert_eq!(response.header("x-tollgate-model"), Some("spare/m"));
    assert_eq!(spare.next_request().await.json()["temperature"], json!(0.5));
    let record = gateway.next_record().await;
    assert_eq!((record.text("variant"), record.text("provider")), ("only", "spare"));
}

#[tokio::test]
async fn a_user_is_in_one_experiment_of_a_layer_whatever_other_layers_do() {
    let upstream = Upstream::run().await;
    let half =
        |layer: &str| format!("model: support, layer: {layer}, share: 50%, variants: {{ only: {{ weight: 1 }} }}");
    let gateway = Gateway::before(&upstream)
        .model("support", "target: upstream/m")
        .experiment("tone", &half("words"))
        .experiment("length", &half("words"))
        .experiment("model", &half("machine"))
        .run()
        .await;

    let users: Vec<Call> = (0..100).map(|number| gateway.hello("support").user(&format!("user-{number}"))).collect();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for reply in Call::send_all(gateway.listen, &users).await {
        let mut variants: Vec<&str> = reply.header("x-tollgate-variant").expect("one at least").split(',').collect();
        variants.sort_unstable();
        *seen.entry(variants.join(" ")).or_default() += 1;
    }

    // The layer `words` is given away whole, and `machine` deals by itself.
    let all = ["length=only", "length=only model=only", "model=only tone=only", "tone=only"];
    assert_eq!(seen.keys().map(String::as_str).collect::<Vec<_>>(), all, "{seen:?}");
    // A quarter of 100, give or take four standard deviations.
    assert!(seen.values().all(|count| count.abs_diff(25) < 18), "{seen:?}");
}

#[tokio::test]
async fn coding_agents_are_left_alone_where_a_variant_has_another_prompt() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::before(&upstream)
        .model("support", "target: upstream/m")
        .model("forced", "target: upstream/m")
        .model("plain", "target: upstream/m")
        .prompt("greeting", "system: \"Be warm.\"")
        .experiment("tone", "model: support, variants: { warm: { weight: 1, prompt: greeting@v1 } }")
        .experiment(
            "harm",
            "model: forced, coding_agents: force, variants: { warm: { weight: 1, prompt: greeting@v1 } }",
        )
        .experiment(
            "heat",
            "model: plain, variants: { control: { weight: 1 }, hot: { weight: 1, parameters: { temperature: 1 } } }",
        )
        .run()
        .await;
    let by_agent = |model: &str| gateway.hello(model).header("user-agent", "claude-cli/1.0.118 (external, cli)");

    let left_alone = by_agent("support").send().await.expect(200);
    assert_eq!(left_alone.header("x-tollgate-variant"), None);
    assert_eq!(upstream.next_request().await.json()["messages"].as_array().map(Vec::len), Some(1));
    assert_eq!(gateway.next_record().await.text("experiment"), "");
    let anybody = gateway.hello("support").send().await.expect(200);
    assert_eq!(anybody.header("x-tollgate-variant"), Some("tone=warm"));
    upstream.next_request().await;
    let forced = by_agent("forced").send().await.expect(200);
    assert_eq!(forced.header("x-tollgate-variant"), Some("harm=warm"));
    assert_eq!(upstream.next_request().await.json()["messages"][0]["content"], "Be warm.");

    // Where only parameters differ they take part, and a session stays in one variant whoever is its user.
    let variant = async |user: usize, session: &str| {
        let call = by_agent("plain").user(&format!("user-{user}")).header("x-tollgate-session", session);
        call.send().await.expect(200).header("x-tollgate-variant").expect("a variant").to_owned()
    };
    let first = variant(0, "s-1").await;
    for user in 1..20 {
        assert_eq!(variant(user, "s-1").await, first);
    }
    let mut others = Vec::new();
    for session in 2..22 {
        others.push(variant(0, &format!("s-{session}")).await);
    }
    assert!(others.contains(&"heat=hot".to_owned()) && others.contains(&"heat=control".to_owned()), "{others:?}");
}

/// The variants of two thousand users, asked on a few connections.
async fn two_thousand(gateway: &Gateway) -> BTreeMap<String, String> {
    const CONNECTIONS: usize = 8;
    let users: Vec<String> = (0..2000).map(|number| format!("person-{number}")).collect();
    let ask = users.chunks(users.len() / CONNECTIONS).map(|users| async move {
        let calls: Vec<Call> = users.iter().map(|user| gateway.hello("support").user(user)).collect();
        let responses = Call::send_all(gateway.listen, &calls).await;
        let variants =
            responses.iter().map(|response| response.header("x-tollgate-variant").expect("a variant").to_owned());
        users.iter().cloned().zip(variants).collect::<Vec<_>>()
    });
    futures_util::future::join_all(ask).await.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_that_raises_a_weight_moves_only_who_it_must_while_calls_go_on() {
    let upstream = Upstream::run().await;
    let gateway = split(&upstream, 90, 10).run().await;
    let before = two_thousand(&gateway).await;
    let loaded = |metrics: &Metrics| metrics.value("tollgate_config_reloads_total", &[("result", "ok")]);

    gateway.replace_config(&split(&upstream, 80, 20).text());
    eventually("the weights are live", Duration::from_secs(2), || gateway.metrics(), |metrics| loaded(metrics) == 1.0)
        .await;
    let after = two_thousand(&gateway).await;
    gateway.replace_config(&split(&upstream, 90, 10).text());
    eventually("the weights are back", Duration::from_secs(2), || gateway.metrics(), |metrics| loaded(metrics) == 2.0)
        .await;
    let again = two_thousand(&gateway).await;

    let warm =
        |variants: &BTreeMap<String, String>| variants.values().filter(|variant| *variant == "tone=warm").count();
    let moved = |from: &str| before.iter().filter(|(user, variant)| *variant == from && after[*user] != from).count();
    // Of 2,000, four standard deviations are 54 users at 10 % and 72 at 20 %.
    assert!(warm(&before).abs_diff(200) < 54, "{} of 2000 are warm", warm(&before));
    assert!(warm(&after).abs_diff(400) < 72, "{} of 2000 are warm", warm(&after));
    assert_eq!((moved("tone=warm"), moved("tone=control")), (0, warm(&after) - warm(&before)));
    assert_eq!(again, before, "the same weights deal the same cards");
}
