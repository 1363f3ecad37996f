//! The registry: what is live is state in the store, the same on every gateway, kept over restarts, and never changed in place.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, future::join_all, stream};
use serde_json::{Value, json};

use crate::support::{Call, DEADLINE, Gateway, Response, Upstream, eventually, gateway::Setup, redis::RedisServer};

/// What the product promises.
const LIVE_WITHIN: Duration = Duration::from_secs(1);
const USERS: usize = 200;

fn setup(upstream: &Upstream) -> Setup {
    let setup = Gateway::before(upstream).model("support", "target: upstream/m, prompt: greeting");
    setup.prompt("greeting", "system: \"Version one.\"")
}

async fn post(gateway: &Gateway, path: &str, body: &Value) -> Response {
    Call::new(gateway.admin, "POST", path).json(body).send().await
}

async fn add(gateway: &Gateway, version: &str, text: &str) -> Response {
    post(gateway, "/api/prompts/greeting/versions", &json!({ "version": version, "system": text })).await
}

async fn deploy(gateway: &Gateway, version: &str) -> Value {
    let body = json!({ "version": version, "reason": "for the test" });
    post(gateway, "/api/prompts/greeting/deploy", &body).await.expect(200).json()
}

/// The prompt's version that a user's call gets.
async fn served_to(gateway: &Gateway, user: &str) -> String {
    let response = gateway.hello("support").user(user).send().await.expect(200);
    response.header("x-tollgate-prompt").expect("a prompt").to_owned()
}

async fn serves(gateway: &Gateway, wanted: &str) {
    eventually(wanted, LIVE_WITHIN, || served_to(gateway, "ann"), |served| served == wanted).await;
}

async fn shelf(gateway: &Gateway) -> Value {
    gateway.admin_get("/api/prompts/greeting/registry").await.expect(200).json()
}

/// Waits until the file's first version is sealed.
async fn sealed(gateway: &Gateway) {
    let is_sealed = |shelf: &Value| shelf["versions"][0]["created"].is_string();
    eventually("v1 is sealed", DEADLINE, || shelf(gateway), is_sealed).await;
}

/// What the provider got last.
fn last_body(upstream: &Upstream) -> String {
    String::from_utf8_lossy(&upstream.requests().last().expect("a call").body).into_owned()
}

