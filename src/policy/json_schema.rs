//! JSON Schema, a sound subset of it: what a schema says here is checked, and what is not checked here is refused.
//!
//! Variables of prompts and the scorer `json_schema` of evaluations use it. Keywords mean what JSON Schema 2020-12 says, by the
//! sections of its [core](https://json-schema.org/draft/2020-12/json-schema-core) and its
//! [validation vocabulary](https://json-schema.org/draft/2020-12/json-schema-validation):
//!
//! | section | keywords |
//! |---|---|
//! | core 4.3.2, boolean schemas | `true`, `false` |
//! | core 8.1, 8.2.4 | `$schema`, which is not read; `$id` of the whole, which is not read; `$defs`, `definitions` |
//! | core 8.2.3, references | `$ref`, within the document: `#/$defs/…`, percent-encoded where need be; it may recur |
//! | core 10.2.1, logic | `allOf`, `anyOf`, `oneOf`, `not` |
//! | core 10.2.2, conditions | `if`, `then`, `else` |
//! | core 10.3.1, arrays | `prefixItems`, `items`, `contains` |
//! | core 10.3.2, objects | `properties`, `patternProperties`, `additionalProperties`, `propertyNames` |
//! | validation 6.1, any value | `type`, `enum`, `const` |
//! | validation 6.2, numbers | `multipleOf`, `minimum`, `maximum`, `exclusiveMinimum`, `exclusiveMaximum`: as decimals, never rounded |
//! | validation 6.3, texts | `minLength`, `maxLength` (in code points), `pattern` (found anywhere; no look-around, no back-references) |
//! | validation 6.4, arrays | `minItems`, `maxItems`, `uniqueItems` |
//! | validation 6.5, objects | `minProperties`, `maxProperties`, `required`, `dependentRequired` |
//! | core 8.3, validation 8 and 9, for people | `$comment`, `title`, `description`, `default`, `examples`, `deprecated`, `readOnly`, `writeOnly`, `contentEncoding`, `contentMediaType` |
//!
//! `example` (OpenAPI) and `strict` (OpenAI) are for people, too. `format` (validation 7) is refused or is one of those, as the
//! caller chooses ([`Formats`]). Every other keyword is an error that names it and where it stands. A schema is its owner's and a
//! value may be anybody's: the work of a check is bounded by [`STEPS_MAX`] and [`CHECK_DEPTH_MAX`], and a violation names a place
//! and a rule, never a value.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::{self, Write as _},
};

use regex::{Regex, RegexBuilder};
use serde_json::{Map, Number, Value};

/// Most subschemas of one schema.
pub const NODES_MAX: usize = 10_000;
/// How deep a schema may nest, references included, and how many subschemas in a row may apply themselves to one value.
pub const DEPTH_MAX: usize = 128;
/// Most patterns of one schema.
pub const PATTERNS_MAX: usize = 1_000;
/// Most of them that take more than [`PATTERN_BYTES`] of memory.
pub const LARGE_PATTERNS_MAX: usize = 8;
/// Memory of a compiled pattern, in bytes, and of a large one.
pub const PATTERN_BYTES: usize = 256 * 1024;
/// See [`PATTERN_BYTES`].
pub const LARGE_PATTERN_BYTES: usize = 10 * 1024 * 1024;
/// Most work of one check: subschemas visited, and 64 bytes of text each.
pub const STEPS_MAX: u64 = 1_000_000;
/// How deep a check goes, levels of the value and subschemas in a row together: it recurs, and a thread's stack ends.
pub const CHECK_DEPTH_MAX: usize = 512;
/// Most violations that one check tells.
pub const VIOLATIONS_MAX: usize = 32;

/// Values listed in a message before it is cut.
const SHOWN_MAX: usize = 10;
/// Keywords for people, which no value can violate.
const ANNOTATIONS: [&str; 13] = [
    "$schema",
    "$comment",
    "title",
    "description",
    "default",
    "example",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
    "contentEncoding",
    "contentMediaType",
    "strict",
];
/// Keywords that hold subschemas under names and say nothing by themselves.
const DEFINITIONS: [&str; 2] = ["$defs", "definitions"];
/// Keywords that are read together with their neighbours.
const GROUPED: [&str; 8] =
    ["prefixItems", "items", "properties", "patternProperties", "additionalProperties", "if", "then", "else"];
const TYPES: [&str; 7] = ["null", "boolean", "number", "integer", "string", "array", "object"];

/// What becomes of `format`, which the specification leaves open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Formats {
    /// It is refused: whoever writes it expects it to be checked.
    Refused,
    /// It is for people: schemas that are also a provider's have it.
    Ignored,
}

/// A schema, ready to check values.
#[derive(Debug, Clone)]
pub struct Schema {
    /// Subschemas; the first is the whole.
    nodes: Vec<Vec<Rule>>,
}

/// Why a schema cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {what}", shown_path(path))]
pub struct SchemaError {
    /// Where in the schema, as a JSON Pointer; empty is the whole.
    pub path: String,
    /// What is wrong there.
    pub what: String,
}

/// How a value breaks a schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Where in the value, as a JSON Pointer; empty is the whole.
    pub path: String,
    /// The rule, as in `must be at least 3`. No value is quoted.
    pub what: String,
}

/// Compiles a schema.
///
/// # Errors
/// When it has a keyword that is not checked here, a keyword of the wrong form, a reference that leads nowhere or around in
/// a circle, or is too large.
pub fn compile(schema: &Value, formats: Formats) -> Result<Schema, SchemaError> {
    let mut compiler = Compiler {
        document: schema,
        formats,
        nodes: Vec::new(),
        known: HashMap::new(),
        patterns: 0,
        large_patterns: 0,
    };
    compiler.node("", schema, 0)?;
    let schema = Schema { nodes: compiler.nodes };
    schema.check_rows()?;
    Ok(schema)
}

/// One requirement of a subschema; numbers are indexes of others.
#[derive(Debug, Clone)]
enum Rule {
    Never,
    Types(Vec<&'static str>),
    /// Canonical texts of the allowed values, and how they are shown.
    Enum(BTreeSet<String>, String),
    Minimum(Decimal, Number),
    Maximum(Decimal, Number),
    Above(Decimal, Number),
    Below(Decimal, Number),
    MultipleOf(Decimal, Number),
    MinLength(u64),
    MaxLength(u64),
    Pattern(Regex, String),
    Items {
        prefix: Vec<usize>,
        rest: Option<usize>,
    },
    Contains(usize),
    MinItems(u64),
    MaxItems(u64),
    UniqueItems,
    Properties {
        named: BTreeMap<String, usize>,
        patterns: Vec<(Regex, usize)>,
        others: Option<usize>,
    },
    PropertyNames(usize),
    Required(Vec<String>),
    /// By name, those that it needs beside it.
    DependentRequired(Vec<(String, Vec<String>)>),
    MinProperties(u64),
    MaxProperties(u64),
    AllOf(Vec<usize>),
    AnyOf(Vec<usize>),
    OneOf(Vec<usize>),
    Not(usize),
    If {
        condition: usize,
        then: Option<usize>,
        otherwise: Option<usize>,
    },
}

// === impl Schema ===

impl Schema {
    /// Checks a value.
    ///
    /// # Errors
    /// What it breaks, at most [`VIOLATIONS_MAX`], in the order of the schema; never an empty list.
    pub fn check(&self, value: &Value) -> Result<(), Vec<Violation>> {
        let mut check = Check {
            nodes: &self.nodes,
            steps: STEPS_MAX,
            depth: 0,
            violations: Vec::new(),
            enough: VIOLATIONS_MAX,
            path: vec![],
        };
        check.node(0, value);
        if check.steps == 0 {
            let what = "takes more work to check than is allowed".to_owned();
            return Err(vec![Violation { path: String::new(), what }]);
        }
        if check.violations.is_empty() { Ok(()) } else { Err(check.violations) }
    }

