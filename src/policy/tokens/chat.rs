//! Prompt tokens of whole requests, before the provider reports them.
//!
//! The framing is OpenAI's own, from "How to count tokens with tiktoken" in its cookbook
//! (<https://github.com/openai/openai-cookbook/blob/main/examples/How_to_count_tokens_with_tiktoken.ipynb>): three tokens a
//! message, one more for a name, three to prime the reply; tools by the constants found there. What is framed otherwise
//! (other vendors, reasoning models, tool calls, images) is counted the same way and reported as not exact.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value};

use super::{Encoding, Exactness, bare_name, images};
use crate::units::Tokens;

/// A count and whether it can be relied on to the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// Prompt tokens.
    pub tokens: Tokens,
    /// Whether the provider will report the same.
    pub exact: bool,
}

/// Prompt tokens of a request body: chat completions, responses, completions, embeddings, or Anthropic messages.
///
/// Remembers each text's count ([`super::count_cached`]). A field of an unexpected type counts as its JSON text.
#[must_use]
pub fn count(request: &Value, model: &str) -> Counted {
    tally(request, model, super::count_cached)
}

/// The same for a body that is not parsed yet; `None` where it is no JSON.
#[must_use]
pub fn count_body(body: &[u8], model: &str) -> Option<Counted> {
    serde_json::from_slice(body).ok().map(|request| count(&request, model))
}

/// The same without cuts in long runs and without memory ([`super::count_exact`]): for use outside the call path.
#[must_use]
pub fn count_exact(request: &Value, model: &str) -> Counted {
    tally(request, model, super::count_exact)
}

const PER_MESSAGE: u64 = 3;
const PER_NAME: u64 = 1;
const REPLY_PRIMING: u64 = 3;

/// Models for which the cookbook states the framing of messages.
const FRAMING_PUBLISHED: [&str; 6] = ["gpt-3.5-turbo", "gpt-35-turbo", "gpt-4-", "gpt-4o", "gpt-4.1", "chatgpt-4o"];

fn tally(request: &Value, model: &str, counter: fn(Encoding, &str) -> Tokens) -> Counted {
    let (encoding, exactness) = Encoding::for_model(model);
    let exact = exactness == Exactness::Exact;
    let mut tally = Tally { model, encoding, counter, tokens: 0, exact };
    let Some(request) = request.as_object() else {
        tally.unknown(request);
        return tally.counted();
    };
    for key in ["system", "instructions"] {
        if let Some(text) = request.get(key).filter(|value| !value.is_null()) {
            tally.exact = false;
            tally.framed(|t| t.content(text));
        }
    }
    if let Some(messages) = request.get("messages").and_then(Value::as_array) {
        tally.conversation(messages);
    }
    if let Some(prompt) = request.get("prompt") {
        tally.plain(prompt);
    }
    if let Some(input) = request.get("input") {
        tally.input(input);
    }
    if let Some(tools) = request.get("tools").and_then(Value::as_array) {
        tally.tools(tools);
    }
    if request.get("response_format").is_some_and(|format| format.get("json_schema").is_some()) {
        tally.exact = false;
        tally.unknown(&request["response_format"]["json_schema"]);
    }
    tally.counted()
}

/// A count in progress.
struct Tally<'a> {
    model: &'a str,
    encoding: Encoding,
    counter: fn(Encoding, &str) -> Tokens,
    tokens: u64,
    exact: bool,
}

