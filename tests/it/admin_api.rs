//! The admin API as a whole: who may do what, browsers' sessions, pages of lists, keys, the audit log, and that no secret is in
//! any of its answers. What budgets do there is in `budgets_admin`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::{
    Call, DEADLINE, Gateway, KEY, PROVIDER_KEY, RawClient, Response, Upstream, eventually, gateway::Setup, wait_until,
};

const VIEWER: &str = "viewer-token-0123456789abcdef";
const OPERATOR: &str = "operator-token-0123456789abcdef";
const ADMIN: &str = "admin-token-0123456789abcdef";

/// With a token of each role.
fn with_roles(upstream: &Upstream) -> Setup {
    Gateway::before(upstream)
        .top(
            "server",
            r#"{ listen: "127.0.0.1:0", admin: "127.0.0.1:0", admin_token: "${ADMIN}", admin_tokens: [
                 { name: vera, secret: "${VIEWER}", role: viewer }, { name: otto, secret: "${OPERATOR}", role: operator } ] }"#,
        )
        .env("ADMIN", ADMIN)
        .env("VIEWER", VIEWER)
        .env("OPERATOR", OPERATOR)
}

#[track_caller]
fn problem(response: &Response, status: u16) -> String {
    assert_eq!(response.status, status, "{}", response.text());
    assert_eq!(response.header("content-type"), Some("application/problem+json"));
    response.json()["detail"].as_str().expect("a detail").to_owned()
}

fn link(response: &Response) -> Option<String> {
    let link = response.header("link")?.strip_prefix('<')?.strip_suffix(">; rel=\"next\"")?;
    Some(link.to_owned())
}

// === roles ===

/// What a role gets where it may not; where it may, anything else.
const REFUSED: [u16; 2] = [401, 403];

#[tokio::test]
async fn each_operation_is_open_to_its_roles_and_to_nobody_else() {
    let upstream = Upstream::run().await;
    let gateway = with_roles(&upstream).top("records", "sqlite").run().await;
    let described = Call::new(gateway.admin, "GET", "/api/openapi.json").key(VIEWER).send().await.expect(200).json();
    let beside = [("get", "/metrics"), ("get", "/api/openapi.json"), ("get", "/api/nothing"), ("post", "/api/nothing")];
    let mut operations: Vec<(String, String, String)> =
        beside.map(|(method, path)| (method.into(), path.into(), String::new())).to_vec();
    for (path, item) in described["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("operations") {
            let said = operation["description"].as_str().expect("a description").to_owned();
            operations.push((method.clone(), path.clone(), said));
        }
    }
    assert!(operations.len() > 20, "{operations:?}");

    for (at, (method, path, said)) in operations.into_iter().enumerate() {
        let least = match (method.as_str(), path.as_str()) {
            (_, "/api/calls/{id}/bodies" | "/api/prompts/{name}" | "/api/keys/{name}") => 1,
            ("get", "/api/{kind}/{name}/diff" | "/api/evaluations/{id}") => 1,
            (
                "post",
                "/api/keys"
                | "/api/evaluations"
                | "/api/prompts/{name}/render"
                | "/api/budgets/{name}/reclaim"
                | "/api/budgets/{name}/credit",
            ) => 1,
            ("get", _) => 0,
            (_, path) if path.starts_with("/api/{kind}/{name}/") || path.starts_with("/api/experiments") => 1,
            _ => 2,
        };
        if !said.is_empty() {
            let role = ["viewer", "operator", "admin"][least];
            assert!(said.ends_with(&format!("Role: `{role}`.")), "{method} {path} says: {said}");
        }
        let target = path.replace("{kind}", "models").replace("{name}", "none").replace("{id}", "none");
        let call = || Call::new(gateway.admin, &method.to_uppercase(), &target).json(&json!({}));
        assert_eq!(call().send().await.status, 401, "{method} {path} without a token");
        // Wrong tokens are counted: after twenty of them nobody looks any more.
        if at % 3 == 0 {
            assert_eq!(call().key(KEY).send().await.status, 401, "{method} {path} with a client's key");
        }
        for (rank, token) in [VIEWER, OPERATOR, ADMIN].into_iter().enumerate() {
            let status = call().key(token).send().await.status;
            match rank >= least {
                true => assert!(!REFUSED.contains(&status), "{method} {path} as {token}: {status}"),
                false => assert_eq!(status, 403, "{method} {path} as {token}"),
            }
        }
    }
    for path in ["/healthz", "/readyz", "/login", "/assets/app.css"] {
        Call::new(gateway.admin, "GET", path).send().await.expect(200);
    }
}

