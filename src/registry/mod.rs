//! The registry: versions of models and prompts that came through the API, and what is live of them. One document, pure.
//!
//! A [`Book`] is everything that was registered, as one JSON document that a store keeps revision by revision. [`Book::apply`] makes
//! the next one out of a [`Command`]; it takes facts and time as arguments and never asks for either. How a book lies over a
//! configuration is decided in `config`, who may command in `admin`.
//!
//! - **A version never changes.** Its content's hash is kept ([`Registered::sha256`]); a version in a file is sealed with it too
//!   ([`Shelf::seals`]).
//! - **What is live is a decision with a date.** A file that says something else than it said then was changed later: it wins.
//! - **An experiment of a file runs** unless the book says something else ([`Trial`]).
//! - **A roll-out moves users forward only.** Its weights rise, and a user who got the new version keeps it.

mod apply;
mod content;
mod diff;
mod experiments;
mod rollout;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use self::{
    apply::{Applied, Command, Deed, NewVersion, Refusal, SealedVersion},
    content::{PARTIALS, canonical, changed_partials, compare_versions, content_sha256, partials, short},
    diff::{Difference, Field, differences, unified},
    experiments::{Epoch, Halted, NotedTrial, Trial, TrialDeed, TrialEvent, TrialState, TrialWhat},
    rollout::{Rollout, RolloutState, Stage, Stages},
};

/// Events that a shelf keeps; older ones go, and stay in the audit log.
pub const HISTORY_MAX: usize = 200;
/// Deployments that can be rolled back, one after the other.
pub const TRAIL_MAX: usize = 50;

/// What a shelf holds versions of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An alias that clients name.
    Models,
    /// A prompt.
    Prompts,
}

/// Everything that was registered. Fields that this build does not know are kept as they are.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Book {
    /// Models by alias.
    pub models: BTreeMap<String, Shelf>,
    /// Prompts by name.
    pub prompts: BTreeMap<String, Shelf>,
    /// Experiments by name.
    pub experiments: BTreeMap<String, Trial>,
    /// What another build wrote.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

/// One model or prompt: its versions, which of them is live, and how that came.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Shelf {
    /// Versions that came through the API.
    pub versions: BTreeMap<String, Registered>,
    /// Versions of files, as they were when they first served.
    pub seals: BTreeMap<String, Seal>,
    /// What was deployed last; without it, the file says what is live.
    pub live: Option<Deployment>,
    /// What was live before, the oldest first: what a rollback takes from.
    pub trail: Vec<Deployment>,
    /// The last gradual roll-out.
    pub rollout: Option<Rollout>,
    /// A deployment that is due later.
    pub scheduled: Option<Scheduled>,
    /// What happened, the oldest first.
    pub history: Vec<Event>,
    /// What another build wrote.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

/// A version that came through the API.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Registered {
    /// What a file would say of it, with the texts that it includes ([`PARTIALS`]): gateways have other files, and those change.
    pub content: Value,
    /// [`content_sha256`] of it, 64 hex digits.
    pub sha256: String,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// For people and searches.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// The version that it was made from.
    #[serde(default)]
    pub parent: Option<String>,
    /// When it was registered.
    #[serde(with = "rfc3339")]
    pub created_at: Timestamp,
    /// Who registered it.
    pub by: String,
}

/// What a version in a file was when it first served.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Seal {
    /// [`content_sha256`] of it.
    pub sha256: String,
    /// Since when.
    #[serde(with = "rfc3339")]
    pub at: Timestamp,
    /// [`partials`] of it: they tell which file changed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub partials: BTreeMap<String, String>,
}

/// A decision about what is live.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Deployment {
    /// The version.
    pub version: String,
    /// When.
    #[serde(with = "rfc3339")]
    pub at: Timestamp,
    /// Who.
    pub by: String,
    /// Why; may be empty.
    #[serde(default)]
    pub reason: String,
    /// What the file named as live then. A file that names another one now was changed later.
    #[serde(default)]
    pub file_said: Option<String>,
}

/// A deployment that is due later.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scheduled {
    /// The version.
    pub version: String,
    /// When it is due.
    #[serde(with = "rfc3339")]
    pub at: Timestamp,
    /// Who decided it.
    pub by: String,
    /// Why; may be empty.
    #[serde(default)]
    pub reason: String,
}

/// Something that happened to a shelf.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    #[serde(with = "rfc3339")]
    pub at: Timestamp,
    /// Who did it.
    pub by: String,
    /// What.
    pub what: What,
    /// The version that it is about; for what changes the live version, the one that is live from then on.
    pub version: String,
    /// The version that was live before, where that changed or is to change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The share of the new version from then on, in percent, in a roll-out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// Why; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The client's name for what it did, so that it can ask again without doing it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// What can happen to a shelf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// A version came.
    Registered,
    /// A version went live at once.
    Deployed,
    /// The version before went live again.
    RolledBack,
    /// A deployment was planned.
    Scheduled,
    /// It was called off.
    ScheduleCancelled,
    /// A roll-out began.
    RolloutStarted,
    /// It went on to its next stage.
    RolloutAdvanced,
    /// It ended: the new version is live.
    RolloutFinished,
    /// It ended: everybody is back at the version before.
    RolloutAborted,
    /// The file named another version after the last deployment, and won.
    FileDecided,
    /// A version's content changed in the file, where the configuration allows that.
    Resealed,
}