impl Tally<'_> {
    fn counted(&self) -> Counted {
        Counted { tokens: Tokens(self.tokens), exact: self.exact }
    }

    fn add(&mut self, tokens: u64) {
        self.tokens = self.tokens.saturating_add(tokens);
    }

    fn text(&mut self, text: &str) {
        self.add((self.counter)(self.encoding, text).0);
    }

    /// Whatever is not understood counts as the text that it is written as.
    fn unknown(&mut self, value: &Value) {
        self.exact = false;
        self.text(&value.to_string());
    }

    /// One message's frame around what `inside` counts.
    fn framed(&mut self, inside: impl FnOnce(&mut Self)) {
        self.add(PER_MESSAGE);
        inside(self);
    }

    fn conversation(&mut self, messages: &[Value]) {
        let model = bare_name(self.model);
        let model = model.strip_prefix("ft:").unwrap_or(model);
        self.exact &= model == "gpt-4" || FRAMING_PUBLISHED.iter().any(|start| model.starts_with(start));
        for message in messages {
            match message.as_object() {
                Some(message) => self.message(message),
                None => self.unknown(message),
            }
        }
        self.add(REPLY_PRIMING);
    }

    fn message(&mut self, message: &Map<String, Value>) {
        self.add(PER_MESSAGE);
        for (key, value) in message {
            match (key.as_str(), value) {
                (_, Value::Null) => {}
                ("role", Value::String(role)) => self.text(role),
                ("name", Value::String(name)) => {
                    self.add(PER_NAME);
                    self.text(name);
                }
                ("content", content) => self.content(content),
                ("tool_calls", Value::Array(calls)) => calls.iter().for_each(|call| self.tool_call(call)),
                // Carried beside the text, and not shown to the model.
                ("tool_call_id" | "id" | "type" | "status" | "cache_control", _) => self.exact = false,
                (_, other) => self.unknown(other),
            }
        }
    }

    fn tool_call(&mut self, call: &Value) {
        self.exact = false;
        self.add(PER_MESSAGE);
        for field in ["name", "arguments"] {
            self.text(call["function"][field].as_str().unwrap_or_default());
        }
    }

    fn content(&mut self, content: &Value) {
        match content {
            Value::String(text) => self.text(text),
            Value::Array(parts) => parts.iter().for_each(|part| self.part(part)),
            Value::Null => {}
            other => self.unknown(other),
        }
    }

    fn part(&mut self, part: &Value) {
        let kind = part["type"].as_str().unwrap_or_default();
        match kind {
            "text" | "input_text" | "output_text" => self.text(part["text"].as_str().unwrap_or_default()),
            "image_url" | "input_image" | "image" => self.image(part),
            "thinking" => self.text(part["thinking"].as_str().unwrap_or_default()),
            "refusal" => self.text(part["refusal"].as_str().unwrap_or_default()),
            "tool_result" => self.content(&part["content"]),
            "tool_use" => {
                self.text(part["name"].as_str().unwrap_or_default());
                self.unknown(&part["input"]);
            }
            // Their tokens can't be known from here: audio by its length, files by their pages.
            "input_audio" | "file" | "input_file" | "document" | "redacted_thinking" => {}
            _ => self.unknown(part),
        }
        self.exact &= matches!(kind, "text");
    }

    /// By its size where that can be seen, else at its most.
    fn image(&mut self, part: &Value) {
        let url = match &part["image_url"] {
            Value::String(url) => url,
            object => object["url"].as_str().unwrap_or_default(),
        };
        let base64 = url.split_once(";base64,").map(|(_, data)| data).or_else(|| part["source"]["data"].as_str());
        let detail = part["image_url"]["detail"].as_str().or_else(|| part["detail"].as_str());
        let low = images::low_detail_tokens(self.model).filter(|_| detail == Some("low"));
        let by_size = || base64.and_then(pixels).map(|(w, h)| images::image_tokens(self.model, w, h));
        let tokens = low.or_else(by_size).unwrap_or_else(|| images::image_tokens_max(self.model));
        self.add(tokens.0);
    }

    /// A text, several, or texts that are tokens already; without frames.
    fn plain(&mut self, input: &Value) {
        match input {
            Value::String(text) => self.text(text),
            Value::Number(_) => self.add(1),
            Value::Array(inputs) => inputs.iter().for_each(|input| self.plain(input)),
            Value::Null => {}
            other => self.unknown(other),
        }
    }

    /// `input` belongs to two APIs: embeddings, and responses with messages and other items.
    fn input(&mut self, input: &Value) {
        let items = input.as_array().filter(|items| items.iter().any(Value::is_object));
        if let Some(items) = items {
            self.exact = false;
            self.conversation(items);
        } else if input.is_array() || self.model.contains("embed") {
            self.plain(input);
        } else {
            self.exact = false;
            self.framed(|t| t.plain(input));
            self.add(1 + REPLY_PRIMING);
        }
    }

    /// The cookbook's formula; nested schemas are beyond it.
    fn tools(&mut self, tools: &[Value]) {
        const PROPERTIES: u64 = 3;
        const PER_PROPERTY: u64 = 3;
        const PER_ENUM_ITEM: u64 = 3;
        const ENUM: u64 = 3;
        const TOOLS_END: u64 = 12;
        if tools.is_empty() {
            return;
        }
        self.exact = false;
        let per_function = if self.encoding == Encoding::Cl100kBase { 10 } else { 7 };
        for tool in tools {
            let function = tool.get("function").unwrap_or(tool);
            self.add(per_function);
            self.text(&format!("{}:{}", text_of(&function["name"]), description_of(function)));
            let schema = function.get("parameters").or_else(|| function.get("input_schema"));
            let Some(properties) = schema.and_then(|s| s["properties"].as_object()).filter(|p| !p.is_empty()) else {
                continue;
            };
            self.add(PROPERTIES);
            for (name, property) in properties {
                self.add(PER_PROPERTY);
                if let Some(items) = property["enum"].as_array() {
                    for item in items {
                        self.add(PER_ENUM_ITEM);
                        self.text(&item.as_str().map_or_else(|| item.to_string(), str::to_owned));
                    }
                    self.tokens = self.tokens.saturating_sub(ENUM);
                }
                self.text(&format!("{name}:{}:{}", text_of(&property["type"]), description_of(property)));
            }
        }
        self.add(TOOLS_END);
    }
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn description_of(value: &Value) -> &str {
    let text = text_of(&value["description"]);
    text.strip_suffix('.').unwrap_or(text)
}

