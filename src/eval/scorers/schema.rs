//! The scorer `json_schema`: a sound part of JSON Schema 2020-12.
//!
//! What is understood is checked as the specification says; a keyword that is not understood is refused by its name before anything
//! runs, and never passed over. Annotations (`title`, `description`, `default`, `examples`, `format`, …) say nothing, as there.

use std::collections::HashSet;

use regex::Regex;
use serde_json::{Map, Value};

use super::{Score, shortened, values};

/// Keywords that are checked.
const CHECKED: [&str; 34] = [
    "$ref",
    "type",
    "enum",
    "const",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "then",
    "else",
    "properties",
    "patternProperties",
    "additionalProperties",
    "propertyNames",
    "required",
    "dependentRequired",
    "minProperties",
    "maxProperties",
    "items",
    "prefixItems",
    "contains",
    "minItems",
    "maxItems",
    "uniqueItems",
    "minLength",
    "maxLength",
    "pattern",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "strict",
];
/// Keywords that say nothing about what is valid, or hold schemas that are referred to.
const SILENT: [&str; 15] = [
    "$schema",
    "$comment",
    "$defs",
    "definitions",
    "title",
    "description",
    "default",
    "examples",
    "example",
    "deprecated",
    "readOnly",
    "writeOnly",
    "format",
    "contentEncoding",
    "contentMediaType",
];
/// References and nesting that no honest schema reaches; a bound on recursion.
const DEPTH_MAX: usize = 64;

/// A schema that is understood whole.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Schema(Value);

impl Schema {
    /// Reads `schema`.
    ///
    /// # Errors
    /// A keyword that is not understood, or is used wrongly, with the place where it stands.
    pub fn read(schema: Value) -> Result<Schema, String> {
        let schema = Schema(schema);
        schema.understand(&schema.0, "#", 0)?;
        Ok(schema)
    }

    pub(super) fn score(&self, text: &str) -> Score {
        let Some(said) = values::json_in(text) else {
            return Score::failed(format!("is no JSON: {}", shortened(text)));
        };
        match self.check(&said, &self.0, "", 0) {
            Ok(()) => Score::passed(),
            Err(why) => Score::failed(why),
        }
    }

    // === what is understood ===

    fn understand(&self, schema: &Value, at: &str, depth: usize) -> Result<(), String> {
        if depth > DEPTH_MAX {
            return Err(format!("{at}: nested deeper than {DEPTH_MAX}"));
        }
        let keywords = match schema {
            Value::Bool(_) => return Ok(()),
            Value::Object(keywords) => keywords,
            _ => return Err(format!("{at}: a schema is an object, true or false")),
        };
        for (keyword, value) in keywords {
            let at = format!("{at}/{keyword}");
            if !CHECKED.contains(&keyword.as_str()) && !SILENT.contains(&keyword.as_str()) {
                return Err(format!("{at}: the keyword `{keyword}` is not understood here"));
            }
            self.understand_keyword(keyword, value, &at, depth + 1)?;
        }
        Ok(())
    }

