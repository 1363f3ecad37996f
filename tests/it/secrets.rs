//! Secrets: what is kept of keys, who is refused how, and the places where no credential may ever show up.

use std::{
    io::{BufRead as _, BufReader},
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{
    Call, DEADLINE, Gate, Gateway, KEY, PROVIDER_KEY, Reply, Response, Upstream, eventually,
    gateway::Setup,
    sha256,
    upstream::{chunk, openai},
    wire,
};

const PEPPER: &str = "pepper-0123456789abcdef0123456789abcdef";

/// Makes a key in the data directory of `gateway`.
fn create_key(gateway: &Gateway, name: &str) -> String {
    let output = gateway.command(&["keys", "create", "--name", name, "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let created: Value = serde_json::from_slice(&output.stdout).unwrap();
    created["secret"].as_str().expect("a secret").to_owned()
}

/// Waits until `key` is answered with `status`.
async fn answered(gateway: &Gateway, key: &str, status: u16) -> Response {
    eventually(
        "a key's change is taken up",
        Duration::from_secs(5),
        || gateway.get("/v1/models").key(key).send_owned(),
        |response| response.status == status,
    )
    .await
}

fn files_under(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_under(&path));
        }
        found.push(path);
    }
    found
}

/// A gateway with everything that leaves something on disk: a budget, a journal, a key store.
fn keeping(upstream: &Upstream) -> Setup {
    Gateway::before(upstream)
        .env("TOLLGATE_CONFIG", "tollgate.yaml")
        .budget("name: all, scope: { team: red }, limit: 10 USD, per: month")
}

// === what is kept ===

#[tokio::test]
async fn nothing_in_the_data_directory_tells_a_key() {
    let upstream = Upstream::run().await;
    for pepper in [None, Some(PEPPER)] {
        let setup = match pepper {
            Some(pepper) => keeping(&upstream).top("key_pepper", pepper),
            None => keeping(&upstream),
        };
        let gateway = setup.run().await;
        let stored = create_key(&gateway, "stored");
        answered(&gateway, &stored, 200).await;
        gateway.hello("upstream/m").send().await.expect(200);
        gateway.next_record().await;
        gateway.next_record().await;

        let files: Vec<_> = files_under(&gateway.data_dir()).into_iter().filter(|path| path.is_file()).collect();
        assert!(files.len() >= 2, "a key store and a ledger, not {files:?}");
        let mut sought = vec![stored.clone(), stored[3..].to_owned(), KEY.to_owned(), PROVIDER_KEY.to_owned()];
        if pepper.is_some() {
            // Without the pepper not even a guess of the key could be tested.
            sought.extend([PEPPER.to_owned(), sha256(stored.as_bytes())]);
        }
        for file in &files {
            let bytes = std::fs::read(file).unwrap();
            for secret in &sought {
                assert_eq!(wire::find(&bytes, secret.as_bytes()), None, "{secret} is in {}", file.display());
            }
        }
        if pepper.is_none() {
            let kept = |file: &PathBuf| {
                wire::find(&std::fs::read(file).unwrap(), sha256(stored.as_bytes()).as_bytes()).is_some()
            };
            assert!(files.iter().any(kept), "the search finds what is there: the key's hash");
        }
    }
}

#[tokio::test]
async fn the_hash_of_a_stored_key_is_no_key() {
    let upstream = Upstream::run().await;
    for setup in [keeping(&upstream), keeping(&upstream).top("key_pepper", PEPPER)] {
        let gateway = setup.run().await;
        let output = gateway.command(&["keys", "create", "--name", "web", "--json"]).output().unwrap();
        let created: Value = serde_json::from_slice(&output.stdout).unwrap();
        answered(&gateway, created["secret"].as_str().unwrap(), 200).await;

        let hash = created["hash"].as_str().unwrap();
        for presented in [hash, hash.split(':').nth(1).unwrap(), created["id"].as_str().unwrap()] {
            gateway.get("/v1/models").key(presented).send().await.expect(401);
        }
    }
}