async fn refusal(gateway: &Gateway, words: &str) {
    let refused = || async { gateway.admin_get("/api/config").await.text() };
    eventually(words, DEADLINE, refused, |text| text.contains(words)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_and_its_rollback_serve_on_every_gateway_within_a_second() {
    let (upstream, redis) = (Upstream::run().await, RedisServer::start());
    let fleet = join_all((0..2).map(|_| setup(&upstream).top("store", &redis.url()).run())).await;
    assert_eq!(served_to(&fleet[1], "ann").await, "greeting@v1");

    let added = add(&fleet[0], "v2", "Version two, literally ${HOME}.").await.expect(200).json();
    assert_eq!((&added["changed"], &added["now"]["live"]), (&json!(true), &json!("v1")));
    let begun = Instant::now();
    deploy(&fleet[0], "v2").await;
    join_all(fleet.iter().map(|gateway| serves(gateway, "greeting@v2"))).await;
    eprintln!("deployed everywhere after {:?}", begun.elapsed());
    let sent = last_body(&upstream);
    assert!(sent.contains("Version two, literally ${HOME}."), "{sent}");

    let begun = Instant::now();
    post(&fleet[1], "/api/prompts/greeting/rollback", &json!({})).await.expect(200);
    join_all(fleet.iter().map(|gateway| serves(gateway, "greeting@v1"))).await;
    eprintln!("rolled back everywhere after {:?}", begun.elapsed());

    let history = fleet[0].admin_get("/api/prompts/greeting/history").await.expect(200).json();
    let told: Vec<_> = history.as_array().unwrap().iter().map(|event| event["what"].as_str().unwrap()).collect();
    assert_eq!(told, ["rolled_back", "deployed", "registered"]);
    let audit = fleet[0].command(&["audit", "--data-dir", "data", "verify"]).output().unwrap();
    assert!(audit.status.success(), "{audit:?}");
    let written = std::fs::read_to_string(fleet[0].data_dir().join("audit.jsonl")).unwrap();
    for action in ["prompts.add_version", "prompts.deploy"] {
        assert!(written.contains(&format!("\"action\":\"{action}\",\"subject\":\"greeting\"")), "{written}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_live_survives_a_restart_and_the_command_line_says_and_changes_it() {
    let upstream = Upstream::run().await;
    let gateway = setup(&upstream).run().await;
    let tollgate = |gateway: &Gateway, arguments: &[&str]| {
        let url = format!("http://{}", gateway.admin);
        let mut all = vec!["prompts", "--url", &url];
        all.extend(arguments);
        let output = gateway.command(&all).output().unwrap();
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    std::fs::write(gateway.config_path().with_file_name("two.txt"), "Version two.").unwrap();
    let said =
        tollgate(&gateway, &["add", "greeting", "--file", "two.txt", "--description", "warmer", "--tag", "by=ann"]);
    assert!(said.contains("greeting@v2 is registered"), "{said}");
    assert_eq!(tollgate(&gateway, &["deploy", "greeting@v2"]), "greeting@v2 is live\n");
    assert_eq!(served_to(&gateway, "ann").await, "greeting@v2");
    let gateway = gateway.kill_and_restart().await;
    assert_eq!(served_to(&gateway, "ann").await, "greeting@v2");

    let shown = tollgate(&gateway, &["show", "greeting"]);
    assert!(shown.contains("v2 is live (by registry)") && shown.contains("warmer"), "{shown}");
    let diff = tollgate(&gateway, &["diff", "greeting@v1"]);
    assert!(diff.contains("-system: Version one.\n+system: Version two.\n"), "{diff}");
    assert_eq!(tollgate(&gateway, &["rollback", "greeting"]), "greeting@v1 is live\n");
    assert!(tollgate(&gateway, &["history", "greeting"]).contains("rolled back"));

    tollgate(&gateway, &["deploy", "greeting@v2", "--at", "2099-01-31T08:00:00Z", "--reason", "new year"]);
    let shown = tollgate(&gateway, &["show", "greeting"]);
    let planned = "planned: v2 goes live at 2099-01-31T08:00:00Z (by ";
    assert!(shown.contains(planned) && shown.contains(": new year)\n"), "{shown}");
    assert_eq!(tollgate(&gateway, &["unschedule", "greeting"]), "greeting@v1 is live\n");
    tollgate(&gateway, &["deploy", "greeting@v2", "--rollout", "10%, 50%, 100%"]);
    assert_eq!(
        tollgate(&gateway, &["rollout", "greeting", "advance"]),
        "greeting@v1 is live; under way: v2 to 50.0%\n"
    );
    let running = "roll-out: v1 to v2, 50.0% of users; stage 2 of 3 since ";
    for command in ["rollout", "show"] {
        let said = tollgate(&gateway, &[command, "greeting"]);
        assert!(said.contains(running) && said.contains(": 10%, 50%, 100% (by "), "{said}");
    }
    assert_eq!(tollgate(&gateway, &["rollout", "greeting", "abort"]), "greeting@v1 is live\n");
    assert!(tollgate(&gateway, &["rollout", "greeting"]).starts_with("roll-out: v1 to v2, aborted: "));
    assert!(tollgate(&gateway, &["list"]).contains("greeting"));
    assert!(tollgate(&gateway, &["deploy", "greeting@v9"]).contains("has no version `v9`; it has v1, v2"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registered_version_keeps_the_partials_that_it_came_with() {
    let (upstream, redis) = (Upstream::run().await, RedisServer::start());
    let member = |tone: &str| {
        let setup = setup(&upstream).top("store", &redis.url());
        let folder = setup.directory().join("prompts");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("outer.md"), "{% include 'tone.md' %} Always.").unwrap();
        std::fs::write(folder.join("tone.md"), tone).unwrap();
        setup.run()
    };
    let (first, second) = (member("Be kind.").await, member("Be curt.").await);
    let text = "Two. {% include 'outer.md' %}";
    let added = add(&first, "v2", text).await.expect(200).json();
    assert_eq!(add(&first, "v2", text).await.expect(200).json()["changed"], json!(false));
    deploy(&first, "v2").await;
    for gateway in [&first, &second] {
        serves(gateway, "greeting@v2").await;
        assert!(last_body(&upstream).contains("Two. Be kind. Always."), "{}", last_body(&upstream));
    }

    std::fs::write(first.config_path().with_file_name("prompts").join("tone.md"), "Be loud.").unwrap();
    let why = add(&first, "v2", text).await.expect(409).text();
    assert!(why.contains("prompts/tone.md, which it includes, changed: v2 of the prompt"), "{why}");
    add(&first, "v3", text).await.expect(200);
    deploy(&first, "v3").await;
    serves(&second, "greeting@v3").await;
    assert!(last_body(&upstream).contains("Two. Be loud. Always."), "{}", last_body(&upstream));
    post(&second, "/api/prompts/greeting/rollback", &json!({})).await.expect(200);
    serves(&first, "greeting@v2").await;
    assert!(last_body(&upstream).contains("Two. Be kind. Always."), "{}", last_body(&upstream));

    let sha256 = |shelf: &Value| shelf["versions"][1]["sha256"].clone();
    assert_eq!(sha256(&shelf(&second).await), sha256(&added["now"]));
    let why = add(&first, "v4", "{% include 'none.md' %}").await.expect(422).text();
    assert!(why.contains("prompts/none.md cannot be included") && why.contains("its text under `partials`"), "{why}");
    let own = json!({"version": "v4", "system": "{% include 'none.md' %}", "partials": {"none.md": "Mine."}});
    post(&first, "/api/prompts/greeting/versions", &own).await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_changes_neither_through_the_api_nor_in_the_file() {
    let upstream = Upstream::run().await;
    let gateway = setup(&upstream).run().await;
    add(&gateway, "v2", "Version two.").await.expect(200);
    assert_eq!(add(&gateway, "v2", "Version two.").await.expect(200).json()["changed"], json!(false));
    let why = add(&gateway, "v2", "Another one.").await.expect(409).text();
    assert!(why.contains("v2 of the prompt `greeting` was registered as sha256:"), "{why}");
    let why = add(&gateway, "v3", "{{ open").await.expect(422).text();
    assert!(why.contains("registry@") && why.contains("prompts.greeting.versions.v3.system"), "{why}");

    sealed(&gateway).await;
    let text = std::fs::read_to_string(gateway.config_path()).unwrap();
    let changed = text.replace("Version one.", "Version uno.");
    gateway.replace_config(&changed);
    refusal(&gateway, "prompts.greeting.versions.v1: v1 was registered as sha256:").await;
    gateway.replace_config(&format!("{changed}registry: {{ changed_versions: allow }}\n"));
    let sent = || async {
        gateway.hello("support").send().await.expect(200);
        last_body(&upstream)
    };
    eventually("the change counts", DEADLINE, sent, |sent| sent.contains("Version uno.")).await;
    let history = || async { gateway.admin_get("/api/prompts/greeting/history").await.text() };
    eventually("the history says so", DEADLINE, history, |history| history.contains("resealed")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_files_later_decision_wins_and_a_pin_always_does() {
    let upstream = Upstream::run().await;
    let gateway = setup(&upstream).run().await;
    add(&gateway, "v2", "Version two.").await.expect(200);
    deploy(&gateway, "v2").await;
    let text = std::fs::read_to_string(gateway.config_path()).unwrap();
    let one = "v1: { system: \"Version one.\" }";
    assert!(text.contains(one), "{text}");
    let edited = text.replace(one, &format!("{one}, v3: {{ system: \"Version three.\" }}"));
    let prompts = edited.find("prompts:").expect("prompts");
    let later = format!("{}{}", &edited[..prompts], edited[prompts..].replacen("live: v1", "live: v3", 1));
    gateway.replace_config(&later);
    eventually("the file's v3", DEADLINE, || served_to(&gateway, "ann"), |served| served == "greeting@v3").await;
    deploy(&gateway, "v2").await;
    assert_eq!(served_to(&gateway, "ann").await, "greeting@v2");

    let pinned = format!("{}{}", &later[..prompts], later[prompts..].replacen("live: v3", "live: v3, pin: true", 1));
    gateway.replace_config(&pinned);
    eventually("the pinned v3", DEADLINE, || served_to(&gateway, "ann"), |served| served == "greeting@v3").await;
    let why = post(&gateway, "/api/prompts/greeting/deploy", &json!({ "version": "v2" })).await.expect(409).text();
    assert!(why.contains("`prompts.greeting.pin: true`"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planned_deployment_happens_when_it_is_due() {
    let upstream = Upstream::run().await;
    let gateway = setup(&upstream).run().await;
    add(&gateway, "v2", "Version two.").await.expect(200);
    let at = jiff::Timestamp::now() + Duration::from_secs(2);
    let body = json!({ "version": "v2", "at": at.to_string() });
    let planned = post(&gateway, "/api/prompts/greeting/deploy", &body).await.expect(200).json();
    assert_eq!((&planned["now"]["live"], &planned["now"]["scheduled"]["version"]), (&json!("v1"), &json!("v2")));
    assert_eq!(served_to(&gateway, "ann").await, "greeting@v1");
    eventually("v2 as planned", DEADLINE, || served_to(&gateway, "ann"), |served| served == "greeting@v2").await;
    assert!(jiff::Timestamp::now() >= at);
    assert_eq!(shelf(&gateway).await["scheduled"], Value::Null);
}

/// The version that each of [`USERS`] users gets.
async fn versions(gateway: &Gateway) -> BTreeMap<usize, String> {
    let calls =
        stream::iter(0..USERS).map(|user| async move { (user, served_to(gateway, &format!("user-{user}")).await) });
    calls.buffer_unordered(16).collect().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_roll_out_moves_users_only_forward_and_ends_with_all() {
    let (upstream, redis) = (Upstream::run().await, RedisServer::start());
    let fleet = join_all((0..2).map(|_| setup(&upstream).top("store", &redis.url()).run())).await;
    add(&fleet[0], "v2", "Version two.").await.expect(200);
    let body = json!({ "version": "v2", "rollout": { "stages": ["10%", "50%", "100% 1s"] } });
    let key = |call: Call| call.header("idempotency-key", "one roll-out");
    for changed in [true, false] {
        let call = key(Call::new(fleet[0].admin, "POST", "/api/prompts/greeting/deploy").json(&body));
        assert_eq!(call.send().await.expect(200).json()["changed"], json!(changed));
    }
    let weight = |gateway| async move { shelf(gateway).await["rollout"]["weight"].as_f64() };
    let mut before: BTreeMap<usize, String> = BTreeMap::new();
    for (share, range) in [(10.0, 5..40), (50.0, 70..130)] {
        eventually("the stage", DEADLINE, || weight(&fleet[1]), |weight| *weight == Some(share)).await;
        let (one, other) = (versions(&fleet[0]).await, versions(&fleet[1]).await);
        assert_eq!(one, other, "both gateways agree on every user");
        let new = one.values().filter(|version| *version == "greeting@v2").count();
        assert!(range.contains(&new), "{new} of {USERS} at {share}%");
        let back = before.iter().filter(|(user, version)| *version == "greeting@v2" && one[user] != **version);
        assert_eq!(back.count(), 0, "nobody goes back");
        before = one;
        post(&fleet[0], "/api/prompts/greeting/rollout", &json!({ "action": "advance" })).await.expect(200);
    }
    let live = |gateway| async move { shelf(gateway).await["live"].as_str().map(str::to_owned) };
    join_all(
        fleet.iter().map(|gateway| {
            eventually("the end", DEADLINE, move || live(gateway), |live| live.as_deref() == Some("v2"))
        }),
    )
    .await;
    let rollout = fleet[1].admin_get("/api/prompts/greeting/rollout").await.expect(200).json();
    assert_eq!(rollout["state"], "finished");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_form_of_the_dashboard_decides_what_is_live_and_says_why_not() {
    let upstream = Upstream::run().await;
    let gateway = setup(&upstream).run().await;
    add(&gateway, "v2", "Version two.").await.expect(200);
    let send = |form: &'static str| {
        Call::new(gateway.admin, "POST", "/prompts?lang=de")
            .body("application/x-www-form-urlencoded", form)
            .send_owned()
    };
    let done = send("name=greeting&action=deploy&version=v2&reason=by+hand").await.expect(303);
    assert_eq!(done.header("location"), Some("/prompts?lang=de#greeting"));
    assert_eq!(served_to(&gateway, "ann").await, "greeting@v2");
    let page = gateway.admin_get("/prompts?lang=de").await.expect(200).text();
    for words in ["eingesetzt von loopback", "by hand", "Zurücknehmen", "registriert"] {
        assert!(page.contains(words), "{words}: {page}");
    }
    send("name=greeting&action=roll_back").await.expect(303);
    assert_eq!(served_to(&gateway, "ann").await, "greeting@v1");
    let sorry = send("name=greeting&action=deploy&version=v9").await.expect(404).text();
    assert!(sorry.contains("Das wurde nicht getan.") && sorry.contains("no version `v9`"), "{sorry}");
    assert!(gateway.admin_get("/models").await.expect(200).text().contains("as the file says"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forms_of_the_dashboard_lead_a_roll_out_on_and_call_a_plan_off() {
    let upstream = Upstream::run().await;
    let gateway = setup(&upstream).run().await;
    add(&gateway, "v2", "Version two.").await.expect(200);
    let send = |form: &'static str| {
        let call = Call::new(gateway.admin, "POST", "/prompts?lang=de");
        call.body("application/x-www-form-urlencoded", form).send_owned()
    };
    let page = || async { gateway.admin_get("/prompts?lang=de").await.expect(200).text() };
    let rollout = json!({ "version": "v2", "rollout": { "stages": ["10%", "50%", "100%"] } });
    post(&gateway, "/api/prompts/greeting/deploy", &rollout).await.expect(200);
    assert!(page().await.contains("Weiter zu 50%"));

    let done = send("name=greeting&action=advance&stage=1&reason=calm").await.expect(303);
    assert_eq!(done.header("location"), Some("/prompts?lang=de#greeting"));
    send("name=greeting&action=advance&stage=1").await.expect(303);
    assert_eq!(shelf(&gateway).await["rollout"]["stage"], 2, "who presses twice goes on once");
    assert!(page().await.contains("Weiter zu 100%"));
    send("name=greeting&action=advance&stage=2").await.expect(303);
    let now = shelf(&gateway).await;
    assert_eq!((&now["live"], &now["rollout"]), (&json!("v2"), &Value::Null), "the last stage has no time");
    send("name=greeting&action=advance&stage=2").await.expect(409);

    let plan = json!({ "version": "v1", "at": "2999-01-31T08:00:00Z" });
    post(&gateway, "/api/prompts/greeting/deploy", &plan).await.expect(200);
    assert!(page().await.contains("Plan absagen"));
    send("name=greeting&action=call_off").await.expect(303);
    assert_eq!(shelf(&gateway).await["scheduled"], Value::Null);
    assert!(!page().await.contains("Plan absagen"));
    let sorry = send("name=greeting&action=call_off").await.expect(409).text();
    assert!(sorry.contains("Das wurde nicht getan."), "{sorry}");
}

#[tokio::test]
async fn who_may_only_look_is_shown_a_roll_out_without_its_buttons_and_figures_without_the_texts() {
    const VIEWER: &str = "viewer-token-0123456789abcdef";
    const OPERATOR: &str = "operator-token-0123456789abcdef";
    let upstream = Upstream::run().await;
    let tokens = format!(
        r#"{{ listen: "127.0.0.1:0", admin: "127.0.0.1:0", admin_tokens: [ {{ name: vera, secret: "{VIEWER}", role: viewer }},
             {{ name: otto, secret: "{OPERATOR}", role: operator }} ] }}"#
    );
    let versions = "live: v1, versions: { v1: { target: upstream/m }, v2: { target: upstream/n } }";
    let gateway = Gateway::before(&upstream).top("server", &tokens).entry("models", "support", versions).run().await;
    let rollout = json!({ "version": "v2", "rollout": { "stages": ["10%", "100%"] } });
    let deploy = Call::new(gateway.admin, "POST", "/api/models/support/deploy").key(OPERATOR);
    deploy.json(&rollout).send().await.expect(200);
    let shown = |path: &'static str, token: &str| Call::new(gateway.admin, "GET", path).key(token).send_owned();

    let (seen, operated) = (shown("/models", VIEWER).await.text(), shown("/models", OPERATOR).await.text());
    assert!(seen.contains("Roll-out from v1 to v2") && !seen.contains("method=\"post\""), "{seen}");
    assert!(operated.contains("On to 100%") && operated.contains("Abort the roll-out"), "{operated}");
    let compare = "/models/compare?name=support&from=v1&to=v2";
    let (seen, operated) = (shown(compare, VIEWER).await.expect(200), shown(compare, OPERATOR).await.expect(200));
    assert!(
        !seen.text().contains("upstream&#x2f;n") && operated.text().contains("<ins>upstream&#x2f;n</ins>"),
        "{}",
        operated.text()
    );
    let forbidden = Call::new(gateway.admin, "POST", "/models").key(VIEWER);
    let form = "name=support&action=advance&stage=1";
    forbidden.body("application/x-www-form-urlencoded", form).send().await.expect(403);
}
