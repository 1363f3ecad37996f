//! Takes secrets out of texts that are kept: by known values, by pattern, and by place in a JSON document.
//!
//! A JSON text is taken apart, so that no way of spelling a string (`\u0073k-…`) gets past a pattern; an event stream is taken apart line by line.
//! What is put in their place is always [`REDACTED`].

use regex::Regex;
use serde_json::Value;

/// What stands where something was taken out.
pub const REDACTED: &str = "[redacted]";

/// Always taken out: keys of ours and of the usual providers, and whatever is sent as a bearer token.
const BUILTIN: [&str; 9] = [
    r"\btg-[0-9A-Za-z_-]{20,}",
    r"\b(?:sk|pk|rk|gsk|xai|pplx|r8|hf|nvapi)[-_][0-9A-Za-z_-]{16,}",
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    r"\bAIza[0-9A-Za-z_-]{30,}",
    r"\b(?:gh[pousr]_|github_pat_|glpat-)[0-9A-Za-z_-]{20,}",
    r"\bxox[abeoprs]-[0-9A-Za-z-]{10,}",
    r"\beyJ[0-9A-Za-z_-]{10,}\.[0-9A-Za-z_-]{10,}\.[0-9A-Za-z_-]{5,}",
    r"(?i)\b(?:bearer|basic)\s+[0-9a-z._~+/=-]{16,}",
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\z)",
];
const EMAIL: &str = r"[0-9A-Za-z._%+-]+@[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)+";
/// Known values below that length would take ordinary words out.
const SECRET_BYTES_MIN: usize = 6;
/// Most steps of a path.
const STEPS_MAX: usize = 32;

/// What is taken out.
#[derive(Debug, Clone, Default)]
pub struct Redactor {
    patterns: Vec<Regex>,
    paths: Vec<Vec<Step>>,
    known: Known,
}

/// Texts to take out. `Debug` shows how many there are.
#[derive(Clone, Default)]
struct Known(Vec<String>);

impl std::fmt::Debug for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Known({})", self.0.len())
    }
}

/// One step of a path into a JSON document.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// The member of that name.
    Member(String),
    /// Every element of a list, every member of an object.
    Each,
}

/// Why a pattern or path cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedactError {
    /// A pattern.
    #[error("is no regular expression: {0}")]
    Pattern(String),
    /// A path.
    #[error("is no path; write it as `messages[*].content` or `metadata.user_id`")]
    Path,
}

impl Redactor {
    /// A redactor of what is always taken out.
    ///
    /// # Panics
    /// Never: a test reads every built-in pattern.
    #[must_use]
    pub fn builtin() -> Redactor {
        let patterns = BUILTIN.iter().map(|pattern| Regex::new(pattern).expect("a test reads each of them")).collect();
        Redactor { patterns, ..Redactor::default() }
    }

    /// Takes out what looks like an e-mail address, too.
    ///
    /// # Panics
    /// Never: a test reads the pattern.
    #[must_use]
    pub fn with_emails(mut self) -> Redactor {
        self.patterns.push(Regex::new(EMAIL).expect("a test reads it"));
        self
    }

    /// Takes out these very texts, too; those that are too short are left out.
    #[must_use]
    pub fn with_secrets(mut self, secrets: impl IntoIterator<Item = String>) -> Redactor {
        self.known.0.extend(secrets.into_iter().filter(|secret| secret.len() >= SECRET_BYTES_MIN));
        // The longest first: one may begin with another.
        self.known.0.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        self
    }

    /// Takes out what matches, too.
    ///
    /// # Errors
    /// When `pattern` is no regular expression, or an expensive one.
    pub fn add_pattern(&mut self, pattern: &str) -> Result<(), RedactError> {
        let compiled = regex::RegexBuilder::new(pattern).size_limit(1 << 20).build();
        let compiled = compiled.map_err(|error| {
            RedactError::Pattern(error.to_string().lines().last().unwrap_or_default().trim().to_owned())
        })?;
        self.patterns.push(compiled);
        Ok(())
    }