#[tokio::test]
async fn what_the_gateway_writes_is_for_its_user_alone() {
    let upstream = Upstream::run().await;
    let gateway = keeping(&upstream).run().await;
    answered(&gateway, &create_key(&gateway, "stored"), 200).await;
    gateway.hello("upstream/m").send().await.expect(200);
    gateway.next_record().await;

    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&gateway.data_dir()), 0o700);
    for path in files_under(&gateway.data_dir()) {
        let expected = if path.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode(&path), expected, "{} is {:o}", path.display(), mode(&path));
    }
}

#[tokio::test]
async fn a_configuration_whose_secrets_everybody_can_read_is_warned_of() {
    let upstream = Upstream::run().await;
    let setup = Gateway::before(&upstream);
    std::fs::write(setup.config_path(), setup.text()).unwrap();
    let warned = |mode: u32| {
        std::fs::set_permissions(setup.config_path(), std::fs::Permissions::from_mode(mode)).unwrap();
        let output = setup.command(&["check", "tollgate.yaml"]).output().unwrap();
        [output.stdout, output.stderr].concat()
    };

    assert!(wire::find(&warned(0o644), b"chmod 600").is_some());
    assert!(wire::find(&warned(0o600), b"chmod 600").is_none());
}

#[tokio::test]
async fn no_secret_is_among_the_arguments_of_the_process() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::everything(&upstream).env("TOLLGATE_ADMIN_TOKEN", "CANARY-admin").run().await;

    let arguments = std::fs::read(format!("/proc/{}/cmdline", gateway.process_id())).unwrap();

    assert!(wire::find(&arguments, b"serve").is_some());
    for secret in [KEY, PROVIDER_KEY, "CANARY-admin"] {
        assert_eq!(wire::find(&arguments, secret.as_bytes()), None, "{secret}");
    }
    let help = gateway.command(&["serve", "--help"]).output().unwrap().stdout;
    for option in ["--key", "--token", "--secret", "--password"] {
        assert_eq!(wire::find(&help, option.as_bytes()), None, "{option} would put a secret there");
    }
}

#[test]
fn a_crash_leaves_no_core_with_the_keys_in_it() {
    let aborted = |script: &str, program: &Setup| {
        let mut command = Command::new("sh");
        command.args(["-c", script, env!("CARGO_BIN_EXE_tollgate")]).current_dir(program.directory());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        BufReader::new(child.stdout.take().expect("piped above")).read_line(&mut String::new()).unwrap();
        let killed = Command::new("sh").args(["-c", &format!("kill -ABRT {}", child.id())]).status().unwrap();
        assert!(killed.success());
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(6));
        status.core_dumped()
    };
    let setup = Gateway::bare().provider("sim", "kind: simulated").top("auth", "none");
    std::fs::write(setup.config_path(), setup.text()).unwrap();
    // Where even a shell leaves no core, nothing can be shown.
    if aborted("ulimit -c unlimited; echo ready; while :; do :; done", &setup) {
        assert!(!aborted("ulimit -c unlimited; exec \"$0\" serve --config tollgate.yaml", &setup));
    }
}

// === who is refused, and how ===

