//! A YAML document as a tree in which every node knows its place, so that a mistake found late can still be pointed at.
//!
//! Reads text only; what a value should be is decided by [`super::de`]. A node that was found wrong is *struck*: it is
//! then skipped as if it had not been written, so that one pass can go on and find the next mistake.

use std::{collections::HashSet, fmt};

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use crate::config::problems::{Place, Problem, Problems};

/// Nesting that no honest configuration reaches; a bound on recursion.
const DEPTH_MAX: usize = 48;
/// Larger documents are refused.
const NODES_MAX: usize = 250_000;
/// Nodes of an overlay are numbered from here, beyond those of any document.
const OVERLAY_ID: u32 = 1 << 20;
/// Nodes of what came from the registry are numbered from here, beyond those of any overlay.
const REGISTERED_ID: u32 = 1 << 21;

/// A parsed file.
#[derive(Debug)]
pub(super) struct Document {
    /// The file as messages name it.
    name: String,
    /// What was laid over it, as messages name it.
    overlay: Option<String>,
    /// What of the registry was merged into it, as messages name it.
    registered: Option<String>,
    /// The top.
    pub(super) root: Node,
    struck: HashSet<u32>,
    filled: HashSet<u32>,
}

/// One value with its place.
#[derive(Debug)]
pub(super) struct Node {
    /// Unique in its document.
    pub(super) id: u32,
    place: Place,
    /// What stands there.
    pub(super) value: Value,
}

/// What stands at a node.
#[derive(Debug)]
pub(super) enum Value {
    /// Nothing, `~` or `null`.
    Absent,
    /// A text, as it was spelled; `plain` without quotes.
    Scalar { text: String, plain: bool },
    /// A list.
    Seq(Vec<Node>),
    /// A map, in the order of the file.
    Map(Vec<Entry>),
}

/// One key of a map.
#[derive(Debug)]
pub(super) struct Entry {
    /// The key.
    pub(super) key: String,
    key_place: Place,
    /// Its value.
    pub(super) node: Node,
}

/// A path of keys and indices from the top; indices count what was not struck.
#[derive(Debug, Clone, Default)]
pub struct Path(Vec<Step>);

#[derive(Debug, Clone)]
enum Step {
    Key(String),
    Index(usize),
}

impl Path {
    /// The key `key` below this path.
    #[must_use]
    pub fn key(&self, key: &str) -> Path {
        let mut steps = self.0.clone();
        steps.push(Step::Key(key.to_owned()));
        Path(steps)
    }

    /// The item `index` below this path.
    #[must_use]
    pub fn index(&self, index: usize) -> Path {
        let mut steps = self.0.clone();
        steps.push(Step::Index(index));
        Path(steps)
    }

    /// The last key; empty at the top and at items.
    pub(super) fn last(&self) -> &str {
        match self.0.last() {
            Some(Step::Key(key)) => key,
            Some(Step::Index(_)) | None => "",
        }
    }
}

// === impl Document ===

impl Document {
    /// Parses `text`. Keys given twice go to `problems`, and the first of them holds.
    ///
    /// # Errors
    /// When `text` is no YAML.
    pub(super) fn parse(name: &str, text: &str, problems: &mut Problems) -> Result<Document, Problem> {
        Document::parse_from(0, name, text, problems)
    }

    /// Parses `text` as an overlay: see [`Document::lay_over`].
    ///
    /// # Errors
    /// As [`Document::parse`].
    pub(super) fn parse_overlay(name: &str, text: &str, problems: &mut Problems) -> Result<Document, Problem> {
        Document::parse_from(OVERLAY_ID, name, text, problems)
    }

    fn parse_from(first_id: u32, name: &str, text: &str, problems: &mut Problems) -> Result<Document, Problem> {
        let options = serde_saphyr::options! {
            with_snippet: false,
            strict_booleans: true,
            duplicate_keys: serde_saphyr::DuplicateKeyPolicy::PassThrough,
            budget: serde_saphyr::budget! { max_depth: DEPTH_MAX, max_nodes: NODES_MAX },
        };
        let raw: Spanned<Raw> = serde_saphyr::from_str_with_options(text, options).map_err(|error| Problem {
            file: name.to_owned(),
            place: error.location().map(place).unwrap_or_default(),
            path: String::new(),
            message: syntax_message(&error, text),
        })?;
        let mut planter = Planter { text, next_id: first_id, doubled: Vec::new() };
        let root = planter.plant(raw);
        let mut document = Document {
            name: name.to_owned(),
            overlay: None,
            registered: None,
            root,
            struck: HashSet::new(),
            filled: HashSet::new(),
        };
        for (id, first) in planter.doubled {
            problems.push(document.problem_found(
                id,
                true,
                format!("is given twice; the first is on line {}", first.line),
            ));
            document.strike(id);
        }
        Ok(document)
    }

