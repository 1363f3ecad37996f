//! JSON Schema of the configuration, for editors. Committed as `config/schema.json`, which a test keeps fresh.

use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use crate::config::file::File;

/// The schema as JSON text.
///
/// # Panics
/// Never: a schema is plain JSON.
#[must_use]
pub fn text() -> String {
    let schema = SchemaSettings::draft2020_12().for_deserialize().into_generator().into_root_schema_for::<File>();
    let mut schema = schema.to_value();
    allow_variables(&mut schema);
    let mut text = serde_json::to_string_pretty(&schema).expect("a JSON value is always JSON text");
    text.push('\n');
    text
}

/// Lets `${NAME}` stand wherever a number, a switch, a word or a text of a certain form is due.
fn allow_variables(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(allow_variables),
        Value::Object(members) => {
            // What an absent key means stands in its description; `null` says nothing.
            if members.get("default").is_some_and(Value::is_null) {
                members.shift_remove("default");
            }
            members.values_mut().for_each(allow_variables);
        }
        _ => {}
    }
    if !is_narrow(schema) {
        return;
    }
    let mut narrow = schema.take();
    let mut wide = json!({});
    for key in ["description", "title", "examples"] {
        if let Some(value) = narrow.as_object_mut().and_then(|members| members.shift_remove(key)) {
            wide[key] = value;
        }
    }
    wide["anyOf"] = json!([narrow, { "type": "string", "pattern": r"\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\}" }]);
    *schema = wide;
}

/// Whether a schema would refuse a text with a variable in it, and is no list or map.
fn is_narrow(schema: &Value) -> bool {
    const NARROW: [&str; 3] = ["integer", "number", "boolean"];
    let is_narrow_type = |value: &Value| value.as_str().is_some_and(|name| NARROW.contains(&name));
    let narrow_type = match &schema["type"] {
        Value::Array(types) => types.iter().any(is_narrow_type),
        name => is_narrow_type(name),
    };
    let choices =
        schema["oneOf"].as_array().is_some_and(|options| options.iter().all(|option| option.get("const").is_some()));
    narrow_type || choices || schema["pattern"].is_string() || schema["enum"].is_array()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `BLESS=1 cargo test` writes it anew.
    #[test]
    fn the_committed_schema_is_fresh() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config/schema.json");
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(path, text()).expect("written");
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(committed == text(), "config/schema.json is stale; run `tollgate schema > config/schema.json`");
    }

    #[test]
    fn a_variable_may_stand_where_a_number_is_due() {
        let schema: Value = serde_json::from_str(&text()).expect("JSON");
        let attempts = &schema["$defs"]["Routing"]["properties"]["attempts"];
        assert_eq!(attempts["anyOf"][1]["type"], "string", "{attempts}");
        assert_eq!(schema["additionalProperties"], false);
    }
}