#[tokio::test]
async fn keys_with_sixty_equal_leading_characters_are_two_callers() {
    let upstream = Upstream::run().await;
    let key = |end: &str| format!("{}{end}", "k".repeat(60));
    let gateway = Gateway::bare()
        .upstream(&upstream)
        .key("first", &key("-1"), r#", models: ["upstream/a"]"#)
        .key("second", &key("-2"), r#", models: ["upstream/b"]"#)
        .run()
        .await;
    let call = |key: &str, model: &str| {
        let body = json!({"model": model, "messages": [{"role": "user", "content": "hi"}]});
        gateway.post("/v1/chat/completions").key(key).json(&body)
    };

    for _ in 0..3 {
        call(&key("-1"), "upstream/a").send().await.expect(200);
        call(&key("-2"), "upstream/b").send().await.expect(200);
        call(&key("-1"), "upstream/b").send().await.expect(403);
        call(&key("-2"), "upstream/a").send().await.expect(403);
        call(&key("-3"), "upstream/a").send().await.expect(401);
        call(&key(""), "upstream/a").send().await.expect(401);
    }
    let records = gateway.wait_for_records(18).await;
    let served = records.iter().filter(|record| record.text("outcome") == "ok").map(|record| record.text("key"));
    assert_eq!(served.collect::<Vec<_>>(), ["first", "second"].repeat(3));
}

/// Status, body and headers of a refusal, without what differs from call to call.
fn shape(response: &Response) -> (u16, String, Vec<(String, String)>) {
    let mut headers = response.headers.0.clone();
    headers.retain(|(name, _)| !["date", "x-tollgate-call"].contains(&name.to_ascii_lowercase().as_str()));
    (response.status, response.text(), headers)
}

/// The processor time of the gateway so far, in nanoseconds.
fn cpu_nanoseconds(gateway: &Gateway) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", gateway.process_id())).unwrap();
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok());
    stats.filter_map(|stat| stat.split(' ').next()?.parse::<u64>().ok()).sum()
}

fn welch_t(first: &[f64], second: &[f64]) -> f64 {
    let mean = |sample: &[f64]| sample.iter().sum::<f64>() / sample.len() as f64;
    let error = |sample: &[f64]| {
        let squares = sample.iter().map(|value| (value - mean(sample)).powi(2)).sum::<f64>();
        squares / (sample.len() - 1) as f64 / sample.len() as f64
    };
    (mean(first) - mean(second)).abs() / (error(first) + error(second)).sqrt()
}

#[tokio::test]
async fn unknown_wrong_and_revoked_keys_cannot_be_told_apart_by_what_they_get_or_cost() {
    const BATCHES: usize = 12;
    const BATCH: usize = 40;
    let upstream = Upstream::run().await;
    let gateway = keeping(&upstream).run().await;
    let revoked = create_key(&gateway, "gone");
    answered(&gateway, &revoked, 200).await;
    assert!(gateway.command(&["keys", "revoke", "gone"]).output().unwrap().status.success());
    let reference = shape(&answered(&gateway, &revoked, 401).await);
    let wrong = format!("{}x", &revoked[..revoked.len() - 1]);
    let unknown = "u".repeat(revoked.len());
    let endless = "e".repeat(5000);

    for key in [wrong.as_str(), &unknown, "short", &endless, "' OR ''='", "tg-"] {
        assert_eq!(shape(&gateway.get("/v1/models").key(key).send().await), reference, "{key}");
    }
    let (mut costs_revoked, mut costs_unknown) = (Vec::new(), Vec::new());
    for _ in 0..BATCHES {
        for (key, costs) in [(&revoked, &mut costs_revoked), (&unknown, &mut costs_unknown)] {
            let calls = vec![gateway.get("/v1/models").key(key); BATCH];
            let before = cpu_nanoseconds(&gateway);
            Call::send_all(gateway.listen, &calls).await;
            costs.push((cpu_nanoseconds(&gateway) - before) as f64 / BATCH as f64);
        }
    }
    let t = welch_t(&costs_revoked, &costs_unknown);
    assert!(t < 4.5, "t = {t}: {costs_revoked:?} {costs_unknown:?}");
}

