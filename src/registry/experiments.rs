//! Experiments in the book: how far each one is, which of its variants were stopped, and with which weights it ran when.
//!
//! An experiment is defined by the files, or came through the API with its definition. One of the files runs unless the book says
//! something else. Its name is part of who gets what, so one that is over is never begun again under it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    Book, Declared, Deed, Files, HISTORY_MAX, Kind, NewVersion, Refusal, Shelf, apply::Desk, content_sha256, rfc3339,
};

/// Changes of weights of one experiment; each is a case of its own for the check of its split.
const EPOCHS_MAX: usize = 500;
/// The name that a control has where nothing else is configured.
const CONTROL: &str = "control";

/// An experiment: how far it is, and how that came.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Trial {
    /// What a file would say of it; `None` where a file does.
    pub definition: Option<Value>,
    /// How far it is.
    pub state: TrialState,
    /// The weights that it ran with, the oldest first. Those of a stopped variant count for the control.
    pub epochs: Vec<Epoch>,
    /// Variants that were stopped: their units are the control's.
    pub halted: BTreeMap<String, Halted>,
    /// What happened, the oldest first.
    pub history: Vec<TrialEvent>,
    /// What another build wrote.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

/// How far an experiment is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrialState {
    /// It has not begun.
    Draft,
    /// Units are in its variants.
    #[default]
    Running,
    /// Nobody is in a variant for now.
    Paused,
    /// It is over, and nothing came of it.
    Stopped,
    /// It is over, and what a variant did is live.
    Promoted {
        /// The variant.
        variant: String,
        /// The version of the model that went live.
        version: String,
    },
}

/// A time in which weights did not change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// Since when.
    #[serde(with = "rfc3339")]
    pub at: Timestamp,
    /// By variant.
    pub weights: BTreeMap<String, f64>,
}

/// Who stopped a variant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Halted {
    /// When.
    #[serde(with = "rfc3339")]
    pub at: Timestamp,
    /// Who.
    pub by: String,
    /// Why; may be empty.
    #[serde(default)]
    pub reason: String,
}

/// Something that happened to an experiment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrialEvent {
    /// When.
    #[serde(with = "rfc3339")]
    pub at: Timestamp,
    /// Who did it.
    pub by: String,
    /// What.
    pub what: TrialWhat,
    /// The variant that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// The version of the model that went live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Weights from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<BTreeMap<String, f64>>,
    /// Why; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The client's name for what it did, so that it can ask again without doing it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// What can happen to an experiment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrialWhat {
    /// It came through the API.
    Created,
    /// It began.
    Started,
    /// It began again after a pause.
    Resumed,
    /// It was paused.
    Paused,
    /// It was ended.
    Stopped,
    /// Its weights changed.
    Weighted,
    /// A variant was stopped.
    Halted,
    /// A variant went live.
    Promoted,
}

/// What can be done with an experiment.
#[derive(Debug, Clone, PartialEq)]
pub enum TrialDeed {
    /// Takes it in. The same one again changes nothing.
    Create {
        /// What a file would say of it.
        definition: Value,
        /// Whether it begins at once.
        start: bool,
    },
    /// Begins, or goes on after a pause.
    Start,
    /// Has the live version serve everybody for now.
    Pause {
        /// Why.
        reason: String,
    },
    /// Ends it.
    Stop {
        /// Why.
        reason: String,
    },
    /// Stops one variant: its units are the control's from now on.
    Halt {
        /// The variant.
        variant: String,
        /// Why.
        reason: String,
    },
    /// Makes what a variant does the live version of the model, and ends the experiment.
    Promote {
        /// The variant.
        variant: String,
        /// Why.
        reason: String,
    },
    /// Changes weights; those that are not named stay.
    SetWeights {
        /// By variant.
        weights: BTreeMap<String, f64>,
        /// Why.
        reason: String,
    },
}