    /// Refuses a subschema that applies itself to the same value again, whose check would not end, and rows that are too long.
    fn check_rows(&self) -> Result<(), SchemaError> {
        let mut lengths = vec![None; self.nodes.len()];
        (0..self.nodes.len()).try_for_each(|node| self.row(node, &mut Vec::new(), &mut lengths).map(drop))
    }

    /// How many subschemas in a row apply themselves to one value, from `node` on.
    fn row(&self, node: usize, on_the_way: &mut Vec<usize>, known: &mut [Option<usize>]) -> Result<usize, SchemaError> {
        if let Some(length) = known[node] {
            return Ok(length);
        }
        if on_the_way.contains(&node) {
            return Err(error("", "a `$ref` leads back to itself"));
        }
        let too_long = || error("", format!("more than {DEPTH_MAX} subschemas in a row apply to one value"));
        if on_the_way.len() > DEPTH_MAX {
            return Err(too_long());
        }
        on_the_way.push(node);
        let mut length = 0;
        for next in self.nodes[node].iter().flat_map(Rule::in_place) {
            length = length.max(1 + self.row(next, on_the_way, known)?);
        }
        on_the_way.pop();
        known[node] = Some(length);
        if length > DEPTH_MAX { Err(too_long()) } else { Ok(length) }
    }
}

impl Rule {
    /// The subschemas that it applies to the same value.
    fn in_place(&self) -> Vec<usize> {
        match self {
            Rule::AllOf(nodes) | Rule::AnyOf(nodes) | Rule::OneOf(nodes) => nodes.clone(),
            Rule::Not(node) => vec![*node],
            Rule::If { condition, then, otherwise } => {
                [Some(*condition), *then, *otherwise].into_iter().flatten().collect()
            }
            _ => Vec::new(),
        }
    }
}

// === compiling ===

struct Compiler<'a> {
    document: &'a Value,
    formats: Formats,
    nodes: Vec<Vec<Rule>>,
    /// Subschemas by their place, so that references to one share it and may recur.
    known: HashMap<String, usize>,
    patterns: usize,
    large_patterns: usize,
}

