//! How the registry's book lies over a configuration: its versions stand beside those of the files, and what was deployed is live.
//!
//! It is laid over after variables were filled in: what came through the API is literal. What the files say without it is kept
//! ([`InRegistry::files`]), since a decision of theirs that came later wins, and since a version in a file never changes either.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::{
    config::{
        problems::{Problem, Problems},
        sources::Sources,
        tree::{Document, Path},
        validate::prompts::{FOLDER, PARTIALS_MAX},
    },
    policy::{
        experiment::{Experiment, Unit, Variant},
        prompt::{self, Include},
    },
    registry::{
        Book, Declared, Files, Kind, PARTIALS, Rollout, Shelf, TrialState, changed_partials, content_sha256, partials,
        short,
    },
    wire::revision::Revision,
};

const KINDS: [Kind; 2] = [Kind::Models, Kind::Prompts];
/// What of a prompt's version may include files.
const PARTS: [&str; 5] = ["system", "developer", "before_user", "after_user", "messages"];

/// What the registry is to a configuration.
#[derive(Debug, Clone, Default)]
pub struct InRegistry {
    /// The revision that is part of it; `None` where nothing was ever registered.
    pub revision: Option<Arc<Revision>>,
    /// What that says.
    pub book: Arc<Book>,
    /// What the files say without it.
    pub files: Arc<Files>,
    /// Whether a version in a file may change.
    pub changed_versions: ChangedVersions,
    /// How often guardrails are looked at.
    pub guardrails_every: Duration,
    /// Roll-outs on their way.
    rollouts: HashMap<(Kind, Box<str>), Choice>,
}

/// What happens when a version in a file changed after it served.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ChangedVersions {
    /// The configuration is refused.
    #[default]
    Refuse,
    /// It counts from now on, and the history says so.
    Allow,
}

/// A version by user, while a roll-out is on its way.
#[derive(Debug, Clone)]
struct Choice {
    from: Arc<str>,
    to: Arc<str>,
    deal: Experiment,
}

impl InRegistry {
    /// The same with another book, to tell what that says; roll-outs go on as they serve.
    #[must_use]
    pub fn with_book(&self, book: Arc<Book>) -> InRegistry {
        InRegistry { book, ..self.clone() }
    }

    /// The number of its revision; 0 where nothing was ever registered.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.revision.as_ref().map_or(0, |revision| revision.number)
    }

    /// What the book has of one model or prompt.
    #[must_use]
    pub fn shelf(&self, kind: Kind, name: &str) -> Option<&Shelf> {
        self.book.shelf(kind, name)
    }

    /// The roll-out of one model or prompt that is on its way here.
    #[must_use]
    pub fn rollout(&self, kind: Kind, name: &str) -> Option<&Rollout> {
        self.shelf(kind, name)?.running(self.files.get(kind, name))
    }

    /// The version that `user` gets instead of the live one; `None` where no roll-out is on its way.
    ///
    /// The same on every gateway. As the share grows, users come to the new version, and none goes back.
    #[must_use]
    pub fn choose(&self, kind: Kind, name: &str, user: &str) -> Option<&Arc<str>> {
        if self.rollouts.is_empty() {
            return None;
        }
        let choice = self.rollouts.get(&(kind, name.into()))?;
        let is_new = choice.deal.assign(user).is_some_and(|variant| &*variant.name == "to");
        Some(if is_new { &choice.to } else { &choice.from })
    }
}

impl Choice {
    fn of(kind: Kind, name: &str, rollout: &Rollout) -> Choice {
        let salt = format!("rollout:{}/{name}", kind.section());
        let variant = |name: &str, weight| Variant {
            name: name.into(),
            weight,
            version: None,
            target: None,
            prompt: None,
            parameters: Vec::new(),
        };
        let variants = vec![variant("from", 100.0 - rollout.weight()), variant("to", rollout.weight())];
        let deal = Experiment::new(salt.as_str().into(), None, Unit::User, variants);
        Choice { from: rollout.from.as_str().into(), to: rollout.to.as_str().into(), deal }
    }
}

// === laying over ===

/// A document's versions as they were typed.
pub(super) struct Typed {
    versions: Vec<(Kind, String, String, Value)>,
}

impl Typed {
    /// Before variables are filled in: their values are each gateway's own, and no part of a version.
    pub(super) fn of(document: &Document) -> Typed {
        let mut versions = Vec::new();
        for kind in KINDS {
            let section = Path::default().key(kind.section());
            for name in document.keys(&section) {
                let at = section.key(name).key("versions");
                for version in document.keys(&at) {
                    let content = document.json(&at.key(version)).unwrap_or_default();
                    versions.push((kind, name.to_owned(), version.to_owned(), content));
                }
            }
        }
        Typed { versions }
    }

