//! A configuration in the making: values in the order in which they are written, comments, and what could not be carried over.

use std::{collections::BTreeMap, fmt};

use serde_json::{Map, Value, json};

/// What another gateway's configuration becomes.
#[derive(Debug, Default)]
pub(super) struct Draft {
    root: Map<String, Value>,
    /// Comments by the path of the key that they stand above.
    comments: BTreeMap<String, String>,
    losses: Vec<Loss>,
}

/// Something that could not be carried over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Loss {
    /// Where it stands in the source, such as `model_list[2].litellm_params.timeout`.
    place: String,
    /// What it is, and what to do.
    what: String,
}

/// Lines are wrapped into blocks beyond so many characters.
const WIDTH: usize = 140;

impl Draft {
    /// Sets what stands at `path`; maps on the way are made. No-op where `path` runs through something that is no map.
    pub(super) fn set(&mut self, path: &[&str], value: Value) {
        let Some((last, parents)) = path.split_last() else { return };
        let mut map = &mut self.root;
        for parent in parents {
            let entry = map.entry((*parent).to_owned()).or_insert_with(|| json!({}));
            let Value::Object(inner) = entry else { return };
            map = inner;
        }
        map.insert((*last).to_owned(), value);
    }

    /// What stands at `path`.
    pub(super) fn get(&self, path: &[&str]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(self.root.get(*first)?, |value, key| value.get(*key))
    }

    /// Adds an item to the list at the top-level key `section`.
    pub(super) fn push(&mut self, section: &str, item: Value) {
        if let Value::Array(items) = self.root.entry(section.to_owned()).or_insert_with(|| json!([])) {
            items.push(item);
        }
    }

    /// Writes `text` above the key at `path`.
    pub(super) fn comment(&mut self, path: &[&str], text: impl Into<String>) {
        self.comments.insert(path.join("\u{0}"), text.into());
    }

    /// Notes that what stands at `place` of the source is not carried over.
    pub(super) fn lose(&mut self, place: impl Into<String>, what: impl Into<String>) {
        let loss = Loss { place: place.into(), what: what.into() };
        if !self.losses.contains(&loss) {
            self.losses.push(loss);
        }
    }

    /// What could not be carried over, in the order of the source.
    pub(super) fn losses(&self) -> &[Loss] {
        &self.losses
    }

    /// The configuration as YAML; `head` is its first comment.
    pub(super) fn text(&self, head: &str) -> String {
        let mut text = String::new();
        head.lines().for_each(|line| text += &format!("# {line}\n"));
        if !self.losses.is_empty() {
            text += "#\n# Not carried over:\n";
            self.losses.iter().for_each(|loss| text += &format!("# - {loss}\n"));
        }
        for (key, value) in &self.root {
            text.push('\n');
            self.write_entry(&mut text, 0, &mut vec![key], value);
        }
        text
    }

    fn write_entry<'k>(&'k self, text: &mut String, depth: usize, path: &mut Vec<&'k str>, value: &'k Value) {
        let indent = "  ".repeat(depth);
        if let Some(comment) = self.comments.get(&path.join("\u{0}")) {
            comment.lines().for_each(|line| *text += &format!("{indent}# {line}\n"));
        }
        let key = scalar(path.last().copied().unwrap_or_default());
        let line = format!("{indent}{key}: {}", flow(value));
        let is_section = depth == 0 && matches!(value, Value::Object(map) if map.len() > 1);
        match value {
            Value::Object(map) if is_section || line.chars().count() > WIDTH || self.is_commented_below(path) => {
                *text += &format!("{indent}{key}:\n");
                for (key, value) in map {
                    path.push(key);
                    self.write_entry(text, depth + 1, path, value);
                    path.pop();
                }
            }
            Value::Array(items) if items.iter().any(Value::is_object) => {
                *text += &format!("{indent}{key}:\n");
                items.iter().for_each(|item| *text += &format!("{indent}  - {}\n", flow(item)));
            }
            _ => *text += &format!("{line}\n"),
        }
    }

    fn is_commented_below(&self, path: &[&str]) -> bool {
        let above = format!("{}\u{0}", path.join("\u{0}"));
        self.comments.keys().any(|commented| commented.starts_with(&above))
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// A variable of the environment.
pub(super) fn variable(name: &str) -> String {
    format!("${{{name}}}")
}

/// A text of the source, so that nothing in it is read as a variable.
pub(super) fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

/// A value of the source, so that no text in it is read as a variable.
pub(super) fn literal_value(value: &Value) -> Value {
    match value {
        Value::String(text) => json!(literal(text)),
        Value::Array(items) => items.iter().map(literal_value).collect(),
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), literal_value(value))).collect(),
        other => other.clone(),
    }
}

