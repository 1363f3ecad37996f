//! JSON Schema, a sound subset of it: what a schema says here is checked, and what is not checked here is refused.
//!
//! Keywords mean what JSON Schema 2020-12 says:
//! - any value: `type`, `enum`, `const`, `allOf`, `anyOf`, `oneOf`, `not`, `$ref` (within the document: `#/$defs/…`), `true`, `false`;
//! - numbers: `minimum`, `maximum`, `exclusiveMinimum`, `exclusiveMaximum`, `multipleOf`, compared as decimals, never rounded;
//! - texts: `minLength`, `maxLength` (in code points), `pattern` (found anywhere; no look-around and no back-references);
//! - arrays: `items`, `prefixItems`, `minItems`, `maxItems`, `uniqueItems`;
//! - objects: `properties`, `required`, `additionalProperties`, `minProperties`, `maxProperties`.
//!
//! `title`, `description`, `default`, `examples`, `deprecated`, `readOnly`, `writeOnly` and `$comment` are for people. Every other
//! keyword is an error that names it, `format` among them. A schema is its owner's and a value may be anybody's: the work of a
//! check is bounded by [`STEPS_MAX`], and a violation names a place and a rule, never a value.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::{self, Write as _},
};

use regex::Regex;
use serde_json::{Map, Number, Value};

/// Most subschemas of one schema.
pub const NODES_MAX: usize = 10_000;
/// How deep a schema may nest, references included.
pub const DEPTH_MAX: usize = 128;
/// Most work of one check: subschemas visited, and 64 bytes of text each.
pub const STEPS_MAX: u64 = 1_000_000;
/// Most violations that one check tells.
pub const VIOLATIONS_MAX: usize = 32;

/// Values listed in a message before it is cut.
const SHOWN_MAX: usize = 10;
/// Keywords for people, which no value can violate.
const ANNOTATIONS: [&str; 8] =
    ["title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"];
/// Keywords that hold subschemas under names and say nothing by themselves.
const DEFINITIONS: [&str; 2] = ["$defs", "definitions"];
const TYPES: [&str; 7] = ["null", "boolean", "number", "integer", "string", "array", "object"];

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
pub fn compile(schema: &Value) -> Result<Schema, SchemaError> {
    let mut compiler = Compiler { document: schema, nodes: Vec::new(), known: HashMap::new() };
    compiler.node("", schema, 0)?;
    let schema = Schema { nodes: compiler.nodes };
    match schema.has_circle() {
        true => Err(SchemaError { path: String::new(), what: "a `$ref` leads back to itself".to_owned() }),
        false => Ok(schema),
    }
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
    MinItems(u64),
    MaxItems(u64),
    UniqueItems,
    Properties {
        named: BTreeMap<String, usize>,
        others: Option<usize>,
    },
    Required(Vec<String>),
    MinProperties(u64),
    MaxProperties(u64),
    AllOf(Vec<usize>),
    AnyOf(Vec<usize>),
    OneOf(Vec<usize>),
    Not(usize),
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

    /// Whether a subschema applies itself to the same value again: its check would not end.
    fn has_circle(&self) -> bool {
        let mut done = vec![false; self.nodes.len()];
        (0..self.nodes.len()).any(|node| self.closes_circle(node, &mut Vec::new(), &mut done))
    }

    fn closes_circle(&self, node: usize, on_the_way: &mut Vec<usize>, done: &mut [bool]) -> bool {
        if done[node] {
            return false;
        }
        if on_the_way.contains(&node) {
            return true;
        }
        on_the_way.push(node);
        let found =
            self.nodes[node].iter().flat_map(Rule::in_place).any(|next| self.closes_circle(next, on_the_way, done));
        on_the_way.pop();
        done[node] = true;
        found
    }
}

impl Rule {
    /// The subschemas that it applies to the same value.
    fn in_place(&self) -> Vec<usize> {
        match self {
            Rule::AllOf(nodes) | Rule::AnyOf(nodes) | Rule::OneOf(nodes) => nodes.clone(),
            Rule::Not(node) => vec![*node],
            _ => Vec::new(),
        }
    }
}

// === compiling ===