#[tokio::test]
async fn who_guesses_tokens_is_made_to_wait_and_sessions_go_on() {
    let upstream = Upstream::run().await;
    let gateway = with_roles(&upstream).run().await;
    let session = sign_in(&gateway, OPERATOR).await;

    let guesses = (0..60).map(|n| Call::new(gateway.admin, "GET", "/api/session").key(&format!("guess-{n}")));
    let answers = Call::send_all(gateway.admin, &guesses.collect::<Vec<_>>()).await;
    let count = |status: u16| answers.iter().filter(|answer| answer.status == status).count();
    assert!((20..30).contains(&count(401)), "{} were looked at", count(401));
    assert_eq!(count(401) + count(429), 60);
    let limited = answers.last().expect("sixty");
    problem(limited, 429);
    assert!(limited.header("retry-after").and_then(|wait| wait.parse::<u64>().ok()).is_some_and(|wait| wait > 0));
    let form = Call::new(gateway.admin, "POST", "/login").body("application/x-www-form-urlencoded", "token=guess");
    form.send().await.expect(429);
    assert_eq!(session.get("/api/session").send().await.expect(200).json()["name"], "otto");
    assert!(!gateway.log_text().contains("guess-"));
}

#[tokio::test]
async fn tokens_come_and_go_with_the_configuration() {
    let upstream = Upstream::run().await;
    let setup = with_roles(&upstream);
    let text = setup.text();
    let gateway = setup.run().await;
    let session = sign_in(&gateway, VIEWER).await;
    session.get("/api/session").send().await.expect(200);

    gateway.replace_config(&text.replace("role: viewer", "role: operator"));
    let role = || async { session.get("/api/session").send().await.json()["role"].clone() };
    eventually("a session has the role that its token has now", DEADLINE, role, |role| role == "operator").await;

    gateway.replace_config(&text.replace(r#"{ name: vera, secret: "${VIEWER}", role: viewer },"#, ""));
    let status = || async { session.get("/api/session").send().await.status };
    eventually("a session ends with its token", DEADLINE, status, |status| *status == 401).await;
    Call::new(gateway.admin, "GET", "/api/session").key(OPERATOR).send().await.expect(200);
}

// === browsers ===

struct Browser<'g> {
    gateway: &'g Gateway,
    cookie: String,
    csrf: String,
}

impl Browser<'_> {
    fn call(&self, method: &str, path: &str) -> Call {
        Call::new(self.gateway.admin, method, path).header("cookie", &self.cookie)
    }

    fn get(&self, path: &str) -> Call {
        self.call("GET", path)
    }
}

fn login(gateway: &Gateway, form: &str) -> Call {
    Call::new(gateway.admin, "POST", "/login")
        .header("origin", &format!("http://{}", gateway.admin))
        .header("sec-fetch-site", "same-origin")
        .body("application/x-www-form-urlencoded", form)
}

fn cookie_of(response: &Response) -> String {
    let cookie = response.header("set-cookie").expect("a cookie");
    cookie.split(';').next().expect("its name and value").to_owned()
}

async fn sign_in<'g>(gateway: &'g Gateway, token: &str) -> Browser<'g> {
    let response = login(gateway, &format!("token={token}&next=%2Fcalls")).send().await.expect(303);
    assert_eq!(response.header("location"), Some("/calls"));
    let cookie = cookie_of(&response);
    let shown = Call::new(gateway.admin, "GET", "/api/session").header("cookie", &cookie).send().await.expect(200);
    let csrf = shown.json()["csrf"].as_str().expect("a second text").to_owned();
    Browser { gateway, cookie, csrf }
}

