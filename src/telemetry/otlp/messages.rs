//! What a call said and what it was answered, in the messages of OpenTelemetry's conventions for generative AI, of what was captured of
//! both bodies: redacted first, then cut to size.
//!
//! Only texts, tool calls and their results are told; of images, sounds and files no more than that they were there. A body that
//! cannot be read (too long, not JSON, broken off) gives nothing.
//!
//! Schemas: <https://github.com/open-telemetry/semantic-conventions/tree/v1.41.0/docs/gen-ai> (`gen-ai-input-messages.json`,
//! `gen-ai-output-messages.json`, `gen-ai-system-instructions.json`).

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    policy::traces::Content,
    record::{Capture, Captured},
    wire::sse,
};

/// What a call said and was answered.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Messages {
    /// Instructions that stand beside the messages: parts.
    pub(super) system: Vec<Value>,
    /// What was sent: messages with parts.
    pub(super) input: Vec<Value>,
    /// What came back: messages with parts and the reason of their end.
    pub(super) output: Vec<Value>,
}

impl Messages {
    /// Of a call to `endpoint` whose bodies were captured.
    pub(super) fn of(endpoint: &str, bodies: &Captured, content: &Content) -> Messages {
        let request = text(&bodies.request, content).and_then(|text| serde_json::from_str(&text).ok());
        let reply = text(&bodies.reply, content).and_then(|text| reply(endpoint, &text, content));
        let (system, input) = request.map(|request| sent(endpoint, &request)).unwrap_or_default();
        let output = reply.map(|reply| answered(endpoint, &reply)).unwrap_or_default();
        let mut messages = Messages { system, input, output };
        let mut left = content.bytes_max;
        messages.system.iter_mut().chain(&mut messages.input).for_each(|value| cut(value, &mut left));
        left = content.bytes_max;
        messages.output.iter_mut().for_each(|value| cut(value, &mut left));
        messages
    }
}

/// A body without what is to be taken out; `None` where not all of it was captured.
fn text(capture: &Capture, content: &Content) -> Option<String> {
    let is_whole = capture.length == capture.bytes.len() as u64 && capture.length > 0;
    let text = is_whole.then(|| String::from_utf8_lossy(&capture.bytes))?;
    content.redactor.redact(&text, false)
}

/// Cuts all texts in `value` so that they are `left` bytes in all; what is left of that stays in `left`.
fn cut(value: &mut Value, left: &mut usize) {
    match value {
        Value::String(text) => {
            if text.len() > *left {
                text.truncate(text.floor_char_boundary(*left));
                text.push('…');
            }
            *left = left.saturating_sub(text.len());
        }
        Value::Array(values) => values.iter_mut().for_each(|value| cut(value, left)),
        // What a message is made of is named by words that the conventions know.
        Value::Object(fields) => {
            let texts =
                fields.iter_mut().filter(|(name, _)| !matches!(name.as_str(), "type" | "role" | "finish_reason"));
            texts.for_each(|(_, value)| cut(value, left));
        }
        _ => {}
    }
}

// === requests ===

/// The instructions and the messages of a request.
fn sent(endpoint: &str, request: &Value) -> (Vec<Value>, Vec<Value>) {
    match endpoint {
        "chat_completions" => (Vec::new(), list(&request["messages"]).iter().map(chat_message).collect()),
        "completions" => (Vec::new(), vec![message("user", parts(&request["prompt"]))]),
        "responses" => (parts(&request["instructions"]), response_items(&request["input"])),
        "messages" => (parts(&request["system"]), list(&request["messages"]).iter().map(chat_message).collect()),
        _ => Default::default(),
    }
}