    fn understand_keyword(&self, keyword: &str, value: &Value, at: &str, depth: usize) -> Result<(), String> {
        let due = |what: &str, right: bool| if right { Ok(()) } else { Err(format!("{at}: {what} is due")) };
        match keyword {
            "not" | "if" | "then" | "else" | "additionalProperties" | "propertyNames" | "items" | "contains" => {
                self.understand(value, at, depth)
            }
            "allOf" | "anyOf" | "oneOf" | "prefixItems" => {
                due("a list of schemas", value.is_array())?;
                let mut each = value.as_array().into_iter().flatten().enumerate();
                each.try_for_each(|(i, schema)| self.understand(schema, &format!("{at}/{i}"), depth))
            }
            "properties" | "patternProperties" | "$defs" | "definitions" => {
                due("a map of schemas", value.is_object())?;
                for (name, schema) in value.as_object().into_iter().flatten() {
                    if keyword == "patternProperties" {
                        regex(name).map_err(|error| format!("{at}: {error}"))?;
                    }
                    self.understand(schema, &format!("{at}/{name}"), depth)?;
                }
                Ok(())
            }
            "$ref" => match value.as_str().and_then(|reference| self.referred(reference)) {
                Some(_) => Ok(()),
                None => Err(format!("{at}: only references within the schema are understood, such as `#/$defs/name`")),
            },
            "type" => {
                let known = ["null", "boolean", "object", "array", "number", "string", "integer"];
                let is_known = |name: &Value| name.as_str().is_some_and(|name| known.contains(&name));
                let right = is_known(value) || value.as_array().is_some_and(|names| names.iter().all(is_known));
                due("a type or a list of types", right)
            }
            "enum" | "examples" => due("a list", value.is_array()),
            "required" => due("a list of names", names(value).is_some()),
            "dependentRequired" => {
                let right = value.as_object().is_some_and(|map| map.values().all(|value| names(value).is_some()));
                due("a map of lists of names", right)
            }
            "minProperties" | "maxProperties" | "minItems" | "maxItems" | "minLength" | "maxLength" => {
                due("a whole number", value.is_u64())
            }
            "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" => due("a number", value.is_number()),
            "multipleOf" => due("a number above 0", value.as_f64().is_some_and(|number| number > 0.0)),
            "uniqueItems" | "strict" => due("true or false", value.is_boolean()),
            "pattern" => {
                due("a text", value.is_string())?;
                regex(value.as_str().unwrap_or_default()).map(drop).map_err(|error| format!("{at}: {error}"))
            }
            _ => Ok(()),
        }
    }

    fn referred(&self, reference: &str) -> Option<&Value> {
        let pointer = reference.strip_prefix('#')?;
        self.0.pointer(pointer)
    }

    // === what is valid ===

    /// Checks `value`, which stands at `at` in the answer.
    fn check(&self, value: &Value, schema: &Value, at: &str, depth: usize) -> Result<(), String> {
        if depth > DEPTH_MAX {
            return Err(format!("{}: the schema refers to itself without end", shown(at)));
        }
        match schema {
            Value::Bool(true) => Ok(()),
            Value::Object(keywords) => keywords
                .iter()
                .try_for_each(|(keyword, rule)| self.check_keyword(value, keyword, rule, keywords, at, depth)),
            _ => Err(format!("{}: nothing is allowed here", shown(at))),
        }
    }

    fn check_keyword(
        &self,
        value: &Value,
        keyword: &str,
        rule: &Value,
        schema: &Map<String, Value>,
        at: &str,
        depth: usize,
    ) -> Result<(), String> {
        let valid = |schema: &Value| self.check(value, schema, at, depth + 1);
        let refuse = |why: String| Err(format!("{}: {why}", shown(at)));
        match keyword {
            "$ref" => match rule.as_str().and_then(|reference| self.referred(reference)) {
                Some(schema) => valid(schema),
                None => refuse("the schema refers to nothing".to_owned()),
            },
            "allOf" => rule.as_array().into_iter().flatten().try_for_each(valid),
            "anyOf" | "oneOf" => {
                let met = rule.as_array().into_iter().flatten().filter(|schema| valid(schema).is_ok()).count();
                match (keyword, met) {
                    (_, 0) => refuse(format!("meets no schema of `{keyword}`")),
                    ("oneOf", 2..) => refuse(format!("meets {met} schemas of `oneOf`")),
                    _ => Ok(()),
                }
            }
            "not" if valid(rule).is_ok() => refuse("meets the schema of `not`".to_owned()),
            "if" => {
                let branch = if valid(rule).is_ok() { "then" } else { "else" };
                schema.get(branch).map_or(Ok(()), valid)
            }
            "type" if !is_of_type(value, rule) => refuse(format!("is {}, not {}", type_of(value), in_words(rule))),
            "enum" if !rule.as_array().into_iter().flatten().any(|allowed| values::same(value, allowed)) => {
                refuse(format!("{} is none of {}", shortened(&value.to_string()), shortened(&rule.to_string())))
            }
            "const" if !values::same(value, rule) => {
                refuse(format!("is {}, not {}", shortened(&value.to_string()), shortened(&rule.to_string())))
            }
            _ => match value {
                Value::Object(members) => self.check_object(members, keyword, rule, schema, at, depth),
                Value::Array(items) => self.check_array(items, keyword, rule, schema, at, depth),
                Value::String(text) => check_text(text, keyword, rule).or_else(refuse),
                Value::Number(number) => check_number(number.as_f64(), keyword, rule).or_else(refuse),
                _ => Ok(()),
            },
        }
    }