impl Compiler<'_> {
    fn node(&mut self, path: &str, schema: &Value, depth: usize) -> Result<usize, SchemaError> {
        if let Some(known) = self.known.get(path) {
            return Ok(*known);
        }
        if depth > DEPTH_MAX {
            return Err(error(path, format!("nests deeper than {DEPTH_MAX} levels")));
        }
        if self.nodes.len() == NODES_MAX {
            return Err(error(path, format!("the schema has more than {NODES_MAX} subschemas")));
        }
        let index = self.nodes.len();
        self.nodes.push(Vec::new());
        self.known.insert(path.to_owned(), index);
        self.nodes[index] = match schema {
            Value::Bool(true) => Vec::new(),
            Value::Bool(false) => vec![Rule::Never],
            Value::Object(keywords) => self.rules(path, keywords, depth)?,
            _ => return Err(error(path, "a schema must be an object, true or false")),
        };
        Ok(index)
    }

    fn rules(&mut self, path: &str, keywords: &Map<String, Value>, depth: usize) -> Result<Vec<Rule>, SchemaError> {
        let mut rules = Vec::new();
        for (keyword, value) in keywords {
            let at = format!("{path}/{}", escaped(keyword));
            match keyword.as_str() {
                // Read with their neighbours below.
                keyword if GROUPED.contains(&keyword) => {}
                keyword if ANNOTATIONS.contains(&keyword) => {}
                keyword if DEFINITIONS.contains(&keyword) => drop(self.named(&at, value, depth)?),
                "$id" if path.is_empty() => {}
                "format" if self.formats == Formats::Ignored => {}
                keyword => rules.extend(self.rule(&at, keyword, value, depth)?),
            }
        }
        let has = |group: &[&str]| group.iter().any(|keyword| keywords.contains_key(*keyword));
        if has(&["prefixItems", "items"]) {
            rules.push(self.items(path, keywords, depth)?);
        }
        if has(&["properties", "patternProperties", "additionalProperties"]) {
            rules.push(self.properties(path, keywords, depth)?);
        }
        if has(&["if", "then", "else"]) {
            rules.extend(self.condition(path, keywords, depth)?);
        }
        Ok(rules)
    }

    fn items(&mut self, path: &str, keywords: &Map<String, Value>, depth: usize) -> Result<Rule, SchemaError> {
        let list = keywords.get("prefixItems").map(|list| self.list(&format!("{path}/prefixItems"), list, depth));
        let prefix = list.transpose()?.unwrap_or_default();
        if let Some(Value::Array(_)) = keywords.get("items") {
            let at = format!("{path}/items");
            return Err(error(&at, "must be one schema; a list of schemas is `prefixItems`"));
        }
        Ok(Rule::Items { prefix, rest: self.beside(path, "items", keywords, depth)? })
    }

    fn properties(&mut self, path: &str, keywords: &Map<String, Value>, depth: usize) -> Result<Rule, SchemaError> {
        let named = keywords.get("properties").map(|map| self.named(&format!("{path}/properties"), map, depth));
        let named = named.transpose()?.unwrap_or_default();
        let mut patterns = Vec::new();
        if let Some(map) = keywords.get("patternProperties") {
            let at = format!("{path}/patternProperties");
            for (text, node) in self.named(&at, map, depth)? {
                patterns.push((self.pattern(&format!("{at}/{}", escaped(&text)), &text)?, node));
            }
        }
        Ok(Rule::Properties { named, patterns, others: self.beside(path, "additionalProperties", keywords, depth)? })
    }

    /// `then` and `else` say nothing without an `if`, but have to be schemas.
    fn condition(
        &mut self,
        path: &str,
        keywords: &Map<String, Value>,
        depth: usize,
    ) -> Result<Option<Rule>, SchemaError> {
        let condition = self.beside(path, "if", keywords, depth)?;
        let then = self.beside(path, "then", keywords, depth)?;
        let otherwise = self.beside(path, "else", keywords, depth)?;
        Ok(condition.map(|condition| Rule::If { condition, then, otherwise }))
    }

    /// The subschema of a keyword, where that is there.
    fn beside(
        &mut self,
        path: &str,
        keyword: &str,
        keywords: &Map<String, Value>,
        depth: usize,
    ) -> Result<Option<usize>, SchemaError> {
        let schema = keywords.get(keyword).map(|schema| self.node(&format!("{path}/{keyword}"), schema, depth + 1));
        schema.transpose()
    }

    /// What one keyword that stands for itself requires.
    fn rule(&mut self, at: &str, keyword: &str, value: &Value, depth: usize) -> Result<Option<Rule>, SchemaError> {
        let rule = match keyword {
            "type" => Rule::Types(types(at, value)?),
            "enum" => {
                let allowed = value.as_array().ok_or_else(|| error(at, "must be an array"))?;
                Rule::Enum(allowed.iter().map(canonical).collect(), alternatives(allowed))
            }
            "const" => Rule::Enum(BTreeSet::from([canonical(value)]), value.to_string()),
            "minimum" => numeric(at, value, Rule::Minimum)?,
            "maximum" => numeric(at, value, Rule::Maximum)?,
            "exclusiveMinimum" => numeric(at, value, Rule::Above)?,
            "exclusiveMaximum" => numeric(at, value, Rule::Below)?,
            "multipleOf" => match numeric(at, value, Rule::MultipleOf)? {
                Rule::MultipleOf(factor, _) if !factor.is_positive() => return Err(error(at, "must be above 0")),
                rule => rule,
            },
            "minLength" => Rule::MinLength(count(at, value)?),
            "maxLength" => Rule::MaxLength(count(at, value)?),
            "pattern" => {
                let text = value.as_str().ok_or_else(|| error(at, "must be a string"))?;
                Rule::Pattern(self.pattern(at, text)?, text.to_owned())
            }
            "contains" => Rule::Contains(self.node(at, value, depth + 1)?),
            "minItems" => Rule::MinItems(count(at, value)?),
            "maxItems" => Rule::MaxItems(count(at, value)?),
            "uniqueItems" => match value.as_bool().ok_or_else(|| error(at, "must be true or false"))? {
                true => Rule::UniqueItems,
                false => return Ok(None),
            },
            "propertyNames" => Rule::PropertyNames(self.node(at, value, depth + 1)?),
            "required" => Rule::Required(names(at, value)?),
            "dependentRequired" => {
                let map = value.as_object().ok_or_else(|| error(at, "must be an object of arrays of strings"))?;
                let needed = |(name, others): (&String, &Value)| {
                    Ok((name.clone(), names(&format!("{at}/{}", escaped(name)), others)?))
                };
                Rule::DependentRequired(map.iter().map(needed).collect::<Result<_, _>>()?)
            }
            "minProperties" => Rule::MinProperties(count(at, value)?),
            "maxProperties" => Rule::MaxProperties(count(at, value)?),
            "allOf" => Rule::AllOf(self.some(at, value, depth)?),
            "anyOf" => Rule::AnyOf(self.some(at, value, depth)?),
            "oneOf" => Rule::OneOf(self.some(at, value, depth)?),
            "not" => Rule::Not(self.node(at, value, depth + 1)?),
            "$ref" => Rule::AllOf(vec![self.reference(at, value, depth)?]),
            "format" => return Err(error(at, "`format` is not checked here; write a `pattern`")),
            _ => {
                return Err(error(
                    at,
                    format!("`{keyword}` is not known here; see the keywords of JSON Schema in the manual"),
                ));
            }
        };
        Ok(Some(rule))
    }

    fn named(&mut self, at: &str, value: &Value, depth: usize) -> Result<BTreeMap<String, usize>, SchemaError> {
        let schemas = value.as_object().ok_or_else(|| error(at, "must be an object of schemas"))?;
        let node = |(name, schema): (&String, &Value)| {
            Ok((name.clone(), self.node(&format!("{at}/{}", escaped(name)), schema, depth + 1)?))
        };
        schemas.iter().map(node).collect()
    }

    fn list(&mut self, at: &str, value: &Value, depth: usize) -> Result<Vec<usize>, SchemaError> {
        let schemas = value.as_array().ok_or_else(|| error(at, "must be an array of schemas"))?;
        schemas.iter().enumerate().map(|(i, schema)| self.node(&format!("{at}/{i}"), schema, depth + 1)).collect()
    }

    fn some(&mut self, at: &str, value: &Value, depth: usize) -> Result<Vec<usize>, SchemaError> {
        let nodes = self.list(at, value, depth)?;
        if nodes.is_empty() { Err(error(at, "must name at least one schema")) } else { Ok(nodes) }
    }

    /// A pattern, within the memory that patterns of one schema may take.
    fn pattern(&mut self, at: &str, text: &str) -> Result<Regex, SchemaError> {
        self.patterns += 1;
        if self.patterns > PATTERNS_MAX {
            return Err(error(at, format!("the schema has more than {PATTERNS_MAX} patterns")));
        }
        let text = translated(text);
        let build = |bytes| RegexBuilder::new(&text).size_limit(bytes).build();
        match build(PATTERN_BYTES) {
            Err(regex::Error::CompiledTooBig(_)) => {}
            Err(_) => {
                let what = "is no regular expression that is known here (no look-around, no back-references)";
                return Err(error(at, what));
            }
            Ok(regex) => return Ok(regex),
        }
        self.large_patterns += 1;
        if self.large_patterns > LARGE_PATTERNS_MAX {
            return Err(error(at, format!("the schema has more than {LARGE_PATTERNS_MAX} large patterns")));
        }
        build(LARGE_PATTERN_BYTES).map_err(|_| error(at, "is too large a regular expression"))
    }

    fn reference(&mut self, at: &str, value: &Value, depth: usize) -> Result<usize, SchemaError> {
        let nowhere = || error(at, "must be a place in this document, as in `#/$defs/name`");
        let pointer = value.as_str().and_then(|text| text.strip_prefix('#')).ok_or_else(nowhere)?;
        let pointer = percent_decoded(pointer).ok_or_else(nowhere)?;
        let document = self.document;
        let target = document.pointer(&pointer).ok_or_else(|| error(at, "leads nowhere in this document"))?;
        self.node(&pointer, target, depth + 1)
    }
}

fn error(path: &str, what: impl Into<String>) -> SchemaError {
    SchemaError { path: path.to_owned(), what: what.into() }
}

fn types(at: &str, value: &Value) -> Result<Vec<&'static str>, SchemaError> {
    let wrong = || error(at, format!("must be one or more of {}", TYPES.join(", ")));
    let one = |name: &Value| TYPES.into_iter().find(|known| name.as_str() == Some(known)).ok_or_else(wrong);
    match value {
        Value::Array(names) if !names.is_empty() => names.iter().map(one).collect(),
        name => Ok(vec![one(name)?]),
    }
}

fn numeric(at: &str, value: &Value, rule: fn(Decimal, Number) -> Rule) -> Result<Rule, SchemaError> {
    match value {
        Value::Number(number) => Ok(rule(Decimal::of(number), number.clone())),
        _ => Err(error(at, "must be a number")),
    }
}

