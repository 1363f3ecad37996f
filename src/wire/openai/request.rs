//! Facts of OpenAI requests.

use crate::wire::{
    endpoint::Endpoint,
    json::{self, Kind, Scan, Span},
    request::{Inline, Reader, RequestError, RequestFacts, may_hold_any},
};

/// Fields that are priced or routed on.
const PRICED: [&str; 25] = [
    "model",
    "models",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "max_new_tokens",
    "n_predict",
    "n",
    "best_of",
    "service_tier",
    "tools",
    "functions",
    "web_search_options",
    "plugins",
    "prediction",
    "modalities",
    "audio",
    "prompt",
    "input",
    "messages",
    "previous_response_id",
    "conversation",
    "background",
];

/// What OpenAI calls an output cap, and what servers with its API do (TGI, llama.cpp), which may follow both.
const CHAT_CAPS: [&str; 5] =
    ["max_completion_tokens", "max_tokens", "max_output_tokens", "max_new_tokens", "n_predict"];
const RESPONSES_CAPS: [&str; 2] = ["max_output_tokens", "max_tokens"];

/// Words of which one stands in every message whose tokens are not bounded by its text.
const MEDIA: [&str; 14] = [
    "image_url",
    "input_image",
    "computer_screenshot",
    "input_audio",
    "audio",
    "audio_url",
    "file",
    "input_file",
    "video",
    "video_url",
    "input_video",
    "image_embeds",
    "audio_embeds",
    "item_reference",
];

/// The facts of a request, by the fields that its endpoint has.
///
/// # Errors
/// See [`crate::wire::request::facts`].
pub fn facts(endpoint: &Endpoint, body: &[u8], scan: &Scan) -> Result<RequestFacts, RequestError> {
    let reader = Reader { body, scan };
    reader.refuse_case_variants(&PRICED)?;
    let mut facts = common(reader)?;
    match endpoint {
        Endpoint::Responses => responses(reader, &mut facts)?,
        Endpoint::Completions => completions(reader, &mut facts)?,
        Endpoint::ChatCompletions => chat(reader, &mut facts)?,
        _ => {}
    }
    Ok(facts)
}

fn common(reader: Reader<'_>) -> Result<RequestFacts, RequestError> {
    Ok(RequestFacts {
        model: reader.model()?,
        stream: reader.boolean("stream")?.unwrap_or(false),
        include_usage: include_usage(reader)?,
        service_tier: reader.text("service_tier")?.map(Into::into),
        choices: 1,
        user: reader.user(&["safety_identifier", "user"]),
        cache_control: reader.has("cache_control") || reader.scan.may_hold("cache_control"),
        // Routers with OpenAI's API take these: another model than the priced one, or a search per call.
        extra_cost: ["models", "plugins"].into_iter().find(|name| reader.has(name)).map(Into::into),
        ..RequestFacts::default()
    })
}

fn include_usage(reader: Reader<'_>) -> Result<Option<bool>, RequestError> {
    let Some(span) = reader.nested("stream_options", "include_usage")? else { return Ok(None) };
    let param = "stream_options.include_usage";
    json::boolean(reader.body, span).map(Some).ok_or_else(|| RequestError::new(param, "true or false"))
}

fn chat(reader: Reader<'_>, facts: &mut RequestFacts) -> Result<(), RequestError> {
    facts.output_caps = reader.output_caps(&CHAT_CAPS)?;
    facts.choices = reader.positive("n")?.unwrap_or(1);
    facts.reasoning = reader.has("reasoning_effort") || reader.has("reasoning");
    facts.prediction_bytes = reader.value("prediction").map_or(0, |span| span.len() as u64);
    facts.audio_output = asks_for_audio(reader)?;
    if reader.has("web_search_options") {
        facts.extra_cost = Some("web_search_options".into());
    }
    tools(reader, facts)?;
    if let Some(span) = reader.value("functions") {
        facts.tools += json::elements(reader.body, span).count() as u64;
    }
    if let Some(messages) = reader.value("messages") {
        media(reader, messages, &["image_url"], facts);
    }
    Ok(())
}

fn completions(reader: Reader<'_>, facts: &mut RequestFacts) -> Result<(), RequestError> {
    facts.output_caps = reader.output_caps(&CHAT_CAPS)?;
    let per_prompt = reader.positive("n")?.unwrap_or(1).max(reader.positive("best_of")?.unwrap_or(1));
    facts.choices = per_prompt.saturating_mul(prompts(reader));
    if reader.has("prompt_embeds") {
        facts.unbounded_input = Some("prompt_embeds".into());
    }
    Ok(())
}

