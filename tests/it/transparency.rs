//! A body that no rule changes goes through byte for byte; where a rule changes something, only those bytes differ.

use serde_json::{Value, json};

use crate::support::{Dice, Gateway, KEY, PROVIDER_KEY, Reply, Upstream, sha256, upstream, wire};

const EXCHANGES: usize = 200;

#[tokio::test]
async fn two_hundred_odd_exchanges_are_identical_both_ways() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::transparent(&upstream).run().await;
    let mut dice = Dice::seeded(7);

    for number in 0..EXCHANGES {
        let exchange = Exchange::invent(number, &mut dice);
        upstream.script(exchange.reply());

        let response = gateway.post(exchange.path).key(KEY).body(exchange.content_type, &*exchange.sent).send().await;

        let heard = upstream.next_request().await;
        assert_eq!(heard.target, exchange.path, "exchange {number}");
        assert_eq!(sha256(&heard.body), sha256(&exchange.sent), "request {number}: {}", exchange.describe(&heard.body));
        assert_eq!(response.status, 200, "exchange {number}: {}", response.text());
        assert_eq!(sha256(&response.body), sha256(&exchange.answered), "reply {number}: {}", response.text());
        assert!(response.complete, "reply {number} broke off");
    }
}

#[tokio::test]
async fn only_the_declared_edit_differs_with_every_policy_on() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::everything(&upstream).run().await;
    let mut dice = Dice::seeded(11);

    for number in 0..40 {
        let extras = odd_members(&mut dice);
        let sent = format!(
            "{{ \"model\" : \"support\",\r\n\t{extras},\"messages\":[ {{\"role\":\"user\",\"content\":\"caf\\u00e9 {number}\"}} ] }}"
        );

        let call = gateway.post("/v1/chat/completions").key(KEY).user(&format!("u{number}"));
        let response = call.body("application/json", &*sent).send().await.expect(200);

        let heard = upstream.next_request().await;
        let greeting = match response.header("x-tollgate-variant") {
            Some("tone=control") => "You are a helpful assistant for Tollgate.",
            Some("tone=warm") => "You are a warm, brief assistant for Tollgate.",
            other => panic!("no variant of tone: {other:?}"),
        };
        let mut expected: Value = serde_json::from_str(&sent).unwrap();
        expected["model"] = json!("gpt-4o-mini");
        expected["temperature"] = json!(0.2);
        expected["messages"].as_array_mut().unwrap().insert(0, json!({"role": "system", "content": greeting}));
        assert_eq!(sorted(&heard.json()), sorted(&expected), "exchange {number}");
        assert!(
            wire::find(&heard.body, extras.as_bytes()).is_some(),
            "untouched bytes of exchange {number}: {}",
            heard.json()
        );
    }
}

#[tokio::test]
async fn a_parameter_that_the_client_set_is_not_replaced_by_the_models_default() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::everything(&upstream).run().await;

    let body = r#"{"model":"support","temperature":1.0,"messages":[{"role":"user","content":"hi"}]}"#;
    gateway.post("/v1/chat/completions").key(KEY).body("application/json", body).send().await.expect(200);

    let heard = upstream.next_request().await;
    assert!(wire::find(&heard.body, b"\"temperature\":1.0").is_some(), "{}", heard.json());
    assert_eq!(String::from_utf8_lossy(&heard.body).matches("temperature").count(), 1);
}

#[tokio::test]
async fn a_reply_is_not_touched_by_any_policy() {
    let answered = "{ \"object\":\"chat.completion\",\n \"choices\" : [],\"vendor\":1.0e2,\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2, \"total_tokens\":7} }\n";
    let upstream = Upstream::always(Reply::bytes(200, "application/json", answered)).await;
    let gateway = Gateway::everything(&upstream).run().await;

    let response = gateway.hello("support").send().await.expect(200);

    assert_eq!(response.text(), answered);
}

#[tokio::test]
async fn the_providers_own_headers_pass() {
    let reply = Reply::json(200, &upstream::chat_completion("hi", (1, 1)))
        .header("x-request-id", "req_provider")
        .header("x-ratelimit-remaining-requests", "41")
        .header("openai-processing-ms", "12")
        .header("x-vendor", "seen");
    let upstream = Upstream::always(reply).await;
    let gateway = Gateway::transparent(&upstream).run().await;

    let response = gateway.hello("gpt-4o-mini").send().await.expect(200);

    for (name, value) in [
        ("x-request-id", "req_provider"),
        ("x-ratelimit-remaining-requests", "41"),
        ("openai-processing-ms", "12"),
        ("x-vendor", "seen"),
    ] {
        assert_eq!(response.headers.all(name), [value], "{name}");
    }
}