/// A message of OpenAI's chat completions or of Anthropic's messages: they differ in what their parts are called.
fn chat_message(typed: &Value) -> Value {
    let role = word(&typed["role"]);
    if role == "tool" {
        return message("tool", vec![tool_result(&typed["tool_call_id"], &typed["content"])]);
    }
    let mut parts = parts(&typed["content"]);
    let calls = list(&typed["tool_calls"]).iter();
    parts.extend(calls.map(|call| tool_call(&call["id"], &call["function"]["name"], &call["function"]["arguments"])));
    message(role, parts)
}

/// The items of OpenAI's responses, or one text.
fn response_items(items: &Value) -> Vec<Value> {
    if items.is_string() {
        return vec![message("user", parts(items))];
    }
    list(items).iter().map(response_item).collect()
}

fn response_item(item: &Value) -> Value {
    match word(&item["type"]) {
        "function_call" => message("assistant", vec![tool_call(&item["call_id"], &item["name"], &item["arguments"])]),
        "function_call_output" => message("tool", vec![tool_result(&item["call_id"], &item["output"])]),
        "reasoning" => message("assistant", parts_as("reasoning", &item["summary"])),
        "message" | "" => message(word(&item["role"]), parts(&item["content"])),
        other => message("assistant", vec![json!({ "type": other })]),
    }
}

// === replies ===

/// The messages of a reply.
fn answered(endpoint: &str, reply: &Value) -> Vec<Value> {
    let ended = |mut message: Value, reason: &Value| {
        // None is made up where the provider gave none.
        if let Some(reason) = reason.as_str() {
            message["finish_reason"] = finish_reason(reason).into();
        }
        message
    };
    match endpoint {
        "chat_completions" => {
            let choices = list(&reply["choices"]).iter();
            choices.map(|choice| ended(chat_message(&choice["message"]), &choice["finish_reason"])).collect()
        }
        "completions" => {
            let choices = list(&reply["choices"]).iter();
            let said = |choice: &Value| message("assistant", parts(&choice["text"]));
            choices.map(|choice| ended(said(choice), &choice["finish_reason"])).collect()
        }
        "messages" if reply["content"].is_array() => vec![ended(chat_message(reply), &reply["stop_reason"])],
        "responses" => {
            let items = list(&reply["output"]).iter().map(response_item);
            let parts = items.flat_map(|mut item| item["parts"].as_array_mut().map(std::mem::take).unwrap_or_default());
            let parts: Vec<Value> = parts.collect();
            let reason = &reply["incomplete_details"]["reason"];
            let reason = if reason.is_null() { &reply["status"] } else { reason };
            if parts.is_empty() { Vec::new() } else { vec![ended(message("assistant", parts), reason)] }
        }
        _ => Vec::new(),
    }
}

/// The conventions' word for why a reply ended; the provider's own where they have none.
fn finish_reason(reason: &str) -> &str {
    match reason {
        "end_turn" | "stop_sequence" | "completed" => "stop",
        "max_tokens" | "max_output_tokens" => "length",
        "tool_calls" | "tool_use" | "function_call" => "tool_call",
        "refusal" => "content_filter",
        "failed" => "error",
        other => other,
    }
}

/// A reply as it would have come in one piece.
fn reply(endpoint: &str, text: &str, content: &Content) -> Option<Value> {
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text).ok();
    }
    let mut events = Vec::new();
    let mut parser = sse::Parser::new(sse::EVENT_BYTES_MAX);
    let mut read = |event: sse::Event<'_>| events.extend(serde_json::from_slice::<Value>(event.data));
    parser.push(text.as_bytes(), &mut read);
    parser.finish(&mut read);
    let joined = match endpoint {
        "chat_completions" | "completions" => joined_choices(&events),
        "messages" => joined_blocks(&events),
        "responses" => events.into_iter().rev().find_map(whole_response)?,
        _ => return None,
    };
    // Once more: what is to be taken out may have come in pieces.
    serde_json::from_str(&content.redactor.redact(&joined.to_string(), false)?).ok()
}

/// The last event of a stream of responses has all of it.
fn whole_response(mut event: Value) -> Option<Value> {
    let response = event.get_mut("response").map(Value::take)?;
    response["output"].is_array().then_some(response)
}