    /// Puts each top-level entry of `overlay` in the place of its own, and returns the keys that were replaced.
    pub(super) fn lay_over(&mut self, overlay: Document) -> Vec<String> {
        self.overlay = Some(overlay.name);
        self.struck.extend(overlay.struck);
        let Value::Map(over) = overlay.root.value else { return Vec::new() };
        // An empty file is nothing, which is as good as an empty map.
        if matches!(self.root.value, Value::Absent) {
            self.root.value = Value::Map(Vec::new());
        }
        let Value::Map(own) = &mut self.root.value else { return Vec::new() };
        let (replaced, kept): (Vec<Entry>, Vec<Entry>) =
            std::mem::take(own).into_iter().partition(|entry| over.iter().any(|other| other.key == entry.key));
        *own = kept.into_iter().chain(over).collect();
        let mut keys: Vec<String> = replaced.into_iter().map(|entry| entry.key).collect();
        keys.dedup();
        keys
    }

    /// Puts the entries of `over` beside its own, map by map; where both have something else than a map, that of `over` counts.
    pub(super) fn merge(&mut self, name: String, over: serde_json::Value) {
        self.registered = Some(name);
        if matches!(self.root.value, Value::Absent) {
            self.root.value = Value::Map(Vec::new());
        }
        let mut next_id = REGISTERED_ID;
        merge_into(&mut self.root, Node::grown(over, &mut next_id));
    }

    /// The value at `path` as JSON; plain scalars are what JSON would take them for. `None` where nothing was written.
    pub(super) fn json(&self, path: &Path) -> Option<serde_json::Value> {
        self.written(path).map(Node::to_json)
    }

    /// The file that a node stands in.
    fn file_of(&self, id: u32) -> String {
        if let Some(registered) = self.registered.as_ref().filter(|_| id >= REGISTERED_ID) {
            return registered.clone();
        }
        let overlay = self.overlay.as_ref().filter(|_| id >= OVERLAY_ID);
        overlay.unwrap_or(&self.name).clone()
    }

    /// Skips the node from now on.
    pub(super) fn strike(&mut self, id: u32) {
        self.struck.insert(id);
    }

    /// Notes that a value came from the environment.
    pub(super) fn note_filled(&mut self, id: u32) {
        self.filled.insert(id);
    }

    /// Whether the node is skipped.
    pub(super) fn is_struck(&self, node: &Node) -> bool {
        self.struck.contains(&node.id)
    }

    /// A problem with the value `id`, or with its key.
    pub(super) fn problem_found(&self, id: u32, at_key: bool, message: String) -> Problem {
        let mut trail = Vec::new();
        find(&self.root, id, &mut trail);
        let (path, at) = trail.iter().fold((String::new(), self.root.place), |(path, _), step| match step {
            Found::Key(entry) => (join_key(&path, &entry.key), entry.place(at_key && entry.node.id == id)),
            Found::Index(i, node) => (format!("{path}[{i}]"), node.place),
        });
        Problem { file: self.file_of(id), place: at, path, message }
    }

    /// A problem at `path`, placed at the deepest part of it that was written.
    pub(super) fn problem(&self, path: &Path, message: impl Into<String>) -> Problem {
        let mut at = self.root.place;
        let mut deepest = self.root.id;
        let mut node = Some(&self.root);
        let mut text = String::new();
        for step in &path.0 {
            match step {
                Step::Key(key) => {
                    let entry = node.and_then(|n| self.entry(n, key));
                    at = entry.map_or(at, |e| e.place(false));
                    node = entry.map(|e| &e.node);
                    text = join_key(&text, key);
                    deepest = node.map_or(deepest, |n| n.id);
                }
                Step::Index(index) => {
                    let item = node.and_then(|n| self.item(n, *index));
                    at = item.map_or(at, |(_, n)| n.place);
                    node = item.map(|(_, n)| n);
                    deepest = node.map_or(deepest, |n| n.id);
                    text = format!("{text}[{}]", item.map_or(*index, |(written, _)| written));
                }
            }
        }
        Problem { file: self.file_of(deepest), place: at, path: text, message: message.into() }
    }

