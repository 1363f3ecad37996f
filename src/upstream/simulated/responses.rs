//! OpenAI's responses: text, whole or as the sequence of events.

use serde_json::{Value, json};

use super::{
    Call, Planned,
    answer::{Answer, Ask, Finish, any_object, json_tokens, message_tokens, seed},
    body::Event,
    directives::last_user_text,
    fresh_id,
    openai::unix_now,
    prose::pieces,
};

pub(super) fn responses(call: &Call<'_>) -> Result<Planned, String> {
    let ask = ask(call)?;
    let answer = ask.answer(call, 0);
    let ids = Ids { response: fresh_id("resp_"), message: fresh_id("msg_"), created_at: unix_now() };
    let done = finished(call, &ask, &ids, &answer);
    if call.streams() {
        return Ok(Planned::stream(events(call, &ask, &ids, &answer, &done), answer.tokens));
    }
    Ok(Planned::whole(&done, answer.tokens))
}

struct Ids {
    response: String,
    message: String,
    created_at: u64,
}

fn ask(call: &Call<'_>) -> Result<Ask, String> {
    let request = &call.request;
    let model = call.model()?.to_owned();
    let input_tokens = match &request["input"] {
        Value::String(text) => message_tokens(call, &[json!({"role": "user", "content": text})]),
        Value::Array(items) => message_tokens(call, items),
        _ => return Err("`input` must be a text or a list.".to_owned()),
    };
    let format = &request["text"]["format"];
    let schema = match format["type"].as_str() {
        Some("json_schema") => Some(format["schema"].clone()),
        Some("json_object") => Some(any_object()),
        _ => None,
    };
    Ok(Ask {
        system: call.text("instructions").unwrap_or_default().to_owned(),
        user: last_user_text(request),
        prompt_tokens: input_tokens
            + json_tokens(call, &request["instructions"])
            + json_tokens(call, &request["tools"]),
        cap: request["max_output_tokens"].as_u64(),
        temperature: request["temperature"].as_f64().unwrap_or(1.0),
        seed: seed(&model, &request["input"]),
        schema,
        model,
        ..Ask::default()
    })
}

fn begun(call: &Call<'_>, ask: &Ask, ids: &Ids) -> Value {
    let request = &call.request;
    json!({
        "id": ids.response,
        "object": "response",
        "created_at": ids.created_at,
        "status": "in_progress",
        "background": false,
        "error": null,
        "incomplete_details": null,
        "instructions": request["instructions"],
        "max_output_tokens": request["max_output_tokens"],
        "metadata": request.get("metadata").cloned().unwrap_or_else(|| json!({})),
        "model": ask.model,
        "output": [],
        "parallel_tool_calls": true,
        "previous_response_id": request["previous_response_id"],
        "reasoning": {"effort": request["reasoning"]["effort"], "summary": null},
        "store": request["store"].as_bool().unwrap_or(true),
        "temperature": ask.temperature,
        "text": request.get("text").cloned().unwrap_or_else(|| json!({"format": {"type": "text"}})),
        "tool_choice": request.get("tool_choice").cloned().unwrap_or_else(|| json!("auto")),
        "tools": request.get("tools").cloned().unwrap_or_else(|| json!([])),
        "top_p": request["top_p"].as_f64().unwrap_or(1.0),
        "truncation": "disabled",
        "usage": null,
        "user": request["user"],
    })
}

fn finished(call: &Call<'_>, ask: &Ask, ids: &Ids, answer: &Answer) -> Value {
    let mut response = begun(call, ask, ids);
    response["status"] = json!(status(answer));
    if answer.finish == Finish::Length {
        response["incomplete_details"] = json!({"reason": "max_output_tokens"});
    }
    response["output"] = json!([message(ids, answer)]);
    response["usage"] = json!({
        "input_tokens": ask.prompt_tokens,
        "input_tokens_details": {"cached_tokens": call.directives.cached.min(ask.prompt_tokens)},
        "output_tokens": answer.tokens,
        "output_tokens_details": {"reasoning_tokens": answer.reasoning_tokens},
        "total_tokens": ask.prompt_tokens + answer.tokens,
    });
    response
}

fn status(answer: &Answer) -> &'static str {
    if answer.finish == Finish::Length { "incomplete" } else { "completed" }
}

fn message(ids: &Ids, answer: &Answer) -> Value {
    json!({
        "id": ids.message,
        "type": "message",
        "status": status(answer),
        "role": "assistant",
        "content": [part(answer.text())],
    })
}

fn part(text: &str) -> Value {
    json!({"type": "output_text", "annotations": [], "logprobs": [], "text": text})
}

fn events(call: &Call<'_>, ask: &Ask, ids: &Ids, answer: &Answer, done: &Value) -> Vec<Event> {
    let mut sequence = Sequence::default();
    let begun = begun(call, ask, ids);
    let item =
        json!({"id": ids.message, "type": "message", "status": "in_progress", "role": "assistant", "content": []});
    let in_part = |extra: Value| {
        let mut fields = json!({"item_id": ids.message, "output_index": 0, "content_index": 0});
        if let (Some(fields), Value::Object(extra)) = (fields.as_object_mut(), extra) {
            fields.extend(extra);
        }
        fields
    };
    sequence.push("response.created", json!({"response": begun}));
    sequence.push("response.in_progress", json!({"response": begun}));
    sequence.push("response.output_item.added", json!({"output_index": 0, "item": item}));
    sequence.push("response.content_part.added", in_part(json!({"part": part("")})));
    for piece in pieces(answer.text()) {
        sequence.push_piece("response.output_text.delta", in_part(json!({"delta": piece, "logprobs": []})));
    }
    sequence.push("response.output_text.done", in_part(json!({"text": answer.text(), "logprobs": []})));
    sequence.push("response.content_part.done", in_part(json!({"part": part(answer.text())})));
    sequence.push("response.output_item.done", json!({"output_index": 0, "item": message(ids, answer)}));
    let last = if answer.finish == Finish::Length { "response.incomplete" } else { "response.completed" };
    sequence.push(last, json!({"response": done}));
    sequence.events
}

/// Events numbered in their order.
#[derive(Default)]
struct Sequence {
    events: Vec<Event>,
}

impl Sequence {
    fn push(&mut self, name: &str, fields: Value) {
        let event = Event::other(self.numbered(name, fields));
        self.events.push(event);
    }

    fn push_piece(&mut self, name: &str, fields: Value) {
        let event = Event::piece(self.numbered(name, fields));
        self.events.push(event);
    }

    fn numbered(&self, name: &str, mut fields: Value) -> String {
        fields["type"] = json!(name);
        fields["sequence_number"] = json!(self.events.len());
        format!("event: {name}\ndata: {fields}\n\n")
    }
}
