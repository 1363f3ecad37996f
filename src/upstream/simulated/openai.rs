//! OpenAI's chat completions, completions and list of models.

use std::time::{SystemTime, UNIX_EPOCH};

use http::StatusCode;
use serde_json::{Value, json};

use super::{
    Call, Planned,
    answer::{
        Answer, Ask, Content, Finish, Forced, Tool, any_object, choose_tool, content_tokens, json_tokens,
        message_tokens, seed, stops,
    },
    body::Event,
    directives::last_user_text,
    fresh_id,
    prose::{pieces, text_of},
};

const FINGERPRINT: &str = "fp_simulated";
/// Choices of one request at most.
const CHOICES_MAX: u64 = 16;
/// Output cap of the completions endpoint where the request names none.
const COMPLETION_TOKENS_DEFAULT: u64 = 16;

/// `type` and `code` of an error with this status.
pub(super) fn error_type(status: StatusCode) -> (&'static str, Option<&'static str>) {
    match status.as_u16() {
        401 => ("invalid_request_error", Some("invalid_api_key")),
        404 => ("invalid_request_error", Some("unknown_url")),
        429 => ("requests", Some("rate_limit_exceeded")),
        400..=499 => ("invalid_request_error", None),
        _ => ("server_error", None),
    }
}

pub(super) fn models() -> Value {
    let model = |id| json!({"id": id, "object": "model", "created": 1_735_689_600, "owned_by": "simulated"});
    let models = ["sim-small", "sim-large", "sim-embedding"].map(model);
    json!({"object": "list", "data": models})
}

pub(super) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

pub(super) fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::ToolCall => "tool_calls",
    }
}

fn choices_of(call: &Call<'_>) -> Result<u64, String> {
    let choices = call.request["n"].as_u64().unwrap_or(1);
    if (1..=CHOICES_MAX).contains(&choices) { Ok(choices) } else { Err(format!("`n` must be 1 to {CHOICES_MAX}.")) }
}

