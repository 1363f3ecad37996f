//! What may be pushed for all gateways that share a store, and how it lies over each one's own file: whole sections replace whole
//! sections.
//!
//! A gateway's own file stays its bootstrap: listeners, store, directories, what proves who calls. References to secrets travel
//! as they were typed and are resolved where they are used, so that no secret is ever stored.

use std::sync::Arc;

use crate::{
    config::{
        problems::{Problem, Problems},
        tree::{Document, Node, Path, Value},
    },
    wire::revision::Revision,
};

/// The sections that may be pushed.
pub const SECTIONS: [&str; 15] = [
    "on_disconnect",
    "stream_usage",
    "default_provider",
    "routing",
    "providers",
    "models",
    "prompts",
    "experiments",
    "keys",
    "budgets",
    "limits",
    "cache",
    "prices",
    "unpriced",
    "alerts",
];

/// The sections that belong to each gateway's own file.
const LOCAL: [&str; 10] =
    ["server", "store", "records", "calls", "data_dir", "key_pepper", "auth", "ledger", "telemetry", "registry"];

/// Where secrets stand in [`SECTIONS`]; `*` is any name or item. A test compares this with the schema.
const SECRETS: [&[&str]; 6] = [
    &["providers", "*", "api_key"],
    &["providers", "*", "api_keys", "*"],
    &["keys", "*", "secret"],
    &["alerts", "webhook"],
    &["alerts", "secret"],
    &["alerts", "routing_key"],
];

/// A pushed revision that is part of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InForce {
    /// The revision.
    pub revision: Arc<Revision>,
    /// The sections that it has.
    pub sections: Vec<String>,
    /// Those of them that stand in the gateway's own file too, and do not count there.
    pub replaced: Vec<String>,
}

/// Lays a revision over `document`, before its variables are filled in.
///
/// # Errors
/// When the revision's text is no YAML.
pub(super) fn lay_over(
    document: &mut Document,
    revision: &Arc<Revision>,
    problems: &mut Problems,
) -> Result<InForce, Problem> {
    let mut overlay = Document::parse_overlay(&revision.label(), &revision.text, problems)?;
    strike_what_is_local(&mut overlay, problems);
    let sections = overlay.keys(&Path::default()).into_iter().map(str::to_owned).collect();
    let replaced = document.lay_over(overlay);
    Ok(InForce { revision: revision.clone(), sections, replaced })
}

fn strike_what_is_local(overlay: &mut Document, problems: &mut Problems) {
    if !matches!(overlay.root.value, Value::Map(_) | Value::Absent) {
        problems.push(overlay.problem(&Path::default(), "is no configuration; write sections such as `models:`"));
    }
    let Value::Map(entries) = &overlay.root.value else { return };
    let local: Vec<u32> = entries.iter().filter(|e| LOCAL.contains(&e.key.as_str())).map(|e| e.node.id).collect();
    for id in local {
        let message = "belongs to each gateway's own file and is not pushed; take it out here";
        problems.push(overlay.problem_found(id, true, message.to_owned()));
        overlay.strike(id);
    }
}

/// Secrets that stand in a text themselves, rather than as `${NAME}` or `file:PATH`. Nothing when the text is no YAML.
pub(super) fn secrets_in_the_open(name: &str, text: &str) -> Problems {
    let mut found = Problems::default();
    let Ok(document) = Document::parse(name, text, &mut Problems::default()) else { return found };
    let mut nodes = Vec::new();
    for path in SECRETS {
        each(&document.root, path, &mut nodes);
    }
    for node in nodes {
        if matches!(&node.value, Value::Scalar { text, .. } if !is_reference(text)) {
            let message = "is a secret in the open, and everybody who can read the store could read it; \
                           write \"${NAME}\" or file:PATH, which each gateway resolves by itself";
            found.push(document.problem_found(node.id, false, message.to_owned()));
        }
    }
    found.sorted()
}

fn each<'a>(node: &'a Node, path: &[&str], found: &mut Vec<&'a Node>) {
    let Some((step, rest)) = path.split_first() else { return found.push(node) };
    match &node.value {
        Value::Seq(items) if *step == "*" => items.iter().for_each(|item| each(item, rest, found)),
        Value::Map(entries) => {
            let meant = entries.iter().filter(|entry| *step == "*" || entry.key == *step);
            meant.for_each(|entry| each(&entry.node, rest, found));
        }
        _ => {}
    }
}

/// Whether a secret is only named: `file:PATH`, or one variable and nothing else, without a default.
fn is_reference(text: &str) -> bool {
    let variable = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
    text.is_empty()
        || text.starts_with("file:")
        || variable.is_some_and(|name| {
            let name = name.strip_suffix(":-").unwrap_or(name);
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value as Json;

    use super::*;

    fn open_secrets(text: &str) -> Vec<String> {
        secrets_in_the_open("r.yaml", text).0.iter().map(|problem| format!("{}", problem.place.line)).collect()
    }

    #[test]
    fn a_secret_is_named_and_never_written() {
        let good = "providers:\n  a: { api_key: \"${KEY}\" }\n  b: { api_keys: [ \"${KEY:-}\", \"file:/run/key\" ] }\n\
                    keys: [ { secret: \"${K}\" }, { hash: \"sha256:00\" } ]\nalerts: { webhook: }\n";
        assert_eq!(open_secrets(good), [""; 0]);
        let bad = "providers:\n  a: { api_key: sk-1 }\n  b: { api_keys: [ \"${KEY}\",\n    \"${KEY:-sk-2}\",\n    \"sk-${PART}\" ] }\n\
                   keys:\n  - secret: tg-1\nalerts:\n  webhook: https://hooks.example/1\n";
        assert_eq!(open_secrets(bad), ["2", "4", "5", "7", "9"]);
    }

    #[test]
    fn each_section_is_either_pushed_or_local_and_each_secret_is_known() {
        let schema: Json = serde_json::from_str(&crate::config::schema::text()).expect("JSON");
        let known: BTreeSet<&str> =
            schema["properties"].as_object().expect("a map").keys().map(String::as_str).collect();
        let decided: BTreeSet<&str> = SECTIONS.into_iter().chain(LOCAL).collect();
        assert_eq!(decided, known, "decide whether a new section may be pushed");

        let mut found = BTreeSet::new();
        for section in SECTIONS {
            secret_paths(&schema, &schema["properties"][section], section.to_owned(), &mut found);
        }
        let listed: BTreeSet<String> = SECRETS.iter().map(|path| path.join(".")).collect();
        assert_eq!(found, listed, "a secret that is not listed would be stored");
    }

    /// The paths below `schema` where a secret may stand.
    fn secret_paths(root: &Json, schema: &Json, path: String, found: &mut BTreeSet<String>) {
        if let Some(name) = schema["$ref"].as_str().and_then(|name| name.strip_prefix("#/$defs/")) {
            if name == "SecretText" {
                found.insert(path);
            } else {
                secret_paths(root, &root["$defs"][name], path, found);
            }
            return;
        }
        for choice in ["anyOf", "oneOf", "allOf"] {
            for option in schema[choice].as_array().into_iter().flatten() {
                secret_paths(root, option, path.clone(), found);
            }
        }
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            secret_paths(root, property, format!("{path}.{name}"), found);
        }
        for many in ["items", "additionalProperties"] {
            if schema[many].is_object() {
                secret_paths(root, &schema[many], format!("{path}.*"), found);
            }
        }
    }
}