/// A length: `2.0` is one, too.
fn count(at: &str, value: &Value) -> Result<u64, SchemaError> {
    let whole = |number: f64| (number >= 0.0 && number.fract() == 0.0 && number < 1e15).then_some(number as u64);
    let count = value.as_u64().or_else(|| value.as_f64().and_then(whole));
    count.ok_or_else(|| error(at, "must be a whole number, 0 or more"))
}

fn names(at: &str, value: &Value) -> Result<Vec<String>, SchemaError> {
    let names = value.as_array().map(|names| names.iter().map(|name| name.as_str().map(str::to_owned)));
    let names = names.and_then(Iterator::collect::<Option<Vec<_>>>);
    names.ok_or_else(|| error(at, "must be an array of strings"))
}

/// A pattern as JSON Schema means it: ECMA's `\d` and `\w` are ASCII, the engine's are not.
fn translated(text: &str) -> String {
    let mut translated = String::with_capacity(text.len());
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        if letter != '\\' {
            translated.push(letter);
            continue;
        }
        match letters.next() {
            Some('d') => translated.push_str("[0-9]"),
            Some('D') => translated.push_str("[^0-9]"),
            Some('w') => translated.push_str("[0-9A-Za-z_]"),
            Some('W') => translated.push_str("[^0-9A-Za-z_]"),
            Some(other) => translated.extend(['\\', other]),
            None => translated.push('\\'),
        }
    }
    translated
}

/// `#/$defs/a%20b` is a URI fragment.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = [rest.next()?, rest.next()?];
        bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
    }
    String::from_utf8(bytes).ok()
}

// === checking ===

struct Check<'a> {
    nodes: &'a [Vec<Rule>],
    /// Work that is left; at 0 the check has no result.
    steps: u64,
    /// How deep it is.
    depth: usize,
    violations: Vec<Violation>,
    /// At so many violations the check may end.
    enough: usize,
    path: Vec<String>,
}

impl<'a> Check<'a> {
    fn node(&mut self, node: usize, value: &Value) {
        self.pay(1);
        if self.depth == CHECK_DEPTH_MAX {
            self.steps = 0;
        }
        self.depth += 1;
        for rule in &self.nodes[node] {
            if self.steps == 0 || self.violations.len() >= self.enough {
                break;
            }
            self.rule(rule, value);
        }
        self.depth -= 1;
    }

    fn rule(&mut self, rule: &'a Rule, value: &Value) {
        match (rule, value) {
            (Rule::Never, _) => self.broken("is not allowed"),
            (Rule::Types(types), _) => self.require(types.iter().any(|name| is_of(value, name)), || must_be(types)),
            (Rule::Enum(allowed, shown), _) => {
                let text = canonical(value);
                self.pay(text.len() as u64 / 64);
                self.require(allowed.contains(&text), || format!("must be {shown}"));
            }
            (Rule::AllOf(nodes), _) => nodes.iter().for_each(|node| self.node(*node, value)),
            (Rule::AnyOf(nodes), _) => {
                let fits = nodes.iter().any(|node| self.fits(*node, value));
                self.require(fits, || format!("fits none of the {} forms of `anyOf`", nodes.len()));
            }
            (Rule::OneOf(nodes), _) => {
                let fitting = nodes.iter().filter(|node| self.fits(**node, value)).count();
                self.require(fitting == 1, || format!("must fit exactly one form of `oneOf`, fits {fitting}"));
            }
            (Rule::Not(node), _) => {
                let fits = self.fits(*node, value);
                self.require(!fits, || "is what `not` excludes".to_owned());
            }
            (Rule::If { condition, then, otherwise }, _) => {
                let branch = if self.fits(*condition, value) { then } else { otherwise };
                if let Some(node) = branch {
                    self.node(*node, value);
                }
            }
            (_, Value::Number(number)) => self.number(rule, number),
            (_, Value::String(text)) => self.text(rule, text),
            (_, Value::Array(items)) => self.array(rule, items),
            (_, Value::Object(members)) => self.object(rule, members),
            _ => {}
        }
    }

    fn number(&mut self, rule: &Rule, number: &Number) {
        let number = Decimal::of(number);
        match rule {
            Rule::Minimum(bound, shown) => self.require(number >= *bound, || format!("must be at least {shown}")),
            Rule::Maximum(bound, shown) => self.require(number <= *bound, || format!("must be at most {shown}")),
            Rule::Above(bound, shown) => self.require(number > *bound, || format!("must be above {shown}")),
            Rule::Below(bound, shown) => self.require(number < *bound, || format!("must be below {shown}")),
            Rule::MultipleOf(factor, shown) => {
                self.require(number.is_multiple_of(*factor), || format!("must be a multiple of {shown}"));
            }
            _ => {}
        }
    }

    fn text(&mut self, rule: &Rule, text: &str) {
        self.pay(text.len() as u64 / 64);
        let length = || text.chars().count() as u64;
        match rule {
            Rule::MinLength(min) => {
                self.require(length() >= *min, || format!("must have at least {min} characters"));
            }
            Rule::MaxLength(max) => self.require(length() <= *max, || format!("must have at most {max} characters")),
            Rule::Pattern(regex, shown) => {
                self.require(regex.is_match(text), || format!("must match the pattern `{shown}`"));
            }
            _ => {}
        }
    }

    fn array(&mut self, rule: &Rule, items: &[Value]) {
        let length = items.len() as u64;
        match rule {
            Rule::MinItems(min) => self.require(length >= *min, || format!("must have at least {min} items")),
            Rule::MaxItems(max) => self.require(length <= *max, || format!("must have at most {max} items")),
            Rule::UniqueItems => {
                let texts: Vec<String> = items.iter().map(canonical).collect();
                self.pay(texts.iter().map(|text| text.len() as u64 / 64 + 1).sum());
                let mut seen = BTreeSet::new();
                self.require(texts.iter().all(|text| seen.insert(text)), || "must not repeat an item".to_owned());
            }
            Rule::Contains(node) => {
                let contains = items.iter().any(|item| self.fits(*node, item));
                self.require(contains, || "must have an item that fits `contains`".to_owned());
            }
            Rule::Items { prefix, rest } => {
                for (index, item) in items.iter().enumerate() {
                    let Some(node) = prefix.get(index).or(rest.as_ref()) else { return };
                    self.inside(index.to_string(), *node, item);
                }
            }
            _ => {}
        }
    }