impl What {
    /// Whether the event's version is live from then on.
    #[must_use]
    pub fn changes_live(self) -> bool {
        matches!(self, What::Deployed | What::RolledBack | What::RolloutFinished | What::FileDecided)
    }
}

/// What the files of one gateway say, without the registry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// Models by alias.
    pub models: BTreeMap<String, Declared>,
    /// Prompts by name.
    pub prompts: BTreeMap<String, Declared>,
    /// What defines experiments, by name.
    pub experiments: BTreeMap<String, Value>,
}

/// What the files say of one model or prompt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Declared {
    /// The live version: the one that is named, or the only one there is.
    pub live: Option<String>,
    /// Whether the file alone says what is live.
    pub pin: bool,
    /// [`content_sha256`] of its versions.
    pub versions: BTreeMap<String, String>,
    /// What they say.
    pub contents: BTreeMap<String, Value>,
}

/// What is live, and who says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effective<'a> {
    /// The version.
    pub version: &'a str,
    /// Whether a deployment says so, rather than the file.
    pub deployed: bool,
}

impl Kind {
    /// Its section of a configuration and its path in the API.
    #[must_use]
    pub const fn section(self) -> &'static str {
        match self {
            Kind::Models => "models",
            Kind::Prompts => "prompts",
        }
    }

    /// One of it, for messages.
    #[must_use]
    pub const fn noun(self) -> &'static str {
        match self {
            Kind::Models => "model",
            Kind::Prompts => "prompt",
        }
    }
}

impl Files {
    /// What the files say of `name`; `None` when nothing.
    #[must_use]
    pub fn get(&self, kind: Kind, name: &str) -> Option<&Declared> {
        match kind {
            Kind::Models => self.models.get(name),
            Kind::Prompts => self.prompts.get(name),
        }
    }
}

impl Book {
    /// Reads what a store holds.
    ///
    /// # Errors
    /// When it is no such document.
    pub fn parse(text: &str) -> Result<Book, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// As a store keeps it: one JSON document.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("maps with text keys, texts, numbers: always JSON")
    }

    /// All shelves of a kind.
    #[must_use]
    pub fn shelves(&self, kind: Kind) -> &BTreeMap<String, Shelf> {
        match kind {
            Kind::Models => &self.models,
            Kind::Prompts => &self.prompts,
        }
    }

    /// One shelf; `None` where nothing was ever registered or deployed.
    #[must_use]
    pub fn shelf(&self, kind: Kind, name: &str) -> Option<&Shelf> {
        self.shelves(kind).get(name)
    }

    /// Gives what was done last with one model or prompt the client's name for it.
    pub fn name_last(&mut self, kind: Kind, name: &str, key: &str) {
        if let Some(event) = self.shelf_mut(kind, name).history.last_mut() {
            event.key = Some(key.to_owned());
        }
    }

    fn shelf_mut(&mut self, kind: Kind, name: &str) -> &mut Shelf {
        let shelves = match kind {
            Kind::Models => &mut self.models,
            Kind::Prompts => &mut self.prompts,
        };
        shelves.entry(name.to_owned()).or_default()
    }
}

impl Shelf {
    /// What is live where the file says `declared`; `None` where nothing decides.
    #[must_use]
    pub fn effective<'a>(&'a self, declared: Option<&'a Declared>) -> Option<Effective<'a>> {
        let file_live = declared.and_then(|declared| declared.live.as_deref());
        let pinned = declared.is_some_and(|declared| declared.pin);
        match &self.live {
            Some(live) if !pinned && !file_decided_later(live, file_live) => {
                Some(Effective { version: &live.version, deployed: true })
            }
            _ => file_live.map(|version| Effective { version, deployed: false }),
        }
    }

    /// The roll-out that is on its way; `None` where there is none, or the file decides what is live.
    #[must_use]
    pub fn running(&self, declared: Option<&Declared>) -> Option<&Rollout> {
        let rollout = self.rollout.as_ref().filter(|rollout| rollout.state == RolloutState::Running)?;
        let effective = self.effective(declared)?;
        (effective.deployed && effective.version == rollout.from).then_some(rollout)
    }

    /// The version that was meant when a client did something under this name; `None` when it never did.
    #[must_use]
    pub fn done_as(&self, key: &str) -> Option<&str> {
        let named = |event: &&Event| event.key.as_deref() == Some(key);
        self.history.iter().rfind(named).map(|event| event.version.as_str())
    }

    fn note(&mut self, event: Event) {
        self.history.push(event);
        let surplus = self.history.len().saturating_sub(HISTORY_MAX);
        self.history.drain(..surplus);
    }
}

/// A file that no longer names any version leaves the decision to the registry.
fn file_decided_later(live: &Deployment, file_live: Option<&str>) -> bool {
    file_live.is_some() && file_live != live.file_said.as_deref()
}

/// Times as RFC 3339 texts.
mod rfc3339 {
    use jiff::Timestamp;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(at)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|_| D::Error::custom(format!("`{text}` is no time")))
    }
}
