//! What a request says that matters for its price, its route and its user; messages are never decoded.
//!
//! A closed world: what a provider may charge for is read here or named as not boundable, and a priced field of the
//! wrong type is refused rather than guessed, because the provider may guess differently.

use std::borrow::Cow;

use super::{
    anthropic,
    endpoint::{Dialect, Endpoint},
    json::{self, Kind, Scan, Span},
    openai,
};

/// Longest name of a model, in bytes: the longest in use, those of cloud resources, have about 200.
const MODEL_BYTES_MAX: usize = 512;

/// The facts of one request, read from its scan once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestFacts {
    /// The model as the client names it.
    pub model: Option<String>,
    /// Whether the reply is asked for as a stream.
    pub stream: bool,
    /// `stream_options.include_usage`, where given.
    pub include_usage: Option<bool>,
    /// The output caps that are set, each a number of tokens for one choice.
    pub output_caps: Vec<OutputCap>,
    /// How many times output is generated: `n` or `best_of`, times the prompts of a legacy completion. At least 1.
    pub choices: u64,
    /// `service_tier`, where given.
    pub service_tier: Option<String>,
    /// The end user as the client names them: `safety_identifier`, `user` or `metadata.user_id`. Not authenticated.
    pub user: Option<String>,
    /// Images in the input; their tokens are not bounded by their bytes.
    pub images: u64,
    /// Of the body's bytes: those of images that stand in it (`data:` URLs, base64 sources). They are no text, so `images` bounds
    /// them. 0 where something looks like an image that is not counted as one.
    pub image_bytes: u64,
    /// Whether audio is in the input: tokens are bounded by the bytes, but have a price of their own.
    pub audio_input: bool,
    /// Whether audio output is asked for.
    pub audio_output: bool,
    /// What refers to input that does not stand in the body (or not as text), so that bytes bound nothing.
    pub unbounded_input: Option<Cow<'static, str>>,
    /// What costs beyond token prices: hosted tools, other models, priority modes.
    pub extra_cost: Option<Cow<'static, str>>,
    /// Number of tools that are offered to the model.
    pub tools: u64,
    /// Of `tools`: those that the provider defines itself, whose description is not in the body.
    pub provider_defined_tools: u64,
    /// Whether reasoning is asked for (models may reason without).
    pub reasoning: bool,
    /// Bytes of `prediction`: rejected parts are charged as output.
    pub prediction_bytes: u64,
    /// Whether entries of the prompt cache may be asked for by name (`cache_control`). Never missed; may be a false alarm.
    pub cache_control: bool,
    /// Whether the reply is made in the background, so that it comes without usage.
    pub background: bool,
}

impl RequestFacts {
    /// The cap that the provider may go to: the highest of those set, since providers differ in which one they follow.
    #[must_use]
    pub fn output_cap(&self) -> Option<u64> {
        self.output_caps.iter().map(|cap| cap.tokens).max()
    }
}

/// An output cap that is set in the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputCap {
    /// The field's name.
    pub field: &'static str,
    /// Its value, in tokens.
    pub tokens: u64,
    /// Where the value stands.
    pub span: Span,
}

/// Why a request is refused; the message is meant for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RequestError {
    /// The field that is wrong, as in OpenAI's `param`.
    pub param: String,
    /// What is wrong and what is right.
    pub message: String,
}

impl RequestError {
    pub(super) fn new(param: &str, must: &str) -> RequestError {
        RequestError { param: param.to_owned(), message: format!("`{param}` must be {must}") }
    }
}

/// The facts of a request to `endpoint`, whose body was scanned.
///
/// # Errors
/// A field that is priced or routed on has the wrong type, a value out of range, or a spelling that only some providers
/// would take for it.
pub fn facts(endpoint: &Endpoint, body: &[u8], scan: &Scan) -> Result<RequestFacts, RequestError> {
    match endpoint.dialect() {
        Dialect::OpenAi => openai::request::facts(endpoint, body, scan),
        Dialect::Anthropic => anthropic::request::facts(body, scan),
    }
}

// === impl Reader ===

/// Reads typed top-level fields; `null` counts as absent, as it does for providers.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) body: &'a [u8],
    pub(super) scan: &'a Scan,
}

impl<'a> Reader<'a> {
    pub(super) fn value(self, name: &str) -> Option<Span> {
        self.scan.get(name).filter(|span| !json::is_null(self.body, *span))
    }

    pub(super) fn has(self, name: &str) -> bool {
        self.value(name).is_some()
    }

