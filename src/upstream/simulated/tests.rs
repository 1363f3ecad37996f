//! Every endpoint, whole and streamed, and every way to misbehave.

use std::time::Instant;

use http::Request;
use http_body_util::BodyExt;

use super::*;

const INSTANT: Simulated =
    Simulated { tokens_per_second: f64::INFINITY, time_to_first_token: Duration::ZERO, error_rate: 0.0 };

fn words(text: &str) -> u64 {
    text.split_whitespace().count() as u64
}

async fn post(settings: &Simulated, path: &str, headers: &[(&str, &str)], request: &Value) -> Response<SimBody> {
    let mut builder = Request::post(path);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    let (parts, ()) = builder.body(()).unwrap().into_parts();
    respond(settings, words, &parts, request.to_string().into()).await
}

async fn bytes(response: Response<SimBody>) -> Result<String, SimError> {
    Ok(String::from_utf8(response.into_body().collect().await?.to_bytes().to_vec()).unwrap())
}

async fn whole(path: &str, request: Value) -> Value {
    let response = post(&INSTANT, path, &[], &request).await;
    assert_eq!(response.headers()["content-type"], "application/json");
    serde_json::from_str(&bytes(response).await.unwrap()).unwrap()
}

/// The `data` of each event, without `[DONE]`.
async fn streamed(path: &str, mut request: Value) -> Vec<Value> {
    request["stream"] = json!(true);
    let response = post(&INSTANT, path, &[], &request).await;
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/event-stream"));
    data_of(&bytes(response).await.unwrap())
}

fn data_of(text: &str) -> Vec<Value> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("data: "));
    lines.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
}

fn chat(user: &str) -> Value {
    json!({"model": "sim-small", "messages": [{"role": "user", "content": user}]})
}

fn text(reply: &Value) -> &str {
    reply["choices"][0]["message"]["content"].as_str().unwrap()
}

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn the_same_question_gets_the_same_words_under_a_fresh_id() {
    let (first, again) = (whole(CHAT, chat("Refund my order")).await, whole(CHAT, chat("Refund my order")).await);
    assert_eq!(text(&first), text(&again));
    assert_ne!(first["id"], again["id"]);
    assert_ne!(text(&first), text(&whole(CHAT, chat("Cancel my subscription")).await));
    assert!(text(&whole(CHAT, chat("Cancel my subscription")).await).contains("subscription"));
}

#[tokio::test]
async fn what_the_system_prompt_knows_is_answered() {
    let ask = |system: &str| {
        json!({"model": "m", "messages": [
            {"role": "system", "content": system}, {"role": "user", "content": "How do refunds work?"}]})
    };
    let brief = whole("/v1/chat/completions", ask("Be brief.\n- Refunds: within 14 days.")).await;
    assert_eq!(text(&brief), "within 14 days.");
    let ignorant = whole("/v1/chat/completions", ask("Be brief.")).await;
    assert!(!text(&ignorant).contains("14 days"));
}

#[tokio::test]
async fn a_warm_system_prompt_is_answered_warmly() {
    let mut request = chat("Refund my order");
    request["messages"].as_array_mut().unwrap().insert(0, json!({"role": "system", "content": "Be warm and kind."}));
    let reply = whole(CHAT, request).await;
    assert!(text(&reply).split_inclusive('!').count() > 1, "{reply}");
}

#[tokio::test]
async fn a_stream_says_what_the_whole_reply_says() {
    let request = chat("How do refunds work?");
    let reply = whole(CHAT, request.clone()).await;
    let chunks = streamed(CHAT, request).await;
    let said: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(said, text(&reply));
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "stop");
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
}

#[tokio::test]
async fn usage_is_counted_and_streamed_on_demand() {
    let mut request = chat("How do refunds work?");
    let reply = whole(CHAT, request.clone()).await;
    assert_eq!(reply["usage"]["completion_tokens"], words(text(&reply)));
    // 3 around the message, its role, 4 words, 3 before the reply.
    assert_eq!(reply["usage"]["prompt_tokens"], 11);

    request["stream_options"] = json!({"include_usage": true});
    let chunks = streamed(CHAT, request).await;
    let (last, others) = chunks.split_last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &reply["usage"]));
    assert!(others.iter().all(|chunk| chunk["usage"] == Value::Null && chunk.get("usage").is_some()));
}