#[tokio::test]
async fn a_browser_signs_in_and_out() {
    let upstream = Upstream::run().await;
    let gateway = with_roles(&upstream).run().await;

    let page = Call::new(gateway.admin, "GET", "/?a=b").header("accept", "text/html,*/*").send().await.expect(303);
    assert_eq!(page.header("location"), Some("/login?next=%2F%3Fa%3Db"));
    let page = Call::new(gateway.admin, "GET", "/login?next=%2F%22%3E%3Cscript%3E").send().await.expect(200);
    assert!(page.text().contains("value=\"&#x2f;&quot;&gt;&lt;script&gt;\""), "{}", page.text());
    let german = Call::new(gateway.admin, "GET", "/login").header("accept-language", "de-AT, en;q=0.5");
    assert!(german.send().await.expect(200).text().contains(">Anmelden</button>"));
    let policy = page.header("content-security-policy").expect("a policy");
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
    let wrong = login(&gateway, "token=nonsense&next=%2F").send().await.expect(401);
    assert!(wrong.text().contains("not known") && wrong.header("set-cookie").is_none());
    let wrong = login(&gateway, "token=nonsense&next=%2F&lang=de").send().await.expect(401);
    assert!(wrong.text().contains("nicht bekannt") && wrong.text().contains("name=\"lang\" value=\"de\""));
    login(&gateway, "next=%2F").send().await.expect(422);

    let response = login(&gateway, &format!("token={OPERATOR}&next=%2F%2Fevil.example")).send().await.expect(303);
    assert_eq!(response.header("location"), Some("/"));
    let cookie = response.header("set-cookie").expect("a cookie");
    for part in ["HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=43200"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert!(!cookie.contains("Secure") && !cookie.contains("Domain"), "{cookie}");
    let tls = login(&gateway, &format!("token={OPERATOR}")).header("x-forwarded-proto", "https").send().await;
    let cookie = tls.header("set-cookie").expect("a cookie");
    assert!(cookie.starts_with("__Host-") && cookie.ends_with("; Secure"), "{cookie}");

    let browser = sign_in(&gateway, OPERATOR).await;
    let who = browser.get("/api/session").send().await.expect(200).json();
    assert_eq!((&who["name"], &who["role"]), (&json!("otto"), &json!("operator")));
    let out =
        browser.call("POST", "/logout").body("application/x-www-form-urlencoded", format!("csrf={}", browser.csrf));
    let out = out.send().await.expect(303);
    assert!(out.header("set-cookie").is_some_and(|cookie| cookie.contains("Max-Age=0")));
    problem(&browser.get("/api/session").send().await, 401);
    for secret in [OPERATOR, browser.cookie.split('=').nth(1).expect("an id"), browser.csrf.as_str()] {
        assert!(!gateway.log_text().contains(secret));
    }
}

#[tokio::test]
async fn nobody_plants_a_session() {
    let upstream = Upstream::run().await;
    let gateway = with_roles(&upstream).run().await;
    let planted = format!("tollgate_session={}", "0".repeat(64));
    problem(&Call::new(gateway.admin, "GET", "/api/session").header("cookie", &planted).send().await, 401);

    let before = sign_in(&gateway, VIEWER).await;
    let again = login(&gateway, &format!("token={OPERATOR}")).header("cookie", &before.cookie).send().await.expect(303);
    let cookie = cookie_of(&again);

    assert!(cookie != before.cookie && cookie != planted);
    problem(&before.get("/api/session").send().await, 401);
    problem(&Call::new(gateway.admin, "GET", "/api/session").header("cookie", &planted).send().await, 401);
    // A wrong token beside a good session is a wrong token.
    let both = Call::new(gateway.admin, "GET", "/api/session").header("cookie", &cookie);
    problem(&both.clone().key("nonsense").send().await, 401);
    both.send().await.expect(200);
}

#[tokio::test]
async fn no_other_sites_page_changes_anything_in_a_session() {
    let upstream = Upstream::run().await;
    let gateway = with_roles(&upstream).run().await;
    let browser = sign_in(&gateway, OPERATOR).await;
    let own = format!("http://{}", gateway.admin);
    let create = || browser.call("POST", "/api/keys").json(&json!({"name": "web"}));

    let csrf = browser.csrf.as_str();
    let wrong = csrf.replace(&csrf[..1], if csrf.starts_with('0') { "1" } else { "0" });
    let table: [&[(&str, &str)]; 7] = [
        &[],
        &[("x-tollgate-csrf", "")],
        &[("x-tollgate-csrf", &wrong), ("origin", &own)],
        &[("x-tollgate-csrf", csrf), ("origin", "https://evil.example")],
        &[("x-tollgate-csrf", csrf), ("origin", "null")],
        &[("x-tollgate-csrf", csrf), ("sec-fetch-site", "cross-site")],
        &[("x-tollgate-csrf", csrf), ("sec-fetch-site", "same-site"), ("origin", &own)],
    ];
    for headers in table {
        let call = headers.iter().fold(create(), |call, (name, value)| call.header(name, value));
        problem(&call.send().await, 403);
    }
    let form = format!("name=web&csrf={wrong}");
    let forged = browser.call("POST", "/api/keys").body("application/x-www-form-urlencoded", form);
    problem(&forged.send().await, 403);
    let listed = browser.get("/api/keys").send().await.expect(200).json();
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");

    let right = create().header("x-tollgate-csrf", csrf).header("origin", &own).header("sec-fetch-site", "same-origin");
    right.send().await.expect(201);
    let elsewhere = login(&gateway, &format!("token={OPERATOR}"));
    elsewhere.header("sec-fetch-site", "cross-site").send().await.expect(403);
}

#[tokio::test]
async fn a_loopback_listener_without_a_token_answers_no_page_of_another_name() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::before(&upstream).run().await;
    for (path, method) in [("/api/keys", "GET"), ("/api/session", "GET"), ("/api/audit", "GET"), ("/api/keys", "POST")]
    {
        for host in ["evil.example", "127.0.0.1.evil.example:9090"] {
            let mut client = RawClient::connect(gateway.admin).await;
            client.send(format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: 0\r\n\r\n")).await;
            problem(&client.response_to(method).await.expect("an answer"), 403);
        }
    }
    let forged = Call::new(gateway.admin, "POST", "/api/keys").header("origin", "https://evil.example");
    problem(&forged.json(&json!({"name": "web"})).send().await, 403);

    let who = gateway.admin_get("/api/session").await.expect(200).json();
    assert_eq!(who, json!({"name": "loopback", "role": "admin", "csrf": null}));
    assert_eq!(gateway.admin_get("/login?next=%2Fcalls").await.expect(303).header("location"), Some("/calls"));
}

// === calls and their sums ===

#[tokio::test]
async fn calls_are_listed_by_page_filtered_exported_and_summed_up() {
    let upstream = Upstream::run().await;
    let gateway = with_roles(&upstream).top("records", "sqlite").top("calls", "{ bodies: full }").run().await;
    for n in 0..5 {
        let tags = format!("n={n}");
        gateway.hello("upstream/m").user("ann").header("x-tollgate-tags", &tags).send().await.expect(200);
    }
    gateway.hello("upstream/m").user("b&b=c").send().await.expect(200);
    let get = |path: String| {
        let call = Call::new(gateway.admin, "GET", &path).key(VIEWER);
        async move { call.send().await }
    };
    let all = || async { get("/api/calls".to_owned()).await.expect(200).json().as_array().map(Vec::len) };
    eventually("the calls are in the log", DEADLINE, all, |count| *count == Some(6)).await;

    let (mut pages, mut next) = (Vec::new(), Some("/api/calls?user=ann&limit=2".to_owned()));
    while let Some(path) = next {
        let page = get(path).await.expect(200);
        pages.push(page.json().as_array().expect("a list").clone());
        next = link(&page);
    }
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);
    let tags: Vec<&Value> = pages.iter().flatten().map(|row| &row["tags"]["n"]).collect();
    assert_eq!(tags, [&json!("4"), &json!("3"), &json!("2"), &json!("1"), &json!("0")], "the latest first");
    let one = &pages[0][0];
    let id = one["id"].as_str().expect("an id");
    let mut alone = get(format!("/api/calls/{id}")).await.expect(200).json();
    assert_eq!(alone.as_object_mut().expect("a call").remove("feedback"), Some(json!([])), "what was said of it");
    assert_eq!(alone, *one);
    let exported = get("/api/calls/export?format=jsonl&user=ann".to_owned()).await.expect(200);
    assert_eq!(exported.header("content-type"), Some("application/x-ndjson"));
    let lines: Vec<Value> = exported.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines, pages.concat());
    let odd = get("/api/calls?user=b%26b%3Dc&since=1h&errors=false&outcome=ok".to_owned()).await.expect(200).json();
    assert_eq!(odd.as_array().map(Vec::len), Some(1));
    assert_eq!(get("/api/calls?tag=n%3D3".to_owned()).await.json()[0]["tags"]["n"], "3");

    problem(&get(format!("/api/calls/{id}/bodies")).await, 403);
    let bodies = Call::new(gateway.admin, "GET", &format!("/api/calls/{id}/bodies")).key(OPERATOR).send().await;
    assert!(bodies.expect(200).json()["request"]["text"].as_str().is_some_and(|text| text.contains("hello")));

    let usage = get("/api/usage?by=user&since=1h&bucket=1h".to_owned()).await.expect(200).json();
    let series: BTreeMap<&str, &Value> = usage["series"]
        .as_array()
        .expect("series")
        .iter()
        .map(|series| (series["value"].as_str().expect("a value"), series))
        .collect();
    assert_eq!(series["ann"]["total"]["calls"], 5, "{usage}");
    let points = series["ann"]["points"].as_array().expect("points");
    assert_eq!(points.iter().map(|point| point["calls"].as_u64().expect("a count")).sum::<u64>(), 5);
    assert!(series["ann"]["total"]["duration"]["p99_us"].as_u64().is_some_and(|us| us > 0), "{usage}");
    assert_eq!(get("/api/usage".to_owned()).await.json()["series"][0]["total"]["calls"], 6);
    let costs = get("/api/costs?by=key".to_owned()).await.expect(200).json();
    assert_eq!(
        (&costs["rows"][0]["calls"], &costs["forecast"]),
        (&json!(6), &Value::Null),
        "no whole day is known yet"
    );

    for wrong in ["limit=x", "users=ann", "since=yesterday", "tag=n", "outcome=fine", "format=csv", "limit=1&limit=2"] {
        problem(&get(format!("/api/calls?{wrong}")).await, 400);
    }
    problem(&get("/api/calls/nonsense".to_owned()).await, 404);
    problem(&get("/api/usage?by=colour".to_owned()).await, 400);
}