    fn check_object(
        &self,
        members: &Map<String, Value>,
        keyword: &str,
        rule: &Value,
        schema: &Map<String, Value>,
        at: &str,
        depth: usize,
    ) -> Result<(), String> {
        let check =
            |name: &str, value: &Value, rule: &Value| self.check(value, rule, &format!("{at}/{name}"), depth + 1);
        let rules = || rule.as_object().into_iter().flatten();
        match keyword {
            "properties" => rules().try_for_each(|(name, rule)| match members.get(name) {
                Some(value) => check(name, value, rule),
                None => Ok(()),
            }),
            "patternProperties" => rules().try_for_each(|(pattern, rule)| {
                let matching = members.iter().filter(|(name, _)| matches(pattern, name));
                matching.into_iter().try_for_each(|(name, value)| check(name, value, rule))
            }),
            "additionalProperties" => {
                let further = members.iter().filter(|(name, _)| !is_named(name, schema));
                further.into_iter().try_for_each(|(name, value)| match rule {
                    Value::Bool(false) => Err(format!("{}: `{name}` is not allowed", shown(at))),
                    rule => check(name, value, rule),
                })
            }
            "propertyNames" => members.keys().try_for_each(|name| check(name, &Value::String(name.clone()), rule)),
            "required" => all_there(members, rule, at),
            "dependentRequired" => rules()
                .filter(|(name, _)| members.contains_key(*name))
                .try_for_each(|(_, needed)| all_there(members, needed, at)),
            _ => check_size(members.len(), keyword, rule, "minProperties", "maxProperties", "members")
                .map_err(|why| format!("{}: {why}", shown(at))),
        }
    }

    fn check_array(
        &self,
        items: &[Value],
        keyword: &str,
        rule: &Value,
        schema: &Map<String, Value>,
        at: &str,
        depth: usize,
    ) -> Result<(), String> {
        let check = |i: usize, item: &Value, rule: &Value| self.check(item, rule, &format!("{at}/{i}"), depth + 1);
        let refuse = |why: String| Err(format!("{}: {why}", shown(at)));
        match keyword {
            "prefixItems" => {
                let rules = rule.as_array().into_iter().flatten();
                items.iter().zip(rules).enumerate().try_for_each(|(i, (item, rule))| check(i, item, rule))
            }
            "items" => {
                let first = schema.get("prefixItems").and_then(Value::as_array).map_or(0, Vec::len);
                items.iter().enumerate().skip(first).try_for_each(|(i, item)| check(i, item, rule))
            }
            "contains" if !items.iter().enumerate().any(|(i, item)| check(i, item, rule).is_ok()) => {
                refuse("no item meets the schema of `contains`".to_owned())
            }
            "uniqueItems" if rule == &Value::Bool(true) && has_doubles(items) => refuse("has an item twice".to_owned()),
            _ => check_size(items.len(), keyword, rule, "minItems", "maxItems", "items").or_else(refuse),
        }
    }
}

fn check_text(text: &str, keyword: &str, rule: &Value) -> Result<(), String> {
    match (keyword, rule.as_str()) {
        ("pattern", Some(pattern)) if !matches(pattern, text) => {
            Err(format!("{} does not match `{pattern}`", shortened(text)))
        }
        // JSON Schema counts characters, not bytes.
        ("minLength" | "maxLength", _) => {
            check_size(text.chars().count(), keyword, rule, "minLength", "maxLength", "characters")
        }
        _ => Ok(()),
    }
}

fn check_number(number: Option<f64>, keyword: &str, rule: &Value) -> Result<(), String> {
    let (Some(number), Some(bound)) = (number, rule.as_f64()) else { return Ok(()) };
    let met = match keyword {
        "minimum" => number >= bound,
        "maximum" => number <= bound,
        "exclusiveMinimum" => number > bound,
        "exclusiveMaximum" => number < bound,
        // 0.3 is meant to be a multiple of 0.1, which it is not in binary.
        "multipleOf" => ((number / bound) - (number / bound).round()).abs() < 1e-9 * (number / bound).abs().max(1.0),
        _ => true,
    };
    if met { Ok(()) } else { Err(format!("{number} breaks `{keyword}: {bound}`")) }
}