fn usage(call: &Call<'_>, prompt_tokens: u64, answers: &[Answer]) -> Value {
    let output: u64 = answers.iter().map(|answer| answer.tokens).sum();
    let reasoning: u64 = answers.iter().map(|answer| answer.reasoning_tokens).sum();
    json!({
        "prompt_tokens": prompt_tokens,
        "completion_tokens": output,
        "total_tokens": prompt_tokens + output,
        "prompt_tokens_details": {"cached_tokens": call.directives.cached.min(prompt_tokens), "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    })
}

fn data(value: &Value) -> String {
    format!("data: {value}\n\n")
}

fn include_usage(call: &Call<'_>) -> bool {
    call.request["stream_options"]["include_usage"].as_bool().unwrap_or(false)
}

// === chat completions ===

pub(super) fn chat(call: &Call<'_>) -> Result<Planned, String> {
    let ask = chat_ask(call)?;
    let answers: Vec<Answer> = (0..choices_of(call)?).map(|index| ask.answer(call, index)).collect();
    let tokens = answers.iter().map(|answer| answer.tokens).sum();
    let chat = Chunks::new("chatcmpl-", "chat.completion.chunk", &ask.model);
    if call.streams() {
        return Ok(Planned::stream(chat_events(call, &chat, &ask, &answers), tokens));
    }
    let choices: Vec<Value> = answers.iter().enumerate().map(|(index, answer)| chat_choice(index, answer)).collect();
    let mut reply = chat.chunk(json!(choices));
    reply["object"] = json!("chat.completion");
    reply["usage"] = usage(call, ask.prompt_tokens, &answers);
    Ok(Planned::whole(&reply, tokens))
}

fn chat_ask(call: &Call<'_>) -> Result<Ask, String> {
    let request = &call.request;
    let messages = request["messages"].as_array().filter(|messages| !messages.is_empty());
    let messages = messages.ok_or("`messages` must be a list that is not empty.")?;
    let is_system = |message: &&Value| message["role"] == "system" || message["role"] == "developer";
    let system: Vec<String> = messages.iter().filter(is_system).map(|message| text_of(&message["content"])).collect();
    let model = call.model()?.to_owned();
    let user = last_user_text(request);
    let last_role = messages.last().and_then(|message| message["role"].as_str()).unwrap_or_default();
    let cap = request["max_completion_tokens"].as_u64().or_else(|| request["max_tokens"].as_u64());
    Ok(Ask {
        tool: choose_tool(chat_tools(request), forced(&request["tool_choice"]), last_role, &user),
        schema: chat_schema(&request["response_format"]),
        prompt_tokens: message_tokens(call, messages) + json_tokens(call, &request["tools"]),
        temperature: request["temperature"].as_f64().unwrap_or(1.0),
        stops: stops(&request["stop"]),
        seed: seed(&model, &request["messages"]),
        system: system.join("\n"),
        model,
        user,
        cap,
    })
}

fn chat_tools(request: &Value) -> Vec<Tool> {
    let functions = request["tools"].as_array().into_iter().flatten().map(|tool| &tool["function"]);
    let tool = |function: &Value| {
        Some(Tool { name: function["name"].as_str()?.to_owned(), parameters: function["parameters"].clone() })
    };
    functions.filter_map(tool).collect()
}

fn forced(choice: &Value) -> Forced<'_> {
    match choice.as_str() {
        Some("none") => Forced::Never,
        Some("required") => Forced::Any,
        _ => choice["function"]["name"].as_str().map_or(Forced::No, Forced::Tool),
    }
}

fn chat_schema(format: &Value) -> Option<Value> {
    match format["type"].as_str()? {
        "json_schema" => Some(format["json_schema"]["schema"].clone()),
        "json_object" => Some(any_object()),
        _ => None,
    }
}

fn chat_choice(index: usize, answer: &Answer) -> Value {
    let mut message = json!({"role": "assistant", "content": null, "refusal": null, "annotations": []});
    match &answer.content {
        Content::Text(text) => message["content"] = json!(text),
        Content::ToolCall { name, arguments } => message["tool_calls"] = json!([tool_call(name, arguments)]),
    }
    json!({"index": index, "message": message, "logprobs": null, "finish_reason": finish_reason(answer.finish)})
}

fn tool_call(name: &str, arguments: &str) -> Value {
    json!({"id": fresh_id("call_"), "type": "function", "function": {"name": name, "arguments": arguments}})
}

/// What all chunks of one reply have in common.
struct Chunks {
    common: Value,
}

impl Chunks {
    fn new(id_prefix: &str, object: &str, model: &str) -> Chunks {
        let common = json!({
            "id": fresh_id(id_prefix),
            "object": object,
            "created": unix_now(),
            "model": model,
            "system_fingerprint": FINGERPRINT,
        });
        Chunks { common }
    }

    fn chunk(&self, choices: Value) -> Value {
        let mut chunk = self.common.clone();
        chunk["choices"] = choices;
        chunk
    }
}

fn chat_events(call: &Call<'_>, chat: &Chunks, ask: &Ask, answers: &[Answer]) -> Vec<Event> {
    let with_usage = include_usage(call);
    let event = |choice: Value| {
        let mut chunk = chat.chunk(json!([choice]));
        if with_usage {
            chunk["usage"] = Value::Null;
        }
        data(&chunk)
    };
    let delta = |index: usize, delta: Value, finish: Value| {
        event(json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": finish}))
    };
    let mut events = Vec::new();
    for (index, answer) in answers.iter().enumerate() {
        let (first, output) = match &answer.content {
            Content::Text(text) => (json!({"role": "assistant", "content": "", "refusal": null}), text),
            Content::ToolCall { name, arguments } => {
                let mut begun = tool_call(name, "");
                begun["index"] = json!(0);
                (json!({"role": "assistant", "content": null, "tool_calls": [begun]}), arguments)
            }
        };
        let content = |piece: &str| match answer.finish {
            Finish::ToolCall => json!({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}),
            Finish::Stop | Finish::Length => json!({"content": piece}),
        };
        events.push(Event::other(delta(index, first, Value::Null)));
        let output = pieces(output).into_iter();
        events.extend(output.map(|piece| Event::piece(delta(index, content(piece), Value::Null))));
        events.push(Event::other(delta(index, json!({}), json!(finish_reason(answer.finish)))));
    }
    if with_usage {
        let mut last = chat.chunk(json!([]));
        last["usage"] = usage(call, ask.prompt_tokens, answers);
        events.push(Event::other(data(&last)));
    }
    events.push(Event::other("data: [DONE]\n\n"));
    events
}

// === completions ===

pub(super) fn completions(call: &Call<'_>) -> Result<Planned, String> {
    let request = &call.request;
    let model = call.model()?.to_owned();
    let ask = Ask {
        user: text_of(&request["prompt"]),
        prompt_tokens: content_tokens(call, &request["prompt"]),
        cap: request["max_tokens"].as_u64().or(Some(COMPLETION_TOKENS_DEFAULT)),
        temperature: request["temperature"].as_f64().unwrap_or(1.0),
        stops: stops(&request["stop"]),
        seed: seed(&model, &request["prompt"]),
        model,
        ..Ask::default()
    };
    let answers: Vec<Answer> = (0..choices_of(call)?).map(|index| ask.answer(call, index)).collect();
    let tokens = answers.iter().map(|answer| answer.tokens).sum();
    let chunks = Chunks::new("cmpl-", "text_completion", &ask.model);
    if call.streams() {
        return Ok(Planned::stream(completion_events(call, &chunks, &ask, &answers), tokens));
    }
    let choices: Vec<Value> = answers
        .iter()
        .enumerate()
        .map(|(index, answer)| completion_choice(index, answer.text(), Some(finish_reason(answer.finish))))
        .collect();
    let mut reply = chunks.chunk(json!(choices));
    reply["usage"] = usage(call, ask.prompt_tokens, &answers);
    Ok(Planned::whole(&reply, tokens))
}

fn completion_choice(index: usize, text: &str, finish: Option<&str>) -> Value {
    json!({"text": text, "index": index, "logprobs": null, "finish_reason": finish})
}

fn completion_events(call: &Call<'_>, chunks: &Chunks, ask: &Ask, answers: &[Answer]) -> Vec<Event> {
    let event = |index, text: &str, finish| data(&chunks.chunk(json!([completion_choice(index, text, finish)])));
    let mut events = Vec::new();
    for (index, answer) in answers.iter().enumerate() {
        let output = pieces(answer.text()).into_iter();
        events.extend(output.map(|piece| Event::piece(event(index, piece, None))));
        events.push(Event::other(event(index, "", Some(finish_reason(answer.finish)))));
    }
    if include_usage(call) {
        let mut last = chunks.chunk(json!([]));
        last["usage"] = usage(call, ask.prompt_tokens, answers);
        events.push(Event::other(data(&last)));
    }
    events.push(Event::other("data: [DONE]\n\n"));
    events
}