    /// What the files say, once variables are filled in.
    fn files(self, document: &Document, sources: &Sources<'_>) -> Files {
        let experiments = Path::default().key("experiments");
        let definition = |name: &&str| Some(((*name).to_owned(), document.json(&experiments.key(name))?));
        let experiments = document.keys(&experiments).iter().filter_map(definition).collect();
        let mut files = Files { experiments, ..Files::default() };
        for kind in KINDS {
            let section = Path::default().key(kind.section());
            let declared = |name: &&str| ((*name).to_owned(), declared(document, &section.key(name)));
            let all: BTreeMap<String, Declared> = document.keys(&section).iter().map(declared).collect();
            match kind {
                Kind::Models => files.models = all,
                Kind::Prompts => files.prompts = all,
            }
        }
        for (kind, name, version, mut content) in self.versions {
            let at = version_path(kind, &name, &version);
            read_in(&mut content, document, &at, sources);
            if kind == Kind::Prompts {
                include(&mut content, document, &at, sources);
            }
            let all = match kind {
                Kind::Models => &mut files.models,
                Kind::Prompts => &mut files.prompts,
            };
            if let Some(declared) = all.get_mut(&name) {
                declared.versions.insert(version.clone(), content_sha256(&content));
                declared.contents.insert(version, content);
            }
        }
        files
    }
}

fn declared(document: &Document, at: &Path) -> Declared {
    let text = |key: &str| document.json(&at.key(key)).and_then(|value| value.as_str().map(str::to_owned));
    let versions = document.keys(&at.key("versions"));
    let only = || versions.first().filter(|_| versions.len() == 1).map(|only| (*only).to_owned());
    let pin = match document.json(&at.key("pin")) {
        Some(Value::Bool(pin)) => pin,
        Some(Value::String(word)) => super::forms::switch(&word).unwrap_or(false),
        _ => false,
    };
    Declared { live: text("live").or_else(only), pin, ..Declared::default() }
}

/// Puts the text of `file:` where it will be: a version is what it says, not where that stands.
fn read_in(content: &mut Value, document: &Document, at: &Path, sources: &Sources<'_>) {
    let path = document.json(&at.key("file"));
    let (Some(Value::String(path)), Value::Object(map)) = (path, content) else { return };
    // What cannot be read is a problem that is reported elsewhere.
    let Ok(text) = sources.peek(&path) else { return };
    map.shift_remove("file");
    map.insert("system".to_owned(), Value::String(text));
}

fn include(content: &mut Value, document: &Document, at: &Path, sources: &Sources<'_>) {
    // A tag may stand in a variable's value; the text of `file:` is in `content` alone.
    let filled = document.json(at).unwrap_or_default();
    bring_along(content, &filled, sources);
}

/// Puts the texts of files that a prompt includes beside it, and those that these include, where it does not bring them along:
/// they are what it says, too. `filled` may name more of them.
pub(super) fn bring_along(content: &mut Value, filled: &Value, sources: &Sources<'_>) {
    let Value::Object(map) = content else { return };
    let mut partials = match map.get(PARTIALS) {
        Some(Value::Object(own)) => own.clone(),
        None | Some(Value::Null) => Map::new(),
        // What else stands there is a problem that is reported elsewhere.
        Some(_) => return,
    };
    let mut texts = Vec::new();
    for part in PARTS {
        strings(&filled[part], &mut texts);
        map.get(part).into_iter().for_each(|value| strings(value, &mut texts));
    }
    let mut seen = BTreeSet::new();
    while let Some(text) = texts.pop() {
        for Include { path, .. } in prompt::includes(&text).unwrap_or_default() {
            // More is a problem that is reported elsewhere.
            if seen.len() == PARTIALS_MAX || !seen.insert(path.clone()) {
                continue;
            }
            if !partials.contains_key(&path) {
                let Ok(text) = sources.peek_within(FOLDER, &path) else { continue };
                partials.insert(path.clone(), Value::String(text));
            }
            strings(&partials[&path], &mut texts);
        }
    }
    if !partials.is_empty() {
        map.insert(PARTIALS.to_owned(), Value::Object(partials));
    }
}

fn strings(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => found.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| strings(item, found)),
        Value::Object(map) => map.values().for_each(|value| strings(value, found)),
        _ => {}
    }
}

fn version_path(kind: Kind, name: &str, version: &str) -> Path {
    Path::default().key(kind.section()).key(name).key("versions").key(version)
}

