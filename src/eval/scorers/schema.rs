//! The scorer `json_schema`: an answer is JSON of a schema, as [`json_schema`] checks it.

use serde::Serialize;
use serde_json::Value;

use super::{Score, shortened, values};
use crate::policy::json_schema::{self, Formats, SchemaError};

/// A schema that is understood whole.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct Schema {
    typed: Value,
    #[serde(skip)]
    compiled: json_schema::Schema,
}

impl Schema {
    /// Reads `schema`. It may be the one that the provider gets, too: `format` is not checked.
    ///
    /// # Errors
    /// A keyword that is not checked here, or is used wrongly, with the place where it stands.
    pub fn read(schema: Value) -> Result<Schema, SchemaError> {
        let compiled = json_schema::compile(&schema, Formats::Ignored)?;
        Ok(Schema { typed: schema, compiled })
    }

    pub(super) fn score(&self, text: &str) -> Score {
        let Some(said) = values::json_in(text) else {
            return Score::failed(format!("is no JSON: {}", shortened(text)));
        };
        let broken = self.compiled.check(&said).err().and_then(|violations| violations.into_iter().next());
        match broken {
            None => Score::passed(),
            Some(violation) if violation.path.is_empty() => Score::failed(format!("the answer: {}", violation.what)),
            Some(violation) => Score::failed(format!("{}: {}", violation.path, violation.what)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_failure_says_where_and_why() {
        let schema = Schema::read(json!({"properties": {"a": {"items": {"type": "string"}}}})).unwrap();
        assert_eq!(schema.score("{\"a\": [\"x\", 1]}").reason, "/a/1: must be a string");
        assert_eq!(schema.score("nonsense").reason, "is no JSON: \"nonsense\"");
        assert_eq!(schema.score("```json\n{\"a\": []}\n```").pass, Some(true));
        assert_eq!(Schema::read(json!({"type": "object"})).unwrap().score("1").reason, "the answer: must be an object");
    }

    #[test]
    fn a_schema_is_saved_as_it_was_typed_and_may_have_formats() {
        let typed = json!({"type": "string", "format": "date", "strict": true});
        let schema = Schema::read(typed.clone()).unwrap();
        assert_eq!(serde_json::to_value(&schema).unwrap(), typed);
        assert_eq!(schema.score("\"soon\"").pass, Some(true));
        let refused = Schema::read(json!({"properties": {"a": {"unevaluatedProperties": false}}})).unwrap_err();
        assert!(refused.to_string().starts_with("/properties/a/unevaluatedProperties: `unev"), "{refused}");
    }
}
