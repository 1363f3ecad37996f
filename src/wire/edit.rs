//! The changes that rules make to a request: each adds to [`Edits`], none decodes the messages.
//!
//! What a rule adds is text inside of one JSON string: it cannot end the string, add a message or change a role.

use super::{
    anthropic,
    endpoint::Endpoint,
    json::{self, Edits, Kind, Scan, Span, escaped, quoted},
    openai,
    request::RequestFacts,
};

/// Why an edit cannot be made; the message is meant for the client, whose body has the wrong shape for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// The endpoint has no place for a prompt.
    #[error("a prompt cannot be injected into a call of this endpoint")]
    Unsupported,
    /// A field has a type that the edit cannot be made in.
    #[error("`{param}` must be {must}, so that the prompt can be injected")]
    Shape {
        /// The field.
        param: &'static str,
        /// What it must be.
        must: &'static str,
    },
    /// The prompt's examples begin with an answer.
    #[error(
        "the prompt's examples begin with an assistant's message, and this API takes only conversations that a user begins"
    )]
    UserMustBegin,
    /// Text was to go around the last user message, and there is none.
    #[error("`{0}` has no user message to put the prompt around")]
    NoUserMessage(&'static str),
}

/// In whose name an injected message speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    /// `system`, which all models know.
    #[default]
    System,
    /// `developer`, which OpenAI's newer models prefer.
    Developer,
    /// `user`: an example of what users say.
    User,
    /// `assistant`: an example of a good answer.
    Assistant,
}

impl Role {
    /// The name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::Developer => "developer",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }

    /// Whether it instructs the model rather than talks with it.
    #[must_use]
    pub const fn instructs(self) -> bool {
        matches!(self, Role::System | Role::Developer)
    }
}

/// Puts another model's name in.
pub fn set_model(edits: &mut Edits, scan: &Scan, model: &str) {
    edits.set_field(scan, "model", quoted(model));
}

/// Adds a parameter where the client has set none (a `null` is the client's own choice); `json` is a JSON value.
/// Says whether it did.
pub fn set_parameter_default(edits: &mut Edits, scan: &Scan, name: &str, json: &str) -> bool {
    let absent = scan.get(name).is_none();
    if absent {
        edits.set_field(scan, name, json.to_owned());
    }
    absent
}

/// Sets a parameter whatever the client has set; `json` is a JSON value.
pub fn force_parameter(edits: &mut Edits, scan: &Scan, name: &str, json: &str) {
    edits.set_field(scan, name, json.to_owned());
}

/// Lowers every output cap that is above `cap_tokens`, and adds one as `field_for_absent` when none is set.
pub fn set_output_cap(edits: &mut Edits, scan: &Scan, facts: &RequestFacts, cap_tokens: u64, field_for_absent: &str) {
    for cap in facts.output_caps.iter().filter(|cap| cap.tokens > cap_tokens) {
        edits.replace(cap.span, cap_tokens.to_string());
    }
    if facts.output_caps.is_empty() {
        edits.set_field(scan, field_for_absent, cap_tokens.to_string());
    }
}

