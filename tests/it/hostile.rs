//! Hostile clients and hostile providers: bodies that bomb, prompts that stall, names that forge, figures that lie.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::support::{
    Call, DEADLINE, Dice, Gateway, KEY, PROVIDER_KEY, RawClient, Reply, Upstream, eventually,
    gateway::Setup,
    upstream::{DONE, chat_completion, chunk, openai},
    wait_until,
};

const OTHER: &str = "tg-test-other-ffffffffffffffffffffffffffffffff";
const MEBIBYTE: usize = 1024 * 1024;
/// What a call of [`dear`] may cost at most, in nano-dollars: 1,000 output tokens at 10 USD per million.
const BOUND_NANOUSD: i64 = 10_000_000;

fn dear() -> Value {
    json!({"model": "upstream/m", "max_tokens": 1000, "messages": [{"role": "user", "content": "hi"}]})
}

fn budgeted(upstream: &Upstream, limit: &str) -> Setup {
    let price = "input: 0 USD/1M, output: 10 USD/1M, max_output: 1000000";
    let budget = format!("name: all, scope: {{ team: red }}, limit: {limit} USD, per: month, clamp: off");
    Gateway::before(upstream).top("unpriced", "refuse").price("upstream/m", price).budget(&budget)
}

/// What `budget` has been charged once nothing is reserved any more.
async fn charged(gateway: &Gateway, budget: &str) -> i64 {
    let settled = eventually("all is settled", DEADLINE, || gateway.budget(budget), |row| row.reserved_nanousd == 0);
    settled.await.charged_nanousd
}

// === bodies ===

/// A gibibyte of JSON in a mebibyte of gzip: one member, said a thousand times.
fn gzip_bomb() -> Vec<u8> {
    let member = |text: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    };
    let spaces = member(&vec![b' '; MEBIBYTE]);
    [member(br#"{"model":"upstream/m","messages":[],"x":""#), spaces.repeat(1024), member(br#""}"#)].concat()
}

#[tokio::test]
async fn bodies_that_decode_to_a_gibibyte_are_refused_in_little_memory() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::before(&upstream).run().await;
    gateway.hello("upstream/m").send().await.expect(200);
    let before = gateway.memory_bytes("VmHWM:");
    let brotli = include_bytes!("../data/bombs/gibibyte.json.br").to_vec();

    for (coding, bomb) in [("gzip", gzip_bomb()), ("x-gzip", gzip_bomb()), ("br", brotli.clone()), ("BR", brotli)] {
        let bombs = vec![
            gateway
                .post("/v1/chat/completions")
                .key(KEY)
                .header("content-encoding", coding)
                .body("application/json", bomb);
            2
        ];
        for response in futures_util::future::join_all(bombs.iter().map(Call::send)).await {
            assert_eq!(response.expect(413).error_code(), "request_too_large", "{coding}");
        }
    }

    let grown = gateway.memory_bytes("VmHWM:").saturating_sub(before);
    assert!(grown < 160 * MEBIBYTE as u64, "two bodies of at most 32 MiB at once took {} MiB", grown >> 20);
    assert_eq!(upstream.request_count(), 1);
}

#[tokio::test]
async fn a_coding_that_is_none_twice_or_broken_is_refused() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::before(&upstream).run().await;

    for coding in ["gzip", "br", "deflate", "gzip, gzip", "zstd", "compress", "nonsense", "gzip;q=1"] {
        let broken = gateway.hello("upstream/m").header("content-encoding", coding).send().await;
        assert!(matches!(broken.status, 400 | 415), "{coding}: {} {}", broken.status, broken.text());
    }
    assert_eq!(upstream.request_count(), 0);
    gateway.hello("upstream/m").header("content-encoding", "identity").send().await.expect(200);
}