/// Lays a revision of the registry over `document`, whose variables are filled in.
///
/// # Errors
/// When the revision's text is no book.
pub(super) fn lay_over(
    document: &mut Document,
    typed: Typed,
    revision: Option<&Arc<Revision>>,
    sources: &mut Sources<'_>,
) -> Result<InRegistry, Problem> {
    let files = typed.files(document, sources);
    let mut found = InRegistry { files: Arc::new(files), ..InRegistry::default() };
    let Some(revision) = revision else { return Ok(found) };
    let book = Book::parse(&revision.text).map_err(|error| Problem {
        file: revision.label(),
        place: Default::default(),
        path: String::new(),
        message: format!("is no registry that this build can read: {error}"),
    })?;
    let mut over = Map::new();
    for kind in KINDS {
        let shelves: Map<String, Value> = book
            .shelves(kind)
            .iter()
            .filter_map(|(name, shelf)| Some((name.clone(), laid(shelf, found.files.get(kind, name))?)))
            .collect();
        if !shelves.is_empty() {
            over.insert(kind.section().to_owned(), Value::Object(shelves));
        }
        for (name, shelf) in book.shelves(kind) {
            let Some(rollout) = shelf.running(found.files.get(kind, name)) else { continue };
            sources.note(
                format!("{}/{name} {} {} {}", kind.section(), rollout.from, rollout.to, rollout.weight()).as_bytes(),
            );
            found.rollouts.insert((kind, name.as_str().into()), Choice::of(kind, name, rollout));
        }
    }
    let experiments = trials(&book, &found.files, sources);
    if !experiments.is_empty() {
        over.insert("experiments".to_owned(), Value::Object(experiments));
    }
    if !over.is_empty() {
        let over = Value::Object(over);
        // What changes nothing for calls, such as a seal, leaves the configuration's hash as it is.
        sources.note(over.to_string().as_bytes());
        document.merge(revision.label(), over);
    }
    found.book = Arc::new(book);
    found.revision = Some(revision.clone());
    Ok(found)
}

/// Experiments that came through the API, be it that they run or not. Those of files stand over them.
fn trials(book: &Book, files: &Files, sources: &mut Sources<'_>) -> Map<String, Value> {
    let mut over = Map::new();
    for (name, trial) in &book.experiments {
        let halted: Vec<&str> = trial.halted.keys().map(String::as_str).collect();
        if trial.state != TrialState::Running || !halted.is_empty() {
            sources.note(format!("experiments/{name} {} {}", trial.state.label(), halted.join(" ")).as_bytes());
        }
        if let Some(definition) = trial.definition.as_ref().filter(|_| !files.experiments.contains_key(name)) {
            over.insert(name.clone(), definition.clone());
        }
    }
    over
}

/// What of a shelf stands over the files; `None` where that is nothing. Versions that no file has and nobody deployed wait.
fn laid(shelf: &Shelf, declared: Option<&Declared>) -> Option<Value> {
    let live = shelf.effective(declared)?;
    let in_file = |version: &str| declared.is_some_and(|declared| declared.versions.contains_key(version));
    let versions: Map<String, Value> = shelf
        .versions
        .iter()
        .filter(|(version, _)| !in_file(version))
        .map(|(version, registered)| (version.clone(), registered.content.clone()))
        .collect();
    // The only version of a file is live without saying so, and stays it beside others.
    let is_implied = declared.is_some_and(|declared| declared.versions.len() == 1);
    match live.deployed || is_implied {
        _ if versions.is_empty() && !live.deployed => None,
        true => Some(json!({ "live": live.version, "versions": versions })),
        false => Some(json!({ "versions": versions })),
    }
}

/// Refuses versions in files that are not what they were.
pub(super) fn check_versions(document: &Document, registry: &InRegistry, problems: &mut Problems) {
    let book = &registry.book;
    let all = [(Kind::Models, &registry.files.models), (Kind::Prompts, &registry.files.prompts)];
    for (kind, name, declared) in all.iter().flat_map(|(kind, all)| all.iter().map(|(name, one)| (*kind, name, one))) {
        let Some(shelf) = book.shelf(kind, name) else { continue };
        for (version, sha256) in &declared.versions {
            let registered = shelf.versions.get(version).map(|known| (&known.sha256, known.created_at));
            let seal = shelf.seals.get(version).filter(|_| registry.changed_versions == ChangedVersions::Refuse);
            let sealed = || seal.map(|seal| (&seal.sha256, seal.at));
            if let Some((known, at)) = registered.or_else(sealed).filter(|(known, _)| *known != sha256) {
                let now = declared.contents.get(version).map(partials).unwrap_or_default();
                let files = seal.map_or_else(String::new, |seal| changed_partials(&seal.partials, &now));
                let message = files + &changed(shelf, declared, version, known, at);
                problems.push(document.problem(&version_path(kind, name, version), message));
            }
        }
    }
}

fn changed(shelf: &Shelf, declared: &Declared, version: &str, sha256: &str, at: Timestamp) -> String {
    let number = |name: &String| name.strip_prefix('v').and_then(|digits| digits.parse::<u64>().ok());
    let names = shelf.versions.keys().chain(shelf.seals.keys()).chain(declared.versions.keys());
    let next = names.filter_map(number).max().unwrap_or(1) + 1;
    format!(
        "{version} was registered as {} on {}, and a version never changes: call it v{next}, or allow changes with \
         `registry: {{ changed_versions: allow }}`",
        short(sha256),
        at.strftime("%Y-%m-%d")
    )
}
