//! Who may call: keys in three headers, never forwarded, never shown; refusals in the dialect of the endpoint.

use serde_json::{Value, json};

use crate::support::{Call, Dice, Gateway, KEY, PROVIDER_KEY, RawClient, Reply, Upstream, closed_port};

const OTHER: &str = "tg-test-other-ffffffffffffffffffffffffffffffff";

#[tokio::test]
async fn a_key_is_taken_from_each_of_three_headers_and_never_forwarded() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::transparent(&upstream).run().await;
    let bearer = format!("Bearer {KEY}");

    for (name, value) in [
        ("authorization", bearer.as_str()),
        ("x-api-key", KEY),
        ("api-key", KEY),
        ("Authorization", &bearer.replace("Bearer", "bearer")),
    ] {
        let body = json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]});
        gateway.post("/v1/chat/completions").header(name, value).json(&body).send().await.expect(200);

        let heard = upstream.next_request().await;
        assert_eq!(heard.headers.all("authorization"), [format!("Bearer {PROVIDER_KEY}")], "key in {name}");
        assert!(!String::from_utf8_lossy(&heard.raw_head).contains(KEY), "key in {name} was forwarded");
    }
}

#[tokio::test]
async fn a_wrong_or_missing_key_is_refused_alike_in_openais_shape() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::transparent(&upstream).run().await;
    let almost = format!("{}0", &KEY[..KEY.len() - 1]);
    let long = "k".repeat(9000);
    let injected = "' OR 1=1; --";

    let mut bodies = Vec::new();
    for key in [almost.as_str(), OTHER, &long, injected, "sha256:00", "", "\u{e9}"] {
        let refused =
            gateway.post("/v1/chat/completions").key(key).json(&json!({"model": "m", "messages": []})).send().await;
        let refused = refused.expect(401);
        assert_eq!(refused.error_code(), "invalid_api_key", "{key}");
        assert_eq!(
            refused.header("content-type").map(|kind| kind.split(';').next().unwrap()),
            Some("application/json")
        );
        assert!(
            refused.json()["error"]["message"].is_string() && refused.json()["error"].get("param").is_some(),
            "{}",
            refused.text()
        );
        bodies.push(refused.body);
    }
    let missing = gateway.post("/v1/chat/completions").json(&json!({})).send().await.expect(401);

    assert_eq!(missing.error_code(), "invalid_api_key");
    assert!(bodies[..2].windows(2).all(|pair| pair[0] == pair[1]), "unknown keys can be told apart");
    assert_eq!(upstream.request_count(), 0);
}

#[tokio::test]
async fn messages_refuses_in_anthropics_shape() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::transparent(&upstream).run().await;

    let refused =
        gateway.post("/v1/messages").header("x-api-key", OTHER).json(&json!({})).send().await.expect(401).json();

    assert_eq!(refused["type"], "error");
    assert_eq!(refused["error"]["type"], "authentication_error");
    assert!(refused["error"]["message"].is_string(), "{refused}");
}

#[tokio::test]
async fn a_model_outside_the_keys_list_is_refused() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::bare()
        .upstream(&upstream)
        .top("default_provider", "upstream")
        .model("support", "target: upstream/gpt-4o-mini")
        .model("secret", "target: upstream/gpt-4o-mini")
        .key("narrow", KEY, ", models: [support]")
        .key("wide", OTHER, r#", models: [support, "upstream/*"]"#)
        .run()
        .await;

    gateway.hello("support").send().await.expect(200);
    for model in ["secret", "upstream/gpt-4o-mini", "gpt-4o-mini", "Support", "support "] {
        let refused = gateway.hello(model).send().await;
        assert!(matches!(refused.status, 403 | 404), "{model}: {} {}", refused.status, refused.text());
    }
    assert_eq!(gateway.hello("secret").send().await.expect(403).error_code(), "model_not_allowed");
    let body = json!({"model": "secret", "max_tokens": 5, "messages": []});
    let refused = gateway.post("/v1/messages").header("x-api-key", KEY).json(&body).send().await.expect(403).json();
    assert_eq!((&refused["type"], &refused["error"]["type"]), (&json!("error"), &json!("permission_error")));

    let body = json!({"model": "upstream/anything", "messages": [{"role": "user", "content": "hi"}]});
    gateway.post("/v1/chat/completions").key(OTHER).json(&body).send().await.expect(200);
    assert_eq!(upstream.request_count(), 2);
}

#[tokio::test]
async fn the_list_of_models_is_what_the_key_may_name() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::bare()
        .upstream(&upstream)
        .model("support", "target: upstream/gpt-4o-mini")
        .model("secret", "target: upstream/gpt-4o-mini")
        .key("narrow", KEY, ", models: [support]")
        .run()
        .await;

    let listed = gateway.get("/v1/models").key(KEY).send().await.expect(200).json();

    assert_eq!(listed["object"], "list");
    let names: Vec<_> = listed["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["support"]);
    assert_eq!(listed["data"][0]["object"], "model");
    gateway.get("/v1/models").send().await.expect(401);
}

#[tokio::test]
async fn an_unknown_provider_is_a_model_not_found() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::bare().upstream(&upstream).key("dev", KEY, "").run().await;

    for model in ["nowhere/gpt-4o", "gpt-4o"] {
        assert_eq!(gateway.hello(model).send().await.expect(404).error_code(), "model_not_found", "{model}");
    }
    assert_eq!(upstream.request_count(), 0);
}