/// Width and height of a PNG, GIF or JPEG, from its first bytes.
fn pixels(base64: &str) -> Option<(u64, u64)> {
    const HEAD: usize = 64 * 1024;
    let head = base64.as_bytes().get(..HEAD.min(base64.len() / 4 * 4))?;
    let bytes = STANDARD.decode(head).ok()?;
    match bytes.get(..4)? {
        [0x89, b'P', b'N', b'G'] => Some((big_endian(&bytes, 16, 4)?, big_endian(&bytes, 20, 4)?)),
        [b'G', b'I', b'F', b'8'] => {
            let side = |at: usize| Some(u64::from(u16::from_le_bytes([*bytes.get(at)?, *bytes.get(at + 1)?])));
            Some((side(6)?, side(8)?))
        }
        [0xff, 0xd8, ..] => jpeg_pixels(&bytes),
        _ => None,
    }
}

/// Walks JPEG segments to the frame header (SOF), which holds the size.
fn jpeg_pixels(bytes: &[u8]) -> Option<(u64, u64)> {
    let mut at = 2;
    loop {
        let [0xff, marker] = *bytes.get(at..at + 2)? else { return None };
        if matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc) {
            return Some((big_endian(bytes, at + 7, 2)?, big_endian(bytes, at + 5, 2)?));
        }
        at += 2 + usize::try_from(big_endian(bytes, at + 2, 2)?).ok()?;
    }
}