#[tokio::test]
async fn the_clients_own_headers_pass_and_the_gateways_do_not() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::transparent(&upstream).run().await;

    let call = gateway.hello("gpt-4o-mini").header("openai-beta", "assistants=v2").header("x-vendor", "kept");
    call.header("x-tollgate-session", "s1").header("x-tollgate-tags", "a=b").user("ann").send().await.expect(200);

    let heard = upstream.next_request().await;
    assert_eq!(heard.header("openai-beta"), Some("assistants=v2"));
    assert_eq!(heard.header("x-vendor"), Some("kept"));
    assert_eq!(heard.headers.all("authorization"), [format!("Bearer {PROVIDER_KEY}")]);
    let ours: Vec<_> =
        heard.headers.0.iter().filter(|(name, _)| name.to_ascii_lowercase().starts_with("x-tollgate")).collect();
    assert!(ours.is_empty(), "{ours:?}");
}

#[tokio::test]
async fn path_and_query_pass_as_they_were_sent() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::transparent(&upstream).run().await;

    for target in ["/v1/files?limit=2&after=a%20b", "/v1/models/gpt-4o-mini", "/v1/batches/batch_1/cancel?x=%2Fy&x=&z"]
    {
        gateway.get(target).key(KEY).send().await.expect(200);

        assert_eq!(upstream.next_request().await.target, target);
    }
}