    /// Takes out what stands at a place of JSON documents, too: `messages[*].content`; `*` is every member.
    ///
    /// # Errors
    /// When it is no path.
    pub fn add_path(&mut self, path: &str) -> Result<(), RedactError> {
        let mut steps = Vec::new();
        for part in path.strip_prefix("$.").unwrap_or(path).split('.') {
            let (name, each) = match part.split_once('[') {
                Some((name, "*]")) => (name, true),
                Some(_) => return Err(RedactError::Path),
                None => (part, false),
            };
            match name {
                "" => return Err(RedactError::Path),
                "*" => steps.push(Step::Each),
                name => steps.push(Step::Member(name.to_owned())),
            }
            if each {
                steps.push(Step::Each);
            }
        }
        if steps.len() > STEPS_MAX {
            return Err(RedactError::Path);
        }
        self.paths.push(steps);
        Ok(())
    }

    /// `text` without what is taken out; `None` where that cannot be known: there are paths, and `text` is `cut`, so that it is
    /// no whole document.
    #[must_use]
    pub fn redact(&self, text: &str, cut: bool) -> Option<String> {
        if let Some(json) = self.document(text) {
            return Some(json);
        }
        if is_event_stream(text) {
            return self.events(text, cut);
        }
        if !self.paths.is_empty() && (cut || text.trim_start().starts_with(['{', '['])) {
            return None;
        }
        Some(self.plain(text))
    }

    /// A whole JSON document, written anew.
    fn document(&self, text: &str) -> Option<String> {
        if !text.trim_start().starts_with(['{', '[', '"']) {
            return None;
        }
        let mut value: Value = serde_json::from_str(text).ok()?;
        for path in &self.paths {
            take_out(&mut value, path);
        }
        self.strings(&mut value);
        Some(value.to_string())
    }

    /// Each event's data by itself. The last line of a stream that was cut is left out, where it is no document.
    fn events(&self, text: &str, cut: bool) -> Option<String> {
        let mut lines = Vec::new();
        for line in text.lines() {
            let line = match line.strip_prefix("data:") {
                Some(data) => match self.document(data) {
                    Some(json) => format!("data: {json}"),
                    None if data.trim_start().starts_with(['{', '['])
                        && data.trim() != "[DONE]"
                        && !self.paths.is_empty() =>
                    {
                        if !cut {
                            return None;
                        }
                        format!("data: {REDACTED}")
                    }
                    None => self.plain(line),
                },
                None => self.plain(line),
            };
            lines.push(line);
        }
        lines.push(String::new());
        Some(lines.join("\n"))
    }

    fn plain(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in &self.known.0 {
            if text.contains(secret.as_str()) {
                text = text.replace(secret.as_str(), REDACTED);
            }
        }
        for pattern in &self.patterns {
            if let std::borrow::Cow::Owned(changed) = pattern.replace_all(&text, REDACTED) {
                text = changed;
            }
        }
        text
    }

