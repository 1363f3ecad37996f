//! What the events of Anthropic's streams say.

use crate::wire::{
    json::{self, Span},
    stream::{Seen, whole},
};

/// An event of a Messages stream; its `type` says which.
pub(in crate::wire) fn event(data: &[u8], seen: &mut Seen) {
    let names = ["type", "message", "delta", "content_block", "usage", "error"];
    let [kind, message, delta, content_block, usage, error] = json::fields(data, whole(data), names);
    let Some(kind) = kind.and_then(|kind| json::text(data, kind)) else { return };
    match &*kind {
        "message_start" => message.into_iter().for_each(|message| {
            let [usage] = json::fields(data, message, ["usage"]);
            add_usage(data, usage, seen);
        }),
        "content_block_start" => content_block.into_iter().for_each(|block| {
            output(data, block, ["name", "text", "thinking"], seen);
        }),
        "content_block_delta" => delta.into_iter().for_each(|delta| {
            output(data, delta, ["text", "thinking", "partial_json"], seen);
        }),
        "message_delta" => {
            seen.finish_reason(data, delta.and_then(|delta| json::field(data, delta, "stop_reason")));
            add_usage(data, usage, seen);
        }
        "message_stop" => seen.ended = true,
        "error" => seen.error(error.map_or(data, |error| error.of(data))),
        _ => {}
    }
}

fn output(data: &[u8], object: Span, names: [&str; 3], seen: &mut Seen) {
    for text in json::fields(data, object, names).into_iter().flatten() {
        seen.output(data, text);
    }
}

/// The tier stands inside of Anthropic's usage.
fn add_usage(data: &[u8], usage: Option<Span>, seen: &mut Seen) {
    let Some(usage) = usage else { return };
    seen.merge.add(usage.of(data));
    seen.service_tier(data, json::field(data, usage, "service_tier"));
}