#[tokio::test]
async fn without_a_log_there_are_no_calls_to_show() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::before(&upstream).run().await;
    for path in ["/api/calls", "/api/calls/x", "/api/calls/x/bodies", "/api/calls/export", "/api/usage"] {
        assert!(problem(&gateway.admin_get(path).await, 404).contains("records"), "{path}");
    }
}

// === what the configuration makes of calls ===

#[tokio::test]
async fn models_prompts_experiments_and_providers_are_shown() {
    let upstream = Upstream::run().await;
    let gateway = with_roles(&upstream)
        .model("support", "target: upstream/m, prompt: assistant, parameters: { temperature: 0.2 }")
        .model("other", "target: upstream/n")
        .prompt("assistant", "system: \"You help {{ name }}.\"")
        .experiment(
            "tone",
            "model: support, unit: user, variants: { a: { weight: 1 }, b: { weight: 3, parameters: { top_p: 1 } } }",
        )
        .run()
        .await;
    let get = |path: &str, token: &str| {
        let call = Call::new(gateway.admin, "GET", path).key(token);
        async move { call.send().await }
    };

    let models = get("/api/models?limit=1", VIEWER).await.expect(200);
    assert_eq!(models.json()[0]["name"], "other");
    let rest = get(&link(&models).expect("another page"), VIEWER).await.expect(200);
    assert_eq!(link(&rest), None);
    let support = &rest.json()[0];
    assert_eq!(support["experiments"], json!(["tone"]));
    let version = &support["versions"][0];
    assert_eq!((&version["prompt"], &version["parameters"]), (&json!("assistant@v1"), &json!({"temperature": 0.2})));
    assert_eq!((&version["targets"][0]["target"], &version["targets"][0]["weight"]), (&json!("upstream/m"), &json!(1)));

    let prompts = get("/api/prompts", VIEWER).await.expect(200);
    assert!(!prompts.text().contains("You help"));
    assert_eq!(prompts.json()[0]["versions"][0]["required"], json!(["name"]));
    problem(&get("/api/prompts/assistant", VIEWER).await, 403);
    let texts = get("/api/prompts/assistant", OPERATOR).await.expect(200).json();
    assert_eq!(texts["versions"], json!({"v1": {"system": "You help {{ name }}."}}));
    problem(&get("/api/prompts/none", OPERATOR).await, 404);

    let experiments = get("/api/experiments", VIEWER).await.expect(200).json();
    assert_eq!((&experiments[0]["model"], &experiments[0]["unit"]), (&json!("support"), &json!("user")));
    assert_eq!(experiments[0]["variants"][1]["parameters"], json!({"top_p": 1}));
    let providers = get("/api/providers", VIEWER).await.expect(200).json();
    assert_eq!((&providers[0]["name"], &providers[0]["keys"]), (&json!("upstream"), &json!(1)));
    assert_eq!((&providers[0]["kind"], &providers[0]["circuit"]), (&json!("openai"), &json!("closed")));
}