#[tokio::test]
async fn canaries_in_credential_headers_show_up_nowhere() {
    let upstream = Upstream::run().await;
    let redirect =
        Reply::bodyless(302).header("location", "http://127.0.0.1:1/v1/stolen").header("content-length", "0");
    let gateway = Gateway::before(&upstream)
        .provider_at("gone", &closed_port().await)
        .top("auth", "required")
        .env("RUST_LOG", "debug")
        .run()
        .await;
    let canaries = ["authorization", "x-api-key", "api-key", "proxy-authorization", "cookie", "x-goog-api-key"];

    // What a client may send by mistake beside its valid key, and what an attacker tries instead of one.
    for name in canaries {
        let canary = format!("CANARY-{name}");
        let body = json!({"model": "upstream/m", "messages": [{"role": "user", "content": "hi"}]});
        gateway.post("/v1/chat/completions").header(name, &canary).json(&body).send().await;
        if !["authorization", "x-api-key", "api-key"].contains(&name) {
            gateway.hello("upstream/m").header(name, &canary).send().await;
            gateway.hello("gone/m").header(name, &canary).send().await.expect(502);
        }
    }
    upstream.script(redirect);
    let redirected = gateway.hello("upstream/m").send().await;
    upstream.script(Reply::json(
        401,
        &json!({"error": {"message": "bad key", "type": "x", "param": null, "code": "invalid_api_key"}}),
    ));
    gateway.hello("upstream/m").send().await.expect(401);

    assert!(!redirected.text().contains(PROVIDER_KEY));
    let metrics = gateway.metrics().await.text;
    let budgets = gateway.admin_get("/api/budgets").await.text();
    for (place, text) in [("log", gateway.log_text()), ("metrics", metrics), ("admin API", budgets)] {
        for secret in ["CANARY-", KEY, PROVIDER_KEY] {
            assert!(!text.contains(secret), "{secret} is in the {place}");
        }
    }
    for request in upstream.requests() {
        let head = String::from_utf8_lossy(&request.raw_head).into_owned();
        assert!(!head.contains("CANARY-") && !head.contains(KEY), "a client's credential was forwarded: {head}");
    }
}

#[tokio::test]
async fn the_admin_api_is_not_on_the_client_listener() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::before(&upstream).run().await;

    for path in ["/metrics", "/api/budgets", "/api/openapi.json", "/"] {
        let refused = gateway.get(path).key(KEY).send().await;
        assert!(matches!(refused.status, 401 | 404), "{path}: {}", refused.status);
        assert!(!refused.text().contains("tollgate_requests_total"), "{path}");
    }
    assert_eq!(Call::new(gateway.admin, "GET", "/v1/models").key(KEY).send().await.status, 404);
}

#[tokio::test]
async fn organization_endpoints_are_refused_unless_allowed() {
    let upstream = Upstream::run().await;
    let closed = Gateway::before(&upstream).run().await;
    let open = Gateway::transparent(&upstream).run().await;

    let refused = closed.get("/v1/organization/users").key(KEY).send().await;
    assert!(matches!(refused.status, 403 | 404), "{} {}", refused.status, refused.text());
    assert_eq!(upstream.request_count(), 0);
    open.get("/v1/organization/users").key(KEY).send().await.expect(200);
}

#[tokio::test]
async fn without_auth_anyone_on_loopback_may_call() {
    let upstream = Upstream::run().await;
    let gateway =
        Gateway::bare().upstream(&upstream).top("default_provider", "upstream").top("auth", "none").run().await;

    let body: Value = json!({"model": "upstream/m", "messages": [{"role": "user", "content": "hi"}]});
    gateway.post("/v1/chat/completions").json(&body).send().await.expect(200);

    assert_eq!(upstream.next_request().await.headers.all("authorization"), [format!("Bearer {PROVIDER_KEY}")]);
}

#[tokio::test]
async fn no_fuzzed_host_path_or_key_gets_in() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::transparent(&upstream).run().await;
    let mut dice = Dice::seeded(5);
    let hosts = ["gateway", "127.0.0.1", "localhost:1", "[::1]", "admin", "a..b", "%00", "a,b", "", "*"];
    let paths = [
        "/v1/chat/completions",
        "/v1/models",
        "/healthz/../v1/models",
        "/readyz/%2e%2e/v1/models",
        "/V1/models",
        "/v1//models",
        "http://x/v1/models",
        "/v1/models;/healthz",
        "/healthz?/v1/models",
    ];
    let schemes = ["Bearer ", "bearer", "Basic ", "", "Bearer  ", "Token ", "Bearer\t", "sha256:"];
    let keys = [
        &KEY[..KEY.len() - 1],
        &KEY.to_uppercase(),
        &format!("{KEY} "),
        &format!("{KEY},{KEY}"),
        &format!("x{KEY}"),
        "null",
        "undefined",
        "*",
        "' or ''='",
        "../../key",
    ]
    .map(str::to_owned);

    for _ in 0..1000 {
        let key: &str = &keys[dice.below(keys.len())];
        // A trailing space is no part of a header's value: with it the key is right.
        let key = if key.trim_end() == KEY { "wrong" } else { key };
        let (method, path) = (dice.pick(&["GET", "POST", "HEAD", "get", "OPTIONS"]), dice.pick(&paths));
        let (host, header, scheme) =
            (dice.pick(&hosts), dice.pick(&["authorization", "x-api-key", "api-key"]), dice.pick(&schemes));
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {host}\r\n{header}: {scheme}{key}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        );

        let mut client = RawClient::connect(gateway.listen).await;
        client.send(&request).await;
        if let Some(response) = client.response_to(method).await {
            let health = path.starts_with("/healthz?");
            assert!(response.status >= 400 || health, "{} for {request:?}", response.status);
        }
    }
    assert_eq!(upstream.request_count(), 0);
}
