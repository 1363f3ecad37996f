//! Reads typed values out of a [`Document`], finding every mistake of form and not only the first.
//!
//! Serde stops at the first error. Here the erroneous node is reported, struck, and the reading starts anew without it; a
//! configuration is small, so that costs nothing that anybody would notice. Every field of [`super::file`] may be absent,
//! which makes this sound.

use std::fmt;

use serde::{
    de::{
        self, DeserializeOwned, DeserializeSeed, Deserializer, Expected, IntoDeserializer, MapAccess, SeqAccess,
        Unexpected, Visitor,
    },
    forward_to_deserialize_any,
};

use crate::config::{
    problems::{Problems, suggestion},
    tree::{Document, Entry, Node, Value},
};

/// Problems of form after which the reading is given up.
const PROBLEMS_MAX: usize = 100;

impl Document {
    /// Reads the whole document as a `T`, reporting every mistake; what is returned is without the mistaken parts.
    pub(super) fn read<T: DeserializeOwned>(&mut self, problems: &mut Problems) -> Option<T> {
        for _ in 0..PROBLEMS_MAX {
            let error = match T::deserialize(Reader { document: self, node: &self.root }) {
                Ok(value) => return Some(value),
                Err(error) => error,
            };
            let at = error.at.unwrap_or(At { id: self.root.id, key: false });
            problems.push(self.problem_found(at.id, at.key, error.message));
            if at.id == self.root.id {
                return None;
            }
            self.strike(at.id);
        }
        None
    }
}

/// A mistake of form, and the node that it was found at.
#[derive(Debug)]
pub(super) struct ReadError {
    at: Option<At>,
    message: String,
}

#[derive(Debug, Clone, Copy)]
struct At {
    id: u32,
    key: bool,
}

impl ReadError {
    fn new(message: impl Into<String>) -> ReadError {
        ReadError { at: None, message: message.into() }
    }

    /// The innermost node wins.
    fn or_at(self, id: u32, key: bool) -> ReadError {
        ReadError { at: self.at.or(Some(At { id, key })), ..self }
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ReadError {}

impl de::Error for ReadError {
    fn custom<T: fmt::Display>(message: T) -> ReadError {
        ReadError::new(message.to_string())
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn Expected) -> ReadError {
        let found = match unexpected {
            Unexpected::Map => "a map",
            Unexpected::Seq => "a list",
            Unexpected::Unit => "nothing",
            _ => "another kind of value",
        };
        ReadError::new(format!("{found} stands where {expected} is due"))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> ReadError {
        ReadError::new(format!("unknown key{}", suggestion(field, expected.iter().copied())))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> ReadError {
        ReadError::new(format!("`{variant}` is not known{}", suggestion(variant, expected.iter().copied())))
    }

    fn missing_field(field: &'static str) -> ReadError {
        ReadError::new(format!("`{field}` is missing"))
    }
}

/// Reads one node.
#[derive(Clone, Copy)]
struct Reader<'a> {
    document: &'a Document,
    node: &'a Node,
}

impl<'a> Reader<'a> {
    /// The text of this node, or what stands there instead.
    fn text(self, due: &str) -> Result<&'a str, ReadError> {
        match &self.node.value {
            Value::Scalar { text, .. } => Ok(text),
            Value::Absent => Err(ReadError::new(format!("is empty; {due} is due"))),
            Value::Seq(_) => Err(ReadError::new(format!("a list stands where {due} is due"))),
            Value::Map(_) => Err(ReadError::new(format!("a map stands where {due} is due"))),
        }
    }

    fn number<T: std::str::FromStr>(self) -> Result<T, ReadError> {
        let text = self.text("a number")?;
        text.replace('_', "").parse().map_err(|_| ReadError::new(format!("`{text}` is not a number that fits here")))
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $type:ty,)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
            visitor.$visit(self.number::<$type>()?)
        }
    )*};
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = ReadError;

    numbers! {
        deserialize_i8 visit_i8 i8,
        deserialize_i16 visit_i16 i16,
        deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64,
        deserialize_u8 visit_u8 u8,
        deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64,
        deserialize_f32 visit_f32 f32,
        deserialize_f64 visit_f64 f64,
    }

    /// For values that are passed on as JSON: what is written without quotes has the type that it looks like.
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match &self.node.value {
            Value::Scalar { text, plain: true } => plain(text, visitor),
            Value::Scalar { text, plain: false } => visitor.visit_str(text),
            Value::Absent => visitor.visit_unit(),
            Value::Seq(items) => visitor.visit_seq(Items { document: self.document, rest: items.iter() }),
            Value::Map(entries) => visitor.visit_map(Entries::new(self.document, entries)),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let text = self.text("on or off")?;
        visitor.visit_bool(super::forms::switch(text).map_err(ReadError::new)?)
    }

    /// A text as it was spelled, never a number or a truth value; forms that are a word *or* a map come through here too.
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match &self.node.value {
            Value::Scalar { text, .. } => visitor.visit_str(text),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.node.value {
            Value::Absent => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_newtype_struct(self)
    }

    /// An empty value is an empty list: `keys:` with all of its items commented out.
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match &self.node.value {
            Value::Seq(_) => self.deserialize_any(visitor),
            Value::Absent => visitor.visit_seq(Items { document: self.document, rest: [].iter() }),
            Value::Scalar { text, .. } if !text.contains(char::is_whitespace) && text.len() <= 40 => {
                Err(ReadError::new("a text stands where a list is due; put it in [ ]"))
            }
            Value::Scalar { .. } => Err(ReadError::new("a text stands where a list is due")),
            Value::Map(_) => Err(ReadError::new("a map stands where a list is due; begin each item with `- `")),
        }
    }

    /// An empty value is an empty map, as with lists.
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match &self.node.value {
            Value::Map(_) => self.deserialize_any(visitor),
            Value::Absent => visitor.visit_map(Entries::new(self.document, &[])),
            Value::Scalar { .. } => Err(ReadError::new("a text stands where a map is due; write `key: value`")),
            Value::Seq(_) => Err(ReadError::new("a list stands where a map is due; write `name: …` without `- `")),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        let text = self.text(&format!("one of {}", variants.join(", ")))?;
        visitor.visit_enum(text.into_deserializer())
    }

    forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit_struct tuple tuple_struct ignored_any
    }
}