// === keys and the audit log ===

#[tokio::test]
async fn a_key_is_made_used_listed_and_revoked() {
    let upstream = Upstream::run().await;
    let gateway = with_roles(&upstream).run().await;
    let create = |body: Value| Call::new(gateway.admin, "POST", "/api/keys").key(OPERATOR).json(&body);
    let wanted =
        json!({"name": "web", "team": "red", "models": ["upstream/*"], "tags": {"app": "web"}, "reason": "launch"});

    let made = create(wanted.clone()).send().await.expect(201).json();
    let secret = made["secret"].as_str().expect("shown once").to_owned();
    let again = create(wanted.clone()).send().await.expect(200).json();
    assert_eq!((&again["secret"], &again["key"]), (&Value::Null, &made["key"]), "nothing more was made");
    problem(&create(json!({"name": "web", "team": "blue"})).send().await, 409);
    assert!(problem(&create(json!({"name": "dev"})).send().await, 409).contains("configuration"));
    for wrong in [
        json!({"name": ""}),
        json!({"name": "a\nb"}),
        json!({"name": "x", "expires": "2001-01-01T00:00:00Z"}),
        json!({"name": "x", "expires": "tomorrow"}),
        json!({"name": "x", "models": [""]}),
        json!({"name": "x", "is_admin": true}),
        json!({"name": "x", "reason": "y".repeat(1001)}),
        json!({}),
    ] {
        problem(&create(wrong).send().await, 422);
    }
    let text = Call::new(gateway.admin, "POST", "/api/keys").key(OPERATOR).body("text/plain", "{}");
    problem(&text.send().await, 415);

    let call = || {
        let body = json!({"model": "upstream/m", "messages": [{"role": "user", "content": "hi"}]});
        let call = gateway.post("/v1/chat/completions").key(&secret).json(&body);
        async move { call.send().await.status }
    };
    eventually("the new key opens", DEADLINE, call, |status| *status == 200).await;
    let listed = Call::new(gateway.admin, "GET", "/api/keys").key(VIEWER).send().await.expect(200);
    let names: Vec<Value> = listed.json().as_array().expect("a list").iter().map(|key| key["name"].clone()).collect();
    assert_eq!(names, ["dev", "web"]);
    assert!(!listed.text().contains(&secret) && !listed.text().contains("sha256"), "{}", listed.text());

    let revoke = || Call::new(gateway.admin, "DELETE", "/api/keys/web?reason=left").key(OPERATOR);
    let revoked = revoke().send().await.expect(200).json();
    assert_eq!(revoked["state"], "revoked");
    assert_eq!(revoke().send().await.expect(200).json(), revoked, "nothing more happened");
    eventually("the key is refused", DEADLINE, call, |status| *status == 401).await;
    problem(&Call::new(gateway.admin, "DELETE", "/api/keys/none").key(OPERATOR).send().await, 404);
    problem(&Call::new(gateway.admin, "DELETE", "/api/keys/dev").key(OPERATOR).send().await, 409);

    let log = std::fs::read_to_string(gateway.data_dir().join("audit.jsonl")).unwrap();
    assert!(!log.contains(&secret) && !log.contains("sha256"), "{log}");
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let deeds: Vec<(&Value, &Value, &Value, &Value)> =
        lines.iter().map(|line| (&line["actor"], &line["action"], &line["subject"], &line["reason"])).collect();
    assert_eq!(
        deeds,
        [
            (&json!("otto"), &json!("keys.create"), &json!("web"), &json!("launch")),
            (&json!("otto"), &json!("keys.revoke"), &json!("web"), &json!("left")),
        ]
    );
}