struct Compiler<'a> {
    document: &'a Value,
    nodes: Vec<Vec<Rule>>,
    /// Subschemas by their place, so that references to one share it and may recur.
    known: HashMap<String, usize>,
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
                "prefixItems" | "items" | "properties" | "additionalProperties" => {}
                keyword if ANNOTATIONS.contains(&keyword) => {}
                keyword if DEFINITIONS.contains(&keyword) => drop(self.named(&at, value, depth)?),
                "$schema" | "$id" if path.is_empty() => {}
                keyword => rules.extend(self.rule(&at, keyword, value, depth)?),
            }
        }
        if keywords.contains_key("prefixItems") || keywords.contains_key("items") {
            let list = keywords.get("prefixItems").map(|list| self.list(&format!("{path}/prefixItems"), list, depth));
            let prefix = list.transpose()?.unwrap_or_default();
            let rest = keywords.get("items").map(|items| self.items(&format!("{path}/items"), items, depth));
            rules.push(Rule::Items { prefix, rest: rest.transpose()? });
        }
        if keywords.contains_key("properties") || keywords.contains_key("additionalProperties") {
            let named = keywords.get("properties").map(|map| self.named(&format!("{path}/properties"), map, depth));
            let others = keywords
                .get("additionalProperties")
                .map(|schema| self.node(&format!("{path}/additionalProperties"), schema, depth + 1));
            rules.push(Rule::Properties { named: named.transpose()?.unwrap_or_default(), others: others.transpose()? });
        }
        Ok(rules)
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
                Rule::Pattern(pattern(text).map_err(|what| error(at, what))?, text.to_owned())
            }
            "minItems" => Rule::MinItems(count(at, value)?),
            "maxItems" => Rule::MaxItems(count(at, value)?),
            "uniqueItems" => match value.as_bool().ok_or_else(|| error(at, "must be true or false"))? {
                true => Rule::UniqueItems,
                false => return Ok(None),
            },
            "required" => {
                let names = value.as_array().map(|names| names.iter().map(|name| name.as_str().map(str::to_owned)));
                let names = names.and_then(Iterator::collect::<Option<Vec<_>>>);
                Rule::Required(names.ok_or_else(|| error(at, "must be an array of strings"))?)
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

    fn items(&mut self, at: &str, value: &Value, depth: usize) -> Result<usize, SchemaError> {
        match value {
            Value::Array(_) => Err(error(at, "must be one schema; a list of schemas is `prefixItems`")),
            _ => self.node(at, value, depth + 1),
        }
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

/// A pattern as JSON Schema means it: ECMA's `\d` and `\w` are ASCII, the engine's are not.
fn pattern(text: &str) -> Result<Regex, String> {
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
    Regex::new(&translated)
        .map_err(|_| "is no regular expression that is known here (no look-around, no back-references)".to_owned())
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
    violations: Vec<Violation>,
    /// At so many violations the check may end.
    enough: usize,
    path: Vec<String>,
}

impl<'a> Check<'a> {
    fn node(&mut self, node: usize, value: &Value) {
        self.pay(1);
        for rule in &self.nodes[node] {
            if self.steps == 0 || self.violations.len() >= self.enough {
                return;
            }
            self.rule(rule, value);
        }
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
            Rule::Properties { named, others } => {
                for (name, member) in members {
                    if let Some(node) = named.get(name).or(others.as_ref()) {
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
        let found = compile(schema).expect("a schema").check(value).err().unwrap_or_default();
        found.into_iter().map(|violation| format!("{}: {}", violation.path, violation.what)).collect()
    }

    fn refusal(schema: &Value) -> String {
        compile(schema).expect_err("no schema").to_string()
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
            let compiled = compile(&schema).expect("a schema");
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
            (json!({"properties": {"a": {"contains": {}}}}), "/properties/a/contains: `contains` is not known here"),
            (json!({"minlength": 3}), "/minlength: `minlength` is not known here"),
            (json!({"items": [{}]}), "/items: must be one schema; a list of schemas is `prefixItems`"),
            (json!({"items": {"$id": "x"}}), "/items/$id: `$id` is not known here"),
            (json!({"$defs": {"x": {"if": {}}}}), "/$defs/x/if: `if` is not known here"),
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
            (json!({"required": [1]}), "/required: must be an array of strings"),
            (json!({"anyOf": []}), "/anyOf: must name at least one schema"),
            (json!({"$ref": "other.json"}), "/$ref: must be a place in this document"),
            (json!({"$ref": "#/$defs/x"}), "/$ref: leads nowhere in this document"),
            (json!({"$ref": "#"}), "the schema: a `$ref` leads back to itself"),
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
        let wide: Map<String, Value> = (0..NODES_MAX).map(|i| (i.to_string(), json!({}))).collect();
        assert!(refusal(&json!({"properties": wide})).contains("more than 10000 subschemas"));
    }

    proptest! {
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
                let _ = compile(&value).map(|schema| schema.check(&value));
            }
        }
    }
}