fn big_endian(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
    Some(bytes.get(at..at + len)?.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tokens(request: &Value, model: &str) -> (u64, bool) {
        let counted = count(request, model);
        assert_eq!(count_exact(request, model), counted);
        (counted.tokens.0, counted.exact)
    }

    /// The cookbook's example, with the counts that the API returned for it.
    #[test]
    fn messages_count_as_in_the_cookbook() {
        let request = json!({"messages": [
            {"role": "system", "content": "You are a helpful, pattern-following assistant that translates corporate jargon into plain English."},
            {"role": "system", "name": "example_user", "content": "New synergies will help drive top-line growth."},
            {"role": "system", "name": "example_assistant", "content": "Things working well together will increase revenue."},
            {"role": "system", "name": "example_user", "content": "Let's circle back when we have more bandwidth to touch base on opportunities for increased leverage."},
            {"role": "system", "name": "example_assistant", "content": "Let's talk later when we're less busy about how to do better."},
            {"role": "user", "content": "This late pivot means we don't have time to boil the ocean for the client deliverable."},
        ]});
        for (model, expected) in
            [("gpt-3.5-turbo", 129), ("gpt-4-0613", 129), ("gpt-4", 129), ("gpt-4o", 124), ("gpt-4o-mini", 124)]
        {
            assert_eq!(tokens(&request, model), (expected, true), "{model}");
        }
    }

    #[test]
    fn tools_count_as_in_the_cookbook() {
        let request = json!({
            "messages": [
                {"role": "system", "content": "You are a helpful assistant that can answer to questions about the weather."},
                {"role": "user", "content": "What's the weather like in San Francisco?"},
            ],
            "tools": [{"type": "function", "function": {
                "name": "get_current_weather",
                "description": "Get the current weather in a given location",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "location": {"type": "string", "description": "The city and state, e.g. San Francisco, CA"},
                        "unit": {"type": "string", "description": "The unit of temperature to return", "enum": ["celsius", "fahrenheit"]},
                    },
                    "required": ["location"],
                },
            }}],
        });
        for (model, expected) in [("gpt-3.5-turbo", 105), ("gpt-4", 105), ("gpt-4o", 101), ("gpt-4o-mini", 101)] {
            assert_eq!(tokens(&request, model), (expected, false), "{model}");
        }
    }

    #[test]
    fn text_parts_count_like_text() {
        let string = json!({"messages": [{"role": "user", "content": "Hello there"}]});
        let parts = json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello there"}]}]});
        assert_eq!(tokens(&string, "gpt-4o"), tokens(&parts, "gpt-4o"));
        assert_eq!(tokens(&string, "gpt-4o"), (9, true));
    }

    #[test]
    fn embeddings_and_completions_have_no_frames() {
        for request in
            [json!({"prompt": "Hello there"}), json!({"input": ["Hello", " there"]}), json!({"input": [[1, 2]]})]
        {
            assert_eq!(tokens(&request, "text-embedding-3-small"), (2, true), "{request}");
        }
    }

    #[test]
    fn anthropic_requests_are_estimated() {
        let request = json!({
            "system": [{"type": "text", "text": "Be brief."}],
            "messages": [{"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "Hello there"}]},
            ]}],
        });
        assert_eq!(tokens(&request, "claude-sonnet-4-5"), (3 + 3 + 3 + 1 + 2 + 3, false));
    }

    #[test]
    fn images_count_by_their_size_where_it_shows() {
        let image = |url: String, detail: &str| {
            let part = json!({"type": "image_url", "image_url": {"url": url, "detail": detail}});
            tokens(&json!({"messages": [{"role": "user", "content": [part]}]}), "gpt-4o").0 - 7
        };
        let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
        png.extend_from_slice(&[0, 0, 4, 0, 0, 0, 4, 0, 8, 6, 0, 0, 0]);
        let jpeg = [&b"\xff\xd8\xff\xe0\0\x04AB\xff\xc0\0\x11\x08"[..], &[0x10, 0, 0x08, 0], &[3, 1, 2, 3, 4]].concat();
        let url = |bytes: &[u8]| format!("data:image/png;base64,{}", STANDARD.encode(bytes));
        assert_eq!(image(url(&png), "high"), 765);
        assert_eq!(image(url(&jpeg), "auto"), 1105);
        assert_eq!(image(url(&png), "low"), 85);
        assert_eq!(image("https://example.com/cat.png".to_owned(), "high"), 1445);
        assert_eq!(image(url(b"\xff\xd8\xff"), "high"), 1445);
    }

    #[test]
    fn odd_requests_are_counted_as_text_and_never_panic() {
        for request in [
            json!(null),
            json!([]),
            json!("text"),
            json!({}),
            json!({"messages": ["a", 1, null, {"role": 1, "content": 2, "x": {}}]}),
            json!({"messages": [{"role": "user", "content": [1, {"type": "image_url"}, {"type": 5}]}]}),
            json!({"tools": [1, {}, {"function": {"parameters": {"properties": {"a": 1}}}}]}),
            json!({"input": {"a": 1}, "prompt": [[["x"]]], "system": 1}),
        ] {
            tokens(&request, "gpt-4o");
        }
    }
}