    /// Every string of a document, names of members included.
    fn strings(&self, value: &mut Value) {
        match value {
            Value::String(text) => {
                // Documents travel inside strings, too: the arguments of a tool call.
                *text = self.document(text).unwrap_or_else(|| self.plain(text));
            }
            Value::Array(values) => values.iter_mut().for_each(|value| self.strings(value)),
            Value::Object(members) => {
                let taken = std::mem::take(members);
                members.extend(taken.into_iter().map(|(name, mut value)| {
                    self.strings(&mut value);
                    (self.plain(&name), value)
                }));
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
}

fn is_event_stream(text: &str) -> bool {
    text.starts_with("data:") || text.starts_with("event:") || text.starts_with(':')
}

fn take_out(value: &mut Value, path: &[Step]) {
    let Some((step, rest)) = path.split_first() else {
        *value = Value::String(REDACTED.to_owned());
        return;
    };
    match (step, value) {
        (Step::Member(name), Value::Object(members)) => {
            if let Some(member) = members.get_mut(name) {
                take_out(member, rest);
            }
        }
        (Step::Each, Value::Array(values)) => values.iter_mut().for_each(|value| take_out(value, rest)),
        (Step::Each, Value::Object(members)) => members.values_mut().for_each(|value| take_out(value, rest)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "tg-abcdefgh-0123456789012345678901234567890AB";

    fn redacted(text: &str) -> String {
        Redactor::builtin().redact(text, false).unwrap()
    }

    #[test]
    fn keys_and_tokens_are_always_taken_out() {
        for secret in [
            KEY,
            "sk-proj-0123456789abcdefghij",
            "sk-ant-api03-abcdefghijklmnop",
            "gsk_0123456789abcdefghij",
            "AKIAIOSFODNN7EXAMPLE",
            "AIzaSyA0123456789abcdefghijklmnopqrstuv",
            "ghp_0123456789abcdefghijklmnopqrstuvwxyz",
            "xoxb-0123456789-abcdef",
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefghij",
            "Authorization: Bearer abcdefghijklmnop1234",
            "-----BEGIN RSA PRIVATE KEY-----\nMIIEow==\n-----END RSA PRIVATE KEY-----",
        ] {
            let told = redacted(&format!("my key is {secret}, keep it"));
            assert!(told.contains(REDACTED) && told.ends_with(", keep it"), "{told}");
            assert!(!told.contains(&secret[secret.len() - 8..]), "{told}");
        }
        for harmless in ["a task-force of sk-iers", "risk-averse-decisions-are-fine", "write me at a@b.example"] {
            assert_eq!(redacted(harmless), harmless);
        }
    }

    #[test]
    fn no_spelling_of_json_hides_a_key() {
        let spelled: String = KEY.chars().map(|c| format!("\\u{:04x}", c as u32)).collect();
        let inner = serde_json::to_string(&format!("{{\"k\": \"{KEY}\"}}")).unwrap();
        for text in [
            format!("{{\"a\": [\"{spelled}\"]}}"),
            format!("{{\"{KEY}\": 1}}"),
            format!("{{\"arguments\": {inner}}}"),
            format!("data: {{\"a\": \"{spelled}\"}}\n\ndata: [DONE]\n\n"),
        ] {
            let told = redacted(&text);
            assert!(told.contains(REDACTED) && !told.contains("0123456789") && !told.contains("\\u0030"), "{told}");
        }
    }

    #[test]
    fn places_are_taken_out_wherever_a_document_has_them() {
        let mut redactor = Redactor::builtin();
        redactor.add_path("messages[*].content").unwrap();
        redactor.add_path("metadata.*").unwrap();
        let text = r#"{"model":"m","messages":[{"role":"user","content":"private"},{"role":"user"}],"metadata":{"a":1,"b":[2]},"n":1.50}"#;
        let told = redactor.redact(text, false).unwrap();
        assert_eq!(
            told,
            r#"{"model":"m","messages":[{"role":"user","content":"[redacted]"},{"role":"user"}],"metadata":{"a":"[redacted]","b":"[redacted]"},"n":1.5}"#
        );
        assert_eq!(redactor.redact(&text[..60], true), None, "half a document cannot be searched");
        let stream = "data: {\"metadata\":{\"a\":\"x\"}}\n\ndata: {\"metadata\":{\"a\":\"se";
        assert_eq!(
            redactor.redact(stream, true).unwrap(),
            "data: {\"metadata\":{\"a\":\"[redacted]\"}}\n\ndata: [redacted]\n"
        );
    }

    #[test]
    fn own_patterns_secrets_and_emails_are_taken_out_where_asked_for() {
        let mut redactor = Redactor::builtin().with_emails().with_secrets(["hunter22".to_owned(), "abc".to_owned()]);
        redactor.add_pattern(r"\b\d{3}-\d{2}-\d{4}\b").unwrap();
        let told = redactor.redact("abc hunter22, 123-45-6789, ann@mail.example.org", false).unwrap();
        assert_eq!(told, "abc [redacted], [redacted], [redacted]");
        assert!(matches!(redactor.add_pattern("(a"), Err(RedactError::Pattern(_))));
        for path in ["", "a..b", "a[0]", "a[*", ".a"] {
            assert_eq!(redactor.add_path(path), Err(RedactError::Path), "{path}");
        }
        assert!(!format!("{redactor:?}").contains("hunter22"));
    }

    proptest! {
        #[test]
        fn a_key_survives_in_no_text(before in "\\PC{0,40}", after in "\\PC{0,40}", cut: bool) {
            let told = Redactor::builtin().redact(&format!("{before} {KEY} {after}"), cut).unwrap();
            prop_assert!(!told.contains(KEY));
            let json = serde_json::json!({"a": [{"b": format!("{before} {KEY} {after}")}]}).to_string();
            prop_assert!(!Redactor::builtin().redact(&json, cut).unwrap().contains(KEY));
        }
    }
}
