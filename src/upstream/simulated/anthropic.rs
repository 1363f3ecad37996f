//! Anthropic's messages and their token count.

use http::StatusCode;
use serde_json::{Value, json};

use super::{
    Call, Planned,
    answer::{
        Answer, Ask, Content, Finish, Forced, Tool, choose_tool, content_tokens, json_tokens, message_tokens, seed,
        stops,
    },
    body::Event,
    directives::last_user_text,
    fresh_id,
    prose::{pieces, text_of},
};

/// `type` of an error with this status.
pub(super) fn error_type(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        529 => "overloaded_error",
        400..=499 => "invalid_request_error",
        _ => "api_error",
    }
}

pub(super) fn count_tokens(call: &Call<'_>) -> Result<Planned, String> {
    Ok(Planned::at_once(&json!({"input_tokens": prompt_tokens(call)?})))
}

fn prompt_tokens(call: &Call<'_>) -> Result<u64, String> {
    let request = &call.request;
    let messages = request["messages"].as_array().filter(|messages| !messages.is_empty());
    let messages = messages.ok_or("messages: at least one message is required")?;
    Ok(message_tokens(call, messages) + content_tokens(call, &request["system"]) + json_tokens(call, &request["tools"]))
}

pub(super) fn messages(call: &Call<'_>) -> Result<Planned, String> {
    let ask = ask(call)?;
    let answer = ask.answer(call, 0);
    let id = fresh_id("msg_");
    if call.streams() {
        return Ok(Planned::stream(events(call, &ask, &id, &answer), answer.tokens));
    }
    let mut message = begun(call, &ask, &id);
    message["content"] = json!([block(&answer)]);
    message["stop_reason"] = json!(stop_reason(&answer));
    message["stop_sequence"] = json!(answer.stop_sequence);
    message["usage"]["output_tokens"] = json!(answer.tokens);
    Ok(Planned::whole(&message, answer.tokens))
}

fn ask(call: &Call<'_>) -> Result<Ask, String> {
    let request = &call.request;
    let model = call.model()?.to_owned();
    let cap = request["max_tokens"].as_u64().ok_or("max_tokens: Field required")?;
    let user = last_user_text(request);
    // A tool's result is a user message too; its text isn't the user's.
    let last = request["messages"].as_array().and_then(|messages| messages.last());
    let is_result = last.is_some_and(|message| message["content"][0]["type"] == "tool_result");
    let last_role = if is_result { "tool" } else { "user" };
    Ok(Ask {
        tool: choose_tool(tools(request), forced(&request["tool_choice"]), last_role, &user),
        system: text_of(&request["system"]),
        prompt_tokens: prompt_tokens(call)?,
        cap: Some(cap),
        temperature: request["temperature"].as_f64().unwrap_or(1.0),
        stops: stops(&request["stop_sequences"]),
        seed: seed(&model, &request["messages"]),
        schema: None,
        model,
        user,
    })
}

fn tools(request: &Value) -> Vec<Tool> {
    let tool =
        |tool: &Value| Some(Tool { name: tool["name"].as_str()?.to_owned(), parameters: tool["input_schema"].clone() });
    request["tools"].as_array().into_iter().flatten().filter_map(tool).collect()
}

fn forced(choice: &Value) -> Forced<'_> {
    match choice["type"].as_str() {
        Some("none") => Forced::Never,
        Some("any") => Forced::Any,
        Some("tool") => choice["name"].as_str().map_or(Forced::Any, Forced::Tool),
        _ => Forced::No,
    }
}

fn stop_reason(answer: &Answer) -> &'static str {
    match answer.finish {
        Finish::Stop if answer.stop_sequence.is_some() => "stop_sequence",
        Finish::Stop => "end_turn",
        Finish::Length => "max_tokens",
        Finish::ToolCall => "tool_use",
    }
}

fn begun(call: &Call<'_>, ask: &Ask, id: &str) -> Value {
    let cached = call.directives.cached.min(ask.prompt_tokens);
    json!({
        "id": id,
        "type": "message",
        "role": "assistant",
        "model": ask.model,
        "content": [],
        "stop_reason": null,
        "stop_sequence": null,
        "usage": {
            "input_tokens": ask.prompt_tokens - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": 1,
            "service_tier": "standard",
        },
    })
}

fn block(answer: &Answer) -> Value {
    match &answer.content {
        Content::Text(text) => json!({"type": "text", "text": text}),
        Content::ToolCall { name, arguments } => {
            let input: Value = serde_json::from_str(arguments).unwrap_or_else(|_| json!({}));
            json!({"type": "tool_use", "id": fresh_id("toolu_"), "name": name, "input": input})
        }
    }
}

fn events(call: &Call<'_>, ask: &Ask, id: &str, answer: &Answer) -> Vec<Event> {
    let (start, output) = match &answer.content {
        Content::Text(text) => (json!({"type": "text", "text": ""}), text),
        Content::ToolCall { name, arguments } => {
            (json!({"type": "tool_use", "id": fresh_id("toolu_"), "name": name, "input": {}}), arguments)
        }
    };
    let delta = |piece: &str| match answer.finish {
        Finish::ToolCall => json!({"type": "input_json_delta", "partial_json": piece}),
        Finish::Stop | Finish::Length => json!({"type": "text_delta", "text": piece}),
    };
    let ended = json!({"stop_reason": stop_reason(answer), "stop_sequence": answer.stop_sequence});
    let mut events = vec![
        Event::other(event("message_start", json!({"message": begun(call, ask, id)}))),
        Event::other(event("content_block_start", json!({"index": 0, "content_block": start}))),
        Event::other(event("ping", json!({}))),
    ];
    let output = pieces(output).into_iter();
    events.extend(
        output.map(|piece| Event::piece(event("content_block_delta", json!({"index": 0, "delta": delta(piece)})))),
    );
    events.push(Event::other(event("content_block_stop", json!({"index": 0}))));
    let usage = json!({"output_tokens": answer.tokens});
    events.push(Event::other(event("message_delta", json!({"delta": ended, "usage": usage}))));
    events.push(Event::other(event("message_stop", json!({}))));
    events
}

fn event(name: &str, mut fields: Value) -> String {
    fields["type"] = json!(name);
    format!("event: {name}\ndata: {fields}\n\n")
}