/// An experiment of a file, and the weights that it runs with.
#[derive(Debug, Clone, PartialEq)]
pub struct NotedTrial {
    /// Its name.
    pub name: String,
    /// By variant.
    pub weights: BTreeMap<String, f64>,
}

impl TrialState {
    /// Its word in the API and in messages.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            TrialState::Draft => "draft",
            TrialState::Running => "running",
            TrialState::Paused => "paused",
            TrialState::Stopped => "stopped",
            TrialState::Promoted { .. } => "promoted",
        }
    }

    /// Whether it can never run again.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        matches!(self, TrialState::Stopped | TrialState::Promoted { .. })
    }
}

impl Trial {
    /// Since when it runs; `None` when it never did.
    #[must_use]
    pub fn started_at(&self) -> Option<Timestamp> {
        self.epochs.first().map(|epoch| epoch.at)
    }

    /// Whether a client did something under this name before, and the variant or version that it was about.
    #[must_use]
    pub fn done_as(&self, key: &str) -> Option<Option<&str>> {
        let event = self.history.iter().rfind(|event| event.key.as_deref() == Some(key))?;
        Some(event.version.as_deref().or(event.variant.as_deref()))
    }

    /// The weights that `definition` comes to: a stopped variant has none, and the control has them too.
    #[must_use]
    pub fn weights(&self, definition: &Value) -> BTreeMap<String, f64> {
        let mut weights = weights(definition);
        let control = control(definition);
        for halted in self.halted.keys() {
            let Some(weight) = weights.get_mut(halted) else { continue };
            let freed = std::mem::take(weight);
            if let Some(control) = control.and_then(|control| weights.get_mut(control)) {
                *control += freed;
            }
        }
        weights
    }

    fn note(&mut self, event: TrialEvent) {
        self.history.push(event);
        let surplus = self.history.len().saturating_sub(HISTORY_MAX);
        self.history.drain(..surplus);
    }

    fn begin_epoch(&mut self, at: Timestamp, weights: BTreeMap<String, f64>) {
        if self.epochs.len() < EPOCHS_MAX {
            self.epochs.push(Epoch { at, weights });
        }
    }
}

/// The weights that a definition says.
fn weights(definition: &Value) -> BTreeMap<String, f64> {
    let of = |weight: &Value| weight.as_f64().or_else(|| weight.as_str()?.parse().ok()).unwrap_or(0.0);
    let variants = definition["variants"].as_object().into_iter().flatten();
    variants.map(|(name, variant)| (name.clone(), of(&variant["weight"]))).collect()
}

/// The variant that the others are compared with: the one that is named, else `control`, else the first.
fn control(definition: &Value) -> Option<&str> {
    let variants = definition["variants"].as_object()?;
    let named = definition["control"].as_str();
    let usual = || variants.contains_key(CONTROL).then_some(CONTROL);
    named.or_else(usual).or_else(|| variants.keys().map(String::as_str).min())
}

impl Book {
    /// What defines an experiment: the files, else what came through the API.
    #[must_use]
    pub fn experiment<'b>(&'b self, name: &str, files: &'b Files) -> Option<&'b Value> {
        files.experiments.get(name).or_else(|| self.experiments.get(name)?.definition.as_ref())
    }

    /// Gives what was done last with an experiment the client's name for it.
    pub fn name_last_of_experiment(&mut self, name: &str, key: &str) {
        if let Some(event) = self.experiments.get_mut(name).and_then(|trial| trial.history.last_mut()) {
            event.key = Some(key.to_owned());
        }
    }
}

/// Writes down the weights that experiments of files run with.
pub(super) fn note(book: &mut Book, noted: &[NotedTrial], now: Timestamp) {
    for NotedTrial { name, weights } in noted {
        let trial = book.experiments.entry(name.clone()).or_default();
        let is_known = trial.epochs.last().is_some_and(|epoch| epoch.weights == *weights);
        if trial.state == TrialState::Running && !is_known {
            trial.begin_epoch(now, weights.clone());
        }
    }
}