#[tokio::test]
async fn every_change_is_in_the_audit_log_and_any_tampering_is_seen() {
    let upstream = Upstream::run().await;
    let setup = with_roles(&upstream);
    let text = setup.text();
    let gateway = setup.run().await;
    let audit = |query: &str| {
        let call = Call::new(gateway.admin, "GET", &format!("/api/audit{query}")).key(VIEWER);
        async move { call.send().await.expect(200) }
    };
    let command = |arguments: &[&str]| {
        let words = [arguments, &["--data-dir", "data"]].concat();
        gateway.command(&words).env("USER", "carla").output().unwrap()
    };
    let empty = audit("").await.json();
    assert_eq!((&empty["whole"], &empty["lines"], &empty["entries"]), (&json!(true), &json!(0), &json!([])));

    gateway.replace_config(&format!("{text}on_disconnect: drain\n"));
    let reloads = || async { audit("").await.json()["lines"].as_u64() };
    eventually("the reload is written down", DEADLINE, reloads, |count| *count == Some(1)).await;
    assert!(command(&["keys", "create", "--name", "web"]).status.success());
    assert!(command(&["keys", "revoke", "web"]).status.success());
    gateway.replace_config("nonsense: 1\n");
    let config =
        || async { Call::new(gateway.admin, "GET", "/api/config").key(VIEWER).send().await.expect(200).json() };
    let refused = eventually("a refusal is shown", DEADLINE, config, |config| config["refusal"].is_object()).await;
    assert!(refused["refusal"]["reason"].as_str().is_some_and(|reason| reason.contains("nonsense")), "{refused}");
    let reload = &refused["reloads"][0];
    assert_eq!((&reload["actor"], &reload["hash"]), (&json!("file"), &refused["hash"]));
    assert_eq!(refused["pushed"], Value::Null);

    let page = audit("?limit=2").await;
    let rows = page.json();
    let shown = |rows: &Value| -> Vec<(u64, String)> {
        let entries = rows["entries"].as_array().expect("entries").clone();
        entries
            .iter()
            .map(|row| (row["line"].as_u64().unwrap(), row["entry"]["action"].as_str().unwrap().to_owned()))
            .collect()
    };
    assert_eq!(shown(&rows), [(3, "keys.revoke".to_owned()), (2, "keys.create".to_owned())]);
    assert_eq!(rows["entries"][0]["entry"]["actor"], "carla (command line)");
    let rest = audit(link(&page).expect("another page").strip_prefix("/api/audit").unwrap()).await;
    assert_eq!((shown(&rest.json()), link(&rest)), (vec![(1, "config.reload".to_owned())], None));
    assert_eq!(shown(&audit("?action=keys.").await.json()).len(), 2);
    assert_eq!(shown(&audit("?subject=web&action=keys.create").await.json()).len(), 1);
    assert!(command(&["audit", "verify"]).status.success());

    let path = gateway.data_dir().join("audit.jsonl");
    let log = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = log.lines().collect();
    let changed = log.replacen("carla", "peter", 1);
    let removed = format!("{}\n{}\n", lines[0], lines[2]);
    let swapped = format!("{}\n{}\n{}\n", lines[1], lines[0], lines[2]);
    // As editors do: another file in its place. One that only grows is taken for one that was appended to.
    let put = |text: &str| {
        let beside = path.with_extension("new");
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(&beside, &path).unwrap();
    };
    for (tampered, line) in [(changed, 2), (removed, 2), (swapped, 1)] {
        put(&tampered);
        let shown = audit("").await.json();
        assert_eq!((&shown["whole"], &shown["broken"]["line"]), (&json!(false), &json!(line)), "{shown}");
        let output = command(&["audit", "verify"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains(&format!("line {line} of the audit log")));
    }
    put(&log);
    assert_eq!(audit("").await.json()["whole"], true);
    let listed = command(&["audit", "list", "--json"]);
    assert_eq!(String::from_utf8_lossy(&listed.stdout), log);
}

// === secrets ===

#[tokio::test]
async fn no_secret_is_in_any_answer() {
    let upstream = Upstream::run().await;
    let gateway = with_roles(&upstream)
        .top("records", "sqlite")
        .top("calls", "{ bodies: full }")
        .top("key_pepper", r#""${PEPPER}""#)
        .top("alerts", r#"{ webhook: "${HOOK}" }"#)
        .env("PEPPER", "CANARY-pepper")
        .env("HOOK", "http://127.0.0.1:1/CANARY-hook")
        .key("extra", "CANARY-configured-key-0123456789", "")
        .model("support", "target: upstream/m")
        .budget("name: all, scope: { team: red }, limit: 1 USD, per: month")
        .run()
        .await;
    let made = Call::new(gateway.admin, "POST", "/api/keys").key(ADMIN).json(&json!({"name": "web"})).send().await;
    let secret = made.expect(201).json()["secret"].as_str().expect("shown once").to_owned();
    let call = gateway.hello("support").header("x-api-key-2", "CANARY-header").send().await.expect(200);
    let id = call.header("x-tollgate-call").expect("an id").to_owned();
    let path = format!("/api/calls/{id}");
    let logged = || async { Call::new(gateway.admin, "GET", &path).key(ADMIN).send().await.status };
    eventually("the call is in the log", DEADLINE, logged, |status| *status == 200).await;
    let browser = sign_in(&gateway, ADMIN).await;
    gateway.replace_config(r#"nonsense: "CANARY-refused""#);
    wait_until("a refusal", DEADLINE, || gateway.log_text().contains("was refused")).await;

    let described = Call::new(gateway.admin, "GET", "/api/openapi.json").key(ADMIN).send().await.expect(200).json();
    let paths = described["paths"].as_object().expect("paths");
    let mut targets: Vec<String> =
        paths.iter().filter(|(_, item)| item.get("get").is_some()).map(|(path, _)| path.clone()).collect();
    targets.extend(["/metrics", "/login", "/api/nothing", "/api/calls?limit=CANARY"].map(str::to_owned));
    for target in targets {
        let target = target.replace("/calls/{id}", &format!("/calls/{id}")).replace("{name}", "all");
        let response = Call::new(gateway.admin, "GET", &target).key(ADMIN).send().await;
        let shown = format!("{:?}\n{}", response.headers, response.text());
        let session = browser.cookie.split('=').nth(1).expect("an id");
        for hidden in [KEY, PROVIDER_KEY, ADMIN, VIEWER, OPERATOR, &secret, session, "CANARY-"] {
            assert!(!shown.contains(hidden), "{hidden} is in {target}: {shown}");
        }
    }
}
