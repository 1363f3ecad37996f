//! Scorers that look for values in an answer: `json_field` and `numeric`.

use std::sync::LazyLock;

use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Score, shortened};

/// A field of the answer's JSON has a value.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct JsonField {
    /// Where it stands: `order.items[0].id`, or a JSON pointer such as `/order/items/0/id`.
    pub path: String,
    /// The value it should have. Default: the same field of the expected value, or all of that where it is no object or list.
    pub equals: Option<Value>,
}

/// A number in the answer is the expected one, within a tolerance.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Numeric {
    /// May be off by so much.
    pub absolute: Option<f64>,
    /// May be off by such a share of the expected number: `0.01` is one per cent.
    pub relative: Option<f64>,
    /// Take the first number of the answer rather than the last one, which is usually the result.
    pub first: bool,
}

impl JsonField {
    pub(super) fn score(&self, expected: &Value, text: &str) -> Score {
        let Some(said) = json_in(text) else { return Score::failed(format!("is no JSON: {}", shortened(text))) };
        let wanted = match (&self.equals, expected) {
            (Some(value), _) => value,
            (None, Value::Object(_) | Value::Array(_)) => match at(expected, &self.path) {
                Some(value) => value,
                None => return Score::missing(format!("the expected value has no `{}`", self.path)),
            },
            (None, value) => value,
        };
        match at(&said, &self.path) {
            Some(value) if same(value, wanted) => Score::passed(),
            Some(value) => Score::failed(format!(
                "`{}` is {}, expected {}",
                self.path,
                shortened(&value.to_string()),
                shortened(&wanted.to_string())
            )),
            None => Score::failed(format!("has no `{}`", self.path)),
        }
    }
}

impl Numeric {
    pub(super) fn score(&self, expected: &Value, text: &str) -> Score {
        let wanted = expected.as_f64().or_else(|| numbers_in(expected.as_str()?).last().copied());
        let Some(wanted) = wanted else { return Score::missing("the expected value is no number") };
        let found = numbers_in(text);
        let Some(said) = (if self.first { found.first() } else { found.last() }) else {
            return Score::failed(format!("no number in {}", shortened(text)));
        };
        let tolerance = self.absolute.unwrap_or(0.0).max(self.relative.unwrap_or(0.0) * wanted.abs());
        // Decimal fractions are not exact in binary: 0.1 + 0.2 is meant to be 0.3.
        let rounding = 1e-12 * wanted.abs().max(said.abs());
        Score::met((said - wanted).abs() <= tolerance + rounding, || format!("said {said}, expected {wanted}"))
    }
}

/// The JSON that an answer is, or that stands in it between code fences.
pub(super) fn json_in(text: &str) -> Option<Value> {
    if let Ok(value) = serde_json::from_str(text.trim()) {
        return Some(value);
    }
    let (_, fenced) = text.split_once("```")?;
    let (inside, _) = fenced.split_once("```")?;
    serde_json::from_str(inside.strip_prefix("json").unwrap_or(inside).trim()).ok()
}

/// Numbers that are equal are the same, however they are written.
pub(super) fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        (a, b) => a == b,
    }
}

/// What stands at `path`, a JSON pointer or dotted keys with indices; the empty path is the whole.
fn at<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    if path.is_empty() || path.starts_with('/') {
        return value.pointer(path);
    }
    let steps = path.split(['.', '[', ']']).filter(|step| !step.is_empty());
    steps.into_iter().try_fold(value, |value, step| match value {
        Value::Array(items) => items.get(step.parse::<usize>().ok()?),
        value => value.get(step),
    })
}

/// All numbers of a text. A comma or blank between groups of three digits is part of the number, as in `1,234.5`.
fn numbers_in(text: &str) -> Vec<f64> {
    static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
        let groups = r"\d{1,3}(?:[,\u{a0}\u{202f}]\d{3})+(?:\.\d+)?";
        let plain = r"(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?";
        Regex::new(&format!(r"[-−+]?(?:{groups}|{plain})")).expect("a constant expression that a test compiles")
    });
    let found = NUMBER.find_iter(text).filter_map(|found| {
        // In `3-4` and `v2-5` the line is no sign.
        let signed = found.as_str().starts_with(['-', '−', '+']);
        let after_word = text[..found.start()].ends_with(|c: char| c.is_alphanumeric());
        let digits =
            if signed && after_word { found.as_str().trim_start_matches(['-', '−', '+']) } else { found.as_str() };
        digits.replace('−', "-").replace([',', '\u{a0}', '\u{202f}'], "").parse::<f64>().ok()
    });
    found.filter(|number| number.is_finite()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_field_is_found_by_path_or_pointer() {
        let field = |path: &str, equals| JsonField { path: path.to_owned(), equals };
        let said = r#"{"order": {"items": [{"id": 7.0}]}, "ok": true}"#;
        for (scorer, expected, pass) in [
            (field("order.items[0].id", Some(json!(7))), json!(null), Some(true)),
            (field("/order/items/0/id", Some(json!(8))), json!(null), Some(false)),
            (field("order.items[1].id", Some(json!(7))), json!(null), Some(false)),
            (field("ok", None), json!(true), Some(true)),
            (field("ok", None), json!({"ok": true, "more": 1}), Some(true)),
            (field("ok", None), json!({"other": 1}), None),
        ] {
            assert_eq!(scorer.score(&expected, said).pass, pass, "{scorer:?} {expected}");
        }
        assert_eq!(field("ok", None).score(&json!(true), "Here:\n```json\n{\"ok\": true}\n```").pass, Some(true));
        assert!(field("ok", None).score(&json!(true), "no JSON").reason.starts_with("is no JSON"));
    }

    #[test]
    fn numbers_are_read_as_people_write_them() {
        for (text, numbers) in [
            ("It is 1,234.5 in all", vec![1234.5]),
            ("minus: -3 and −4", vec![-3.0, -4.0]),
            ("between 3-4", vec![3.0, 4.0]),
            ("1e-3 or .5", vec![0.001, 0.5]),
            ("12,34", vec![12.0, 34.0]),
            ("ends with 7.", vec![7.0]),
            ("none", vec![]),
            ("1\u{202f}000\u{202f}000 €", vec![1e6]),
        ] {
            assert_eq!(numbers_in(text), numbers, "{text}");
        }
    }

    #[test]
    fn a_number_is_met_within_its_tolerance() {
        let exact = Numeric::default();
        let near = Numeric { absolute: Some(0.5), ..Numeric::default() };
        let share = Numeric { relative: Some(0.1), ..Numeric::default() };
        let first = Numeric { first: true, ..Numeric::default() };
        for (scorer, expected, text, pass) in [
            (&exact, json!(0.3), "0.1 + 0.2 = 0.30000000000000004", Some(true)),
            (&exact, json!("42"), "The answer: 42.", Some(true)),
            (&exact, json!(42), "41", Some(false)),
            (&near, json!(10), "10.5", Some(true)),
            (&near, json!(10), "10.6", Some(false)),
            (&share, json!(-200), "-181", Some(true)),
            (&first, json!(1), "1 then 2", Some(true)),
            (&exact, json!(1), "none", Some(false)),
            (&exact, json!({}), "1", None),
        ] {
            assert_eq!(scorer.score(&expected, text).pass, pass, "{scorer:?} {expected} {text}");
        }
    }
}