/// One experiment, with all that a deed needs to know.
pub(super) struct Bench<'a> {
    pub(super) book: &'a mut Book,
    pub(super) files: &'a Files,
    pub(super) name: &'a str,
    pub(super) now: Timestamp,
    pub(super) who: &'a str,
}

impl Bench<'_> {
    /// The variant or version that it was about.
    pub(super) fn apply(&mut self, deed: &TrialDeed) -> Result<Option<String>, Refusal> {
        match deed {
            TrialDeed::Create { definition, start } => self.create(definition, *start),
            TrialDeed::Start => self.start(),
            TrialDeed::Pause { reason } => self.pause(reason),
            TrialDeed::Stop { reason } => self.stop(reason),
            TrialDeed::Halt { variant, reason } => self.halt(variant, reason),
            TrialDeed::Promote { variant, reason } => self.promote(variant, reason),
            TrialDeed::SetWeights { weights, reason } => self.set_weights(weights, reason),
        }
    }

    fn create(&mut self, definition: &Value, start: bool) -> Result<Option<String>, Refusal> {
        let name = self.name;
        if !definition.is_object() {
            return Err(Refusal::Wrong("an experiment's definition is a map, as in the configuration".to_owned()));
        }
        if self.files.experiments.contains_key(name) {
            return Err(Refusal::Conflict(format!("a file defines the experiment `{name}`; change it there")));
        }
        match self.book.experiments.get(name) {
            Some(known) if known.definition.as_ref() != Some(definition) || known.state.is_over() => {
                return Err(Refusal::Conflict(format!(
                    "there is or was an experiment `{name}`, and the name decides who gets what; choose another one"
                )));
            }
            Some(_) => {}
            None => {
                let (definition, state) = (Some(definition.clone()), TrialState::Draft);
                let trial = Trial { definition, state, ..Trial::default() };
                self.book.experiments.insert(name.to_owned(), trial);
                self.note(TrialWhat::Created, "", |_| {});
            }
        }
        if start { self.start() } else { Ok(None) }
    }

    fn start(&mut self) -> Result<Option<String>, Refusal> {
        let what = match self.going_on()?.0.state {
            TrialState::Running => return Ok(None),
            TrialState::Draft => TrialWhat::Started,
            _ => TrialWhat::Resumed,
        };
        self.trial().state = TrialState::Running;
        let weights = self.begin_epoch()?;
        self.note(what, "", |event| event.weights = Some(weights));
        Ok(None)
    }

    fn pause(&mut self, reason: &str) -> Result<Option<String>, Refusal> {
        match self.going_on()?.0.state {
            TrialState::Paused => return Ok(None),
            TrialState::Draft => return Err(self.not_begun()),
            _ => self.trial().state = TrialState::Paused,
        }
        self.note(TrialWhat::Paused, reason, |_| {});
        Ok(None)
    }

    fn stop(&mut self, reason: &str) -> Result<Option<String>, Refusal> {
        if self.book.experiments.get(self.name).is_some_and(|trial| trial.state == TrialState::Stopped) {
            return Ok(None);
        }
        self.going_on()?;
        self.trial().state = TrialState::Stopped;
        self.note(TrialWhat::Stopped, reason, |_| {});
        Ok(None)
    }

    fn halt(&mut self, variant: &str, reason: &str) -> Result<Option<String>, Refusal> {
        let (trial, definition) = self.going_on()?;
        self.must_have(&definition, variant)?;
        if trial.state == TrialState::Draft {
            return Err(self.not_begun());
        }
        if control(&definition) == Some(variant) {
            let name = self.name;
            return Err(Refusal::Conflict(format!("`{variant}` is the control of `{name}`; stop the experiment")));
        }
        if trial.halted.contains_key(variant) {
            return Ok(Some(variant.to_owned()));
        }
        let halted = Halted { at: self.now, by: self.who.to_owned(), reason: reason.to_owned() };
        self.trial().halted.insert(variant.to_owned(), halted);
        let weights = self.begin_epoch()?;
        self.note(TrialWhat::Halted, reason, |event| {
            event.variant = Some(variant.to_owned());
            event.weights = Some(weights);
        });
        Ok(Some(variant.to_owned()))
    }

    fn set_weights(&mut self, wanted: &BTreeMap<String, f64>, reason: &str) -> Result<Option<String>, Refusal> {
        let (mut trial, mut definition) = self.going_on()?;
        if self.files.experiments.contains_key(self.name) {
            return Err(Refusal::Conflict(format!(
                "a file defines `{name}`; change `experiments.{name}.variants` there, which is live within a second",
                name = self.name
            )));
        }
        for (variant, weight) in wanted {
            self.must_have(&definition, variant)?;
            if !weight.is_finite() || *weight < 0.0 {
                return Err(Refusal::Wrong(format!("the weight of `{variant}` must be 0 or more, got {weight}")));
            }
            definition["variants"][variant]["weight"] = Value::from(*weight);
        }
        if trial.epochs.len() >= EPOCHS_MAX {
            return Err(Refusal::Conflict(format!("weights change at most {EPOCHS_MAX} times; create another one")));
        }
        if trial.weights(&definition) == trial.weights(trial.definition.as_ref().unwrap_or(&Value::Null)) {
            return Ok(None);
        }
        trial.definition = Some(definition.clone());
        let weights = trial.weights(&definition);
        if trial.state == TrialState::Running {
            trial.begin_epoch(self.now, weights.clone());
        }
        *self.trial() = trial;
        self.note(TrialWhat::Weighted, reason, |event| event.weights = Some(weights));
        Ok(None)
    }

    fn promote(&mut self, variant: &str, reason: &str) -> Result<Option<String>, Refusal> {
        let (trial, definition) = self.going_on()?;
        self.must_have(&definition, variant)?;
        if trial.state == TrialState::Draft {
            return Err(self.not_begun());
        }
        let version = self.deploy(&definition, variant, reason)?;
        self.trial().state = TrialState::Promoted { variant: variant.to_owned(), version: version.clone() };
        self.note(TrialWhat::Promoted, reason, |event| {
            event.variant = Some(variant.to_owned());
            event.version = Some(version.clone());
        });
        Ok(Some(version))
    }

    /// Makes the version live that does what the variant did, and says which that is.
    fn deploy(&mut self, definition: &Value, variant: &str, reason: &str) -> Result<String, Refusal> {
        let model = definition["model"].as_str().unwrap_or_default();
        let said = &definition["variants"][variant];
        let declared = self.files.models.get(model);
        let none = || Refusal::NotFound(format!("no model is named `{model}`"));
        let shelf = self.book.shelf(Kind::Models, model).cloned().unwrap_or_default();
        let live = shelf.effective(declared).map(|effective| effective.version.to_owned()).ok_or_else(none)?;
        let base = said["version"].as_str().unwrap_or(&live).to_owned();
        let is_another = ["target", "prompt", "parameters"].iter().any(|key| is_given(&said[*key]));
        let new = match is_another {
            false => None,
            true => {
                let content = content_of(&shelf, declared, &base)
                    .ok_or_else(|| Refusal::NotFound(format!("the model `{model}` has no version `{base}`")))?;
                Some(self.with_variant(content, said)?)
            }
        };
        let (kind, name, now, who) = (Kind::Models, model, self.now, self.who);
        let shelf = self.book.shelf_mut(kind, model);
        let mut desk = Desk { kind, name, declared, shelf, now, who };
        let version = match new {
            None => base,
            Some(content) => {
                let version = desk.free_name(&format!("{}-{variant}", self.name), &content_sha256(&content));
                desk.apply(&Deed::AddVersion(NewVersion {
                    version: Some(version.clone()),
                    content,
                    description: format!("the variant {variant} of the experiment {}", self.name),
                    tags: BTreeMap::new(),
                    parent: Some(base),
                }))?;
                version
            }
        };
        let promoted = format!("{variant} of {} was promoted", self.name);
        let reason = if reason.is_empty() { promoted } else { format!("{promoted}: {reason}") };
        desk.apply(&Deed::Deploy { version: version.clone(), reason })?;
        Ok(version)
    }

    /// A version's content with what the variant changes about it.
    fn with_variant(&self, mut content: Value, said: &Value) -> Result<Value, Refusal> {
        if content.to_string().contains("${") {
            return Err(Refusal::Conflict(
                "the version that the variant builds on names variables, which are each gateway's own; write the \
                 variant as a version of the model in the file, and deploy that"
                    .to_owned(),
            ));
        }
        let Some(map) = content.as_object_mut() else {
            return Err(Refusal::Conflict("the version that the variant builds on is no map".to_owned()));
        };
        if let Some(target) = said["target"].as_str() {
            map.shift_remove("targets");
            map.insert("target".to_owned(), Value::from(target));
        }
        if let Some(prompt) = said["prompt"].as_str() {
            map.insert("prompt".to_owned(), Value::from(self.pinned(prompt)?));
        }
        if let Some(parameters) = said["parameters"].as_object().filter(|parameters| !parameters.is_empty()) {
            // A variant's parameters win over the client's, and only what was forced before wins over them.
            let mut forced = parameters.clone();
            forced.extend(map.get("force").and_then(Value::as_object).cloned().unwrap_or_default());
            map.insert("force".to_owned(), Value::Object(forced));
        }
        Ok(content)
    }

    /// `name@version` of a prompt, as it serves now: a version of a model does not change with its prompts.
    fn pinned(&self, prompt: &str) -> Result<String, Refusal> {
        if prompt.contains('@') {
            return Ok(prompt.to_owned());
        }
        let declared = self.files.prompts.get(prompt);
        let nothing = Shelf::default();
        let shelf = self.book.shelf(Kind::Prompts, prompt).unwrap_or(&nothing);
        let live = shelf.effective(declared).map(|effective| format!("{prompt}@{}", effective.version));
        live.ok_or_else(|| Refusal::NotFound(format!("no prompt is named `{prompt}`")))
    }

    /// The experiment and its definition, where it is not over.
    fn going_on(&self) -> Result<(Trial, Value), Refusal> {
        let name = self.name;
        let definition = self.book.experiment(name, self.files).cloned();
        let definition = definition.ok_or_else(|| Refusal::NotFound(format!("no experiment is named `{name}`")))?;
        let trial = self.book.experiments.get(name).cloned().unwrap_or_default();
        match &trial.state {
            TrialState::Stopped => Err(Refusal::Conflict(format!(
                "the experiment `{name}` was stopped, and the name decides who gets what; create another one"
            ))),
            TrialState::Promoted { variant, .. } => {
                Err(Refusal::Conflict(format!("the experiment `{name}` is over: `{variant}` was promoted")))
            }
            _ => Ok((trial, definition)),
        }
    }

    fn not_begun(&self) -> Refusal {
        Refusal::Conflict(format!("the experiment `{}` has not begun; start it", self.name))
    }

    fn must_have(&self, definition: &Value, variant: &str) -> Result<(), Refusal> {
        let variants = definition["variants"].as_object();
        if variants.is_some_and(|variants| variants.contains_key(variant)) {
            return Ok(());
        }
        let mut known: Vec<&str> = variants.into_iter().flat_map(Map::keys).map(String::as_str).collect();
        known.sort_unstable();
        let (name, known) = (self.name, known.join(", "));
        Err(Refusal::NotFound(format!("the experiment `{name}` has no variant `{variant}`; it has {known}")))
    }

    /// What runs from now on.
    fn begin_epoch(&mut self) -> Result<BTreeMap<String, f64>, Refusal> {
        let (trial, definition) = self.going_on()?;
        let (weights, now) = (trial.weights(&definition), self.now);
        if trial.state == TrialState::Running {
            self.trial().begin_epoch(now, weights.clone());
        }
        Ok(weights)
    }

    fn trial(&mut self) -> &mut Trial {
        self.book.experiments.entry(self.name.to_owned()).or_default()
    }

    fn note(&mut self, what: TrialWhat, reason: &str, fill: impl FnOnce(&mut TrialEvent)) {
        let (by, reason) = (self.who.to_owned(), reason.to_owned());
        let (variant, version, weights, key) = (None, None, None, None);
        let mut event = TrialEvent { at: self.now, by, what, variant, version, weights, reason, key };
        fill(&mut event);
        self.trial().note(event);
    }
}