    /// Whether `path` was written, be it right or wrong.
    pub(super) fn has(&self, path: &Path) -> bool {
        self.written(path).is_some()
    }

    /// Whether `path` was written and is wrong, which is reported already.
    pub(super) fn has_struck(&self, path: &Path) -> bool {
        self.written(path).is_some_and(|node| self.is_struck(node))
    }

    /// Whether something in the map at `path` is wrong, which is reported already.
    pub(super) fn has_struck_below(&self, path: &Path) -> bool {
        match self.written(path).map(|node| &node.value) {
            Some(Value::Map(entries)) => entries.iter().any(|entry| self.is_struck(&entry.node)),
            _ => false,
        }
    }

    /// Whether the value at `path` came from the environment, wholly or in part.
    pub(super) fn is_filled(&self, path: &Path) -> bool {
        self.written(path).is_some_and(|node| self.filled.contains(&node.id))
    }

    /// The keys of the map at `path`, be their values right or wrong.
    pub(super) fn keys(&self, path: &Path) -> Vec<&str> {
        match self.written(path).map(|node| &node.value) {
            Some(Value::Map(entries)) => entries.iter().map(|entry| entry.key.as_str()).collect(),
            _ => Vec::new(),
        }
    }

    fn written(&self, path: &Path) -> Option<&Node> {
        path.0.iter().try_fold(&self.root, |node, step| match step {
            Step::Key(key) => raw_entry(node, key).map(|entry| &entry.node),
            Step::Index(index) => self.item(node, *index).map(|(_, item)| item),
        })
    }

    fn entry<'a>(&self, node: &'a Node, key: &str) -> Option<&'a Entry> {
        raw_entry(node, key).filter(|entry| !self.is_struck(&entry.node))
    }

    /// The item that stands at `index` among those not struck, with the index that it was written at.
    fn item<'a>(&self, node: &'a Node, index: usize) -> Option<(usize, &'a Node)> {
        let Value::Seq(items) = &node.value else { return None };
        items.iter().enumerate().filter(|(_, item)| !self.is_struck(item)).nth(index)
    }
}

fn raw_entry<'a>(node: &'a Node, key: &str) -> Option<&'a Entry> {
    let Value::Map(entries) = &node.value else { return None };
    entries.iter().find(|entry| entry.key == key)
}

/// A key that `over` has too keeps its place where both are maps, and goes otherwise.
fn merge_into(node: &mut Node, over: Node) {
    let (Value::Map(own), true) = (&mut node.value, matches!(over.value, Value::Map(_))) else {
        *node = over;
        return;
    };
    let Value::Map(entries) = over.value else { return };
    for entry in entries {
        match own.iter_mut().find(|known| known.key == entry.key) {
            Some(known) if matches!(known.node.value, Value::Map(_)) => merge_into(&mut known.node, entry.node),
            Some(known) => *known = entry,
            None => own.push(entry),
        }
    }
}

impl Node {
    /// A node for a JSON value, and nodes for what is in it. It stands in no file.
    fn grown(json: serde_json::Value, next_id: &mut u32) -> Node {
        use serde_json::Value as Json;
        let id = *next_id;
        *next_id += 1;
        let value = match json {
            Json::Null => Value::Absent,
            Json::String(text) => Value::Scalar { text, plain: false },
            Json::Bool(_) | Json::Number(_) => Value::Scalar { text: json.to_string(), plain: true },
            Json::Array(items) => Value::Seq(items.into_iter().map(|item| Node::grown(item, next_id)).collect()),
            Json::Object(map) => Value::Map(
                map.into_iter()
                    .map(|(key, value)| Entry { key, key_place: Place::default(), node: Node::grown(value, next_id) })
                    .collect(),
            ),
        };
        Node { id, place: Place::default(), value }
    }

    fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match &self.value {
            Value::Absent => Json::Null,
            Value::Scalar { text, plain: true } => match serde_json::from_str(text) {
                Ok(value @ (Json::Bool(_) | Json::Number(_))) => value,
                _ => Json::String(text.clone()),
            },
            Value::Scalar { text, plain: false } => Json::String(text.clone()),
            Value::Seq(items) => Json::Array(items.iter().map(Node::to_json).collect()),
            Value::Map(entries) => {
                Json::Object(entries.iter().map(|entry| (entry.key.clone(), entry.node.to_json())).collect())
            }
        }
    }
}