/// An array of strings or of token arrays is a prompt per element; an array of tokens is one prompt.
fn prompts(reader: Reader<'_>) -> u64 {
    let Some(prompt) = reader.value("prompt") else { return 1 };
    let is_prompt = |span: &Span| json::kind(reader.body, *span) != Some(Kind::Number);
    (json::elements(reader.body, prompt).filter(is_prompt).count() as u64).max(1)
}

fn responses(reader: Reader<'_>, facts: &mut RequestFacts) -> Result<(), RequestError> {
    facts.output_caps = reader.output_caps(&RESPONSES_CAPS)?;
    facts.reasoning = reader.has("reasoning");
    facts.background = reader.boolean("background")?.unwrap_or(false);
    facts.audio_output = asks_for_audio(reader)?;
    tools(reader, facts)?;
    if let Some(input) = reader.value("input") {
        media(reader, input, &[], facts);
        let without_content = |item: &Span| {
            let has = |name| json::field(reader.body, *item, name).is_some();
            json::kind(reader.body, *item) == Some(Kind::Object) && !has("type") && !has("role")
        };
        // An item that is nothing but an id refers to a stored one.
        if json::elements(reader.body, input).any(|item| without_content(&item)) {
            facts.unbounded_input = Some("input".into());
        }
    }
    let stored = ["previous_response_id", "conversation", "prompt"];
    if let Some(field) = stored.into_iter().find(|name| reader.has(name)) {
        facts.unbounded_input = Some(field.into());
    }
    Ok(())
}

fn asks_for_audio(reader: Reader<'_>) -> Result<bool, RequestError> {
    let Some(span) = reader.value("modalities") else { return Ok(reader.has("audio")) };
    if json::kind(reader.body, span) != Some(Kind::Array) {
        return Err(RequestError::new("modalities", "an array"));
    }
    let is_audio = |element| json::text(reader.body, element).is_some_and(|text| text == "audio");
    Ok(reader.has("audio") || json::elements(reader.body, span).any(is_audio))
}

/// Tools that the client runs cost the tokens of their description; all others run at the provider, for a price.
fn tools(reader: Reader<'_>, facts: &mut RequestFacts) -> Result<(), RequestError> {
    for kind in reader.tool_types()? {
        facts.tools += 1;
        match kind.as_deref() {
            None | Some("function" | "custom") => {}
            Some("local_shell" | "apply_patch") => facts.provider_defined_tools += 1,
            Some(hosted) => facts.extra_cost = Some(format!("tools: {hosted}").into()),
        }
    }
    Ok(())
}

/// Finds images, audio and files in `span`. Images are counted by the keys `image_keys`, or by type when there are none.
fn media(reader: Reader<'_>, span: Span, image_keys: &[&str], facts: &mut RequestFacts) {
    if !may_hold_any(reader.scan, &MEDIA) {
        return;
    }
    let mut inline = Inline::default();
    json::walk(reader.body, span, |key, value_at| {
        let Some(key) = json::text(reader.body, key) else { return };
        if *key == *"image_url" {
            image_in_body(reader.body, value_at).into_iter().for_each(|image| inline.add(image));
        }
        if image_keys.contains(&&*key) {
            facts.images += 1;
        }
        match &*key {
            "type" => {}
            "input_audio" => facts.audio_input = true,
            "video" | "video_url" | "audio_url" | "image_embeds" | "audio_embeds" => {
                facts.unbounded_input = Some(key.into_owned().into());
                return;
            }
            // A reply's audio, named by its id in a later turn.
            "audio" if reader.body.get(value_at) == Some(&b'{') => {
                facts.unbounded_input = Some("audio".into());
                return;
            }
            _ => return,
        }
        let Some(kind) = json::string_at(reader.body, value_at) else { return };
        match &*kind {
            "input_image" | "computer_screenshot" if image_keys.is_empty() => facts.images += 1,
            "input_audio" => facts.audio_input = true,
            "file" | "input_file" | "item_reference" | "video" | "input_video" => {
                facts.unbounded_input = Some(kind.into_owned().into());
            }
            _ => {}
        }
    });
    facts.image_bytes = inline.bytes(facts.images);
}

/// The `data:` URL of an image: a string in Responses, an object's `url` in chat.
fn image_in_body(body: &[u8], value_at: usize) -> Option<Span> {
    let value = json::value_at(body, value_at)?;
    let url = if body.get(value.start) == Some(&b'{') { json::field(body, value, "url")? } else { value };
    url.of(body).starts_with(b"\"data:image").then_some(url)
}