    /// The end user, by the first of the top-level `fields`, else by `metadata.user_id`; an empty name is none.
    pub(super) fn user(self, fields: &[&str]) -> Option<String> {
        let metadata = self.value("metadata").and_then(|metadata| json::field(self.body, metadata, "user_id"));
        let named = fields.iter().filter_map(|name| self.value(name)).chain(metadata);
        let mut texts = named.filter_map(|span| json::text(self.body, span));
        texts.find(|user| !user.is_empty()).map(Into::into)
    }

    pub(super) fn text(self, name: &str) -> Result<Option<Cow<'a, str>>, RequestError> {
        let Some(span) = self.value(name) else { return Ok(None) };
        json::text(self.body, span).map(Some).ok_or_else(|| RequestError::new(name, "a string"))
    }

    /// The model's name. It is logged, so it cannot be endless or hold what a terminal would act on.
    pub(super) fn model(self) -> Result<Option<String>, RequestError> {
        let Some(name) = self.text("model")? else { return Ok(None) };
        if name.len() > MODEL_BYTES_MAX || name.chars().any(char::is_control) {
            let must = format!("a name of at most {MODEL_BYTES_MAX} bytes without control characters");
            return Err(RequestError::new("model", &must));
        }
        Ok(Some(name.into_owned()))
    }

    pub(super) fn boolean(self, name: &str) -> Result<Option<bool>, RequestError> {
        let Some(span) = self.value(name) else { return Ok(None) };
        json::boolean(self.body, span).map(Some).ok_or_else(|| RequestError::new(name, "true or false"))
    }

    pub(super) fn positive(self, name: &str) -> Result<Option<u64>, RequestError> {
        let Some(span) = self.value(name) else { return Ok(None) };
        let value = json::integer(self.body, span).filter(|value| (1..1 << 40).contains(value));
        value.map(Some).ok_or_else(|| RequestError::new(name, "a whole number of at least 1"))
    }

    /// The caps among `fields` that are set.
    pub(super) fn output_caps(self, fields: &[&'static str]) -> Result<Vec<OutputCap>, RequestError> {
        let mut caps = Vec::new();
        for &field in fields {
            let (Some(tokens), Some(span)) = (self.positive(field)?, self.value(field)) else { continue };
            caps.push(OutputCap { field, tokens, span });
        }
        Ok(caps)
    }

    /// A field of a nested object, which must not have it twice.
    pub(super) fn nested(self, outer: &str, name: &str) -> Result<Option<Span>, RequestError> {
        let Some(span) = self.value(outer) else { return Ok(None) };
        let nested = json::object(self.body, span)
            .map_err(|error| RequestError { param: outer.to_owned(), message: format!("`{outer}`: {error}") })?;
        Ok(nested.get(name).filter(|span| !json::is_null(self.body, *span)))
    }

    /// The `type` of each of `tools`; none where it has no type.
    pub(super) fn tool_types(self) -> Result<Vec<Option<Cow<'a, str>>>, RequestError> {
        let Some(span) = self.value("tools") else { return Ok(Vec::new()) };
        if json::kind(self.body, span) != Some(Kind::Array) {
            return Err(RequestError::new("tools", "an array"));
        }
        let duplicate = |error| RequestError { param: "tools".to_owned(), message: format!("`tools`: {error}") };
        json::elements(self.body, span)
            .map(|tool| json::only_field(self.body, tool, "type").map_err(duplicate))
            .map(|kind| kind.map(|kind| kind.and_then(|span| json::text(self.body, span))))
            .collect()
    }

    /// Refuses fields that differ from one of `names` in case only: some servers match keys without regard to case, and
    /// would follow a cap that was never priced.
    pub(super) fn refuse_case_variants(self, names: &[&str]) -> Result<(), RequestError> {
        for (field, _) in self.scan.fields() {
            if field.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') {
                continue;
            }
            // The two characters beyond ASCII that fold to letters: long s and the Kelvin sign.
            let folded = field.to_ascii_lowercase().replace('\u{17F}', "s").replace('\u{212A}', "k");
            if names.contains(&folded.as_str()) {
                let message = format!("`{field}` must be spelt `{folded}`");
                return Err(RequestError { param: field.to_owned(), message });
            }
        }
        Ok(())
    }
}

/// Images that stand in the body itself.
#[derive(Debug, Default)]
pub(super) struct Inline {
    images: u64,
    bytes: u64,
}

impl Inline {
    /// Adds the string at `span`, quotes included.
    pub(super) fn add(&mut self, span: Span) {
        self.images += 1;
        self.bytes += span.len() as u64;
    }