/// Asks for a usage report at the end of an OpenAI stream, whatever the client's `stream_options` say of it.
pub fn ask_for_usage(edits: &mut Edits, body: &[u8], scan: &Scan) {
    match scan.get("stream_options").and_then(|span| json::object(body, span).ok()) {
        Some(options) => edits.set_field(&options, "include_usage", "true"),
        None => edits.set_field(scan, "stream_options", r#"{"include_usage":true}"#),
    }
}

/// Puts a prompt before the conversation, so that the model reads it first.
///
/// # Errors
/// The endpoint knows no such prompt, or the body has another type where it belongs.
pub fn inject_prompt(
    edits: &mut Edits,
    endpoint: &Endpoint,
    body: &[u8],
    scan: &Scan,
    role: Role,
    text: &str,
) -> Result<(), EditError> {
    match endpoint {
        Endpoint::ChatCompletions => openai::prompt::prepend_message(edits, body, scan, role, text),
        Endpoint::Responses => openai::prompt::prepend_instructions(edits, scan, text),
        Endpoint::Messages | Endpoint::CountTokens => anthropic::prompt::prepend_system(edits, body, scan, text),
        _ => Err(EditError::Unsupported),
    }
}

/// Puts messages before the conversation: those that instruct first of all, the examples after the client's own instructions,
/// because models are trained on conversations that begin with these.
///
/// # Errors
/// As [`inject_prompt`]; also when the API takes no conversation that begins so.
pub fn inject_messages(
    edits: &mut Edits,
    endpoint: &Endpoint,
    body: &[u8],
    scan: &Scan,
    messages: &[(Role, &str)],
) -> Result<(), EditError> {
    match endpoint {
        Endpoint::ChatCompletions => openai::prompt::insert_messages(edits, body, scan, messages),
        Endpoint::Responses => openai::prompt::insert_input(edits, body, scan, messages),
        Endpoint::Messages | Endpoint::CountTokens => anthropic::prompt::insert_messages(edits, body, scan, messages),
        _ => Err(EditError::Unsupported),
    }
}

/// `{"role":"…","content":"…"}`
pub(super) fn message(role: Role, text: &str) -> Vec<u8> {
    let mut json = Vec::with_capacity(text.len() + 48);
    json.extend_from_slice(b"{\"role\":\"");
    json.extend_from_slice(role.name().as_bytes());
    json.extend_from_slice(b"\",\"content\":");
    json.extend_from_slice(&quoted(text));
    json.push(b'}');
    json
}

/// The texts with blank lines between them, for APIs that have one field for all instructions.
pub(super) fn paragraphs<'a>(texts: impl Iterator<Item = &'a str>) -> Option<String> {
    let texts: Vec<&str> = texts.collect();
    (!texts.is_empty()).then(|| texts.join("\n\n"))
}

/// Puts text before and after what the user said last.
///
/// # Errors
/// The endpoint has no messages, there is none of the user's, or its content has an unknown type.
pub fn around_last_user(
    edits: &mut Edits,
    endpoint: &Endpoint,
    body: &[u8],
    scan: &Scan,
    before: Option<&str>,
    after: Option<&str>,
) -> Result<(), EditError> {
    let content = match endpoint {
        Endpoint::ChatCompletions => openai::prompt::last_user_content(body, scan)?,
        Endpoint::Responses => openai::prompt::last_user_input(body, scan)?,
        Endpoint::Messages | Endpoint::CountTokens => anthropic::prompt::last_user_content(body, scan)?,
        _ => return Err(EditError::Unsupported),
    };
    let part_type = if *endpoint == Endpoint::Responses { "input_text" } else { "text" };
    put_around(edits, body, content, part_type, before, after)
}

/// Text content is extended inside of its quotes, a list of parts by a text part at either end.
fn put_around(
    edits: &mut Edits,
    body: &[u8],
    content: Span,
    part_type: &str,
    before: Option<&str>,
    after: Option<&str>,
) -> Result<(), EditError> {
    match json::kind(body, content) {
        Some(Kind::String) => {
            before.into_iter().for_each(|text| edits.insert(content.start + 1, escaped(text)));
            after.into_iter().for_each(|text| edits.insert(content.end - 1, escaped(text)));
        }
        Some(Kind::Array) => {
            before.into_iter().for_each(|text| edits.prepend_element(body, content, text_part(part_type, text)));
            after.into_iter().for_each(|text| edits.append_element(body, content, text_part(part_type, text)));
        }
        _ => return Err(EditError::Shape { param: "content", must: "a string or an array of parts" }),
    }
    Ok(())
}

