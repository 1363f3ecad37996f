//! Watches a streamed reply go by: usage, errors, the end, the first output. Looks at copies, changes nothing.
//!
//! Whatever comes, the stream goes on: an event that is no JSON, or too long, teaches nothing and that is all.

use super::{
    anthropic::{self, reply::UsageMerge},
    endpoint::Endpoint,
    json::{self, Span},
    openai,
    output::Output,
    sse::{Event, Parser},
    usage::Reported,
};

/// The longest event that is read: a Responses stream ends with one that repeats the whole reply, instructions included.
const EVENT_BYTES_MAX: usize = 2 << 20;
/// The longest error that is kept, in bytes.
const ERROR_BYTES_MAX: usize = 16 * 1024;

/// A push parser that learns what a stream says of itself.
#[derive(Debug, Clone)]
pub struct StreamWatch {
    parser: Parser,
    format: Format,
    seen: Seen,
}

/// How events are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Chat,
    Responses,
    Messages,
}

/// What was learnt so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    pub(super) usage: Reported,
    /// Anthropic reports usage in parts.
    pub(super) merge: UsageMerge,
    pub(super) error: Option<Vec<u8>>,
    pub(super) ended: bool,
    pub(super) finish_reason: Option<String>,
    pub(super) service_tier: Option<String>,
    pub(super) output: Output,
}

impl StreamWatch {
    /// A watch over the streams of `endpoint`.
    #[must_use]
    pub fn new(endpoint: &Endpoint) -> StreamWatch {
        let format = match endpoint {
            Endpoint::Messages => Format::Messages,
            Endpoint::Responses => Format::Responses,
            _ => Format::Chat,
        };
        StreamWatch { parser: Parser::new(EVENT_BYTES_MAX), format, seen: Seen::default() }
    }

    /// Looks at the next bytes of the stream.
    pub fn push(&mut self, chunk: &[u8]) {
        let (format, seen) = (self.format, &mut self.seen);
        self.parser.push(chunk, |event| seen.event(format, event));
    }

    /// Whether the last byte so far lies inside of an event.
    #[must_use]
    pub fn mid_event(&self) -> bool {
        self.parser.is_mid_event()
    }

    /// Ends the stream; says whether it broke off inside of an event.
    pub fn finish(&mut self) -> bool {
        let (format, seen) = (self.format, &mut self.seen);
        self.parser.finish(|event| seen.event(format, event))
    }

    /// The last report of usage; reports are cumulative. Of a stream that has not [ended](StreamWatch::ended) it may
    /// leave out what came after it.
    #[must_use]
    pub fn usage(&self) -> Reported {
        match self.format {
            Format::Messages => self.seen.merge.reported(),
            _ => self.seen.usage.clone(),
        }
    }

    /// Whether the stream said that it is over: `[DONE]`, `message_stop`, `response.completed` and kin.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.seen.ended
    }

    /// Why the model stopped, as the provider words it.
    #[must_use]
    pub fn finish_reason(&self) -> Option<&str> {
        self.seen.finish_reason.as_deref()
    }

    /// The first error inside of the stream, as raw JSON of at most 16 KiB.
    #[must_use]
    pub fn error(&self) -> Option<&[u8]> {
        self.seen.error.as_deref()
    }

    /// Whether any output came yet; that is when time to first token ends.
    #[must_use]
    pub fn has_output(&self) -> bool {
        self.seen.output.chunks > 0
    }

    /// Number of events that carried output.
    #[must_use]
    pub fn output_chunks(&self) -> u64 {
        self.seen.output.chunks
    }

    /// The tier that the provider says it served with.
    #[must_use]
    pub fn service_tier(&self) -> Option<&str> {
        self.seen.service_tier.as_deref()
    }

    /// What the model wrote, to be counted where no usage came.
    #[must_use]
    pub fn into_output(self) -> Output {
        self.seen.output
    }
}

// === impl Seen ===

impl Seen {
    fn event(&mut self, format: Format, event: Event<'_>) {
        if event.data == b"[DONE]" {
            self.ended = true;
            return;
        }
        let before = self.output.bytes();
        match format {
            Format::Chat => openai::stream::chat_event(event.data, self),
            Format::Responses => openai::stream::responses_event(event.data, self),
            Format::Messages => anthropic::stream::event(event.data, self),
        }
        if event.name == b"error" {
            self.error(event.data);
        }
        self.output.chunks += u64::from(self.output.bytes() > before);
    }

    pub(super) fn error(&mut self, json: &[u8]) {
        self.error.get_or_insert_with(|| json[..json.len().min(ERROR_BYTES_MAX)].to_vec());
    }

