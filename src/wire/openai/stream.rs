//! What the events of OpenAI's streams say.

use crate::wire::{
    json::{self, Kind, Span},
    openai::reply,
    stream::{Seen, whole},
};

/// A chunk of a chat completion or of a legacy completion.
pub(in crate::wire) fn chat_event(data: &[u8], seen: &mut Seen) {
    let names = ["choices", "usage", "error", "service_tier"];
    let [choices, usage, error, service_tier] = json::fields(data, whole(data), names);
    choices.into_iter().flat_map(|choices| json::elements(data, choices)).for_each(|choice| {
        let [delta, text, finish_reason] = json::fields(data, choice, ["delta", "text", "finish_reason"]);
        delta.into_iter().for_each(|delta| chat_delta(data, delta, seen));
        text.into_iter().for_each(|text| {
            seen.output(data, text);
        });
        seen.finish_reason(data, finish_reason);
    });
    seen.service_tier(data, service_tier);
    if let Some(reported) = usage.and_then(|usage| reply::usage(usage.of(data))) {
        seen.usage = Some(reported);
    }
    if let Some(error) = error.filter(|error| !json::is_null(data, *error)) {
        seen.error(error.of(data));
    }
}

fn chat_delta(data: &[u8], delta: Span, seen: &mut Seen) {
    let names = ["reasoning_content", "reasoning", "content", "refusal", "tool_calls", "function_call", "audio"];
    let [reasoning_content, reasoning, content, refusal, tool_calls, function_call, audio] =
        json::fields(data, delta, names);
    // Servers that renamed the one to the other send both with the same text.
    if !reasoning_content.is_some_and(|text| seen.output(data, text)) {
        reasoning.into_iter().for_each(|text| {
            seen.output(data, text);
        });
    }
    for text in [content, refusal].into_iter().flatten() {
        match json::kind(data, text) {
            Some(Kind::Array) => seen.output_under(data, text, &["text", "thinking"]),
            _ => {
                seen.output(data, text);
            }
        }
    }
    for call in [tool_calls, function_call].into_iter().flatten() {
        seen.output_under(data, call, &["name", "arguments", "input"]);
    }
    audio.into_iter().for_each(|audio| seen.output_under(data, audio, &["transcript"]));
}

/// An event of a Responses stream; its `type` says which.
pub(in crate::wire) fn responses_event(data: &[u8], seen: &mut Seen) {
    let [kind, response, delta, item] = json::fields(data, whole(data), ["type", "response", "delta", "item"]);
    let Some(kind) = kind.and_then(|kind| json::text(data, kind)) else { return };
    match &*kind {
        "response.completed" | "response.incomplete" | "response.failed" | "response.cancelled" => {
            response.into_iter().for_each(|response| responses_end(data, response, seen));
            seen.ended = true;
        }
        "response.output_item.added" => item.into_iter().for_each(|item| {
            json::field(data, item, "name").into_iter().for_each(|name| {
                seen.output(data, name);
            });
        }),
        "response.audio.delta" | "response.output_audio.delta" => {}
        "error" => seen.error(data),
        kind if kind.ends_with(".delta") => delta.into_iter().for_each(|delta| {
            seen.output(data, delta);
        }),
        _ => {}
    }
}

fn responses_end(data: &[u8], response: Span, seen: &mut Seen) {
    let names = ["usage", "error", "status", "service_tier"];
    let [usage, error, status, service_tier] = json::fields(data, response, names);
    seen.usage = usage.and_then(|usage| reply::usage(usage.of(data)));
    seen.finish_reason(data, status);
    seen.service_tier(data, service_tier);
    if let Some(error) = error.filter(|error| !json::is_null(data, *error)) {
        seen.error(error.of(data));
    }
}
