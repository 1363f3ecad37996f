//! What a candidate answered: text and tool calls, read out of a reply of the chat API, whole or streamed.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// What was said.
    pub text: String,
    /// Tools that it wants called, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Why it ended, in the provider's word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<String>,
}

/// One call of a tool.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// The tool.
    pub name: String,
    /// What it is given: an object, or a text where the model wrote no JSON.
    #[serde(default)]
    pub arguments: Value,
}

impl Answer {
    /// An answer that is only text.
    #[must_use]
    pub fn text(text: impl Into<String>) -> Answer {
        Answer { text: text.into(), ..Answer::default() }
    }

    /// The first choice of a chat completion; `None` where the reply is none.
    #[must_use]
    pub fn of_reply(reply: &Value) -> Option<Answer> {
        let choice = reply["choices"].as_array()?.first()?;
        let message = &choice["message"];
        let calls = message["tool_calls"].as_array().map(Vec::as_slice).unwrap_or_default();
        Some(Answer {
            text: text_of(&message["content"]),
            tool_calls: calls.iter().map(|call| tool_call(&call["function"])).collect(),
            finish_reason: choice["finish_reason"].as_str().map(str::to_owned),
        })
    }

    /// The first choice of a stream's chunks; `None` where there is none in them.
    #[must_use]
    pub fn of_chunks<'a>(chunks: impl IntoIterator<Item = &'a Value>) -> Option<Answer> {
        let mut answer = None;
        let mut calls: Vec<(String, String)> = Vec::new();
        for choice in chunks.into_iter().filter_map(|chunk| chunk["choices"].as_array()?.first()) {
            let answer = answer.get_or_insert_with(Answer::default);
            let delta = &choice["delta"];
            answer.text += delta["content"].as_str().unwrap_or_default();
            if let Some(reason) = choice["finish_reason"].as_str() {
                answer.finish_reason = Some(reason.to_owned());
            }
            delta["tool_calls"].as_array().into_iter().flatten().for_each(|piece| add_piece(&mut calls, piece));
        }
        let call = |(name, arguments): (String, String)| ToolCall { name, arguments: parsed(&arguments) };
        answer.map(|answer: Answer| Answer { tool_calls: calls.into_iter().map(call).collect(), ..answer })
    }
}

/// A bound on what a stream may make us keep.
const TOOL_CALLS_MAX: u64 = 256;

fn add_piece(calls: &mut Vec<(String, String)>, piece: &Value) {
    let index = piece["index"].as_u64().unwrap_or(0).min(TOOL_CALLS_MAX) as usize;
    if calls.len() <= index {
        calls.resize_with(index + 1, Default::default);
    }
    let function = &piece["function"];
    calls[index].0 += function["name"].as_str().unwrap_or_default();
    calls[index].1 += function["arguments"].as_str().unwrap_or_default();
}

fn tool_call(function: &Value) -> ToolCall {
    let name = function["name"].as_str().unwrap_or_default().to_owned();
    ToolCall { name, arguments: parsed(function["arguments"].as_str().unwrap_or_default()) }
}

/// Arguments are a text that holds JSON; no text is no argument.
fn parsed(arguments: &str) -> Value {
    match arguments.trim() {
        "" => Value::Object(Map::new()),
        text => serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned())),
    }
}

/// A text, or the text parts of a list.
pub(super) fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_reply_and_its_stream_read_alike() {
        let whole = json!({"choices": [{"message": {"content": "Hi there", "tool_calls": [
            {"function": {"name": "look_up", "arguments": "{\"id\": 7}"}}, {"function": {"name": "end", "arguments": ""}}
        ]}, "finish_reason": "tool_calls"}]});
        let delta = |delta: Value| json!({"choices": [{"delta": delta}]});
        let chunks = [
            delta(json!({"role": "assistant", "content": "Hi "})),
            delta(json!({"content": "there"})),
            delta(json!({"tool_calls": [{"index": 0, "function": {"name": "look_up", "arguments": "{\"id\""}}]})),
            delta(json!({"tool_calls": [{"index": 0, "function": {"arguments": ": 7}"}}]})),
            delta(json!({"tool_calls": [{"index": 1, "function": {"name": "end", "arguments": ""}}]})),
            json!({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}),
            json!({"choices": [], "usage": {"prompt_tokens": 1}}),
        ];
        let answer = Answer::of_reply(&whole).unwrap();
        assert_eq!(Some(&answer), Answer::of_chunks(&chunks).as_ref());
        assert_eq!(answer.text, "Hi there");
        assert_eq!(answer.tool_calls[0], ToolCall { name: "look_up".to_owned(), arguments: json!({"id": 7}) });
        assert_eq!(answer.tool_calls[1].arguments, json!({}));
    }

    #[test]
    fn what_is_no_completion_is_no_answer() {
        assert_eq!(Answer::of_reply(&json!({"error": {"message": "no"}})), None);
        assert_eq!(Answer::of_reply(&json!({"choices": []})), None);
        assert_eq!(Answer::of_chunks(&[json!({"choices": []})]), None);
    }

    #[test]
    fn content_in_parts_is_their_text() {
        let reply = json!({"choices": [{"message": {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}}]});
        assert_eq!(Answer::of_reply(&reply).unwrap().text, "ab");
    }
}