    /// Adds the text of a string; nothing when the value is none. Says whether there was any.
    pub(super) fn output(&mut self, data: &[u8], value: Span) -> bool {
        let text = json::text(data, value).unwrap_or_default();
        self.output.push(&text);
        !text.is_empty()
    }

    /// Adds the strings under any of `keys` at any depth.
    pub(super) fn output_under(&mut self, data: &[u8], value: Span, keys: &[&str]) {
        push_under(&mut self.output, data, value, keys);
    }

    pub(super) fn finish_reason(&mut self, data: &[u8], value: Option<Span>) {
        if let Some(reason) = value.and_then(|value| json::text(data, value)) {
            self.finish_reason = Some(reason.into_owned());
        }
    }

    pub(super) fn service_tier(&mut self, data: &[u8], value: Option<Span>) {
        let Some(tier) = value.and_then(|value| json::text(data, value)) else { return };
        if self.service_tier.as_deref() != Some(&*tier) {
            self.service_tier = Some(tier.into_owned());
        }
    }
}

/// Adds the strings under any of `keys`, at any depth of `value`, to `output`.
pub(super) fn push_under(output: &mut Output, data: &[u8], value: Span, keys: &[&str]) {
    json::walk(data, value, |key, value_at| {
        if !json::text(data, key).is_some_and(|key| keys.contains(&&*key)) {
            return;
        }
        if let Some(text) = json::string_at(data, value_at) {
            output.push(&text);
        }
    });
}