#[tokio::test]
async fn an_empty_secret_or_an_open_door_refuses_to_start() {
    let upstream = Upstream::run().await;
    let good = || Gateway::before(&upstream).env("EMPTY", "").env("BLANK", " \t ");
    let open = |more: &str| format!(r#"{{ listen: "127.0.0.1:0", admin: "0.0.0.0:0"{more} }}"#);
    let local = |more: &str| format!(r#"{{ listen: "127.0.0.1:0", admin: "127.0.0.1:0"{more} }}"#);
    let cases = [
        ("no admin token", good().top("server", &open("")), "admin_token"),
        ("admin token unset", good().top("server", &open(r#", admin_token: "${NOT_SET:-}""#)), "admin_token"),
        ("admin token of length 0", good().top("server", &open(r#", admin_token: """#)), "admin_token"),
        (
            "admin token empty in the environment",
            good().top("server", &open(r#", admin_token: "${EMPTY}""#)),
            "admin_token",
        ),
        ("admin token of blanks", good().top("server", &open(r#", admin_token: "${BLANK}""#)), "admin_token"),
        ("blanks on loopback", good().top("server", &local(r#", admin_token: "${BLANK}""#)), "admin_token"),
        ("key of length 0", good().key("x", "", ""), "secret"),
        ("key of blanks", good().key("x", "${BLANK}", ""), "secret"),
        ("key empty in the environment", good().key("x", "${EMPTY}", ""), "secret"),
        ("hash of length 0", good().top("keys", "[ { name: x, hash: \"\" } ]"), "hash"),
        ("hash of nothing", good().top("keys", "[ { name: x, hash: \"sha256:\" } ]"), "hash"),
        ("pepper of blanks", good().top("key_pepper", "\"${BLANK}\""), "key_pepper"),
        ("pepper of length 0", good().top("key_pepper", "\"\""), "key_pepper"),
        ("provider key of blanks", good().provider("x", r#"kind: openai, api_key: "${BLANK}""#), "api_key"),
        ("provider key of length 0", good().provider("x", r#"kind: openai, api_key: """#), "api_key"),
        ("no provider keys", good().provider("x", "kind: openai, api_keys: []"), "api_keys"),
        ("an empty one of two", good().provider("x", r#"kind: openai, api_keys: [ a, "" ]"#), "api_keys"),
        (
            "everybody from everywhere",
            Gateway::bare().top("auth", "none").top("server", r#"{ listen: "0.0.0.0:0", admin: "127.0.0.1:0" }"#),
            "auth",
        ),
    ];
    for (what, setup, named) in cases {
        // A key of its own stands in `keys` already, where the case brings none.
        let text = if what.starts_with("hash") {
            setup.text().split("\nkeys:\n").next().unwrap().to_owned()
        } else {
            setup.text()
        };
        std::fs::write(setup.config_path(), text).unwrap();
        let mut child = setup
            .command(&["serve", "--config", "tollgate.yaml"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = String::new();
        BufReader::new(child.stdout.take().expect("piped above")).read_line(&mut first).unwrap();
        // Only a gateway that started says anything there.
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(first, "", "{what}: it started");
        assert_eq!(output.status.code(), Some(2), "{what}: {said}");
        assert!(said.contains(named), "{what}: {named} is not named in {said}");
    }
}

#[tokio::test]
async fn only_the_exact_admin_token_opens_the_admin_listener() {
    const TOKEN: &str = "admin-0123456789abcdef";
    let upstream = Upstream::run().await;
    let server = r#"{ listen: "127.0.0.1:0", admin: "127.0.0.1:0", admin_token: "${TOLLGATE_ADMIN_TOKEN}" }"#;
    let gateway = Gateway::before(&upstream).top("server", server).env("TOLLGATE_ADMIN_TOKEN", TOKEN).run().await;

    for path in ["/metrics", "/api/budgets", "/api/config"] {
        let get = || Call::new(gateway.admin, "GET", path);
        get().send().await.expect(401);
        for wrong in
            ["", " ", "Bearer", "Bearer ", "Bearer  ", "Bearer undefined", "Basic YWRtaW46", &format!("Bearer {KEY}")]
        {
            get().header("authorization", wrong).send().await.expect(401);
        }
        get().key(&TOKEN[..TOKEN.len() - 1]).send().await.expect(401);
        get().key(&format!("{TOKEN}x")).send().await.expect(401);
        get().key(TOKEN).send().await.expect(200);
    }
    gateway.get("/v1/models").key(TOKEN).send().await.expect(401);
    assert!(!gateway.log_text().contains(TOKEN));
}

#[tokio::test]
async fn a_web_page_that_points_its_name_at_loopback_reads_nothing() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::before(&upstream).run().await;

    for host in ["evil.example", "evil.example:9090", "127.0.0.1.evil.example", "localhost.evil.example"] {
        let mut client = crate::support::RawClient::connect(gateway.admin).await;
        client.send(format!("GET /metrics HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
        client.response_to("GET").await.unwrap().expect(403);
    }
    gateway.admin_get("/metrics").await.expect(200);
}

// === where no secret shows up ===

#[tokio::test]
async fn no_redirect_takes_a_providers_key_elsewhere() {
    let thief = Upstream::run().await;
    let upstream = Upstream::run().await;
    let gateway = Gateway::before(&upstream).top("routing", "{ attempts: 3, eject: off }").run().await;

    for status in [301, 302, 303, 307, 308, 300, 305] {
        for location in [format!("{}/v1/chat/completions", thief.url()), thief.url().replace("http:", "")] {
            let redirect = Reply::json(status, &json!({})).header("location", &location).header("refresh", &location);
            for call in
                [gateway.hello("upstream/m"), gateway.hello_stream("upstream/m"), gateway.get("/v1/files").key(KEY)]
            {
                upstream.script(redirect.clone());
                let response = call.send().await;
                assert_eq!(response.status, status, "passed as it came");
            }
        }
    }
    assert_eq!(thief.request_count(), 0, "a redirect was followed");
    assert_eq!(upstream.request_count(), 7 * 2 * 3, "a redirect was asked again");
}

/// What the providers of the canary test do, by the model that is asked for.
fn misbehave(request: &crate::support::upstream::Request, thief: &str, gate: &Gate) -> Reply {
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    match body["model"].as_str().unwrap_or_default() {
        "refuses" => Reply::json(401, &json!({"error": {"message": "no", "type": "t", "param": null, "code": "c"}})),
        "fails" => Reply::json(500, &json!({"error": {"message": "no", "type": "t", "param": null, "code": "c"}})),
        "redirects" => Reply::json(307, &json!({})).header("location", thief),
        "hangs" => Reply::hang(),
        "resets" => Reply::raw("").reset(),
        "babbles" => Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: nonsense\r\n\r\n"),
        "cuts" => Reply::stream().data(chunk("one")).cut(),
        "stalls" => Reply::stream().data(chunk("one")).gate(gate),
        _ => openai(request),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_canary_shows_up_in_logs_metrics_or_bodies_even_with_everything_logged() {
    const HEADERS: [&str; 10] = [
        "authorization",
        "x-api-key",
        "api-key",
        "x-goog-api-key",
        "proxy-authorization",
        "cookie",
        "x-tollgate-vars",
        "x-tollgate-session",
        "x-tollgate-user",
        "x-auth-token",
    ];
    let keys = ["sk-CANARY-provider-one", "sk-CANARY-provider-two"];
    let thief = Upstream::run().await;
    let gate = Gate::closed();
    let (location, held) = (thief.url(), gate.clone());
    let one = Upstream::answering(move |request| misbehave(request, &location, &held)).await;
    let (location, held) = (thief.url(), gate.clone());
    let two = Upstream::answering(move |request| misbehave(request, &location, &held)).await;
    let gateway = Gateway::bare()
        .provider("one", &format!(r#"kind: openai, base_url: "{}/v1", api_key: "${{ONE}}""#, one.url()))
        .provider("two", &format!(r#"kind: openai, base_url: "{}/v1", api_key: "${{TWO}}""#, two.url()))
        .model("both", "target: one/fails, fallbacks: [ two/m ]")
        .top("default_provider", "one")
        .top("routing", "{ attempts: 2, eject: off, timeouts: { first_byte: 300ms, idle: 300ms } }")
        .key("dev", "CANARY-client-key", ", team: red")
        .budget("name: all, scope: { team: red }, limit: 1000 USD, per: month")
        .env("ONE", keys[0])
        .env("TWO", keys[1])
        .env("TOLLGATE_LOG", "trace,hyper=trace,hyper_util=trace,h2=trace,rustls=trace,tokio=trace,mio=trace")
        .run()
        .await;

    let models = [
        "one/m",
        "two/m",
        "both",
        "one/refuses",
        "two/fails",
        "one/redirects",
        "two/hangs",
        "one/resets",
        "two/babbles",
        "one/cuts",
        "two/stalls",
        "nowhere/m",
    ];
    let mut calls = Vec::new();
    for model in models {
        for stream in [false, true] {
            let body =
                json!({"model": model, "stream": stream, "messages": [{"role": "user", "content": "CANARY-said"}]});
            let call = gateway.post("/v1/chat/completions?key=CANARY-query").key("CANARY-client-key").json(&body);
            let beside = HEADERS[3..]
                .iter()
                .fold(call.clone(), |call, name| call.header(name, &format!("{{\"CANARY\":\"{name}\"}}")));
            calls.extend([call, beside]);
        }
    }
    for name in HEADERS {
        let body = json!({"model": "one/m", "messages": []});
        calls.push(gateway.post("/v1/chat/completions").header(name, &format!("CANARY-{name}")).json(&body));
        calls.push(gateway.get("/v1/CANARY-path/x").header(name, &format!("CANARY-{name}")));
        calls.push(
            gateway
                .post("/v1/messages")
                .header(name, &format!("Bearer CANARY-{name}"))
                .body("application/json", "{CANARY"),
        );
        let upgrade =
            gateway.get("/v1/realtime?model=m").header("connection", "upgrade").header("upgrade", "websocket");
        calls.push(upgrade.header(name, &format!("CANARY-{name}")));
    }
    let responses = futures_util::future::join_all(calls.iter().map(|call| call.send())).await;
    let metrics = gateway.metrics().await.text;
    let budgets = gateway.admin_get("/api/budgets").await.text();
    let config = gateway.admin_get("/api/config").await.text();
    eventually(
        "all are finished",
        DEADLINE,
        || gateway.metrics(),
        |metrics| metrics.value("tollgate_in_flight", &[]) == 0.0,
    )
    .await;

    let log = gateway.log_text();
    for level in ["TRACE", "DEBUG"] {
        assert!(log.contains(&format!("\"level\":\"{level}\"")), "{level} is not logged at all");
    }
    assert!(
        responses.iter().any(|response| response.status == 200)
            && responses.iter().any(|response| response.status == 504)
    );
    for (place, text) in [("log", &log), ("metrics", &metrics), ("budgets", &budgets), ("config", &config)] {
        let hit = text.lines().find(|line| line.contains("CANARY"));
        assert_eq!(hit, None, "a canary is in the {place}");
    }
    for response in &responses {
        let head = format!("{:?}", response.headers);
        assert!(
            !response.text().contains("CANARY-client") && !response.text().contains("sk-CANARY"),
            "{}",
            response.text()
        );
        assert!(!head.contains("CANARY"), "{head}");
    }
    for (upstream, own) in [(&one, keys[0]), (&two, keys[1])] {
        assert!(upstream.request_count() > 0);
        for request in upstream.requests() {
            assert_eq!(request.headers.all("authorization"), [format!("Bearer {own}")]);
            for name in HEADERS.iter().filter(|name| !["authorization", "x-auth-token"].contains(name)) {
                assert_eq!(request.header(name), None, "{name} was forwarded");
            }
        }
    }
    assert_eq!(thief.request_count(), 0);
}