#[tokio::test]
async fn a_stream_of_chat_ends_with_done() {
    let mut request = chat("hello");
    request["stream"] = json!(true);
    assert!(bytes(post(&INSTANT, CHAT, &[], &request).await).await.unwrap().ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn caps_and_stop_sequences_hold() {
    let mut request = chat("How do refunds work?");
    request["max_completion_tokens"] = json!(7);
    let reply = whole(CHAT, request.clone()).await;
    assert_eq!(reply["usage"]["completion_tokens"], 7);
    assert_eq!(reply["choices"][0]["finish_reason"], "length");

    request["max_completion_tokens"] = json!(1000);
    request["stop"] = json!(["."]);
    let reply = whole(CHAT, request).await;
    assert!(!text(&reply).contains('.') && reply["choices"][0]["finish_reason"] == "stop", "{reply}");
}

#[tokio::test]
async fn each_choice_is_another_answer_and_all_are_charged() {
    let mut request = chat("How do refunds work?");
    request["n"] = json!(3);
    let reply = whole(CHAT, request.clone()).await;
    let choices: Vec<&str> =
        reply["choices"].as_array().unwrap().iter().map(|c| c["message"]["content"].as_str().unwrap()).collect();
    assert!(choices.len() == 3 && choices[0] != choices[1]);
    assert_eq!(reply["usage"]["completion_tokens"], choices.iter().map(|text| words(text)).sum::<u64>());

    let chunks = streamed(CHAT, request).await;
    assert_eq!(chunks.iter().filter(|chunk| chunk["choices"][0]["finish_reason"] == "stop").count(), 3);
}

fn with_tool(user: &str, choice: Value) -> Value {
    let mut request = chat(user);
    request["tools"] = json!([{"type": "function", "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }}]);
    request["tool_choice"] = choice;
    request
}

#[tokio::test]
async fn a_tool_is_called_when_required_or_asked_for() {
    for (user, choice, called) in [
        ("hello there", json!("auto"), false),
        ("hello there", json!("required"), true),
        ("hello there", json!({"type": "function", "function": {"name": "get_weather"}}), true),
        ("please get weather for Bonn", json!("auto"), true),
        ("please get weather for Bonn", json!("none"), false),
    ] {
        let reply = whole(CHAT, with_tool(user, choice.clone())).await;
        let choice_made = &reply["choices"][0];
        assert_eq!(choice_made["finish_reason"] == "tool_calls", called, "{user} {choice}: {reply}");
        if called {
            let function = &choice_made["message"]["tool_calls"][0]["function"];
            let arguments: Value = serde_json::from_str(function["arguments"].as_str().unwrap()).unwrap();
            assert!(function["name"] == "get_weather" && arguments["city"].is_string());
        }
    }
}

#[tokio::test]
async fn a_streamed_tool_call_joins_to_valid_arguments() {
    let chunks = streamed(CHAT, with_tool("hello there", json!("required"))).await;
    let calls: Vec<&Value> = chunks.iter().map(|c| &c["choices"][0]["delta"]["tool_calls"][0]).collect();
    assert_eq!(calls[0]["function"]["name"], "get_weather");
    let arguments: String = calls.iter().filter_map(|call| call["function"]["arguments"].as_str()).collect();
    assert!(serde_json::from_str::<Value>(&arguments).unwrap()["city"].is_string(), "{arguments}");
}

#[tokio::test]
async fn a_json_schema_is_satisfied() {
    let mut request = chat("Rate this");
    request["response_format"] = json!({"type": "json_schema", "json_schema": {"name": "r", "schema": {
        "type": "object", "properties": {"score": {"type": "integer", "minimum": 1}}, "required": ["score"]}}});
    let reply = whole(CHAT, request).await;
    assert_eq!(serde_json::from_str::<Value>(text(&reply)).unwrap(), json!({"score": 1}));
}

#[tokio::test]
async fn failures_come_on_demand_in_each_dialect() {
    for (path, kind) in [(CHAT, "/error/type"), ("/v1/messages", "/error/type")] {
        let response = post(&INSTANT, path, &[("x-simulate", "error=429")], &chat("hello")).await;
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()["retry-after"], "1");
        let error: Value = serde_json::from_str(&bytes(response).await.unwrap()).unwrap();
        assert!(error.pointer(kind).is_some(), "{error}");
    }
    let by_message = post(&INSTANT, CHAT, &[], &chat("x-simulate: error=503")).await;
    assert_eq!(by_message.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn the_share_of_failures_is_kept_and_repeatable() {
    let flaky = Simulated { error_rate: 0.3, ..INSTANT };
    let mut failed = 0;
    for number in 0..500 {
        let request = chat(&format!("question {number}"));
        let first = post(&flaky, CHAT, &[], &request).await.status();
        assert_eq!(first, post(&flaky, CHAT, &[], &request).await.status());
        failed += u32::from(first == StatusCode::INTERNAL_SERVER_ERROR);
    }
    assert!((110..190).contains(&failed), "{failed} of 500");
}

#[tokio::test]
async fn a_cut_breaks_the_body_after_that_many_pieces() {
    let mut request = chat("hello");
    request["stream"] = json!(true);
    let mut body = post(&INSTANT, CHAT, &[("x-simulate", "cut=5")], &request).await.into_body();
    let mut pieces = 0;
    let error = loop {
        match body.frame().await.unwrap() {
            Ok(frame) => {
                let events = data_of(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
                pieces += events.iter().filter(|e| e["choices"][0]["delta"]["content"].as_str() > Some("")).count();
            }
            Err(error) => break error,
        }
    };
    assert_eq!((pieces, error), (5, SimError));

    let whole = post(&INSTANT, CHAT, &[("x-simulate", "cut=5")], &chat("hello")).await;
    assert_eq!(bytes(whole).await.unwrap_err(), SimError);
}

#[tokio::test]
async fn lengths_cached_and_reasoning_tokens_come_on_demand() {
    let headers = [("x-simulate", "tokens=200|cached=4|reasoning=30")];
    let response = post(&INSTANT, CHAT, &headers, &chat("hello dear provider how are you")).await;
    let usage = serde_json::from_str::<Value>(&bytes(response).await.unwrap()).unwrap()["usage"].clone();
    assert_eq!(usage["completion_tokens"], 230);
    assert_eq!(usage["completion_tokens_details"]["reasoning_tokens"], 30);
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 4);
}

#[tokio::test]
async fn output_takes_its_time() {
    let slow = Simulated { tokens_per_second: 200.0, time_to_first_token: Duration::from_millis(30), error_rate: 0.0 };
    let mut request = chat("x-simulate: tokens=20 latency=20ms");
    for stream in [false, true] {
        request["stream"] = json!(stream);
        let begun = Instant::now();
        let response = post(&slow, CHAT, &[], &request).await;
        let head = begun.elapsed();
        bytes(response).await.unwrap();
        // 20 ms of latency, 30 to the first token, 20 tokens at 5 ms each.
        assert!(head >= Duration::from_millis(50), "head after {head:?}");
        assert!(begun.elapsed() >= Duration::from_millis(145), "done after {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn completions_are_spoken() {
    let request = json!({"model": "sim", "prompt": "Once upon a time", "max_tokens": 9});
    let reply = whole("/v1/completions", request.clone()).await;
    assert_eq!((&reply["object"], &reply["usage"]["completion_tokens"]), (&json!("text_completion"), &json!(9)));
    let chunks = streamed("/v1/completions", request).await;
    let said: String = chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(said, reply["choices"][0]["text"]);
}

#[tokio::test]
async fn embeddings_are_unit_vectors_of_which_related_ones_are_nearer() {
    let request =
        json!({"model": "e", "input": ["refund my order", "refund the order", "blue whales sing"], "dimensions": 256});
    let reply = whole("/v1/embeddings", request).await;
    let vectors: Vec<Vec<f64>> = reply["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["embedding"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect())
        .collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    assert!((dot(&vectors[0], &vectors[0]) - 1.0).abs() < 1e-5);
    assert!(dot(&vectors[0], &vectors[1]) > 0.3 && dot(&vectors[0], &vectors[2]).abs() < 0.3);
    assert_eq!(reply["usage"]["total_tokens"], 9);
}

#[tokio::test]
async fn embeddings_come_in_base64_too() {
    use base64::Engine;
    let ask = |format| json!({"model": "e", "input": [1, 2, 3], "dimensions": 8, "encoding_format": format});
    let floats = whole("/v1/embeddings", ask("float")).await;
    let encoded = whole("/v1/embeddings", ask("base64")).await;
    let bytes =
        base64::engine::general_purpose::STANDARD.decode(encoded["data"][0]["embedding"].as_str().unwrap()).unwrap();
    let decoded: Vec<f32> = bytes.chunks(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect();
    assert_eq!(json!(decoded), floats["data"][0]["embedding"]);
    assert_eq!(floats["usage"]["prompt_tokens"], 3);
}

#[tokio::test]
async fn responses_come_as_the_documented_sequence() {
    let request = json!({"model": "sim", "input": "How do refunds work?", "max_output_tokens": 5});
    let events = streamed("/v1/responses", request.clone()).await;
    let mut names: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    names.dedup();
    assert_eq!(
        names,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.incomplete",
        ]
    );
    assert!(events.iter().enumerate().all(|(number, event)| event["sequence_number"] == number));
    let reply = whole("/v1/responses", request).await;
    let said: String = events.iter().filter_map(|event| event["delta"].as_str()).collect();
    assert_eq!(said, reply["output"][0]["content"][0]["text"]);
    assert_eq!(reply["usage"]["output_tokens"], 5);
    assert_eq!(events.last().unwrap()["response"]["usage"], reply["usage"]);
}

#[tokio::test]
async fn anthropic_messages_are_spoken_whole_and_streamed() {
    let mut request = chat("How do refunds work?");
    request["max_tokens"] = json!(6);
    let reply = whole("/v1/messages", request.clone()).await;
    assert_eq!((&reply["stop_reason"], &reply["usage"]["output_tokens"]), (&json!("max_tokens"), &json!(6)));

    let events = streamed("/v1/messages", request.clone()).await;
    let mut names: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    names.dedup();
    assert_eq!(
        names,
        [
            "message_start",
            "content_block_start",
            "ping",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
    );
    let said: String = events.iter().filter_map(|event| event["delta"]["text"].as_str()).collect();
    assert_eq!(said, reply["content"][0]["text"]);
    assert_eq!(events[events.len() - 2]["usage"]["output_tokens"], 6);

    let counted = whole("/v1/messages/count_tokens", request).await;
    assert_eq!(counted["input_tokens"], reply["usage"]["input_tokens"]);
}

#[tokio::test]
async fn anthropic_tools_are_called() {
    let mut request = chat("hello");
    request["max_tokens"] = json!(100);
    request["tools"] =
        json!([{"name": "look_up", "input_schema": {"type": "object", "properties": {"id": {"type": "integer"}}}}]);
    request["tool_choice"] = json!({"type": "any"});
    let reply = whole("/v1/messages", request.clone()).await;
    assert_eq!((&reply["stop_reason"], &reply["content"][0]["input"]), (&json!("tool_use"), &json!({"id": 1})));
    let events = streamed("/v1/messages", request).await;
    let arguments: String = events.iter().filter_map(|event| event["delta"]["partial_json"].as_str()).collect();
    assert_eq!(serde_json::from_str::<Value>(&arguments).unwrap(), json!({"id": 1}));
}

#[tokio::test]
async fn wrong_requests_are_refused_in_the_dialect() {
    for (path, request, status) in [
        (CHAT, json!({"model": "sim"}), 400),
        (CHAT, json!({"messages": [{"role": "user", "content": "hi"}]}), 400),
        ("/v1/messages", chat("no max_tokens"), 400),
        ("/v1/embeddings", json!({"model": "e", "input": 7}), 400),
        ("/v1/audio/speech", json!({}), 404),
    ] {
        let response = post(&INSTANT, path, &[], &request).await;
        assert_eq!(response.status(), status, "{path} {request}");
        assert!(bytes(response).await.unwrap().contains("error"));
    }
}