/// All of an event's data.
pub(super) fn whole(data: &[u8]) -> Span {
    let start = data.iter().position(|byte| !byte.is_ascii_whitespace()).unwrap_or(data.len());
    Span { start, end: data.len() }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::{units::Tokens, wire::usage::Usage};

    fn watch(path: &str) -> StreamWatch {
        StreamWatch::new(&Endpoint::of(&Method::POST, path).expect(path))
    }

    /// Watches `script` whole and cut at every byte, which must teach the same.
    fn watched(path: &str, script: &str) -> StreamWatch {
        let mut whole = watch(path);
        whole.push(script.as_bytes());
        whole.finish();
        for cut in 0..script.len() {
            let mut pieces = watch(path);
            pieces.push(&script.as_bytes()[..cut]);
            pieces.push(&script.as_bytes()[cut..]);
            pieces.finish();
            assert_eq!(pieces.usage(), whole.usage(), "cut at {cut}");
            assert_eq!(pieces.seen.output, whole.seen.output, "cut at {cut}");
            assert_eq!((pieces.ended(), pieces.error()), (whole.ended(), whole.error()), "cut at {cut}");
        }
        whole
    }

    fn usage(input: u64, output: u64) -> Reported {
        Some(Ok(Usage { input: Tokens(input), output: Tokens(output), ..Usage::default() }))
    }

    #[test]
    fn a_chat_stream_is_learnt_from_first_output_to_done() {
        let script = concat!(
            ": keep-alive\n\n",
            r#"data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}],"service_tier":"default","usage":null}"#,
            "\n\n",
            r#"data: {"choices":[{"delta":{"reasoning_content":"thinks ","reasoning":"thinks "}}],"usage":null}"#,
            "\r\n\r\n",
            r#"data: {"choices":[{"delta":{"content":"\u4f60\u597d"}}],"usage":null}"#,
            "\n\n",
            r#"data: {"choices":[{"delta":{"tool_calls":[{"function":{"name":"get","arguments":"{\"a\""}}]}}]}"#,
            "\n\n",
            r#"data: {"choices":[{"delta":{},"finish_reason":"tool_calls"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}"#,
            "\n\n",
            r#"data: {"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":20,"total_tokens":30}}"#,
            "\n\ndata: [DONE]\n\n",
        );
        let watch = watched("/v1/chat/completions", script);
        assert_eq!(watch.usage(), usage(10, 20));
        assert!(watch.ended() && watch.error().is_none());
        assert_eq!((watch.finish_reason(), watch.service_tier()), (Some("tool_calls"), Some("default")));
        let output = watch.into_output();
        assert_eq!((output.text.as_str(), output.chunks), ("thinks 你好get{\"a\"", 3));
    }

    #[test]
    fn output_begins_with_the_first_text_and_not_with_the_role() {
        let mut watch = watch("/v1/chat/completions");
        watch.push(b"data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n");
        assert!(!watch.has_output());
        watch.push(b"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n");
        assert!(watch.has_output());
    }

    #[test]
    fn usage_repeated_in_every_chunk_is_cumulative() {
        let script: String = (1..=100)
            .map(|n| format!("data: {{\"choices\":[{{\"text\":\"a\"}}],\"usage\":{{\"prompt_tokens\":7,\"completion_tokens\":{n}}}}}\n\n"))
            .collect();
        let mut watch = watch("/v1/completions");
        watch.push(script.as_bytes());
        assert_eq!((watch.usage(), watch.output_chunks()), (usage(7, 100), 100));
    }

    #[test]
    fn a_responses_stream_ends_with_its_usage() {
        let script = concat!(
            "event: response.created\n",
            r#"data: {"type":"response.created","response":{"usage":null,"error":null,"instructions":"\"usage\""}}"#,
            "\n\n",
            r#"data: {"type":"response.output_item.added","item":{"type":"function_call","name":"get"}}"#,
            "\n\n",
            r#"data: {"type":"response.function_call_arguments.delta","delta":"{}"}"#,
            "\n\n",
            r#"data: {"type":"response.output_text.delta","delta":"hi"}"#,
            "\n\n",
            r#"data: {"type":"response.audio.delta","delta":"AAAA"}"#,
            "\n\n",
            r#"data: {"response":{"status":"completed","service_tier":"flex","usage":{"input_tokens":5,"output_tokens":6}},"type":"response.completed"}"#,
            "\n\n",
        );
        let watch = watched("/v1/responses", script);
        assert_eq!((watch.usage(), watch.ended(), watch.error()), (usage(5, 6), true, None));
        assert_eq!((watch.service_tier(), watch.finish_reason()), (Some("flex"), Some("completed")));
        assert_eq!(watch.into_output().text, "get{}hi");
    }

    #[test]
    fn a_messages_stream_merges_its_reports() {
        let script = concat!(
            "event: message_start\n",
            r#"data: {"type":"message_start","message":{"usage":{"input_tokens":10,"cache_read_input_tokens":2,"output_tokens":1}}}"#,
            "\n\nevent: ping\ndata: {\"type\": \"ping\"}\n\n",
            r#"data: {"type":"content_block_start","content_block":{"type":"tool_use","name":"get","input":{}}}"#,
            "\n\n",
            r#"data: {"type":"content_block_delta","delta":{"type":"input_json_delta","partial_json":"{\"a\":1}"}}"#,
            "\n\n",
            r#"data: {"type":"content_block_delta","delta":{"type":"thinking_delta","thinking":"hm"}}"#,
            "\n\n",
            r#"data: {"type":"content_block_delta","delta":{"type":"signature_delta","signature":"AAAA"}}"#,
            "\n\n",
            r#"data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":15}}"#,
            "\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
        );
        let watch = watched("/v1/messages", script);
        let expected = Usage { input: Tokens(12), cached: Tokens(2), output: Tokens(15), ..Usage::default() };
        assert_eq!((watch.usage(), watch.ended()), (Some(Ok(expected)), true));
        assert_eq!(watch.finish_reason(), Some("end_turn"));
        assert_eq!(watch.into_output().text, "get{\"a\":1}hm");
    }

    #[test]
    fn errors_inside_of_streams_are_noticed() {
        for (path, script) in [
            ("/v1/chat/completions", "data: {\"error\":{\"message\":\"x\"}}\n\n"),
            ("/v1/chat/completions", "event: error\ndata: {\"message\":\"x\"}\n\n"),
            ("/v1/responses", "data: {\"type\":\"error\",\"message\":\"x\"}\n\n"),
            ("/v1/responses", "data: {\"type\":\"response.failed\",\"response\":{\"error\":{\"message\":\"x\"}}}\n\n"),
            ("/v1/messages", "event: error\ndata: {\"type\":\"error\",\"error\":{\"message\":\"x\"}}\n\n"),
        ] {
            let watch = watched(path, script);
            assert!(watch.error().is_some_and(|error| memchr::memmem::find(error, b"\"x\"").is_some()), "{script}");
        }
    }

    #[test]
    fn hostile_streams_teach_nothing_and_do_no_harm() {
        let mut watch = watch("/v1/chat/completions");
        watch
            .push(b"data: {\"choices\":\ndata: nonsense\n\ndata: [[[[\n\ndata: {\"usage\":{\"prompt_tokens\":-5}}\n\n");
        assert!(matches!(watch.usage(), Some(Err(_))));
        watch.push(b"data: \xff\xfe{\n\n");
        watch.push(b"data: {\"choices\":[{\"delta\"");
        assert!(watch.finish(), "the last event is incomplete");
        assert!(!watch.ended());
    }
}