/// The choices of a stream of OpenAI's.
fn joined_choices(events: &[Value]) -> Value {
    let mut choices: BTreeMap<u64, Value> = BTreeMap::new();
    for piece in events.iter().flat_map(|event| list(&event["choices"])) {
        let choice = choices.entry(piece["index"].as_u64().unwrap_or_default()).or_insert_with(|| {
            json!({ "message": { "role": "assistant", "content": "", "tool_calls": [] }, "text": "", "finish_reason": null })
        });
        append(&mut choice["text"], &piece["text"]);
        append(&mut choice["message"]["content"], &piece["delta"]["content"]);
        if !piece["finish_reason"].is_null() {
            choice["finish_reason"] = piece["finish_reason"].clone();
        }
        for call in list(&piece["delta"]["tool_calls"]) {
            let at = call["index"].as_u64().unwrap_or_default() as usize;
            let Some(calls) = choice["message"]["tool_calls"].as_array_mut() else { continue };
            if at == calls.len() {
                calls.push(
                    json!({ "id": call["id"], "function": { "name": call["function"]["name"], "arguments": "" } }),
                );
            }
            if let Some(known) = calls.get_mut(at) {
                append(&mut known["function"]["arguments"], &call["function"]["arguments"]);
            }
        }
    }
    json!({ "choices": choices.into_values().collect::<Vec<Value>>() })
}

/// The content of a stream of Anthropic's.
fn joined_blocks(events: &[Value]) -> Value {
    let (mut blocks, mut inputs): (Vec<Value>, Vec<Value>) = (Vec::new(), Vec::new());
    let mut reason = Value::Null;
    for event in events {
        match word(&event["type"]) {
            "content_block_start" => {
                blocks.push(event["content_block"].clone());
                inputs.push(Value::from(""));
            }
            "content_block_delta" => {
                let at = event["index"].as_u64().unwrap_or_default() as usize;
                let (Some(block), Some(input)) = (blocks.get_mut(at), inputs.get_mut(at)) else { continue };
                append(&mut block["text"], &event["delta"]["text"]);
                append(&mut block["thinking"], &event["delta"]["thinking"]);
                append(input, &event["delta"]["partial_json"]);
            }
            "message_delta" => reason = event["delta"]["stop_reason"].clone(),
            _ => {}
        }
    }
    for (block, input) in blocks.iter_mut().zip(inputs) {
        if !word(&input).is_empty() {
            block["input"] = input;
        }
    }
    json!({ "role": "assistant", "content": blocks, "stop_reason": reason })
}

/// Appends a piece of a text, where it is one.
fn append(to: &mut Value, piece: &Value) {
    let Some(piece) = piece.as_str() else { return };
    match to {
        Value::String(text) => text.push_str(piece),
        other => *other = piece.into(),
    }
}

// === parts ===

fn message(role: &str, parts: Vec<Value>) -> Value {
    json!({ "role": role, "parts": Value::Array(parts) })
}

/// The parts of a content: one text, or a list of texts and parts of other kinds.
fn parts(content: &Value) -> Vec<Value> {
    parts_as("text", content)
}

fn parts_as(kind: &str, content: &Value) -> Vec<Value> {
    match content {
        Value::String(text) if text.is_empty() => Vec::new(),
        Value::String(text) => vec![json!({ "type": kind, "content": text })],
        Value::Array(parts) => parts.iter().map(|one| part(kind, one)).collect(),
        _ => Vec::new(),
    }
}

fn part(kind: &str, typed: &Value) -> Value {
    match word(&typed["type"]) {
        "text" | "input_text" | "output_text" | "summary_text" => json!({ "type": kind, "content": typed["text"] }),
        "refusal" => json!({ "type": kind, "content": typed["refusal"] }),
        "thinking" => json!({ "type": "reasoning", "content": typed["thinking"] }),
        "tool_use" => tool_call(&typed["id"], &typed["name"], &typed["input"]),
        "tool_result" => tool_result(&typed["tool_use_id"], &typed["content"]),
        // A prompt of texts without more.
        "" => json!({ "type": kind, "content": typed.as_str().unwrap_or_default() }),
        other => json!({ "type": other }),
    }
}