#[tokio::test]
async fn nesting_a_million_deep_is_refused_or_passed_on_and_nothing_breaks() {
    const DEPTH: usize = 1_000_000;
    let upstream = Upstream::run().await;
    let gateway = Gateway::before(&upstream).run().await;
    let arrays = format!("{}{}", "[".repeat(DEPTH), "]".repeat(DEPTH));
    let objects = format!("{}1{}", r#"{"a":"#.repeat(DEPTH), "}".repeat(DEPTH));

    for deep in [&arrays, &objects, &arrays[..DEPTH].to_owned()] {
        for body in [
            deep.clone(),
            format!(r#"{{"model":"upstream/m","messages":{deep}}}"#),
            format!(r#"{{"model":"upstream/m","messages":[],"metadata":{deep}}}"#),
            format!(r#"{{"model":{deep}}}"#),
            format!(r#"{{"model":"upstream/m","tools":[{deep}],"messages":[]}}"#),
        ] {
            for path in ["/v1/chat/completions", "/v1/messages", "/v1/responses"] {
                gateway.post(path).key(KEY).body("application/json", body.clone()).send().await.expect(400);
            }
        }
    }
    assert_eq!(upstream.request_count(), 0);
    gateway.hello("upstream/m").header("x-tollgate-vars", &"[".repeat(30_000)).send().await;
    gateway.hello("upstream/m").send().await.expect(200);
}

#[tokio::test]
async fn what_two_parsers_could_price_differently_is_refused() {
    let upstream = Upstream::run().await;
    let gateway = budgeted(&upstream, "1").run().await;
    let with = |more: &str| format!(r#"{{"model":"upstream/m","messages":[],{more}}}"#);

    for body in [
        with(r#""max_tokens":1,"max_tokens":100000"#),
        with(r#""max_tokens":1,"max_tok\u0065ns":100000"#),
        with(r#""max_tokens":100000,"\u006dax_tokens":1"#),
        with(r#""model":"upstream/other""#),
        with(r#""stream":false,"stream":true"#),
        with(r#""stream_options":{"include_usage":true,"include_usage":false}"#),
        with(r#""tools":[{"type":"function","type":"web_search"}]"#),
        with(r#""n":1,"\u006e":100"#),
        with(r#""max_tokens":1e400"#),
        with(r#""max_tokens":-1"#),
        with(r#""max_tokens":1.5"#),
        with(r#""max_tokens":"100000""#),
        with(r#""max_tokens":[100000]"#),
        with(r#""max_tokens":18446744073709551617"#),
        with(r#""max_tokens":NaN"#),
        with(r#""max_tokens":+1"#),
        with(r#""max_tokens":01"#),
        with(r#""max_tokens":0x10"#),
        with(r#""max_tokens":1,//"#),
        format!("\u{feff}{}", with(r#""max_tokens":1"#)),
        format!("{} {{}}", with(r#""max_tokens":1"#)),
        with("\"x\":\"a\nb\""),
        with("'max_tokens':1"),
    ] {
        let refused = gateway.post("/v1/chat/completions").key(KEY).body("application/json", body.clone()).send().await;
        assert_eq!((refused.status, refused.error_code().as_str()), (400, "invalid_request"), "{body}");
    }
    let invalid = [with(r#""x":"?""#).replace('?', "~").into_bytes()].concat();
    let invalid: Vec<u8> = invalid.into_iter().map(|byte| if byte == b'~' { 0xff } else { byte }).collect();
    let response = gateway.post("/v1/chat/completions").key(KEY).body("application/json", invalid.clone()).send().await;
    assert!(response.status == 400 || upstream.requests()[0].body.contains(&0xff), "{}", response.status);
    assert!(upstream.request_count() <= 1);
}

// === prices ===

#[tokio::test]
async fn a_priced_field_that_is_smuggled_in_raises_the_bound_or_is_refused() {
    let upstream = Upstream::run().await;
    // Five calls of `dear` fit.
    let gateway = budgeted(&upstream, "0.05").run().await;
    let (chat, legacy) = ("/v1/chat/completions", "/v1/completions");
    let long = "x".repeat(100_000);
    let cases = [
        (chat, json!({"n": 10}), 429),
        (chat, json!({"n": 10.0}), 429),
        (chat, json!({"n": "10"}), 400),
        (chat, json!({"n": true}), 400),
        (chat, json!({"N": 10}), 400),
        (legacy, json!({"n": 10, "prompt": "hi"}), 429),
        (legacy, json!({"best_of": 10, "prompt": "hi"}), 429),
        (legacy, json!({"Best_Of": 10, "prompt": "hi"}), 400),
        (legacy, json!({"prompt": ["a", "b", "c", "d", "e", "f"]}), 429),
        (chat, json!({"max_completion_tokens": 100_000}), 429),
        (chat, json!({"max_output_tokens": 100_000}), 429),
        (chat, json!({"max_new_tokens": 100_000}), 429),
        (chat, json!({"n_predict": 100_000}), 429),
        (chat, json!({"Max_Tokens": 100_000}), 400),
        (chat, json!({"MAX_TOKENS": 100_000}), 400),
        (chat, json!({"max_to\u{212A}ens": 100_000}), 400),
        (chat, json!({"max_token\u{17F}": 100_000}), 400),
        (chat, json!({"prediction": {"type": "content", "content": long}}), 429),
        (chat, json!({"Prediction": {"type": "content", "content": long}}), 400),
        (chat, json!({"web_search_options": {}}), 400),
        (chat, json!({"Web_Search_Options": {}}), 400),
        (chat, json!({"tools": [{"type": "web_search"}]}), 400),
        (chat, json!({"tools": {"type": "web_search"}}), 400),
        (chat, json!({"models": ["upstream/other"]}), 400),
        (chat, json!({"plugins": [{"id": "web"}]}), 400),
        (chat, json!({"service_tier": 1}), 400),
        (chat, json!({"Service_Tier": "priority"}), 400),
        (chat, json!({"model": "upstream/M"}), 400),
        (chat, json!({"model": "upstream/m "}), 400),
        (chat, json!({"model": " upstream/m"}), 400),
        (chat, json!({"model": "Upstream/m"}), 400),
        (chat, json!({"model": "upstream//m"}), 400),
        (chat, json!({"model": "upstream/../upstream/m"}), 400),
        (chat, json!({"model": "upstream/m@v1"}), 400),
        (chat, json!({"model": ["upstream/m"]}), 400),
    ];
    for (path, more, expected) in cases {
        let mut body = dear();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let response = gateway.post(path).key(KEY).json(&body).send().await;

        let shown = more.to_string().chars().take(80).collect::<String>();
        let refused = response.status == expected || (expected == 400 && matches!(response.status, 403 | 404));
        assert!(refused, "{shown}: {} {}", response.status, response.text());
        assert_eq!(upstream.request_count(), 0, "{shown} reached the provider");
    }
    for more in [json!({"n": null}), json!({"n": 1}), json!({"extra_body": {"n": 100}}), json!({"store": true})] {
        let mut body = dear();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        gateway.chat(&body).send().await.expect(200);
    }
}

/// The names of a JSON object's members, as often as they stand there.
struct Names(Vec<String>);

impl<'de> serde::Deserialize<'de> for Names {
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> serde::de::Visitor<'de> for Members {
            type Value = Names;

            fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Names, A::Error> {
                let mut names = Vec::new();
                while let Some((name, _)) = map.next_entry::<String, serde::de::IgnoredAny>()? {
                    names.push(name);
                }
                Ok(Names(names))
            }
        }
        input.deserialize_map(Members)
    }
}

#[tokio::test]
async fn every_spelling_of_a_cap_is_lowered_and_no_member_is_doubled() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::before(&upstream)
        .model("support", "target: upstream/m, parameters: { temperature: 0.5 }, force: { top_p: 0.5 }")
        .price("upstream/m", "input: 0 USD/1M, output: 10 USD/1M, max_output: 100000")
        .budget("name: all, scope: { team: red }, limit: 0.1 USD, per: month")
        .run()
        .await;
    let messages = r#""messages":[{"role":"user","content":"hi"}]"#;
    let cases = [
        ("/v1/chat/completions", format!(r#"{{"mod\u0065l":"support",{messages},"max_tok\u0065ns":50000}}"#)),
        (
            "/v1/chat/completions",
            format!(r#"{{"model":"support",{messages},"max_tokens":50000,"max_completion_tokens":60000}}"#),
        ),
        ("/v1/chat/completions", format!(r#"{{"model":"support",{messages},"max_tokens":1,"n_predict":6e4}}"#)),
        (
            "/v1/chat/completions",
            format!(r#"{{"model":"support",{messages},"n":2,"temp\u0065rature":1,"\u0074op_p":1}}"#),
        ),
        (
            "/v1/chat/completions",
            format!(
                r#"{{"model":"support",{messages},"stream":true,"stream_option\u0073":{{"include_usag\u0065":false}}}}"#
            ),
        ),
        (
            "/v1/chat/completions",
            format!(r#"{{"model":"support",{messages},"stream":true,"stream_options":null,"max_tokens":null}}"#),
        ),
        ("/v1/messages", format!(r#"{{"model":"support",{messages},"max_token\u0073":50000}}"#)),
        ("/v1/responses", r#"{"model":"support","input":"hi","max_output_tokens":50000}"#.to_owned()),
    ];
    for (path, body) in cases {
        let before = charged(&gateway, "all").await;
        gateway.post(path).key(KEY).body("application/json", body.clone()).send().await.expect(200);

        let heard = upstream.next_request().await;
        let Names(mut names) = serde_json::from_slice(&heard.body).unwrap();
        names.sort_unstable();
        assert!(
            names.windows(2).all(|pair| pair[0] != pair[1]),
            "{body} became {}",
            String::from_utf8_lossy(&heard.body)
        );
        let sent = heard.json();
        let affordable = (1_000_000_000 / 10 - before) / 10_000 / sent["n"].as_i64().unwrap_or(1);
        let caps =
            ["max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict"].map(|name| sent[name].as_f64());
        let highest = caps.into_iter().flatten().fold(0.0, f64::max);
        assert!(highest >= 1.0 && highest <= affordable as f64, "{highest} of {affordable}: {body} became {sent}");
        assert_eq!((&sent["model"], &sent["top_p"]), (&json!("m"), &json!(0.5)), "{sent}");
        let asked = sent["stream"] != json!(true) || sent["stream_options"] == json!({"include_usage": true});
        assert!(asked, "{sent}");
    }
}

#[tokio::test]
async fn figures_of_usage_that_lie_are_charged_at_the_bound_and_never_lower_spend() {
    let upstream = Upstream::run().await;
    let gateway = budgeted(&upstream, "100").run().await;
    let figures = |prompt: &str, completion: &str| {
        format!(r#"{{"prompt_tokens":{prompt},"completion_tokens":{completion},"total_tokens":{completion}}}"#)
    };
    // What cannot be is charged at the bound; what says nothing is counted.
    let lies = [
        figures("-5", "-5"),
        figures("5", "-5"),
        figures("5", "-9223372036854775808"),
        figures("5", "9223372036854775808"),
        figures("5", "18446744073709551616"),
        figures("5", "1e30"),
        figures("5", "1e-30"),
        figures("5", "0.5"),
        figures("5", "\"3\""),
        figures("5", "true"),
        figures("-0.0001", "3"),
        figures("1099511627777", "3"),
        figures("5", "[3]"),
        figures("5", "{}"),
        r#"{"prompt_tokens":5,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":6}}"#.to_owned(),
        r#"{"prompt_tokens":5,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":-1}}"#.to_owned(),
        r#"{"prompt_tokens":5,"completion_tokens":3,"completion_tokens_details":{"audio_tokens":4}}"#.to_owned(),
        "[]".to_owned(),
        "\"3\"".to_owned(),
        "1e30".to_owned(),
        "true".to_owned(),
    ];
    let silence = ["null".to_owned(), "{}".to_owned()];
    let mut before = 0;
    for (number, usage) in lies.iter().chain(&silence).enumerate() {
        for streamed in [false, true] {
            let plain = chat_completion("one two three", (1, 1)).to_string();
            let at = plain.find(r#""usage":"#).expect("made above") + r#""usage":"#.len();
            let end = at + plain[at..].find('}').expect("an object") + 1;
            let plain = format!("{}{usage}{}", &plain[..at], &plain[end..]);
            let event = format!("data: {{\"object\":\"chat.completion.chunk\",\"choices\":[],\"usage\":{usage}}}\n\n");
            upstream.script(match streamed {
                false => Reply::bytes(200, "application/json", plain),
                true => Reply::stream().data(chunk("one two three")).data(event).data(DONE),
            });
            let mut body = dear();
            body["stream"] = json!(streamed);
            gateway.chat(&body).send().await.expect(200);

            let cost = gateway.next_record().await.number("cost_nanousd");
            let now = charged(&gateway, "all").await;
            assert_eq!(now - before, cost, "usage {usage}, streamed {streamed}");
            if number < lies.len() {
                assert_eq!(cost, BOUND_NANOUSD, "usage {usage}, streamed {streamed}");
            }
            assert!((1..=BOUND_NANOUSD).contains(&cost), "usage {usage}, streamed {streamed}: {cost}");
            before = now;
        }
    }
    let alarms = gateway.log_lines().iter().filter(|line| line["level"] == "ERROR").count();
    assert!(alarms >= 2 * lies.len(), "{alarms} alarms for {} lies\n{}", 2 * lies.len(), gateway.log_text());
}

// === prompts ===

/// 4 MiB of each: what tokenizers take long over, or panic on.
fn stalling_prompts() -> Vec<(&'static str, String)> {
    const SIZE: usize = 4 * MEBIBYTE;
    let mut dice = Dice::seeded(17);
    let letters: String = (0..SIZE).map(|_| char::from(b'a' + dice.below(26) as u8)).collect();
    vec![
        ("spaces", " ".repeat(SIZE)),
        ("one letter", "a".repeat(SIZE)),
        ("random letters", letters),
        ("emoji", "\u{1F469}\u{200D}\u{1F680}".repeat(SIZE / 11)),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_mebibytes_of_anything_as_a_prompt_hold_nobody_up() {
    let upstream = Upstream::answering(|request| {
        // No usage is told, so that prompt and reply have to be counted.
        if request.body.len() > MEBIBYTE { Reply::stream().data(chunk("x")).data(DONE) } else { openai(request) }
    })
    .await;
    let gateway = Gateway::before(&upstream)
        .price("upstream/gpt-4o", "input: 1 USD/1M, output: 1 USD/1M, max_output: 1000")
        .budget("name: all, scope: { key: dev }, limit: 1000 USD, per: month")
        .key("other", OTHER, "")
        .run()
        .await;
    let neighbour = {
        let body = json!({"model": "upstream/m", "messages": [{"role": "user", "content": "hi"}]});
        gateway.post("/v1/chat/completions").key(OTHER).json(&body)
    };

    for (what, prompt) in stalling_prompts() {
        let body = json!({"model": "upstream/gpt-4o", "stream": true, "max_tokens": 10, "messages": [{"role": "user", "content": prompt}]});
        let stalling = gateway.chat(&body);
        let mut slowest = Duration::ZERO;
        let mut stalled = Box::pin(stalling.send());
        let response = loop {
            let begun = Instant::now();
            tokio::select! {
                response = &mut stalled => break response,
                response = neighbour.send() => { response.expect(200); }
            }
            slowest = slowest.max(begun.elapsed());
        };

        response.expect(200);
        for _ in 0..20 {
            let begun = Instant::now();
            neighbour.send().await.expect(200);
            slowest = slowest.max(begun.elapsed());
        }
        assert!(slowest < Duration::from_secs(1), "{what}: another call took {slowest:?}");
    }
    let counted = || gateway.log_text().matches(r#""key":"dev""#).count();
    let prompts = stalling_prompts().len();
    wait_until("each was counted", DEADLINE, || counted() == prompts).await;
    for record in gateway.records().iter().filter(|record| record.text("key") == "dev") {
        assert_eq!(record.text("usage_source"), "counted");
        assert!((1..=4 * MEBIBYTE as i64).contains(&record.number("prompt_tokens")));
    }
}

// === identities ===

#[tokio::test]
async fn no_authorization_value_is_more_than_a_wrong_key() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::before(&upstream).run().await;
    let reference = gateway.get("/v1/models").key("wrong").send().await.expect(401);
    let before = gateway.memory_bytes("VmHWM:");
    let long = |length: usize| vec![b'k'; length];

    let values: [Vec<u8>; 16] = [
        b"' OR '1'='1".to_vec(),
        b"'; DROP TABLE keys; --".to_vec(),
        b"\" UNION SELECT secret FROM keys --".to_vec(),
        b"%' OR name LIKE '%".to_vec(),
        b"tg-%00".to_vec(),
        b"${KEY}".to_vec(),
        b"{{ key }}".to_vec(),
        b"../../data/keys".to_vec(),
        b"*".to_vec(),
        b"\xff\xfe\xfd".to_vec(),
        "\u{202e}yek".as_bytes().to_vec(),
        [KEY.as_bytes(), b"\0"].concat(),
        [KEY.as_bytes(), b"\t"].concat().repeat(2),
        long(257),
        long(60_000),
        long(64 * MEBIBYTE),
    ];
    for value in values {
        let mut client = RawClient::connect(gateway.listen).await;
        let request = [b"GET /v1/models HTTP/1.1\r\nhost: a\r\nauthorization: Bearer ", &*value, b"\r\n\r\n"].concat();
        client.send(request).await;
        let shown = String::from_utf8_lossy(&value[..value.len().min(40)]).into_owned();
        if let Some(response) = client.response_to("GET").await {
            assert!(matches!(response.status, 400 | 401 | 431), "{shown}: {}", response.status);
            if response.status == 401 {
                assert_eq!(response.body, reference.body, "{shown}");
            }
        }
    }
    let grown = gateway.memory_bytes("VmHWM:").saturating_sub(before);
    assert!(grown < 24 * MEBIBYTE as u64, "headers that are refused took {} KiB", grown >> 10);
    assert_eq!(upstream.request_count(), 0);
    gateway.hello("upstream/m").send().await.expect(200);
}

#[tokio::test]
async fn who_pays_and_which_variant_serves_hang_on_the_key_alone() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::bare()
        .upstream(&upstream)
        .model("support", "target: upstream/m")
        .experiment("tone", "model: support, unit: key, variants: { one: { weight: 50 }, two: { weight: 50 } }")
        .budget("name: reds, scope: { team: red }, limit: 1 USD, per: month")
        .budget("name: blues, scope: { team: blue }, limit: 1 USD, per: month")
        .budget("name: web, scope: { tags: { app: web } }, limit: 1 USD, per: month")
        .key("dev", KEY, ", team: red, tags: { app: web }")
        .run()
        .await;
    let honest = gateway.hello("support").send().await.expect(200);
    let variant = honest.header("x-tollgate-variant").expect("a variant").to_owned();
    charged(&gateway, "reds").await;

    let spoofs = [
        ("x-tollgate-team", "blue"),
        ("x-tollgate-key", "other"),
        ("x-tollgate-variant", "tone=two"),
        ("x-tollgate-tags", "app=other,team=blue,key=other"),
        ("x-litellm-tags", "app=other"),
        ("x-litellm-team-id", "blue"),
        ("x-tollgate-user", "blue"),
        ("helicone-user-id", "blue"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-host", "admin"),
        ("x-forwarded-user", "admin"),
        ("forwarded", "for=127.0.0.1;host=admin"),
        ("x-real-ip", "127.0.0.1"),
        ("x-original-url", "/metrics"),
        ("x-rewrite-url", "/metrics"),
        ("x-portkey-custom-host", "http://127.0.0.1:1"),
        ("x-portkey-config", "{}"),
    ];
    for (name, value) in spoofs {
        let body = json!({"model": "support", "user": "blue", "team": "blue", "metadata": {"user_id": "blue", "team": "blue"},
            "api_base": "http://127.0.0.1:1", "base_url": "http://127.0.0.1:1", "messages": [{"role": "user", "content": "hi"}]});
        let before = charged(&gateway, "reds").await;
        let response = gateway.chat(&body).header(name, value).send().await.expect(200);

        assert_eq!(response.header("x-tollgate-variant"), Some(variant.as_str()), "{name}");
        let now =
            eventually("the call is charged", DEADLINE, || gateway.budget("reds"), |row| row.charged_nanousd > before)
                .await;
        assert!(now.charged_nanousd > before, "{name}");
        let heard = upstream.requests().pop().expect("the call");
        assert_eq!(heard.header(name), None, "{name} was forwarded");
        assert_eq!(heard.headers.all("authorization"), [format!("Bearer {PROVIDER_KEY}")]);
    }
    assert_eq!(charged(&gateway, "blues").await, 0);
    assert_eq!(charged(&gateway, "web").await, charged(&gateway, "reds").await, "a key's tag cannot be replaced");
}

#[tokio::test]
async fn one_tenants_user_cannot_spend_anothers_money() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::bare()
        .upstream(&upstream)
        .price("upstream/m", "input: 0 USD/1M, output: 10 USD/1M")
        .budget(r#"name: each-user, scope: { user: "*" }, limit: 0.01 USD, per: day, clamp: off"#)
        .key("reds", KEY, ", team: red")
        .key("blues", OTHER, ", team: blue")
        .run()
        .await;
    upstream.script(Reply::json(200, &chat_completion("x", (5, 1000))));
    let call = |key: &str| gateway.post("/v1/chat/completions").key(key).user("ann").json(&dear());

    call(KEY).send().await.expect(200);
    call(KEY).send().await.expect(429);
    call(OTHER).send().await.expect(200);
}

#[tokio::test]
async fn two_tenants_with_the_same_body_are_two_calls() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::before(&upstream).key("other", OTHER, "").run().await;

    for key in [KEY, OTHER, KEY] {
        gateway
            .post("/v1/chat/completions")
            .key(key)
            .json(&json!({"model": "upstream/m", "temperature": 0, "messages": [{"role": "user", "content": "hi"}]}))
            .send()
            .await
            .expect(200);
    }

    assert_eq!(upstream.request_count(), 3, "nothing is cached unless it is asked for");
}

// === names ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_invented_names_leave_series_and_memory_flat() {
    const CONNECTIONS: usize = 8;
    let upstream = Upstream::run().await;
    let gateway = Gateway::before(&upstream)
        .model("support", "target: upstream/m")
        .budget(r#"name: each-user, scope: { user: "*" }, limit: 1 USD, per: day"#)
        .limit(r#"name: each-user, scope: { user: "*" }, requests: 100000/min"#)
        .run()
        .await;
    let round = |first: usize, count: usize| {
        let calls: Vec<Vec<Call>> = (0..CONNECTIONS).map(|connection| {
            (first..first + count).filter(|number| number % CONNECTIONS == connection).map(|number| {
                let body = json!({"model": format!("upstream/invented-{}", number % 1000), "user": format!("invented-{number}"), "messages": []});
                match number % 4 {
                    0 => gateway.get(&format!("/v1/invented-{number}/x")).key(KEY),
                    1 => gateway.get("/v1/models").key(&format!("invented-{number}")),
                    2 => gateway.post(&format!("/v1/invented/{number}")).key(KEY).json(&body),
                    _ => gateway.post("/v1/chat/completions").key(KEY).json(&body),
                }
            }).collect()
        }).collect();
        async move {
            let sent = calls.iter().map(|calls| Call::send_all(gateway.listen, calls));
            futures_util::future::join_all(sent).await;
        }
    };
    round(0, 1000).await;
    let series = gateway.metrics().await.series_count();
    let memory = gateway.memory_bytes("VmRSS:");

    round(1000, 4000).await;
    gateway.wait_for_records(4000).await;

    let begun = Instant::now();
    let metrics = gateway.metrics().await;
    let scraped = begun.elapsed();
    assert_eq!(metrics.series_count(), series, "{}", metrics.text);
    assert!(series <= 500 && scraped < Duration::from_millis(500), "{series} series in {scraped:?}");
    assert!(!metrics.text.contains("invented"), "{}", metrics.text);
    let grown = gateway.memory_bytes("VmRSS:").saturating_sub(memory);
    assert!(grown < 24 * MEBIBYTE as u64, "{} MiB more after 4,000 calls", grown >> 20);
}

#[tokio::test]
async fn nothing_that_a_client_or_a_provider_says_can_forge_a_log_line() {
    const FORGED: &str =
        "a\n{\"level\":\"ERROR\",\"message\":\"forged\"}\r\n\u{1b}[31mred\u{1b}]0;title\u{7}\u{85}\u{2028}\u{9b}2J";
    let upstream = Upstream::run().await;
    let gateway = Gateway::before(&upstream).env("TOLLGATE_LOG", "trace").run().await;
    let body = |field: &str| {
        let mut body = json!({"model": "upstream/m", "messages": [{"role": "user", "content": FORGED}]});
        body[field] = json!(FORGED);
        body
    };

    for field in ["model", "user", "safety_identifier", "service_tier", "metadata", FORGED] {
        gateway.chat(&body(field)).send().await;
        gateway.post("/v1/messages").header("x-api-key", KEY).json(&body(field)).send().await;
    }
    for model in [FORGED, &format!("upstream/{FORGED}"), &format!("upstream/{}", "m".repeat(MEBIBYTE))] {
        let body = json!({"model": model, "messages": []});
        gateway.chat(&body).send().await.expect(400);
    }
    let escaped = "a%0a%7b%22level%22%3a1%7d%1b[31m";
    let headers = "x-tollgate-user x-tollgate-session x-tollgate-tags x-tollgate-prompt x-tollgate-vars x-tollgate-timeout x-tollgate-retries x-tollgate-cache user-agent referer x-request-id via expect content-type accept host origin traceparent";
    for name in headers.split(' ') {
        for value in [escaped, "a\tb", "\u{9b}2J\u{85}", "\u{1b}[31m"] {
            let mut client = RawClient::connect(gateway.listen).await;
            let host = if name == "host" { "" } else { "host: a\r\n" };
            client
                .send(format!("POST /v1/{escaped}?{escaped} HTTP/1.1\r\n{host}authorization: Bearer {KEY}\r\n{name}: {value}\r\ncontent-length: 2\r\n\r\n{{}}"))
                .await;
            client.response().await;
        }
    }
    for reply in [
        Reply::json(400, &json!({"error": {"message": FORGED, "type": FORGED, "code": FORGED}})),
        Reply::raw("HTTP/1.1 500 \u{1b}[31m\tred\r\nx-request-id: \u{9b}2J\r\ncontent-length: 0\r\n\r\n"),
        Reply::raw(format!("{FORGED}\r\n\r\n")),
        Reply::stream().data(format!("data: {{\"error\":{}}}\n\n", json!(FORGED))),
    ] {
        upstream.script(reply);
        gateway.hello("upstream/m").send().await;
    }
    gateway.hello("upstream/last").send().await.expect(200);
    wait_until("the last call is logged", DEADLINE, || {
        gateway.records().iter().any(|record| record.text("call.target") == "upstream/last")
    })
    .await;

    let log = gateway.log_text();
    assert!(log.lines().count() > 100, "{log}");
    for line in log.lines() {
        let parsed: Result<Value, _> = serde_json::from_str(line);
        let parsed = parsed.unwrap_or_else(|error| panic!("not one JSON object ({error}): {line:?}"));
        assert!(parsed.is_object() && parsed["message"] != "forged", "{line}");
        assert!(!line.chars().any(char::is_control), "{line:?}");
        assert!(line.len() < 64 * 1024, "a line of {} bytes", line.len());
    }
}
