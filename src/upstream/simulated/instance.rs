//! A small JSON value that satisfies a simple JSON schema: what structured outputs and tool arguments are made of.

use serde_json::{Map, Value, json};

/// Depth beyond which only `null` is given: recursive schemas end here.
const DEPTH_MAX: usize = 12;
/// Elements of an array at most, whatever `minItems` says.
const ITEMS_MAX: u64 = 64;

/// An instance of `schema`, with `text` where a free string is due.
pub(super) fn instance(schema: &Value, text: &str) -> Value {
    build(schema, schema, text, DEPTH_MAX)
}

fn build(schema: &Value, root: &Value, text: &str, depth: usize) -> Value {
    if depth == 0 {
        return Value::Null;
    }
    if let Some(fixed) = schema.get("const").or_else(|| schema["enum"].get(0)) {
        return fixed.clone();
    }
    if let Some(target) = schema["$ref"].as_str().and_then(|path| root.pointer(path.strip_prefix('#')?)) {
        return build(target, root, text, depth - 1);
    }
    if let Some(choice) = ["anyOf", "oneOf", "allOf"].iter().find_map(|key| schema[*key].get(0)) {
        return build(choice, root, text, depth - 1);
    }
    match type_of(schema) {
        "object" => object(schema, root, text, depth),
        "array" => {
            let items = schema["minItems"].as_u64().unwrap_or(1).min(ITEMS_MAX);
            (0..items).map(|_| build(&schema["items"], root, text, depth - 1)).collect()
        }
        "string" => Value::String(string(schema, text)),
        "integer" => json!(number(schema).ceil() as i64),
        "number" => json!(number(schema)),
        "boolean" => Value::Bool(true),
        _ => Value::Null,
    }
}

fn type_of(schema: &Value) -> &str {
    let named = schema["type"].as_str().or_else(|| schema["type"].get(0)?.as_str());
    match named {
        Some(name) => name,
        None if schema.get("items").is_some() => "array",
        None if schema.get("properties").is_some() => "object",
        None => "string",
    }
}

/// The required properties; all of them where none is said to be required.
fn object(schema: &Value, root: &Value, text: &str, depth: usize) -> Value {
    let none = Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&none);
    let required = schema["required"].as_array();
    let is_due = |name: &str| required.is_none_or(|names| names.iter().any(|required| required == name));
    let due = properties.iter().filter(|(name, _)| is_due(name));
    due.map(|(name, schema)| (name.clone(), build(schema, root, text, depth - 1))).collect()
}

fn string(schema: &Value, text: &str) -> String {
    let given = match schema["format"].as_str() {
        Some("date") => "2026-01-31",
        Some("date-time") => "2026-01-31T12:00:00Z",
        Some("time") => "12:00:00Z",
        Some("email") => "someone@example.com",
        Some("uri") => "https://example.com/",
        Some("uuid") => "00000000-0000-4000-8000-000000000000",
        _ => text,
    };
    let length_min = schema["minLength"].as_u64().unwrap_or(0).min(4096) as usize;
    let length_max = schema["maxLength"].as_u64().map_or(usize::MAX, |max| max as usize);
    given.chars().chain(std::iter::repeat('x')).take(given.chars().count().max(length_min).min(length_max)).collect()
}

fn number(schema: &Value) -> f64 {
    let bound = |name: &str| schema[name].as_f64();
    let least = bound("minimum").or_else(|| bound("exclusiveMinimum").map(|above| above + 1.0));
    least.unwrap_or_else(|| bound("maximum").unwrap_or(1.0).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_schema_gets_an_instance() {
        for (schema, expected) in [
            (json!({"type": "string"}), json!("hi")),
            (json!({"type": "string", "maxLength": 1}), json!("h")),
            (json!({"type": "string", "minLength": 4}), json!("hixx")),
            (json!({"type": ["integer", "null"], "minimum": 7}), json!(7)),
            (json!({"type": "number", "maximum": 0.5}), json!(0.5)),
            (json!({"enum": ["low", "high"]}), json!("low")),
            (json!({"const": 3}), json!(3)),
            (json!({"type": "array", "items": {"type": "boolean"}, "minItems": 2}), json!([true, true])),
            (json!({"anyOf": [{"type": "null"}, {"type": "string"}]}), Value::Null),
            (json!({"$defs": {"a": {"const": 1}}, "$ref": "#/$defs/a"}), json!(1)),
            (
                json!({"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}}, "required": ["b"]}),
                json!({"b": 2}),
            ),
        ] {
            assert_eq!(instance(&schema, "hi"), expected, "{schema}");
        }
    }

    #[test]
    fn a_schema_that_contains_itself_ends() {
        let schema = json!({"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]});
        assert!(instance(&schema, "hi").is_object());
    }
}