fn check_size(size: usize, keyword: &str, rule: &Value, min: &str, max: &str, of: &str) -> Result<(), String> {
    let bound = rule.as_u64().and_then(|bound| usize::try_from(bound).ok()).unwrap_or(usize::MAX);
    let broken = (keyword == min && size < bound) || (keyword == max && size > bound);
    if broken { Err(format!("has {size} {of}, which breaks `{keyword}: {bound}`")) } else { Ok(()) }
}

fn all_there(members: &Map<String, Value>, needed: &Value, at: &str) -> Result<(), String> {
    match names(needed).unwrap_or_default().into_iter().find(|name| !members.contains_key(*name)) {
        Some(missing) => Err(format!("{}: `{missing}` is missing", shown(at))),
        None => Ok(()),
    }
}

/// Whether `properties` or `patternProperties` speak of this name.
fn is_named(name: &str, schema: &Map<String, Value>) -> bool {
    let has = |map: Option<&Value>| map.and_then(Value::as_object).is_some_and(|map| map.contains_key(name));
    let patterns = schema.get("patternProperties").and_then(Value::as_object).into_iter().flatten();
    has(schema.get("properties")) || patterns.into_iter().any(|(pattern, _)| matches(pattern, name))
}

fn has_doubles(items: &[Value]) -> bool {
    // Texts first: comparing each with each takes too long in a long list.
    let mut seen = HashSet::new();
    let texts = items.iter().filter_map(Value::as_str);
    if !texts.into_iter().all(|text| seen.insert(text)) {
        return true;
    }
    let others: Vec<&Value> = items.iter().filter(|item| !item.is_string()).collect();
    others.iter().enumerate().any(|(i, one)| others[..i].iter().any(|other| values::same(one, other)))
}

fn names(value: &Value) -> Option<Vec<&str>> {
    value.as_array()?.iter().map(Value::as_str).collect()
}

fn regex(pattern: &str) -> Result<Regex, String> {
    Regex::new(pattern).map_err(|_| format!("`{pattern}` is no regular expression that is understood here"))
}

fn matches(pattern: &str, text: &str) -> bool {
    regex(pattern).is_ok_and(|regex| regex.is_match(text))
}

fn is_of_type(value: &Value, rule: &Value) -> bool {
    let is = |name: &str| match name {
        // 1.0 is an integer there.
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        name => type_of(value) == name,
    };
    match rule {
        Value::Array(names) => names.iter().filter_map(Value::as_str).any(is),
        name => name.as_str().is_some_and(is),
    }
}

const fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn in_words(rule: &Value) -> String {
    match rule {
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or "),
        name => name.as_str().unwrap_or_default().to_owned(),
    }
}