#[tokio::test]
async fn the_response_says_which_call_it_was_and_who_served_it() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::everything(&upstream).run().await;

    let response = gateway.hello("support").send().await.expect(200);

    assert!(response.header("x-tollgate-call").is_some_and(|id| !id.is_empty()), "{:?}", response.headers);
    assert_eq!(response.header("x-tollgate-model"), Some("upstream/gpt-4o-mini"));
    assert_eq!(response.header("x-tollgate-version"), Some("v1"));
    assert_eq!(response.header("x-tollgate-attempts"), Some("1"));
    assert!(
        response.header("x-tollgate-prompt").is_some_and(|prompt| prompt.starts_with("greeting")),
        "{:?}",
        response.headers
    );
    let record = gateway.next_record().await;
    assert_eq!(Some(record.text("call.id")), response.header("x-tollgate-call"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_pass_whole_and_cost_little_more_than_themselves() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::transparent(&upstream).run().await;
    gateway.hello("gpt-4o-mini").send().await.expect(200);
    upstream.next_request().await;
    let before = gateway.memory_bytes("VmHWM:");

    for size in [32_769, 1 << 20, 20 << 20] {
        let text = "é日 ".repeat(size / 6);
        let body = format!("{{\"model\":\"gpt-4o-mini\",\"messages\":[{{\"role\":\"user\",\"content\":\"{text}\"}}]}}");
        gateway.post("/v1/chat/completions").key(KEY).body("application/json", &*body).send().await.expect(200);

        assert_eq!(sha256(&upstream.next_request().await.body), sha256(body.as_bytes()), "{size} bytes");
    }

    // Twice the largest body, and what the process needs besides.
    let grown = gateway.memory_bytes("VmHWM:") - before;
    assert!(grown < (2 * 20 + 16) << 20, "grew by {grown} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_replies_pass_whole() {
    let answered: Vec<u8> = (0..20u32 << 20).map(|number| (number % 251) as u8).collect();
    let upstream = Upstream::always(Reply::bytes(200, "application/json", answered.clone())).await;
    let gateway = Gateway::transparent(&upstream).run().await;

    let response = gateway.hello("gpt-4o-mini").send().await.expect(200);

    assert_eq!(sha256(&response.body), sha256(&answered));
}

#[tokio::test]
async fn a_lone_surrogate_passes_verbatim_or_is_refused() {
    let upstream = Upstream::run().await;
    let gateway = Gateway::transparent(&upstream).run().await;

    let body = r#"{"model":"gpt-4o-mini","messages":[{"role":"user","content":"\ud83d"}]}"#;
    let response = gateway.post("/v1/chat/completions").key(KEY).body("application/json", body).send().await;

    match response.status {
        200 => assert_eq!(upstream.next_request().await.body, body.as_bytes()),
        status => assert_eq!(status, 400, "{}", response.text()),
    }
}

// === exchanges that no SDK would write ===

struct Exchange {
    path: &'static str,
    content_type: &'static str,
    sent: Vec<u8>,
    answered: Vec<u8>,
    /// Where the reply is cut into chunks; empty for a body with a length.
    cuts: Vec<usize>,
}

impl Exchange {
    fn invent(number: usize, dice: &mut Dice) -> Self {
        match number % 8 {
            0 | 1 => Self::chat(dice),
            2 | 3 => Self::chat_stream(dice),
            4 => Self::of(
                "/v1/responses",
                "\"input\":[{\"type\":\"message\",\"role\":\"user\",\"content\":\"hi\"}]",
                dice,
            ),
            5 => Self::of("/v1/embeddings", "\"input\" : [\"a\",  \"\\u00e9\"]", dice),
            6 => Self::of(
                "/v1/messages",
                "\"max_tokens\": 64 ,\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]",
                dice,
            ),
            _ => Self::upload(dice),
        }
    }

    fn of(path: &'static str, core: &str, dice: &mut Dice) -> Self {
        let sent = odd_object(&["\"model\":\"gpt-4o-mini\"", core, &odd_members(dice)], dice);
        let answered = odd_object(&["\"id\":\"x\"", &odd_members(dice)], dice).into_bytes();
        Self { path, content_type: "application/json", sent: sent.into_bytes(), answered, cuts: Vec::new() }
    }

    fn chat(dice: &mut Dice) -> Self {
        Self::of("/v1/chat/completions", CHAT, dice)
    }

    fn chat_stream(dice: &mut Dice) -> Self {
        let sent = odd_object(&["\"model\": \"gpt-4o-mini\"", "\"stream\"  :true", CHAT, &odd_members(dice)], dice);
        let answered = odd_stream(dice).into_bytes();
        let cuts = (0..dice.below(9) + 1).map(|_| dice.below(answered.len())).collect();
        Self { path: "/v1/chat/completions", content_type: "application/json", sent: sent.into_bytes(), answered, cuts }
    }

    fn upload(dice: &mut Dice) -> Self {
        let mut sent = b"--b0undary\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper-1\r\n--b0undary\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n".to_vec();
        sent.extend((0..2000).map(|_| dice.below(256) as u8));
        sent.extend_from_slice(b"\r\n--b0undary--\r\n");
        let answered = (0..3000).map(|_| dice.below(256) as u8).collect();
        let content_type = "multipart/form-data; boundary=b0undary";
        Self { path: "/v1/audio/transcriptions", content_type, sent, answered, cuts: Vec::new() }
    }

    fn reply(&self) -> Reply {
        if self.cuts.is_empty() {
            let content_type =
                if self.content_type.starts_with("application/json") { "application/json" } else { "audio/mpeg" };
            return Reply::bytes(200, content_type, &*self.answered);
        }
        let mut cuts = self.cuts.clone();
        cuts.sort_unstable();
        let (mut reply, mut from) = (Reply::stream(), 0);
        for to in cuts.into_iter().chain([self.answered.len()]) {
            reply = reply.data(&self.answered[from..to]);
            from = to;
        }
        reply
    }

    fn describe(&self, heard: &[u8]) -> String {
        format!("sent {:?}, heard {:?}", String::from_utf8_lossy(&self.sent), String::from_utf8_lossy(heard))
    }
}

const CHAT: &str = r#""messages" :[{"role":"user","content":[{"type":"text","text":"\ud83d\ude00 日本"},{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgo=","detail":"low"}}],"x":0},{"role":"assistant","content":null,"tool_calls":[{"id":"a","type":"function","function":{"name":"f","arguments":"{\"q\": 1.0}"}},{"id":"b","type":"function","function":{"name":"g","arguments":""}}]},{"role":"tool","tool_call_id":"a","content":"1"},{"role":"tool","tool_call_id":"b","content":""}]"#;

/// A few members that a gateway might be tempted to drop, sort or respell.
fn odd_members(dice: &mut Dice) -> String {
    let values = [
        "1.0",
        "1e2",
        "-0.0",
        "1E+2",
        "0.10",
        "\"\\u0041\\/\"",
        "[ ]",
        "{ }",
        "null",
        "{\"b\":1,\"a\":2}",
        "\"\\ud83d\\ude00\"",
        "[1,\n2]",
        "12345678901234567890",
    ];
    let spaces = ["", " ", "\n", "\t ", "\r\n"];
    let names = ["seed_hint", "vendor", "x-unknown", "extra.dotted", "Ümlaut", "z", "a"];
    let count = dice.below(names.len() - 1) + 1;
    let mut members = Vec::new();
    for name in &names[..count] {
        members.push(format!(
            "{}\"{name}\"{}:{}{}",
            dice.pick(&spaces),
            dice.pick(&spaces),
            dice.pick(&spaces),
            dice.pick(&values)
        ));
    }
    let turn = dice.below(members.len());
    members.rotate_left(turn);
    members.join(",")
}

fn odd_object(parts: &[&str], dice: &mut Dice) -> String {
    let mut parts = parts.to_vec();
    let turn = dice.below(parts.len());
    parts.rotate_left(turn);
    let space = dice.pick(&["", " ", "\r\n  ", "\t"]);
    format!("{{{space}{}{space}}}", parts.join(&format!("{space},")))
}

fn odd_stream(dice: &mut Dice) -> String {
    let end = dice.pick(&["\n", "\r\n", "\r"]);
    let mut stream = String::from(dice.pick(&["", "\u{feff}", ": hello\n\n"]));
    for number in 0..dice.below(6) + 2 {
        stream.push_str(&match dice.below(5) {
            0 => format!(": ping {number}{end}{end}"),
            1 => format!("event: chunk{end}id: {number}{end}data: {{\"choices\":{end}data: []}}{end}{end}"),
            2 => format!("data:{{\"choices\":[{{\"delta\":{{\"content\":\"日本 \\u00e9😀\"}}}}]}}{end}{end}"),
            3 => format!("retry: 10{end}data: not json{end}{end}{end}"),
            _ => format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{number}\"}}}}]}}{end}{end}"),
        });
    }
    stream.push_str(&format!("data: [DONE]{end}{end}"));
    stream
}

/// Members in the order of their names, since the diff is about content.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by_key(|(name, _)| (*name).clone());
            Value::Object(members.into_iter().map(|(name, value)| (name.clone(), sorted(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}
