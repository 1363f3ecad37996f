//! Watches a reply that is one JSON object go by in pieces: usage, error, and the text to count where neither comes.

use super::{
    anthropic,
    endpoint::{Dialect, Endpoint},
    json::{self, Span, push::FieldCatcher},
    openai,
    output::{OUTPUT_BYTES_MAX, Output},
    stream::{push_under, whole},
    usage::Reported,
};

/// A push parser that learns what a reply says of itself.
#[derive(Debug, Clone)]
pub struct ReplyWatch {
    catcher: FieldCatcher,
    dialect: Dialect,
    /// The reply's bytes, where the model's output is in them.
    spool: Option<Vec<u8>>,
    extra_bytes: usize,
}

impl ReplyWatch {
    /// A watch over the replies of `endpoint`.
    #[must_use]
    pub fn new(endpoint: &Endpoint) -> ReplyWatch {
        ReplyWatch {
            catcher: FieldCatcher::new(&["usage", "error", "service_tier"]),
            dialect: endpoint.dialect(),
            spool: endpoint.has_output().then(Vec::new),
            extra_bytes: 0,
        }
    }

    /// Looks at the next bytes of the reply.
    pub fn push(&mut self, chunk: &[u8]) {
        self.catcher.push(chunk);
        let Some(spool) = &mut self.spool else { return };
        let kept = chunk.len().min(OUTPUT_BYTES_MAX - spool.len());
        spool.extend_from_slice(&chunk[..kept]);
        self.extra_bytes += chunk.len() - kept;
    }

    /// The usage that the reply reports.
    #[must_use]
    pub fn usage(&self) -> Reported {
        let json = self.catcher.get("usage")?;
        match self.dialect {
            Dialect::OpenAi => openai::reply::usage(json),
            Dialect::Anthropic => anthropic::reply::usage(json),
        }
    }

    /// The reply's `error`, as raw JSON.
    #[must_use]
    pub fn error(&self) -> Option<&[u8]> {
        self.catcher.get("error").filter(|json| *json != b"null")
    }

    /// The tier that the provider says it served with.
    #[must_use]
    pub fn service_tier(&self) -> Option<String> {
        let json = match self.dialect {
            Dialect::OpenAi => self.catcher.get("service_tier")?,
            Dialect::Anthropic => self.catcher.get("usage")?,
        };
        let value = match self.dialect {
            Dialect::OpenAi => whole(json),
            Dialect::Anthropic => json::field(json, whole(json), "service_tier")?,
        };
        json::text(json, value).map(Into::into)
    }

    /// Whether the end of the reply's object was seen.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.catcher.is_done()
    }

    /// What the model wrote, to be counted where no usage came. Of a reply that broke off: as far as it came.
    #[must_use]
    pub fn into_output(self) -> Output {
        let mut output = Output { extra_bytes: self.extra_bytes, ..Output::default() };
        let reply = self.spool.unwrap_or_default();
        // Echoes of the request stand beside these; a reply that broke off has only a part of one.
        let outputs = json::fields(&reply, whole(&reply), ["choices", "output", "content"]);
        let found: Vec<Span> = outputs.into_iter().flatten().collect();
        let spans = if found.is_empty() { vec![whole(&reply)] } else { found };
        for span in spans {
            push_under(&mut output, &reply, span, &OUTPUT_KEYS);
            push_tool_inputs(&mut output, &reply, span);
        }
        output
    }
}

/// Where the dialects put what the model wrote.
const OUTPUT_KEYS: [&str; 10] = [
    "content",
    "text",
    "reasoning_content",
    "reasoning",
    "thinking",
    "refusal",
    "name",
    "arguments",
    "input",
    "transcript",
];

/// Anthropic's tool calls have their arguments as objects; their JSON is what the model wrote.
fn push_tool_inputs(output: &mut Output, reply: &[u8], span: Span) {
    json::walk(reply, span, |key, value_at| {
        if key.of(reply) != b"\"input\"" || reply.get(value_at) != Some(&b'{') {
            return;
        }
        let input = json::value_at(reply, value_at).map(|input| input.of(reply));
        output.push(&String::from_utf8_lossy(input.unwrap_or_default()));
    });
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::{units::Tokens, wire::usage::Usage};

    fn watched(path: &str, reply: &str) -> ReplyWatch {
        let mut watch = ReplyWatch::new(&Endpoint::of(&Method::POST, path).expect(path));
        reply.as_bytes().chunks(3).for_each(|chunk| watch.push(chunk));
        watch
    }

    #[test]
    fn usage_is_caught_from_replies_of_both_dialects() {
        let expected = Usage { input: Tokens(5), output: Tokens(2), ..Usage::default() };
        let chat = r#"{"choices":[{"message":{"content":"a \"usage\": {}"}}],"service_tier":"default",
            "usage":{"prompt_tokens":5,"completion_tokens":2}}"#;
        let watch = watched("/v1/chat/completions", chat);
        assert_eq!((watch.usage(), watch.ended()), (Some(Ok(expected)), true));
        assert_eq!((watch.service_tier().as_deref(), watch.error()), (Some("default"), None));
        let messages = r#"{"content":[],"usage":{"input_tokens":5,"output_tokens":2,"service_tier":"priority"}}"#;
        let watch = watched("/v1/messages", messages);
        assert_eq!((watch.usage(), watch.service_tier().as_deref()), (Some(Ok(expected)), Some("priority")));
        let embeddings = r#"{"data":[{"embedding":[0.1,-2e-3]}],"usage":{"prompt_tokens":5,"total_tokens":5}}"#;
        let usage = watched("/v1/embeddings", embeddings).usage();
        assert_eq!(usage, Some(Ok(Usage { output: Tokens(0), ..expected })));
    }

    #[test]
    fn output_is_collected_where_no_usage_came() {
        for (path, reply, text) in [
            (
                "/v1/chat/completions",
                r#"{"choices":[{"message":{"role":"assistant","content":"hi","tool_calls":[{"function":{"name":"get","arguments":"{}"}}]}}]}"#,
                "higet{}",
            ),
            ("/v1/completions", r#"{"choices":[{"text":"hi"}]}"#, "hi"),
            (
                "/v1/responses",
                r#"{"instructions":"no","tools":[{"name":"no"}],"output":[{"content":[{"type":"output_text","text":"hi"}]}]}"#,
                "hi",
            ),
            (
                "/v1/messages",
                r#"{"content":[{"type":"text","text":"hi"},{"type":"tool_use","name":"get","input":{"a":1}}]}"#,
                "higet{\"a\":1}",
            ),
            ("/v1/chat/completions", r#"{"choices":[{"message":{"content":"hi"},"logprobs":[0.1,"#, "hi"),
            ("/v1/chat/completions", "not json", ""),
        ] {
            let watch = watched(path, reply);
            assert_eq!(watch.usage(), None);
            assert_eq!(watch.into_output().text, text, "{reply}");
        }
    }
}
