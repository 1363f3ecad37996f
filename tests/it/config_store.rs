//! The routing configuration of a fleet, pushed through Redis: live everywhere within a second, refused where it is wrong, and never
//! holding a secret.

use std::{
    process::Output,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::{
    Call, DEADLINE, Gateway, KEY, PROVIDER_KEY, Response, Upstream, closed_port, eventually, gateway::Setup,
    redis::RedisServer, sha256, wait_until,
};

/// What the product promises.
const LIVE_WITHIN: Duration = Duration::from_secs(1);

/// A gateway with a provider, a key, and no model of its own.
fn member(upstream: &Upstream, store: &str) -> Setup {
    let setup = Gateway::bare().upstream(upstream).key("dev", KEY, ", team: red").top("store", store);
    setup.top("ledger", "{ sync: 100ms }").env("USER", "ann").env("HOSTNAME", "desk")
}

async fn fleet(upstream: &Upstream, redis: &RedisServer) -> Vec<Gateway> {
    join_all((0..2).map(|_| member(upstream, &redis.url()).run())).await
}

/// A configuration with the one alias `name`.
fn alias(name: &str) -> String {
    format!("models:\n  {name}: {{ live: v1, versions: {{ v1: {{ target: upstream/m }} }} }}\n")
}

/// `tollgate config ARGUMENTS` beside the gateway, and what it says; the exit code must be `code`.
#[track_caller]
fn config(gateway: &Gateway, arguments: &[&str], code: i32) -> String {
    let mut all = vec!["config", "--config", "tollgate.yaml"];
    all.extend(arguments);
    let output = gateway.command(&all).output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", said(&output));
    said(&output)
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn write(gateway: &Gateway, text: &str) {
    std::fs::write(gateway.config_path().with_file_name("routing.yaml"), text).unwrap();
}

/// Pushes `text` over whatever is live.
#[track_caller]
fn push(gateway: &Gateway, text: &str) -> String {
    write(gateway, text);
    config(gateway, &["push", "routing.yaml", "--force"], 0)
}

fn history(gateway: &Gateway) -> Vec<Value> {
    let listed = gateway.command(&["config", "history", "--json", "--config", "tollgate.yaml"]).output().unwrap();
    serde_json::from_slice::<Value>(&listed.stdout).unwrap().as_array().unwrap().clone()
}

async fn serves(gateway: &Gateway, model: &str, within: Duration) -> Response {
    let call = || gateway.hello(model).send_owned();
    eventually(&format!("{model} serves"), within, call, |response| response.status == 200).await
}

/// "hello" to `model` with a key of its own.
fn hello_as(gateway: &Gateway, key: &str, model: &str) -> Call {
    let body = json!({"model": model, "messages": [{"role": "user", "content": "hello"}]});
    gateway.post("/v1/chat/completions").key(key).json(&body)
}

async fn refusals(gateway: &Gateway) -> f64 {
    let metrics = gateway.metrics().await;
    let series = metrics.series("tollgate_config_reloads_total");
    series.filter(|sample| sample.label("result") == Some("refused")).map(|sample| sample.value).sum()
}

async fn refused(gateway: &Gateway, count: f64) {
    eventually("the refusal is counted", DEADLINE, || refusals(gateway), |refused| *refused >= count).await;
}

/// Writes a revision and makes it live, past every check and without telling anybody.
fn smuggle(redis: &RedisServer, number: u64, text: &str) {
    let hash = sha256(text.as_bytes());
    let revision = json!({
        "revision": number, "sha256": hash, "name": "bad.yaml", "author": "eve", "at": "2026-11-23T20:00:00Z",
        "message": "", "parent": null, "text": text,
    });
    redis.command(&["SET", &format!("tollgate:{{config}}:{number}"), &revision.to_string()]);
    redis.command(&["SET", "tollgate:{config}:head", &format!("{number} {hash}")]);
}

#[tokio::test]
async fn a_push_is_live_on_every_gateway_within_a_second_and_recorded() {
    let (upstream, redis) = (Upstream::run().await, RedisServer::start());
    let fleet = fleet(&upstream, &redis).await;
    fleet[0].hello("first").send().await.expect(404);

    for (number, name) in [(1, "first"), (2, "second"), (3, "third")] {
        write(&fleet[0], &alias(name));
        let base = (number - 1).to_string();
        let mut arguments = vec!["push", "routing.yaml", "-m", name];
        if number > 1 {
            arguments.extend(["--base", &base]);
        }
        let said = config(&fleet[0], &arguments, 0);
        let begun = Instant::now();
        assert!(said.contains(&format!("revision {number} is live")), "{said}");
        join_all(fleet.iter().map(|gateway| serves(gateway, name, LIVE_WITHIN))).await;
        eprintln!("revision {number} was live everywhere {:?} after the push", begun.elapsed());
    }

    fleet[1].hello("first").send().await.expect(404);
    let listed = history(&fleet[1]);
    let facts: Vec<_> =
        listed.iter().map(|row| (row["revision"].as_u64(), row["live"].as_bool(), &row["message"])).collect();
    assert_eq!(facts[0], (Some(3), Some(true), &Value::from("third")));
    assert_eq!(facts[2], (Some(1), Some(false), &Value::from("first")));
    assert_eq!((listed[0]["author"].as_str(), listed[0]["parent"].as_u64()), (Some("ann@desk"), Some(2)));
    assert_eq!(listed[0]["sha256"], sha256(alias("third").as_bytes()));
    assert!(fleet[1].log_text().contains("revision 3 of the pushed configuration serves"));
}

#[tokio::test]
async fn a_wrong_file_is_refused_by_push_with_its_line_and_nothing_is_stored() {
    let (upstream, redis) = (Upstream::run().await, RedisServer::start());
    let gateway = member(&upstream, &redis.url()).run().await;
    let cases = [
        ("models:\n  a: { versions: { v1: { target: nowhere/m } } }\n", "routing.yaml:2:", "nowhere"),
        ("modles: {}\n", "routing.yaml:1:1: modles:", "did you mean `models`?"),
        ("models: [\n", "routing.yaml:", "not valid YAML"),
        ("routing:\n  attempts: many\n", "routing.yaml:2:13: routing.attempts:", ""),
        ("models: {}\nstore: embedded\n", "routing.yaml:2:1: store:", "each gateway's own file"),
        ("server: { listen: 127.0.0.1:1 }\n", "routing.yaml:1:1: server:", "each gateway's own file"),
        ("- models\n", "routing.yaml:", "sections"),
        ("keys:\n  - name: web\n    secret: tg-canary-0123456789\n", "routing.yaml:3:13: keys[0].secret:", "${NAME}"),
    ];
    for (text, place, mend) in cases {
        write(&gateway, text);
        let said = config(&gateway, &["push", "routing.yaml"], 2);
        assert!(said.lines().any(|line| line.starts_with(place) && line.contains(mend)), "{text}: {said}");
        assert!(!said.contains("canary"), "{said}");
    }
    write(&gateway, &alias("fine"));
    let said = config(&gateway, &["push", "routing.yaml", "--dry-run"], 0);
    assert!(said.contains("would be revision 1"), "{said}");
    config(&gateway, &["push", "not-there.yaml"], 2);
    assert_eq!(redis.command(&["KEYS", "tollgate:{config}*"]), "");
    config(&gateway, &["rollback"], 1);
    config(&gateway, &["pull"], 1);
}

#[tokio::test]
async fn a_revision_that_is_wrong_here_is_refused_and_holds_nothing_else_up() {
    let (upstream, redis) = (Upstream::run().await, RedisServer::start());
    let gateway = member(&upstream, &redis.url()).run().await;
    push(&gateway, &alias("good"));
    serves(&gateway, "good", LIVE_WITHIN).await;

    smuggle(&redis, 2, "models:\n  a: { versions: { v1: { target: nowhere/m } } }\n");
    refused(&gateway, 1.0).await;
    gateway.hello("good").send().await.expect(200);
    assert!(gateway.log_text().contains("bad.yaml@2:2:"), "the place in the pushed text is named");

    // The gateway's own file goes on to count, with the last good revision.
    let other_key = "tg-test-other-0123456789abcdef0123456789abcdef";
    let changed = member(&upstream, &redis.url()).key("other", other_key, "").text();
    gateway.replace_config(&changed);
    let call = || hello_as(&gateway, other_key, "good").send_owned();
    eventually("the new key is known", Duration::from_secs(2), call, |response| response.status == 200).await;

    let counted = refusals(&gateway).await;
    redis.command(&["SET", "tollgate:{config}:head", "nonsense"]);
    refused(&gateway, counted + 1.0).await;
    hello_as(&gateway, other_key, "good").send().await.expect(200);

    smuggle(&redis, 3, &alias("mended"));
    serves(&gateway, "mended", Duration::from_secs(2)).await;
}

#[tokio::test]
async fn a_rollback_is_a_new_revision_with_an_old_text() {
    let (upstream, redis) = (Upstream::run().await, RedisServer::start());
    let gateway = member(&upstream, &redis.url()).run().await;
    for name in ["one", "two", "three"] {
        push(&gateway, &alias(name));
    }
    serves(&gateway, "three", LIVE_WITHIN).await;

    config(&gateway, &["rollback"], 0);
    serves(&gateway, "two", LIVE_WITHIN).await;
    config(&gateway, &["rollback", "1", "--author", "bob"], 0);
    serves(&gateway, "one", LIVE_WITHIN).await;

    let listed = history(&gateway);
    let who: Vec<_> =
        listed.iter().map(|row| (row["author"].as_str().unwrap(), row["message"].as_str().unwrap())).collect();
    assert_eq!(listed.len(), 5);
    assert_eq!(who[..2], [("bob", "rollback to revision 1"), ("ann@desk", "rollback to revision 2")]);
    assert_eq!(listed[0]["sha256"], listed[4]["sha256"]);
    config(&gateway, &["rollback", "77"], 2);
    let pulled = config(&gateway, &["pull", "--revision", "3"], 0);
    assert_eq!(pulled, alias("three") + "# made from revision 3\n");
}

#[tokio::test]
async fn a_push_on_a_stale_base_is_refused_with_the_mend() {
    let (upstream, redis) = (Upstream::run().await, RedisServer::start());
    let fleet = fleet(&upstream, &redis).await;
    let (ann, bob) = (&fleet[0], &fleet[1]);
    push(ann, &alias("first"));
    let (mine, theirs) = (ann.config_path().with_file_name("r.yaml"), bob.config_path().with_file_name("r.yaml"));
    for gateway in [ann, bob] {
        config(gateway, &["pull", "r.yaml"], 0);
        config(gateway, &["pull", "r.yaml"], 2);
    }
    let made_from = |number: u32, name: &str| format!("{}# made from revision {number}\n", alias(name));
    assert_eq!(std::fs::read_to_string(&theirs).unwrap(), made_from(1, "first"));

    std::fs::write(&mine, made_from(1, "anns")).unwrap();
    config(ann, &["push", "r.yaml"], 0);
    std::fs::write(&theirs, made_from(1, "bobs")).unwrap();
    let said = config(bob, &["push", "r.yaml"], 1);
    assert!(said.contains("pull --revision 2") && said.contains("--base 2"), "{said}");
    serves(bob, "anns", LIVE_WITHIN).await;

    // Pushed once, a pulled file says what it is by then.
    assert_eq!(std::fs::read_to_string(&mine).unwrap(), made_from(2, "anns"));
    assert!(config(ann, &["push", "r.yaml"], 0).contains("live already"));
    std::fs::write(&mine, made_from(2, "more")).unwrap();
    config(ann, &["push", "r.yaml"], 0);
    write(bob, &alias("unsaid"));
    assert!(config(bob, &["push", "routing.yaml"], 1).contains("--base 3"));
    config(bob, &["push", "r.yaml", "--force"], 0);
    serves(ann, "bobs", LIVE_WITHIN).await;
}

#[tokio::test]
async fn sections_of_the_own_file_count_until_they_are_pushed_and_again_afterwards() {
    let (upstream, redis) = (Upstream::run().await, RedisServer::start());
    let gateway = member(&upstream, &redis.url()).model("own", "target: upstream/m").run().await;
    gateway.hello("own").send().await.expect(200);

    push(&gateway, "limits: []\n");
    wait_until("it serves", DEADLINE, || gateway.log_text().contains("revision 1 of the pushed")).await;
    gateway.hello("own").send().await.expect(200);
    push(&gateway, &alias("pushed"));
    serves(&gateway, "pushed", LIVE_WITHIN).await;
    gateway.hello("own").send().await.expect(404);
    let line = gateway.log_lines().into_iter().find(|line| line["revision"] == 2).expect("a line");
    assert_eq!((line["replaced"].as_str(), line["author"].as_str()), (Some("models"), Some("ann@desk")), "{line}");

    push(&gateway, "{}\n");
    serves(&gateway, "own", LIVE_WITHIN).await;
}

#[tokio::test]
async fn a_gateway_may_begin_with_its_bootstrap_alone() {
    let (upstream, redis) = (Upstream::run().await, RedisServer::start());
    let bootstrap = format!(
        "server: {{ listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\" }}\nstore: {}\ndata_dir: data\nledger: {{ sync: 100ms }}\n",
        redis.url()
    );
    let gateway = Gateway::yaml(bootstrap).run().await;
    assert!(gateway.log_text().contains("until one is pushed"));
    gateway.hello("all").send().await.expect(401);

    let upstreams = member(&upstream, &redis.url()).text();
    let pushed: Vec<&str> = upstreams.lines().skip_while(|line| !line.starts_with("providers:")).collect();
    let prices = "unpriced: { charge: { input: 1 USD/1M, output: 1 USD/1M } }\n";
    push(
        &gateway,
        &format!(
            "{prices}{}\n{}",
            pushed.join("\n").replace(KEY, "${CLIENT_KEY}").replace(PROVIDER_KEY, "\"${UPSTREAM_KEY}\""),
            alias("all")
        ),
    );
    refused(&gateway, 1.0).await;
    let env = format!("CLIENT_KEY={KEY}\nUPSTREAM_KEY={PROVIDER_KEY}\n");
    std::fs::write(gateway.config_path().with_file_name(".env"), env).unwrap();
    serves(&gateway, "all", Duration::from_secs(2)).await;
}

#[tokio::test]
async fn a_lost_subscription_and_a_user_without_one_follow_by_the_poll() {
    let (upstream, redis) = (Upstream::run().await, RedisServer::start());
    let rules = "on >s3cret resetkeys ~tollgate:* resetchannels -@all +evalsha +eval +hgetall +hset +hdel +get +set +time +info +scan +wait";
    let words: Vec<&str> = ["ACL", "SETUSER", "mute"].into_iter().chain(rules.split(' ')).collect();
    assert_eq!(redis.command(&words), "OK");
    let subscribed = member(&upstream, &redis.url()).run().await;
    let mute = member(&upstream, &format!("redis://mute:s3cret@127.0.0.1:{}", redis.port)).run().await;
    let subscriptions = || redis.command(&["CLIENT", "LIST", "TYPE", "pubsub"]).lines().count();
    wait_until("one gateway listens, to both", DEADLINE, || subscriptions() == 2).await;

    for name in ["one", "two", "three"] {
        // Lost just before: the next one takes a while, so the poll has to find it.
        redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        push(&subscribed, &alias(name));
        serves(&subscribed, name, LIVE_WITHIN).await;
        serves(&mute, name, LIVE_WITHIN).await;
    }
    wait_until("it listens again", DEADLINE, || subscriptions() == 2).await;
    assert_eq!(refusals(&mute).await, 0.0);
}

#[tokio::test]
async fn without_redis_the_last_good_one_stays_and_a_start_is_refused_as_by_the_ledger() {
    let (upstream, mut redis) = (Upstream::run().await, RedisServer::start());
    let gateway = member(&upstream, &redis.url()).run().await;
    push(&gateway, &alias("kept"));
    serves(&gateway, "kept", LIVE_WITHIN).await;

    redis.kill();
    wait_until("it is said", DEADLINE, || gateway.log_text().contains("cannot be asked for")).await;
    gateway.hello("kept").send().await.expect(200);
    config(&gateway, &["history"], 3);
    config(&gateway, &["push", "routing.yaml", "--force"], 3);
    let beside = member(&upstream, &redis.url());
    std::fs::write(beside.config_path(), beside.text()).unwrap();
    let start = beside.command(&["serve", "--config", "tollgate.yaml"]).output().unwrap();
    assert_eq!(start.status.code(), Some(3), "{}", said(&start));

    redis.restart();
    push(&gateway, &alias("back"));
    serves(&gateway, "back", Duration::from_secs(3)).await;
    assert!(gateway.log_text().contains("can be read again"));
    assert_eq!(refusals(&gateway).await, 0.0);
}

#[tokio::test]
async fn a_gateway_starts_with_what_was_pushed_and_with_what_it_kept_once_the_store_lost_it() {
    let (upstream, redis) = (Upstream::run().await, RedisServer::start());
    let gateway = member(&upstream, &redis.url()).run().await;
    push(&gateway, &alias("kept"));
    serves(&gateway, "kept", LIVE_WITHIN).await;
    wait_until("it is kept", DEADLINE, || gateway.data_dir().join("pushed.json").exists()).await;

    let gateway = gateway.kill_and_restart().await;
    gateway.hello("kept").send().await.expect(200);
    smuggle(&redis, 2, "models: { a: { versions: { v1: { target: nowhere/m } } } }\n");
    let gateway = gateway.kill_and_restart().await;
    gateway.hello("kept").send().await.expect(200);
    refused(&gateway, 1.0).await;
    redis.command(&["FLUSHALL"]);
    let gateway = gateway.kill_and_restart().await;
    gateway.hello("kept").send().await.expect(200);
    assert!(gateway.log_text().contains("push it again"));

    push(&gateway, &alias("anew"));
    serves(&gateway, "anew", LIVE_WITHIN).await;
}

/// Everything that Redis holds, as text.
fn everything_in(redis: &RedisServer) -> String {
    let keys = redis.command(&["KEYS", "*"]);
    let both = keys.lines().flat_map(|key| [redis.command(&["GET", key]), redis.command(&["HGETALL", key])]);
    both.collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn no_secret_is_ever_stored_and_each_gateway_resolves_its_own() {
    const CLIENT: &str = "tg-canary-client-0123456789abcdef";
    let (upstream, redis) = (Upstream::run().await, RedisServer::start());
    let fleet = join_all((0..2).map(|_| {
        let setup = member(&upstream, &redis.url()).env("CANARY_PROVIDER", PROVIDER_KEY);
        std::fs::write(setup.directory().join("client-key"), CLIENT).unwrap();
        setup.run()
    }))
    .await;
    let text = format!(
        "providers:\n  upstream: {{ kind: openai, base_url: \"{}/v1\", api_key: \"${{CANARY_PROVIDER}}\" }}\n\
         keys:\n  - {{ name: web, secret: \"file:client-key\" }}\n{}",
        upstream.url(),
        alias("secret")
    );
    push(&fleet[0], &text);

    for gateway in &fleet {
        let call = || hello_as(gateway, CLIENT, "secret").send_owned();
        eventually("the new key is known", LIVE_WITHIN, call, |response| response.status == 200).await;
        let sent = upstream.requests().pop().expect("a call");
        assert_eq!(sent.header("authorization"), Some(format!("Bearer {PROVIDER_KEY}").as_str()));
        let path = gateway.data_dir().join("pushed.json");
        wait_until("it is kept", DEADLINE, || path.exists()).await;
        let kept = std::fs::read_to_string(path).unwrap();
        assert!(kept.contains("CANARY_PROVIDER"), "{kept}");
        for secret in [PROVIDER_KEY, CLIENT] {
            assert!(!kept.contains(secret) && !gateway.log_text().contains(secret), "{secret}");
        }
    }
    let stored = everything_in(&redis);
    assert!(stored.contains("${CANARY_PROVIDER}") && stored.contains("file:client-key"), "{stored}");
    assert!(!stored.contains(PROVIDER_KEY) && !stored.contains(CLIENT), "{stored}");

    // Who pushes needs no secret; a gateway without one refuses.
    let without = text.replace("CANARY_PROVIDER", "CANARY_NOWHERE");
    let said = push(&fleet[0], &without);
    assert!(said.contains("each gateway must have: CANARY_NOWHERE"), "{said}");
    refused(&fleet[1], 1.0).await;
    hello_as(&fleet[1], CLIENT, "secret").send().await.expect(200);

    write(&fleet[0], &text.replace("${CANARY_PROVIDER}", "sk-written-down"));
    config(&fleet[0], &["push", "routing.yaml", "--force"], 2);
    config(&fleet[0], &["push", "routing.yaml", "--force", "--allow-secrets"], 0);
}

#[tokio::test]
async fn a_store_that_is_none_or_not_there_is_said_without_its_password() {
    let cases = [
        ("embedded".to_owned(), 2, "nobody shares"),
        (closed_port().await.replace("http://", "redis://:topsecret@"), 3, "redis://127.0.0.1:"),
        ("redis://:topsecret@".to_owned(), 2, "store"),
        ("\"redis://:${NOT_SET}@127.0.0.1:1\"".to_owned(), 2, "NOT_SET"),
    ];
    for (store, code, what) in cases {
        let setup = Gateway::yaml(format!("store: {store}\n"));
        std::fs::write(setup.config_path(), setup.text()).unwrap();
        let arguments = ["config", "history", "--config", "tollgate.yaml"];
        let output = setup.command(&arguments).output().unwrap();
        let said = said(&output);
        assert_eq!(output.status.code(), Some(code), "{store}: {said}");
        assert!(said.contains(what) && !said.contains("topsecret"), "{store}: {said}");
    }
}