    /// Their bytes; 0 unless each of them is among the images that were `counted`, so that no byte goes without a bound.
    pub(super) fn bytes(&self, counted: u64) -> u64 {
        if self.images <= counted { self.bytes } else { 0 }
    }
}

/// Whether any of `words` may stand in the body below its top level, so that a walk is due.
pub(super) fn may_hold_any(scan: &Scan, words: &[&str]) -> bool {
    words.iter().any(|word| scan.may_hold(word))
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    fn read(path: &str, body: &str) -> Result<RequestFacts, RequestError> {
        let endpoint = Endpoint::of(&Method::POST, path).expect(path);
        let scan = json::scan(body.as_bytes()).expect(body);
        facts(&endpoint, body.as_bytes(), &scan)
    }

    fn chat(body: &str) -> RequestFacts {
        read("/v1/chat/completions", body).expect(body)
    }

    fn responses(body: &str) -> RequestFacts {
        read("/v1/responses", body).expect(body)
    }

    fn messages(body: &str) -> RequestFacts {
        read("/v1/messages", body).expect(body)
    }

    #[test]
    fn a_plain_chat_call_has_plain_facts() {
        let facts = chat(r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#);
        assert_eq!(facts, RequestFacts { model: Some("m".into()), choices: 1, ..RequestFacts::default() });
    }

    #[test]
    fn priced_fields_are_read_whatever_their_spelling() {
        let facts = chat(
            r#"{"model":"m","stream":true,"stream_options":{"include_usage":false},"max_tok\u0065ns":1e2,
                "max_completion_tokens":50.0,"n":3,"service_tier":"priority","user":"u","reasoning_effort":"low",
                "tools":[{"type":"function"},{"type":"custom"}],"prediction":{"type":"content","content":"abc"}}"#,
        );
        assert!(facts.stream && facts.reasoning);
        assert_eq!(facts.include_usage, Some(false));
        assert_eq!(facts.output_cap(), Some(100));
        assert_eq!(facts.output_caps.len(), 2);
        assert_eq!((facts.choices, facts.tools), (3, 2));
        assert_eq!((facts.service_tier.as_deref(), facts.user.as_deref()), (Some("priority"), Some("u")));
        assert_eq!(facts.prediction_bytes, 34);
        assert_eq!(facts.extra_cost, None);
    }

    #[test]
    fn priced_fields_of_the_wrong_type_are_refused() {
        for (path, body, param) in [
            ("/v1/chat/completions", r#"{"max_tokens":"5"}"#, "max_tokens"),
            ("/v1/chat/completions", r#"{"max_tokens":-1}"#, "max_tokens"),
            ("/v1/chat/completions", r#"{"max_tokens":0}"#, "max_tokens"),
            ("/v1/chat/completions", r#"{"max_tokens":1e400}"#, "max_tokens"),
            ("/v1/chat/completions", r#"{"max_tokens":1.5}"#, "max_tokens"),
            ("/v1/chat/completions", r#"{"n":0}"#, "n"),
            ("/v1/chat/completions", r#"{"n":[1]}"#, "n"),
            ("/v1/chat/completions", r#"{"stream":"true"}"#, "stream"),
            ("/v1/chat/completions", r#"{"stream":1}"#, "stream"),
            ("/v1/chat/completions", r#"{"stream_options":[]}"#, "stream_options"),
            ("/v1/chat/completions", r#"{"stream_options":{"include_usage":1}}"#, "stream_options.include_usage"),
            (
                "/v1/chat/completions",
                r#"{"stream_options":{"include_usage":true,"include_usage":false}}"#,
                "stream_options",
            ),
            ("/v1/chat/completions", r#"{"model":5}"#, "model"),
            ("/v1/chat/completions", r#"{"model":"a\nb"}"#, "model"),
            ("/v1/messages", r#"{"model":"a\u009bb"}"#, "model"),
            ("/v1/responses", &format!(r#"{{"model":"{}"}}"#, "m".repeat(513)), "model"),
            ("/v1/chat/completions", r#"{"Max_Tokens":5}"#, "Max_Tokens"),
            ("/v1/chat/completions", r#"{"max_to\u212Aens":5}"#, "max_to\u{212A}ens"),
            ("/v1/chat/completions", r#"{"tools":{}}"#, "tools"),
            ("/v1/chat/completions", r#"{"tools":[{"type":"function","type":"web_search"}]}"#, "tools"),
            ("/v1/completions", r#"{"best_of":"2"}"#, "best_of"),
            ("/v1/responses", r#"{"max_output_tokens":null,"background":"yes"}"#, "background"),
            ("/v1/messages", r#"{"max_tokens":"5"}"#, "max_tokens"),
            ("/v1/messages", r#"{"service_tier":1}"#, "service_tier"),
        ] {
            assert_eq!(read(path, body).expect_err(body).param, param, "{body}");
        }
    }

    #[test]
    fn null_counts_as_absent() {
        let facts =
            chat(r#"{"model":null,"max_tokens":null,"n":null,"stream":null,"tools":null,"stream_options":null}"#);
        assert_eq!(facts, RequestFacts { choices: 1, ..RequestFacts::default() });
    }

    #[test]
    fn a_legacy_completion_of_many_prompts_multiplies() {
        let choices = |body: &str| read("/v1/completions", body).expect(body).choices;
        assert_eq!(choices(r#"{"prompt":"a"}"#), 1);
        assert_eq!(choices(r#"{"prompt":["a","b","c"],"n":2,"best_of":5}"#), 15);
        assert_eq!(choices(r#"{"prompt":[1,2,3]}"#), 1);
        assert_eq!(choices(r#"{"prompt":[[1,2],[3]]}"#), 2);
        assert_eq!(choices(r#"{"prompt":[]}"#), 1);
    }

    #[test]
    fn bytes_of_images_in_the_body_are_told_apart_from_text() {
        let data = format!(r#""data:image\/png;base64,{}""#, "A".repeat(1000));
        let bytes = data.len() as u64;
        let part = |part: &str| format!(r#"{{"messages":[{{"role":"user","content":[{part}]}}]}}"#);
        let chat_bytes = |content: &str| chat(&part(content)).image_bytes;
        let image = format!(r#"{{"type":"image_url","image_url":{{"detail":"low","url":{data}}}}}"#);
        assert_eq!(chat_bytes(&image), bytes);
        assert_eq!(chat_bytes(&format!("{image},{image}")), 2 * bytes);
        assert_eq!(chat_bytes(r#"{"type":"image_url","image_url":{"url":"https://example.org/data:image/png"}}"#), 0);
        assert_eq!(chat_bytes(&format!(r#"{{"type":"text","text":{data}}}"#)), 0);
        assert_eq!(chat_bytes(r#"{"type":"image_url","image_url":{"url":"data:text/plain,words"}}"#), 0);

        let input = |item: &str| format!(r#"{{"input":[{{"role":"user","content":[{item}]}}]}}"#);
        let image = format!(r#"{{"type":"input_image","image_url":{data}}}"#);
        assert_eq!(responses(&input(&image)).image_bytes, bytes);
        let no_image = format!(r#"{{"type":"input_text","text":"","image_url":{data}}},{{"type":"input_image"}}"#);
        assert_eq!(responses(&input(&no_image)).image_bytes, bytes, "the one image bounds it");
        let no_image = format!(r#"{{"type":"input_text","text":"","image_url":{data}}}"#);
        assert_eq!(responses(&input(&no_image)).image_bytes, 0);

        let source = |kind: &str, media: &str| {
            part(&format!(r#"{{"type":"image","source":{{"type":"{kind}","media_type":"{media}","data":{data}}}}}"#))
        };
        assert_eq!(messages(&source("base64", "image/png")).image_bytes, bytes);
        assert_eq!(messages(&source("text", "image/png")).image_bytes, 0);
        assert_eq!(messages(&source("base64", "application/pdf")).image_bytes, 0);
    }

    #[test]
    fn images_and_files_are_found_at_any_depth_and_in_any_spelling() {
        let part = |part: &str| format!(r#"{{"messages":[{{"role":"user","content":[{part}]}}]}}"#);
        let image = r#"{"type":"image_url","image_url":{"url":"https://x"}}"#;
        assert_eq!(chat(&part(&format!("{image},{image}"))).images, 2);
        assert_eq!(chat(&part(r#"{"im\u0061ge_url":"https://x"}"#)).images, 1);
        assert!(chat(&part(r#"{"type":"input_audio","input_audio":{"data":"x"}}"#)).audio_input);
        assert_eq!(chat(&part(r#"{"type":"file","file":{"file_id":"f"}}"#)).unbounded_input.as_deref(), Some("file"));
        assert_eq!(
            chat(&part(r#"{"type":"video_url","video_url":{"url":"x"}}"#)).unbounded_input.as_deref(),
            Some("video_url")
        );
        assert_eq!(chat(&part(r#"{"type":"text","text":"an image_url in text"}"#)).images, 0);

        let facts = responses(r#"{"input":[{"role":"user","content":[{"type":"input_image","file_id":"f"}]}]}"#);
        assert_eq!((facts.images, facts.unbounded_input), (1, None));
        let facts = responses(r#"{"input":[{"type":"function_call_output","output":[{"type":"input_file"}]}]}"#);
        assert_eq!(facts.unbounded_input.as_deref(), Some("input_file"));

        let source = |kind: &str, source: &str| {
            format!(
                r#"{{"messages":[{{"role":"user","content":[{{"type":"tool_result","content":[{{"type":"{kind}","source":{source}}}]}}]}}]}}"#
            )
        };
        let facts = messages(&source("image", r#"{"type":"base64","media_type":"image/png","data":"x"}"#));
        assert_eq!((facts.images, facts.unbounded_input), (1, None));
        for unbounded in [r#"{"type":"base64","media_type":"application/pdf"}"#, r#"{"type":"url","url":"x"}"#] {
            assert_eq!(messages(&source("document", unbounded)).unbounded_input.as_deref(), Some("document"));
        }
        let facts = messages(&source("document", r#"{"type":"text","media_type":"text/plain","data":"x"}"#));
        assert_eq!(facts.unbounded_input, None);
    }

    #[test]
    fn references_to_stored_input_bound_nothing() {
        for (body, field) in [
            (r#"{"previous_response_id":"r"}"#, "previous_response_id"),
            (r#"{"conversation":{"id":"c"}}"#, "conversation"),
            (r#"{"prompt":{"id":"p"}}"#, "prompt"),
            (r#"{"input":[{"type":"item_reference","id":"i"}]}"#, "item_reference"),
            (r#"{"input":[{"id":"i"}]}"#, "input"),
        ] {
            assert_eq!(responses(body).unbounded_input.as_deref(), Some(field), "{body}");
        }
        assert!(responses(r#"{"background":true}"#).background);
    }

    #[test]
    fn what_costs_beyond_tokens_is_named() {
        assert_eq!(chat(r#"{"web_search_options":{}}"#).extra_cost.as_deref(), Some("web_search_options"));
        assert_eq!(chat(r#"{"models":["a","b"]}"#).extra_cost.as_deref(), Some("models"));
        for tool in ["web_search", "file_search", "code_interpreter", "mcp", "image_generation", "computer_use_preview"]
        {
            let body = format!(r#"{{"tools":[{{"type":"function"}},{{"type":"{tool}"}}]}}"#);
            assert_eq!(responses(&body).extra_cost.as_deref(), Some(&*format!("tools: {tool}")), "{tool}");
        }
        let facts = messages(r#"{"tools":[{"name":"a"},{"type":"bash_20250124","name":"bash"}]}"#);
        assert_eq!((facts.tools, facts.provider_defined_tools, facts.extra_cost), (2, 1, None));
        let facts = messages(r#"{"tools":[{"type":"web_search_20250305","name":"web_search"}]}"#);
        assert_eq!(facts.extra_cost.as_deref(), Some("tools: web_search_20250305"));
        assert_eq!(messages(r#"{"mcp_servers":[{}]}"#).extra_cost.as_deref(), Some("mcp_servers"));
        assert_eq!(messages(r#"{"speed":"fast"}"#).extra_cost.as_deref(), Some("speed"));
        assert!(chat(r#"{"modalities":["text","audio"],"audio":{"voice":"x"}}"#).audio_output);
    }

    #[test]
    fn users_and_thinking_are_read() {
        let facts = messages(
            r#"{"model":"claude","max_tokens":9,"metadata":{"user_id":"u"},"thinking":{"type":"enabled"},
                "system":[{"type":"text","text":"x","cache_control":{"type":"ephemeral"}}]}"#,
        );
        assert_eq!((facts.user.as_deref(), facts.output_cap()), (Some("u"), Some(9)));
        assert_eq!(chat(r#"{"user":"","metadata":{"user_id":"u"}}"#).user.as_deref(), Some("u"));
        assert_eq!(chat(r#"{"user":"a","safety_identifier":"b"}"#).user.as_deref(), Some("b"));
        assert_eq!(chat(r#"{"user":5,"metadata":[]}"#).user, None);
        assert!(facts.reasoning && facts.cache_control);
        assert!(!messages(r#"{"thinking":{"type":"disabled"}}"#).reasoning);
    }
}
