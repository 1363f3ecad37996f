//! What a version says, as one hash: the same whatever the order of its keys and the file's layout.

use std::{cmp::Ordering, collections::BTreeMap};

use serde_json::Value;

use crate::wire::revision::sha256;

/// Where a version has the texts that it includes, by their path.
pub const PARTIALS: &str = "partials";

/// Compact JSON with sorted keys. Keys without a value are left out: a file may write them or not.
#[must_use]
pub fn canonical(content: &Value) -> Value {
    match content {
        Value::Object(map) => {
            let mut entries: Vec<(&String, &Value)> = map.iter().filter(|(_, value)| !value.is_null()).collect();
            entries.sort_by_key(|(key, _)| *key);
            Value::Object(entries.into_iter().map(|(key, value)| (key.clone(), canonical(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(canonical).collect()),
        other => other.clone(),
    }
}

/// SHA-256 of [`canonical`] content, 64 hex digits.
#[must_use]
pub fn content_sha256(content: &Value) -> String {
    sha256(&canonical(content).to_string())
}

/// The hashes of the files that a prompt's version includes, by their path in the folder of prompts.
#[must_use]
pub fn partials(content: &Value) -> BTreeMap<String, String> {
    let texts = content.get(PARTIALS).and_then(Value::as_object).into_iter().flatten();
    texts.filter_map(|(path, text)| Some((path.clone(), sha256(text.as_str()?)))).collect()
}

/// Which files, included in the same version before and now, are not what they were, for a message to begin with; empty where none.
#[must_use]
pub fn changed_partials(before: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> String {
    let is_changed = |path: &&String| now.get(*path).is_some_and(|sha256| *sha256 != before[*path]);
    let changed: Vec<String> = before.keys().filter(is_changed).map(|path| format!("prompts/{path}")).collect();
    match changed.is_empty() {
        true => String::new(),
        false => format!("{}, which it includes, changed: ", changed.join(" and ")),
    }
}

/// The first digits of a hash, as messages name it: `sha256:ab12cd34`.
#[must_use]
pub fn short(sha256: &str) -> String {
    format!("sha256:{}", sha256.get(..8).unwrap_or(sha256))
}

/// The order of versions: numbers within names count as numbers, and `1.2.0-rc.1` stands before `1.2.0`.
#[must_use]
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    let (core_a, pre_a) = parts(a);
    let (core_b, pre_b) = parts(b);
    let of_pre = || match (pre_a, pre_b) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Greater,
        (Some(_), None) => Ordering::Less,
        (Some(a), Some(b)) => natural(a, b),
    };
    natural(core_a, core_b).then_with(of_pre).then_with(|| a.cmp(b))
}

/// A version without its `v`, and what follows its first `-`, where it begins with a number.
fn parts(version: &str) -> (&str, Option<&str>) {
    let plain = version.strip_prefix('v').unwrap_or(version);
    match plain.split_once('-') {
        Some((core, pre)) if core.starts_with(|c: char| c.is_ascii_digit()) => (core, Some(pre)),
        _ => (plain, None),
    }
}

/// Runs of digits compare as numbers, everything else as text.
fn natural(mut a: &str, mut b: &str) -> Ordering {
    loop {
        if a.is_empty() || b.is_empty() {
            return a.len().cmp(&b.len());
        }
        let (run_a, rest_a) = run(a);
        let (run_b, rest_b) = run(b);
        let digits = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
        let order = match digits(run_a) && digits(run_b) {
            true => {
                let (x, y) = (run_a.trim_start_matches('0'), run_b.trim_start_matches('0'));
                x.len().cmp(&y.len()).then_with(|| x.cmp(y))
            }
            false => run_a.cmp(run_b),
        };
        if order != Ordering::Equal {
            return order;
        }
        (a, b) = (rest_a, rest_b);
    }
}

/// The longest start that is all digits, or has none.
fn run(text: &str) -> (&str, &str) {
    let is_digits = text.starts_with(|c: char| c.is_ascii_digit());
    let end = text.find(|c: char| c.is_ascii_digit() != is_digits).unwrap_or(text.len());
    text.split_at(end)
}