fn shown(at: &str) -> &str {
    if at.is_empty() { "the answer" } else { at }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn passes(schema: &Value, value: &Value) -> bool {
        Schema::read(schema.clone()).expect("understood").score(&value.to_string()).pass == Some(true)
    }

    #[test]
    fn each_keyword_is_checked_as_the_specification_says() {
        let person = json!({"type": "object", "properties": {"name": {"type": "string", "minLength": 2}, "age": {"type": "integer", "minimum": 0}},
            "required": ["name"], "additionalProperties": false});
        let tree = json!({"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "required": ["value"],
            "properties": {"value": {"type": "number"}, "next": {"$ref": "#/$defs/node"}}}}});
        let branch = json!({"if": {"properties": {"kind": {"const": "a"}}, "required": ["kind"]}, "then": {"required": ["x"]}, "else": {"required": ["y"]}});
        for (schema, value, valid) in [
            (&person, json!({"name": "Ann", "age": 3}), true),
            (&person, json!({"name": "Ann", "age": 3.0}), true),
            (&person, json!({"name": "Ann", "age": 3.5}), false),
            (&person, json!({"name": "Ü", "age": 3}), false),
            (&person, json!({"age": 3}), false),
            (&person, json!({"name": "Ann", "more": 1}), false),
            (&person, json!([]), false),
            (&tree, json!({"value": 1, "next": {"value": 2}}), true),
            (&tree, json!({"value": 1, "next": {"next": {}}}), false),
            (&branch, json!({"kind": "a", "x": 1}), true),
            (&branch, json!({"kind": "a", "y": 1}), false),
            (&branch, json!({"y": 1}), true),
            (&json!({"enum": [1, "a", null]}), json!(1.0), true),
            (&json!({"enum": [1, "a", null]}), json!("b"), false),
            (&json!({"type": ["string", "null"]}), json!(null), true),
            (&json!({"anyOf": [{"type": "string"}, {"minimum": 5}]}), json!(6), true),
            (&json!({"anyOf": [{"type": "string"}, {"minimum": 5}]}), json!(4), false),
            (&json!({"oneOf": [{"minimum": 1}, {"minimum": 5}]}), json!(6), false),
            (&json!({"not": {"type": "string"}}), json!("a"), false),
            (&json!({"prefixItems": [{"type": "string"}], "items": {"type": "number"}}), json!(["a", 1, 2]), true),
            (&json!({"prefixItems": [{"type": "string"}], "items": {"type": "number"}}), json!(["a", "b"]), false),
            (&json!({"uniqueItems": true}), json!([1, 1.0]), false),
            (&json!({"uniqueItems": true}), json!(["a", "b", {}, []]), true),
            (&json!({"contains": {"const": 2}, "maxItems": 2}), json!([1, 2]), true),
            (&json!({"contains": {"const": 2}}), json!([1, 3]), false),
            (&json!({"multipleOf": 0.1}), json!(0.3), true),
            (&json!({"multipleOf": 2}), json!(3), false),
            (&json!({"exclusiveMaximum": 3}), json!(3), false),
            (&json!({"pattern": "^a+$"}), json!("aab"), false),
            (
                &json!({"patternProperties": {"^x_": {"type": "number"}}, "additionalProperties": false}),
                json!({"x_a": 1}),
                true,
            ),
            (
                &json!({"patternProperties": {"^x_": {"type": "number"}}, "additionalProperties": false}),
                json!({"y": 1}),
                false,
            ),
            (&json!({"propertyNames": {"maxLength": 1}}), json!({"ab": 1}), false),
            (&json!({"dependentRequired": {"a": ["b"]}}), json!({"a": 1}), false),
            (&json!({"minProperties": 1}), json!({}), false),
            (&json!(true), json!(1), true),
            (&json!(false), json!(1), false),
        ] {
            assert_eq!(passes(schema, &value), valid, "{schema} {value}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name_and_place() {
        for (schema, said) in [
            (
                json!({"properties": {"a": {"unevaluatedProperties": false}}}),
                "#/properties/a/unevaluatedProperties: the keyword",
            ),
            (json!({"$ref": "https://example.com/x"}), "#/$ref: only references"),
            (json!({"$ref": "#/$defs/none"}), "#/$ref: only references"),
            (json!({"type": "text"}), "#/type: a type"),
            (json!({"pattern": "(?=x)"}), "#/pattern: `(?=x)` is no regular expression"),
            (json!({"items": [1]}), "#/items: a schema is"),
            (json!({"minLength": -1}), "#/minLength: a whole number is due"),
            (json!(3), "#: a schema is"),
        ] {
            let refused = Schema::read(schema.clone()).expect_err("not understood");
            assert!(refused.starts_with(said), "{schema}: {refused}");
        }
    }

    #[test]
    fn a_failure_says_where_and_why() {
        let schema = Schema::read(json!({"properties": {"a": {"items": {"type": "string"}}}})).unwrap();
        assert_eq!(schema.score("{\"a\": [\"x\", 1]}").reason, "/a/1: is number, not string");
        assert_eq!(schema.score("nonsense").reason, "is no JSON: \"nonsense\"");
        assert_eq!(schema.score("```json\n{\"a\": []}\n```").pass, Some(true));
    }

    #[test]
    fn a_schema_that_refers_to_itself_ends() {
        let schema = Schema::read(json!({"$ref": "#"})).unwrap();
        assert_eq!(schema.score("1").pass, Some(false));
    }
}