/// `{"type":"text","text":"…"}`
pub(super) fn text_part(part_type: &str, text: &str) -> Vec<u8> {
    let mut json = Vec::with_capacity(text.len() + 40);
    json.extend_from_slice(b"{\"type\":\"");
    json.extend_from_slice(part_type.as_bytes());
    json.extend_from_slice(b"\",\"text\":");
    json.extend_from_slice(&quoted(text));
    json.push(b'}');
    json
}

/// Puts `text` before the text of the string at `span`, with a blank line between them.
pub(super) fn prepend_paragraph(edits: &mut Edits, span: Span, text: &str) {
    let mut json = escaped(text);
    let is_empty_string = span.len() == 2;
    if !is_empty_string {
        json.extend_from_slice(b"\\n\\n");
    }
    edits.insert(span.start + 1, json);
}

/// The content of the last element of `messages` that is the user's and that `counts`.
pub(super) fn last_user_content_in(
    body: &[u8],
    messages: Span,
    param: &'static str,
    counts: impl Fn(Span) -> bool,
) -> Result<Span, EditError> {
    let content = |message| {
        let fields = json::object(body, message).ok()?;
        let role = json::text(body, fields.get("role")?)?;
        fields.get("content").filter(|content| role == "user" && counts(*content))
    };
    json::elements(body, messages).filter_map(content).last().ok_or(EditError::NoUserMessage(param))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::Method;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::wire::request::facts;

    struct Call {
        endpoint: Endpoint,
        body: Bytes,
        scan: Scan,
        edits: Edits,
    }

    fn call(path: &str, body: &str) -> Call {
        let endpoint = Endpoint::of(&Method::POST, path).expect(path);
        let scan = json::scan(body.as_bytes()).expect(body);
        Call { endpoint, body: Bytes::from(body.to_owned()), scan, edits: Edits::new() }
    }

    fn chat(body: &str) -> Call {
        call("/v1/chat/completions", body)
    }

    impl Call {
        fn inject(mut self, text: &str) -> Result<String, EditError> {
            inject_prompt(&mut self.edits, &self.endpoint, &self.body, &self.scan, Role::System, text)?;
            Ok(self.done())
        }

        fn around(mut self, before: &str, after: &str) -> Result<String, EditError> {
            let (before, after) = (Some(before), Some(after));
            around_last_user(&mut self.edits, &self.endpoint, &self.body, &self.scan, before, after)?;
            Ok(self.done())
        }

        fn edit(mut self, edit: impl FnOnce(&mut Call)) -> String {
            edit(&mut self);
            self.done()
        }

        fn done(&self) -> String {
            String::from_utf8(self.edits.apply(&self.body).to_vec()).expect("UTF-8 in, UTF-8 out")
        }
    }

    #[test]
    fn a_model_is_renamed_in_place_and_nothing_else_moves() {
        let rename = |call: &mut Call| set_model(&mut call.edits, &call.scan, "gpt-4.1");
        assert_eq!(
            chat(r#"{ "x":1.50, "model" : "a" ,"y":2}"#).edit(rename),
            r#"{ "x":1.50, "model" : "gpt-4.1" ,"y":2}"#
        );
        assert_eq!(chat("{}").edit(rename), r#"{"model":"gpt-4.1"}"#);
    }

    #[test]
    fn defaults_yield_to_the_client_and_forced_parameters_do_not() {
        let body = r#"{"temperature":1,"top_p":null}"#;
        let default = |name: &'static str| {
            move |call: &mut Call| {
                set_parameter_default(&mut call.edits, &call.scan, name, "0.2");
            }
        };
        assert_eq!(chat(body).edit(default("temperature")), body);
        assert_eq!(chat(body).edit(default("top_p")), body);
        assert_eq!(chat(body).edit(default("seed")), r#"{"seed":0.2,"temperature":1,"top_p":null}"#);
        let forced = |call: &mut Call| force_parameter(&mut call.edits, &call.scan, "temperature", "0.2");
        assert_eq!(chat(body).edit(forced), r#"{"temperature":0.2,"top_p":null}"#);
    }

    #[test]
    fn every_cap_above_the_limit_is_lowered_and_an_absent_one_added() {
        let capped = |body: &str| {
            chat(body).edit(|call| {
                let facts = facts(&call.endpoint, &call.body, &call.scan).expect("valid caps");
                set_output_cap(&mut call.edits, &call.scan, &facts, 256, "max_completion_tokens");
            })
        };
        assert_eq!(
            capped(r#"{"max_tokens":1e3,"max_completion_tokens":9}"#),
            r#"{"max_tokens":256,"max_completion_tokens":9}"#
        );
        assert_eq!(capped(r#"{"a":1}"#), r#"{"max_completion_tokens":256,"a":1}"#);
        assert_eq!(capped(r#"{"max_completion_tokens":null}"#), r#"{"max_completion_tokens":256}"#);
        assert_eq!(capped(r#"{"max_tokens":256}"#), r#"{"max_tokens":256}"#);
    }

    #[test]
    fn usage_is_asked_for_whatever_the_stream_options_are() {
        let ask = |call: &mut Call| ask_for_usage(&mut call.edits, &call.body, &call.scan);
        assert_eq!(chat(r#"{"a":1}"#).edit(ask), r#"{"stream_options":{"include_usage":true},"a":1}"#);
        assert_eq!(chat(r#"{"stream_options":null}"#).edit(ask), r#"{"stream_options":{"include_usage":true}}"#);
        assert_eq!(chat(r#"{"stream_options":{}}"#).edit(ask), r#"{"stream_options":{"include_usage":true}}"#);
        assert_eq!(
            chat(r#"{"stream_options":{"x":1, "include_usage":false}}"#).edit(ask),
            r#"{"stream_options":{"x":1, "include_usage":true}}"#
        );
        assert_eq!(
            chat(r#"{"stream_options":{"x":1}}"#).edit(ask),
            r#"{"stream_options":{"include_usage":true,"x":1}}"#
        );
    }

    #[test]
    fn a_prompt_becomes_the_first_message_of_a_chat() {
        assert_eq!(
            chat(r#"{"messages":[{"role":"user","content":"hi"}]}"#).inject("Be \"kind\".\n"),
            Ok(r#"{"messages":[{"role":"system","content":"Be \"kind\".\n"},{"role":"user","content":"hi"}]}"#.into())
        );
        assert_eq!(
            chat(r#"{"messages":[ ]}"#).inject("x"),
            Ok(r#"{"messages":[{"role":"system","content":"x"}]}"#.into())
        );
        for body in ["{}", r#"{"messages":"hi"}"#] {
            assert!(matches!(chat(body).inject("x"), Err(EditError::Shape { param: "messages", .. })), "{body}");
        }
    }

    #[test]
    fn a_prompt_stands_before_instructions_and_system_texts() {
        for (path, body, edited) in [
            ("/v1/responses", r#"{"input":"hi"}"#, r#"{"instructions":"x","input":"hi"}"#),
            ("/v1/responses", r#"{"instructions":null}"#, r#"{"instructions":"x"}"#),
            ("/v1/responses", r#"{"instructions":""}"#, r#"{"instructions":"x"}"#),
            ("/v1/responses", r#"{"instructions":"y"}"#, r#"{"instructions":"x\n\ny"}"#),
            ("/v1/messages", r#"{"messages":[]}"#, r#"{"system":"x","messages":[]}"#),
            ("/v1/messages", r#"{"system":"y"}"#, r#"{"system":"x\n\ny"}"#),
            (
                "/v1/messages",
                r#"{"system":[{"type":"text","text":"y"}]}"#,
                r#"{"system":[{"type":"text","text":"x"},{"type":"text","text":"y"}]}"#,
            ),
        ] {
            assert_eq!(call(path, body).inject("x"), Ok(edited.into()), "{body}");
        }
        assert!(call("/v1/responses", r#"{"instructions":[]}"#).inject("x").is_err());
        assert!(call("/v1/messages", r#"{"system":5}"#).inject("x").is_err());
        assert_eq!(call("/v1/embeddings", r#"{"input":"a"}"#).inject("x"), Err(EditError::Unsupported));
    }

    const SHOTS: [(Role, &str); 4] =
        [(Role::System, "s"), (Role::Developer, "d"), (Role::User, "u"), (Role::Assistant, "\"a\"")];

    fn with_messages(path: &str, body: &str, messages: &[(Role, &str)]) -> Result<String, EditError> {
        let mut call = call(path, body);
        inject_messages(&mut call.edits, &call.endpoint, &call.body, &call.scan, messages)?;
        Ok(call.done())
    }

    #[test]
    fn instructions_come_first_and_examples_before_the_conversation() {
        let (lead, shots) = (
            r#"{"role":"system","content":"s"},{"role":"developer","content":"d"}"#,
            r#"{"role":"user","content":"u"},{"role":"assistant","content":"\"a\""}"#,
        );
        let (chat, responses, messages) = ("/v1/chat/completions", "/v1/responses", "/v1/messages");
        for (path, body, edited) in [
            (
                chat,
                r#"{"messages":[ {"role":"user","content":"hi"} ], "x":1.0}"#,
                format!(r#"{{"messages":[{lead},{shots}, {{"role":"user","content":"hi"}} ], "x":1.0}}"#),
            ),
            (
                chat,
                r#"{"messages":[{"content":"c","role":"system"} , {"role":"user","content":"hi"}]}"#,
                format!(
                    r#"{{"messages":[{lead},{{"content":"c","role":"system"}} , {shots},{{"role":"user","content":"hi"}}]}}"#
                ),
            ),
            (
                chat,
                r#"{"messages":[{"role":"system","content":"c"}]}"#,
                format!(r#"{{"messages":[{lead},{{"role":"system","content":"c"}},{shots}]}}"#),
            ),
            (chat, r#"{"messages":[]}"#, format!(r#"{{"messages":[{lead},{shots}]}}"#)),
            (
                responses,
                r#"{"input": "h\u0069" ,"x":1}"#,
                format!(
                    r#"{{"instructions":"s\n\nd","input": [{shots},{{"role":"user","content":"h\u0069"}}] ,"x":1}}"#
                ),
            ),
            (
                responses,
                r#"{"instructions":"c","input":[{"role":"user","content":"hi"}]}"#,
                format!(r#"{{"instructions":"s\n\nd\n\nc","input":[{shots},{{"role":"user","content":"hi"}}]}}"#),
            ),
            (responses, "{}", format!(r#"{{"instructions":"s\n\nd","input":[{shots}]}}"#)),
            (
                responses,
                r#"{"input":"more","previous_response_id":"r1"}"#,
                r#"{"instructions":"s\n\nd","input":"more","previous_response_id":"r1"}"#.to_owned(),
            ),
            (
                messages,
                r#"{"system":"c","messages":[{"role":"user","content":"hi"}]}"#,
                format!(r#"{{"system":"s\n\nd\n\nc","messages":[{shots},{{"role":"user","content":"hi"}}]}}"#),
            ),
        ] {
            assert_eq!(with_messages(path, body, &SHOTS), Ok(edited), "{body}");
        }
        let late = [(Role::User, "u"), (Role::System, "s"), (Role::Assistant, "a")];
        assert_eq!(
            with_messages(messages, r#"{"messages":[]}"#, &late),
            Ok(r#"{"system":"s","messages":[{"role":"user","content":"u"},{"role":"assistant","content":"a"}]}"#
                .into())
        );
        assert_eq!(with_messages(messages, r#"{"messages":[]}"#, &late[2..]), Err(EditError::UserMustBegin));
        assert!(matches!(with_messages(chat, "{}", &SHOTS), Err(EditError::Shape { param: "messages", .. })));
        assert!(matches!(
            with_messages(responses, r#"{"input":5}"#, &SHOTS),
            Err(EditError::Shape { param: "input", .. })
        ));
        assert_eq!(with_messages("/v1/embeddings", "{}", &SHOTS), Err(EditError::Unsupported));
    }

    #[test]
    fn examples_and_text_around_the_user_go_together() {
        let mut call = call("/v1/responses", r#"{"input":"b"}"#);
        inject_messages(&mut call.edits, &call.endpoint, &call.body, &call.scan, &SHOTS[2..3]).expect("fits");
        around_last_user(&mut call.edits, &call.endpoint, &call.body, &call.scan, Some("<"), Some(">")).expect("fits");
        assert_eq!(call.done(), r#"{"input":[{"role":"user","content":"u"},{"role":"user","content":"<b>"}]}"#);
    }

    #[test]
    fn text_goes_around_what_the_user_said_last() {
        for (path, body, edited) in [
            (
                "/v1/chat/completions",
                r#"{"messages":[{"role":"user","content":"a"},{"role":"user","content":"b"},{"role":"assistant","content":"c"}]}"#,
                r#"{"messages":[{"role":"user","content":"a"},{"role":"user","content":"<b>"},{"role":"assistant","content":"c"}]}"#,
            ),
            (
                "/v1/chat/completions",
                r#"{"messages":[{"content":[{"type":"text","text":"b"}],"role":"user"}]}"#,
                r#"{"messages":[{"content":[{"type":"text","text":"<"},{"type":"text","text":"b"},{"type":"text","text":">"}],"role":"user"}]}"#,
            ),
            (
                "/v1/chat/completions",
                r#"{"messages":[{"content":[],"role":"user"}]}"#,
                r#"{"messages":[{"content":[{"type":"text","text":"<"},{"type":"text","text":">"}],"role":"user"}]}"#,
            ),
            ("/v1/responses", r#"{"input":"b"}"#, r#"{"input":"<b>"}"#),
            (
                "/v1/responses",
                r#"{"input":[{"role":"user","content":[]},{"type":"reasoning"}]}"#,
                r#"{"input":[{"role":"user","content":[{"type":"input_text","text":"<"},{"type":"input_text","text":">"}]},{"type":"reasoning"}]}"#,
            ),
            (
                "/v1/messages",
                r#"{"messages":[{"role":"user","content":"b"},{"role":"user","content":[{"type":"tool_result"}]}]}"#,
                r#"{"messages":[{"role":"user","content":"<b>"},{"role":"user","content":[{"type":"tool_result"}]}]}"#,
            ),
        ] {
            assert_eq!(call(path, body).around("<", ">"), Ok(edited.into()), "{body}");
        }
    }

    #[test]
    fn text_cannot_go_around_what_is_not_there() {
        let without = |body: &str| chat(body).around("<", ">");
        assert_eq!(
            without(r#"{"messages":[{"role":"assistant","content":"c"}]}"#),
            Err(EditError::NoUserMessage("messages"))
        );
        assert!(matches!(without(r#"{"messages":[{"role":"user","content":5}]}"#), Err(EditError::Shape { .. })));
        assert!(matches!(without(r#"{"messages":{}}"#), Err(EditError::Shape { .. })));
    }

    proptest! {
        #[test]
        fn injected_text_stays_inside_its_own_string(text in any::<String>(), hostile in "[\\[\\]{}\",:\\\\n]{0,20}") {
            for text in [&text, &hostile] {
                let body = r#"{"messages":[{"role":"user","content":"hi"}]}"#;
                let edited: Value = serde_json::from_str(&chat(body).inject(text).unwrap()).unwrap();
                prop_assert_eq!(edited, json!({"messages": [
                    {"role": "system", "content": text}, {"role": "user", "content": "hi"},
                ]}));
                let edited: Value = serde_json::from_str(&chat(body).around(text, text).unwrap()).unwrap();
                prop_assert_eq!(&edited["messages"][0]["content"], &json!(format!("{text}hi{text}")));
            }
        }
    }
}