impl Entry {
    /// Maps and lists are pointed at by their key, where a reader looks for them; texts by themselves.
    fn place(&self, at_key: bool) -> Place {
        match self.node.value {
            Value::Scalar { .. } if !at_key => self.node.place,
            _ => self.key_place,
        }
    }
}

enum Found<'a> {
    Key(&'a Entry),
    Index(usize, &'a Node),
}

/// Fills `trail` with the steps from `node` down to the node `id`.
fn find<'a>(node: &'a Node, id: u32, trail: &mut Vec<Found<'a>>) -> bool {
    if node.id == id {
        return true;
    }
    match &node.value {
        Value::Absent | Value::Scalar { .. } => {}
        Value::Seq(items) => {
            for (i, item) in items.iter().enumerate() {
                trail.push(Found::Index(i, item));
                if find(item, id, trail) {
                    return true;
                }
                trail.pop();
            }
        }
        Value::Map(entries) => {
            for entry in entries {
                trail.push(Found::Key(entry));
                if find(&entry.node, id, trail) {
                    return true;
                }
                trail.pop();
            }
        }
    }
    false
}

fn join_key(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn place(location: serde_saphyr::Location) -> Place {
    Place { line: location.line(), column: location.column() }
}

/// The parser's words without its own position, and a hint at the one trap that this format has.
fn syntax_message(error: &serde_saphyr::Error, text: &str) -> String {
    let said = error.without_snippet().to_string();
    let said = said.split(" at line ").next().unwrap_or(&said).trim_end_matches([',', ':']).to_owned();
    let line = error.location().and_then(|l| usize::try_from(l.line()).ok()).unwrap_or(0);
    let suspect = text.lines().nth(line.saturating_sub(1)).is_some_and(|line| line.contains("${"));
    let hint = if suspect { "; inside { } or [ ], write \"${NAME}\" in quotes" } else { "" };
    format!("not valid YAML: {said}{hint}")
}

// === reading ===

/// A node as the parser hands it over.
#[derive(Debug)]
enum Raw {
    Null,
    Text(String),
    /// A number or a truth value: taken from the source as it was spelled.
    Literal(String),
    Seq(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Raw, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Literal(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Literal(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Literal(value.to_string()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Raw, E> {
        Ok(Raw::Literal(value.to_string()))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Raw, E> {
        Ok(Raw::Literal(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Literal(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Raw, E> {
        Ok(Raw::Text(value))
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Raw::Seq(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
}

/// Turns what the parser handed over into nodes.
struct Planter<'a> {
    text: &'a str,
    next_id: u32,
    /// Values of keys that stood in their map before, and where the first one stands.
    doubled: Vec<(u32, Place)>,
}

impl Planter<'_> {
    fn plant(&mut self, raw: Spanned<Raw>) -> Node {
        let id = self.next_id;
        self.next_id += 1;
        let source = self.source(&raw.defined);
        let value = match raw.value {
            Raw::Null => Value::Absent,
            Raw::Literal(value) => Value::Scalar { text: source.map_or(value, |s| s.trim().to_owned()), plain: true },
            Raw::Text(text) => {
                Value::Scalar { text, plain: source.is_some_and(|s| !s.starts_with(['"', '\'', '|', '>'])) }
            }
            Raw::Seq(items) => Value::Seq(items.into_iter().map(|item| self.plant(item)).collect()),
            Raw::Map(entries) => Value::Map(self.plant_entries(entries)),
        };
        Node { id, place: place(raw.defined), value }
    }

    fn plant_entries(&mut self, entries: Vec<(Spanned<String>, Spanned<Raw>)>) -> Vec<Entry> {
        let mut planted: Vec<Entry> = Vec::with_capacity(entries.len());
        for (key, raw) in entries {
            let entry = Entry { key_place: place(key.defined), key: key.value, node: self.plant(raw) };
            if let Some(first) = planted.iter().find(|e| e.key == entry.key) {
                self.doubled.push((entry.node.id, first.key_place));
            }
            planted.push(entry);
        }
        planted
    }

    fn source(&self, location: &serde_saphyr::Location) -> Option<&str> {
        let span = location.span();
        let start = usize::try_from(span.byte_offset()?).ok()?;
        let end = start.checked_add(usize::try_from(span.byte_len()?).ok()?)?;
        self.text.get(start..end)
    }
}