fn is_given(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Object(map) => !map.is_empty(),
        _ => true,
    }
}

/// What a version says, wherever it came from.
fn content_of(shelf: &Shelf, declared: Option<&Declared>, version: &str) -> Option<Value> {
    let registered = shelf.versions.get(version).map(|registered| &registered.content);
    registered.or_else(|| declared?.contents.get(version)).cloned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::registry::{Applied, Command, What};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_795_000_000 + second).expect("a time")
    }

    fn definition() -> Value {
        json!({ "model": "support", "variants": {
            "control": { "weight": 60 },
            "warm": { "weight": 30, "prompt": "greeting", "parameters": { "temperature": 0.7, "seed": 1 } },
            "larger": { "weight": 10, "version": "v2" },
        } })
    }

    /// The model has v1, which is live, and v2; the prompt's v1 is live.
    fn files() -> Files {
        let declared = |contents: Value| {
            let contents: BTreeMap<String, Value> = serde_json::from_value(contents).expect("contents");
            let versions = contents.iter().map(|(name, content)| (name.clone(), content_sha256(content))).collect();
            Declared { live: Some("v1".to_owned()), versions, contents, ..Declared::default() }
        };
        let support = declared(json!({
            "v1": { "targets": [{ "use": "p/a" }], "parameters": { "top_p": 0.9 }, "force": { "seed": 7 } },
            "v2": { "target": "p/b" },
        }));
        let greeting = declared(json!({ "v1": { "system": "Hello." } }));
        Files {
            models: BTreeMap::from([("support".to_owned(), support)]),
            prompts: BTreeMap::from([("greeting".to_owned(), greeting)]),
            ..Files::default()
        }
    }

    /// A book, driven by hand.
    struct Hand {
        book: Book,
        files: Files,
        clock: i64,
    }

    impl Hand {
        /// With an experiment that came through the API.
        fn created(start: bool) -> Hand {
            let mut hand = Hand { book: Book::default(), files: files(), clock: 0 };
            hand.does(&TrialDeed::Create { definition: definition(), start });
            hand
        }

        /// With one that a file defines.
        fn of_a_file() -> Hand {
            let experiments = BTreeMap::from([("tone".to_owned(), definition())]);
            Hand { book: Book::default(), files: Files { experiments, ..files() }, clock: 0 }
        }

        fn tries(&mut self, deed: TrialDeed) -> Result<Applied, Refusal> {
            self.clock += 10;
            let command = Command::Trial { name: "tone".to_owned(), deed };
            self.book.apply(&command, &self.files, at(self.clock), "ann")
        }

        fn does(&mut self, deed: &TrialDeed) -> Option<String> {
            let applied = self.tries(deed.clone()).unwrap_or_else(|refusal| panic!("{deed:?}: {refusal}"));
            // It is kept as text.
            assert_eq!(Book::parse(&applied.book.to_json()).expect("a book"), applied.book);
            self.book = applied.book;
            applied.version
        }

        fn is_refused(&mut self, deed: &TrialDeed, words: &str) {
            let before = self.book.clone();
            let refusal = self.tries(deed.clone()).expect_err(words).to_string();
            assert!(refusal.contains(words), "{deed:?}: {refusal}");
            assert_eq!(self.book, before);
        }

        fn trial(&self) -> &Trial {
            &self.book.experiments["tone"]
        }

        fn state(&self) -> &'static str {
            self.trial().state.label()
        }

        fn told(&self) -> Vec<TrialWhat> {
            self.trial().history.iter().map(|event| event.what).collect()
        }

        fn live(&self) -> &str {
            &self.book.models["support"].live.as_ref().expect("a deployment").version
        }
    }

    fn pause() -> TrialDeed {
        TrialDeed::Pause { reason: String::new() }
    }

    fn stop() -> TrialDeed {
        TrialDeed::Stop { reason: String::new() }
    }

    fn halt(variant: &str) -> TrialDeed {
        TrialDeed::Halt { variant: variant.to_owned(), reason: "error_rate".to_owned() }
    }

    fn promote(variant: &str) -> TrialDeed {
        TrialDeed::Promote { variant: variant.to_owned(), reason: String::new() }
    }

    fn set(weights: &[(&str, f64)]) -> TrialDeed {
        let weights = weights.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect();
        TrialDeed::SetWeights { weights, reason: String::new() }
    }

    fn map(weights: &[(&str, f64)]) -> BTreeMap<String, f64> {
        weights.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect()
    }

    #[test]
    fn an_experiment_is_drafted_started_paused_resumed_and_stopped() {
        let mut hand = Hand::created(false);
        assert_eq!((hand.state(), hand.trial().started_at()), ("draft", None));
        hand.is_refused(&pause(), "has not begun");
        for (deed, state) in [
            (TrialDeed::Start, "running"),
            (TrialDeed::Start, "running"),
            (pause(), "paused"),
            (TrialDeed::Start, "running"),
            (stop(), "stopped"),
            (stop(), "stopped"),
        ] {
            hand.does(&deed);
            assert_eq!(hand.state(), state);
        }
        use TrialWhat::{Created, Paused, Resumed, Started, Stopped};
        assert_eq!(hand.told(), [Created, Started, Paused, Resumed, Stopped]);
        assert_eq!(hand.trial().epochs.len(), 2);
        hand.is_refused(&TrialDeed::Start, "was stopped");
        hand.is_refused(&promote("warm"), "was stopped");
        hand.is_refused(&TrialDeed::Create { definition: definition(), start: true }, "choose another one");
    }

    #[test]
    fn the_same_one_again_changes_nothing_and_another_one_is_refused() {
        let mut hand = Hand::created(true);
        let again = hand.tries(TrialDeed::Create { definition: definition(), start: true }).expect("the same");
        assert!(!again.changed);
        hand.is_refused(&TrialDeed::Create { definition: json!({ "model": "x" }), start: false }, "choose another one");
        let mut of_file = Hand::of_a_file();
        of_file.is_refused(&TrialDeed::Create { definition: definition(), start: true }, "change it there");
    }

    #[test]
    fn weights_change_through_the_api_where_no_file_says_them() {
        let mut hand = Hand::created(true);
        hand.does(&set(&[("warm", 40.0), ("control", 50.0)]));
        let now = map(&[("control", 50.0), ("larger", 10.0), ("warm", 40.0)]);
        assert_eq!(hand.trial().epochs.last().map(|epoch| &epoch.weights), Some(&now));
        assert!(!hand.tries(set(&[("warm", 40.0)])).expect("the same").changed);
        hand.is_refused(&set(&[("cold", 1.0)]), "no variant `cold`; it has control, larger, warm");
        hand.is_refused(&set(&[("warm", -1.0)]), "must be 0 or more");
        Hand::of_a_file().is_refused(&set(&[("warm", 1.0)]), "change `experiments.tone.variants` there");
    }

    #[test]
    fn a_stopped_variants_weight_is_the_controls() {
        let mut hand = Hand::of_a_file();
        hand.does(&halt("warm"));
        assert!(!hand.tries(halt("warm")).expect("the same").changed);
        let now = map(&[("control", 90.0), ("larger", 10.0), ("warm", 0.0)]);
        assert_eq!(hand.trial().epochs.last().map(|epoch| &epoch.weights), Some(&now));
        assert_eq!(hand.state(), "running");
        hand.is_refused(&halt("control"), "is the control");
    }

    #[test]
    fn weights_of_files_are_noted_once() {
        let mut hand = Hand::of_a_file();
        let noted = |weight| NotedTrial { name: "tone".to_owned(), weights: map(&[("control", weight)]) };
        for (weight, epochs) in [(50.0, 1), (50.0, 1), (60.0, 2)] {
            let command = Command::Note { experiments: vec![noted(weight)] };
            hand.book = hand.book.apply(&command, &hand.files, at(1), "steward").expect("noted").book;
            assert_eq!(hand.trial().epochs.len(), epochs);
        }
    }

    #[test]
    fn a_variant_that_names_a_version_deploys_that_one() {
        let mut hand = Hand::of_a_file();
        assert_eq!(hand.does(&promote("larger")).as_deref(), Some("v2"));
        assert_eq!((hand.live(), hand.state()), ("v2", "promoted"));
        assert!(hand.book.models["support"].versions.is_empty());
        hand.is_refused(&pause(), "`larger` was promoted");
    }

    #[test]
    fn a_variant_becomes_a_version_of_what_is_live_and_what_it_changes() {
        let mut hand = Hand::created(true);
        assert_eq!(hand.does(&promote("warm")).as_deref(), Some("tone-warm"));
        let shelf = &hand.book.models["support"];
        let registered = &shelf.versions["tone-warm"];
        // What was forced before wins over the variant, as it did while the experiment ran.
        let expected = json!({
            "targets": [{ "use": "p/a" }], "parameters": { "top_p": 0.9 },
            "prompt": "greeting@v1", "force": { "temperature": 0.7, "seed": 7 },
        });
        assert_eq!(registered.content, expected);
        assert_eq!(registered.parent.as_deref(), Some("v1"));
        let told: Vec<What> = shelf.history.iter().map(|event| event.what).collect();
        assert_eq!((hand.live(), told), ("tone-warm", vec![What::Registered, What::Deployed]));

        let (kind, name) = (Kind::Models, "support".to_owned());
        let back = Command::To { kind, name, deed: Deed::Rollback { reason: String::new() } };
        hand.book = hand.book.apply(&back, &hand.files, at(100), "ann").expect("rolled back").book;
        assert_eq!((hand.live(), hand.state()), ("v1", "promoted"));
    }

    #[test]
    fn a_versions_name_that_is_taken_gets_a_number() {
        let mut hand = Hand::created(true);
        let new = NewVersion {
            version: Some("tone-warm".to_owned()),
            content: json!({ "target": "p/c" }),
            ..NewVersion::default()
        };
        let add = Command::To { kind: Kind::Models, name: "support".to_owned(), deed: Deed::AddVersion(new) };
        hand.book = hand.book.apply(&add, &hand.files, at(50), "ann").expect("added").book;
        assert_eq!(hand.does(&promote("warm")).as_deref(), Some("tone-warm-2"));
    }

    #[test]
    fn a_version_with_variables_is_not_promoted_from() {
        let mut hand = Hand::created(true);
        let support = hand.files.models.get_mut("support").expect("the model");
        support.contents.insert("v1".to_owned(), json!({ "target": "${PROVIDER}/a" }));
        hand.is_refused(&promote("warm"), "names variables");
        assert_eq!(hand.does(&promote("larger")).as_deref(), Some("v2"));
    }

    #[test]
    fn nothing_can_be_done_with_what_is_not_there() {
        let mut hand = Hand { book: Book::default(), files: files(), clock: 0 };
        for deed in [TrialDeed::Start, pause(), stop(), halt("warm"), promote("warm"), set(&[])] {
            hand.is_refused(&deed, "no experiment is named `tone`");
        }
    }
}