fn tool_call(id: &Value, name: &Value, arguments: &Value) -> Value {
    // Providers send arguments as the text of a document.
    let read = arguments.as_str().and_then(|text| serde_json::from_str(text).ok());
    json!({ "type": "tool_call", "id": id, "name": name, "arguments": read.unwrap_or_else(|| arguments.clone()) })
}

fn tool_result(id: &Value, content: &Value) -> Value {
    let response = match content {
        Value::Array(_) => Value::from(parts(content)),
        other => other.clone(),
    };
    json!({ "type": "tool_call_response", "id": id, "response": response })
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::policy::redact::Redactor;

    fn messages(endpoint: &str, request: &Value, reply: &str, bytes_max: usize) -> Messages {
        let mut bodies = Captured::new(1 << 20);
        bodies.request.push(request.to_string().as_bytes());
        bodies.reply.push(reply.as_bytes());
        Messages::of(endpoint, &bodies, &Content { redactor: Arc::new(Redactor::builtin()), bytes_max })
    }

    fn stream(events: &[Value]) -> String {
        events.iter().map(|event| format!("data: {event}\n\n")).collect::<String>() + "data: [DONE]\n\n"
    }

    fn said(role: &str, text: &str) -> Value {
        json!({ "role": role, "parts": [{ "type": "text", "content": text }] })
    }

    fn ended(text: &str, reason: &str) -> Value {
        json!({ "role": "assistant", "parts": [{ "type": "text", "content": text }], "finish_reason": reason })
    }

    #[test]
    fn a_chat_with_tools_is_told_in_parts() {
        let request = json!({ "messages": [
            { "role": "system", "content": "Be brief." },
            { "role": "user", "content": [{ "type": "text", "text": "Weather?" }, { "type": "image_url", "image_url": { "url": "data:x" } }] },
            { "role": "assistant", "content": null, "tool_calls": [{ "id": "c1", "type": "function", "function": { "name": "w", "arguments": "{\"at\":1}" } }] },
            { "role": "tool", "tool_call_id": "c1", "content": "rain" },
        ] });
        let reply = json!({ "choices": [{ "index": 0, "message": { "role": "assistant", "content": "Rain." }, "finish_reason": "stop" }] });
        let told = messages("chat_completions", &request, &reply.to_string(), 1000);
        assert_eq!(told.system, [json!(null); 0]);
        assert_eq!(
            told.input,
            [
                said("system", "Be brief."),
                json!({ "role": "user", "parts": [{ "type": "text", "content": "Weather?" }, { "type": "image_url" }] }),
                json!({ "role": "assistant", "parts": [{ "type": "tool_call", "id": "c1", "name": "w", "arguments": { "at": 1 } }] }),
                json!({ "role": "tool", "parts": [{ "type": "tool_call_response", "id": "c1", "response": "rain" }] }),
            ]
        );
        assert_eq!(told.output, [ended("Rain.", "stop")]);
    }

    #[test]
    fn a_stream_is_told_as_its_whole() {
        let piece = |delta: Value, reason: Value| json!({ "choices": [{ "index": 0, "delta": delta, "finish_reason": reason }] });
        let call = |call: Value| json!({ "tool_calls": [call] });
        let pieces = stream(&[
            piece(json!({ "role": "assistant", "content": "my key is sk-0123456789" }), json!(null)),
            piece(json!({ "content": "abcdefghij." }), json!(null)),
            piece(
                call(json!({ "index": 0, "id": "c1", "function": { "name": "w", "arguments": "{\"a" } })),
                json!(null),
            ),
            piece(call(json!({ "index": 0, "function": { "arguments": "\":1}" } })), json!(null)),
            piece(json!({}), json!("tool_calls")),
        ]);
        let told = messages("chat_completions", &json!({ "messages": [] }), &pieces, 1000);
        let parts = &told.output[0]["parts"];
        assert!(!parts.to_string().contains("sk-0123") && parts.to_string().contains("my key is"), "{parts}");
        assert_eq!(parts[1], json!({ "type": "tool_call", "id": "c1", "name": "w", "arguments": { "a": 1 } }));
        assert_eq!(told.output[0]["finish_reason"], "tool_call");
    }

    #[test]
    fn anthropics_messages_are_told_in_the_same_words() {
        let request = json!({ "system": "Be brief.", "messages": [{ "role": "user", "content": "Hi" }] });
        let events = [
            json!({ "type": "content_block_start", "index": 0, "content_block": { "type": "text", "text": "" } }),
            json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "text_delta", "text": "Hel" } }),
            json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "text_delta", "text": "lo" } }),
            json!({ "type": "content_block_start", "index": 1, "content_block": { "type": "tool_use", "id": "t", "name": "w", "input": {} } }),
            json!({ "type": "content_block_delta", "index": 1, "delta": { "type": "input_json_delta", "partial_json": "{\"a\":1}" } }),
            json!({ "type": "message_delta", "delta": { "stop_reason": "max_tokens" } }),
        ];
        let told = messages("messages", &request, &stream(&events), 1000);
        assert_eq!(told.system, [json!({ "type": "text", "content": "Be brief." })]);
        assert_eq!(told.input, [said("user", "Hi")]);
        let call = json!({ "type": "tool_call", "id": "t", "name": "w", "arguments": { "a": 1 } });
        let parts = json!([{ "type": "text", "content": "Hello" }, call]);
        assert_eq!(told.output, [json!({ "role": "assistant", "parts": parts, "finish_reason": "length" })]);
        let whole =
            json!({ "role": "assistant", "content": [{ "type": "text", "text": "Hello" }], "stop_reason": "end_turn" });
        assert_eq!(messages("messages", &request, &whole.to_string(), 1000).output, [ended("Hello", "stop")]);
    }

    #[test]
    fn responses_and_completions_are_told_too() {
        let request = json!({ "instructions": "Be brief.", "input": "Hi" });
        let response = json!({ "status": "completed", "output": [{ "type": "message", "role": "assistant", "content": [{ "type": "output_text", "text": "Ho" }] }] });
        for reply in
            [response.to_string(), stream(&[json!({ "type": "response.completed", "response": response.clone() })])]
        {
            let told = messages("responses", &request, &reply, 1000);
            assert_eq!((told.system.len(), &told.input[..]), (1, &[said("user", "Hi")][..]));
            assert_eq!(told.output, [ended("Ho", "stop")]);
        }
        let reply = json!({ "choices": [{ "text": "there", "finish_reason": "length" }] }).to_string();
        let told = messages("completions", &json!({ "prompt": ["Hi"] }), &reply, 1000);
        assert_eq!((&told.input[..], &told.output[..]), (&[said("user", "Hi")][..], &[ended("there", "length")][..]));
    }

    #[test]
    fn texts_are_cut_to_size_and_what_cannot_be_read_is_left_out() {
        let request = json!({ "messages": [{ "role": "user", "content": "ä".repeat(10) }, { "role": "user", "content": "more" }] });
        let told = messages("chat_completions", &request, "not JSON", 5);
        assert_eq!(told.input, [said("user", "ää…"), said("user", "…")]);
        assert!(told.output.is_empty());
        let mut broken_off = Captured::new(4);
        broken_off.request.push(request.to_string().as_bytes());
        let content = Content { redactor: Arc::new(Redactor::builtin()), bytes_max: 99 };
        assert_eq!(Messages::of("chat_completions", &broken_off, &content), Messages::default());
    }
}
