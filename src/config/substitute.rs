//! `${NAME}`, `${NAME:-default}` and `$$` in values, put in after the YAML was parsed, so that no value can add a key.

use std::collections::BTreeSet;

use crate::config::{
    problems::Problems,
    tree::{Document, Node, Value},
};

/// Where values come from: the environment, in tests a table.
pub(super) type Lookup<'a> = dyn FnMut(&str) -> Option<String> + 'a;

/// What a text became.
#[derive(Debug, PartialEq, Eq)]
enum Filled {
    /// This text.
    Text(String),
    /// `${NAME:-}` alone, without a value: as if it had not been written.
    Nothing,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum FillError {
    #[error(
        "the environment variable {0} is not set; set it (a .env beside the configuration will do) or write ${{{0}:-default}}"
    )]
    Unset(String),
    #[error("`${{` is never closed; write `${{NAME}}`, or `$$` for a plain `$`")]
    Unclosed,
    #[error("`${{{0}}}` names no environment variable; write `${{NAME}}` or `${{NAME:-default}}`")]
    Misnamed(String),
}

impl Document {
    /// Fills in every value of the document. Where `unset` is given, variables without a value are noted in it, and are no
    /// problem: what they are needed for is left unchecked.
    pub(super) fn substitute(
        &mut self,
        lookup: &mut Lookup<'_>,
        mut unset: Option<&mut BTreeSet<String>>,
        problems: &mut Problems,
    ) {
        let mut touched = Vec::new();
        walk(&mut self.root, lookup, &mut touched);
        for (id, outcome) in touched {
            self.note_filled(id);
            match (outcome, unset.as_deref_mut()) {
                (Ok(true), _) | (Ok(false), None) => {}
                // Optional here, and perhaps given where it is needed.
                (Ok(false), Some(_)) => self.strike(id),
                (Err(FillError::Unset(name)), Some(unset)) => {
                    unset.insert(name);
                    self.strike(id);
                }
                (Err(error), _) => {
                    problems.push(self.problem_found(id, false, error.to_string()));
                    self.strike(id);
                }
            }
        }
    }
}

/// A value with a `$` in it, and what it could be filled with.
type Touched = (u32, Result<HasValue, FillError>);

/// Whether anything stands there now.
type HasValue = bool;

fn walk(node: &mut Node, lookup: &mut Lookup<'_>, touched: &mut Vec<Touched>) {
    let filled = match &mut node.value {
        Value::Absent => return,
        Value::Seq(items) => return items.iter_mut().for_each(|item| walk(item, lookup, touched)),
        Value::Map(entries) => return entries.iter_mut().for_each(|entry| walk(&mut entry.node, lookup, touched)),
        Value::Scalar { text, .. } if !text.contains('$') => return,
        Value::Scalar { text, plain } => fill(text, lookup).map(|filled| match filled {
            Filled::Text(text) => Value::Scalar { text, plain: *plain },
            Filled::Nothing => Value::Absent,
        }),
    };
    let outcome = filled.map(|value| {
        node.value = value;
        !matches!(node.value, Value::Absent)
    });
    touched.push((node.id, outcome));
}

fn fill(text: &str, lookup: &mut Lookup<'_>) -> Result<Filled, FillError> {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        filled.push_str(&rest[..dollar]);
        rest = &rest[dollar + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            filled.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('{') {
            let (inside, after) = after.split_once('}').ok_or(FillError::Unclosed)?;
            filled.push_str(&value(inside, lookup)?);
            rest = after;
        } else {
            filled.push('$');
        }
    }
    filled.push_str(rest);
    let optional = text.starts_with("${") && text.ends_with(":-}") && text.matches('$').count() == 1;
    Ok(if filled.is_empty() && optional { Filled::Nothing } else { Filled::Text(filled) })
}

/// The value of what stands inside `${…}`. As in a shell, `:-` stands in for an empty value too.
fn value(inside: &str, lookup: &mut Lookup<'_>) -> Result<String, FillError> {
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    let is_name = !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !is_name {
        return Err(FillError::Misnamed(inside.to_owned()));
    }
    match (lookup(name), default) {
        (Some(value), Some(default)) if value.is_empty() => Ok(default.to_owned()),
        (Some(value), _) => Ok(value),
        (None, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(FillError::Unset(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(text: &str) -> Result<Filled, FillError> {
        fill(text, &mut |name: &str| match name {
            "PORT" => Some("80".to_owned()),
            "EMPTY" => Some(String::new()),
            "EVIL" => Some("x\nkeys: []\n${PORT}".to_owned()),
            _ => None,
        })
    }

    #[test]
    fn values_are_filled_in_once_and_never_again() {
        for (text, expected) in [
            ("127.0.0.1:${PORT:-8080}", "127.0.0.1:80"),
            ("127.0.0.1:${OTHER:-8080}", "127.0.0.1:8080"),
            ("${EMPTY:-x}${PORT}", "x80"),
            ("${EMPTY}", ""),
            ("costs $$5, $5 and $${PORT}", "costs $5, $5 and ${PORT}"),
            ("${EVIL}", "x\nkeys: []\n${PORT}"),
            ("${A:-a:-b}", "a:-b"),
        ] {
            assert_eq!(filled(text), Ok(Filled::Text(expected.to_owned())), "{text}");
        }
    }

    #[test]
    fn an_optional_value_that_is_missing_counts_as_not_written() {
        assert_eq!(filled("${OTHER:-}"), Ok(Filled::Nothing));
        assert_eq!(filled("${EMPTY:-}"), Ok(Filled::Nothing));
        assert_eq!(filled("x${OTHER:-}"), Ok(Filled::Text("x".to_owned())));
    }

    #[test]
    fn what_cannot_be_filled_in_says_so() {
        assert_eq!(filled("${OTHER}"), Err(FillError::Unset("OTHER".to_owned())));
        assert_eq!(filled("${PORT"), Err(FillError::Unclosed));
        for text in ["${}", "${A-B}", "${1A}", "${ A }"] {
            assert!(matches!(filled(text), Err(FillError::Misnamed(_))), "{text}");
        }
    }
}