    fn object(&mut self, rule: &Rule, members: &Map<String, Value>) {
        let length = members.len() as u64;
        match rule {
            Rule::MinProperties(min) => self.require(length >= *min, || format!("must have at least {min} properties")),
            Rule::MaxProperties(max) => self.require(length <= *max, || format!("must have at most {max} properties")),
            Rule::Required(names) => {
                for name in names.iter().filter(|name| !members.contains_key(name.as_str())) {
                    self.broken(format!("lacks `{name}`"));
                }
            }
            Rule::DependentRequired(all) => {
                for (name, needed) in all.iter().filter(|(name, _)| members.contains_key(name)) {
                    for other in needed.iter().filter(|other| !members.contains_key(other.as_str())) {
                        self.broken(format!("lacks `{other}`, which `{name}` needs"));
                    }
                }
            }
            Rule::PropertyNames(node) => {
                for name in members.keys() {
                    let fits = self.fits(*node, &Value::from(name.as_str()));
                    self.path.push(name.clone());
                    self.require(fits, || "has a name that `propertyNames` does not allow".to_owned());
                    self.path.pop();
                }
            }
            Rule::Properties { named, patterns, others } => {
                for (name, member) in members {
                    self.pay(patterns.len() as u64 * (name.len() as u64 / 64 + 1));
                    let meant = patterns.iter().filter(|(regex, _)| regex.is_match(name)).map(|(_, node)| node);
                    let meant: Vec<usize> = named.get(name).into_iter().chain(meant).copied().collect();
                    let meant = if meant.is_empty() { others.as_slice() } else { &meant };
                    for node in meant {
                        self.inside(name.clone(), *node, member);
                    }
                }
            }
            _ => {}
        }
    }

    fn inside(&mut self, step: String, node: usize, value: &Value) {
        if self.steps == 0 || self.violations.len() >= self.enough {
            return;
        }
        self.path.push(step);
        self.node(node, value);
        self.path.pop();
    }

    /// Whether the value fits, whatever else is known of it.
    fn fits(&mut self, node: usize, value: &Value) -> bool {
        let (before, enough) = (self.violations.len(), self.enough);
        self.enough = before + 1;
        self.node(node, value);
        let fits = self.violations.len() == before;
        self.violations.truncate(before);
        self.enough = enough;
        fits
    }

    fn pay(&mut self, steps: u64) {
        self.steps = self.steps.saturating_sub(steps);
    }

    fn require(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.broken(what());
        }
    }

    fn broken(&mut self, what: impl Into<String>) {
        if self.violations.len() < self.enough {
            let path = self.path.iter().fold(String::new(), |path, step| path + "/" + &escaped(step));
            self.violations.push(Violation { path, what: what.into() });
        }
    }
}

fn is_of(value: &Value, name: &str) -> bool {
    match value {
        Value::Null => name == "null",
        Value::Bool(_) => name == "boolean",
        Value::Number(number) => name == "number" || (name == "integer" && Decimal::of(number).is_whole()),
        Value::String(_) => name == "string",
        Value::Array(_) => name == "array",
        Value::Object(_) => name == "object",
    }
}

fn must_be(types: &[&str]) -> String {
    let with_article = |name: &&str| match *name {
        "null" => "null".to_owned(),
        "boolean" => "true or false".to_owned(),
        "integer" | "array" | "object" => format!("an {name}"),
        _ => format!("a {name}"),
    };
    format!("must be {}", types.iter().map(with_article).collect::<Vec<_>>().join(" or "))
}

fn alternatives(allowed: &[Value]) -> String {
    let shown: Vec<String> = allowed.iter().take(SHOWN_MAX).map(Value::to_string).collect();
    match shown.len() {
        0 => "a value of an empty `enum`".to_owned(),
        1 => shown.concat(),
        _ if allowed.len() > SHOWN_MAX => {
            format!("one of {} and {} others", shown.join(", "), allowed.len() - SHOWN_MAX)
        }
        _ => format!("one of {}", shown.join(", ")),
    }
}

/// The same text for equal values: keys sorted, numbers by value (`1`, `1.0` and `1e0` are one).
fn canonical(value: &Value) -> String {
    let mut text = String::new();
    write_canonical(&mut text, value);
    text
}

fn write_canonical(text: &mut String, value: &Value) {
    match value {
        Value::Number(number) => {
            // Writing into a string cannot fail.
            let _ = write!(text, "{}", Decimal::of(number));
        }
        Value::Array(items) => {
            text.push('[');
            for item in items {
                write_canonical(text, item);
                text.push(',');
            }
            text.push(']');
        }
        Value::Object(members) => {
            text.push('{');
            for (name, member) in members.iter().collect::<BTreeMap<_, _>>() {
                text.push_str(&Value::from(name.as_str()).to_string());
                text.push(':');
                write_canonical(text, member);
                text.push(',');
            }
            text.push('}');
        }
        plain => text.push_str(&plain.to_string()),
    }
}

/// A step of a JSON Pointer.
fn escaped(step: &str) -> String {
    step.replace('~', "~0").replace('/', "~1")
}

fn shown_path(path: &str) -> &str {
    if path.is_empty() { "the schema" } else { path }
}

/// A number as it is written in decimal: `digits` × 10^`exponent`, without zeros at the end, so that equal numbers are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Decimal {
    negative: bool,
    /// At most 20 digits: those of a `u64`, or the shortest that tell an `f64` from its neighbours.
    digits: u128,
    exponent: i32,
}

// === impl Decimal ===

impl Decimal {
    fn of(number: &Number) -> Decimal {
        let text = number.to_string();
        let (text, negative) = text.strip_prefix('-').map_or((text.as_str(), false), |text| (text, true));
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        // JSON numbers have only digits here, and exponents of three digits.
        let mut digits: u128 = format!("{whole}{fraction}").parse().unwrap_or_default();
        let mut exponent = exponent.parse::<i32>().unwrap_or_default() - fraction.len() as i32;
        if digits == 0 {
            return Decimal { negative: false, digits: 0, exponent: 0 };
        }
        while digits.is_multiple_of(10) {
            digits /= 10;
            exponent += 1;
        }
        Decimal { negative, digits, exponent }
    }

    fn is_positive(self) -> bool {
        !self.negative && self.digits > 0
    }

    fn is_whole(self) -> bool {
        self.exponent >= 0
    }

    /// Whether it is a whole number of `factor`s, which is above 0.
    fn is_multiple_of(self, factor: Decimal) -> bool {
        let shift = self.exponent - factor.exponent;
        if shift < 0 {
            // The factor in units of this number's last place; out of range it is larger than the number.
            let factor = 10_u128.checked_pow(shift.unsigned_abs()).and_then(|scale| factor.digits.checked_mul(scale));
            return factor.map_or(self.digits == 0, |factor| self.digits.is_multiple_of(factor));
        }
        let remainder = (0..shift).fold(self.digits % factor.digits, |remainder, _| remainder * 10 % factor.digits);
        remainder == 0
    }

    /// Compares sizes without the sign.
    fn cmp_size(self, other: Decimal) -> Ordering {
        if self.digits == 0 || other.digits == 0 {
            return self.digits.cmp(&other.digits);
        }
        // Where the first digit stands decides; where that is the same, at most 19 zeros make the last places meet.
        let first = |number: Decimal| number.digits.ilog10() as i32 + number.exponent;
        let scaled = |number: Decimal, to: i32| number.digits * 10_u128.pow((number.exponent - to).unsigned_abs());
        let last = self.exponent.min(other.exponent);
        first(self).cmp(&first(other)).then_with(|| scaled(self, last).cmp(&scaled(other, last)))
    }
}

