//! What is answered, before any dialect: text or a tool call, its tokens, and why it ends.

use serde_json::{Value, json};

use super::{
    Call,
    directives::TOKENS_MAX,
    instance::instance,
    knowledge::recall,
    prose::{Tone, compose, hash, tell, text_of, truncate},
};

/// Tokens that each message adds around its content, and those before the reply; as published for OpenAI's models.
const TOKENS_PER_MESSAGE: u64 = 3;
const TOKENS_BEFORE_REPLY: u64 = 3;
/// Tokens that an image counts for, whatever its size.
const TOKENS_PER_IMAGE: u64 = 85;

/// A request as far as its answer depends on it.
#[derive(Debug, Default)]
pub(super) struct Ask {
    pub(super) model: String,
    pub(super) system: String,
    pub(super) user: String,
    pub(super) prompt_tokens: u64,
    /// Most output tokens.
    pub(super) cap: Option<u64>,
    pub(super) temperature: f64,
    pub(super) stops: Vec<String>,
    /// Schema that the text has to satisfy.
    pub(super) schema: Option<Value>,
    /// The tool to call.
    pub(super) tool: Option<Tool>,
    /// Everything that the words depend on.
    pub(super) seed: u64,
}

/// A tool that may be called.
#[derive(Debug, Clone)]
pub(super) struct Tool {
    pub(super) name: String,
    pub(super) parameters: Value,
}

/// One answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) content: Content,
    pub(super) finish: Finish,
    /// Output tokens, thoughts included.
    pub(super) tokens: u64,
    pub(super) reasoning_tokens: u64,
    pub(super) stop_sequence: Option<String>,
}

#[derive(Debug)]
pub(super) enum Content {
    Text(String),
    ToolCall { name: String, arguments: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finish {
    Stop,
    Length,
    ToolCall,
}

impl Ask {
    /// The answer; `index` tells the choices of one request apart.
    pub(super) fn answer(&self, call: &Call<'_>, index: u64) -> Answer {
        let cap = self.cap.unwrap_or(TOKENS_MAX).min(TOKENS_MAX);
        let reasoning_tokens = call.directives.reasoning.min(cap);
        if let Some(tool) = &self.tool {
            let arguments = instance(&tool.parameters, &self.topic()).to_string();
            let tokens = reasoning_tokens + call.tokens(&tool.name) + call.tokens(&arguments);
            let content = Content::ToolCall { name: tool.name.clone(), arguments };
            return Answer { content, finish: Finish::ToolCall, tokens, reasoning_tokens, stop_sequence: None };
        }
        let (whole, stop_sequence) = self.until_stop(self.text(call, index));
        let text = truncate(&whole, cap - reasoning_tokens, call.count).to_owned();
        let finish = if text.len() < whole.len() { Finish::Length } else { Finish::Stop };
        let stop_sequence = stop_sequence.filter(|_| finish == Finish::Stop);
        let tokens = reasoning_tokens + call.tokens(&text);
        Answer { content: Content::Text(text), finish, tokens, reasoning_tokens, stop_sequence }
    }

    fn text(&self, call: &Call<'_>, index: u64) -> String {
        if let Some(schema) = &self.schema {
            return instance(schema, &self.topic()).to_string();
        }
        let seed = self.seed.wrapping_add(index);
        let tone = Tone::of(&self.system);
        match call.directives.tokens {
            Some(tokens) => {
                let text = compose(tone, &self.user, seed, tokens, call.count);
                truncate(&text, tokens, call.count).to_owned()
            }
            None => match recall(&self.system, &self.user) {
                Some(fact) => tell(tone, &self.user, seed, fact),
                None => compose(tone, &self.user, seed, tone.length_tokens(seed, self.temperature), call.count),
            },
        }
    }

    fn until_stop(&self, text: String) -> (String, Option<String>) {
        let found = self.stops.iter().filter(|stop| !stop.is_empty()).filter_map(|stop| Some((text.find(stop)?, stop)));
        match found.min_by_key(|(at, _)| *at) {
            Some((at, stop)) => (text[..at].to_owned(), Some(stop.clone())),
            None => (text, None),
        }
    }

    /// A few words of the user's, for free strings.
    fn topic(&self) -> String {
        let words: Vec<&str> = self.user.split_whitespace().take(4).collect();
        if words.is_empty() { "example".to_owned() } else { words.join(" ") }
    }
}

impl Answer {
    pub(super) fn text(&self) -> &str {
        match &self.content {
            Content::Text(text) => text,
            Content::ToolCall { .. } => "",
        }
    }
}

/// The seed of a request's words.
pub(super) fn seed(model: &str, said: &Value) -> u64 {
    hash(&said.to_string(), model)
}

/// Prompt tokens of a list of messages.
pub(super) fn message_tokens(call: &Call<'_>, messages: &[Value]) -> u64 {
    let each = messages.iter().map(|message| {
        let role = call.tokens(message["role"].as_str().unwrap_or_default());
        TOKENS_PER_MESSAGE + role + content_tokens(call, &message["content"])
    });
    TOKENS_BEFORE_REPLY + each.sum::<u64>()
}

pub(super) fn content_tokens(call: &Call<'_>, content: &Value) -> u64 {
    let images = content
        .as_array()
        .into_iter()
        .flatten()
        .filter(|part| part["type"].as_str().is_some_and(|kind| kind.contains("image")));
    call.tokens(&text_of(content)) + TOKENS_PER_IMAGE * images.count() as u64
}

/// Prompt tokens of what is sent along as JSON, such as tools.
pub(super) fn json_tokens(call: &Call<'_>, value: &Value) -> u64 {
    if value.is_null() { 0 } else { call.tokens(&value.to_string()) }
}

/// The tool that a request is to be answered with: where one is forced, or the user names one.
pub(super) fn choose_tool(tools: Vec<Tool>, forced: Forced<'_>, last_role: &str, user: &str) -> Option<Tool> {
    let user = user.to_lowercase();
    let is_named = |tool: &Tool| {
        let name = tool.name.to_lowercase();
        user.contains(&name) || user.contains(&name.replace(['_', '-'], " "))
    };
    match forced {
        Forced::Never => None,
        Forced::Tool(name) => tools.into_iter().find(|tool| tool.name == name),
        Forced::Any => tools.into_iter().next(),
        // A tool's result is to be talked about, not asked for again.
        Forced::No if last_role != "user" => None,
        Forced::No => tools.into_iter().find(is_named),
    }
}

/// Whether a tool has to be called.
#[derive(Debug, Clone, Copy)]
pub(super) enum Forced<'a> {
    No,
    Never,
    Any,
    Tool(&'a str),
}

/// The schema of any object, for `json_object`.
pub(super) fn any_object() -> Value {
    json!({"type": "object", "properties": {"answer": {"type": "string"}}})
}

/// Stop sequences: one, or a list.
pub(super) fn stops(value: &Value) -> Vec<String> {
    match value {
        Value::String(stop) => vec![stop.clone()],
        Value::Array(stops) => stops.iter().filter_map(|stop| stop.as_str().map(str::to_owned)).collect(),
        _ => Vec::new(),
    }
}