/// What a text without quotes is in JSON. The core schema of YAML 1.2; `on` and `off` stay texts.
fn plain<'de, V: Visitor<'de>>(text: &str, visitor: V) -> Result<V::Value, ReadError> {
    match text {
        "true" | "True" | "TRUE" => return visitor.visit_bool(true),
        "false" | "False" | "FALSE" => return visitor.visit_bool(false),
        _ => {}
    }
    let numeric = text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.'));
    if !numeric {
        return visitor.visit_str(text);
    }
    if let Ok(number) = text.parse::<u64>() {
        return visitor.visit_u64(number);
    }
    if let Ok(number) = text.parse::<i64>() {
        return visitor.visit_i64(number);
    }
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => visitor.visit_f64(number),
        _ => visitor.visit_str(text),
    }
}

/// The items of a list that were not struck.
struct Items<'a> {
    document: &'a Document,
    rest: std::slice::Iter<'a, Node>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = ReadError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, ReadError> {
        let document = self.document;
        let Some(node) = self.rest.find(|node| !document.is_struck(node)) else { return Ok(None) };
        seed.deserialize(Reader { document, node }).map(Some).map_err(|error| error.or_at(node.id, false))
    }
}

/// The entries of a map that were not struck.
struct Entries<'a> {
    document: &'a Document,
    rest: std::slice::Iter<'a, Entry>,
    value: Option<&'a Node>,
}

impl<'a> Entries<'a> {
    fn new(document: &'a Document, entries: &'a [Entry]) -> Entries<'a> {
        Entries { document, rest: entries.iter(), value: None }
    }
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = ReadError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ReadError> {
        let document = self.document;
        let Some(entry) = self.rest.find(|entry| !document.is_struck(&entry.node)) else { return Ok(None) };
        self.value = Some(&entry.node);
        let key: de::value::StrDeserializer<'_, ReadError> = entry.key.as_str().into_deserializer();
        seed.deserialize(key).map(Some).map_err(|error| error.or_at(entry.node.id, true))
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, ReadError> {
        let node = self.value.take().ok_or_else(|| ReadError::new("a value was asked for before its key"))?;
        seed.deserialize(Reader { document: self.document, node }).map_err(|error| error.or_at(node.id, false))
    }
}