impl Ord for Decimal {
    fn cmp(&self, other: &Decimal) -> Ordering {
        match (self.negative, other.negative) {
            (false, true) => Ordering::Greater,
            (true, false) => Ordering::Less,
            (false, false) => self.cmp_size(*other),
            (true, true) => other.cmp_size(*self),
        }
    }
}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Decimal) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.negative { "-" } else { "" };
        write!(f, "{sign}{}e{}", self.digits, self.exponent)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn violations(schema: &Value, value: &Value) -> Vec<String> {
        let found = compile(schema, Formats::Refused).expect("a schema").check(value).err().unwrap_or_default();
        found.into_iter().map(|violation| format!("{}: {}", violation.path, violation.what)).collect()
    }

    fn refusal(schema: &Value) -> String {
        compile(schema, Formats::Refused).expect_err("no schema").to_string()
    }

    /// Shapes of the official JSON-Schema-Test-Suite, draft 2020-12: schema, values that fit, values that do not.
    #[test]
    fn keywords_mean_what_the_test_suite_says() {
        let table = [
            (json!(true), json!([1, null, {}]), json!([])),
            (json!(false), json!([]), json!([1, null, {}])),
            (json!({}), json!([1, "a", null]), json!([])),
            (json!({"type": "integer"}), json!([1, 1.0, -0.0, 1e3]), json!([1.1, "1", {}, [], true, null])),
            (json!({"type": "number"}), json!([1, 1.0, 1.1]), json!(["1", null])),
            (json!({"type": "string"}), json!(["", "1"]), json!([1, [], null])),
            (json!({"type": "null"}), json!([null]), json!([0, "", false])),
            (json!({"type": ["array", "object"]}), json!([[1], {"a": 1}]), json!([1, "a", null])),
            (
                json!({"enum": [1, "a", [false], {"a": 0}]}),
                json!([1.0, "a", [false], {"a": 0.0}]),
                json!([true, "b", [0], {}, [], {"a": false}]),
            ),
            (
                json!({"const": {"foo": "bar", "baz": "bax"}}),
                json!([{"baz": "bax", "foo": "bar"}]),
                json!([{"foo": "bar"}, [1]]),
            ),
            (
                json!({"const": 9007199254740992_u64}),
                json!([9007199254740992_u64, 9007199254740992.0]),
                json!([9007199254740991_u64]),
            ),
            (json!({"const": false}), json!([false]), json!([0, [false], null])),
            (json!({"minimum": 1.1}), json!([2.6, 1.1, "x"]), json!([0.6])),
            (json!({"minimum": -2}), json!([-1, 0, -2, -2.0]), json!([-2.0001, -3])),
            (json!({"maximum": 300}), json!([299.97, 300, 300.0]), json!([300.5])),
            (json!({"exclusiveMaximum": 3.0}), json!([2.2]), json!([3.0, 3, 3.5])),
            (json!({"exclusiveMinimum": 1.1}), json!([1.2]), json!([1.1, 0.6])),
            (
                json!({"maximum": 18446744073709551600_u64}),
                json!([18446744073709551600_u64]),
                json!([18446744073709551601_u64]),
            ),
            (json!({"minimum": 1e-300}), json!([1e300, 2e-300]), json!([-1e300, 0, 1e-301])),
            (json!({"multipleOf": 2}), json!([10, 0, -4, "x"]), json!([7])),
            (json!({"multipleOf": 1.5}), json!([0, 4.5]), json!([35])),
            (json!({"multipleOf": 0.0001}), json!([0.0075]), json!([0.00751])),
            (json!({"multipleOf": 0.123456789}), json!([]), json!([1e308])),
            (json!({"multipleOf": 1e-8}), json!([12391239123_u64]), json!([])),
            (json!({"multipleOf": 1e300}), json!([0, 1e301]), json!([1])),
            (json!({"minLength": 2}), json!(["foo", "fo", 1]), json!(["f", "💩"])),
            (json!({"maxLength": 2.0}), json!(["f", "💩💩"]), json!(["foo"])),
            (json!({"pattern": "^a*$"}), json!(["aaa", "", 123]), json!(["abc"])),
            (json!({"pattern": "a+"}), json!(["xxaayy"]), json!(["xyz"])),
            (json!({"pattern": "^\\d+[\\w.]$"}), json!(["1x", "12."]), json!(["߀x", "1é"])),
            (json!({"items": {"type": "integer"}}), json!([[1, 2], [], {"foo": 1}]), json!([[1, "x"]])),
            (json!({"items": false}), json!([[]]), json!([[1]])),
            (
                json!({"prefixItems": [{"type": "integer"}, {"type": "string"}]}),
                json!([[1, "a"], [1], [], [1, "a", true]]),
                json!([["a", 1]]),
            ),
            (json!({"prefixItems": [{}], "items": {"type": "integer"}}), json!([["x", 2, 3]]), json!([["x", "y"]])),
            (json!({"minItems": 1}), json!([[1], ""]), json!([[]])),
            (json!({"maxItems": 2}), json!([[1, 2], "foobar"]), json!([[1, 2, 3]])),
            (
                json!({"uniqueItems": true}),
                json!([[1, true], [0, false], [{"a": 1}, {"a": 2}], [[1], [true]], ["1", 1]]),
                json!([[1, 1.0], [{"a": 1, "b": 2}, {"b": 2, "a": 1}], [[1], [1.00]], ["a", "a"]]),
            ),
            (json!({"uniqueItems": false}), json!([[1, 1]]), json!([])),
            (
                json!({"properties": {"foo": {"type": "integer"}, "bar": false}}),
                json!([{"foo": 1}, {"baz": []}, []]),
                json!([{"foo": "x"}, {"bar": 1}]),
            ),
            (
                json!({"properties": {"foo": {}}, "additionalProperties": false}),
                json!([{"foo": 1}, [1]]),
                json!([{"foo": 1, "quux": 2}]),
            ),
            (json!({"additionalProperties": {"type": "boolean"}}), json!([{"a": true}]), json!([{"a": 1}])),
            (
                json!({"properties": {"__proto__": {"type": "number"}}, "required": ["__proto__"]}),
                json!([{"__proto__": 1}]),
                json!([{}, {"__proto__": "a"}]),
            ),
            (
                json!({"patternProperties": {"f.*o": {"type": "integer"}, "^fo": {"minimum": 2}}}),
                json!([{"foo": 2}, {"xfoo": 1, "bar": "x"}, [], "foo"]),
                json!([{"foo": "bar"}, {"foo": 1}, {"xfooo": "x"}]),
            ),
            (
                json!({"properties": {"a": {}}, "patternProperties": {"^x_": {"type": "number"}}, "additionalProperties": false}),
                json!([{"x_a": 1, "a": "b"}, 12]),
                json!([{"y": 1}, {"x_a": "b"}]),
            ),
            (
                json!({"propertyNames": {"maxLength": 3}}),
                json!([{"f": {}, "foo": {}}, {}, "long"]),
                json!([{"long": 1}]),
            ),
            (json!({"propertyNames": false}), json!([{}, 1]), json!([{"a": 1}])),
            (
                json!({"dependentRequired": {"quux": ["foo", "bar"], "none": []}}),
                json!([{}, {"foo": 1}, {"foo": 1, "bar": 2, "quux": 3}, {"none": 1}, ["quux"]]),
                json!([{"foo": 1, "quux": 2}, {"quux": 1}]),
            ),
            (json!({"contains": {"minimum": 5}}), json!([[3, 4, 5], {}, "x"]), json!([[2, 3, 4], []])),
            (json!({"contains": false}), json!(["x"]), json!([[], [1]])),
            (
                json!({"if": {"exclusiveMaximum": 0}, "then": {"minimum": -10}, "else": {"multipleOf": 2}}),
                json!([-1, 4]),
                json!([-100, 3]),
            ),
            (json!({"then": {"const": 0}, "else": {"const": 1}}), json!([0, 1, "x"]), json!([])),
            (json!({"if": false, "then": {"const": "yes"}, "else": {"const": "no"}}), json!(["no"]), json!(["yes"])),
            (
                json!({"title": "t", "example": 1, "strict": true, "contentMediaType": "text/plain", "properties": {"a": {"$schema": "x"}}}),
                json!([{"a": 1}]),
                json!([]),
            ),
            (json!({"required": ["foo"]}), json!([{"foo": 1}, [], "x"]), json!([{"bar": 1}])),
            (
                json!({"minProperties": 1, "maxProperties": 2}),
                json!([{"a": 1}, []]),
                json!([{}, {"a": 1, "b": 2, "c": 3}]),
            ),
            (json!({"allOf": [{"minimum": 20}, {"maximum": 30}]}), json!([25]), json!([35, 10])),
            (json!({"anyOf": [{"type": "integer"}, {"minimum": 2}]}), json!([1, 2.5, 3]), json!([1.5])),
            (json!({"oneOf": [{"type": "integer"}, {"minimum": 2}]}), json!([1, 2.5]), json!([3, 1.5])),
            (json!({"not": {"type": "integer"}}), json!(["foo"]), json!([1])),
            (json!({"not": {"not": {}}}), json!(["anything"]), json!([])),
            (
                json!({"properties": {"foo": {"$ref": "#"}}, "additionalProperties": false}),
                json!([{"foo": {"foo": false}}]),
                json!([{"foo": {"bar": 1}}]),
            ),
            (
                json!({"$defs": {"a~b/c d": {"type": "integer"}}, "$ref": "#/$defs/a~0b~1c%20d", "maximum": 3}),
                json!([3]),
                json!(["a", 4]),
            ),
            (
                json!({"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "x", "title": "t", "default": "not a number", "type": "number"}),
                json!([1]),
                json!(["a"]),
            ),
        ];
        for (schema, fit, break_it) in table {
            let compiled = compile(&schema, Formats::Refused).expect("a schema");
            for value in fit.as_array().expect("a list") {
                assert_eq!(compiled.check(value), Ok(()), "{schema} with {value}");
            }
            for value in break_it.as_array().expect("a list") {
                assert!(compiled.check(value).is_err(), "{schema} with {value}");
            }
        }
    }

    #[test]
    fn violations_name_the_place_and_the_rule() {
        let schema = json!({
            "type": "object", "required": ["id"], "additionalProperties": false,
            "properties": {"id": {}, "a/b": {"type": ["string", "null"]}, "list": {"items": {"enum": ["x", "y"]}}},
        });
        let value = json!({"a/b": 1, "list": ["x", "secret"], "extra": "secret"});
        assert_eq!(
            violations(&schema, &value),
            [
                ": lacks `id`",
                "/a~1b: must be a string or null",
                "/list/1: must be one of \"x\", \"y\"",
                "/extra: is not allowed",
            ]
        );
        assert_eq!(violations(&json!({"anyOf": [false, false]}), &json!(1)), [": fits none of the 2 forms of `anyOf`"]);
        let many = Value::from(vec![0; 100]);
        assert_eq!(violations(&json!({"items": false}), &many).len(), VIOLATIONS_MAX);
    }

    #[test]
    fn what_is_not_checked_is_refused_by_name() {
        for (schema, says) in [
            (json!({"format": "date"}), "/format: `format` is not checked here; write a `pattern`"),
            (
                json!({"properties": {"a": {"minContains": 1}}}),
                "/properties/a/minContains: `minContains` is not known here",
            ),
            (json!({"minlength": 3}), "/minlength: `minlength` is not known here"),
            (json!({"items": [{}]}), "/items: must be one schema; a list of schemas is `prefixItems`"),
            (json!({"items": {"$id": "x"}}), "/items/$id: `$id` is not known here"),
            (json!({"$defs": {"x": {"$anchor": "y"}}}), "/$defs/x/$anchor: `$anchor` is not known here"),
            (json!({"then": {"dependentSchemas": {}}}), "/then/dependentSchemas: `dependentSchemas` is not known here"),
        ] {
            let refusal = refusal(&schema);
            assert!(refusal.starts_with(says), "{refusal}");
        }
    }

    #[test]
    fn a_keyword_of_the_wrong_form_is_refused_where_it_stands() {
        for (schema, says) in [
            (json!(5), "the schema: a schema must be an object, true or false"),
            (
                json!({"type": "text"}),
                "/type: must be one or more of null, boolean, number, integer, string, array, object",
            ),
            (json!({"type": []}), "/type: must be one or more of"),
            (json!({"minLength": -1}), "/minLength: must be a whole number, 0 or more"),
            (json!({"minLength": 1.5}), "/minLength: must be a whole number"),
            (json!({"multipleOf": 0}), "/multipleOf: must be above 0"),
            (json!({"maximum": "3"}), "/maximum: must be a number"),
            (json!({"pattern": "(?=x)"}), "/pattern: is no regular expression"),
            (json!({"patternProperties": {"a/(?=x)": {}}}), "/patternProperties/a~1(?=x): is no regular expression"),
            (json!({"pattern": "(a{1000}){1000}"}), "/pattern: is too large a regular expression"),
            (json!({"required": [1]}), "/required: must be an array of strings"),
            (json!({"dependentRequired": {"a": "b"}}), "/dependentRequired/a: must be an array of strings"),
            (json!({"else": 1}), "/else: a schema must be an object"),
            (json!({"contains": []}), "/contains: a schema must be an object"),
            (json!({"anyOf": []}), "/anyOf: must name at least one schema"),
            (json!({"$ref": "other.json"}), "/$ref: must be a place in this document"),
            (json!({"$ref": "#/$defs/x"}), "/$ref: leads nowhere in this document"),
            (json!({"$ref": "#"}), "the schema: a `$ref` leads back to itself"),
            (json!({"if": {"not": {"$ref": "#"}}}), "the schema: a `$ref` leads back to itself"),
            (
                json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"allOf": [{"$ref": "#/$defs/a"}]}}}),
                "the schema: a `$ref` leads back",
            ),
        ] {
            let refusal = refusal(&schema);
            assert!(refusal.starts_with(says), "{refusal}");
        }
    }

    #[test]
    fn work_and_size_end() {
        let doubled = |i: usize| json!({"anyOf": [{"$ref": format!("#/$defs/{}", i + 1)}, {"$ref": format!("#/$defs/{}", i + 1)}]});
        let mut definitions: Map<String, Value> = (0..40).map(|i| (i.to_string(), doubled(i))).collect();
        definitions.insert("40".to_owned(), json!(false));
        let exponential = json!({"$ref": "#/$defs/0", "$defs": definitions});
        assert_eq!(violations(&exponential, &json!(1)), [": takes more work to check than is allowed"]);
        assert_eq!(
            violations(&json!({"not": exponential["$defs"]["39"].clone(), "$defs": {"40": false}}), &json!(1)),
            [""; 0]
        );
        let deep = (0..DEPTH_MAX + 1).fold(json!({}), |inner, _| json!({"not": inner}));
        assert!(refusal(&deep).contains("nests deeper than"), "{}", refusal(&deep));
        let row = |links: usize| {
            let link = |i: usize| (i.to_string(), json!({"$ref": format!("#/$defs/{}", i.saturating_sub(1))}));
            let mut links: Map<String, Value> = (1..links).map(link).collect();
            links.insert("0".to_owned(), json!({}));
            json!({"$defs": links})
        };
        assert!(compile(&row(DEPTH_MAX), Formats::Refused).is_ok());
        assert!(refusal(&row(NODES_MAX - 1)).contains("in a row"), "{}", refusal(&row(NODES_MAX - 1)));
        let large = Value::from(vec![json!({"pattern": "\\p{L}{90}"}); LARGE_PATTERNS_MAX + 1]);
        assert!(refusal(&json!({"allOf": large})).contains("more than 8 large patterns"));
        let wide: Map<String, Value> = (0..NODES_MAX).map(|i| (i.to_string(), json!({}))).collect();
        assert!(refusal(&json!({"properties": wide})).contains("more than 10000 subschemas"));
    }

    /// The stack of a test is as small as that of the runtime's threads.
    #[test]
    fn a_check_recurs_only_so_deep() {
        let rows = (1..40).fold(json!({"items": {"$ref": "#"}}), |inner, _| json!({"allOf": [inner]}));
        let nested = |levels: usize| (0..levels).fold(json!(1), |inner, _| json!([inner]));
        assert_eq!(violations(&rows, &nested(10)), [""; 0]);
        assert_eq!(violations(&rows, &nested(120)), [": takes more work to check than is allowed"]);
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let text = "[ab1]{0,3}";
        let plain = prop_oneof![
            Just(json!(null)),
            any::<bool>().prop_map(Value::from),
            (-3..4_i64).prop_map(Value::from),
            (-3.0..3.0_f64).prop_map(|number| json!((number * 2.0).round() / 2.0)),
            text.prop_map(Value::from)
        ];
        plain.prop_recursive(3, 20, 4, move |inner| {
            let members = proptest::collection::btree_map(text, inner.clone(), 0..4);
            prop_oneof![
                proptest::collection::vec(inner, 0..4).prop_map(Value::from),
                members.prop_map(|members| Value::Object(members.into_iter().collect()))
            ]
        })
    }

    fn any_schema() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            proptest::sample::select(&TYPES[..]).prop_map(|name| json!({"type": name})),
            any_value().prop_map(|value| json!({"const": value})),
            (-2..3_i64).prop_map(|bound| json!({"minimum": bound, "maxLength": bound + 2, "minItems": bound + 2})),
            "[ab1]{1,2}".prop_map(|text| json!({"pattern": text, "required": [text]})),
            any::<bool>().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 12, 3, |inner| {
            let some = proptest::collection::vec(inner.clone(), 1..4);
            prop_oneof![
                (proptest::sample::select(vec!["allOf", "anyOf", "oneOf", "prefixItems"]), some)
                    .prop_map(|(keyword, some)| json!({keyword: some})),
                (proptest::sample::select(vec!["not", "items", "additionalProperties"]), inner.clone())
                    .prop_map(|(keyword, one)| json!({keyword: one})),
                ("[ab1]{1,2}", inner).prop_map(|(name, one)| json!({"properties": {name: one}})),
            ]
        })
    }

    fn fits(schema: &Value, value: &Value) -> bool {
        compile(schema, Formats::Refused).expect("a schema").check(value).is_ok()
    }

    proptest! {
        /// What a keyword means can be said with others; the two ways must not differ.
        #[test]
        fn keywords_agree_with_each_other(a in any_schema(), b in any_schema(), c in any_schema(), value in any_value(), name in "[ab1]{1,2}") {
            let [arrays, objects] = ["array", "object"].map(|kind| json!({"not": {"type": kind}}));
            for (one, other) in [
                (json!({"if": a, "then": b, "else": c}), json!({"allOf": [{"anyOf": [{"not": a}, b]}, {"anyOf": [a, c]}]})),
                (json!({"if": a, "then": b}), json!({"anyOf": [{"not": a}, b]})),
                (json!({"if": a, "else": c}), json!({"anyOf": [a, c]})),
                (json!({"contains": a}), json!({"anyOf": [arrays, {"not": {"items": {"not": a}}}]})),
                (json!({"oneOf": [a, b]}), json!({"anyOf": [{"allOf": [a, {"not": b}]}, {"allOf": [b, {"not": a}]}]})),
                (json!({"not": {"anyOf": [a, b]}}), json!({"allOf": [{"not": a}, {"not": b}]})),
                (json!({"dependentRequired": {&name: ["b"]}}), json!({"anyOf": [objects, {"not": {"required": [name]}}, {"required": ["b"]}]})),
                (
                    json!({"patternProperties": {format!("^{name}$"): a}, "properties": {&name: b}, "additionalProperties": c}),
                    json!({"properties": {&name: {"allOf": [a, b]}}, "additionalProperties": c}),
                ),
                (json!({"propertyNames": {"const": name}}), json!({"properties": {&name: {}}, "additionalProperties": false})),
                (json!({"$ref": "#/$defs/a", "$defs": {"a": a}}), a),
            ] {
                prop_assert_eq!(fits(&one, &value), fits(&other, &value), "{} and {} with {}", one, other, value);
            }
        }

        #[test]
        fn decimals_compare_as_numbers(a in any::<i64>(), b in any::<i64>(), x in -1e9..1e9_f64, y in -1e9..1e9_f64) {
            let of = |value: Value| Decimal::of(value.as_number().expect("a number"));
            prop_assert_eq!(of(json!(a)).cmp(&of(json!(b))), a.cmp(&b));
            prop_assert_eq!(of(json!(x)).cmp(&of(json!(y))), x.partial_cmp(&y).expect("finite"));
            prop_assert_eq!(of(json!(a)).is_multiple_of(of(json!(7))), a % 7 == 0);
        }

        #[test]
        fn no_schema_panics(text in "[\\[\\]{}\",:a-z0-9.$#/-]{0,40}") {
            if let Ok(value) = serde_json::from_str::<Value>(&text) {
                let _ = compile(&value, Formats::Ignored).map(|schema| schema.check(&value));
            }
        }
    }
}
