//! Scorers that compare texts for what stands in them: `exact`, `contains`, `regex`.

use regex::{Regex, RegexBuilder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Score, expected_texts, shortened};

/// The answer is the expected text, or one of several.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Exact {
    /// Keep white space at both ends; it is left out unless this is on.
    pub keep_space: bool,
    /// Take capital and small letters for the same.
    pub ignore_case: bool,
}

/// The answer contains texts: those given here, or else the expected ones.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Contains {
    /// One of these is enough.
    pub any: Vec<String>,
    /// All of these must be there.
    pub all: Vec<String>,
    /// None of these may be there.
    pub none: Vec<String>,
    /// Take capital and small letters for the same.
    pub ignore_case: bool,
}

/// The answer matches a regular expression somewhere: the one given here, or else the expected text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Pattern {
    /// The expression, in the syntax of Rust's `regex`: no look-around, no back references.
    pub pattern: Option<String>,
    /// Take capital and small letters for the same.
    pub ignore_case: bool,
    /// The answer must not match.
    pub not: bool,
}

/// Memory that one compiled expression may take, in bytes.
const PATTERN_BYTES_MAX: usize = 1 << 20;

impl Exact {
    pub(super) fn score(&self, expected: &Value, text: &str) -> Score {
        // An object is compared as JSON: its spelling says nothing.
        if expected.is_object() {
            let same = serde_json::from_str::<Value>(text.trim()).is_ok_and(|said| said == *expected);
            return Score::met(same, || format!("said {}, expected {expected}", shortened(text)));
        }
        let wanted = expected_texts(expected);
        let same = wanted.iter().any(|wanted| self.form(wanted) == self.form(text));
        Score::met(same, || format!("said {}, expected {}", shortened(text), listed(&wanted)))
    }

    fn form(&self, text: &str) -> String {
        let text = if self.keep_space { text } else { text.trim() };
        folded(text, self.ignore_case)
    }
}

impl Contains {
    /// Whether the texts stand here, so that a case needs no expected one.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        !(self.any.is_empty() && self.all.is_empty() && self.none.is_empty())
    }

    pub(super) fn score(&self, expected: &Value, text: &str) -> Score {
        let said = folded(text, self.ignore_case);
        let has = |wanted: &String| said.contains(&folded(wanted, self.ignore_case));
        let all = if self.is_complete() { self.all.clone() } else { expected_texts(expected) };
        let missing: Vec<String> = all.into_iter().filter(|wanted| !has(wanted)).collect();
        if !missing.is_empty() {
            return Score::failed(format!("does not contain {}", listed(&missing)));
        }
        if !self.any.is_empty() && !self.any.iter().any(has) {
            return Score::failed(format!("contains none of {}", listed(&self.any)));
        }
        match self.none.iter().find(|unwanted| has(unwanted)) {
            Some(unwanted) => Score::failed(format!("contains {}", shortened(unwanted))),
            None => Score::passed(),
        }
    }
}

impl Pattern {
    /// Compiles `pattern`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn compile(&self, pattern: &str) -> Result<Regex, String> {
        let built = RegexBuilder::new(pattern).case_insensitive(self.ignore_case).size_limit(PATTERN_BYTES_MAX).build();
        built.map_err(|error| {
            let said = error.to_string();
            format!("is no regular expression: {}", said.lines().last().unwrap_or(&said).trim())
        })
    }

    pub(super) fn score(&self, expected: &Value, text: &str) -> Score {
        let pattern = match (&self.pattern, expected.as_str()) {
            (Some(pattern), _) => pattern.as_str(),
            (None, Some(expected)) => expected,
            (None, None) => return Score::missing("the expected value is no text that could be a pattern"),
        };
        match self.compile(pattern) {
            Ok(regex) if regex.is_match(text) != self.not => Score::passed(),
            Ok(_) if self.not => Score::failed(format!("matches `{pattern}`: {}", shortened(text))),
            Ok(_) => Score::failed(format!("does not match `{pattern}`: {}", shortened(text))),
            Err(error) => Score::missing(format!("`{pattern}` {error}")),
        }
    }
}

fn folded(text: &str, ignore_case: bool) -> String {
    if ignore_case { text.to_lowercase() } else { text.to_owned() }
}

fn listed(texts: &[String]) -> String {
    texts.iter().map(|text| shortened(text)).collect::<Vec<_>>().join(" or ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn exact_compares_what_was_asked_for() {
        let plain = Exact::default();
        let loose = Exact { ignore_case: true, ..Exact::default() };
        let strict = Exact { keep_space: true, ..Exact::default() };
        for (scorer, expected, text, met) in [
            (&plain, json!("Paris"), " Paris\n", true),
            (&plain, json!("Paris"), "paris", false),
            (&loose, json!("STRASSE"), "strasse", true),
            (&strict, json!("Paris"), "Paris\n", false),
            (&plain, json!(["yes", "Yes"]), "Yes", true),
            (&plain, json!(["yes", "Yes"]), "no", false),
            (&plain, json!(42), "42", true),
            (&plain, json!(true), "true", true),
            (&plain, json!({"a": 1, "b": [2]}), "{\"b\":[2], \"a\":1}", true),
            (&plain, json!({"a": 1}), "{\"a\": 2}", false),
            (&plain, json!(""), "", true),
        ] {
            assert_eq!(scorer.score(&expected, text).pass, Some(met), "{scorer:?} {expected} {text:?}");
        }
        assert_eq!(plain.score(&json!("a"), "b").reason, "said \"b\", expected \"a\"");
    }

    #[test]
    fn contains_takes_its_own_texts_or_the_expected_ones() {
        let of = |any: &[&str], all: &[&str], none: &[&str]| {
            let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
            Contains { any: texts(any), all: texts(all), none: texts(none), ignore_case: true }
        };
        for (scorer, expected, text, met) in [
            (of(&[], &[], &[]), json!("parcel"), "Your Parcel is here", true),
            (of(&[], &[], &[]), json!(["parcel", "monday"]), "Your parcel is here", false),
            (of(&["red", "blue"], &[], &[]), json!(null), "a BLUE one", true),
            (of(&["red", "blue"], &[], &[]), json!(null), "a green one", false),
            (of(&[], &["a", "b"], &[]), json!(null), "b and a", true),
            (of(&[], &[], &["sorry"]), json!(null), "Sorry!", false),
            (of(&[], &[], &["sorry"]), json!("ignored"), "Fine.", true),
        ] {
            assert_eq!(scorer.score(&expected, text).pass, Some(met), "{scorer:?} {expected} {text:?}");
        }
    }

    #[test]
    fn a_pattern_is_looked_for_anywhere() {
        let of = |pattern: &str, not| Pattern { pattern: Some(pattern.to_owned()), ignore_case: false, not };
        assert_eq!(of(r"\b\d{4}\b", false).score(&Value::Null, "in 1999.").pass, Some(true));
        assert_eq!(of(r"^\d+$", false).score(&Value::Null, "in 1999.").pass, Some(false));
        assert_eq!(of(r"as an AI", true).score(&Value::Null, "as an AI").pass, Some(false));
        assert_eq!(Pattern::default().score(&json!("^ok"), "ok then").pass, Some(true));
        assert_eq!(Pattern::default().score(&json!("("), "x").value, None);
        assert_eq!(
            Pattern::default().compile("(?=a)").unwrap_err().split(':').next(),
            Some("is no regular expression")
        );
    }
}