/// A number without a fraction that says nothing: `30`, `0.5`.
pub(super) fn number(value: f64) -> String {
    let text = format!("{value:.9}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A name that Tollgate takes for a model, provider or version.
pub(super) fn name_of(text: &str) -> String {
    let fits = |c: char| !(c.is_control() || c.is_whitespace() || "/@*,=\"".contains(c));
    text.chars().map(|c| if fits(c) { c } else { '-' }).take(120).collect()
}

fn flow(value: &Value) -> String {
    let list = |items: Vec<String>| items.join(", ");
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) => scalar(text),
        Value::Array(items) if items.is_empty() => "[]".to_owned(),
        Value::Array(items) => format!("[ {} ]", list(items.iter().map(flow).collect())),
        Value::Object(map) if map.is_empty() => "{}".to_owned(),
        Value::Object(map) => {
            format!(
                "{{ {} }}",
                list(map.iter().map(|(key, value)| format!("{}: {}", scalar(key), flow(value))).collect())
            )
        }
    }
}

/// A text as YAML: plain where nothing in it means anything else, else in double quotes, which JSON's are.
fn scalar(text: &str) -> String {
    const WORDS: [&str; 9] = ["true", "false", "yes", "no", "on", "off", "null", "nan", "inf"];
    let simple = |c: char| c.is_ascii_alphanumeric() || "_-./%+@ ".contains(c);
    let colons_are_inside =
        text.split(':').skip(1).all(|after| after.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/'));
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && !text.ends_with(' ')
        && text.chars().all(|c| simple(c) || c == ':')
        && colons_are_inside
        && text.parse::<f64>().is_err()
        && !WORDS.contains(&text.to_ascii_lowercase().as_str());
    if is_plain { text.to_owned() } else { json!(text).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted_where_yaml_would_read_something_else() {
        for plain in ["gpt-4o", "30s", "480/min", "0.15 USD/1M", "http://127.0.0.1:8000/v1", "llama3.2:3b"] {
            assert_eq!(scalar(plain), plain);
        }
        for quoted in ["", "on", "1", "1.5", "1e3", "a: b", "a #b", "*", "a,b", "${X}", "x:", "it's"] {
            assert_eq!(scalar(quoted), format!("{quoted:?}"));
        }
    }

    #[test]
    fn long_maps_and_commented_ones_are_blocks() {
        let mut draft = Draft::default();
        draft.set(&["models", "a", "live"], json!("v1"));
        draft.set(&["models", "b", "live"], json!("v1"));
        draft.comment(&["models", "b", "live"], "why");
        draft.push("keys", json!({"name": "k"}));
        draft.lose("x.y", "is gone; do without");
        assert_eq!(
            draft.text("head"),
            "# head\n#\n# Not carried over:\n# - x.y: is gone; do without\n\nmodels:\n  a: { live: v1 }\n  b:\n    # why\n    \
             live: v1\n\nkeys:\n  - { name: k }\n"
        );
    }

    #[test]
    fn a_dollar_of_the_source_is_no_variable() {
        assert_eq!(literal_value(&json!({"stop": ["$x"]})), json!({"stop": ["$$x"]}));
    }
}
